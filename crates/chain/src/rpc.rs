//! JSON-RPC over HTTP: limits, timeouts and retries in one place.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use alloy_primitives::Bytes;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;

use crate::ChainError;

/// A page of 50 accounts with 20 deliverables each stays far below this.
const MAX_ANSWER_BYTES: usize = 32 * 1024 * 1024;
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(2);

/// One endpoint.
#[derive(Debug)]
pub(crate) struct Rpc {
    http: reqwest::Client,
    url: reqwest::Url,
    attempts: u32,
    next_id: AtomicU64,
}

/// A failed request, before it is known what the caller was doing.
#[derive(Debug)]
pub(crate) enum RpcFailure {
    Transport(String),
    Answer {
        code: i64,
        message: String,
        data: Option<Bytes>,
    },
    Malformed(String),
}

#[derive(Serialize)]
struct Request<'a, P> {
    jsonrpc: &'static str,
    id: u64,
    method: &'a str,
    params: &'a P,
}

#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(borrow)]
    result: Option<&'a RawValue>,
    error: Option<AnswerError>,
}

#[derive(Deserialize)]
struct AnswerError {
    code: i64,
    #[serde(default)]
    message: String,
    #[serde(default)]
    data: serde_json::Value,
}

impl Rpc {
    pub(crate) fn new(url: &str, timeout: Duration, attempts: u32) -> Result<Self, ChainError> {
        let invalid = |reason: String| ChainError::InvalidRpcUrl {
            url: url.to_owned(),
            reason,
        };
        let url = reqwest::Url::parse(url).map_err(|error| invalid(error.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
            return Err(invalid("only http and https are supported".to_owned()));
        }
        // The HTTP client needs a process-wide TLS provider; an earlier choice of the binary stands.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut http = reqwest::Client::builder()
            .timeout(timeout)
            .connect_timeout(timeout);
        if is_loopback(&url) {
            http = http.no_proxy();
            if url.scheme() == "http" {
                // Reading the system's certificates takes longer than most calls of a chain on this machine.
                http = http.tls_certs_only([]);
            }
        }
        let http = http.build().map_err(|error| invalid(error.to_string()))?;
        Ok(Self {
            http,
            url,
            attempts: attempts.max(1),
            next_id: AtomicU64::new(1),
        })
    }

    /// Whether the endpoint is on this machine.
    pub(crate) fn is_loopback(&self) -> bool {
        is_loopback(&self.url)
    }

    /// Scheme, host and port. Path and credentials may hold an API key and stay out of messages.
    pub(crate) fn endpoint(&self) -> String {
        self.url.origin().ascii_serialization()
    }

    /// A request that may be repeated safely. Reverts come back as [`RpcFailure::Answer`].
    pub(crate) async fn request<R: DeserializeOwned>(
        &self,
        method: &'static str,
        params: &impl Serialize,
    ) -> Result<R, RpcFailure> {
        let mut backoff = FIRST_BACKOFF;
        let mut attempt = 1;
        loop {
            match self.once(method, params).await {
                Err(failure) if attempt < self.attempts && failure.is_passing() => {
                    tracing::debug!(
                        method,
                        attempt,
                        ?failure,
                        "chain request failed, trying again"
                    );
                    tokio::time::sleep(backoff).await;
                    backoff = (backoff * 2).min(MAX_BACKOFF);
                    attempt += 1;
                }
                other => return other,
            }
        }
    }

    /// As [`Rpc::request`], for requests in which no contract can refuse.
    pub(crate) async fn read<R: DeserializeOwned>(
        &self,
        method: &'static str,
        params: &impl Serialize,
    ) -> Result<R, ChainError> {
        self.request(method, params)
            .await
            .map_err(|failure| self.error(method, failure))
    }

    pub(crate) fn error(&self, method: &'static str, failure: RpcFailure) -> ChainError {
        match failure {
            RpcFailure::Transport(reason) => ChainError::Unreachable {
                endpoint: self.endpoint(),
                attempts: self.attempts,
                reason,
            },
            RpcFailure::Answer { code, message, .. } => ChainError::Rpc {
                method,
                code,
                message,
            },
            RpcFailure::Malformed(reason) => ChainError::MalformedAnswer {
                method: method.to_owned(),
                reason,
            },
        }
    }

    async fn once<R: DeserializeOwned>(
        &self,
        method: &str,
        params: &impl Serialize,
    ) -> Result<R, RpcFailure> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let request = Request {
            jsonrpc: "2.0",
            id,
            method,
            params,
        };
        let transport = |error: reqwest::Error| RpcFailure::Transport(describe(error));
        let mut response = self
            .http
            .post(self.url.clone())
            .json(&request)
            .send()
            .await
            .map_err(transport)?;
        let status = response.status();
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(transport)? {
            if body.len() + chunk.len() > MAX_ANSWER_BYTES {
                return Err(RpcFailure::Malformed(format!(
                    "more than {MAX_ANSWER_BYTES} bytes"
                )));
            }
            body.extend_from_slice(&chunk);
        }
        let answer: Answer<'_> = match serde_json::from_slice(&body) {
            Ok(answer) => answer,
            Err(_) if !status.is_success() => {
                return Err(RpcFailure::Transport(format!("HTTP status {status}")));
            }
            Err(error) => return Err(RpcFailure::Malformed(error.to_string())),
        };
        if let Some(error) = answer.error {
            let data = revert_data(&error.data);
            return Err(RpcFailure::Answer {
                code: error.code,
                message: error.message,
                data,
            });
        }
        let result = answer.result.map_or("null", RawValue::get);
        serde_json::from_str(result).map_err(|error| RpcFailure::Malformed(error.to_string()))
    }
}

impl RpcFailure {
    /// Whether another attempt a moment later may do better.
    fn is_passing(&self) -> bool {
        match self {
            Self::Transport(_) => true,
            // Rate limits, as the common providers word them.
            Self::Answer { code, message, .. } => {
                *code == -32005
                    || *code == 429
                    || message.to_ascii_lowercase().contains("rate limit")
            }
            Self::Malformed(_) => false,
        }
    }
}

fn is_loopback(url: &reqwest::Url) -> bool {
    match url.host_str() {
        Some("localhost") => true,
        Some(host) => host
            .trim_matches(['[', ']'])
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback()),
        None => false,
    }
}

/// Revert data is a hex string, or an object that holds one under `data`.
fn revert_data(value: &serde_json::Value) -> Option<Bytes> {
    let text = match value {
        serde_json::Value::String(text) => text,
        serde_json::Value::Object(object) => object.get("data")?.as_str()?,
        _ => return None,
    };
    // Some nodes write "Reverted 0x…".
    let hex = text.split_whitespace().last()?;
    hex.starts_with("0x").then(|| hex.parse().ok()).flatten()
}

/// The error with its causes; the URL is left out, it may hold a key.
fn describe(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revert_data_is_found_in_all_three_shapes() {
        let expected = Some(Bytes::from_static(&[0x7d, 0x2d]));
        assert_eq!(revert_data(&serde_json::json!("0x7d2d")), expected);
        assert_eq!(
            revert_data(&serde_json::json!({"data": "0x7d2d"})),
            expected
        );
        assert_eq!(revert_data(&serde_json::json!("Reverted 0x7d2d")), expected);
        assert_eq!(revert_data(&serde_json::json!(null)), None);
    }

    #[test]
    fn messages_hold_no_path_of_the_endpoint() {
        let rpc = Rpc::new(
            "https://example.org:8443/v1/secret-key",
            Duration::from_secs(1),
            1,
        )
        .unwrap();
        assert_eq!(rpc.endpoint(), "https://example.org:8443");
        assert!(!rpc.is_loopback());
        assert!(
            Rpc::new("http://[::1]:8545", Duration::from_secs(1), 1)
                .unwrap()
                .is_loopback()
        );
        assert!(Rpc::new("ws://127.0.0.1", Duration::from_secs(1), 1).is_err());
    }
}
