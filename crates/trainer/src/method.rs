//! What a run learns, behind one interface: supervised answers, preferences, or classes of texts.
//!
//! The loop in `run` knows steps, checkpoints and validation; a method knows its samples, its loss and what it measures.

use std::collections::BTreeSet;
use std::sync::Arc;

use zerog_model::{
    BaseModel, ClassifierBase, Device, LoraAdapter, LoraConfig, ModelError, ModelFamily, Placement,
    Precision, Projection, StepOptions, Trainable,
};
use zerog_protocol::models::ModelKind;
use zerog_protocol::training_params::{TrainingMethod, TrainingParams};
use zerog_tokenization::{Objective, RenderOptions, RenderedDataset, Sample, Tokenizer};

use crate::archive;
use crate::canary::Canary;
use crate::classification::Classification;
use crate::error::TrainError;
use crate::evaluate::Evaluation;
use crate::job::Job;
use crate::language::Language;
use crate::memory::Shape;
use crate::preference::Preference;
use crate::progress::Metrics;

/// Batch numbers set aside for each step. A step has at most 64 × 1024 examples, and never
/// more packs than examples.
const BATCHES_PER_STEP: u64 = 1 << 17;

/// One way to learn.
pub(crate) trait Method {
    /// What is trained.
    fn trainable(&mut self) -> &mut dyn Trainable;

    /// Whether passes compute layers a second time to save memory, which not every model can; the results are the same.
    fn recompute(&mut self, _recompute: bool) {}

    /// Loss of the training examples `chosen`; their gradients are added up.
    fn forward_backward(
        &mut self,
        chosen: &[usize],
        batches: Batches,
    ) -> Result<Measured, ModelError>;

    /// Loss and scores of the examples that were set aside.
    fn validate(&mut self) -> Result<Measured, ModelError>;

    /// The trained adapter, compared with the base model.
    fn conclude(
        &mut self,
        tokenizer: &Tokenizer,
        base_model_sha256: &str,
    ) -> Result<Conclusion, TrainError>;
}

/// What a pass over examples measured.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Measured {
    /// Sum of the losses.
    pub(crate) loss_sum: f64,
    /// Tokens, pairs or texts that it is the sum over.
    pub(crate) count: usize,
    /// Further scores of the method.
    pub(crate) metrics: Metrics,
}

impl Measured {
    /// Mean loss; 0 of nothing.
    pub(crate) fn mean(&self) -> f64 {
        match self.count {
            0 => 0.0,
            count => self.loss_sum / count as f64,
        }
    }
}

/// Random numbers of the batches of a step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Batches {
    step: u64,
    neftune_alpha: f32,
}

impl Batches {
    /// Those of step `step` (from 0).
    pub(crate) fn of_step(step: u64, params: &TrainingParams) -> Self {
        Self {
            step,
            neftune_alpha: params.neftune_noise_alpha as f32,
        }
    }

    /// Options of the batch with number `index` within the step.
    pub(crate) fn options(self, index: usize) -> StepOptions {
        StepOptions {
            batch_number: self.step * BATCHES_PER_STEP + index as u64,
            neftune_alpha: self.neftune_alpha,
        }
    }
}

/// The result of a run.
#[derive(Debug)]
pub(crate) struct Conclusion {
    pub(crate) adapter: Arc<LoraAdapter>,
    pub(crate) evaluation: Evaluation,
    pub(crate) canary: Canary,
    /// Names of the classes in the order of their logits; empty for language models.
    pub(crate) labels: Vec<String>,
}

/// The frozen model of a run.
#[derive(Debug, Clone)]
pub(crate) enum Base {
    Decoder(Arc<BaseModel>, Placement),
    Encoder(Arc<ClassifierBase>, Placement),
}

impl Base {
    /// Maps the base model of a job.
    pub(crate) fn load(job: &Job) -> Result<Self, TrainError> {
        let directory = &job.base_model_dir;
        let base = match ModelFamily::of_folder(directory)?.is_decoder() {
            true => Self::Decoder(BaseModel::load(directory)?, Placement::default()),
            false => Self::Encoder(ClassifierBase::load(directory)?, Placement::default()),
        };
        base.check(job)?;
        Ok(base)
    }

    /// Puts the weights where the job trains.
    pub(crate) fn place(&mut self, device: Device) -> Result<(), TrainError> {
        match self {
            Self::Decoder(base, placement) => *placement = Placement::new(base, device)?,
            Self::Encoder(base, placement) => {
                *placement = Placement::of_classifier(base, device)?;
            }
        }
        Ok(())
    }

    /// Bytes of the device's memory that are free beside the weights; `None` on the processor.
    pub(crate) fn free_device_bytes(&self) -> Result<Option<u64>, TrainError> {
        let (Self::Decoder(_, placement) | Self::Encoder(_, placement)) = self;
        Ok(placement.free_bytes()?.map(|bytes| bytes as u64))
    }

    fn check(&self, job: &Job) -> Result<(), TrainError> {
        let positions = match self {
            Self::Decoder(base, _) => base.config().maximum_positions,
            Self::Encoder(base, _) => base.config().maximum_positions,
        };
        let max_seq_length = job.params.max_seq_length as usize;
        if max_seq_length > positions {
            return Err(TrainError::Params(format!(
                "max_seq_length {max_seq_length} is longer than the {positions} positions of {}; use {positions} or less",
                job.base_model
            )));
        }
        if matches!(self, Self::Encoder(..)) && job.params.training_method != TrainingMethod::Sft {
            return Err(TrainError::Params(format!(
                "{} classifies text, which training_method \"dpo\" does not train; leave training_method out",
                job.base_model
            )));
        }
        Ok(())
    }

    pub(crate) fn sha256_hex(&self) -> String {
        match self {
            Self::Decoder(base, _) => base.sha256_hex(),
            Self::Encoder(base, _) => base.sha256_hex(),
        }
    }

    /// How the records of the job's dataset are rendered.
    pub(crate) fn render_options(&self, params: &TrainingParams) -> RenderOptions {
        let kind = match self {
            Self::Decoder(..) => ModelKind::CausalLanguage,
            Self::Encoder(..) => ModelKind::SequenceClassification,
        };
        RenderOptions::of_run(params, kind)
    }

    pub(crate) fn shape(&self, params: &TrainingParams) -> Shape {
        let rank = params.lora_rank;
        match self {
            Self::Decoder(base, _) => {
                let shape = Shape::of_decoder(base.config(), rank);
                match params.use_dora {
                    true => shape.with_lengths_of_decoder(base.config()),
                    false => shape,
                }
            }
            Self::Encoder(base, _) => {
                let shape = Shape::of_encoder(base.config(), rank);
                match params.use_dora {
                    true => shape.with_lengths_of_encoder(base.config()),
                    false => shape,
                }
            }
        }
    }

    /// The adapter in the archive of an earlier task, which fits this model.
    pub(crate) fn read_adapter(&self, archive: &[u8]) -> Result<LoraAdapter, TrainError> {
        match self {
            Self::Decoder(base, _) => archive::read_adapter(archive, base.config()),
            Self::Encoder(..) => Err(TrainError::Params(
                "continue_from works with language models; a classifier starts anew".to_owned(),
            )),
        }
    }

    /// The method that learns `dataset`, in passes of at most `pack_tokens` tokens, starting at `initial`.
    pub(crate) fn method(
        self,
        params: &TrainingParams,
        initial: Option<LoraAdapter>,
        dataset: RenderedDataset,
        pack_tokens: usize,
    ) -> Result<Box<dyn Method>, TrainError> {
        let objective = self.render_options(params).objective;
        let initial = initial.as_ref();
        Ok(match (self, objective) {
            (Self::Encoder(base, placement), _) => {
                let lora = lora_config(params, ModelFamily::DistilBert)?;
                let base = (base, placement);
                Box::new(Classification::new(base, lora, dataset, pack_tokens)?)
            }
            (Self::Decoder(base, placement), Objective::Preference) => {
                let lora = lora_config(params, base.config().family)?;
                let beta = params.dpo_beta;
                Box::new(Preference::new(
                    (base, placement),
                    lora,
                    initial,
                    beta,
                    dataset,
                    pack_tokens,
                )?)
            }
            (Self::Decoder(base, placement), _) => {
                let lora = lora_config(params, base.config().family)?;
                let base = (base, placement);
                Box::new(Language::new(base, lora, initial, dataset, pack_tokens)?)
            }
        })
    }
}

/// The samples of one kind.
///
/// # Panics
/// If the dataset was rendered for another objective.
pub(crate) fn samples_of<T>(samples: Vec<Sample>, of: impl Fn(Sample) -> Option<T>) -> Vec<T> {
    samples
        .into_iter()
        .map(|sample| of(sample).expect("a dataset is rendered for one objective"))
        .collect()
}

/// How activations meet bf16 weights where a model is trained.
pub(crate) fn fastest_precision(placement: &Placement) -> Precision {
    // Every device that is supported multiplies in bf16; not every processor does.
    match placement.is_on_device() {
        true => Precision::Bf16,
        false => Precision::fastest(),
    }
}

fn lora_config(params: &TrainingParams, family: ModelFamily) -> Result<LoraConfig, TrainError> {
    Ok(LoraConfig {
        rank: params.lora_rank as usize,
        alpha: params.lora_alpha as f32,
        dropout: params.lora_dropout as f32,
        rank_stabilized: params.use_rslora,
        dora: params.use_dora,
        targets: targets(params, family)?,
        seed: params.seed,
    })
}

/// The linear layers that get an adapter.
fn targets(
    params: &TrainingParams,
    family: ModelFamily,
) -> Result<BTreeSet<Projection>, TrainError> {
    if params.lora_target_modules.is_empty() {
        return Ok(family.default_targets());
    }
    let layers = family.linear_layers();
    let find = |name: &String| {
        let found = layers.iter().find(|(known, _)| known == name);
        found.map(|(_, layer)| *layer).ok_or_else(|| {
            let known: Vec<&str> = layers.iter().map(|(known, _)| *known).collect();
            TrainError::Params(format!(
                "lora_target_modules names '{name}', which this model does not have; it has {}",
                known.join(", ")
            ))
        })
    };
    params.lora_target_modules.iter().map(find).collect()
}
