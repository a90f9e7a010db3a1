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
    for case in [language(), classification(folder.path())] {
        let job = folder.path().join(case.name);
        std::fs::create_dir(&job).unwrap();
        let directory = case.prepare_on(&job, Device::Cuda(0));
        let (Err(error), _) = run_job(&directory, Some(1)) else {
            assert!(is_built());
            continue;
        };
        if is_built() && matches!(error, TrainError::Stopped { .. }) {
            continue;
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
}
