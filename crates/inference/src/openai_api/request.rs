//! Bodies of requests as clients send them.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};

/// Body of `POST /chat/completions`.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct ChatRequest {
    /// The conversation.
    #[serde(default)]
    pub messages: Vec<RequestMessage>,
    /// Most tokens to generate (newer name; wins).
    #[serde(default)]
    pub max_completion_tokens: Option<u32>,
    /// Whether log probabilities are returned.
    #[serde(default)]
    pub logprobs: Option<bool>,
    /// Alternatives per token.
    #[serde(default)]
    pub top_logprobs: Option<u32>,
    /// Form of the answer: `text` or `json_object`.
    #[serde(default)]
    pub response_format: Option<Value>,
    /// Tools, handed to the chat template.
    #[serde(default)]
    pub tools: Option<Vec<Value>>,
    /// `none`, `auto`, `required` or one function.
    #[serde(default)]
    pub tool_choice: Option<Value>,
    /// Whether one answer may call several tools.
    #[serde(default)]
    pub parallel_tool_calls: Option<bool>,
    /// Further variables of the chat template, for example `enable_thinking`.
    #[serde(default)]
    pub chat_template_kwargs: Option<Map<String, Value>>,
    /// Everything that both routes share.
    #[serde(flatten)]
    pub common: CommonParams,
}

/// Body of `POST /completions`.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct CompletionRequest {
    /// Text or token ids, or a list of them.
    #[serde(default)]
    pub prompt: Option<Prompt>,
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

/// Parameters of both routes.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct CommonParams {
    /// Base model or adapter name.
    #[serde(default)]
    pub model: String,
    /// Whether the answer comes as server-sent events.
    #[serde(default)]
    pub stream: Option<bool>,
    /// Streaming details.
    #[serde(default)]
    pub stream_options: Option<StreamOptions>,
    /// Most tokens to generate; completions have 16 by default, as OpenAI.
    #[serde(default)]
    pub max_tokens: Option<u32>,
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
    /// Members that are not known here.
    #[serde(flatten)]
    pub others: Map<String, Value>,
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

/// `prompt` is a text, token ids, or a list of either.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum Prompt {
    /// A text.
    Text(String),
    /// Token ids.
    Tokens(Vec<u32>),
    /// Several texts.
    Texts(Vec<String>),
    /// Several lists of token ids.
    TokenLists(Vec<Vec<u32>>),
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
    pub extra: Map<String, Value>,
}
