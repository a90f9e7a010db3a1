//! The OpenAI-compatible routes over an engine, usable without a chain: no accounts, no billing.
//!
//! Every route answers with and without the prefix `/v1`, because clients of both habits exist.

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures::StreamExt;
use serde_json::{Value, json};

use crate::engine::EngineHandle;
use crate::error::ApiError;
use crate::openai_api::{self, CheckedRequest};
use crate::service::{self, AnswerId, ReplyEvent, Started, Target};

/// Largest request body in bytes.
pub const MAX_BODY_BYTES: usize = zerog_protocol::limits::MAX_CHAT_BODY_BYTES;

/// What the routes serve: an engine and the names of its base model, the first of which lists show.
#[derive(Debug, Clone)]
pub struct Served {
    /// The engine.
    pub engine: EngineHandle,
    /// Names under which the base model is asked for; an empty `model` means it too.
    pub base_names: Arc<[String]>,
    /// Unix seconds for `created` in the list of models.
    pub created_s: u64,
}

/// Routes `POST /chat/completions`, `POST /completions`, `GET /models`, `GET /models/{name}`.
pub fn router(served: Served) -> Router {
    let routes = Router::new()
        .route("/chat/completions", post(chat))
        .route("/completions", post(completion))
        .route("/models", get(models))
        .route("/models/{*name}", get(model));
    Router::new()
        .nest("/v1", routes.clone())
        .merge(routes)
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(served)
}

async fn chat(State(served): State<Served>, body: Bytes) -> Response {
    respond(&served, openai_api::parse_chat(&body)).await
}

async fn completion(State(served): State<Served>, body: Bytes) -> Response {
    respond(&served, openai_api::parse_completion(&body)).await
}

async fn models(State(served): State<Served>) -> Response {
    json_response(
        StatusCode::OK,
        Bytes::from(models_json(&served).to_string()),
    )
}

/// `GET /models/{name}`; names of base models may contain slashes.
async fn model(State(served): State<Served>, Path(name): Path<String>) -> Response {
    let list = models_json(&served);
    let mut known = list["data"].as_array().into_iter().flatten();
    match known.find(|entry| entry["id"] == name.as_str()) {
        Some(entry) => json_response(StatusCode::OK, Bytes::from(entry.to_string())),
        None => ApiError::model_not_found(&name).into_response(),
    }
}

/// Body of `GET /models`: the base model's names, then the loaded adapters with their parent.
pub fn models_json(served: &Served) -> Value {
    let parent = served.base_names.first().cloned().unwrap_or_default();
    let entry = |id: &str, parent: Option<&str>| json!({"id": id, "object": "model", "created": served.created_s, "owned_by": "zerog", "parent": parent});
    let mut data: Vec<Value> = served
        .base_names
        .iter()
        .map(|name| entry(name, None))
        .collect();
    data.extend(
        served
            .engine
            .list()
            .iter()
            .map(|adapter| entry(&adapter.id, Some(&parent))),
    );
    json!({"object": "list", "data": data})
}

/// Answers a checked request, whole or as a stream.
async fn respond(served: &Served, request: Result<CheckedRequest, ApiError>) -> Response {
    match start(served, request).await {
        Err(error) => error.into_response(),
        Ok(started) if started.wants_stream() => stream_response(started),
        Ok(started) => match started.finish().await {
            Ok(reply) => json_response(StatusCode::OK, reply.body),
            Err(error) => error.into_response(),
        },
    }
}

async fn start(
    served: &Served,
    request: Result<CheckedRequest, ApiError>,
) -> Result<Started, ApiError> {
    let request = request?;
    let target = resolve(served, &request.model)?;
    let id = AnswerId::fresh(request.route);
    let prepared = service::prepare(served.engine.tokenizer(), request).await?;
    prepared.start(&served.engine, target, id)
}

fn resolve(served: &Served, model: &str) -> Result<Target, ApiError> {
    let target = |model: &str, adapter| Target {
        model: model.to_owned(),
        adapter,
        caller: String::new(),
    };
    if model.is_empty() {
        let first = served.base_names.first().map_or("", String::as_str);
        return Ok(target(first, None));
    }
    if served.base_names.iter().any(|name| name == model) {
        return Ok(target(model, None));
    }
    if served.engine.has_adapter(model) {
        return Ok(target(model, Some(model.to_owned())));
    }
    Err(ApiError::model_not_found(model))
}

fn stream_response(started: Started) -> Response {
    let bytes = started.into_stream().filter_map(|event| async move {
        match event {
            ReplyEvent::Bytes(bytes) => Some(Ok::<_, std::convert::Infallible>(bytes)),
            ReplyEvent::Finished { .. } => None,
        }
    });
    let mut response = Response::new(Body::from_stream(bytes));
    set_stream_headers(&mut response);
    response
}

/// Headers of a stream of server-sent events; proxies must not collect it.
pub fn set_stream_headers(response: &mut Response) {
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/event-stream"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
}

fn json_response(status: StatusCode, body: Bytes) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = json_response(status, Bytes::from(self.body().to_string()));
        if let Some(seconds) = self.retry_after_s {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
