//! `CleanUp`: the files of an ended task, and datasets that nobody asked for in a while.

use std::path::PathBuf;
use std::sync::Arc;

use zerog_lifecycle::event::FailureReason;

use super::EffectError;
use crate::app::App;
use crate::store::{StoreError, TaskRow};

pub(crate) async fn run(app: &Arc<App>, row: &TaskRow) -> Result<(), EffectError> {
    let id = row.id();
    remove(
        app,
        vec![app.vault.job_path(&id), app.vault.archive_path(&id)],
    )
    .await
}

async fn remove(app: &App, paths: Vec<PathBuf>) -> Result<(), EffectError> {
    app.run_blocking(move || {
        for path in paths {
            let removed = if path.is_dir() {
                std::fs::remove_dir_all(&path)
            } else {
                std::fs::remove_file(&path)
            };
            match removed {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(EffectError::retry(FailureReason::Internal, error));
                }
                _ => {}
            }
        }
        Ok(())
    })
    .await
}

/// Removes datasets that no unfinished task uses and nobody asked for during the retention.
pub(crate) async fn sweep_datasets(app: &Arc<App>) -> Result<(), StoreError> {
    let Some(role) = &app.config.fine_tuning else {
        return Ok(());
    };
    let before_ms = app
        .clock
        .now()
        .0
        .saturating_sub(role.dataset_retention_s.saturating_mul(1000));
    for dataset in app.store.stale_datasets(before_ms).await? {
        if app
            .store
            .is_dataset_in_use(&dataset.user_address, &dataset.hash)
            .await?
        {
            continue;
        }
        if remove(app, vec![app.vault.dataset_path(&dataset.file)])
            .await
            .is_ok()
        {
            app.store.delete_dataset(&dataset).await?;
        }
    }
    Ok(())
}
