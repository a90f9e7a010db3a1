use std::{io, net::SocketAddr, path::PathBuf};

use alloy_primitives::{B256, Bytes};

/// Why a chain could not be opened or served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file of the data directory cannot be read or written.
    #[error("cannot use {path}: {source}")]
    File {
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Another process has the data directory open.
    #[error("{path} is in use by another chain")]
    InUse {
        /// The data directory.
        path: PathBuf,
    },
    /// The file is not a chain log, or one of another version.
    #[error("{path} is not a chain log of this version")]
    NotAChainLog {
        /// The log file.
        path: PathBuf,
    },
    /// The data directory was made with another chain id, other funded accounts or other genesis transactions.
    #[error(
        "{path} belongs to a chain with another genesis (found {found}, expected {expected}); remove it to start afresh"
    )]
    OtherGenesis {
        /// The log file.
        path: PathBuf,
        /// Hash of the last genesis block as recorded.
        found: B256,
        /// Hash of the last genesis block of these options.
        expected: B256,
    },
    /// A record in the middle of the log fails its checksum, so the blocks after it cannot be trusted.
    #[error("{path} is damaged at byte {offset}, with intact records after it")]
    DamagedLog {
        /// The log file.
        path: PathBuf,
        /// Where the damaged record starts, in bytes.
        offset: u64,
    },
    /// Executing the log again gave another block than the recorded one.
    #[error("block {number} replays to {found}, the log says {recorded}")]
    ReplayMismatch {
        /// The block's number.
        number: u64,
        /// Hash after executing it now.
        found: B256,
        /// Hash in the log.
        recorded: B256,
    },
    /// A genesis transaction does not decode, is invalid, or reverts.
    #[error("genesis transaction {index} failed: {reason}")]
    Genesis {
        /// Its position in [`Options::genesis_transactions`](crate::Options).
        index: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// The listener is reachable from other machines. The chain has no authentication, so that is refused.
    #[error("{address} is not a loopback address")]
    NotLoopback {
        /// Where the listener is bound.
        address: SocketAddr,
    },
    /// The listener cannot be used.
    #[error("cannot listen: {0}")]
    Listen(#[source] io::Error),
}

/// A JSON-RPC error object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message} (code {code})")]
pub struct RpcError {
    /// The JSON-RPC error code; 3 is a revert, which carries `data`.
    pub code: i64,
    /// The text that clients match ("nonce too low", "insufficient funds", "execution reverted").
    pub message: String,
    /// Revert data.
    pub data: Option<Bytes>,
}

impl RpcError {
    pub(crate) fn new(code: i64, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            data: None,
        }
    }

    /// The server refuses or fails for a reason given in the text.
    pub(crate) fn server(message: impl Into<String>) -> Self {
        Self::new(-32000, message)
    }

    pub(crate) fn invalid_params(message: impl Into<String>) -> Self {
        Self::new(-32602, message)
    }

    pub(crate) fn limit(message: impl Into<String>) -> Self {
        Self::new(-32005, message)
    }

    pub(crate) fn method_not_found(method: &str) -> Self {
        Self::new(
            -32601,
            format!("the method {method} does not exist/is not available"),
        )
    }
}
