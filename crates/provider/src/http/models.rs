//! Base models: what can be trained, what is served, and the packages that clients fetch.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use zerog_protocol::fine_tuning_api::ModelView;

use super::auth;
use super::error::ApiError;
use crate::app::App;
use crate::catalogue::{BaseModelEntry, CatalogueError, Package};

/// `GET /v1/model`: customised models only, never null.
pub(crate) async fn list(State(app): State<Arc<App>>) -> Json<Vec<ModelView>> {
    let worker = Arc::clone(&app);
    let views = app.run_blocking(move || {
        worker
            .catalogue
            .models()
            .iter()
            .filter(|entry| !entry.config.is_predefined)
            .map(BaseModelEntry::view)
            .collect()
    });
    Json(views.await)
}

/// `GET /v1/model/{nameOrHash}`: every model that is trained here, predefined ones included.
pub(crate) async fn get(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Result<Json<ModelView>, ApiError> {
    let worker = Arc::clone(&app);
    let view = app
        .run_blocking(move || {
            worker
                .catalogue
                .find(&name)
                .map(BaseModelEntry::view)
                .ok_or(name)
        })
        .await;
    view.map(Json).map_err(|name| unknown(&name))
}

/// `GET /v1/model/{nameOrHash}/tokenizer`: the tokenizer files as a zip.
pub(crate) async fn tokenizer(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let package = package(&app, name.clone(), BaseModelEntry::tokenizer_package).await?;
    let etag = format!("\"{}\"", package.sha256);
    if headers
        .get(header::IF_NONE_MATCH)
        .is_some_and(|value| value.as_bytes() == etag.as_bytes())
    {
        return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, etag)]).into_response());
    }
    let mut response = zip_response(&format!("{name}-tokenizer"), package)?;
    response.headers_mut().insert(
        header::ETAG,
        HeaderValue::from_str(&etag).map_err(ApiError::internal)?,
    );
    Ok(response)
}

/// `GET /v1/model/desc/{nameOrHash}`: how to use a model, as a zip.
pub(crate) async fn usage(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Result<Response, ApiError> {
    let package = package(&app, name.clone(), BaseModelEntry::usage_package).await?;
    zip_response(&name, package)
}

async fn package(
    app: &Arc<App>,
    name: String,
    of: fn(&BaseModelEntry) -> Result<Package, CatalogueError>,
) -> Result<Package, ApiError> {
    let worker = Arc::clone(app);
    let made = app.run_blocking(move || match worker.catalogue.find(&name) {
        Some(entry) => Ok(of(entry)),
        None => Err(name),
    });
    made.await
        .map_err(|name| unknown(&name))?
        .map_err(ApiError::internal)
}

fn zip_response(name: &str, package: Package) -> Result<Response, ApiError> {
    // A name comes out of the path; only plain characters go into the header.
    let name: String = name
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || "-_.".contains(c) {
                c
            } else {
                '_'
            }
        })
        .collect();
    let disposition = format!("attachment; filename={name}.zip");
    let headers = [
        (header::CONTENT_TYPE, "application/zip".to_owned()),
        (header::CONTENT_DISPOSITION, disposition),
    ];
    Ok((headers, package.bytes).into_response())
}

fn unknown(name: &str) -> ApiError {
    ApiError::not_found(
        "unknown_model",
        format!("get customized model: Model {name} not found"),
    )
}

/// `GET /v1/models`: the served base model under its names, with prices.
pub(crate) async fn served(State(app): State<Arc<App>>) -> Result<Json<Value>, ApiError> {
    Ok(Json(
        json!({"object": "list", "data": served_models(&app)?}),
    ))
}

/// `GET /v1/proxy/models/{name}`.
pub(crate) fn served_one(app: &App, name: &str) -> Result<Json<Value>, ApiError> {
    let models = served_models(app)?;
    let model = models.into_iter().find(|model| model["id"] == name);
    model.map(Json).ok_or_else(|| {
        ApiError::not_found(
            "model_not_found",
            format!("the model {name:?} does not exist"),
        )
    })
}

fn served_models(app: &App) -> Result<Vec<Value>, ApiError> {
    let role = auth::inference(app)?;
    let data = role
        .base_names
        .iter()
        .map(|name| {
            let entry = app.catalogue.find(name);
            json!({
                "id": name,
                "object": "model",
                "created": 0,
                "owned_by": "zerog",
                "provider": app.provider,
                "canonical_id": name,
                "name": name,
                "description": entry.map(|entry| entry.config.description.clone()),
                "type": "chatbot",
                "context_length": role.max_tokens,
                "max_completion_tokens": role.max_tokens,
                "architecture": {
                    "modality": "text->text", "input_modalities": ["text"], "output_modalities": ["text"],
                    "instruct_type": "chatml",
                },
                "supported_parameters": [
                    "temperature", "top_p", "top_k", "min_p", "max_tokens", "max_completion_tokens", "stop", "seed",
                    "presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias", "logprobs",
                    "top_logprobs", "n", "stream", "response_format", "tools", "tool_choice", "parallel_tool_calls",
                ],
                "pricing": {
                    "prompt": role.config.input_price.to_string(),
                    "completion": role.config.output_price.to_string(),
                },
                "verifiability": "TeeML",
                "tee_attested": !app.identity.is_simulated(),
                "supports_fine_tuned_adapters": true,
                "stand_in": entry.is_some_and(|entry| entry.config.stand_in),
                "base_model_sha256": role.base_sha256,
            })
        })
        .collect();
    Ok(data)
}

/// `GET /v1/capabilities`.
pub(crate) async fn capabilities(State(app): State<Arc<App>>) -> Result<Json<Value>, ApiError> {
    let role = auth::inference(&app)?;
    let base = &role.config.model;
    Ok(Json(json!({
        "base_model": base,
        "fine_tuning": {"supports_fine_tuned_adapters": true, "base_model": base, "adapter_prefix": "ft-"},
    })))
}
