//! Statuses and bodies of the routes, good and bad input, over loopback.

use serde_json::json;
use zerog_protocol::{TaskId, signing};
use zerog_provider::Provider;

use crate::world::{MOCK_MODEL, User, World, dataset, now_s, send};

async fn start() -> (World, Provider, User) {
    let world = World::start().await;
    let mut config = world.config("p");
    config.limits.max_dataset_bytes = 100_000;
    let provider = Provider::start(config).await.unwrap();
    world.accept(&provider).await;
    let user = world.user(3, &provider).await;
    (world, provider, user)
}

#[tokio::test]
async fn every_refusal_is_json_and_public_routes_answer() {
    let (_world, provider, user) = start().await;
    user.get("/v1/nothing")
        .await
        .refusal(404, "route_not_found");
    send(user.http.put(format!("{}/v1/model", user.url)))
        .await
        .refusal(405, "method_not_allowed");
    user.get("/v1/user/nonsense/task")
        .await
        .refusal(400, "invalid_address");
    user.post(&user.path("task"), json!({"fee": 1}))
        .await
        .refusal(400, "invalid_body");
    let huge = send(user.http.post(user.path("task")).body("x".repeat(2 << 20))).await;
    assert_eq!(huge.status, 413);
    assert!(huge.json()["error"].is_string());

    assert_eq!(user.get("//v1//model").await.json(), json!([]));
    assert_eq!(user.get("/v1/task/pending").await.text(), "0");
    assert_eq!(
        user.get(&format!("/v1/user/{}/task", user.address()))
            .await
            .json(),
        json!([])
    );
    for name in [
        "mock-model",
        "Qwen2.5-0.5B-Instruct",
        MOCK_MODEL,
        "Qwen/Qwen2.5-0.5B-Instruct",
    ] {
        let model = user
            .get(&format!("/v1/model/{}", name.replace('/', "%2F")))
            .await
            .json();
        assert!(model["hash"].as_str().unwrap().starts_with("0x"), "{model}");
        assert!(
            model["stand_in"].is_null(),
            "camel case on the wire: {model}"
        );
        assert_eq!(
            model["standIn"] == json!(true),
            name.contains("Qwen"),
            "{model}"
        );
    }
    user.get("/v1/model/none")
        .await
        .refusal(404, "unknown_model");
    let tokenizer = user.get("/v1/model/mock-model/tokenizer").await;
    assert!(tokenizer.body.starts_with(b"PK"));
    let etag = tokenizer.headers["etag"]
        .to_str()
        .unwrap()
        .trim_matches('"')
        .to_owned();
    assert_eq!(
        user.get("/v1/model/mock-model").await.json()["tokenizerSha256"],
        etag
    );
    let usage = user.get("/v1/model/desc/mock-model").await;
    assert_eq!(usage.headers["content-type"], "application/zip");

    let quote = user.get("/v1/quote").await;
    assert_eq!(quote.headers["x-tee-mode"], "simulated");
    let signature = quote.headers["zg-quote-signature"].to_str().unwrap();
    assert!(zerog_attestation::bundle::body_signature_is_valid(
        &quote.body,
        signature,
        provider.signer()
    ));
    assert!(quote.json()["report_data"].is_string() && quote.json()["tcb_info"].is_string());
    let structured = user.get("/v1/quote?legacy=false").await;
    let bundle = zerog_attestation::QuoteBundle::parse(&structured.body).unwrap();
    assert!(bundle.seals("v1"));
    user.get("/v1/quote?nonce=12")
        .await
        .refusal(400, "invalid_nonce");
    let fresh = user
        .get(&format!("/v1/quote?nonce=0x{}", "07".repeat(32)))
        .await;
    assert_eq!(fresh.status, 200);
    assert_eq!(user.get("/health").await.json()["status"], "ok");
    assert_eq!(
        user.get("/v1/models").await.json()["data"][0]["id"],
        "Qwen2.5-0.5B-Instruct"
    );
    assert_eq!(
        user.get("/v1/capabilities").await.json()["fine_tuning"]["adapter_prefix"],
        "ft-"
    );
    provider.shutdown().await;
}

#[tokio::test]
async fn bad_datasets_are_refused_with_the_line() {
    let (_world, provider, user) = start().await;
    let bad = user
        .upload(
            "d.jsonl",
            b"{\"prompt\":\"a\",\"completion\":\"b\"}\n{oops\n",
        )
        .await;
    let text = bad.refusal(400, "invalid_dataset");
    assert!(
        text.starts_with("save dataset: invalid JSONL format:") && text.contains('2'),
        "{text}"
    );
    user.upload("d.jsonl", b"")
        .await
        .refusal(400, "invalid_dataset");
    user.upload("d.jsonl", b"\n\n")
        .await
        .refusal(400, "invalid_dataset");
    user.upload("d.txt", b"{}").await.refusal(400, "file_type");
    user.upload("../d.jsonl", b"{}")
        .await
        .refusal(400, "file_type");
    user.upload("d.jsonl", "x".repeat(200_000).as_bytes())
        .await
        .refusal(413, "file_too_large");

    let part = || reqwest::multipart::Part::bytes(dataset().into_bytes()).file_name("d.jsonl");
    let upload = async |form| send(user.http.post(user.path("dataset")).multipart(form)).await;
    let text = upload(reqwest::multipart::Form::new().part("file", part()))
        .await
        .refusal(401, "unauthorized");
    assert_eq!(text, "Signature is required");
    let old = now_s() - 400;
    let sign = |at: u64| {
        signing::sign_personal(
            &user.key,
            signing::dataset_upload_hash(&user.address().to_string(), at),
        )
    };
    let form = |at: u64, signature: String| {
        reqwest::multipart::Form::new()
            .text("signature", signature)
            .text("timestamp", at.to_string())
            .part("file", part())
    };
    assert!(
        upload(form(old, sign(old)))
            .await
            .refusal(401, "timestamp")
            .contains("too old")
    );
    upload(form(now_s(), sign(5)))
        .await
        .refusal(401, "invalid_signature");
    let now = now_s();
    let good = upload(form(now, sign(now))).await;
    assert_eq!(good.status, 200, "{}", good.text());
    let hash = alloy_primitives::keccak256(dataset()).to_string();
    assert_eq!(good.json()["datasetHash"], hash);
    // The same again, in the other order of parts.
    assert_eq!(
        user.upload("d.json", dataset().as_bytes()).await.json()["datasetHash"],
        hash
    );
    provider.shutdown().await;
}

#[tokio::test]
async fn bad_tasks_are_refused_before_they_are_accepted() {
    let (world, provider, user) = start().await;
    let hash = user.upload("d.jsonl", dataset().as_bytes()).await.json()["datasetHash"]
        .as_str()
        .unwrap()
        .to_owned();
    let nonce = now_s() * 10_000_000 + 40;
    let good = user.task_request(&hash, nonce);
    let with = |key: &str, value: serde_json::Value| {
        let mut request = good.clone();
        request[key] = value;
        request
    };
    let refused =
        async |request, status, code: &str| user.create(request).await.refusal(status, code);
    let text = refused(
        with(
            "preTrainedModelHash",
            json!(format!("0x{}", "11".repeat(32))),
        ),
        400,
        "unknown_model",
    )
    .await;
    assert!(
        text.starts_with("register service: unsupported model"),
        "{text}"
    );
    let text = refused(
        with("trainingParams", json!("{\"lerning_rate\":1}")),
        400,
        "invalid_training_params",
    )
    .await;
    assert!(text.contains("learning_rate"), "{text}");
    refused(
        with("trainingParams", json!("{\"num_train_epochs\":1000}")),
        400,
        "invalid_training_params",
    )
    .await;
    refused(
        with("datasetHash", json!("0x12")),
        400,
        "invalid_dataset_hash",
    )
    .await;
    refused(with("nonce", json!("abc")), 400, "invalid_nonce").await;
    refused(with("nonce", json!("41")), 401, "invalid_signature").await;
    refused(
        with("userAddress", json!(provider.address().to_string())),
        400,
        "invalid_address",
    )
    .await;
    refused(
        user.task_request(&format!("0x{}", "22".repeat(32)), nonce),
        400,
        "dataset_not_found",
    )
    .await;
    refused(with("fee", json!("1")), 400, "fee_above_limit").await;
    refused(user.task_request(&hash, 0), 400, "nonce_too_low").await;

    let stranger = world.stranger(4, &provider).await;
    let text = stranger
        .create(stranger.task_request(&hash, nonce))
        .await
        .refusal(400, "account_missing");
    assert!(text.contains("transfer-fund"), "{text}");

    let created = user.create(good.clone()).await;
    assert_eq!(created.status, 201, "{}", created.text());
    let id: TaskId = created.json()["id"].as_str().unwrap().parse().unwrap();
    // The answer got lost and the client asks again: the same task.
    assert_eq!(user.create(good).await.json()["id"], id.to_string());
    let text = user
        .create(user.task_request(&hash, nonce + 1))
        .await
        .refusal(409, "unfinished_task");
    assert!(text.contains(&id.to_string()), "{text}");

    send(user.http.get(user.path("task/nonsense")))
        .await
        .refusal(400, "invalid_task_id");
    send(
        user.http
            .get(user.path(&format!("task/{}", TaskId::random()))),
    )
    .await
    .refusal(404, "task_not_found");
    let foreign = format!("{}/v1/user/{}/task/{id}", user.url, stranger.address());
    send(user.http.get(&foreign))
        .await
        .refusal(404, "task_not_found");
    send(user.http.get(format!("{foreign}/log")))
        .await
        .refusal(403, "forbidden");

    let cancel = user.path(&format!("task/{id}/cancel"));
    let wrong = signing::sign_personal(&stranger.key, signing::cancel_task_hash(id));
    user.post(&cancel, json!({"signature": wrong}))
        .await
        .refusal(401, "invalid_signature");
    let signature = signing::sign_personal(&user.key, signing::cancel_task_hash(id));
    let lora = user.path(&format!("task/{id}/lora"));
    let now = now_s();
    let request = json!({"signature": signing::sign_personal(&user.key, signing::lora_download_hash(id, now)), "timestamp": now});
    user.post(&lora, request).await.refusal(409, "not_ready");
    let cancelled = user.post(&cancel, json!({"signature": signature})).await;
    assert_eq!(
        (cancelled.status, cancelled.text()),
        (200, format!("task {id} cancelled"))
    );
    let text = user
        .post(&cancel, json!({"signature": signature}))
        .await
        .refusal(409, "not_cancellable");
    assert!(text.contains("(Cancelled)"), "{text}");
    let log = user.log(id).await;
    assert!(
        log.contains("creating task....") && log.contains("cancelled"),
        "{log}"
    );
    provider.shutdown().await;
}

#[tokio::test]
async fn chat_needs_a_token_an_account_and_a_model() {
    let (world, provider, user) = start().await;
    let body = json!({"model": "Qwen2.5-0.5B-Instruct", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4});
    let chat = "/v1/proxy/chat/completions";
    let bare = user
        .post(&format!("{}{chat}", user.url), body.clone())
        .await;
    assert_eq!(
        (bare.status, bare.json()["error"]["code"].as_str()),
        (401, Some("invalid_token"))
    );
    let stranger = world.stranger(5, &provider).await;
    let unfunded = stranger.post_signed(chat, body.clone()).await;
    assert_eq!(
        (unfunded.status, unfunded.json()["error"]["code"].as_str()),
        (402, Some("account_missing"))
    );
    let mut foreign = user.clone();
    foreign.provider = user.address();
    assert_eq!(foreign.post_signed(chat, body.clone()).await.status, 401);
    let mut unknown = body.clone();
    unknown["model"] = json!("ft-none-123");
    assert_eq!(user.post_signed(chat, unknown).await.status, 404);
    let mut nonsense = body.clone();
    nonsense["temperature"] = json!(99);
    assert_eq!(user.post_signed(chat, nonsense).await.status, 400);
    user.get_signed("/v1/proxy/nothing")
        .await
        .refusal(404, "unsupported_endpoint");
    user.get("/v1/proxy/signature/none")
        .await
        .refusal(404, "chat_id_not_found");
    user.get_signed("/v1/lora/adapters/none")
        .await
        .refusal(404, "adapter_not_found");
    user.get("/v1/lora/adapters")
        .await
        .refusal(401, "invalid_token");
    assert_eq!(
        user.get_signed("/v1/lora/adapters").await.json(),
        json!({"adapters": []})
    );

    for path in [chat, "/v1/proxy/v1/chat/completions/"] {
        let answer = user.post_signed(path, body.clone()).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert!(answer.json()["choices"][0]["message"]["content"].is_string());
        let key = answer.headers["zg-res-key"].to_str().unwrap().to_owned();
        for id in [key, answer.json()["id"].as_str().unwrap().to_owned()] {
            let signature = user
                .get(&format!("/v1/proxy/signature/{id}?model=x"))
                .await
                .json();
            let text = signing::response_text(
                signing::sha256(body.to_string().as_bytes()),
                signing::sha256(&answer.body),
            );
            assert_eq!(signature["text"], text);
            let signer =
                signing::recover_response_signer(&text, signature["signature"].as_str().unwrap())
                    .unwrap();
            assert_eq!(signer, provider.signer());
        }
    }
    let mut streamed = body.clone();
    streamed["stream"] = json!(true);
    let answer = user.post_signed(chat, streamed.clone()).await;
    assert!(
        answer.text().ends_with("data: [DONE]\n\n"),
        "{}",
        answer.text()
    );
    let key = answer.headers["zg-res-key"].to_str().unwrap();
    let signature = user.get(&format!("/v1/proxy/signature/{key}")).await.json();
    let text = signing::response_text(
        signing::sha256(streamed.to_string().as_bytes()),
        signing::sha256(&answer.body),
    );
    assert_eq!(signature["text"], text);

    let path = format!("/v1/user/{}/unsettledfee", user.address());
    let fee = user.get_signed(&path).await.json();
    assert_ne!(fee["unsettledFee"], "0");
    let other = format!("/v1/user/{}/unsettledfee", provider.address());
    user.get_signed(&other).await.refusal(403, "forbidden");

    // A revoked generation is refused at once, and the text says which one counts.
    user.chain
        .inference()
        .revoke_all_tokens(provider.address())
        .await
        .unwrap();
    let started = std::time::Instant::now();
    loop {
        let answer = user.post_signed(chat, body.clone()).await;
        if answer.status == 401 {
            assert!(
                answer.text().contains("current generation 1"),
                "{}",
                answer.text()
            );
            break;
        }
        assert!(
            started.elapsed().as_secs() < 20,
            "the revocation was not noticed"
        );
    }
    provider.shutdown().await;
}
