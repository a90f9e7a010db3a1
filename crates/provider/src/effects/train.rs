//! `Train`: the training process, from start or from its last checkpoint.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use zerog_lifecycle::event::FailureReason;
use zerog_lifecycle::{EffectKey, Event};
use zerog_protocol::fine_tuning_api::TrainingProgress;
use zerog_trainer::{JobDirectory, Progress, exit};

use super::EffectError;
use crate::app::App;
use crate::store::TaskRow;
use crate::task_log::progress_line;
use crate::training_process::{Ended, TrainingProcess};

pub(crate) async fn run(
    app: &Arc<App>,
    row: &TaskRow,
    effect: EffectKey,
    stop: &CancellationToken,
) -> Result<Event, EffectError> {
    let id = row.id();
    let directory = JobDirectory::new(app.vault.job_path(&id));
    // The process renames its result into place as its last act.
    if directory.adapter().is_file() {
        return Ok(Event::Trained { effect });
    }
    let role = app
        .config
        .fine_tuning
        .as_ref()
        .ok_or(EffectError::Stopped)?;
    let mut progress: TrainingProgress = row
        .progress
        .as_deref()
        .and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or_default();
    let mut process =
        TrainingProcess::start(&role.trainer, directory.path(), &app.vault.job_key(&id)).map_err(
            |error| {
                EffectError::retry(
                    FailureReason::TrainingFailed,
                    format!("training did not start: {error}"),
                )
            },
        )?;
    let mut failure = None;
    let ended = loop {
        let record = tokio::select! {
            record = process.next() => record,
            () = stop.cancelled() => {
                process.stop().await;
                return Err(EffectError::Stopped);
            }
        };
        match record {
            Ok(record) => {
                if let Progress::Failed { code, message } = &record {
                    failure = Some((code.clone(), message.clone()));
                }
                report(app, &id, &record, &mut progress).await?;
            }
            Err(ended) => break ended,
        }
    };
    match ended {
        Ended::Exit(code) if code == i32::from(exit::DONE) && directory.adapter().is_file() => {
            Ok(Event::Trained { effect })
        }
        Ended::Exit(code) => {
            let text = |fallback: String| {
                failure
                    .as_ref()
                    .map_or(fallback, |(_, message)| message.clone())
            };
            Err(if code == i32::from(exit::BAD_INPUT) {
                EffectError::permanent(
                    FailureReason::TrainingFailed,
                    text("the training input was refused".into()),
                )
            } else if code == i32::from(exit::OUT_OF_MEMORY) {
                EffectError::permanent(
                    FailureReason::OutOfMemory,
                    text("training ran out of memory".into()),
                )
            } else if code == i32::from(exit::DISK_FULL) {
                EffectError::retry(FailureReason::DiskFull, super::DISK_FULL)
            } else {
                let detail = text(format!(
                    "container exited with non-zero status code: {code}"
                ));
                EffectError::retry(FailureReason::TrainingFailed, detail)
            })
        }
        Ended::Signal => Err(EffectError::retry(
            FailureReason::TrainingFailed,
            "the training process was killed",
        )),
        Ended::Silent => Err(EffectError::retry(
            FailureReason::TrainingFailed,
            "the training process made no progress and was stopped",
        )),
        Ended::TooLong => Err(EffectError::permanent(
            FailureReason::TrainingFailed,
            "training took longer than this provider allows",
        )),
        Ended::Unreadable(error) => Err(EffectError::retry(FailureReason::TrainingFailed, error)),
    }
}

async fn report(
    app: &App,
    id: &str,
    record: &Progress,
    progress: &mut TrainingProgress,
) -> Result<(), EffectError> {
    match record {
        Progress::Started {
            total_steps,
            resumed_at,
            ..
        } => {
            progress.total_steps = *total_steps;
            progress.step = *resumed_at;
        }
        Progress::Step {
            step,
            total,
            loss,
            learning_rate,
            tokens_per_s,
            eta_s,
            ..
        } => {
            progress.step = *step;
            progress.total_steps = *total;
            progress.loss = Some(*loss);
            progress.first_loss = progress.first_loss.or(Some(*loss));
            progress.learning_rate = Some(*learning_rate);
            progress.tokens_per_s = Some(*tokens_per_s);
            progress.eta_s = Some(*eta_s);
        }
        Progress::Validated { eval_loss, .. } | Progress::BestLoaded { eval_loss, .. } => {
            progress.eval_loss = Some(*eval_loss);
        }
        Progress::Finished {
            loss_first,
            loss_last,
            ..
        } => {
            progress.first_loss = Some(*loss_first);
            progress.loss = Some(*loss_last);
            progress.eta_s = Some(0.0);
        }
        _ => {}
    }
    if let Ok(text) = serde_json::to_string(progress) {
        app.store.set_progress(id, &text).await?;
    }
    if let Some(line) = progress_line(record) {
        app.store.append_log(id, app.clock.now().0, &[line]).await?;
    }
    let _ = app.changed.send(id.to_owned());
    Ok(())
}
