//! Why adapter files are refused.

use crate::adapter_files::{
    ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, MAXIMUM_CONFIG_BYTES, MAXIMUM_HEADER_BYTES,
};
use crate::adapter_layout::PREFIX;
use crate::lora::MAXIMUM_RANK;

/// Why adapter files were refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdapterError {
    /// The configuration is not JSON of the expected form.
    #[error("{ADAPTER_CONFIG_FILE} is not valid: {source}")]
    Config {
        /// Place and reason.
        #[source]
        source: serde_json::Error,
    },
    /// The configuration is larger than any real one.
    #[error("{ADAPTER_CONFIG_FILE} has {bytes} bytes, at most {MAXIMUM_CONFIG_BYTES} are read")]
    ConfigTooLarge {
        /// Its size.
        bytes: usize,
    },
    /// The weight file's list of tensors is larger than any real one.
    #[error(
        "{ADAPTER_WEIGHTS_FILE} has a header of {bytes} bytes, at most {MAXIMUM_HEADER_BYTES} are read"
    )]
    HeaderTooLarge {
        /// Its size, as the file says.
        bytes: u64,
    },
    /// The weight file is damaged.
    #[error("{ADAPTER_WEIGHTS_FILE} is not a valid safetensors file: {source}")]
    Weights {
        /// What is wrong with it.
        #[source]
        source: safetensors::SafeTensorError,
    },
    /// A setting asks for something that is not implemented.
    #[error("the adapter sets {setting} to {value}, which is not supported")]
    UnsupportedSetting {
        /// Name of the member.
        setting: &'static str,
        /// Its value.
        value: String,
    },
    /// The rank is zero or too large.
    #[error("the adapter's rank {rank} is not within 1 to {MAXIMUM_RANK}")]
    Rank {
        /// The rank.
        rank: u64,
    },
    /// `lora_alpha` is not a positive number.
    #[error("the adapter's lora_alpha {alpha} is not a positive number")]
    Alpha {
        /// The value.
        alpha: f32,
    },
    /// A target module is not a linear layer of the base model.
    #[error("target module {name:?} is not a linear layer of the base model")]
    TargetModule {
        /// Its name.
        name: String,
    },
    /// There is no target module.
    #[error("the adapter has no target module")]
    NoTargetModule,
    /// A tensor's name does not begin as PEFT writes it.
    #[error("tensor {name} does not begin with {PREFIX}")]
    TensorPrefix {
        /// Its name.
        name: String,
    },
    /// A tensor belongs to no target module of the base model.
    #[error("tensor {name} belongs to no target module of the base model")]
    UnexpectedTensor {
        /// Its name.
        name: String,
    },
    /// A tensor of a target module is not in the file.
    #[error("tensor {name} is missing")]
    MissingTensor {
        /// Its name.
        name: String,
    },
    /// A tensor's shape does not follow from rank and base model.
    #[error("tensor {name} has shape {found:?}, expected {expected:?}")]
    Shape {
        /// Its name.
        name: String,
        /// The required shape.
        expected: Vec<usize>,
        /// The shape in the file.
        found: Vec<usize>,
    },
    /// A tensor's element type is not F32, BF16 or F16.
    #[error("tensor {name} has element type {found}, expected F32, BF16 or F16")]
    ElementType {
        /// Its name.
        name: String,
        /// The type in the file.
        found: String,
    },
    /// A tensor holds infinity or something that is not a number.
    #[error("tensor {name} holds a number that is not finite")]
    NotFinite {
        /// Its name.
        name: String,
    },
    /// Every `B` is zero and nothing else was trained: the adapter would change nothing.
    #[error("every lora_B is zero, so the adapter changes nothing")]
    NoEffect,
    /// The adapter is for another kind of model.
    #[error("the adapter has task_type {found}, this base model needs {expected}")]
    TaskType {
        /// `task_type` of the configuration.
        found: String,
        /// What fits the base model.
        expected: &'static str,
    },
}
