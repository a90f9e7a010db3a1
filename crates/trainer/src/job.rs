//! The job directory: what the provider puts in, what the trainer leaves there.
//!
//! | file | written by | content |
//! |---|---|---|
//! | `job.json` | provider | [`Job`], in clear; it holds nothing secret |
//! | `dataset.sealed` | provider | the dataset file, sealed under the job key |
//! | `validation.sealed` | provider | with `validation_dataset`: that dataset, sealed under the job key |
//! | `initial.sealed` | provider | with `continue_from`: the archive of the earlier task, sealed under the job key |
//! | `checkpoints/step-N.sealed` | trainer | the last two checkpoints, sealed |
//! | `checkpoints/best.sealed` | trainer | the checkpoint with the lowest validation loss, sealed |
//! | `adapter.sealed` | trainer | the finished archive, sealed; put in place by rename |
//!
//! The job key arrives as one line of 64 hexadecimal digits on standard input.

use std::io::BufRead;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zerog_model::Device;
use zerog_protocol::FileKey;
use zerog_protocol::training_params::TrainingParams;
use zeroize::Zeroizing;

use crate::error::TrainError;

/// Version of `job.json` that this trainer reads.
pub const JOB_VERSION: u32 = 1;

/// One fine-tuning run, as the provider describes it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// [`JOB_VERSION`].
    pub version: u32,
    /// Task id text, for the manifest.
    pub task_id: String,
    /// The base model's name as the user asked for it.
    pub base_model: String,
    /// Folder with `config.json`, weights and tokenizer files.
    pub base_model_dir: PathBuf,
    /// Whether the folder holds other weights than the name says (chain 31337 only).
    #[serde(default)]
    pub stand_in: bool,
    /// Dataset hash as in the task, for the manifest.
    pub dataset_hash: String,
    /// Checked parameters.
    pub params: TrainingParams,
    /// Steps between checkpoints; `None` picks about ten per run.
    #[serde(default)]
    pub checkpoint_every_steps: Option<u64>,
    /// Most memory that the run may use, in bytes; `None` = what the system reports as available.
    #[serde(default)]
    pub memory_limit_bytes: Option<u64>,
    /// Where to train: `cpu` or `cuda:N`.
    #[serde(default, with = "device_text")]
    pub device: Device,
}

/// A device as its text.
mod device_text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use zerog_model::Device;

    pub(super) fn serialize<S: Serializer>(
        device: &Device,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(device)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Device, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}

impl Job {
    /// Reads `job.json` of a job directory.
    ///
    /// # Errors
    /// [`TrainError::Io`] and [`TrainError::Job`].
    pub fn read(directory: &JobDirectory) -> Result<Self, TrainError> {
        let path = directory.job();
        let bytes = std::fs::read(&path).map_err(TrainError::io(&path))?;
        let job: Self = serde_json::from_slice(&bytes).map_err(|error| TrainError::Job {
            path: path.clone(),
            problem: error.to_string(),
        })?;
        if job.version != JOB_VERSION {
            return Err(TrainError::Job {
                path,
                problem: format!("version {} is not {JOB_VERSION}", job.version),
            });
        }
        Ok(job)
    }

    /// Writes `job.json`, complete or not at all.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub fn write(&self, directory: &JobDirectory) -> Result<(), TrainError> {
        let path = directory.job();
        let broken = |error: std::io::Error| TrainError::Io {
            path: path.clone(),
            source: error,
        };
        let text = serde_json::to_vec_pretty(self).map_err(|error| broken(error.into()))?;
        let temporary = path.with_extension("json.tmp");
        std::fs::write(&temporary, text).map_err(broken)?;
        std::fs::rename(&temporary, &path).map_err(|source| TrainError::Io {
            path: path.clone(),
            source,
        })
    }

    /// What a checkpoint must agree with to be continued: everything that decides the bytes
    /// of the adapter, and nothing that may differ between machines.
    pub(crate) fn fingerprint(&self, base_model_sha256: &str) -> String {
        let mut hash = Sha256::new();
        let params =
            serde_json::to_string(&self.params).expect("parameters are plain numbers and names");
        for part in [
            "zerog/checkpoint/1",
            &self.task_id,
            &self.dataset_hash,
            base_model_sha256,
            &params,
        ] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        hex::encode(hash.finalize())
    }
}

/// Names inside a job directory.
#[derive(Debug, Clone)]
pub struct JobDirectory(PathBuf);

impl JobDirectory {
    /// The directory at `path`; nothing is read or created.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// `job.json`.
    pub fn job(&self) -> PathBuf {
        self.0.join("job.json")
    }

    /// `dataset.sealed`.
    pub fn dataset(&self) -> PathBuf {
        self.0.join("dataset.sealed")
    }

    /// `validation.sealed`.
    pub fn validation(&self) -> PathBuf {
        self.0.join("validation.sealed")
    }

    /// `initial.sealed`.
    pub fn initial(&self) -> PathBuf {
        self.0.join("initial.sealed")
    }

    /// `checkpoints`.
    pub fn checkpoints(&self) -> PathBuf {
        self.0.join("checkpoints")
    }

    /// `adapter.sealed`.
    pub fn adapter(&self) -> PathBuf {
        self.0.join("adapter.sealed")
    }
}

/// Reads the job key: one line of 64 hexadecimal digits.
///
/// # Errors
/// [`TrainError::Key`].
pub fn read_key(input: &mut impl BufRead) -> Result<FileKey, TrainError> {
    // Longer lines are no key; a limit keeps a wrong pipe from filling memory.
    const LONGEST_LINE: u64 = 70;
    let mut line = Zeroizing::new(Vec::with_capacity(LONGEST_LINE as usize));
    std::io::Read::take(input, LONGEST_LINE)
        .read_until(b'\n', &mut line)
        .map_err(|_| TrainError::Key)?;
    let mut bytes = Zeroizing::new([0_u8; 32]);
    hex::decode_to_slice(line.trim_ascii(), bytes.as_mut_slice()).map_err(|_| TrainError::Key)?;
    Ok(FileKey::from_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job() -> Job {
        Job {
            version: JOB_VERSION,
            task_id: "6b607314-88ba-4a39-9a43-0d5c5a1a7c11".into(),
            base_model: "mock-model".into(),
            base_model_dir: "/models/tiny".into(),
            stand_in: false,
            dataset_hash: "0x00".into(),
            params: TrainingParams::default(),
            checkpoint_every_steps: None,
            memory_limit_bytes: None,
            device: Device::Cuda(1),
        }
    }

    #[test]
    fn a_job_is_read_as_it_was_written() {
        let directory = tempfile::tempdir().unwrap();
        let directory = JobDirectory::new(directory.path());
        job().write(&directory).unwrap();
        assert_eq!(Job::read(&directory).unwrap(), job());
        let text = std::fs::read_to_string(directory.job()).unwrap();
        assert!(text.contains(r#""device": "cuda:1""#), "{text}");
        let text = text.replace("cuda:1", "gpu");
        std::fs::write(directory.job(), text).unwrap();
        let error = Job::read(&directory).unwrap_err();
        assert!(error.to_string().contains("cuda:0"), "{error}");
        std::fs::write(directory.job(), "{}").unwrap();
        assert!(matches!(Job::read(&directory), Err(TrainError::Job { .. })));
    }

    #[test]
    fn the_fingerprint_depends_on_what_decides_the_adapter() {
        let one = job();
        let mut other = job();
        other.checkpoint_every_steps = Some(3);
        assert_eq!(one.fingerprint("a"), other.fingerprint("a"));
        assert_ne!(one.fingerprint("a"), one.fingerprint("b"));
        other.params.seed = 7;
        assert_ne!(one.fingerprint("a"), other.fingerprint("a"));
    }

    #[test]
    fn the_key_is_one_hexadecimal_line() {
        let line = format!("{}\n", "ab".repeat(32));
        assert_eq!(
            read_key(&mut line.as_bytes()).unwrap(),
            FileKey::from_bytes([0xAB; 32])
        );
        for bad in ["", "ab\n", &"zz".repeat(32), &"ab".repeat(40)] {
            assert!(matches!(
                read_key(&mut bad.as_bytes()),
                Err(TrainError::Key)
            ));
        }
    }
}
