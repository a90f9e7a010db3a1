//! Who answers: the signer in the quote and on chain, how fresh the answer is, and where TLS ends (V1, V12 to V16).

use super::evidence::Evidence;
use super::judge::Judge;
use crate::bundle::{QuoteBundle, body_signature_is_valid};
use crate::checks::{CheckId, CheckStatus};
use crate::quote::TdxQuote;
use crate::report_data::{self, ReportData};

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

    /// V15 and V16.
    pub(super) fn freshness(&mut self, quote: &TdxQuote, evidence: &Evidence<'_>) {
        let fresh = "freshness";
        let Some(challenge) = &evidence.challenge else {
            self.open(
                CheckId::Freshness,
                fresh,
                CheckStatus::Skipped,
                "no nonce was answered; the quote may be old",
            );
            return self.endpoint([0; 32], evidence.sealed);
        };
        let expected = self.signer.map(|signer| {
            report_data::challenge(
                signer,
                &challenge.sealing_key,
                &challenge.tls_key_sha256,
                &challenge.nonce,
            )
        });
        if expected != Some(quote.report_data) {
            self.fail(
                CheckId::Freshness,
                fresh,
                false,
                "the quote does not answer the nonce",
            );
            return;
        }
        self.sealing_key = Some(challenge.sealing_key);
        self.pass(
            CheckId::Freshness,
            fresh,
            false,
            "the quote answers the nonce",
        );
        self.endpoint(challenge.tls_key_sha256, evidence.sealed);
    }

    /// V16. The signatures prove who answers, whoever ends TLS; the question is who reads what is sent.
    pub(super) fn endpoint(&mut self, tls_key_sha256: [u8; 32], is_sealed: bool) {
        let name = "endpoint bound to the enclave";
        if tls_key_sha256 != [0; 32] {
            let detail = format!("TLS key {}", hex::encode(tls_key_sha256));
            self.pass(CheckId::Endpoint, name, false, detail);
        } else if is_sealed && self.sealing_key.is_some() {
            self.open(
                CheckId::Endpoint,
                name,
                CheckStatus::Inapplicable,
                "no TLS key is named, and none is needed: what is sent is sealed to the enclave's key",
            );
        } else {
            self.open(
                CheckId::Endpoint,
                name,
                CheckStatus::Skipped,
                "no TLS key is named: who ends TLS can read what is sent unsealed",
            );
        }
    }
}
