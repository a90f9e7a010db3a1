//! The program: what was measured, which compose text that was, and whether it was replaced (V7, V8, V11, V18).

use alloy_primitives::Address;
use serde_json::Value;

use super::criteria::Policy;
use super::judge::Judge;
use crate::bundle::QuoteBundle;
use crate::checks::{CheckId, CheckStatus};
use crate::event_log::{self, RuntimeFacts};
use crate::mr_config::{self, ConfigId};
use crate::quote::TdxQuote;
use crate::sha256;

impl Judge {
    /// V7: only a log that replays to the quote's registers is evidence.
    pub(super) fn measurements(
        &mut self,
        bundle: &QuoteBundle,
        quote: &TdxQuote,
    ) -> Option<RuntimeFacts> {
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
    pub(super) fn compose(
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

    pub(super) fn ledger_events(&mut self, facts: Option<&RuntimeFacts>) {
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
