//! What is asked of the engine and what it gives back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::mpsc;
use zerog_model::SamplingParams;

use crate::error::EngineError;
use crate::grammar::Grammar;
use crate::openai_api::{FinishReason, TokenLogprob, Usage};

/// One or several answers to one prompt.
#[derive(Debug, Clone)]
pub struct GenerateRequest {
    /// Tokens of the prompt.
    pub prompt: Vec<u32>,
    /// Adapter to answer with; none means the base model.
    pub adapter: Option<String>,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// Most tokens to generate; without it the context is the limit.
    pub max_tokens: Option<usize>,
    /// Strings that end the answer; they are not part of it.
    pub stop: Vec<String>,
    /// `Some(k)`: log probabilities with k alternatives.
    pub logprobs: Option<usize>,
    /// The form that the answer must have.
    pub grammar: Option<Grammar>,
    /// Whose requests may share computed beginnings of prompts: only requests of one scope. The time to the first
    /// token tells whether a beginning was known, so a service with several users gives each a scope of his own.
    pub cache_scope: String,
    /// Whose turn counts when requests wait; without it the adapter's.
    pub flow: Option<String>,
}

impl GenerateRequest {
    /// A greedy answer of the base model.
    pub fn greedy(prompt: Vec<u32>, max_tokens: usize) -> Self {
        Self {
            prompt,
            adapter: None,
            sampling: SamplingParams::default(),
            max_tokens: Some(max_tokens),
            stop: Vec::new(),
            logprobs: None,
            grammar: None,
            cache_scope: String::new(),
            flow: None,
        }
    }
}

/// What comes out of a generation.
#[derive(Debug, Clone, PartialEq)]
pub enum GenerationEvent {
    /// Text and, if asked for, log probabilities. The text may be empty while characters are incomplete.
    Delta {
        /// Text to append.
        text: String,
        /// Log probabilities of the tokens since the last event.
        logprobs: Vec<TokenLogprob>,
    },
    /// The end; nothing follows.
    Finished {
        /// Why.
        reason: FinishReason,
        /// Tokens of prompt and answer.
        usage: Usage,
    },
    /// The request is lost; nothing follows.
    Failed(EngineError),
}

/// A running request. Dropping it cancels the request.
#[derive(Debug)]
pub struct Generation {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    pub(crate) events: mpsc::UnboundedReceiver<GenerationEvent>,
    pub(crate) progress: Arc<AtomicU64>,
}

impl Generation {
    /// The next event; `None` after the last one.
    pub async fn next(&mut self) -> Option<GenerationEvent> {
        self.events.recv().await
    }

    /// Tokens generated so far, whether or not their events were read.
    pub fn generated_tokens(&self) -> u64 {
        self.progress.load(Ordering::Relaxed)
    }

    /// A counter that outlives the generation, for billing a request whose caller went away.
    pub fn progress(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.progress)
    }

    /// Reads to the end.
    ///
    /// # Errors
    /// The error that ended the generation.
    pub async fn collect(mut self) -> Result<Completion, EngineError> {
        let mut completion = Completion::default();
        loop {
            match self.next().await {
                Some(GenerationEvent::Delta { text, logprobs }) => {
                    completion.text.push_str(&text);
                    completion.logprobs.extend(logprobs);
                }
                Some(GenerationEvent::Finished { reason, usage }) => {
                    completion.finish_reason = Some(reason);
                    completion.usage = usage;
                    return Ok(completion);
                }
                Some(GenerationEvent::Failed(error)) => return Err(error),
                None => return Err(EngineError::Stopped),
            }
        }
    }
}

/// A whole answer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Completion {
    /// The text.
    pub text: String,
    /// Why it ended.
    pub finish_reason: Option<FinishReason>,
    /// Tokens of prompt and answer.
    pub usage: Usage,
    /// Log probabilities, if asked for.
    pub logprobs: Vec<TokenLogprob>,
}
