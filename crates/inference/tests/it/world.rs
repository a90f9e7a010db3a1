//! A model small enough to run thousands of steps in a test, and adapters that visibly change it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use zerog_inference::engine::{self, EngineConfig, EngineHandle};
use zerog_inference::{CanaryCheck, Completion, GenerateRequest, SamplingParams};
use zerog_model::{BaseModel, LoraAdapter, ModelConfig};
use zerog_tokenization::Tokenizer;

const HIDDEN: usize = 32;
const LAYERS: usize = 2;
const POSITIONS: usize = 4096;
/// The token that ends an answer.
pub(crate) const END_OF_TURN: u32 = 257;

pub(crate) fn config() -> EngineConfig {
    EngineConfig {
        max_running: 4,
        max_waiting: 32,
        prefill_chunk_tokens: 7,
        ..EngineConfig::default()
    }
}

pub(crate) fn model_with_seed(seed: u64) -> Arc<BaseModel> {
    let config = json!({
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": 258, "hidden_size": HIDDEN,
        "intermediate_size": 64, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": POSITIONS, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
        "tie_word_embeddings": true, "hidden_act": "silu", "eos_token_id": END_OF_TURN,
    });
    BaseModel::init_random(
        ModelConfig::from_json(config.to_string().as_bytes()).unwrap(),
        seed,
    )
    .unwrap()
}

pub(crate) fn start(config: EngineConfig) -> EngineHandle {
    engine::start(model_with_seed(5), Arc::new(tokenizer()), config).unwrap()
}

/// One token a byte, markers of turns, and a chat template that prints them.
pub(crate) fn tokenizer() -> Tokenizer {
    let mut vocabulary = serde_json::Map::new();
    let mut replacement = 256u32;
    for byte in 0..=255u8 {
        let printable = matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
        let character = if printable {
            char::from(byte)
        } else {
            replacement += 1;
            char::from_u32(replacement - 1).unwrap()
        };
        vocabulary.insert(character.to_string(), u32::from(byte).into());
    }
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [special(256, "<|im_start|>"), special(END_OF_TURN, "<|im_end|>")],
        "pre_tokenizer": byte_level, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocabulary, "merges": []},
    });
    let template = "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}";
    let config = json!({"eos_token": "<|im_end|>"});
    Tokenizer::from_parts(
        &serde_json::to_vec(&json).unwrap(),
        Some(&serde_json::to_vec(&config).unwrap()),
        Some(template),
        None,
    )
    .unwrap()
}

/// The two PEFT files of an adapter on queries and values, its numbers made from `seed`.
pub(crate) fn adapter_files(seed: u32, alpha: f32) -> (Vec<u8>, Vec<u8>) {
    let rank = 4;
    let settings = json!({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "tiny", "r": rank,
        "lora_alpha": alpha, "lora_dropout": 0.0, "bias": "none", "target_modules": ["q_proj", "v_proj", "down_proj"],
    });
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    let mut tensors: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
    for layer in 0..LAYERS {
        for (path, outputs, inputs) in [
            ("self_attn.q_proj", HIDDEN, HIDDEN),
            ("self_attn.v_proj", 16, HIDDEN),
            ("mlp.down_proj", HIDDEN, 64),
        ] {
            for (part, shape) in [("lora_A", [rank, inputs]), ("lora_B", [outputs, rank])] {
                let name = format!("base_model.model.model.layers.{layer}.{path}.{part}.weight");
                let bytes = (0..shape[0] * shape[1])
                    .flat_map(|_| next().to_le_bytes())
                    .collect();
                tensors.push((name, shape.to_vec(), bytes));
            }
        }
    }
    let views: Vec<(&str, TensorView<'_>)> = tensors
        .iter()
        .map(|(name, shape, bytes)| {
            (
                name.as_str(),
                TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap(),
            )
        })
        .collect();
    (
        settings.to_string().into_bytes(),
        safetensors::serialize(views, None).unwrap(),
    )
}

pub(crate) fn adapter(engine: &EngineHandle, seed: u32) -> Arc<LoraAdapter> {
    let (settings, weights) = adapter_files(seed, 16.0);
    Arc::new(LoraAdapter::from_bytes(&settings, &weights, engine.model().config()).unwrap())
}

pub(crate) async fn load(engine: &EngineHandle, id: &str, seed: u32) {
    engine
        .load_adapter(id, adapter(engine, seed), CanaryCheck::PassedBefore)
        .await
        .unwrap();
}

/// A greedy request that never meets the end-of-turn token.
pub(crate) fn endless(prompt: &str, adapter: Option<&str>, max_tokens: usize) -> GenerateRequest {
    let sampling = SamplingParams {
        logit_bias: vec![(END_OF_TURN, -1e9), (256, -1e9)],
        ..SamplingParams::default()
    };
    GenerateRequest {
        adapter: adapter.map(str::to_owned),
        sampling,
        ..GenerateRequest::greedy(prompt.bytes().map(u32::from).collect(), max_tokens)
    }
}

pub(crate) async fn answer(engine: &EngineHandle, request: GenerateRequest) -> Completion {
    engine.generate(request).unwrap().collect().await.unwrap()
}

/// Waits until the engine is in the wanted state.
pub(crate) async fn until(engine: &EngineHandle, wanted: impl Fn(&EngineHandle) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !wanted(engine) {
        assert!(
            Instant::now() < deadline,
            "the engine never came to the wanted state: {:?}",
            engine.stats()
        );
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

pub(crate) fn chat(model: &str, text: &str, more: &Value) -> Value {
    let mut body = json!({"model": model, "messages": [{"role": "user", "content": text}]});
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}
