//! A whole answer as one JSON body.

use axum::body::Bytes;
use serde_json::{Value, json};

use super::frames::logprobs_json;
use super::{Reply, Started, add_usage};
use crate::error::ApiError;
use crate::generation::Completion;
use crate::openai_api::{CheckedRequest, FinishReason, Route, Usage};
use crate::tool_calls::{Part, ToolCallReader};

pub(super) async fn finish(started: Started) -> Result<Reply, ApiError> {
    let Started {
        request,
        target,
        id,
        prompt_tokens,
        echoes,
        generations,
    } = started;
    let mut choices = Vec::with_capacity(generations.len());
    let mut usage = Usage::new(prompt_tokens as u64, 0);
    for (index, (generation, echo)) in generations.into_iter().zip(echoes).enumerate() {
        let completion = generation.collect().await?;
        add_usage(&mut usage, completion.usage);
        choices.push(choice(&request, index, &echo, completion));
    }
    let body = json!({
        "id": id.id, "object": request.route.object(), "created": id.created_s, "model": target.model,
        "choices": choices, "usage": usage,
    });
    Ok(Reply {
        body: Bytes::from(body.to_string()),
        usage,
    })
}

fn choice(request: &CheckedRequest, index: usize, echo: &str, completion: Completion) -> Value {
    let logprobs = request
        .logprobs
        .map(|_| logprobs_json(request.route, &completion.logprobs, echo.chars().count()));
    let reason = completion.finish_reason;
    match request.route {
        Route::Completion => json!({
            "index": index, "text": format!("{echo}{}", completion.text), "logprobs": logprobs,
            "finish_reason": reason,
        }),
        Route::Chat if !request.reads_tool_calls => json!({
            "index": index,
            "message": {"role": "assistant", "content": completion.text, "refusal": null},
            "logprobs": logprobs, "finish_reason": reason,
        }),
        Route::Chat => {
            let (content, calls) = read_calls(&completion.text);
            let has_calls = !calls.is_empty();
            let mut message = json!({"role": "assistant", "content": content, "refusal": null});
            if has_calls {
                message["tool_calls"] = Value::from(calls);
            }
            json!({
                "index": index, "message": message, "logprobs": logprobs,
                "finish_reason": with_calls(reason, has_calls),
            })
        }
    }
}

/// The reason of an answer that called tools.
pub(super) fn with_calls(reason: Option<FinishReason>, has_calls: bool) -> Option<FinishReason> {
    match reason {
        Some(FinishReason::Stop) if has_calls => Some(FinishReason::ToolCalls),
        other => other,
    }
}

/// Text and calls of an answer; no text is null beside calls.
fn read_calls(text: &str) -> (Value, Vec<Value>) {
    let mut reader = ToolCallReader::default();
    let mut parts = reader.push(text);
    parts.extend(reader.finish());
    let (mut content, mut calls) = (String::new(), Vec::new());
    for part in parts {
        match part {
            Part::Text(text) => content.push_str(&text),
            Part::Call(call) => calls.push(call.to_json(false)),
        }
    }
    let content = if content.is_empty() && !calls.is_empty() {
        Value::Null
    } else {
        Value::from(content)
    };
    (content, calls)
}
