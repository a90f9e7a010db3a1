//! The predefined base models: names, hashes and fee constants that are compiled into the published clients.

use alloy_primitives::{B256, U256, b256};
use serde::{Deserialize, Serialize};

/// What a model learns from, under PEFT's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ModelKind {
    /// A decoder that continues text.
    #[serde(rename = "CAUSAL_LM")]
    CausalLanguage,
    /// An encoder with a classification head.
    #[serde(rename = "SEQ_CLS")]
    SequenceClassification,
}

/// One predefined base model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PredefinedModel {
    /// The name that users type.
    pub name: &'static str,
    /// The hash that the task carries.
    pub hash: B256,
    /// The tokenizer: a model hub name, or a storage root for `mock-model`.
    pub tokenizer: &'static str,
    /// One or two sentences for `list-models`.
    pub description: &'static str,
    /// Chains on which clients list the model.
    pub chain_ids: &'static [u64],
    /// Multiplier of the token price.
    pub price_coefficient: u64,
    /// Flat storage fee in neuron.
    pub storage_fee_neuron: u64,
    /// What the model learns from.
    pub kind: ModelKind,
}

/// The small local model of chain 31337.
pub const MOCK_MODEL: &str = "mock-model";
/// The default base model.
pub const QWEN_0_5B: &str = "Qwen2.5-0.5B-Instruct";

/// All predefined models, the ones that clients list first.
pub const PREDEFINED: &[PredefinedModel] = &[
    PredefinedModel {
        name: QWEN_0_5B,
        hash: b256!("b4f76a886b8655c92bb021922d60b5e4d9271a5c9da98b6cb10937a06c2c75a7"),
        tokenizer: "Qwen/Qwen2.5-0.5B-Instruct",
        description: "A compact instruction-tuned Qwen2.5 language model, a good first choice for LoRA fine-tuning.",
        chain_ids: &[16661, 16602],
        price_coefficient: 1,
        storage_fee_neuron: 10_000_000_000_000_000,
        kind: ModelKind::CausalLanguage,
    },
    PredefinedModel {
        name: "Qwen3-32B",
        hash: b256!("2e6f9620c35bdcb2b753cc7aa34e78077a8ed133e36fa36008fd6bdfd29af3a5"),
        tokenizer: "Qwen/Qwen3-32B",
        description: "A large Qwen3 language model with and without thinking mode, for LoRA fine-tuning on big GPUs.",
        chain_ids: &[16661],
        price_coefficient: 8,
        storage_fee_neuron: 90_000_000_000_000_000,
        kind: ModelKind::CausalLanguage,
    },
    PredefinedModel {
        name: MOCK_MODEL,
        hash: b256!("cb42b5ca9e998c82dd239ef2d20d22a4ae16b3dc0ce0a855c93b52c7c2bab6dc"),
        tokenizer: "0x382842561e59d71f90c1861041989428dd2c1f664e65a56ea21f3ade216b2046",
        description: "The small base model of the local development network: it talks a little and trains in seconds.",
        chain_ids: &[31337],
        price_coefficient: 1,
        storage_fee_neuron: 0,
        kind: ModelKind::CausalLanguage,
    },
    PredefinedModel {
        name: "distilbert-base-uncased",
        hash: b256!("7f2244b25cd2219dfd9d14c052982ecce409356e0f08e839b79796e270d110a7"),
        tokenizer: "distilbert/distilbert-base-uncased",
        description: "A small English encoder for text classification.",
        chain_ids: &[],
        price_coefficient: 1,
        storage_fee_neuron: 10_000_000_000_000_000,
        kind: ModelKind::SequenceClassification,
    },
];

impl PredefinedModel {
    /// The flat storage fee in neuron as a 256-bit amount.
    pub fn storage_fee(&self) -> U256 {
        U256::from(self.storage_fee_neuron)
    }

    /// Whether clients on the given chain list this model.
    pub fn is_listed_on(&self, chain_id: u64) -> bool {
        self.chain_ids.contains(&chain_id)
    }
}

/// Finds a predefined model by its name (exact; a hub prefix such as `Qwen/` is accepted) or by its hash in any case.
pub fn find(name_or_hash: &str) -> Option<&'static PredefinedModel> {
    let wanted_hash = name_or_hash.parse::<B256>().ok();
    let short_name = name_or_hash.rsplit('/').next().unwrap_or(name_or_hash);
    PREDEFINED.iter().find(|model| match wanted_hash {
        Some(hash) => model.hash == hash,
        None => model.name == name_or_hash || model.name == short_name,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_are_found_by_name_and_by_hash() {
        assert_eq!(find("Qwen/Qwen2.5-0.5B-Instruct").unwrap().name, QWEN_0_5B);
        let hash =
            "0xCB42B5CA9E998C82DD239EF2D20D22A4AE16B3DC0CE0A855C93B52C7C2BAB6DC".to_lowercase();
        assert_eq!(find(&hash).unwrap().name, MOCK_MODEL);
        assert!(find("gpt-5").is_none());
    }
}
