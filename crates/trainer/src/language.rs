//! Supervised fine-tuning: the answers of the records are learned.

use std::sync::Arc;

use zerog_model::{
    BaseModel, LoraAdapter, LoraConfig, ModelError, Placement, StepLoss, Trainable, TrainableModel,
};
use zerog_tokenization::{Example, RenderedDataset, Sample, Tokenizer};

use crate::batches::pack;
use crate::canary::Canary;
use crate::error::TrainError;
use crate::evaluate::{Evaluation, count_finished_answers, mean_loss};
use crate::method::{Batches, Conclusion, Measured, Method, fastest_precision, samples_of};
use crate::progress::Metrics;

/// An adapter that learns sequences.
pub(crate) struct Language {
    base: Arc<BaseModel>,
    placement: Placement,
    lora: LoraConfig,
    model: TrainableModel,
    training: Vec<Example>,
    validation: Vec<Example>,
    pack_tokens: usize,
}

impl Language {
    pub(crate) fn new(
        (base, placement): (Arc<BaseModel>, Placement),
        lora: LoraConfig,
        initial: Option<&LoraAdapter>,
        dataset: RenderedDataset,
        pack_tokens: usize,
    ) -> Result<Self, TrainError> {
        let examples = |samples| {
            samples_of(samples, |sample| match sample {
                Sample::Language(example) => Some(example),
                _ => None,
            })
        };
        Ok(Self {
            model: new_model((&base, &placement), &lora, initial)?,
            base,
            placement,
            lora,
            training: examples(dataset.training),
            validation: examples(dataset.validation),
            pack_tokens,
        })
    }
}

/// An adapter that continues `initial`, or a fresh one, which changes nothing yet.
pub(crate) fn new_model(
    (base, placement): (&Arc<BaseModel>, &Placement),
    lora: &LoraConfig,
    initial: Option<&LoraAdapter>,
) -> Result<TrainableModel, TrainError> {
    let (base, lora) = (Arc::clone(base), lora.clone());
    let mut model = match initial {
        Some(adapter) => TrainableModel::lora_from(base, lora, adapter)?,
        None => TrainableModel::lora(base, lora)?,
    };
    model.place(placement)?;
    model.set_precision(fastest_precision(placement));
    Ok(model)
}

impl Method for Language {
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
        let mut loss = StepLoss::default();
        let examples = chosen.iter().map(|index| &self.training[*index]);
        for (index, pack) in pack(examples, self.pack_tokens).iter().enumerate() {
            loss.add(self.model.forward_backward(pack, &batches.options(index))?);
        }
        Ok(measured(loss))
    }

    fn validate(&mut self) -> Result<Measured, ModelError> {
        let mut loss = StepLoss::default();
        for pack in pack(&self.validation, self.pack_tokens) {
            loss.add(self.model.eval_loss(&pack)?);
        }
        Ok(measured(loss))
    }

    fn conclude(
        &mut self,
        tokenizer: &Tokenizer,
        base_model_sha256: &str,
    ) -> Result<Conclusion, TrainError> {
        let adapter = Arc::new(self.model.adapter()?);
        // A fresh adapter changes nothing, so its loss is the base model's.
        let (base_loss, examples) = mean_loss(
            &mut new_model((&self.base, &self.placement), &self.lora, None)?,
            &self.training,
        )?;
        let (tuned_loss, _) = mean_loss(&mut self.model, &self.training)?;
        let prompts: Vec<&Example> = self.training.iter().collect();
        let (stopped, answers) = count_finished_answers(&self.base, &adapter, tokenizer, &prompts)?;
        Ok(Conclusion {
            canary: Canary::record(&self.model, base_model_sha256, tokenizer, &prompts)?,
            evaluation: Evaluation {
                base_loss,
                tuned_loss,
                examples,
                stopped,
                answers,
                metrics: Metrics::default(),
            },
            adapter,
            labels: Vec::new(),
        })
    }
}

fn measured(loss: StepLoss) -> Measured {
    Measured {
        loss_sum: loss.loss_sum,
        count: loss.supervised_tokens,
        metrics: Metrics::default(),
    }
}
