//! Whole runs on a CUDA device, with emulated libraries of NVIDIA's where the loader looks for the real ones.

use std::path::Path;

use zerog_protocol::training_params::TrainingParams;
use zerog_trainer::{Device, JobDirectory, Progress, exit, open_file};

use crate::emulator::{self, Order};
use crate::workshop::{Case, classification, dora, key, preference, records, run_job, spawn_with};

/// A short run: three steps, measured after the last.
fn short(case: Case) -> Case {
    Case {
        params: TrainingParams {
            max_steps: 3,
            eval_steps: 3,
            gradient_accumulation_steps: 1,
            ..case.params.clone()
        },
        ..case
    }
}

/// Runs a job as a process that finds NVIDIA's libraries in the emulator's folder.
fn run_on_device(directory: &JobDirectory) -> (Option<i32>, Vec<Progress>) {
    let libraries = emulator::folder(env!("CARGO_TARGET_TMPDIR"), Order::Forward);
    let mut child = spawn_with(directory, &[("LD_LIBRARY_PATH", libraries.as_path())]);
    let records = records(&mut child).collect();
    (child.wait().unwrap().code(), records)
}

/// Losses of the steps and of the measurements.
fn losses(records: &[Progress]) -> Vec<f64> {
    let losses = records.iter().filter_map(|record| match record {
        Progress::Step { loss, .. } => Some(*loss),
        Progress::Validated { eval_loss, .. } => Some(*eval_loss),
        _ => None,
    });
    losses.collect()
}

fn archive(directory: &JobDirectory) -> Vec<u8> {
    open_file(&directory.adapter(), &key()).unwrap()
}

/// Lays out `case` in a new folder below `folder`.
fn prepared(case: &Case, folder: &Path, name: &str, device: Device) -> JobDirectory {
    let folder = folder.join(name);
    std::fs::create_dir(&folder).unwrap();
    case.prepare_on(&folder, device)
}

/// Runs `case` on the processor and twice on the device, in folders below `folder`.
fn follows_the_processor_and_repeats_itself(case: &Case, folder: &Path) {
    let on_host = prepared(case, folder, "host", Device::Cpu);
    let (outcome, of_host) = run_job(&on_host, None);
    outcome.unwrap();
    let expected = losses(&of_host);
    assert_eq!(expected.len(), 4);
    let mut archives = Vec::new();
    for name in ["once", "again"] {
        let directory = prepared(case, folder, name, Device::Cuda(0));
        let (code, of_device) = run_on_device(&directory);
        assert_eq!(code, Some(i32::from(exit::DONE)), "{of_device:?}");
        let actual = losses(&of_device);
        assert_eq!(actual.len(), expected.len());
        for (actual, expected) in actual.iter().zip(&expected) {
            // Activations are rounded to bf16 on the device and, depending on the machine, on the host.
            assert!(
                (actual - expected).abs() < 0.02 * expected,
                "{actual} {expected}"
            );
        }
        archives.push(archive(&directory));
    }
    assert!(archives[0] == archives[1], "two runs differ");
}

#[test]
fn a_run_on_a_device_follows_that_on_the_processor_and_repeats_itself() {
    let folder = tempfile::tempdir().unwrap();
    follows_the_processor_and_repeats_itself(&short(dora()), folder.path());
}

#[test]
fn a_classifier_on_a_device_follows_that_on_the_processor_and_repeats_itself() {
    let folder = tempfile::tempdir().unwrap();
    let case = short(classification(folder.path()));
    follows_the_processor_and_repeats_itself(&case, folder.path());
}

#[test]
fn preferences_are_learned_on_a_device() {
    let folder = tempfile::tempdir().unwrap();
    let case = short(preference());
    let on_host = prepared(&case, folder.path(), "host", Device::Cpu);
    let (outcome, of_host) = run_job(&on_host, None);
    outcome.unwrap();
    let directory = prepared(&case, folder.path(), "device", Device::Cuda(0));
    let (code, of_device) = run_on_device(&directory);
    assert_eq!(code, Some(i32::from(exit::DONE)), "{of_device:?}");
    for (actual, expected) in losses(&of_device).iter().zip(losses(&of_host)) {
        assert!((actual - expected).abs() < 0.02, "{actual} {expected}");
    }
}

#[test]
fn a_number_without_a_device_is_said_with_how_many_there_are() {
    let folder = tempfile::tempdir().unwrap();
    let directory = prepared(&short(dora()), folder.path(), "job", Device::Cuda(7));
    let (code, records) = run_on_device(&directory);
    assert_eq!(code, Some(i32::from(exit::RETRY)));
    let Some(Progress::Failed { code, message }) = records.last() else {
        panic!("{records:?}")
    };
    assert_eq!(code, "device");
    assert!(
        message.contains("cuda:7") && message.contains("1 GPU"),
        "{message}"
    );
}
