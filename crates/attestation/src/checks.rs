//! The checks of a verdict: what each is, and what came out.

use std::fmt;

use serde::{Serialize, Serializer};

use crate::rejection::Rejection;

/// What is checked. The order and the short names are those of the protocol text (`docs/security.md` has the table).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum CheckId {
    /// `V1`: the registration on chain names a signer that its owner acknowledged.
    Registration,
    /// `V2`: the answer has every member of a quote body.
    QuoteBody,
    /// `V3`: the quote is a TDX quote of a known version.
    QuoteFormat,
    /// `V4`: the quote is signed under a trusted root.
    QuoteSignature,
    /// `V5`: the trust domain cannot be read from outside.
    DomainAttributes,
    /// `V6`: the platform's firmware is up to date, as far as the policy asks.
    TcbStatus,
    /// `V7`: replaying the event log gives the quoted registers.
    EventLog,
    /// `V8`: the measured compose text is the one that is shown.
    ComposeHash,
    /// `V9`: the measured operating-system image is a known one.
    OsImage,
    /// `V10`: the key provider is an expected one.
    KeyProvider,
    /// `V11`: the compose text is reviewed, or asks for a review.
    ComposeReview,
    /// `V12`: the quote names a signer.
    ReportData,
    /// `V13`: that signer is the one registered on chain.
    SignerOnChain,
    /// `V14`: that signer signed the answer.
    BodySignature,
    /// `V15`: the quote answers the caller's nonce.
    Freshness,
    /// `V16`: the TLS endpoint is bound to the enclave.
    Endpoint,
    /// `V17`: the evidence of confidential GPUs belongs to this enclave.
    GpuEvidence,
    /// `V18`: Images that were replaced at run time are pinned and signed.
    ImageUpdates,
    /// `V19`: the model runs in this enclave, not on a machine behind it.
    ModelNode,
}

impl CheckId {
    /// The short name, `V1` to `V19`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Registration => "V1",
            Self::QuoteBody => "V2",
            Self::QuoteFormat => "V3",
            Self::QuoteSignature => "V4",
            Self::DomainAttributes => "V5",
            Self::TcbStatus => "V6",
            Self::EventLog => "V7",
            Self::ComposeHash => "V8",
            Self::OsImage => "V9",
            Self::KeyProvider => "V10",
            Self::ComposeReview => "V11",
            Self::ReportData => "V12",
            Self::SignerOnChain => "V13",
            Self::BodySignature => "V14",
            Self::Freshness => "V15",
            Self::Endpoint => "V16",
            Self::GpuEvidence => "V17",
            Self::ImageUpdates => "V18",
            Self::ModelNode => "V19",
        }
    }
}

impl fmt::Display for CheckId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl Serialize for CheckId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// Result of one check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckStatus {
    /// Holds.
    Pass,
    /// Does not hold.
    Fail,
    /// Holds with a reservation, or asks for a person's review.
    Warning,
    /// Could not be checked with what was given.
    Skipped,
    /// Has no meaning for this provider.
    Inapplicable,
}

/// One check, named as in the protocol text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What is checked.
    pub id: CheckId,
    /// The same in words.
    pub name: &'static str,
    /// What came out.
    pub status: CheckStatus,
    /// What was found, for people.
    pub detail: String,
    /// What kind of fault it is, for programs; only where evidence was refused or could not be verified.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rejection: Option<Rejection>,
    /// Whether leaving it open means that nothing is proven.
    #[serde(skip)]
    pub(crate) required: bool,
}
