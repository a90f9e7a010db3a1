//! What can go wrong with models and their files.

use crate::adapter_error::AdapterError;
use std::path::PathBuf;

/// A failure of loading, training or serving a model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A file or directory could not be read or written.
    #[error("cannot access {path}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A JSON file does not have the expected form.
    #[error("{path} is not valid: {source}")]
    Json {
        /// The file.
        path: PathBuf,
        /// Place and reason.
        source: serde_json::Error,
    },
    /// The model's architecture is not one that can be run.
    #[error(
        "architecture {found:?} is not supported (supported: Qwen2ForCausalLM, Qwen3ForCausalLM, LlamaForCausalLM, DistilBertForSequenceClassification)"
    )]
    UnsupportedArchitecture {
        /// `architectures` or `model_type` of the configuration.
        found: String,
    },
    /// An encoder was loaded where a decoder is needed.
    #[error("this model classifies text, it does not continue it; use a language model here")]
    NotADecoder,
    /// A decoder was loaded where an encoder is needed.
    #[error("this model continues text, it does not classify it; use a classification model here")]
    NotAClassifier,
    /// The configuration asks for something that is not implemented.
    #[error("the configuration sets {setting} to {value}, which is not supported")]
    UnsupportedSetting {
        /// Name of the member of `config.json`.
        setting: &'static str,
        /// Its value.
        value: String,
    },
    /// A number of the configuration is outside its range or contradicts another.
    #[error("the configuration has an impossible {setting}: {value}")]
    InvalidSetting {
        /// Name of the member of `config.json`.
        setting: &'static str,
        /// Its value.
        value: u64,
    },
    /// The directory holds neither `model.safetensors` nor `model.safetensors.index.json`.
    #[error("no model.safetensors or model.safetensors.index.json in {directory}")]
    MissingWeights {
        /// The directory.
        directory: PathBuf,
    },
    /// A weight file is damaged.
    #[error("{path} is not a valid safetensors file: {source}")]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: safetensors::SafeTensorError,
    },
    /// A tensor that the configuration requires is not in the weight files.
    #[error("tensor {name} is missing")]
    MissingTensor {
        /// Its name.
        name: String,
    },
    /// A tensor has another shape than the configuration requires.
    #[error("tensor {name} has shape {found:?}, expected {expected:?}")]
    TensorShape {
        /// Its name.
        name: String,
        /// The required shape.
        expected: Vec<usize>,
        /// The shape in the file.
        found: Vec<usize>,
    },
    /// A tensor has an element type that is not BF16, F16 or F32.
    #[error("tensor {name} has element type {found}, expected BF16, F16 or F32")]
    TensorType {
        /// Its name.
        name: String,
        /// The type in the file.
        found: String,
    },
    /// A batch has no token.
    #[error("the batch is empty")]
    EmptyBatch,
    /// The lists of a batch do not belong together.
    #[error(
        "the batch has {tokens} tokens, {targets} targets and segments of {segments} tokens in total"
    )]
    BatchLengths {
        /// Number of tokens.
        tokens: usize,
        /// Number of targets.
        targets: usize,
        /// Sum of the lengths of the segments.
        segments: usize,
    },
    /// A token or target is not in the vocabulary.
    #[error("token id {token} is outside the vocabulary of {vocabulary}")]
    TokenOutOfRange {
        /// The token id.
        token: i64,
        /// Size of the vocabulary.
        vocabulary: usize,
    },
    /// A sequence is longer than the model's positions.
    #[error("a sequence of {tokens} tokens exceeds the model's {limit} positions")]
    SequenceTooLong {
        /// Its length.
        tokens: usize,
        /// Positions of the model.
        limit: usize,
    },
    /// A cache was made for another model.
    #[error("the key-value cache was made for another model shape")]
    CacheMismatch,
    /// Every block of keys and values that a device has set aside is in use.
    #[error("all {blocks} blocks of the device's key-value cache are in use")]
    CacheFull {
        /// How many there are.
        blocks: usize,
    },
    /// The blocks of keys and values do not fit into the memory of a device.
    #[error(
        "{blocks} blocks of keys and values do not fit into the device's memory beside the weights; {fitting} do"
    )]
    CacheTooLarge {
        /// How many were asked for.
        blocks: usize,
        /// How many fit.
        fitting: usize,
    },
    /// An adapter does not fit the base model.
    #[error("the adapter was made for another model shape")]
    AdapterMismatch,
    /// A setting of the adapter to be trained is impossible.
    #[error("LoRA setting {setting} is out of range: {value}")]
    InvalidLora {
        /// The setting.
        setting: &'static str,
        /// Its value.
        value: f64,
    },
    /// Saved training state does not belong to this model and these settings.
    #[error("the saved training state does not match: {reason}")]
    StateMismatch {
        /// Which part differs.
        reason: &'static str,
    },
    /// The loss is not a number any more; the learning rate is too high or the data is damaged.
    #[error("the loss is not finite")]
    LossNotFinite,
    /// The operation needs an adapter but every parameter is being trained, or the other way round.
    #[error("{operation} is not possible in this training mode")]
    WrongMode {
        /// What was asked for.
        operation: &'static str,
    },
    /// The device cannot be used.
    #[error(transparent)]
    Device(#[from] zerog_kernels::device::DeviceError),
    /// An adapter file was refused.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
}

impl ModelError {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}
