//! `config.json` of DistilBERT encoders.

use crate::config::CONFIG_FILE;
use crate::error::ModelError;
use crate::lora::Projection;
use crate::registry::ModelFamily;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;

/// Upper bounds that keep every product of sizes far inside `usize`.
const MAXIMUM_SIZE: usize = 1 << 20;
const MAXIMUM_LAYERS: usize = 512;

/// Shape of an encoder whose first token is classified.
#[derive(Clone, Debug, PartialEq)]
pub struct ClassifierConfig {
    /// Rows of the embedding; token ids are below it.
    pub vocabulary_size: usize,
    /// Elements of a hidden state.
    pub hidden_size: usize,
    /// Elements between the two halves of a feed-forward block.
    pub intermediate_size: usize,
    /// Encoder layers.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Longest sequence.
    pub maximum_positions: usize,
    /// Names of the classes in order, if the folder holds a trained head.
    pub labels: Vec<String>,
}

/// The linear layers of an encoder layer, by what they are in a decoder layer.
pub(crate) const ENCODER_LINEARS: [Projection; 6] = [
    Projection::Query,
    Projection::Key,
    Projection::Value,
    Projection::Output,
    Projection::Up,
    Projection::Down,
];

#[derive(Deserialize)]
struct Raw {
    vocab_size: usize,
    #[serde(default = "default_positions")]
    max_position_embeddings: usize,
    dim: usize,
    hidden_dim: usize,
    n_layers: usize,
    n_heads: usize,
    #[serde(default = "default_activation")]
    activation: String,
    id2label: Option<BTreeMap<String, String>>,
    quantization_config: Option<serde_json::Value>,
}

fn default_positions() -> usize {
    512
}

fn default_activation() -> String {
    "gelu".to_owned()
}

impl ClassifierConfig {
    /// Reads `config.json` in a model's folder.
    ///
    /// # Errors
    /// [`ModelError::Io`], [`ModelError::Json`], [`ModelError::UnsupportedArchitecture`],
    /// [`ModelError::NotAClassifier`], [`ModelError::UnsupportedSetting`] or [`ModelError::InvalidSetting`].
    pub fn load(directory: &Path) -> Result<Self, ModelError> {
        let path = directory.join(CONFIG_FILE);
        let bytes = std::fs::read(&path).map_err(ModelError::io(&path))?;
        Self::parse(&bytes, &path)
    }

    fn parse(bytes: &[u8], path: &Path) -> Result<Self, ModelError> {
        if ModelFamily::of_config(bytes, path)?.is_decoder() {
            return Err(ModelError::NotAClassifier);
        }
        let raw: Raw = serde_json::from_slice(bytes).map_err(|source| ModelError::Json {
            path: path.to_owned(),
            source,
        })?;
        if raw.activation != "gelu" {
            return Err(ModelError::UnsupportedSetting {
                setting: "activation",
                value: raw.activation,
            });
        }
        if let Some(value) = raw.quantization_config.filter(|value| !value.is_null()) {
            return Err(ModelError::UnsupportedSetting {
                setting: "quantization_config",
                value: value.to_string(),
            });
        }
        let sizes = [
            ("vocab_size", raw.vocab_size, MAXIMUM_SIZE),
            ("dim", raw.dim, MAXIMUM_SIZE),
            ("hidden_dim", raw.hidden_dim, MAXIMUM_SIZE),
            ("n_layers", raw.n_layers, MAXIMUM_LAYERS),
            ("n_heads", raw.n_heads, raw.dim),
            (
                "max_position_embeddings",
                raw.max_position_embeddings,
                MAXIMUM_SIZE,
            ),
        ];
        for (setting, value, limit) in sizes {
            if value == 0 || value > limit {
                return Err(ModelError::InvalidSetting {
                    setting,
                    value: value as u64,
                });
            }
        }
        if !raw.dim.is_multiple_of(raw.n_heads) {
            return Err(ModelError::InvalidSetting {
                setting: "n_heads",
                value: raw.n_heads as u64,
            });
        }
        Ok(Self {
            vocabulary_size: raw.vocab_size,
            hidden_size: raw.dim,
            intermediate_size: raw.hidden_dim,
            layers: raw.n_layers,
            heads: raw.n_heads,
            maximum_positions: raw.max_position_embeddings,
            labels: in_order(raw.id2label.unwrap_or_default())?,
        })
    }

    /// `(output features, input features)` of a linear layer; the encoder has no gate.
    pub(crate) fn projection_shape(&self, projection: Projection) -> (usize, usize) {
        match projection {
            Projection::Up | Projection::Gate => (self.intermediate_size, self.hidden_size),
            Projection::Down => (self.hidden_size, self.intermediate_size),
            _ => (self.hidden_size, self.hidden_size),
        }
    }

    /// Number of parameters of the encoder, without a head.
    pub fn parameter_count(&self) -> usize {
        let hidden = self.hidden_size;
        let layer: usize = ENCODER_LINEARS
            .into_iter()
            .map(|projection| {
                let (outputs, inputs) = self.projection_shape(projection);
                outputs * inputs + outputs
            })
            .sum();
        (self.vocabulary_size + self.maximum_positions) * hidden
            + 2 * hidden
            + self.layers * (layer + 4 * hidden)
    }
}

/// The labels of `id2label`, whose keys are `"0"`, `"1"` and so on.
fn in_order(labels: BTreeMap<String, String>) -> Result<Vec<String>, ModelError> {
    let mut numbered = Vec::with_capacity(labels.len());
    for (id, label) in labels {
        let id: usize = id.parse().map_err(|_| ModelError::UnsupportedSetting {
            setting: "id2label",
            value: id,
        })?;
        numbered.push((id, label));
    }
    numbered.sort();
    if numbered
        .iter()
        .enumerate()
        .any(|(place, (id, _))| place != *id)
    {
        return Err(ModelError::UnsupportedSetting {
            setting: "id2label",
            value: "ids with gaps".to_owned(),
        });
    }
    Ok(numbered.into_iter().map(|(_, label)| label).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Members of the published configuration of distilbert-base-uncased.
    const DISTILBERT: &str = r#"{"activation":"gelu","architectures":["DistilBertForMaskedLM"],"attention_dropout":0.1,
        "dim":768,"dropout":0.1,"hidden_dim":3072,"initializer_range":0.02,"max_position_embeddings":512,
        "model_type":"distilbert","n_heads":12,"n_layers":6,"pad_token_id":0,"qa_dropout":0.1,
        "seq_classif_dropout":0.2,"sinusoidal_pos_embds":false,"tie_weights_":true,"vocab_size":30522}"#;

    fn parse(text: &str) -> Result<ClassifierConfig, ModelError> {
        ClassifierConfig::parse(text.as_bytes(), Path::new(""))
    }

    #[test]
    fn the_published_configuration_is_read() {
        let config = parse(DISTILBERT).unwrap();
        assert_eq!((config.layers, config.heads), (6, 12));
        assert_eq!(config.parameter_count(), 66_362_880);
        assert!(config.labels.is_empty());
        let many: Vec<String> = (0..11).map(|id| format!("\"{id}\":\"L{id}\"")).collect();
        let labels = format!("{{\"id2label\":{{{}}},", many.join(","));
        let config = parse(&DISTILBERT.replacen('{', &labels, 1)).unwrap();
        assert_eq!((config.labels[2].as_str(), config.labels.len()), ("L2", 11));
    }

    #[test]
    fn what_cannot_be_run_is_refused_by_name() {
        let refused = |from: &str, to: &str| parse(&DISTILBERT.replace(from, to)).unwrap_err();
        assert!(matches!(
            refused(r#""activation":"gelu""#, r#""activation":"relu""#),
            ModelError::UnsupportedSetting {
                setting: "activation",
                ..
            }
        ));
        assert!(matches!(
            refused(r#""n_heads":12"#, r#""n_heads":7"#),
            ModelError::InvalidSetting {
                setting: "n_heads",
                value: 7
            }
        ));
        assert!(matches!(
            refused("DistilBertForMaskedLM", "LlamaForCausalLM"),
            ModelError::NotAClassifier
        ));
    }
}
