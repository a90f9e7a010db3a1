//! One optimiser step: forward and backward over its packs, clipping, update, and the guard
//! rails that stop a run which no longer learns.

use zerog_model::{
    ModelError, PackedBatch, StepLoss, StepOptions, Trainable, TrainableModel, UpdateOptions,
};
use zerog_protocol::training_params::TrainingParams;

use crate::error::TrainError;

/// Batch numbers set aside for each step. A step has at most 64 × 1024 examples, and never
/// more packs than examples.
const BATCHES_PER_STEP: u64 = 1 << 17;

/// What one step measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct StepReport {
    pub(crate) loss: f64,
    pub(crate) gradient_norm: f64,
}

/// Runs step `step` (from 0). On an error the model keeps the parameters of before.
pub(crate) fn run_step(
    model: &mut TrainableModel,
    packs: &[PackedBatch],
    params: &TrainingParams,
    learning_rate: f64,
    step: u64,
    checkpoint_step: u64,
) -> Result<StepReport, TrainError> {
    let diverged = |what| TrainError::Diverged {
        what,
        step: step + 1,
        checkpoint_step,
    };
    model.zero_gradients();
    let mut loss = StepLoss::default();
    for (index, pack) in packs.iter().enumerate() {
        let options = StepOptions {
            batch_number: step * BATCHES_PER_STEP + index as u64,
            neftune_alpha: params.neftune_noise_alpha as f32,
        };
        match model.forward_backward(pack, &options) {
            Ok(one) => loss.add(one),
            Err(ModelError::LossNotFinite) => return Err(diverged("loss")),
            Err(error) => return Err(error.into()),
        }
    }
    let mean = loss.mean();
    if !mean.is_finite() {
        return Err(diverged("loss"));
    }
    if mean == 0.0 {
        return Err(TrainError::NothingLearned { step: step + 1 });
    }
    let maximum_norm = (params.max_grad_norm > 0.0).then_some(params.max_grad_norm as f32);
    let clipped = model.clipped_scale(loss.supervised_tokens, maximum_norm);
    if !clipped.gradient_norm.is_finite() {
        return Err(diverged("gradient"));
    }
    model.apply_update(&UpdateOptions {
        learning_rate: learning_rate as f32,
        weight_decay: params.weight_decay as f32,
        betas: (params.adam_beta1 as f32, params.adam_beta2 as f32),
        epsilon: params.adam_epsilon as f32,
        gradient_scale: clipped.scale,
    });
    Ok(StepReport {
        loss: mean,
        gradient_norm: clipped.gradient_norm,
    })
}
