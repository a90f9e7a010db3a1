//! How much memory a run takes, before it takes it: a refusal with a number is better than
//! being killed half-way.

use std::path::Path;

use zerog_model::{ClassifierConfig, ModelConfig};

use crate::batches::PACK_TOKENS;
use crate::error::TrainError;

/// Most bytes of stored activations; larger models get smaller packs.
const ACTIVATION_BUDGET: u64 = 1 << 30;
/// Packs do not get smaller than this, because short products waste the machine.
const LEAST_PACK_TOKENS: usize = 256;
/// Program, tokenizer, examples and allocator slack.
const FIXED_BYTES: u64 = 128 << 20;
/// f32 value, gradient and two moments of every trained parameter, and the copies that a
/// checkpoint and the archive make of them.
const BYTES_PER_TRAINED_PARAMETER: u64 = 4 * 4 + 3 * 4 + 2 * 4;
/// Shortest sequence that the parameters allow.
const LEAST_SEQUENCE: u64 = 16;

/// What of a model's shape decides the memory of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Bytes of the frozen weights.
    weights: u64,
    /// Bytes that the head works on at once.
    head: u64,
    /// Bytes of activations that the backward pass keeps for one token.
    per_token: u64,
    /// The same where it computes layers a second time from their inputs, of models that can.
    recomputed_per_token: Option<u64>,
    /// Whether it does.
    recomputes: bool,
    /// Layers, and the bytes that each adds for one token where the lengths of its weights' rows are trained (DoRA).
    products: (u64, u64),
}

impl Shape {
    pub(crate) fn of_decoder(config: &ModelConfig, rank: u32) -> Self {
        let per_layer = 2 * config.hidden_size
            + 2 * config.query_width()
            + 2 * config.key_width()
            + 2 * config.intermediate_size;
        let shared =
            6 * config.hidden_size + 4 * config.intermediate_size + 2 * config.query_width();
        let per_layer = per_layer as u64 + 7 * u64::from(rank);
        Self {
            weights: 2 * config.parameter_count() as u64,
            // The head works on chunks of rows; this is their upper bound in f32.
            head: 4 * 128 * config.vocabulary_size as u64,
            per_token: 4 * (config.layers as u64 * per_layer + shared as u64),
            recomputed_per_token: Some(
                4 * ((config.layers * config.hidden_size + shared) as u64 + per_layer),
            ),
            recomputes: false,
            products: (0, 0),
        }
    }

    pub(crate) fn of_encoder(config: &ClassifierConfig, rank: u32) -> Self {
        let per_layer = 7 * config.hidden_size + config.intermediate_size;
        let shared = 10 * config.hidden_size + 4 * config.intermediate_size;
        let per_layer = per_layer as u64 + 6 * u64::from(rank);
        Self {
            // The published weights are in f32.
            weights: 4 * config.parameter_count() as u64,
            head: 0,
            per_token: 4 * (config.layers as u64 * per_layer + shared as u64),
            recomputed_per_token: None,
            recomputes: false,
            products: (0, 0),
        }
    }

    /// The same with trained lengths, whose gradient needs the outputs of the linear layers.
    pub(crate) fn with_lengths_of_decoder(self, config: &ModelConfig) -> Self {
        let attention = config.query_width() + 2 * config.key_width() + config.hidden_size;
        let outputs = attention + 2 * config.intermediate_size + config.hidden_size;
        self.with_products(config.layers, outputs)
    }

    /// As [`Shape::with_lengths_of_decoder`].
    pub(crate) fn with_lengths_of_encoder(self, config: &ClassifierConfig) -> Self {
        let outputs = 5 * config.hidden_size + config.intermediate_size;
        self.with_products(config.layers, outputs)
    }

    fn with_products(self, layers: usize, outputs: usize) -> Self {
        Self {
            products: (layers as u64, 4 * outputs as u64),
            ..self
        }
    }

    /// The token budget of a pack for this model. It depends on the model's shape alone, so that
    /// every machine computes the same sums.
    pub(crate) fn pack_tokens(&self) -> usize {
        let fitting = ACTIVATION_BUDGET / self.per_token.max(1);
        usize::try_from(fitting)
            .unwrap_or(PACK_TOKENS)
            .clamp(LEAST_PACK_TOKENS, PACK_TOKENS)
    }

    /// The same model when layers are computed a second time; `None` if it cannot.
    fn recomputing(self) -> Option<Self> {
        // With a single layer nothing is saved.
        self.recomputed_per_token
            .filter(|bytes| *bytes < self.per_token)?;
        Some(Self {
            recomputes: true,
            ..self
        })
    }

    /// Bytes that are kept for one token.
    fn held_per_token(&self) -> u64 {
        let (layers, product) = self.products;
        match self.recomputed_per_token {
            Some(bytes) if self.recomputes => bytes + product,
            _ => self.per_token + layers * product,
        }
    }

    fn bytes(&self, trained_parameters: u64, pack: u64) -> u64 {
        FIXED_BYTES
            + self.weights
            + self.head
            + BYTES_PER_TRAINED_PARAMETER * trained_parameters
            + self.held_per_token() * pack
    }
}

/// Most tokens of one forward pass of a run on a decoder of this shape, with adapters of `rank`.
pub fn pack_tokens(config: &ModelConfig, rank: u32) -> usize {
    Shape::of_decoder(config, rank).pack_tokens()
}

/// What the parameters and the dataset add to the shape.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    /// Numbers that are trained.
    pub(crate) trained_parameters: u64,
    /// Tokens of the longest example; of both answers where there are two.
    pub(crate) longest: u64,
    /// Sequences of one example: 2 where there are two answers.
    pub(crate) sequences: u64,
    /// Examples of one forward pass, as asked for.
    pub(crate) batch: u64,
    /// Examples of one optimiser step.
    pub(crate) per_step: u64,
}

impl Load {
    /// Tokens of the largest pack when a step has `examples` examples.
    fn pack(&self, shape: &Shape, examples: u64) -> u64 {
        (self.longest * examples)
            .min(shape.pack_tokens() as u64)
            .max(self.longest)
    }
}

/// The memory that a run is expected to take, in bytes.
fn estimate(shape: &Shape, load: &Load) -> u64 {
    shape.bytes(load.trained_parameters, load.pack(shape, load.per_step))
}

/// How a run fits into memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Fit {
    /// Bytes that it is expected to take at most.
    pub(crate) bytes: u64,
    /// Whether it fits only when layers are computed a second time.
    pub(crate) recomputes: bool,
}

/// How a run fits into `limit` and what the system has left.
///
/// # Errors
/// [`TrainError::OutOfMemory`] with the batch size or the length that fits, if it does not.
pub(crate) fn check(shape: &Shape, load: &Load, limit: Option<u64>) -> Result<Fit, TrainError> {
    // When neither is known there is nothing to compare with; the run is tried.
    let available = [limit, available_bytes()].into_iter().flatten().min();
    let mut smallest = None;
    for shape in [Some(*shape), shape.recomputing()].into_iter().flatten() {
        let bytes = estimate(&shape, load);
        if available.is_none_or(|available| bytes <= available) {
            return Ok(Fit {
                bytes,
                recomputes: shape.recomputes,
            });
        }
        smallest = Some((shape, bytes));
    }
    let (shape, needed) = smallest.unwrap_or((*shape, 0));
    let available = available.unwrap_or(0);
    Err(TrainError::OutOfMemory {
        needed_mib: needed >> 20,
        available_mib: available >> 20,
        remedy: remedy(&shape, load, available),
    })
}

/// Refuses a run whose passes do not fit into the `free` bytes that a device has beside the weights.
///
/// # Errors
/// [`TrainError::OutOfMemory`] with the batch size or the length that fits.
pub(crate) fn check_device(shape: &Shape, load: &Load, free: u64) -> Result<(), TrainError> {
    // The weights are there already; of what is trained, values and gradients are copied. Logits come in larger chunks
    // than the estimate counts, with a rounded copy beside them.
    let there = FIXED_BYTES + shape.weights + BYTES_PER_TRAINED_PARAMETER * load.trained_parameters;
    let needed = estimate(shape, load) - there + 2 * 4 * load.trained_parameters + 2 * shape.head;
    if needed > free {
        return Err(TrainError::OutOfMemory {
            needed_mib: needed >> 20,
            available_mib: free >> 20,
            remedy: format!("on the device, {}", remedy(shape, load, free + there)),
        });
    }
    Ok(())
}

/// Which change makes the run fit, the smallest loss first.
fn remedy(shape: &Shape, load: &Load, available: u64) -> String {
    let fixed = shape.bytes(load.trained_parameters, 0);
    let tokens = available.saturating_sub(fixed) / shape.held_per_token().max(1);
    let accumulation = load.per_step / load.batch.max(1);
    // Accumulated examples are packed together too, so the whole step has to fit.
    let examples = tokens / load.longest.max(1);
    if examples >= load.per_step || load.longest == 0 {
        return "free memory or use a larger machine".into();
    }
    if examples >= 1 {
        let batch = (examples / accumulation.max(1)).max(1);
        let accumulation = match examples / batch {
            fitting if fitting < accumulation => {
                format!(" and gradient_accumulation_steps {fitting}")
            }
            _ => String::new(),
        };
        return format!("per_device_train_batch_size {batch}{accumulation} fits");
    }
    let length = tokens / load.sequences.max(1);
    if length >= LEAST_SEQUENCE {
        return format!("per_device_train_batch_size 1 with max_seq_length {length} fits");
    }
    "lower lora_rank or use a smaller base model: the weights alone leave no room".into()
}

/// What the system and the control group of this process have left.
fn available_bytes() -> Option<u64> {
    let system = std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| {
            let line = text
                .lines()
                .find(|line| line.starts_with("MemAvailable:"))?;
            let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
            Some(kib * 1024)
        });
    let number = |name: &str| -> Option<u64> {
        let path = Path::new("/sys/fs/cgroup").join(name);
        std::fs::read_to_string(path).ok()?.trim().parse().ok()
    };
    let group = number("memory.max")
        .zip(number("memory.current"))
        .map(|(limit, used)| limit.saturating_sub(used));
    [system, group].into_iter().flatten().min()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: serde_json::Value) -> ModelConfig {
        ModelConfig::from_json(json.to_string().as_bytes()).unwrap()
    }

    fn qwen_0_5b() -> Shape {
        let config = config(
            serde_json::json!({"architectures": ["Qwen2ForCausalLM"], "hidden_size": 896, "intermediate_size": 4864,
            "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2, "vocab_size": 151_936,
            "tie_word_embeddings": true}),
        );
        Shape::of_decoder(&config, 8)
    }

    fn distilbert() -> Shape {
        let config = ClassifierConfig {
            vocabulary_size: 30_522,
            hidden_size: 768,
            intermediate_size: 3072,
            layers: 6,
            heads: 12,
            maximum_positions: 512,
            labels: Vec::new(),
        };
        Shape::of_encoder(&config, 8)
    }

    fn load() -> Load {
        Load {
            trained_parameters: 4_400_000,
            longest: 256,
            sequences: 1,
            batch: 2,
            per_step: 4,
        }
    }

    #[test]
    fn large_models_get_small_packs() {
        let tokens = qwen_0_5b().pack_tokens();
        assert!(
            (LEAST_PACK_TOKENS..PACK_TOKENS).contains(&tokens),
            "{tokens}"
        );
        let small = config(
            serde_json::json!({"architectures": ["Qwen2ForCausalLM"], "hidden_size": 64, "intermediate_size": 128,
            "num_attention_heads": 2, "num_hidden_layers": 2, "vocab_size": 300, "tie_word_embeddings": true}),
        );
        assert_eq!(Shape::of_decoder(&small, 8).pack_tokens(), PACK_TOKENS);
    }

    #[test]
    fn a_device_needs_room_for_the_passes_beside_the_weights() {
        let load = load();
        for shape in [qwen_0_5b(), distilbert()] {
            let passes = estimate(&shape, &load) - estimate_of_rest(&shape, &load);
            check_device(&shape, &load, passes + 2 * shape.head + (40 << 20)).unwrap();
            let error = check_device(&shape, &load, passes / 2).unwrap_err();
            let text = error.to_string();
            assert!(
                text.contains("on the device, per_device_train_batch_size 1"),
                "{text}"
            );
            assert_eq!(error.exit_code(), crate::error::exit::OUT_OF_MEMORY);
        }
    }

    /// What a run takes beside its passes.
    fn estimate_of_rest(shape: &Shape, load: &Load) -> u64 {
        let none = Load {
            longest: 0,
            ..*load
        };
        estimate(shape, &none) - shape.head
    }

    /// The remedy is true: the run that it names is accepted with the same memory.
    #[test]
    fn a_run_that_cannot_fit_is_refused_with_what_fits() {
        let (shape, load) = (qwen_0_5b(), load());
        let of = |batch, per_step, longest| Load {
            batch,
            per_step,
            longest,
            ..load
        };
        let remedy_at = |limit: u64| match check(&shape, &load, Some(limit)).unwrap_err() {
            error @ TrainError::OutOfMemory { .. } => {
                assert_eq!(error.exit_code(), crate::error::exit::OUT_OF_MEMORY);
                error.to_string()
            }
            other => panic!("{other}"),
        };
        let recomputing = shape.recomputing().unwrap();
        let fits = |load: Load| estimate(&recomputing, &load);
        let fit = |limit| check(&shape, &load, Some(limit)).unwrap();
        assert!(!fit(estimate(&shape, &load)).recomputes);
        assert!(fit(estimate(&shape, &load) - 1).recomputes);
        let smallest = Fit {
            bytes: fits(load),
            recomputes: true,
        };
        assert_eq!(fit(fits(load)), smallest);
        assert!(smallest.bytes < estimate(&shape, &load) * 3 / 4);

        let text = remedy_at(fits(of(1, 2, 256)));
        assert!(
            text.contains("per_device_train_batch_size 1 fits"),
            "{text}"
        );
        let text = remedy_at(fits(of(1, 1, 256)));
        assert!(
            text.contains("per_device_train_batch_size 1 and gradient_accumulation_steps 1 fits"),
            "{text}"
        );
        let text = remedy_at(fits(of(1, 1, 100)));
        assert!(
            text.contains("per_device_train_batch_size 1 with max_seq_length 100 fits"),
            "{text}"
        );
        assert!(remedy_at(256 << 20).contains("weights alone"));
    }
}
