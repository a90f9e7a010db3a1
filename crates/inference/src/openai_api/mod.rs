//! Request and response bodies of the OpenAI-compatible routes.
//!
//! Requests are read leniently (members that mean nothing here are ignored, as OpenAI-compatible servers do) and checked
//! strictly: a parameter that this server knows of and cannot honour is an error, never silently dropped.

mod answer;
mod check;
mod messages;
mod request;

pub use answer::{FinishReason, PromptTokensDetails, Route, TokenLogprob, TopLogprob, Usage};
pub use check::{
    CheckedRequest, Input, MAX_CHOICES, MAX_LOGIT_BIASES, MAX_STOP_BYTES, MAX_STOP_STRINGS,
    MAX_TOP_LOGPROBS, PromptText, parse_chat, parse_completion,
};
pub use messages::{MAX_MESSAGES, MAX_TOOLS, ToolUse};
pub use request::{
    ChatRequest, CommonParams, CompletionRequest, Prompt, RequestMessage, Stop, StreamOptions,
};
