//! A provider with a recorded quote of a real machine, and a collateral service that answers as PCCS do: the way from the
//! network to a verdict about the signatures. The recorded quote names no signer, so the whole verdict cannot pass.

use std::path::Path;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use zerog_sdk::{Broker, BrokerOptions, Check, CheckId, CheckStatus, Level, Policy, Rejection};

use crate::support::{Response, World};

/// A time at which the recorded collateral is valid, and one after its end.
const VALID_S: u64 = 1_772_000_000;
const OVER_S: u64 = 1_775_000_000;

fn fixture(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/quotes");
    std::fs::read(folder.join(name)).unwrap()
}

/// The recorded report, as a provider serves it.
fn report() -> Value {
    let mut body: Value = serde_json::from_slice(&fixture("dstack_report.json")).unwrap();
    let data = hex::decode(body["report_data"].as_str().unwrap()).unwrap();
    body["report_data"] =
        zerog_attestation::report_data::to_base64(&data.try_into().unwrap()).into();
    body
}

/// What the provider's machine does, besides serving the recorded quote.
#[derive(Debug, Clone, Copy, Default)]
struct Script {
    /// It hands over collateral itself.
    offers: bool,
    /// The collateral service works.
    serves: bool,
}

/// Both the provider and the collateral service live at the scripted address.
fn answer(world: &World, script: &Arc<Mutex<Script>>) {
    let script = Arc::clone(script);
    let recorded: Value = serde_json::from_slice(&fixture("dstack_collateral.json")).unwrap();
    let text = move |key: &str| recorded[key].as_str().unwrap().to_owned();
    world.answer(move |request| {
        let Script { offers, serves } = *script.lock().unwrap();
        let chain = |key: &str| text(key).replace('\n', "%0A");
        let signed = |member: &str, key: &str| {
            let signature = text(&format!("{key}_signature"));
            format!(
                "{{\"{member}\":{},\"signature\":\"{signature}\"}}",
                text(key)
            )
        };
        let path = request.path.split('?').next().unwrap_or_default();
        Some(match path {
            "/v1/quote" => Response::new(200, report().to_string()),
            "/v1/quote/collateral" if offers => {
                Response::new(200, fixture("dstack_collateral.json"))
            }
            "/pccs/tdx/certification/v4/tcb" if serves => {
                Response::new(200, signed("tcbInfo", "tcb_info"))
                    .header("TCB-Info-Issuer-Chain", chain("tcb_info_issuer_chain"))
            }
            "/pccs/tdx/certification/v4/qe/identity" if serves => {
                Response::new(200, signed("enclaveIdentity", "qe_identity")).header(
                    "SGX-Enclave-Identity-Issuer-Chain",
                    chain("qe_identity_issuer_chain"),
                )
            }
            "/pccs/sgx/certification/v4/pckcrl" if serves => {
                assert!(
                    request.path.ends_with("?ca=platform&encoding=der"),
                    "{}",
                    request.path
                );
                Response::new(200, hex::decode(text("pck_crl")).unwrap())
                    .header("SGX-PCK-CRL-Issuer-Chain", chain("pck_crl_issuer_chain"))
            }
            "/pccs/sgx/certification/v4/rootcacrl" if serves => {
                Response::new(200, text("root_ca_crl"))
            }
            _ => Response::new(404, "not here"),
        })
    });
}

/// The world, its script, and options that know the service alone.
async fn start(script: Script) -> (World, Arc<Mutex<Script>>, BrokerOptions) {
    let world = World::start().await;
    let script = Arc::new(Mutex::new(script));
    answer(&world, &script);
    let mut options = world.options();
    options.collateral.services = vec![format!("{}/pccs/", world.url())];
    options.verification_time_s = Some(VALID_S);
    (world, script, options)
}

/// Judges the provider with a new broker, as a new process would.
async fn verify(world: &World, options: &BrokerOptions) -> zerog_sdk::VerificationReport {
    let broker = Broker::connect(options.clone()).await.unwrap();
    broker
        .fine_tuning
        .verify_service(world.provider, None, |_| ())
        .await
        .unwrap()
}

fn check(report: &zerog_sdk::VerificationReport, id: CheckId) -> &Check {
    report.checks.iter().find(|check| check.id == id).unwrap()
}

#[tokio::test]
async fn a_collateral_service_decides_the_signatures_and_is_asked_once() {
    let (world, script, mut options) = start(Script {
        serves: true,
        ..Script::default()
    })
    .await;
    let cache = tempfile::tempdir().unwrap();
    options.cache_dir = Some(cache.path().into());
    let first = verify(&world, &options).await;
    for id in [
        CheckId::QuoteSignature,
        CheckId::TcbStatus,
        CheckId::EventLog,
    ] {
        assert_eq!(
            check(&first, id).status,
            CheckStatus::Pass,
            "{:?}",
            first.checks
        );
    }
    assert_eq!(
        (first.level, first.is_valid),
        (Level::Failed, false),
        "it names no signer"
    );
    assert_eq!(world.requests("/pccs/").len(), 4);

    // A process later: the cache serves, whatever became of the service.
    *script.lock().unwrap() = Script::default();
    let offers = world.requests("/collateral").len();
    let second = verify(&world, &options).await;
    assert_eq!(
        check(&second, CheckId::QuoteSignature).status,
        CheckStatus::Pass
    );
    assert_eq!(world.requests("/pccs/").len(), 4);
    assert_eq!(world.requests("/collateral").len(), offers);

    // A policy that the cached collateral does not satisfy, or the user's word, sends for new one.
    script.lock().unwrap().serves = true;
    let mut demanding = options.clone();
    demanding.policy.min_tcb_evaluation_number = u32::MAX;
    let report = verify(&world, &demanding).await;
    assert_eq!(world.requests("/pccs/").len(), 8);
    assert_eq!(check(&report, CheckId::TcbStatus).status, CheckStatus::Fail);
    options.collateral.refresh = true;
    verify(&world, &options).await;
    assert_eq!(world.requests("/pccs/").len(), 12);
}

#[tokio::test]
async fn the_providers_own_offer_comes_before_the_services_and_proves_no_less() {
    let (world, _script, options) = start(Script {
        offers: true,
        serves: true,
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let broker = Broker::connect(options.clone()).await.unwrap();
    let report = broker
        .fine_tuning
        .verify_service(world.provider, Some(folder.path()), |_| ())
        .await
        .unwrap();
    assert_eq!(
        check(&report, CheckId::QuoteSignature).status,
        CheckStatus::Pass
    );
    assert!(world.requests("/pccs/").is_empty());

    // What it wrote is enough to repeat the verification with nobody to ask.
    let mut offline = options.clone();
    offline.collateral.file = Some(folder.path().join("fine_tuning_collateral.json"));
    let asked = world.requests("/collateral").len();
    let report = verify(&world, &offline).await;
    assert_eq!(
        check(&report, CheckId::QuoteSignature).status,
        CheckStatus::Pass
    );
    assert_eq!(world.requests("/collateral").len(), asked);
    offline.collateral.file = Some(folder.path().join("fine_tuning_verdict.json"));
    let report = verify(&world, &offline).await;
    let signature = check(&report, CheckId::QuoteSignature);
    assert_eq!(signature.rejection, Some(Rejection::NoCollateral));
    assert!(
        signature.detail.contains("--collateral"),
        "{}",
        signature.detail
    );
}

#[tokio::test]
async fn expired_and_missing_collateral_say_so_and_what_to_do() {
    let (world, script, mut options) = start(Script {
        serves: true,
        ..Script::default()
    })
    .await;
    options.verification_time_s = Some(OVER_S);
    let report = verify(&world, &options).await;
    let signature = check(&report, CheckId::QuoteSignature);
    assert_eq!(
        (signature.status, signature.rejection),
        (CheckStatus::Fail, Some(Rejection::Expired))
    );
    for part in ["expired", "fetched anew", "--collateral"] {
        assert!(
            signature.detail.contains(part),
            "{part}: {}",
            signature.detail
        );
    }

    options.verification_time_s = Some(VALID_S - 100 * 24 * 3600);
    let report = verify(&world, &options).await;
    let rejection = check(&report, CheckId::QuoteSignature).rejection;
    assert_eq!(rejection, Some(Rejection::NotYetValid));

    *script.lock().unwrap() = Script::default();
    let report = verify(&world, &options).await;
    let signature = check(&report, CheckId::QuoteSignature);
    assert_eq!(
        (signature.status, signature.rejection),
        (CheckStatus::Skipped, Some(Rejection::NoCollateral))
    );
    for part in [
        "the provider: it offers none",
        "HTTP 404",
        "--collateral-service",
    ] {
        assert!(
            signature.detail.contains(part),
            "{part}: {}",
            signature.detail
        );
    }
    assert_eq!(
        report.level,
        Level::Failed,
        "unproven signatures are no partial success"
    );

    // Data is sent by the present time, whatever time a verification is repeated for.
    script.lock().unwrap().serves = true;
    options.verification_time_s = Some(VALID_S);
    let broker = Broker::connect(options).await.unwrap();
    let refused = broker
        .fine_tuning
        .require_verified(world.provider, |_| ())
        .await
        .unwrap_err()
        .to_string();
    assert!(
        refused.contains("the collateral must be fetched anew"),
        "{refused}"
    );
}

#[tokio::test]
async fn a_policy_file_decides_what_passes() {
    let (world, _script, mut options) = start(Script {
        serves: true,
        ..Script::default()
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("policy");
    let open = verify(&world, &options).await;
    assert_eq!(check(&open, CheckId::OsImage).status, CheckStatus::Skipped);
    assert!(check(&open, CheckId::OsImage).detail.contains("os_images"));

    let quote = report()["quote"].as_str().unwrap().to_owned();
    let quote = zerog_attestation::TdxQuote::parse_hex(&quote).unwrap();
    let mut image = json!({"name": "the recorded one", "mrtd": hex::encode(quote.mrtd)});
    for (register, value) in quote.rtmr.iter().take(3).enumerate() {
        image[format!("rtmr{register}")] = hex::encode(value).into();
    }
    std::fs::write(&path, json!({"os_images": [image]}).to_string()).unwrap();
    options.policy = zerog_sdk::read_policy(&path).unwrap();
    let known = verify(&world, &options).await;
    assert_eq!(check(&known, CheckId::OsImage).status, CheckStatus::Pass);
    assert_eq!(check(&known, CheckId::OsImage).detail, "the recorded one");

    image["rtmr1"] = "00".repeat(48).into();
    std::fs::write(
        &path,
        json!({
            "os_images": [image],
            "min_tcb_evaluation_number": 4_000_000,
        })
        .to_string(),
    )
    .unwrap();
    options.policy = zerog_sdk::read_policy(&path).unwrap();
    assert_ne!(options.policy, Policy::default());
    let strict = verify(&world, &options).await;
    for (id, part) in [
        (CheckId::OsImage, "no known image"),
        (CheckId::TcbStatus, "too old"),
    ] {
        assert_eq!(check(&strict, id).status, CheckStatus::Fail, "{id}");
        assert!(check(&strict, id).detail.contains(part), "{id}");
    }
    let error = zerog_sdk::read_policy(&folder.path().join("none")).unwrap_err();
    assert_eq!(error.code(), "invalid_argument");
}

/// An old quote, replayed for a new nonce, gets no data; a provider that answers no nonces is served as before.
#[tokio::test]
async fn uploads_send_a_nonce_and_refuse_a_replayed_answer() {
    let world = World::start().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("d.jsonl");
    std::fs::write(
        &path,
        "{\"prompt\":\"a\",\"completion\":\"b\"}\n".repeat(12),
    )
    .unwrap();
    let upload = async || {
        world
            .broker
            .fine_tuning
            .upload_dataset_to_tee(world.provider, &path, &Default::default())
            .await
            .unwrap_err()
    };
    // The scripted provider takes no datasets, so that an accepted quote shows by the refusal that follows.
    let silent = upload().await;
    assert_ne!(silent.code(), "verification_failed", "{silent}");
    let uploads = world.requests("/dataset").len();
    assert_eq!(uploads, 1);
    assert_eq!(world.requests("/v1/quote?nonce=").len(), 1);

    let replayed = Arc::new(Mutex::new(true));
    let (tee, keys, is_old) = (
        Arc::clone(&world.tee),
        world.keys.clone(),
        Arc::clone(&replayed),
    );
    world.answer(move |request| {
        let digits = request.path.strip_prefix("/v1/quote?nonce=")?;
        let mut nonce = [0; 32];
        hex::decode_to_slice(digits, &mut nonce).unwrap();
        if *is_old.lock().unwrap() {
            nonce = [9; 32];
        }
        let data = keys.challenge_report_data(&nonce, None);
        let mut bundle = zerog_attestation::TeeBackend::quote(tee.as_ref(), &data).unwrap();
        bundle.sealing = vec!["v1".into()];
        Some(Response::new(200, bundle.to_json()))
    });
    let refused = upload().await;
    assert_eq!(refused.code(), "verification_failed");
    assert!(
        refused.to_string().contains("does not answer the nonce"),
        "{refused}"
    );
    assert_eq!(
        world.requests("/dataset").len(),
        uploads,
        "nothing was sent"
    );

    *replayed.lock().unwrap() = false;
    let fresh = upload().await;
    assert_ne!(fresh.code(), "verification_failed", "{fresh}");
    assert_eq!(world.requests("/dataset").len(), uploads + 1);
}
