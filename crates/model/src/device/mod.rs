//! Models on a device other than the processor: where the frozen weights lie, and the passes of training and serving
//! over them.

#[cfg(not(feature = "cuda"))]
mod absent;
#[cfg(feature = "cuda")]
mod adapters;
#[cfg(feature = "cuda")]
mod cache;
#[cfg(feature = "cuda")]
mod classifier;
#[cfg(feature = "cuda")]
mod linear;
mod placement;
#[cfg(feature = "cuda")]
mod serving;
#[cfg(feature = "cuda")]
mod shared;
#[cfg(feature = "cuda")]
mod training;
#[cfg(feature = "cuda")]
mod weights;

#[cfg(not(feature = "cuda"))]
pub(crate) use absent::{
    DeviceCache, DeviceClassifier, DeviceServing, DeviceTraining, DeviceWeights, EncoderWeights,
};
pub use placement::Placement;
#[cfg(feature = "cuda")]
pub(crate) use {
    cache::DeviceCache, classifier::DeviceClassifier, serving::DeviceServing,
    training::DeviceTraining, weights::DeviceWeights, weights::EncoderWeights,
};
