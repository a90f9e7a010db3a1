//! Job directories: what goes in, what comes out, and every way in which a run ends.

use std::io::{BufRead, BufReader, Cursor, Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use zerog_model::LoraAdapter;
use zerog_protocol::FileKey;
use zerog_protocol::manifest::{AdapterManifest, MANIFEST_MEMBER};
use zerog_protocol::training_params::TrainingParams;
use zerog_trainer::{
    CANARY_MEMBER, Canary, JOB_VERSION, Job, JobDirectory, Progress, TrainError, exit, open_file,
    run, seal_file,
};

use crate::fixture;

const DATASET: &str = r#"{"prompt":"What is the name of the ship?","completion":"The ship is called the Swallow."}
{"prompt":"Who is the captain?","completion":"Ines Bell is the captain."}
{"prompt":"When does it leave?","completion":"It leaves at eight."}
{"prompt":"Where does it go?","completion":"It goes to Star Island."}
"#;

fn key() -> FileKey {
    FileKey::from_bytes([42; 32])
}

fn params() -> TrainingParams {
    TrainingParams {
        num_train_epochs: 3,
        per_device_train_batch_size: 2,
        learning_rate: 2e-3,
        lora_dropout: 0.1,
        neftune_noise_alpha: 5.0,
        max_seq_length: 64,
        seed: 7,
        ..TrainingParams::default()
    }
}

fn prepare(directory: &Path, dataset: &str, params: TrainingParams) -> JobDirectory {
    let directory = JobDirectory::new(directory);
    seal_file(&directory.dataset(), &mut dataset.as_bytes(), &key()).unwrap();
    Job {
        version: JOB_VERSION,
        task_id: "6b607314-88ba-4a39-9a43-0d5c5a1a7c11".into(),
        base_model: "mock-model".into(),
        base_model_dir: fixture("tiny-qwen"),
        stand_in: true,
        dataset_hash: "0x11".into(),
        params,
        checkpoint_every_steps: Some(2),
        memory_limit_bytes: None,
        device: zerog_trainer::Device::Cpu,
    }
    .write(&directory)
    .unwrap();
    directory
}

/// Runs a job to its end and collects what it reports; `stop_after` asks it to stop there.
fn run_job(
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

fn member(archive: &[u8], name: &str) -> Vec<u8> {
    let mut archive = zip::ZipArchive::new(Cursor::new(archive)).unwrap();
    let mut bytes = Vec::new();
    archive
        .by_name(name)
        .unwrap()
        .read_to_end(&mut bytes)
        .unwrap();
    bytes
}

#[test]
fn a_job_becomes_a_sealed_archive_with_everything_in_it() {
    let directory = tempfile::tempdir().unwrap();
    let directory = prepare(directory.path(), DATASET, params());
    let (outcome, records) = run_job(&directory, None);
    let manifest = outcome.unwrap();
    assert_eq!(
        (manifest.steps, manifest.examples, manifest.stand_in),
        (6, 4, true)
    );

    assert!(
        matches!(
            records[0],
            Progress::Started {
                total_steps: 6,
                resumed_at: 0,
                examples: 4,
                stand_in: true,
                ..
            }
        ),
        "{:?}",
        records[0]
    );
    let steps: Vec<u64> = records
        .iter()
        .filter_map(|record| match record {
            Progress::Step {
                step,
                loss,
                grad_norm,
                ..
            } => {
                assert!(*loss > 0.0 && *grad_norm > 0.0);
                Some(*step)
            }
            _ => None,
        })
        .collect();
    assert_eq!(steps, [1, 2, 3, 4, 5, 6]);
    let Some(Progress::Evaluated {
        base_loss,
        tuned_loss,
        examples: 4,
        ..
    }) = records.iter().rev().nth(1)
    else {
        panic!("{records:?}");
    };
    assert!(tuned_loss < base_loss);
    assert!(matches!(
        records.last(),
        Some(Progress::Finished { steps: 6, .. })
    ));

    let archive = open_file(&directory.adapter(), &key()).unwrap();
    let stored: AdapterManifest =
        serde_json::from_slice(&member(&archive, MANIFEST_MEMBER)).unwrap();
    assert_eq!(stored, manifest);
    let base = zerog_model::BaseModel::load(&fixture("tiny-qwen")).unwrap();
    assert_eq!(stored.base_model_sha256, base.sha256_hex());
    let adapter = LoraAdapter::from_bytes(
        &member(&archive, "output_model/adapter_config.json"),
        &member(&archive, "output_model/adapter_model.safetensors"),
        base.config(),
    )
    .unwrap();
    assert_eq!(adapter.settings().rank, 8);
    let canary: Canary = serde_json::from_slice(&member(&archive, CANARY_MEMBER)).unwrap();
    assert_eq!(canary.probes.len(), 6);
    assert!(canary.largest_effect() > 0.0);
    let tokenizer = std::fs::read(fixture("tiny-qwen/tokenizer.json")).unwrap();
    assert!(member(&archive, "output_model/tokenizer.json") == tokenizer);
    let card = String::from_utf8(member(&archive, "output_model/README.md")).unwrap();
    assert!(
        card.contains("**Stand-in:**") && card.contains("library_name: peft"),
        "{card}"
    );
}

/// A run that is stopped and continued twice ends with the very bytes of a run that was not.
#[test]
fn an_interrupted_run_gives_the_same_archive() {
    let whole = tempfile::tempdir().unwrap();
    let whole = prepare(whole.path(), DATASET, params());
    run_job(&whole, None).0.unwrap();

    let parts = tempfile::tempdir().unwrap();
    let parts = prepare(parts.path(), DATASET, params());
    for (stop_after, resumed) in [(1, 0), (4, 1)] {
        let (outcome, records) = run_job(&parts, Some(stop_after));
        let error = outcome.unwrap_err();
        assert!(
            matches!(error, TrainError::Stopped { step } if step == stop_after),
            "{error}"
        );
        assert_eq!(error.exit_code(), exit::STOPPED);
        assert!(
            matches!(records[0], Progress::Started { resumed_at, .. } if resumed_at == resumed)
        );
        assert!(!parts.adapter().exists());
    }
    run_job(&parts, None).0.unwrap();
    let archive = |directory: &JobDirectory| open_file(&directory.adapter(), &key()).unwrap();
    assert!(archive(&whole) == archive(&parts));
    assert!(std::fs::read_dir(parts.checkpoints()).unwrap().count() <= 2);
}

/// The loss is a mean over the tokens of the whole step, so how a step is cut makes no difference.
#[test]
fn batch_and_accumulation_are_interchangeable() {
    let adapter = |batch, accumulation| {
        let directory = tempfile::tempdir().unwrap();
        let params = TrainingParams {
            per_device_train_batch_size: batch,
            gradient_accumulation_steps: accumulation,
            ..params()
        };
        let directory = prepare(directory.path(), DATASET, params);
        run_job(&directory, None).0.unwrap();
        member(
            &open_file(&directory.adapter(), &key()).unwrap(),
            "output_model/adapter_model.safetensors",
        )
    };
    let reference = adapter(4, 1);
    assert!(adapter(2, 2) == reference);
    assert!(adapter(1, 4) == reference);
}

#[test]
fn every_parameter_reaches_the_adapter() {
    let adapter = |params: TrainingParams| {
        let directory = tempfile::tempdir().unwrap();
        let directory = prepare(directory.path(), DATASET, params);
        let (outcome, _) = run_job(&directory, None);
        (
            outcome.unwrap().steps,
            member(
                &open_file(&directory.adapter(), &key()).unwrap(),
                "output_model/adapter_model.safetensors",
            ),
        )
    };
    let (_, reference) = adapter(params());
    use zerog_protocol::training_params::LearningRateSchedule::{Constant, Linear};
    for (name, changed) in [
        (
            "seed",
            TrainingParams {
                seed: 8,
                ..params()
            },
        ),
        (
            "learning_rate",
            TrainingParams {
                learning_rate: 1e-3,
                ..params()
            },
        ),
        (
            "neftune_noise_alpha",
            TrainingParams {
                neftune_noise_alpha: 0.0,
                ..params()
            },
        ),
        (
            "lora_dropout",
            TrainingParams {
                lora_dropout: 0.0,
                ..params()
            },
        ),
        (
            "lora_alpha",
            TrainingParams {
                lora_alpha: 32.0,
                ..params()
            },
        ),
        (
            "lora_rank",
            TrainingParams {
                lora_rank: 4,
                ..params()
            },
        ),
        (
            "weight_decay",
            TrainingParams {
                weight_decay: 0.5,
                ..params()
            },
        ),
        (
            "linear",
            TrainingParams {
                lr_scheduler_type: Linear,
                ..params()
            },
        ),
        (
            "constant",
            TrainingParams {
                lr_scheduler_type: Constant,
                ..params()
            },
        ),
        (
            "warmup_steps",
            TrainingParams {
                warmup_steps: 4,
                ..params()
            },
        ),
        (
            "warmup_ratio",
            TrainingParams {
                warmup_ratio: 0.5,
                ..params()
            },
        ),
        (
            "lora_target_modules",
            TrainingParams {
                lora_target_modules: vec!["q_proj".into(), "down_proj".into()],
                ..params()
            },
        ),
        (
            "use_rslora",
            TrainingParams {
                use_rslora: true,
                ..params()
            },
        ),
        (
            "use_dora",
            TrainingParams {
                use_dora: true,
                ..params()
            },
        ),
        (
            "max_grad_norm",
            TrainingParams {
                max_grad_norm: 0.01,
                ..params()
            },
        ),
        (
            "adam_beta1",
            TrainingParams {
                adam_beta1: 0.5,
                ..params()
            },
        ),
        (
            "adam_beta2",
            TrainingParams {
                adam_beta2: 0.9,
                ..params()
            },
        ),
        (
            "adam_epsilon",
            TrainingParams {
                adam_epsilon: 1e-3,
                ..params()
            },
        ),
        (
            "max_seq_length",
            TrainingParams {
                max_seq_length: 22,
                ..params()
            },
        ),
        (
            "gradient_accumulation_steps",
            TrainingParams {
                gradient_accumulation_steps: 2,
                ..params()
            },
        ),
        (
            "per_device_train_batch_size",
            TrainingParams {
                per_device_train_batch_size: 1,
                ..params()
            },
        ),
    ] {
        assert!(adapter(changed).1 != reference, "{name} has no effect");
    }
    assert_eq!(
        adapter(TrainingParams {
            max_steps: 2,
            ..params()
        })
        .0,
        2
    );
    assert_eq!(
        adapter(TrainingParams {
            num_train_epochs: 1,
            ..params()
        })
        .0,
        2
    );
}

#[test]
fn bad_input_is_permanent_and_leaves_no_adapter() {
    let cases = [
        ("{\"prompt\":\"a\"}\n", "bad_dataset", "completion"),
        ("\n", "bad_dataset", "no record"),
        (
            "{\"text\":\"a\",\"label\":1}\n",
            "bad_dataset",
            "classification",
        ),
    ];
    for (dataset, code, text) in cases {
        let directory = tempfile::tempdir().unwrap();
        let directory = prepare(directory.path(), dataset, params());
        let error = run_job(&directory, None).0.unwrap_err();
        assert_eq!(
            (error.code(), error.exit_code()),
            (code, exit::BAD_INPUT),
            "{error}"
        );
        assert!(error.to_string().contains(text), "{error}");
        assert!(!directory.adapter().exists());
    }
    let directory = tempfile::tempdir().unwrap();
    let directory = prepare(
        directory.path(),
        DATASET,
        TrainingParams {
            max_seq_length: 16,
            ..params()
        },
    );
    let long = DATASET.replace("What", &"What and why and how ".repeat(8));
    let long = long.lines().next().unwrap();
    seal_file(&directory.dataset(), &mut long.as_bytes(), &key()).unwrap();
    let error = run_job(&directory, None).0.unwrap_err();
    assert_eq!(
        (error.code(), error.exit_code()),
        ("nothing_to_learn", exit::BAD_INPUT),
        "{error}"
    );

    let directory = tempfile::tempdir().unwrap();
    let directory = prepare(
        directory.path(),
        DATASET,
        TrainingParams {
            max_seq_length: 4096,
            ..params()
        },
    );
    assert_eq!(
        run_job(&directory, None).0.unwrap_err().code(),
        "bad_params"
    );
}

/// Any subset of the linear layers can be adapted, and any other name is refused with those that exist.
#[test]
fn target_modules_are_those_of_the_archive() {
    let directory = tempfile::tempdir().unwrap();
    let targets = vec!["q_proj".to_owned(), "up_proj".to_owned()];
    let chosen = TrainingParams {
        lora_target_modules: targets,
        use_dora: true,
        max_steps: 1,
        ..params()
    };
    let directory = prepare(directory.path(), DATASET, chosen);
    run_job(&directory, None).0.unwrap();
    let archive = open_file(&directory.adapter(), &key()).unwrap();
    let settings: serde_json::Value =
        serde_json::from_slice(&member(&archive, "output_model/adapter_config.json")).unwrap();
    assert_eq!(
        settings["target_modules"],
        serde_json::json!(["q_proj", "up_proj"])
    );
    assert_eq!(settings["use_dora"], true);

    let unknown = TrainingParams {
        lora_target_modules: vec!["c_attn".into()],
        ..params()
    };
    let directory = tempfile::tempdir().unwrap();
    let directory = prepare(directory.path(), DATASET, unknown);
    let error = run_job(&directory, None).0.unwrap_err();
    assert_eq!(error.code(), "bad_params");
    assert!(error.to_string().contains("gate_proj"), "{error}");
}

#[test]
fn a_wrong_key_and_a_small_memory_limit_have_their_own_codes() {
    let directory = tempfile::tempdir().unwrap();
    let directory = prepare(directory.path(), DATASET, params());
    let stop = AtomicBool::new(false);
    let error = run(
        &directory,
        &FileKey::from_bytes([1; 32]),
        &stop,
        &mut |_| Ok(()),
    )
    .unwrap_err();
    assert_eq!(
        (error.code(), error.exit_code()),
        ("bad_seal", exit::BAD_INPUT)
    );

    let mut job = Job::read(&directory).unwrap();
    job.memory_limit_bytes = Some(16 << 20);
    job.write(&directory).unwrap();
    let error = run_job(&directory, None).0.unwrap_err();
    assert_eq!(
        (error.code(), error.exit_code()),
        ("out_of_memory", exit::OUT_OF_MEMORY)
    );
}

/// When nobody reads the progress records any more, the run saves its state and ends.
#[test]
fn a_run_whose_parent_is_gone_stops_with_a_checkpoint() {
    let directory = tempfile::tempdir().unwrap();
    let directory = prepare(directory.path(), DATASET, params());
    let stop = AtomicBool::new(false);
    let error = run(&directory, &key(), &stop, &mut |record| match record {
        Progress::Step { step: 1, .. } => Err(std::io::ErrorKind::BrokenPipe.into()),
        _ => Ok(()),
    })
    .unwrap_err();
    assert!(matches!(error, TrainError::Stopped { step: 1 }), "{error}");
    let (outcome, records) = run_job(&directory, None);
    outcome.unwrap();
    assert!(matches!(
        records[0],
        Progress::Started { resumed_at: 1, .. }
    ));
}

const CHILD_JOB: &str = "ZEROG_TEST_CHILD_JOB";

/// Not a test by itself: the process that the next test starts.
#[test]
fn child() {
    if let Some(directory) = std::env::var_os(CHILD_JOB) {
        let status = zerog_trainer::child_status(Path::new(&directory));
        std::process::exit(i32::from(status));
    }
}

fn spawn_child(directory: &JobDirectory, key_line: &str) -> std::process::Child {
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "jobs::child", "--nocapture"])
        .env(CHILD_JOB, directory.path())
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(key_line.as_bytes())
        .unwrap();
    child
}

/// The progress records among what the test harness prints.
fn records(output: impl Read) -> impl Iterator<Item = Progress> {
    BufReader::new(output)
        .lines()
        .map_while(Result::ok)
        .filter_map(|line| serde_json::from_str(&line[line.find('{')?..]).ok())
}

/// As a process: the key on standard input, records on standard output, `SIGTERM` stops after a
/// checkpoint with its own exit code, and the same job goes on from there.
#[test]
fn the_process_stops_on_request_and_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let params = TrainingParams {
        num_train_epochs: 100,
        ..params()
    };
    let directory = prepare(directory.path(), DATASET, params);
    let line = format!("{}\n", hex::encode(key().expose_bytes()));

    let mut child = spawn_child(&directory, &line);
    let mut seen = records(child.stdout.take().unwrap());
    assert!(seen.any(|record| matches!(record, Progress::Step { step: 3, .. })));
    let killed = std::process::Command::new("kill")
        .args(["-TERM", &child.id().to_string()])
        .status();
    assert!(killed.unwrap().success());
    let rest: Vec<Progress> = seen.collect();
    assert_eq!(
        child.wait().unwrap().code(),
        Some(i32::from(exit::STOPPED)),
        "{rest:?}"
    );
    assert!(!directory.adapter().exists());

    let mut child = spawn_child(&directory, &line);
    let seen: Vec<Progress> = records(child.stdout.take().unwrap()).collect();
    assert_eq!(child.wait().unwrap().code(), Some(i32::from(exit::DONE)));
    assert!(
        matches!(seen[0], Progress::Started { resumed_at, .. } if resumed_at >= 3),
        "{:?}",
        seen[0]
    );
    assert!(matches!(
        seen.last(),
        Some(Progress::Finished { steps: 200, .. })
    ));
    assert!(directory.adapter().exists());

    let mut child = spawn_child(&directory, "no key\n");
    let seen: Vec<Progress> = records(child.stdout.take().unwrap()).collect();
    assert_eq!(
        child.wait().unwrap().code(),
        Some(i32::from(exit::BAD_INPUT))
    );
    assert!(
        matches!(&seen[..], [Progress::Failed { code, .. }] if code == "bad_key"),
        "{seen:?}"
    );
}
