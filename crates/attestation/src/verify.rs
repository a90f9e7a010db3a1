//! Whether a quote's signatures lead to a trusted root, and with which TCB status.
//!
//! The cryptography is `dcap-qvl`'s: certificate chain, revocation lists, quoting-enclave identity, TCB levels and
//! both signatures, at a given time and with given collateral. Nothing is fetched here. What no signature covers must be
//! encoded in the one way that `encoding.rs` takes.

use dcap_qvl::verify::QuoteVerifier;
use dcap_qvl::{QuotePolicy, TcbStatus};

use crate::backend::simulated;
use crate::quote::{QuoteError, TdxQuote};
use crate::rejection::Rejection;
use crate::{Collateral, encoding, sha256};

/// Whose signature on the platform counts.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum TrustRoot {
    /// Intel's production root.
    Intel,
    /// The root of simulated quotes, whose key is public. It proves nothing about hardware.
    Development,
    /// Another root certificate, DER.
    Certificate(Vec<u8>),
}

/// SHA-256 of the DER of "Intel SGX Root CA", which is also under the root that `dcap-qvl` holds.
const INTEL_ROOT_SHA256: [u8; 32] =
    alloy_primitives::hex!("44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3");

/// Why a quote is not accepted.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum VerifyError {
    /// The quote does not parse.
    #[error(transparent)]
    Quote(#[from] QuoteError),
    /// A signature, certificate, revocation list or date does not hold.
    #[error("{reason} ({rejection}): {}", .rejection.remedy())]
    Rejected {
        /// What kind of fault it is.
        rejection: Rejection,
        /// What the verifier found first.
        reason: String,
    },
}

impl VerifyError {
    /// What kind of fault it is; `None` where the bytes are no TDX quote.
    pub fn rejection(&self) -> Option<Rejection> {
        match self {
            Self::Quote(_) => None,
            Self::Rejected { rejection, .. } => Some(*rejection),
        }
    }
}

/// A quote whose signatures lead to the chosen root. What it says is now as good as that root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedTee {
    /// The quote.
    pub quote: TdxQuote,
    /// TCB status; every value but `Revoked` can appear, the caller decides.
    pub tcb_status: TcbStatus,
    /// Intel's advisories that apply to the platform.
    pub advisory_ids: Vec<String>,
    /// Number of the TCB data set that the collateral comes from.
    pub tcb_evaluation_number: u32,
    /// When the collateral ends being valid, Unix seconds.
    pub collateral_expires_s: u64,
    /// Whether the root was the development root.
    pub simulated: bool,
}

/// Verifies a binary quote against a root, with collateral, at `now_s` (Unix seconds).
///
/// A debug domain is refused, except under [`TrustRoot::Development`], whose quotes are all marked DEBUG.
///
/// # Errors
/// [`VerifyError::Quote`] if it does not parse, [`VerifyError::Rejected`] with the first failing step.
pub fn verify_quote(
    quote: &[u8],
    collateral: &Collateral,
    root: &TrustRoot,
    now_s: u64,
) -> Result<VerifiedTee, VerifyError> {
    let parsed = TdxQuote::parse(quote)?;
    let verifier = match root {
        TrustRoot::Intel => QuoteVerifier::new_prod(),
        TrustRoot::Development => {
            QuoteVerifier::new(simulated::development_root().to_vec()).allow_debug(true)
        }
        TrustRoot::Certificate(certificate) => QuoteVerifier::new(certificate.clone()),
    };
    // The library would take a chain out of the collateral and never look at the quote's own.
    let collateral = Collateral {
        pck_certificate_chain: None,
        ..collateral.clone()
    };
    let claims = verifier
        .verify_with_policy(quote, collateral, now_s, &QuotePolicy::claims_only(now_s))
        .map_err(|error| VerifyError::Rejected {
            rejection: Rejection::of(
                error.downcast_ref::<webpki::Error>(),
                &error.root_cause().to_string(),
            ),
            reason: format!("{error:#}"),
        })?;
    // The library does not look at when a revocation list was made.
    if claims.latest_issue_date > now_s {
        return Err(VerifyError::Rejected {
            rejection: Rejection::NotYetValid,
            reason: "a part of the collateral was made in the future".to_owned(),
        });
    }
    check_encoding(quote, parsed.version, root)?;
    Ok(VerifiedTee {
        quote: parsed,
        tcb_status: claims.tcb.status,
        advisory_ids: claims.tcb.advisory_ids,
        tcb_evaluation_number: claims.tcb.eval_data_number,
        collateral_expires_s: claims.earliest_expiration_date,
        simulated: *root == TrustRoot::Development,
    })
}

/// Whether everything is encoded as platforms do it, with the very root that counts.
fn check_encoding(quote: &[u8], version: u16, root: &TrustRoot) -> Result<(), VerifyError> {
    let rejected = |rejection, reason: &str| VerifyError::Rejected {
        rejection,
        reason: reason.to_owned(),
    };
    let certificates = encoding::certificates(quote, version)
        .map_err(|reason| rejected(Rejection::Encoding, reason))?;
    let own = certificates.last().map_or(&[][..], Vec::as_slice);
    let is_the_root = match root {
        TrustRoot::Intel => sha256(own) == INTEL_ROOT_SHA256,
        TrustRoot::Development => own == simulated::development_root(),
        TrustRoot::Certificate(certificate) => own == certificate.as_slice(),
    };
    if is_the_root {
        Ok(())
    } else {
        Err(rejected(
            Rejection::OtherRoot,
            "the quote's root certificate is not the trusted one",
        ))
    }
}
