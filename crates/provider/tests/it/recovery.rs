//! A provider that ends at any point goes on where it was.

use serde_json::json;
use zerog_protocol::signing;
use zerog_provider::Provider;

use crate::walk::{download, open_delivery};
use crate::world::{User, World};

/// The provider is ended without a chance to tidy up as soon as the task shows each of its states, and started again on
/// the same data. The task ends well, once, and what was delivered opens.
#[tokio::test]
async fn a_task_survives_the_end_of_the_provider_in_every_state() {
    let world = World::start().await;
    let config = world.config("p");
    let mut provider = Provider::start(config.clone()).await.unwrap();
    world.accept(&provider).await;
    let signer = provider.signer();
    let mut user = world.user(3, &provider).await;
    let id = user.submit().await;
    let states = [
        "Init",
        "SettingUp",
        "SetUp",
        "Training",
        "Trained",
        "Delivering",
        "Delivered",
        "UserAcknowledged",
        "Finished",
    ];
    for (index, state) in states.iter().enumerate() {
        let task = user.wait(id, &states[index..]).await;
        if *state == "Delivered" {
            let encrypted = download(&user, id, None).await;
            assert_eq!(encrypted.status, 200);
            user.chain
                .fine_tuning()
                .acknowledge_deliverable(user.provider, &id.to_string())
                .await
                .unwrap();
        }
        if task["progress"] == "Finished" {
            break;
        }
        provider.abandon().await;
        provider = Provider::start(config.clone()).await.unwrap();
        assert_eq!(
            provider.signer(),
            signer,
            "the signer is stable over restarts"
        );
        user = User {
            url: provider.url().to_owned(),
            ..user
        };
    }
    let task = user.wait(id, &["Finished"]).await;
    assert_eq!(task["settledWithSecret"], true);
    let encrypted = download(&user, id, None).await;
    let members = open_delivery(&user, id, &encrypted.body, signer).await;
    assert!(
        members
            .iter()
            .any(|name| name.ends_with("adapter_config.json"))
    );
    // One deliverable, paid once.
    let account = user
        .chain
        .fine_tuning()
        .account(user.address(), user.provider)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(account.deliverables.len(), 1);
    let fee: alloy_primitives::U256 = task["fee"].as_str().unwrap().parse().unwrap();
    assert_eq!(
        account.balance + fee,
        alloy_primitives::U256::from(2u128 * 10u128.pow(18))
    );
    provider.shutdown().await;
}

/// Cancelling stops the training process and frees the user at once.
#[tokio::test]
async fn a_cancelled_training_stops() {
    let world = World::start().await;
    let provider = Provider::start(world.config("p")).await.unwrap();
    world.accept(&provider).await;
    let user = world.user(3, &provider).await;
    let uploaded = user
        .upload("d.jsonl", crate::world::dataset().as_bytes())
        .await
        .json();
    let hash = uploaded["datasetHash"].as_str().unwrap();
    let mut request = user.task_request(hash, crate::world::now_s() * 10_000_000 + 30);
    request["trainingParams"] =
        json!(r#"{"num_train_epochs":100,"per_device_train_batch_size":1,"max_seq_length":64}"#);
    let id: zerog_protocol::TaskId = user.create(request).await.json()["id"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    user.wait(id, &["Training"]).await;
    let signature = signing::sign_personal(&user.key, signing::cancel_task_hash(id));
    let cancelled = user
        .post(
            &user.path(&format!("task/{id}/cancel")),
            json!({"signature": signature}),
        )
        .await;
    assert_eq!(cancelled.status, 200, "{}", cancelled.text());
    assert_eq!(user.task(id).await["progress"], "Cancelled");
    assert_eq!(user.get("/v1/task/pending").await.text(), "0");
    // The user may go on at once, and nothing was charged.
    let next = user.submit().await;
    user.wait(next, &["Delivered"]).await;
    provider.shutdown().await;
}

/// Nobody acknowledges: nothing is charged, the result can still be acknowledged later.
#[tokio::test]
async fn a_missed_acknowledgement_is_no_loss() {
    let world = World::start().await;
    let provider = Provider::start(world.config("p")).await.unwrap();
    world.accept(&provider).await;
    let user = world.user(3, &provider).await;
    let id = user.submit().await;
    let task = user.wait(id, &["Delivered"]).await;
    let after = task["ackDeadline"].as_u64().unwrap() + 60;
    world
        .chain
        .advance_time(after.saturating_sub(world.chain.timestamp()))
        .unwrap();
    let started = std::time::Instant::now();
    while !user.log(id).await.contains("Not acknowledged in time") {
        assert!(started.elapsed().as_secs() < 30, "{}", user.log(id).await);
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(user.task(id).await["progress"], "Delivered");
    user.chain
        .fine_tuning()
        .acknowledge_deliverable(user.provider, &id.to_string())
        .await
        .unwrap();
    let task = user.wait(id, &["Finished"]).await;
    assert_eq!(task["settledWithSecret"], true);
    provider.shutdown().await;
}
