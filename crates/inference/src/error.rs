//! What can go wrong, once as engine errors and once as OpenAI error bodies.

use serde_json::{Value, json};

/// Why an engine does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The system gives no thread.
    #[error("the engine's thread cannot be started: {0}")]
    Thread(#[from] std::io::Error),
    /// The keys and values do not fit into the device's memory.
    #[error(
        "max_cached_tokens is {asked}, but beside the weights the device's memory has room for the keys and values of \
         {fitting} tokens"
    )]
    CacheTooLarge {
        /// [`crate::EngineConfig::max_cached_tokens`].
        asked: usize,
        /// The largest number that can be served.
        fitting: usize,
    },
    /// The device cannot be used, or not for this model.
    #[error(transparent)]
    Model(zerog_model::ModelError),
}

/// Why the engine did not take or did not finish a request.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum EngineError {
    /// As many requests are waiting and running as the engine takes. Nothing was queued.
    #[error("the engine is busy: {in_flight} requests are waiting or running")]
    Busy {
        /// Requests that fill the engine.
        in_flight: usize,
    },
    /// The prompt is longer than the model or the memory allows.
    #[error("the prompt has {prompt_tokens} tokens; at most {limit} fit")]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// Most tokens of a prompt.
        limit: usize,
    },
    /// The prompt has no tokens.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// The limit of tokens is too small for any answer of the form that was asked for.
    #[error(
        "the answer must have a form that takes up to {needed} tokens; at most {limit} are allowed"
    )]
    FormTooLong {
        /// Tokens that suffice.
        needed: usize,
        /// Most tokens of this answer.
        limit: usize,
    },
    /// A token id outside the vocabulary.
    #[error("token id {id} is outside the vocabulary of {vocabulary}")]
    TokenOutOfRange {
        /// The id.
        id: u32,
        /// Number of ids.
        vocabulary: usize,
    },
    /// The adapter is not loaded.
    #[error("adapter {adapter} is not loaded")]
    AdapterNotLoaded {
        /// Its id.
        adapter: String,
    },
    /// The chat template or the tokenizer refused the conversation.
    #[error("{reason}")]
    Template {
        /// What it said.
        reason: String,
    },
    /// The computation failed; the request is lost, the engine goes on.
    #[error("the computation failed: {reason}")]
    Computation {
        /// What failed.
        reason: String,
    },
    /// The engine has stopped.
    #[error("the engine has stopped")]
    Stopped,
}

/// An error as the OpenAI routes answer it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// HTTP status.
    pub status: u16,
    /// Text for people.
    pub message: String,
    /// OpenAI's `type`.
    pub kind: &'static str,
    /// Parameter at fault.
    pub param: Option<String>,
    /// Stable code.
    pub code: Option<&'static str>,
    /// Seconds for `Retry-After`.
    pub retry_after_s: Option<u32>,
}

impl ApiError {
    /// A request that cannot be read.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self {
            status: 400,
            message: message.into(),
            kind: "invalid_request_error",
            param: None,
            code: None,
            retry_after_s: None,
        }
    }

    /// A parameter that is wrong.
    pub fn parameter(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            param: Some(param.into()),
            ..Self::invalid(message)
        }
    }

    /// A model that is not served here.
    pub fn model_not_found(model: &str) -> Self {
        Self {
            status: 404,
            code: Some("model_not_found"),
            param: Some("model".into()),
            ..Self::invalid(format!("the model {model:?} does not exist"))
        }
    }

    /// The body: `{"error": {"message", "type", "param", "code"}}`.
    pub fn body(&self) -> Value {
        json!({"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}})
    }
}

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> Self {
        let message = error.to_string();
        match error {
            EngineError::Busy { .. } => Self {
                status: 429,
                kind: "rate_limit_error",
                code: Some("engine_busy"),
                retry_after_s: Some(1),
                ..Self::invalid(message)
            },
            EngineError::PromptTooLong { .. } => Self {
                code: Some("context_length_exceeded"),
                param: Some("messages".into()),
                ..Self::invalid(message)
            },
            EngineError::EmptyPrompt | EngineError::TokenOutOfRange { .. } => {
                Self::parameter("prompt", message)
            }
            EngineError::FormTooLong { .. } => Self::parameter("max_tokens", message),
            EngineError::Template { .. } => Self::parameter("messages", message),
            EngineError::AdapterNotLoaded { .. } => Self {
                status: 503,
                kind: "server_error",
                code: Some("adapter_not_loaded"),
                retry_after_s: Some(1),
                ..Self::invalid(message)
            },
            EngineError::Computation { .. } => Self {
                status: 500,
                kind: "server_error",
                code: Some("computation_failed"),
                ..Self::invalid(message)
            },
            EngineError::Stopped => Self {
                status: 503,
                kind: "server_error",
                code: Some("engine_stopped"),
                retry_after_s: Some(5),
                ..Self::invalid(message)
            },
        }
    }
}
