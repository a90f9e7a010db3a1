//! Whether the provider works, and a few numbers.

use std::fmt::Write;
use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use zerog_protocol::task::TaskState;

use super::error::ApiError;
use crate::app::App;
use crate::inference_role::Engine;

/// `GET /health`: 200 when the database and the chain answer, else 503.
pub(crate) async fn health(State(app): State<Arc<App>>) -> Response {
    let pending = app.store.pending_tasks().await;
    let block = app.chain.block_number().await;
    let is_well = pending.is_ok() && block.is_ok();
    let body = json!({
        "status": if is_well { "ok" } else { "degraded" },
        "provider": app.provider,
        "signer": app.identity.signer(),
        "chainId": app.chain.chain_id(),
        "database": pending.is_ok(),
        "block": block.as_ref().ok(),
        "pendingTasks": pending.as_ref().ok(),
        "fineTuning": app.config.fine_tuning.is_some(),
        "inference": app.inference.is_some(),
        "simulatedTee": app.identity.is_simulated(),
        "version": env!("CARGO_PKG_VERSION"),
    });
    let status = if is_well {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (
        status,
        [(header::CONTENT_TYPE, "application/json")],
        body.to_string(),
    )
        .into_response()
}

/// `GET /metrics` in the text format of Prometheus.
pub(crate) async fn metrics(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let mut text = String::new();
    for state in TaskState::ALL
        .into_iter()
        .filter(|state| !state.is_terminal())
    {
        let count = app.store.tasks_in(state).await?.len();
        writeln!(text, "zerog_tasks{{state=\"{state}\"}} {count}").map_err(ApiError::internal)?;
    }
    if let Some(inference) = &app.inference {
        let rows = match &inference.engine {
            Engine::BuiltIn(engine) => {
                let stats = engine.stats();
                vec![
                    ("zerog_engine_running", stats.running as u64),
                    ("zerog_engine_waiting", stats.waiting as u64),
                    (
                        "zerog_engine_generated_tokens_total",
                        stats.generated_tokens,
                    ),
                    ("zerog_engine_prompt_tokens_total", stats.prompt_tokens),
                ]
            }
            // The server has numbers of its own.
            Engine::External(engine) => {
                vec![("zerog_engine_adapters_in_use", engine.running() as u64)]
            }
        };
        for (name, value) in rows {
            writeln!(text, "{name} {value}").map_err(ApiError::internal)?;
        }
    }
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response())
}
