//! What can end a run, with the exit code and the short name that the provider acts on.

use std::path::PathBuf;

use zerog_model::{DeviceError, ModelError};
use zerog_protocol::sealed_archive::ArchiveError;
use zerog_tokenization::{ExampleError, TokenizerError};

/// Exit codes of the training process.
pub mod exit {
    /// The adapter is in place.
    pub const DONE: u8 = 0;
    /// Something failed that may not fail again; start the same job once more.
    pub const RETRY: u8 = 1;
    /// The input is bad; the same job will always fail.
    pub const BAD_INPUT: u8 = 2;
    /// The run needs more memory than there is.
    pub const OUT_OF_MEMORY: u8 = 3;
    /// The disk is full; start the same job again when there is room.
    pub const DISK_FULL: u8 = 4;
    /// Stopped on request after a checkpoint; start the same job to go on (`EX_TEMPFAIL`).
    pub const STOPPED: u8 = 75;
}

/// Why a training run ended without an adapter.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// A file of the job directory could not be read or written.
    #[error("cannot access {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// `job.json` cannot be understood.
    #[error("{path} is not a job description: {problem}")]
    Job {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The first line of standard input is not a key.
    #[error("the job key on standard input must be one line of 64 hexadecimal digits")]
    Key,
    /// A sealed file does not open with the job key.
    #[error("cannot open {path} with the job key: {source}")]
    Sealed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: ArchiveError,
    },
    /// Tokenizer files of the base model are missing or broken.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The dataset or one of its records cannot be trained on.
    #[error(transparent)]
    Examples(#[from] ExampleError),
    /// The dataset to measure on is no good.
    #[error("the validation dataset: {0}")]
    Validation(#[source] ExampleError),
    /// Loading or computing the model failed.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The parameters do not fit the base model.
    #[error("{0}")]
    Params(String),
    /// The run would need more memory than there is.
    #[error(
        "this run needs about {needed_mib} MiB of memory and {available_mib} MiB are available; {remedy}"
    )]
    OutOfMemory {
        /// The estimate.
        needed_mib: u64,
        /// What is free, or the limit of the job.
        available_mib: u64,
        /// The parameters that fit, in words.
        remedy: String,
    },
    /// The loss or the gradient is not a number any more.
    #[error(
        "the {what} is not finite at step {step}; lower learning_rate (the last good checkpoint is step {checkpoint_step})"
    )]
    Diverged {
        /// `loss`, `gradient` or `validation loss`.
        what: &'static str,
        /// The step, from 1.
        step: u64,
        /// Step of the newest checkpoint; 0 when there is none.
        checkpoint_step: u64,
    },
    /// The loss is exactly zero, which means that nothing was trained.
    #[error(
        "the loss is exactly 0 at step {step}, so nothing is being learned; check that the answers of the dataset are not empty"
    )]
    NothingLearned {
        /// The step, from 1.
        step: u64,
    },
    /// A checkpoint belongs to another job or is damaged.
    #[error("checkpoint {path} cannot be used: {problem}")]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The archive could not be written.
    #[error("cannot write the adapter archive: {0}")]
    Archive(String),
    /// The parent asked for an end; a checkpoint was written.
    #[error("stopped on request at step {step}; start the job again to go on")]
    Stopped {
        /// Steps done.
        step: u64,
    },
}

impl TrainError {
    /// The exit code of the process, one of [`exit`].
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Io { source, .. } if source.kind() == std::io::ErrorKind::OutOfMemory => {
                exit::OUT_OF_MEMORY
            }
            Self::Io { source, .. } if is_disk_full(source) => exit::DISK_FULL,
            Self::Io { .. } | Self::Archive(_) | Self::Checkpoint { .. } => exit::RETRY,
            Self::OutOfMemory { .. }
            | Self::Model(ModelError::Device(DeviceError::OutOfMemory { .. })) => {
                exit::OUT_OF_MEMORY
            }
            // The machine is to be put right; the input is as good as before.
            Self::Model(ModelError::Device(_)) => exit::RETRY,
            Self::Stopped { .. } => exit::STOPPED,
            // A file of the base model that cannot be read right now may be there the next time.
            Self::Tokenizer(TokenizerError::Read { .. }) | Self::Model(ModelError::Io { .. }) => {
                exit::RETRY
            }
            _ => exit::BAD_INPUT,
        }
    }

    /// A stable name of the failure for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Io { source, .. } if is_disk_full(source) => "disk_full",
            Self::Io { .. } => "io",
            Self::Job { .. } => "bad_job",
            Self::Key => "bad_key",
            Self::Sealed { .. } => "bad_seal",
            Self::Tokenizer(_) => "bad_tokenizer",
            Self::Examples(ExampleError::NothingToLearn { .. }) => "nothing_to_learn",
            Self::Examples(_) | Self::Validation(_) => "bad_dataset",
            Self::Model(ModelError::Device(DeviceError::OutOfMemory { .. })) => "out_of_memory",
            Self::Model(ModelError::Device(_)) => "device",
            Self::Model(_) => "bad_model",
            Self::Params(_) => "bad_params",
            Self::OutOfMemory { .. } => "out_of_memory",
            Self::Diverged { .. } => "diverged",
            Self::NothingLearned { .. } => "nothing_learned",
            Self::Checkpoint { .. } => "bad_checkpoint",
            Self::Archive(_) => "archive",
            Self::Stopped { .. } => "stopped",
        }
    }

    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}

/// Whether disk, quota or a limit on file sizes is exhausted.
fn is_disk_full(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}
