//! Why evidence is refused, so that programs can tell the cases apart.

use std::fmt;

use serde::Serialize;

/// What kind of fault refuses a quote. The text beside it is for people; this is for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Rejection {
    /// Collateral or a certificate is past its end.
    Expired,
    /// Collateral or a certificate begins later than the given time.
    NotYetValid,
    /// A certificate or the platform's TCB was revoked.
    Revoked,
    /// A signature, or a hash under one, is not of what it should cover.
    Forged,
    /// The chain of signatures does not lead to the trusted root.
    OtherRoot,
    /// The collateral is another platform's.
    ForeignCollateral,
    /// The platform's patch level is below what is accepted, or below all that Intel lists.
    OutOfDate,
    /// The TCB data set is older than the policy allows.
    OldCollateral,
    /// The domain's attributes let others look inside.
    OpenDomain,
    /// Everything is signed, but encoded in a way that no platform uses.
    Encoding,
    /// The TEE is simulated, and the policy does not accept that.
    Simulated,
    /// No collateral was given, so nothing could be verified.
    NoCollateral,
    /// Anything else, such as collateral that does not parse.
    Other,
}

impl Rejection {
    /// What the library found: its typed error where there is one (certificates and revocation lists), otherwise the fixed
    /// text of its innermost error, since it has no type for those.
    pub(crate) fn of(typed: Option<&webpki::Error>, innermost: &str) -> Self {
        typed.map_or_else(|| Self::of_text(innermost), Self::of_certificates)
    }

    fn of_certificates(error: &webpki::Error) -> Self {
        use webpki::Error;
        match error {
            Error::CertExpired { .. } | Error::CrlExpired { .. } => Self::Expired,
            Error::CertNotValidYet { .. } => Self::NotYetValid,
            Error::CertRevoked => Self::Revoked,
            Error::InvalidSignatureForPublicKey => Self::Forged,
            // The first thing that is checked under the root is its revocation list.
            Error::InvalidCrlSignatureForPublicKey | Error::UnknownIssuer => Self::OtherRoot,
            Error::UnknownRevocationStatus => Self::ForeignCollateral,
            _ => Self::Other,
        }
    }

    fn of_text(innermost: &str) -> Self {
        match innermost {
            "TCBInfo expired" | "QE Identity expired" => Self::Expired,
            "TCBInfo issue date is in the future" | "QE Identity issue date is in the future" => {
                Self::NotYetValid
            }
            "TCB status is invalid: Revoked" => Self::Revoked,
            "Signature is invalid for tcb_info in quote_collateral"
            | "Signature is invalid for qe_identity in quote_collateral"
            | "Signature is invalid for qe_report in quote"
            | "QE report hash mismatch"
            | "ISV enclave report signature is invalid" => Self::Forged,
            "Fmspc mismatch"
            | "TDX quote with non-TDX TCB info in the collateral"
            | "SGX quote with non-SGX TCB info in the collateral" => Self::ForeignCollateral,
            "No matching TCB level found" => Self::OutOfDate,
            "Debug mode is enabled"
            | "TD profiling is enabled"
            | "TD migration is enabled"
            | "SERVTD_EXT is enabled"
            | "SEPT_VE_DISABLE is not enabled"
            | "Invalid MR service TD"
            | "Reserved bits in TD attributes are set" => Self::OpenDomain,
            _ => Self::Other,
        }
    }

    /// What can be done about it.
    pub fn remedy(self) -> &'static str {
        match self {
            Self::Expired | Self::OldCollateral => {
                "the collateral must be fetched anew from a collateral service, Intel's or a cache of it (PCCS)"
            }
            Self::NotYetValid => "check this machine's clock, and take collateral of the present",
            Self::Revoked => "do not use this machine: Intel no longer trusts it",
            Self::Forged | Self::OtherRoot | Self::Encoding => {
                "do not use this provider: nothing vouches for its quote"
            }
            Self::ForeignCollateral => "get the collateral that belongs to this quote's platform",
            Self::OutOfDate => "the operator must update the machine's firmware and TDX module",
            Self::OpenDomain => "the operator must start the domain without these attributes",
            Self::Simulated => "choose a provider with hardware, or a development network",
            Self::NoCollateral => {
                "get collateral from the provider, from Intel's service or from a cache of it (PCCS)"
            }
            Self::Other => "do not use this provider until the reason is known",
        }
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Expired => "expired",
            Self::NotYetValid => "not yet valid",
            Self::Revoked => "revoked",
            Self::Forged => "forged",
            Self::OtherRoot => "not under the trusted root",
            Self::ForeignCollateral => "collateral of another platform",
            Self::OutOfDate => "out of date",
            Self::OldCollateral => "collateral too old",
            Self::OpenDomain => "open domain",
            Self::Encoding => "encoded unusually",
            Self::Simulated => "simulated",
            Self::NoCollateral => "no collateral",
            Self::Other => "refused",
        })
    }
}
