//! Whether a provider's enclave is what it claims to be, with the steps, files and result names of the published
//! clients. The judgement itself is `zerog_attestation::policy`.

use std::path::{Path, PathBuf};

use alloy_primitives::Address;
use serde::Serialize;
use serde_json::Value;
use zerog_attestation::{
    Assurance, Check, Collateral, Evidence, Level, QuoteBundle, Requirement, Verdict, bundle,
    evaluate,
};
use zerog_protocol::seal::SEAL_VERSION;

use crate::broker::Context;
use crate::error::{Error, Result, ServiceKind};
use crate::fine_tuning::services::write_file;
use crate::progress::Progress;
use crate::provider_client::{Answer, join, parse_json};

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
    /// The raw report, if it was asked for.
    pub report_path: Option<PathBuf>,
    /// What was logged.
    pub steps: Vec<VerificationStep>,
}

/// What a client needs to know before it sends data to an enclave.
#[derive(Debug, Clone)]
pub(crate) struct VerifiedEnclave {
    /// X25519 key, when the enclave takes sealed data.
    pub(crate) sealing_key: Option<[u8; 32]>,
}

/// The registered side of a service.
#[derive(Debug, Clone)]
pub(crate) struct Registration {
    pub(crate) provider: Address,
    pub(crate) url: String,
    pub(crate) signer: Address,
    pub(crate) acknowledged: bool,
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
        let verdict = self.judge(&answer, registration).await;
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
        let seals = QuoteBundle::parse(&answer.body).is_ok_and(|bundle| bundle.seals(SEAL_VERSION));
        let sealing_key = verdict.sealing_key.filter(|_| seals);
        Ok(VerifiedEnclave { sealing_key })
    }

    pub(crate) async fn fetch_quote(&self, url: &str, path: &str) -> Result<Answer> {
        self.http
            .get("quote", &join(url, path), None, bundle::MAX_BODY_BYTES)
            .await
    }

    pub(crate) async fn judge(&self, answer: &Answer, registration: &Registration) -> Verdict {
        let collateral = self.collateral(answer, &registration.url).await;
        let evidence = Evidence {
            body: &answer.body,
            body_signature: answer.header(bundle::SIGNATURE_HEADER),
            collateral: collateral.as_ref(),
            registered_signer: Some(registration.signer),
            acknowledged: Some(registration.acknowledged),
            challenge: None,
        };
        evaluate(&evidence, &self.policy(), Self::now_s())
    }

    /// Collateral is signed by Intel, so it does not matter who hands it over; the provider does.
    async fn collateral(&self, answer: &Answer, url: &str) -> Option<Collateral> {
        if QuoteBundle::parse(&answer.body).is_ok_and(|bundle| bundle.simulated) {
            return None;
        }
        let url = join(url, "/v1/quote/collateral");
        match self
            .http
            .get("quote collateral", &url, None, bundle::MAX_BODY_BYTES)
            .await
        {
            Ok(answer) => parse_json("quote collateral", &answer.body).ok(),
            Err(error) => {
                tracing::debug!(%error, "the provider serves no collateral");
                None
            }
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
        let verdict = self.judge(&answer, &registration).await;
        let passed = |id: &str| {
            verdict
                .check(id)
                .map(|check| check.status == zerog_attestation::CheckStatus::Pass)
        };
        let signer_match = passed("V13") == Some(true);
        let compose_hash_match = passed("V8");
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
            report_path,
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
    let name = match kind {
        ServiceKind::FineTuning => "fine_tuning_attestation_report.json",
        ServiceKind::Inference => "attestation_report.json",
    };
    let path = folder.join(name);
    write_file(&path, body)?;
    Ok(path)
}
