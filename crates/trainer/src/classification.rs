//! Classification of text: an adapter in the encoder and a head that is trained whole.

use std::sync::Arc;

use zerog_model::{
    AdapterUse, ClassifierBase, ClassifierBatch, LoraConfig, ModelError, Placement, StepLoss,
    Trainable, TrainableClassifier,
};
use zerog_tokenization::{LabelledText, RenderedDataset, Sample, Tokenizer};

use crate::canary::{CANARY_VERSION, Canary, CanaryProbe, spread};
use crate::error::TrainError;
use crate::evaluate::Evaluation;
use crate::method::{Batches, Conclusion, Measured, Method, fastest_precision, samples_of};
use crate::progress::Metrics;

/// Training texts that the finished classifier is measured on at most.
const EVALUATED_TEXTS: usize = 256;
/// Texts whose logits are recorded.
const RECORDED_TEXTS: usize = 6;

/// A text and the number of its class.
struct Text {
    token_ids: Vec<u32>,
    label: u32,
}

/// An adapter with a head that learns classes.
pub(crate) struct Classification {
    model: TrainableClassifier,
    labels: Vec<String>,
    training: Vec<Text>,
    validation: Vec<Text>,
    pack_tokens: usize,
}

impl Classification {
    pub(crate) fn new(
        (base, placement): (Arc<ClassifierBase>, Placement),
        lora: LoraConfig,
        dataset: RenderedDataset,
        pack_tokens: usize,
    ) -> Result<Self, TrainError> {
        // A head that was trained before goes on with its own classes, in its own order.
        let own = &base.config().labels;
        let labels = match dataset.labels.iter().all(|label| own.contains(label)) {
            true => own.clone(),
            false => dataset.labels,
        };
        let texts = |samples| {
            samples_of(samples, |sample| match sample {
                Sample::Classification(LabelledText { token_ids, label }) => {
                    let number = labels.iter().position(|known| *known == label)?;
                    Some(Text {
                        token_ids,
                        label: number as u32,
                    })
                }
                _ => None,
            })
        };
        let training = texts(dataset.training);
        let validation = texts(dataset.validation);
        let mut model = TrainableClassifier::new(base, lora, labels.len())?;
        model.place(&placement)?;
        model.set_precision(fastest_precision(&placement));
        Ok(Self {
            model,
            labels,
            training,
            validation,
            pack_tokens,
        })
    }
}

impl Method for Classification {
    fn trainable(&mut self) -> &mut dyn Trainable {
        &mut self.model
    }

    fn forward_backward(
        &mut self,
        chosen: &[usize],
        batches: Batches,
    ) -> Result<Measured, ModelError> {
        let mut loss = StepLoss::default();
        let texts = chosen.iter().map(|index| &self.training[*index]);
        for (index, pack) in pack(texts, self.pack_tokens).iter().enumerate() {
            loss.add(self.model.forward_backward(pack, &batches.options(index))?);
        }
        Ok(Measured {
            loss_sum: loss.loss_sum,
            count: loss.supervised_tokens,
            metrics: Metrics::default(),
        })
    }

    fn validate(&mut self) -> Result<Measured, ModelError> {
        let packs = pack(&self.validation, self.pack_tokens);
        score(&mut self.model, &packs, AdapterUse::With)
    }

    fn conclude(
        &mut self,
        _tokenizer: &Tokenizer,
        base_model_sha256: &str,
    ) -> Result<Conclusion, TrainError> {
        let measured: Vec<&Text> = spread(&self.training, EVALUATED_TEXTS).collect();
        let examples = measured.len() as u64;
        let packs = pack(measured, self.pack_tokens);
        let base = score(&mut self.model, &packs, AdapterUse::Without)?;
        let tuned = score(&mut self.model, &packs, AdapterUse::With)?;
        let mut probes = Vec::new();
        for text in spread(&self.training, RECORDED_TEXTS) {
            let mut one = ClassifierBatch::default();
            one.push(&text.token_ids, text.label);
            probes.push(CanaryProbe {
                tokens: text.token_ids.clone(),
                logit_ids: (0..self.labels.len() as u32).collect(),
                base_logits: self.model.logits(&one, AdapterUse::Without)?.concat(),
                adapter_logits: self.model.logits(&one, AdapterUse::With)?.concat(),
            });
        }
        Ok(Conclusion {
            adapter: Arc::new(self.model.adapter()),
            evaluation: Evaluation {
                base_loss: base.mean(),
                tuned_loss: tuned.mean(),
                examples,
                stopped: 0,
                answers: 0,
                metrics: tuned.metrics,
            },
            canary: Canary {
                version: CANARY_VERSION,
                base_model_sha256: base_model_sha256.to_owned(),
                probes,
            },
            labels: self.labels.clone(),
        })
    }
}

/// Loss, accuracy and F1 of texts, without dropout and noise.
fn score(
    model: &mut TrainableClassifier,
    packs: &[ClassifierBatch],
    adapter: AdapterUse,
) -> Result<Measured, ModelError> {
    let mut outcomes = Outcomes::new(model.classes());
    let (mut loss_sum, mut count) = (0.0, 0);
    for pack in packs {
        for (logits, label) in model.logits(pack, adapter)?.iter().zip(&pack.labels) {
            let loss = TrainableClassifier::loss(logits, *label);
            if !loss.is_finite() {
                return Err(ModelError::LossNotFinite);
            }
            loss_sum += loss;
            count += 1;
            outcomes.add(*label as usize, likeliest(logits));
        }
    }
    Ok(Measured {
        loss_sum,
        count,
        metrics: Metrics {
            accuracy: outcomes.accuracy(),
            f1: outcomes.macro_f1(),
            ..Metrics::default()
        },
    })
}

/// The class with the largest logit, the first of equals.
fn likeliest(logits: &[f32]) -> usize {
    let mut best = 0;
    for (class, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = class;
        }
    }
    best
}

/// For each class how often it was right, how often it was there, and how often it was said.
struct Outcomes {
    right: Vec<u64>,
    actual: Vec<u64>,
    predicted: Vec<u64>,
}

impl Outcomes {
    fn new(classes: usize) -> Self {
        Self {
            right: vec![0; classes],
            actual: vec![0; classes],
            predicted: vec![0; classes],
        }
    }

    fn add(&mut self, actual: usize, predicted: usize) {
        self.actual[actual] += 1;
        self.predicted[predicted] += 1;
        self.right[actual] += u64::from(actual == predicted);
    }

    fn accuracy(&self) -> Option<f64> {
        let all: u64 = self.actual.iter().sum();
        (all > 0).then(|| self.right.iter().sum::<u64>() as f64 / all as f64)
    }

    /// Mean over the classes that occur or were said of `2·right / (actual + predicted)`, as scikit-learn's
    /// `f1_score(average="macro")`.
    fn macro_f1(&self) -> Option<f64> {
        let scores: Vec<f64> = (0..self.right.len())
            .filter_map(|class| {
                let occurrences = self.actual[class] + self.predicted[class];
                (occurrences > 0).then(|| 2.0 * self.right[class] as f64 / occurrences as f64)
            })
            .collect();
        (!scores.is_empty()).then(|| scores.iter().sum::<f64>() / scores.len() as f64)
    }
}

/// Lays texts into as few packs as the token budget allows, in order.
fn pack<'a>(texts: impl IntoIterator<Item = &'a Text>, pack_tokens: usize) -> Vec<ClassifierBatch> {
    let mut packs: Vec<ClassifierBatch> = Vec::new();
    for text in texts {
        let fits = packs
            .last()
            .is_some_and(|pack| pack.tokens.len() + text.token_ids.len() <= pack_tokens);
        if !fits {
            packs.push(ClassifierBatch::default());
        }
        if let Some(pack) = packs.last_mut() {
            pack.push(&text.token_ids, text.label);
        }
    }
    packs
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers by scikit-learn: `f1_score([0, 0, 1, 1, 2], [0, 1, 1, 1, 0], average="macro")`.
    #[test]
    fn accuracy_and_f1_are_those_of_the_library() {
        let mut outcomes = Outcomes::new(4);
        for (actual, predicted) in [(0, 0), (0, 1), (1, 1), (1, 1), (2, 0)] {
            outcomes.add(actual, predicted);
        }
        assert_eq!(outcomes.accuracy(), Some(0.6));
        assert!((outcomes.macro_f1().unwrap() - (0.5 + 0.8 + 0.0) / 3.0).abs() < 1e-12);
        assert_eq!(Outcomes::new(2).macro_f1(), None);
    }
}
