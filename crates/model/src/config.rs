//! `config.json` in the form of the Hugging Face `transformers` library.

use crate::error::ModelError;
use crate::lora::Projection;
use crate::registry::ModelFamily;
use crate::rope_scaling::{RawRope, RopeScaling, RopeSettings};
use serde::Deserialize;
use std::path::Path;
use zerog_kernels::attention::Heads;

/// Name of the configuration in a model's folder.
pub(crate) const CONFIG_FILE: &str = "config.json";

/// Upper bounds that keep every product of sizes far inside `usize`.
const MAXIMUM_SIZE: usize = 1 << 20;
const MAXIMUM_LAYERS: usize = 512;

/// Shape and constants of a decoder.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// The architecture.
    pub family: ModelFamily,
    /// Rows of the embedding; token ids are below it.
    pub vocabulary_size: usize,
    /// Elements of a hidden state.
    pub hidden_size: usize,
    /// Elements between the two halves of a feed-forward block.
    pub intermediate_size: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Attention heads.
    pub query_heads: usize,
    /// Key and value heads; divides `query_heads`.
    pub key_value_heads: usize,
    /// Elements of a head.
    pub head_size: usize,
    /// Longest sequence.
    pub maximum_positions: usize,
    /// Added to the mean square in every normalisation.
    pub norm_epsilon: f32,
    /// Rotary position embedding.
    pub rope: RopeSettings,
    /// Whether the embedding is also the output head.
    pub tied_embeddings: bool,
    /// Which linear layers have a bias.
    pub biases: Biases,
    /// Whether every head of queries and keys is normalised before it is rotated.
    pub head_norms: bool,
    /// Token that starts a sequence, if the model names one.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a sequence.
    pub eos_token_ids: Vec<u32>,
}

/// Which linear layers of a decoder have a bias.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Biases {
    /// Queries, keys and values.
    pub query_key_value: bool,
    /// The output of attention.
    pub output: bool,
    /// The three of the feed-forward block.
    pub feed_forward: bool,
}

#[derive(Deserialize)]
struct Raw {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    max_position_embeddings: Option<usize>,
    #[serde(default = "default_epsilon")]
    rms_norm_eps: f32,
    rope_theta: Option<f64>,
    rope_scaling: Option<RawRope>,
    /// The form that newer `transformers` releases write instead of the two above.
    rope_parameters: Option<RawRope>,
    tie_word_embeddings: Option<bool>,
    attention_bias: Option<bool>,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default = "default_activation")]
    hidden_act: String,
    #[serde(default)]
    use_sliding_window: bool,
    layer_types: Option<Vec<String>>,
    bos_token_id: Option<u32>,
    eos_token_id: Option<TokenIds>,
    quantization_config: Option<serde_json::Value>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum TokenIds {
    One(u32),
    Many(Vec<u32>),
}

fn default_epsilon() -> f32 {
    1e-6
}

fn default_activation() -> String {
    "silu".to_owned()
}

impl ModelConfig {
    /// Reads `config.json` in a model's folder.
    ///
    /// # Errors
    /// [`ModelError::Io`], [`ModelError::Json`], [`ModelError::UnsupportedArchitecture`],
    /// [`ModelError::UnsupportedSetting`] or [`ModelError::InvalidSetting`].
    pub fn load(directory: &Path) -> Result<Self, ModelError> {
        let path = directory.join(CONFIG_FILE);
        let bytes = std::fs::read(&path).map_err(ModelError::io(&path))?;
        Self::parse(&bytes, &path)
    }

    /// Reads the bytes of a `config.json`.
    ///
    /// # Errors
    /// As [`ModelConfig::load`], with an empty path.
    pub fn from_json(bytes: &[u8]) -> Result<Self, ModelError> {
        Self::parse(bytes, Path::new(""))
    }

    fn parse(bytes: &[u8], path: &Path) -> Result<Self, ModelError> {
        // An encoder names its sizes differently, so the family comes first.
        let family = ModelFamily::of_config(bytes, path)?;
        if !family.is_decoder() {
            return Err(ModelError::NotADecoder);
        }
        let raw: Raw = serde_json::from_slice(bytes).map_err(|source| ModelError::Json {
            path: path.to_owned(),
            source,
        })?;
        let unsupported =
            |setting, value: String| Err(ModelError::UnsupportedSetting { setting, value });
        if raw.hidden_act != "silu" {
            return unsupported("hidden_act", raw.hidden_act);
        }
        if raw.use_sliding_window {
            return unsupported("use_sliding_window", "true".to_owned());
        }
        if let Some(value) = raw.quantization_config.filter(|value| !value.is_null()) {
            return unsupported("quantization_config", value.to_string());
        }
        if let Some(kind) = raw
            .layer_types
            .into_iter()
            .flatten()
            .find(|kind| kind != "full_attention")
        {
            return unsupported("layer_types", kind);
        }
        // What a file leaves out has the family's default in `transformers`.
        let maximum_positions = raw.max_position_embeddings.unwrap_or(match family {
            ModelFamily::Llama => 2048,
            _ => 32_768,
        });
        let head_size = raw.head_dim.unwrap_or(match family {
            ModelFamily::Qwen3 => 128,
            _ => raw.hidden_size / raw.num_attention_heads.max(1),
        });
        let rope = RopeSettings::from_raw(
            raw.rope_parameters.or(raw.rope_scaling),
            raw.rope_theta,
            maximum_positions,
        )?;
        // Qwen2 has its biases without a setting; the others have them by setting, the output included.
        let attention_bias = raw.attention_bias.unwrap_or(false);
        let biases = match family {
            ModelFamily::Qwen2 => Biases {
                query_key_value: true,
                ..Biases::default()
            },
            ModelFamily::Qwen3 | ModelFamily::Llama | ModelFamily::DistilBert => Biases {
                query_key_value: attention_bias,
                output: attention_bias,
                feed_forward: raw.mlp_bias && family == ModelFamily::Llama,
            },
        };
        let config = Self {
            family,
            vocabulary_size: raw.vocab_size,
            hidden_size: raw.hidden_size,
            intermediate_size: raw.intermediate_size,
            layers: raw.num_hidden_layers,
            query_heads: raw.num_attention_heads,
            key_value_heads: raw.num_key_value_heads.unwrap_or(raw.num_attention_heads),
            head_size,
            maximum_positions,
            norm_epsilon: raw.rms_norm_eps,
            rope,
            tied_embeddings: raw.tie_word_embeddings.unwrap_or(false),
            biases,
            head_norms: family == ModelFamily::Qwen3,
            bos_token_id: raw.bos_token_id,
            eos_token_ids: match raw.eos_token_id {
                None => Vec::new(),
                Some(TokenIds::One(id)) => vec![id],
                Some(TokenIds::Many(ids)) => ids,
            },
        };
        config.check()?;
        Ok(config)
    }

    /// Refuses sizes that are zero, enormous or do not fit together.
    pub(crate) fn check(&self) -> Result<(), ModelError> {
        let sizes = [
            ("vocab_size", self.vocabulary_size, MAXIMUM_SIZE),
            ("hidden_size", self.hidden_size, MAXIMUM_SIZE),
            ("intermediate_size", self.intermediate_size, MAXIMUM_SIZE),
            ("num_hidden_layers", self.layers, MAXIMUM_LAYERS),
            ("num_attention_heads", self.query_heads, 4096),
            (
                "num_key_value_heads",
                self.key_value_heads,
                self.query_heads,
            ),
            ("head_dim", self.head_size, 4096),
            (
                "max_position_embeddings",
                self.maximum_positions,
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
        if !self.query_heads.is_multiple_of(self.key_value_heads) {
            return Err(ModelError::InvalidSetting {
                setting: "num_key_value_heads",
                value: self.key_value_heads as u64,
            });
        }
        if !self.head_size.is_multiple_of(2) {
            return Err(ModelError::InvalidSetting {
                setting: "head_dim",
                value: self.head_size as u64,
            });
        }
        Ok(())
    }

    /// The configuration as `transformers` writes it for a bf16 model, indented, with a final newline.
    pub fn to_json(&self) -> String {
        let eos = match self.eos_token_ids.as_slice() {
            [] => serde_json::Value::Null,
            [id] => serde_json::json!(id),
            ids => serde_json::json!(ids),
        };
        let mut value = serde_json::json!({
            "architectures": [self.family.architecture()],
            "attention_dropout": 0.0,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": eos,
            "head_dim": self.head_size,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "initializer_range": 0.02,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.maximum_positions,
            "max_window_layers": self.layers,
            "model_type": self.family.model_type(),
            "num_attention_heads": self.query_heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.key_value_heads,
            // The shortest decimal that reads back as the same number.
            "rms_norm_eps": self.norm_epsilon.to_string().parse::<f64>().unwrap_or(1e-6),
            "rope_theta": self.rope.theta,
            "tie_word_embeddings": self.tied_embeddings,
            "torch_dtype": "bfloat16",
            "use_cache": true,
            "vocab_size": self.vocabulary_size,
        });
        if self.rope.scaling != RopeScaling::None {
            value["rope_parameters"] = self.rope.to_json();
        }
        match self.family {
            ModelFamily::Qwen2 => {
                value["sliding_window"] = serde_json::Value::Null;
                value["use_sliding_window"] = false.into();
            }
            ModelFamily::Qwen3 => {
                value["sliding_window"] = serde_json::Value::Null;
                value["use_sliding_window"] = false.into();
                value["attention_bias"] = self.biases.query_key_value.into();
            }
            ModelFamily::Llama => {
                value["attention_bias"] = self.biases.query_key_value.into();
                value["mlp_bias"] = self.biases.feed_forward.into();
            }
            ModelFamily::DistilBert => {}
        }
        format!("{value:#}\n")
    }

    /// Elements of all queries of a token.
    pub fn query_width(&self) -> usize {
        self.query_heads * self.head_size
    }

    /// Elements of all keys of a token.
    pub fn key_width(&self) -> usize {
        self.key_value_heads * self.head_size
    }

    /// `(output features, input features)` of a linear layer.
    pub fn projection_shape(&self, projection: Projection) -> (usize, usize) {
        match projection {
            Projection::Query => (self.query_width(), self.hidden_size),
            Projection::Key | Projection::Value => (self.key_width(), self.hidden_size),
            Projection::Output => (self.hidden_size, self.query_width()),
            Projection::Gate | Projection::Up => (self.intermediate_size, self.hidden_size),
            Projection::Down => (self.hidden_size, self.intermediate_size),
        }
    }

    /// Whether a linear layer has a bias.
    pub(crate) fn has_bias(&self, projection: Projection) -> bool {
        match projection {
            Projection::Query | Projection::Key | Projection::Value => self.biases.query_key_value,
            Projection::Output => self.biases.output,
            Projection::Gate | Projection::Up | Projection::Down => self.biases.feed_forward,
        }
    }

    pub(crate) fn heads(&self) -> Heads {
        Heads {
            queries: self.query_heads,
            groups: self.key_value_heads,
            size: self.head_size,
        }
    }

    /// Number of parameters, a tied embedding counted once.
    pub fn parameter_count(&self) -> usize {
        let layer: usize = Projection::ALL
            .iter()
            .map(|projection| {
                let (outputs, inputs) = self.projection_shape(*projection);
                outputs * inputs
                    + if self.has_bias(*projection) {
                        outputs
                    } else {
                        0
                    }
            })
            .sum();
        let embedding = self.vocabulary_size * self.hidden_size;
        let embeddings = if self.tied_embeddings {
            embedding
        } else {
            2 * embedding
        };
        let head_norms = if self.head_norms {
            2 * self.head_size
        } else {
            0
        };
        self.layers * (layer + head_norms + 2 * self.hidden_size) + self.hidden_size + embeddings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Members of the published configuration of Qwen2.5-0.5B-Instruct.
    const QWEN: &str = r#"{"architectures":["Qwen2ForCausalLM"],"attention_dropout":0.0,"bos_token_id":151643,
        "eos_token_id":151645,"hidden_act":"silu","hidden_size":896,"initializer_range":0.02,"intermediate_size":4864,
        "max_position_embeddings":32768,"max_window_layers":21,"model_type":"qwen2","num_attention_heads":14,
        "num_hidden_layers":24,"num_key_value_heads":2,"rms_norm_eps":1e-06,"rope_theta":1000000.0,
        "sliding_window":32768,"tie_word_embeddings":true,"torch_dtype":"bfloat16","use_sliding_window":false,
        "vocab_size":151936}"#;

    #[test]
    fn a_published_configuration_reads_and_writes_back() {
        let config = ModelConfig::from_json(QWEN.as_bytes()).unwrap();
        assert_eq!(
            (config.head_size, config.key_width(), config.layers),
            (64, 128, 24)
        );
        assert_eq!(config.eos_token_ids, [151_645]);
        assert_eq!(config.parameter_count(), 494_032_768);
        assert_eq!(
            ModelConfig::from_json(config.to_json().as_bytes()).unwrap(),
            config
        );
    }

    #[test]
    fn newer_rope_parameters_are_understood() {
        let text = QWEN.replace(
            r#""rope_theta":1000000.0"#,
            r#""rope_parameters":{"rope_theta":500000.0,"rope_type":"default"}"#,
        );
        let rope = ModelConfig::from_json(text.as_bytes()).unwrap().rope;
        assert_eq!((rope.theta, rope.scaling), (500_000.0, RopeScaling::None));
    }

    #[test]
    fn what_cannot_be_run_is_refused_by_name() {
        let refused = |from: &str, to: &str| {
            ModelConfig::from_json(QWEN.replace(from, to).as_bytes()).unwrap_err()
        };
        assert!(matches!(
            refused("Qwen2ForCausalLM", "MambaForCausalLM"),
            ModelError::UnsupportedArchitecture { found } if found == "MambaForCausalLM"
        ));
        assert!(matches!(
            refused(
                r#""use_sliding_window":false"#,
                r#""use_sliding_window":true"#
            ),
            ModelError::UnsupportedSetting {
                setting: "use_sliding_window",
                ..
            }
        ));
        assert!(matches!(
            refused(r#""num_key_value_heads":2"#, r#""num_key_value_heads":3"#),
            ModelError::InvalidSetting {
                setting: "num_key_value_heads",
                value: 3
            }
        ));
        assert!(matches!(
            refused(r#""num_hidden_layers":24"#, r#""num_hidden_layers":0"#),
            ModelError::InvalidSetting {
                setting: "num_hidden_layers",
                value: 0
            }
        ));
        assert!(matches!(
            refused(r#""vocab_size":151936"#, r#""vocab":1"#),
            ModelError::Json { .. }
        ));
    }
}
