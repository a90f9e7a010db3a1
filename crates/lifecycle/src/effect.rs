//! What a transition asks the provider to do, as data.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::deadline::Timestamp;

/// The kinds of work on a task. The provider has one executor for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EffectKind {
    /// Fetch and check the dataset, count its tokens, fix the fee, check the account.
    Prepare,
    /// Run or resume the training process.
    Train,
    /// Build the encrypted archive and seal its key to the user. Made once, never remade.
    Seal,
    /// Upload the archive to storage.
    Publish,
    /// Put the deliverable on chain.
    AddDeliverable,
    /// Look whether the acknowledgement was missed.
    AckDeadline,
    /// Settle the full fee and publish the encrypted key.
    Settle,
    /// Settle the penalty of a task that nobody acknowledged. Only with [`crate::OnMissedAck::Penalty`].
    SettleUnacknowledged,
    /// Look whether the retention of an unacknowledged artefact is over.
    Retention,
    /// Give the deliverable up on chain.
    Abandon,
    /// Make the adapter known to the provider's own inference role.
    RegisterAdapter,
    /// Remove the files of an ended task.
    CleanUp,
}

impl EffectKind {
    /// Every kind.
    pub const ALL: [Self; 12] = [
        Self::Prepare,
        Self::Train,
        Self::Seal,
        Self::Publish,
        Self::AddDeliverable,
        Self::AckDeadline,
        Self::Settle,
        Self::SettleUnacknowledged,
        Self::Retention,
        Self::Abandon,
        Self::RegisterAdapter,
        Self::CleanUp,
    ];

    /// The stable name, as stored.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Prepare => "prepare",
            Self::Train => "train",
            Self::Seal => "seal",
            Self::Publish => "publish",
            Self::AddDeliverable => "add_deliverable",
            Self::AckDeadline => "ack_deadline",
            Self::Settle => "settle",
            Self::SettleUnacknowledged => "settle_unacknowledged",
            Self::Retention => "retention",
            Self::Abandon => "abandon",
            Self::RegisterAdapter => "register_adapter",
            Self::CleanUp => "clean_up",
        }
    }

    /// Whether the task waits for the outcome. The others are done when they are done.
    #[must_use]
    pub fn reports(self) -> bool {
        !matches!(self, Self::RegisterAdapter | Self::CleanUp)
    }

    /// Whether this is a look at the clock and the chain instead of work.
    #[must_use]
    pub fn is_timer(self) -> bool {
        matches!(self, Self::AckDeadline | Self::Retention)
    }
}

impl fmt::Display for EffectKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A name that is no effect kind.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not an effect kind")]
pub struct UnknownKind(pub String);

impl FromStr for EffectKind {
    type Err = UnknownKind;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.as_str() == text)
            .ok_or_else(|| UnknownKind(text.to_owned()))
    }
}

/// Names one effect of one task; with the task id it is the idempotency key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct EffectKey {
    /// What is done.
    pub kind: EffectKind,
    /// Number of the effect within its task; it grows with every effect and with every cancellation.
    pub generation: u32,
}

/// One effect to carry out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Effect {
    /// Its name within the task.
    pub key: EffectKey,
    /// Not before.
    pub due: Timestamp,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for kind in EffectKind::ALL {
            assert_eq!(kind.as_str().parse(), Ok(kind));
        }
        assert!("sleep".parse::<EffectKind>().is_err());
    }
}
