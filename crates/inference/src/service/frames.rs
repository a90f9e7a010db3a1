//! How an answer is written: server-sent events as OpenAI's routes frame them, and what both routes spell differently.

use axum::body::Bytes;
use serde_json::{Value, json};

use super::AnswerId;
use crate::openai_api::{FinishReason, Route, TokenLogprob, Usage};

/// Last event of a stream that ended well.
pub const DONE: &str = "data: [DONE]\n\n";

/// One event.
pub(super) fn event(data: &Value) -> Bytes {
    Bytes::from(format!("data: {data}\n\n"))
}

/// The event that closes a stream that ended well.
pub(super) fn done() -> Bytes {
    Bytes::from_static(DONE.as_bytes())
}

/// What all chunks of one answer share.
pub(super) struct Frame<'a> {
    pub(super) id: &'a AnswerId,
    pub(super) model: &'a str,
    pub(super) route: Route,
    pub(super) has_logprobs: bool,
    pub(super) include_usage: bool,
}

impl Frame<'_> {
    /// A chunk of one choice. `delta` is the member of that name, or the text of a completion.
    pub(super) fn choice(
        &self,
        index: usize,
        delta: Value,
        logprobs: Option<Value>,
        reason: Option<FinishReason>,
    ) -> Bytes {
        let member = match self.route {
            Route::Chat => "delta",
            Route::Completion => "text",
        };
        let choice = json!({
            "index": index, member: delta, "logprobs": logprobs, "finish_reason": reason,
        });
        self.chunk(json!([choice]), Value::Null)
    }

    /// The chunk behind the last choice.
    pub(super) fn usage(&self, usage: Usage) -> Bytes {
        self.chunk(json!([]), json!(usage))
    }

    fn chunk(&self, choices: Value, usage: Value) -> Bytes {
        let mut chunk = json!({
            "id": self.id.id, "object": self.route.chunk_object(), "created": self.id.created_s,
            "model": self.model, "choices": choices,
        });
        // With include_usage every chunk has the member, null but in the last one.
        if let (true, Some(members)) = (self.include_usage, chunk.as_object_mut()) {
            members.insert("usage".into(), usage);
        }
        event(&chunk)
    }
}

/// The two routes spell log probabilities differently. `text_start` is where the first token begins in the text, in
/// characters, as completions count.
pub(super) fn logprobs_json(route: Route, logprobs: &[TokenLogprob], text_start: usize) -> Value {
    match route {
        Route::Chat => json!({"content": logprobs, "refusal": null}),
        Route::Completion => {
            let tokens: Vec<&str> = logprobs.iter().map(|entry| entry.token.as_str()).collect();
            let values: Vec<f32> = logprobs.iter().map(|entry| entry.logprob).collect();
            let top: Vec<Value> = logprobs
                .iter()
                .map(|entry| {
                    entry
                        .top_logprobs
                        .iter()
                        .map(|other| (other.token.clone(), Value::from(other.logprob)))
                        .collect()
                })
                .collect();
            let mut next = text_start;
            let offsets: Vec<usize> = tokens
                .iter()
                .map(|token| {
                    let start = next;
                    next += token.chars().count();
                    start
                })
                .collect();
            json!({"tokens": tokens, "token_logprobs": values, "top_logprobs": top, "text_offset": offsets})
        }
    }
}
