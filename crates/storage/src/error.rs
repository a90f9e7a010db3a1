use std::{io, path::PathBuf, time::Duration};

use alloy_primitives::{Address, B256};
use zerog_chain::ChainError;

/// Why a file could not be stored or fetched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A local file cannot be read or written.
    #[error("cannot use {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// An empty file has no root, so the network cannot hold it.
    #[error("the file is empty; 0G Storage cannot hold empty files")]
    EmptyFile,
    /// Larger than this crate handles.
    #[error(
        "the file has {size} bytes, more than the {} that can be stored at once",
        crate::merkle::MAX_FILE_BYTES
    )]
    FileTooLarge {
        /// Its size in bytes.
        size: u64,
    },
    /// The file has other content than when its root was computed.
    #[error("{path} changed while it was being uploaded")]
    FileChanged {
        /// The file.
        path: PathBuf,
    },
    /// An endpoint is not an http or https URL.
    #[error("\"{url}\" is not a usable storage URL: {reason}")]
    InvalidUrl {
        /// As given.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// Storing costs more than the caller allows.
    #[error(
        "storing the file costs {fee} wei, more than the {limit} that were allowed; nothing was paid"
    )]
    FeeTooHigh {
        /// The fee.
        fee: alloy_primitives::U256,
        /// What was allowed.
        limit: alloy_primitives::U256,
    },
    /// Whom a file shall be encrypted for is no public key.
    #[error("the recipient is not a secp256k1 public key")]
    InvalidRecipient,
    /// The object has no encryption header that fits the key.
    #[error(
        "the stored object does not begin with an encryption header that fits this kind of key; \
        download it without decryption to look at it"
    )]
    NotEncrypted,
    /// A node or indexer failed.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The chain failed, or refused the payment.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// The nodes on offer do not together keep every segment.
    #[error(
        "the {offered} storage nodes on offer do not cover all shards{}",
        list(failures)
    )]
    NoCoverage {
        /// Nodes that were considered.
        offered: usize,
        /// What the others failed with.
        failures: Vec<String>,
    },
    /// A node serves another chain than the wallet's.
    #[error("{url} belongs to chain {found}, the wallet uses chain {expected}")]
    WrongChain {
        /// The node.
        url: String,
        /// Its chain.
        found: u64,
        /// The wallet's chain.
        expected: u64,
    },
    /// A node wants the fee paid to another contract than the known one.
    #[error("{url} uses the Flow contract {found}, expected {expected}; nothing was paid")]
    WrongFlow {
        /// The node.
        url: String,
        /// Its contract.
        found: Address,
        /// The contract of this network.
        expected: Address,
    },
    /// The paid submission has not reached the nodes. Run the upload again later: it will not pay again.
    #[error("submission {sequence} was paid in {transaction:?} but {url} has not seen it after {}s", waited.as_secs())]
    NotSynced {
        /// Number of the submission.
        sequence: u64,
        /// Its transaction, if it was ours.
        transaction: Option<B256>,
        /// A node that lags.
        url: String,
        /// Time waited.
        waited: Duration,
    },
    /// All segments are uploaded, but a node does not call the file finalized. Run the upload again later.
    #[error("{url} has not finalized {root} after {}s", waited.as_secs())]
    NotFinalized {
        /// The file.
        root: B256,
        /// The node.
        url: String,
        /// Time waited.
        waited: Duration,
    },
    /// No node knows the root.
    #[error("no storage node knows the root {root}")]
    NotFound {
        /// The file.
        root: B256,
    },
    /// The network knows the root but cannot deliver it (yet).
    #[error("{root} is known to the storage network but not available yet")]
    NotAvailable {
        /// The file.
        root: B256,
    },
    /// No node gave a correct copy of a segment. What was fetched so far is kept for the next attempt.
    #[error("no storage node delivers segment {index} of {root}{}", list(failures))]
    SegmentUnavailable {
        /// The file.
        root: B256,
        /// Position of the segment.
        index: u64,
        /// What each node failed with.
        failures: Vec<String>,
    },
    /// The stored file has another size than the caller demanded. The root does not bind the size.
    #[error("{root} is stored with {found} bytes, expected {expected}")]
    SizeMismatch {
        /// The file.
        root: B256,
        /// As stored.
        found: u64,
        /// As demanded.
        expected: u64,
    },
    /// The assembled file does not have its root, although every segment was proven: the disk failed.
    #[error("the downloaded file has root {found}, expected {root}")]
    RootMismatch {
        /// The file.
        root: B256,
        /// As computed from the disk.
        found: B256,
    },
    /// The target exists with other content.
    #[error("{path} exists with other content")]
    DestinationExists {
        /// The target.
        path: PathBuf,
    },
    /// Another transfer works on the same file.
    #[error("another transfer is using {path}")]
    Busy {
        /// The partial file or journal.
        path: PathBuf,
    },
    /// The embedded node cannot listen.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The wanted address.
        address: std::net::SocketAddr,
        /// What the operating system said.
        source: io::Error,
    },
    /// The embedded node was given a shard that does not exist.
    #[error(
        "shard {shard_id} of {num_shard} does not exist; the number of shards must be a power of two"
    )]
    InvalidShard {
        /// As given.
        shard_id: u64,
        /// As given.
        num_shard: u64,
    },
    /// The journal of an upload cannot be read. Paying without it might pay twice, so nothing was paid.
    #[error(
        "the upload journal {path} is damaged; check whether its transaction was mined before removing it"
    )]
    DamagedJournal {
        /// The journal.
        path: PathBuf,
    },
}

/// A failed call of a storage node, indexer or chain endpoint.
#[derive(Debug, thiserror::Error)]
#[error("{url} failed at {method}: {failure}")]
pub struct CallError {
    /// The endpoint, without path or credentials.
    pub url: String,
    /// JSON-RPC method.
    pub method: &'static str,
    /// What happened.
    pub failure: CallFailure,
}

/// How a call failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CallFailure {
    /// No answer, or not in time.
    #[error("{0}")]
    Transport(String),
    /// The endpoint refused.
    #[error("{message}{} (code {code})", data.as_ref().map(|data| format!("; data: {data}")).unwrap_or_default())]
    Refused {
        /// JSON-RPC code.
        code: i64,
        /// Its text.
        message: String,
        /// Its details.
        data: Option<String>,
    },
    /// The answer is not what the protocol demands.
    #[error("malformed answer: {0}")]
    Malformed(String),
}

impl CallError {
    /// Whether the refusal's text or details hold `text`.
    pub(crate) fn says(&self, text: &str) -> bool {
        match &self.failure {
            CallFailure::Refused { message, data, .. } => {
                message.contains(text) || data.as_ref().is_some_and(|data| data.contains(text))
            }
            _ => false,
        }
    }

    /// Whether the same call may succeed a moment later.
    pub(crate) fn is_passing(&self) -> bool {
        matches!(self.failure, CallFailure::Transport(_)) || self.says("too many data writing")
    }
}

fn list(failures: &[String]) -> String {
    if failures.is_empty() {
        String::new()
    } else {
        format!(": {}", failures.join("; "))
    }
}
