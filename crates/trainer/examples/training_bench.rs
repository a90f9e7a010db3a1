//! Our side of `benches/training.py`: makes a random model, trains on token ids, and runs the real training process.
//!
//! ```console
//! $ training_bench make DIR qwen2.5-0.5b         # a model folder with random weights
//! $ training_bench steps DIR [f32] [recompute] [cuda:0]  # reads one request a line, answers one JSON object a line
//! FILE BATCH STEPS                               # optimiser steps over the records of FILE, BATCH of them each
//! $ training_bench job DIR DATASET JOB STEPS     # lays out a job of the trainer in the folder JOB
//! $ training_bench train JOB                     # the training process itself; the job key comes in on stdin
//! ```
//!
//! A record of FILE is `{"input_ids": [...], "labels": [...]}` with -100 where nothing is learned, as for the peers.
//! Weights are random: speed and memory only.

use std::io::{BufRead, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use serde::Deserialize;
use serde_json::{Value, json};
use zerog_model::{
    BaseModel, Device, LoraConfig, ModelConfig, Placement, Precision, StepLoss, StepOptions,
    Trainable, TrainableModel, UpdateOptions,
};
use zerog_protocol::FileKey;
use zerog_protocol::training_params::TrainingParams;
use zerog_tokenization::{Example, SourcePosition};
use zerog_trainer::{JOB_VERSION, Job, JobDirectory, child_main, pack, pack_tokens, seal_file};

type Failure = Box<dyn std::error::Error>;

/// The job key of benchmark jobs; nothing in them is secret.
const KEY: [u8; 32] = [7; 32];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match arguments[..] {
        ["make", folder, shape] => make(Path::new(folder), shape),
        ["steps", folder, ref words @ ..] => {
            Settings::read(words).and_then(|settings| steps(Path::new(folder), settings))
        }
        ["job", folder, dataset, job, steps] => steps
            .parse()
            .map_err(Failure::from)
            .and_then(|steps| lay_out(Path::new(folder), Path::new(dataset), job, steps)),
        ["train", job] => return child_main(Path::new(job)),
        _ => Err(
            "usage: training_bench make DIR SHAPE | steps DIR [f32] [recompute] [cuda:0] | job DIR DATASET JOB STEPS | train JOB"
                .into(),
        ),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn make(folder: &Path, shape: &str) -> Result<(), Failure> {
    let (vocabulary, hidden, wide, layers, heads, groups) = match shape {
        "qwen2.5-0.5b" => (151_936, 896, 4864, 24, 14, 2),
        "small" => (2048, 192, 512, 6, 6, 2),
        _ => return Err(format!("unknown shape {shape}: qwen2.5-0.5b or small").into()),
    };
    let settings = json!({
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": vocabulary,
        "hidden_size": hidden, "intermediate_size": wide, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": groups, "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-6, "rope_theta": 1_000_000.0, "tie_word_embeddings": true, "hidden_act": "silu",
        "torch_dtype": "bfloat16", "bos_token_id": 0, "eos_token_id": 2,
    });
    let config = ModelConfig::from_json(settings.to_string().as_bytes())?;
    BaseModel::init_random(config, 1)?.save(folder)?;
    // Other programs read members that the engine leaves out.
    std::fs::write(folder.join("config.json"), settings.to_string())?;
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/tiny-qwen");
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(fixture.join(file), folder.join(file))?;
    }
    Ok(())
}

#[derive(Deserialize)]
struct Record {
    input_ids: Vec<u32>,
    labels: Vec<i64>,
}

impl Record {
    fn example(self) -> Example {
        Example {
            loss_mask: self.labels.iter().map(|label| *label >= 0).collect(),
            token_ids: self.input_ids,
            position: SourcePosition { line: 1, column: 1 },
            truncated_tokens: 0,
        }
    }
}

/// How steps are computed.
struct Settings {
    precision: Option<Precision>,
    recompute: bool,
    device: Device,
}

impl Settings {
    fn read(words: &[&str]) -> Result<Self, Failure> {
        let mut settings = Self {
            precision: None,
            recompute: false,
            device: Device::Cpu,
        };
        for word in words {
            match *word {
                "f32" => settings.precision = Some(Precision::F32),
                "recompute" => settings.recompute = true,
                device => settings.device = device.parse()?,
            }
        }
        Ok(settings)
    }
}

fn steps(folder: &Path, settings: Settings) -> Result<(), Failure> {
    let device = settings.device;
    let fastest = match device {
        Device::Cpu => Precision::fastest(),
        Device::Cuda(_) => Precision::Bf16,
    };
    let base = BaseModel::load(folder)?;
    let pack_tokens = pack_tokens(base.config(), LoraConfig::default().rank as u32);
    let placement = Placement::new(&base, device)?;
    let mut model = TrainableModel::lora(base, LoraConfig::default())?;
    model.place(&placement)?;
    model.set_precision(settings.precision.unwrap_or(fastest));
    model.set_recompute(settings.recompute);
    let mut batch_number = 0;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let [file, batch, steps] = words[..] else {
            return Err(format!("expected FILE BATCH STEPS, got {line:?}").into());
        };
        let records = std::fs::read_to_string(file)?
            .lines()
            .map(|line| Ok(serde_json::from_str::<Record>(line)?.example()))
            .collect::<Result<Vec<Example>, Failure>>()?;
        let (batch, steps): (usize, usize) = (batch.parse()?, steps.parse()?);
        let (start, mut total, mut tokens) = (Instant::now(), StepLoss::default(), 0);
        for chosen in records.chunks(batch).take(steps) {
            let mut loss = StepLoss::default();
            for pack in pack(chosen, pack_tokens) {
                tokens += pack.tokens.len();
                let options = StepOptions {
                    batch_number,
                    neftune_alpha: 0.0,
                };
                loss.add(model.forward_backward(&pack, &options)?);
                batch_number += 1;
            }
            let clipped = model.clipped_scale(loss.supervised_tokens, Some(1.0));
            model.apply_update(&UpdateOptions {
                learning_rate: 1e-4,
                weight_decay: 0.0,
                betas: (0.9, 0.999),
                epsilon: 1e-8,
                gradient_scale: clipped.scale,
            });
            model.zero_gradients();
            total.add(loss);
        }
        answer(&json!({
            "seconds": start.elapsed().as_secs_f64(), "tokens": tokens,
            "trained_tokens": total.supervised_tokens, "loss": total.mean(),
        }))?;
    }
    Ok(())
}

fn lay_out(folder: &Path, dataset: &Path, job: &str, steps: i64) -> Result<(), Failure> {
    std::fs::create_dir_all(job)?;
    let directory = JobDirectory::new(job);
    let mut dataset = std::fs::File::open(dataset)?;
    seal_file(
        &directory.dataset(),
        &mut dataset,
        &FileKey::from_bytes(KEY),
    )?;
    let job = Job {
        version: JOB_VERSION,
        task_id: "00000000-0000-4000-8000-000000000000".to_owned(),
        base_model: "random".to_owned(),
        base_model_dir: folder.to_owned(),
        stand_in: true,
        dataset_hash: "0x00".to_owned(),
        params: TrainingParams {
            max_steps: steps,
            per_device_train_batch_size: 4,
            num_train_epochs: 3,
            ..TrainingParams::default()
        },
        checkpoint_every_steps: None,
        memory_limit_bytes: None,
        device: Device::Cpu,
    };
    job.write(&directory)?;
    answer(&json!({"key": hex::encode(KEY)}))
}

fn answer(value: &Value) -> Result<(), Failure> {
    let mut out = std::io::stdout();
    writeln!(out, "{value}")?;
    Ok(out.flush()?)
}
