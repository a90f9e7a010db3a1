//! JSON-RPC clients of storage nodes and indexers.

use std::time::Duration;

use alloy_primitives::B256;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;

use crate::{
    CallError, CallFailure, Error,
    rpc_types::{FileInfo, SegmentWithProof, ShardConfig, ShardedNode, ShardedNodes, Status},
};

/// Ten segments in base64 with their proofs stay far below this; it bounds what a hostile node can make us hold.
const MAX_ANSWER_BYTES: usize = 64 << 20;
const ATTEMPTS: u32 = 3;
const FIRST_BACKOFF: Duration = Duration::from_millis(100);

/// One JSON-RPC endpoint.
#[derive(Clone, Debug)]
pub(crate) struct JsonRpc {
    http: reqwest::Client,
    url: reqwest::Url,
}

#[derive(Deserialize)]
struct Answer<'a> {
    // `null` reads as absent, which is the same for every result of this protocol.
    #[serde(borrow, default)]
    result: Option<&'a RawValue>,
    #[serde(default)]
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
        self.try_call(method, parameters)
            .await
            .map_err(|failure| CallError {
                url: self.origin(),
                method,
                failure,
            })
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

    async fn try_call<R: DeserializeOwned>(
        &self,
        method: &'static str,
        parameters: &impl Serialize,
    ) -> Result<R, CallFailure> {
        let transport =
            |error: reqwest::Error| CallFailure::Transport(chain_of(&error.without_url()));
        let request =
            serde_json::json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": parameters});
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
                return Err(CallFailure::Malformed("it is too long".to_owned()));
            }
            body.extend_from_slice(&chunk);
        }
        let answer: Answer<'_> = match serde_json::from_slice(&body) {
            Ok(answer) => answer,
            // Gateways answer with plain text while a node restarts.
            Err(_) if !status.is_success() => {
                return Err(CallFailure::Transport(format!("HTTP status {status}")));
            }
            Err(error) => return Err(CallFailure::Malformed(error.to_string())),
        };
        if let Some(AnswerError {
            code,
            message,
            data,
        }) = answer.error
        {
            let data = match data {
                serde_json::Value::Null => None,
                serde_json::Value::String(text) => Some(text),
                other => Some(other.to_string()),
            };
            return Err(CallFailure::Refused {
                code,
                message,
                data,
            });
        }
        serde_json::from_str(answer.result.map_or("null", RawValue::get))
            .map_err(|error| CallFailure::Malformed(error.to_string()))
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
        // Some nodes answer with a number instead of null.
        let _: serde_json::Value = self
            .rpc
            .call("zgs_uploadSegmentsByTxSeq", &(segments, sequence))
            .await?;
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
        self.rpc
            .call("zgs_downloadSegmentWithProofByTxSeq", &(sequence, index))
            .await
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
