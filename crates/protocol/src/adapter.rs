//! Adapter states, as the interface shows them and as they really are.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Where a deployed adapter is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AdapterState {
    /// The key is here, the acknowledgement on chain not yet.
    Init,
    /// Registered, waiting for a download slot.
    Pending,
    /// Being fetched, checked and unpacked.
    Downloading,
    /// On disk, not in the engine.
    Ready,
    /// The engine loads it.
    Loading,
    /// Served.
    Active,
    /// On disk, pushed out of the engine.
    Offloaded,
    /// Only in 0G Storage.
    Archived,
    /// Not usable; the reason is stored beside it.
    Failed,
}

impl AdapterState {
    /// All states in the order of an adapter's life.
    pub const ALL: [Self; 9] = [
        Self::Init,
        Self::Pending,
        Self::Downloading,
        Self::Ready,
        Self::Loading,
        Self::Active,
        Self::Offloaded,
        Self::Archived,
        Self::Failed,
    ];

    /// The name of the state.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Init => "init",
            Self::Pending => "pending",
            Self::Downloading => "downloading",
            Self::Ready => "ready",
            Self::Loading => "loading",
            Self::Active => "active",
            Self::Offloaded => "offloaded",
            Self::Archived => "archived",
            Self::Failed => "failed",
        }
    }

    /// The name shown in the `state` member: published clients wait for `ready` before they ask for deployment, so an
    /// offloaded adapter shows as ready and an archived one, whose restore starts with the question, as downloading.
    pub const fn on_the_wire(self) -> &'static str {
        match self {
            Self::Offloaded => "ready",
            Self::Archived => "downloading",
            other => other.as_str(),
        }
    }
}

impl fmt::Display for AdapterState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A state name that this protocol does not have.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not an adapter state")]
pub struct UnknownAdapterState(pub String);

impl FromStr for AdapterState {
    type Err = UnknownAdapterState;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| UnknownAdapterState(text.to_owned()))
    }
}
