//! `Prepare`: the dataset is here and good, its tokens are counted, the fee is fixed, and the account can pay it.

use std::path::PathBuf;
use std::sync::Arc;

use alloy_primitives::B256;
use zerog_lifecycle::event::FailureReason;
use zerog_lifecycle::fee;
use zerog_lifecycle::{EffectKey, Event};
use zerog_protocol::FileKey;
use zerog_protocol::training_params::TrainingParams;
use zerog_storage::Error as StorageError;
use zerog_tokenization::{Dataset, RenderOptions, TokenCount, count_tokens};
use zerog_trainer::{JOB_VERSION, Job, JobDirectory};
use zeroize::Zeroizing;

use super::EffectError;
use crate::app::App;
use crate::catalogue::BaseModelEntry;
use crate::continued;
use crate::http::fee_terms;
use crate::store::{DatasetRow, TaskRow};
use crate::vault::{KeyUse, create_private_folder, open_to_memory, seal_to_file};

/// First bytes of a zip file.
const ZIP_MAGIC: &[u8] = b"PK\x03\x04";

pub(crate) async fn run(
    app: &Arc<App>,
    row: &TaskRow,
    effect: EffectKey,
) -> Result<Event, EffectError> {
    let role = app
        .config
        .fine_tuning
        .as_ref()
        .ok_or(EffectError::Stopped)?;
    let entry = app.catalogue.find(&row.model_hash).ok_or_else(|| {
        EffectError::permanent(
            FailureReason::ModelUnavailable,
            format!("{} is not served any more", row.model_name),
        )
    })?;
    let params = TrainingParams::parse(&row.training_params, role.schema, entry.max_tokens)
        .map_err(|error| EffectError::permanent(FailureReason::Internal, error))?;
    let (params, earlier) = continued::resolve(app, row.task.user, entry, params).await?;
    let dataset = find_dataset(app, row).await?;
    let initial = match &earlier {
        Some(earlier) => Some(continued::archive(app, earlier).await?),
        None => None,
    };
    let count = prepare_job(app, row, entry, &params, &dataset, initial).await?;
    let fee = fee::quote(&fee_terms(role, entry, &params, &count))
        .map_err(|error| EffectError::permanent(FailureReason::DatasetInvalid, error))?;
    check_account(app, row, fee.total).await?;
    Ok(Event::Prepared { effect, fee })
}

/// The dataset at rest: uploaded before, or fetched from storage now.
async fn find_dataset(app: &Arc<App>, row: &TaskRow) -> Result<DatasetRow, EffectError> {
    if let Some(dataset) = app.store.dataset(row.task.user, &row.dataset_hash).await? {
        app.store.touch_dataset(&dataset, app.clock.now().0).await?;
        return Ok(dataset);
    }
    let root: B256 = row.dataset_hash.parse().map_err(|_| {
        EffectError::permanent(
            FailureReason::DatasetUnavailable,
            "the dataset hash is not 0x and 64 digits",
        )
    })?;
    let folder = tempfile::tempdir_in(app.vault.incoming())?;
    let path = folder.path().join("dataset");
    app.storage
        .download_file(root, &path, &|_| {})
        .await
        .map_err(|error| match error {
            StorageError::NotFound { .. } => EffectError::permanent(
                FailureReason::DatasetUnavailable,
                format!(
                    "the dataset {} was neither uploaded to this provider nor found in 0G Storage",
                    row.dataset_hash
                ),
            ),
            other => EffectError::retry(FailureReason::DatasetUnavailable, other),
        })?;
    let limit = app.config.limits.max_dataset_bytes;
    let bytes = std::fs::metadata(&path).map_or(0, |metadata| metadata.len());
    if bytes > limit {
        let detail = format!("the dataset has {bytes} bytes, more than the {limit} allowed");
        return Err(EffectError::permanent(
            FailureReason::DatasetInvalid,
            detail,
        ));
    }
    let key = FileKey::random();
    let user = format!("{:#x}", row.task.user);
    let hash = row.dataset_hash.to_lowercase();
    let dataset = DatasetRow {
        sealed_key: app
            .vault
            .seal_key(KeyUse::Dataset, &format!("{user}/{hash}"), &key),
        user_address: user,
        hash,
        file: uuid::Uuid::new_v4().to_string(),
        bytes,
        created_ms: app.clock.now().0,
    };
    let target = app.vault.dataset_path(&dataset.file);
    app.run_blocking(move || seal_download(&path, &target, &key))
        .await?;
    app.store.insert_dataset(&dataset).await?;
    drop(folder);
    // Another attempt may have been faster; the stored row counts.
    app.store
        .dataset(row.task.user, &row.dataset_hash)
        .await?
        .ok_or(EffectError::Stopped)
}

fn seal_download(
    path: &PathBuf,
    target: &std::path::Path,
    key: &FileKey,
) -> Result<(), EffectError> {
    let content = std::fs::read(path).map(Zeroizing::new)?;
    if content.starts_with(ZIP_MAGIC) {
        return Err(EffectError::permanent(
            FailureReason::DatasetInvalid,
            "the stored dataset is a zip of a dataset folder; store the JSONL file itself",
        ));
    }
    seal_to_file(target, &mut content.as_slice(), key, None)?;
    Ok(())
}

/// Counts the tokens and lays out the job directory. Both are repeated after a crash, with the same result.
async fn prepare_job(
    app: &Arc<App>,
    row: &TaskRow,
    entry: &BaseModelEntry,
    params: &TrainingParams,
    dataset: &DatasetRow,
    initial: Option<Zeroizing<Vec<u8>>>,
) -> Result<TokenCount, EffectError> {
    let id = row.id();
    let dataset_key = app.vault.open_key(
        KeyUse::Dataset,
        &format!("{}/{}", dataset.user_address, dataset.hash),
        &dataset.sealed_key,
    )?;
    let job_key = app.vault.job_key(&id);
    let directory = JobDirectory::new(app.vault.job_path(&id));
    let source = app.vault.dataset_path(&dataset.file);
    let tokenizer = entry
        .tokenizer()
        .map_err(|error| EffectError::retry(FailureReason::ModelUnavailable, error))?;
    let role = app
        .config
        .fine_tuning
        .as_ref()
        .ok_or(EffectError::Stopped)?;
    let job = Job {
        version: JOB_VERSION,
        task_id: id,
        base_model: entry.config.name.clone(),
        base_model_dir: entry
            .config
            .folder
            .canonicalize()
            .unwrap_or_else(|_| entry.config.folder.clone()),
        stand_in: entry.config.stand_in,
        dataset_hash: row.dataset_hash.clone(),
        params: params.clone(),
        checkpoint_every_steps: None,
        memory_limit_bytes: role.trainer.memory_limit_bytes,
    };
    let options = RenderOptions::of_run(params, entry.kind);
    app.run_blocking(move || {
        let plaintext = open_to_memory(&source, &dataset_key, None)?;
        let records = Dataset::parse(plaintext.as_slice());
        let count = count_tokens(&tokenizer, records, options)
            .map_err(|error| EffectError::permanent(FailureReason::DatasetInvalid, error))?;
        create_private_folder(directory.path())?;
        seal_to_file(
            &directory.dataset(),
            &mut plaintext.as_slice(),
            &job_key,
            None,
        )?;
        if let Some(initial) = initial {
            let mut archive = initial.as_slice();
            seal_to_file(&directory.initial(), &mut archive, &job_key, None)?;
        }
        job.write(&directory)
            .map_err(|error| EffectError::retry(FailureReason::Internal, error))?;
        Ok(count)
    })
    .await
}

async fn check_account(
    app: &App,
    row: &TaskRow,
    fee: alloy_primitives::U256,
) -> Result<(), EffectError> {
    // Without gas nothing can be delivered; better to wait than to train in vain.
    let least = app
        .config
        .fine_tuning
        .as_ref()
        .map(|role| role.min_wallet_balance)
        .unwrap_or_default();
    if app.chain.balance(app.provider).await? < least {
        tracing::error!(provider.address = %app.provider, "the wallet is below its minimum balance: fund it");
        return Err(EffectError::retry(
            FailureReason::ChainUnavailable,
            "the provider's wallet needs funds",
        ));
    }
    let contract = app.chain.fine_tuning();
    let not_authorized =
        |detail: &str| Err(EffectError::permanent(FailureReason::NotAuthorized, detail));
    let service = contract.service(app.provider).await?;
    if !service.is_some_and(|service| service.tee_signer_acknowledged) {
        return not_authorized("service TEE signer has not been acknowledged by 0G team");
    }
    let Some(account) = contract.account(row.task.user, app.provider).await? else {
        return not_authorized("get account in contract: account does not exist");
    };
    if !account.acknowledged {
        return not_authorized("user has not acknowledged the provider's TEE signer");
    }
    let free = account.free_balance();
    if free < fee {
        return Err(EffectError::permanent(
            FailureReason::InsufficientBalance,
            format!(
                "insufficient account balance after pending refund: required {fee}, available {free}"
            ),
        ));
    }
    Ok(())
}
