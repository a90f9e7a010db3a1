//! Every parameter of the interface, with a test that fails when it is ignored.

use serde_json::{Value, json};
use zerog_inference::Served;
use zerog_inference::router;

use crate::world::{chat, chunks, config, load, post, start, text, value};

/// Two tokens that outweigh all others, `a` a little before `b`; the end of turn cannot come.
fn two_letters() -> Value {
    json!({"97": 60.0, "98": 59.5, "257": -100, "256": -100})
}

async fn served() -> axum::Router {
    let engine = start(config());
    load(&engine, "ft-tiny-1", 1).await;
    router(Served {
        engine,
        base_names: ["tiny".to_owned()].into(),
        created_s: 7,
    })
}

/// The whole answer to a chat, with the end of turn out of reach unless biases are given.
async fn ask(router: &axum::Router, more: Value) -> Value {
    let mut body = chat("tiny", "Say a word", &more);
    if body.get("logit_bias").is_none() {
        body["logit_bias"] = json!({"257": -100, "256": -100});
    }
    let response = post(router, "/chat/completions", &body).await;
    let status = response.status();
    let answer = value(response).await;
    assert_eq!(status, 200, "{answer}");
    answer
}

async fn content(router: &axum::Router, more: Value) -> String {
    let answer = ask(router, more).await;
    answer["choices"][0]["message"]["content"]
        .as_str()
        .unwrap()
        .to_owned()
}

fn with(mut parameters: Value, name: &str, value: Value) -> Value {
    parameters[name] = value;
    parameters
}

#[tokio::test]
async fn temperature_and_seed() {
    let router = served().await;
    let hot = |seed: Option<u64>| json!({"temperature": 1.5, "seed": seed, "max_tokens": 30});
    let greedy = content(&router, json!({"temperature": 0, "max_tokens": 30})).await;
    let again = content(
        &router,
        json!({"temperature": 0, "seed": 5, "max_tokens": 30}),
    )
    .await;
    assert_eq!(greedy, again, "without chance the seed does not matter");
    let first = content(&router, hot(Some(1))).await;
    assert_ne!(first, greedy);
    assert_eq!(first, content(&router, hot(Some(1))).await);
    assert_ne!(first, content(&router, hot(Some(2))).await);
    let (one, other) = (
        content(&router, hot(None)).await,
        content(&router, hot(None)).await,
    );
    assert_ne!(one, other, "without a seed every answer is drawn anew");
}

#[tokio::test]
async fn cuts_of_the_candidates() {
    let router = served().await;
    let greedy = content(&router, json!({"temperature": 0, "max_tokens": 20})).await;
    let hot = json!({"temperature": 2, "seed": 3, "max_tokens": 20});
    assert_ne!(content(&router, hot.clone()).await, greedy);
    for (name, strict) in [
        ("top_k", json!(1)),
        ("top_p", json!(1e-6)),
        ("min_p", json!(1.0)),
    ] {
        assert_eq!(
            content(&router, with(hot.clone(), name, strict)).await,
            greedy,
            "{name}"
        );
    }
}

#[tokio::test]
async fn limits_of_tokens() {
    let router = served().await;
    for (parameters, tokens) in [
        (json!({"max_tokens": 7}), 7),
        (json!({"max_completion_tokens": 9}), 9),
        (json!({"max_tokens": 7, "max_completion_tokens": 9}), 9),
    ] {
        let answer = ask(&router, parameters).await;
        assert_eq!(answer["usage"]["completion_tokens"], tokens);
        assert_eq!(answer["choices"][0]["finish_reason"], "length");
    }
}

#[tokio::test]
async fn stop_strings_and_biases() {
    let router = served().await;
    let letters = json!({"temperature": 0, "max_tokens": 6, "logit_bias": two_letters()});
    assert_eq!(content(&router, letters.clone()).await, "aaaaaa");
    for stop in [json!("aaa"), json!(["never", "aaa"])] {
        let answer = ask(&router, with(letters.clone(), "stop", stop)).await;
        assert_eq!(answer["choices"][0]["message"]["content"], "");
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
        assert_eq!(answer["usage"]["completion_tokens"], 3);
    }
}

#[tokio::test]
async fn penalties() {
    let router = served().await;
    let letters = json!({"temperature": 0, "max_tokens": 6, "logit_bias": two_letters()});
    let penalised = async |name: &str, penalty: f64| {
        content(&router, with(letters.clone(), name, json!(penalty))).await
    };
    let count = |text: &str, letter: char| text.chars().filter(|found| *found == letter).count();
    let present = penalised("presence_penalty", 2.0).await;
    assert!(
        present.starts_with("ab"),
        "the second letter is the other one: {present}"
    );
    let frequent = penalised("frequency_penalty", 2.0).await;
    assert_eq!(
        (count(&frequent, 'a'), count(&frequent, 'b')),
        (3, 3),
        "{frequent}"
    );
    // The prompt holds an `a` and no `b`: it counts from the start.
    let repeated = penalised("repetition_penalty", 1.1).await;
    assert!(repeated.starts_with('b'), "{repeated}");
}

#[tokio::test]
async fn several_answers() {
    let router = served().await;
    let answer = ask(
        &router,
        json!({"n": 3, "seed": 1, "temperature": 1.5, "max_tokens": 8}),
    )
    .await;
    let contents: Vec<&str> = answer["choices"]
        .as_array()
        .unwrap()
        .iter()
        .map(|choice| choice["message"]["content"].as_str().unwrap())
        .collect();
    assert_eq!(contents.len(), 3);
    assert!(contents[0] != contents[1] && contents[1] != contents[2]);
    assert_eq!(answer["usage"]["completion_tokens"], 24);
    // Each of them is what a request of its own with that seed gives.
    for (place, expected) in contents.iter().enumerate() {
        let alone = json!({"seed": 1 + place, "temperature": 1.5, "max_tokens": 8});
        assert_eq!(content(&router, alone).await, *expected);
    }
}

#[tokio::test]
async fn log_probabilities() {
    let router = served().await;
    let plain = json!({"temperature": 0, "max_tokens": 4});
    assert!(ask(&router, plain.clone()).await["choices"][0]["logprobs"].is_null());
    for top in [0, 3] {
        let parameters = with(plain.clone(), "logprobs", json!(true));
        let answer = ask(&router, with(parameters, "top_logprobs", json!(top))).await;
        let entries = answer["choices"][0]["logprobs"]["content"]
            .as_array()
            .unwrap();
        assert_eq!(entries.len(), 4);
        let mut bytes: Vec<u8> = Vec::new();
        for entry in entries {
            assert_eq!(entry["top_logprobs"].as_array().unwrap().len(), top);
            assert!(entry["logprob"].as_f64().unwrap() < 0.0);
            bytes.extend(
                entry["bytes"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|byte| byte.as_u64().unwrap() as u8),
            );
        }
        let said = answer["choices"][0]["message"]["content"].as_str().unwrap();
        assert_eq!(
            String::from_utf8_lossy(&bytes),
            said,
            "the bytes of the tokens are the answer"
        );
    }
    let body =
        json!({"model": "tiny", "prompt": "abc", "max_tokens": 3, "logprobs": 2, "temperature": 0});
    let answer = value(post(&router, "/completions", &body).await).await;
    let logprobs = &answer["choices"][0]["logprobs"];
    assert_eq!(logprobs["tokens"].as_array().unwrap().len(), 3);
    assert_eq!(logprobs["text_offset"], json!([0, 1, 2]));
    assert_eq!(logprobs["top_logprobs"][0].as_object().unwrap().len(), 2);
}

#[tokio::test]
async fn json_objects_parse_even_at_the_limit() {
    let router = served().await;
    for (seed, max_tokens) in (0..12).map(|seed| (seed, 2 + 7 * seed)) {
        let parameters = json!({"response_format": {"type": "json_object"}, "seed": seed, "temperature": 1,
            "max_tokens": max_tokens});
        let text = content(&router, parameters).await;
        let parsed: Value =
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert!(parsed.is_object());
    }
    let free = content(
        &router,
        json!({"response_format": {"type": "text"}, "max_tokens": 20}),
    )
    .await;
    assert!(serde_json::from_str::<Value>(&free).is_err());
    let body = chat(
        "tiny",
        "x",
        &json!({"response_format": {"type": "json_object"}, "max_tokens": 1}),
    );
    let refused = post(&router, "/chat/completions", &body).await;
    assert_eq!(refused.status(), 400);
    assert_eq!(value(refused).await["error"]["param"], "max_tokens");
}

fn tools() -> Value {
    let tool = |name: &str| {
        json!({"type": "function", "function": {"name": name, "description": "Looks something up",
            "parameters": {"type": "object", "properties": {}}}})
    };
    json!([tool("look_up"), tool("count")])
}

#[tokio::test]
async fn tools_are_shown_to_the_model_and_calls_come_back() {
    let router = served().await;
    let plain = ask(&router, json!({"max_tokens": 1})).await;
    let prompt = |answer: &Value| answer["usage"]["prompt_tokens"].as_u64().unwrap();
    let shown = ask(&router, json!({"max_tokens": 1, "tools": tools()})).await;
    assert!(
        prompt(&shown) > prompt(&plain) + 100,
        "the template has the tools"
    );
    let hidden = ask(
        &router,
        json!({"max_tokens": 1, "tools": tools(), "tool_choice": "none"}),
    )
    .await;
    assert_eq!(prompt(&hidden), prompt(&plain));

    let one = json!({"type": "function", "function": {"name": "count"}});
    for choice in [json!("required"), one.clone()] {
        let parameters =
            json!({"tools": tools(), "tool_choice": choice, "max_tokens": 120, "seed": 4});
        let answer = ask(&router, parameters.clone()).await;
        let message = &answer["choices"][0]["message"];
        assert_eq!(
            answer["choices"][0]["finish_reason"], "tool_calls",
            "{answer}"
        );
        assert!(message["content"].is_null());
        let call = &message["tool_calls"][0];
        assert!(call["id"].as_str().unwrap().starts_with("call_"));
        let name = call["function"]["name"].as_str().unwrap();
        assert!(name == "count" || (choice == "required" && name == "look_up"));
        let arguments = call["function"]["arguments"].as_str().unwrap();
        assert!(
            serde_json::from_str::<Value>(arguments)
                .unwrap()
                .is_object()
        );

        let mut body = chat(
            "tiny",
            "Say a word",
            &with(parameters, "stream", json!(true)),
        );
        body["logit_bias"] = json!({"257": -100, "256": -100});
        let chunks = chunks(&text(post(&router, "/chat/completions", &body).await).await);
        let streamed: Vec<&Value> = chunks
            .iter()
            .filter_map(|chunk| chunk["choices"][0]["delta"].get("tool_calls"))
            .collect();
        assert_eq!(streamed.len(), 1);
        assert_eq!(streamed[0][0]["index"], 0);
        assert_eq!(streamed[0][0]["function"], call["function"]);
        assert_eq!(
            chunks.last().unwrap()["choices"][0]["finish_reason"],
            "tool_calls"
        );
    }
}

#[tokio::test]
async fn earlier_calls_and_template_variables_reach_the_template() {
    let router = served().await;
    let prompt = |answer: &Value| answer["usage"]["prompt_tokens"].as_u64().unwrap();
    let plain = ask(&router, json!({"max_tokens": 1})).await;
    let kwargs = json!({"max_tokens": 1, "chat_template_kwargs": {"enable_thinking": true}});
    let thinking = ask(&router, kwargs).await;
    assert_eq!(prompt(&thinking), prompt(&plain) + "<think>".len() as u64);
    let called = |arguments: &str| {
        json!({"max_tokens": 1, "messages": [{"role": "user", "content": "x"},
            {"role": "assistant", "content": null, "tool_calls": [{"id": "c", "type": "function",
                "function": {"name": "count", "arguments": arguments}}]},
            {"role": "tool", "tool_call_id": "c", "content": "3"}]})
    };
    let short = ask(&router, called("{}")).await;
    let long = ask(&router, called("{\"a\": 1}")).await;
    assert_eq!(
        prompt(&long),
        prompt(&short) + "\"a\": 1".len() as u64,
        "arguments are written as JSON, not as a quoted text"
    );
}

#[tokio::test]
async fn usage_in_streams_and_several_prompts() {
    let router = served().await;
    for wanted in [true, false] {
        let body = chat(
            "tiny",
            "Hi",
            &json!({"stream": true, "max_tokens": 3,
            "stream_options": {"include_usage": wanted}, "logit_bias": {"257": -100}}),
        );
        let chunks = chunks(&text(post(&router, "/chat/completions", &body).await).await);
        let last = chunks.last().unwrap();
        assert_eq!(last["usage"]["completion_tokens"] == 3, wanted);
        assert_eq!(
            chunks.iter().any(|chunk| chunk.get("usage").is_some()),
            wanted
        );
    }
    let body = json!({"model": "tiny", "prompt": ["one", "three"], "max_tokens": 2, "n": 2, "temperature": 0,
        "echo": true, "logit_bias": {"257": -100}});
    let answer = value(post(&router, "/completions", &body).await).await;
    let texts: Vec<&str> = answer["choices"]
        .as_array()
        .unwrap()
        .iter()
        .map(|choice| choice["text"].as_str().unwrap())
        .collect();
    assert_eq!(texts.len(), 4);
    assert!(texts[..2].iter().all(|text| text.starts_with("one")));
    assert!(texts[2..].iter().all(|text| text.starts_with("three")));
    assert_eq!(answer["usage"]["prompt_tokens"], 8);
    assert_eq!(answer["usage"]["completion_tokens"], 8);
}
