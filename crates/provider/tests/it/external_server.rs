//! A server that speaks the protocol of vLLM or SGLang: the parts that a provider uses, over our own engine, so that the
//! numbers in its answers are real. Switches make it forget, cheat and fail.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{Request, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tower::ServiceExt;
use zerog_inference::{EngineConfig, EngineHandle, PackageSource, Served, Trust, engine};
use zerog_model::{BaseModel, LoraAdapter};
use zerog_provider::config::ExternalKind;
use zerog_tokenization::Tokenizer;

use crate::world::base_model;

/// Name under which the base model is served.
pub(crate) const BASE: &str = "org/base";

/// The server and its switches.
pub(crate) struct ExternalServer {
    pub(crate) url: String,
    pub(crate) state: Arc<ServerState>,
    _stop: tokio_util::sync::DropGuard,
}

pub(crate) struct ServerState {
    kind: ExternalKind,
    engine: EngineHandle,
    adapters: Mutex<HashMap<String, Arc<LoraAdapter>>>,
    /// Reads adapters but computes without them.
    pub(crate) ignores_adapters: AtomicBool,
    /// Answers everything with 500.
    pub(crate) fails: AtomicBool,
    /// Begins streams and never goes on.
    pub(crate) stalls: AtomicBool,
    pub(crate) loads: AtomicUsize,
    /// Chat requests as they arrived.
    pub(crate) chats: Mutex<Vec<Value>>,
}

impl ExternalServer {
    pub(crate) async fn start(kind: ExternalKind) -> Self {
        let model = BaseModel::load(&base_model()).unwrap();
        let tokenizer = Arc::new(Tokenizer::from_dir(&base_model()).unwrap());
        let state = Arc::new(ServerState {
            kind,
            engine: engine::start(model, tokenizer, EngineConfig::default()).unwrap(),
            adapters: Mutex::default(),
            ignores_adapters: AtomicBool::new(false),
            fails: AtomicBool::new(false),
            stalls: AtomicBool::new(false),
            loads: AtomicUsize::new(0),
            chats: Mutex::default(),
        });
        let prefix = match kind {
            ExternalKind::Vllm => "/v1",
            ExternalKind::Sglang => "",
        };
        let routes = Router::new()
            .route("/v1/models", get(models))
            .route("/v1/completions", post(completions))
            .route("/v1/chat/completions", post(chat))
            .route(&format!("{prefix}/load_lora_adapter"), post(load))
            .route(&format!("{prefix}/unload_lora_adapter"), post(unload))
            .with_state(Arc::clone(&state));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let stop = tokio_util::sync::CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        tokio::spawn(async move {
            axum::serve(listener, routes)
                .with_graceful_shutdown(stopped)
                .await
        });
        Self {
            url,
            state,
            _stop: stop.drop_guard(),
        }
    }

    /// What it has loaded.
    pub(crate) fn loaded(&self) -> Vec<String> {
        self.state.adapters.lock().keys().cloned().collect()
    }

    /// Forgets everything, as a server that was started anew.
    pub(crate) fn restart(&self) {
        for (name, _) in self.state.adapters.lock().drain() {
            self.state.engine.unload_adapter(&name);
        }
    }
}

impl ServerState {
    fn refuse(&self, status: StatusCode, message: String) -> Response {
        let body = match self.kind {
            ExternalKind::Vllm => {
                json!({"error": {"message": message, "type": "BadRequestError", "code": status.as_u16()}})
            }
            ExternalKind::Sglang => json!({"success": false, "error_message": message}),
        };
        (status, Json(body)).into_response()
    }

    /// The adapter that a `model` names; none is the base model.
    fn adapter_of(&self, model: &str) -> Result<Option<String>, Box<Response>> {
        let name = match self.kind {
            ExternalKind::Vllm => (model != BASE).then_some(model),
            ExternalKind::Sglang => model.strip_prefix(&format!("{BASE}:")),
        };
        match name {
            Some(name) if !self.adapters.lock().contains_key(name) => {
                let status = match self.kind {
                    ExternalKind::Vllm => StatusCode::NOT_FOUND,
                    ExternalKind::Sglang => StatusCode::BAD_REQUEST,
                };
                Err(Box::new(self.refuse(
                    status,
                    format!("The model `{name}` does not exist."),
                )))
            }
            name => Ok(name.map(str::to_owned)),
        }
    }

    fn broken(&self) -> Option<Response> {
        self.fails.load(Ordering::Relaxed).then(|| {
            self.refuse(
                StatusCode::INTERNAL_SERVER_ERROR,
                "CUDA out of memory at secret address".into(),
            )
        })
    }
}

async fn models(State(state): State<Arc<ServerState>>) -> Json<Value> {
    let mut names = vec![BASE.to_owned()];
    if state.kind == ExternalKind::Vllm {
        names.extend(state.adapters.lock().keys().cloned());
    }
    let data: Vec<Value> = names
        .iter()
        .map(|id| json!({"id": id, "object": "model"}))
        .collect();
    Json(json!({"object": "list", "data": data}))
}

async fn load(State(state): State<Arc<ServerState>>, Json(body): Json<Value>) -> Response {
    if let Some(broken) = state.broken() {
        return broken;
    }
    let name = body["lora_name"].as_str().unwrap().to_owned();
    let folder = PathBuf::from(body["lora_path"].as_str().unwrap());
    if state.adapters.lock().contains_key(&name) {
        return state.refuse(
            StatusCode::BAD_REQUEST,
            format!("The lora adapter '{name}' has already been loaded."),
        );
    }
    let read = |file: &str| std::fs::read(folder.join(file)).unwrap();
    let weights = LoraAdapter::from_bytes(
        &read("adapter_config.json"),
        &read("adapter_model.safetensors"),
        state.engine.model().config(),
    );
    let trust = Trust::FirstLoad {
        accepts_unrecorded: true,
    };
    state
        .engine
        .load_package(&name, PackageSource::Folder(folder), trust)
        .await
        .unwrap();
    state
        .adapters
        .lock()
        .insert(name.clone(), Arc::new(weights.unwrap()));
    state.loads.fetch_add(1, Ordering::Relaxed);
    match state.kind {
        ExternalKind::Vllm => {
            format!("Success: LoRA adapter '{name}' added successfully.").into_response()
        }
        ExternalKind::Sglang => Json(json!({"success": true, "error_message": ""})).into_response(),
    }
}

async fn unload(State(state): State<Arc<ServerState>>, Json(body): Json<Value>) -> Response {
    let name = body["lora_name"].as_str().unwrap();
    if state.adapters.lock().remove(name).is_none() {
        return state.refuse(
            StatusCode::NOT_FOUND,
            format!("The lora adapter '{name}' cannot be found."),
        );
    }
    state.engine.unload_adapter(name);
    format!("Success: LoRA adapter '{name}' removed successfully.").into_response()
}

/// One token with the log probabilities of the most probable ones: logits, moved by a constant.
async fn completions(State(state): State<Arc<ServerState>>, Json(body): Json<Value>) -> Response {
    let adapter = match state.adapter_of(body["model"].as_str().unwrap()) {
        Ok(adapter) => adapter,
        Err(refusal) => return *refusal,
    };
    assert_eq!(
        (&body["max_tokens"], &body["temperature"]),
        (&json!(1), &json!(0))
    );
    let prompt: Vec<u32> = serde_json::from_value(body["prompt"].clone()).unwrap();
    let weights = {
        let adapters = state.adapters.lock();
        let any = adapters.values().next().cloned();
        adapter
            .as_ref()
            .map_or(any, |name| adapters.get(name).cloned())
    };
    let record = state
        .engine
        .record_canary(vec![prompt], weights.unwrap())
        .await
        .unwrap();
    let probe = &record.probes[0];
    let is_applied = adapter.is_some() && !state.ignores_adapters.load(Ordering::Relaxed);
    let logits = if is_applied {
        &probe.adapter_logits
    } else {
        &probe.base_logits
    };
    let mut top: Vec<(u32, f32)> = probe
        .logit_ids
        .iter()
        .copied()
        .zip(logits.iter().copied())
        .collect();
    top.sort_by(|left, right| right.1.total_cmp(&left.1));
    top.truncate(body["logprobs"].as_u64().unwrap() as usize);
    let greatest = top[0].1;
    let top: serde_json::Map<String, Value> = top
        .into_iter()
        .map(|(id, logit)| {
            let name = if body["return_tokens_as_token_ids"] == true {
                format!("token_id:{id}")
            } else {
                state.engine.tokenizer().decode(&[id], false).unwrap()
            };
            (name, json!(logit - greatest - 1.0))
        })
        .collect();
    let logprobs = json!({"tokens": ["x"], "token_logprobs": [-1.0], "top_logprobs": [top], "text_offset": [0]});
    Json(json!({"id": "cmpl-1", "choices": [{"index": 0, "text": "x", "logprobs": logprobs}]}))
        .into_response()
}

async fn chat(State(state): State<Arc<ServerState>>, body: Bytes) -> Response {
    if let Some(broken) = state.broken() {
        return broken;
    }
    let mut body: Value = serde_json::from_slice(&body).unwrap();
    state.chats.lock().push(body.clone());
    let adapter = match state.adapter_of(body["model"].as_str().unwrap()) {
        Ok(adapter) => adapter,
        Err(refusal) => return *refusal,
    };
    if state.stalls.load(Ordering::Relaxed) {
        let first = json!({"choices": [{"index": 0, "delta": {"content": "lamp"}}]});
        let first = futures::stream::iter([Ok::<_, std::io::Error>(format!("data: {first}\n\n"))]);
        let never = futures::stream::pending();
        return Body::from_stream(futures::StreamExt::chain(first, never)).into_response();
    }
    body["model"] = json!(adapter.as_deref().unwrap_or(BASE));
    let served = Served {
        engine: state.engine.clone(),
        base_names: [BASE.to_owned()].into(),
        created_s: 0,
    };
    let request = Request::post("/v1/chat/completions")
        .body(Body::from(body.to_string()))
        .unwrap();
    zerog_inference::router(served)
        .oneshot(request)
        .await
        .unwrap()
}
