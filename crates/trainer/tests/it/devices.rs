//! Jobs that ask for a device, in every build.

use zerog_trainer::{Device, TrainError, exit};

use crate::workshop::{classification, language, run_job};

/// Whether the program has code for the device.
fn is_built() -> bool {
    cfg!(feature = "cuda")
}

/// Without code for the device, or without the driver. A machine with a GPU has both.
#[test]
fn a_device_that_cannot_be_used_fails_the_run_and_blames_the_machine() {
    let folder = tempfile::tempdir().unwrap();
    let directory = language().prepare_on(folder.path(), Device::Cuda(0));
    let (Err(error), _) = run_job(&directory, Some(1)) else {
        assert!(is_built());
        return;
    };
    if is_built() && matches!(error, TrainError::Stopped { .. }) {
        return;
    }
    let text = error.to_string();
    let expected = if is_built() {
        "\"cpu\""
    } else {
        "--features cuda"
    };
    assert!(text.contains(expected), "{text}");
    assert_eq!((error.code(), error.exit_code()), ("device", exit::RETRY));
    assert!(!directory.adapter().exists());
}

#[test]
fn a_classifier_is_not_trained_on_a_device() {
    let folder = tempfile::tempdir().unwrap();
    let case = classification(folder.path());
    let job = folder.path().join("job");
    std::fs::create_dir(&job).unwrap();
    let directory = case.prepare_on(&job, Device::Cuda(0));
    let (outcome, _) = run_job(&directory, None);
    let error = outcome.unwrap_err();
    assert_eq!(
        (error.code(), error.exit_code()),
        ("bad_params", exit::BAD_INPUT)
    );
    assert!(error.to_string().contains("cuda:0"), "{error}");
}
