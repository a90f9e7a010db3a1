//! Training on a device other than the processor: where the frozen weights lie, and the passes over them.

#[cfg(feature = "cuda")]
mod linear;
mod placement;
#[cfg_attr(not(feature = "cuda"), path = "absent.rs")]
mod training;
#[cfg(feature = "cuda")]
mod weights;

pub use placement::Placement;
pub(crate) use training::DeviceTraining;
