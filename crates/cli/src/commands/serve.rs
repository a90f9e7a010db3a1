//! `inference serve`: an OpenAI-compatible endpoint on this machine. Requests are signed, paid and passed on to one
//! provider; answers come back as they are, streamed ones piece by piece.

use std::net::IpAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, State};
use axum::http::header::{CONTENT_TYPE, HOST};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};
use zerog_sdk::{Address, Broker, Category, Error, Progress};

use crate::app::{App, Wallet};
use crate::args::Serve;
use crate::exit_code::{Failure, Outcome};
use crate::output::Output;

/// Largest request body in bytes.
const MAX_BODY_BYTES: usize = 16 * 1024 * 1024;

struct Proxy {
    broker: Broker,
    provider: Address,
    output: Output,
}

/// Serves until the program is stopped.
pub(super) async fn run(app: &App, arguments: &Serve) -> Outcome {
    let broker = app.broker(Wallet::Needed).await?;
    let provider = arguments.provider;
    let model = broker.inference.get_service(provider).await?.model;
    let listener = tokio::net::TcpListener::bind((arguments.host, arguments.port))
        .await
        .map_err(|error| {
            Failure::usage(format!(
                "cannot listen on {}:{} ({error}); choose another --port or --host",
                arguments.host, arguments.port
            ))
        })?;
    let address = listener
        .local_addr()
        .map_err(|error| Failure::usage(format!("the listener has no address: {error}")))?;
    let url = format!("http://{address}/v1");
    if !arguments.host.is_loopback() {
        app.output.warn(format!(
            "Everybody who reaches {address} spends from this wallet's sub-account."
        ));
    }
    app.output
        .line(format!("Serving {model} of {provider} at {url}"));
    app.output
        .json(&json!({ "url": url, "provider": provider, "model": model }));
    let proxy = Arc::new(Proxy {
        broker,
        provider,
        output: app.output,
    });
    axum::serve(listener, routes(proxy))
        .await
        .map_err(|error| Failure::usage(format!("the server ended: {error}")))
}

fn routes(proxy: Arc<Proxy>) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(chat))
        .route("/v1/models", get(models))
        .fallback(async || {
            refusal(
                StatusCode::NOT_FOUND,
                "not_found",
                "this endpoint has POST /v1/chat/completions and GET /v1/models",
            )
        })
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(proxy)
}

async fn chat(State(proxy): State<Arc<Proxy>>, headers: HeaderMap, body: Bytes) -> Response {
    if let Some(refused) = refused(&headers) {
        return refused;
    }
    let output = proxy.output;
    let tell = |news: Progress| output.progress().show(&news);
    let lora = &proxy.broker.inference.lora;
    let answer = match lora.forward_chat(proxy.provider, &body, tell).await {
        Ok(answer) => answer,
        Err(error) => return failed(&error),
    };
    let mut response = Response::builder().status(StatusCode::OK);
    for name in ["content-type", "zg-res-key"] {
        if let Some(value) = answer.header(name) {
            response = response.header(name, value);
        }
    }
    let pieces = futures::stream::try_unfold(answer, |mut answer| async move {
        Ok::<_, Error>(answer.chunk().await?.map(|chunk| (chunk, answer)))
    });
    response
        .body(Body::from_stream(pieces))
        .unwrap_or_else(|error| {
            let message = error.to_string();
            refusal(StatusCode::BAD_GATEWAY, "provider_answer", &message)
        })
}

async fn models(State(proxy): State<Arc<Proxy>>, headers: HeaderMap) -> Response {
    if !names_this_machine(&headers) {
        return foreign_host();
    }
    match proxy
        .broker
        .inference
        .get_provider_models(proxy.provider)
        .await
    {
        Ok(models) => json_answer(StatusCode::OK, &json!({ "object": "list", "data": models })),
        Err(error) => failed(&error),
    }
}

/// A page in a browser must not spend: it can send neither this content type nor, by a name of its own for this
/// address, this host.
fn refused(headers: &HeaderMap) -> Option<Response> {
    if !names_this_machine(headers) {
        return Some(foreign_host());
    }
    let is_json = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.starts_with("application/json"));
    (!is_json).then(|| {
        refusal(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "content_type",
            "send the body as application/json",
        )
    })
}

fn names_this_machine(headers: &HeaderMap) -> bool {
    let host = headers.get(HOST).and_then(|value| value.to_str().ok());
    let name = host.map(|host| match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    });
    name.is_some_and(|name| {
        let address = name.trim_start_matches('[').trim_end_matches(']');
        name == "localhost" || address.parse::<IpAddr>().is_ok()
    })
}

fn foreign_host() -> Response {
    refusal(
        StatusCode::FORBIDDEN,
        "host",
        "name this endpoint by its IP address or localhost",
    )
}

/// An error as the published clients of the interface read it.
fn failed(error: &Error) -> Response {
    let status = match error {
        Error::ProviderRefused { status, .. } => {
            StatusCode::from_u16(*status).unwrap_or(StatusCode::BAD_GATEWAY)
        }
        error if error.category() == Category::Funds => StatusCode::PAYMENT_REQUIRED,
        _ => StatusCode::BAD_GATEWAY,
    };
    refusal(status, error.code(), &error.to_string())
}

fn refusal(status: StatusCode, code: &str, message: &str) -> Response {
    let body = json!({
        "error": { "message": message, "type": "invalid_request_error", "param": null, "code": code },
    });
    json_answer(status, &body)
}

fn json_answer(status: StatusCode, body: &Value) -> Response {
    (
        status,
        [(CONTENT_TYPE, "application/json")],
        body.to_string(),
    )
        .into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_requests_that_no_web_page_can_send_are_passed_on() {
        let headers = |host: &str, content_type: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, host.parse().unwrap());
            headers.insert(CONTENT_TYPE, content_type.parse().unwrap());
            headers
        };
        for host in [
            "localhost:3000",
            "127.0.0.1",
            "[::1]:3000",
            "192.168.1.2:80",
        ] {
            assert!(
                refused(&headers(host, "application/json; charset=utf-8")).is_none(),
                "{host}"
            );
        }
        let foreign = refused(&headers("evil.example:3000", "application/json"));
        assert_eq!(foreign.unwrap().status(), StatusCode::FORBIDDEN);
        let form = refused(&headers("localhost:3000", "text/plain"));
        assert_eq!(form.unwrap().status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
        assert!(refused(&HeaderMap::new()).is_some());
    }
}
