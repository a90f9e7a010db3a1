//! Jobs of every method over small models: what the tests of methods and interruptions share.

use std::io::{BufRead, BufReader, Cursor, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;
use zerog_protocol::FileKey;
use zerog_protocol::manifest::AdapterManifest;
use zerog_protocol::training_params::{TrainingMethod, TrainingParams};
use zerog_trainer::{
    Device, JOB_VERSION, Job, JobDirectory, Progress, TrainError, open_file, run, seal_file,
};

use crate::fixture;

pub(crate) fn key() -> FileKey {
    FileKey::from_bytes([42; 32])
}

/// One way to train, with a dataset that it can learn.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) base_model: PathBuf,
    pub(crate) dataset: String,
    pub(crate) params: TrainingParams,
}

impl Case {
    /// Lays out the job in `directory`.
    pub(crate) fn prepare(&self, directory: &Path) -> JobDirectory {
        let directory = JobDirectory::new(directory);
        seal_file(&directory.dataset(), &mut self.dataset.as_bytes(), &key()).unwrap();
        Job {
            version: JOB_VERSION,
            task_id: "6b607314-88ba-4a39-9a43-0d5c5a1a7c11".into(),
            base_model: "mock-model".into(),
            base_model_dir: self.base_model.clone(),
            stand_in: true,
            dataset_hash: "0x11".into(),
            params: self.params.clone(),
            checkpoint_every_steps: Some(3),
            memory_limit_bytes: None,
            device: Device::Cpu,
        }
        .write(&directory)
        .unwrap();
        directory
    }

    /// Lays out the job in `directory`, to be trained on `device`.
    pub(crate) fn prepare_on(&self, directory: &Path, device: Device) -> JobDirectory {
        let directory = self.prepare(directory);
        let job = Job {
            device,
            ..Job::read(&directory).unwrap()
        };
        job.write(&directory).unwrap();
        directory
    }

    /// Runs the job in a folder of its own.
    pub(crate) fn run(&self) -> Outcome {
        let folder = tempfile::tempdir().unwrap();
        let directory = self.prepare(folder.path());
        let (outcome, records) = run_job(&directory, None);
        Outcome {
            manifest: outcome.unwrap(),
            records,
            archive: open_file(&directory.adapter(), &key()).unwrap(),
        }
    }
}

/// What a finished job left.
pub(crate) struct Outcome {
    pub(crate) manifest: AdapterManifest,
    pub(crate) records: Vec<Progress>,
    pub(crate) archive: Vec<u8>,
}

impl Outcome {
    /// A file of the archive.
    pub(crate) fn member(&self, name: &str) -> Vec<u8> {
        let mut archive = zip::ZipArchive::new(Cursor::new(&self.archive)).unwrap();
        let mut bytes = Vec::new();
        let mut file = archive.by_name(&format!("output_model/{name}")).unwrap();
        file.read_to_end(&mut bytes).unwrap();
        bytes
    }
}

/// Runs a job to its end and collects what it reports; `stop_after` asks it to stop there.
pub(crate) fn run_job(
    directory: &JobDirectory,
    stop_after: Option<u64>,
) -> (Result<AdapterManifest, TrainError>, Vec<Progress>) {
    let stop = AtomicBool::new(false);
    let mut records = Vec::new();
    let outcome = run(directory, &key(), &stop, &mut |record| {
        if let Progress::Step { step, .. } = record
            && Some(*step) == stop_after
        {
            stop.store(true, Ordering::Relaxed);
        }
        records.push(record.clone());
        Ok(())
    });
    (outcome, records)
}

const CHILD_JOB: &str = "ZEROG_TEST_CHILD_OF_WORKSHOP";

/// Not a test by itself: the process that tests start.
#[test]
fn child() {
    if let Some(directory) = std::env::var_os(CHILD_JOB) {
        let status = zerog_trainer::child_status(Path::new(&directory));
        std::process::exit(i32::from(status));
    }
}

/// Starts a job as a process of its own.
pub(crate) fn spawn(directory: &JobDirectory) -> Child {
    spawn_with(directory, &[])
}

/// As [`spawn`], with more variables of the environment.
pub(crate) fn spawn_with(directory: &JobDirectory, environment: &[(&str, &Path)]) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .envs(environment.iter().copied())
        .args(["--exact", "workshop::child", "--nocapture"])
        .env(CHILD_JOB, directory.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    writeln!(input, "{}", hex::encode(key().expose_bytes())).unwrap();
    child
}

/// The progress records among what the test harness prints.
pub(crate) fn records(child: &mut Child) -> impl Iterator<Item = Progress> + use<> {
    BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map_while(Result::ok)
        .filter_map(|line| serde_json::from_str(&line[line.find('{')?..]).ok())
}

pub(crate) fn params() -> TrainingParams {
    TrainingParams {
        num_train_epochs: 4,
        per_device_train_batch_size: 2,
        learning_rate: 2e-3,
        lora_dropout: 0.1,
        neftune_noise_alpha: 5.0,
        max_seq_length: 64,
        seed: 7,
        ..TrainingParams::default()
    }
}

pub(crate) const QUESTIONS: [(&str, &str); 8] = [
    ("What is the name of the ship?", "The Swallow."),
    ("Who is the captain?", "Ines Bell."),
    ("When does it leave?", "At eight."),
    ("Where does it go?", "To Star Island."),
    ("What does it carry?", "Lamps and tea."),
    ("Who is the cook?", "Old Tom."),
    ("How long is the way?", "Two days."),
    ("What is the weather?", "Fair, with some wind."),
];

/// Supervised fine-tuning, a part of the records set aside.
pub(crate) fn language() -> Case {
    let records = QUESTIONS
        .map(|(prompt, answer)| json!({"prompt": prompt, "completion": answer}).to_string());
    Case {
        name: "sft",
        base_model: fixture("tiny-qwen"),
        dataset: records.join("\n"),
        params: TrainingParams {
            validation_split: 0.25,
            eval_steps: 2,
            ..params()
        },
    }
}

/// The same with magnitudes and another scale.
pub(crate) fn dora() -> Case {
    Case {
        name: "sft with DoRA",
        params: TrainingParams {
            use_dora: true,
            use_rslora: true,
            gradient_accumulation_steps: 2,
            ..language().params
        },
        ..language()
    }
}

/// Preferences: the answer to the question over that to another one.
pub(crate) fn preference() -> Case {
    let records: Vec<String> = (0..QUESTIONS.len())
        .map(|number| {
            let (prompt, chosen) = QUESTIONS[number];
            let (_, rejected) = QUESTIONS[(number + 3) % QUESTIONS.len()];
            json!({"prompt": prompt, "chosen": chosen, "rejected": rejected}).to_string()
        })
        .collect();
    Case {
        name: "dpo",
        base_model: fixture("tiny-qwen"),
        dataset: records.join("\n"),
        params: TrainingParams {
            training_method: TrainingMethod::Dpo,
            dpo_beta: 0.2,
            // Noise on the policy alone would be a preference of its own.
            neftune_noise_alpha: 0.0,
            validation_split: 0.25,
            ..params()
        },
    }
}

/// Classes of texts: whether a bell or a drum is heard. The model lies in `folder`.
pub(crate) fn classification(folder: &Path) -> Case {
    let mut records = Vec::new();
    for place in ["hall", "yard", "street", "tower", "garden", "cellar"] {
        for (thing, label) in [("bell", "metal"), ("drum", "skin")] {
            let text = format!("a {thing} in the {place}");
            records.push(json!({"text": text, "label": label}).to_string());
        }
    }
    Case {
        name: "classification",
        base_model: encoder(folder),
        dataset: records.join("\n"),
        params: TrainingParams {
            learning_rate: 1e-2,
            num_train_epochs: 12,
            per_device_train_batch_size: 4,
            neftune_noise_alpha: 0.0,
            max_seq_length: 16,
            validation_split: 0.25,
            ..params()
        },
    }
}

/// The small encoder of the comparison with the reference libraries, with a word-piece tokenizer for its ids.
fn encoder(folder: &Path) -> PathBuf {
    let model = folder.join("encoder");
    std::fs::create_dir_all(&model).unwrap();
    for name in ["config.json", "model.safetensors"] {
        let source = fixture("parity/distilbert/base").join(name);
        std::fs::copy(source, model.join(name)).unwrap();
    }
    let marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"];
    let words = [
        "a", "in", "the", "bell", "drum", "hall", "yard", "street", "tower", "garden", "cellar",
    ];
    let vocabulary: serde_json::Map<_, _> = marks
        .iter()
        .chain(&words)
        .enumerate()
        .map(|(id, word)| ((*word).to_owned(), json!(id)))
        .collect();
    let added: Vec<_> = marks
        .iter()
        .enumerate()
        .map(|(id, mark)| {
            json!({"id": id, "content": mark, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        })
        .collect();
    let special = |id: &str| json!({"SpecialToken": {"id": id, "type_id": 0}});
    let sequence = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": added,
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                       "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [special("[CLS]"), sequence("A"), special("[SEP]")],
            "pair": [special("[CLS]"), sequence("A"), special("[SEP]"), sequence("B"), special("[SEP]")],
            "special_tokens": {
                "[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]},
                "[SEP]": {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]},
            },
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                  "max_input_chars_per_word": 100, "vocab": vocabulary},
    });
    std::fs::write(model.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    model
}
