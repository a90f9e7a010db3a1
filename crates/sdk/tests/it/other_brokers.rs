//! The shapes of other people's servers: the original broker's refusals, its older layouts, and servers that are ill.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use zerog_sdk::{CreateTask, DeployOptions, DownloadMethod, Error, TaskId};

use crate::support::{Manner, Request, Response, World};

/// Answers everything but quotes with one response.
fn always(world: &World, response: Response) {
    world.answer(move |request| (!request.path.starts_with("/v1/quote")).then(|| response.clone()));
}

fn task_json(id: TaskId) -> Value {
    json!({
        "id": id, "createdAt": "2026-03-11T01:20:07.644Z", "updatedAt": null, "userAddress": "0x00", "preTrainedModelHash": "0x00",
        "datasetHash": "0x00", "trainingParams": "{}", "fee": "0", "nonce": "17600000000000040", "signature": "0x00",
        "progress": "Delivered", "deliverIndex": 0, "deliverTime": 1_760_000_000, "modelType": 0, "wait": false,
    })
}

fn new_task(world: &World) -> CreateTask {
    CreateTask {
        provider: world.provider,
        model: "mock-model".into(),
        dataset_hash: format!("0x{}", "ab".repeat(32)),
        training_params: "{}".into(),
        queue: false,
        max_fee: None,
    }
}

/// The errors of every call that only reads, when the provider answers each with `response`.
async fn errors_of_reads(world: &World, response: Response) -> Vec<Error> {
    always(world, response);
    let (fine_tuning, lora) = (&world.broker.fine_tuning, &world.broker.inference.lora);
    let (provider, id) = (world.provider, TaskId::random());
    vec![
        fine_tuning.get_task(provider, Some(id)).await.unwrap_err(),
        fine_tuning.list_task(provider).await.unwrap_err(),
        fine_tuning
            .get_pending_task_counter(provider)
            .await
            .unwrap_err(),
        fine_tuning
            .get_model(provider, "my-model")
            .await
            .unwrap_err(),
        lora.list_adapters(provider).await.unwrap_err(),
        lora.get_adapter_status(provider, "ft-x").await.unwrap_err(),
        world
            .broker
            .inference
            .get_provider_models(provider)
            .await
            .unwrap_err(),
    ]
}

#[tokio::test]
async fn refusals_of_any_form_become_one_error_with_their_text() {
    let world = World::start().await;
    // Gin's unknown route, the prose of the original, its masked errors, a proxy's page, OpenAI's shape, nothing, noise.
    let long = format!("{{\"error\":\"{}\"}}", "long ".repeat(100_000));
    let noise: Vec<u8> = (0..=255).collect();
    let cases: Vec<(u16, Vec<u8>, &str)> = vec![
        (404, b"404 page not found".to_vec(), "404 page not found"),
        (405, b"405 method not allowed".to_vec(), "405 method not allowed"),
        (
            400,
            br#"{"error":"Provider: register service: service TEE signer has not been acknowledged by 0G team"}"#.to_vec(),
            "acknowledged by 0G team",
        ),
        (403, br#"{"error":{"type":"x","message":"not yours","code":"forbidden"}}"#.to_vec(), "not yours"),
        (401, br#"{"message":"who are you"}"#.to_vec(), "who are you"),
        (413, b"<html><body>413 Request Entity Too Large</body></html>".to_vec(), "Payload Too Large"),
        (400, Vec::new(), "Bad Request"),
        (400, br#"{"error":null}"#.to_vec(), "Bad Request"),
        (400, br#"["error"]"#.to_vec(), "error"),
        (400, long.into_bytes(), "long long"),
        (400, noise, "!\"#$%"),
    ];
    for (status, body, words) in cases {
        for error in errors_of_reads(&world, Response::new(status, body.clone())).await {
            // Without models, `get_model` asks the list as well and says that there is none.
            if matches!(error, Error::UnknownModel { .. }) {
                continue;
            }
            let Error::ProviderRefused {
                status: found,
                message,
                ..
            } = &error
            else {
                panic!("{status}: {error:?}")
            };
            assert_eq!(*found, status);
            assert!(message.contains(words), "{status}: {message}");
            assert!(
                message.chars().count() <= 600 && !message.chars().any(char::is_control),
                "{message:?}"
            );
        }
    }
}

#[tokio::test]
async fn answers_that_are_no_answers_are_refused_with_what_is_wrong() {
    let world = World::start().await;
    let bodies = [
        "",
        "<!doctype html><title>Welcome to nginx!</title>",
        "{\"id\":",
        "\"text\"",
        "[[1]]",
        "-1.5",
        "{\"adapters\":7,\"data\":{},\"id\":[],\"state\":{}}",
    ];
    for body in bodies {
        for error in errors_of_reads(&world, Response::new(200, body)).await {
            assert!(
                matches!(error.code(), "provider_answer_malformed" | "unknown_model"),
                "{body}: {error:?}"
            );
        }
    }
    // The content type is not what decides.
    let id = TaskId::random();
    always(
        &world,
        Response::new(200, task_json(id).to_string()).header("content-type", "text/html"),
    );
    let task = world
        .broker
        .fine_tuning
        .get_task(world.provider, Some(id))
        .await
        .unwrap();
    assert_eq!(task.id, id.to_string());
}

#[tokio::test]
async fn a_task_needs_its_members_and_may_have_more() {
    let world = World::start().await;
    let id = TaskId::random();
    let get = async |task: &Value| {
        always(&world, Response::new(200, task.to_string()));
        world
            .broker
            .fine_tuning
            .get_task(world.provider, Some(id))
            .await
    };
    let mut extended = task_json(id);
    extended["secret"] = json!({ "nested": [1, 2] });
    extended["progress"] = "SomethingNew".into();
    let task = get(&extended).await.unwrap();
    assert_eq!(
        (task.progress.as_str(), task.state()),
        ("SomethingNew", None)
    );

    // What a broker of October 2025 leaves out is optional.
    let mut old = task_json(id);
    for member in ["modelType", "wait", "deliverTime", "deliverIndex"] {
        old.as_object_mut().unwrap().remove(member);
    }
    assert_eq!(get(&old).await.unwrap().deliver_time, 0);

    for member in ["id", "progress", "fee", "nonce", "signature", "datasetHash"] {
        let mut missing = task_json(id);
        missing.as_object_mut().unwrap().remove(member);
        let error = get(&missing).await.unwrap_err();
        assert!(
            error.code() == "provider_answer_malformed" && error.to_string().contains(member),
            "{error}"
        );
        let mut number = task_json(id);
        number[member] = json!(7);
        assert_eq!(
            get(&number).await.unwrap_err().code(),
            "provider_answer_malformed"
        );
    }
}

#[tokio::test]
async fn a_state_of_another_protocol_is_waited_through() {
    let world = World::start().await;
    let id = TaskId::random();
    let mut asked = 0;
    world.answer(move |request| {
        request.path.ends_with(&id.to_string()).then(|| {
            asked += 1;
            let mut task = task_json(id);
            task["progress"] = if asked < 4 {
                "Warming".into()
            } else {
                "Delivered".into()
            };
            Response::new(200, task.to_string())
        })
    });
    let fine_tuning = &world.broker.fine_tuning;
    let task = fine_tuning
        .wait_for_delivery(world.provider, id, &Default::default(), |_| ())
        .await
        .unwrap();
    assert_eq!(task.progress, "Delivered");
}

#[tokio::test]
async fn a_pending_count_is_a_number_and_nothing_else() {
    let world = World::start().await;
    let count = async |body: &str| {
        always(
            &world,
            Response::new(200, body).header("content-type", "text/plain"),
        );
        world
            .broker
            .fine_tuning
            .get_pending_task_counter(world.provider)
            .await
    };
    for (body, expected) in [("0", 0), ("7\n", 7), (" 12 ", 12)] {
        assert_eq!(count(body).await.unwrap(), expected);
    }
    for body in [
        "-1",
        "many",
        "\"3\"",
        "{\"count\":3}",
        "null",
        "1 2",
        "99999999999999999999999",
    ] {
        let error = count(body).await.unwrap_err();
        assert_eq!(error.code(), "provider_answer_malformed", "{body}");
        // An unknown queue is not an empty one: no task is sent.
        let error = world
            .broker
            .fine_tuning
            .create_task(&new_task(&world))
            .await
            .unwrap_err();
        assert_eq!(error.code(), "provider_answer_malformed", "{body}");
    }
    assert!(
        !world
            .requests("/task")
            .iter()
            .any(|request| request.method == "POST")
    );
}

#[tokio::test]
async fn the_originals_refusals_of_a_task_come_through() {
    let world = World::start().await;
    let post = |answer: Response| {
        world.answer(
            move |request| match (request.method.as_str(), request.path.as_str()) {
                ("GET", "/v1/task/pending") => Some(Response::new(200, "0")),
                ("POST", _) => Some(answer.clone()),
                _ => None,
            },
        );
    };
    for text in [
        "register service: unsupported model: not found in predefined models",
        "Provider: register service: cannot create a new task while there are in-progress tasks",
        "register service: task queue is full",
    ] {
        for status in [400, 409] {
            post(Response::new(status, json!({ "error": text }).to_string()));
            let error = world
                .broker
                .fine_tuning
                .create_task(&new_task(&world))
                .await
                .unwrap_err();
            assert!(error.to_string().contains(text), "{error}");
            assert_eq!(error.code(), "provider_refused");
        }
    }
    // Ids go into paths and file names, so they must be ids.
    for body in [
        r#"{}"#,
        r#"{"id":null}"#,
        r#"{"id":"../../etc/passwd"}"#,
        r#"{"id":"6b607314-88b0-4fef-91e7-43227a54de57/../x"}"#,
        r#"{"id":""}"#,
        "created",
    ] {
        post(Response::new(201, body));
        let error = world
            .broker
            .fine_tuning
            .create_task(&new_task(&world))
            .await
            .unwrap_err();
        assert_eq!(error.code(), "provider_answer_malformed", "{body}: {error}");
    }
    // A task is sent once each time, whatever came back.
    let posts = world
        .requests("/task")
        .into_iter()
        .filter(|request| request.method == "POST");
    assert_eq!(posts.count(), 12);
}

#[tokio::test]
async fn a_provider_that_hangs_or_breaks_off_is_given_up_in_time() {
    let world = World::start().await;
    let broker = world.hasty_broker().await;
    let (fine_tuning, id) = (&broker.fine_tuning, TaskId::random());
    let body = task_json(id).to_string();
    let ill = [
        Response::new(200, body.as_str()).sent(Manner::Silent),
        Response::new(200, body.as_str()).sent(Manner::Closed),
        Response::new(200, body.as_str()).sent(Manner::Dripping(Duration::from_millis(40))),
        Response::new(200, body.as_str()).cut_at(20),
    ];
    for response in ill {
        let manner = response.manner;
        always(&world, response);
        let started = Instant::now();
        let error = fine_tuning
            .get_task(world.provider, Some(id))
            .await
            .unwrap_err();
        assert_eq!(error.code(), "provider_unreachable", "{manner:?}: {error}");
        // Four attempts of a quarter of a second and the pauses between them, with room for a busy machine.
        assert!(started.elapsed() < Duration::from_secs(20), "{manner:?}");
    }
    // A task is not sent twice when nobody knows whether it arrived.
    world.answer(|request| match request.method.as_str() {
        "POST" => Some(Response::new(201, "{}").sent(Manner::Silent)),
        _ => request
            .path
            .ends_with("/pending")
            .then(|| Response::new(200, "0")),
    });
    let error = fine_tuning
        .create_task(&new_task(&world))
        .await
        .unwrap_err();
    assert_eq!(error.code(), "provider_unreachable", "{error}");
    let posts = world
        .requests("/task")
        .into_iter()
        .filter(|request| request.method == "POST");
    assert_eq!(posts.count(), 1);
}

#[tokio::test]
async fn endless_and_oversized_answers_are_cut_off() {
    let world = World::start().await;
    always(
        &world,
        Response::new(200, vec![b'['; 1 << 16]).sent(Manner::Endless),
    );
    let error = world
        .broker
        .fine_tuning
        .list_task(world.provider)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("more than"), "{error}");
    let error = world
        .broker
        .fine_tuning
        .get_pending_task_counter(world.provider)
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("more than 4096 bytes"),
        "{error}"
    );
    // An endless refusal is a refusal.
    always(
        &world,
        Response::new(400, vec![b'x'; 1 << 16]).sent(Manner::Endless),
    );
    let error = world
        .broker
        .fine_tuning
        .list_task(world.provider)
        .await
        .unwrap_err();
    assert_eq!(error.code(), "provider_refused");
}

#[tokio::test]
async fn redirects_in_a_circle_end() {
    let world = World::start().await;
    always(
        &world,
        Response::new(302, "").header("location", "/v1/elsewhere"),
    );
    let broker = world.hasty_broker().await;
    let error = broker
        .fine_tuning
        .list_task(world.provider)
        .await
        .unwrap_err();
    assert_eq!(error.code(), "provider_unreachable", "{error}");
}

#[tokio::test]
async fn null_lists_are_empty_lists() {
    let world = World::start().await;
    always(&world, Response::new(200, "null"));
    let (predefined, custom) = world.broker.fine_tuning.list_model().await.unwrap();
    assert!(!predefined.is_empty() && custom.is_empty());
    always(&world, Response::new(200, r#"{"adapters":null}"#));
    let adapters = world
        .broker
        .inference
        .lora
        .list_adapters(world.provider)
        .await;
    assert!(adapters.unwrap().is_empty());
}

/// The original answers 409 to a deployment that is under way, and both published clients give up then.
#[tokio::test]
async fn a_deployment_that_is_under_way_is_joined() {
    let world = World::start().await;
    let name = "ft-mock-model-6b607314-88b";
    let deploy = async |first: &'static str, wait: bool| {
        let mut polls = 0;
        world.answer(move |request: &Request| {
            match (request.method.as_str(), request.path.as_str()) {
                ("POST", "/v1/lora/adapters/deploy") => Some(Response::new(
                    409,
                    r#"{"error":"adapter is in state loading, cannot deploy"}"#,
                )),
                ("GET", path) if path.ends_with(name) => {
                    polls += 1;
                    let state = if polls < 4 { first } else { "active" };
                    let status = json!({ "adapterName": name, "taskId": "t", "state": state });
                    Some(Response::new(200, status.to_string()))
                }
                _ => None,
            }
        });
        let options = DeployOptions {
            wait,
            ..DeployOptions::default()
        };
        let lora = &world.broker.inference.lora;
        lora.deploy_adapter_by_name(world.provider, name, &options, |_| ())
            .await
    };
    assert_eq!(deploy("loading", true).await.unwrap().status, "active");
    assert_eq!(deploy("loading", false).await.unwrap().status, "loading");
    // Without a deployment the refusal stands.
    let error = deploy("archived", false).await.unwrap_err();
    assert!(error.to_string().contains("cannot deploy"), "{error}");
}

/// Brokers until October 2025 wrote the root as hexadecimal text. (Our contract takes 64 bytes: the digits alone.)
#[tokio::test]
async fn a_root_written_as_text_is_understood_and_another_text_is_refused() {
    let world = World::start().await;
    let (fine_tuning, folder) = (&world.broker.fine_tuning, tempfile::tempdir().unwrap());
    let content: Vec<u8> = (0..5_000_u32).map(|index| index as u8).collect();
    let source = folder.path().join("source");
    std::fs::write(&source, &content).unwrap();
    let root = zerog_storage::merkle::root_of_file(&source).unwrap();
    world.answer(move |request| {
        let asked = request.path.ends_with("/lora");
        asked.then(|| Response::ranged(request, &content))
    });
    let acknowledge = async |task, name: &str| {
        let path = folder.path().join(name);
        let done = fine_tuning
            .acknowledge_model(world.provider, task, &path, DownloadMethod::Tee, |_| ())
            .await;
        (done, path)
    };

    let task = TaskId::random();
    let digits = root.to_string().trim_start_matches("0x").to_owned();
    world.deliver_as(task, digits.into_bytes().into()).await;
    let (done, path) = acknowledge(task, "text.enc").await;
    assert_eq!(done.unwrap().model_root_hash, root);
    assert!(path.is_file() && world.is_acknowledged(task).await);

    let task = TaskId::random();
    world.deliver_as(task, b"0x12,0x34".to_vec().into()).await;
    let (done, path) = acknowledge(task, "odd.enc").await;
    let error = done.unwrap_err();
    assert_eq!(error.code(), "provider_answer_malformed");
    assert!(error.to_string().contains("hash on chain"), "{error}");
    assert!(!path.exists() && !world.is_acknowledged(task).await);
}

/// A gateway in front of a provider that restarts: the deployment was accepted, its progress cannot be asked for a while.
#[tokio::test]
async fn a_deployment_is_waited_for_through_a_restart() {
    let world = World::start().await;
    let name = "ft-mock-model-6b607314-88b";
    for (status, times) in [(503, 1), (502, 6)] {
        let (mut deployed, mut failures) = (false, 0);
        world.answer(move |request: &Request| {
            match (request.method.as_str(), request.path.as_str()) {
                ("POST", "/v1/lora/adapters/deploy") => {
                    assert!(!deployed, "an accepted deployment is not sent again");
                    deployed = true;
                    let accepted =
                        json!({ "status": "loading", "adapterName": name, "message": "" });
                    Some(Response::new(200, accepted.to_string()))
                }
                ("GET", path) if path.ends_with(name) && !deployed => {
                    let ready = json!({ "adapterName": name, "taskId": "t", "state": "ready" });
                    Some(Response::new(200, ready.to_string()))
                }
                ("GET", path) if path.ends_with(name) => {
                    failures += 1;
                    if failures <= times {
                        return Some(Response::new(status, "restarting"));
                    }
                    let active = json!({ "adapterName": name, "taskId": "t", "state": "active" });
                    Some(Response::new(200, active.to_string()))
                }
                _ => None,
            }
        });
        let options = DeployOptions {
            wait: true,
            ..DeployOptions::default()
        };
        let lora = &world.broker.inference.lora;
        let done = lora
            .deploy_adapter_by_name(world.provider, name, &options, |_| ())
            .await;
        assert_eq!(done.unwrap().status, "active", "{status}");
    }
}
