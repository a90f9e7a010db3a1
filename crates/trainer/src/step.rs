//! One optimiser step: forward and backward over its examples, clipping, update, and the guard
//! rails that stop a run which no longer learns.

use zerog_model::{ModelError, UpdateOptions};
use zerog_protocol::training_params::TrainingParams;

use crate::error::TrainError;
use crate::method::{Batches, Method};
use crate::progress::Metrics;

/// What one step measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct StepReport {
    pub(crate) loss: f64,
    pub(crate) gradient_norm: f64,
    pub(crate) metrics: Metrics,
}

/// Runs step `step` (from 0) over the examples `chosen`. On an error the model keeps the parameters of before.
pub(crate) fn run_step(
    method: &mut dyn Method,
    chosen: &[usize],
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
    method.trainable().zero_gradients();
    let measured = match method.forward_backward(chosen, Batches::of_step(step, params)) {
        Ok(measured) => measured,
        Err(ModelError::LossNotFinite) => return Err(diverged("loss")),
        Err(error) => return Err(error.into()),
    };
    let mean = measured.mean();
    if !mean.is_finite() {
        return Err(diverged("loss"));
    }
    if mean == 0.0 {
        return Err(TrainError::NothingLearned { step: step + 1 });
    }
    let maximum_norm = (params.max_grad_norm > 0.0).then_some(params.max_grad_norm as f32);
    let model = method.trainable();
    let clipped = model.clipped_scale(measured.count, maximum_norm);
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
        metrics: measured.metrics,
    })
}
