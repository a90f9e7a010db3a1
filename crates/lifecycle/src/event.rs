//! What can happen to a task.

use std::fmt;

use alloy_primitives::B256;
use serde::{Deserialize, Serialize};

use crate::effect::EffectKey;
use crate::fee::Fee;

/// Something that happened to a task: a request, a fact on chain, or the outcome of an effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// An executor has begun the effect.
    Started {
        /// Which one.
        effect: EffectKey,
    },
    /// The dataset is good, its tokens are counted, and the account can pay.
    Prepared {
        /// The `Prepare` effect.
        effect: EffectKey,
        /// The fee, fixed from here on.
        fee: Fee,
    },
    /// Training has ended and the adapter files are in place.
    Trained {
        /// The `Train` effect.
        effect: EffectKey,
    },
    /// The encrypted archive and the sealed key are stored.
    Sealed {
        /// The `Seal` effect.
        effect: EffectKey,
    },
    /// The archive is in storage.
    Published {
        /// The `Publish` effect.
        effect: EffectKey,
        /// Storage root of the archive.
        root_hash: B256,
    },
    /// The deliverable is on chain.
    DeliverableAdded {
        /// The `AddDeliverable` effect.
        effect: EffectKey,
        /// Time of the block, in Unix seconds.
        deliver_time_s: u64,
        /// The contract's acknowledgement window of this deliverable in seconds.
        ack_window_s: u64,
    },
    /// The user acknowledged on chain. A fact of the chain, so it names no effect.
    Acknowledged,
    /// The fee is settled on chain. A fact of the chain.
    Settled {
        /// Whether the encrypted key was published with it.
        with_secret: bool,
    },
    /// The provider gave the deliverable up on chain.
    Abandoned {
        /// The `Abandon` effect.
        effect: EffectKey,
    },
    /// A timer came due, and the chain showed no acknowledgement.
    TimerDue {
        /// The timer.
        effect: EffectKey,
    },
    /// An effect failed.
    Failed {
        /// Which one.
        effect: EffectKey,
        /// Why, and whether trying again can help.
        failure: EffectFailure,
    },
    /// The user asked to cancel.
    CancelRequested,
}

/// Why an effect failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EffectFailure {
    /// What kind of failure.
    pub reason: FailureReason,
    /// Text for the user's log; no secrets, no dataset content.
    pub detail: String,
    /// Whether the same attempt can never succeed.
    pub is_permanent: bool,
}

impl EffectFailure {
    /// A failure that trying again may cure.
    #[must_use]
    pub fn retry(reason: FailureReason, detail: impl Into<String>) -> Self {
        Self {
            reason,
            detail: detail.into(),
            is_permanent: false,
        }
    }

    /// A failure that trying again cannot cure.
    #[must_use]
    pub fn permanent(reason: FailureReason, detail: impl Into<String>) -> Self {
        Self {
            reason,
            detail: detail.into(),
            is_permanent: true,
        }
    }
}

/// Why a task failed, as the stable word `failureReason` on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FailureReason {
    /// The dataset could not be found or fetched.
    DatasetUnavailable,
    /// The dataset was read and is not usable.
    DatasetInvalid,
    /// The base model is not on this provider.
    ModelUnavailable,
    /// The account cannot pay the fee.
    InsufficientBalance,
    /// The account or the service is not acknowledged.
    NotAuthorized,
    /// The fee is larger than the user allowed.
    FeeAboveLimit,
    /// Training ran out of memory.
    OutOfMemory,
    /// Training failed otherwise.
    TrainingFailed,
    /// The archive could not be made or stored.
    DeliveryFailed,
    /// An earlier deliverable of the user blocks this one.
    PreviousDeliverableUnacknowledged,
    /// Nobody acknowledged the deliverable in time.
    NotAcknowledged,
    /// The fee could not be settled.
    SettlementFailed,
    /// The chain could not be read or written.
    ChainUnavailable,
    /// The provider's disk is full; the work waits for room.
    DiskFull,
    /// A fault of the provider.
    Internal,
}

impl FailureReason {
    /// The stable word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::DatasetUnavailable => "dataset_unavailable",
            Self::DatasetInvalid => "dataset_invalid",
            Self::ModelUnavailable => "model_unavailable",
            Self::InsufficientBalance => "insufficient_balance",
            Self::NotAuthorized => "not_authorized",
            Self::FeeAboveLimit => "fee_above_limit",
            Self::OutOfMemory => "out_of_memory",
            Self::TrainingFailed => "training_failed",
            Self::DeliveryFailed => "delivery_failed",
            Self::PreviousDeliverableUnacknowledged => "previous_deliverable_unacknowledged",
            Self::NotAcknowledged => "not_acknowledged",
            Self::SettlementFailed => "settlement_failed",
            Self::ChainUnavailable => "chain_unavailable",
            Self::DiskFull => "disk_full",
            Self::Internal => "internal",
        }
    }
}

impl fmt::Display for FailureReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
