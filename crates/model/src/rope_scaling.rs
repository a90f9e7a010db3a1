//! Rotary frequencies of a configuration, with the stretched forms that long-context models use.

use crate::error::ModelError;
use serde::Deserialize;
use std::f64::consts::PI;
use zerog_kernels::rope::RopeTable;

/// Rotary position embedding of a model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RopeSettings {
    /// Base of the angles.
    pub theta: f64,
    /// How frequencies are changed for contexts beyond the pre-trained one.
    pub scaling: RopeScaling,
}

/// A change of the rotary frequencies, by its `rope_type`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum RopeScaling {
    /// `default`: none.
    #[default]
    None,
    /// `linear`: all frequencies are divided.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// `llama3`: low frequencies are divided, high ones kept, those between blended.
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// Waves longer than `original_positions / low` are low frequencies.
        low: f64,
        /// Waves shorter than `original_positions / high` are high frequencies.
        high: f64,
        /// Positions of the pre-trained model.
        original_positions: f64,
    },
    /// `yarn` (Peng et al. 2023): as `llama3` with a ramp over dimensions, and scaled angles' amplitude.
    Yarn {
        /// The divisor of low frequencies.
        factor: f64,
        /// Rotations within the pre-trained context above which a dimension is kept.
        fast: f64,
        /// Rotations below which a dimension is divided.
        slow: f64,
        /// Positions of the pre-trained model.
        original_positions: f64,
        /// Factor of cosines and sines.
        amplitude: f64,
        /// Whether the ends of the ramp are whole dimensions.
        truncate: bool,
    },
}

/// `rope_scaling` or `rope_parameters` of a `config.json`.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct RawRope {
    rope_theta: Option<f64>,
    #[serde(alias = "type")]
    rope_type: Option<String>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
    attention_factor: Option<f64>,
    beta_fast: Option<f64>,
    beta_slow: Option<f64>,
    mscale: Option<f64>,
    mscale_all_dim: Option<f64>,
    truncate: Option<bool>,
    partial_rotary_factor: Option<f64>,
}

impl RopeSettings {
    /// From the old pair of members or the newer single one. `theta` is the member `rope_theta` beside them.
    pub(crate) fn from_raw(
        raw: Option<RawRope>,
        theta: Option<f64>,
        maximum_positions: usize,
    ) -> Result<Self, ModelError> {
        let raw = raw.unwrap_or_default();
        let theta = raw.rope_theta.or(theta).unwrap_or(10_000.0);
        let unsupported =
            |setting, value: String| Err(ModelError::UnsupportedSetting { setting, value });
        if !(theta.is_finite() && theta > 1.0) {
            return unsupported("rope_theta", theta.to_string());
        }
        if let Some(part) = raw.partial_rotary_factor.filter(|part| *part != 1.0) {
            return unsupported("partial_rotary_factor", part.to_string());
        }
        let number = |setting, value: Option<f64>| match value {
            Some(value) if value.is_finite() && value > 0.0 => Ok(value),
            Some(value) => Err(ModelError::UnsupportedSetting {
                setting,
                value: value.to_string(),
            }),
            None => Err(ModelError::UnsupportedSetting {
                setting,
                value: "nothing".to_owned(),
            }),
        };
        let original = || {
            number(
                "original_max_position_embeddings",
                raw.original_max_position_embeddings,
            )
        };
        let scaling = match raw.rope_type.as_deref() {
            None | Some("default") => RopeScaling::None,
            Some("linear") => RopeScaling::Linear {
                factor: number("rope factor", raw.factor)?,
            },
            Some("llama3") => {
                let (low, high) = (
                    number("low_freq_factor", raw.low_freq_factor)?,
                    number("high_freq_factor", raw.high_freq_factor)?,
                );
                if low >= high {
                    return unsupported("low_freq_factor", low.to_string());
                }
                RopeScaling::Llama3 {
                    factor: number("rope factor", raw.factor)?,
                    low,
                    high,
                    original_positions: original()?,
                }
            }
            Some("yarn") => {
                let original_positions = match raw.original_max_position_embeddings {
                    Some(_) => original()?,
                    None => maximum_positions as f64,
                };
                let factor = match raw.factor {
                    Some(_) => number("rope factor", raw.factor)?,
                    None => maximum_positions as f64 / original_positions,
                };
                let (fast, slow) = (
                    number("beta_fast", raw.beta_fast.or(Some(32.0)))?,
                    number("beta_slow", raw.beta_slow.or(Some(1.0)))?,
                );
                let amplitude = match (raw.attention_factor, raw.mscale, raw.mscale_all_dim) {
                    (Some(amplitude), _, _) => number("attention_factor", Some(amplitude))?,
                    (None, Some(one), Some(all)) if one != 0.0 && all != 0.0 => {
                        growth(factor, one) / growth(factor, all)
                    }
                    _ => growth(factor, 1.0),
                };
                RopeScaling::Yarn {
                    factor,
                    fast,
                    slow,
                    original_positions,
                    amplitude,
                    truncate: raw.truncate.unwrap_or(true),
                }
            }
            Some(kind) => return unsupported("rope_type", kind.to_owned()),
        };
        Ok(Self { theta, scaling })
    }

    /// `rope_parameters` as newer `transformers` releases write it.
    pub(crate) fn to_json(self) -> serde_json::Value {
        let mut value = match self.scaling {
            RopeScaling::None => serde_json::json!({"rope_type": "default"}),
            RopeScaling::Linear { factor } => {
                serde_json::json!({"rope_type": "linear", "factor": factor})
            }
            RopeScaling::Llama3 {
                factor,
                low,
                high,
                original_positions,
            } => serde_json::json!({
                "rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
                "original_max_position_embeddings": original_positions as u64,
            }),
            RopeScaling::Yarn {
                factor,
                fast,
                slow,
                original_positions,
                amplitude,
                truncate,
            } => serde_json::json!({
                "rope_type": "yarn", "factor": factor, "beta_fast": fast, "beta_slow": slow,
                "original_max_position_embeddings": original_positions as u64,
                "attention_factor": amplitude, "truncate": truncate,
            }),
        };
        value["rope_theta"] = self.theta.into();
        value
    }

    /// The table for heads of `head_size` elements.
    pub(crate) fn table(self, head_size: usize, positions: usize) -> RopeTable {
        let amplitude = match self.scaling {
            RopeScaling::Yarn { amplitude, .. } => amplitude as f32,
            _ => 1.0,
        };
        RopeTable::with_frequencies(&self.frequencies(head_size), amplitude, positions)
    }

    fn frequencies(self, head_size: usize) -> Vec<f32> {
        let half = head_size / 2;
        let plain = (0..half).map(|i| 1.0 / self.theta.powf((2 * i) as f64 / head_size as f64));
        let scaled: Vec<f64> = match self.scaling {
            RopeScaling::None => plain.collect(),
            RopeScaling::Linear { factor } => plain.map(|frequency| frequency / factor).collect(),
            RopeScaling::Llama3 {
                factor,
                low,
                high,
                original_positions,
            } => plain
                .map(|frequency| {
                    let turns = original_positions * frequency / (2.0 * PI);
                    if turns > high {
                        frequency
                    } else if turns < low {
                        frequency / factor
                    } else {
                        let kept = (turns - low) / (high - low);
                        (1.0 - kept) * frequency / factor + kept * frequency
                    }
                })
                .collect(),
            RopeScaling::Yarn {
                factor,
                fast,
                slow,
                original_positions,
                truncate,
                ..
            } => {
                // The dimension that makes so many turns within the pre-trained context.
                let dimension = |turns: f64| {
                    head_size as f64 * (original_positions / (turns * 2.0 * PI)).ln()
                        / (2.0 * self.theta.ln())
                };
                let (mut first, mut last) = (dimension(fast), dimension(slow));
                if truncate {
                    (first, last) = (first.floor(), last.ceil());
                }
                let first = first.max(0.0);
                let mut last = last.min(head_size as f64 - 1.0);
                if first == last {
                    last += 0.001;
                }
                plain
                    .enumerate()
                    .map(|(index, frequency)| {
                        let divided = ((index as f64 - first) / (last - first)).clamp(0.0, 1.0);
                        frequency / factor * divided + frequency * (1.0 - divided)
                    })
                    .collect()
            }
        };
        scaled.into_iter().map(|value| value as f32).collect()
    }
}

/// How much attention is sharpened for a context that is `factor` times longer.
fn growth(factor: f64, weight: f64) -> f64 {
    if factor <= 1.0 {
        1.0
    } else {
        0.1 * weight * factor.ln() + 1.0
    }
}
