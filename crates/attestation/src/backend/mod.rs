//! Where quotes and key material come from.

pub mod dstack;
pub mod simulated;
pub mod tdx_guest;

use std::io;
use std::path::PathBuf;

use zeroize::Zeroizing;

use crate::bundle::QuoteBundle;

/// What can go wrong when a TEE is asked for a quote or a key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// The socket or file of the TEE cannot be used.
    #[error("the TEE interface at {path} cannot be used: {source}")]
    Unavailable {
        /// Socket or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The guest agent refused the call.
    #[error("the guest agent answered {method} with status {status}: {message}")]
    Refused {
        /// Method called.
        method: &'static str,
        /// HTTP status.
        status: u16,
        /// Text of the answer, shortened.
        message: String,
    },
    /// The answer does not have the expected shape.
    #[error("the TEE's answer to {method} is malformed: {reason}")]
    BadAnswer {
        /// Method called.
        method: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// Another process used the same interface while the quote was made.
    #[error("another process changed the TDX report request at {path}; ask again")]
    Interrupted {
        /// Folder of the request.
        path: PathBuf,
    },
    /// A simulated TEE was asked to work for a network with real money.
    #[error("a simulated TEE must not serve chain {chain_id}")]
    SimulatedOnMainnet {
        /// The chain.
        chain_id: u64,
    },
}

/// Which technology stands behind a back-end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TeeKind {
    /// Development only; proves nothing.
    Simulated,
    /// TDX under a dstack guest agent.
    Dstack,
    /// TDX through the kernel alone.
    TdxGuest,
}

/// A source of quotes and of secrets that only this enclave can derive. Calls may block for seconds.
pub trait TeeBackend: Send + Sync {
    /// Which technology this is.
    fn kind(&self) -> TeeKind;

    /// A quote over the given 64 bytes, with everything that a verifier needs besides.
    ///
    /// # Errors
    /// [`BackendError`].
    fn quote(&self, report_data: &[u8; 64]) -> Result<QuoteBundle, BackendError>;

    /// The secret of a path; the same for every start of the same application.
    ///
    /// # Errors
    /// [`BackendError`].
    fn derive_key(&self, path: &str) -> Result<Zeroizing<[u8; 32]>, BackendError>;
}
