//! `Prepare`: the dataset is here and good, its tokens are counted, the fee is fixed, and the account can pay it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use alloy_primitives::{Address, B256};
use zerog_lifecycle::event::FailureReason;
use zerog_lifecycle::fee;
use zerog_lifecycle::{EffectKey, Event};
use zerog_protocol::FileKey;
use zerog_protocol::training_params::TrainingParams;
use zerog_tokenization::{
    Dataset, ExampleError, RenderOptions, TokenCount, Tokenizer, count_tokens,
};
use zerog_trainer::{JOB_VERSION, Job, JobDirectory};
use zeroize::Zeroizing;

use super::{EffectError, StoredFile};
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
    let user = row.task.user;
    let dataset = find_dataset(app, user, &row.dataset_hash).await?;
    let validation = match params.validation_dataset {
        Some(hash) => Some(find_dataset(app, user, &hash.to_string()).await?),
        None => None,
    };
    let initial = match &earlier {
        Some(earlier) => Some(continued::archive(app, earlier).await?),
        None => None,
    };
    let inputs = Inputs {
        dataset,
        validation,
        initial,
    };
    let count = prepare_job(app, row, entry, &params, inputs).await?;
    let fee = fee::quote(&fee_terms(role, entry, &params, &count))
        .map_err(|error| EffectError::permanent(FailureReason::DatasetInvalid, error))?;
    check_account(app, row, fee.total).await?;
    Ok(Event::Prepared { effect, fee })
}

/// The dataset at rest: uploaded before, or fetched from storage now.
async fn find_dataset(
    app: &Arc<App>,
    user: Address,
    hash: &str,
) -> Result<DatasetRow, EffectError> {
    if let Some(dataset) = app.store.dataset(user, hash).await? {
        app.store.touch_dataset(&dataset, app.clock.now().0).await?;
        return Ok(dataset);
    }
    let root: B256 = hash.parse().map_err(|_| {
        EffectError::permanent(
            FailureReason::DatasetUnavailable,
            "the dataset hash is not 0x and 64 digits",
        )
    })?;
    let fetched = StoredFile::fetch(app, root, FailureReason::DatasetUnavailable, || {
        format!("the dataset {hash} was neither uploaded to this provider nor found in 0G Storage")
    })
    .await?;
    let limit = app.config.limits.max_dataset_bytes;
    let bytes = std::fs::metadata(fetched.path()).map_or(0, |metadata| metadata.len());
    if bytes > limit {
        let detail = format!("the dataset has {bytes} bytes, more than the {limit} allowed");
        return Err(EffectError::permanent(
            FailureReason::DatasetInvalid,
            detail,
        ));
    }
    let key = FileKey::random();
    let user_address = format!("{user:#x}");
    let hash = hash.to_lowercase();
    let dataset = DatasetRow {
        sealed_key: app
            .vault
            .seal_key(KeyUse::Dataset, &format!("{user_address}/{hash}"), &key),
        user_address,
        hash: hash.clone(),
        file: uuid::Uuid::new_v4().to_string(),
        bytes,
        created_ms: app.clock.now().0,
    };
    let target = app.vault.dataset_path(&dataset.file);
    app.run_blocking(move || seal_download(&fetched.path(), &target, &key))
        .await?;
    app.store.insert_dataset(&dataset).await?;
    // Another attempt may have been faster; the stored row counts.
    app.store
        .dataset(user, &hash)
        .await?
        .ok_or(EffectError::Stopped)
}

fn seal_download(path: &Path, target: &Path, key: &FileKey) -> Result<(), EffectError> {
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

/// What a job reads besides the base model.
struct Inputs {
    dataset: DatasetRow,
    /// Measured instead of a share of the dataset.
    validation: Option<DatasetRow>,
    /// The archive of the adapter that is trained further.
    initial: Option<Zeroizing<Vec<u8>>>,
}

/// A dataset at rest and the key that opens it.
struct SealedDataset {
    path: PathBuf,
    key: FileKey,
}

impl SealedDataset {
    fn of(app: &App, row: &DatasetRow) -> Result<Self, EffectError> {
        let subject = format!("{}/{}", row.user_address, row.hash);
        Ok(Self {
            path: app.vault.dataset_path(&row.file),
            key: app
                .vault
                .open_key(KeyUse::Dataset, &subject, &row.sealed_key)?,
        })
    }

    /// Counts the tokens and seals the dataset for the job alone.
    fn hand_over(
        &self,
        tokenizer: &Tokenizer,
        options: RenderOptions,
        target: &Path,
        job_key: &FileKey,
    ) -> Result<Result<TokenCount, ExampleError>, EffectError> {
        let plaintext = open_to_memory(&self.path, &self.key, None)?;
        let counted = count_tokens(tokenizer, Dataset::parse(plaintext.as_slice()), options);
        if counted.is_ok() {
            seal_to_file(target, &mut plaintext.as_slice(), job_key, None)?;
        }
        Ok(counted)
    }
}

/// Counts the tokens and lays out the job directory. Both are repeated after a crash, with the same result.
async fn prepare_job(
    app: &Arc<App>,
    row: &TaskRow,
    entry: &BaseModelEntry,
    params: &TrainingParams,
    inputs: Inputs,
) -> Result<TokenCount, EffectError> {
    let id = row.id();
    let dataset = SealedDataset::of(app, &inputs.dataset)?;
    let validation = match &inputs.validation {
        Some(row) => Some(SealedDataset::of(app, row)?),
        None => None,
    };
    let job_key = app.vault.job_key(&id);
    let directory = JobDirectory::new(app.vault.job_path(&id));
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
        device: role.trainer.device,
    };
    let options = RenderOptions::of_run(params, entry.kind);
    app.run_blocking(move || {
        let invalid =
            |detail: String| EffectError::permanent(FailureReason::DatasetInvalid, detail);
        create_private_folder(directory.path())?;
        let count = dataset
            .hand_over(&tokenizer, options, &directory.dataset(), &job_key)?
            .map_err(|error| invalid(error.to_string()))?;
        if let Some(validation) = validation {
            validation
                .hand_over(&tokenizer, options, &directory.validation(), &job_key)?
                .map_err(|error| invalid(format!("the validation dataset: {error}")))?;
        }
        if let Some(initial) = inputs.initial {
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
