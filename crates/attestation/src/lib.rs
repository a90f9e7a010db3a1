//! Making and judging evidence that a provider runs in an Intel TDX enclave.
//!
//! One side asks a [`TeeBackend`] for quotes and keys; the other side reads the body of `GET /v1/quote` and lets
//! [`policy::evaluate`] say what was proven, what was not checked, and what failed. Both sides meet in
//! [`QuoteBundle`], whose JSON is fixed by the published clients (`docs/protocol.md`, attestation).
//!
//! Of the three back-ends only [`Simulated`] can run everywhere. It issues structurally real quotes under a
//! development root that is public by design, so it proves nothing about hardware: every verifier that trusts Intel's
//! root refuses them, and [`policy::Policy`] accepts them only when a caller says so. [`DstackBackend`] and
//! [`TdxGuestBackend`] need a TDX guest; the tests here cover what they parse and how they speak, not the hardware.

pub mod backend;
pub mod bundle;
pub mod checks;
pub mod collateral;
mod encoding;
pub mod event_log;
pub mod gpu;
pub mod keys;
pub mod model_node;
pub mod mr_config;
pub mod policy;
pub mod quote;
pub mod rejection;
pub mod report_data;
pub mod tls;
pub mod verify;

pub use backend::dstack::DstackBackend;
pub use backend::simulated::{Simulated, SimulatedOptions};
pub use backend::tdx_guest::TdxGuestBackend;
pub use backend::{BackendError, TeeBackend, TeeKind};
pub use bundle::{BundleError, QuoteBundle};
pub use checks::{Check, CheckId, CheckStatus};
pub use collateral::CollateralError;
pub use dcap_qvl::{QuoteCollateralV3 as Collateral, TcbStatus};
pub use keys::{EnclaveKeys, KeyError, SealingKey};
pub use model_node::ModelNode;
pub use policy::{
    Assurance, Evidence, Level, OsMeasurement, Policy, Requirement, Verdict, evaluate,
};
pub use quote::{QuoteError, TdxQuote};
pub use rejection::Rejection;
pub use report_data::{ReportData, ReportDataError};
pub use tls::{CertificateError, Connection, PeerCertificate};
pub use verify::{TrustRoot, VerifiedTee, VerifyError, verify_quote};

use sha2::{Digest, Sha256, Sha384};

/// A SHA-384 digest: one TDX measurement register.
pub type Measurement = [u8; 48];

pub(crate) fn sha256(data: &[u8]) -> [u8; 32] {
    Sha256::digest(data).into()
}

pub(crate) fn sha384(data: &[u8]) -> Measurement {
    Sha384::digest(data).into()
}
