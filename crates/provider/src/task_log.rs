//! The lines that a user reads with `get-log`, in the words of the published broker where it has words for it.

use zerog_lifecycle::effect::EffectKind;
use zerog_lifecycle::event::FailureReason;
use zerog_lifecycle::task::{Notice, Task};
use zerog_protocol::amount::format_0g;
use zerog_protocol::task::TaskState;
use zerog_trainer::{Metrics, Progress};

use crate::store::EventRow;

/// A point in time as RFC 3339 in UTC with milliseconds.
#[must_use]
pub(crate) fn rfc3339(unix_ms: u64) -> String {
    i64::try_from(unix_ms)
        .ok()
        .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok())
        .map_or_else(String::new, |time| {
            time.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
        })
}

/// One stored line as it stands in the log.
#[must_use]
pub(crate) fn render(event: &EventRow) -> String {
    format!("[{}] {}\n", rfc3339(event.at_ms), event.content)
}

/// Lines for one notice about a task.
#[must_use]
pub(crate) fn lines(task: &Task, notice: &Notice) -> Vec<String> {
    let id = task.id;
    match notice {
        Notice::State { to, .. } => match to {
            TaskState::SetUp => vec![format!("Training model for setup task {id} successfully")],
            TaskState::Training => vec![format!("Training task {id} started")],
            TaskState::Trained => vec![
                format!("Training model for executor task {id} successfully"),
                format!("Training model for task {id} completed successfully"),
            ],
            TaskState::Delivered => vec![format!(
                "Training model for finalizer task {id} successfully"
            )],
            TaskState::UserAcknowledged => vec![format!("task {id} acknowledged by its user")],
            TaskState::Finished => vec![format!("Settle task {id} successfully")],
            TaskState::Cancelled => vec![format!("task {id} cancelled, nothing is charged")],
            _ => Vec::new(),
        },
        Notice::FeeFixed(fee) => vec![format!(
            "Fee {} neuron ({} 0G) = {} tokens x {} neuron x {} + storage {} neuron; {} tokens in {} examples per epoch",
            fee.total,
            format_0g(fee.total),
            fee.billed_tokens,
            fee.price_per_token,
            fee.price_coefficient,
            fee.storage_fee,
            fee.tokens_per_epoch,
            fee.examples,
        )],
        Notice::Retry { kind, detail, .. } => match kind {
            EffectKind::Prepare => vec![
                format!("setup failed: {detail}"),
                format!("Retrying task {id}"),
            ],
            EffectKind::Settle | EffectKind::SettleUnacknowledged => {
                vec![
                    format!("Settle task {id} failed: {detail}"),
                    format!("Retrying task {id}"),
                ]
            }
            // Looking at the clock again is no news for the user.
            EffectKind::AckDeadline | EffectKind::Retention => Vec::new(),
            _ => vec![
                format!("Error executing task {id}: {detail}"),
                format!("Retrying task {id}"),
            ],
        },
        Notice::AckDeadline { at_s } => vec![format!(
            "Delivered. Acknowledge before {} (0g-compute-cli fine-tuning acknowledge-model)",
            rfc3339(at_s.saturating_mul(1000))
        )],
        Notice::AckMissed { kept_until_s } => vec![format!(
            "Not acknowledged in time. Nothing is charged; the result is kept until {} and can still be acknowledged",
            rfc3339(kept_until_s.saturating_mul(1000))
        )],
        Notice::PenaltyDue => {
            vec!["Not acknowledged in time. The provider charges the contract's penalty".into()]
        }
        Notice::Failed(failure) => {
            let mut lines = Vec::new();
            if matches!(failure.stage, TaskState::Init | TaskState::SettingUp) {
                lines.push(format!("setup failed: {}", failure.detail));
            }
            lines.push(format!("Error executing task {id}: {}", failure.detail));
            if failure.reason == FailureReason::PreviousDeliverableUnacknowledged {
                lines.push(
                    "An earlier result is not acknowledged. Run 0g-compute-cli fine-tuning acknowledge-deliverable \
                     (acknowledgeDeliverable) for it and create the task again"
                        .into(),
                );
            }
            lines
        }
    }
}

/// The line for one progress record; `None` for records that are no news.
#[must_use]
pub(crate) fn progress_line(progress: &Progress) -> Option<String> {
    Some(match progress {
        Progress::Started {
            total_steps,
            resumed_at,
            examples,
            tokens,
            supervised_tokens,
            truncated_examples,
            truncated_tokens,
            split_examples,
            dropped_examples,
            skipped_examples,
            validation_examples,
            expected_memory_bytes,
            recomputes_layers,
            stand_in,
        } => {
            let resumed = if *resumed_at > 0 {
                format!(", resumed at step {resumed_at}")
            } else {
                String::new()
            };
            let stand_in = if *stand_in {
                "; stand-in weights for the named base model"
            } else {
                ""
            };
            let mut notes = String::new();
            for (count, note) in [
                (validation_examples, "set aside for validation".to_owned()),
                (
                    truncated_examples,
                    format!("cut at max_seq_length, {truncated_tokens} tokens lost"),
                ),
                (split_examples, "split at max_seq_length".to_owned()),
                (
                    dropped_examples,
                    "left out because they are longer than max_seq_length".to_owned(),
                ),
                (
                    skipped_examples,
                    "left out because nothing of their answer is within max_seq_length".to_owned(),
                ),
            ] {
                if *count > 0 {
                    notes.push_str(&format!("; {count} records {note}"));
                }
            }
            if *recomputes_layers {
                notes.push_str(
                    "; memory is short, so layers are computed twice: slower, with the same result",
                );
            }
            format!(
                "{total_steps} steps over {examples} examples, {tokens} tokens of which {supervised_tokens} are learned{resumed}{notes}; up to {} MiB of memory{stand_in}",
                expected_memory_bytes >> 20
            )
        }
        Progress::Step {
            step,
            loss,
            learning_rate,
            epoch,
            grad_norm,
            metrics,
            ..
        } => format!(
            "Step: {step}, Logs: {{'loss': {loss:.4}, 'grad_norm': {grad_norm:.4}, 'learning_rate': {learning_rate:e}{}, 'epoch': {epoch:.2}}}",
            scores("", metrics)
        ),
        Progress::Validated {
            step,
            epoch,
            eval_loss,
            is_best,
            metrics,
            ..
        } => format!(
            "Step: {step}, Logs: {{'eval_loss': {eval_loss:.4}{}, 'epoch': {epoch:.2}}}{}",
            scores("eval_", metrics),
            if *is_best { ", the best so far" } else { "" }
        ),
        Progress::StoppedEarly { step, total } => format!(
            "Stopped early at step {step} of {total}: the validation loss did not fall any more"
        ),
        Progress::BestLoaded { step, eval_loss } => format!(
            "The state of step {step} is delivered, which has the lowest validation loss, {eval_loss:.4}"
        ),
        Progress::Evaluated {
            base_loss,
            tuned_loss,
            examples,
            metrics,
        } => {
            format!(
                "Evaluation on {examples} training examples: loss {base_loss:.4} without, {tuned_loss:.4} with the adapter{}",
                scores("", metrics)
            )
        }
        Progress::Finished {
            steps,
            loss_first,
            loss_last,
            ..
        } => {
            format!(
                "{steps} steps done, loss {loss_first:.4} at the first step, {loss_last:.4} at the last"
            )
        }
        Progress::Failed { code, message } => format!("=== Training Failed ===\n{code}: {message}"),
        _ => return None,
    })
}

/// The scores that a method has, in the names of the libraries that users compare with.
fn scores(prefix: &str, metrics: &Metrics) -> String {
    [
        ("accuracy", metrics.accuracy),
        ("f1", metrics.f1),
        ("rewards/margins", metrics.reward_margin),
        ("rewards/accuracies", metrics.reward_accuracy),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some(format!(", '{prefix}{name}': {:.4}", value?)))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_carry_their_time() {
        let event = EventRow {
            sequence: 1,
            at_ms: 1_741_656_007_644,
            kind: "log".into(),
            content: "creating task....".into(),
        };
        assert_eq!(
            render(&event),
            "[2025-03-11T01:20:07.644Z] creating task....\n"
        );
    }

    #[test]
    fn steps_look_like_the_published_ones() {
        let step = Progress::Step {
            step: 3,
            total: 10,
            loss: 1.25,
            learning_rate: 2e-4,
            epoch: 0.5,
            grad_norm: 0.75,
            tokens_per_s: 1.0,
            eta_s: 7.0,
            metrics: Metrics::default(),
        };
        let line = progress_line(&step).unwrap();
        assert_eq!(
            line,
            "Step: 3, Logs: {'loss': 1.2500, 'grad_norm': 0.7500, 'learning_rate': 2e-4, 'epoch': 0.50}"
        );
    }
}
