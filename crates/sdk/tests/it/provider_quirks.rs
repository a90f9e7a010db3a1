//! Answers of providers that differ from the protocol, and refusals.

use serde_json::json;
use zerog_sdk::{Category, CreateTask, Error, TaskId, WaitOptions};

use crate::support::{Response, World, og};

fn task_json(id: &str, progress: &str) -> serde_json::Value {
    json!({
        "id": id, "createdAt": null, "updatedAt": null, "userAddress": "0x", "preTrainedModelHash": "0x",
        "datasetHash": "0x", "trainingParams": "{}", "fee": "0", "nonce": "1", "signature": "0x", "progress": progress,
    })
}

#[tokio::test]
async fn plain_text_and_json_refusals_are_told_alike() {
    let world = World::start().await;
    let id = TaskId::random();
    let error = world
        .broker
        .fine_tuning
        .get_task(world.provider, Some(id))
        .await
        .unwrap_err();
    let Error::ProviderRefused {
        status: 404,
        message,
        code: None,
        ..
    } = &error
    else {
        panic!("{error:?}")
    };
    assert_eq!(message, "404 page not found");
    assert_eq!(error.category(), Category::Provider);

    world.answer(|request| {
        request
            .path
            .contains("/task/")
            .then(|| Response::new(404, r#"{"error":"no such task","code":"task_not_found"}"#))
    });
    let error = world
        .broker
        .fine_tuning
        .get_task(world.provider, Some(id))
        .await
        .unwrap_err();
    assert_eq!(
        (error.code(), error.category()),
        ("task_not_found", Category::Provider)
    );
    assert!(error.to_string().contains("no such task"), "{error}");
}

#[tokio::test]
async fn a_null_list_is_an_empty_list() {
    let world = World::start().await;
    world.answer(|request| {
        request
            .path
            .ends_with("/task")
            .then(|| Response::new(200, "null"))
    });
    assert!(
        world
            .broker
            .fine_tuning
            .list_task(world.provider)
            .await
            .unwrap()
            .is_empty()
    );
    world.answer(|request| {
        request
            .path
            .contains("latest=true")
            .then(|| Response::new(200, "[]"))
    });
    assert_eq!(
        world
            .broker
            .fine_tuning
            .get_task(world.provider, None)
            .await
            .unwrap_err()
            .code(),
        "no_task"
    );
}

#[tokio::test]
async fn rate_limits_are_waited_out_and_other_refusals_are_final() {
    let world = World::start().await;
    let mut refusals = 2;
    world.answer(move |request| {
        request.path.ends_with("/v1/task/pending").then(|| {
            refusals -= 1;
            if refusals >= 0 {
                Response::new(
                    429,
                    r#"{"error":"Too many requests. Please try again later."}"#,
                )
                .header("retry-after", 0)
            } else {
                Response::new(200, "3")
            }
        })
    });
    assert_eq!(
        world
            .broker
            .fine_tuning
            .get_pending_task_counter(world.provider)
            .await
            .unwrap(),
        3
    );
    assert_eq!(world.requests("/v1/task/pending").len(), 3);

    world.answer(|request| {
        request
            .path
            .ends_with("/v1/task/pending")
            .then(|| Response::new(400, "no"))
    });
    world
        .broker
        .fine_tuning
        .get_pending_task_counter(world.provider)
        .await
        .unwrap_err();
    assert_eq!(
        world.requests("/v1/task/pending").len(),
        4,
        "a 400 is not repeated"
    );
}

#[tokio::test]
async fn a_task_is_signed_and_queues_only_on_request() {
    let world = World::start().await;
    world.answer(
        |request| match (request.method.as_str(), request.path.as_str()) {
            ("GET", "/v1/task/pending") => Some(Response::new(200, "2")),
            ("POST", path) if path.ends_with("/task") => Some(Response::new(
                201,
                r#"{"id":"6b607314-88b0-4fef-91e7-43227a54de57"}"#,
            )),
            _ => None,
        },
    );
    let mut task = CreateTask {
        provider: world.provider,
        model: "mock-model".into(),
        dataset_hash: format!("0x{}", "ab".repeat(32)),
        training_params: "{\"num_train_epochs\": 2}\n".into(),
        queue: false,
        max_fee: Some(og(1)),
    };
    let fine_tuning = &world.broker.fine_tuning;
    let error = fine_tuning.create_task(&task).await.unwrap_err();
    assert!(
        matches!(error, Error::QueueNotEmpty { pending: 2 }),
        "{error}"
    );
    assert!(error.to_string().contains("--queue"), "{error}");

    task.queue = true;
    let id = fine_tuning.create_task(&task).await.unwrap();
    assert_eq!(id.to_string(), "6b607314-88b0-4fef-91e7-43227a54de57");
    let sent = world
        .requests("/task")
        .into_iter()
        .find(|request| request.method == "POST")
        .unwrap();
    let body: serde_json::Value = serde_json::from_slice(&sent.body).unwrap();
    assert_eq!(
        body["trainingParams"], "{\"num_train_epochs\": 2}\n",
        "the text travels verbatim"
    );
    assert_eq!(
        (&body["wait"], &body["fee"]),
        (&json!(true), &json!(og(1).to_string()))
    );
    let nonce = body["nonce"].as_str().unwrap();
    assert!(nonce.ends_with("0040"), "{nonce}");
    let hash = zerog_protocol::signing::create_task_hash(
        world.user.address(),
        nonce.parse().unwrap(),
        body["datasetHash"].as_str().unwrap(),
    );
    zerog_protocol::signing::verify_personal(
        hash,
        body["signature"].as_str().unwrap(),
        world.user.address(),
    )
    .unwrap();

    task.training_params = "{\"lora_rnk\": 8}".into();
    let error = fine_tuning.create_task(&task).await.unwrap_err();
    assert!(
        error.to_string().contains("lora_rank"),
        "the nearest key is named: {error}"
    );
    task.training_params = "{}".into();
    task.model = "gpt-5".into();
    assert_eq!(
        fine_tuning.create_task(&task).await.unwrap_err().code(),
        "unknown_model"
    );
    task.dataset_hash = "0x12".into();
    assert_eq!(
        fine_tuning.create_task(&task).await.unwrap_err().code(),
        "invalid_argument"
    );
}

#[tokio::test]
async fn waiting_survives_a_restart_and_ends_with_the_task() {
    let world = World::start().await;
    let id = TaskId::random();
    let mut asked = 0;
    world.answer(move |request| {
        request.path.ends_with(&id.to_string()).then(|| {
            asked += 1;
            match asked {
                1 => Response::new(200, task_json(&id.to_string(), "Training").to_string()),
                2..=5 => Response::new(502, "restarting"),
                _ => {
                    let mut task = task_json(&id.to_string(), "Failed");
                    task["failureReason"] = "the dataset has no records".into();
                    Response::new(200, task.to_string())
                }
            }
        })
    });
    let (mut seen, options) = (Vec::new(), WaitOptions::default());
    let waiting =
        world
            .broker
            .fine_tuning
            .wait_for_delivery(world.provider, id, &options, |news| {
                if let zerog_sdk::Progress::Task { state, .. } = news {
                    seen.push(state);
                }
            });
    let error = waiting.await.unwrap_err();
    assert!(
        error.to_string().contains("the dataset has no records"),
        "{error}"
    );
    assert_eq!(error.code(), "task_ended");
    assert_eq!(seen, ["Training", "Failed"]);
}

/// Events that were written before the answer to a question, and arrive after it.
#[tokio::test]
async fn news_that_are_older_than_what_is_known_are_not_told() {
    let world = World::start().await;
    let id = TaskId::random();
    let training = |step: u64| {
        json!({
            "step": step, "totalSteps": 9, "loss": 2.5, "evalLoss": 2.75, "learningRate": 0.25,
            "tokensPerS": 1200.0, "etaS": 3.0,
        })
    };
    let mut asked = 0;
    world.answer(move |request| {
        if request.path.ends_with("/events") {
            let mut body = String::new();
            for news in [
                json!({"progress": "SetUp", "stage": "training"}),
                json!({"progress": "Training", "training": training(2)}),
                json!({"progress": "Training", "training": training(5)}),
                json!({"progress": "Delivered", "training": training(9)}),
            ] {
                body.push_str(&format!("event: progress\ndata: {news}\n\n"));
            }
            return Some(Response::new(200, body).header("content-type", "text/event-stream"));
        }
        request.path.ends_with(&id.to_string()).then(|| {
            asked += 1;
            let state = if asked == 1 { "Training" } else { "Delivered" };
            let mut task = task_json(&id.to_string(), state);
            task["training"] = training(if asked == 1 { 4 } else { 9 });
            Response::new(200, task.to_string())
        })
    });
    let (mut seen, options) = (Vec::new(), WaitOptions::default());
    let waiting =
        world
            .broker
            .fine_tuning
            .wait_for_delivery(world.provider, id, &options, |news| {
                if let zerog_sdk::Progress::Task {
                    state,
                    step,
                    eval_loss,
                    learning_rate,
                    tokens_per_s,
                    ..
                } = news
                {
                    assert_eq!((eval_loss, learning_rate), (Some(2.75), Some(0.25)));
                    assert_eq!(tokens_per_s, Some(1200.0));
                    seen.push((state, step.unwrap()));
                }
            });
    waiting.await.unwrap();
    let seen: Vec<_> = seen
        .iter()
        .map(|(state, step)| (state.as_str(), *step))
        .collect();
    assert_eq!(seen, [("Training", 4), ("Training", 5), ("Delivered", 9)]);
}

#[tokio::test]
async fn a_provider_that_is_down_is_named() {
    let world = World::start().await;
    world.answer(|_| Some(Response::new(200, "x".repeat(100)).cut_at(10)));
    let error = world
        .broker
        .fine_tuning
        .get_quote(world.provider)
        .await
        .unwrap_err();
    assert_eq!(
        (error.code(), error.category()),
        ("provider_unreachable", Category::Provider)
    );
}
