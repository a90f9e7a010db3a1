//! A key that the user names for his model: signed for this very task, and confirmed by the enclave.

use serde_json::{Value, json};
use zerog_attestation::{QuoteBundle, ReportData};
use zerog_protocol::recipient::{
    TaskBinding, confirmation_hash, parse_public_key, public_key_text,
};
use zerog_protocol::{SecretKey, TaskId, U256, signing};
use zerog_provider::Provider;

use crate::world::{User, World, dataset, now_s};

const CHAIN_ID: u64 = 31337;

/// The request with a recipient key that the user signed for it, as `change` has it.
fn naming(
    user: &User,
    provider: &Provider,
    request: &Value,
    key: &SecretKey,
    change: impl FnOnce(&mut TaskBinding<'_>),
) -> Value {
    let text = |name: &str| request[name].as_str().unwrap();
    let mut binding = TaskBinding {
        chain_id: CHAIN_ID,
        provider: provider.address(),
        user: user.address(),
        nonce: text("nonce").parse().unwrap(),
        dataset_hash: text("datasetHash"),
        model_hash: text("preTrainedModelHash"),
        training_params: text("trainingParams"),
    };
    change(&mut binding);
    let signature = signing::sign_personal(&user.key, binding.hash(&key.public_key()));
    let mut request = request.clone();
    request["recipient"] =
        json!({"key": public_key_text(&key.public_key()), "signature": signature});
    request
}

#[tokio::test]
async fn a_recipient_key_is_signed_for_its_task_and_confirmed() {
    let world = World::start().await;
    let provider = Provider::start(world.config("p")).await.unwrap();
    world.accept(&provider).await;
    let user = world.user(3, &provider).await;
    let uploaded = user.upload("d.jsonl", dataset().as_bytes()).await.json();
    let hash = uploaded["datasetHash"].as_str().unwrap();
    let request = user.task_request(hash, now_s() * 10_000_000 + 40);
    let (key, other) = (SecretKey::random(), SecretKey::random());
    let good = naming(&user, &provider, &request, &key, |_| ());

    let mut exchanged = good.clone();
    exchanged["recipient"]["key"] = public_key_text(&other.public_key()).into();
    let mut malformed = good.clone();
    malformed["recipient"]["key"] = "0x04".into();
    let mut incomplete = good.clone();
    incomplete["recipient"]
        .as_object_mut()
        .unwrap()
        .remove("signature");
    let of_another_task = naming(&user, &provider, &request, &key, |binding| {
        binding.nonce += U256::ONE;
    });
    let of_other_parameters = naming(&user, &provider, &request, &key, |binding| {
        binding.training_params = "{}";
    });
    for (bad, status, code) in [
        (exchanged, 401, "invalid_signature"),
        (of_another_task, 401, "invalid_signature"),
        (of_other_parameters, 401, "invalid_signature"),
        (malformed, 400, "invalid_recipient_key"),
        (incomplete, 400, "invalid_body"),
    ] {
        user.create(bad).await.refusal(status, code);
    }

    let created = user.create(good.clone()).await;
    assert_eq!(created.status, 201, "{}", created.text());
    let id: TaskId = created.json()["id"].as_str().unwrap().parse().unwrap();
    assert_eq!(user.create(good).await.json()["id"], id.to_string());
    // Another key is another request, also with the same nonce; so is none.
    let later = naming(&user, &provider, &request, &other, |_| ());
    user.create(later).await.refusal(400, "nonce_used");
    user.create(request).await.refusal(400, "nonce_used");

    let shown = user.task(id).await["recipient"].clone();
    let shown_key = parse_public_key(shown["key"].as_str().unwrap());
    assert_eq!(shown_key, Ok(key.public_key()));
    let quote = QuoteBundle::parse(&user.get("/v1/quote").await.body).unwrap();
    assert!(quote.takes_recipient_keys("v1") && quote.seals("v2"));
    let confirmed = confirmation_hash(
        CHAIN_ID,
        provider.address(),
        user.address(),
        id,
        &key.public_key(),
    );
    signing::verify_personal(
        confirmed,
        shown["signature"].as_str().unwrap(),
        ReportData::parse(&quote.report_data).unwrap().signer(),
    )
    .unwrap();

    // Published clients see nothing of it.
    let plain = world.user(4, &provider).await;
    let id = plain.submit().await;
    assert!(plain.task(id).await.get("recipient").is_none());
    provider.shutdown().await;
}
