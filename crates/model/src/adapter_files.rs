//! Adapters in the files of PEFT: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! Files come from outside. Everything that would make the adapter act differently from what its files say is
//! refused by name: settings that are not implemented, unknown or missing tensors, wrong shapes, numbers that
//! are not finite, and an adapter that changes nothing.

use crate::config::ModelConfig;
use crate::error::ModelError;
use crate::lora::{LoraAdapter, LoraConfig, LowRank, MAXIMUM_RANK, Projection, scale};
use crate::weights::{NamedTensor, decode, serialize, write_file};
use safetensors::tensor::SafeTensors;
use serde::Deserialize;
use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use zerog_kernels::map::MappedFile;

/// Name of the configuration file.
pub const ADAPTER_CONFIG_FILE: &str = "adapter_config.json";
/// Name of the weight file.
pub const ADAPTER_WEIGHTS_FILE: &str = "adapter_model.safetensors";

/// What PEFT puts before the name of a module of a causal language model.
const PREFIX: &str = "base_model.model.";
/// Largest configuration file that is read.
const MAXIMUM_CONFIG_BYTES: usize = 1024 * 1024;

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
    /// A tensor's name does not begin with `base_model.model.model.layers.`.
    #[error("tensor {name} does not begin with {PREFIX}model.layers.")]
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
        expected: [usize; 2],
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
    /// Every `B` is zero: the adapter would change nothing, so it was never trained.
    #[error("every lora_B is zero, so the adapter changes nothing")]
    NoEffect,
}

/// What the files say about the base model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AdapterIdentity {
    /// `base_model_name_or_path`, for example `Qwen/Qwen2.5-0.5B-Instruct`.
    pub base_model: String,
    /// `revision`, if the base model has one.
    pub revision: Option<String>,
}

#[derive(Deserialize)]
struct RawConfig {
    peft_type: String,
    r: u64,
    lora_alpha: f32,
    #[serde(default)]
    lora_dropout: f32,
    target_modules: Targets,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    use_dora: bool,
    #[serde(default)]
    fan_in_fan_out: bool,
    bias: Option<String>,
    #[serde(default)]
    modules_to_save: serde_json::Value,
    #[serde(default)]
    rank_pattern: serde_json::Value,
    #[serde(default)]
    alpha_pattern: serde_json::Value,
    #[serde(default)]
    layers_to_transform: serde_json::Value,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Targets {
    Names(Vec<String>),
    Pattern(String),
}

impl LoraAdapter {
    /// Reads the adapter in `directory`, which must fit a base model of `config`.
    ///
    /// # Errors
    /// [`ModelError::Io`] or [`ModelError::Adapter`].
    pub fn load(directory: &Path, config: &ModelConfig) -> Result<Self, ModelError> {
        let path = directory.join(ADAPTER_CONFIG_FILE);
        let settings = MappedFile::open(&path).map_err(ModelError::io(&path))?;
        let path = directory.join(ADAPTER_WEIGHTS_FILE);
        let weights = MappedFile::open(&path).map_err(ModelError::io(&path))?;
        Ok(Self::from_bytes(&settings, &weights, config)?)
    }

    /// Reads an adapter from the bytes of its two files, for files that may not be written in clear.
    ///
    /// # Errors
    /// One variant of [`AdapterError`] for each thing that is checked.
    pub fn from_bytes(
        settings: &[u8],
        weights: &[u8],
        config: &ModelConfig,
    ) -> Result<Self, AdapterError> {
        let settings = read_settings(settings)?;
        let file =
            SafeTensors::deserialize(weights).map_err(|source| AdapterError::Weights { source })?;
        let mut found: HashMap<(usize, Projection, bool), Vec<f32>> = HashMap::new();
        for (name, tensor) in file.iter() {
            let place = tensor_place(name)?;
            let (layer, projection, is_a) = place;
            if layer >= config.layers || !settings.targets.contains(&projection) {
                return Err(AdapterError::UnexpectedTensor {
                    name: name.to_owned(),
                });
            }
            let (outputs, inputs) = config.projection_shape(projection);
            let expected = if is_a {
                [settings.rank, inputs]
            } else {
                [outputs, settings.rank]
            };
            if tensor.shape() != expected {
                return Err(AdapterError::Shape {
                    name: name.to_owned(),
                    expected,
                    found: tensor.shape().to_vec(),
                });
            }
            let values = decode(name, tensor.dtype(), tensor.data()).map_err(|_| {
                AdapterError::ElementType {
                    name: name.to_owned(),
                    found: format!("{:?}", tensor.dtype()),
                }
            })?;
            if !values.iter().all(|value| value.is_finite()) {
                return Err(AdapterError::NotFinite {
                    name: name.to_owned(),
                });
            }
            found.insert(place, values);
        }
        let mut layers = Vec::with_capacity(config.layers);
        let mut changes = false;
        for layer in 0..config.layers {
            let mut row = <[Option<LowRank>; 7]>::default();
            for projection in &settings.targets {
                let mut take = |is_a| {
                    found.remove(&(layer, *projection, is_a)).ok_or_else(|| {
                        AdapterError::MissingTensor {
                            name: tensor_name(layer, *projection, is_a),
                        }
                    })
                };
                let (a, b) = (take(true)?, take(false)?);
                changes |= b.iter().any(|value| *value != 0.0);
                let scale = scale(settings.alpha, settings.rank, settings.rank_stabilized);
                row[projection.index()] = Some(LowRank::new(settings.rank, scale, a, &b));
            }
            layers.push(row);
        }
        if !changes {
            return Err(AdapterError::NoEffect);
        }
        Ok(Self { settings, layers })
    }

    /// Writes both files into `directory`, each in one step.
    ///
    /// # Errors
    /// [`ModelError::Io`].
    pub fn save(&self, directory: &Path, identity: &AdapterIdentity) -> Result<(), ModelError> {
        std::fs::create_dir_all(directory).map_err(ModelError::io(directory))?;
        let (settings, weights) = self.to_bytes(identity)?;
        write_file(&directory.join(ADAPTER_WEIGHTS_FILE), &weights)?;
        write_file(&directory.join(ADAPTER_CONFIG_FILE), &settings)
    }

    /// The bytes of `adapter_config.json` and `adapter_model.safetensors` (f32). The same adapter always gives
    /// the same bytes.
    ///
    /// # Errors
    /// [`AdapterError::Weights`] if the tensors cannot be written, which only a bug can cause.
    pub fn to_bytes(&self, identity: &AdapterIdentity) -> Result<(Vec<u8>, Vec<u8>), AdapterError> {
        let mut tensors = Vec::new();
        for (layer, row) in self.layers.iter().enumerate() {
            for (projection, pair) in Projection::ALL.into_iter().zip(row) {
                let Some(pair) = pair else { continue };
                let (inputs, outputs) = (
                    pair.a.len() / pair.rank,
                    pair.b_transposed.len() / pair.rank,
                );
                let name = tensor_name(layer, projection, true);
                tensors.push(NamedTensor::f32(name, vec![pair.rank, inputs], &pair.a));
                let name = tensor_name(layer, projection, false);
                tensors.push(NamedTensor::f32(name, vec![outputs, pair.rank], &pair.b()));
            }
        }
        let weights = serialize(&tensors).map_err(|source| AdapterError::Weights { source })?;
        Ok((self.config_json(identity).into_bytes(), weights))
    }

    fn config_json(&self, identity: &AdapterIdentity) -> String {
        let settings = &self.settings;
        let targets: Vec<&str> = settings
            .targets
            .iter()
            .map(|projection| projection.name())
            .collect();
        // Shortest decimal of the single-precision number, so that 0.05 is not written as 0.05000000074.
        let decimal = |value: f32| value.to_string().parse::<f64>().unwrap_or(f64::from(value));
        let alpha = if settings.alpha.fract() == 0.0 && settings.alpha.abs() < 1e9 {
            serde_json::json!(settings.alpha as i64)
        } else {
            serde_json::json!(decimal(settings.alpha))
        };
        let value = serde_json::json!({
            "alpha_pattern": {},
            "auto_mapping": null,
            "base_model_name_or_path": identity.base_model,
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "layers_pattern": null,
            "layers_to_transform": null,
            "lora_alpha": alpha,
            "lora_dropout": decimal(settings.dropout),
            "modules_to_save": null,
            "peft_type": "LORA",
            "r": settings.rank,
            "rank_pattern": {},
            "revision": identity.revision,
            "target_modules": targets,
            "task_type": "CAUSAL_LM",
            "use_dora": false,
            "use_rslora": settings.rank_stabilized,
        });
        format!("{value:#}\n")
    }
}

fn read_settings(bytes: &[u8]) -> Result<LoraConfig, AdapterError> {
    if bytes.len() > MAXIMUM_CONFIG_BYTES {
        return Err(AdapterError::ConfigTooLarge { bytes: bytes.len() });
    }
    let raw: RawConfig =
        serde_json::from_slice(bytes).map_err(|source| AdapterError::Config { source })?;
    let unsupported =
        |setting, value: String| Err(AdapterError::UnsupportedSetting { setting, value });
    if raw.peft_type != "LORA" {
        return unsupported("peft_type", raw.peft_type);
    }
    for (setting, on) in [
        ("use_dora", raw.use_dora),
        ("fan_in_fan_out", raw.fan_in_fan_out),
    ] {
        if on {
            return unsupported(setting, "true".to_owned());
        }
    }
    if let Some(bias) = raw.bias.filter(|bias| bias != "none") {
        return unsupported("bias", bias);
    }
    for (setting, value) in [
        ("modules_to_save", raw.modules_to_save),
        ("rank_pattern", raw.rank_pattern),
        ("alpha_pattern", raw.alpha_pattern),
        ("layers_to_transform", raw.layers_to_transform),
    ] {
        let empty = match &value {
            serde_json::Value::Null => true,
            serde_json::Value::Array(values) => values.is_empty(),
            serde_json::Value::Object(members) => members.is_empty(),
            _ => false,
        };
        if !empty {
            return unsupported(setting, value.to_string());
        }
    }
    let rank = usize::try_from(raw.r)
        .ok()
        .filter(|rank| (1..=MAXIMUM_RANK).contains(rank));
    let rank = rank.ok_or(AdapterError::Rank { rank: raw.r })?;
    if !(raw.lora_alpha.is_finite() && raw.lora_alpha > 0.0) {
        return Err(AdapterError::Alpha {
            alpha: raw.lora_alpha,
        });
    }
    let targets: BTreeSet<Projection> = match raw.target_modules {
        Targets::Pattern(pattern) if pattern == "all-linear" => {
            Projection::ALL.into_iter().collect()
        }
        Targets::Pattern(pattern) => return unsupported("target_modules", pattern),
        Targets::Names(names) => names
            .into_iter()
            .map(|name| Projection::from_name(&name).ok_or(AdapterError::TargetModule { name }))
            .collect::<Result<_, _>>()?,
    };
    if targets.is_empty() {
        return Err(AdapterError::NoTargetModule);
    }
    Ok(LoraConfig {
        rank,
        alpha: raw.lora_alpha,
        dropout: raw.lora_dropout,
        rank_stabilized: raw.use_rslora,
        targets,
        seed: 0,
    })
}

fn tensor_name(layer: usize, projection: Projection, is_a: bool) -> String {
    let matrix = if is_a { "lora_A" } else { "lora_B" };
    format!(
        "{PREFIX}model.layers.{layer}.{}.{matrix}.weight",
        projection.path()
    )
}

/// Layer, linear layer and whether it is `A`, from a tensor's name.
fn tensor_place(name: &str) -> Result<(usize, Projection, bool), AdapterError> {
    let rest = name
        .strip_prefix(PREFIX)
        .and_then(|rest| rest.strip_prefix("model.layers."));
    let rest = rest.ok_or_else(|| AdapterError::TensorPrefix {
        name: name.to_owned(),
    })?;
    let place = || {
        let (layer, rest) = rest.split_once('.')?;
        let (path, is_a) = match rest.strip_suffix(".lora_A.weight") {
            Some(path) => (path, true),
            None => (rest.strip_suffix(".lora_B.weight")?, false),
        };
        let projection = Projection::ALL
            .into_iter()
            .find(|projection| projection.path() == path)?;
        // `01` and `+1` would name a layer twice.
        let number: usize = layer.parse().ok()?;
        (number.to_string() == layer).then_some((number, projection, is_a))
    };
    place().ok_or_else(|| AdapterError::UnexpectedTensor {
        name: name.to_owned(),
    })
}
