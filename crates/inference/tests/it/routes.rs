//! The OpenAI routes: streams equal whole answers, and errors have OpenAI's bodies.

use axum::body::Body;
use axum::http::{Request, header};
use futures::StreamExt;
use serde_json::json;
use tower::ServiceExt;
use zerog_inference::engine::{EngineConfig, EngineHandle};
use zerog_inference::{AnswerId, DONE, ReplyEvent, Served, Target, openai_api, router, service};

use crate::world::{chat, chunks, config, endless, load, post, start, text, until, value};

async fn world() -> (EngineHandle, axum::Router) {
    let engine = start(config());
    load(&engine, "ft-tiny-1", 1).await;
    let served = Served {
        engine: engine.clone(),
        base_names: ["tiny".to_owned(), "mock-model".to_owned()].into(),
        created_s: 7,
    };
    (engine, router(served))
}

#[tokio::test]
async fn a_stream_says_what_a_whole_answer_says() {
    let (_, router) = world().await;
    for model in ["tiny", "ft-tiny-1"] {
        let more = json!({"temperature": 0.8, "seed": 11, "max_tokens": 40});
        let whole = post(&router, "/chat/completions", &chat(model, "Hello", &more)).await;
        assert_eq!(whole.status(), 200);
        let whole = value(whole).await;
        let more = json!({"temperature": 0.8, "seed": 11, "max_tokens": 40, "stream": true,
            "stream_options": {"include_usage": true}});
        let stream = post(
            &router,
            "/v1/chat/completions",
            &chat(model, "Hello", &more),
        )
        .await;
        assert_eq!(stream.headers()[header::CONTENT_TYPE], "text/event-stream");
        let chunks = chunks(&text(stream).await);
        let content: String = chunks
            .iter()
            .filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str())
            .collect();
        assert_eq!(
            content,
            whole["choices"][0]["message"]["content"].as_str().unwrap()
        );
        assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
        let (last, before) = chunks.split_last().unwrap();
        assert_eq!(
            last["usage"]["total_tokens"],
            whole["usage"]["total_tokens"]
        );
        assert!(last["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64() > Some(0));
        assert_eq!(last["choices"], json!([]));
        assert!(
            before
                .iter()
                .all(|chunk| chunk["usage"].is_null() && chunk["model"] == model)
        );
        let reason = &before.last().unwrap()["choices"][0]["finish_reason"];
        assert_eq!(reason, &whole["choices"][0]["finish_reason"]);
        assert_eq!(whole["object"], "chat.completion");
        assert_eq!(whole["model"], model);
        assert!(whole["id"].as_str().unwrap().starts_with("chatcmpl-"));
    }
}

#[tokio::test]
async fn usage_is_exact_and_choices_are_several() {
    let (engine, router) = world().await;
    let more = json!({"n": 3, "seed": 1, "max_tokens": 5, "logit_bias": {"257": -100}, "logprobs": true, "top_logprobs": 2});
    let body = value(post(&router, "/chat/completions", &chat("tiny", "Hi", &more)).await).await;
    let rendered = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n";
    let prompt = engine.tokenizer().encode(rendered, false).unwrap().len() as u64;
    assert_eq!(
        body["usage"],
        json!({"prompt_tokens": prompt, "completion_tokens": 15, "total_tokens": prompt + 15,
            "prompt_tokens_details": {"cached_tokens": 0}})
    );
    let choices = body["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 3);
    assert_ne!(
        choices[0]["message"]["content"],
        choices[1]["message"]["content"]
    );
    let logprobs = choices[2]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(
        (
            logprobs.len(),
            logprobs[0]["top_logprobs"].as_array().unwrap().len()
        ),
        (5, 2)
    );
}

#[tokio::test]
async fn completions_and_models_answer() {
    let (_, router) = world().await;
    let body = json!({"model": "mock-model", "prompt": "abc", "temperature": 0, "max_tokens": 4, "echo": true});
    let body = value(post(&router, "/completions", &body).await).await;
    assert_eq!(body["object"], "text_completion");
    assert!(
        body["choices"][0]["text"]
            .as_str()
            .unwrap()
            .starts_with("abc")
    );
    let request = Request::get("/v1/models").body(Body::empty()).unwrap();
    let models = value(router.clone().oneshot(request).await.unwrap()).await;
    let ids: Vec<&str> = models["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|model| model["id"].as_str().unwrap())
        .collect();
    assert_eq!(ids, ["tiny", "mock-model", "ft-tiny-1"]);
    assert_eq!(models["data"][2]["parent"], "tiny");
    for (name, status) in [("ft-tiny-1", 200), ("tiny", 200), ("org/other", 404)] {
        let request = Request::get(format!("/models/{name}"))
            .body(Body::empty())
            .unwrap();
        let answer = router.clone().oneshot(request).await.unwrap();
        assert_eq!(answer.status(), status, "{name}");
        let answer = value(answer).await;
        assert!(answer["id"] == name || answer["error"]["code"] == "model_not_found");
    }
}

#[tokio::test]
async fn errors_have_openais_bodies() {
    let (_, router) = world().await;
    let cases = [
        (chat("nobody", "x", &json!({})), 404, "model_not_found"),
        (chat("tiny", "x", &json!({"temperature": 9})), 400, ""),
        (
            chat("tiny", &"x".repeat(5000), &json!({})),
            400,
            "context_length_exceeded",
        ),
    ];
    for (body, status, code) in cases {
        let response = post(&router, "/chat/completions", &body).await;
        assert_eq!(response.status(), status);
        let error = value(response).await["error"].clone();
        assert_eq!(error["type"], "invalid_request_error");
        assert_eq!(error["code"].as_str().unwrap_or_default(), code);
        assert!(error["message"].is_string() && error.get("param").is_some());
    }
    let request = Request::post("/chat/completions")
        .body(Body::from("{"))
        .unwrap();
    assert_eq!(router.clone().oneshot(request).await.unwrap().status(), 400);
}

#[tokio::test]
async fn a_busy_engine_answers_429_with_a_time() {
    let engine = start(EngineConfig {
        max_running: 1,
        max_waiting: 0,
        ..config()
    });
    let router = router(Served {
        engine: engine.clone(),
        base_names: ["tiny".to_owned()].into(),
        created_s: 0,
    });
    let running = engine.generate(endless("long", None, 4000)).unwrap();
    let response = post(&router, "/chat/completions", &chat("tiny", "x", &json!({}))).await;
    assert_eq!(response.status(), 429);
    assert_eq!(response.headers()[header::RETRY_AFTER], "1");
    assert_eq!(value(response).await["error"]["type"], "rate_limit_error");
    drop(running);
    until(&engine, |engine| engine.stats().running == 0).await;
}

#[tokio::test]
async fn a_reader_who_leaves_stops_the_computation_and_can_be_billed() {
    let engine = start(config());
    let body = chat(
        "tiny",
        "x",
        &json!({"stream": true, "max_tokens": 4000, "logit_bias": {"257": -100}}),
    );
    let request = openai_api::parse_chat(body.to_string().as_bytes()).unwrap();
    let target = Target {
        model: "tiny".into(),
        ..Target::default()
    };
    let id = AnswerId {
        id: "chatcmpl-1".into(),
        created_s: 5,
    };
    let prepared = service::prepare_here(engine.tokenizer(), request).unwrap();
    let started = prepared.start(&engine, target, id).unwrap();
    let mut stream = started.into_stream();
    let meter = stream.meter();
    for _ in 0..5 {
        let Some(ReplyEvent::Bytes(bytes)) = stream.next().await else {
            panic!("the stream ended")
        };
        assert!(bytes.starts_with(b"data: {\"id\":\"chatcmpl-1\""));
    }
    drop(stream);
    until(&engine, |engine| engine.stats().running == 0).await;
    let billed = meter.now();
    assert!(
        billed.completion_tokens >= 4 && billed.completion_tokens < 4000,
        "{billed:?}"
    );
}

#[tokio::test]
async fn the_last_item_of_a_stream_is_its_usage() {
    let engine = start(config());
    let body = chat(
        "tiny",
        "x",
        &json!({"stream": true, "max_tokens": 3, "logit_bias": {"257": -100}}),
    );
    let request = openai_api::parse_chat(body.to_string().as_bytes()).unwrap();
    let target = Target {
        model: "ft-name".into(),
        ..Target::default()
    };
    let prepared = service::prepare_here(engine.tokenizer(), request).unwrap();
    let started = prepared
        .start(&engine, target, AnswerId::fresh(openai_api::Route::Chat))
        .unwrap();
    let events: Vec<ReplyEvent> = started.into_stream().collect().await;
    let Some((ReplyEvent::Finished { usage, error: None }, bytes)) = events.split_last() else {
        panic!("{events:?}")
    };
    assert_eq!(usage.completion_tokens, 3);
    let Some(ReplyEvent::Bytes(done)) = bytes.last() else {
        panic!("no bytes")
    };
    assert_eq!(done, DONE.as_bytes());
}
