//! What the adapter changed, measured on training examples, and whether its answers end.

use std::sync::Arc;

use zerog_model::{BaseModel, LoraAdapter, StepLoss, TrainableModel};
use zerog_tokenization::{Example, Tokenizer};

use crate::batches::{PACK_TOKENS, pack};
use crate::canary::{prompt_of, spread};
use crate::error::TrainError;
use crate::greedy::greedy_tokens;
use crate::progress::Metrics;

/// Examples that are evaluated at most; enough for a stable mean, little next to training.
pub(crate) const EVALUATED_EXAMPLES: usize = 32;
/// Prompts whose greedy answer must come to an end.
const ANSWERED_PROMPTS: usize = 2;

/// The comparison of adapter and base model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Evaluation {
    pub(crate) base_loss: f64,
    pub(crate) tuned_loss: f64,
    pub(crate) examples: u64,
    /// Greedy answers that reached a stop token, of `answers`.
    pub(crate) stopped: u64,
    pub(crate) answers: u64,
    /// Further scores of the method.
    pub(crate) metrics: Metrics,
}

/// Mean loss of up to [`EVALUATED_EXAMPLES`] examples under `model`, without dropout and noise, and their number.
pub(crate) fn mean_loss(
    model: &mut TrainableModel,
    examples: &[Example],
) -> Result<(f64, u64), TrainError> {
    let mut loss = StepLoss::default();
    for pack in pack(spread(examples, EVALUATED_EXAMPLES), PACK_TOKENS) {
        loss.add(model.eval_loss(&pack)?);
    }
    Ok((loss.mean(), examples.len().min(EVALUATED_EXAMPLES) as u64))
}

/// How many greedy answers to the prompts of a few examples end by themselves, and how many there were.
pub(crate) fn count_finished_answers(
    base: &BaseModel,
    adapter: &Arc<LoraAdapter>,
    tokenizer: &Tokenizer,
    examples: &[&Example],
) -> Result<(u64, u64), TrainError> {
    let (mut stopped, mut answers) = (0, 0);
    for example in spread(examples, ANSWERED_PROMPTS) {
        let prompt = prompt_of(example);
        // Twice the trained answer is ample for an answer that means to end.
        let limit = 2 * (example.token_ids.len() - prompt.len()) + 16;
        let generated = greedy_tokens(base, Some(adapter), tokenizer.stop_ids(), prompt, limit)?;
        answers += 1;
        stopped += u64::from(generated.stopped);
    }
    Ok((stopped, answers))
}
