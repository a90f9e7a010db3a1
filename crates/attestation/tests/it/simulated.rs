//! The simulated TEE: consistent with itself, refused by everybody who trusts Intel.

use alloy_primitives::Address;
use zerog_attestation::backend::simulated::{development_collateral, development_root};
use zerog_attestation::bundle::sign_body;
use zerog_attestation::policy::{Assurance, Challenge, Level, Requirement};
use zerog_attestation::{
    CheckId, CheckStatus, EnclaveKeys, Evidence, Policy, QuoteBundle, Simulated, SimulatedOptions,
    TeeBackend, TrustRoot, evaluate, verify_quote,
};

const NOW: u64 = 1_790_000_000;

fn enclave() -> (Simulated, EnclaveKeys) {
    let backend = Simulated::new(SimulatedOptions::new([7; 32]).program_sha256([0xab; 32]));
    let keys = EnclaveKeys::derive(&backend).unwrap();
    (backend, keys)
}

fn served() -> (String, EnclaveKeys) {
    let (backend, keys) = enclave();
    (
        backend.quote(&keys.legacy_report_data()).unwrap().to_json(),
        keys,
    )
}

fn evidence<'a>(body: &'a str, signature: &'a str, signer: Address) -> Evidence<'a> {
    Evidence {
        body: body.as_bytes(),
        body_signature: Some(signature),
        registered_signer: Some(signer),
        acknowledged: Some(true),
        ..Evidence::default()
    }
}

#[test]
fn keys_are_stable_and_differ_by_seed() {
    let (_, first) = enclave();
    let (_, again) = enclave();
    assert_eq!(first.signer_address(), again.signer_address());
    assert_eq!(first.sealing.public(), again.sealing.public());
    assert_eq!(first.vault, again.vault);
    let other = EnclaveKeys::derive(&Simulated::new(SimulatedOptions::new([8; 32]))).unwrap();
    assert_ne!(first.signer_address(), other.signer_address());
    assert_ne!(first.sealing.public(), other.sealing.public());
}

#[test]
fn quotes_verify_under_the_development_root_alone() {
    let (backend, keys) = enclave();
    let quote = backend.quote(&keys.structured_report_data()).unwrap().quote;
    let collateral = development_collateral(NOW);
    let verified = verify_quote(&quote, &collateral, &TrustRoot::Development, NOW).unwrap();
    assert!(
        verified.simulated && verified.quote.is_marked_simulated() && verified.quote.is_debug()
    );
    assert_eq!(verified.tcb_status.to_string(), "UpToDate");
    let intel = verify_quote(&quote, &collateral, &TrustRoot::Intel, NOW).unwrap_err();
    assert!(intel.to_string().contains("CRL"), "{intel}");
    // Even who trusts the development root by hand meets the DEBUG attribute.
    let by_hand = TrustRoot::Certificate(development_root().to_vec());
    let debug = verify_quote(&quote, &collateral, &by_hand, NOW).unwrap_err();
    assert!(debug.to_string().contains("Debug mode"), "{debug}");
    let mut changed = quote;
    changed[600] ^= 1;
    assert!(verify_quote(&changed, &collateral, &TrustRoot::Development, NOW).is_err());
}

#[test]
fn certificates_say_what_they_are() {
    let text = String::from_utf8_lossy(development_root()).into_owned();
    assert!(text.contains("SIMULATED - NOT FOR PRODUCTION"));
}

#[test]
fn a_devnet_verdict_is_simulated_and_never_more() {
    let (body, keys) = served();
    let signature = sign_body(&keys.signer, body.as_bytes());
    let evidence = evidence(&body, &signature, keys.signer_address());
    let verdict = evaluate(&evidence, &Policy::devnet(), NOW);
    assert_eq!(
        (verdict.level, verdict.assurance),
        (Level::Simulated, Assurance::Simulated),
        "{:#?}",
        verdict.checks
    );
    assert_eq!(verdict.signer, Some(keys.signer_address()));
    assert_eq!(
        verdict.images,
        [format!("zerog/provider@sha256:{}", "ab".repeat(32))]
    );
    assert!(verdict.satisfies(Requirement::AllowSimulated));
    assert!(!verdict.satisfies(Requirement::NothingFailed));
    for id in [
        CheckId::Registration,
        CheckId::QuoteBody,
        CheckId::QuoteFormat,
        CheckId::QuoteSignature,
        CheckId::TcbStatus,
        CheckId::EventLog,
        CheckId::ComposeHash,
        CheckId::ReportData,
        CheckId::SignerOnChain,
        CheckId::BodySignature,
    ] {
        assert_eq!(verdict.check(id).unwrap().status, CheckStatus::Pass, "{id}");
    }
    let strict = evaluate(&evidence, &Policy::default(), NOW);
    assert_eq!(strict.level, Level::Failed);
    assert_eq!(
        strict.failures().map(|check| check.id).collect::<Vec<_>>(),
        [CheckId::QuoteSignature]
    );
}

#[test]
fn removing_the_marks_outside_the_signature_does_not_help() {
    let (body, keys) = served();
    let mut stripped: serde_json::Value = serde_json::from_str(&body).unwrap();
    stripped.as_object_mut().unwrap().remove("simulated");
    let stripped = stripped.to_string();
    let signature = sign_body(&keys.signer, stripped.as_bytes());
    let collateral = development_collateral(NOW);
    let evidence = Evidence {
        collateral: Some(&collateral),
        ..evidence(&stripped, &signature, keys.signer_address())
    };
    assert_eq!(
        evaluate(&evidence, &Policy::default(), NOW).level,
        Level::Failed
    );
}

#[test]
fn each_lie_fails_its_own_check() {
    let (body, keys) = served();
    let honest: serde_json::Value = serde_json::from_str(&body).unwrap();
    let signer = keys.signer_address();
    let level_of = |body: &str, registered: Address| {
        let signature = sign_body(&keys.signer, body.as_bytes());
        let verdict = evaluate(
            &evidence(body, &signature, registered),
            &Policy::devnet(),
            NOW,
        );
        (
            verdict.level,
            verdict.failures().map(|check| check.id).collect::<Vec<_>>(),
        )
    };
    let with = |member: &str, value: serde_json::Value| {
        let mut body = honest.clone();
        body[member] = value;
        body.to_string()
    };
    assert_eq!(
        level_of(&body, Address::repeat_byte(9)),
        (Level::Failed, vec![CheckId::SignerOnChain])
    );
    let foreign = zerog_attestation::report_data::legacy(Address::repeat_byte(9));
    let report_data = zerog_attestation::report_data::to_base64(&foreign);
    assert_eq!(
        level_of(&with("report_data", report_data.into()), signer).1,
        [CheckId::ReportData]
    );
    assert_eq!(
        level_of(&with("event_log", "[]".into()), signer).1,
        [CheckId::EventLog, CheckId::ComposeHash]
    );
    assert_eq!(
        level_of(&with("tcb_info", r#"{"app_compose":"{}"}"#.into()), signer).1,
        [CheckId::ComposeHash]
    );
    assert_eq!(
        level_of(&with("quote", "00".into()), signer).1,
        [CheckId::QuoteFormat]
    );
    assert_eq!(
        level_of(
            &with(
                "quote",
                format!("0x{}", honest["quote"].as_str().unwrap()).into()
            ),
            signer
        )
        .1,
        [CheckId::QuoteBody]
    );
    assert_eq!(level_of("not json", signer).1, [CheckId::QuoteBody]);
    assert_eq!(
        level_of(r#"{"gpu_evidence":1}"#, signer).1,
        [CheckId::QuoteBody]
    );
    let signature = sign_body(&keys.signer, b"another body");
    let verdict = evaluate(&evidence(&body, &signature, signer), &Policy::devnet(), NOW);
    assert_eq!(
        verdict.failures().map(|check| check.id).collect::<Vec<_>>(),
        [CheckId::BodySignature]
    );
}

#[test]
fn a_nonce_is_answered_or_refused() {
    let (backend, keys) = enclave();
    let nonce = [3; 32];
    let body = backend
        .quote(&keys.challenge_report_data(&nonce, None))
        .unwrap()
        .to_json();
    let signature = sign_body(&keys.signer, body.as_bytes());
    let challenge = Challenge {
        nonce,
        sealing_key: keys.sealing.public(),
    };
    let ask = |challenge| {
        let evidence = Evidence {
            challenge: Some(challenge),
            ..evidence(&body, &signature, keys.signer_address())
        };
        evaluate(&evidence, &Policy::devnet(), NOW)
    };
    let answered = ask(challenge.clone());
    assert_eq!(
        answered.check(CheckId::Freshness).unwrap().status,
        CheckStatus::Pass
    );
    assert_eq!(answered.sealing_key, Some(keys.sealing.public()));
    let old = ask(Challenge {
        nonce: [4; 32],
        ..challenge
    });
    assert_eq!(
        (old.level, old.check(CheckId::Freshness).unwrap().status),
        (Level::Failed, CheckStatus::Fail)
    );
}

#[test]
fn the_structured_body_gives_the_sealing_key() {
    let (backend, keys) = enclave();
    let bundle = backend.quote(&keys.structured_report_data()).unwrap();
    assert!(bundle.seals("v1"));
    let body = bundle.to_json();
    let signature = sign_body(&keys.signer, body.as_bytes());
    let verdict = evaluate(
        &evidence(&body, &signature, keys.signer_address()),
        &Policy::devnet(),
        NOW,
    );
    assert_eq!(verdict.sealing_key, Some(keys.sealing.public()));
    assert_eq!(QuoteBundle::parse(body.as_bytes()).unwrap(), bundle);
}

#[test]
fn mainnet_is_refused() {
    assert!(Simulated::check_chain(16661).is_err());
    assert!(Simulated::check_chain(31337).is_ok());
}
