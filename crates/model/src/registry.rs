//! Which model families can be run, by what a base model's folder says about itself.

use crate::config::CONFIG_FILE;
use crate::error::ModelError;
use serde::Deserialize;
use std::path::Path;

/// What `config.json` says about the architecture.
#[derive(Deserialize)]
struct Names {
    architectures: Option<Vec<String>>,
    model_type: Option<String>,
}

/// A family of architectures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ModelFamily {
    /// Qwen2 and Qwen2.5 decoders: biases on queries, keys and values, no normalisation of heads.
    Qwen2,
    /// Qwen3 decoders: every head of queries and keys is normalised, heads of their own size.
    Qwen3,
    /// Llama decoders, 3.1 and later with stretched rotary frequencies.
    Llama,
    /// DistilBERT encoders, for classification of text.
    DistilBert,
}

impl ModelFamily {
    /// The family of a `config.json`, by `architectures` or else `model_type`.
    ///
    /// # Errors
    /// [`ModelError::UnsupportedArchitecture`].
    pub fn of(architecture: Option<&str>, model_type: Option<&str>) -> Result<Self, ModelError> {
        match (architecture, model_type) {
            (Some("Qwen2ForCausalLM"), _) | (None, Some("qwen2")) => Ok(Self::Qwen2),
            (Some("Qwen3ForCausalLM"), _) | (None, Some("qwen3")) => Ok(Self::Qwen3),
            (Some("LlamaForCausalLM"), _) | (None, Some("llama")) => Ok(Self::Llama),
            (
                Some(
                    "DistilBertModel"
                    | "DistilBertForMaskedLM"
                    | "DistilBertForSequenceClassification",
                ),
                _,
            )
            | (None, Some("distilbert")) => Ok(Self::DistilBert),
            (architecture, model_type) => Err(ModelError::UnsupportedArchitecture {
                found: architecture.or(model_type).unwrap_or("none").to_owned(),
            }),
        }
    }

    /// The family of the base model in `directory`, without loading weights.
    ///
    /// # Errors
    /// [`ModelError::Io`], [`ModelError::Json`], [`ModelError::UnsupportedArchitecture`].
    pub fn of_folder(directory: &Path) -> Result<Self, ModelError> {
        let path = directory.join(CONFIG_FILE);
        let bytes = std::fs::read(&path).map_err(ModelError::io(&path))?;
        let names: Names =
            serde_json::from_slice(&bytes).map_err(|source| ModelError::Json { path, source })?;
        Self::of(
            names
                .architectures
                .as_ref()
                .and_then(|names| names.first())
                .map(String::as_str),
            names.model_type.as_deref(),
        )
    }

    /// Whether models of this family continue text; the others classify it.
    pub fn is_decoder(self) -> bool {
        self != Self::DistilBert
    }

    /// The value of `architectures` in `config.json`.
    pub fn architecture(self) -> &'static str {
        match self {
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
            Self::Llama => "LlamaForCausalLM",
            Self::DistilBert => "DistilBertForSequenceClassification",
        }
    }

    /// The value of `model_type` in `config.json`.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Llama => "llama",
            Self::DistilBert => "distilbert",
        }
    }
}
