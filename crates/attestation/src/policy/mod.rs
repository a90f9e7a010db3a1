//! What a provider's evidence proves: every check by name, with what was found, and the level that follows.
//!
//! Levels (`docs/protocol.md`, attestation: checks of an honest verifier): `VERIFIED` all required checks pass and
//! nothing was left open; `PARTIAL` nothing failed, but something that needs more input was not checked; `SIMULATED`
//! valid under the development root only; `FAILED` otherwise.

mod criteria;
mod evidence;
mod identity;
mod judge;
mod machines;
mod platform;
mod program;
mod verdict;

use crate::bundle::QuoteBundle;
use crate::checks::CheckId;
use judge::Judge;

pub use criteria::{OsMeasurement, Policy};
pub use evidence::{Challenge, Evidence};
pub use verdict::{Assurance, Level, Requirement, Verdict};

/// Judges a provider's evidence at `now_s` (Unix seconds). It never fails: what cannot be read is a failed check.
pub fn evaluate(evidence: &Evidence<'_>, policy: &Policy, now_s: u64) -> Verdict {
    let mut judge = Judge::default();
    judge.registration(evidence);
    match QuoteBundle::parse(evidence.body) {
        Ok(bundle) => {
            judge.pass(
                CheckId::QuoteBody,
                "quote body",
                true,
                "the body has every member",
            );
            judge.bundle(&bundle, evidence, policy, now_s);
            judge.model_node(evidence.model_node);
        }
        Err(error) => judge.fail(CheckId::QuoteBody, "quote body", true, error.to_string()),
    }
    judge.conclude()
}

impl Judge {
    fn bundle(
        &mut self,
        bundle: &QuoteBundle,
        evidence: &Evidence<'_>,
        policy: &Policy,
        now_s: u64,
    ) {
        let quote = match bundle.parsed_quote() {
            Ok(quote) => quote,
            Err(error) => {
                return self.fail(
                    CheckId::QuoteFormat,
                    "quote format",
                    true,
                    error.to_string(),
                );
            }
        };
        self.pass(
            CheckId::QuoteFormat,
            "quote format",
            true,
            format!("TDX quote version {}", quote.version),
        );
        self.signatures(bundle, &quote, evidence, policy, now_s);
        self.debug(&quote);
        let facts = self.measurements(bundle, &quote);
        self.compose(bundle, &quote, facts.as_ref(), policy);
        self.operating_system(&quote, policy);
        self.key_provider(facts.as_ref(), policy);
        self.signer(bundle, &quote, evidence);
        self.body_signature(evidence);
        let tls_key = self.freshness(bundle, &quote, evidence);
        self.endpoint(tls_key, &quote, evidence, policy, now_s);
        self.gpu(bundle, &quote, facts.as_ref());
        self.ledger_events(facts.as_ref());
    }
}
