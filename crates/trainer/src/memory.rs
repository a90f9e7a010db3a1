//! How much memory a run takes, before it takes it: a refusal with a number is better than
//! being killed half-way.

use std::path::Path;

use zerog_model::ModelConfig;

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

/// Bytes of activations that the backward pass keeps for one token.
fn activation_bytes_per_token(config: &ModelConfig, rank: u64) -> u64 {
    let per_layer = 2 * config.hidden_size
        + 2 * config.query_width()
        + 2 * config.key_width()
        + 2 * config.intermediate_size;
    let shared = 6 * config.hidden_size + 4 * config.intermediate_size + 2 * config.query_width();
    4 * (config.layers as u64 * (per_layer as u64 + 7 * rank) + shared as u64)
}

/// The token budget of a pack for this model. It depends on the model's shape alone, so that
/// every machine computes the same sums.
pub(crate) fn pack_tokens(config: &ModelConfig, rank: u32) -> usize {
    let fitting = ACTIVATION_BUDGET / activation_bytes_per_token(config, u64::from(rank)).max(1);
    usize::try_from(fitting)
        .unwrap_or(PACK_TOKENS)
        .clamp(LEAST_PACK_TOKENS, PACK_TOKENS)
}

/// Refuses a run whose estimate exceeds `limit`, or what the system has left.
///
/// # Errors
/// [`TrainError::OutOfMemory`].
pub(crate) fn check(
    config: &ModelConfig,
    rank: u32,
    trained_parameters: usize,
    longest_pack: usize,
    limit: Option<u64>,
) -> Result<(), TrainError> {
    // The head works on chunks of rows; this is their upper bound in f32.
    let head = 4 * 128 * config.vocabulary_size as u64;
    let weights = 2 * config.parameter_count() as u64;
    let needed = FIXED_BYTES
        + weights
        + head
        + BYTES_PER_TRAINED_PARAMETER * trained_parameters as u64
        + activation_bytes_per_token(config, u64::from(rank)) * longest_pack as u64;
    // When neither is known there is nothing to compare with; the run is tried.
    let Some(available) = [limit, available_bytes()].into_iter().flatten().min() else {
        return Ok(());
    };
    if needed > available {
        return Err(TrainError::OutOfMemory {
            needed_mib: needed >> 20,
            available_mib: available >> 20,
        });
    }
    Ok(())
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

    fn qwen_0_5b() -> ModelConfig {
        config(
            serde_json::json!({"architectures": ["Qwen2ForCausalLM"], "hidden_size": 896, "intermediate_size": 4864,
            "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2, "vocab_size": 151_936,
            "tie_word_embeddings": true}),
        )
    }

    #[test]
    fn large_models_get_small_packs() {
        let tokens = pack_tokens(&qwen_0_5b(), 8);
        assert!(
            (LEAST_PACK_TOKENS..PACK_TOKENS).contains(&tokens),
            "{tokens}"
        );
        let small = config(
            serde_json::json!({"architectures": ["Qwen2ForCausalLM"], "hidden_size": 64, "intermediate_size": 128,
            "num_attention_heads": 2, "num_hidden_layers": 2, "vocab_size": 300, "tie_word_embeddings": true}),
        );
        assert_eq!(pack_tokens(&small, 8), PACK_TOKENS);
    }

    #[test]
    fn a_run_that_cannot_fit_is_refused_with_numbers() {
        let error = check(&qwen_0_5b(), 8, 4_400_000, 2048, Some(256 << 20)).unwrap_err();
        assert!(
            matches!(
                error,
                TrainError::OutOfMemory {
                    available_mib: 256,
                    ..
                }
            ),
            "{error}"
        );
        assert_eq!(error.exit_code(), crate::error::exit::OUT_OF_MEMORY);
    }
}
