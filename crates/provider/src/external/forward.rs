//! Requests to the server and its answers: who answers is our decision, what is billed is counted, and nothing of the
//! caller's request reaches the server that could name another adapter.

use reqwest::Response;
use serde_json::{Map, Value, json};
use zerog_inference::Usage;
use zerog_inference::openai_api::{CheckedRequest, Route};

use super::{ExternalEngine, ExternalError, server_name, wire};
use crate::config::ExternalKind;

/// Longest line of a stream.
const MAX_LINE_BYTES: usize = 1 << 20;
/// What is passed on of a request. SGLang takes the name of an adapter in `lora_path`, for example: a list of what is
/// forbidden would be too short some day.
const PASSED_ON: [&str; 26] = [
    "messages",
    "prompt",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "n",
    "seed",
    "stop",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "logprobs",
    "top_logprobs",
    "response_format",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "chat_template_kwargs",
    "echo",
    "stream",
    "ignore_eos",
    "min_tokens",
];

/// A request that the server has begun to answer.
#[derive(Debug)]
pub(crate) struct Forwarded {
    response: Response,
    /// Rewrites and counts what comes.
    pub(crate) reader: AnswerReader,
}

/// What became of one line of a stream.
#[derive(Debug, PartialEq)]
pub(crate) enum Piece {
    /// To be sent.
    Event(String),
    /// Nothing to be sent.
    Nothing,
    /// The end that says that all went well.
    Done,
    /// The server broke off with an error; this is to be sent, and nothing after it.
    Failed(String),
}

/// Rewrites the server's JSON to what the caller asked for, and counts what is billed.
#[derive(Debug)]
pub(crate) struct AnswerReader {
    model: String,
    id: String,
    wants_usage: bool,
    prompt_tokens: u64,
    usage: Option<Usage>,
    /// What was generated, for the time that the server does not count.
    texts: String,
}

impl ExternalEngine {
    /// Sends a checked request on, for the base model or an adapter. An adapter that the server lost is loaded again once.
    ///
    /// # Errors
    /// [`ExternalError`], before anything was answered.
    pub(crate) async fn forward(
        &self,
        body: &[u8],
        request: &CheckedRequest,
        adapter: Option<&str>,
        reader: AnswerReader,
    ) -> Result<Forwarded, ExternalError> {
        let name = adapter.map(server_name);
        let model = self.wire.model(name.as_deref());
        let passed = passed_on(body, &model, request.stream, self.kind)?;
        let path = match request.route {
            Route::Chat => "/v1/chat/completions",
            Route::Completion => "/v1/completions",
        };
        let response = match (self.wire.open(path, passed.clone()).await, adapter) {
            (
                Err(ExternalError::Refused {
                    status: status @ (400 | 404),
                    message,
                }),
                Some(id),
            ) => {
                if !self.restore(id).await? {
                    return Err(ExternalError::Refused { status, message });
                }
                self.wire.open(path, passed).await?
            }
            (answer, _) => answer?,
        };
        Ok(Forwarded { response, reader })
    }
}

impl Forwarded {
    /// The whole answer as it is to be sent, and what is billed.
    ///
    /// # Errors
    /// [`ExternalError`] when it breaks off or is not JSON.
    pub(crate) async fn whole(
        mut self,
        tokenizer: &zerog_tokenization::Tokenizer,
    ) -> Result<(Vec<u8>, Usage), ExternalError> {
        let bytes = wire::read_bounded(self.response).await?;
        let mut answer: Value = serde_json::from_slice(&bytes)
            .ok()
            .filter(|answer: &Value| answer["choices"].is_array())
            .ok_or_else(|| ExternalError::unexpected("an answer has no choices"))?;
        self.reader.rewrite(&mut answer);
        let usage = self.reader.usage(tokenizer);
        if answer["usage"].is_null() {
            answer["usage"] = json!(usage);
        }
        Ok((answer.to_string().into_bytes(), usage))
    }

    /// The next bytes of a stream; `None` at its end.
    ///
    /// # Errors
    /// [`ExternalError`] when it breaks off.
    pub(crate) async fn next_lines(
        &mut self,
        rest: &mut Vec<u8>,
    ) -> Result<Option<Vec<Piece>>, ExternalError> {
        let Some(chunk) = self
            .response
            .chunk()
            .await
            .map_err(ExternalError::unreachable)?
        else {
            return Ok(None);
        };
        rest.extend_from_slice(&chunk);
        let mut pieces = Vec::new();
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            match self.reader.line(line.trim_ascii()) {
                Piece::Nothing => {}
                piece => pieces.push(piece),
            }
        }
        if rest.len() > MAX_LINE_BYTES {
            return Err(ExternalError::unexpected(
                "a line of a stream is longer than 1 MiB",
            ));
        }
        Ok(Some(pieces))
    }
}

impl AnswerReader {
    /// `model` and `id` are what the caller sees; `prompt_tokens` is billed if the server does not count.
    pub(crate) fn new(model: &str, id: &str, wants_usage: bool, prompt_tokens: u64) -> Self {
        Self {
            model: model.to_owned(),
            id: id.to_owned(),
            wants_usage,
            prompt_tokens,
            usage: None,
            texts: String::new(),
        }
    }

    /// The server's count, or ours up to now where it has given none.
    pub(crate) fn usage(&self, tokenizer: &zerog_tokenization::Tokenizer) -> Usage {
        self.usage.unwrap_or_else(|| {
            let tokens = tokenizer.encode(&self.texts, false);
            // A text that does not encode is billed by its bytes, which are never fewer than tokens.
            let count = tokens.map_or(self.texts.len(), |tokens| tokens.len());
            Usage::new(self.prompt_tokens, count as u64)
        })
    }

    /// What a caller is sent when a stream ends before its end.
    pub(crate) fn broken_off(message: &str) -> Piece {
        Piece::Failed(stream_error(message))
    }

    /// One line of a stream of server-sent events.
    pub(crate) fn line(&mut self, line: &[u8]) -> Piece {
        let Some(data) = line.strip_prefix(b"data:").map(<[u8]>::trim_ascii) else {
            return Piece::Nothing;
        };
        if data == b"[DONE]" {
            return Piece::Done;
        }
        let Ok(mut chunk) = serde_json::from_slice::<Value>(data) else {
            return Piece::Failed(stream_error(
                "the inference server sent something that is not JSON",
            ));
        };
        if !chunk["error"].is_null() {
            let text = chunk["error"]["message"].as_str();
            return Piece::Failed(stream_error(text.unwrap_or("the inference server failed")));
        }
        self.rewrite(&mut chunk);
        let is_count_only = chunk["choices"].as_array().is_some_and(Vec::is_empty);
        if is_count_only && !self.wants_usage {
            return Piece::Nothing;
        }
        if let Some(members) = chunk.as_object_mut() {
            if !self.wants_usage {
                members.remove("usage");
            } else if !is_count_only {
                // Counts that run along are for us.
                members.insert("usage".into(), Value::Null);
            }
        }
        Piece::Event(format!("data: {chunk}\n\n"))
    }

    fn rewrite(&mut self, answer: &mut Value) {
        let usage = &answer["usage"];
        if let (Some(prompt), Some(completion)) = (
            usage["prompt_tokens"].as_u64(),
            usage["completion_tokens"].as_u64(),
        ) {
            let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64();
            self.usage = Some(Usage::new(prompt, completion).with_cached(cached.unwrap_or(0)));
        }
        for choice in answer["choices"].as_array().into_iter().flatten() {
            for part in [&choice["delta"], &choice["message"]] {
                for name in ["reasoning_content", "reasoning", "content"] {
                    self.texts.push_str(part[name].as_str().unwrap_or_default());
                }
                if !part["tool_calls"].is_null() {
                    self.texts.push_str(&part["tool_calls"].to_string());
                }
            }
            self.texts
                .push_str(choice["text"].as_str().unwrap_or_default());
        }
        if let Some(members) = answer.as_object_mut() {
            members.insert("model".into(), json!(self.model));
            members.insert("id".into(), json!(self.id));
        }
    }
}

fn stream_error(message: &str) -> String {
    let error = json!({"error": {"message": message, "type": "server_error", "param": null, "code": "engine_failed"}});
    format!("data: {error}\n\n")
}

/// The request as the server gets it.
fn passed_on(
    body: &[u8],
    model: &str,
    stream: bool,
    kind: ExternalKind,
) -> Result<String, ExternalError> {
    let asked: Map<String, Value> = serde_json::from_slice(body)
        .map_err(|_| ExternalError::unexpected("a checked request is not JSON"))?;
    let mut passed: Map<String, Value> = asked
        .into_iter()
        .filter(|(name, value)| PASSED_ON.contains(&name.as_str()) && !value.is_null())
        .collect();
    passed.insert("model".into(), json!(model));
    if stream {
        let mut options = json!({"include_usage": true});
        if kind == ExternalKind::Vllm {
            // So that a caller who leaves is billed by the server's count.
            options["continuous_usage_stats"] = json!(true);
        }
        passed.insert("stream_options".into(), options);
    }
    Ok(Value::Object(passed).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_passes_that_could_name_another_adapter() {
        let body = json!({
            "model": "mine", "messages": [], "lora_path": "other", "lora_adapter_name": "other", "adapter_id": 1,
            "stream_options": {"include_usage": false}, "user": "u", "temperature": null, "top_p": 0.5,
        });
        let passed = passed_on(
            body.to_string().as_bytes(),
            "zerog-1",
            true,
            ExternalKind::Sglang,
        );
        let passed: Value = serde_json::from_str(&passed.unwrap()).unwrap();
        let expected = json!({
            "model": "zerog-1", "messages": [], "top_p": 0.5, "stream_options": {"include_usage": true},
        });
        assert_eq!(passed, expected);
    }

    #[test]
    fn streams_are_renamed_and_counted() {
        let mut reader = AnswerReader::new("ft-a", "chatcmpl-1", false, 7);
        let piece = reader.line(br#"data: {"id":"x","model":"zerog-1","choices":[{"delta":{"content":"a"}}],"usage":{"prompt_tokens":7,"completion_tokens":1}}"#);
        let Piece::Event(text) = piece else {
            panic!("{piece:?}")
        };
        assert!(text.contains("ft-a") && text.contains("chatcmpl-1"));
        assert!(
            !text.contains("zerog-1") && !text.contains("usage"),
            "{text}"
        );
        let counts = br#"data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":9}}"#;
        assert_eq!(reader.line(counts), Piece::Nothing);
        assert_eq!(reader.usage.unwrap().completion_tokens, 9);
        assert_eq!(reader.line(b": ping"), Piece::Nothing);
        assert_eq!(reader.line(b"data: [DONE]"), Piece::Done);
        let failed = reader.line(br#"data: {"error":{"message":"out of memory"}}"#);
        assert!(matches!(failed, Piece::Failed(text) if text.contains("out of memory")));
    }

    #[test]
    fn who_asks_for_the_count_gets_it_once() {
        let mut reader = AnswerReader::new("ft-a", "chatcmpl-1", true, 7);
        let piece = reader.line(br#"data: {"choices":[{"text":"a"}],"usage":{"prompt_tokens":7,"completion_tokens":1}}"#);
        assert!(matches!(piece, Piece::Event(text) if text.contains(r#""usage":null"#)));
        let piece = reader
            .line(br#"data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":1}}"#);
        assert!(matches!(piece, Piece::Event(text) if text.contains(r#""completion_tokens":1"#)));
    }
}
