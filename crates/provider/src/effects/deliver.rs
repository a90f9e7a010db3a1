//! `Seal`, `Publish`, `AddDeliverable`: from the trained adapter to a deliverable on chain. The archive and its key are made
//! once and never remade, so that what is on chain always opens.

use std::sync::Arc;

use alloy_primitives::{Bytes, hex};
use zerog_chain::calls;
use zerog_chain::fine_tuning::{Deliverable, DeliverableState};
use zerog_lifecycle::event::FailureReason;
use zerog_lifecycle::{EffectKey, Event, deadline};
use zerog_protocol::{FileKey, ecies};
use zerog_trainer::JobDirectory;

use super::EffectError;
use crate::app::App;
use crate::store::TaskRow;
use crate::vault::{KeyUse, open_to_memory, seal_to_file};

pub(crate) async fn seal(
    app: &Arc<App>,
    row: &TaskRow,
    effect: EffectKey,
) -> Result<Event, EffectError> {
    let id = row.id();
    let archive = app.vault.archive_path(&id);
    let key = archive_key(app, row).await?;
    if archive.is_file() {
        return Ok(Event::Sealed { effect });
    }
    let adapter = JobDirectory::new(app.vault.job_path(&id)).adapter();
    let job_key = app.vault.job_key(&id);
    let signer = app.identity.keys().signer.clone();
    app.run_blocking(move || {
        let zip = open_to_memory(&adapter, &job_key, None)?;
        seal_to_file(&archive, &mut zip.as_slice(), &key, Some(&signer))?;
        Ok::<_, EffectError>(())
    })
    .await?;
    Ok(Event::Sealed { effect })
}

/// The archive key: stored before anything is encrypted with it, so that a crash in between does not make a second one.
async fn archive_key(app: &App, row: &TaskRow) -> Result<FileKey, EffectError> {
    let id = row.id();
    let sealed = match &row.sealed_file_key {
        Some(sealed) => sealed.clone(),
        None => {
            let key = FileKey::random();
            let user_key = hex::decode(&row.user_public_key).map_err(|_| {
                EffectError::permanent(FailureReason::Internal, "the stored user key is damaged")
            })?;
            let secret = ecies::seal(&user_key, key.expose_bytes())
                .map_err(|error| EffectError::permanent(FailureReason::DeliveryFailed, error))?;
            let sealed = app.vault.seal_key(KeyUse::Archive, &id, &key);
            app.store
                .set_archive_key(&id, &sealed, &hex::encode_prefixed(secret))
                .await?
                .0
        }
    };
    Ok(app.vault.open_key(KeyUse::Archive, &id, &sealed)?)
}

pub(crate) async fn publish(
    app: &Arc<App>,
    row: &TaskRow,
    effect: EffectKey,
) -> Result<Event, EffectError> {
    let archive = app.vault.archive_path(&row.id());
    // The client asks the network first and pays only for what it does not have.
    let outcome = app
        .storage
        .upload_file(&archive, &app.chain, &|_| {})
        .await
        .map_err(|error| {
            EffectError::retry(
                FailureReason::DeliveryFailed,
                format!("the result could not be stored: {error}"),
            )
        })?;
    Ok(Event::Published {
        effect,
        root_hash: outcome.root,
    })
}

pub(crate) async fn add_deliverable(
    app: &Arc<App>,
    row: &TaskRow,
    effect: EffectKey,
) -> Result<Event, EffectError> {
    let id = row.id();
    let root = row.task.root_hash.ok_or_else(|| {
        EffectError::permanent(FailureReason::Internal, "the archive has no root yet")
    })?;
    let deliverable = match read(app, row).await? {
        Some(deliverable) => deliverable,
        None => {
            let call = calls::fine_tuning::add_deliverable(
                app.chain.fine_tuning().address(),
                row.task.user,
                &id,
                Bytes::from(root.to_vec()),
            );
            app.outbox
                .submit(
                    &format!("task/{id}/add_deliverable"),
                    call,
                    app.clock.now().0,
                )
                .await?;
            read(app, row).await?.ok_or_else(|| {
                EffectError::retry(
                    FailureReason::ChainUnavailable,
                    "the chain does not show the deliverable yet",
                )
            })?
        }
    };
    if deliverable.model_root_hash.as_ref() != root.as_slice() {
        let detail = "another result is on chain under this task's id";
        return Err(EffectError::permanent(
            FailureReason::DeliveryFailed,
            detail,
        ));
    }
    let contract = app.chain.fine_tuning();
    let deadline_s = contract
        .acknowledge_deadline(row.task.user, app.provider, &id)
        .await?;
    let ack_window_s = match deadline_s {
        Some(deadline_s) => deadline_s.saturating_sub(deliverable.timestamp),
        None => deadline::ack_window_s(contract.lock_time_s().await?),
    };
    app.clock.saw_block(deliverable.timestamp);
    Ok(Event::DeliverableAdded {
        effect,
        deliver_time_s: deliverable.timestamp,
        ack_window_s,
    })
}

/// The task's deliverable as the chain has it; `None` when it has none. A failed read is an error.
pub(super) async fn read(app: &App, row: &TaskRow) -> Result<Option<Deliverable>, EffectError> {
    Ok(app
        .chain
        .fine_tuning()
        .deliverable(row.task.user, app.provider, &row.id())
        .await?)
}

/// Whether the chain shows the user's acknowledgement of a deliverable that is still open.
pub(crate) async fn acknowledged_on_chain(app: &App, row: &TaskRow) -> Result<bool, EffectError> {
    Ok(read(app, row)
        .await?
        .is_some_and(|deliverable| deliverable.state() == DeliverableState::Acknowledged))
}
