//! Chat and completions: who may ask which adapter, what it costs, the answer, and its signature.
//!
//! The hashes that the enclave signs are over the bytes as they came from the caller and as they went back to him, so that he
//! can compute both.

use std::sync::Arc;
use std::time::Duration;

use alloy_primitives::{Address, U256};
use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use zerog_inference::openai_api::{Route, parse_chat, parse_completion};
use zerog_inference::service;
use zerog_inference::{AnswerId, Prepared, ReplyEvent, Started, Target};
use zerog_lifecycle::adapter::AdapterEvent;
use zerog_protocol::adapter::AdapterState;
use zerog_protocol::amount::format_0g;
use zerog_protocol::inference_api::{ResponseSignature, UnsettledFee};
use zerog_protocol::signing::sha256;

use super::answered::{Answered, Outgoing};
use super::error::ApiError;
use super::limits::Slot;
use super::{adapters, attestation, auth, external_chat, models};
use crate::app::App;
use crate::billing::{self, MINIMUM_RESERVE};
use crate::effects::{Reload, reload};
use crate::inference_role::{Engine, InferenceRole, Pin};
use crate::store::{AdapterRow, NewUsage};

/// Tokens that are reserved for an answer without a limit.
const DEFAULT_ANSWER_TOKENS: u64 = 1024;

/// `ANY /v1/proxy/*`.
pub(crate) async fn proxy(
    State(app): State<Arc<App>>,
    Path(path): Path<String>,
    method: Method,
    peer: axum::extract::ConnectInfo<std::net::SocketAddr>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let path = path.trim_end_matches('/');
    let path = path.strip_prefix("v1/").unwrap_or(path);
    match (method, path) {
        (Method::POST, "chat/completions") => answer(app, headers, body, Route::Chat).await,
        (Method::POST, "completions") => answer(app, headers, body, Route::Completion).await,
        (Method::GET, "models") => models::served(State(app)).await.into_response(),
        (Method::GET, path) if path.starts_with("models/") => {
            match models::served_one(&app, path.trim_start_matches("models/")) {
                Ok(model) => model.into_response(),
                Err(error) => error.openai().into_response(),
            }
        }
        (Method::GET, "attestation/report") => {
            let query = axum::extract::Query(attestation::QuoteQuery::default());
            attestation::quote(State(app), peer, headers, query)
                .await
                .into_response()
        }
        (Method::GET, path) if path.starts_with("signature/") => {
            signature(&app, path.trim_start_matches("signature/")).into_response()
        }
        _ => ApiError::not_found(
            "unsupported_endpoint",
            "unsupported endpoint: endpoint not supported",
        )
        .into_response(),
    }
}

fn signature(app: &App, id: &str) -> Result<Json<ResponseSignature>, ApiError> {
    auth::inference(app)?
        .signature(id)
        .map(Json)
        .ok_or_else(|| {
            ApiError::not_found(
                "chat_id_not_found",
                "Chat id not found or expired, chat_id_not_found",
            )
        })
}

/// `GET /v1/user/{addr}/unsettledfee`.
pub(crate) async fn unsettled_fee(
    State(app): State<Arc<App>>,
    Path(address): Path<String>,
    headers: HeaderMap,
) -> Result<Json<UnsettledFee>, ApiError> {
    let user = auth::user(&app, &headers).await?;
    if auth::address(&address)? != user {
        return Err(ApiError::forbidden(
            "you can only query your own unsettled fee",
        ));
    }
    let fee = app.store.unsettled_fee(user).await?;
    Ok(Json(UnsettledFee {
        user_address: user.to_string(),
        unsettled_fee: fee.to_string(),
    }))
}

async fn answer(app: Arc<App>, headers: HeaderMap, body: Bytes, route: Route) -> Response {
    match respond(&app, &headers, body, route).await {
        Ok(response) => response,
        Err(error) => error.openai().into_response(),
    }
}

async fn respond(
    app: &Arc<App>,
    headers: &HeaderMap,
    body: Bytes,
    route: Route,
) -> Result<Response, ApiError> {
    let role = auth::inference(app)?;
    let user = auth::user(app, headers).await?;
    let slot = app.limiter.chat(user)?;
    let request = match route {
        Route::Chat => parse_chat(&body),
        Route::Completion => parse_completion(&body),
    }?;
    // The pin keeps the adapter in memory until the engine has the request.
    let (target, pin) = resolve(app, role, user, &request.model).await?;
    let request_hash = sha256(&body);
    let id = uuid::Uuid::new_v4().to_string();
    let prepared = service::prepare(role.engine.tokenizer(), request).await?;
    reserve(app, role, user, &prepared, &id, request_hash).await?;
    let meta = Answered {
        app: Arc::clone(app),
        id,
        request_hash,
        model: target.model.clone(),
    };
    let id = AnswerId::fresh(route);
    let mut response = match &role.engine {
        Engine::BuiltIn(engine) => match prepared.start(engine, target, id) {
            Ok(started) if started.wants_stream() => stream(meta, started, slot),
            Ok(started) => whole(meta, started, slot).await?,
            Err(error) => {
                app.store.release_usage(&meta.id).await?;
                return Err(error.into());
            }
        },
        Engine::External(engine) => {
            let asked = external_chat::Asked {
                body,
                prepared,
                target,
                id: id.id,
            };
            external_chat::answer(engine, meta, asked, (slot, pin)).await?
        }
    };
    let provider = HeaderValue::from_str(&app.provider.to_string()).map_err(ApiError::internal)?;
    response.headers_mut().insert("provider", provider);
    Ok(response)
}

/// Waits for the whole answer. The work goes on, and is billed, when the caller leaves.
async fn whole(
    meta: Answered,
    started: Started,
    slot: Slot<Address>,
) -> Result<Response, ApiError> {
    let tracker = meta.app.tracker.clone();
    let work = tracker.spawn(async move {
        let _slot = slot;
        let completion_id = started.id().id.clone();
        match started.finish().await {
            Ok(reply) => {
                meta.sign(&completion_id, sha256(&reply.body));
                meta.bill(&reply.usage).await;
                let mut response = (
                    StatusCode::OK,
                    [(header::CONTENT_TYPE, "application/json")],
                    reply.body,
                )
                    .into_response();
                meta.headers(&mut response);
                Ok(response)
            }
            Err(error) => {
                meta.release().await;
                Err(ApiError::from(error))
            }
        }
    });
    work.await.map_err(ApiError::internal)?
}

/// The answer as it is made. What was made before the caller left is billed.
fn stream(meta: Answered, started: Started, slot: Slot<Address>) -> Response {
    let tracker = meta.app.tracker.clone();
    let (mut outgoing, response) = Outgoing::start(meta, started.id().id.clone());
    let mut events = started.into_stream();
    tracker.spawn(async move {
        let _slot = slot;
        let meter = events.meter();
        let mut usage = None;
        while let Some(event) = events.next().await {
            match event {
                ReplyEvent::Bytes(bytes) => {
                    if outgoing.send(bytes).await.is_err() {
                        break;
                    }
                }
                ReplyEvent::Finished { usage: all, .. } => usage = Some(all),
            }
        }
        let usage = usage.unwrap_or_else(|| meter.now());
        outgoing.close(&usage).await;
    });
    response
}

/// Which weights answer: the base model, or an adapter of the caller that is loaded or gets loaded while he waits.
async fn resolve(
    app: &Arc<App>,
    role: &InferenceRole,
    user: Address,
    model: &str,
) -> Result<(Target, Option<Pin>), ApiError> {
    if role.is_base(model) {
        let name = if model.is_empty() {
            role.config.model.clone()
        } else {
            model.to_owned()
        };
        let target = Target {
            model: name,
            adapter: None,
            caller: user.to_string(),
        };
        return Ok((target, None));
    }
    // Another user's adapter is answered like one that does not exist.
    let Some(row) = adapters::find(app, user, model).await? else {
        let text = if model.starts_with("ft-") {
            format!("fine-tuned model not found: {model}")
        } else {
            format!("the model {model:?} does not exist")
        };
        return Err(ApiError::not_found("model_not_found", text));
    };
    let id = row.id.clone();
    let pin = wait_until_active(app, role, row, model).await?;
    let target = Target {
        model: model.to_owned(),
        adapter: Some(id),
        caller: user.to_string(),
    };
    Ok((target, Some(pin)))
}

/// Waits until the adapter is in the engine, brings it back when it left, and keeps it there for this request.
async fn wait_until_active(
    app: &Arc<App>,
    role: &InferenceRole,
    first: AdapterRow,
    model: &str,
) -> Result<Pin, ApiError> {
    let mut changes = role.changes();
    let deadline = tokio::time::Instant::now() + role.config.load_wait;
    let mut row = first;
    let mut pause = Duration::from_millis(500);
    loop {
        changes.borrow_and_update();
        match row.machine.state {
            AdapterState::Active | AdapterState::Offloaded | AdapterState::Ready => {
                if let Some(pin) = role.engine.pin_adapter(&row.id) {
                    role.note_use(&row.id);
                    return Ok(pin);
                }
                match reload(app, role, &row).await {
                    Reload::Loaded => continue,
                    // A request that runs on another adapter ends soon.
                    Reload::NoRoom => pause = Duration::from_millis(20),
                    Reload::NeedsLoading => {
                        if row.machine.state == AdapterState::Active {
                            app.apply_adapter(&row.id, &AdapterEvent::Offloaded, None)
                                .await?;
                        }
                        app.apply_adapter(&row.id, &AdapterEvent::DeployRequested, None)
                            .await?;
                    }
                }
            }
            AdapterState::Archived => {
                app.apply_adapter(&row.id, &AdapterEvent::DeployRequested, None)
                    .await?;
            }
            AdapterState::Failed => {
                let reason = row.machine.error.as_deref().unwrap_or("unknown reason");
                return Err(ApiError::conflict(
                    "adapter_failed",
                    format!("model {model} failed to deploy: {reason}"),
                ));
            }
            AdapterState::Init | AdapterState::Pending | AdapterState::Downloading
                if !row.machine.is_wanted =>
            {
                let text = format!(
                    "model {model} is downloaded but not deployed; call deploy-adapter first"
                );
                return Err(ApiError::conflict("not_deployed", text));
            }
            AdapterState::Init
            | AdapterState::Pending
            | AdapterState::Downloading
            | AdapterState::Loading => {}
        }
        tokio::select! {
            _ = changes.changed() => {}
            () = tokio::time::sleep_until(deadline) => {
                let text = format!("model {model} is still loading, please retry later");
                return Err(ApiError::unavailable("adapter_loading", text).retry_after(5));
            }
            // Another process may have changed the row.
            () = tokio::time::sleep(pause) => {}
        }
        row = app.store.adapter(&row.id).await?.ok_or_else(|| {
            ApiError::not_found(
                "model_not_found",
                format!("fine-tuned model not found: {model}"),
            )
        })?;
    }
}

/// Checks the account and keeps the money for this request back.
async fn reserve(
    app: &Arc<App>,
    role: &InferenceRole,
    user: Address,
    prepared: &Prepared,
    id: &str,
    request_hash: [u8; 32],
) -> Result<(), ApiError> {
    let payment = |code, text: String| ApiError::new(StatusCode::PAYMENT_REQUIRED, code, text);
    let account = role
        .account(&app.chain, app.provider, user)
        .await?
        .ok_or_else(|| {
            payment(
                "account_missing",
                "get account from contract, account not exist".into(),
            )
        })?;
    if !account.acknowledged {
        return Err(payment(
            "user_not_acknowledged",
            "user not acknowledge the provider, please use acknowledgeProviderSigner function in sdk first, it will take \
             effect in 2 minutes"
                .into(),
        ));
    }
    if !role
        .is_service_acknowledged(&app.chain, app.provider)
        .await?
    {
        return Err(payment(
            "service_not_acknowledged",
            "service not acknowledge the tee signer".into(),
        ));
    }
    let request = prepared.request();
    let prompt = prepared.prompt_tokens() as u64;
    let answer = request
        .max_tokens
        .map_or(DEFAULT_ANSWER_TOKENS, |tokens| tokens as u64)
        .min(u64::from(role.max_tokens));
    let most = answer.saturating_mul(prepared.answers() as u64);
    let reserved = billing::reservation(
        role.config.input_price,
        role.config.output_price,
        prompt,
        most,
    );
    let new = NewUsage {
        id: id.to_owned(),
        user,
        request_hash: hex::encode(request_hash),
        model: request.model.clone(),
        reserved,
        owner: app.instance.clone(),
    };
    let floor = MINIMUM_RESERVE.saturating_add(reserved);
    let available = account.free_balance();
    let short = app
        .store
        .reserve_usage(&new, available, floor, app.clock.system_ms())
        .await?;
    let Some(missing) = short else { return Ok(()) };
    // The account may have been funded a moment ago.
    role.forget_account(user);
    let fresh = role
        .account(&app.chain, app.provider, user)
        .await?
        .map_or(U256::ZERO, |account| account.free_balance());
    if fresh > available
        && app
            .store
            .reserve_usage(&new, fresh, floor, app.clock.system_ms())
            .await?
            .is_none()
    {
        return Ok(());
    }
    let required = available.saturating_add(missing);
    Err(payment(
        "insufficient_balance",
        format!(
            "insufficient balance: your locked balance is {} 0G, but the required minimum is {} 0G (breakdown: minimum reserve \
             1 0G + unsettled fees and running requests {} 0G + current request fee {} 0G). Please add more funds with: \
             0g-compute-cli transfer-fund --provider {} --amount <amount>",
            format_0g(available),
            format_0g(required),
            format_0g(required.saturating_sub(floor)),
            format_0g(reserved),
            app.provider
        ),
    ))
}
