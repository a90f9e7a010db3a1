//! The engine's side of `benches/serving.py`: makes random models and adapters, and measures on request.
//!
//! ```console
//! $ serving_bench make DIR qwen2.5-0.5b 16       # a model folder with 16 adapter folders of rank 16
//! $ serving_bench serve DIR [int8 | cuda:0]      # reads one request a line, answers one JSON object a line
//! prefill 512
//! decode STREAMS PROMPT TOKENS ADAPTERS
//! first-token memory|disk|base
//! memory                                        # bytes of matrices, and of adapters
//! ```
//!
//! Weights are random: speed and memory only. Requests alternate with those to other programs, so nothing is measured
//! but between two lines.

use std::io::{BufRead, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};
use zerog_inference::engine::{self, EngineConfig, EngineHandle};
use zerog_inference::{GenerateRequest, GenerationEvent, PackageSource, SamplingParams, Trust};
use zerog_model::{BaseModel, Device, ModelConfig, Placement};
use zerog_tokenization::Tokenizer;

type Failure = Box<dyn std::error::Error>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["make", folder, shape, adapters] => make(Path::new(folder), shape, adapters.parse()?),
        ["serve", folder] => serve(Path::new(folder), false, Device::Cpu).await,
        ["serve", folder, "int8"] => serve(Path::new(folder), true, Device::Cpu).await,
        ["serve", folder, device] => serve(Path::new(folder), false, device.parse()?).await,
        _ => Err("usage: serving_bench make DIR SHAPE ADAPTERS | serve DIR [int8 | cuda:0]".into()),
    }
}

fn shape(name: &str) -> Result<Value, Failure> {
    let (vocabulary, hidden, wide, layers, heads, groups) = match name {
        "qwen2.5-0.5b" => (151_936, 896, 4864, 24, 14, 2),
        "small" => (2048, 192, 512, 6, 6, 2),
        "tiny" => (2048, 32, 64, 1, 2, 1),
        _ => return Err(format!("unknown shape {name}: qwen2.5-0.5b, small or tiny").into()),
    };
    Ok(json!({
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": vocabulary,
        "hidden_size": hidden, "intermediate_size": wide, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": groups, "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6, "rope_theta": 1_000_000.0, "tie_word_embeddings": true, "hidden_act": "silu",
        "torch_dtype": "bfloat16", "bos_token_id": 0, "eos_token_id": 2,
    }))
}

fn make(folder: &Path, name: &str, adapters: usize) -> Result<(), Failure> {
    let settings = shape(name)?;
    let model =
        BaseModel::init_random(ModelConfig::from_json(settings.to_string().as_bytes())?, 1)?;
    model.save(folder)?;
    // Other programs read members that the engine leaves out.
    std::fs::write(folder.join("config.json"), settings.to_string())?;
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/tiny-qwen");
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(fixture.join(file), folder.join(file))?;
    }
    for number in 0..adapters {
        write_adapter(
            &folder.join(format!("adapter-{number}")),
            &settings,
            number as u32,
        )?;
    }
    Ok(())
}

/// A bf16 adapter of rank 16 on all linear layers.
fn write_adapter(folder: &Path, settings: &Value, seed: u32) -> Result<(), Failure> {
    const RANK: usize = 16;
    std::fs::create_dir_all(folder)?;
    let size = |name: &str| settings[name].as_u64().unwrap_or(0) as usize;
    let (hidden, wide) = (size("hidden_size"), size("intermediate_size"));
    let groups = hidden / size("num_attention_heads").max(1) * size("num_key_value_heads");
    let modules = [
        ("self_attn.q_proj", hidden, hidden),
        ("self_attn.k_proj", groups, hidden),
        ("self_attn.v_proj", groups, hidden),
        ("self_attn.o_proj", hidden, hidden),
        ("mlp.gate_proj", wide, hidden),
        ("mlp.up_proj", wide, hidden),
        ("mlp.down_proj", hidden, wide),
    ];
    let targets: Vec<&str> = modules
        .iter()
        .filter_map(|module| module.0.split('.').next_back())
        .collect();
    let config = json!({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "random", "r": RANK,
        "lora_alpha": 2 * RANK, "lora_dropout": 0.0, "bias": "none", "target_modules": targets,
    });
    std::fs::write(folder.join("adapter_config.json"), config.to_string())?;
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for layer in 0..size("num_hidden_layers") {
        for (path, outputs, inputs) in modules {
            for (part, shape) in [("lora_A", [RANK, inputs]), ("lora_B", [outputs, RANK])] {
                let start = data.len();
                for _ in 0..shape[0] * shape[1] {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    let value = ((state >> 8) as f32 / (1 << 24) as f32 - 0.5) * 0.05;
                    data.extend_from_slice(&((value.to_bits() >> 16) as u16).to_le_bytes());
                }
                let name = format!("base_model.model.model.layers.{layer}.{path}.{part}.weight");
                let place =
                    json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, data.len()]});
                header.insert(name, place);
            }
        }
    }
    let mut header = Value::from(header).to_string();
    while header.len() % 8 != 0 {
        header.push(' ');
    }
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(&data);
    Ok(std::fs::write(
        folder.join("adapter_model.safetensors"),
        bytes,
    )?)
}

async fn serve(folder: &Path, quantize: bool, device: Device) -> Result<(), Failure> {
    let mut model = BaseModel::load(folder)?;
    if quantize {
        model = model.quantized();
    }
    let tokenizer = Tokenizer::from_dir(folder)?;
    let sizes = EngineConfig {
        max_running: 32,
        max_cached_tokens: 32 * 1024,
        prefill_chunk_tokens: 512,
        reuse_prefixes: false,
        ..EngineConfig::default()
    };
    let placement = Placement::new(&model, device)?;
    let engine = engine::start_on(&placement, model, Arc::new(tokenizer), sizes)?;
    let mut adapters = 0;
    while folder.join(format!("adapter-{adapters}")).is_dir() {
        load(&engine, folder, adapters).await?;
        adapters += 1;
    }
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let answer = match words[..] {
            ["prefill", tokens] => prefill(&engine, tokens.parse()?, None).await?,
            ["decode", streams, prompt, tokens, adapters] => {
                let numbers = [
                    streams.parse()?,
                    prompt.parse()?,
                    tokens.parse()?,
                    adapters.parse()?,
                ];
                decode(&engine, numbers).await?
            }
            ["memory"] => json!({
                "matrix_bytes": engine.model().matrix_bytes(),
                "adapter_bytes": engine.list().iter().map(|adapter| adapter.bytes).sum::<usize>(),
            }),
            ["first-token", tier] => first_token(&engine, folder, tier).await?,
            _ => return Err(format!("unknown request {line:?}").into()),
        };
        let mut out = std::io::stdout();
        writeln!(out, "{answer}")?;
        out.flush()?;
    }
    Ok(())
}

async fn load(engine: &EngineHandle, folder: &Path, number: usize) -> Result<(), Failure> {
    let name = format!("adapter-{number}");
    let source = PackageSource::Folder(folder.join(&name));
    engine
        .load_package(&name, source, Trust::PassedBefore)
        .await?;
    Ok(())
}

/// Tokens that differ between streams, so that nothing is shared.
fn request(tokens: usize, stream: usize, adapter: Option<usize>, answer: usize) -> GenerateRequest {
    let prompt = (0..tokens)
        .map(|index| 3 + ((index * 7919 + stream * 104_729) % 2000) as u32)
        .collect();
    GenerateRequest {
        adapter: adapter.map(|number| format!("adapter-{number}")),
        sampling: SamplingParams {
            // Random weights must not end an answer.
            logit_bias: vec![(0, -1e9), (2, -1e9)],
            ..SamplingParams::default()
        },
        ..GenerateRequest::greedy(prompt, answer)
    }
}

async fn prefill(
    engine: &EngineHandle,
    tokens: usize,
    adapter: Option<usize>,
) -> Result<Value, Failure> {
    let start = Instant::now();
    engine
        .generate(request(tokens, 0, adapter, 1))?
        .collect()
        .await?;
    let seconds = start.elapsed().as_secs_f64();
    Ok(json!({"tokens_per_s": tokens as f64 / seconds, "seconds": seconds}))
}

/// Tokens a second of all streams together, from the moment at which every one has its first token.
async fn decode(engine: &EngineHandle, numbers: [usize; 4]) -> Result<Value, Failure> {
    let [streams, prompt, tokens, adapters] = numbers;
    let mut generations = Vec::new();
    for stream in 0..streams {
        let adapter = (adapters > 0).then_some(stream % adapters.max(1));
        generations.push(engine.generate(request(prompt, stream, adapter, tokens + 1))?);
    }
    let begun = |generations: &[zerog_inference::Generation]| {
        generations
            .iter()
            .all(|generation| generation.generated_tokens() > 0)
    };
    while !begun(&generations) {
        tokio::time::sleep(std::time::Duration::from_micros(200)).await;
    }
    let before: u64 = generations
        .iter()
        .map(|generation| generation.generated_tokens())
        .sum();
    let (start, cpu) = (Instant::now(), cpu_seconds()?);
    let mut after = 0;
    for mut generation in generations {
        while let Some(event) = generation.next().await {
            if let GenerationEvent::Failed(error) = event {
                return Err(error.into());
            }
        }
        after += generation.generated_tokens();
    }
    let (seconds, cpu) = (start.elapsed().as_secs_f64(), cpu_seconds()? - cpu);
    let tokens = (after - before) as f64;
    Ok(
        json!({"tokens_per_s": tokens / seconds, "tokens_per_cpu_s": tokens / cpu, "seconds": seconds}),
    )
}

/// Processor time of this process, in steps of a hundredth of a second; for machines that others use too.
fn cpu_seconds() -> Result<f64, Failure> {
    let text = std::fs::read_to_string("/proc/self/stat")?;
    let fields = text.rsplit(") ").next().unwrap_or_default();
    let ticks: Vec<u64> = fields
        .split(' ')
        .skip(11)
        .take(2)
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    Ok(ticks.iter().sum::<u64>() as f64 / 100.0)
}

/// Milliseconds to the first token of a short prompt: base model, adapter in memory, adapter on disk.
async fn first_token(engine: &EngineHandle, folder: &Path, tier: &str) -> Result<Value, Failure> {
    if tier == "disk" {
        engine.unload_adapter("adapter-0");
    }
    let start = Instant::now();
    if tier == "disk" {
        load(engine, folder, 0).await?;
    }
    let adapter = (tier != "base").then_some(0);
    let mut generation = engine.generate(request(16, 0, adapter, 1))?;
    generation.next().await;
    Ok(json!({"ms": start.elapsed().as_secs_f64() * 1e3}))
}
