//! Greedy answers by the serving code, for samples and checks.

use std::sync::Arc;

use zerog_model::{
    BaseModel, InferenceScratch, KvCache, LogitsWanted, LoraAdapter, Row, Sampler, SamplingParams,
};
use zerog_tokenization::{ChatMessage, Tokenizer};

use crate::error::TrainError;

/// Answers a conversation with the most likely tokens, up to a stop token or `max_tokens`.
///
/// # Errors
/// [`TrainError::Tokenizer`] and [`TrainError::Model`].
pub fn greedy_answer(
    base: &BaseModel,
    adapter: Option<&Arc<LoraAdapter>>,
    tokenizer: &Tokenizer,
    messages: &[ChatMessage],
    max_tokens: usize,
) -> Result<String, TrainError> {
    let prompt = tokenizer.render_chat(messages, None, true)?;
    let prompt = tokenizer.encode(&prompt, false)?;
    let generated = greedy_tokens(base, adapter, tokenizer.stop_ids(), &prompt, max_tokens)?;
    Ok(tokenizer.decode(&generated.tokens, true)?)
}

/// Tokens that follow a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Generated {
    /// The tokens without the stop token.
    pub(crate) tokens: Vec<u32>,
    /// Whether a stop token came within the limit.
    pub(crate) stopped: bool,
}

pub(crate) fn greedy_tokens(
    base: &BaseModel,
    adapter: Option<&Arc<LoraAdapter>>,
    stop_ids: &[u32],
    prompt: &[u32],
    max_tokens: usize,
) -> Result<Generated, TrainError> {
    let mut cache = KvCache::new(base.config(), prompt.len() + max_tokens);
    let mut scratch = InferenceScratch::default();
    let mut sampler = Sampler::new(SamplingParams::default(), prompt);
    let mut tokens: Vec<u32> = Vec::new();
    let mut new = prompt.to_vec();
    let room = base.config().maximum_positions.saturating_sub(prompt.len());
    while tokens.len() < max_tokens.min(room) {
        let mut rows = [Row {
            tokens: &new,
            cache: &mut cache,
            adapter: adapter.cloned(),
            wanted: LogitsWanted::Last,
        }];
        let logits = base.forward(&mut rows, &mut scratch)?;
        let token = sampler.sample(&logits[0]).token;
        if stop_ids.contains(&token) {
            return Ok(Generated {
                tokens,
                stopped: true,
            });
        }
        tokens.push(token);
        new = vec![token];
    }
    Ok(Generated {
        tokens,
        stopped: false,
    })
}
