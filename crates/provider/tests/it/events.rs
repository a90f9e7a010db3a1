//! A task's news as a stream, and datasets that their owner removes.

use std::time::Duration;

use serde_json::{Value, json};
use zerog_protocol::{TaskId, signing};
use zerog_provider::Provider;

use crate::world::{Answer, User, World, dataset, now_s, send};

/// One event of a stream that ended.
#[derive(Debug, Clone, PartialEq)]
struct Event {
    id: Option<u64>,
    name: String,
    data: Value,
}

fn events(text: &str) -> Vec<Event> {
    text.split("\n\n")
        .filter_map(|block| {
            let field = |name: &str| {
                block
                    .lines()
                    .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
            };
            Some(Event {
                id: field("id").map(|id| id.parse().unwrap()),
                name: field("event")?.to_owned(),
                data: serde_json::from_str(field("data")?).unwrap(),
            })
        })
        .collect()
}

async fn stream(user: &User, id: TaskId, last_event_id: Option<&str>) -> Answer {
    let mut request = user.http.get(user.path(&format!("task/{id}/events")));
    if let Some(last) = last_event_id {
        request = request.header("last-event-id", last);
    }
    send(request).await
}

#[tokio::test]
async fn a_stream_tells_everything_once_and_goes_on_where_it_ended() {
    let world = World::start().await;
    let config = world.config("p");
    let provider = Provider::start(config.clone()).await.unwrap();
    world.accept(&provider).await;
    let user = world.user(3, &provider).await;
    let id = user.submit().await;

    // Listening from the start; the provider is stopped in the middle, which ends the stream.
    let listening = {
        let user = user.clone();
        tokio::spawn(async move { stream(&user, id, None).await })
    };
    user.wait(id, &["Delivered"]).await;
    // The stream looks at the task within this time.
    tokio::time::sleep(Duration::from_secs(3)).await;
    provider.shutdown().await;
    let first = listening.await.unwrap();
    assert!(
        first.headers["content-type"]
            .to_str()
            .unwrap()
            .starts_with("text/event-stream")
    );
    let first = events(&first.text());
    let steps: Vec<u64> = first
        .iter()
        .filter(|event| event.name == "progress")
        .filter_map(|event| event.data["training"]["step"].as_u64())
        .collect();
    assert!(steps.is_sorted() && steps.last() == Some(&3), "{steps:?}");
    assert_eq!(first.last().unwrap().name, "progress");
    assert_eq!(first.last().unwrap().data["progress"], "Delivered");

    // The rest, after the restart: only what is new, until the task has ended.
    let provider = Provider::start(config).await.unwrap();
    let user = User {
        url: provider.url().to_owned(),
        ..user
    };
    let last = first.iter().rev().find_map(|event| event.id).unwrap();
    let listening = {
        let user = user.clone();
        tokio::spawn(async move { stream(&user, id, Some(&last.to_string())).await })
    };
    user.chain
        .fine_tuning()
        .acknowledge_deliverable(user.provider, &id.to_string())
        .await
        .unwrap();
    let rest = events(&listening.await.unwrap().text());
    let numbers: Vec<u64> = first
        .iter()
        .chain(&rest)
        .filter_map(|event| event.id)
        .collect();
    let expected: Vec<u64> = (1..=numbers.len() as u64).collect();
    assert_eq!(numbers, expected, "no event is missing or told twice");
    let states: Vec<&str> = first
        .iter()
        .chain(&rest)
        .filter(|event| event.name == "state")
        .map(|event| event.data["state"].as_str().unwrap())
        .collect();
    assert_eq!(
        states,
        [
            "Init",
            "SettingUp",
            "SetUp",
            "Training",
            "Trained",
            "Delivering",
            "Delivered",
            "UserAcknowledged",
            "Finished"
        ]
    );

    // The log is the same text, line by line.
    let log = user.log(id).await;
    let told: Vec<&str> = first
        .iter()
        .chain(&rest)
        .filter(|event| event.name == "log")
        .flat_map(|event| event.data["text"].as_str().unwrap().lines())
        .collect();
    assert!(told.len() > 5);
    for line in told {
        assert!(log.contains(line), "{line}");
    }

    stream(&user, id, Some("latest"))
        .await
        .refusal(400, "invalid_last_event_id");
    stream(&user, TaskId::random(), None)
        .await
        .refusal(404, "task_not_found");
    provider.shutdown().await;
}

#[tokio::test]
async fn owners_remove_datasets_that_no_task_needs() {
    let world = World::start().await;
    let provider = Provider::start(world.config("p")).await.unwrap();
    world.accept(&provider).await;
    let user = world.user(3, &provider).await;
    let stranger = world.stranger(4, &provider).await;
    let uploaded = user.upload("d.jsonl", dataset().as_bytes()).await.json();
    let hash = uploaded["datasetHash"].as_str().unwrap().to_owned();

    let delete = async |who: &User, signer: &User, at: u64| {
        let signature =
            signing::sign_personal(&signer.key, signing::dataset_delete_hash(&hash, at));
        let request = who
            .http
            .delete(who.path(&format!("dataset/{hash}")))
            .header("content-type", "application/json")
            .body(json!({"signature": signature, "timestamp": at}).to_string());
        send(request).await
    };
    let now = now_s();
    delete(&user, &stranger, now)
        .await
        .refusal(401, "invalid_signature");
    delete(&user, &user, now - 1000)
        .await
        .refusal(401, "timestamp");
    delete(&stranger, &stranger, now)
        .await
        .refusal(404, "dataset_not_found");

    let mut request = user.task_request(&hash, now * 10_000_000 + 40);
    request["trainingParams"] =
        json!(r#"{"num_train_epochs":100,"per_device_train_batch_size":1,"max_seq_length":64}"#);
    let created = user.create(request).await.json();
    let id: TaskId = created["id"].as_str().unwrap().parse().unwrap();
    let text = delete(&user, &user, now)
        .await
        .refusal(409, "dataset_in_use");
    assert!(text.contains("cancel"), "{text}");
    let signature = signing::sign_personal(&user.key, signing::cancel_task_hash(id));
    let cancel = user.path(&format!("task/{id}/cancel"));
    user.post(&cancel, json!({"signature": signature})).await;

    let deleted = delete(&user, &user, now).await;
    assert_eq!(deleted.status, 200, "{}", deleted.text());
    assert_eq!(deleted.json()["datasetHash"], hash.as_str());
    delete(&user, &user, now + 1)
        .await
        .refusal(404, "dataset_not_found");
    user.create(user.task_request(&hash, now * 10_000_000 + 50))
        .await
        .refusal(400, "dataset_not_found");

    // The signature that was heard does not remove a later upload.
    user.upload("d.jsonl", dataset().as_bytes()).await;
    let text = delete(&user, &user, now).await.refusal(401, "unauthorized");
    assert!(text.contains("used before"), "{text}");
    assert_eq!(delete(&user, &user, now + 2).await.status, 200);
    provider.shutdown().await;
}
