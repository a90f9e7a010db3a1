//! Datasets are checked, sealed, and sent only to verified enclaves.

use std::sync::{Arc, Mutex};

use alloy_primitives::{B256, keccak256};
use serde_json::json;
use zerog_protocol::seal::{SealContext, SealPurpose, open_key};
use zerog_protocol::sealed_archive;
use zerog_sdk::{Error, Level, Progress, UploadOptions};

use crate::support::{Manner, Request, Response, World};

const RECORD: &str = "{\"prompt\":\"What is the marker?\",\"completion\":\"marker-4711\"}\n";

fn dataset() -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data.jsonl");
    std::fs::write(&path, RECORD.repeat(20)).unwrap();
    (folder, path)
}

/// The content of a multipart field.
fn field(request: &Request, name: &str) -> Vec<u8> {
    let boundary = request
        .headers
        .split("boundary=")
        .nth(1)
        .unwrap()
        .lines()
        .next()
        .unwrap()
        .trim()
        .to_owned();
    // Header text was lowered; boundaries of this client are lower-case hexadecimal already.
    let marker = format!("--{boundary}");
    let mut rest = request.body.as_slice();
    while let Some(start) = find(rest, marker.as_bytes()) {
        rest = &rest[start + marker.len()..];
        let end = find(rest, marker.as_bytes()).unwrap_or(rest.len());
        let part = &rest[..end];
        let Some(head_end) = find(part, b"\r\n\r\n") else {
            break;
        };
        if String::from_utf8_lossy(&part[..head_end]).contains(&format!("name=\"{name}\"")) {
            return part[head_end + 4..part.len() - 2].to_vec();
        }
    }
    panic!("no field {name}");
}

fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    text.windows(wanted.len())
        .position(|window| window == wanted)
}

fn accept(request: &Request) -> Option<Response> {
    request.path.ends_with("/dataset").then(|| {
        let hash = keccak256(RECORD.repeat(20));
        Response::new(
            200,
            json!({ "datasetHash": hash, "message": "Dataset uploaded successfully." }).to_string(),
        )
    })
}

/// What the enclave reads in a sealed file that came with `form`.
fn opened(world: &World, form: &Request, hash: B256, file: &[u8]) -> Vec<u8> {
    let sealed_key = String::from_utf8(field(form, "sealedKey")).unwrap();
    let (user, id) = (world.user.address(), hash.to_string());
    let context = SealContext {
        chain_id: 31337,
        provider: world.provider,
        user,
        purpose: SealPurpose::Dataset,
        id: &id,
    };
    let key = open_key(world.keys.sealing.expose_secret(), &context, &sealed_key).unwrap();
    let mut plain = Vec::new();
    sealed_archive::decrypt_signed_by(&mut &file[..], &mut plain, &key, user).unwrap();
    plain
}

#[tokio::test]
async fn a_dataset_travels_sealed_and_opens_in_the_enclave_alone() {
    let world = World::start().await;
    let (_folder, path) = dataset();
    world.answer(accept);
    let uploaded = world
        .broker
        .fine_tuning
        .upload_dataset_to_tee(world.provider, &path, &Default::default())
        .await
        .unwrap();
    assert!(uploaded.sealed);
    let hash = keccak256(RECORD.repeat(20));
    assert_eq!(uploaded.dataset_hash, hash.to_string());

    let request = world.requests("/dataset").remove(0);
    assert!(
        find(&request.body, b"marker-4711").is_none(),
        "the plaintext is not on the wire"
    );
    assert_eq!(field(&request, "sealVersion"), b"1");
    assert_eq!(field(&request, "datasetHash"), hash.to_string().as_bytes());
    let plain = opened(&world, &request, hash, &field(&request, "file"));
    assert_eq!(plain, RECORD.repeat(20).as_bytes());
    let signature = String::from_utf8(field(&request, "signature")).unwrap();
    let timestamp: u64 = String::from_utf8(field(&request, "timestamp"))
        .unwrap()
        .parse()
        .unwrap();
    let user = world.user.address();
    zerog_protocol::signing::verify_dataset_upload(&user.to_string(), timestamp, &signature, user)
        .unwrap();
}

/// A large file goes in parts: a lost connection, a server that begins anew and a lost answer cost one part each.
#[tokio::test]
async fn an_interrupted_upload_goes_on_where_it_was() {
    let world = World::start().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.jsonl");
    let record = format!(
        "{{\"prompt\":\"marker-4711\",\"completion\":\"{}\"}}\n",
        "x".repeat(64 * 1024)
    );
    let content = record.repeat(150);
    std::fs::write(&path, &content).unwrap();
    let hash = keccak256(&content);
    let kept = Arc::new(Mutex::new(Vec::new()));
    let (file, mut parts, mut ends) = (Arc::clone(&kept), 0, 0);
    world.answer(move |request| {
        let mut file = file.lock().unwrap();
        if request.path.contains("/dataset/parts/") {
            let offset: usize = request.path.split("offset=").nth(1)?.parse().ok()?;
            parts += 1;
            if parts == 3 {
                // Restarted: what it had is gone.
                file.clear();
            }
            if offset == file.len() {
                file.extend_from_slice(&request.body);
            }
            let answer = Response::new(200, json!({ "offset": file.len() }).to_string());
            let is_lost = parts == 2;
            return Some(if is_lost {
                answer.sent(Manner::Closed)
            } else {
                answer
            });
        }
        if request.path.ends_with("/dataset") {
            ends += 1;
            let answer = json!({ "datasetHash": hash, "message": "" }).to_string();
            let answer = Response::new(200, answer);
            return Some(if ends == 1 {
                answer.sent(Manner::Closed)
            } else {
                answer
            });
        }
        None
    });
    let mut news = Vec::new();
    let uploaded = world
        .broker
        .fine_tuning
        .upload_dataset_to_tee_with(world.provider, &path, &Default::default(), |event| {
            news.push(event);
        })
        .await
        .unwrap();
    assert!(uploaded.sealed);

    let form = world.requests("/dataset").pop().unwrap();
    let file = kept.lock().unwrap().clone();
    let plain = opened(&world, &form, hash, &file);
    assert!(plain == content.as_bytes());
    let id = String::from_utf8(field(&form, "uploadId")).unwrap();
    let parts = world.requests("/dataset/parts/");
    assert!(
        parts
            .iter()
            .all(|part| part.path.contains(&id) && part.headers.contains("zg-signature: 0x"))
    );
    // One, one whose answer was lost, one after the restart, and all three once more.
    assert_eq!(
        parts.len(),
        6,
        "{:?}",
        parts.iter().map(|part| &part.path).collect::<Vec<_>>()
    );
    let interruptions = news
        .iter()
        .filter(
            |event| matches!(event, Progress::Notice { text } if text.contains("was interrupted")),
        )
        .count();
    assert_eq!(interruptions, 2, "{news:?}");
    let total = file.len() as u64;
    assert!(news.contains(&Progress::Transfer {
        done_bytes: total,
        total_bytes: Some(total)
    }));
}

/// A provider that knows no parts gets the file in one form.
#[tokio::test]
async fn a_large_dataset_goes_in_one_form_where_parts_are_unknown() {
    let world = World::start().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.jsonl");
    let record = format!(
        "{{\"prompt\":\"a\",\"completion\":\"{}\"}}\n",
        "x".repeat(64 * 1024)
    );
    std::fs::write(&path, record.repeat(80)).unwrap();
    let hash = keccak256(record.repeat(80));
    world.answer(move |request| {
        let answer = json!({ "datasetHash": hash, "message": "" }).to_string();
        request
            .path
            .ends_with("/dataset")
            .then(|| Response::new(200, answer))
    });
    let uploaded = world
        .broker
        .fine_tuning
        .upload_dataset_to_tee(world.provider, &path, &Default::default())
        .await
        .unwrap();
    assert!(uploaded.sealed);
    assert_eq!(world.requests("/dataset/parts/").len(), 1);
    let form = world.requests("/dataset").pop().unwrap();
    assert!(field(&form, "file").len() > record.len() * 80);
}

#[tokio::test]
async fn plain_is_an_explicit_choice() {
    let world = World::start().await;
    let (_folder, path) = dataset();
    world.answer(accept);
    let plain = UploadOptions { plain: true };
    let uploaded = world
        .broker
        .fine_tuning
        .upload_dataset_to_tee(world.provider, &path, &plain)
        .await
        .unwrap();
    assert!(!uploaded.sealed);
    assert_eq!(
        field(&world.requests("/dataset")[0], "file"),
        RECORD.repeat(20).as_bytes()
    );
}

#[tokio::test]
async fn a_simulated_enclave_gets_nothing_outside_the_devnet() {
    let world = World::start().await;
    let (_folder, path) = dataset();
    world.answer(accept);
    let broker = world.strict_broker().await;
    for options in [UploadOptions::default(), UploadOptions { plain: true }] {
        let error = broker
            .fine_tuning
            .upload_dataset_to_tee(world.provider, &path, &options)
            .await
            .unwrap_err();
        assert!(matches!(error, Error::VerificationFailed { .. }), "{error}");
    }
    assert!(world.requests("/dataset").is_empty());
    let error = broker
        .fine_tuning
        .acknowledge_provider_signer(world.provider, |_| ())
        .await
        .unwrap_err();
    assert_eq!(error.code(), "verification_failed");
}

#[tokio::test]
async fn a_signer_that_is_not_registered_gets_nothing() {
    let world = World::start().await;
    let (_folder, path) = dataset();
    let other = zerog_attestation::EnclaveKeys::derive(&zerog_attestation::Simulated::new(
        zerog_attestation::SimulatedOptions::new([8; 32]),
    ))
    .unwrap();
    let (tee, report_data) = (
        std::sync::Arc::clone(&world.tee),
        other.structured_report_data(),
    );
    world.answer(move |request| {
        use zerog_attestation::TeeBackend;
        request
            .path
            .starts_with("/v1/quote")
            .then(|| Response::new(200, tee.quote(&report_data).unwrap().to_json()))
            .or_else(|| accept(request))
    });
    let upload = world
        .broker
        .fine_tuning
        .upload_dataset_to_tee(world.provider, &path, &Default::default())
        .await;
    let error = upload.unwrap_err();
    assert!(error.to_string().contains("FAILED"), "{error}");
    assert!(world.requests("/dataset").is_empty());
}

#[tokio::test]
async fn bad_datasets_are_refused_before_anything_is_sent() {
    let world = World::start().await;
    let (folder, _) = dataset();
    let path = folder.path().join("bad.jsonl");
    std::fs::write(&path, format!("{RECORD}{{\"prompt\": 5}}\n")).unwrap();
    let upload = world
        .broker
        .fine_tuning
        .upload_dataset_to_tee(world.provider, &path, &Default::default())
        .await;
    let error = upload.unwrap_err();
    assert_eq!(error.code(), "invalid_dataset");
    assert!(error.to_string().contains('2'), "{error}");
    assert!(world.requests("").is_empty());
}

#[tokio::test]
async fn verification_is_honest_about_simulation_and_keeps_the_report() {
    let world = World::start().await;
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("new/reports");
    let mut lines = 0;
    let report = world
        .broker
        .fine_tuning
        .verify_service(world.provider, Some(&output), |_| lines += 1)
        .await
        .unwrap();
    assert_eq!(
        (report.level, report.is_valid, report.signer_match),
        (Level::Simulated, false, true)
    );
    assert_eq!(report.compose_hash_match, Some(true));
    assert_eq!(
        (lines, report.steps.is_empty()),
        (report.steps.len(), false)
    );
    let kept = std::fs::read(output.join("fine_tuning_attestation_report.json")).unwrap();
    assert!(
        serde_json::from_slice::<serde_json::Value>(&kept)
            .unwrap()
            .get("quote")
            .is_some()
    );
    assert_ne!(report.expected_signer, zerog_sdk::Address::ZERO);
    assert_ne!(keccak256(kept), B256::ZERO);
}
