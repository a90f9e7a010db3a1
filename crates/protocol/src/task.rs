//! Task states: the ten long names of the wire plus `Cancelled`, and the short life cycle of the Python interface.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Where a task is. The names on the wire are the variant names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum TaskState {
    /// Accepted, waiting for set-up.
    Init,
    /// The dataset is fetched and counted, the fee is worked out.
    SettingUp,
    /// Checked; the fee is fixed; waiting for a worker.
    SetUp,
    /// The trainer runs.
    Training,
    /// The adapter exists.
    Trained,
    /// Encrypting, storing, writing the deliverable to the chain.
    Delivering,
    /// The deliverable is on chain; waiting for the user.
    Delivered,
    /// The user acknowledged on chain.
    UserAcknowledged,
    /// Settled: paid, and the key is on chain.
    Finished,
    /// Ended without success.
    Failed,
    /// Ended by the user before training was done; nothing is charged.
    Cancelled,
}

impl TaskState {
    /// All states in the order of a task's life.
    pub const ALL: [Self; 11] = [
        Self::Init,
        Self::SettingUp,
        Self::SetUp,
        Self::Training,
        Self::Trained,
        Self::Delivering,
        Self::Delivered,
        Self::UserAcknowledged,
        Self::Finished,
        Self::Failed,
        Self::Cancelled,
    ];

    /// The name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Init => "Init",
            Self::SettingUp => "SettingUp",
            Self::SetUp => "SetUp",
            Self::Training => "Training",
            Self::Trained => "Trained",
            Self::Delivering => "Delivering",
            Self::Delivered => "Delivered",
            Self::UserAcknowledged => "UserAcknowledged",
            Self::Finished => "Finished",
            Self::Failed => "Failed",
            Self::Cancelled => "Cancelled",
        }
    }

    /// Whether the task has ended.
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Finished | Self::Failed | Self::Cancelled)
    }

    /// Whether the task counts as pending in the provider's queue.
    pub const fn is_pending(self) -> bool {
        matches!(
            self,
            Self::Init | Self::SettingUp | Self::SetUp | Self::Training
        )
    }

    /// Whether the encrypted adapter can be downloaded.
    pub const fn is_downloadable(self) -> bool {
        matches!(
            self,
            Self::Delivered | Self::UserAcknowledged | Self::Finished
        )
    }

    /// The short name of the Python interface's life cycle.
    pub const fn lifecycle(self) -> &'static str {
        match self {
            Self::Init | Self::SettingUp | Self::SetUp => "Init",
            Self::Training => "Training",
            Self::Trained | Self::Delivering => "Trained",
            Self::Delivered | Self::UserAcknowledged => "Delivered",
            Self::Finished => "Completed",
            Self::Failed => "Failed",
            Self::Cancelled => "Cancelled",
        }
    }
}

impl fmt::Display for TaskState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A state name that this protocol does not have.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not a task state")]
pub struct UnknownTaskState(pub String);

impl FromStr for TaskState {
    type Err = UnknownTaskState;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| UnknownTaskState(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for state in TaskState::ALL {
            assert_eq!(state.as_str().parse::<TaskState>(), Ok(state));
            assert_eq!(
                serde_json::to_string(&state).unwrap(),
                format!("\"{state}\"")
            );
        }
        assert!("Completed".parse::<TaskState>().is_err());
        assert_eq!(TaskState::Finished.lifecycle(), "Completed");
    }
}
