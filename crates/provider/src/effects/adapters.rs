//! `FetchAdapter` and `LoadAdapter`: from an archive in storage to an adapter that answers.

use std::io::{Cursor, Read};
use std::sync::Arc;

use alloy_primitives::{Address, B256};
use zerog_inference::{CanaryCheck, GenerateRequest, LoadError};
use zerog_lifecycle::AdapterEffectKind;
use zerog_lifecycle::adapter::{AdapterEffectKey, AdapterEvent};
use zerog_lifecycle::event::FailureReason;
use zerog_protocol::ids::canonical_adapter_name;
use zerog_protocol::limits::{MAX_ADAPTER_BYTES, MAX_ARCHIVE_MEMBERS};
use zerog_protocol::sealed_archive::ArchiveError;
use zerog_storage::Error as StorageError;
use zeroize::Zeroizing;

use super::EffectError;
use crate::app::App;
use crate::inference_role::adapter_id;
use crate::store::{AdapterRow, NewAdapter, TaskRow};
use crate::vault::{KeyUse, VaultError, open_to_memory, seal_to_file};

/// Largest JSON member of an archive in bytes.
const MAX_JSON_MEMBER_BYTES: u64 = 16 * 1024 * 1024;
/// Largest expansion of a compressed member.
const MAX_EXPANSION: u64 = 10;

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
                inference.engine.unload_adapter(&row.id);
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
    let folder;
    let source = if own.is_file() {
        own
    } else {
        folder = tempfile::tempdir_in(app.vault.incoming())
            .map_err(|error| EffectError::retry(FailureReason::Internal, error))?;
        let root: B256 = row.storage_root.parse().map_err(|_| {
            EffectError::permanent(
                FailureReason::DatasetUnavailable,
                "the storage root is not a hash",
            )
        })?;
        let path = folder.path().join("archive");
        app.storage
            .download_file(root, &path, &|_| {})
            .await
            .map_err(|error| match error {
                StorageError::NotFound { .. } => EffectError::permanent(
                    FailureReason::DatasetUnavailable,
                    "the adapter is not in 0G Storage",
                ),
                other => EffectError::retry(FailureReason::DatasetUnavailable, other),
            })?;
        path
    };
    app.run_blocking(move || {
        let zip = open_to_memory(&source, &key, Some(signer)).map_err(|error| match error {
            VaultError::Archive(ArchiveError::Io(error)) => {
                EffectError::retry(FailureReason::Internal, error)
            }
            VaultError::Archive(error) => {
                EffectError::permanent(FailureReason::DatasetInvalid, error)
            }
            error => error.into(),
        })?;
        read_archive(&zip)
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
    let files = app
        .run_blocking(move || {
            let zip = open_to_memory(&path, &key, None)?;
            read_archive(&zip)
                .map_err(|problem| EffectError::permanent(FailureReason::DatasetInvalid, problem))
        })
        .await?;
    let build = inference.build();
    let check = match files.canary {
        _ if row.canary_build.as_deref() == Some(build.as_str()) => CanaryCheck::PassedBefore,
        Some(canary) => CanaryCheck::Run(canary),
        None => {
            tracing::warn!(
                adapter.name = row.name,
                "the adapter brings no reference logits; only a probe is made"
            );
            CanaryCheck::PassedBefore
        }
    };
    let report = inference
        .engine
        .load_adapter_files(&row.id, files.config, files.weights, check)
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
    probe(app, &row.id).await?;
    app.store.set_canary_build(&row.id, &build).await?;
    tracing::info!(
        adapter.name = row.name,
        adapter.bytes = report.bytes,
        "adapter loaded"
    );
    Ok(AdapterEvent::Loaded { effect })
}

/// One token through the adapter: it counts as served only when it answers.
async fn probe(app: &App, id: &str) -> Result<(), EffectError> {
    let Some(inference) = &app.inference else {
        return Ok(());
    };
    let mut request = GenerateRequest::greedy(vec![0], 1);
    request.adapter = Some(id.to_owned());
    let failed = |error| {
        EffectError::retry(
            FailureReason::Internal,
            format!("the adapter does not answer: {error}"),
        )
    };
    inference
        .engine
        .generate(request)
        .map_err(failed)?
        .collect()
        .await
        .map_err(failed)?;
    Ok(())
}

/// The parts of an archive that serving needs.
#[derive(Debug)]
struct AdapterFiles {
    config: Vec<u8>,
    weights: Vec<u8>,
    canary: Option<zerog_inference::Canary>,
}

/// Reads an archive within limits: no paths that leave it, no links, no bombs.
fn read_archive(bytes: &Zeroizing<Vec<u8>>) -> Result<AdapterFiles, String> {
    let mut zip = zip::ZipArchive::new(Cursor::new(bytes.as_slice()))
        .map_err(|error| format!("not a zip: {error}"))?;
    if zip.len() > MAX_ARCHIVE_MEMBERS {
        return Err(format!(
            "the archive has more than {MAX_ARCHIVE_MEMBERS} members"
        ));
    }
    let (mut config, mut weights, mut canary) = (None, None, None);
    let mut total = 0u64;
    for index in 0..zip.len() {
        let mut member = zip
            .by_index(index)
            .map_err(|error| format!("the archive is damaged: {error}"))?;
        let name = member
            .name()
            .map_err(|error| format!("a member's name cannot be read: {error}"))?
            .into_owned();
        if member.enclosed_name().is_none() || member.is_symlink() {
            return Err(format!("the archive member {name:?} leaves the archive"));
        }
        if member.is_dir() {
            continue;
        }
        let size = member.size();
        total = total.saturating_add(size);
        if total > MAX_ADAPTER_BYTES
            || size
                > member
                    .compressed_size()
                    .saturating_mul(MAX_EXPANSION)
                    .max(1 << 20)
        {
            return Err("the archive unpacks to more than an adapter may have".into());
        }
        // At most one folder on top.
        let short = match name.split_once('/') {
            Some((_, rest)) if !rest.contains('/') => rest,
            Some(_) => continue,
            None => name.as_str(),
        };
        let slot = match short {
            "adapter_config.json" => &mut config,
            "adapter_model.safetensors" => &mut weights,
            "canary.json" => &mut canary,
            _ => continue,
        };
        if short.ends_with(".json") && size > MAX_JSON_MEMBER_BYTES {
            return Err(format!("{short} is too large"));
        }
        let mut content = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
        member
            .by_ref()
            .take(size.saturating_add(1))
            .read_to_end(&mut content)
            .map_err(|error| format!("{short} does not unpack: {error}"))?;
        if slot.replace(content).is_some() {
            return Err(format!("the archive holds {short} twice"));
        }
    }
    let canary = match canary {
        Some(text) => Some(
            serde_json::from_slice(&text)
                .map_err(|error| format!("canary.json is not valid: {error}"))?,
        ),
        None => None,
    };
    Ok(AdapterFiles {
        config: config.ok_or("the archive has no adapter_config.json")?,
        weights: weights.ok_or("the archive has no adapter_model.safetensors")?,
        canary,
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use zip::write::SimpleFileOptions;

    use super::*;

    fn archive(members: &[(&str, &[u8])]) -> Zeroizing<Vec<u8>> {
        let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
        for (name, content) in members {
            zip.start_file(*name, SimpleFileOptions::default()).unwrap();
            zip.write_all(content).unwrap();
        }
        Zeroizing::new(zip.finish().unwrap().into_inner())
    }

    #[test]
    fn archives_are_read_within_limits() {
        let files = read_archive(&archive(&[
            ("output_model/adapter_config.json", b"{}"),
            ("output_model/adapter_model.safetensors", b"w"),
            ("output_model/deep/adapter_config.json", b"other"),
            ("output_model/README.md", b"x"),
        ]))
        .unwrap();
        assert_eq!(
            (files.config.as_slice(), files.weights.as_slice()),
            (&b"{}"[..], &b"w"[..])
        );
        let refused = |members: &[(&str, &[u8])]| read_archive(&archive(members)).unwrap_err();
        assert!(refused(&[("adapter_config.json", b"{}")]).contains("safetensors"));
        assert!(refused(&[("../evil", b"x")]).contains("leaves"));
        assert!(
            refused(&[
                ("a/adapter_config.json", b"1"),
                ("b/adapter_config.json", b"2")
            ])
            .contains("twice")
        );
        let bomb = vec![0u8; 64 << 20];
        assert!(refused(&[("adapter_model.safetensors", &bomb)]).contains("unpacks"));
        assert!(read_archive(&Zeroizing::new(b"no zip".to_vec())).is_err());
    }
}
