//! Carrying out effects: one file per kind, and the runner that claims, renews and reports.

mod adapters;
mod clean_up;
mod deliver;
mod prepare;
mod runner;
mod settle;
mod stored_file;
mod timers;
mod train;

use zerog_chain::{ChainError, ContractErrorKind};
use zerog_lifecycle::event::{EffectFailure, FailureReason};

use crate::outbox::OutboxError;
use crate::store::StoreError;
use crate::vault::{VaultError, is_disk_full};

pub(crate) use adapters::{Reload, register_own_adapter, reload};
pub(crate) use clean_up::{remove_dataset, sweep_datasets};
pub(crate) use deliver::acknowledged_on_chain;
pub(crate) use runner::start;
pub(crate) use stored_file::StoredFile;

/// What users are told about a full disk.
const DISK_FULL: &str = "the provider has no disk space left; the task goes on when there is room";

/// Why an executor did not fulfil its effect.
#[derive(Debug)]
pub(crate) enum EffectError {
    /// The effect failed; the state machine decides what follows.
    Failed(EffectFailure),
    /// The process is stopping or the effect is void; nothing is reported.
    Stopped,
}

impl EffectError {
    pub(crate) fn retry(reason: FailureReason, detail: impl ToString) -> Self {
        Self::Failed(EffectFailure::retry(reason, detail.to_string()))
    }

    pub(crate) fn permanent(reason: FailureReason, detail: impl ToString) -> Self {
        Self::Failed(EffectFailure::permanent(reason, detail.to_string()))
    }

    fn of_file(is_disk_full: bool) -> Self {
        if is_disk_full {
            Self::retry(FailureReason::DiskFull, DISK_FULL)
        } else {
            let detail = "a file of the provider could not be used";
            Self::retry(FailureReason::Internal, detail)
        }
    }
}

impl From<std::io::Error> for EffectError {
    fn from(error: std::io::Error) -> Self {
        tracing::error!(%error, "a file failed");
        Self::of_file(is_disk_full(&error))
    }
}

impl From<StoreError> for EffectError {
    fn from(error: StoreError) -> Self {
        tracing::error!(%error, "the database failed");
        if error.is_disk_full() {
            return Self::of_file(true);
        }
        Self::retry(FailureReason::Internal, "the provider's database failed")
    }
}

impl From<VaultError> for EffectError {
    fn from(error: VaultError) -> Self {
        tracing::error!(%error, "a sealed file failed");
        Self::of_file(error.is_disk_full())
    }
}

impl From<ChainError> for EffectError {
    fn from(error: ChainError) -> Self {
        let reason = match error.contract_error().map(|error| error.kind) {
            Some(ContractErrorKind::PreviousDeliverableNotAcknowledged) => {
                FailureReason::PreviousDeliverableUnacknowledged
            }
            _ => FailureReason::ChainUnavailable,
        };
        Self::retry(reason, error)
    }
}

impl From<OutboxError> for EffectError {
    fn from(error: OutboxError) -> Self {
        match error {
            OutboxError::Chain(error) => error.into(),
            OutboxError::Store(error) => error.into(),
        }
    }
}
