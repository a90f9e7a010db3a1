//! Whether a provider's enclave is what it claims to be, with the steps, files and result names of the published
//! clients. The judgement itself is `zerog_attestation::policy`.

use std::path::{Path, PathBuf};

use alloy_primitives::Address;
use serde::Serialize;
use serde_json::Value;
use zerog_attestation::policy::Challenge;
use zerog_attestation::report_data::ReportData;
use zerog_attestation::{
    Assurance, Check, CheckId, Collateral, Evidence, Level, ModelNode, QuoteBundle, Requirement,
    Verdict, bundle, evaluate,
};
use zerog_protocol::recipient::RECIPIENT_KEY_VERSION;
use zerog_protocol::seal::{PERSONAL_SEAL_VERSION, SEAL_VERSION};

use crate::broker::Context;
use crate::collateral::Found;
use crate::error::{Error, Result, ServiceKind};
use crate::fine_tuning::services::write_file;
use crate::progress::Progress;
use crate::provider_client::{Answer, join};

/// One line of a verification, as it is logged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VerificationStep {
    /// `info`, `success`, `error`, `warning` or `step`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The text.
    pub message: String,
}

/// What `verify_service` found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VerificationReport {
    /// The provider.
    pub provider: Address,
    /// Whether the level is VERIFIED or PARTIAL; never with a simulated enclave.
    pub is_valid: bool,
    /// VERIFIED, PARTIAL, SIMULATED or FAILED.
    pub level: Level,
    /// What stands behind the level.
    pub assurance: Assurance,
    /// Whether the provider served a quote.
    pub quote_available: bool,
    /// Whether the quote's signer is the one on chain.
    pub signer_match: bool,
    /// Whether the compose text is the measured one; `None` when it was not checked.
    pub compose_hash_match: Option<bool>,
    /// Images of the compose text.
    pub docker_images: Vec<String>,
    /// The quote's signer.
    pub tee_signer: Option<Address>,
    /// The signer on chain.
    pub expected_signer: Address,
    /// Failed checks in words.
    pub errors: Vec<String>,
    /// Every check.
    pub checks: Vec<Check>,
    /// The nonce that the enclave's quote answers, hexadecimal; `None` when the provider answers no nonces, so that its
    /// quote may be old.
    pub nonce: Option<String>,
    /// The raw report, byte for byte as it was served.
    #[serde(skip)]
    pub report: Vec<u8>,
    /// Where the raw report was written, if that was asked for.
    pub report_path: Option<PathBuf>,
    /// The whole verdict as JSON, beside the raw report.
    pub verdict_path: Option<PathBuf>,
    /// The whole verdict as text, beside the raw report.
    pub summary_path: Option<PathBuf>,
    /// What was logged.
    pub steps: Vec<VerificationStep>,
}

/// What a client needs to know before it sends data to an enclave.
#[derive(Debug, Clone)]
pub(crate) struct VerifiedEnclave {
    /// X25519 key, when the enclave takes sealed data.
    pub(crate) sealing_key: Option<[u8; 32]>,
    /// Whether it takes sealed files that are signed as a personal message.
    pub(crate) takes_personal_seals: bool,
    /// Whether it seals models to recipient keys.
    pub(crate) takes_recipient_keys: bool,
}

/// The registered side of a service.
#[derive(Debug, Clone)]
pub(crate) struct Registration {
    pub(crate) provider: Address,
    pub(crate) url: String,
    pub(crate) signer: Address,
    pub(crate) acknowledged: bool,
    pub(crate) model_node: ModelNode,
    /// Whether every secret that goes there is sealed to the enclave first: datasets are, chats are not.
    pub(crate) sealed: bool,
}

/// A verdict with what it was made from.
struct Judgement {
    verdict: Verdict,
    collateral: Option<Collateral>,
    /// The nonce that the quote answers.
    nonce: Option<[u8; 32]>,
}

impl Context {
    /// What the chain says about a provider's service.
    pub(crate) async fn registration(
        &self,
        provider: Address,
        kind: ServiceKind,
    ) -> Result<Registration> {
        let missing = || Error::ServiceMissing {
            provider,
            service: kind,
        };
        Ok(match kind {
            ServiceKind::FineTuning => {
                let service = self
                    .chain
                    .fine_tuning()
                    .service(provider)
                    .await?
                    .ok_or_else(missing)?;
                Registration {
                    provider,
                    url: service.url,
                    signer: service.tee_signer,
                    acknowledged: service.tee_signer_acknowledged,
                    model_node: ModelNode::Same,
                    sealed: true,
                }
            }
            ServiceKind::Inference => {
                let service = self
                    .chain
                    .inference()
                    .service(provider)
                    .await?
                    .ok_or_else(missing)?;
                Registration {
                    provider,
                    url: service.url,
                    signer: service.tee_signer,
                    acknowledged: service.tee_signer_acknowledged,
                    model_node: ModelNode::of_registration(&service.additional_info),
                    sealed: false,
                }
            }
        })
    }

    /// Verifies an enclave and refuses one that is not good enough (`docs/protocol.md`, trust).
    pub(crate) async fn require_enclave(
        &self,
        registration: &Registration,
        on_progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<VerifiedEnclave> {
        // The structured report data carries the sealing key; providers that do not know it serve the plain one.
        let answer = self
            .fetch_quote(&registration.url, "/v1/quote?legacy=false")
            .await?;
        let verdict = self
            .judge_latest(&answer, registration, Self::now_s())
            .await
            .verdict;
        if !verdict.satisfies(self.requirement()) {
            return Err(refusal(registration.provider, &verdict, self.requirement()));
        }
        let open: Vec<&str> = verdict.open().map(|check| check.name).collect();
        match verdict.level {
            Level::Simulated => on_progress(Progress::notice(
                "The provider's TEE is SIMULATED: it protects nothing and is accepted on this development network only.",
            )),
            Level::Partial => {
                on_progress(Progress::notice(format!(
                    "Provider verified; not checked: {}.",
                    open.join(", ")
                )));
            }
            _ => {}
        }
        let bundle = QuoteBundle::parse(&answer.body).ok();
        let announces = |has: fn(&QuoteBundle) -> bool| bundle.as_ref().is_some_and(has);
        Ok(VerifiedEnclave {
            sealing_key: verdict
                .sealing_key
                .filter(|_| announces(|bundle| bundle.seals(SEAL_VERSION))),
            takes_personal_seals: announces(|bundle| bundle.seals(PERSONAL_SEAL_VERSION)),
            takes_recipient_keys: announces(|bundle| {
                bundle.takes_recipient_keys(RECIPIENT_KEY_VERSION)
            }),
        })
    }

    pub(crate) async fn fetch_quote(&self, url: &str, path: &str) -> Result<Answer> {
        self.http
            .get("quote", &join(url, path), None, bundle::MAX_BODY_BYTES)
            .await
    }

    /// Judges an answer and then, unless it fails already, the quote that answers a fresh nonce: a fresh one that fails
    /// counts. A provider that answers no nonces, as others do not, is judged by what it serves, and the verdict says so.
    async fn judge_latest(
        &self,
        answer: &Answer,
        registration: &Registration,
        now_s: u64,
    ) -> Judgement {
        let judgement = self.judge(answer, registration, None, now_s).await;
        if judgement.verdict.level == Level::Failed {
            return judgement;
        }
        self.judge_fresh(&judgement, registration, now_s)
            .await
            .unwrap_or(judgement)
    }

    /// Sends a nonce and judges the quote that answers it; `None` when the provider answers no nonces.
    async fn judge_fresh(
        &self,
        before: &Judgement,
        registration: &Registration,
        now_s: u64,
    ) -> Option<Judgement> {
        // The answer commits to the sealing key, which only the structured form names.
        let sealing_key = match before.verdict.sealing_key {
            Some(key) => key,
            None => {
                let structured = self
                    .fetch_quote(&registration.url, "/v1/quote?legacy=false")
                    .await
                    .ok()?;
                let judged = self.judge(&structured, registration, None, now_s).await;
                judged.verdict.sealing_key?
            }
        };
        let nonce: [u8; 32] = rand::random();
        let path = format!("/v1/quote?nonce={}", hex::encode(nonce));
        let answer = self.fetch_quote(&registration.url, &path).await.ok()?;
        let bundle = QuoteBundle::parse(&answer.body).ok()?;
        let report_data = bundle.parsed_quote().ok()?.report_data;
        let is_answer = matches!(
            ReportData::parse(&report_data),
            Ok(ReportData::Challenge { .. })
        );
        if !is_answer {
            return None;
        }
        let challenge = Challenge { nonce, sealing_key };
        Some(
            self.judge(&answer, registration, Some(challenge), now_s)
                .await,
        )
    }

    async fn judge(
        &self,
        answer: &Answer,
        registration: &Registration,
        challenge: Option<Challenge>,
        now_s: u64,
    ) -> Judgement {
        let policy = self.policy();
        let bundle = QuoteBundle::parse(&answer.body).ok();
        let found = match &bundle {
            // Whoever trusts the development root has its collateral.
            Some(bundle) if !bundle.simulated => {
                self.collateral(&bundle.quote, &registration.url, &policy, now_s)
                    .await
            }
            _ => Found::default(),
        };
        let nonce = challenge.as_ref().map(|challenge| challenge.nonce);
        let evidence = Evidence {
            body: &answer.body,
            body_signature: answer.header(bundle::SIGNATURE_HEADER),
            collateral: found.collateral.as_ref(),
            collateral_problem: found.problem.as_deref(),
            registered_signer: Some(registration.signer),
            acknowledged: Some(registration.acknowledged),
            challenge,
            connection: answer.connection.clone(),
            model_node: registration.model_node,
            sealed: registration.sealed && bundle.is_some_and(|bundle| bundle.seals(SEAL_VERSION)),
        };
        Judgement {
            verdict: evaluate(&evidence, &policy, now_s),
            collateral: found.collateral,
            nonce,
        }
    }

    /// `verify_service` of both managers.
    pub(crate) async fn verify_service(
        &self,
        provider: Address,
        kind: ServiceKind,
        output_dir: Option<&Path>,
        mut on_log: impl FnMut(&VerificationStep) + Send,
    ) -> Result<VerificationReport> {
        let mut steps = Vec::new();
        let mut log = |kind: &'static str, message: String| {
            let step = VerificationStep { kind, message };
            on_log(&step);
            steps.push(step);
        };
        let of_kind = if kind == ServiceKind::FineTuning {
            "fine-tuning "
        } else {
            ""
        };
        log(
            "info",
            format!("🔍 Starting TEE verification for {of_kind}provider: {provider}"),
        );
        log(
            "step",
            "📋 Step 1: Retrieving service information from contract...".into(),
        );
        let registration = self.registration(provider, kind).await?;
        log("info", format!("   Provider URL: {}", registration.url));
        log(
            "step",
            "📥 Step 2: Downloading attestation reports...".into(),
        );
        let answer = self.fetch_quote(&registration.url, "/v1/quote").await?;
        let report_path = match output_dir {
            Some(folder) => Some(write_report(folder, kind, &answer.body)?),
            None => None,
        };
        if let Some(path) = &report_path {
            log(
                "success",
                format!("   ✅ Combined report saved to: {}", path.display()),
            );
        }
        let now_s = self.options.verification_time_s.unwrap_or_else(Self::now_s);
        let judgement = self.judge_latest(&answer, &registration, now_s).await;
        let verdict = judgement.verdict;
        let nonce = judgement.nonce.map(hex::encode);
        let passed = |id: CheckId| {
            verdict
                .check(id)
                .map(|check| check.status == zerog_attestation::CheckStatus::Pass)
        };
        let signer_match = passed(CheckId::SignerOnChain) == Some(true);
        // A reservation about another register does not unmake the match in the event log.
        let compose_hash_match = verdict
            .check(CheckId::ComposeHash)
            .map(|check| check.status != zerog_attestation::CheckStatus::Fail);
        log("step", "🔑 Step 3: TEE Signer Address Verification".into());
        log(
            "info",
            format!("   Contract TEE Signer Address: {}", registration.signer),
        );
        let signer = verdict
            .signer
            .map_or_else(|| "none".to_owned(), |signer| signer.to_string());
        log("info", format!("   Combined Report Signer: {signer}"));
        let (found, kind_of_step) = if signer_match {
            ("✅ MATCH", "success")
        } else {
            ("❌ MISMATCH", "error")
        };
        log(kind_of_step, format!("   Address Match: {found}"));
        log("step", "🔍 Step 4: Quote Verification".into());
        for check in &verdict.checks {
            let (mark, kind) = mark(check);
            log(
                kind,
                format!("   {mark} {} {}: {}", check.id, check.name, check.detail),
            );
        }
        log("step", "🖼️  Step 5: Image Verification".into());
        for image in &verdict.images {
            log("info", format!("   {image}"));
        }
        if verdict.level == Level::Simulated {
            log(
                "warning",
                "   The TEE is SIMULATED: it protects nothing.".into(),
            );
        }
        log("info", format!("📋 Result: {}", verdict.level));
        let written = match output_dir {
            Some(folder) => Some(write_verdict(
                folder,
                &registration,
                kind,
                nonce.as_deref(),
                &verdict,
            )?),
            None => None,
        };
        if let (Some(folder), Some(collateral)) = (output_dir, &judgement.collateral) {
            // With it the verification can be repeated at any time, without a network (`--collateral`).
            let text = serde_json::to_vec(collateral).expect("collateral is plain data");
            write_file(&report_path_of(folder, kind, "collateral.json"), &text)?;
        }
        let (verdict_path, summary_path) = written.unzip();
        Ok(VerificationReport {
            provider,
            is_valid: verdict.satisfies(Requirement::NothingFailed),
            level: verdict.level,
            assurance: verdict.assurance,
            quote_available: serde_json::from_slice::<Value>(&answer.body)
                .is_ok_and(|body| body.get("quote").is_some()),
            signer_match,
            compose_hash_match,
            docker_images: verdict.images.clone(),
            tee_signer: verdict.signer,
            expected_signer: registration.signer,
            errors: verdict
                .failures()
                .map(|check| format!("{}: {}", check.name, check.detail))
                .collect(),
            checks: verdict.checks,
            nonce,
            report: answer.body,
            report_path,
            verdict_path,
            summary_path,
            steps,
        })
    }
}

fn mark(check: &Check) -> (&'static str, &'static str) {
    use zerog_attestation::CheckStatus;
    match check.status {
        CheckStatus::Pass => ("✅", "success"),
        CheckStatus::Fail => ("❌", "error"),
        CheckStatus::Warning => ("⚠️ ", "warning"),
        CheckStatus::Skipped | CheckStatus::Inapplicable => ("➖", "info"),
    }
}

fn refusal(provider: Address, verdict: &Verdict, requirement: Requirement) -> Error {
    let mut failures: Vec<String> = verdict
        .failures()
        .map(|check| format!("{}: {}", check.name, check.detail))
        .collect();
    if failures.is_empty() {
        failures.push(match verdict.level {
            Level::Simulated => {
                "the TEE is simulated; that is accepted only on network `devnet` (chain 31337, an RPC on this machine)".into()
            }
            Level::Partial if requirement == Requirement::Verified => {
                let open: Vec<&str> = verdict.open().map(|check| check.name).collect();
                format!("--require verified demands every check; open are {}", open.join(", "))
            }
            _ => {
                let skipped: Vec<String> =
                    verdict.open().map(|check| format!("{}: {}", check.name, check.detail)).collect();
                format!("required checks could not be made: {}", skipped.join("; "))
            }
        });
    }
    Error::VerificationFailed {
        provider,
        level: verdict.level.to_string(),
        failures,
    }
}

fn write_report(folder: &Path, kind: ServiceKind, body: &[u8]) -> Result<PathBuf> {
    let path = report_path_of(folder, kind, "attestation_report.json");
    write_file(&path, body)?;
    Ok(path)
}

/// Where a file of a verification lies: the published clients' prefix tells the services apart, so that both fit into one
/// folder.
fn report_path_of(folder: &Path, kind: ServiceKind, name: &str) -> PathBuf {
    match kind {
        ServiceKind::FineTuning => folder.join(format!("fine_tuning_{name}")),
        ServiceKind::Inference => folder.join(name),
    }
}

/// Writes the whole verdict beside the raw report: once for programs, once for people.
fn write_verdict(
    folder: &Path,
    registration: &Registration,
    kind: ServiceKind,
    nonce: Option<&str>,
    verdict: &Verdict,
) -> Result<(PathBuf, PathBuf)> {
    let verified_at = jiff::Timestamp::now().to_string();
    let document = serde_json::json!({
        "verified_at": verified_at,
        "service": kind.name(),
        "provider": registration.provider,
        "url": registration.url,
        "registered_signer": registration.signer,
        "acknowledged": registration.acknowledged,
        "nonce": nonce,
        "verdict": verdict,
    });
    let (json_path, text_path) = (
        report_path_of(folder, kind, "verdict.json"),
        report_path_of(folder, kind, "report.md"),
    );
    let text = serde_json::to_vec_pretty(&document).expect("a verdict is plain data");
    write_file(&json_path, &text)?;
    let text = summary(registration, kind, nonce, verdict, &verified_at);
    write_file(&text_path, text.as_bytes())?;
    Ok((json_path, text_path))
}

/// The verdict as Markdown. Texts of the provider are quoted so that they cannot pass for parts of the report.
fn summary(
    registration: &Registration,
    kind: ServiceKind,
    nonce: Option<&str>,
    verdict: &Verdict,
    verified_at: &str,
) -> String {
    use std::fmt::Write as _;
    use zerog_attestation::CheckStatus;
    let meaning = match verdict.level {
        Level::Verified => "Every required check passed and none was left open.",
        Level::Partial => "Nothing failed; what is marked open below was not proved.",
        Level::Simulated => {
            "The evidence is consistent, but the TEE is simulated: it proves and protects nothing."
        }
        Level::Failed => {
            "A required check failed or could not be made. Send this provider nothing."
        }
    };
    let mut text = format!(
        "# Verification of a {kind} provider: {}\n\n{meaning}\n\n",
        verdict.level
    );
    let signer = verdict
        .signer
        .map_or_else(|| "none".to_owned(), |signer| signer.to_string());
    for (name, value) in [
        ("Provider", registration.provider.to_string()),
        ("URL", quoted(&registration.url)),
        ("Checked at", verified_at.to_owned()),
        ("Signer on chain", registration.signer.to_string()),
        ("Signer of the quote", signer),
        (
            "Nonce",
            nonce.map_or_else(|| "not answered".to_owned(), str::to_owned),
        ),
        (
            "TCB status",
            verdict
                .tcb_status
                .clone()
                .unwrap_or_else(|| "unknown".into()),
        ),
        (
            "Compose hash",
            verdict
                .compose_hash
                .clone()
                .unwrap_or_else(|| "unknown".into()),
        ),
    ] {
        let _ = writeln!(text, "- {name}: {value}");
    }
    text.push_str("\n| check | result | what was found |\n|---|---|---|\n");
    for check in &verdict.checks {
        let result = match check.status {
            CheckStatus::Pass => "passed",
            CheckStatus::Fail => "**failed**",
            CheckStatus::Warning => "open (reservation)",
            CheckStatus::Skipped => "open (not checked)",
            CheckStatus::Inapplicable => "does not apply",
        };
        let _ = writeln!(
            text,
            "| {} {} | {result} | {} |",
            check.id,
            check.name,
            quoted(&check.detail)
        );
    }
    for (title, items) in [
        ("Images", &verdict.images),
        ("Intel's advisories", &verdict.advisory_ids),
    ] {
        if !items.is_empty() {
            let _ = writeln!(text, "\n## {title}\n");
            for item in items {
                let _ = writeln!(text, "- {}", quoted(item));
            }
        }
    }
    text
}

/// Foreign text on one line, without characters that mean something in a table.
fn quoted(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '|' | '`' | '<' | '>' | '[' | ']' | '*' | '#' => ' ',
            c if c.is_control() => ' ',
            c => c,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_cannot_pass_for_a_part_of_the_report() {
        let registration = Registration {
            provider: Address::ZERO,
            url: "http://x\n# Verification of a provider: VERIFIED".into(),
            signer: Address::ZERO,
            acknowledged: true,
            model_node: ModelNode::Same,
            sealed: true,
        };
        let evidence = Evidence {
            body: b"{\"quote\": 1}",
            ..Evidence::default()
        };
        let verdict = evaluate(
            &evidence,
            &zerog_attestation::Policy::default(),
            1_790_000_000,
        );
        let text = summary(
            &registration,
            ServiceKind::FineTuning,
            None,
            &verdict,
            "now",
        );
        assert!(text.starts_with("# Verification of a fine-tuning provider: FAILED\n"));
        let headings = text.lines().filter(|line| line.starts_with("# ")).count();
        assert_eq!(headings, 1, "{text}");
        assert!(text.contains("| V2 quote body | **failed** |"), "{text}");
        for check in &verdict.checks {
            assert!(text.contains(&format!("| {} {} |", check.id, check.name)));
        }
    }
}
