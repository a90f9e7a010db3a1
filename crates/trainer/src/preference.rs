//! Direct preference optimisation: of two answers the better one becomes likelier, measured against the frozen base
//! model (Rafailov et al. 2023).

use std::sync::Arc;

use zerog_model::{
    BaseModel, LoraAdapter, LoraConfig, ModelError, Placement, PreferenceBatch, PreferenceLoss,
    Trainable, TrainableModel,
};
use zerog_tokenization::{Example, PreferencePair, RenderedDataset, Sample, Tokenizer};

use crate::canary::{Canary, spread};
use crate::error::TrainError;
use crate::evaluate::{EVALUATED_EXAMPLES, Evaluation, count_finished_answers};
use crate::language::new_model;
use crate::method::{Batches, Conclusion, Measured, Method, samples_of};
use crate::progress::Metrics;

/// An adapter that learns to prefer.
pub(crate) struct Preference {
    base: Arc<BaseModel>,
    model: TrainableModel,
    beta: f64,
    training: Vec<PreferencePair>,
    validation: Vec<PreferencePair>,
    pack_tokens: usize,
}

impl Preference {
    pub(crate) fn new(
        (base, placement): (Arc<BaseModel>, Placement),
        lora: LoraConfig,
        initial: Option<&LoraAdapter>,
        beta: f64,
        dataset: RenderedDataset,
        pack_tokens: usize,
    ) -> Result<Self, TrainError> {
        let pairs = |samples| {
            samples_of(samples, |sample| match sample {
                Sample::Preference(pair) => Some(pair),
                _ => None,
            })
        };
        Ok(Self {
            model: new_model((&base, &placement), &lora, initial)?,
            base,
            beta,
            training: pairs(dataset.training),
            validation: pairs(dataset.validation),
            pack_tokens,
        })
    }
}

impl Method for Preference {
    fn trainable(&mut self) -> &mut dyn Trainable {
        &mut self.model
    }

    fn recompute(&mut self, recompute: bool) {
        self.model.set_recompute(recompute);
    }

    fn forward_backward(
        &mut self,
        chosen: &[usize],
        batches: Batches,
    ) -> Result<Measured, ModelError> {
        let mut loss = PreferenceLoss::default();
        let pairs = chosen.iter().map(|index| &self.training[*index]);
        for (index, pack) in pack(pairs, self.pack_tokens).iter().enumerate() {
            let options = batches.options(index);
            loss.add(
                self.model
                    .preference_forward_backward(pack, self.beta, &options)?,
            );
        }
        Ok(measured(loss))
    }

    fn validate(&mut self) -> Result<Measured, ModelError> {
        let pairs = pack(&self.validation, self.pack_tokens);
        loss_of(&mut self.model, self.beta, &pairs)
    }

    fn conclude(
        &mut self,
        tokenizer: &Tokenizer,
        base_model_sha256: &str,
    ) -> Result<Conclusion, TrainError> {
        let adapter = Arc::new(self.model.adapter()?);
        let measured: Vec<&PreferencePair> = spread(&self.training, EVALUATED_EXAMPLES).collect();
        let examples = measured.len() as u64;
        let tuned = loss_of(
            &mut self.model,
            self.beta,
            &pack(measured, self.pack_tokens),
        )?;
        let prompts: Vec<&Example> = self.training.iter().map(|pair| &pair.chosen).collect();
        let (stopped, answers) = count_finished_answers(&self.base, &adapter, tokenizer, &prompts)?;
        Ok(Conclusion {
            canary: Canary::record(&self.model, base_model_sha256, tokenizer, &prompts)?,
            evaluation: Evaluation {
                // Against itself the base model prefers neither answer.
                base_loss: std::f64::consts::LN_2,
                tuned_loss: tuned.mean(),
                examples,
                stopped,
                answers,
                metrics: tuned.metrics,
            },
            adapter,
            labels: Vec::new(),
        })
    }
}

fn loss_of(
    model: &mut TrainableModel,
    beta: f64,
    packs: &[PreferenceBatch],
) -> Result<Measured, ModelError> {
    let mut loss = PreferenceLoss::default();
    for pack in packs {
        loss.add(model.preference_eval(pack, beta)?);
    }
    Ok(measured(loss))
}

fn measured(loss: PreferenceLoss) -> Measured {
    let per_pair = |sum: f64| (loss.pairs > 0).then(|| sum / loss.pairs as f64);
    Measured {
        loss_sum: loss.loss_sum,
        count: loss.pairs,
        metrics: Metrics {
            reward_margin: per_pair(loss.reward_sum),
            reward_accuracy: per_pair(loss.correct as f64),
            ..Metrics::default()
        },
    }
}

/// Lays pairs into as few packs as the token budget allows, in order.
fn pack<'a>(
    pairs: impl IntoIterator<Item = &'a PreferencePair>,
    pack_tokens: usize,
) -> Vec<PreferenceBatch> {
    let mut packs: Vec<PreferenceBatch> = Vec::new();
    for PreferencePair { chosen, rejected } in pairs {
        let tokens = chosen.token_ids.len() + rejected.token_ids.len();
        let fits = packs
            .last()
            .is_some_and(|pack| pack.tokens() + tokens <= pack_tokens);
        if !fits {
            packs.push(PreferenceBatch::default());
        }
        if let Some(pack) = packs.last_mut() {
            pack.push(
                (&chosen.token_ids, &chosen.loss_mask),
                (&rejected.token_ids, &rejected.loss_mask),
            );
        }
    }
    packs
}
