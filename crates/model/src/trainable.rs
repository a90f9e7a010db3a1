//! What a training loop needs of a model whatever it computes: update, state, inspection.

use crate::error::ModelError;
use crate::parameters::Parameters;
use zerog_kernels::adamw::AdamW;

/// The numbers of one AdamW update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct UpdateOptions {
    /// Learning rate.
    pub learning_rate: f32,
    /// Decoupled weight decay, not applied to biases and norms.
    pub weight_decay: f32,
    /// Decay rates of the moments.
    pub betas: (f32, f32),
    /// Added to the root of the second moment.
    pub epsilon: f32,
    /// Factor of the accumulated gradients, see [`Trainable::clipped_scale`].
    pub gradient_scale: f32,
}

/// Result of [`Trainable::clipped_scale`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClippedScale {
    /// Norm of the mean gradient before clipping.
    pub gradient_norm: f64,
    /// Factor that takes the mean and clips.
    pub scale: f32,
}

/// A model in training.
///
/// One optimiser step is any number of forward and backward passes, whose gradients add up, and one
/// [`apply_update`](Self::apply_update). Gradients are of loss **sums**; the update's `gradient_scale` divides by
/// what was summed over in all passes, so that accumulation gives the same step as one large batch.
pub trait Trainable {
    /// What is trained.
    fn parameters(&self) -> &Parameters;

    /// What is trained, to be changed.
    fn parameters_mut(&mut self) -> &mut Parameters;

    /// Number of numbers that are trained.
    fn trainable_parameters(&self) -> usize {
        self.parameters().len()
    }

    /// Number of updates so far.
    fn updates(&self) -> u64 {
        self.parameters().updates
    }

    /// Norm of the accumulated gradients of the loss sum.
    fn gradient_norm(&self) -> f64 {
        self.parameters().gradient_norm()
    }

    /// The factor that turns the accumulated gradients into the mean over `count` tokens or examples, clipped to
    /// `maximum_norm` if given.
    fn clipped_scale(&self, count: usize, maximum_norm: Option<f32>) -> ClippedScale {
        let mean = 1.0 / count.max(1) as f64;
        let gradient_norm = self.gradient_norm() * mean;
        // The same small number as in `torch.nn.utils.clip_grad_norm_`.
        let clip = maximum_norm.map_or(1.0, |limit| {
            (f64::from(limit) / (gradient_norm + 1e-6)).min(1.0)
        });
        ClippedScale {
            gradient_norm,
            scale: (mean * clip) as f32,
        }
    }

    /// One AdamW update from the accumulated gradients, which are cleared.
    fn apply_update(&mut self, options: &UpdateOptions) {
        self.parameters_mut().update(AdamW {
            learning_rate: options.learning_rate,
            betas: options.betas,
            epsilon: options.epsilon,
            weight_decay: options.weight_decay,
            gradient_scale: options.gradient_scale,
            step: 0,
        });
    }

    /// Drops the accumulated gradients.
    fn zero_gradients(&mut self) {
        self.parameters_mut().zero_gradients();
    }

    /// Parameters, moments and number of updates, for [`Trainable::import_state`]. Gradients that were not applied
    /// yet are not part of it.
    fn export_state(&self) -> Vec<u8> {
        self.parameters().export()
    }

    /// Takes over exported state of a model with the same parameters; a run continues with the same bits.
    ///
    /// # Errors
    /// [`ModelError::StateMismatch`]; nothing has changed then.
    fn import_state(&mut self, bytes: &[u8]) -> Result<(), ModelError> {
        self.parameters_mut().import(bytes)
    }
}
