//! Request and response bodies of the OpenAI-compatible routes.
//!
//! Requests are read leniently (unknown members are ignored, as OpenAI-compatible servers do) and checked strictly:
//! a parameter that this server cannot honour is an error, never silently dropped.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use zerog_model::SamplingParams;
use zerog_tokenization::ChatMessage;

use crate::error::ApiError;

/// Most completions of one request.
pub const MAX_CHOICES: usize = 16;
/// Most stop strings of one request; OpenAI allows 4.
pub const MAX_STOP_STRINGS: usize = 16;
/// Longest stop string in bytes.
pub const MAX_STOP_BYTES: usize = 1024;
/// Most alternatives in `top_logprobs`.
pub const MAX_TOP_LOGPROBS: usize = 20;
/// Most entries of `logit_bias`.
pub const MAX_LOGIT_BIASES: usize = 1024;
/// Most messages of one conversation.
pub const MAX_MESSAGES: usize = 4096;

/// Body of `POST /chat/completions`.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct ChatRequest {
    /// Base model or adapter name.
    #[serde(default)]
    pub model: String,
    /// The conversation.
    #[serde(default)]
    pub messages: Vec<RequestMessage>,
    /// Whether the answer comes as server-sent events.
    #[serde(default)]
    pub stream: Option<bool>,
    /// Streaming details.
    #[serde(default)]
    pub stream_options: Option<StreamOptions>,
    /// Most tokens to generate (older name).
    #[serde(default)]
    pub max_tokens: Option<u32>,
    /// Most tokens to generate (newer name; wins).
    #[serde(default)]
    pub max_completion_tokens: Option<u32>,
    /// Whether log probabilities are returned.
    #[serde(default)]
    pub logprobs: Option<bool>,
    /// Alternatives per token.
    #[serde(default)]
    pub top_logprobs: Option<u32>,
    /// Form of the answer; only `text` is served.
    #[serde(default)]
    pub response_format: Option<Value>,
    /// Tools, handed to the chat template.
    #[serde(default)]
    pub tools: Option<Vec<Value>>,
    /// Everything that both routes share.
    #[serde(flatten)]
    pub common: CommonParams,
}

/// Body of `POST /completions`.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct CompletionRequest {
    /// Base model or adapter name.
    #[serde(default)]
    pub model: String,
    /// Text or token ids.
    #[serde(default)]
    pub prompt: Option<Prompt>,
    /// Whether the answer comes as server-sent events.
    #[serde(default)]
    pub stream: Option<bool>,
    /// Streaming details.
    #[serde(default)]
    pub stream_options: Option<StreamOptions>,
    /// Most tokens to generate; 16 by default, as OpenAI.
    #[serde(default)]
    pub max_tokens: Option<u32>,
    /// Number of alternatives; absent means no log probabilities.
    #[serde(default)]
    pub logprobs: Option<u32>,
    /// Whether the prompt is repeated in front of the text.
    #[serde(default)]
    pub echo: Option<bool>,
    /// Everything that both routes share.
    #[serde(flatten)]
    pub common: CommonParams,
}

/// Sampling parameters of both routes.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct CommonParams {
    /// 0 is greedy; 1 by default.
    #[serde(default)]
    pub temperature: Option<f32>,
    /// Nucleus sampling.
    #[serde(default)]
    pub top_p: Option<f32>,
    /// Number of candidates; 0 or -1 means all.
    #[serde(default)]
    pub top_k: Option<i64>,
    /// Least probability relative to the best candidate.
    #[serde(default)]
    pub min_p: Option<f32>,
    /// −2 to 2, once per token that has appeared.
    #[serde(default)]
    pub presence_penalty: Option<f32>,
    /// −2 to 2, per appearance.
    #[serde(default)]
    pub frequency_penalty: Option<f32>,
    /// Above 1 discourages tokens of prompt and answer.
    #[serde(default)]
    pub repetition_penalty: Option<f32>,
    /// Same seed, same answer.
    #[serde(default)]
    pub seed: Option<i64>,
    /// Added to the logits of single tokens, by token id as text; −100 to 100.
    #[serde(default)]
    pub logit_bias: Option<BTreeMap<String, f32>>,
    /// Number of answers.
    #[serde(default)]
    pub n: Option<u32>,
    /// Strings that end the answer.
    #[serde(default)]
    pub stop: Option<Stop>,
    /// The user of the caller; not used.
    #[serde(default)]
    pub user: Option<String>,
}

/// `stop` is one string or a list.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum Stop {
    /// One string.
    One(String),
    /// Several.
    Many(Vec<String>),
}

/// `prompt` is a text, a list of one text, or token ids.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum Prompt {
    /// A text.
    Text(String),
    /// Token ids.
    Tokens(Vec<u32>),
    /// A list of texts; only lists of one are served.
    Texts(Vec<String>),
}

/// `stream_options`.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub struct StreamOptions {
    /// Whether a last chunk carries the usage.
    #[serde(default)]
    pub include_usage: Option<bool>,
}

/// A message as clients send it: the content is text, parts of text, or nothing.
#[derive(Debug, Clone, Deserialize)]
pub struct RequestMessage {
    /// `system`, `developer`, `user`, `assistant` or `tool`.
    pub role: String,
    /// Text, a list of parts, or null.
    #[serde(default)]
    pub content: Value,
    /// Everything else, for the chat template.
    #[serde(flatten)]
    pub extra: serde_json::Map<String, Value>,
}

/// Numbers of tokens of one answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of the rendered prompt.
    pub prompt_tokens: u64,
    /// Generated tokens, the one that ended the answer included.
    pub completion_tokens: u64,
    /// Their sum.
    pub total_tokens: u64,
}

impl Usage {
    /// Usage of one prompt and the answers to it.
    pub fn new(prompt_tokens: u64, completion_tokens: u64) -> Self {
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens.saturating_add(completion_tokens),
        }
    }
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// A stop token or stop string.
    Stop,
    /// The limit of tokens or of the context.
    Length,
}

/// Log probability of one token.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TokenLogprob {
    /// Text of the token.
    pub token: String,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// UTF-8 bytes of the text.
    pub bytes: Vec<u8>,
    /// The most probable tokens at this place.
    pub top_logprobs: Vec<TopLogprob>,
}

/// One alternative.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TopLogprob {
    /// Text of the token.
    pub token: String,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// UTF-8 bytes of the text.
    pub bytes: Vec<u8>,
}

/// A checked request, the same for both routes.
#[derive(Debug, Clone)]
pub struct CheckedRequest {
    /// Model named by the caller; may be empty.
    pub model: String,
    /// What to complete.
    pub input: Input,
    /// Whether to stream.
    pub stream: bool,
    /// Whether the stream ends with usage.
    pub include_usage: bool,
    /// Limit of generated tokens, if the caller gave one.
    pub max_tokens: Option<usize>,
    /// Number of answers.
    pub choices: usize,
    /// Sampling; the seed in it counts only if [`CheckedRequest::seeded`].
    pub sampling: SamplingParams,
    /// Whether the caller chose the seed; otherwise every answer gets a random one.
    pub seeded: bool,
    /// Stop strings, none empty.
    pub stop: Vec<String>,
    /// `Some(k)`: log probabilities with k alternatives.
    pub logprobs: Option<usize>,
    /// Route that the request came by.
    pub route: Route,
    /// Whether to repeat the prompt in front (completions only).
    pub echo: bool,
}

/// What a request asks to complete.
#[derive(Debug, Clone)]
pub enum Input {
    /// A conversation with the tools for the template.
    Chat {
        /// Messages in order.
        messages: Vec<ChatMessage>,
        /// Tools, as JSON.
        tools: Option<Vec<Value>>,
    },
    /// A plain text.
    Text(String),
    /// Token ids.
    Tokens(Vec<u32>),
}

/// The two generating routes; their bodies differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// `/chat/completions`.
    Chat,
    /// `/completions`.
    Completion,
}

impl Route {
    /// Beginning of the ids of this route.
    pub fn id_prefix(self) -> &'static str {
        match self {
            Self::Chat => "chatcmpl-",
            Self::Completion => "cmpl-",
        }
    }

    /// `object` of a whole answer.
    pub fn object(self) -> &'static str {
        match self {
            Self::Chat => "chat.completion",
            Self::Completion => "text_completion",
        }
    }

    /// `object` of a chunk.
    pub fn chunk_object(self) -> &'static str {
        match self {
            Self::Chat => "chat.completion.chunk",
            Self::Completion => "text_completion",
        }
    }
}

/// Reads and checks the body of `POST /chat/completions`.
///
/// # Errors
/// [`ApiError`] of status 400, naming the parameter at fault.
pub fn parse_chat(body: &[u8]) -> Result<CheckedRequest, ApiError> {
    let request: ChatRequest = parse_json(body)?;
    if request.messages.is_empty() {
        return Err(ApiError::parameter(
            "messages",
            "messages must not be empty",
        ));
    }
    if request.messages.len() > MAX_MESSAGES {
        return Err(ApiError::parameter(
            "messages",
            format!("at most {MAX_MESSAGES} messages are read"),
        ));
    }
    let format = request
        .response_format
        .as_ref()
        .and_then(|format| format.get("type"))
        .and_then(Value::as_str);
    if format.is_some_and(|kind| kind != "text") {
        return Err(ApiError::parameter(
            "response_format",
            "only response_format text is served",
        ));
    }
    let top = request.top_logprobs.unwrap_or(0) as usize;
    if top > MAX_TOP_LOGPROBS {
        return Err(ApiError::parameter(
            "top_logprobs",
            format!("top_logprobs is at most {MAX_TOP_LOGPROBS}"),
        ));
    }
    if top > 0 && request.logprobs != Some(true) {
        return Err(ApiError::parameter(
            "top_logprobs",
            "top_logprobs needs logprobs: true",
        ));
    }
    let messages = request
        .messages
        .into_iter()
        .enumerate()
        .map(|(place, message)| message.checked(place))
        .collect::<Result<_, _>>()?;
    Ok(CheckedRequest {
        model: request.model,
        input: Input::Chat {
            messages,
            tools: request.tools.filter(|tools| !tools.is_empty()),
        },
        stream: request.stream.unwrap_or(false),
        include_usage: request
            .stream_options
            .and_then(|options| options.include_usage)
            .unwrap_or(false),
        max_tokens: checked_limit(request.max_completion_tokens.or(request.max_tokens))?,
        choices: request.common.choices()?,
        sampling: request.common.sampling()?,
        seeded: request.common.seed.is_some(),
        stop: request.common.stop_strings()?,
        logprobs: (request.logprobs == Some(true)).then_some(top),
        route: Route::Chat,
        echo: false,
    })
}

/// Reads and checks the body of `POST /completions`.
///
/// # Errors
/// [`ApiError`] of status 400, naming the parameter at fault.
pub fn parse_completion(body: &[u8]) -> Result<CheckedRequest, ApiError> {
    let request: CompletionRequest = parse_json(body)?;
    let input = match request.prompt {
        Some(Prompt::Text(text)) => Input::Text(text),
        Some(Prompt::Tokens(tokens)) if !tokens.is_empty() => Input::Tokens(tokens),
        Some(Prompt::Texts(mut texts)) if texts.len() == 1 => Input::Text(texts.remove(0)),
        Some(Prompt::Texts(_)) => {
            return Err(ApiError::parameter("prompt", "send one prompt a request"));
        }
        Some(Prompt::Tokens(_)) | None => {
            return Err(ApiError::parameter("prompt", "prompt must not be empty"));
        }
    };
    let logprobs = request.logprobs.map(|top| top as usize);
    if logprobs.is_some_and(|top| top > MAX_TOP_LOGPROBS) {
        return Err(ApiError::parameter(
            "logprobs",
            format!("logprobs is at most {MAX_TOP_LOGPROBS}"),
        ));
    }
    Ok(CheckedRequest {
        model: request.model,
        input,
        stream: request.stream.unwrap_or(false),
        include_usage: request
            .stream_options
            .and_then(|options| options.include_usage)
            .unwrap_or(false),
        max_tokens: Some(checked_limit(request.max_tokens)?.unwrap_or(16)),
        choices: request.common.choices()?,
        sampling: request.common.sampling()?,
        seeded: request.common.seed.is_some(),
        stop: request.common.stop_strings()?,
        logprobs,
        route: Route::Completion,
        echo: request.echo.unwrap_or(false),
    })
}

impl RequestMessage {
    fn checked(self, place: usize) -> Result<ChatMessage, ApiError> {
        let content = match self.content {
            Value::Null => String::new(),
            Value::String(text) => text,
            Value::Array(parts) => {
                let texts: Option<Vec<&str>> = parts
                    .iter()
                    .map(|part| part.get("text").and_then(Value::as_str))
                    .collect();
                let texts = texts.ok_or_else(|| {
                    ApiError::parameter(
                        format!("messages[{place}].content"),
                        "only parts of type text are served",
                    )
                })?;
                texts.concat()
            }
            _ => {
                let problem = "content must be a string or an array of parts";
                return Err(ApiError::parameter(
                    format!("messages[{place}].content"),
                    problem,
                ));
            }
        };
        // `developer` is the newer name of `system`; chat templates know only the old one.
        let role = if self.role == "developer" {
            "system".to_owned()
        } else {
            self.role
        };
        if !["system", "user", "assistant", "tool"].contains(&role.as_str()) {
            return Err(ApiError::parameter(
                format!("messages[{place}].role"),
                format!("unknown role {role:?}"),
            ));
        }
        Ok(ChatMessage {
            role,
            content,
            extra: self.extra,
        })
    }
}

impl CommonParams {
    fn choices(&self) -> Result<usize, ApiError> {
        match self.n {
            None => Ok(1),
            Some(n) if n >= 1 && n as usize <= MAX_CHOICES => Ok(n as usize),
            Some(_) => Err(ApiError::parameter(
                "n",
                format!("n is between 1 and {MAX_CHOICES}"),
            )),
        }
    }

    fn sampling(&self) -> Result<SamplingParams, ApiError> {
        let top_k = match self.top_k {
            None | Some(0 | -1) => 0,
            Some(k) => usize::try_from(k)
                .map_err(|_| ApiError::parameter("top_k", "top_k is 0, -1 or positive"))?,
        };
        Ok(SamplingParams {
            // OpenAI's defaults sample; the model crate's are greedy.
            temperature: in_range("temperature", self.temperature, 0.0, 2.0)?.unwrap_or(1.0),
            top_k,
            top_p: in_range("top_p", self.top_p, 0.0, 1.0)?.unwrap_or(1.0),
            min_p: in_range("min_p", self.min_p, 0.0, 1.0)?.unwrap_or(0.0),
            repetition_penalty: in_range(
                "repetition_penalty",
                self.repetition_penalty,
                0.01,
                10.0,
            )?
            .unwrap_or(1.0),
            presence_penalty: in_range("presence_penalty", self.presence_penalty, -2.0, 2.0)?
                .unwrap_or(0.0),
            frequency_penalty: in_range("frequency_penalty", self.frequency_penalty, -2.0, 2.0)?
                .unwrap_or(0.0),
            logit_bias: self.logit_bias()?,
            seed: self.seed.map_or(0, |seed| seed as u64),
        })
    }

    fn logit_bias(&self) -> Result<Vec<(u32, f32)>, ApiError> {
        let Some(biases) = &self.logit_bias else {
            return Ok(Vec::new());
        };
        if biases.len() > MAX_LOGIT_BIASES {
            return Err(ApiError::parameter(
                "logit_bias",
                format!("at most {MAX_LOGIT_BIASES} tokens can be biased"),
            ));
        }
        let checked = biases.iter().map(|(token, bias)| {
            let token = token.parse().ok()?;
            (-100.0..=100.0).contains(bias).then_some((token, *bias))
        });
        let problem = "logit_bias maps token ids to numbers between -100 and 100";
        checked
            .collect::<Option<_>>()
            .ok_or_else(|| ApiError::parameter("logit_bias", problem))
    }

    fn stop_strings(&self) -> Result<Vec<String>, ApiError> {
        let stop = match &self.stop {
            None => return Ok(Vec::new()),
            Some(Stop::One(text)) => vec![text.clone()],
            Some(Stop::Many(texts)) => texts.clone(),
        };
        if stop.len() > MAX_STOP_STRINGS {
            return Err(ApiError::parameter(
                "stop",
                format!("at most {MAX_STOP_STRINGS} stop strings"),
            ));
        }
        if stop
            .iter()
            .any(|text| text.is_empty() || text.len() > MAX_STOP_BYTES)
        {
            return Err(ApiError::parameter(
                "stop",
                format!("a stop string has 1 to {MAX_STOP_BYTES} bytes"),
            ));
        }
        Ok(stop)
    }
}

fn parse_json<T: for<'de> Deserialize<'de>>(body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body)
        .map_err(|error| ApiError::invalid(format!("the request body is not valid: {error}")))
}

fn checked_limit(limit: Option<u32>) -> Result<Option<usize>, ApiError> {
    match limit {
        Some(0) => Err(ApiError::parameter(
            "max_tokens",
            "max_tokens is at least 1",
        )),
        other => Ok(other.map(|limit| limit as usize)),
    }
}

fn in_range(name: &str, value: Option<f32>, low: f32, high: f32) -> Result<Option<f32>, ApiError> {
    match value {
        Some(value) if !(low..=high).contains(&value) => Err(ApiError::parameter(
            name,
            format!("{name} is between {low} and {high}"),
        )),
        other => Ok(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_helpers_request_is_read() {
        let body = br#"{"model":"ft-x","messages":[{"role":"system","content":"S"},{"role":"user","content":"Hi"}]}"#;
        let request = parse_chat(body).unwrap();
        assert_eq!(
            (request.model.as_str(), request.choices, request.max_tokens),
            ("ft-x", 1, None)
        );
        assert!((request.sampling.temperature - 1.0).abs() < f32::EPSILON);
        let Input::Chat { messages, tools } = request.input else {
            panic!("not a chat")
        };
        assert_eq!(messages[1].content, "Hi");
        assert!(tools.is_none());
    }

    #[test]
    fn parts_are_joined_and_newer_names_win() {
        let body = br#"{"model":"m","max_tokens":5,"max_completion_tokens":7,"stop":"x","top_k":-1,"seed":-3,
            "stream":true,"stream_options":{"include_usage":true},
            "messages":[{"role":"developer","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}]}"#;
        let request = parse_chat(body).unwrap();
        assert_eq!(request.max_tokens, Some(7));
        assert_eq!(request.stop, ["x"]);
        assert!(request.stream && request.include_usage);
        let Input::Chat { messages, .. } = request.input else {
            panic!("not a chat")
        };
        assert_eq!(
            (messages[0].role.as_str(), messages[0].content.as_str()),
            ("system", "ab")
        );
    }

    #[test]
    fn faults_name_their_parameter() {
        let bad = [
            (r#"{"messages":[]}"#, "messages"),
            (
                r#"{"messages":[{"role":"user","content":"x"}],"temperature":3}"#,
                "temperature",
            ),
            (r#"{"messages":[{"role":"user","content":"x"}],"n":0}"#, "n"),
            (
                r#"{"messages":[{"role":"user","content":"x"}],"max_tokens":0}"#,
                "max_tokens",
            ),
            (
                r#"{"messages":[{"role":"user","content":"x"}],"stop":[""]}"#,
                "stop",
            ),
            (
                r#"{"messages":[{"role":"user","content":"x"}],"top_k":-5}"#,
                "top_k",
            ),
            (
                r#"{"messages":[{"role":"user","content":"x"}],"top_logprobs":3}"#,
                "top_logprobs",
            ),
            (
                r#"{"messages":[{"role":"user","content":"x"}],"response_format":{"type":"json_object"}}"#,
                "response_format",
            ),
            (
                r#"{"messages":[{"role":"user","content":"x"}],"logit_bias":{"x":1}}"#,
                "logit_bias",
            ),
            (
                r#"{"messages":[{"role":"robot","content":"x"}]}"#,
                "messages[0].role",
            ),
            (
                r#"{"messages":[{"role":"user","content":[{"type":"image_url"}]}]}"#,
                "messages[0].content",
            ),
        ];
        for (body, parameter) in bad {
            let error = parse_chat(body.as_bytes()).unwrap_err();
            assert_eq!(
                (error.status, error.param.as_deref()),
                (400, Some(parameter)),
                "{body}"
            );
        }
        assert_eq!(parse_chat(b"{").unwrap_err().status, 400);
    }

    #[test]
    fn completions_default_to_sixteen_tokens() {
        let request = parse_completion(br#"{"prompt":"x"}"#).unwrap();
        assert_eq!(request.max_tokens, Some(16));
        assert!(
            matches!(parse_completion(br#"{"prompt":[1,2]}"#).unwrap().input, Input::Tokens(tokens) if tokens == [1, 2])
        );
        assert_eq!(
            parse_completion(br#"{"prompt":["a","b"]}"#)
                .unwrap_err()
                .param
                .as_deref(),
            Some("prompt")
        );
    }
}
