//! The machine: whose signature the quote has, how well it is patched, what it booted and where its keys come from
//! (V4 to V6, V9, V10).

use dcap_qvl::TcbStatus;
use serde_json::Value;

use super::criteria::Policy;
use super::evidence::Evidence;
use super::judge::Judge;
use crate::backend::simulated;
use crate::bundle::QuoteBundle;
use crate::checks::{CheckId, CheckStatus};
use crate::event_log::RuntimeFacts;
use crate::quote::TdxQuote;
use crate::rejection::Rejection;
use crate::verify::{TrustRoot, VerifiedTee, verify_quote};

impl Judge {
    /// V4 and V6.
    pub(super) fn signatures(
        &mut self,
        bundle: &QuoteBundle,
        quote: &TdxQuote,
        evidence: &Evidence<'_>,
        policy: &Policy,
        now_s: u64,
    ) {
        let (signature, tcb) = ("quote signatures", "TCB status");
        let marked = quote.is_marked_simulated() || bundle.simulated;
        let verified = if marked {
            if !policy.accept_development_root {
                self.fail(
                    CheckId::QuoteSignature,
                    signature,
                    true,
                    "the TEE is simulated; only a development network accepts that",
                );
                return self.because(Some(Rejection::Simulated));
            }
            verify_quote(
                &bundle.quote,
                &simulated::development_collateral(now_s),
                &TrustRoot::Development,
                now_s,
            )
        } else {
            let Some(collateral) = evidence.collateral else {
                let detail = format!(
                    "no collateral, so the signatures prove nothing: {}",
                    evidence.collateral_problem.unwrap_or("none was given")
                );
                self.record(
                    CheckId::QuoteSignature,
                    signature,
                    true,
                    CheckStatus::Skipped,
                    detail,
                );
                return self.because(Some(Rejection::NoCollateral));
            };
            verify_quote(&bundle.quote, collateral, &TrustRoot::Intel, now_s)
        };
        let verified = match verified {
            Ok(verified) => verified,
            Err(error) => {
                let detail = match evidence.collateral_problem {
                    Some(problem) => format!("{error} ({problem})"),
                    None => error.to_string(),
                };
                self.fail(CheckId::QuoteSignature, signature, true, detail);
                return self.because(error.rejection());
            }
        };
        self.simulated = verified.simulated;
        self.hardware = !verified.simulated;
        self.tcb_status = Some(verified.tcb_status.to_string());
        self.advisory_ids.clone_from(&verified.advisory_ids);
        let root = if verified.simulated {
            "the development root, which proves nothing about hardware"
        } else {
            "Intel's root"
        };
        self.pass(
            CheckId::QuoteSignature,
            signature,
            true,
            format!("signed under {root}"),
        );
        match tcb_problem(&verified, policy) {
            Some((rejection, problem)) => {
                self.fail(CheckId::TcbStatus, tcb, true, problem);
                self.because(Some(rejection));
            }
            None if verified.advisory_ids.is_empty() => self.pass(
                CheckId::TcbStatus,
                tcb,
                true,
                verified.tcb_status.to_string(),
            ),
            None => {
                let detail = format!(
                    "{}; advisories {}",
                    verified.tcb_status,
                    verified.advisory_ids.join(", ")
                );
                self.open(CheckId::TcbStatus, tcb, CheckStatus::Warning, detail);
            }
        }
    }

    pub(super) fn debug(&mut self, quote: &TdxQuote) {
        let name = "not a debug domain";
        let service = quote
            .mr_service_td
            .is_some_and(|register| register.iter().any(|byte| *byte != 0));
        match (quote.is_marked_simulated(), quote.is_debug(), service) {
            (true, ..) => self.open(
                CheckId::DomainAttributes,
                name,
                CheckStatus::Inapplicable,
                "simulated quotes are all marked DEBUG",
            ),
            (false, true, _) => self.fail(
                CheckId::DomainAttributes,
                name,
                true,
                "the host can read this domain's memory",
            ),
            (false, false, true) => self.fail(
                CheckId::DomainAttributes,
                name,
                true,
                "a service domain is bound to this one",
            ),
            (false, false, false) => {
                self.pass(CheckId::DomainAttributes, name, true, "DEBUG is off")
            }
        }
    }

    pub(super) fn operating_system(&mut self, quote: &TdxQuote, policy: &Policy) {
        let name = "operating-system image";
        if policy.known_os_images.is_empty() {
            return self.open(
                CheckId::OsImage,
                name,
                CheckStatus::Skipped,
                "no list of known images was given (`os_images` of a policy file)",
            );
        }
        let known = policy.known_os_images.iter().find(|image| {
            image.mrtd == quote.mrtd
                && quote
                    .rtmr
                    .iter()
                    .zip(&image.rtmr)
                    .all(|(found, known)| found == known)
        });
        match known {
            Some(image) => self.pass(CheckId::OsImage, name, false, image.name.clone()),
            None => self.fail(
                CheckId::OsImage,
                name,
                false,
                "MRTD and RTMR0–2 belong to no known image",
            ),
        }
    }

    pub(super) fn key_provider(&mut self, facts: Option<&RuntimeFacts>, policy: &Policy) {
        let name = "key provider";
        let provider: Option<Value> = facts
            .and_then(|facts| facts.key_provider.as_deref())
            .and_then(|payload| serde_json::from_slice(payload).ok());
        let field = |field| {
            provider
                .as_ref()
                .and_then(|value| value.get(field))
                .and_then(Value::as_str)
                .unwrap_or_default()
        };
        match (field("name"), field("id")) {
            ("kms", id) if policy.known_kms_ids.iter().any(|known| known == id) => {
                self.pass(CheckId::KeyProvider, name, false, format!("kms {id}"));
            }
            ("kms", id) if !policy.known_kms_ids.is_empty() => self.fail(
                CheckId::KeyProvider,
                name,
                false,
                format!("unknown kms {id}"),
            ),
            ("kms", id) => self.open(
                CheckId::KeyProvider,
                name,
                CheckStatus::Warning,
                format!("kms {id}, not compared with a list (`kms_ids` of a policy file)"),
            ),
            ("simulated", _) => self.open(
                CheckId::KeyProvider,
                name,
                CheckStatus::Warning,
                "simulated",
            ),
            ("", _) => self.open(
                CheckId::KeyProvider,
                name,
                CheckStatus::Skipped,
                "no key-provider event",
            ),
            (other, _) => self.open(
                CheckId::KeyProvider,
                name,
                CheckStatus::Warning,
                format!("{other} cannot keep keys across machines"),
            ),
        }
    }
}

pub(super) fn tcb_problem(verified: &VerifiedTee, policy: &Policy) -> Option<(Rejection, String)> {
    let status = verified.tcb_status;
    if status != TcbStatus::UpToDate && !policy.extra_tcb_statuses.contains(&status) {
        let rejection = match status {
            TcbStatus::Revoked => Rejection::Revoked,
            TcbStatus::OutOfDate | TcbStatus::OutOfDateConfigurationNeeded => Rejection::OutOfDate,
            _ => Rejection::Other,
        };
        return Some((rejection, format!("TCB status {status} is not accepted")));
    }
    (verified.tcb_evaluation_number < policy.min_tcb_evaluation_number).then(|| {
        let number = verified.tcb_evaluation_number;
        (
            Rejection::OldCollateral,
            format!("TCB data set {number} is too old"),
        )
    })
}
