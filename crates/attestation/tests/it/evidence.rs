//! Evidence beside the quote: GPUs, the configuration register, a model node of its own. What is normal never fails, what
//! is not verified never passes.

use alloy_primitives::Address;
use base64::Engine as _;
use serde_json::{Value, json};
use zerog_attestation::bundle::sign_body;
use zerog_attestation::gpu::GpuEvidence;
use zerog_attestation::policy::{Challenge, Level};
use zerog_attestation::{
    Check, CheckId, CheckStatus, EnclaveKeys, Evidence, ModelNode, Policy, Rejection, Simulated,
    SimulatedOptions, TeeBackend, Verdict, evaluate, report_data,
};

const NOW: u64 = 1_790_000_000;
const NONCE: [u8; 32] = [3; 32];
/// Where MR_CONFIG_ID begins in a quote of version 4.
const MR_CONFIG_ID: usize = 232;

struct Enclave {
    backend: Simulated,
    keys: EnclaveKeys,
}

impl Enclave {
    fn new() -> Self {
        let backend = Simulated::new(SimulatedOptions::new([7; 32]).program_sha256([0xab; 32]));
        let keys = EnclaveKeys::derive(&backend).unwrap();
        Self { backend, keys }
    }

    fn body(&self, data: &[u8; 64]) -> Value {
        serde_json::from_str(&self.backend.quote(data).unwrap().to_json()).unwrap()
    }

    fn judge(&self, body: &Value, challenge: Option<Challenge>, node: ModelNode) -> Verdict {
        let body = body.to_string();
        let signature = sign_body(&self.keys.signer, body.as_bytes());
        let evidence = Evidence {
            body: body.as_bytes(),
            body_signature: Some(&signature),
            registered_signer: Some(self.keys.signer_address()),
            acknowledged: Some(true),
            challenge,
            model_node: node,
            ..Evidence::default()
        };
        evaluate(&evidence, &Policy::devnet(), NOW)
    }

    /// The check of GPUs, with this payload on a machine with two of them.
    fn gpus(&self, payload: Value) -> (Level, Check) {
        let mut body = self.body(&self.keys.legacy_report_data());
        body["vm_config"] = json!({"num_gpus": 2}).to_string().into();
        body["nvidia_payload"] = payload;
        let verdict = self.judge(&body, None, ModelNode::Same);
        let check = verdict.check(CheckId::GpuEvidence).unwrap().clone();
        (verdict.level, check)
    }

    fn nonce(&self) -> String {
        hex::encode(report_data::gpu_nonce(&self.keys.legacy_report_data()))
    }
}

fn payload(nonce: &str, devices: usize) -> Value {
    let base64 = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    let certificate = "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n";
    let device = json!({
        "certificate": base64(&certificate.repeat(5)),
        "evidence": base64("a request and its answer"),
        "arch": "HOPPER",
    });
    json!({"nonce": nonce, "evidence_list": vec![device; devices], "arch": "HOPPER"})
}

#[test]
fn gpu_evidence_is_reported_in_both_of_its_forms_and_never_verified() {
    let enclave = Enclave::new();
    let object = payload(&enclave.nonce(), 2);
    for form in [
        object.clone(),
        object.to_string().into(),
        payload(&format!("0x{}", enclave.nonce().to_uppercase()), 2),
    ] {
        let (level, check) = enclave.gpus(form.clone());
        assert_eq!(
            (level, check.status),
            (Level::Simulated, CheckStatus::Skipped),
            "{form}: {}",
            check.detail
        );
        for part in ["2 GPU(s)", "HOPPER", "2 with certificates", "not verified"] {
            assert!(check.detail.contains(part), "{}", check.detail);
        }
    }
    let parsed = GpuEvidence::parse(&object).unwrap();
    assert_eq!(parsed.devices[0].certificates, 5);
    assert_eq!(parsed.devices[0].evidence_bytes, 24);
}

#[test]
fn gpu_evidence_that_cannot_be_read_is_left_open() {
    let enclave = Enclave::new();
    let nonce = enclave.nonce();
    for (form, words) in [
        (payload(&nonce, 1), "vm_config names 2"),
        (payload(&nonce, 0), "vm_config names 2"),
        (payload("", 2), "no nonce binds it"),
        (payload("abcd", 2), "no nonce binds it"),
        (payload(&nonce, 65), "more than 64"),
        (json!({"nonce": nonce}), "no evidence_list"),
        (json!(7), "neither a JSON object"),
        (json!("{"), "neither a JSON object"),
        (
            json!(payload(&nonce, 2).to_string()).to_string().into(),
            "neither a JSON object",
        ),
    ] {
        let (level, check) = enclave.gpus(form);
        assert_eq!(
            (level, check.status),
            (Level::Simulated, CheckStatus::Warning)
        );
        assert!(check.detail.contains(words), "{}", check.detail);
    }
    // Named by the machine, shown by nobody.
    let (_, check) = enclave.gpus(Value::Null);
    assert_eq!(check.status, CheckStatus::Skipped);
    assert!(check.detail.contains("names 2 GPU(s)"), "{}", check.detail);
    let plain = enclave.body(&enclave.keys.legacy_report_data());
    let verdict = enclave.judge(&plain, None, ModelNode::Same);
    let check = verdict.check(CheckId::GpuEvidence).unwrap();
    assert_eq!(check.status, CheckStatus::Inapplicable);
}

#[test]
fn gpu_evidence_of_another_signer_fails() {
    let enclave = Enclave::new();
    let foreign = report_data::gpu_nonce(&report_data::legacy(Address::repeat_byte(9)));
    for form in [
        payload(&hex::encode(foreign), 2),
        payload(&hex::encode(foreign), 2).to_string().into(),
    ] {
        let (level, check) = enclave.gpus(form);
        assert_eq!((level, check.status), (Level::Failed, CheckStatus::Fail));
    }
}

#[test]
fn gpu_evidence_is_made_once_and_stays_good_after_a_nonce() {
    let enclave = Enclave::new();
    let keys = &enclave.keys;
    let challenge = Challenge {
        nonce: NONCE,
        sealing_key: keys.sealing.public(),
    };
    for data in [keys.legacy_report_data(), keys.structured_report_data()] {
        let mut body = enclave.body(&keys.challenge_report_data(&NONCE, None));
        body["nvidia_payload"] = payload(&hex::encode(report_data::gpu_nonce(&data)), 1)
            .to_string()
            .into();
        body["vm_config"] = json!({"num_gpus": 1}).to_string().into();
        let verdict = enclave.judge(&body, Some(challenge.clone()), ModelNode::Same);
        assert_eq!(verdict.level, Level::Simulated, "{:#?}", verdict.checks);
        let status = |id| verdict.check(id).unwrap().status;
        assert_eq!(status(CheckId::Freshness), CheckStatus::Pass);
        assert_eq!(status(CheckId::GpuEvidence), CheckStatus::Skipped);
    }
}

#[test]
fn every_form_of_the_configuration_register_counts() {
    let enclave = Enclave::new();
    let with_register = |change: &dyn Fn(&mut [u8])| {
        let mut body = enclave.body(&enclave.keys.legacy_report_data());
        let mut quote = hex::decode(body["quote"].as_str().unwrap()).unwrap();
        change(&mut quote[MR_CONFIG_ID..MR_CONFIG_ID + 48]);
        body["quote"] = hex::encode(quote).into();
        enclave
            .judge(&body, None, ModelNode::Same)
            .check(CheckId::ComposeHash)
            .unwrap()
            .clone()
    };
    let served = with_register(&|_| ());
    assert_eq!(served.status, CheckStatus::Pass);
    assert!(served.detail.contains("MR_CONFIG_ID (form 1)"));
    assert_eq!(
        with_register(&|register| register[5] ^= 1).status,
        CheckStatus::Fail
    );
    assert_eq!(
        with_register(&|register| register[47] = 1).status,
        CheckStatus::Fail
    );
    let unset = with_register(&|register| register.fill(0));
    assert_eq!(unset.status, CheckStatus::Pass);
    assert!(!unset.detail.contains("MR_CONFIG_ID"), "{}", unset.detail);
    for form in [2, 3, 4] {
        let open = with_register(&|register| register[0] = form);
        assert_eq!(open.status, CheckStatus::Warning, "form {form}");
        assert!(open.detail.contains("was not checked"), "{}", open.detail);
    }
}

#[test]
fn a_model_on_another_machine_is_never_silent() {
    let enclave = Enclave::new();
    let body = enclave.body(&enclave.keys.legacy_report_data());
    let signer = Address::repeat_byte(0x22);
    for (node, status, words) in [
        (ModelNode::Same, CheckStatus::Inapplicable, "no machine"),
        (
            ModelNode::of_registration(&format!(
                r#"{{"TargetSeparated":true,"TargetTeeAddress":"{signer}"}}"#
            )),
            CheckStatus::Skipped,
            "0x2222222222222222222222222222222222222222",
        ),
        (
            ModelNode::of_registration(r#"{"TargetSeparated":true}"#),
            CheckStatus::Skipped,
            "names no signer",
        ),
        (ModelNode::Unknown, CheckStatus::Skipped, "does not say"),
    ] {
        let verdict = enclave.judge(&body, None, node);
        let check = verdict.check(CheckId::ModelNode).unwrap();
        assert_eq!(check.status, status);
        assert!(check.detail.contains(words), "{}", check.detail);
        assert_eq!(
            verdict.open().any(|check| check.id == CheckId::ModelNode),
            status == CheckStatus::Skipped
        );
    }
}

#[test]
fn programs_can_tell_why_evidence_is_refused() {
    let enclave = Enclave::new();
    let body = enclave.body(&enclave.keys.legacy_report_data()).to_string();
    let evidence = Evidence {
        body: body.as_bytes(),
        ..Evidence::default()
    };
    let verdict = evaluate(&evidence, &Policy::default(), NOW);
    let rejection = |verdict: &Verdict, id| verdict.check(id).unwrap().rejection;
    assert_eq!(
        rejection(&verdict, CheckId::QuoteSignature),
        Some(Rejection::Simulated)
    );
    let json = serde_json::to_value(verdict.check(CheckId::QuoteSignature).unwrap()).unwrap();
    assert_eq!(json["rejection"], "simulated");
    let accepted = evaluate(&evidence, &Policy::devnet(), NOW);
    assert_eq!(rejection(&accepted, CheckId::QuoteSignature), None);
    let policy = Policy {
        min_tcb_evaluation_number: u32::MAX,
        ..Policy::devnet()
    };
    let verdict = evaluate(&evidence, &policy, NOW);
    assert_eq!(
        rejection(&verdict, CheckId::TcbStatus),
        Some(Rejection::OldCollateral)
    );
    assert_eq!(verdict.level, Level::Failed);
}
