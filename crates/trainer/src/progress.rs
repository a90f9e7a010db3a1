//! Progress records: one JSON object a line on standard output.

use serde::{Deserialize, Serialize};

/// Scores besides the loss, each where the method has it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// Share of texts whose class is the likeliest one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
    /// F1 score, the mean over classes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub f1: Option<f64>,
    /// Mean of the differences of rewards between better and worse answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reward_margin: Option<f64>,
    /// Share of pairs whose better answer has the higher reward.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reward_accuracy: Option<f64>,
}

/// What a run reports while it works. Numbers that are not yet known are `null`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Progress {
    /// The dataset is rendered and the model is loaded.
    Started {
        /// Steps of the whole run.
        total_steps: u64,
        /// Steps done before, by a run that was interrupted.
        resumed_at: u64,
        /// Examples of one epoch.
        examples: u64,
        /// Tokens of one epoch.
        tokens: u64,
        /// Tokens of one epoch that are learned.
        supervised_tokens: u64,
        /// Examples cut at `max_seq_length`.
        truncated_examples: u64,
        /// Tokens of them that were cut off.
        #[serde(default)]
        truncated_tokens: u64,
        /// Records longer than `max_seq_length` that became several examples.
        #[serde(default)]
        split_examples: u64,
        /// Records left out because they are longer than `max_seq_length`.
        #[serde(default)]
        dropped_examples: u64,
        /// Examples left out because nothing of their answer was left.
        skipped_examples: u64,
        /// Examples set aside for validation.
        #[serde(default)]
        validation_examples: u64,
        /// Memory that the run is expected to take at most, in bytes; 0 where nobody worked it out.
        #[serde(default)]
        expected_memory_bytes: u64,
        /// Whether memory is short, so that layers are computed a second time in the backward pass.
        #[serde(default)]
        recomputes_layers: bool,
        /// Whether other weights than the named base model are trained on.
        stand_in: bool,
    },
    /// One optimiser step is done.
    Step {
        /// Steps done, from 1.
        step: u64,
        /// Steps of the whole run.
        total: u64,
        /// Mean loss per learned token before the update.
        loss: f64,
        /// Learning rate of the update.
        learning_rate: f64,
        /// Epochs done, with fraction.
        epoch: f64,
        /// Norm of the gradient before clipping.
        grad_norm: f64,
        /// Tokens per second of this process.
        tokens_per_s: f64,
        /// Seconds until the last step at this speed.
        eta_s: f64,
        /// Further scores of this step's examples, before the update.
        #[serde(flatten)]
        metrics: Metrics,
    },
    /// The examples set aside for validation were measured.
    Validated {
        /// Steps done.
        step: u64,
        /// Epochs done, with fraction.
        epoch: f64,
        /// Mean loss.
        eval_loss: f64,
        /// Examples that were measured.
        examples: u64,
        /// Whether no earlier loss was lower.
        is_best: bool,
        /// Further scores.
        #[serde(flatten)]
        metrics: Metrics,
    },
    /// No better loss came for as many measurements as the run had patience for.
    StoppedEarly {
        /// Steps done.
        step: u64,
        /// Steps that the run would have had.
        total: u64,
    },
    /// The delivered state is not the last one but the best one.
    BestLoaded {
        /// Its steps.
        step: u64,
        /// Its validation loss.
        eval_loss: f64,
    },
    /// A checkpoint is on disk.
    Checkpoint {
        /// Steps that it holds.
        step: u64,
    },
    /// The finished adapter was compared with the base model on training examples.
    Evaluated {
        /// Mean loss per learned token without the adapter.
        base_loss: f64,
        /// The same with the adapter.
        tuned_loss: f64,
        /// Examples that were used.
        examples: u64,
        /// Further scores with the adapter.
        #[serde(flatten)]
        metrics: Metrics,
    },
    /// `adapter.sealed` is in place.
    Finished {
        /// Steps done.
        steps: u64,
        /// Loss of the first step.
        loss_first: f64,
        /// Loss of the last step.
        loss_last: f64,
        /// Size of `adapter.sealed`.
        adapter_bytes: u64,
    },
    /// The run ended without an adapter.
    Failed {
        /// Stable name, [`crate::TrainError::code`].
        code: String,
        /// What happened and what to do, for people.
        message: String,
    },
}
