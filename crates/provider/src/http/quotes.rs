//! What a task would cost and when it could run, signed by the enclave, before it is created.

use std::sync::Arc;

use alloy_primitives::{U256, keccak256};
use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use zerog_lifecycle::fee::{self, Fee, FeeTerms};
use zerog_protocol::fine_tuning_api::FeeBreakdown;
use zerog_protocol::quote::{
    QUOTE_VERSION, QuoteCount, QuoteFinding, QuoteRequest, SignedQuote, TaskQuote, request_hash,
};
use zerog_protocol::signing;
use zerog_protocol::task::TaskState;
use zerog_protocol::training_params::TrainingParams;
use zerog_tokenization::{Inspection, RenderOptions, TokenCount, inspect};

use super::error::ApiError;
use super::{auth, tasks};
use crate::app::App;
use crate::catalogue::BaseModelEntry;
use crate::config::FineTuningConfig;
use crate::store::{DatasetRow, StoreError, TaskRow};
use crate::vault::{KeyUse, open_to_memory};

/// Earlier tasks on a model that tell how fast it trains.
const SPEED_TASKS: u64 = 8;

/// `POST /v1/user/{addr}/quote`: the dataset was uploaded before; nothing is reserved and nothing is owed.
pub(crate) async fn quote(
    State(app): State<Arc<App>>,
    Path(address): Path<String>,
    body: Bytes,
) -> Result<Json<SignedQuote>, ApiError> {
    let user = auth::address(&address)?;
    let request: QuoteRequest = serde_json::from_slice(&body)
        .map_err(|error| ApiError::bad_request("invalid_body", format!("bind ctx: {error}")))?;
    let role = app
        .config
        .fine_tuning
        .as_ref()
        .ok_or_else(|| ApiError::internal("the role is off"))?;
    let failed = |error| ApiError::from(error).context("Authentication failed: ");
    signing::check_timestamp(request.timestamp, app.clock.system_ms() / 1000).map_err(failed)?;
    let digest = request_hash(user, app.provider, &request.dataset_hash, request.timestamp);
    signing::verify_personal(digest, &request.signature, user).map_err(failed)?;
    let _slot = app.limiter.transfer(user)?;
    let entry = tasks::base_model(&app, &request.pre_trained_model_hash)?;
    let params = tasks::training_params(&app, role, user, entry, &request.training_params).await?;
    let dataset = app
        .store
        .dataset(user, &request.dataset_hash)
        .await?
        .ok_or_else(|| {
            ApiError::not_found(
                "dataset_not_found",
                format!(
                    "this provider has no dataset {} of this user; upload it first, or count it without the provider",
                    request.dataset_hash
                ),
            )
            .field("datasetHash")
        })?;
    app.store.touch_dataset(&dataset, app.clock.now().0).await?;
    let inspection = look(&app, entry, &params, &dataset).await?;
    let fee = inspection
        .count
        .map(|count| {
            fee::quote(&fee_terms(role, entry, &params, &count)).map_err(|error| {
                ApiError::bad_request("invalid_training_params", error.to_string())
                    .field("trainingParams")
            })
        })
        .transpose()?;
    let outlook = outlook(&app, role, &entry.config.name, fee.as_ref()).await?;
    let quote = TaskQuote {
        version: QUOTE_VERSION,
        chain_id: app.chain.chain_id(),
        provider: app.provider,
        user,
        dataset_hash: request.dataset_hash,
        pre_trained_model_hash: request.pre_trained_model_hash,
        training_params_hash: keccak256(&request.training_params),
        count: inspection.count.map(|count| QuoteCount {
            tokens: count.tokens,
            examples: count.examples,
            supervised_tokens: count.report.supervised_tokens,
            truncated_examples: count.report.truncated_examples as u64,
            skipped_examples: count.report.skipped_examples as u64,
            max_seq_length: params.max_seq_length,
            total_steps: params.total_steps(count.examples),
        }),
        fee: fee.as_ref().map(breakdown),
        queue_position: outlook.pending,
        estimated_start_s: outlook.start_s,
        estimated_duration_s: outlook.duration_s,
        findings: findings(&inspection),
        more_findings: inspection.more_findings as u64,
        issued_at: app.clock.system_ms() / 1000,
    };
    Ok(Json(SignedQuote::sign(&quote, &app.identity.keys().signer)))
}

/// What a fee is made of; quotes, acceptance and settlement all start here.
pub(crate) fn fee_terms(
    role: &FineTuningConfig,
    entry: &BaseModelEntry,
    params: &TrainingParams,
    count: &TokenCount,
) -> FeeTerms {
    FeeTerms {
        tokens_per_epoch: count.tokens,
        examples: count.examples,
        epochs: u64::from(params.num_train_epochs),
        max_steps: u64::try_from(params.max_steps)
            .ok()
            .filter(|steps| *steps > 0),
        examples_per_step: params.examples_per_step(),
        price_per_token: role.price_per_token,
        price_coefficient: entry.config.price_coefficient,
        storage_fee: entry.config.storage_fee,
    }
}

/// A fee as it is shown.
pub(super) fn breakdown(fee: &Fee) -> FeeBreakdown {
    FeeBreakdown {
        billed_tokens: fee.billed_tokens,
        price_per_token: fee.price_per_token.to_string(),
        price_coefficient: fee.price_coefficient,
        training_fee: fee.training_fee.to_string(),
        storage_fee: fee.storage_fee.to_string(),
        total: fee.total.to_string(),
    }
}

/// Reads an uploaded dataset as training would.
pub(super) async fn look(
    app: &Arc<App>,
    entry: &BaseModelEntry,
    params: &TrainingParams,
    dataset: &DatasetRow,
) -> Result<Inspection, ApiError> {
    let key_id = format!("{}/{}", dataset.user_address, dataset.hash);
    let key = app
        .vault
        .open_key(KeyUse::Dataset, &key_id, &dataset.sealed_key)
        .map_err(ApiError::internal)?;
    let path = app.vault.dataset_path(&dataset.file);
    let tokenizer = entry.tokenizer().map_err(ApiError::internal)?;
    let options = RenderOptions::of_run(params, entry.kind);
    app.run_blocking(move || {
        let plaintext = open_to_memory(&path, &key, None).map_err(ApiError::internal)?;
        Ok(inspect(&tokenizer, plaintext.as_slice(), options))
    })
    .await
}

fn findings(inspection: &Inspection) -> Vec<QuoteFinding> {
    let findings = inspection.findings.iter();
    findings
        .map(|finding| QuoteFinding {
            line: finding.line.map(|line| line as u64),
            severity: finding.severity.as_str().into(),
            message: finding.message.clone(),
        })
        .collect()
}

/// When a task could run. What is not known is none, never zero.
struct Outlook {
    pending: u64,
    start_s: Option<u64>,
    duration_s: Option<u64>,
}

async fn outlook(
    app: &App,
    role: &FineTuningConfig,
    model: &str,
    fee: Option<&Fee>,
) -> Result<Outlook, ApiError> {
    let mut ahead = Vec::new();
    for state in [
        TaskState::Init,
        TaskState::SettingUp,
        TaskState::SetUp,
        TaskState::Training,
    ] {
        ahead.extend(app.store.tasks_in(state).await?);
    }
    let speed = seconds_per_token(app, model).await?;
    let duration_s = fee.zip(speed).map(|(fee, speed)| seconds(fee, speed));
    let start_s = if ahead.len() < role.workers {
        Some(0)
    } else {
        let mut total = Some(0.0);
        for row in &ahead {
            let left = remaining(app, row).await?;
            total = total.zip(left).map(|(total, left)| total + left);
        }
        total.map(|total: f64| (total / role.workers.max(1) as f64).ceil() as u64)
    };
    Ok(Outlook {
        pending: ahead.len() as u64,
        start_s,
        duration_s,
    })
}

/// Seconds of training that a task ahead still needs.
async fn remaining(app: &App, row: &TaskRow) -> Result<Option<f64>, StoreError> {
    if let Some(eta_s) = tasks::training(row).and_then(|training| training.eta_s) {
        return Ok(Some(eta_s.max(0.0)));
    }
    let Some(fee) = &row.task.fee else {
        return Ok(None);
    };
    let speed = seconds_per_token(app, &row.model_name).await?;
    Ok(speed.map(|speed| fee.billed_tokens as f64 * speed))
}

/// Seconds of training for one paid token, from the newest tasks on a model.
async fn seconds_per_token(app: &App, model: &str) -> Result<Option<f64>, StoreError> {
    let (mut spent_ms, mut tokens) = (0_u64, 0_u64);
    for row in app.store.trained_tasks(model, SPEED_TASKS).await? {
        let events = app.store.state_events(&row.id()).await?;
        let reached = |state: TaskState| {
            let event = events.iter().find(|event| event.content == state.as_str());
            event.map(|event| event.at_ms)
        };
        let span = reached(TaskState::Training).zip(reached(TaskState::Trained));
        if let (Some((from, to)), Some(fee)) = (span, &row.task.fee) {
            spent_ms += to.saturating_sub(from);
            tokens += fee.billed_tokens;
        }
    }
    Ok((tokens > 0).then(|| spent_ms as f64 / 1000.0 / tokens as f64))
}

fn seconds(fee: &Fee, seconds_per_token: f64) -> u64 {
    (fee.billed_tokens as f64 * seconds_per_token).ceil() as u64
}

/// The exact fee of a dataset, or why it has none.
pub(super) async fn exact_fee(
    app: &Arc<App>,
    role: &FineTuningConfig,
    entry: &BaseModelEntry,
    params: &TrainingParams,
    dataset: &DatasetRow,
) -> Result<U256, ApiError> {
    let refused =
        |text: String| ApiError::bad_request("invalid_dataset", text).field("datasetHash");
    let inspection = look(app, entry, params, dataset).await?;
    let Some(count) = inspection.count else {
        let first = inspection
            .findings
            .iter()
            .find(|finding| finding.severity == zerog_tokenization::Severity::Error);
        return Err(refused(first.map_or_else(
            || "the dataset cannot be trained on".to_owned(),
            |finding| finding.message.clone(),
        )));
    };
    fee::quote(&fee_terms(role, entry, params, &count))
        .map(|fee| fee.total)
        .map_err(|error| ApiError::bad_request("invalid_dataset", error.to_string()))
}
