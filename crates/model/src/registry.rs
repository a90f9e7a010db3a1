//! Which model families can be run, by what a base model's folder says about itself.

use crate::config::CONFIG_FILE;
use crate::error::ModelError;
use crate::lora::Projection;
use serde::Deserialize;
use std::collections::BTreeSet;
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
        Self::of_config(&bytes, &path)
    }

    /// The family of the bytes of a `config.json` that lies at `path`.
    pub(crate) fn of_config(bytes: &[u8], path: &Path) -> Result<Self, ModelError> {
        let names: Names = serde_json::from_slice(bytes).map_err(|source| ModelError::Json {
            path: path.to_owned(),
            source,
        })?;
        let architecture = names.architectures.iter().flatten().next();
        Self::of(
            architecture.map(String::as_str),
            names.model_type.as_deref(),
        )
    }

    /// The linear layers that can have an adapter, by the names that PEFT's `target_modules` uses.
    pub fn linear_layers(self) -> &'static [(&'static str, Projection)] {
        match self {
            Self::Qwen2 | Self::Qwen3 | Self::Llama => &[
                ("q_proj", Projection::Query),
                ("k_proj", Projection::Key),
                ("v_proj", Projection::Value),
                ("o_proj", Projection::Output),
                ("gate_proj", Projection::Gate),
                ("up_proj", Projection::Up),
                ("down_proj", Projection::Down),
            ],
            Self::DistilBert => &[
                ("q_lin", Projection::Query),
                ("k_lin", Projection::Key),
                ("v_lin", Projection::Value),
                ("out_lin", Projection::Output),
                ("lin1", Projection::Up),
                ("lin2", Projection::Down),
            ],
        }
    }

    /// The linear layers that get an adapter when nothing is said: all of a decoder, attention of an encoder, whose
    /// head is trained besides.
    pub fn default_targets(self) -> BTreeSet<Projection> {
        let layers = self.linear_layers().iter().map(|(_, layer)| *layer);
        match self.is_decoder() {
            true => layers.collect(),
            false => layers.take(4).collect(),
        }
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
