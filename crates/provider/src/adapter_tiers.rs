//! Disk for adapters: when their sealed files take more than allowed, the ones used longest ago stay in 0G Storage alone.
//!
//! An adapter in the engine keeps its file. A request for an archived adapter fetches it again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use zerog_lifecycle::adapter::AdapterEvent;
use zerog_protocol::adapter::AdapterState;

use crate::app::App;
use crate::store::{AdapterRow, StoreError};

/// Pause between two looks at the disk.
const PAUSE: Duration = Duration::from_secs(60);
/// Pause while a quota is so small that tests wait for it.
const SHORT_PAUSE: Duration = Duration::from_millis(200);
/// Quotas below this are for tests.
const SMALL_QUOTA_BYTES: u64 = 1 << 20;

/// Looks at the disk until the daemon stops.
pub(crate) async fn keep_within_quota(app: Arc<App>) {
    let Some(quota) = app
        .inference
        .as_ref()
        .map(|role| role.config.max_adapter_disk_bytes)
    else {
        return;
    };
    let pause = if quota < SMALL_QUOTA_BYTES {
        SHORT_PAUSE
    } else {
        PAUSE
    };
    loop {
        tokio::select! {
            () = app.shutdown.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        if let Err(error) = make_room(&app, quota).await {
            tracing::warn!(%error, "the disk of adapters could not be looked at; it is tried again");
        }
    }
}

async fn make_room(app: &Arc<App>, quota: u64) -> Result<(), StoreError> {
    let Some(role) = &app.inference else {
        return Ok(());
    };
    let mut rows = Vec::new();
    for state in [
        AdapterState::Ready,
        AdapterState::Offloaded,
        AdapterState::Active,
    ] {
        rows.extend(app.store.adapters_in(state).await?);
    }
    let mut total = 0u64;
    let mut idle: Vec<(Option<Instant>, u64, u64, AdapterRow)> = Vec::new();
    for row in rows {
        let Ok(metadata) = tokio::fs::metadata(app.vault.adapter_path(&row.id)).await else {
            continue;
        };
        total = total.saturating_add(metadata.len());
        if !role.engine.has_adapter(&row.id) {
            let used = role.last_use(&row.id);
            idle.push((used, row.updated_ms, metadata.len(), row));
        }
    }
    // Never used by this process comes first, then the one used longest ago.
    idle.sort_by_key(|entry| (entry.0, entry.1));
    for (_, _, bytes, row) in idle {
        if total <= quota {
            break;
        }
        if archive(app, &row).await? {
            total = total.saturating_sub(bytes);
        }
    }
    Ok(())
}

/// Leaves an adapter in 0G Storage alone. Returns whether it could be.
///
/// # Errors
/// [`StoreError`].
pub(crate) async fn archive(app: &Arc<App>, row: &AdapterRow) -> Result<bool, StoreError> {
    if row.machine.state == AdapterState::Active {
        app.apply_adapter(&row.id, &AdapterEvent::Offloaded, None)
            .await?;
    }
    let archived = app
        .apply_adapter(&row.id, &AdapterEvent::Archived, None)
        .await?;
    if archived.is_none() {
        return Ok(false);
    }
    let path = app.vault.adapter_path(&row.id);
    if let Err(error) = tokio::fs::remove_file(&path).await {
        tracing::warn!(%error, adapter.name = row.name, "an adapter's file could not be removed");
    }
    Ok(true)
}

/// When adapters were used last, by this process.
#[derive(Debug, Default)]
pub(crate) struct LastUses {
    by_id: parking_lot::Mutex<HashMap<String, Instant>>,
}

impl LastUses {
    /// Notes a use now.
    pub(crate) fn note(&self, id: &str) {
        self.by_id.lock().insert(id.to_owned(), Instant::now());
    }

    /// The last use, if there was one.
    #[must_use]
    pub(crate) fn of(&self, id: &str) -> Option<Instant> {
        self.by_id.lock().get(id).copied()
    }
}
