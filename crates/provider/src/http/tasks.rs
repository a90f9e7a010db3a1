//! Tasks: create, list, look, cancel, log.

use std::sync::Arc;
use std::time::Duration;

use alloy_primitives::{Address, B256, U256};
use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use zerog_lifecycle::{Event, Task, Terms};
use zerog_protocol::fine_tuning_api::{
    CancelTaskRequest, CreateTaskRequest, CreateTaskResponse, Recipient, StateTime, TaskView,
    TrainingProgress,
};
use zerog_protocol::models::ModelKind;
use zerog_protocol::recipient::{self, TaskBinding};
use zerog_protocol::task::TaskState;
use zerog_protocol::training_params::{TrainingMethod, TrainingParams};
use zerog_protocol::{TaskId, signing};

use super::error::ApiError;
use super::{auth, quotes};
use crate::app::App;
use crate::catalogue::BaseModelEntry;
use crate::config::FineTuningConfig;
use crate::continued::{self, ContinueError};
use crate::store::{ApplyOutcome, NewTask, StoreError, TaskRow};
use crate::task_log;

/// Prefix of refusals at creation, as the published broker has it.
const PREFIX: &str = "register service: ";
/// Datasets up to this size are counted before the task is accepted, so that the exact fee is compared with the balance.
const COUNT_AT_ONCE_BYTES: u64 = 8 * 1024 * 1024;
/// Most tasks of one list.
const MAX_LISTED: u64 = 1000;
/// Lines read from the database at a time.
const LOG_PAGE: u64 = 500;

/// `POST /v1/user/{addr}/task`: everything that can be known now is checked before the task is accepted.
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    Path(address): Path<String>,
    body: Bytes,
) -> Result<Response, ApiError> {
    let path_user = auth::address(&address)?;
    let request: CreateTaskRequest = serde_json::from_slice(&body)
        .map_err(|error| ApiError::bad_request("invalid_body", format!("bind service: {error}")))?;
    match accept(&app, path_user, &request).await {
        Ok(id) => Ok((
            StatusCode::CREATED,
            Json(CreateTaskResponse { id: id.to_string() }),
        )
            .into_response()),
        Err(error) => Err(error.context(PREFIX)),
    }
}

async fn accept(
    app: &Arc<App>,
    path_user: Address,
    request: &CreateTaskRequest,
) -> Result<TaskId, ApiError> {
    let role = app
        .config
        .fine_tuning
        .as_ref()
        .ok_or_else(|| ApiError::internal("the role is off"))?;
    let user = auth::address(&request.user_address).map_err(|error| error.field("userAddress"))?;
    if user != path_user {
        let text = "userAddress is not the address in the path";
        return Err(ApiError::bad_request("invalid_address", text).field("userAddress"));
    }
    let entry = base_model(app, &request.pre_trained_model_hash)?;
    let params = training_params(app, role, user, entry, &request.training_params).await?;
    let dataset_root: B256 = match request.dataset_hash.parse() {
        Ok(root) if request.dataset_hash.len() == 66 => root,
        _ => {
            let text = "datasetHash must be 0x and 64 hexadecimal digits";
            return Err(ApiError::bad_request("invalid_dataset_hash", text).field("datasetHash"));
        }
    };
    let nonce = U256::from_str_radix(&request.nonce, 10).map_err(|_| {
        ApiError::bad_request("invalid_nonce", "nonce must be a decimal number").field("nonce")
    })?;
    let max_fee = max_fee(&request.fee)?;
    let hash = signing::create_task_hash(user, nonce, &request.dataset_hash);
    let wallet_key = signing::verify_personal(hash, &request.signature, user)
        .map_err(|error| ApiError::from(error).field("signature"))?;
    let public_key = match &request.recipient {
        Some(recipient) => recipient_key(app, user, nonce, request, recipient)?,
        None => wallet_key,
    };
    // The same request again, because its answer was lost.
    if let Some(row) = app.store.task_by_nonce(user, &request.nonce).await? {
        if row.signature.eq_ignore_ascii_case(&request.signature)
            && row.dataset_hash == request.dataset_hash
            && row.user_public_key == hex::encode(public_key)
        {
            return Ok(row.task.id);
        }
        return Err(
            ApiError::bad_request("nonce_used", "this nonce was used by another task")
                .field("nonce"),
        );
    }
    check_account(app, user, nonce).await?;
    check_dataset(
        app,
        role,
        entry,
        &params,
        user,
        dataset_root,
        request,
        max_fee,
    )
    .await?;
    check_queue(app, role, user, request.wait).await?;
    insert(app, role, entry, request, user, public_key, max_fee).await
}

/// The key that the user wants the model sealed to, if he signed that for this very task.
fn recipient_key(
    app: &App,
    user: Address,
    nonce: U256,
    request: &CreateTaskRequest,
    wanted: &Recipient,
) -> Result<[u8; 65], ApiError> {
    let public_key = recipient::parse_public_key(&wanted.key).map_err(|error| {
        ApiError::bad_request("invalid_recipient_key", error.to_string()).field("recipient.key")
    })?;
    let binding = TaskBinding {
        chain_id: app.chain.chain_id(),
        provider: app.provider,
        user,
        nonce,
        dataset_hash: &request.dataset_hash,
        model_hash: &request.pre_trained_model_hash,
        training_params: &request.training_params,
    };
    signing::verify_personal(binding.hash(&public_key), &wanted.signature, user)
        .map_err(|error| ApiError::from(error).field("recipient.signature"))?;
    Ok(public_key)
}

/// The recipient key that a task's model is sealed to, confirmed; none where it is sealed to the wallet itself.
fn confirmed_recipient(app: &App, row: &TaskRow) -> Option<Recipient> {
    let mut public_key = [0u8; 65];
    hex::decode_to_slice(&row.user_public_key, &mut public_key).ok()?;
    let [_, point @ ..] = &public_key;
    if Address::from_raw_public_key(point) == row.task.user {
        return None;
    }
    let hash = recipient::confirmation_hash(
        app.chain.chain_id(),
        app.provider,
        row.task.user,
        row.task.id,
        &public_key,
    );
    Some(Recipient {
        key: recipient::public_key_text(&public_key),
        signature: signing::sign_personal(&app.identity.keys().signer, hash),
    })
}

/// The base model that a request names.
pub(super) fn base_model<'a>(app: &'a App, hash: &str) -> Result<&'a BaseModelEntry, ApiError> {
    app.catalogue.find(hash).ok_or_else(|| {
        let known = zerog_protocol::models::find(hash).is_some();
        let text = if known {
            "unsupported model: not found in provider's supported model list"
        } else {
            "unsupported model: not found in predefined models"
        };
        ApiError::bad_request("unknown_model", text).field("preTrainedModelHash")
    })
}

/// The parameters of a request, if this provider and model take them from this user.
pub(super) async fn training_params(
    app: &App,
    role: &FineTuningConfig,
    user: Address,
    entry: &BaseModelEntry,
    text: &str,
) -> Result<TrainingParams, ApiError> {
    let refused = |error: &dyn std::fmt::Display| {
        ApiError::bad_request("invalid_training_params", error.to_string()).field("trainingParams")
    };
    let params = TrainingParams::parse(text, role.schema, entry.max_tokens)
        .map_err(|error| refused(&error))?;
    if params.training_method == TrainingMethod::Dpo && entry.kind != ModelKind::CausalLanguage {
        let name = &entry.config.name;
        return Err(refused(&format!(
            "training_method \"dpo\" compares answers of a language model; {name} classifies text: use \"sft\""
        )));
    }
    match continued::resolve(app, user, entry, params).await {
        Ok((params, _)) => Ok(params),
        Err(ContinueError::Store(error)) => Err(error.into()),
        Err(error) => Err(refused(&error)),
    }
}

fn max_fee(text: &str) -> Result<Option<U256>, ApiError> {
    let fee = U256::from_str_radix(text, 10).map_err(|_| {
        ApiError::bad_request("invalid_fee", "fee must be a decimal number of neuron").field("fee")
    })?;
    Ok((!fee.is_zero()).then_some(fee))
}

async fn check_account(app: &App, user: Address, nonce: U256) -> Result<(), ApiError> {
    let contract = app.chain.fine_tuning();
    let service = contract.service(app.provider).await?;
    if !service.is_some_and(|service| service.tee_signer_acknowledged) {
        let text = "service TEE signer has not been acknowledged by 0G team";
        return Err(ApiError::bad_request("service_not_acknowledged", text));
    }
    let account = contract.account(user, app.provider).await?.ok_or_else(|| {
        ApiError::bad_request(
            "account_missing",
            format!(
                "get account in contract: no account of {user} with this provider; create it with \
                 0g-compute-cli transfer-fund --provider {} --service fine-tuning --amount <amount>",
                app.provider
            ),
        )
    })?;
    if !account.acknowledged {
        let text = "user has not acknowledged the provider's TEE signer. User must acknowledge before creating a task";
        return Err(ApiError::bad_request("user_not_acknowledged", text));
    }
    if nonce <= account.nonce {
        let text = format!(
            "nonce {nonce} is not above the account's nonce {}",
            account.nonce
        );
        return Err(ApiError::bad_request("nonce_too_low", text).field("nonce"));
    }
    // The contract refuses a new deliverable while the latest one waits for its user.
    if let Some(open) = account
        .deliverables
        .last()
        .filter(|deliverable| deliverable.is_open())
    {
        return Err(ApiError::conflict(
            "previous_deliverable_unacknowledged",
            format!(
                "the result of task {} is not acknowledged; run 0g-compute-cli fine-tuning acknowledge-deliverable \
                 --provider {} --task-id {} first",
                open.id, app.provider, open.id
            ),
        ));
    }
    Ok(())
}

/// The dataset exists; a small uploaded one is counted, and its exact fee compared with the balance.
#[allow(clippy::too_many_arguments, reason = "the parts of one request")]
async fn check_dataset(
    app: &Arc<App>,
    role: &FineTuningConfig,
    entry: &BaseModelEntry,
    params: &TrainingParams,
    user: Address,
    root: B256,
    request: &CreateTaskRequest,
    max_fee: Option<U256>,
) -> Result<(), ApiError> {
    let mut needed = entry.config.storage_fee.saturating_add(U256::ONE);
    match app.store.dataset(user, &request.dataset_hash).await? {
        Some(dataset) => {
            app.store.touch_dataset(&dataset, app.clock.now().0).await?;
            if dataset.bytes <= COUNT_AT_ONCE_BYTES {
                let fee = quotes::exact_fee(app, role, entry, params, &dataset).await?;
                if let Some(most) = max_fee.filter(|most| fee > *most) {
                    let text =
                        format!("the fee is {fee} neuron, more than the allowed {most} neuron");
                    return Err(ApiError::bad_request("fee_above_limit", text).field("fee"));
                }
                needed = fee;
            }
        }
        None if is_in_storage(app, root).await? => {}
        None => {
            return Err(ApiError::bad_request(
                "dataset_not_found",
                format!(
                    "dataset {} was neither uploaded to this provider by {user} nor found in 0G Storage; upload it first",
                    request.dataset_hash
                ),
            )
            .field("datasetHash"));
        }
    }
    let account = app.chain.fine_tuning().account(user, app.provider).await?;
    let free = account.map_or(U256::ZERO, |account| account.free_balance());
    if free < needed {
        return Err(ApiError::new(
            StatusCode::PAYMENT_REQUIRED,
            "insufficient_balance",
            format!(
                "insufficient account balance after pending refund: required {needed}, available {free}; add funds with \
                 0g-compute-cli transfer-fund --provider {} --service fine-tuning --amount <amount>",
                app.provider
            ),
        ));
    }
    Ok(())
}

/// Whether the storage network knows a root. A failed look is an error, not a no.
async fn is_in_storage(app: &App, root: B256) -> Result<bool, ApiError> {
    const TIMEOUT: Duration = Duration::from_secs(15);
    let unreachable = |error: &dyn std::fmt::Display| {
        tracing::warn!(%error, "the storage network could not be asked for a dataset");
        ApiError::unavailable(
            "storage_unavailable",
            "the provider cannot reach 0G Storage at the moment; try again",
        )
    };
    if let Some(url) = &app.config.chain.storage_node_url {
        let node = zerog_storage::NodeClient::new(url, TIMEOUT).map_err(ApiError::internal)?;
        let info = node
            .file_info(root)
            .await
            .map_err(|error| unreachable(&error))?;
        return Ok(info.is_some());
    }
    let indexer = zerog_storage::IndexerClient::new(&app.config.chain.storage_indexer_url, TIMEOUT)
        .map_err(ApiError::internal)?;
    match indexer.file_locations(root).await {
        Ok(nodes) => Ok(nodes.is_some_and(|nodes| !nodes.is_empty())),
        Err(error) if error.to_string().contains("not found") => Ok(false),
        Err(error) => Err(unreachable(&error)),
    }
}

async fn check_queue(
    app: &App,
    role: &FineTuningConfig,
    user: Address,
    wait: bool,
) -> Result<(), ApiError> {
    if let Some(open) = app.store.open_task(user).await? {
        return Err(unfinished(app, Some(&open)));
    }
    let pending = app.store.pending_tasks().await?;
    if pending > role.max_queue {
        return Err(ApiError::conflict("queue_full", "task queue is full").pending(pending));
    }
    if pending > 0 && !wait {
        let text = "cannot create a new task while there are in-progress tasks";
        return Err(ApiError::conflict("queue_not_empty", text).pending(pending));
    }
    Ok(())
}

fn unfinished(app: &App, open: Option<&TaskRow>) -> ApiError {
    let mut text = "cannot create a new task while there is an unfinished task".to_owned();
    if let Some(open) = open {
        let id = open.id();
        let provider = app.provider;
        let command = match open.task.state {
            TaskState::Delivered => {
                format!("acknowledge-model --provider {provider} --task-id {id} --data-path <path>")
            }
            _ if open.task.is_cancellable() => {
                format!("cancel-task --provider {provider} --task {id}")
            }
            _ => format!("get-task --provider {provider} --task {id}"),
        };
        text = format!(
            "{text}: {id} is {} (0g-compute-cli fine-tuning {command})",
            open.task.state
        );
    }
    ApiError::conflict("unfinished_task", text)
}

async fn insert(
    app: &Arc<App>,
    role: &FineTuningConfig,
    entry: &BaseModelEntry,
    request: &CreateTaskRequest,
    user: Address,
    public_key: [u8; 65],
    max_fee: Option<U256>,
) -> Result<TaskId, ApiError> {
    let now = app.clock.now();
    let terms = Terms {
        on_missed_ack: role.on_missed_ack,
        artifact_retention_s: role.artifact_retention_s,
        max_fee,
    };
    let transition = Task::accept(TaskId::random(), user, terms, now);
    let id = transition.task.id;
    let mut log = vec!["creating task....".to_owned()];
    if entry.config.stand_in {
        log.push(format!(
            "On this development network a small stand-in model runs in place of the weights of {}",
            entry.config.name
        ));
    }
    let ahead = app.store.pending_tasks().await?;
    if ahead > 0 {
        log.push(format!("There are {ahead} tasks in the queue ahead."));
    }
    let new = NewTask {
        transition,
        submitted_address: request.user_address.clone(),
        nonce: request.nonce.clone(),
        dataset_hash: request.dataset_hash.clone(),
        training_params: request.training_params.clone(),
        model_hash: request.pre_trained_model_hash.clone(),
        model_name: entry.config.name.clone(),
        signature: request.signature.clone(),
        user_public_key: hex::encode(public_key),
        log,
    };
    match app.store.insert_task(&new, now).await {
        Ok(()) => {}
        Err(StoreError::OpenTask) => {
            let open = app.store.open_task(user).await?;
            return Err(unfinished(app, open.as_ref()));
        }
        Err(error) => return Err(error.into()),
    }
    tracing::info!(task.id = %id, task.user = %user, model = entry.config.name, "task accepted");
    app.wake();
    Ok(id)
}

/// Query of the list.
#[derive(Debug, Deserialize)]
pub(crate) struct ListQuery {
    latest: Option<String>,
    order: Option<String>,
}

/// `GET /v1/user/{addr}/task`: newest first.
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    Path(address): Path<String>,
    Query(query): Query<ListQuery>,
) -> Result<Json<Vec<TaskView>>, ApiError> {
    let user = auth::address(&address)?;
    let limit = if query.latest.as_deref() == Some("true") {
        1
    } else {
        MAX_LISTED
    };
    let mut views = Vec::new();
    for row in app.store.tasks_of(user, limit).await? {
        views.push(view(&app, &row).await?);
    }
    if query.order.as_deref() == Some("asc") {
        views.reverse();
    }
    Ok(Json(views))
}

/// `GET /v1/user/{addr}/task/{id}`.
pub(crate) async fn get(
    State(app): State<Arc<App>>,
    Path((address, id)): Path<(String, String)>,
) -> Result<Json<TaskView>, ApiError> {
    let row = find(&app, &address, &id).await?;
    Ok(Json(view(&app, &row).await?))
}

/// `POST /v1/user/{addr}/task/{id}/cancel`.
pub(crate) async fn cancel(
    State(app): State<Arc<App>>,
    Path((address, id)): Path<(String, String)>,
    body: Bytes,
) -> Result<String, ApiError> {
    let user = auth::address(&address)?;
    let id = parse_id(&id)?;
    let request: CancelTaskRequest = serde_json::from_slice(&body)
        .map_err(|error| ApiError::bad_request("invalid_body", format!("bind ctx: {error}")))?;
    let row = app.store.task(&id.to_string()).await?.ok_or_else(|| {
        ApiError::not_found(
            "task_not_found",
            format!("cancel task: task {id} not found"),
        )
    })?;
    if row.task.user != user {
        return Err(ApiError::forbidden(
            "cancel task: task does not belong to this user",
        ));
    }
    signing::verify_personal(signing::cancel_task_hash(id), &request.signature, user).map_err(
        |error| {
            ApiError::from(error)
                .context("cancel task: ")
                .field("signature")
        },
    )?;
    match app
        .apply(&id.to_string(), &Event::CancelRequested, None)
        .await?
    {
        ApplyOutcome::Applied { .. } => Ok(format!("task {id} cancelled")),
        _ => {
            let state = app
                .store
                .task(&id.to_string())
                .await?
                .map_or(row.task.state, |row| row.task.state);
            let text =
                format!("cancel task: task cannot be cancelled in its current state ({state})");
            Err(ApiError::conflict("not_cancellable", text))
        }
    }
}

/// `GET /v1/user/{addr}/task/{id}/log`.
pub(crate) async fn log(
    State(app): State<Arc<App>>,
    Path((address, id)): Path<(String, String)>,
) -> Result<Response, ApiError> {
    let user = auth::address(&address)?;
    let id = parse_id(&id)?;
    let row = app
        .store
        .task(&id.to_string())
        .await?
        .ok_or_else(|| ApiError::not_found("task_not_found", format!("task {id} not found")))?;
    if row.task.user != user {
        return Err(ApiError::forbidden("task does not belong to this user"));
    }
    let mut text = String::new();
    let mut after = 0;
    loop {
        let events = app.store.events(&row.id(), after, LOG_PAGE).await?;
        let Some(last) = events.last() else { break };
        after = last.sequence;
        for event in events.iter().filter(|event| event.kind == "log") {
            text.push_str(&task_log::render(event));
        }
    }
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response())
}

/// `GET /v1/task/pending`: a bare number.
pub(crate) async fn pending(State(app): State<Arc<App>>) -> Result<String, ApiError> {
    Ok(app.store.pending_tasks().await?.to_string())
}

pub(super) fn parse_id(text: &str) -> Result<TaskId, ApiError> {
    text.parse()
        .map_err(|error: zerog_protocol::ids::TaskIdError| {
            ApiError::bad_request("invalid_task_id", format!("parse task id: {error}"))
        })
}

/// The task, if it belongs to the address in the path.
pub(super) async fn find(app: &App, address: &str, id: &str) -> Result<TaskRow, ApiError> {
    let user = auth::address(address)?;
    let id = parse_id(id)?;
    app.store
        .task(&id.to_string())
        .await?
        .filter(|row| row.task.user == user)
        .ok_or_else(|| ApiError::not_found("task_not_found", format!("task {id} not found")))
}

async fn view(app: &App, row: &TaskRow) -> Result<TaskView, ApiError> {
    let task = &row.task;
    let states = app
        .store
        .state_events(&row.id())
        .await?
        .into_iter()
        .map(|event| StateTime {
            state: event.content,
            at_ms: event.at_ms,
        })
        .collect();
    let queue_position = queue_position(app, row).await?;
    Ok(TaskView {
        id: row.id(),
        created_at: Some(task_log::rfc3339(row.created_ms)),
        updated_at: Some(task_log::rfc3339(row.updated_ms)),
        user_address: row.submitted_address.clone(),
        pre_trained_model_hash: row.model_hash.clone(),
        dataset_hash: row.dataset_hash.clone(),
        training_params: row.training_params.clone(),
        fee: task
            .fee
            .map_or_else(|| "0".to_owned(), |fee| fee.total.to_string()),
        nonce: row.nonce.clone(),
        signature: row.signature.clone(),
        progress: task.state.as_str().to_owned(),
        deliver_index: 0,
        deliver_time: task.deliver_time_s.unwrap_or(0),
        model_type: u8::from(
            app.catalogue
                .find(&row.model_hash)
                .is_some_and(|entry| !entry.config.is_predefined),
        ),
        wait: false,
        failure_reason: task
            .failure
            .as_ref()
            .map(|failure| format!("{}: {}", failure.reason, failure.detail)),
        stage: stage(task),
        queue_position,
        ack_deadline: task.ack_deadline_s,
        settled_with_secret: task.settled_with_secret,
        tokens: task.fee.map(|fee| fee.tokens_per_epoch),
        fee_breakdown: task.fee.as_ref().map(quotes::breakdown),
        training: training(row),
        model_root_hash: task.root_hash.map(|root| root.to_string()),
        states,
        recipient: confirmed_recipient(app, row),
    })
}

/// Tasks ahead of one that waits.
pub(super) async fn queue_position(app: &App, row: &TaskRow) -> Result<Option<u64>, StoreError> {
    let is_waiting = matches!(
        row.task.state,
        TaskState::Init | TaskState::SettingUp | TaskState::SetUp
    );
    if !is_waiting {
        return Ok(None);
    }
    Ok(Some(app.store.pending_before(row.sequence).await?))
}

/// Training progress as it was last stored.
pub(super) fn training(row: &TaskRow) -> Option<TrainingProgress> {
    serde_json::from_str(row.progress.as_deref()?).ok()
}

/// What is being done, in words; the state where nothing is.
pub(super) fn stage(task: &Task) -> Option<String> {
    use zerog_lifecycle::EffectKind as K;
    let kind = task.work.or(task.timer)?.kind;
    let words = match kind {
        K::Prepare => "checking the dataset and counting tokens",
        K::Train => "training",
        K::Seal => "encrypting the result",
        K::Publish => "storing the result",
        K::AddDeliverable => "writing the result to the chain",
        K::AckDeadline => "waiting for the user to acknowledge",
        K::Retention => "not acknowledged in time; kept until the retention ends",
        K::Settle => "settling the fee and publishing the key",
        K::SettleUnacknowledged => "settling the penalty",
        K::Abandon => "giving the deliverable up",
        K::RegisterAdapter | K::CleanUp => return None,
    };
    let again = if task.failures > 0 {
        format!(" (attempt {})", task.failures.saturating_add(1))
    } else {
        String::new()
    };
    Some(format!("{words}{again}"))
}
