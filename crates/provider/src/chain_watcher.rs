//! Follows the chain: acknowledgements become events of tasks and adapters, changed accounts are forgotten, and the clock
//! sees the newest block.

use std::sync::Arc;
use std::time::{Duration, Instant};

use alloy_primitives::{Address, hex};
use zerog_chain::logs::{FollowOptions, LogFollower, ServiceEvent, ServiceKind};
use zerog_lifecycle::Event;
use zerog_lifecycle::adapter::AdapterEvent;
use zerog_protocol::ids::canonical_adapter_name;
use zerog_protocol::task::TaskState;

use crate::app::App;
use crate::effects::{acknowledged_on_chain, sweep_datasets};
use crate::inference_role::{adapter_id, handed_over_key};
use crate::store::{NewAdapter, StoreError};
use crate::vault::KeyUse;

/// Where the first unread block is stored.
const CHECKPOINT: &str = "chain_checkpoint";
/// Delivered tasks are also read directly this often, in case a log was missed.
const READ_INTERVAL: Duration = Duration::from_secs(30);
/// Pause between two looks for stale datasets.
const SWEEP_INTERVAL: Duration = Duration::from_secs(3600);

pub(crate) async fn run(app: Arc<App>) {
    let mut follower = None;
    let mut last_read = None::<Instant>;
    let mut last_sweep = None::<Instant>;
    loop {
        tokio::select! {
            () = app.shutdown.cancelled() => return,
            () = tokio::time::sleep(app.config.chain.poll_interval) => {}
        }
        if let Err(error) = look(&app, &mut follower).await {
            tracing::warn!(%error, "the chain could not be followed; it is tried again");
            continue;
        }
        if last_read.is_none_or(|at| at.elapsed() >= READ_INTERVAL) {
            last_read = Some(Instant::now());
            read_delivered(&app).await;
        }
        if last_sweep.is_none_or(|at| at.elapsed() >= SWEEP_INTERVAL) {
            last_sweep = Some(Instant::now());
            if let Err(error) = sweep_datasets(&app).await {
                tracing::warn!(%error, "old datasets could not be removed");
            }
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum WatchError {
    #[error(transparent)]
    Chain(#[from] zerog_chain::ChainError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

async fn look(app: &Arc<App>, follower: &mut Option<LogFollower>) -> Result<(), WatchError> {
    let block = app.chain.latest_block().await?;
    if app.clock.saw_block(block.timestamp) {
        // Timers may be due now.
        app.wake();
    }
    let follower = match follower {
        Some(follower) => follower,
        None => {
            let from = match app.store.setting(CHECKPOINT).await? {
                Some(text) => text
                    .parse()
                    .map_err(|error| StoreError::corrupt("chain checkpoint", error))?,
                // Nothing of this provider is older than its database.
                None => block.number,
            };
            let options = FollowOptions {
                provider: Some(app.provider),
                ..FollowOptions::default()
            };
            follower.insert(LogFollower::new(app.chain.clone(), from, options))
        }
    };
    let before = follower.checkpoint();
    for event in follower.poll().await? {
        handle(app, event.service, event.event).await?;
    }
    if follower.checkpoint() != before {
        app.store
            .set_setting(CHECKPOINT, &follower.checkpoint().to_string())
            .await?;
    }
    Ok(())
}

async fn handle(
    app: &Arc<App>,
    service: ServiceKind,
    event: ServiceEvent,
) -> Result<(), StoreError> {
    match (service, event) {
        (ServiceKind::FineTuning, ServiceEvent::DeliverableAcknowledged { id, user, .. }) => {
            app.apply(&id, &Event::Acknowledged, None).await?;
            adopt_handed_over_adapter(app, user, &id).await?;
        }
        (
            ServiceKind::Inference,
            ServiceEvent::TokensRevoked { user, .. }
            | ServiceEvent::AllTokensRevoked { user, .. }
            | ServiceEvent::BalanceUpdated { user, .. }
            | ServiceEvent::RefundRequested { user, .. }
            | ServiceEvent::AccountDeleted { user, .. }
            | ServiceEvent::UserAcknowledgementChanged { user, .. },
        ) => {
            if let Some(inference) = &app.inference {
                inference.forget_account(user);
            }
        }
        (
            ServiceKind::Inference,
            ServiceEvent::TeeSignerAcknowledged { .. } | ServiceEvent::ServiceUpdated { .. },
        ) => {
            if let Some(inference) = &app.inference {
                inference.forget_service();
            }
        }
        _ => {}
    }
    Ok(())
}

/// Registers an adapter whose key another broker of this provider handed over before the delivery.
async fn adopt_handed_over_adapter(
    app: &Arc<App>,
    user: Address,
    task_id: &str,
) -> Result<(), StoreError> {
    let Some(role) = &app.inference else {
        return Ok(());
    };
    let Some(key) = handed_over_key(app, task_id).await? else {
        return Ok(());
    };
    let contract = app.chain.fine_tuning();
    let deliverable = match contract.deliverable(user, app.provider, task_id).await {
        Ok(Some(deliverable)) => deliverable,
        Ok(None) => return Ok(()),
        Err(error) => {
            tracing::warn!(%error, task.id = task_id, "an acknowledged deliverable could not be read");
            return Ok(());
        }
    };
    let root = hex::encode_prefixed(&deliverable.model_root_hash);
    if !root.eq_ignore_ascii_case(&key.storage_hash) {
        tracing::warn!(
            task.id = task_id,
            "a handed-over key belongs to another archive than the one on chain"
        );
        return Ok(());
    }
    let id = adapter_id(app.provider, user, task_id);
    let new = NewAdapter {
        name: canonical_adapter_name(&role.config.model, task_id),
        user,
        task_id: task_id.to_owned(),
        fine_tuning_provider: app.provider,
        base_model: role.config.model.clone(),
        storage_root: root,
        signer: key.signer,
        sealed_key: app.vault.seal_key(KeyUse::Adapter, &id, &key.key),
        id,
    };
    let row = app.store.insert_adapter(&new, app.clock.now()).await?;
    app.apply_adapter(&row.id, &AdapterEvent::Acknowledged, None)
        .await?;
    Ok(())
}

/// Reads the deliverables of delivered tasks directly. Failures are only logged: the next look comes.
async fn read_delivered(app: &Arc<App>) {
    let rows = match app.store.tasks_in(TaskState::Delivered).await {
        Ok(rows) => rows,
        Err(error) => {
            tracing::warn!(%error, "delivered tasks could not be listed");
            return;
        }
    };
    for row in rows {
        match acknowledged_on_chain(app, &row).await {
            Ok(true) => {
                if let Err(error) = app.apply(&row.id(), &Event::Acknowledged, None).await {
                    tracing::warn!(%error, "an acknowledgement could not be stored");
                }
            }
            Ok(false) => {}
            Err(_) => return,
        }
    }
}
