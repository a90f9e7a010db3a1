//! The memory that is predicted before a run against the memory that it takes.

use std::path::Path;

use serde_json::json;
use zerog_model::{BaseModel, ModelConfig};
use zerog_protocol::training_params::TrainingParams;
use zerog_trainer::{Progress, exit, open_file};

use crate::fixture;
use crate::workshop::{Case, dora, key, language, params, preference, records, run_job, spawn};

/// Most memory that the process had in use so far, in bytes.
fn peak_bytes(process: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = text.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(1024 * kib)
}

/// Runs a case as a process; predicted and measured bytes.
fn measure(case: &Case) -> (u64, u64) {
    let folder = tempfile::tempdir().unwrap();
    let directory = case.prepare(folder.path());
    let mut child = spawn(&directory);
    let (mut expected, mut peak) = (0, 0);
    for record in records(&mut child) {
        if let Progress::Started {
            expected_memory_bytes,
            ..
        } = record
        {
            expected = expected_memory_bytes;
        }
        peak = peak.max(peak_bytes(child.id()).unwrap_or(0));
    }
    assert_eq!(child.wait().unwrap().code(), Some(i32::from(exit::DONE)));
    (expected, peak)
}

/// Random weights of a wider shape than the small base model, with its tokenizer.
fn wide_model(folder: &Path) -> std::path::PathBuf {
    let directory = folder.join("wide");
    let text = std::fs::read(fixture("tiny-qwen/config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_slice(&text).unwrap();
    for (name, value) in [
        ("hidden_size", 256),
        ("intermediate_size", 1024),
        ("num_hidden_layers", 8),
        ("num_attention_heads", 4),
        ("num_key_value_heads", 2),
    ] {
        config[name] = json!(value);
    }
    if let Some(settings) = config.as_object_mut() {
        settings.remove("head_dim");
        settings.remove("max_window_layers");
        settings.remove("layer_types");
    }
    let config = ModelConfig::from_json(config.to_string().as_bytes()).unwrap();
    let base = BaseModel::init_random(config, 1).unwrap();
    std::fs::create_dir_all(&directory).unwrap();
    base.save(&directory).unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(fixture("tiny-qwen").join(name), directory.join(name)).unwrap();
    }
    directory
}

/// The prediction is an upper bound, and not an idle one where activations are the most of it.
#[test]
fn the_prediction_holds_on_the_small_model_and_a_wider_one() {
    let folder = tempfile::tempdir().unwrap();
    let wide = wide_model(folder.path());
    let long = |case: Case, name| Case {
        name,
        dataset: format!("{}\n", case.dataset.trim_end()).repeat(16),
        params: TrainingParams {
            per_device_train_batch_size: 64,
            max_steps: 2,
            validation_split: 0.0,
            ..case.params.clone()
        },
        ..case
    };
    for (case, is_tight) in [
        (long(language(), "small, sft"), false),
        (
            Case {
                base_model: wide.clone(),
                ..long(language(), "wide, sft")
            },
            true,
        ),
        (
            Case {
                base_model: wide.clone(),
                ..long(preference(), "wide, dpo")
            },
            true,
        ),
        (
            Case {
                base_model: wide.clone(),
                ..long(dora(), "wide, dora")
            },
            true,
        ),
    ] {
        let (expected, peak) = measure(&case);
        println!(
            "{}: {} MiB predicted, {} MiB measured",
            case.name,
            expected >> 20,
            peak >> 20
        );
        assert!(
            peak > 0 && peak <= expected,
            "{}: {peak} of {expected}",
            case.name
        );
        assert!(
            !is_tight || expected <= 2 * peak,
            "{}: {peak} of {expected}",
            case.name
        );
    }
}

/// A run without room for what its passes keep takes less and delivers the same; one without room for that either is
/// refused, and the batch size that the refusal names does fit.
#[test]
fn short_memory_costs_time_first_and_then_the_batch_size() {
    let case = Case {
        params: TrainingParams {
            per_device_train_batch_size: 32,
            max_steps: 1,
            ..params()
        },
        dataset: format!("{}\n", language().dataset).repeat(8),
        ..language()
    };
    let run = |case: &Case, limit| {
        let folder = tempfile::tempdir().unwrap();
        let directory = case.prepare(folder.path());
        let mut job = zerog_trainer::Job::read(&directory).unwrap();
        job.memory_limit_bytes = limit;
        job.write(&directory).unwrap();
        let (outcome, records) = run_job(&directory, None);
        outcome.map(|_| match records[0] {
            Progress::Started {
                expected_memory_bytes,
                recomputes_layers,
                ..
            } => {
                let adapter = open_file(&directory.adapter(), &key()).unwrap();
                (expected_memory_bytes, recomputes_layers, adapter)
            }
            ref other => panic!("{other:?}"),
        })
    };
    let (needed, recomputes, adapter) = run(&case, None).unwrap();
    assert!(!recomputes);
    let (less, recomputes, same_adapter) = run(&case, Some(needed - 1)).unwrap();
    assert!(recomputes && less < needed, "{less} of {needed}");
    assert_eq!(adapter, same_adapter);

    let limit = Some(less - (1 << 20));
    let error = run(&case, limit).unwrap_err();
    assert_eq!(error.exit_code(), exit::OUT_OF_MEMORY);
    let text = error.to_string();
    let batch: u32 = text
        .split("per_device_train_batch_size ")
        .nth(1)
        .and_then(|rest| rest.split_whitespace().next())
        .unwrap_or_else(|| panic!("{text}"))
        .parse()
        .unwrap();
    assert!((1..32).contains(&batch), "{text}");
    let smaller = Case {
        params: TrainingParams {
            per_device_train_batch_size: batch,
            ..case.params.clone()
        },
        ..case
    };
    assert!(run(&smaller, limit).unwrap().0 <= less - (1 << 20));
}
