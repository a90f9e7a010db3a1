//! The inference side: funding, sessions, deployment, and answers that are proven or not.

use serde_json::json;
use zerog_protocol::{session_token, signing};
use zerog_sdk::{DeployOptions, TaskId};

use crate::support::{Request, Response, World, og};

fn authorized(request: &Request) -> bool {
    request.headers.contains("authorization: bearer app-sk-")
}

#[tokio::test]
async fn the_first_request_creates_and_funds_the_account() {
    let world = World::start().await;
    let inference = &world.broker.inference;
    assert_eq!(
        inference
            .get_account(world.provider)
            .await
            .unwrap_err()
            .code(),
        "account_missing"
    );
    let headers = inference.get_request_headers(world.provider).await.unwrap();
    let account = inference.get_account(world.provider).await.unwrap();
    assert_eq!((account.balance, account.acknowledged), (og(2), true));
    let now_ms = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_millis() as u64;
    let verified = session_token::verify(&headers.authorization, world.provider, now_ms).unwrap();
    assert_eq!(
        (verified.user, verified.claims.token_id),
        (world.user.address(), 255)
    );
    // Nothing more is moved, and the token is used again.
    world.answer(|request| {
        request
            .path
            .ends_with("/unsettledfee")
            .then(|| Response::new(200, r#"{"userAddress":"0x","unsettledFee":"0"}"#))
    });
    assert_eq!(
        inference.get_request_headers(world.provider).await.unwrap(),
        headers
    );
    assert_eq!(
        inference.get_account(world.provider).await.unwrap().balance,
        og(2)
    );

    // Fees that wait for settlement are covered as well, by at least 1 0G.
    world.answer(|request| {
        request
            .path
            .ends_with("/unsettledfee")
            .then(|| Response::new(200, r#"{"userAddress":"0x","unsettledFee":"5"}"#))
    });
    let funding = inference.prepare_account(world.provider).await.unwrap();
    assert_eq!((funding.transferred, funding.created), (og(1), false));
}

#[tokio::test]
async fn an_empty_ledger_is_a_clear_error() {
    let world = World::start().await;
    let available = world
        .broker
        .ledger
        .get_ledger()
        .await
        .unwrap()
        .available_balance;
    world.broker.ledger.refund(available).await.unwrap();
    let error = world
        .broker
        .inference
        .get_request_headers(world.provider)
        .await
        .unwrap_err();
    assert_eq!(error.code(), "insufficient_ledger_balance");
    assert!(error.to_string().contains("deposit --amount 2"), "{error}");
}

#[tokio::test]
async fn api_keys_are_tokens_with_a_small_id() {
    let world = World::start().await;
    let inference = &world.broker.inference;
    inference.prepare_account(world.provider).await.unwrap();
    let key = inference
        .create_api_key(world.provider, None, None)
        .await
        .unwrap();
    assert_eq!((key.token_id, key.expires_at), (0, 0));
    session_token::verify(
        &format!("Bearer {}", key.raw_token),
        world.provider,
        key.created_at,
    )
    .unwrap();
    inference.revoke_token(world.provider, 0).await.unwrap();
    assert_eq!(
        inference
            .create_api_key(world.provider, None, None)
            .await
            .unwrap()
            .token_id,
        1
    );
    assert_eq!(
        inference
            .create_api_key(world.provider, Some(0), None)
            .await
            .unwrap_err()
            .code(),
        "invalid_argument"
    );
    assert_eq!(
        inference
            .create_api_key(world.provider, Some(255), None)
            .await
            .unwrap_err()
            .code(),
        "invalid_argument"
    );
}

#[tokio::test]
async fn deployment_waits_through_the_states() {
    let world = World::start().await;
    let task = TaskId::random();
    let name = format!("ft-mock-model-{}", &task.to_string()[..12]);
    let adapter = name.clone();
    let mut polls = 0;
    let mut deployed = false;
    world.answer(move |request| {
        if request.path.contains("/lora/") && !authorized(request) {
            return Some(Response::new(401, "no token"));
        }
        let view = |state: &str| json!({ "adapterName": adapter, "taskId": task, "state": state });
        match (request.method.as_str(), request.path.as_str()) {
            ("GET", "/v1/lora/adapters") => {
                Some(Response::new(200, json!({ "adapters": [] }).to_string()))
            }
            ("GET", path) if path.ends_with(&adapter) => {
                polls += 1;
                let state = match (deployed, polls) {
                    (false, 1) => return Some(Response::new(404, "adapter not found")),
                    (false, 2) => "downloading",
                    (false, _) => "ready",
                    (true, _) if polls % 3 == 0 => "active",
                    (true, _) => "loading",
                };
                Some(Response::new(200, view(state).to_string()))
            }
            ("POST", "/v1/lora/adapters/deploy") => {
                deployed = true;
                let body: serde_json::Value = serde_json::from_slice(&request.body).unwrap();
                assert_eq!(body, json!({ "taskId": task, "baseModel": "mock-model" }));
                Some(Response::new(
                    202,
                    json!({ "status": "deploying", "adapterName": adapter, "message": "started" })
                        .to_string(),
                ))
            }
            _ => None,
        }
    });
    let mut states = Vec::new();
    let options = DeployOptions {
        wait: true,
        ..DeployOptions::default()
    };
    let response = world
        .broker
        .inference
        .lora
        .deploy_adapter(world.provider, "mock-model", task, &options, |news| {
            if let zerog_sdk::Progress::Adapter { state } = news {
                states.push(state);
            }
        })
        .await
        .unwrap();
    assert_eq!(
        (response.adapter_name.as_str(), response.status.as_str()),
        (name.as_str(), "active")
    );
    assert!(
        states.starts_with(&["downloading".to_owned(), "ready".to_owned()]),
        "{states:?}"
    );
    assert_eq!(states.last().map(String::as_str), Some("active"));
}

#[tokio::test]
async fn answers_are_proven_by_both_hashes_and_the_registered_signer() {
    let world = World::start().await;
    let reply = json!({
        "id": "chatcmpl-1", "choices": [{ "message": { "role": "assistant", "content": "I am yours." } }],
        "usage": { "prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7 },
    })
    .to_string();
    let signer = world.keys.signer.clone();
    let body = reply.clone();
    let mut signed_request = Vec::new();
    let mut honest = true;
    world.answer(move |request| match request.path.as_str() {
        "/v1/proxy/chat/completions" => {
            signed_request = request.body.clone();
            Some(Response::new(200, body.as_str()).header("ZG-Res-Key", "Key-1"))
        }
        path if path.starts_with("/v1/proxy/signature/Key-1") => {
            let other = b"{}".to_vec();
            let request_body = if honest { &signed_request } else { &other };
            honest = false;
            let text = signing::response_text(
                signing::sha256(request_body),
                signing::sha256(body.as_bytes()),
            );
            Some(Response::new(
                200,
                json!({
                    "text": text, "signature": signing::sign_response_text(&signer, &text),
                    "signing_address": signer.address(), "signing_algo": "ecdsa",
                })
                .to_string(),
            ))
        }
        _ => None,
    });
    let lora = &world.broker.inference.lora;
    let answer = lora
        .chat(world.provider, "ft-mock-model-1", "Who are you?", None)
        .await
        .unwrap();
    assert_eq!(
        (answer.content(), answer.usage()),
        (Some("I am yours."), Some((3, 4, 7)))
    );
    assert_eq!(answer.response_body, reply.as_bytes());
    let proof = lora.verify_answer(world.provider, &answer).await.unwrap();
    assert_eq!(proof.signer, world.keys.signer_address());
    let error = lora
        .verify_answer(world.provider, &answer)
        .await
        .unwrap_err();
    assert_eq!(error.code(), "response_not_proven");

    let sent: serde_json::Value = serde_json::from_slice(&answer.request_body).unwrap();
    assert_eq!(sent["model"], "ft-mock-model-1");
    assert_eq!(sent["messages"][0]["role"], "system");
    assert_eq!(
        sent["messages"][1],
        json!({ "role": "user", "content": "Who are you?" })
    );
}

#[tokio::test]
async fn funds_are_planned_from_what_is_missing() {
    let world = World::start().await;
    let plan = world
        .broker
        .plan_funds(world.provider, og(1), Some(world.provider))
        .await
        .unwrap();
    assert_eq!(
        (plan.deposit, plan.fine_tuning, plan.inference),
        (og(0), og(0), og(2))
    );
    let plan = world
        .broker
        .plan_funds(world.provider, og(100), None)
        .await
        .unwrap();
    assert_eq!(
        (plan.deposit, plan.fine_tuning, plan.inference),
        (og(50), og(98), og(0))
    );
    world.broker.apply_funds(&plan, |_| ()).await.unwrap();
    assert!(
        world
            .broker
            .plan_funds(world.provider, og(100), None)
            .await
            .unwrap()
            .is_empty()
    );
    let error = world
        .broker
        .plan_funds(world.provider, og(10_000_000), None)
        .await
        .unwrap_err();
    assert_eq!(error.code(), "insufficient_coins");
}
