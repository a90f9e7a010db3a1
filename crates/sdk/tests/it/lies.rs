//! Providers that lie: nothing is acknowledged, nothing is paid and no secret leaves on the word of a provider.

use std::io::Cursor;
use std::path::Path;
use std::time::Duration;

use alloy_primitives::{B256, U256, keccak256};
use serde_json::{Value, json};
use zerog_protocol::{FileKey, SecretKey, ecies, sealed_archive, signing};
use zerog_sdk::{CheckId, CheckStatus, DownloadMethod, TaskId};

use crate::support::{Manner, Response, World, og};

fn files(folder: &Path) -> usize {
    std::fs::read_dir(folder).unwrap().count()
}

/// Quotes of other layouts and of other signers: no acknowledgement, no upload, not a single transaction.
#[tokio::test]
async fn a_quote_that_proves_nothing_gets_no_acknowledgement_and_no_data() {
    let world = World::start().await;
    let honest = world.quote();
    let without = |member: &str| {
        let mut quote = honest.clone();
        quote.as_object_mut().unwrap().remove(member);
        quote
    };
    let with = |member: &str, value: Value| {
        let mut quote = honest.clone();
        quote[member] = value;
        quote
    };
    let liars: Vec<(&str, Vec<u8>)> = vec![
        (
            "the layout of October 2025",
            json!({ "quote": honest["quote"], "provider_signer": world.keys.signer_address() }).to_string().into_bytes(),
        ),
        ("no report data", without("report_data").to_string().into_bytes()),
        ("empty report data", with("report_data", "".into()).to_string().into_bytes()),
        ("report data that is no base64", with("report_data", "***".into()).to_string().into_bytes()),
        // T of the published vectors, who is registered nowhere here.
        (
            "another signer",
            with("report_data", "MHg3MDk5Nzk3MEM1MTgxMmRjM0EwMTBDN2QwMWI1MGUwZDE3ZGM3OUM4AAAAAAAAAAAAAAAAAAAAAAAAAAAAAA==".into())
                .to_string()
                .into_bytes(),
        ),
        ("no quote", without("quote").to_string().into_bytes()),
        ("a quote that is a number", with("quote", json!(4)).to_string().into_bytes()),
        ("a quote of zeros", with("quote", "00".repeat(600).into()).to_string().into_bytes()),
        ("an event log that is cut", with("event_log", "[{".into()).to_string().into_bytes()),
        ("null", b"null".to_vec()),
        ("a page", b"<html>ok</html>".to_vec()),
        ("nothing", Vec::new()),
    ];
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("d.jsonl");
    std::fs::write(
        &path,
        "{\"prompt\":\"a\",\"completion\":\"b\"}\n".repeat(12),
    )
    .unwrap();
    // An account that has not acknowledged anybody yet would be created by an acknowledgement.
    let before = (world.transactions().await, world.money().await);
    for (lie, body) in liars {
        world.answer(move |request| {
            request
                .path
                .starts_with("/v1/quote")
                .then(|| Response::new(200, body.clone()))
        });
        let broker = &world.broker;
        let refusals = [
            broker
                .fine_tuning
                .acknowledge_provider_signer(world.provider, |_| ())
                .await
                .err(),
            broker
                .inference
                .acknowledge_provider_signer(world.provider, |_| ())
                .await
                .err(),
            broker
                .fine_tuning
                .upload_dataset_to_tee(world.provider, &path, &Default::default())
                .await
                .err(),
        ];
        for error in refusals {
            let error = error.unwrap_or_else(|| panic!("{lie} is believed"));
            assert!(
                matches!(
                    error.code(),
                    "verification_failed" | "provider_answer_malformed"
                ),
                "{lie}: {error:?}"
            );
        }
        if let Ok(report) = broker
            .fine_tuning
            .verify_service(world.provider, None, |_| ())
            .await
        {
            assert!(!report.is_valid, "{lie}");
        }
    }
    assert_eq!((world.transactions().await, world.money().await), before);
    assert!(world.requests("/dataset").is_empty());
}

/// A broker in front of a model on another machine says so on chain; the verdict repeats it.
#[tokio::test]
async fn a_model_behind_the_enclave_is_an_open_check() {
    let world = World::start().await;
    let model_node = async || {
        let report = world
            .broker
            .inference
            .verify_service(world.provider, None, |_| ())
            .await
            .unwrap();
        let check = report
            .checks
            .iter()
            .find(|check| check.id == CheckId::ModelNode)
            .unwrap();
        assert!(!report.is_valid);
        (check.status, check.detail.clone())
    };
    assert_eq!(model_node().await.0, CheckStatus::Inapplicable);
    let node = "0x2222222222222222222222222222222222222222";
    world
        .describe_inference(
            &json!({ "TargetSeparated": true, "TargetTeeAddress": node }).to_string(),
        )
        .await;
    let (status, detail) = model_node().await;
    assert_eq!(status, CheckStatus::Skipped);
    assert!(detail.contains(node), "{detail}");
}

#[tokio::test]
async fn a_dataset_hash_that_is_not_the_files_is_refused() {
    let world = World::start().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("d.jsonl");
    let text = "{\"prompt\":\"a\",\"completion\":\"b\"}\n".repeat(12);
    std::fs::write(&path, &text).unwrap();
    let storage_root = zerog_storage::merkle::root_of_file(&path)
        .unwrap()
        .to_string();
    let upload = async |answer: Value| {
        world.answer(move |request| {
            request
                .path
                .ends_with("/dataset")
                .then(|| Response::new(200, answer.to_string()))
        });
        let options = Default::default();
        world
            .broker
            .fine_tuning
            .upload_dataset_to_tee(world.provider, &path, &options)
            .await
    };
    for hash in [
        json!(storage_root),
        json!(B256::ZERO),
        json!("0x12"),
        json!(""),
        json!(7),
        Value::Null,
    ] {
        let error = upload(json!({ "datasetHash": hash, "message": "ok" }))
            .await
            .unwrap_err();
        assert_eq!(error.code(), "provider_answer_malformed", "{hash}: {error}");
    }
    let shouted = keccak256(&text)
        .to_string()
        .to_uppercase()
        .replace("0X", "0x");
    upload(json!({ "datasetHash": shouted, "message": "ok" }))
        .await
        .unwrap();
}

/// Downloads that are no adapter: none is kept, none is acknowledged.
#[tokio::test]
async fn a_delivery_that_is_not_the_delivered_file_is_not_acknowledged() {
    let world = World::start().await;
    let file = b"the encrypted adapter".to_vec();
    let hash = keccak256(&file);
    let broker = world.hasty_broker().await;
    let lies = vec![
        Response::new(200, json!({ "file": "dGhl" }).to_string())
            .header("content-type", "application/json"),
        Response::new(200, "<html>not yet</html>").header("content-type", "text/html"),
        Response::new(200, &file[..10]),
        Response::new(200, [file.clone(), b"!".to_vec()].concat()),
        Response::new(200, keccak256(&file).to_vec()),
        // A part that nobody asked for.
        Response::new(206, &file[5..]).header(
            "content-range",
            format!("bytes 5-{}/{}", file.len() - 1, file.len()),
        ),
        Response::new(206, &file[..]),
        Response::new(416, "").header("content-range", format!("bytes */{}", file.len())),
        Response::new(200, ""),
        Response::new(200, &file[..]).sent(Manner::Closed),
        Response::new(200, &file[..]).cut_at(0),
        Response::new(200, &file[..]).sent(Manner::Silent),
        Response::new(
            409,
            r#"{"error":"task is not ready for download. Please wait for 'Delivered' status"}"#,
        ),
        Response::new(403, r#"{"error":"task does not belong to this user"}"#),
    ];
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapter.enc");
    let task = TaskId::random();
    world.deliver(task, hash).await;
    let before = world.transactions().await;
    for lie in lies {
        let shown = format!(
            "{} {:?} {:?}",
            lie.status,
            lie.manner,
            String::from_utf8_lossy(&lie.body)
        );
        world.answer(move |request| request.path.ends_with("/lora").then(|| lie.clone()));
        let result = broker
            .fine_tuning
            .acknowledge_model(world.provider, task, &path, DownloadMethod::Tee, |_| ())
            .await;
        let error = result.expect_err(&shown);
        assert!(
            matches!(
                error.code(),
                "hash_mismatch" | "provider_unreachable" | "provider_refused"
            ),
            "{shown}: {error:?}"
        );
        assert!(!path.exists(), "{shown}");
        let _ = std::fs::remove_file(folder.path().join("adapter.enc.partial"));
    }
    assert_eq!(files(folder.path()), 0);
    assert_eq!(world.transactions().await, before);
    assert!(!world.is_acknowledged(task).await);
    // The true file, by its Keccak hash as of a provider whose storage was down, is taken.
    world.answer(move |request| {
        request
            .path
            .ends_with("/lora")
            .then(|| Response::new(200, &file[..]))
    });
    let fine_tuning = &broker.fine_tuning;
    fine_tuning
        .acknowledge_model(world.provider, task, &path, DownloadMethod::Tee, |_| ())
        .await
        .unwrap();
    assert!(world.is_acknowledged(task).await);
}

#[tokio::test]
async fn a_hash_of_zeros_on_chain_is_no_hash() {
    let world = World::start().await;
    let (task, folder) = (TaskId::random(), tempfile::tempdir().unwrap());
    world.deliver(task, B256::ZERO).await;
    world.answer(|request| {
        request
            .path
            .ends_with("/lora")
            .then(|| Response::new(200, "anything"))
    });
    let path = folder.path().join("adapter.enc");
    let fine_tuning = &world.broker.fine_tuning;
    let error = fine_tuning
        .acknowledge_model(world.provider, task, &path, DownloadMethod::Auto, |_| ())
        .await
        .unwrap_err();
    assert_eq!(error.code(), "provider_answer_malformed");
    assert!(!world.is_acknowledged(task).await && world.requests("/lora").is_empty());
}

fn archive(key: &FileKey, signer: &SecretKey, v: u8) -> Vec<u8> {
    let mut sealed = Cursor::new(Vec::new());
    sealed_archive::encrypt(&mut &b"PK the adapter"[..], &mut sealed, key, signer).unwrap();
    let mut sealed = sealed.into_inner();
    // The last byte of the signature in front: 0 or 1 as the original writes it, 27 or 28 as others do.
    sealed[64] = sealed[64] % 27 + v;
    sealed
}

/// Both spellings of `v` open; another signer's file, another user's key and damaged keys leave no output.
#[tokio::test]
async fn only_the_enclaves_own_archive_is_decrypted() {
    let world = World::start().await;
    let key = FileKey::random();
    let stranger = SecretKey::random();
    let good = |v| archive(&key, &world.keys.signer, v);
    let for_user = ecies::seal(&world.user.public_key(), key.expose_bytes()).unwrap();
    let for_stranger = ecies::seal(&stranger.public_key(), key.expose_bytes()).unwrap();
    let short = ecies::seal(&world.user.public_key(), &[7; 31]).unwrap();
    let other_key = ecies::seal(&world.user.public_key(), &[7; 32]).unwrap();
    let mut damaged = for_user.clone();
    damaged[100] ^= 1;
    let cases: Vec<(&str, Vec<u8>, Vec<u8>, bool)> = vec![
        ("v of 0 or 1", good(0), for_user.clone(), true),
        ("v of 27 or 28", good(27), for_user.clone(), true),
        ("v of 2 or 3", good(2), for_user.clone(), false),
        (
            "another signer",
            archive(&key, &stranger, 0),
            for_user.clone(),
            false,
        ),
        ("a key for somebody else", good(0), for_stranger, false),
        ("a damaged key", good(0), damaged, false),
        ("a key of 31 bytes", good(0), short, false),
        ("another key", good(0), other_key, false),
        (
            "a key in clear",
            good(0),
            key.expose_bytes().to_vec(),
            false,
        ),
    ];
    for (number, (case, sealed, secret, opens)) in (1..).zip(cases) {
        let (task, folder) = (TaskId::random(), tempfile::tempdir().unwrap());
        let (encrypted, output) = (
            folder.path().join("adapter.enc"),
            folder.path().join("adapter.zip"),
        );
        std::fs::write(&encrypted, &sealed).unwrap();
        let hash = keccak256(&sealed);
        world.deliver(task, hash).await;
        let fine_tuning = &world.broker.fine_tuning;
        fine_tuning
            .acknowledge_deliverable(world.provider, task)
            .await
            .unwrap();
        world.settle_with_nonce(task, hash, secret, number).await;
        let result = fine_tuning
            .decrypt_model(
                world.provider,
                task,
                &encrypted,
                &output,
                Duration::ZERO,
                |_| (),
            )
            .await;
        if opens {
            result.unwrap_or_else(|error| panic!("{case}: {error}"));
            assert_eq!(std::fs::read(&output).unwrap(), b"PK the adapter");
        } else {
            let error = result.expect_err(case);
            assert_eq!(error.code(), "archive_unreadable", "{case}: {error:?}");
            assert_eq!(files(folder.path()), 1, "{case}");
        }
    }
}

/// What a provider claims to be owed is believed as far as the sub-account goes.
#[tokio::test]
async fn a_claim_of_unsettled_fees_moves_no_more_than_the_reserve() {
    let world = World::start().await;
    let inference = &world.broker.inference;
    inference.prepare_account(world.provider).await.unwrap();
    let before = world.money().await;
    assert_eq!(before.2, og(2));
    let claims = [
        json!({ "userAddress": "0x", "unsettledFee": og(40).to_string() }).to_string(),
        json!({ "userAddress": "0x", "unsettledFee": (og(2) + U256::from(1)).to_string() })
            .to_string(),
        json!({ "userAddress": "0x", "unsettledFee": U256::MAX.to_string() }).to_string(),
        json!({ "userAddress": "0x", "unsettledFee": "-5" }).to_string(),
        json!({ "userAddress": "0x", "unsettledFee": 40e18 }).to_string(),
        json!({ "userAddress": "0x", "unsettledFee": "0x22b1c8c1227a00000" }).to_string(),
        json!({ "unsettledFee": null }).to_string(),
        "40000000000000000000".to_owned(),
        String::new(),
    ];
    for claim in claims {
        let shown = claim.clone();
        world.answer(move |request| {
            request
                .path
                .ends_with("/unsettledfee")
                .then(|| Response::new(200, claim.clone()))
        });
        let funding = inference.prepare_account(world.provider).await.unwrap();
        // 0x22b1… is 40 0G in hexadecimal, which a lenient parser believes.
        assert_eq!(funding.transferred, U256::ZERO, "{shown}");
        assert_eq!(world.money().await, before, "{shown}");
    }
    // An honest claim is covered.
    world.answer(|request| {
        let body = json!({ "userAddress": "0x", "unsettledFee": og(1).to_string() }).to_string();
        request
            .path
            .ends_with("/unsettledfee")
            .then(|| Response::new(200, body))
    });
    let funding = inference.prepare_account(world.provider).await.unwrap();
    assert_eq!(funding.transferred, og(1));
}

#[tokio::test]
async fn an_answer_is_proven_by_the_registered_signer_over_the_true_bytes_or_not_at_all() {
    let world = World::start().await;
    let reply = json!({ "id": "chatcmpl-1", "choices": [{ "message": { "content": "yes" } }], "usage": "plenty" });
    let body = reply.to_string();
    let chat = body.clone();
    world.answer(move |request| {
        request
            .path
            .ends_with("/chat/completions")
            .then(|| Response::new(200, chat.as_str()))
    });
    let lora = &world.broker.inference.lora;
    let answer = lora
        .chat(world.provider, "ft-x", "Yes?", None)
        .await
        .unwrap();
    assert_eq!((answer.content(), answer.usage()), (Some("yes"), None));
    let true_text = signing::response_text(
        signing::sha256(&answer.request_body),
        signing::sha256(body.as_bytes()),
    );
    let other_text = signing::response_text([1; 32], [2; 32]);
    let (signer, stranger) = (world.keys.signer.clone(), SecretKey::random());
    let proof = |text: &str, key: &SecretKey| {
        json!({
            "text": text, "signature": signing::sign_response_text(key, text),
            "signing_address": world.keys.signer_address(), "signing_algo": "ecdsa",
        })
    };
    let mut unsigned = proof(&true_text, &signer);
    unsigned["signature"] = "0x".into();
    let mut bare = proof(&true_text, &signer);
    bare.as_object_mut().unwrap().remove("text");
    let lies = [
        Response::new(200, proof(&true_text, &stranger).to_string()),
        Response::new(200, proof(&other_text, &signer).to_string()),
        Response::new(200, proof(&true_text.to_uppercase(), &signer).to_string()),
        Response::new(200, unsigned.to_string()),
        Response::new(200, bare.to_string()),
        Response::new(200, "true"),
        Response::new(
            400,
            r#"{"error":"Chat id not found or expired, chat_id_not_found"}"#,
        ),
        Response::new(404, "404 page not found"),
    ];
    for lie in lies {
        let shown = String::from_utf8_lossy(&lie.body).into_owned();
        world.answer(move |request| request.path.contains("/signature/").then(|| lie.clone()));
        let error = lora
            .verify_answer(world.provider, &answer)
            .await
            .expect_err(&shown);
        assert!(
            matches!(
                error.code(),
                "response_not_proven" | "provider_answer_malformed"
            ),
            "{shown}: {error:?}"
        );
    }
    let honest = proof(&true_text, &signer).to_string();
    world.answer(move |request| {
        request
            .path
            .contains("/signature/")
            .then(|| Response::new(200, honest.clone()))
    });
    lora.verify_answer(world.provider, &answer).await.unwrap();
}

/// Replies to a chat that are none, and a token that is never good enough.
#[tokio::test]
async fn a_chat_reply_without_an_answer_is_an_error() {
    let world = World::start().await;
    let chat = async |response: Response| {
        world.answer(move |request| {
            request
                .path
                .ends_with("/chat/completions")
                .then(|| response.clone())
        });
        world
            .broker
            .inference
            .lora
            .chat(world.provider, "ft-x", "Yes?", None)
            .await
    };
    let replies = [
        Response::new(
            202,
            r#"{"error":"Model is being loaded from cold storage","status":"loading","model":"ft-x"}"#,
        ),
        Response::new(200, "{}"),
        Response::new(200, r#"{"choices":[]}"#),
        Response::new(200, r#"{"choices":null}"#),
        Response::new(200, "data: {\"choices\":[]}\n\n"),
        Response::new(200, ""),
    ];
    for reply in replies {
        let shown = String::from_utf8_lossy(&reply.body).into_owned();
        let error = chat(reply).await.expect_err(&shown);
        assert_eq!(
            error.code(),
            "provider_answer_malformed",
            "{shown}: {error:?}"
        );
    }
    let asked = world.requests("/chat/completions").len();
    let refusal = r#"{"error":"session token has been revoked (generation expired)"}"#;
    let error = chat(Response::new(401, refusal)).await.unwrap_err();
    assert!(error.to_string().contains("revoked"), "{error}");
    assert_eq!(
        world.requests("/chat/completions").len(),
        asked + 2,
        "one fresh token"
    );
    // The original says 400 to everything; its text is what the user sees.
    let refusal = r#"{"error":"insufficient balance: your locked balance is 0.5 0G, but the required minimum is 1 0G"}"#;
    let error = chat(Response::new(400, refusal)).await.unwrap_err();
    assert!(
        error.to_string().contains("required minimum is 1 0G"),
        "{error}"
    );
}
