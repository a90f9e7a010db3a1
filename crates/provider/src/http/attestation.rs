//! Evidence of the enclave.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{ConnectInfo, Query, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use zerog_attestation::bundle::{SIGNATURE_HEADER, SIMULATED_HEADER, sign_body};

use super::error::ApiError;
use super::limits::client_address;
use crate::app::App;

/// Query of `GET /v1/quote`.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct QuoteQuery {
    legacy: Option<String>,
    nonce: Option<String>,
}

/// `GET /v1/quote`: the legacy form unless `legacy=false`; with `nonce` (32 bytes in hexadecimal) a fresh one.
pub(crate) async fn quote(
    State(app): State<Arc<App>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    Query(query): Query<QuoteQuery>,
) -> Result<Response, ApiError> {
    app.limiter.quote(client_address(
        peer,
        &headers,
        &app.config.server.trusted_proxies,
    ))?;
    let body = match query.nonce {
        Some(text) => {
            let mut nonce = [0u8; 32];
            hex::decode_to_slice(text.trim_start_matches("0x"), &mut nonce).map_err(|_| {
                ApiError::bad_request("invalid_nonce", "nonce must be 32 bytes in hexadecimal")
                    .field("nonce")
            })?;
            let worker = Arc::clone(&app);
            app.run_blocking(move || worker.identity.challenge(&nonce))
                .await
                .map_err(ApiError::internal)?
        }
        None => app
            .identity
            .quote(query.legacy.as_deref() != Some("false"))
            .to_string(),
    };
    let signature = sign_body(&app.identity.keys().signer, body.as_bytes());
    let mut response = ([(header::CONTENT_TYPE, "application/json")], body).into_response();
    let name: HeaderName = SIGNATURE_HEADER.parse().map_err(ApiError::internal)?;
    response.headers_mut().insert(
        name,
        HeaderValue::from_str(&signature).map_err(ApiError::internal)?,
    );
    if app.identity.is_simulated() {
        let name: HeaderName = SIMULATED_HEADER.0.parse().map_err(ApiError::internal)?;
        response
            .headers_mut()
            .insert(name, HeaderValue::from_static(SIMULATED_HEADER.1));
    }
    Ok(response)
}

/// `GET /v1/quote/collateral`: what a verifier needs besides the quote: Intel's for hardware, for a simulated enclave that
/// of the development root.
pub(crate) async fn collateral(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let now_s = app.clock.system_ms() / 1000;
    let collateral = match app.identity.development_collateral(now_s) {
        Some(collateral) => collateral,
        // Not "come back later": who verifies can go to a service at once.
        None => app
            .collateral
            .get(app.identity.binary_quote(), now_s)
            .await
            .map_err(|reason| ApiError::not_found("no_collateral", reason))?,
    };
    let body = serde_json::to_string(&collateral).map_err(ApiError::internal)?;
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}
