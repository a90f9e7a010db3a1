//! The training process: signals in, progress records out, one exit code at the end.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::error::{TrainError, exit};
use crate::job::{JobDirectory, read_key};
use crate::progress::Progress;
use crate::run::run;

/// Runs the job in `job_directory` as a process of its own: what the hidden `train --job DIR`
/// subcommand of the binaries calls.
///
/// The job key is read from standard input, progress records go to standard output, one JSON
/// object a line. `SIGTERM` and `SIGINT` end the run after a checkpoint. The exit codes are
/// those of [`exit`].
pub fn child_main(job_directory: &Path) -> ExitCode {
    ExitCode::from(child_status(job_directory))
}

/// As [`child_main`], with the exit code as a number.
pub fn child_status(job_directory: &Path) -> u8 {
    let stop = Arc::new(AtomicBool::new(false));
    let mut report = |record: &Progress| {
        let mut output = std::io::stdout().lock();
        serde_json::to_writer(&mut output, record)?;
        output.write_all(b"\n")?;
        output.flush()
    };
    let Err(error) = run_child(job_directory, &stop, &mut report) else {
        return exit::DONE;
    };
    if !matches!(error, TrainError::Stopped { .. }) {
        // The exit code says the same; a parent that is gone loses nothing.
        let _ = report(&Progress::Failed {
            code: error.code().to_owned(),
            message: error.to_string(),
        });
    }
    error.exit_code()
}

fn run_child(
    job_directory: &Path,
    stop: &Arc<AtomicBool>,
    report: &mut dyn FnMut(&Progress) -> std::io::Result<()>,
) -> Result<(), TrainError> {
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        signal_hook::flag::register(signal, Arc::clone(stop))
            .map_err(TrainError::io(job_directory))?;
    }
    let key = read_key(&mut std::io::stdin().lock())?;
    run(&JobDirectory::new(job_directory), &key, stop, report)?;
    Ok(())
}
