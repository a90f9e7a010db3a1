//! Quotes: what the enclave signs before a task is what the chain has after it.

use alloy_primitives::{Address, B256, U256, keccak256};
use serde_json::{Value, json};
use zerog_protocol::quote::{SignedQuote, TaskQuote, request_hash};
use zerog_protocol::signing;
use zerog_provider::Provider;

use crate::world::{Answer, MOCK_MODEL, PARAMS, User, World, dataset, now_s};

fn request(user: &User, dataset_hash: &str, provider: Address) -> Value {
    let timestamp = now_s();
    let digest = request_hash(user.address(), provider, dataset_hash, timestamp);
    json!({
        "datasetHash": dataset_hash,
        "trainingParams": PARAMS,
        "preTrainedModelHash": MOCK_MODEL,
        "signature": signing::sign_personal(&user.key, digest),
        "timestamp": timestamp,
    })
}

async fn ask(user: &User, dataset_hash: &str) -> Answer {
    let request = request(user, dataset_hash, user.provider);
    user.post(&user.path("quote"), request).await
}

fn opened(answer: &Answer, provider: &Provider) -> TaskQuote {
    assert_eq!(answer.status, 200, "{}", answer.text());
    let signed: SignedQuote = serde_json::from_slice(&answer.body).unwrap();
    signed.open(provider.signer()).unwrap()
}

async fn upload(user: &User, content: &str) -> String {
    let uploaded = user.upload("d.jsonl", content.as_bytes()).await;
    assert_eq!(uploaded.status, 200, "{}", uploaded.text());
    uploaded.json()["datasetHash"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_receipt_never_exceeds_the_quote() {
    let world = World::start().await;
    let provider = Provider::start(world.config("p")).await.unwrap();
    world.accept(&provider).await;
    let user = world.user(3, &provider).await;
    let hash = upload(&user, &dataset()).await;

    let quote = opened(&ask(&user, &hash).await, &provider);
    assert_eq!(
        (quote.user, quote.provider),
        (user.address(), provider.address())
    );
    assert_eq!(quote.training_params_hash, keccak256(PARAMS));
    assert_eq!(quote.count.as_ref().unwrap().total_steps, 3);
    assert_eq!(
        (quote.queue_position, quote.estimated_start_s),
        (0, Some(0))
    );
    assert_eq!(
        quote.estimated_duration_s, None,
        "nothing was trained yet, so nobody knows"
    );
    let fee = quote.fee.unwrap();
    let total: U256 = fee.total.parse().unwrap();
    assert!(!total.is_zero());

    // One neuron less than the quote is refused, the quote itself is kept.
    let mut too_little = user.task_request(&hash, now_s() * 10_000_000 + 40);
    too_little["fee"] = (total - U256::ONE).to_string().into();
    user.create(too_little)
        .await
        .refusal(400, "fee_above_limit");
    let before = balance(&user).await;
    let mut exact = user.task_request(&hash, now_s() * 10_000_000 + 41);
    exact["fee"] = total.to_string().into();
    let created = user.create(exact).await;
    assert_eq!(created.status, 201, "{}", created.text());
    let id = created.json()["id"].as_str().unwrap().parse().unwrap();
    let delivered = user.wait(id, &["Delivered"]).await;
    assert_eq!(delivered["fee"], fee.total);
    assert_eq!(
        delivered["feeBreakdown"]["billedTokens"],
        json!(fee.billed_tokens)
    );
    user.chain
        .fine_tuning()
        .acknowledge_deliverable(user.provider, &id.to_string())
        .await
        .unwrap();
    user.wait(id, &["Finished"]).await;
    assert_eq!(before - balance(&user).await, total, "charged as quoted");

    // Now it is known how fast this model trains.
    let again = opened(&ask(&user, &hash).await, &provider);
    assert!(again.estimated_duration_s.is_some());
    provider.shutdown().await;
}

async fn balance(user: &User) -> U256 {
    let account = user
        .chain
        .fine_tuning()
        .account(user.address(), user.provider)
        .await
        .unwrap();
    account.unwrap().balance
}

#[tokio::test(flavor = "multi_thread")]
async fn findings_name_their_lines_and_strangers_learn_nothing() {
    let world = World::start().await;
    let provider = Provider::start(world.config("p")).await.unwrap();
    world.accept(&provider).await;
    // A quote needs no money and no account.
    let user = world.stranger(3, &provider).await;
    let record = |question: &str, answer: &str| {
        json!({"messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]})
        .to_string()
    };
    let content = [
        record("a?", "b"),
        record("long?", &"very ".repeat(400)),
        record("a?", "b"),
    ]
    .join("\n");
    let hash = upload(&user, &content).await;
    let quote = opened(&ask(&user, &hash).await, &provider);
    let found: Vec<_> = quote
        .findings
        .iter()
        .map(|finding| (finding.line, finding.severity.as_str()))
        .collect();
    assert_eq!(found, [(Some(2), "warning"), (Some(3), "warning")]);
    assert_eq!(quote.count.unwrap().truncated_examples, 1);

    let stranger = world.stranger(4, &provider).await;
    ask(&stranger, &hash)
        .await
        .refusal(404, "dataset_not_found");
    let unknown = B256::repeat_byte(7).to_string();
    ask(&user, &unknown).await.refusal(404, "dataset_not_found");
    // Signed for another provider, by another user, or long ago.
    let foreign = request(&user, &hash, Address::repeat_byte(9));
    user.post(&user.path("quote"), foreign)
        .await
        .refusal(401, "invalid_signature");
    let borrowed = request(&stranger, &hash, user.provider);
    user.post(&user.path("quote"), borrowed)
        .await
        .refusal(401, "invalid_signature");
    let mut old = request(&user, &hash, user.provider);
    old["timestamp"] = (now_s() - 86_400).into();
    user.post(&user.path("quote"), old)
        .await
        .refusal(401, "timestamp");
    let mut bad = request(&user, &hash, user.provider);
    bad["trainingParams"] = "{\"num_train_epochs\": -1}".into();
    user.post(&user.path("quote"), bad)
        .await
        .refusal(400, "invalid_training_params");
    provider.shutdown().await;
}
