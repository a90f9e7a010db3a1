//! Which model families can be run, by what a base model's folder says about itself.

use crate::error::ModelError;
use std::path::Path;

/// A family of architectures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ModelFamily {
    /// Qwen2 and Qwen2.5 decoders: biases on queries, keys and values, no normalisation of heads.
    Qwen2,
}

impl ModelFamily {
    /// The family of a `config.json`, by `architectures` or else `model_type`.
    ///
    /// # Errors
    /// [`ModelError::UnsupportedArchitecture`].
    pub fn of(architecture: Option<&str>, model_type: Option<&str>) -> Result<Self, ModelError> {
        match (architecture, model_type) {
            (Some("Qwen2ForCausalLM"), _) | (None, Some("qwen2")) => Ok(Self::Qwen2),
            (architecture, model_type) => Err(ModelError::UnsupportedArchitecture {
                found: architecture.or(model_type).unwrap_or("none").to_owned(),
            }),
        }
    }

    /// The family of the base model in `directory`, without loading weights.
    ///
    /// # Errors
    /// As [`crate::ModelConfig::load`].
    pub fn of_folder(directory: &Path) -> Result<Self, ModelError> {
        Ok(crate::ModelConfig::load(directory)?.family)
    }

    /// The value of `architectures` in `config.json`.
    pub fn architecture(self) -> &'static str {
        match self {
            Self::Qwen2 => "Qwen2ForCausalLM",
        }
    }

    /// The value of `model_type` in `config.json`.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Qwen2 => "qwen2",
        }
    }
}
