//! Checkpoints: the exact state of a run, sealed, the last two kept.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use zerog_protocol::FileKey;

use crate::error::TrainError;
use crate::job::JobDirectory;
use crate::sealing::{open_file, seal_file};

/// How many checkpoints stay on disk: the newest, and one before it in case the newest is damaged.
const KEPT: usize = 2;

/// Everything besides the model's own state that a continued run needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct RunState {
    /// Fingerprint of the job that this state belongs to.
    pub(crate) fingerprint: String,
    /// Steps done.
    pub(crate) step: u64,
    /// Loss of the first step.
    pub(crate) loss_first: f64,
    /// Loss of the newest step.
    pub(crate) loss_last: f64,
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
        std::fs::create_dir_all(&folder).map_err(TrainError::io(&folder))?;
        let header =
            serde_json::to_vec(&self.state).expect("a run state is plain numbers and text");
        let mut bytes = Vec::with_capacity(8 + header.len() + self.model.len());
        bytes.extend((header.len() as u64).to_be_bytes());
        bytes.extend(header);
        bytes.extend(&self.model);
        seal_file(
            &folder.join(name(self.state.step)),
            &mut bytes.as_slice(),
            key,
        )?;
        for (_, path) in existing(&folder)?.into_iter().skip(KEPT) {
            std::fs::remove_file(&path).map_err(TrainError::io(&path))?;
        }
        Ok(())
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
                loss_first: 2.5,
                loss_last: 0.1 + 0.2,
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
    }
}
