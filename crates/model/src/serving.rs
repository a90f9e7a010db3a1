//! A base model that answers: the same steps on the processor and on a device.

use crate::base_model::BaseModel;
use crate::device::{DeviceServing, Placement};
use crate::error::ModelError;
use crate::inference::{InferenceScratch, Row};
use crate::kv_cache::KvPool;
use crate::step_threads::StepThreads;
use std::ops::Range;
use std::sync::Arc;
use zerog_kernels::matmul::Precision;

/// What a device sets memory aside for, and how it computes. The processor takes memory as it needs it and computes in
/// single precision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServingSizes {
    /// Blocks of keys and values of [`crate::BLOCK_TOKENS`] tokens; no more are ever in use.
    pub blocks: usize,
    /// New tokens of a large step. Larger ones take more memory when they come.
    pub step_tokens: usize,
    /// Tokens of a large step whose logits are wanted.
    pub step_rows: usize,
    /// Of products with bf16 weights: [`Precision::Bf16`] rounds activations, [`Precision::F32`] widens weights, which
    /// is slow.
    pub precision: Precision,
}

/// A base model where it serves: the pool of its caches and the working memory of its steps.
#[derive(Debug)]
pub struct Serving {
    model: Arc<BaseModel>,
    pool: Arc<KvPool>,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Processor(Box<InferenceScratch>, StepThreads),
    Device(Box<DeviceServing>),
}

impl Serving {
    /// On the processor.
    pub fn on_processor(model: Arc<BaseModel>) -> Self {
        Self {
            pool: KvPool::new(model.config()),
            place: Place::Processor(Box::default(), StepThreads::new()),
            model,
        }
    }

    /// Where `placement` has put the weights of `model`; on a device, memory for `sizes` is set aside.
    ///
    /// # Errors
    /// [`ModelError::CacheTooLarge`] with the blocks that fit, [`ModelError::Device`].
    ///
    /// # Panics
    /// If the placement was made for another base model.
    pub fn new(
        model: Arc<BaseModel>,
        placement: &Placement,
        sizes: &ServingSizes,
    ) -> Result<Self, ModelError> {
        let Some(weights) = placement.weights_of(&model) else {
            return Ok(Self::on_processor(model));
        };
        let (device, cache) = DeviceServing::new(weights, sizes)?;
        Ok(Self {
            pool: KvPool::on_device(model.config(), cache),
            place: Place::Device(Box::new(device)),
            model,
        })
    }

    /// The base model.
    pub fn model(&self) -> &Arc<BaseModel> {
        &self.model
    }

    /// Where the blocks of all caches come from.
    pub fn pool(&self) -> &Arc<KvPool> {
        &self.pool
    }

    /// Blocks of keys and values that would have fitted into the device's memory beside weights and steps; `None` on
    /// the processor.
    pub fn fitting_blocks(&self) -> Option<usize> {
        match &self.place {
            Place::Processor(..) => None,
            Place::Device(device) => Some(device.fitting_blocks()),
        }
    }

    /// Whether weights or activations are rounded more than in the model's files.
    pub fn is_rounded(&self) -> bool {
        self.model.is_quantized()
            || match &self.place {
                Place::Processor(..) => false,
                Place::Device(device) => device.is_rounded(),
            }
    }

    /// Appends the new tokens of every row to its cache, which is of [`Serving::pool`]. The wanted logits of row `i`
    /// are at the `i`-th returned place of [`Serving::logits`] until the next call.
    ///
    /// On the processor a row gets the same bits alone and in any batch. On a device it does with the same rows beside
    /// it; else products may be summed in another order.
    ///
    /// # Errors
    /// Those of [`BaseModel::forward`]; on a device also [`ModelError::CacheFull`] and [`ModelError::Device`]. The
    /// tokens in the caches are the same as before then.
    pub fn forward(&mut self, rows: &mut [Row<'_>]) -> Result<Vec<Range<usize>>, ModelError> {
        match &mut self.place {
            Place::Processor(scratch, threads) if self.model.is_parallel(rows) => {
                threads.run(|| self.model.forward_in_place(rows, scratch))
            }
            Place::Processor(scratch, _) => self.model.forward_in_place(rows, scratch),
            Place::Device(device) => device.forward(&self.pool, rows),
        }
    }

    /// Logits of the last [`Serving::forward`].
    pub fn logits(&self, place: Range<usize>) -> &[f32] {
        match &self.place {
            Place::Processor(scratch, _) => scratch.logits(place),
            Place::Device(device) => device.logits(place),
        }
    }
}
