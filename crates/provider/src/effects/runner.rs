//! Claims due effects, keeps their leases, and turns outcomes into events.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use zerog_lifecycle::adapter::{AdapterEffectKey, AdapterEvent};
use zerog_lifecycle::event::FailureReason;
use zerog_lifecycle::{AdapterEffectKind, EffectKey, EffectKind, Event, retry};

use super::{EffectError, adapters, clean_up, deliver, prepare, settle, timers, train};
use crate::app::App;
use crate::store::{ApplyOutcome, EffectRow, Subject};

/// Life of a lease; it is renewed three times within it.
const LEASE_MS: u64 = 30_000;
/// Longest pause between two looks for work, against lost wake-ups of other processes.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Effects that share a bound on how many run at once.
struct Class {
    name: &'static str,
    kinds: &'static [&'static str],
    parallel: usize,
}

/// Starts the runners of every role that is on.
pub(crate) fn start(app: &Arc<App>) {
    let mut classes = Vec::new();
    if let Some(role) = &app.config.fine_tuning {
        classes.push(Class {
            name: "prepare",
            kinds: &["prepare"],
            parallel: 2,
        });
        classes.push(Class {
            name: "train",
            kinds: &["train"],
            parallel: role.workers,
        });
        classes.push(Class {
            name: "deliver",
            kinds: &["seal", "publish", "add_deliverable"],
            parallel: 2,
        });
        classes.push(Class {
            name: "settle",
            kinds: &[
                "settle",
                "settle_unacknowledged",
                "abandon",
                "ack_deadline",
                "retention",
            ],
            parallel: 4,
        });
        classes.push(Class {
            name: "tidy",
            kinds: &["register_adapter", "clean_up"],
            parallel: 1,
        });
    }
    if app.inference.is_some() {
        classes.push(Class {
            name: "fetch",
            kinds: &["fetch_adapter"],
            parallel: 3,
        });
        classes.push(Class {
            name: "load",
            kinds: &["load_adapter", "unload_adapter"],
            parallel: 1,
        });
    }
    for class in classes {
        app.tracker.spawn(run_class(Arc::clone(app), class));
    }
}

async fn run_class(app: Arc<App>, class: Class) {
    let permits = Arc::new(Semaphore::new(class.parallel));
    let mut wake = app.wake.subscribe();
    loop {
        let permit = tokio::select! {
            () = app.shutdown.cancelled() => return,
            permit = Arc::clone(&permits).acquire_owned() => permit.expect("the semaphore is never closed"),
        };
        wake.borrow_and_update();
        let now_ms = app.clock.now().0;
        match app
            .store
            .claim_effect(class.kinds, &app.instance, now_ms, LEASE_MS)
            .await
        {
            Ok(Some(claim)) => {
                let worker = Arc::clone(&app);
                app.tracker.spawn(async move {
                    execute(&worker, &claim).await;
                    drop(permit);
                    worker.wake();
                });
            }
            Ok(None) => {
                drop(permit);
                tokio::select! {
                    () = app.shutdown.cancelled() => return,
                    _ = wake.changed() => {}
                    () = tokio::time::sleep(pause(&app).await) => {}
                }
            }
            Err(error) => {
                drop(permit);
                tracing::error!(effect.class = class.name, %error, "looking for work failed");
                tokio::time::sleep(LONGEST_PAUSE).await;
            }
        }
    }
}

async fn pause(app: &App) -> Duration {
    let due = app.store.next_due_ms().await.ok().flatten();
    due.map_or(LONGEST_PAUSE, |due| {
        Duration::from_millis(due.saturating_sub(app.clock.now().0))
    })
    .clamp(Duration::from_millis(10), LONGEST_PAUSE)
}

/// Carries out one claimed effect to its end.
async fn execute(app: &Arc<App>, claim: &EffectRow) {
    let stop = app.shutdown.child_token();
    app.running.lock().insert(claim.id.clone(), stop.clone());
    let renewal = {
        let (app, claim, stop) = (Arc::clone(app), claim.clone(), stop.clone());
        tokio::spawn(async move { keep_lease(&app, &claim, &stop).await })
    };
    match claim.subject {
        Subject::Task => execute_for_task(app, claim, &stop).await,
        Subject::Adapter => execute_for_adapter(app, claim, &stop).await,
    }
    renewal.abort();
    app.running.lock().remove(&claim.id);
}

/// Renews the lease until it is lost; a lost lease stops the work.
async fn keep_lease(app: &App, claim: &EffectRow, stop: &CancellationToken) {
    loop {
        tokio::time::sleep(Duration::from_millis(LEASE_MS / 3)).await;
        match app
            .store
            .renew_lease(claim, app.clock.now().0.saturating_add(LEASE_MS))
            .await
        {
            Ok(true) => {}
            Ok(false) => {
                stop.cancel();
                return;
            }
            Err(error) => tracing::warn!(effect.id = claim.id, %error, "a lease was not renewed"),
        }
    }
}

async fn execute_for_task(app: &Arc<App>, claim: &EffectRow, stop: &CancellationToken) {
    let Ok(kind) = claim.kind.parse::<EffectKind>() else {
        tracing::error!(
            effect.id = claim.id,
            "an effect of an unknown kind is dropped"
        );
        return finish(app, claim).await;
    };
    if !kind.reports() {
        return execute_side_effect(app, claim, kind, stop).await;
    }
    let effect = EffectKey {
        kind,
        generation: claim.generation,
    };
    match app
        .apply(&claim.subject_id, &Event::Started { effect }, Some(claim))
        .await
    {
        Ok(ApplyOutcome::Applied { .. }) => {}
        Ok(ApplyOutcome::Fenced) => return,
        Ok(ApplyOutcome::Rejected(_) | ApplyOutcome::Missing) => return finish(app, claim).await,
        Err(error) => {
            tracing::error!(effect.id = claim.id, %error, "an effect could not be started");
            return release(app, claim).await;
        }
    }
    let outcome = run_task_effect(app, claim, effect, stop).await;
    let event = match outcome {
        Ok(event) => event,
        Err(EffectError::Stopped) => return release(app, claim).await,
        Err(EffectError::Failed(failure)) => {
            tracing::warn!(
                task.id = claim.subject_id,
                effect.kind = claim.kind,
                reason = %failure.reason,
                is_permanent = failure.is_permanent,
                detail = failure.detail,
                "an effect failed"
            );
            Event::Failed { effect, failure }
        }
    };
    match app.apply(&claim.subject_id, &event, Some(claim)).await {
        // A timer that fired early, or a fact that the task knew already: look again later, unless nobody waits.
        Ok(ApplyOutcome::Rejected(rejected)) => {
            let failure = zerog_lifecycle::EffectFailure::retry(
                FailureReason::Internal,
                rejected.to_string(),
            );
            if !matches!(
                app.apply(
                    &claim.subject_id,
                    &Event::Failed { effect, failure },
                    Some(claim)
                )
                .await,
                Ok(ApplyOutcome::Applied { .. })
            ) {
                finish(app, claim).await;
            }
        }
        Ok(_) => {}
        Err(error) => {
            tracing::error!(effect.id = claim.id, %error, "an outcome could not be stored");
            release(app, claim).await;
        }
    }
}

async fn run_task_effect(
    app: &Arc<App>,
    claim: &EffectRow,
    effect: EffectKey,
    stop: &CancellationToken,
) -> Result<Event, EffectError> {
    let Some(row) = app.store.task(&claim.subject_id).await? else {
        return Err(EffectError::Stopped);
    };
    // The training process must be told to stop and waited for; everything else may be dropped at any point.
    if effect.kind == EffectKind::Train {
        return train::run(app, &row, effect, stop).await;
    }
    let work = async {
        match effect.kind {
            EffectKind::Prepare => prepare::run(app, &row, effect).await,
            EffectKind::Seal => deliver::seal(app, &row, effect).await,
            EffectKind::Publish => deliver::publish(app, &row, effect).await,
            EffectKind::AddDeliverable => deliver::add_deliverable(app, &row, effect).await,
            EffectKind::AckDeadline | EffectKind::Retention => timers::run(app, &row, effect).await,
            EffectKind::Settle => settle::settle(app, &row, true).await,
            EffectKind::SettleUnacknowledged => settle::settle(app, &row, false).await,
            EffectKind::Abandon => settle::abandon(app, &row, effect).await,
            EffectKind::Train | EffectKind::RegisterAdapter | EffectKind::CleanUp => {
                Err(EffectError::Stopped)
            }
        }
    };
    tokio::select! {
        outcome = work => outcome,
        () = stop.cancelled() => Err(EffectError::Stopped),
    }
}

async fn execute_side_effect(
    app: &Arc<App>,
    claim: &EffectRow,
    kind: EffectKind,
    stop: &CancellationToken,
) {
    let work = async {
        let Some(row) = app.store.task(&claim.subject_id).await? else {
            return Ok(());
        };
        match kind {
            EffectKind::RegisterAdapter => register(app, &row).await,
            _ => clean_up::run(app, &row).await,
        }
    };
    let outcome = tokio::select! {
        outcome = work => outcome,
        () = stop.cancelled() => Err(EffectError::Stopped),
    };
    match outcome {
        Ok(()) => finish(app, claim).await,
        Err(EffectError::Stopped) => release(app, claim).await,
        Err(EffectError::Failed(failure)) => {
            let failures = claim.failures.saturating_add(1);
            tracing::warn!(
                task.id = claim.subject_id,
                effect.kind = claim.kind,
                detail = failure.detail,
                "an effect failed"
            );
            match retry::policy(kind).next_attempt(failures, app.clock.now()) {
                Some(at) if !failure.is_permanent => {
                    if let Err(error) = app.store.postpone_effect(claim, at.0).await {
                        tracing::error!(effect.id = claim.id, %error, "an effect could not be postponed");
                    }
                }
                _ => finish(app, claim).await,
            }
        }
    }
}

async fn register(app: &Arc<App>, row: &crate::store::TaskRow) -> Result<(), EffectError> {
    let Some(adapter) = adapters::register_own_adapter(app, row).await? else {
        return Ok(());
    };
    app.apply_adapter(&adapter.id, &AdapterEvent::Acknowledged, None)
        .await?;
    Ok(())
}

async fn execute_for_adapter(app: &Arc<App>, claim: &EffectRow, stop: &CancellationToken) {
    let Some(kind) = AdapterEffectKind::parse(&claim.kind) else {
        return finish(app, claim).await;
    };
    let effect = AdapterEffectKey {
        kind,
        generation: claim.generation,
    };
    match app
        .apply_adapter(
            &claim.subject_id,
            &AdapterEvent::Started { effect },
            Some(claim),
        )
        .await
    {
        Ok(Some(_)) => {}
        Ok(None) => return finish(app, claim).await,
        Err(error) => {
            tracing::error!(effect.id = claim.id, %error, "an effect could not be started");
            return release(app, claim).await;
        }
    }
    let outcome = tokio::select! {
        outcome = adapters::run(app, &claim.subject_id, effect) => outcome,
        () = stop.cancelled() => Err(EffectError::Stopped),
    };
    let event = match outcome {
        Ok(event) => event,
        Err(EffectError::Stopped) => return release(app, claim).await,
        Err(EffectError::Failed(failure)) => {
            tracing::warn!(
                adapter.id = claim.subject_id,
                effect.kind = claim.kind,
                detail = failure.detail,
                "an effect failed"
            );
            AdapterEvent::Failed {
                effect,
                detail: failure.detail,
                is_permanent: failure.is_permanent,
            }
        }
    };
    match app
        .apply_adapter(&claim.subject_id, &event, Some(claim))
        .await
    {
        Ok(Some(_)) => {}
        Ok(None) => finish(app, claim).await,
        Err(error) => {
            tracing::error!(effect.id = claim.id, %error, "an outcome could not be stored");
            release(app, claim).await;
        }
    }
}

async fn finish(app: &App, claim: &EffectRow) {
    if let Err(error) = app.store.finish_effect(claim).await {
        tracing::error!(effect.id = claim.id, %error, "an effect could not be closed");
    }
}

async fn release(app: &App, claim: &EffectRow) {
    if let Err(error) = app.store.release_effect(claim).await {
        tracing::error!(effect.id = claim.id, %error, "a lease could not be given back");
    }
}
