//! Reference logits: why an adapter that does nothing, or something else, never counts as loaded.
//!
//! When training ends, the trainer records for a few prompts the logits of chosen tokens, with the adapter and without
//! it. An engine that loads the adapter must reproduce both within the tolerance, and the adapter must make a
//! difference. A wrong base model, a wrong scale, swapped matrices or a zero adapter all show here, whatever their
//! files look like.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use zerog_model::LoraAdapter;

use crate::error::EngineError;
use crate::executor::Executor;

/// Version of the record that is read.
pub const CANARY_VERSION: u32 = 1;
/// Longest record that is read, in bytes.
pub const MAX_RECORD_BYTES: usize = 1 << 20;
/// Most prompts of a record; more would make loading slow.
pub const MAX_PROBES: usize = 16;
/// Most tokens of a prompt.
pub const MAX_PROBE_TOKENS: usize = 512;
/// Smallest largest difference between adapter and base that counts as an effect.
pub const LEAST_EFFECT: f32 = 1e-4;

/// How far computed logits may be from recorded ones.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tolerance {
    /// Largest difference of two logits that counts as equal, plus `relative` of the larger one.
    pub absolute: f32,
    /// See `absolute`.
    pub relative: f32,
    /// Largest error of the difference that the adapter makes, as a share of the largest difference in the record. An
    /// adapter that is applied by nine tenths, or in all layers but one, stays within the tolerance of the logits when
    /// its effect is small; here it shows.
    pub effect: f32,
}

impl Tolerance {
    /// For engines that compute in single precision on the recorded weights: other instruction sets, devices and rounded
    /// adapter files stay far below it.
    pub const EXACT: Self = Self {
        absolute: 0.05,
        relative: 0.02,
        effect: 0.02,
    };
    /// For engines that round the base weights or, on a device, the activations.
    pub const ROUNDED: Self = Self {
        absolute: 0.5,
        relative: 0.1,
        effect: 0.25,
    };
    /// Error of the difference of two logits that counts for nothing: the roundings of single precision.
    const LEAST: f32 = 2e-4;
}

/// The record of one adapter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Canary {
    /// [`CANARY_VERSION`].
    pub version: u32,
    /// SHA-256 of the base weights that the adapter was trained on, hexadecimal.
    pub base_model_sha256: String,
    /// The prompts.
    pub probes: Vec<CanaryProbe>,
}

impl Canary {
    /// Largest difference that the adapter made to a recorded logit.
    pub fn largest_effect(&self) -> f32 {
        let of_probe = |probe: &CanaryProbe| {
            let pairs = probe.base_logits.iter().zip(&probe.adapter_logits);
            pairs
                .map(|(base, adapter)| (base - adapter).abs())
                .fold(0.0, f32::max)
        };
        self.probes.iter().map(of_probe).fold(0.0, f32::max)
    }

    /// Reads the record as the trainer writes it into the archive (`output_model/canary.json`).
    ///
    /// # Errors
    /// [`CanaryError::Unusable`].
    pub fn parse(json: &[u8]) -> Result<Self, CanaryError> {
        if json.len() > MAX_RECORD_BYTES {
            return Err(CanaryError::Unusable {
                reason: "it is too long",
            });
        }
        serde_json::from_slice(json).map_err(|_| CanaryError::Unusable {
            reason: "it is not JSON of the known form",
        })
    }
}

/// One prompt with its logits after the last token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CanaryProbe {
    /// The prompt.
    pub tokens: Vec<u32>,
    /// Tokens whose logits were recorded.
    pub logit_ids: Vec<u32>,
    /// Logits of `logit_ids` without the adapter.
    pub base_logits: Vec<f32>,
    /// Logits of `logit_ids` with the adapter.
    pub adapter_logits: Vec<f32>,
}

/// What a check measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CanaryReport {
    /// Prompts that were run.
    pub probes: usize,
    /// Largest difference between recorded and computed logits.
    pub largest_error: f32,
    /// Largest difference between the logits with and without the adapter.
    pub largest_effect: f32,
}

/// Why an adapter does not count as loaded.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum CanaryError {
    /// The record cannot be used.
    #[error("the adapter's reference logits are unusable: {reason}")]
    Unusable {
        /// What is wrong.
        reason: &'static str,
    },
    /// The adapter was trained on other weights.
    #[error("the adapter was trained on base weights {expected}; this engine serves {found}")]
    WrongBase {
        /// Hash in the record.
        expected: String,
        /// Hash of the served base.
        found: String,
    },
    /// The adapter does not have the shapes of the served base.
    #[error("the adapter was made for another model shape")]
    WrongShape,
    /// The base model itself gives other logits: other weights, tokenizer or mathematics.
    #[error("probe {probe}: the base model's logits differ from the recorded ones by {difference}")]
    BaseDiffers {
        /// Which prompt.
        probe: usize,
        /// Largest difference.
        difference: f32,
    },
    /// The adapter gives other logits than it gave after training.
    #[error("probe {probe}: the adapter's logits differ from the recorded ones by {difference}")]
    AdapterDiffers {
        /// Which prompt.
        probe: usize,
        /// Largest difference.
        difference: f32,
    },
    /// The adapter does not make the difference that it made after training.
    #[error(
        "probe {probe}: the adapter changes the logits by {difference} more or less than recorded, where the largest \
         recorded change is {effect}"
    )]
    EffectDiffers {
        /// Which prompt.
        probe: usize,
        /// Largest error of a change.
        difference: f32,
        /// Largest recorded change.
        effect: f32,
    },
    /// There is no record, so nothing shows that the adapter acts as it did after training.
    #[error(
        "the adapter brings no reference logits (canary.json), so nothing shows that it acts as it did after training"
    )]
    NoRecord,
    /// The adapter changes nothing.
    #[error(
        "the adapter has no effect: its logits differ from the base model's by {difference} at most"
    )]
    NoEffect {
        /// Largest difference.
        difference: f32,
    },
    /// The adapter gives something that is not a number.
    #[error("probe {probe}: the logits are not finite numbers")]
    NotFinite {
        /// Which prompt.
        probe: usize,
    },
    /// The computation failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// Records the reference logits of a finished adapter: for each prompt, the `width` most probable tokens with and
/// without the adapter.
///
/// Training uses its own code for this; engines use it to make records for adapters that come without one and in tests.
pub(crate) fn record(
    prompts: &[Vec<u32>],
    width: usize,
    adapter: &Arc<LoraAdapter>,
    executor: &mut Executor,
) -> Result<Canary, EngineError> {
    let mut probes = Vec::with_capacity(prompts.len());
    for tokens in prompts {
        let base = executor.probe(tokens, None)?;
        let adapted = executor.probe(tokens, Some(Arc::clone(adapter)))?;
        let mut logit_ids: Vec<u32> = zerog_model::top_log_probabilities(&base, width)
            .into_iter()
            .map(|top| top.0)
            .collect();
        logit_ids.extend(
            zerog_model::top_log_probabilities(&adapted, width)
                .into_iter()
                .map(|top| top.0),
        );
        logit_ids.sort_unstable();
        logit_ids.dedup();
        let pick = |logits: &[f32]| logit_ids.iter().map(|id| logits[*id as usize]).collect();
        probes.push(CanaryProbe {
            tokens: tokens.clone(),
            base_logits: pick(&base),
            adapter_logits: pick(&adapted),
            logit_ids,
        });
    }
    Ok(Canary {
        version: CANARY_VERSION,
        base_model_sha256: executor.model().sha256_hex(),
        probes,
    })
}

/// Runs the record against the engine's base model and the adapter.
pub(crate) fn check(
    canary: &Canary,
    adapter: &Arc<LoraAdapter>,
    tolerance: Tolerance,
    executor: &mut Executor,
) -> Result<CanaryReport, CanaryError> {
    check_record(
        canary,
        executor.model().config().vocabulary_size,
        executor.model().config().maximum_positions,
    )?;
    let found = executor.model().sha256_hex();
    if !canary
        .base_model_sha256
        .trim_start_matches("0x")
        .eq_ignore_ascii_case(&found)
    {
        return Err(CanaryError::WrongBase {
            expected: canary.base_model_sha256.clone(),
            found,
        });
    }
    let recorded_effect = canary.largest_effect();
    if recorded_effect < LEAST_EFFECT {
        return Err(CanaryError::NoEffect {
            difference: recorded_effect,
        });
    }
    let mut report = CanaryReport {
        probes: canary.probes.len(),
        largest_error: 0.0,
        largest_effect: 0.0,
    };
    for (probe, recorded) in canary.probes.iter().enumerate() {
        let base = executor.probe(&recorded.tokens, None)?;
        let adapted = executor.probe(&recorded.tokens, Some(Arc::clone(adapter)))?;
        if adapted.iter().any(|logit| !logit.is_finite()) {
            return Err(CanaryError::NotFinite { probe });
        }
        let ids = &recorded.logit_ids;
        let (difference, within) = compare(ids, &recorded.base_logits, &base, tolerance);
        if !within {
            return Err(CanaryError::BaseDiffers { probe, difference });
        }
        let (error, within) = compare(ids, &recorded.adapter_logits, &adapted, tolerance);
        if !within {
            return Err(CanaryError::AdapterDiffers {
                probe,
                difference: error,
            });
        }
        let (error_of_effect, within) =
            compare_effect(recorded, recorded_effect, &base, &adapted, tolerance);
        if !within {
            return Err(CanaryError::EffectDiffers {
                probe,
                difference: error_of_effect,
                effect: recorded_effect,
            });
        }
        report.largest_error = report.largest_error.max(difference).max(error);
        let effect = base
            .iter()
            .zip(&adapted)
            .map(|(base, adapted)| (base - adapted).abs())
            .fold(0.0, f32::max);
        report.largest_effect = report.largest_effect.max(effect);
    }
    if report.largest_effect < LEAST_EFFECT {
        return Err(CanaryError::NoEffect {
            difference: report.largest_effect,
        });
    }
    Ok(report)
}

/// Whether a record can be run on a model with this many tokens in its vocabulary and positions.
///
/// # Errors
/// [`CanaryError::Unusable`].
pub fn check_record(
    canary: &Canary,
    vocabulary: usize,
    positions: usize,
) -> Result<(), CanaryError> {
    let unusable = |reason| Err(CanaryError::Unusable { reason });
    if canary.version != CANARY_VERSION {
        return unusable("unknown version");
    }
    if canary.probes.is_empty() || canary.probes.len() > MAX_PROBES {
        return unusable("it has no prompts or too many");
    }
    for probe in &canary.probes {
        if probe.tokens.is_empty() || probe.tokens.len() > MAX_PROBE_TOKENS.min(positions) {
            return unusable("a prompt is empty or too long");
        }
        let count = probe.logit_ids.len();
        if count == 0 || probe.base_logits.len() != count || probe.adapter_logits.len() != count {
            return unusable("its lists do not have one length");
        }
        if probe
            .tokens
            .iter()
            .chain(&probe.logit_ids)
            .any(|id| *id as usize >= vocabulary)
        {
            return unusable("a token is outside the vocabulary");
        }
        if probe
            .base_logits
            .iter()
            .chain(&probe.adapter_logits)
            .any(|logit| !logit.is_finite())
        {
            return unusable("a recorded logit is not a finite number");
        }
    }
    Ok(())
}

/// The largest difference, and whether every one is within the tolerance.
fn compare(ids: &[u32], recorded: &[f32], computed: &[f32], tolerance: Tolerance) -> (f32, bool) {
    let mut largest = 0.0f32;
    let mut within = true;
    for (id, recorded) in ids.iter().zip(recorded) {
        let computed = computed[*id as usize];
        let difference = (recorded - computed).abs();
        within &= difference
            <= tolerance.absolute + tolerance.relative * recorded.abs().max(computed.abs());
        largest = largest.max(difference);
    }
    (largest, within)
}

/// The largest error of the change that the adapter makes, and whether every one is within the tolerance.
fn compare_effect(
    recorded: &CanaryProbe,
    largest_effect: f32,
    base: &[f32],
    adapted: &[f32],
    tolerance: Tolerance,
) -> (f32, bool) {
    let changes = recorded.base_logits.iter().zip(&recorded.adapter_logits);
    let errors = recorded
        .logit_ids
        .iter()
        .zip(changes)
        .map(|(id, (before, after))| {
            let computed = adapted[*id as usize] - base[*id as usize];
            ((after - before) - computed).abs()
        });
    let largest = errors.fold(0.0, f32::max);
    let most = Tolerance::LEAST.max(tolerance.effect * largest_effect);
    (largest, largest <= most)
}

/// The largest difference that an adapter without a record makes to the logits after a few prompts.
///
/// # Errors
/// [`CanaryError::NoEffect`] when there is none, [`CanaryError::NotFinite`].
pub(crate) fn effect(
    prompts: &[Vec<u32>],
    adapter: &Arc<LoraAdapter>,
    executor: &mut Executor,
) -> Result<f32, CanaryError> {
    let mut largest = 0.0f32;
    for (probe, tokens) in prompts.iter().enumerate() {
        let base = executor.probe(tokens, None)?;
        let adapted = executor.probe(tokens, Some(Arc::clone(adapter)))?;
        if adapted.iter().any(|logit| !logit.is_finite()) {
            return Err(CanaryError::NotFinite { probe });
        }
        let changes = base.iter().zip(&adapted);
        let change = changes
            .map(|(base, adapted)| (base - adapted).abs())
            .fold(0.0, f32::max);
        largest = largest.max(change);
    }
    if largest < LEAST_EFFECT {
        return Err(CanaryError::NoEffect {
            difference: largest,
        });
    }
    Ok(largest)
}
