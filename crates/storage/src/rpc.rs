//! JSON-RPC clients of storage nodes and indexers.

use std::time::Duration;

use alloy_primitives::{B256, bytes::Bytes};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    CallError, CallFailure, Error,
    rpc_types::{FileInfo, SegmentWithProof, ShardConfig, ShardedNode, ShardedNodes, Status},
};

/// Ten segments in base64 with their proofs stay far below this; it bounds what a hostile node can make us hold.
const MAX_ANSWER_BYTES: usize = 64 << 20;
const ATTEMPTS: u32 = 3;
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const DOWNLOAD_METHOD: &str = "zgs_downloadSegmentWithProofByTxSeq";

/// One JSON-RPC endpoint.
#[derive(Clone, Debug)]
pub(crate) struct JsonRpc {
    http: reqwest::Client,
    url: reqwest::Url,
}

/// A call whose text is ready. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct EncodedCall {
    method: &'static str,
    text: Bytes,
}

#[derive(Serialize)]
struct Request<'a, P> {
    jsonrpc: &'static str,
    id: u64,
    method: &'a str,
    params: &'a P,
}

#[derive(Deserialize)]
struct Answer<R> {
    // `null` reads as absent, which is the same for every result of this protocol.
    #[serde(default = "absent")]
    result: Option<R>,
    #[serde(default)]
    error: Option<AnswerError>,
}

fn absent<R>() -> Option<R> {
    None
}

#[derive(Deserialize)]
struct AnswerError {
    code: i64,
    #[serde(default)]
    message: String,
    #[serde(default)]
    data: serde_json::Value,
}

impl JsonRpc {
    pub(crate) fn new(url: &str, timeout: Duration) -> Result<Self, Error> {
        let invalid = |reason: String| Error::InvalidUrl {
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
            .connect_timeout(timeout.min(Duration::from_secs(10)));
        let is_loopback = url.host_str().is_some_and(|host| {
            host == "localhost"
                || host
                    .trim_matches(['[', ']'])
                    .parse::<std::net::IpAddr>()
                    .is_ok_and(|ip| ip.is_loopback())
        });
        if is_loopback {
            http = http.no_proxy();
            if url.scheme() == "http" {
                // Reading the system's certificates takes longer than most calls of a node on this machine.
                http = http.tls_certs_only([]);
            }
        }
        let http = http.build().map_err(|error| invalid(error.to_string()))?;
        Ok(Self { http, url })
    }

    /// The endpoint without path or credentials, fit for messages.
    pub(crate) fn origin(&self) -> String {
        self.url.origin().ascii_serialization()
    }

    /// Calls once.
    pub(crate) async fn call<R: DeserializeOwned>(
        &self,
        method: &'static str,
        parameters: &impl Serialize,
    ) -> Result<R, CallError> {
        let call = EncodedCall::new(method, parameters);
        let text = self.answer_text(&call).await?;
        self.parse(method, &text)
    }

    /// Sends a call and receives the text of its answer, for [`parse`](Self::parse).
    pub(crate) async fn answer_text(&self, call: &EncodedCall) -> Result<AnswerText, CallError> {
        self.exchange(call)
            .await
            .map_err(|failure| self.failed(call.method, failure))
    }

    /// Reads the text of an answer. Long ones are work for another thread than the one that talks.
    pub(crate) fn parse<R: DeserializeOwned>(
        &self,
        method: &'static str,
        text: &AnswerText,
    ) -> Result<R, CallError> {
        text.parse().map_err(|failure| self.failed(method, failure))
    }

    fn failed(&self, method: &'static str, failure: CallFailure) -> CallError {
        CallError {
            url: self.origin(),
            method,
            failure,
        }
    }

    /// Calls again after failures that may pass. Only for calls that may be repeated, which all of this protocol are.
    pub(crate) async fn call_patiently<R: DeserializeOwned>(
        &self,
        method: &'static str,
        parameters: &impl Serialize,
    ) -> Result<R, CallError> {
        let mut backoff = FIRST_BACKOFF;
        for _ in 1..ATTEMPTS {
            match self.call(method, parameters).await {
                Err(error) if error.is_passing() => {
                    tracing::debug!(%error, "a storage call failed, trying again")
                }
                result => return result,
            }
            tokio::time::sleep(backoff).await;
            backoff *= 3;
        }
        self.call(method, parameters).await
    }

    async fn exchange(&self, call: &EncodedCall) -> Result<AnswerText, CallFailure> {
        let transport =
            |error: reqwest::Error| CallFailure::Transport(chain_of(&error.without_url()));
        let mut response = self
            .http
            .post(self.url.clone())
            .header(reqwest::header::CONTENT_TYPE, "application/json")
            .body(call.text.clone())
            .send()
            .await
            .map_err(transport)?;
        let announced = response.content_length().unwrap_or_default();
        let announced = usize::try_from(announced).unwrap_or(MAX_ANSWER_BYTES);
        let mut bytes = Vec::with_capacity(announced.min(MAX_ANSWER_BYTES));
        while let Some(chunk) = response.chunk().await.map_err(transport)? {
            if bytes.len() + chunk.len() > MAX_ANSWER_BYTES {
                return Err(CallFailure::Malformed("it is too long".to_owned()));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(AnswerText {
            status: response.status(),
            bytes,
        })
    }
}

impl EncodedCall {
    fn new(method: &'static str, parameters: &impl Serialize) -> Self {
        let request = Request {
            jsonrpc: "2.0",
            id: 1,
            method,
            params: parameters,
        };
        let text = serde_json::to_vec(&request).expect("parameters are plain data");
        Self {
            method,
            text: text.into(),
        }
    }
}

/// What an endpoint sent back.
#[derive(Debug)]
pub(crate) struct AnswerText {
    status: reqwest::StatusCode,
    bytes: Vec<u8>,
}

impl AnswerText {
    fn parse<R: DeserializeOwned>(&self) -> Result<R, CallFailure> {
        let answer: Answer<R> = match serde_json::from_slice(&self.bytes) {
            Ok(answer) => answer,
            // Gateways answer with plain text while a node restarts.
            Err(_) if !self.status.is_success() => {
                return Err(CallFailure::Transport(format!(
                    "HTTP status {}",
                    self.status
                )));
            }
            Err(error) => return Err(CallFailure::Malformed(error.to_string())),
        };
        match answer {
            Answer {
                error:
                    Some(AnswerError {
                        code,
                        message,
                        data,
                    }),
                ..
            } => Err(CallFailure::Refused {
                code,
                message,
                data: match data {
                    serde_json::Value::Null => None,
                    serde_json::Value::String(text) => Some(text),
                    other => Some(other.to_string()),
                },
            }),
            Answer {
                result: Some(result),
                ..
            } => Ok(result),
            Answer { result: None, .. } => serde_json::from_str("null")
                .map_err(|error| CallFailure::Malformed(error.to_string())),
        }
    }
}

fn chain_of(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// A storage node.
#[derive(Clone, Debug)]
pub struct NodeClient {
    rpc: JsonRpc,
}

impl NodeClient {
    /// Nothing is sent yet. `timeout` bounds each call.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidUrl`].
    pub fn new(url: &str, timeout: Duration) -> Result<Self, Error> {
        Ok(Self {
            rpc: JsonRpc::new(url, timeout)?,
        })
    }

    /// The node, fit for messages.
    pub fn origin(&self) -> String {
        self.rpc.origin()
    }

    /// Its network and how far it has followed the chain.
    ///
    /// # Errors
    ///
    /// [`CallError`].
    pub async fn status(&self) -> Result<Status, CallError> {
        self.rpc.call_patiently("zgs_getStatus", &[(); 0]).await
    }

    /// Which segments it keeps.
    ///
    /// # Errors
    ///
    /// [`CallError`].
    pub async fn shard_config(&self) -> Result<ShardConfig, CallError> {
        let config: ShardConfig = self
            .rpc
            .call_patiently("zgs_getShardConfig", &[(); 0])
            .await?;
        if config.is_valid() {
            return Ok(config);
        }
        let failure = CallFailure::Malformed(format!("{config:?} is no shard"));
        Err(CallError {
            url: self.origin(),
            method: "zgs_getShardConfig",
            failure,
        })
    }

    /// What it knows of a root; of several submissions a finalized one first.
    ///
    /// # Errors
    ///
    /// [`CallError`].
    pub async fn file_info(&self, root: B256) -> Result<Option<FileInfo>, CallError> {
        self.rpc
            .call_patiently("zgs_getFileInfo", &(root, true))
            .await
    }

    /// What it knows of a submission.
    ///
    /// # Errors
    ///
    /// [`CallError`].
    pub async fn file_info_by_sequence(
        &self,
        sequence: u64,
    ) -> Result<Option<FileInfo>, CallError> {
        self.rpc
            .call_patiently("zgs_getFileInfoByTxSeq", &(sequence,))
            .await
    }

    /// The call that hands segments of a submission over.
    pub(crate) fn encode_upload(sequence: u64, segments: &[SegmentWithProof]) -> EncodedCall {
        let method = "zgs_uploadSegmentsByTxSeq";
        let data_bytes: usize = segments.iter().map(|segment| segment.data.len()).sum();
        let mut text = Vec::with_capacity(data_bytes / 3 * 4 + 4_096 * (segments.len() + 1));
        text.extend_from_slice(
            format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{method}","params":[["#).as_bytes(),
        );
        for (position, segment) in segments.iter().enumerate() {
            if position > 0 {
                text.push(b',');
            }
            segment.write_json(&mut text);
        }
        text.extend_from_slice(format!("],{sequence}]}}").as_bytes());
        EncodedCall {
            method,
            text: text.into(),
        }
    }

    /// Hands segments of a submission over.
    ///
    /// # Errors
    ///
    /// [`CallError`].
    pub async fn upload_segments(
        &self,
        sequence: u64,
        segments: &[SegmentWithProof],
    ) -> Result<(), CallError> {
        self.upload_encoded(&Self::encode_upload(sequence, segments))
            .await
    }

    pub(crate) async fn upload_encoded(&self, call: &EncodedCall) -> Result<(), CallError> {
        let text = self.rpc.answer_text(call).await?;
        // Some nodes answer with a number instead of null.
        let _: serde_json::Value = self.rpc.parse(call.method, &text)?;
        Ok(())
    }

    /// Fetches a segment, unverified; `None` when the node does not have it.
    ///
    /// # Errors
    ///
    /// [`CallError`].
    pub async fn download_segment(
        &self,
        sequence: u64,
        index: u64,
    ) -> Result<Option<SegmentWithProof>, CallError> {
        let text = self.segment_text(sequence, index).await?;
        self.parse_segment(&text)
    }

    /// The answer of [`download_segment`](Self::download_segment) before it is read.
    pub(crate) async fn segment_text(
        &self,
        sequence: u64,
        index: u64,
    ) -> Result<AnswerText, CallError> {
        let call = EncodedCall::new(DOWNLOAD_METHOD, &(sequence, index));
        self.rpc.answer_text(&call).await
    }

    pub(crate) fn parse_segment(
        &self,
        text: &AnswerText,
    ) -> Result<Option<SegmentWithProof>, CallError> {
        self.rpc.parse(DOWNLOAD_METHOD, text)
    }
}

/// An indexer.
#[derive(Clone, Debug)]
pub struct IndexerClient {
    rpc: JsonRpc,
}

impl IndexerClient {
    /// Nothing is sent yet. `timeout` bounds each call.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidUrl`].
    pub fn new(url: &str, timeout: Duration) -> Result<Self, Error> {
        Ok(Self {
            rpc: JsonRpc::new(url, timeout)?,
        })
    }

    /// All nodes it knows.
    ///
    /// # Errors
    ///
    /// [`CallError`].
    pub async fn sharded_nodes(&self) -> Result<ShardedNodes, CallError> {
        self.rpc
            .call_patiently("indexer_getShardedNodes", &[(); 0])
            .await
    }

    /// Nodes that have the file; `None` when it is known but not complete yet.
    ///
    /// # Errors
    ///
    /// [`CallError`]; one that says "file not found" for an unknown root.
    pub async fn file_locations(&self, root: B256) -> Result<Option<Vec<ShardedNode>>, CallError> {
        self.rpc
            .call_patiently("indexer_getFileLocations", &(root,))
            .await
    }
}
