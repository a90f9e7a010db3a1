//! A wallet that signs and does nothing else: what it is asked, what happens when it does not sign, and that no model is
//! ever made that it cannot open.

use std::io::Cursor;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use alloy_primitives::keccak256;
use serde_json::{Value, json};
use zerog_attestation::TeeBackend as _;
use zerog_protocol::recipient::{self, RecipientKeyError, TaskBinding};
use zerog_protocol::{FileKey, SecretKey, ecies, sealed_archive, signing};
use zerog_sdk::{
    Broker, Category, CreateTask, DownloadMethod, Error, SigningError, TaskId, UploadOptions,
};

use crate::device_signer::{Device, Manner, Prompt};
use crate::support::{Request, Response, World, og};

const CHAIN_ID: u64 = 31337;

/// The world's user with the key on a device.
async fn start() -> (World, Device, Broker) {
    let world = World::start().await;
    let device = Device::new(&world.user);
    let broker = Broker::connect(world.options().with_wallet(device.wallet()))
        .await
        .unwrap();
    (world, device, broker)
}

/// Quotes with everything that a provider of ours announces, and whatever `script` says besides.
fn announce(world: &World, mut script: impl FnMut(&Request) -> Option<Response> + Send + 'static) {
    let (tee, data) = (Arc::clone(&world.tee), world.keys.structured_report_data());
    world.answer(move |request| {
        if request.path == "/v1/quote?legacy=false" {
            return Some(Response::new(200, tee.quote(&data).unwrap().to_json()));
        }
        script(request)
    });
}

fn new_task(world: &World) -> CreateTask {
    CreateTask {
        provider: world.provider,
        model: "Qwen2.5-0.5B-Instruct".into(),
        dataset_hash: format!("0x{}", "ab".repeat(32)),
        training_params: r#"{"num_train_epochs": 1}"#.into(),
        queue: true,
        max_fee: None,
    }
}

/// The user's key for models of the world's provider, made as another program would make it.
fn recipient_key(world: &World) -> SecretKey {
    let message = recipient::seed_message(CHAIN_ID, world.provider, world.user.address());
    let digest = alloy_primitives::eip191_hash_message(message);
    recipient::derive(&world.user.sign_digest(digest))
}

fn task_json(world: &World, id: TaskId, recipient: Value) -> Value {
    let mut task = json!({
        "id": id.to_string(), "createdAt": null, "updatedAt": null,
        "userAddress": world.user.address().to_string(), "preTrainedModelHash": "0x", "datasetHash": "0x",
        "trainingParams": "{}", "fee": "0", "nonce": "1", "signature": "0x", "progress": "Init",
    });
    if !recipient.is_null() {
        task["recipient"] = recipient;
    }
    task
}

fn confirmation(world: &World, id: TaskId, key: &SecretKey, signer: &SecretKey) -> Value {
    let (user, public_key) = (world.user.address(), key.public_key());
    let hash = recipient::confirmation_hash(CHAIN_ID, world.provider, user, id, &public_key);
    json!({
        "key": recipient::public_key_text(&public_key),
        "signature": signing::sign_personal(signer, hash),
    })
}

fn posts(world: &World, part: &str) -> Vec<Request> {
    let mut requests = world.requests(part);
    requests.retain(|request| request.method == "POST");
    requests
}

#[tokio::test]
async fn one_confirmation_sends_one_transaction_and_none_sends_none() {
    let (world, device, broker) = start().await;
    let sent = world.transactions().await;
    broker.ledger.deposit_fund(og(1)).await.unwrap();
    assert_eq!(device.prompts(), [Prompt::Transaction]);
    assert_eq!(world.transactions().await, sent + 1);

    device.now(Manner::Refuses);
    let error = broker.ledger.deposit_fund(og(1)).await.unwrap_err();
    assert_eq!(
        (error.code(), error.category()),
        ("signing_refused", Category::Authentication)
    );
    assert!(
        error.to_string().contains("0x6985") && error.to_string().contains("Unlock the device"),
        "{error}"
    );

    device.now(Manner::MixesUp);
    let error = broker.ledger.deposit_fund(og(1)).await.unwrap_err();
    assert!(
        matches!(&error, Error::Signing(SigningError::WrongSignature { expected, found: Some(_), .. }) if *expected == world.user.address()),
        "{error:?}"
    );
    assert_eq!(error.code(), "wrong_signature");

    device.now(Manner::Waits);
    let hasty = device
        .wallet()
        .with_confirmation_timeout(Duration::from_millis(50));
    let hasty = Broker::connect(world.options().with_wallet(hasty))
        .await
        .unwrap();
    let error = hasty.ledger.deposit_fund(og(1)).await.unwrap_err();
    assert_eq!(
        (error.code(), error.category()),
        ("signing_timeout", Category::Timeout)
    );
    assert_eq!(device.prompts().len(), 3, "nothing is asked twice");
    assert_eq!(
        world.transactions().await,
        sent + 1,
        "nothing was sent, and the nonce is free again"
    );
    for manner in [Manner::Confirms, Manner::SignsHigh] {
        device.now(manner);
        broker.ledger.deposit_fund(og(1)).await.unwrap();
    }
    assert_eq!(world.transactions().await, sent + 3);
}

#[tokio::test]
async fn requests_are_signed_as_with_a_key_in_a_file_and_wrong_signatures_are_not_sent() {
    let (world, device, broker) = start().await;
    let id = TaskId::random();
    world
        .answer(|request| (request.method == "POST").then(|| Response::new(200, "task cancelled")));
    for manner in [Manner::MixesUp, Manner::Refuses] {
        device.now(manner);
        broker
            .fine_tuning
            .cancel_task(world.provider, id)
            .await
            .unwrap_err();
        assert!(posts(&world, "/cancel").is_empty(), "{manner:?}");
    }
    device.now(Manner::Confirms);
    for broker in [&broker, &world.broker] {
        broker
            .fine_tuning
            .cancel_task(world.provider, id)
            .await
            .unwrap();
    }
    let [by_device, by_key] = &posts(&world, "/cancel")[..] else {
        panic!("two were sent")
    };
    assert_eq!(by_device.body, by_key.body);
    // One access token is enough for many requests.
    device.prompts();
    let headers = || broker.inference.lora.list_adapters(world.provider);
    world.answer(|request| {
        request
            .path
            .ends_with("/adapters")
            .then(|| Response::new(200, r#"{"adapters":[]}"#))
    });
    for _ in 0..3 {
        headers().await.unwrap();
    }
    assert_eq!(device.prompts().len(), 1);
}

#[tokio::test]
async fn a_provider_without_recipient_keys_is_refused_before_anything_is_signed_or_paid() {
    let (world, device, broker) = start().await;
    world.answer(|_| None);
    let (sent, money) = (world.transactions().await, world.money().await);
    let error = broker
        .fine_tuning
        .create_task(&new_task(&world))
        .await
        .unwrap_err();
    assert_eq!(error.code(), "model_not_openable");
    assert!(
        error.to_string().contains("recipient keys")
            && error.to_string().contains("Choose a provider"),
        "{error}"
    );
    assert!(device.prompts().is_empty());
    assert!(posts(&world, "/task").is_empty());
    assert_eq!(
        (world.transactions().await, world.money().await),
        (sent, money)
    );
    // Nor does a dataset go there that nobody would train on.
    let folder = tempfile::tempdir().unwrap();
    let dataset = folder.path().join("d.jsonl");
    std::fs::write(&dataset, "{\"prompt\":\"a\",\"completion\":\"b\"}\n").unwrap();
    let error = broker
        .fine_tuning
        .upload_dataset_to_tee(world.provider, &dataset, &UploadOptions::default())
        .await
        .unwrap_err();
    assert_eq!(error.code(), "sealing_unsupported");
    assert!(posts(&world, "/dataset").is_empty());
}

#[tokio::test]
async fn a_wallet_whose_signatures_differ_is_refused() {
    let (world, device, broker) = start().await;
    announce(&world, |_| None);
    device.now(Manner::Varies);
    let error = broker
        .fine_tuning
        .create_task(&new_task(&world))
        .await
        .unwrap_err();
    assert_eq!(error.code(), "signatures_differ", "{error}");
    assert!(error.to_string().contains("RFC 6979"), "{error}");
    assert!(posts(&world, "/task").is_empty());
    // A refusal is not remembered as a key.
    device.now(Manner::Refuses);
    let error = broker.fine_tuning.create_task(&new_task(&world)).await;
    assert_eq!(error.unwrap_err().code(), "signing_refused");
}

#[tokio::test]
async fn a_task_names_the_key_and_counts_only_when_the_enclave_confirms_it() {
    let (world, device, broker) = start().await;
    let (id, key) = (TaskId::random(), recipient_key(&world));
    let shown = Arc::new(Mutex::new(Value::Null));
    let task = {
        let (user, shown) = (world.user.address(), Arc::clone(&shown));
        let blank = task_json(&world, id, Value::Null);
        move |request: &Request| {
            let path = request.path.as_str();
            if request.method == "POST" && path.ends_with("/task") {
                return Some(Response::new(201, json!({"id": id}).to_string()));
            }
            if request.method == "POST" && path.ends_with("/cancel") {
                return Some(Response::new(200, "cancelled"));
            }
            (path == format!("/v1/user/{user}/task/{id}")).then(|| {
                let mut task = blank.clone();
                task["recipient"] = shown.lock().unwrap().clone();
                Response::new(200, task.to_string())
            })
        }
    };
    announce(&world, task);
    let foreign = SecretKey::random();
    // Removed on its way, exchanged on its way, and not confirmed by the enclave.
    for (recipient, words) in [
        (Value::Null, "sealed to the wallet itself"),
        (
            confirmation(&world, id, &foreign, &world.keys.signer),
            "does not have",
        ),
        (
            confirmation(&world, id, &key, &foreign),
            "not the enclave's",
        ),
        (
            confirmation(&world, TaskId::random(), &key, &world.keys.signer),
            "not the enclave's",
        ),
    ] {
        *shown.lock().unwrap() = recipient;
        let cancelled = posts(&world, "/cancel").len();
        let created = broker.fine_tuning.create_task(&new_task(&world)).await;
        let error = created.unwrap_err();
        assert_eq!(error.code(), "model_not_openable", "{error}");
        assert!(error.to_string().contains(words), "{error}");
        assert!(error.to_string().contains("was cancelled"), "{error}");
        assert_eq!(posts(&world, "/cancel").len(), cancelled + 1);
    }
    device.prompts();
    *shown.lock().unwrap() = confirmation(&world, id, &key, &world.keys.signer);
    let created = broker.fine_tuning.create_task(&new_task(&world)).await;
    assert_eq!(created.unwrap(), id);
    assert_eq!(
        device.prompts().len(),
        2,
        "the key is derived once; binding and task are signed each time"
    );
    let sent = posts(&world, "/task").pop().unwrap();
    let sent: Value = serde_json::from_slice(&sent.body).unwrap();
    let text = |name: &str| sent[name].as_str().unwrap();
    let binding = TaskBinding {
        chain_id: CHAIN_ID,
        provider: world.provider,
        user: world.user.address(),
        nonce: text("nonce").parse().unwrap(),
        dataset_hash: text("datasetHash"),
        model_hash: text("preTrainedModelHash"),
        training_params: text("trainingParams"),
    };
    let recipient = &sent["recipient"];
    let public_key = recipient::parse_public_key(recipient["key"].as_str().unwrap());
    assert_eq!(public_key, Ok::<_, RecipientKeyError>(key.public_key()));
    signing::verify_personal(
        binding.hash(&key.public_key()),
        recipient["signature"].as_str().unwrap(),
        world.user.address(),
    )
    .unwrap();

    // With a key in a file nothing of this is sent, wherever the provider stands.
    world
        .broker
        .fine_tuning
        .create_task(&new_task(&world))
        .await
        .unwrap();
    let sent = posts(&world, "/task").pop().unwrap();
    let sent: Value = serde_json::from_slice(&sent.body).unwrap();
    assert!(sent.get("recipient").is_none());
}

#[tokio::test]
async fn a_model_is_acknowledged_only_when_it_can_be_opened_and_opens_on_device_and_in_a_file() {
    let (world, _, broker) = start().await;
    let (id, key) = (TaskId::random(), recipient_key(&world));
    let folder = tempfile::tempdir().unwrap();
    let file_key = FileKey::random();
    let mut sealed = Cursor::new(Vec::new());
    let plaintext = &b"PK the adapter"[..];
    sealed_archive::encrypt(&mut &*plaintext, &mut sealed, &file_key, &world.keys.signer).unwrap();
    let sealed = sealed.into_inner();
    let hash = keccak256(&sealed);
    world.deliver(id, hash).await;
    let encrypted = folder.path().join("adapter.enc");
    let acknowledge = || {
        broker.fine_tuning.acknowledge_model(
            world.provider,
            id,
            &encrypted,
            DownloadMethod::Tee,
            |_| (),
        )
    };
    let serve = |recipient: Value| {
        let (task, served) = (task_json(&world, id, recipient), sealed.clone());
        world.answer(move |request| {
            let path = request.path.as_str();
            if path.ends_with("/lora") {
                return Some(Response::ranged(request, &served));
            }
            path.ends_with(&id.to_string())
                .then(|| Response::new(200, task.to_string()))
        });
    };
    serve(Value::Null);
    let error = acknowledge().await.unwrap_err();
    assert_eq!(error.code(), "model_not_openable", "{error}");
    assert!(!world.is_acknowledged(id).await && !encrypted.exists());
    serve(confirmation(&world, id, &key, &world.keys.signer));
    acknowledge().await.unwrap();
    assert!(world.is_acknowledged(id).await);

    let secret = ecies::seal(&key.public_key(), file_key.expose_bytes()).unwrap();
    world.settle(id, hash, secret).await;
    // A new process, which derives the key anew; then the same account with its key in a file.
    let device = Device::new(&world.user);
    let anew = Broker::connect(world.options().with_wallet(device.wallet()))
        .await
        .unwrap();
    for (name, broker) in [("device.zip", &anew), ("file.zip", &world.broker)] {
        let output = folder.path().join(name);
        let patience = Duration::from_secs(5);
        broker
            .fine_tuning
            .decrypt_model(world.provider, id, &encrypted, &output, patience, |_| ())
            .await
            .unwrap();
        assert_eq!(std::fs::read(&output).unwrap(), plaintext, "{name}");
    }
    let message = recipient::seed_message(CHAIN_ID, world.provider, world.user.address());
    assert_eq!(
        device.prompts(),
        vec![Prompt::Message(message.into_bytes()); 2]
    );

    // What is sealed to the wallet itself stays closed on a device, and opens in a file as ever.
    let other = TaskId::random();
    world.deliver(other, hash).await;
    broker
        .fine_tuning
        .acknowledge_deliverable(world.provider, other)
        .await
        .unwrap();
    let secret = ecies::seal(&world.user.public_key(), file_key.expose_bytes()).unwrap();
    world.settle_with_nonce(other, hash, secret, 2).await;
    let open = async |broker: &Broker, name: &str| {
        let output = folder.path().join(name);
        let patience = Duration::from_secs(5);
        let fine_tuning = &broker.fine_tuning;
        fine_tuning
            .decrypt_model(world.provider, other, &encrypted, &output, patience, |_| ())
            .await
    };
    assert_eq!(
        open(&anew, "no.zip").await.unwrap_err().code(),
        "archive_unreadable"
    );
    open(&world.broker, "yes.zip").await.unwrap();
}
