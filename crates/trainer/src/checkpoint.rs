//! Checkpoints: the exact state of a run, sealed, the last two kept.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use zerog_protocol::FileKey;

use crate::error::TrainError;
use crate::job::JobDirectory;
use crate::sealing::{open_file, seal_file};
use crate::validation::Measurements;

/// How many checkpoints stay on disk: the newest, and one before it in case the newest is damaged.
const KEPT: usize = 2;
/// File name of the best checkpoint.
const BEST: &str = "best.sealed";

/// Everything besides the model's own state that a continued run needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct RunState {
    /// Fingerprint of the job that this state belongs to.
    pub(crate) fingerprint: String,
    /// Steps done.
    pub(crate) step: u64,
    /// Losses of the first and the newest step, as bits, so that they are read exactly as they were written.
    loss_bits: [u64; 2],
    /// What the measurements on the validation examples amount to.
    pub(crate) measurements: Measurements,
}

impl RunState {
    /// The state before the first step.
    pub(crate) fn new(fingerprint: String) -> Self {
        Self {
            fingerprint,
            step: 0,
            loss_bits: [0; 2],
            measurements: Measurements::default(),
        }
    }

    /// Counts a step with its loss.
    pub(crate) fn add_loss(&mut self, loss: f64) {
        if self.step == 0 {
            self.loss_bits[0] = loss.to_bits();
        }
        self.loss_bits[1] = loss.to_bits();
        self.step += 1;
    }

    /// Loss of the first step.
    pub(crate) fn loss_first(&self) -> f64 {
        f64::from_bits(self.loss_bits[0])
    }

    /// Loss of the newest step.
    pub(crate) fn loss_last(&self) -> f64 {
        f64::from_bits(self.loss_bits[1])
    }
}

/// A run state with the bytes of parameters and optimiser.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Checkpoint {
    pub(crate) state: RunState,
    pub(crate) model: Vec<u8>,
}

impl Checkpoint {
    /// Seals the checkpoint into the job directory and removes those that are too old.
    pub(crate) fn write(&self, directory: &JobDirectory, key: &FileKey) -> Result<(), TrainError> {
        let folder = directory.checkpoints();
        self.seal(&folder, &name(self.state.step), key)?;
        for (_, path) in existing(&folder)?.into_iter().skip(KEPT) {
            std::fs::remove_file(&path).map_err(TrainError::io(&path))?;
        }
        Ok(())
    }

    /// Seals the checkpoint as the best one, in place of the one before. A run that is continued from an earlier
    /// checkpoint comes to the same best states again, so the file is never ahead of the end of the run.
    pub(crate) fn write_best(
        &self,
        directory: &JobDirectory,
        key: &FileKey,
    ) -> Result<(), TrainError> {
        self.seal(&directory.checkpoints(), BEST, key)
    }

    /// The best checkpoint, which must be the one after `step` steps.
    pub(crate) fn read_best(
        directory: &JobDirectory,
        key: &FileKey,
        fingerprint: &str,
        step: u64,
    ) -> Result<Self, TrainError> {
        let path = directory.checkpoints().join(BEST);
        let best = Self::read(&path, key, fingerprint)?;
        if best.state.step != step {
            return Err(TrainError::Checkpoint {
                path,
                problem: format!("it is of step {} and not of step {step}", best.state.step),
            });
        }
        Ok(best)
    }

    fn seal(&self, folder: &Path, name: &str, key: &FileKey) -> Result<(), TrainError> {
        std::fs::create_dir_all(folder).map_err(TrainError::io(folder))?;
        let header =
            serde_json::to_vec(&self.state).expect("a run state is plain numbers and text");
        let mut bytes = Vec::with_capacity(8 + header.len() + self.model.len());
        bytes.extend((header.len() as u64).to_be_bytes());
        bytes.extend(header);
        bytes.extend(&self.model);
        seal_file(&folder.join(name), &mut bytes.as_slice(), key)
    }

    /// The newest usable checkpoint of this job, if any. A damaged one is passed over with a
    /// warning, because the one before it still saves work.
    pub(crate) fn newest(
        directory: &JobDirectory,
        key: &FileKey,
        fingerprint: &str,
    ) -> Result<Option<Self>, TrainError> {
        let folder = directory.checkpoints();
        if !folder.exists() {
            return Ok(None);
        }
        for (_, path) in existing(&folder)? {
            match Self::read(&path, key, fingerprint) {
                Ok(checkpoint) => return Ok(Some(checkpoint)),
                Err(error) => tracing::warn!(%error, "checkpoint passed over"),
            }
        }
        Ok(None)
    }

    fn read(path: &Path, key: &FileKey, fingerprint: &str) -> Result<Self, TrainError> {
        let bytes = open_file(path, key)?;
        let bad = |problem: &str| TrainError::Checkpoint {
            path: path.to_owned(),
            problem: problem.to_owned(),
        };
        let (length, rest) = bytes
            .split_first_chunk::<8>()
            .ok_or_else(|| bad("it is too short"))?;
        let length = usize::try_from(u64::from_be_bytes(*length))
            .map_err(|_| bad("its header is too long"))?;
        let header = rest
            .get(..length)
            .ok_or_else(|| bad("its header is cut off"))?;
        let state: RunState =
            serde_json::from_slice(header).map_err(|error| bad(&error.to_string()))?;
        if state.fingerprint != fingerprint {
            return Err(bad("it belongs to another job"));
        }
        Ok(Self {
            state,
            model: rest[length..].to_vec(),
        })
    }
}

/// File name of the checkpoint after `step` steps.
fn name(step: u64) -> String {
    format!("step-{step}.sealed")
}

/// All checkpoints of a folder, newest first.
fn existing(folder: &Path) -> Result<Vec<(u64, PathBuf)>, TrainError> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(TrainError::io(folder))? {
        let path = entry.map_err(TrainError::io(folder))?.path();
        let step = path
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| {
                name.strip_prefix("step-")?
                    .strip_suffix(".sealed")?
                    .parse()
                    .ok()
            });
        if let Some(step) = step {
            found.push((step, path));
        }
    }
    found.sort_unstable_by(|one, other| other.cmp(one));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint(step: u64) -> Checkpoint {
        Checkpoint {
            state: RunState {
                fingerprint: "f".into(),
                step,
                loss_bits: [2.5_f64.to_bits(), (0.1_f64 + 0.2).to_bits()],
                measurements: Measurements::default(),
            },
            model: vec![step as u8; 100],
        }
    }

    #[test]
    fn the_last_two_are_kept_and_the_newest_usable_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let directory = JobDirectory::new(directory.path());
        let key = FileKey::from_bytes([1; 32]);
        assert_eq!(Checkpoint::newest(&directory, &key, "f").unwrap(), None);
        for step in [5, 10, 100] {
            checkpoint(step).write(&directory, &key).unwrap();
        }
        assert_eq!(
            std::fs::read_dir(directory.checkpoints()).unwrap().count(),
            2
        );
        assert_eq!(
            Checkpoint::newest(&directory, &key, "f").unwrap(),
            Some(checkpoint(100))
        );
        std::fs::write(directory.checkpoints().join("step-100.sealed"), b"torn").unwrap();
        assert_eq!(
            Checkpoint::newest(&directory, &key, "f").unwrap(),
            Some(checkpoint(10))
        );
        assert_eq!(Checkpoint::newest(&directory, &key, "other").unwrap(), None);

        // The best one is apart from the newest ones, and only its own step is believed.
        checkpoint(3).write_best(&directory, &key).unwrap();
        assert_eq!(
            Checkpoint::newest(&directory, &key, "f").unwrap(),
            Some(checkpoint(10))
        );
        let best = |step| Checkpoint::read_best(&directory, &key, "f", step);
        assert_eq!(best(3).unwrap(), checkpoint(3));
        assert!(matches!(best(4), Err(TrainError::Checkpoint { .. })));
    }
}
