//! Byte vectors of the protocol text.

use alloy_primitives::{Address, address};
use base64::Engine as _;
use zerog_attestation::bundle::{body_signature_is_valid, sign_body};
use zerog_attestation::event_log::{self, Event};
use zerog_attestation::keys::derive_path_key;
use zerog_attestation::report_data::{self, ReportData, ReportDataError};
use zerog_attestation::{QuoteBundle, SealingKey};
use zerog_protocol::SecretKey;

const SIGNER: Address = address!("f39Fd6e51aad88F6F4ce6aB8827279cffFb92266");
const SIGNER_KEY: &str = "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80";

#[test]
fn legacy_report_data_is_the_checksummed_address() {
    let data = report_data::legacy(SIGNER);
    let expected = "30786633394664366535316161643838463646346365366142383832373237396366664662393232363600000000000000000000000000000000000000000000";
    assert_eq!(hex::encode(data), expected);
    let base64 =
        "MHhmMzlGZDZlNTFhYWQ4OEY2RjRjZTZhQjg4MjcyNzljZmZGYjkyMjY2AAAAAAAAAAAAAAAAAAAAAAAAAAAAAA==";
    assert_eq!(report_data::to_base64(&data), base64);
    let short = "MHhmMzlGZDZlNTFhYWQ4OEY2RjRjZTZhQjg4MjcyNzljZmZGYjkyMjY2";
    assert_eq!(report_data::from_base64(short).unwrap(), data);
    assert_eq!(
        ReportData::parse(&data).unwrap(),
        ReportData::Legacy { signer: SIGNER }
    );
    let other = address!("70997970C51812dc3A010C7d01b50e0d17dc79C8");
    let vector =
        "MHg3MDk5Nzk3MEM1MTgxMmRjM0EwMTBDN2QwMWI1MGUwZDE3ZGM3OUM4AAAAAAAAAAAAAAAAAAAAAAAAAAAAAA==";
    assert_eq!(report_data::to_base64(&report_data::legacy(other)), vector);
}

#[test]
fn structured_report_data_carries_key_signer_and_version() {
    let data = report_data::structured(SIGNER, &[0x11; 32]);
    let expected = "1111111111111111111111111111111111111111111111111111111111111111f39fd6e51aad88f6f4ce6ab8827279cfffb92266000000010000000000000000";
    assert_eq!(hex::encode(data), expected);
    assert_eq!(
        ReportData::parse(&data).unwrap(),
        ReportData::Structured {
            sealing_key: [0x11; 32],
            signer: SIGNER
        }
    );
    assert_eq!(
        hex::encode(report_data::gpu_nonce(&report_data::legacy(SIGNER))),
        "db2ec52069cba65d62a560cad9088e7a709d09e7c14b33d740b428038e383e34"
    );
    assert_eq!(
        hex::encode(report_data::gpu_nonce(&data)),
        "ecb1b5c5a8f73810f0071fcff67517d6602fa20f02254b6841498edcb3895f1c"
    );
}

#[test]
fn other_report_data_is_refused() {
    assert_eq!(
        ReportData::parse(&[1; 64]),
        Err(ReportDataError::UnknownLayout)
    );
    assert_eq!(
        ReportData::parse(&report_data::legacy(Address::ZERO)),
        Err(ReportDataError::ZeroSigner)
    );
    assert_eq!(
        ReportData::parse(&report_data::structured(Address::ZERO, &[1; 32])),
        Err(ReportDataError::ZeroSigner)
    );
    assert_eq!(
        report_data::from_base64("AAAA"),
        Err(ReportDataError::NotBase64)
    );
}

#[test]
fn body_signature_matches_the_vector() {
    let key: SecretKey = SIGNER_KEY.parse().unwrap();
    let body = br#"{"quote":"0x00"}"#;
    let signature = "0x68fda2c76fb0f76271e573581879f8462afad0399458d8caf8e9c551e59d09c5200c5633d0d71dce71b5cfd8a43f832a56f86a344cae8b978c98eae82373b2101c";
    assert_eq!(sign_body(&key, body), signature);
    assert!(body_signature_is_valid(body, signature, SIGNER));
    assert!(!body_signature_is_valid(b"{}", signature, SIGNER));
}

#[test]
fn path_keys_are_dstacks() {
    let mut application_key = [0u8; 32];
    hex::decode_to_slice(
        "d6e88992cdeeee35fe70b5db61ab66cdb191fb9b6ec9313757ef162dd7214d5d",
        &mut application_key,
    )
    .unwrap();
    let derived = |path| hex::encode(*derive_path_key(&application_key, path));
    assert_eq!(
        derived("/"),
        "f6c1ed94488394d78e0a4e5ab75d62e9f085d73b0b555d0614fb90ca13d9464d"
    );
    assert_eq!(
        derived("/e2ee-enc"),
        "df59ada1438aabbaae5b1e6caff4402e6af11ba408313e2e5b892663249c3db8"
    );
    assert_eq!(
        derived(""),
        "aa221ae548b5a8f52fcb8687cfd873712f6a1232b2717e5ee3d58ab74f21905b"
    );
    let signer = SecretKey::from_bytes(&derive_path_key(&application_key, "/")).unwrap();
    assert_eq!(
        signer.address(),
        address!("6A2641982D1Ed53145b0Db42a4CFFcEFb4Cae5AF")
    );
}

#[test]
fn sealing_keys_do_not_print_and_round_trip() {
    let key = SealingKey::derive(&[5; 32]);
    assert_eq!(
        SealingKey::from_secret(*key.expose_secret()).public(),
        key.public()
    );
    assert!(!format!("{key:?}").contains(&hex::encode(key.expose_secret())));
}

#[test]
fn runtime_digest_matches_the_recorded_event() {
    let payload =
        hex::decode("3763bc34552cf3a27ff71ad5f7a90471562a1a2df552dfc1998cba2d60da27e7").unwrap();
    assert_eq!(
        hex::encode(event_log::runtime_digest("compose-hash", &payload)),
        "b883bee0b216618b1ce0e7a1bb4a9379b486cef8aadf0c682cb6e80c083f7982dbf104183c24a74693d860f4ffc8b72f"
    );
}

#[test]
fn canonical_event_form_needs_its_preimage() {
    let mut event = Event::runtime("a\"b", b"\x01");
    let canonical = r#"{"name":"a\"b","payload":"01","type":134217729}"#;
    event.version = Some(2);
    event.digest = String::new();
    assert!(event_log::replay(std::slice::from_ref(&event)).is_err());
    event.preimage = Some(hex::encode(canonical));
    assert!(event_log::replay(std::slice::from_ref(&event)).is_ok());
    event.preimage = Some(hex::encode(
        r#"{"name":"x","payload":"01","type":134217729}"#,
    ));
    assert!(event_log::replay(&[event]).is_err());
}

/// Vector 10.9 of the fine-tuning document: what both published clients compute from a body.
#[test]
fn published_clients_accept_the_body_shape() {
    let compose = r#"{"docker_compose_file":"services:\n  broker:\n    image: example/broker@sha256:00\n","name":"ft"}"#;
    let hash = hex::encode(zerog_protocol::signing::sha256(compose.as_bytes()));
    assert_eq!(
        hash,
        "cba6b37c86f754150de3ea6cab36593777f0a21626c59f6e4c1fb08186d1ca5d"
    );
    let signer = address!("70997970C51812dc3A010C7d01b50e0d17dc79C8");
    let events = vec![Event::runtime("compose-hash", &hex::decode(&hash).unwrap())];
    let bundle = QuoteBundle {
        quote: vec![4, 0],
        event_log: serde_json::to_string(&events).unwrap(),
        report_data: report_data::legacy(signer),
        vm_config: "{}".into(),
        tcb_info: serde_json::json!({ "app_compose": compose }).to_string(),
        simulated: true,
        sealing: vec!["v1".into()],
        recipient_keys: Vec::new(),
        tls_key_sha256: None,
        nvidia_payload: None,
    };
    let body: serde_json::Value = serde_json::from_str(&bundle.to_json()).unwrap();
    // The published TypeScript client: signer text from report_data, hash of app_compose against the log entry.
    let text = String::from_utf8(
        base64::engine::general_purpose::STANDARD
            .decode(body["report_data"].as_str().unwrap())
            .unwrap(),
    )
    .unwrap();
    assert_eq!(text.trim_matches('\0').parse::<Address>().unwrap(), signer);
    let log: serde_json::Value = serde_json::from_str(body["event_log"].as_str().unwrap()).unwrap();
    let entry = log
        .as_array()
        .unwrap()
        .iter()
        .find(|entry| entry["event"] == "compose-hash")
        .unwrap();
    assert_eq!(entry["event_payload"], hash.as_str());
    let tcb: serde_json::Value = serde_json::from_str(body["tcb_info"].as_str().unwrap()).unwrap();
    assert_eq!(tcb["app_compose"], compose);
    assert_eq!(body["simulated"], true);
    assert_eq!(body["quote"], "0400");
    assert!(
        body.get("attestation").is_none(),
        "this member would replace the quote in published verifiers"
    );
    assert_eq!(
        QuoteBundle::parse(bundle.to_json().as_bytes()).unwrap(),
        bundle
    );
}
