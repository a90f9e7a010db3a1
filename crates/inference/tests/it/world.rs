//! A model small enough to run thousands of steps in a test, and adapters that visibly change it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, to_bytes};
use axum::http::{Request, Response, header};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use tower::ServiceExt;
use zerog_inference::engine::{self, EngineConfig, EngineHandle};
use zerog_inference::{
    CanaryCheck, Completion, DONE, GenerateRequest, LoadError, LoadReport, SamplingParams,
};
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
    let (json, config, template) = tokenizer_files();
    Tokenizer::from_parts(&json, Some(&config), Some(&template), None).unwrap()
}

/// `tokenizer.json`, `tokenizer_config.json` and the chat template of [`tokenizer`].
pub(crate) fn tokenizer_files() -> (Vec<u8>, Vec<u8>, String) {
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
    let template = "{%- if tools %}{{- '<tool_call>' + (tools | tojson) }}{%- endif %}{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content }}{%- for call in message.tool_calls %}{{- call.function.arguments | tojson }}{%- endfor %}{{- '<|im_end|>\\n' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- if enable_thinking is defined %}{{- '<think>' }}{%- endif %}{%- endif %}";
    let config = json!({"eos_token": "<|im_end|>"});
    (
        serde_json::to_vec(&json).unwrap(),
        serde_json::to_vec(&config).unwrap(),
        template.to_owned(),
    )
}

/// Name, shape and numbers of a tensor.
pub(crate) type NamedTensor = (String, Vec<usize>, Vec<f32>);

/// Settings and tensors of an adapter on queries, values and the feed-forward block, its numbers made from `seed`.
pub(crate) fn adapter_tensors(seed: u32, alpha: f32) -> (Vec<u8>, Vec<NamedTensor>) {
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
    let mut tensors = Vec::new();
    for layer in 0..LAYERS {
        for (path, outputs, inputs) in [
            ("self_attn.q_proj", HIDDEN, HIDDEN),
            ("self_attn.v_proj", 16, HIDDEN),
            ("mlp.down_proj", HIDDEN, 64),
        ] {
            for (part, shape) in [("lora_A", [rank, inputs]), ("lora_B", [outputs, rank])] {
                let name = format!("base_model.model.model.layers.{layer}.{path}.{part}.weight");
                let values = (0..shape[0] * shape[1]).map(|_| next()).collect();
                tensors.push((name, shape.to_vec(), values));
            }
        }
    }
    (settings.to_string().into_bytes(), tensors)
}

/// The two PEFT files of [`adapter_tensors`].
pub(crate) fn adapter_files(seed: u32, alpha: f32) -> (Vec<u8>, Vec<u8>) {
    let (settings, tensors) = adapter_tensors(seed, alpha);
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|tensor| {
            tensor
                .2
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect()
        })
        .collect();
    let views: Vec<(&str, TensorView<'_>)> = tensors
        .iter()
        .zip(&bytes)
        .map(|((name, shape, _), bytes)| {
            (
                name.as_str(),
                TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap(),
            )
        })
        .collect();
    (settings, safetensors::serialize(views, None).unwrap())
}

/// Loads the two files of an adapter.
pub(crate) async fn load_files(
    engine: &EngineHandle,
    id: &str,
    files: (Vec<u8>, Vec<u8>),
    check: CanaryCheck,
) -> Result<LoadReport, LoadError> {
    let weights = LoraAdapter::from_bytes(&files.0, &files.1, engine.model().config());
    let weights = weights.map_err(|error| LoadError::Files {
        reason: error.to_string(),
    })?;
    engine.load_adapter(id, Arc::new(weights), check).await
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

pub(crate) async fn post(router: &axum::Router, path: &str, body: &Value) -> Response<Body> {
    let request = Request::post(path)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Body::from(body.to_string()))
        .unwrap();
    router.clone().oneshot(request).await.unwrap()
}

pub(crate) async fn text(response: Response<Body>) -> String {
    let bytes = to_bytes(response.into_body(), 1 << 20).await.unwrap();
    String::from_utf8(bytes.to_vec()).unwrap()
}

pub(crate) async fn value(response: Response<Body>) -> Value {
    serde_json::from_str(&text(response).await).unwrap()
}

/// The chunks of a stream that ended with `[DONE]`.
pub(crate) fn chunks(stream: &str) -> Vec<Value> {
    assert!(stream.ends_with(DONE), "{stream}");
    stream
        .strip_suffix(DONE)
        .unwrap()
        .split_terminator("\n\n")
        .map(|event| serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap())
        .collect()
}

pub(crate) fn chat(model: &str, text: &str, more: &Value) -> Value {
    let mut body = json!({"model": model, "messages": [{"role": "user", "content": text}]});
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}
