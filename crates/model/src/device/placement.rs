//! Where a model computes, in training and in serving.

use super::DeviceWeights;
use crate::base_model::BaseModel;
use crate::error::ModelError;
use std::sync::Arc;
use zerog_kernels::device::Device;

/// Where a base model serves and its adapters are trained: on the processor, or on a device that holds the frozen weights.
///
/// Clones share the weights. Parameters, optimiser and files stay on the host wherever the passes run.
#[derive(Clone, Debug, Default)]
pub struct Placement {
    pub(super) weights: Option<Arc<DeviceWeights>>,
}

impl Placement {
    /// Puts the weights of `base` on `device`; nothing is done for the processor.
    ///
    /// # Errors
    /// [`ModelError::Device`], which says what is missing.
    pub fn new(base: &Arc<BaseModel>, device: Device) -> Result<Self, ModelError> {
        let weights = match device {
            Device::Cpu => None,
            Device::Cuda(ordinal) => Some(Arc::new(DeviceWeights::upload(base, ordinal)?)),
        };
        Ok(Self { weights })
    }

    /// Puts the weights of `base` on a device that is open already.
    ///
    /// # Errors
    /// [`ModelError::Device`].
    #[cfg(feature = "cuda")]
    pub fn on_cuda(
        base: &Arc<BaseModel>,
        cuda: &zerog_kernels::cuda::Cuda,
    ) -> Result<Self, ModelError> {
        let weights = super::weights::DeviceWeights::of(base, cuda.clone())?;
        Ok(Self {
            weights: Some(Arc::new(weights)),
        })
    }

    /// Whether the passes run elsewhere than on the processor.
    pub fn is_on_device(&self) -> bool {
        self.weights.is_some()
    }

    /// Bytes of the device's memory that are free beside the weights; `None` on the processor.
    ///
    /// # Errors
    /// [`ModelError::Device`].
    pub fn free_bytes(&self) -> Result<Option<usize>, ModelError> {
        match &self.weights {
            Some(weights) => Ok(Some(weights.free_bytes()?)),
            None => Ok(None),
        }
    }

    /// The weights for a model over `base`.
    ///
    /// # Panics
    /// If the placement was made for another base model.
    pub(crate) fn weights_of(&self, base: &Arc<BaseModel>) -> Option<Arc<DeviceWeights>> {
        let weights = self.weights.as_ref()?;
        assert!(weights.is_of(base), "the weights of another base model");
        Some(Arc::clone(weights))
    }
}
