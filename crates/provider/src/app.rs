//! What every part of the daemon shares.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use alloy_primitives::Address;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, broadcast, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use zerog_chain::ChainClient;
use zerog_lifecycle::adapter::AdapterEvent;
use zerog_lifecycle::{Adapter, Event, Timestamp};

use crate::catalogue::Catalogue;
use crate::collateral::CollateralKeeper;
use crate::config::Config;
use crate::http::limits::Limiter;
use crate::identity::Identity;
use crate::inference_role::InferenceRole;
use crate::outbox::Outbox;
use crate::store::{ApplyOutcome, EffectRow, Store, StoreError};
use crate::vault::Vault;

/// The time as decisions see it: this machine's clock, or the newest block's if that is later (development chains travel
/// in time).
#[derive(Debug, Default)]
pub(crate) struct Clock {
    newest_block_ms: AtomicU64,
}

impl Clock {
    /// This machine's clock in Unix milliseconds; signed times are compared with it.
    #[must_use]
    pub(crate) fn system_ms(&self) -> u64 {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |elapsed| u64::try_from(elapsed.as_millis()).unwrap_or(0))
    }

    /// Never before the newest block that was seen.
    #[must_use]
    pub(crate) fn now(&self) -> Timestamp {
        Timestamp(
            self.system_ms()
                .max(self.newest_block_ms.load(Ordering::Relaxed)),
        )
    }

    /// Notes the time of a block; true when it moved the clock forward.
    pub(crate) fn saw_block(&self, unix_s: u64) -> bool {
        let block_ms = unix_s.saturating_mul(1000);
        let before = self.newest_block_ms.fetch_max(block_ms, Ordering::Relaxed);
        block_ms > before && block_ms > self.system_ms()
    }
}

/// What the daemon is made of. One per process, shared by reference count.
#[derive(Debug)]
pub(crate) struct App {
    /// As loaded.
    pub config: Config,
    /// Everything that survives.
    pub store: Store,
    /// The chain, with the provider's wallet.
    pub chain: ChainClient,
    /// The provider's account.
    pub provider: Address,
    /// Keys and quotes.
    pub identity: Identity,
    /// What verifiers of this machine's quotes need besides.
    pub collateral: CollateralKeeper,
    /// Sealed files.
    pub vault: Vault,
    /// Base models.
    pub catalogue: Catalogue,
    /// The storage network.
    pub storage: zerog_storage::Client,
    /// Transactions on their way.
    pub outbox: Outbox,
    /// The time.
    pub clock: Clock,
    /// The name of this instance in leases; the same at every start.
    pub instance: String,
    /// The inference role, when it is on.
    pub inference: Option<InferenceRole>,
    /// Rates and numbers at once.
    pub limiter: Limiter,
    /// CPU-heavy work at once.
    pub blocking: Arc<Semaphore>,
    /// Goes on when there may be work.
    pub wake: watch::Sender<u64>,
    /// Ids of tasks that changed.
    pub changed: broadcast::Sender<String>,
    /// Ends everything.
    pub shutdown: CancellationToken,
    /// Everything that runs.
    pub tracker: TaskTracker,
    /// Running effects by id, so that a cancellation reaches them at once.
    pub running: Mutex<HashMap<String, CancellationToken>>,
}

impl App {
    /// Lets the runners look for work.
    pub(crate) fn wake(&self) {
        self.wake
            .send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Applies an event to a task, stops what became void and tells who waits.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn apply(
        &self,
        task_id: &str,
        event: &Event,
        claim: Option<&EffectRow>,
    ) -> Result<ApplyOutcome, StoreError> {
        let outcome = self
            .store
            .apply_event(task_id, event, claim, self.clock.now())
            .await?;
        match &outcome {
            ApplyOutcome::Applied { task, void } => {
                tracing::info!(task.id = task_id, task.state = %task.state, "task changed");
                let running = self.running.lock();
                for id in void
                    .iter()
                    .filter(|id| claim.is_none_or(|claim| claim.id != **id))
                {
                    if let Some(token) = running.get(id) {
                        token.cancel();
                    }
                }
                drop(running);
                // Nobody may be listening.
                let _ = self.changed.send(task_id.to_owned());
                self.wake();
            }
            ApplyOutcome::Rejected(rejected) => {
                tracing::debug!(task.id = task_id, %rejected, "an event changed nothing");
            }
            ApplyOutcome::Fenced | ApplyOutcome::Missing => {}
        }
        Ok(outcome)
    }

    /// Applies an event to an adapter.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn apply_adapter(
        &self,
        id: &str,
        event: &AdapterEvent,
        claim: Option<&EffectRow>,
    ) -> Result<Option<Adapter>, StoreError> {
        let adapter = self
            .store
            .apply_adapter_event(id, event, claim, self.clock.now())
            .await?;
        if let Some(adapter) = &adapter {
            tracing::info!(adapter.id = id, adapter.state = %adapter.state, "adapter changed");
            if let Some(inference) = &self.inference {
                inference.adapter_changed();
            }
            self.wake();
        }
        Ok(adapter)
    }

    /// Runs CPU-heavy or blocking work off the reactor, with a bound on how much runs at once.
    ///
    /// # Panics
    /// When `work` panics.
    pub(crate) async fn run_blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        let permit = Arc::clone(&self.blocking)
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        let outcome = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            work()
        })
        .await;
        match outcome {
            Ok(value) => value,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}
