//! Reference logits of the finished adapter: how an engine proves that it serves what was
//! trained.
//!
//! For a few prompts, the logits of the likeliest next tokens are stored with the adapter and
//! without it. An engine that loads the adapter must reproduce both, and the two must differ.

use serde::{Deserialize, Serialize};
use zerog_model::{AdapterUse, TrainableModel, top_log_probabilities};
use zerog_tokenization::{ChatMessage, Example, Tokenizer};

use crate::error::TrainError;

/// Member of the archive with the record.
pub const CANARY_MEMBER: &str = "output_model/canary.json";
/// Version of the record.
pub const CANARY_VERSION: u32 = 1;

/// Prompts that every adapter is asked, whatever it was trained on.
const FIXED_PROMPTS: [&str; 2] = ["Hello! Who are you?", "What can you help me with?"];
/// Prompts taken from the training examples, where the adapter shows most.
const TRAINED_PROMPTS: usize = 4;
/// Most tokens of a prompt; a longer one is cut at its beginning.
const PROMPT_TOKENS: usize = 256;
/// Likeliest tokens stored for each prompt, with and without the adapter.
const WIDTH: usize = 16;

/// The record of one adapter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Canary {
    /// [`CANARY_VERSION`].
    pub version: u32,
    /// SHA-256 of the base weights, hexadecimal.
    pub base_model_sha256: String,
    /// One entry for each prompt.
    pub probes: Vec<CanaryProbe>,
}

/// One prompt with its logits after the last token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CanaryProbe {
    /// The prompt.
    pub tokens: Vec<u32>,
    /// Tokens whose logits are stored.
    pub logit_ids: Vec<u32>,
    /// Logits of `logit_ids` without the adapter.
    pub base_logits: Vec<f32>,
    /// Logits of `logit_ids` with the adapter.
    pub adapter_logits: Vec<f32>,
}

impl Canary {
    /// Runs the prompts through the serving code, with and without the adapter in training.
    ///
    /// # Errors
    /// [`TrainError::Tokenizer`] and [`TrainError::Model`].
    pub fn record(
        model: &TrainableModel,
        base_model_sha256: &str,
        tokenizer: &Tokenizer,
        examples: &[&Example],
    ) -> Result<Self, TrainError> {
        let mut prompts = Vec::new();
        for text in FIXED_PROMPTS {
            let text = match tokenizer.has_chat_template() {
                true => tokenizer.render_chat(&[ChatMessage::new("user", text)], None, true)?,
                false => text.to_owned(),
            };
            prompts.push(tokenizer.encode(&text, false)?);
        }
        for example in spread(examples, TRAINED_PROMPTS) {
            prompts.push(prompt_of(example).to_vec());
        }
        let limit = PROMPT_TOKENS.min(model.config().maximum_positions);
        let probes = prompts
            .iter()
            .map(|prompt| probe(model, &prompt[prompt.len().saturating_sub(limit)..]))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            version: CANARY_VERSION,
            base_model_sha256: base_model_sha256.to_owned(),
            probes,
        })
    }

    /// Largest difference that the adapter makes to a stored logit.
    pub fn largest_effect(&self) -> f32 {
        self.probes
            .iter()
            .flat_map(|probe| probe.base_logits.iter().zip(&probe.adapter_logits))
            .map(|(base, adapter)| (base - adapter).abs())
            .fold(0.0, f32::max)
    }
}

fn probe(model: &TrainableModel, tokens: &[u32]) -> Result<CanaryProbe, TrainError> {
    let base = model.logits(tokens, AdapterUse::Without)?;
    let adapted = model.logits(tokens, AdapterUse::With)?;
    let mut logit_ids: Vec<u32> = [&base, &adapted]
        .into_iter()
        .flat_map(|logits| top_log_probabilities(logits, WIDTH))
        .map(|(id, _)| id)
        .collect();
    logit_ids.sort_unstable();
    logit_ids.dedup();
    let of_ids = |logits: &[f32]| logit_ids.iter().map(|id| logits[*id as usize]).collect();
    Ok(CanaryProbe {
        tokens: tokens.to_vec(),
        base_logits: of_ids(&base),
        adapter_logits: of_ids(&adapted),
        logit_ids,
    })
}

/// What comes before the first learned token. An example that is learned from its beginning
/// gives its first token.
pub(crate) fn prompt_of(example: &Example) -> &[u32] {
    let learned = example
        .loss_mask
        .iter()
        .position(|learned| *learned)
        .unwrap_or(1);
    &example.token_ids[..learned.max(1)]
}

/// Up to `count` examples at even distances.
pub(crate) fn spread<T>(examples: &[T], count: usize) -> impl Iterator<Item = &T> {
    let count = count.min(examples.len());
    (0..count).map(move |index| &examples[index * examples.len() / count])
}
