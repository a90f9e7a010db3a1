//! Tasks that learn something else than answers: preferences with a validation set, and the class of texts.

use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};
use zerog_protocol::{TaskId, models};
use zerog_provider::Provider;

use crate::world::{User, World, now_s};

/// Uploads a dataset, creates a task on it and waits until it is delivered or failed; the task and its log.
async fn walk(user: &User, model_hash: &str, dataset: &str, params: Value) -> (Value, String) {
    let uploaded = user.upload("d.jsonl", dataset.as_bytes()).await;
    assert_eq!(uploaded.status, 200, "{}", uploaded.text());
    let hash = uploaded.json()["datasetHash"].as_str().unwrap().to_owned();
    // The same nonce within a second would be the same task, asked for again.
    static TASKS: AtomicU64 = AtomicU64::new(40);
    let nonce = now_s() * 10_000_000 + TASKS.fetch_add(1, Ordering::Relaxed);
    let mut request = user.task_request(&hash, nonce);
    request["trainingParams"] = params.to_string().into();
    request["preTrainedModelHash"] = model_hash.into();
    let created = user.create(request).await;
    assert_eq!(created.status, 201, "{}", created.text());
    let id = created.json()["id"].as_str().unwrap().parse().unwrap();
    let task = user.wait(id, &["Delivered", "Failed"]).await;
    (task, user.log(id).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn preferences_are_trained_and_logged_with_their_margin() {
    let world = World::start().await;
    let provider = Provider::start(world.config("p")).await.unwrap();
    world.accept(&provider).await;
    let user = world.user(3, &provider).await;
    let dataset: String = (0..8)
        .map(|number| {
            let record = json!({"prompt": format!("Who is in room {number}?"), "chosen": "Nobody is there.",
                "rejected": "Everybody is there."});
            format!("{record}\n")
        })
        .collect();
    let params = json!({"training_method": "dpo", "validation_split": 0.25, "num_train_epochs": 2,
        "per_device_train_batch_size": 2, "learning_rate": 0.002, "max_seq_length": 64});
    let (task, log) = walk(&user, crate::world::MOCK_MODEL, &dataset, params).await;
    assert_eq!(task["progress"], "Delivered", "{log}");
    for text in [
        "rewards/margins",
        "eval_loss",
        "2 records set aside for validation",
    ] {
        assert!(log.contains(text), "{text} in {log}");
    }
    assert!(task["training"]["evalLoss"].is_f64(), "{task}");
    assert!(
        task["training"]["tokensPerS"].as_f64().unwrap() > 0.0,
        "{task}"
    );
    provider.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_dataset_of_the_user_is_measured() {
    let world = World::start().await;
    let provider = Provider::start(world.config("p")).await.unwrap();
    world.accept(&provider).await;
    let (user, other) = (
        world.user(3, &provider).await,
        world.user(4, &provider).await,
    );
    let upload = async |user: &User, text: &str| {
        let uploaded = user.upload("v.jsonl", text.as_bytes()).await;
        assert_eq!(uploaded.status, 200, "{}", uploaded.text());
        uploaded.json()["datasetHash"].as_str().unwrap().to_owned()
    };
    let record =
        json!({"prompt": "What is behind door 30?", "completion": "Behind door 30 is a lamp."});
    let hash = upload(&user, &format!("{record}\n")).await;
    let params = |hash: &str| {
        json!({"validation_dataset": hash, "num_train_epochs": 2, "max_seq_length": 64,
            "per_device_train_batch_size": 4, "learning_rate": 0.002})
    };
    let dataset = crate::world::dataset();
    // What another user uploaded is not there for this one, and a bad record is found before training.
    let foreign = upload(&other, &format!("{record}\n{record}\n")).await;
    let (task, log) = walk(&user, crate::world::MOCK_MODEL, &dataset, params(&foreign)).await;
    assert_eq!(task["progress"], "Failed", "{log}");
    assert!(
        log.contains("neither uploaded to this provider nor found"),
        "{log}"
    );
    let bad = upload(&user, "{\"text\":\"a bell\",\"label\":1}\n").await;
    let (task, log) = walk(&user, crate::world::MOCK_MODEL, &dataset, params(&bad)).await;
    assert_eq!(task["progress"], "Failed", "{log}");
    assert!(log.contains("the validation dataset: line 1"), "{log}");

    let (task, log) = walk(&user, crate::world::MOCK_MODEL, &dataset, params(&hash)).await;
    assert_eq!(task["progress"], "Delivered", "{log}");
    assert!(log.contains("1 records set aside for validation"), "{log}");
    assert!(task["training"]["evalLoss"].is_f64(), "{task}");
    provider.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_classifier_is_counted_paid_and_trained() {
    let world = World::start().await;
    let mut config = world.config("p");
    let folder = tempfile::tempdir().unwrap();
    let distilbert = models::find("distilbert-base-uncased").unwrap();
    let mut model = config.models[0].clone();
    model.name = distilbert.name.into();
    model.hash = distilbert.hash;
    model.stand_in = true;
    model.folder = encoder(folder.path());
    config.models.push(model);
    let provider = Provider::start(config).await.unwrap();
    world.accept(&provider).await;
    let user = world.user(3, &provider).await;
    let entry = user.get("/v1/model/distilbert-base-uncased").await.json();
    assert_eq!(entry["taskType"], "SEQ_CLS");

    let dataset =
        "{\"text\":\"a bell\",\"label\":1}\n{\"text\":\"a drum\",\"label\":0}\n".repeat(4);
    let params = json!({"num_train_epochs": 3, "per_device_train_batch_size": 4, "learning_rate": 0.005,
        "max_seq_length": 16});
    let hash = distilbert.hash.to_string();
    let (task, log) = walk(&user, &hash, &dataset, params).await;
    assert_eq!(task["progress"], "Delivered", "{log}");
    // Two words between two marks, eight texts.
    assert_eq!(task["tokens"], 32, "{task}");
    assert_ne!(task["fee"], "0");
    assert!(log.contains("'accuracy'") && log.contains("'f1'"), "{log}");
    provider.shutdown().await;
}

/// The small encoder of the comparison with the reference libraries, with a word-piece tokenizer of four words.
fn encoder(folder: &std::path::Path) -> std::path::PathBuf {
    let source = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fixtures/parity/distilbert/base");
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(source.join(name), folder.join(name)).unwrap();
    }
    let mark = |id: u32, text: &str| {
        json!({"id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    let special = |id: &str| json!({"SpecialToken": {"id": id, "type_id": 0}});
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": [mark(0, "[UNK]"), mark(1, "[CLS]"), mark(2, "[SEP]")],
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [special("[CLS]"), {"Sequence": {"id": "A", "type_id": 0}}, special("[SEP]")],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {
                "[CLS]": {"id": "[CLS]", "ids": [1], "tokens": ["[CLS]"]},
                "[SEP]": {"id": "[SEP]", "ids": [2], "tokens": ["[SEP]"]},
            },
        },
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "a": 3, "bell": 4, "drum": 5}},
    });
    std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    folder.to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adapter_is_trained_further_by_its_owner_alone() {
    let world = World::start().await;
    let mut config = world.config("p");
    // What ended is cleaned up here at once, so that the adapter comes back from storage.
    config.fine_tuning.as_mut().unwrap().artifact_retention_s = 2;
    let archives = config.data_dir.join("archives");
    let provider = Provider::start(config).await.unwrap();
    world.accept(&provider).await;
    let user = world.user(3, &provider).await;
    let (task, log) = walk(
        &user,
        crate::world::MOCK_MODEL,
        &crate::world::dataset(),
        json!({"lora_rank": 4, "num_train_epochs": 6, "learning_rate": 0.005, "lora_dropout": 0}),
    )
    .await;
    assert_eq!(task["progress"], "Delivered", "{log}");
    let id: TaskId = task["id"].as_str().unwrap().parse().unwrap();
    let further = json!({"continue_from": id.to_string(), "max_steps": 1, "lora_dropout": 0});

    // Not before the result is the user's, and never somebody else's.
    let request = |user: &User, hash: &str, params: &Value, nonce: u64| {
        let mut request = user.task_request(hash, now_s() * 10_000_000 + nonce);
        request["trainingParams"] = params.to_string().into();
        let user = user.clone();
        async move { user.create(request).await }
    };
    let hash = task["datasetHash"].as_str().unwrap().to_owned();
    user.chain
        .fine_tuning()
        .acknowledge_deliverable(user.provider, &id.to_string())
        .await
        .unwrap();
    user.wait(id, &["Finished"]).await;
    let stranger = world.user(4, &provider).await;
    let uploaded = stranger
        .upload("d.jsonl", crate::world::dataset().as_bytes())
        .await;
    let foreign = uploaded.json()["datasetHash"].as_str().unwrap().to_owned();
    let text = request(&stranger, &foreign, &further, 50)
        .await
        .refusal(400, "invalid_training_params");
    assert!(text.contains("list-tasks"), "{text}");
    let shaped = json!({"continue_from": id.to_string(), "lora_rank": 8});
    let text = request(&user, &hash, &shaped, 51)
        .await
        .refusal(400, "invalid_training_params");
    assert!(text.contains("remove lora_rank"), "{text}");

    let archive = archives.join(format!("{id}.data"));
    let started = std::time::Instant::now();
    while archive.exists() {
        assert!(
            started.elapsed().as_secs() < 60,
            "{} stays",
            archive.display()
        );
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let (next, log) = walk(
        &user,
        crate::world::MOCK_MODEL,
        &crate::world::dataset(),
        further,
    )
    .await;
    assert_eq!(next["progress"], "Delivered", "{log}");
    let loss = |task: &Value, name: &str| task["training"][name].as_f64().unwrap();
    assert!(
        loss(&next, "loss") < loss(&task, "firstLoss") * 0.7,
        "{next}\n{task}"
    );
    provider.shutdown().await;
}
