//! The HTTP side: routes, limits, and the one form of every refusal.

mod adapters;
mod answered;
mod attestation;
mod auth;
mod chat;
mod datasets;
mod deliveries;
mod error;
mod events;
mod external_chat;
mod health;
pub(crate) mod limits;
mod models;
mod quotes;
mod tasks;
pub(crate) mod upload_parts;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::{HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, delete, get, post, put};
use tokio::net::TcpListener;
use tower::Layer;
use tower::util::MapRequestLayer;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{Any, CorsLayer};
use zerog_protocol::limits::{MAX_CHAT_BODY_BYTES, MAX_JSON_BODY_BYTES, UPLOAD_PART_BYTES};

pub(crate) use self::error::ApiError;
pub(crate) use self::quotes::fee_terms;
use crate::app::App;

/// Headers that browsers may read.
const EXPOSED: [&str; 5] = [
    "zg-res-key",
    "zg-quote-signature",
    "retry-after",
    "provider",
    "content-range",
];

/// Serves until the daemon stops.
pub(crate) async fn serve(app: Arc<App>, listener: TcpListener) {
    let stop = app.shutdown.clone();
    // Paths are mended before a route is looked for.
    let service = MapRequestLayer::new(mend_path).layer(router(app));
    let service =
        axum::ServiceExt::<Request>::into_make_service_with_connect_info::<SocketAddr>(service);
    let served = axum::serve(listener, service)
        .with_graceful_shutdown(async move { stop.cancelled().await })
        .await;
    if let Err(error) = served {
        tracing::error!(%error, "the HTTP server ended");
    }
}

fn router(app: Arc<App>) -> Router {
    let mut routes = Router::new()
        .route("/health", get(health::health))
        .route("/metrics", get(health::metrics))
        .route("/v1/quote", get(attestation::quote))
        .route("/v1/quote/collateral", get(attestation::collateral));
    if app.config.fine_tuning.is_some() {
        routes = routes
            .route(
                "/v1/user/{address}/task",
                post(tasks::create).get(tasks::list),
            )
            .route("/v1/user/{address}/task/{id}", get(tasks::get))
            .route("/v1/user/{address}/task/{id}/cancel", post(tasks::cancel))
            .route("/v1/user/{address}/task/{id}/log", get(tasks::log))
            .route("/v1/user/{address}/task/{id}/events", get(events::events))
            .route("/v1/user/{address}/task/{id}/lora", post(deliveries::lora))
            .route(
                "/v1/user/{address}/dataset",
                // The multipart reader has a limit of its own, with a message.
                post(datasets::upload).layer(DefaultBodyLimit::disable()),
            )
            .route(
                "/v1/user/{address}/dataset/parts/{id}",
                put(upload_parts::receive).layer(DefaultBodyLimit::max(UPLOAD_PART_BYTES)),
            )
            .route(
                "/v1/user/{address}/dataset/{hash}",
                delete(datasets::delete),
            )
            .route("/v1/user/{address}/quote", post(quotes::quote))
            .route("/v1/task/pending", get(tasks::pending))
            .route("/v1/model", get(models::list))
            .route("/v1/model/{name}", get(models::get))
            .route("/v1/model/{name}/tokenizer", get(models::tokenizer))
            .route("/v1/model/desc/{name}", get(models::usage));
    }
    if app.inference.is_some() {
        routes = routes
            .route(
                "/v1/proxy/{*path}",
                any(chat::proxy).layer(DefaultBodyLimit::max(MAX_CHAT_BODY_BYTES)),
            )
            .route("/v1/models", get(models::served))
            .route("/v1/capabilities", get(models::capabilities))
            .route("/v1/user/{address}/unsettledfee", get(chat::unsettled_fee))
            .route("/v1/lora/adapters", get(adapters::list))
            .route("/v1/lora/adapters/deploy", post(adapters::deploy))
            .route("/v1/lora/adapters/{name}", get(adapters::status))
            .route(
                "/v1/lora/adapters/{name}/share",
                get(adapters::shares).post(adapters::share),
            )
            .route("/v1/lora/admin/evict", post(adapters::evict))
            .route("/internal/v1/adapter-keys", post(adapters::adapter_keys));
    }
    routes
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(DefaultBodyLimit::max(MAX_JSON_BODY_BYTES))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(
            CorsLayer::new()
                .allow_origin(Any)
                .allow_methods(Any)
                .allow_headers([
                    header::AUTHORIZATION,
                    header::CONTENT_TYPE,
                    header::ACCEPT,
                    header::RANGE,
                    HeaderName::from_static("last-event-id"),
                ])
                .expose_headers(EXPOSED.map(HeaderName::from_static)),
        )
        .layer(axum::middleware::map_response(mend_refusal))
        .with_state(app)
}

/// Doubled slashes come from URLs that were registered with a slash at the end.
fn mend_path(mut request: Request) -> Request {
    let path = request.uri().path();
    if !path.contains("//") {
        return request;
    }
    let mut mended = String::with_capacity(path.len());
    for c in path.chars() {
        if !(c == '/' && mended.ends_with('/')) {
            mended.push(c);
        }
    }
    if let Some(query) = request.uri().query() {
        mended.push('?');
        mended.push_str(query);
    }
    if let Ok(uri) = mended.parse::<Uri>() {
        *request.uri_mut() = uri;
    }
    request
}

/// Refusals of the framework are plain text; published clients read every refusal as JSON.
async fn mend_refusal(response: Response) -> Response {
    let status = response.status();
    if !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let is_json = response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/json"));
    // A stream that has begun is its own business.
    let is_stream = response.headers().get(header::CONTENT_TYPE)
        == Some(&HeaderValue::from_static("text/event-stream"));
    if is_json || is_stream {
        return response;
    }
    let code = match status {
        StatusCode::PAYLOAD_TOO_LARGE => "too_large",
        StatusCode::UNSUPPORTED_MEDIA_TYPE => "media_type",
        StatusCode::METHOD_NOT_ALLOWED => "method_not_allowed",
        _ => "bad_request",
    };
    ApiError::new(
        status,
        code,
        status
            .canonical_reason()
            .unwrap_or("the request was refused"),
    )
    .into_response()
}

async fn not_found(uri: Uri) -> ApiError {
    ApiError::not_found(
        "route_not_found",
        format!("404 page not found: {}", uri.path()),
    )
}

async fn method_not_allowed() -> ApiError {
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        "Method Not Allowed",
    )
}

fn panicked(_: Box<dyn std::any::Any + Send + 'static>) -> Response {
    ApiError::internal("a handler panicked").into_response()
}
