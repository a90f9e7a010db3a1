//! What a long operation tells while it runs.

use serde::Serialize;

use alloy_primitives::{Address, U256};

use crate::error::ServiceKind;

/// One piece of news, in the order in which things happen.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Progress {
    /// A step of the walk begins.
    Step {
        /// A short phrase, for example `uploading the dataset`.
        text: String,
    },
    /// Something worth knowing that is no error.
    Notice {
        /// A sentence.
        text: String,
    },
    /// A transfer moved on.
    Transfer {
        /// Bytes so far.
        done_bytes: u64,
        /// All bytes, if known.
        total_bytes: Option<u64>,
    },
    /// The task's state or training progress, at every change.
    Task {
        /// State name on the wire.
        state: String,
        /// Finished optimiser steps.
        step: Option<u64>,
        /// All optimiser steps.
        total_steps: Option<u64>,
        /// Loss of the newest step, per supervised token.
        loss: Option<f64>,
        /// Newest loss on the records set aside for validation.
        eval_loss: Option<f64>,
        /// Learning rate of the newest step.
        learning_rate: Option<f64>,
        /// Tokens trained per second.
        tokens_per_s: Option<f64>,
        /// Estimated seconds to the end of training.
        eta_s: Option<f64>,
        /// Tasks ahead in the queue.
        queue_position: Option<u64>,
        /// What is being done, in words.
        stage: Option<String>,
    },
    /// The adapter's true state, at every change.
    Adapter {
        /// State name.
        state: String,
    },
    /// Money was moved into a sub-account.
    Funded {
        /// Which contract.
        service: ServiceKind,
        /// The provider.
        provider: Address,
        /// Neuron.
        #[serde(rename = "amount_neuron", serialize_with = "crate::neuron::serialize")]
        amount: U256,
    },
}

impl Progress {
    pub(crate) fn step(text: impl Into<String>) -> Self {
        Self::Step { text: text.into() }
    }

    pub(crate) fn notice(text: impl Into<String>) -> Self {
        Self::Notice { text: text.into() }
    }
}
