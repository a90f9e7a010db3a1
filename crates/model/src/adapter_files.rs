//! Adapters in the files of PEFT: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! Files come from outside. Everything that would make the adapter act differently from what its files say is
//! refused by name: settings that are not implemented, unknown or missing tensors, wrong shapes, numbers that
//! are not finite, and an adapter that changes nothing.

use crate::adapter_error::AdapterError;
use crate::adapter_layout::{HeadModule, Layout, Module, PREFIX};
use crate::classifier_config::ClassifierConfig;
use crate::config::ModelConfig;
use crate::error::ModelError;
use crate::lora::{
    HeadWeights, LoraAdapter, LoraConfig, LowRank, MAXIMUM_RANK, Projection, Values, scale,
};
use crate::weights::{NamedTensor, decode, serialize, write_file};
use half::bf16;
use rayon::prelude::*;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::Deserialize;
use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use zerog_kernels::map::MappedFile;

/// Name of the configuration file.
pub const ADAPTER_CONFIG_FILE: &str = "adapter_config.json";
/// Name of the weight file.
pub const ADAPTER_WEIGHTS_FILE: &str = "adapter_model.safetensors";
/// Largest configuration file that is read.
pub(crate) const MAXIMUM_CONFIG_BYTES: usize = 1024 * 1024;
/// Largest list of tensors in a weight file; the longest real ones are below 1 MiB.
pub(crate) const MAXIMUM_HEADER_BYTES: u64 = 16 * 1024 * 1024;

/// Modules that PEFT lists for every classifier, whether the model has them or not.
const USUAL_HEADS: [&str; 2] = ["classifier", "score"];

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
    task_type: Option<String>,
    r: u64,
    lora_alpha: f32,
    #[serde(default)]
    lora_dropout: f32,
    target_modules: Targets,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    use_dora: bool,
    bias: Option<String>,
    modules_to_save: Option<Vec<String>>,
    init_lora_weights: Option<serde_json::Value>,
    #[serde(flatten)]
    others: HashMap<String, serde_json::Value>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Targets {
    Names(Vec<String>),
    Pattern(String),
}

/// Settings that change what the tensors mean and are not implemented; they must be absent, false or empty.
const UNSUPPORTED: [&str; 21] = [
    "fan_in_fan_out",
    "rank_pattern",
    "alpha_pattern",
    "layers_to_transform",
    "exclude_modules",
    "megatron_config",
    "trainable_token_indices",
    "layer_replication",
    "lora_bias",
    "target_parameters",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "velora_config",
    "kasa_config",
    "monteclora_config",
    "lora_ga_config",
    "corda_config",
    "loftq_config",
    "eva_config",
];
/// Initialisations after which the adapter fits the base weights as published. Others change the base weights.
const HARMLESS_INITIALISATIONS: [&str; 3] = ["gaussian", "eva", "orthogonal"];

/// Where a tensor belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Place {
    /// `A`, `B` or the magnitudes of a linear layer.
    Layer(usize, Projection, Part),
    /// Weight or bias of a module of the head, by its number in the layout.
    Head(usize, HeadPart),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Part {
    A,
    B,
    Magnitude,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum HeadPart {
    Weight,
    Bias,
}

impl Part {
    const ALL: [Self; 3] = [Self::A, Self::B, Self::Magnitude];

    /// What follows the module's name.
    fn suffix(self) -> &'static str {
        match self {
            Self::A => ".lora_A.weight",
            Self::B => ".lora_B.weight",
            Self::Magnitude => ".lora_magnitude_vector",
        }
    }

    fn shape(self, rank: usize, module: &Module) -> Vec<usize> {
        match self {
            Self::A => vec![rank, module.inputs],
            Self::B => vec![module.outputs, rank],
            Self::Magnitude => vec![module.outputs],
        }
    }
}

impl HeadPart {
    fn suffix(self) -> &'static str {
        match self {
            Self::Weight => ".weight",
            Self::Bias => ".bias",
        }
    }
}

impl LoraAdapter {
    /// Reads the adapter in `directory`, which must fit a base model of `config`.
    ///
    /// # Errors
    /// [`ModelError::Io`] or [`ModelError::Adapter`].
    pub fn load(directory: &Path, config: &ModelConfig) -> Result<Self, ModelError> {
        load(directory, &config.layout())
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
        read(settings, weights, &config.layout())
    }

    /// As [`LoraAdapter::load`] for a classifier.
    ///
    /// # Errors
    /// [`ModelError::Io`] or [`ModelError::Adapter`].
    pub fn load_classifier(
        directory: &Path,
        config: &ClassifierConfig,
    ) -> Result<Self, ModelError> {
        load(directory, &config.layout())
    }

    /// As [`LoraAdapter::from_bytes`] for a classifier.
    ///
    /// # Errors
    /// One variant of [`AdapterError`] for each thing that is checked.
    pub fn classifier_from_bytes(
        settings: &[u8],
        weights: &[u8],
        config: &ClassifierConfig,
    ) -> Result<Self, AdapterError> {
        read(settings, weights, &config.layout())
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
        let layout = &self.layout;
        let mut tensors = Vec::new();
        for (layer, row) in self.layers.iter().enumerate() {
            for module in &layout.modules {
                let Some(pair) = &row[module.projection.index()] else {
                    continue;
                };
                let mut add = |part: Part, values: &[f32]| {
                    let name = tensor_name(layout, layer, module, part);
                    tensors.push(NamedTensor::f32(
                        name,
                        part.shape(pair.rank, module),
                        values,
                    ));
                };
                add(Part::A, &pair.a());
                add(Part::B, &pair.b());
                if let Some(magnitude) = pair.magnitude() {
                    add(Part::Magnitude, magnitude);
                }
            }
        }
        for module in &self.head {
            let outputs = module.bias.len();
            let mut add = |part: HeadPart, shape: Vec<usize>, values: &[f32]| {
                let name = format!("{PREFIX}{}{}", module.name, part.suffix());
                tensors.push(NamedTensor::f32(name, shape, values));
            };
            let inputs = module.weight.len() / outputs.max(1);
            add(HeadPart::Weight, vec![outputs, inputs], &module.weight);
            add(HeadPart::Bias, vec![outputs], &module.bias);
        }
        let weights = serialize(&tensors).map_err(|source| AdapterError::Weights { source })?;
        Ok((self.config_json(identity).into_bytes(), weights))
    }

    fn config_json(&self, identity: &AdapterIdentity) -> String {
        let settings = &self.settings;
        let targets: Vec<&str> = settings
            .targets
            .iter()
            .filter_map(|projection| Some(self.layout.module(*projection)?.name))
            .collect();
        let saved: Vec<&str> = self.head.iter().map(|module| module.name).collect();
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
            "modules_to_save": if saved.is_empty() { None } else { Some(saved) },
            "peft_type": "LORA",
            "r": settings.rank,
            "rank_pattern": {},
            "revision": identity.revision,
            "target_modules": targets,
            "task_type": self.layout.task_type,
            "use_dora": settings.dora,
            "use_rslora": settings.rank_stabilized,
        });
        format!("{value:#}\n")
    }
}

fn load(directory: &Path, layout: &Layout) -> Result<LoraAdapter, ModelError> {
    let path = directory.join(ADAPTER_CONFIG_FILE);
    let settings = MappedFile::open(&path).map_err(ModelError::io(&path))?;
    let path = directory.join(ADAPTER_WEIGHTS_FILE);
    let weights = MappedFile::open(&path).map_err(ModelError::io(&path))?;
    Ok(read(&settings, &weights, layout)?)
}

fn read(settings: &[u8], weights: &[u8], layout: &Layout) -> Result<LoraAdapter, AdapterError> {
    let settings = read_settings(settings, layout)?;
    let header = weights
        .first_chunk()
        .map_or(0, |bytes| u64::from_le_bytes(*bytes));
    if header > MAXIMUM_HEADER_BYTES {
        return Err(AdapterError::HeaderTooLarge { bytes: header });
    }
    let file =
        SafeTensors::deserialize(weights).map_err(|source| AdapterError::Weights { source })?;
    let mut found = HashMap::new();
    for (name, tensor) in file.iter() {
        let place = place(name, layout)?;
        let (_, expected) = expectation(&place, &settings, layout, tensor.shape())
            .ok_or_else(|| unexpected(name))?;
        if tensor.shape() != expected {
            return Err(AdapterError::Shape {
                name: name.to_owned(),
                expected,
                found: tensor.shape().to_vec(),
            });
        }
        found.insert(place, (name, tensor));
    }
    let values = |place: Place, name: String| {
        let (name, tensor) = found
            .get(&place)
            .ok_or(AdapterError::MissingTensor { name })?;
        checked_values(name, tensor)
    };
    let scale = scale(settings.alpha, settings.rank, settings.rank_stabilized);
    let pair = |layer: usize, module: &Module| {
        let part = |part| {
            let name = tensor_name(layout, layer, module, part);
            values(Place::Layer(layer, module.projection, part), name)
        };
        let (a, b) = (part(Part::A)?, part(Part::B)?);
        let mut pair = LowRank::new(settings.rank, scale, a, &b);
        if settings.dora {
            pair = pair.with_magnitude(part(Part::Magnitude)?.to_f32());
        }
        Ok((pair, !b.are_zero()))
    };
    // An adapter that waits on disk is waited for: all cores convert its numbers.
    let layers = (0..layout.layers).into_par_iter().map(|layer| {
        let mut row = <[Option<LowRank>; 7]>::default();
        let mut changes = false;
        for module in &layout.modules {
            if settings.targets.contains(&module.projection) {
                let (pair, changes_it) = pair(layer, module)?;
                row[module.projection.index()] = Some(pair);
                changes |= changes_it;
            }
        }
        Ok((row, changes))
    });
    let layers: Vec<_> = layers.collect::<Result<_, AdapterError>>()?;
    let changes = layers.iter().any(|(_, changes)| *changes);
    let layers = layers.into_iter().map(|(row, _)| row).collect();
    let mut head = Vec::new();
    for (number, module) in layout.head.iter().enumerate() {
        let part = |part: HeadPart| {
            let name = format!("{PREFIX}{}{}", module.name, part.suffix());
            values(Place::Head(number, part), name).map(|values| values.to_f32())
        };
        match (part(HeadPart::Weight), part(HeadPart::Bias)) {
            (Ok(weight), Ok(bias)) if weight.len() == bias.len() * module.inputs => {
                head.push(HeadWeights {
                    name: module.name,
                    weight,
                    bias,
                });
            }
            (Ok(_), Ok(bias)) => {
                return Err(AdapterError::Shape {
                    name: format!("{PREFIX}{}.weight", module.name),
                    expected: vec![bias.len(), module.inputs],
                    found: Vec::new(),
                });
            }
            (Err(_), Err(_)) if module.is_optional => {}
            (Err(error), _) | (_, Err(error)) => return Err(error),
        }
    }
    // A trained head is an effect by itself.
    if !changes && head.is_empty() {
        return Err(AdapterError::NoEffect);
    }
    Ok(LoraAdapter {
        settings,
        layers,
        head,
        layout: layout.clone(),
    })
}

fn unexpected(name: &str) -> AdapterError {
    AdapterError::UnexpectedTensor {
        name: name.to_owned(),
    }
}

/// The module of a place and the shape that a tensor there must have; `None` if there should be no tensor.
fn expectation<'a>(
    place: &Place,
    settings: &LoraConfig,
    layout: &'a Layout,
    found: &[usize],
) -> Option<(&'a str, Vec<usize>)> {
    match *place {
        Place::Layer(layer, projection, part) => {
            let module = layout.module(projection)?;
            let wanted = layer < layout.layers
                && settings.targets.contains(&projection)
                && (part != Part::Magnitude || settings.dora);
            wanted.then(|| (module.name, part.shape(settings.rank, module)))
        }
        Place::Head(number, part) => {
            let HeadModule {
                name,
                outputs,
                inputs,
                ..
            } = *layout.head.get(number)?;
            // The number of classes is whatever the file says, at least one.
            let outputs = outputs.unwrap_or(found.first().copied().unwrap_or(0).max(1));
            let shape = match part {
                HeadPart::Weight => vec![outputs, inputs],
                HeadPart::Bias => vec![outputs],
            };
            Some((name, shape))
        }
    }
}

fn checked_values(name: &str, tensor: &TensorView<'_>) -> Result<Values, AdapterError> {
    let values = match tensor.dtype() {
        Dtype::BF16 => {
            let pairs = tensor.data().as_chunks::<2>().0.iter();
            Values::Bf16(pairs.map(|value| bf16::from_le_bytes(*value)).collect())
        }
        dtype => {
            let values =
                decode(name, dtype, tensor.data()).map_err(|_| AdapterError::ElementType {
                    name: name.to_owned(),
                    found: format!("{dtype:?}"),
                })?;
            Values::new(values)
        }
    };
    if !values.are_finite() {
        return Err(AdapterError::NotFinite {
            name: name.to_owned(),
        });
    }
    Ok(values)
}

fn read_settings(bytes: &[u8], layout: &Layout) -> Result<LoraConfig, AdapterError> {
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
    if let Some(found) = raw.task_type.filter(|found| found != layout.task_type) {
        return Err(AdapterError::TaskType {
            found,
            expected: layout.task_type,
        });
    }
    if let Some(bias) = raw.bias.filter(|bias| bias != "none") {
        return unsupported("bias", bias);
    }
    for setting in UNSUPPORTED {
        if let Some(value) = raw.others.get(setting).filter(|value| !is_empty(value)) {
            return unsupported(setting, value.to_string());
        }
    }
    if let Some(serde_json::Value::String(name)) = raw.init_lora_weights
        && !HARMLESS_INITIALISATIONS.contains(&name.as_str())
    {
        return unsupported("init_lora_weights", name);
    }
    for name in raw.modules_to_save.into_iter().flatten() {
        let known = layout.head.iter().any(|module| module.name == name)
            || !layout.head.is_empty() && USUAL_HEADS.contains(&name.as_str());
        if !known {
            return unsupported("modules_to_save", name);
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
        Targets::Pattern(pattern) if pattern == "all-linear" => layout
            .modules
            .iter()
            .map(|module| module.projection)
            .collect(),
        Targets::Pattern(pattern) => return unsupported("target_modules", pattern),
        Targets::Names(names) => names
            .into_iter()
            .map(|name| match layout.named(&name) {
                Some(module) => Ok(module.projection),
                None => Err(AdapterError::TargetModule { name }),
            })
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
        dora: raw.use_dora,
        targets,
        seed: 0,
    })
}

fn is_empty(value: &serde_json::Value) -> bool {
    match value {
        serde_json::Value::Null => true,
        serde_json::Value::Bool(on) => !on,
        serde_json::Value::Array(values) => values.is_empty(),
        serde_json::Value::Object(members) => members.is_empty(),
        serde_json::Value::Number(_) | serde_json::Value::String(_) => false,
    }
}

fn tensor_name(layout: &Layout, layer: usize, module: &Module, part: Part) -> String {
    format!(
        "{PREFIX}{}{}",
        layout.module_path(layer, module),
        part.suffix()
    )
}

/// Where a tensor belongs, from its name.
fn place(name: &str, layout: &Layout) -> Result<Place, AdapterError> {
    let rest = name
        .strip_prefix(PREFIX)
        .ok_or_else(|| AdapterError::TensorPrefix {
            name: name.to_owned(),
        })?;
    let in_head = layout.head.iter().enumerate().find_map(|(number, module)| {
        let part = match rest.strip_prefix(module.name)? {
            ".weight" => HeadPart::Weight,
            ".bias" => HeadPart::Bias,
            _ => return None,
        };
        Some(Place::Head(number, part))
    });
    let in_layer = || {
        let (layer, rest) = rest.strip_prefix(layout.layer_prefix)?.split_once('.')?;
        let (path, part) = Part::ALL
            .into_iter()
            .find_map(|part| Some((rest.strip_suffix(part.suffix())?, part)))?;
        let module = layout.modules.iter().find(|module| module.path == path)?;
        // `01` and `+1` would name a layer twice.
        let number: usize = layer.parse().ok()?;
        (number.to_string() == layer).then_some(Place::Layer(number, module.projection, part))
    };
    in_head.or_else(in_layer).ok_or_else(|| unexpected(name))
}
