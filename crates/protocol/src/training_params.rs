//! The training parameter file: its keys, ranges, defaults and errors.
//!
//! The text travels verbatim and is signed for by nobody, so it is parsed once per side with the same code. The default
//! schema is a superset of the published five keys; [`Schema::Strict`] is exactly those five (`docs/protocol.md`).

use alloy_primitives::B256;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::TaskId;

/// Which keys and ranges are accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Schema {
    /// All keys of [`TrainingParams`], all optional.
    #[default]
    Extended,
    /// Exactly the five published keys, all required, decimal learning rate.
    Strict,
}

/// How the learning rate moves over the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LearningRateSchedule {
    /// Half a cosine down to zero.
    Cosine,
    /// A straight line down to zero.
    Linear,
    /// No change after warm-up.
    Constant,
}

/// What is learned from the dataset. A classification model has one method, which is `sft` here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TrainingMethod {
    /// The answers of the records (supervised fine-tuning).
    #[default]
    Sft,
    /// To prefer one answer over another (direct preference optimisation, Rafailov et al. 2023).
    Dpo,
}

/// What happens to a record that has more tokens than `max_seq_length`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExcessLengthStrategy {
    /// Its end is cut off.
    #[default]
    Truncate,
    /// It becomes several examples.
    Split,
    /// It is left out.
    Drop,
    /// The dataset is refused.
    Raise,
}

/// A checked set of training parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TrainingParams {
    /// Passes over the dataset, 1 to 100; ignored while `max_steps` is positive and smaller.
    pub num_train_epochs: u32,
    /// Examples in one forward pass, 1 to 64.
    pub per_device_train_batch_size: u32,
    /// Peak learning rate, 1e-6 to 1e-2.
    pub learning_rate: f64,
    /// Optimiser steps after which the run ends; -1 = by epochs.
    pub max_steps: i64,
    /// NEFTune noise, 0 to 10; 0 = off.
    pub neftune_noise_alpha: f64,
    /// Rank of the adapter, 1 to 128.
    pub lora_rank: u32,
    /// Scale numerator of the adapter: the delta is multiplied by alpha / rank.
    pub lora_alpha: f64,
    /// Dropout on the adapter's input, 0 to 0.5.
    pub lora_dropout: f64,
    /// Longest example in tokens, 16 to the model's limit.
    pub max_seq_length: u32,
    /// Forward passes in one optimiser step, 1 to 1024.
    pub gradient_accumulation_steps: u32,
    /// Share of all steps for warm-up, 0 to 1; used when `warmup_steps` is 0.
    pub warmup_ratio: f64,
    /// Steps of linear warm-up.
    pub warmup_steps: u32,
    /// Decoupled weight decay, 0 to 1.
    pub weight_decay: f64,
    /// Schedule after warm-up.
    pub lr_scheduler_type: LearningRateSchedule,
    /// Seed of order, initial adapter, dropout and noise.
    pub seed: u64,
    /// Names of the linear layers that get an adapter, as in PEFT; empty = the model family's default, which is all of
    /// a decoder.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub lora_target_modules: Vec<String>,
    /// Scale alpha / √rank instead of alpha / rank.
    pub use_rslora: bool,
    /// Train the length of every row of the adapted weights apart from its direction.
    pub use_dora: bool,
    /// Norm above which the gradient of a step is scaled down, 0 to 1000; 0 = never.
    pub max_grad_norm: f64,
    /// Decay of the mean of gradients, 0 to 0.9999.
    pub adam_beta1: f64,
    /// Decay of the mean of squared gradients, 0 to 0.99999.
    pub adam_beta2: f64,
    /// Added to the root of that mean, 1e-12 to 1e-3.
    pub adam_epsilon: f64,
    /// What is learned.
    pub training_method: TrainingMethod,
    /// Strength with which DPO holds on to the base model, 0.001 to 10.
    pub dpo_beta: f64,
    /// What happens to records longer than `max_seq_length`.
    pub excess_length_strategy: ExcessLengthStrategy,
    /// Share of the records that is not trained on but measured, 0 to 0.5; drawn by `seed`.
    pub validation_split: f64,
    /// Another dataset of the same user to measure on, by its hash; instead of `validation_split`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation_dataset: Option<B256>,
    /// Steps between two measurements; 0 = at the end of each epoch.
    pub eval_steps: u32,
    /// Measurements without a better one after which training ends; 0 = never.
    pub early_stopping_patience: u32,
    /// By how much the loss must fall to count as better, 0 to 10.
    pub early_stopping_threshold: f64,
    /// Deliver the state with the lowest measured loss instead of the last one; nothing where nothing is measured.
    pub load_best_model_at_end: bool,
    /// Task of the same user, provider and model whose adapter is trained further; `None` = a new adapter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub continue_from: Option<TaskId>,
}

/// Parameters that an adapter keeps for its life, so that a run which continues one does not set them.
const SHAPE_KEYS: [&str; 6] = [
    "lora_rank",
    "lora_r",
    "lora_alpha",
    "lora_target_modules",
    "use_rslora",
    "use_dora",
];

impl Default for TrainingParams {
    fn default() -> Self {
        Self {
            num_train_epochs: 3,
            per_device_train_batch_size: 4,
            learning_rate: 2e-4,
            max_steps: -1,
            neftune_noise_alpha: 0.0,
            lora_rank: 8,
            lora_alpha: 16.0,
            lora_dropout: 0.1,
            max_seq_length: 512,
            gradient_accumulation_steps: 1,
            warmup_ratio: 0.03,
            warmup_steps: 0,
            weight_decay: 0.0,
            lr_scheduler_type: LearningRateSchedule::Cosine,
            seed: 42,
            lora_target_modules: Vec::new(),
            use_rslora: false,
            use_dora: false,
            max_grad_norm: 1.0,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            training_method: TrainingMethod::Sft,
            dpo_beta: 0.1,
            excess_length_strategy: ExcessLengthStrategy::Truncate,
            validation_split: 0.0,
            validation_dataset: None,
            eval_steps: 0,
            early_stopping_patience: 0,
            early_stopping_threshold: 0.0,
            load_best_model_at_end: true,
            continue_from: None,
        }
    }
}

/// Why a training parameter file was refused. The texts of published cases are kept.
#[derive(Debug, thiserror::Error, PartialEq)]
#[non_exhaustive]
pub enum ParamsError {
    /// Not JSON.
    #[error("invalid training params JSON format: {0}")]
    Json(String),
    /// JSON, but not an object.
    #[error(
        "invalid training params JSON format: expected an object such as {{\"num_train_epochs\": 3}}"
    )]
    NotAnObject,
    /// A key nobody knows.
    #[error("training config contains unexpected parameter '{key}'. {hint}")]
    UnknownKey {
        /// The key as written.
        key: String,
        /// The nearest known key, or the list of keys.
        hint: String,
    },
    /// A required key is missing (strict schema).
    #[error("training config missing required parameter '{0}'")]
    Missing(&'static str),
    /// The same setting under two names.
    #[error("training config sets both '{0}' and '{1}', which are the same parameter: keep one")]
    Twice(&'static str, &'static str),
    /// A value of the wrong type.
    #[error("{key} must be {expected}, not {found}")]
    Type {
        /// The key.
        key: &'static str,
        /// What it must be.
        expected: &'static str,
        /// The value as written.
        found: String,
    },
    /// A value outside its range.
    #[error("{key} must be {range}, not {found}")]
    Range {
        /// The key.
        key: &'static str,
        /// The accepted range in words.
        range: String,
        /// The value as written.
        found: String,
    },
    /// A parameter that means nothing without another one.
    #[error("{key} needs {needed}")]
    Needs {
        /// The parameter.
        key: &'static str,
        /// What must be set too, in words.
        needed: &'static str,
    },
    /// Two parameters that say the same thing differently.
    #[error("{key} and {other} both say which records are measured: keep one")]
    Exclusive {
        /// One.
        key: &'static str,
        /// The other.
        other: &'static str,
    },
    /// A parameter that the continued adapter decides.
    #[error(
        "{key} cannot be set together with continue_from: the adapter of that task keeps its own; remove {key}"
    )]
    Inherited {
        /// The parameter.
        key: &'static str,
    },
    /// Exponent notation in the strict schema.
    #[error(
        "learning_rate must use decimal notation (e.g., 0.0002), not scientific notation (e.g., 2e-4)"
    )]
    ScientificNotation,
}

const STRICT_KEYS: [&str; 5] = [
    "neftune_noise_alpha",
    "num_train_epochs",
    "per_device_train_batch_size",
    "learning_rate",
    "max_steps",
];

const KEYS: [&str; 33] = [
    "num_train_epochs",
    "per_device_train_batch_size",
    "learning_rate",
    "max_steps",
    "neftune_noise_alpha",
    "lora_rank",
    "lora_r",
    "lora_alpha",
    "lora_dropout",
    "max_seq_length",
    "gradient_accumulation_steps",
    "warmup_ratio",
    "warmup_steps",
    "weight_decay",
    "lr_scheduler_type",
    "seed",
    "lora_target_modules",
    "use_rslora",
    "use_dora",
    "max_grad_norm",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "training_method",
    "dpo_beta",
    "excess_length_strategy",
    "validation_split",
    "validation_dataset",
    "eval_steps",
    "early_stopping_patience",
    "early_stopping_threshold",
    "load_best_model_at_end",
    "continue_from",
];

/// Most names in `lora_target_modules`; more than any model has.
const MAXIMUM_TARGETS: usize = 32;

impl TrainingParams {
    /// Parses and checks the text of a training parameter file.
    ///
    /// `model_max_tokens` is the longest sequence the base model takes; a default `max_seq_length` is lowered to it, an
    /// explicit larger one is an error.
    ///
    /// # Errors
    /// See [`ParamsError`]; the first problem in the order of the file's keys.
    pub fn parse(text: &str, schema: Schema, model_max_tokens: u32) -> Result<Self, ParamsError> {
        let value: Value = serde_json::from_str(text.trim_start_matches('\u{feff}'))
            .map_err(|error| ParamsError::Json(error.to_string()))?;
        let Value::Object(map) = value else {
            return Err(ParamsError::NotAnObject);
        };
        let keys: &[&str] = if schema == Schema::Strict {
            &STRICT_KEYS
        } else {
            &KEYS
        };
        if let Some(key) = map.keys().find(|key| !keys.contains(&key.as_str())) {
            return Err(ParamsError::UnknownKey {
                key: key.clone(),
                hint: nearest_key(key, keys),
            });
        }
        if schema == Schema::Strict {
            check_strict(&map, text)?;
        }
        if map.contains_key("lora_rank") && map.contains_key("lora_r") {
            return Err(ParamsError::Twice("lora_rank", "lora_r"));
        }
        let strict = schema == Schema::Strict;
        let read = Reader(&map);
        let defaults = Self::default();
        let rank_key = if map.contains_key("lora_r") {
            "lora_r"
        } else {
            "lora_rank"
        };
        let lora_rank = read
            .integer(rank_key, 1, 128)?
            .map_or(defaults.lora_rank, |rank| rank as u32);
        let max_steps = match read.integer("max_steps", -1, 1_000_000)? {
            Some(0) => {
                return Err(ParamsError::Range {
                    key: "max_steps",
                    range: "-1 (to use epochs) or a positive integer".into(),
                    found: "0".into(),
                });
            }
            other => other.unwrap_or(defaults.max_steps),
        };
        let validation_split = read
            .number("validation_split", 0.0, 0.5)?
            .unwrap_or(defaults.validation_split);
        let validation_dataset = read.parsed(
            "validation_dataset",
            "the hash of an uploaded dataset: 0x and 64 hexadecimal digits",
        )?;
        if validation_split > 0.0 && validation_dataset.is_some() {
            return Err(ParamsError::Exclusive {
                key: "validation_split",
                other: "validation_dataset",
            });
        }
        let early_stopping_patience = read
            .integer("early_stopping_patience", 0, 1000)?
            .map_or(defaults.early_stopping_patience, |count| count as u32);
        if early_stopping_patience > 0 && validation_split == 0.0 && validation_dataset.is_none() {
            return Err(ParamsError::Needs {
                key: "early_stopping_patience",
                needed: "validation_split, for example 0.1, or validation_dataset: without records set aside there is no loss to watch",
            });
        }
        let continue_from = read.parsed(
            "continue_from",
            "the id of an earlier task such as \"6b607314-88ba-4a39-9a43-0d5c5a1a7c11\"",
        )?;
        if continue_from.is_some()
            && let Some(key) = SHAPE_KEYS.into_iter().find(|key| map.contains_key(*key))
        {
            return Err(ParamsError::Inherited { key });
        }
        let (low_rate, high_rate) = if strict {
            (0.00001, 0.001)
        } else {
            (1e-6, 1e-2)
        };
        Ok(Self {
            num_train_epochs: read
                .integer("num_train_epochs", 1, if strict { 10 } else { 100 })?
                .map_or(defaults.num_train_epochs, |epochs| epochs as u32),
            per_device_train_batch_size: read
                .integer(
                    "per_device_train_batch_size",
                    1,
                    if strict { 4 } else { 64 },
                )?
                .map_or(defaults.per_device_train_batch_size, |batch| batch as u32),
            learning_rate: read
                .number("learning_rate", low_rate, high_rate)?
                .unwrap_or(defaults.learning_rate),
            max_steps,
            neftune_noise_alpha: read
                .number("neftune_noise_alpha", 0.0, 10.0)?
                .unwrap_or(defaults.neftune_noise_alpha),
            lora_rank,
            lora_alpha: read
                .number("lora_alpha", 1e-3, 4096.0)?
                .unwrap_or(f64::from(2 * lora_rank)),
            lora_dropout: read
                .number("lora_dropout", 0.0, 0.5)?
                .unwrap_or(defaults.lora_dropout),
            max_seq_length: read
                .integer("max_seq_length", 16, i64::from(model_max_tokens))?
                .map_or(defaults.max_seq_length.min(model_max_tokens), |length| {
                    length as u32
                }),
            gradient_accumulation_steps: read
                .integer("gradient_accumulation_steps", 1, 1024)?
                .map_or(defaults.gradient_accumulation_steps, |steps| steps as u32),
            warmup_ratio: read
                .number("warmup_ratio", 0.0, 1.0)?
                .unwrap_or(defaults.warmup_ratio),
            warmup_steps: read
                .integer("warmup_steps", 0, 1_000_000)?
                .map_or(defaults.warmup_steps, |steps| steps as u32),
            weight_decay: read
                .number("weight_decay", 0.0, 1.0)?
                .unwrap_or(defaults.weight_decay),
            lr_scheduler_type: read
                .choice(
                    "lr_scheduler_type",
                    "\"cosine\", \"linear\" or \"constant\"",
                )?
                .unwrap_or(defaults.lr_scheduler_type),
            seed: read
                .integer("seed", 0, i64::MAX)?
                .map_or(defaults.seed, |seed| seed as u64),
            lora_target_modules: read.names("lora_target_modules")?,
            use_rslora: read.flag("use_rslora")?.unwrap_or(defaults.use_rslora),
            use_dora: read.flag("use_dora")?.unwrap_or(defaults.use_dora),
            max_grad_norm: read
                .number("max_grad_norm", 0.0, 1000.0)?
                .unwrap_or(defaults.max_grad_norm),
            adam_beta1: read
                .number("adam_beta1", 0.0, 0.9999)?
                .unwrap_or(defaults.adam_beta1),
            adam_beta2: read
                .number("adam_beta2", 0.0, 0.99999)?
                .unwrap_or(defaults.adam_beta2),
            adam_epsilon: read
                .number("adam_epsilon", 1e-12, 1e-3)?
                .unwrap_or(defaults.adam_epsilon),
            training_method: read
                .choice("training_method", "\"sft\" or \"dpo\"")?
                .unwrap_or(defaults.training_method),
            dpo_beta: read
                .number("dpo_beta", 0.001, 10.0)?
                .unwrap_or(defaults.dpo_beta),
            excess_length_strategy: read
                .choice(
                    "excess_length_strategy",
                    "\"truncate\", \"split\", \"drop\" or \"raise\"",
                )?
                .unwrap_or(defaults.excess_length_strategy),
            validation_split,
            validation_dataset,
            eval_steps: read
                .integer("eval_steps", 0, 1_000_000)?
                .map_or(defaults.eval_steps, |steps| steps as u32),
            early_stopping_patience,
            early_stopping_threshold: read
                .number("early_stopping_threshold", 0.0, 10.0)?
                .unwrap_or(defaults.early_stopping_threshold),
            load_best_model_at_end: read
                .flag("load_best_model_at_end")?
                .unwrap_or(defaults.load_best_model_at_end),
            continue_from,
        })
    }

    /// With the adapter's shape of `earlier`, whose adapter is trained further.
    #[must_use]
    pub fn with_shape_of(self, earlier: &Self) -> Self {
        Self {
            lora_rank: earlier.lora_rank,
            lora_alpha: earlier.lora_alpha,
            lora_target_modules: earlier.lora_target_modules.clone(),
            use_rslora: earlier.use_rslora,
            use_dora: earlier.use_dora,
            ..self
        }
    }

    /// Examples that one optimiser step reads.
    pub const fn examples_per_step(&self) -> u64 {
        self.per_device_train_batch_size as u64 * self.gradient_accumulation_steps as u64
    }

    /// Optimiser steps of a run over `examples` training examples.
    pub fn total_steps(&self, examples: u64) -> u64 {
        let by_epochs =
            (examples * u64::from(self.num_train_epochs)).div_ceil(self.examples_per_step());
        match u64::try_from(self.max_steps) {
            Ok(limit) if limit > 0 => limit.min(by_epochs),
            _ => by_epochs,
        }
    }

    /// Examples that the whole run reads, which is what the fee is for.
    pub fn total_examples(&self, examples: u64) -> u64 {
        (self.total_steps(examples) * self.examples_per_step())
            .min(examples * u64::from(self.num_train_epochs))
    }
}

fn check_strict(map: &Map<String, Value>, text: &str) -> Result<(), ParamsError> {
    if let Some(key) = STRICT_KEYS.iter().find(|key| !map.contains_key(**key)) {
        return Err(ParamsError::Missing(key));
    }
    // The published rule looks at the raw token, because `2e-4` and `0.0002` are the same JSON number.
    let raw = text
        .split("\"learning_rate\"")
        .nth(1)
        .and_then(|rest| rest.trim_start().strip_prefix(':'));
    let token = raw.map(|rest| {
        rest.trim_start()
            .split([',', '}', '\n'])
            .next()
            .unwrap_or("")
    });
    if token.is_some_and(|token| token.contains(['e', 'E'])) {
        return Err(ParamsError::ScientificNotation);
    }
    Ok(())
}

struct Reader<'a>(&'a Map<String, Value>);

impl Reader<'_> {
    fn number(&self, key: &'static str, low: f64, high: f64) -> Result<Option<f64>, ParamsError> {
        let Some(value) = self.0.get(key) else {
            return Ok(None);
        };
        let number = value.as_f64().ok_or_else(|| ParamsError::Type {
            key,
            expected: "a number",
            found: value.to_string(),
        })?;
        if !(low..=high).contains(&number) {
            return Err(ParamsError::Range {
                key,
                range: format!("between {low} and {high}"),
                found: value.to_string(),
            });
        }
        Ok(Some(number))
    }

    fn integer(&self, key: &'static str, low: i64, high: i64) -> Result<Option<i64>, ParamsError> {
        let Some(value) = self.0.get(key) else {
            return Ok(None);
        };
        let wrong_type = || ParamsError::Type {
            key,
            expected: "an integer",
            found: value.to_string(),
        };
        let integer = match (value.as_i64(), value.as_f64()) {
            (Some(integer), _) => integer,
            // 3.0 is an integer-valued number; i64 holds every f64 below 2^53 exactly.
            (None, Some(number)) if number.fract() == 0.0 && number.abs() < 9e15 => number as i64,
            (None, Some(_)) | (None, None) => return Err(wrong_type()),
        };
        if !(low..=high).contains(&integer) {
            return Err(ParamsError::Range {
                key,
                range: format!("an integer between {low} and {high}"),
                found: value.to_string(),
            });
        }
        Ok(Some(integer))
    }

    fn flag(&self, key: &'static str) -> Result<Option<bool>, ParamsError> {
        match self.0.get(key) {
            None => Ok(None),
            Some(Value::Bool(on)) => Ok(Some(*on)),
            Some(other) => Err(ParamsError::Type {
                key,
                expected: "true or false",
                found: other.to_string(),
            }),
        }
    }

    /// A text that reads as `T`, which `expected` describes.
    fn parsed<T: std::str::FromStr>(
        &self,
        key: &'static str,
        expected: &'static str,
    ) -> Result<Option<T>, ParamsError> {
        let Some(value) = self.0.get(key) else {
            return Ok(None);
        };
        let parsed = value.as_str().and_then(|text| text.parse().ok());
        parsed.map(Some).ok_or_else(|| ParamsError::Type {
            key,
            expected,
            found: value.to_string(),
        })
    }

    /// A list of names, sorted and without repetition; `"all-linear"` and nothing at all are the empty list.
    fn names(&self, key: &'static str) -> Result<Vec<String>, ParamsError> {
        let wrong_type = |value: &Value| ParamsError::Type {
            key,
            expected: "\"all-linear\" or a list of names such as [\"q_proj\", \"v_proj\"]",
            found: value.to_string(),
        };
        let items = match self.0.get(key) {
            None => return Ok(Vec::new()),
            Some(Value::String(name)) if name == "all-linear" => return Ok(Vec::new()),
            Some(Value::Array(items)) if (1..=MAXIMUM_TARGETS).contains(&items.len()) => items,
            Some(other) => return Err(wrong_type(other)),
        };
        let mut names: Vec<String> = items
            .iter()
            .map(|item| {
                let name = item.as_str().filter(|name| (1..=64).contains(&name.len()));
                name.map(str::to_owned).ok_or_else(|| wrong_type(item))
            })
            .collect::<Result<_, _>>()?;
        names.sort();
        names.dedup();
        Ok(names)
    }

    /// One of a few names, listed in `range`.
    fn choice<T: serde::de::DeserializeOwned>(
        &self,
        key: &'static str,
        range: &str,
    ) -> Result<Option<T>, ParamsError> {
        let Some(value) = self.0.get(key) else {
            return Ok(None);
        };
        serde_json::from_value(value.clone())
            .map(Some)
            .map_err(|_| ParamsError::Range {
                key,
                range: range.to_owned(),
                found: value.to_string(),
            })
    }
}

/// Names the known key with the smallest edit distance, or lists all keys when none is near.
fn nearest_key(key: &str, keys: &[&str]) -> String {
    let list = || format!("Only these parameters are allowed: {}", keys.join(", "));
    let near = keys
        .iter()
        .map(|known| (edit_distance(key, known), *known))
        .min();
    match near {
        Some((distance, known)) if distance <= known.len() / 3 => {
            format!("Did you mean '{known}'? {}", list())
        }
        _ => list(),
    }
}

/// Levenshtein distance in characters.
pub fn edit_distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, l) in left.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, r) in right.iter().enumerate() {
            let substitution = diagonal + usize::from(l != *r);
            diagonal = row[j + 1];
            row[j + 1] = substitution.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extended(text: &str) -> Result<TrainingParams, ParamsError> {
        TrainingParams::parse(text, Schema::Extended, 1024)
    }

    #[test]
    fn a_continued_adapter_keeps_its_shape() {
        let id = "6b607314-88b0-4fef-91e7-43227a54de57";
        let params = extended(&format!(r#"{{"continue_from":"{id}","seed":3}}"#)).unwrap();
        assert_eq!(params.continue_from.unwrap().to_string(), id);
        let earlier = extended(r#"{"lora_rank":4,"use_dora":true,"seed":9}"#).unwrap();
        let merged = params.with_shape_of(&earlier);
        assert!(merged.lora_rank == 4 && merged.lora_alpha == 8.0 && merged.use_dora);
        assert_eq!(merged.seed, 3);
        assert_eq!(
            extended(&format!(r#"{{"continue_from":"{id}","lora_alpha":8}}"#)),
            Err(ParamsError::Inherited { key: "lora_alpha" })
        );
        for wrong in [r#""../../etc""#, "7", "null"] {
            assert!(matches!(
                extended(&format!(r#"{{"continue_from":{wrong}}}"#)),
                Err(ParamsError::Type {
                    key: "continue_from",
                    ..
                })
            ));
        }
    }

    #[test]
    fn names_and_switches_are_read_and_refused_by_type() {
        let params = extended(
            r#"{"lora_target_modules":["v_proj","q_proj","v_proj"],"use_rslora":true,"use_dora":true,"max_grad_norm":0,"adam_beta2":0.95}"#,
        )
        .unwrap();
        assert_eq!(params.lora_target_modules, ["q_proj", "v_proj"]);
        assert!(params.use_rslora && params.use_dora);
        assert_eq!((params.max_grad_norm, params.adam_beta2), (0.0, 0.95));
        let all = extended(r#"{"lora_target_modules":"all-linear"}"#).unwrap();
        assert!(all.lora_target_modules.is_empty());
        for (text, key) in [
            (r#"{"lora_target_modules":[]}"#, "lora_target_modules"),
            (r#"{"lora_target_modules":[1]}"#, "lora_target_modules"),
            (r#"{"lora_target_modules":"q_proj"}"#, "lora_target_modules"),
            (r#"{"use_dora":1}"#, "use_dora"),
        ] {
            let error = extended(text).unwrap_err();
            assert!(
                matches!(&error, ParamsError::Type { key: found, .. } if *found == key),
                "{error}"
            );
        }
        // What was written before a parameter existed has its default.
        let old: TrainingParams = serde_json::from_str(r#"{"seed":7}"#).unwrap();
        assert_eq!(
            old,
            TrainingParams {
                seed: 7,
                ..TrainingParams::default()
            }
        );
    }

    #[test]
    fn methods_and_validation_are_read_and_refused_by_name() {
        let params = extended(
            r#"{"training_method":"dpo","dpo_beta":0.2,"excess_length_strategy":"split","validation_split":0.1,
                "eval_steps":5,"early_stopping_patience":3,"load_best_model_at_end":false}"#,
        )
        .unwrap();
        assert_eq!(
            (params.training_method, params.excess_length_strategy),
            (TrainingMethod::Dpo, ExcessLengthStrategy::Split)
        );
        assert_eq!(
            (params.validation_split, params.eval_steps, params.dpo_beta),
            (0.1, 5, 0.2)
        );
        assert!(!params.load_best_model_at_end);
        let text = |text: &str| extended(text).unwrap_err().to_string();
        assert!(text(r#"{"training_method":"ppo"}"#).contains("\"sft\" or \"dpo\""));
        assert!(text(r#"{"excess_length_strategy":"pad"}"#).contains("\"drop\""));
        assert!(text(r#"{"early_stopping_patience":2}"#).contains("validation_split"));
        assert!(text(r#"{"validation_split":0.9}"#).contains("between 0 and 0.5"));
        let hash = format!("0x{}", "ab".repeat(32));
        let with = |more: &str| format!(r#"{{"validation_dataset":"{hash}"{more}}}"#);
        let params = extended(&with(r#","early_stopping_patience":2"#)).unwrap();
        assert_eq!(params.validation_dataset.unwrap().to_string(), hash);
        assert!(text(&with(r#","validation_split":0.1"#)).contains("keep one"));
        assert!(
            text(r#"{"validation_dataset":"val.jsonl"}"#).contains("hash of an uploaded dataset")
        );
        // The file with every default is a file that is accepted.
        let defaults = serde_json::to_string(&TrainingParams::default()).unwrap();
        assert_eq!(extended(&defaults).unwrap(), TrainingParams::default());
    }

    #[test]
    fn both_documented_files_are_accepted() {
        let cli = extended(r#"{"neftune_noise_alpha":5,"num_train_epochs":1,"per_device_train_batch_size":2,"learning_rate":0.0002,"max_steps":3}"#).unwrap();
        assert_eq!(
            (cli.max_steps, cli.neftune_noise_alpha, cli.lora_rank),
            (3, 5.0, 8)
        );
        let python = extended(
            r#"{"learning_rate": 2e-4, "num_train_epochs": 3.0, "per_device_train_batch_size": 4,
                "lora_rank": 16, "lora_dropout": 0.1}"#,
        )
        .unwrap();
        assert_eq!(
            (python.num_train_epochs, python.lora_rank, python.lora_alpha),
            (3, 16, 32.0)
        );
        assert_eq!(extended("{}").unwrap().max_seq_length, 512);
        assert_eq!(
            TrainingParams::parse("{}", Schema::Extended, 128)
                .unwrap()
                .max_seq_length,
            128
        );
    }

    #[test]
    fn strict_mode_reproduces_the_published_rules() {
        let parse = |text: &str| TrainingParams::parse(text, Schema::Strict, 1024);
        let good = r#"{"neftune_noise_alpha":5,"num_train_epochs":1,"per_device_train_batch_size":2,"learning_rate":0.0002,"max_steps":3}"#;
        assert!(parse(good).is_ok());
        assert_eq!(
            parse(&good.replace("0.0002", "2e-4")).unwrap_err(),
            ParamsError::ScientificNotation
        );
        assert_eq!(
            parse(&good.replace(",\"max_steps\":3", "")).unwrap_err(),
            ParamsError::Missing("max_steps")
        );
        assert!(parse(&good.replace("\"max_steps\":3", "\"max_steps\":3,\"fp16\":true")).is_err());
        assert!(parse(&good.replace("\"num_train_epochs\":1", "\"num_train_epochs\":11")).is_err());
    }

    #[test]
    fn mistakes_are_named_with_their_remedy() {
        let text = |text: &str| extended(text).unwrap_err().to_string();
        assert!(text(r#"{"learning_rat": 1}"#).contains("Did you mean 'learning_rate'?"));
        assert!(text(r#"{"bf16": true}"#).contains("Only these parameters are allowed"));
        assert!(text(r#"{"max_steps": 0}"#).contains("-1 (to use epochs)"));
        assert!(text(r#"{"lora_rank": 129}"#).contains("between 1 and 128"));
        assert!(text(r#"{"num_train_epochs": 1.5}"#).contains("an integer"));
        assert!(text(r#"{"learning_rate": "fast"}"#).contains("a number"));
        assert!(text(r#"{"max_seq_length": 4096}"#).contains("1024"));
        assert!(text("[1]").contains("object"));
        assert!(text("{").contains("line 1"));
        assert!(text(r#"{"lora_r":1,"lora_rank":1}"#).contains("keep one"));
    }

    #[test]
    fn steps_and_examples_follow_epochs_or_max_steps() {
        let mut params = TrainingParams {
            num_train_epochs: 3,
            per_device_train_batch_size: 4,
            ..Default::default()
        };
        assert_eq!((params.total_steps(10), params.total_examples(10)), (8, 30));
        params.max_steps = 2;
        assert_eq!((params.total_steps(10), params.total_examples(10)), (2, 8));
        params.max_steps = 100;
        assert_eq!(params.total_examples(10), 30);
    }
}
