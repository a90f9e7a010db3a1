//! Who answers: the signer in the quote and on chain, how fresh the answer is, and where TLS ends (V1, V12 to V16).

use super::criteria::Policy;
use super::evidence::Evidence;
use super::judge::Judge;
use super::platform::tcb_problem;
use crate::backend::simulated;
use crate::bundle::{QuoteBundle, body_signature_is_valid};
use crate::checks::{CheckId, CheckStatus};
use crate::quote::TdxQuote;
use crate::report_data::{self, ReportData};
use crate::tls::{Connection, PeerCertificate};
use crate::verify::{TrustRoot, verify_quote};

impl Judge {
    pub(super) fn registration(&mut self, evidence: &Evidence<'_>) {
        let name = "provider registered and acknowledged";
        match (evidence.registered_signer, evidence.acknowledged) {
            (Some(signer), _) if signer.is_zero() => self.fail(
                CheckId::Registration,
                name,
                true,
                "no signer is registered on chain",
            ),
            (Some(_), Some(true)) => self.pass(
                CheckId::Registration,
                name,
                true,
                "the contract owner has acknowledged the signer",
            ),
            (Some(_), Some(false)) => self.fail(
                CheckId::Registration,
                name,
                true,
                "the contract owner has not acknowledged the signer",
            ),
            _ => self.record(
                CheckId::Registration,
                name,
                true,
                CheckStatus::Skipped,
                "the registration was not read from the chain".into(),
            ),
        }
    }

    /// V12 and V13.
    pub(super) fn signer(
        &mut self,
        bundle: &QuoteBundle,
        quote: &TdxQuote,
        evidence: &Evidence<'_>,
    ) {
        let (binding, chain) = ("signer in the quote", "signer registered on chain");
        let data = match ReportData::parse(&quote.report_data) {
            Ok(data) => data,
            Err(error) => return self.fail(CheckId::ReportData, binding, true, error.to_string()),
        };
        let signer = data.signer();
        self.signer = Some(signer);
        if bundle.report_data != quote.report_data {
            return self.fail(
                CheckId::ReportData,
                binding,
                true,
                "report_data of the body is not the quote's",
            );
        }
        self.sealing_key = data.sealing_key();
        self.pass(CheckId::ReportData, binding, true, signer.to_checksum(None));
        match evidence.registered_signer {
            Some(registered) if registered == signer => {
                self.pass(CheckId::SignerOnChain, chain, true, "equal")
            }
            Some(registered) => {
                self.fail(
                    CheckId::SignerOnChain,
                    chain,
                    true,
                    format!("the chain names {}", registered.to_checksum(None)),
                );
            }
            None => self.record(
                CheckId::SignerOnChain,
                chain,
                true,
                CheckStatus::Skipped,
                "the chain was not read".into(),
            ),
        }
    }

    pub(super) fn body_signature(&mut self, evidence: &Evidence<'_>) {
        let name = "body signed by the signer";
        match (evidence.body_signature, self.signer) {
            (Some(signature), Some(signer))
                if body_signature_is_valid(evidence.body, signature, signer) =>
            {
                self.pass(
                    CheckId::BodySignature,
                    name,
                    false,
                    "signature recovers to the signer",
                );
            }
            (Some(_), _) => self.fail(
                CheckId::BodySignature,
                name,
                false,
                "the body's signature is not the signer's",
            ),
            (None, _) => self.open(
                CheckId::BodySignature,
                name,
                CheckStatus::Skipped,
                "no signature; vm_config and GPU evidence are unauthenticated",
            ),
        }
    }

    /// V15. Returns the TLS key that the quote names, as its SHA-256; a quote does so only with its answer to a nonce.
    pub(super) fn freshness(
        &mut self,
        bundle: &QuoteBundle,
        quote: &TdxQuote,
        evidence: &Evidence<'_>,
    ) -> Option<[u8; 32]> {
        let fresh = "freshness";
        let Some(challenge) = &evidence.challenge else {
            self.open(
                CheckId::Freshness,
                fresh,
                CheckStatus::Skipped,
                "no nonce was answered; the quote may be old",
            );
            return None;
        };
        let of_connection = match &evidence.connection {
            Connection::Tls(certificate) => Some(certificate.key_sha256),
            _ => None,
        };
        let signer = self.signer;
        let answers = |tls_key: &Option<[u8; 32]>| {
            let tls_key = tls_key.unwrap_or_default();
            signer.is_some_and(|signer| {
                let expected = report_data::challenge(
                    signer,
                    &challenge.sealing_key,
                    &tls_key,
                    &challenge.nonce,
                );
                expected == quote.report_data
            })
        };
        // The quote holds a hash over the name, so a name is recognised, not read.
        let names = [None, of_connection, bundle.tls_key_sha256];
        let Some(named) = names.into_iter().find(answers) else {
            self.fail(
                CheckId::Freshness,
                fresh,
                false,
                "the quote does not answer the nonce",
            );
            return None;
        };
        self.sealing_key = Some(challenge.sealing_key);
        self.pass(
            CheckId::Freshness,
            fresh,
            false,
            "the quote answers the nonce",
        );
        named.filter(|key| *key != [0; 32])
    }

    /// V16. The signatures prove who answers, whoever ends TLS; the question is who reads what is sent.
    pub(super) fn endpoint(
        &mut self,
        named: Option<[u8; 32]>,
        quote: &TdxQuote,
        evidence: &Evidence<'_>,
        policy: &Policy,
        now_s: u64,
    ) {
        let name = "endpoint bound to the enclave";
        let (status, detail) = match (named, &evidence.connection) {
            (Some(named), Connection::Tls(certificate)) => {
                let found = certificate.key_sha256;
                if named == found {
                    let detail = format!("TLS ends in the enclave, with key {}", hex::encode(found));
                    (CheckStatus::Pass, detail)
                } else {
                    let (named, found) = (hex::encode(named), hex::encode(found));
                    let detail = format!(
                        "the enclave's TLS key is {named}, this connection has {found}: somebody between ends TLS and reads what is sent"
                    );
                    (CheckStatus::Fail, detail)
                }
            }
            (Some(named), Connection::UnreadableTls) => (
                CheckStatus::Fail,
                format!(
                    "the enclave's TLS key is {}, and this connection's certificate cannot be read: it cannot be the enclave's",
                    hex::encode(named)
                ),
            ),
            (None, Connection::Tls(certificate)) if certificate.quote.is_some() => {
                match ra_tls_problem(certificate, quote, evidence, policy, now_s) {
                    None => (
                        CheckStatus::Pass,
                        "TLS ends in the enclave: the connection's certificate carries its quote".to_owned(),
                    ),
                    Some(problem) => (
                        CheckStatus::Fail,
                        format!("the quote in the connection's certificate is not the enclave's: {problem}"),
                    ),
                }
            }
            _ if evidence.sealed && self.sealing_key.is_some() => (
                CheckStatus::Inapplicable,
                "where TLS ends is no matter: what is sent is sealed to the enclave's key".to_owned(),
            ),
            (_, Connection::Plain) => (
                CheckStatus::Warning,
                "TLS ends outside the proof: this connection has none, so everybody on the way reads what is sent unsealed"
                    .to_owned(),
            ),
            (None, Connection::Tls(_) | Connection::UnreadableTls) => (
                CheckStatus::Warning,
                "TLS ends outside the proof: the enclave names no TLS key, so who ends TLS can read what is sent unsealed"
                    .to_owned(),
            ),
            (Some(named), _) => (
                CheckStatus::Skipped,
                format!("the enclave's TLS key {} was compared with no connection", hex::encode(named)),
            ),
            (None, _) => (
                CheckStatus::Skipped,
                "no TLS key is named: who ends TLS can read what is sent unsealed".to_owned(),
            ),
        };
        self.record(CheckId::Endpoint, name, false, status, detail);
    }
}

/// Why a certificate's quote does not bind the connection to the enclave of `service`; none when it does.
fn ra_tls_problem(
    certificate: &PeerCertificate,
    service: &TdxQuote,
    evidence: &Evidence<'_>,
    policy: &Policy,
    now_s: u64,
) -> Option<String> {
    let bytes = certificate.quote.as_deref().unwrap_or_default();
    let quote = match TdxQuote::parse(bytes) {
        Ok(quote) => quote,
        Err(error) => return Some(error.to_string()),
    };
    if quote.report_data != certificate.ra_tls_report_data {
        return Some("it is about another TLS key".to_owned());
    }
    let same_program = quote.td_attributes == service.td_attributes
        && quote.mrtd == service.mrtd
        && quote.rtmr == service.rtmr
        && quote.mr_config_id == service.mr_config_id;
    if !same_program {
        return Some("another program was measured".to_owned());
    }
    let verified = if service.is_marked_simulated() && policy.accept_development_root {
        let collateral = simulated::development_collateral(now_s);
        verify_quote(bytes, &collateral, &TrustRoot::Development, now_s)
    } else {
        let Some(collateral) = evidence.collateral else {
            return Some("there is no collateral to verify it with".to_owned());
        };
        verify_quote(bytes, collateral, &TrustRoot::Intel, now_s)
    };
    match verified {
        Ok(verified) => tcb_problem(&verified, policy).map(|(_, problem)| problem),
        Err(error) => Some(error.to_string()),
    }
}
