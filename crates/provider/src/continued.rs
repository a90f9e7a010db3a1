//! Training an adapter further (`continue_from`): the earlier task, the shape that it decides, and its archive.

use std::sync::Arc;

use alloy_primitives::Address;
use zerog_lifecycle::event::FailureReason;
use zerog_protocol::TaskId;
use zerog_protocol::models::ModelKind;
use zerog_protocol::task::TaskState;
use zerog_protocol::training_params::{ParamsError, Schema, TrainingParams};
use zeroize::Zeroizing;

use crate::app::App;
use crate::catalogue::BaseModelEntry;
use crate::effects::{EffectError, StoredFile};
use crate::store::{StoreError, TaskRow};
use crate::vault::{KeyUse, open_to_memory};

/// Adapters of adapters are followed back this far.
const MOST_ANCESTORS: usize = 64;

/// Why an adapter cannot be trained further.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ContinueError {
    /// Not a task that this user may continue; whether it exists for somebody else is not told.
    #[error(
        "continue_from names task {task}, but this provider has no finished task of that id of yours on {model}; \
         0g-compute-cli fine-tuning list-tasks shows yours"
    )]
    NotFound {
        /// The task in question.
        task: TaskId,
        /// The model of the new task.
        model: String,
    },
    /// A classifier.
    #[error("continue_from works with language models; {0} classifies text and starts anew")]
    Classifier(String),
    /// The parameters of an earlier task do not parse any more.
    #[error("the parameters of an earlier task cannot be read: {0}")]
    Params(#[from] ParamsError),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<ContinueError> for EffectError {
    fn from(error: ContinueError) -> Self {
        match error {
            ContinueError::Store(error) => error.into(),
            other => Self::permanent(FailureReason::ModelUnavailable, other),
        }
    }
}

/// The parameters with the shape of the adapter that is continued, and the task that trained it; without
/// `continue_from` the parameters as they are.
pub(crate) async fn resolve(
    app: &App,
    user: Address,
    entry: &BaseModelEntry,
    params: TrainingParams,
) -> Result<(TrainingParams, Option<TaskRow>), ContinueError> {
    let Some(task) = params.continue_from else {
        return Ok((params, None));
    };
    if entry.kind != ModelKind::CausalLanguage {
        return Err(ContinueError::Classifier(entry.config.name.clone()));
    }
    let earlier = find(app, user, entry, task).await?;
    // The first of the line says what shape all of them have.
    let mut shape =
        TrainingParams::parse(&earlier.training_params, Schema::Extended, entry.max_tokens)?;
    for _ in 0..MOST_ANCESTORS {
        let Some(ancestor) = shape.continue_from else {
            break;
        };
        let row = find(app, user, entry, ancestor).await?;
        shape = TrainingParams::parse(&row.training_params, Schema::Extended, entry.max_tokens)?;
    }
    Ok((params.with_shape_of(&shape), Some(earlier)))
}

async fn find(
    app: &App,
    user: Address,
    entry: &BaseModelEntry,
    task: TaskId,
) -> Result<TaskRow, ContinueError> {
    let is_usable = |row: &TaskRow| {
        let same_model = app
            .catalogue
            .find(&row.model_hash)
            .is_some_and(|model| model.config.hash == entry.config.hash);
        row.task.user == user
            && same_model
            && matches!(
                row.task.state,
                TaskState::UserAcknowledged | TaskState::Finished
            )
            && row.task.root_hash.is_some()
            && row.sealed_file_key.is_some()
    };
    app.store
        .task(&task.to_string())
        .await?
        .filter(is_usable)
        .ok_or_else(|| ContinueError::NotFound {
            task,
            model: entry.config.name.clone(),
        })
}

/// The archive of a finished task in clear: from this provider's disk, or from storage once it was cleaned up here.
pub(crate) async fn archive(
    app: &Arc<App>,
    row: &TaskRow,
) -> Result<Zeroizing<Vec<u8>>, EffectError> {
    let id = row.id();
    let (Some(root), Some(sealed)) = (row.task.root_hash, &row.sealed_file_key) else {
        let detail = format!("task {id} has no archive");
        return Err(EffectError::permanent(FailureReason::Internal, detail));
    };
    let key = app.vault.open_key(KeyUse::Archive, &id, sealed)?;
    let kept = app.vault.archive_path(&id);
    if kept.is_file() {
        return app
            .run_blocking(move || open_to_memory(&kept, &key, None))
            .await
            .map_err(EffectError::from);
    }
    let fetched = StoredFile::fetch(app, root, FailureReason::ModelUnavailable, || {
        format!("the adapter of task {id} is no longer in 0G Storage under {root}")
    })
    .await?;
    app.run_blocking(move || open_to_memory(&fetched.path(), &key, None))
        .await
        .map_err(EffectError::from)
}
