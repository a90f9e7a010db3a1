//! `CleanUp`: the files of an ended task, and datasets that nobody asked for in a while.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use super::EffectError;
use crate::app::App;
use crate::http::upload_parts;
use crate::store::{DatasetRow, StoreError, TaskRow};

pub(crate) async fn run(app: &Arc<App>, row: &TaskRow) -> Result<(), EffectError> {
    let id = row.id();
    let paths = [app.vault.job_path(&id), app.vault.archive_path(&id)];
    app.run_blocking(move || paths.iter().try_for_each(|path| remove_path(path)))
        .await?;
    Ok(())
}

/// Removes datasets that no unfinished task uses and nobody asked for during the retention, and what is left of uploads.
pub(crate) async fn sweep_datasets(app: &Arc<App>) -> Result<(), StoreError> {
    let Some(role) = &app.config.fine_tuning else {
        return Ok(());
    };
    let incoming = app.vault.incoming();
    let swept = app
        .run_blocking(move || upload_parts::sweep(&incoming, SystemTime::now()))
        .await;
    if let Err(error) = swept {
        tracing::warn!(%error, "parts of forgotten uploads could not be removed");
    }
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
        if let Err(error) = remove_dataset(app, &dataset).await? {
            tracing::warn!(dataset.hash = dataset.hash, %error, "a dataset's file could not be removed");
        }
    }
    Ok(())
}

/// Removes a dataset's file and then its row, so that a crash in between leaves nothing that nobody knows of.
///
/// # Errors
/// The database; the inner result is the file's.
pub(crate) async fn remove_dataset(
    app: &Arc<App>,
    dataset: &DatasetRow,
) -> Result<Result<(), std::io::Error>, StoreError> {
    let path = app.vault.dataset_path(&dataset.file);
    if let Err(error) = app.run_blocking(move || remove_path(&path)).await {
        return Ok(Err(error));
    }
    app.store.delete_dataset(dataset).await?;
    Ok(Ok(()))
}

/// Removes a file or folder; one that is gone already is no error.
fn remove_path(path: &Path) -> std::io::Result<()> {
    let removed = if path.is_dir() {
        std::fs::remove_dir_all(path)
    } else {
        std::fs::remove_file(path)
    };
    match removed {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
