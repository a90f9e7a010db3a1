//! Adapters of the caller: list, state, deployment, and hand-over from other enclaves.

use std::sync::Arc;

use alloy_primitives::{Address, hex};
use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use serde::Deserialize;
use serde_json::{Value, json};
use zerog_chain::fine_tuning::DeliverableState;
use zerog_lifecycle::Event;
use zerog_lifecycle::adapter::AdapterEvent;
use zerog_protocol::adapter::AdapterState;
use zerog_protocol::ids::canonical_adapter_name;
use zerog_protocol::inference_api::{
    AdapterKeyRequest, AdapterList, AdapterShares, AdapterView, DeployRequest, DeployResponse,
    ShareRequest,
};
use zerog_protocol::seal::{SealContext, SealPurpose, open_key};
use zerog_protocol::session_token::{TokenError, verify_raw};
use zerog_protocol::task::TaskState;

use super::auth;
use super::error::ApiError;
use crate::app::App;
use crate::effects::{acknowledged_on_chain, register_own_adapter};
use crate::inference_role::{HandedOverKey, adapter_id, keep_handed_over_key};
use crate::store::{AdapterRow, NewAdapter, TaskRow};
use crate::task_log::rfc3339;
use crate::vault::KeyUse;

/// Most addresses that one adapter is shared with.
const MAX_SHARES: usize = 100;

/// `GET /v1/lora/adapters`.
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
) -> Result<Json<AdapterList>, ApiError> {
    let user = authenticated(&app, &headers).await?;
    // A client that lists waits for an adapter; the acknowledgement may be a moment old.
    for row in app
        .store
        .tasks_in(TaskState::Delivered)
        .await?
        .iter()
        .filter(|row| row.task.user == user)
    {
        notice_acknowledgement(&app, row).await;
    }
    let mut rows = app.store.adapters_of(user).await?;
    rows.extend(app.store.adapters_shared_with(user).await?);
    let adapters = rows.iter().map(|row| view(&app, row)).collect();
    Ok(Json(AdapterList { adapters }))
}

/// `GET /v1/lora/adapters/{name}`; asking for an archived adapter starts its restoration.
pub(crate) async fn status(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<Json<AdapterView>, ApiError> {
    let user = authenticated(&app, &headers).await?;
    let row = find(&app, user, &name)
        .await?
        .ok_or_else(|| unknown(&name))?;
    if row.machine.state == AdapterState::Archived {
        app.apply_adapter(&row.id, &AdapterEvent::DeployRequested, None)
            .await?;
    }
    let row = app.store.adapter(&row.id).await?.unwrap_or(row);
    Ok(Json(view(&app, &row)))
}

/// `POST /v1/lora/adapters/deploy`: always safe to repeat.
pub(crate) async fn deploy(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<DeployResponse>, ApiError> {
    let user = authenticated(&app, &headers).await?;
    let request: DeployRequest = serde_json::from_slice(&body).map_err(|error| {
        ApiError::bad_request("invalid_body", format!("invalid request body: {error}"))
    })?;
    let role = auth::inference(&app)?;
    let Some(name) = request
        .task_id
        .as_deref()
        .or(request.adapter_name.as_deref())
        .filter(|name| !name.is_empty())
    else {
        return Err(ApiError::bad_request(
            "invalid_body",
            "name the adapter with taskId and baseModel, or adapterName",
        ));
    };
    if let Some(base) = request.base_model.as_deref()
        && !role.is_base(base)
    {
        let text = format!(
            "adapter was trained on {base}, this service serves {}",
            role.config.model
        );
        return Err(ApiError::bad_request("wrong_base_model", text).field("baseModel"));
    }
    let row = match find(&app, user, name).await? {
        Some(row) => row,
        None if request.sealed_key.is_some() => take_over(&app, user, &request).await?,
        None => return Err(unknown(name)),
    };
    // Refused when it is wanted already: then nothing is started twice.
    app.apply_adapter(&row.id, &AdapterEvent::DeployRequested, None)
        .await?;
    let row = app.store.adapter(&row.id).await?.unwrap_or(row);
    let (status, message) = if row.machine.state == AdapterState::Active {
        (
            "active",
            "Adapter is already deployed and active!".to_owned(),
        )
    } else {
        let text = format!(
            "Adapter deployment started. Poll GET /v1/lora/adapters/{} for status.",
            row.name
        );
        ("deploying", text)
    };
    Ok(Json(DeployResponse {
        status: status.into(),
        adapter_name: row.name,
        message,
    }))
}

/// An adapter of another fine-tuning provider, whose key its owner sealed to this enclave.
async fn take_over(
    app: &Arc<App>,
    user: Address,
    request: &DeployRequest,
) -> Result<AdapterRow, ApiError> {
    let role = auth::inference(app)?;
    let missing = |field: &'static str| {
        ApiError::bad_request("hand_over", format!("a hand-over needs {field}")).field(field)
    };
    let task_id = request
        .task_id
        .as_deref()
        .ok_or_else(|| missing("taskId"))?;
    let storage_hash = request
        .storage_hash
        .as_deref()
        .ok_or_else(|| missing("storageHash"))?;
    let sealed_key = request
        .sealed_key
        .as_deref()
        .ok_or_else(|| missing("sealedKey"))?;
    if !is_plain_id(task_id) {
        return Err(ApiError::bad_request(
            "invalid_task_id",
            "the task id has characters that no id has",
        )
        .field("taskId"));
    }
    let trainer = match request.fine_tuning_provider.as_deref() {
        Some(text) => auth::address(text).map_err(|error| error.field("fineTuningProvider"))?,
        None => role
            .config
            .fine_tuning_provider
            .ok_or_else(|| missing("fineTuningProvider"))?,
    };
    let contract = app.chain.fine_tuning();
    let deliverable = contract
        .deliverable(user, trainer, task_id)
        .await?
        .ok_or_else(|| unknown(task_id))?;
    if !matches!(
        deliverable.state(),
        DeliverableState::Acknowledged | DeliverableState::Settled
    ) {
        return Err(ApiError::conflict(
            "not_acknowledged",
            "the deliverable is not acknowledged on chain",
        ));
    }
    if !storage_hash.eq_ignore_ascii_case(&hex::encode_prefixed(&deliverable.model_root_hash)) {
        let text = "storageHash is not the root that the chain has for this deliverable";
        return Err(ApiError::bad_request("storage_hash", text).field("storageHash"));
    }
    let service = contract.service(trainer).await?.ok_or_else(|| {
        ApiError::bad_request(
            "hand_over",
            "the fine-tuning provider has no service on chain any more",
        )
    })?;
    let context = SealContext {
        chain_id: app.chain.chain_id(),
        provider: app.provider,
        user,
        purpose: SealPurpose::Adapter,
        id: task_id,
    };
    let key = open_key(
        app.identity.keys().sealing.expose_secret(),
        &context,
        sealed_key,
    )
    .map_err(|error| ApiError::bad_request("sealed_key", error.to_string()).field("sealedKey"))?;
    if app.store.adapters_of(user).await?.len() as u64 >= role.config.max_adapters_per_user {
        return Err(ApiError::conflict(
            "per_user_quota_exceeded",
            "you have as many adapters as this provider keeps",
        ));
    }
    let id = adapter_id(trainer, user, task_id);
    let new = NewAdapter {
        name: canonical_adapter_name(&role.config.model, task_id),
        user,
        task_id: task_id.to_owned(),
        fine_tuning_provider: trainer,
        base_model: role.config.model.clone(),
        storage_root: storage_hash.to_owned(),
        signer: service.tee_signer,
        sealed_key: app.vault.seal_key(KeyUse::Adapter, &id, &key),
        id,
    };
    let row = app.store.insert_adapter(&new, app.clock.now()).await?;
    app.apply_adapter(&row.id, &AdapterEvent::Acknowledged, None)
        .await?;
    Ok(row)
}

/// The caller's adapter with this name, task id or alias. A finished task of this provider that is not registered yet is
/// registered now.
pub(super) async fn find(
    app: &Arc<App>,
    user: Address,
    name: &str,
) -> Result<Option<AdapterRow>, ApiError> {
    let role = auth::inference(app)?;
    let mut known = app.store.adapters_of(user).await?;
    known.extend(app.store.adapters_shared_with(user).await?);
    if let Some(row) = known.into_iter().find(|row| role.means_adapter(name, row)) {
        return Ok(Some(row));
    }
    for task in app.store.tasks_of(user, 100).await? {
        let id = task.id();
        let means_task = id == name
            || role.base_names.iter().any(|base| {
                canonical_adapter_name(base, &id) == name
                    || zerog_protocol::ids::adapter_name(base, &id) == name
            });
        if !means_task {
            continue;
        }
        let is_acknowledged = match task.task.state {
            TaskState::UserAcknowledged | TaskState::Finished => true,
            TaskState::Delivered => notice_acknowledgement(app, &task).await,
            _ => false,
        };
        if !is_acknowledged {
            return Ok(None);
        }
        let registered = register_own_adapter(app, &task)
            .await
            .map_err(|error| ApiError::internal(format!("{error:?}")))?;
        if let Some(row) = &registered {
            app.apply_adapter(&row.id, &AdapterEvent::Acknowledged, None)
                .await?;
        }
        return Ok(registered);
    }
    Ok(None)
}

/// `GET /v1/lora/adapters/{name}/share`: with whom the caller shares an adapter.
pub(crate) async fn shares(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<Json<AdapterShares>, ApiError> {
    let user = authenticated(&app, &headers).await?;
    let row = own(&app, user, &name).await?;
    shared_with(&app, &row).await
}

/// `POST /v1/lora/adapters/{name}/share`: the owner lets another address use an adapter, or ends that.
pub(crate) async fn share(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<AdapterShares>, ApiError> {
    let user = authenticated(&app, &headers).await?;
    let row = own(&app, user, &name).await?;
    let request: ShareRequest = serde_json::from_slice(&body)
        .map_err(|error| ApiError::bad_request("invalid_body", error.to_string()))?;
    let other = auth::address(&request.address).map_err(|error| error.field("address"))?;
    if request.revoke {
        app.store.unshare_adapter(&row.id, other).await?;
    } else {
        if other == user {
            let text = "this adapter is yours; share it with another address";
            return Err(ApiError::bad_request("own_address", text).field("address"));
        }
        if app.store.shares_of(&row.id).await?.len() >= MAX_SHARES {
            let text = format!("an adapter is shared with at most {MAX_SHARES} addresses");
            return Err(ApiError::conflict("too_many_shares", text));
        }
        app.store
            .share_adapter(&row.id, other, app.clock.now())
            .await?;
    }
    shared_with(&app, &row).await
}

/// The caller's own adapter. Anybody else's does not exist for him, shared or not.
async fn own(app: &Arc<App>, user: Address, name: &str) -> Result<AdapterRow, ApiError> {
    find(app, user, name)
        .await?
        .filter(|row| row.user_address.parse() == Ok(user))
        .ok_or_else(|| unknown(name))
}

async fn shared_with(app: &App, row: &AdapterRow) -> Result<Json<AdapterShares>, ApiError> {
    let addresses: Vec<String> = app
        .store
        .shares_of(&row.id)
        .await?
        .into_iter()
        .map(|text| {
            text.parse::<Address>()
                .map_or(text, |address| address.to_string())
        })
        .collect();
    Ok(Json(AdapterShares {
        adapter_name: row.name.clone(),
        shared_with: addresses,
    }))
}

/// Looks at the chain for an acknowledgement that the watcher has not seen yet.
async fn notice_acknowledgement(app: &Arc<App>, row: &TaskRow) -> bool {
    match acknowledged_on_chain(app, row).await {
        Ok(true) => match app.apply(&row.id(), &Event::Acknowledged, None).await {
            Ok(_) => true,
            Err(error) => {
                tracing::warn!(%error, "an acknowledgement could not be stored");
                false
            }
        },
        // The watcher looks again.
        _ => false,
    }
}

/// Body of the operator's eviction.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EvictRequest {
    adapter_name: String,
    #[serde(default)]
    purge: bool,
}

/// `POST /v1/lora/admin/evict`: takes an adapter out of the engine, with `purge` also off this machine.
pub(crate) async fn evict(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<Value>, ApiError> {
    operator(&app, &headers, &body)?;
    let role = auth::inference(&app)?;
    let request: EvictRequest = serde_json::from_slice(&body)
        .map_err(|error| ApiError::bad_request("invalid_body", error.to_string()))?;
    let row = app
        .store
        .adapter_named(&request.adapter_name)
        .await?
        .ok_or_else(|| unknown(&request.adapter_name))?;
    role.engine.unload_adapter(&row.id).await;
    app.apply_adapter(&row.id, &AdapterEvent::Offloaded, None)
        .await?;
    if request.purge
        && let Some(row) = app.store.adapter(&row.id).await?
    {
        crate::adapter_tiers::archive(&app, &row).await?;
    }
    Ok(Json(json!({"status": "ok"})))
}

/// `POST /internal/v1/adapter-keys`: another broker of the same provider hands a key over before the delivery. The key is
/// taken only when it can be opened here; the adapter itself appears with its owner's acknowledgement.
pub(crate) async fn adapter_keys(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<Value>, ApiError> {
    operator(&app, &headers, &body)?;
    let role = auth::inference(&app)?;
    let request: AdapterKeyRequest = serde_json::from_slice(&body)
        .map_err(|error| ApiError::bad_request("invalid_payload", error.to_string()))?;
    if !is_plain_id(&request.task_id) || request.task_id.len() > 128 {
        return Err(ApiError::bad_request(
            "invalid_payload",
            "taskId has characters that no id has",
        )
        .field("taskId"));
    }
    let digits = request
        .storage_hash
        .strip_prefix("0x")
        .unwrap_or(&request.storage_hash);
    if digits.len() != 64 {
        return Err(
            ApiError::bad_request("invalid_hash_size", "storageHash must be 32 bytes")
                .field("storageHash"),
        );
    }
    if !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(
            ApiError::bad_request("invalid_hash_hex", "storageHash is not hexadecimal")
                .field("storageHash"),
        );
    }
    let signer = match request.tee_signer_address.as_deref() {
        Some(text) => auth::address(text).map_err(|_| {
            ApiError::bad_request("invalid_signer", "teeSignerAddress is not an address")
        })?,
        // The fine-tuning service of this provider says who signs its archives.
        None => app
            .chain
            .fine_tuning()
            .service(app.provider)
            .await?
            .map(|service| service.tee_signer)
            .unwrap_or_default(),
    };
    if signer.is_zero() {
        return Err(ApiError::bad_request(
            "invalid_signer",
            "nobody knows who signs this archive: send teeSignerAddress",
        ));
    }
    let refuse =
        |text: &str| Err(ApiError::bad_request("invalid_enc_key", text).field("providerEncKey"));
    let Some(blob) = request.provider_enc_key.as_deref() else {
        return refuse(
            "this broker takes adapter keys inside their owner's deploy request (sealedKey)",
        );
    };
    if !role.config.accept_wallet_key {
        return refuse(
            "keys encrypted to the provider's wallet are not accepted here; the owner's deploy request carries a sealedKey",
        );
    }
    let Ok(blob) = hex::decode(blob) else {
        return refuse("providerEncKey is not hexadecimal");
    };
    let Ok(key) = zerog_protocol::ecies::open(&app.config.chain.wallet, &blob) else {
        return refuse("providerEncKey does not open with the provider's wallet");
    };
    let Some(key) = zerog_protocol::FileKey::from_slice(&key) else {
        return refuse("providerEncKey holds no 32-byte key");
    };
    let kept = HandedOverKey {
        key,
        storage_hash: format!("0x{}", digits.to_lowercase()),
        signer,
    };
    keep_handed_over_key(&app, &request.task_id, &kept).await?;
    Ok(Json(json!({"status": "ok", "taskId": request.task_id})))
}

/// The operator's headers: a token of the provider's own wallet. A body hash inside the token must fit.
fn operator(app: &App, headers: &HeaderMap, body: &[u8]) -> Result<(), ApiError> {
    let header = |name: &str| {
        headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    };
    let raw = header("session-token");
    let token = verify_raw(
        raw,
        header("session-signature"),
        app.provider,
        app.clock.system_ms(),
    )?;
    let is_operator = token.user == app.provider && token.claims.expires_at != 0;
    if !is_operator || auth::address(header("address")).ok() != Some(app.provider) {
        return Err(ApiError::unauthorized(
            "only the provider's own wallet may do this",
        ));
    }
    let claims: Value =
        serde_json::from_str(raw).map_err(|error| TokenError::Claims(error.to_string()))?;
    if let Some(hash) = claims.get("bodyHash").and_then(Value::as_str)
        && !hash.eq_ignore_ascii_case(&alloy_primitives::keccak256(body).to_string())
    {
        return Err(ApiError::unauthorized(
            "the token was made for another body",
        ));
    }
    Ok(())
}

async fn authenticated(app: &App, headers: &HeaderMap) -> Result<Address, ApiError> {
    auth::user(app, headers).await.map_err(|error| {
        if error.status == axum::http::StatusCode::UNAUTHORIZED {
            error.context("authentication required: ")
        } else {
            error
        }
    })
}

fn is_plain_id(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 64
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

fn unknown(name: &str) -> ApiError {
    ApiError::not_found("adapter_not_found", format!("adapter not found: {name}"))
}

fn view(app: &App, row: &AdapterRow) -> AdapterView {
    let machine = &row.machine;
    let is_failed = machine.state == AdapterState::Failed;
    // What is in the engine changes with every request; the stored state follows a moment later.
    let is_loaded = app
        .inference
        .as_ref()
        .is_some_and(|role| role.engine.has_adapter(&row.id));
    let state = match machine.state {
        AdapterState::Active | AdapterState::Offloaded if is_loaded => AdapterState::Active,
        AdapterState::Active => AdapterState::Offloaded,
        other => other,
    };
    AdapterView {
        adapter_name: row.name.clone(),
        task_id: row.task_id.clone(),
        base_model: row.base_model.clone(),
        user_address: row
            .user_address
            .parse::<Address>()
            .map_or_else(|_| row.user_address.clone(), |user| user.to_string()),
        state: state.on_the_wire().to_owned(),
        storage_root_hash: Some(row.storage_root.clone()),
        storage_path: None,
        error: machine.error.clone(),
        tier: Some(state.as_str().to_owned()),
        retryable: is_failed.then_some(true),
        created_at: Some(rfc3339(row.created_ms)),
        updated_at: Some(rfc3339(row.updated_ms)),
    }
}
