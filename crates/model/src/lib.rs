//! Transformer families, LoRA layers, weights and adapter files, training steps and batched inference.
//!
//! The same weights serve two callers:
//! - training: [`TrainableModel`] computes gradients of packed batches and updates either the low-rank
//!   matrices of an adapter on a frozen base, or every parameter of a small model;
//! - serving: [`BaseModel::forward`] advances many sequences at once, each with its own cache and its own
//!   adapter; [`Serving`] does so on the processor or on a device.
//!
//! What a batch contains, when to step and where files go is decided by the callers.

mod adapter_error;
mod adapter_files;
mod adapter_layout;
mod base_model;
mod batch;
mod classifier;
mod classifier_base;
mod classifier_config;
mod config;
mod decoder;
mod delta;
mod device;
mod encoder;
mod error;
mod inference;
mod kv_cache;
mod linear;
mod lora;
mod noise;
mod parameters;
mod registry;
mod rope_scaling;
mod sampling;
mod serving;
mod step_threads;
mod trainable;
mod training;
mod weights;

pub use adapter_error::AdapterError;
pub use adapter_files::{ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, AdapterIdentity};
pub use base_model::BaseModel;
pub use batch::{NO_LABEL, PackedBatch, PreferenceBatch};
pub use classifier::{ClassifierBatch, TrainableClassifier};
pub use classifier_base::ClassifierBase;
pub use classifier_config::ClassifierConfig;
pub use config::{Biases, ModelConfig};
pub use decoder::PreferenceLoss;
pub use device::Placement;
pub use error::ModelError;
pub use inference::{InferenceScratch, LogitsWanted, Row};
pub use kv_cache::{BLOCK_TOKENS, KvBlock, KvCache, KvPool};
pub use lora::{LoraAdapter, LoraConfig, Projection};
pub use parameters::Parameters;
pub use registry::ModelFamily;
pub use rope_scaling::{RopeScaling, RopeSettings};
pub use sampling::{
    Sampled, Sampler, SamplingParams, log_probabilities, log_probability, top_log_probabilities,
};
pub use serving::{Serving, ServingSizes};
pub use trainable::{ClippedScale, Trainable, UpdateOptions};
pub use training::{AdapterUse, StepLoss, StepOptions, TrainableModel};
#[cfg(feature = "cuda")]
pub use zerog_kernels::cuda;
pub use zerog_kernels::device::{Device, DeviceError, UnknownDevice};
pub use zerog_kernels::matmul::Precision;
