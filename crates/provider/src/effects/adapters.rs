//! `FetchAdapter` and `LoadAdapter`: from an archive in storage to an adapter that answers.

use std::sync::Arc;

use alloy_primitives::{Address, B256};
use zerog_inference::{
    AdapterPackage, EngineHandle, GenerateRequest, LoadError, PackageSource, Trust,
};
use zerog_lifecycle::AdapterEffectKind;
use zerog_lifecycle::adapter::{AdapterEffectKey, AdapterEvent};
use zerog_lifecycle::event::FailureReason;
use zerog_protocol::ids::canonical_adapter_name;
use zerog_protocol::sealed_archive::ArchiveError;
use zeroize::Zeroizing;

use super::{EffectError, StoredFile};
use crate::app::App;
use crate::external::{ExternalEngine, ExternalError};
use crate::inference_role::{Engine, InferenceRole, adapter_id};
use crate::store::{AdapterRow, NewAdapter, TaskRow};
use crate::vault::{KeyUse, VaultError, open_to_memory, seal_to_file};

/// Makes the adapter of a finished task known to this provider's own inference role; `None` when that role is off or
/// serves other weights.
pub(crate) async fn register_own_adapter(
    app: &App,
    row: &TaskRow,
) -> Result<Option<AdapterRow>, EffectError> {
    let Some(inference) = &app.inference else {
        return Ok(None);
    };
    if inference
        .config
        .fine_tuning_provider
        .is_some_and(|provider| provider != app.provider)
    {
        return Ok(None);
    }
    let trained_on = app
        .catalogue
        .find(&row.model_hash)
        .map(|entry| entry.config.folder.clone());
    let served = app
        .catalogue
        .find(&inference.config.model)
        .map(|entry| entry.config.folder.clone());
    if trained_on.is_none() || trained_on != served {
        return Ok(None);
    }
    let task_id = row.id();
    let (Some(sealed), Some(root)) = (&row.sealed_file_key, row.task.root_hash) else {
        return Err(EffectError::permanent(
            FailureReason::Internal,
            "the task has no archive",
        ));
    };
    let id = adapter_id(app.provider, row.task.user, &task_id);
    if app.store.adapter(&id).await?.is_none()
        && app.store.adapters_of(row.task.user).await?.len() as u64
            >= inference.config.max_adapters_per_user
    {
        tracing::warn!(
            task.id = task_id,
            "the user has as many adapters as allowed; this one is not served"
        );
        return Ok(None);
    }
    let key = app.vault.open_key(KeyUse::Archive, &task_id, sealed)?;
    let new = NewAdapter {
        name: canonical_adapter_name(&inference.config.model, &task_id),
        user: row.task.user,
        fine_tuning_provider: app.provider,
        base_model: inference.config.model.clone(),
        storage_root: root.to_string(),
        signer: app.identity.signer(),
        sealed_key: app.vault.seal_key(KeyUse::Adapter, &id, &key),
        task_id,
        id,
    };
    Ok(Some(app.store.insert_adapter(&new, app.clock.now()).await?))
}

pub(crate) async fn run(
    app: &Arc<App>,
    adapter_id: &str,
    effect: AdapterEffectKey,
) -> Result<AdapterEvent, EffectError> {
    let Some(row) = app.store.adapter(adapter_id).await? else {
        return Err(EffectError::Stopped);
    };
    match effect.kind {
        AdapterEffectKind::FetchAdapter => fetch(app, &row, effect).await,
        AdapterEffectKind::LoadAdapter => load(app, &row, effect).await,
        AdapterEffectKind::UnloadAdapter => {
            if let Some(inference) = &app.inference {
                inference.engine.unload_adapter(&row.id).await;
            }
            Ok(AdapterEvent::Offloaded)
        }
    }
}

async fn fetch(
    app: &Arc<App>,
    row: &AdapterRow,
    effect: AdapterEffectKey,
) -> Result<AdapterEvent, EffectError> {
    let target = app.vault.adapter_path(&row.id);
    let at_rest = app.vault.adapter_key(&row.id);
    if target.is_file() {
        return Ok(AdapterEvent::Fetched { effect });
    }
    let key = app
        .vault
        .open_key(KeyUse::Adapter, &row.id, &row.sealed_key)?;
    let signer: Address = row.signer.parse().map_err(|_| {
        EffectError::permanent(FailureReason::Internal, "the stored signer is damaged")
    })?;
    // The archive of this provider's own task is still here; it is what was stored.
    let own = app.vault.archive_path(&row.task_id);
    let fetched;
    let source = if own.is_file() {
        own
    } else {
        let root: B256 = row.storage_root.parse().map_err(|_| {
            EffectError::permanent(
                FailureReason::DatasetUnavailable,
                "the storage root is not a hash",
            )
        })?;
        fetched = StoredFile::fetch(app, root, FailureReason::DatasetUnavailable, || {
            "the adapter is not in 0G Storage".to_owned()
        })
        .await?;
        fetched.path()
    };
    app.run_blocking(move || {
        let zip = open_to_memory(&source, &key, Some(signer)).map_err(|error| match error {
            VaultError::Archive(ArchiveError::Io(error)) => error.into(),
            VaultError::Archive(error) => {
                EffectError::permanent(FailureReason::DatasetInvalid, error)
            }
            error => error.into(),
        })?;
        AdapterPackage::from_zip(&zip)
            .map_err(|problem| EffectError::permanent(FailureReason::DatasetInvalid, problem))?;
        seal_to_file(&target, &mut zip.as_slice(), &at_rest, None)?;
        Ok::<_, EffectError>(())
    })
    .await?;
    Ok(AdapterEvent::Fetched { effect })
}

async fn load(
    app: &Arc<App>,
    row: &AdapterRow,
    effect: AdapterEffectKey,
) -> Result<AdapterEvent, EffectError> {
    let inference = app.inference.as_ref().ok_or(EffectError::Stopped)?;
    if inference.engine.has_adapter(&row.id) {
        return Ok(AdapterEvent::Loaded { effect });
    }
    let path = app.vault.adapter_path(&row.id);
    let key = app.vault.adapter_key(&row.id);
    let zip = app
        .run_blocking(move || open_to_memory(&path, &key, None))
        .await?;
    let engine = match &inference.engine {
        Engine::BuiltIn(engine) => engine,
        Engine::External(engine) => {
            return load_external(app, inference, engine, row, zip, effect).await;
        }
    };
    let build = inference.build();
    let trust = if row.canary_build.as_deref() == Some(build.as_str()) {
        Trust::PassedBefore
    } else {
        Trust::FirstLoad {
            accepts_unrecorded: inference.config.accept_unrecorded_adapters,
        }
    };
    let report = engine
        .load_package(&row.id, PackageSource::Zip(Box::new(zip)), trust)
        .await
        .map_err(|error| match error {
            LoadError::NoRoom(_) | LoadError::Engine(_) => {
                EffectError::retry(FailureReason::Internal, error)
            }
            other => EffectError::permanent(FailureReason::DatasetInvalid, other),
        })?;
    for evicted in &report.evicted {
        app.apply_adapter(evicted, &AdapterEvent::Offloaded, None)
            .await?;
    }
    probe(engine, &row.id).await?;
    app.store.set_canary_build(&row.id, &build).await?;
    tracing::info!(
        adapter.name = row.name,
        adapter.bytes = report.bytes,
        "adapter loaded"
    );
    Ok(AdapterEvent::Loaded { effect })
}

/// Loads an adapter onto the configured server, which checks its reference answers every time: what the server is, and
/// whether it was started anew with other weights, is not known here.
async fn load_external(
    app: &App,
    inference: &InferenceRole,
    engine: &ExternalEngine,
    row: &AdapterRow,
    zip: Zeroizing<Vec<u8>>,
    effect: AdapterEffectKey,
) -> Result<AdapterEvent, EffectError> {
    let evicted = engine
        .load(&row.id, zip, inference.config.accept_unrecorded_adapters)
        .await
        .map_err(|error| match error.is_passing() {
            true => EffectError::retry(FailureReason::Internal, error),
            false => EffectError::permanent(FailureReason::DatasetInvalid, error),
        })?;
    for id in &evicted {
        app.apply_adapter(id, &AdapterEvent::Offloaded, None)
            .await?;
    }
    app.store
        .set_canary_build(&row.id, &inference.build())
        .await?;
    tracing::info!(adapter.name = row.name, "adapter loaded onto the server");
    Ok(AdapterEvent::Loaded { effect })
}

/// What became of a reload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reload {
    /// The adapter is in the engine.
    Loaded,
    /// Everything in the engine is in use.
    NoRoom,
    /// It is not on this machine, or its canary has not passed for this program: it takes the ordinary way.
    NeedsLoading,
}

/// Brings an adapter back whose canary has passed before, without asking the database: the sealed file's authentication is
/// all that is checked. Requests for one adapter do this once.
pub(crate) async fn reload(app: &Arc<App>, inference: &InferenceRole, row: &AdapterRow) -> Reload {
    let turn = inference.turn_of(&row.id);
    let _turn = turn.lock().await;
    if inference.engine.has_adapter(&row.id) {
        return Reload::Loaded;
    }
    let path = app.vault.adapter_path(&row.id);
    if row.canary_build.as_deref() != Some(inference.build().as_str()) || !path.is_file() {
        return Reload::NeedsLoading;
    }
    let key = app.vault.adapter_key(&row.id);
    let opened = app
        .run_blocking(move || open_to_memory(&path, &key, None))
        .await;
    let zip = match opened {
        Ok(zip) => zip,
        Err(error) => {
            tracing::warn!(adapter.name = row.name, %error, "an adapter's file does not open");
            return Reload::NeedsLoading;
        }
    };
    let engine = match &inference.engine {
        Engine::BuiltIn(engine) => engine,
        Engine::External(engine) => {
            let accepts = inference.config.accept_unrecorded_adapters;
            return match engine.load(&row.id, zip, accepts).await {
                Ok(evicted) => {
                    record_tiers(app, row.id.clone(), evicted);
                    Reload::Loaded
                }
                Err(ExternalError::NoRoom(_) | ExternalError::Busy) => Reload::NoRoom,
                Err(error) => {
                    tracing::warn!(adapter.name = row.name, %error, "an adapter could not be loaded again");
                    Reload::NeedsLoading
                }
            };
        }
    };
    let source = PackageSource::Zip(Box::new(zip));
    let loaded = engine
        .load_package(&row.id, source, Trust::PassedBefore)
        .await;
    match loaded {
        Ok(report) => {
            record_tiers(app, row.id.clone(), report.evicted);
            Reload::Loaded
        }
        Err(LoadError::NoRoom(_)) => Reload::NoRoom,
        Err(error) => {
            tracing::warn!(adapter.name = row.name, %error, "an adapter could not be loaded again");
            Reload::NeedsLoading
        }
    }
}

/// Writes down which adapters came and went, behind the request that caused it: lists ask the engine anyway.
fn record_tiers(app: &Arc<App>, resumed: String, evicted: Vec<String>) {
    let worker = Arc::clone(app);
    app.tracker.spawn(async move {
        let changes = evicted
            .into_iter()
            .map(|id| (id, AdapterEvent::Offloaded))
            .chain([(resumed, AdapterEvent::Resumed)]);
        for (id, event) in changes {
            if let Err(error) = worker.apply_adapter(&id, &event, None).await {
                tracing::warn!(adapter.id = id, %error, "an adapter's tier could not be stored");
            }
        }
    });
}

/// One token through the adapter: it counts as served only when it answers.
async fn probe(engine: &EngineHandle, id: &str) -> Result<(), EffectError> {
    let mut request = GenerateRequest::greedy(vec![0], 1);
    request.adapter = Some(id.to_owned());
    let failed = |error| {
        EffectError::retry(
            FailureReason::Internal,
            format!("the adapter does not answer: {error}"),
        )
    };
    engine
        .generate(request)
        .map_err(failed)?
        .collect()
        .await
        .map_err(failed)?;
    Ok(())
}
