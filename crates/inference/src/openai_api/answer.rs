//! What the routes answer with: usage, reasons, log probabilities.

use serde::{Deserialize, Serialize};

/// Numbers of tokens of one answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of the rendered prompt.
    pub prompt_tokens: u64,
    /// Generated tokens, the one that ended the answer included.
    pub completion_tokens: u64,
    /// Their sum.
    pub total_tokens: u64,
    /// How the prompt was computed.
    #[serde(default)]
    pub prompt_tokens_details: PromptTokensDetails,
}

/// `prompt_tokens_details` of a usage.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromptTokensDetails {
    /// Prompt tokens that were known from an earlier prompt of the same caller.
    pub cached_tokens: u64,
}

impl Usage {
    /// Usage of one prompt and the answers to it.
    pub fn new(prompt_tokens: u64, completion_tokens: u64) -> Self {
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens.saturating_add(completion_tokens),
            prompt_tokens_details: PromptTokensDetails::default(),
        }
    }

    /// The same with the number of prompt tokens that did not have to be computed.
    #[must_use]
    pub fn with_cached(mut self, cached_tokens: u64) -> Self {
        self.prompt_tokens_details.cached_tokens = cached_tokens;
        self
    }
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// A stop token, a stop string, or the end of the form that was asked for.
    Stop,
    /// The limit of tokens or of the context.
    Length,
    /// The answer calls tools.
    ToolCalls,
}

/// Log probability of one token.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TokenLogprob {
    /// Text of the token; bytes that are no character are replaced.
    pub token: String,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// The most probable tokens at this place.
    pub top_logprobs: Vec<TopLogprob>,
}

/// One alternative.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TopLogprob {
    /// Text of the token; bytes that are no character are replaced.
    pub token: String,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// Its bytes.
    pub bytes: Vec<u8>,
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
