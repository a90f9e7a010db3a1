//! Recorded quotes of real machines, with their collateral, at a time when it was valid.

use zerog_attestation::policy::Level;
use zerog_attestation::{
    CheckId, CheckStatus, Collateral, Evidence, Policy, QuoteBundle, TdxQuote, TrustRoot,
    VerifyError, evaluate, event_log, verify_quote,
};

use crate::fixture;

const TIME_OF_V4: u64 = 1_751_000_000;
const TIME_OF_DSTACK: u64 = 1_772_000_000;

fn collateral(name: &str) -> Collateral {
    serde_json::from_slice(&fixture(name)).unwrap()
}

fn dstack_report() -> (QuoteBundle, serde_json::Value) {
    let mut body: serde_json::Value =
        serde_json::from_slice(&fixture("dstack_report.json")).unwrap();
    // The guest agent answers in hexadecimal; providers serve base64.
    let data = hex::decode(body["report_data"].as_str().unwrap()).unwrap();
    body["report_data"] =
        zerog_attestation::report_data::to_base64(&data.try_into().unwrap()).into();
    (
        QuoteBundle::parse(body.to_string().as_bytes()).unwrap(),
        body,
    )
}

#[test]
fn a_hardware_quote_verifies_under_intels_root_only() {
    let (quote, collateral) = (fixture("tdx_v4.bin"), collateral("tdx_v4_collateral.json"));
    let verified = verify_quote(&quote, &collateral, &TrustRoot::Intel, TIME_OF_V4).unwrap();
    assert_eq!(verified.tcb_status.to_string(), "UpToDate");
    assert!(!verified.simulated && !verified.quote.is_marked_simulated());
    assert!(verify_quote(&quote, &collateral, &TrustRoot::Development, TIME_OF_V4).is_err());
}

#[test]
fn changed_bytes_times_and_foreign_collateral_are_refused() {
    let quote = fixture("tdx_v4.bin");
    let own = collateral("tdx_v4_collateral.json");
    let reason = |quote: &[u8], collateral: &Collateral, now| match verify_quote(
        quote,
        collateral,
        &TrustRoot::Intel,
        now,
    ) {
        Err(VerifyError::Rejected { reason, .. }) => reason,
        other => panic!("{other:?}"),
    };
    for position in [520, 568] {
        let mut changed = quote.clone();
        changed[position] ^= 1;
        assert!(
            reason(&changed, &own, TIME_OF_V4).contains("ISV enclave report signature is invalid")
        );
    }
    assert!(reason(&quote, &own, 1_700_000_000).contains("future"));
    assert!(reason(&quote, &own, 1_900_000_000).contains("xpired"));
    assert!(
        reason(
            &quote,
            &collateral("dstack_collateral.json"),
            TIME_OF_DSTACK
        )
        .contains("mismatch")
    );
}

#[test]
fn version_five_quotes_parse() {
    let quote = TdxQuote::parse(&fixture("tdx_v5.bin")).unwrap();
    assert_eq!(quote.version, 5);
    assert!(TdxQuote::parse(&fixture("tdx_v5.bin")[..600]).is_err());
    assert!(TdxQuote::parse_hex("0x04").is_err());
}

#[test]
fn a_dstack_report_verifies_and_its_log_replays() {
    let (bundle, _) = dstack_report();
    let verified = verify_quote(
        &bundle.quote,
        &collateral("dstack_collateral.json"),
        &TrustRoot::Intel,
        TIME_OF_DSTACK,
    )
    .unwrap();
    let events = event_log::parse(&bundle.event_log).unwrap();
    assert_eq!(event_log::replay(&events).unwrap(), verified.quote.rtmr);
    let facts = event_log::runtime_facts(&events).unwrap();
    let compose = facts.compose_hash.unwrap();
    assert_eq!(
        hex::encode(&compose),
        "3763bc34552cf3a27ff71ad5f7a90471562a1a2df552dfc1998cba2d60da27e7"
    );
    assert_eq!(facts.app_id.unwrap(), compose[..20]);
    assert_eq!(
        facts.application_events.len(),
        1,
        "one event was written after system-ready"
    );
}

#[test]
fn newer_guests_with_empty_digests_replay() {
    let body: serde_json::Value =
        serde_json::from_slice(&fixture("dstack_lite_report.json")).unwrap();
    let quote = TdxQuote::parse_hex(body["quote"].as_str().unwrap()).unwrap();
    let events = event_log::parse(body["event_log"].as_str().unwrap()).unwrap();
    assert!(
        events
            .iter()
            .any(|event| event.imr == 3 && event.digest.is_empty())
    );
    assert_eq!(event_log::replay(&events).unwrap(), quote.rtmr);
}

#[test]
fn changed_event_logs_do_not_replay() {
    let (bundle, _) = dstack_report();
    let quoted = bundle.parsed_quote().unwrap().rtmr;
    let events = event_log::parse(&bundle.event_log).unwrap();
    let runtime = events
        .iter()
        .position(|event| event.event == "compose-hash")
        .unwrap();
    let mut removed = events.clone();
    removed.remove(runtime);
    assert_ne!(event_log::replay(&removed).unwrap(), quoted);
    let mut reordered = events.clone();
    reordered.swap(runtime, runtime + 1);
    assert_ne!(event_log::replay(&reordered).unwrap(), quoted);
    let mut changed = events.clone();
    changed[runtime].event_payload.replace_range(0..2, "ff");
    assert!(matches!(
        event_log::replay(&changed),
        Err(event_log::EventLogError::DigestMismatch { .. })
    ));
    let mut appended = events.clone();
    appended.push(event_log::Event::runtime("compose-hash", &[9; 32]));
    let facts = event_log::runtime_facts(&appended).unwrap();
    assert_eq!(
        hex::encode(facts.compose_hash.unwrap()),
        events[runtime].event_payload,
        "later events change nothing"
    );
    let mut doubled = events.clone();
    doubled.insert(runtime, events[runtime].clone());
    assert!(matches!(
        event_log::runtime_facts(&doubled),
        Err(event_log::EventLogError::Duplicate { .. })
    ));
}

#[test]
fn a_real_report_without_a_signer_fails_by_name() {
    let (_, body) = dstack_report();
    let body = body.to_string();
    let collateral = collateral("dstack_collateral.json");
    let evidence = Evidence {
        body: body.as_bytes(),
        collateral: Some(&collateral),
        ..Evidence::default()
    };
    let verdict = evaluate(&evidence, &Policy::default(), TIME_OF_DSTACK);
    assert_eq!(verdict.level, Level::Failed);
    for (id, status) in [
        (CheckId::QuoteFormat, CheckStatus::Pass),
        (CheckId::QuoteSignature, CheckStatus::Pass),
        (CheckId::DomainAttributes, CheckStatus::Pass),
        (CheckId::TcbStatus, CheckStatus::Pass),
        (CheckId::EventLog, CheckStatus::Pass),
        (CheckId::ReportData, CheckStatus::Fail),
    ] {
        assert_eq!(verdict.check(id).unwrap().status, status, "{id}");
    }
    let without = Evidence {
        collateral: None,
        ..evidence
    };
    let verdict = evaluate(&without, &Policy::default(), TIME_OF_DSTACK);
    assert_eq!(
        verdict.check(CheckId::QuoteSignature).unwrap().status,
        CheckStatus::Skipped
    );
    assert_eq!(
        verdict.level,
        Level::Failed,
        "unverified signatures are never a partial success"
    );
}
