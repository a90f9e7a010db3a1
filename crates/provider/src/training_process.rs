//! The training process: started with the job key on its standard input, followed by its progress records, stopped with
//! a signal.

use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::Instant;
use zerog_protocol::FileKey;
use zerog_trainer::Progress;
use zeroize::Zeroizing;

use crate::config::TrainerConfig;

/// Variables that the process inherits; nothing else of the environment may reach it.
const PASSED_ON: [&str; 9] = [
    "PATH",
    "HOME",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "CUDA_VISIBLE_DEVICES",
    "CUDA_DEVICE_ORDER",
    "RAYON_NUM_THREADS",
    "RUST_BACKTRACE",
    "LLVM_PROFILE_FILE",
];
/// Time to write a checkpoint after the signal.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest progress record in bytes.
const MAX_RECORD_BYTES: usize = 64 * 1024;
/// Bytes of standard error that are kept for the log.
const MAX_ERROR_BYTES: u64 = 64 * 1024;

/// How a process ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// With this code.
    Exit(i32),
    /// By a signal.
    Signal,
    /// Stopped because it said nothing for too long.
    Silent,
    /// Stopped because it ran for too long.
    TooLong,
    /// Its output could not be read.
    Unreadable(io::Error),
}

/// A running process. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct TrainingProcess {
    child: Child,
    output: Lines<BufReader<ChildStdout>>,
    ends_at: Instant,
    stall_timeout: Duration,
}

impl TrainingProcess {
    /// Starts `COMMAND train --job DIR` and hands it the key.
    pub(crate) fn start(
        config: &TrainerConfig,
        directory: &Path,
        key: &FileKey,
    ) -> io::Result<Self> {
        let program = match &config.command {
            Some(command) => command.clone(),
            None => std::env::current_exe()?,
        };
        let mut command = Command::new(&program);
        command
            .arg("train")
            .arg("--job")
            .arg(directory)
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C in a terminal is for the daemon, which then stops the process in its own way.
            .process_group(0)
            .kill_on_drop(true);
        for name in PASSED_ON {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        let mut child = command.spawn()?;
        let mut input = child.stdin.take().expect("standard input is piped");
        let line = Zeroizing::new(format!("{}\n", hex::encode(key.expose_bytes())));
        tokio::spawn(async move {
            // A process that is gone already says why by its exit.
            let _ = input.write_all(line.as_bytes()).await;
        });
        let errors = child.stderr.take().expect("standard error is piped");
        tokio::spawn(async move {
            let mut text = Vec::new();
            let mut limited = errors.take(MAX_ERROR_BYTES);
            if limited.read_to_end(&mut text).await.is_ok() && !text.is_empty() {
                tracing::warn!(text = %String::from_utf8_lossy(&text), "the training process wrote to standard error");
            }
            // Go on reading, or the process would block.
            let _ = tokio::io::copy(limited.get_mut(), &mut tokio::io::sink()).await;
        });
        let output = BufReader::with_capacity(
            MAX_RECORD_BYTES,
            child.stdout.take().expect("standard output is piped"),
        );
        Ok(Self {
            child,
            output: output.lines(),
            ends_at: Instant::now() + Duration::from_secs(config.timeout_s),
            stall_timeout: Duration::from_secs(config.stall_timeout_s),
        })
    }

    /// The next progress record, or how the process ended. May be dropped at any point.
    pub(crate) async fn next(&mut self) -> Result<Progress, Ended> {
        loop {
            let silent_at = Instant::now() + self.stall_timeout;
            let line = tokio::select! {
                line = self.output.next_line() => line,
                () = tokio::time::sleep_until(silent_at) => {
                    self.stop().await;
                    return Err(Ended::Silent);
                }
                () = tokio::time::sleep_until(self.ends_at) => {
                    self.stop().await;
                    return Err(Ended::TooLong);
                }
            };
            match line {
                Ok(Some(line)) => match serde_json::from_str(&line) {
                    Ok(record) => return Ok(record),
                    Err(_) => tracing::debug!(
                        "the training process wrote a line that is no progress record"
                    ),
                },
                Ok(None) => return Err(self.exit().await),
                Err(error) => {
                    self.stop().await;
                    return Err(Ended::Unreadable(error));
                }
            }
        }
    }

    /// Asks the process to write a checkpoint and end; kills it when it takes too long.
    pub(crate) async fn stop(&mut self) {
        if let Some(id) = self.child.id().and_then(|id| i32::try_from(id).ok()) {
            // It may have ended in this moment.
            let _ = kill(Pid::from_raw(id), Signal::SIGTERM);
        }
        if tokio::time::timeout(STOP_TIMEOUT, self.child.wait())
            .await
            .is_err()
        {
            let _ = self.child.kill().await;
        }
    }

    async fn exit(&mut self) -> Ended {
        match tokio::time::timeout(STOP_TIMEOUT, self.child.wait()).await {
            Ok(Ok(status)) => status.code().map_or(Ended::Signal, Ended::Exit),
            Ok(Err(error)) => Ended::Unreadable(error),
            Err(_) => {
                let _ = self.child.kill().await;
                Ended::Silent
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn script(folder: &Path, text: &str) -> TrainerConfig {
        let path = folder.join("trainer.sh");
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        TrainerConfig {
            command: Some(path),
            ..TrainerConfig::default()
        }
    }

    #[tokio::test]
    async fn records_come_through_and_the_exit_code_ends_it() {
        let folder = tempfile::tempdir().unwrap();
        let config = script(
            folder.path(),
            r#"read key; test ${#key} = 64 || exit 9; test "$1 $2" = "train --job" || exit 8
               echo 'not a record'; echo '{"event":"checkpoint","step":4}'; echo oops >&2; exit 2"#,
        );
        let mut process =
            TrainingProcess::start(&config, folder.path(), &FileKey::random()).unwrap();
        assert_eq!(
            process.next().await.unwrap(),
            Progress::Checkpoint { step: 4 }
        );
        assert!(matches!(process.next().await, Err(Ended::Exit(2))));
    }

    #[tokio::test]
    async fn a_process_is_stopped_with_a_signal() {
        let folder = tempfile::tempdir().unwrap();
        let config = script(
            folder.path(),
            r#"trap 'echo stopped > "$3/stopped"; exit 75' TERM; echo '{"event":"checkpoint","step":1}'; while :; do sleep 0.05; done"#,
        );
        let mut process =
            TrainingProcess::start(&config, folder.path(), &FileKey::random()).unwrap();
        process.next().await.unwrap();
        process.stop().await;
        assert!(folder.path().join("stopped").exists());
    }

    #[tokio::test]
    async fn the_environment_of_the_daemon_stays_outside() {
        let folder = tempfile::tempdir().unwrap();
        let config = script(
            folder.path(),
            r#"test -z "$CARGO_PKG_NAME" || exit 7; exit 0"#,
        );
        let mut process =
            TrainingProcess::start(&config, folder.path(), &FileKey::random()).unwrap();
        assert!(matches!(process.next().await, Err(Ended::Exit(0))));
    }
}
