//! Runs that must stop: a loss that is no number, a loss of exactly zero, nothing to train. Each is provoked with a base
//! model or a dataset that really does it.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use serde_json::{Map, Value, json};
use zerog_model::BaseModel;
use zerog_protocol::FileKey;
use zerog_protocol::training_params::TrainingParams;
use zerog_tokenization::{ChatMessage, Tokenizer};
use zerog_trainer::{
    JOB_VERSION, Job, JobDirectory, Progress, TrainError, exit, greedy_answer, run, seal_file,
};

use crate::fixture;

fn key() -> FileKey {
    FileKey::from_bytes([42; 32])
}

fn params() -> TrainingParams {
    TrainingParams {
        num_train_epochs: 1,
        per_device_train_batch_size: 1,
        learning_rate: 1e-4,
        lora_dropout: 0.0,
        max_seq_length: 64,
        seed: 7,
        ..TrainingParams::default()
    }
}

fn prepare(directory: &Path, base_model: &Path, dataset: &str) -> JobDirectory {
    std::fs::create_dir_all(directory).unwrap();
    let directory = JobDirectory::new(directory);
    seal_file(&directory.dataset(), &mut dataset.as_bytes(), &key()).unwrap();
    Job {
        version: JOB_VERSION,
        task_id: "6b607314-88ba-4a39-9a43-0d5c5a1a7c11".into(),
        base_model: "mock-model".into(),
        base_model_dir: base_model.to_owned(),
        stand_in: true,
        dataset_hash: "0x11".into(),
        params: params(),
        checkpoint_every_steps: Some(1),
        memory_limit_bytes: None,
        device: zerog_trainer::Device::Cpu,
    }
    .write(&directory)
    .unwrap();
    directory
}

fn run_job(directory: &JobDirectory) -> (TrainError, Vec<Progress>) {
    let mut records = Vec::new();
    let error = run(directory, &key(), &AtomicBool::new(false), &mut |record| {
        records.push(record.clone());
        Ok(())
    })
    .unwrap_err();
    assert!(!directory.adapter().exists());
    (error, records)
}

fn steps(records: &[Progress]) -> Vec<u64> {
    records
        .iter()
        .filter_map(|record| match record {
            Progress::Step { step, .. } => Some(*step),
            _ => None,
        })
        .collect()
}

/// The tensors of a safetensors file: its header, and the bytes behind it.
struct Tensors {
    header: Map<String, Value>,
    data: Vec<u8>,
}

impl Tensors {
    fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap();
        let (length, rest) = bytes.split_first_chunk::<8>().unwrap();
        let length = usize::try_from(u64::from_le_bytes(*length)).unwrap();
        Self {
            header: serde_json::from_slice(&rest[..length]).unwrap(),
            data: rest[length..].to_vec(),
        }
    }

    fn write(&self, path: &Path) {
        let mut header = serde_json::to_vec(&self.header).unwrap();
        // The data begins at a multiple of eight.
        header.resize(header.len().next_multiple_of(8), b' ');
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header);
        bytes.extend(&self.data);
        std::fs::write(path, bytes).unwrap();
    }

    /// The bfloat16 numbers of a tensor, two bytes each.
    fn tensor(&mut self, name: &str) -> &mut [u8] {
        let offsets = &self.header[name]["data_offsets"];
        let at = |index: usize| usize::try_from(offsets[index].as_u64().unwrap()).unwrap();
        let (from, to) = (at(0), at(1));
        &mut self.data[from..to]
    }

    /// Adds a copy of a tensor under another name.
    fn copy(&mut self, name: &str, copy: &str) {
        let bytes = self.tensor(name).to_vec();
        let from = self.data.len();
        self.data.extend(bytes);
        let mut entry = self.header[name].clone();
        entry["data_offsets"] = json!([from, self.data.len()]);
        self.header.insert(copy.to_owned(), entry);
    }
}

/// A copy of the small base model, changed.
fn changed_model(folder: &Path, change: impl FnOnce(&mut Tensors, &mut Value)) -> PathBuf {
    let model = folder.join("model");
    std::fs::create_dir(&model).unwrap();
    for name in [
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ] {
        std::fs::copy(fixture("tiny-qwen").join(name), model.join(name)).unwrap();
    }
    let mut tensors = Tensors::read(&fixture("tiny-qwen/model.safetensors"));
    let config = std::fs::read(fixture("tiny-qwen/config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    change(&mut tensors, &mut config);
    tensors.write(&model.join("model.safetensors"));
    std::fs::write(model.join("config.json"), config.to_string()).unwrap();
    model
}

/// Goal: a loss that is no number stops the run, names the step, and leaves the last good checkpoint, also when the job is
/// started again. Method: a base model whose input embedding of one token is not a number, and a dataset with that token in
/// one of its records. The head is untied, so that every other record is fine.
#[test]
fn a_loss_that_is_no_number_stops_at_its_step_and_keeps_the_last_checkpoint() {
    // Two byte tokens that nothing else in the dataset has.
    const MARK: &str = "§";
    let tokenizer = Tokenizer::from_dir(&fixture("tiny-qwen")).unwrap();
    let mark = tokenizer.encode(MARK, false).unwrap()[0] as usize;
    let folder = tempfile::tempdir().unwrap();
    let model = changed_model(folder.path(), |tensors, config| {
        let embeddings = "model.embed_tokens.weight";
        tensors.copy(embeddings, "lm_head.weight");
        config["tie_word_embeddings"] = json!(false);
        let width = usize::try_from(config["hidden_size"].as_u64().unwrap()).unwrap();
        let row = 2 * width * mark..2 * width * (mark + 1);
        for number in tensors.tensor(embeddings)[row].chunks_exact_mut(2) {
            number.copy_from_slice(&0x7fc0_u16.to_le_bytes());
        }
    });
    let mut records: Vec<String> = (0..8)
        .map(|number| {
            format!("{{\"prompt\":\"Who is in room {number}?\",\"completion\":\"Nobody.\"}}")
        })
        .collect();
    records[5] = format!("{{\"prompt\":\"Who is {MARK}?\",\"completion\":\"Nobody.\"}}");
    let directory = prepare(&folder.path().join("job"), &model, &records.join("\n"));

    let (error, records) = run_job(&directory);
    let done = steps(&records);
    let failed_at = done.len() as u64 + 1;
    assert!(failed_at > 1, "the seed puts the bad record behind others");
    assert!(
        matches!(error, TrainError::Diverged { what: "loss", step, checkpoint_step }
            if step == failed_at && checkpoint_step == failed_at - 1),
        "{error}"
    );
    assert_eq!(
        (error.code(), error.exit_code()),
        ("diverged", exit::BAD_INPUT)
    );
    let text = error.to_string();
    for word in [
        format!("step {failed_at};"),
        format!("checkpoint is step {}", failed_at - 1),
        "learning_rate".into(),
    ] {
        assert!(text.contains(&word), "{text}");
    }
    let kept = directory
        .checkpoints()
        .join(format!("step-{}.sealed", failed_at - 1));
    let bytes = std::fs::read(&kept).unwrap();

    // The same again goes on from the good checkpoint, fails at the same step, and leaves it as it was.
    let (error, records) = run_job(&directory);
    assert!(
        matches!(records[0], Progress::Started { resumed_at, .. } if resumed_at == failed_at - 1)
    );
    assert!(steps(&records).is_empty());
    assert!(matches!(error, TrainError::Diverged { step, .. } if step == failed_at));
    assert_eq!(std::fs::read(&kept).unwrap(), bytes);
}

/// Goal: a loss of exactly zero is an error. Method: a base model so sure of itself that its likeliest tokens have
/// probability one in floating point, trained on its own answer.
#[test]
fn a_loss_of_exactly_zero_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let model = changed_model(folder.path(), |tensors, _| {
        // Logits that are 2^14 times as large: seven bits up in the exponent of every number of the last norm.
        for number in tensors.tensor("model.norm.weight").chunks_exact_mut(2) {
            let bits = u16::from_le_bytes([number[0], number[1]]);
            number.copy_from_slice(&(bits + (14 << 7)).to_le_bytes());
        }
    });
    let base = BaseModel::load(&model).unwrap();
    let tokenizer = Tokenizer::from_dir(&model).unwrap();
    let prompt = "Who are you?";
    let messages = [ChatMessage::new("user", prompt)];
    let answer = greedy_answer(&base, None, &tokenizer, &messages, 40).unwrap();
    assert!(!answer.is_empty());
    let record = json!({"prompt": prompt, "completion": answer}).to_string();
    let directory = prepare(&folder.path().join("job"), &model, &record);

    let (error, records) = run_job(&directory);
    assert!(
        matches!(error, TrainError::NothingLearned { step: 1 }),
        "{error} after {:?}",
        steps(&records)
    );
    assert_eq!(
        (error.code(), error.exit_code()),
        ("nothing_learned", exit::BAD_INPUT)
    );
    assert!(error.to_string().contains("exactly 0 at step 1"), "{error}");
}

/// A prompt that fills the whole length leaves no token of the answer.
#[test]
fn a_dataset_without_a_token_to_train_is_refused_before_the_first_step() {
    let folder = tempfile::tempdir().unwrap();
    let long = "What and why and how ".repeat(40);
    let record = json!({"prompt": long, "completion": "Because."}).to_string();
    let directory = prepare(&folder.path().join("job"), &fixture("tiny-qwen"), &record);
    let (error, records) = run_job(&directory);
    assert_eq!(
        (error.code(), error.exit_code()),
        ("nothing_to_learn", exit::BAD_INPUT),
        "{error}"
    );
    assert!(error.to_string().contains("max_seq_length"), "{error}");
    assert!(records.is_empty());
}
