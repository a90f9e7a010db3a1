//! What a provider's evidence proves: every check by name, with what was found, and the level that follows.
//!
//! Levels (`docs/protocol.md`, attestation: checks of an honest verifier): `VERIFIED` all required checks pass and
//! nothing was left open; `PARTIAL` nothing failed, but something that needs more input was not checked; `SIMULATED`
//! valid under the development root only; `FAILED` otherwise.

use std::fmt;

use alloy_primitives::Address;
use dcap_qvl::TcbStatus;
use serde::Serialize;
use serde_json::Value;

use crate::backend::simulated;
use crate::bundle::{QuoteBundle, body_signature_is_valid};
use crate::checks::{Check, CheckId, CheckStatus};
use crate::event_log::{self, RuntimeFacts};
use crate::gpu::{self, GpuQuestion};
use crate::model_node::ModelNode;
use crate::mr_config::{self, ConfigId};
use crate::quote::TdxQuote;
use crate::rejection::Rejection;
use crate::report_data::{self, ReportData};
use crate::verify::{TrustRoot, VerifiedTee, verify_quote};
use crate::{Collateral, Measurement, sha256};

/// What was found, as one word for people and exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Level {
    /// Every required check passed and none was left open.
    Verified,
    /// Nothing failed; the checks marked skipped or warning were left open.
    Partial,
    /// Valid under the development root alone. Never counts as verified.
    Simulated,
    /// A required check failed or could not be made.
    Failed,
}

impl Level {
    /// Exit code of a verifying program.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Verified => 0,
            Self::Failed => 1,
            Self::Partial => 3,
            Self::Simulated => 4,
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Verified => "VERIFIED",
            Self::Partial => "PARTIAL",
            Self::Simulated => "SIMULATED",
            Self::Failed => "FAILED",
        })
    }
}

/// What stands behind a level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Assurance {
    /// Genuine hardware, as far as the checks went.
    Hardware,
    /// Software that only claims to be a TEE.
    Simulated,
    /// Nothing.
    None,
}

/// What a caller insists on before it hands over data (`docs/protocol.md`, trust).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Requirement {
    /// Only [`Level::Verified`].
    Verified,
    /// [`Level::Verified`] or [`Level::Partial`].
    #[default]
    NothingFailed,
    /// Also [`Level::Simulated`]: for the development network alone.
    AllowSimulated,
}

/// Measurements of a known operating-system image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OsMeasurement {
    /// Name to show.
    pub name: String,
    /// Firmware.
    pub mrtd: Measurement,
    /// RTMR0 to RTMR2.
    pub rtmr: [Measurement; 3],
}

/// What a caller accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Whether quotes of the development root give [`Level::Simulated`] instead of [`Level::Failed`].
    pub accept_development_root: bool,
    /// TCB statuses besides `UpToDate`.
    pub extra_tcb_statuses: Vec<TcbStatus>,
    /// Lowest accepted number of the TCB data set.
    pub min_tcb_evaluation_number: u32,
    /// Reviewed compose texts, by SHA-256. Empty: the compose text is printed for review.
    pub known_compose_hashes: Vec<[u8; 32]>,
    /// Known operating-system images. Empty: not checked.
    pub known_os_images: Vec<OsMeasurement>,
    /// Ids of expected key-management roots. Empty: any `kms` passes with a warning.
    pub known_kms_ids: Vec<String>,
}

impl Default for Policy {
    /// Intel's root, `UpToDate` only, no lists.
    fn default() -> Self {
        Self {
            accept_development_root: false,
            extra_tcb_statuses: Vec::new(),
            min_tcb_evaluation_number: 0,
            known_compose_hashes: Vec::new(),
            known_os_images: Vec::new(),
            known_kms_ids: Vec::new(),
        }
    }
}

impl Policy {
    /// The policy of the development network: like the default, but simulated quotes are recognised.
    pub fn devnet() -> Self {
        Self {
            accept_development_root: true,
            ..Self::default()
        }
    }
}

/// A nonce that the caller sent, with what the provider says it hashed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    /// The caller's random bytes.
    pub nonce: [u8; 32],
    /// X25519 key of the enclave.
    pub sealing_key: [u8; 32],
    /// SHA-256 of the TLS key, or zeros.
    pub tls_key_sha256: [u8; 32],
}

/// What a verdict is made from.
#[derive(Debug, Clone, Default)]
pub struct Evidence<'a> {
    /// Raw body of `/v1/quote`, in any report-data layout.
    pub body: &'a [u8],
    /// Value of the `ZG-Quote-Signature` header.
    pub body_signature: Option<&'a str>,
    /// Collateral for the quote. Not needed for simulated quotes, whose collateral is made here.
    pub collateral: Option<&'a Collateral>,
    /// Why there is no collateral, or no better one, and what to do; for people.
    pub collateral_problem: Option<&'a str>,
    /// Signer registered on chain, if it could be read.
    pub registered_signer: Option<Address>,
    /// Whether the contract owner has acknowledged that signer, if it could be read.
    pub acknowledged: Option<bool>,
    /// The challenge that the quote should answer.
    pub challenge: Option<Challenge>,
    /// Where the registration says that the model runs.
    pub model_node: ModelNode,
    /// Whether all secrets that the caller sends are sealed to [`Verdict::sealing_key`], so that it is no matter where
    /// TLS ends.
    pub sealed: bool,
}

/// What was found out about a provider.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// The conclusion.
    pub level: Level,
    /// What stands behind it.
    pub assurance: Assurance,
    /// Every check, in order.
    pub checks: Vec<Check>,
    /// Signer that the quote itself names.
    pub signer: Option<Address>,
    /// X25519 key that data can be sealed to, where the report data carries it (hexadecimal in JSON).
    #[serde(serialize_with = "optional_hex")]
    pub sealing_key: Option<[u8; 32]>,
    /// SHA-256 of the compose text, hexadecimal.
    pub compose_hash: Option<String>,
    /// Images that the compose text names.
    pub images: Vec<String>,
    /// TCB status, where the quote was verified.
    pub tcb_status: Option<String>,
    /// Intel's advisories for the platform.
    pub advisory_ids: Vec<String>,
}

impl Verdict {
    /// Whether the verdict is good enough for the caller.
    pub fn satisfies(&self, requirement: Requirement) -> bool {
        match self.level {
            Level::Verified => true,
            Level::Partial => requirement != Requirement::Verified,
            Level::Simulated => requirement == Requirement::AllowSimulated,
            Level::Failed => false,
        }
    }

    /// Checks that failed.
    pub fn failures(&self) -> impl Iterator<Item = &Check> {
        self.checks
            .iter()
            .filter(|check| check.status == CheckStatus::Fail)
    }

    /// Checks that were left open or carry a reservation: what a client prints once.
    pub fn open(&self) -> impl Iterator<Item = &Check> {
        self.checks
            .iter()
            .filter(|check| matches!(check.status, CheckStatus::Skipped | CheckStatus::Warning))
    }

    /// The check with the given id.
    pub fn check(&self, id: CheckId) -> Option<&Check> {
        self.checks.iter().find(|check| check.id == id)
    }
}

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

#[derive(Default)]
struct Judge {
    checks: Vec<Check>,
    simulated: bool,
    hardware: bool,
    signer: Option<Address>,
    sealing_key: Option<[u8; 32]>,
    compose_hash: Option<String>,
    images: Vec<String>,
    tcb_status: Option<String>,
    advisory_ids: Vec<String>,
}

impl Judge {
    fn record(
        &mut self,
        id: CheckId,
        name: &'static str,
        required: bool,
        status: CheckStatus,
        detail: String,
    ) {
        self.checks.push(Check {
            id,
            name,
            status,
            detail,
            rejection: None,
            required,
        });
    }

    /// Says what kind of fault the check that was recorded last has found.
    fn because(&mut self, rejection: Option<Rejection>) {
        if let Some(check) = self.checks.last_mut() {
            check.rejection = rejection;
        }
    }

    fn pass(&mut self, id: CheckId, name: &'static str, required: bool, detail: impl Into<String>) {
        self.record(id, name, required, CheckStatus::Pass, detail.into());
    }

    fn fail(&mut self, id: CheckId, name: &'static str, required: bool, detail: impl Into<String>) {
        self.record(id, name, required, CheckStatus::Fail, detail.into());
    }

    fn open(
        &mut self,
        id: CheckId,
        name: &'static str,
        status: CheckStatus,
        detail: impl Into<String>,
    ) {
        self.record(id, name, false, status, detail.into());
    }

    fn conclude(self) -> Verdict {
        let failed = self.checks.iter().any(|check| {
            check.status == CheckStatus::Fail
                || (check.required && check.status == CheckStatus::Skipped)
        });
        let open = self
            .checks
            .iter()
            .any(|check| matches!(check.status, CheckStatus::Skipped | CheckStatus::Warning));
        let level = match (failed, self.simulated, open) {
            (true, _, _) => Level::Failed,
            (false, true, _) => Level::Simulated,
            (false, false, true) => Level::Partial,
            (false, false, false) => Level::Verified,
        };
        let assurance = match (self.simulated, self.hardware && level != Level::Failed) {
            (true, _) => Assurance::Simulated,
            (false, true) => Assurance::Hardware,
            (false, false) => Assurance::None,
        };
        Verdict {
            level,
            assurance,
            checks: self.checks,
            signer: self.signer,
            sealing_key: self.sealing_key,
            compose_hash: self.compose_hash,
            images: self.images,
            tcb_status: self.tcb_status,
            advisory_ids: self.advisory_ids,
        }
    }

    fn registration(&mut self, evidence: &Evidence<'_>) {
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
        self.freshness(&quote, evidence);
        self.gpu(bundle, &quote, facts.as_ref());
        self.ledger_events(facts.as_ref());
    }

    /// V4 and V6.
    fn signatures(
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

    fn debug(&mut self, quote: &TdxQuote) {
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

    /// V7: only a log that replays to the quote's registers is evidence.
    fn measurements(&mut self, bundle: &QuoteBundle, quote: &TdxQuote) -> Option<RuntimeFacts> {
        let name = "event log replays to the quote";
        let replayed = event_log::parse(&bundle.event_log)
            .and_then(|events| event_log::replay(&events).map(|registers| (events, registers)));
        let (events, registers) = match replayed {
            Ok(replayed) => replayed,
            Err(error) => {
                self.fail(CheckId::EventLog, name, true, error.to_string());
                return None;
            }
        };
        let different: Vec<String> = registers
            .iter()
            .zip(&quote.rtmr)
            .enumerate()
            .filter(|(_, (replayed, quoted))| replayed != quoted)
            .map(|(register, _)| format!("RTMR{register}"))
            .collect();
        if !different.is_empty() {
            self.fail(
                CheckId::EventLog,
                name,
                true,
                format!("{} differ", different.join(", ")),
            );
            return None;
        }
        match event_log::runtime_facts(&events) {
            Ok(facts) => {
                self.pass(
                    CheckId::EventLog,
                    name,
                    true,
                    format!("{} events, all four registers equal", events.len()),
                );
                Some(facts)
            }
            Err(error) => {
                self.fail(CheckId::EventLog, name, true, error.to_string());
                None
            }
        }
    }

    /// V8 and V11.
    fn compose(
        &mut self,
        bundle: &QuoteBundle,
        quote: &TdxQuote,
        facts: Option<&RuntimeFacts>,
        policy: &Policy,
    ) {
        let (name, review) = ("compose hash", "compose review");
        let Some(text) = bundle.app_compose() else {
            return self.fail(
                CheckId::ComposeHash,
                name,
                true,
                "tcb_info carries no app_compose",
            );
        };
        let hash = sha256(text.as_bytes());
        self.compose_hash = Some(hex::encode(hash));
        let logged = facts.and_then(|facts| facts.compose_hash.as_deref());
        if logged != Some(hash.as_slice()) {
            return self.fail(
                CheckId::ComposeHash,
                name,
                true,
                "the compose text is not the one in the event log",
            );
        }
        // The log measured this compose text, so there are facts.
        let config_id = facts.map_or(ConfigId::NotComputable(0), |facts| {
            mr_config::compare(&quote.mr_config_id, &hash, facts)
        });
        if let ConfigId::Contradicts(form) = config_id {
            return self.fail(
                CheckId::ComposeHash,
                name,
                true,
                format!("the compose text is not the one in MR_CONFIG_ID (form {form})"),
            );
        }
        let known = policy.known_compose_hashes.contains(&hash);
        if !known && !policy.known_compose_hashes.is_empty() {
            return self.fail(
                CheckId::ComposeHash,
                name,
                true,
                format!("compose hash {} is not on the list", hex::encode(hash)),
            );
        }
        let measured = format!("SHA-256 {} is in the event log", hex::encode(hash));
        let (status, detail) = match config_id {
            ConfigId::Commits(form) => (
                CheckStatus::Pass,
                format!("{measured} and in MR_CONFIG_ID (form {form})"),
            ),
            ConfigId::NotComputable(form) => (
                CheckStatus::Warning,
                format!("{measured}; MR_CONFIG_ID has form {form}, which was not checked"),
            ),
            _ => (CheckStatus::Pass, measured),
        };
        self.record(CheckId::ComposeHash, name, true, status, detail);
        let findings;
        (self.images, findings) = review_compose(&text);
        match (known, findings.is_empty()) {
            (true, _) => self.pass(
                CheckId::ComposeReview,
                review,
                false,
                "the compose text is on the list of reviewed ones",
            ),
            (false, true) => {
                let detail = format!(
                    "no objection found by machine; a person's review counts once the hash is among `compose_hashes` of a policy file; images: {}",
                    self.images.join(", ")
                );
                self.open(CheckId::ComposeReview, review, CheckStatus::Skipped, detail);
            }
            (false, false) => self.open(
                CheckId::ComposeReview,
                review,
                CheckStatus::Warning,
                findings.join("; "),
            ),
        }
    }

    fn operating_system(&mut self, quote: &TdxQuote, policy: &Policy) {
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

    fn key_provider(&mut self, facts: Option<&RuntimeFacts>, policy: &Policy) {
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

    /// V12 and V13.
    fn signer(&mut self, bundle: &QuoteBundle, quote: &TdxQuote, evidence: &Evidence<'_>) {
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

    fn body_signature(&mut self, evidence: &Evidence<'_>) {
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
    fn freshness(&mut self, quote: &TdxQuote, evidence: &Evidence<'_>) {
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
    fn endpoint(&mut self, tls_key_sha256: [u8; 32], is_sealed: bool) {
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

    fn gpu(&mut self, bundle: &QuoteBundle, quote: &TdxQuote, facts: Option<&RuntimeFacts>) {
        let (status, detail) = gpu::judge(&GpuQuestion {
            payload: bundle.nvidia_payload.as_ref(),
            vm_config: &bundle.vm_config,
            boot_attestation: facts.and_then(|facts| facts.gpu_attestation.as_deref()),
            signer: self.signer,
            sealing_key: self.sealing_key.as_ref(),
            report_data: &quote.report_data,
        });
        self.open(CheckId::GpuEvidence, "confidential GPU", status, detail);
    }

    fn model_node(&mut self, node: ModelNode) {
        let name = "model in the same enclave";
        let (status, detail) = match node {
            ModelNode::Same => (
                CheckStatus::Inapplicable,
                "no machine behind this one is registered".to_owned(),
            ),
            ModelNode::Separated { signer } => {
                let signer = signer.map_or_else(
                    || "names no signer for it".to_owned(),
                    |signer| format!("names its signer {}", signer.to_checksum(None)),
                );
                (
                    CheckStatus::Skipped,
                    format!(
                        "the model runs on another machine, whose evidence is not checked: this enclave only relays its output; the registration {signer}"
                    ),
                )
            }
            ModelNode::Unknown => (
                CheckStatus::Skipped,
                "the registration does not say where the model runs".to_owned(),
            ),
        };
        self.open(CheckId::ModelNode, name, status, detail);
    }

    fn ledger_events(&mut self, facts: Option<&RuntimeFacts>) {
        let name = "image updates";
        let updates: Vec<&[u8]> = facts
            .map(|facts| facts.application_events.as_slice())
            .unwrap_or_default()
            .iter()
            .filter(|(event, _)| event == "zg-image-update")
            .map(|(_, payload)| payload.as_slice())
            .collect();
        let Some(last) = updates.last() else {
            return self.open(
                CheckId::ImageUpdates,
                name,
                CheckStatus::Inapplicable,
                "no update was recorded",
            );
        };
        let text = String::from_utf8_lossy(last);
        let mut words = text.split(' ');
        let image = words.next().unwrap_or_default();
        let signer = words.next().and_then(|word| word.parse::<Address>().ok());
        if signer.is_some() && signer == self.signer && is_pinned(image) {
            self.open(
                CheckId::ImageUpdates,
                name,
                CheckStatus::Warning,
                format!("the image was replaced at run time: {image}"),
            );
        } else {
            self.fail(
                CheckId::ImageUpdates,
                name,
                false,
                "the last recorded image is not pinned or belongs to another signer",
            );
        }
    }
}

fn tcb_problem(verified: &VerifiedTee, policy: &Policy) -> Option<(Rejection, String)> {
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

/// Images of a compose text and what a person should look at.
fn review_compose(app_compose: &str) -> (Vec<String>, Vec<String>) {
    let parsed: Value = serde_json::from_str(app_compose).unwrap_or_default();
    let file = parsed
        .get("docker_compose_file")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let mut images = Vec::new();
    let mut findings = Vec::new();
    for line in file.lines().map(str::trim) {
        let line = line.trim_start_matches("- ");
        if let Some(image) = line.strip_prefix("image:") {
            let image = image.trim().trim_matches(['"', '\'']).to_owned();
            if !is_pinned(&image) {
                findings.push(format!("image {image} is not pinned by digest"));
            }
            images.push(image);
        }
        if line.starts_with("privileged:") && line.contains("true") {
            findings.push("a container is privileged".to_owned());
        }
        for socket in ["dstack.sock", "tappd.sock", "docker.sock"] {
            if line.contains(socket) {
                findings.push(format!("a container can reach {socket}"));
            }
        }
    }
    if images.is_empty() {
        findings.push("the compose text names no image".to_owned());
    }
    if parsed
        .get("allowed_envs")
        .and_then(Value::as_array)
        .is_some_and(|names| !names.is_empty())
    {
        findings.push("the operator may set environment variables".to_owned());
    }
    if parsed
        .get("pre_launch_script")
        .and_then(Value::as_str)
        .is_some_and(|script| !script.trim().is_empty())
    {
        findings.push("a script runs before launch".to_owned());
    }
    (images, findings)
}

/// Whether an image reference ends in a full SHA-256 digest.
fn is_pinned(image: &str) -> bool {
    image.split_once("@sha256:").is_some_and(|(_, digest)| {
        digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

fn optional_hex<S: serde::Serializer>(
    bytes: &Option<[u8; 32]>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    bytes.map(hex::encode).serialize(serializer)
}
