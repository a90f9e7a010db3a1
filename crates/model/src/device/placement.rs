//! Where a model computes, in training and in serving.

use super::{DeviceWeights, EncoderWeights};
use crate::base_model::BaseModel;
use crate::classifier_base::ClassifierBase;
use crate::error::ModelError;
use std::sync::Arc;
use zerog_kernels::device::Device;

/// Where a base model serves and its adapters are trained: on the processor, or on a device that holds the frozen weights.
///
/// Clones share the weights. Parameters, optimiser and files stay on the host wherever the passes run.
#[derive(Clone, Debug, Default)]
pub struct Placement {
    weights: Option<Weights>,
}

/// Weights on a device.
#[derive(Clone, Debug)]
enum Weights {
    Decoder(Arc<DeviceWeights>),
    Encoder(Arc<EncoderWeights>),
}

impl Placement {
    /// Puts the weights of `base` on `device`; nothing is done for the processor.
    ///
    /// # Errors
    /// [`ModelError::Device`], which says what is missing.
    pub fn new(base: &Arc<BaseModel>, device: Device) -> Result<Self, ModelError> {
        Self::on(device, |ordinal| {
            let weights = DeviceWeights::upload(base, ordinal)?;
            Ok(Weights::Decoder(Arc::new(weights)))
        })
    }

    /// As [`Placement::new`], of an encoder whose classifiers are trained.
    ///
    /// # Errors
    /// The same.
    pub fn of_classifier(base: &Arc<ClassifierBase>, device: Device) -> Result<Self, ModelError> {
        Self::on(device, |ordinal| {
            let weights = EncoderWeights::upload(base, ordinal)?;
            Ok(Weights::Encoder(Arc::new(weights)))
        })
    }

    fn on(
        device: Device,
        upload: impl FnOnce(u32) -> Result<Weights, ModelError>,
    ) -> Result<Self, ModelError> {
        let weights = match device {
            Device::Cpu => None,
            Device::Cuda(ordinal) => Some(upload(ordinal)?),
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
        let weights = DeviceWeights::of(base, cuda.clone())?;
        Ok(Self {
            weights: Some(Weights::Decoder(Arc::new(weights))),
        })
    }

    /// As [`Placement::on_cuda`], of an encoder whose classifiers are trained.
    ///
    /// # Errors
    /// The same.
    #[cfg(feature = "cuda")]
    pub fn of_classifier_on_cuda(
        base: &Arc<ClassifierBase>,
        cuda: &zerog_kernels::cuda::Cuda,
    ) -> Result<Self, ModelError> {
        let weights = EncoderWeights::of(base, cuda.clone())?;
        Ok(Self {
            weights: Some(Weights::Encoder(Arc::new(weights))),
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
        Ok(match &self.weights {
            Some(Weights::Decoder(weights)) => Some(weights.free_bytes()?),
            Some(Weights::Encoder(weights)) => Some(weights.free_bytes()?),
            None => None,
        })
    }

    /// The weights for a model over `base`.
    ///
    /// # Panics
    /// If the placement was made for another base model.
    pub(crate) fn weights_of(&self, base: &Arc<BaseModel>) -> Option<Arc<DeviceWeights>> {
        match self.weights.as_ref()? {
            Weights::Decoder(weights) if weights.is_of(base) => Some(Arc::clone(weights)),
            _ => panic!("the weights of another base model"),
        }
    }

    /// The weights for a classifier over `base`.
    ///
    /// # Panics
    /// If the placement was made for another base model.
    pub(crate) fn encoder_of(&self, base: &Arc<ClassifierBase>) -> Option<Arc<EncoderWeights>> {
        match self.weights.as_ref()? {
            Weights::Encoder(weights) if weights.is_of(base) => Some(Arc::clone(weights)),
            _ => panic!("the weights of another base model"),
        }
    }
}
