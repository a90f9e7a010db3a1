//! The routes of a vLLM or SGLang server that are used, each with its bounds in time and size.
//!
//! Sources: vLLM's documentation "LoRA Adapters, dynamically serving" (`/v1/load_lora_adapter`, `/v1/unload_lora_adapter`;
//! the server runs with `--enable-lora` and `VLLM_ALLOW_RUNTIME_LORA_UPDATING=True`) and SGLang's "LoRA Serving"
//! (`/load_lora_adapter`, `/unload_lora_adapter`; an adapter is asked for as `base:adapter`).

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use axum::body::Bytes;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use reqwest::{Response, StatusCode};
use serde_json::{Value, json};
use zerog_tokenization::Tokenizer;

use super::ExternalError;
use crate::config::{ExternalConfig, ExternalKind};

/// Longest answer that is read whole.
const MAX_ANSWER_BYTES: usize = 16 << 20;
/// Longest text of a refusal that is kept.
const MAX_REFUSAL_BYTES: usize = 2048;
/// Time to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for lists and unloading.
const SHORT_TIMEOUT: Duration = Duration::from_secs(15);
/// Most probable tokens that a server tells by default (vLLM: `--max-logprobs 20`).
const MOST_LOGPROBS: usize = 20;

/// A connection to the server.
#[derive(Debug)]
pub(super) struct Wire {
    http: reqwest::Client,
    url: String,
    kind: ExternalKind,
    base: String,
    key: Option<HeaderValue>,
    load_timeout: Duration,
    answer_timeout: Duration,
}

/// How loading went, when the server answered.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Loading {
    Loaded,
    /// The server has an adapter of this name.
    AlreadyLoaded,
}

impl Wire {
    pub(super) fn new(config: &ExternalConfig, base: &str) -> Result<Self, String> {
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(config.stall_timeout)
            .build()
            .map_err(|error| error.to_string())?;
        let key = match &config.api_key {
            Some(key) => {
                let text = zeroize::Zeroizing::new(format!("Bearer {}", key.as_str()));
                let mut value = HeaderValue::from_str(&text)
                    .map_err(|_| "the API key has characters that no header takes".to_owned())?;
                value.set_sensitive(true);
                Some(value)
            }
            None => None,
        };
        Ok(Self {
            http,
            url: config.url.trim_end_matches('/').to_owned(),
            kind: config.kind,
            base: base.to_owned(),
            key,
            load_timeout: config.load_timeout,
            answer_timeout: config.answer_timeout,
        })
    }

    /// What requests say in `model`: the base model, or an adapter by its name on the server.
    pub(super) fn model(&self, adapter: Option<&str>) -> String {
        match (adapter, self.kind) {
            (None, _) => self.base.clone(),
            (Some(name), ExternalKind::Vllm) => name.to_owned(),
            (Some(name), ExternalKind::Sglang) => format!("{}:{name}", self.base),
        }
    }

    /// Ids that `GET /v1/models` lists.
    pub(super) async fn models(&self) -> Result<Vec<String>, ExternalError> {
        let request = self.http.get(format!("{}/v1/models", self.url));
        let answer = self.answer(request, SHORT_TIMEOUT).await?;
        let list: Value = serde_json::from_slice(&answer)
            .map_err(|_| ExternalError::unexpected("GET /v1/models is not JSON"))?;
        let entries = list["data"]
            .as_array()
            .ok_or_else(|| ExternalError::unexpected("GET /v1/models has no list `data`"))?;
        Ok(entries
            .iter()
            .filter_map(|entry| entry["id"].as_str().map(str::to_owned))
            .collect())
    }

    /// Lets the server read an adapter's folder.
    pub(super) async fn load(&self, name: &str, folder: &Path) -> Result<Loading, ExternalError> {
        let body = json!({"lora_name": name, "lora_path": folder});
        let request = self.post(&self.lora_path("load_lora_adapter"), body.to_string());
        match self.answer(request, self.load_timeout).await {
            Ok(_) => Ok(Loading::Loaded),
            Err(ExternalError::Refused { message, .. }) if says_already_loaded(&message) => {
                Ok(Loading::AlreadyLoaded)
            }
            Err(ExternalError::Refused { status: 404, .. }) => Err(ExternalError::Refused {
                status: 404,
                message: match self.kind {
                    ExternalKind::Vllm => {
                        "the server cannot load adapters, or does not see their folder: start vLLM with --enable-lora, \
                         VLLM_ALLOW_RUNTIME_LORA_UPDATING=True and inference.external.adapter_dir shared with it"
                    }
                    ExternalKind::Sglang => {
                        "the server cannot load adapters: start SGLang with --enable-lora"
                    }
                }
                .into(),
            }),
            Err(error) => Err(error),
        }
    }

    /// Lets the server forget an adapter. One that it does not have is forgotten.
    pub(super) async fn unload(&self, name: &str) -> Result<(), ExternalError> {
        let body = json!({"lora_name": name}).to_string();
        let request = self.post(&self.lora_path("unload_lora_adapter"), body);
        match self.answer(request, SHORT_TIMEOUT).await {
            Ok(_) | Err(ExternalError::Refused { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Log probabilities of the most probable next tokens. Servers that name tokens by their text are understood for the
    /// tokens in `wanted`.
    pub(super) async fn next_token(
        &self,
        adapter: Option<&str>,
        prompt: &[u32],
        wanted: &[u32],
        tokenizer: &Tokenizer,
    ) -> Result<HashMap<u32, f32>, ExternalError> {
        let mut body = json!({
            "model": self.model(adapter), "prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": MOST_LOGPROBS,
        });
        if self.kind == ExternalKind::Vllm {
            body["return_tokens_as_token_ids"] = json!(true);
        }
        let request = self.post("/v1/completions", body.to_string());
        let answer = self.answer(request, self.load_timeout).await?;
        let answer: Value = serde_json::from_slice(&answer)
            .map_err(|_| ExternalError::unexpected("POST /v1/completions is not JSON"))?;
        let top = answer["choices"][0]["logprobs"]["top_logprobs"][0]
            .as_object()
            .ok_or_else(|| {
                ExternalError::unexpected("POST /v1/completions gives no log probabilities")
            })?;
        let mut by_text: HashMap<String, Option<u32>> = HashMap::new();
        for id in wanted {
            if let Ok(text) = tokenizer.decode(&[*id], false) {
                // Several tokens of one text cannot be told apart.
                by_text
                    .entry(text)
                    .and_modify(|known| *known = None)
                    .or_insert(Some(*id));
            }
        }
        let mut found = HashMap::new();
        for (name, value) in top {
            let id = match name.strip_prefix("token_id:") {
                Some(digits) => digits.parse().ok(),
                None => by_text.get(name.as_str()).copied().flatten(),
            };
            if let (Some(id), Some(value)) = (id, value.as_f64()) {
                found.insert(id, value as f32);
            }
        }
        Ok(found)
    }

    /// Sends a request of OpenAI's interface; the answer's body is read by the caller.
    pub(super) async fn open(&self, path: &str, body: String) -> Result<Response, ExternalError> {
        let request = self.authorized(self.post(path, body));
        let request = request.timeout(self.answer_timeout);
        let response = request.send().await.map_err(ExternalError::unreachable)?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(refusal(response).await)
    }

    fn lora_path(&self, route: &str) -> String {
        match self.kind {
            ExternalKind::Vllm => format!("/v1/{route}"),
            ExternalKind::Sglang => format!("/{route}"),
        }
    }

    fn post(&self, path: &str, body: String) -> reqwest::RequestBuilder {
        self.http
            .post(format!("{}{path}", self.url))
            .header(CONTENT_TYPE, "application/json")
            .body(body)
    }

    fn authorized(&self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        match &self.key {
            Some(key) => request.header(AUTHORIZATION, key.clone()),
            None => request,
        }
    }

    async fn answer(
        &self,
        request: reqwest::RequestBuilder,
        timeout: Duration,
    ) -> Result<Bytes, ExternalError> {
        let response = self
            .authorized(request)
            .timeout(timeout)
            .send()
            .await
            .map_err(ExternalError::unreachable)?;
        if !response.status().is_success() {
            return Err(refusal(response).await);
        }
        read_bounded(response).await
    }
}

/// Reads a whole body of bounded length.
pub(super) async fn read_bounded(mut response: Response) -> Result<Bytes, ExternalError> {
    let mut all = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(ExternalError::unreachable)? {
        if all.len() + chunk.len() > MAX_ANSWER_BYTES {
            return Err(ExternalError::unexpected("an answer is longer than 16 MiB"));
        }
        all.extend_from_slice(&chunk);
    }
    Ok(all.into())
}

/// The server's own words, from any of the forms that these servers use.
async fn refusal(mut response: Response) -> ExternalError {
    let status = response.status();
    let mut text = Vec::new();
    while text.len() < MAX_REFUSAL_BYTES {
        match response.chunk().await {
            Ok(Some(chunk)) => text.extend_from_slice(&chunk),
            Ok(None) | Err(_) => break,
        }
    }
    text.truncate(MAX_REFUSAL_BYTES);
    if matches!(
        status,
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
    ) {
        return ExternalError::Busy;
    }
    let parsed: Value = serde_json::from_slice(&text).unwrap_or(Value::Null);
    let said = [
        &parsed["error"]["message"],
        &parsed["message"],
        &parsed["error_message"],
        &parsed["detail"],
    ];
    let message = said.iter().find_map(|value| value.as_str()).map_or_else(
        || String::from_utf8_lossy(&text).into_owned(),
        str::to_owned,
    );
    ExternalError::Refused {
        status: status.as_u16(),
        message,
    }
}

fn says_already_loaded(message: &str) -> bool {
    let message = message.to_lowercase();
    message.contains("already") && (message.contains("loaded") || message.contains("exist"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_servers_words_for_a_name_that_is_taken_are_known() {
        assert!(says_already_loaded(
            "The lora adapter 'a' has already been loaded."
        ));
        assert!(says_already_loaded(
            "Failed to load LoRA adapter a: LoRA adapter with name a already exists."
        ));
        assert!(!says_already_loaded("LoRA rank 64 is greater than 16"));
    }
}
