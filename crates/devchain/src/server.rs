//! JSON-RPC over HTTP: requests, batches, notifications, limits, graceful shutdown.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    body::{Bytes, HttpBody as _},
    extract::{DefaultBodyLimit, FromRequest, Request as HttpRequest, State},
    http::{HeaderValue, Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
    routing::post,
};
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json, value::RawValue};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, oneshot},
    task::JoinHandle,
};

use crate::{Error, RpcError, rpc::Service};

/// JSON-RPC: the body is no JSON.
const PARSE_ERROR: i64 = -32_700;
/// JSON-RPC: JSON, but no request.
const INVALID_REQUEST: i64 = -32_600;
/// Requests that execute at the same time; the others wait. Execution is CPU work and mostly under one lock.
const CONCURRENT_REQUESTS: usize = 32;
/// Methods that take microseconds, and a transaction, which clients send one at a time.
const BRIEF_METHODS: [&str; 9] = [
    "eth_blockNumber",
    "eth_chainId",
    "eth_gasPrice",
    "eth_getBalance",
    "eth_getCode",
    "eth_getTransactionByHash",
    "eth_getTransactionCount",
    "eth_getTransactionReceipt",
    "eth_sendRawTransaction",
];
/// Longer transactions do more.
const MAX_BRIEF_BYTES: usize = 16 << 10;
/// How long a shutdown waits for requests that are being answered.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Clone)]
struct Front {
    service: Arc<Service>,
    permits: Arc<Semaphore>,
}

/// A running server. Dropping the handle stops it too, without waiting.
#[derive(Debug)]
pub struct ServerHandle {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<std::io::Result<()>>,
}

impl ServerHandle {
    /// Where the server listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// The endpoint that clients are given.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Stops accepting, answers what is under way, and returns. After five seconds it gives up on the rest.
    pub async fn shutdown(mut self) {
        self.stop.take();
        if tokio::time::timeout(SHUTDOWN_TIMEOUT, &mut self.task)
            .await
            .is_err()
        {
            self.task.abort();
        }
    }
}

pub(crate) fn serve(service: Arc<Service>, listener: TcpListener) -> Result<ServerHandle, Error> {
    let address = listener.local_addr().map_err(Error::Listen)?;
    if !address.ip().is_loopback() {
        return Err(Error::NotLoopback { address });
    }
    let body_limit = DefaultBodyLimit::max(service.limits.request_bytes);
    let front = Front {
        service,
        permits: Arc::new(Semaphore::new(CONCURRENT_REQUESTS)),
    };
    let router = Router::new()
        .route("/", post(answer).fallback(only_post))
        .fallback(no_route)
        .layer(body_limit)
        .with_state(front);
    let (stop, stopped) = oneshot::channel::<()>();
    let task = tokio::spawn(async move {
        let until_stopped = async {
            // An error means that the handle was dropped, which is a stop as well.
            let _ = stopped.await;
        };
        axum::serve(listener, router)
            .with_graceful_shutdown(until_stopped)
            .await
    });
    Ok(ServerHandle {
        address,
        stop: Some(stop),
        task,
    })
}

async fn answer(State(front): State<Front>, request: HttpRequest) -> Response {
    let limit = front.service.limits.request_bytes;
    let too_long = || {
        let text = format!("the body exceeds {limit} bytes; send fewer requests at once");
        let error = RpcError::new(INVALID_REQUEST, text);
        refused(StatusCode::PAYLOAD_TOO_LARGE, error)
    };
    // What says beforehand that it is too long is not read.
    if request.body().size_hint().lower() > limit as u64 {
        return too_long();
    }
    let body = match Bytes::from_request(request, &()).await {
        Ok(body) => body,
        Err(error) if error.status() == StatusCode::PAYLOAD_TOO_LARGE => return too_long(),
        Err(error) => {
            let text = "parse error: the body ended before its announced length; send it again";
            return refused(error.status(), RpcError::new(PARSE_ERROR, text));
        }
    };
    let Ok(_permit) = front.permits.acquire().await else {
        let text = "the chain is stopping; ask again later";
        return refused(StatusCode::SERVICE_UNAVAILABLE, RpcError::server(text));
    };
    let answered = if is_brief(&front.service, &body) {
        Ok(respond(&front.service, &body))
    } else {
        tokio::task::spawn_blocking(move || respond(&front.service, &body)).await
    };
    match answered {
        Ok(Some(text)) => ([(header::CONTENT_TYPE, "application/json")], text).into_response(),
        // Only notifications, which are not answered.
        Ok(None) => StatusCode::NO_CONTENT.into_response(),
        Err(_) => {
            let error = RpcError::new(-32603, "the call failed inside the chain; see its log");
            refused(StatusCode::INTERNAL_SERVER_ERROR, error)
        }
    }
}

/// What HTTP itself refuses, still as an answer that a JSON-RPC client reads.
fn refused(status: StatusCode, error: RpcError) -> Response {
    let json = [(header::CONTENT_TYPE, "application/json")];
    (status, json, response("null", Err(error))).into_response()
}

async fn only_post(method: Method) -> Response {
    let text = format!("calls are sent with POST, not {method}");
    let error = RpcError::new(INVALID_REQUEST, text);
    let mut response = refused(StatusCode::METHOD_NOT_ALLOWED, error);
    let allowed = HeaderValue::from_static("POST");
    response.headers_mut().insert(header::ALLOW, allowed);
    response
}

async fn no_route(uri: Uri) -> Response {
    let text = format!("there is no route {}; calls are sent to /", uri.path());
    let error = RpcError::new(INVALID_REQUEST, text);
    refused(StatusCode::NOT_FOUND, error)
}

/// Whether a request is answered sooner than another thread would begin with it: a look-up or one transaction, while
/// nobody holds the chain.
fn is_brief(service: &Service, body: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Called<'a> {
        #[serde(borrow)]
        method: &'a str,
    }
    body.len() <= MAX_BRIEF_BYTES
        && serde_json::from_slice::<Called<'_>>(body)
            .is_ok_and(|called| BRIEF_METHODS.contains(&called.method))
        && service.chain.try_write().is_some()
}

fn respond(service: &Service, body: &[u8]) -> Option<String> {
    let is_batch = body.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[');
    if !is_batch {
        return match serde_json::from_slice::<&RawValue>(body) {
            Ok(request) => respond_to_one(service, request),
            Err(error) => Some(parse_error(&error)),
        };
    }
    let requests: Vec<&RawValue> = match serde_json::from_slice(body) {
        Ok(requests) => requests,
        Err(error) => return Some(parse_error(&error)),
    };
    if requests.is_empty() {
        return Some(response(
            "null",
            Err(RpcError::new(INVALID_REQUEST, "empty batch")),
        ));
    }
    if requests.len() > service.limits.batch_requests {
        let limit = service.limits.batch_requests;
        return Some(response(
            "null",
            Err(RpcError::new(
                -32600,
                format!("batch of more than {limit} requests"),
            )),
        ));
    }
    let mut answers = String::from("[");
    for request in requests {
        let answer = if answers.len() > service.limits.response_bytes {
            let error = RpcError::new(-32003, "response too large");
            Some(response(id_of(request).unwrap_or("null"), Err(error)))
        } else {
            respond_to_one(service, request)
        };
        if let Some(answer) = answer {
            if answers.len() > 1 {
                answers.push(',');
            }
            answers.push_str(&answer);
        }
    }
    (answers.len() > 1).then(|| answers + "]")
}

#[derive(Deserialize)]
struct Request<'a> {
    /// A notification has none. `null` is an id, if an odd one.
    #[serde(borrow, default, deserialize_with = "present")]
    id: Option<&'a RawValue>,
    method: String,
    #[serde(default)]
    params: Value,
}

/// An optional member that is there, `null` included.
fn present<'a, D: Deserializer<'a>>(deserializer: D) -> Result<Option<&'a RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

fn respond_to_one(service: &Service, request: &RawValue) -> Option<String> {
    let request: Request<'_> = match serde_json::from_str(request.get()) {
        Ok(request) => request,
        Err(error) => {
            return Some(response(
                "null",
                Err(RpcError::new(
                    INVALID_REQUEST,
                    format!("invalid request: {error}"),
                )),
            ));
        }
    };
    let result = match request.params {
        Value::Null => service.call(&request.method, &[]),
        Value::Array(parameters) => service.call(&request.method, &parameters),
        _ => Err(RpcError::invalid_params("parameters must be an array")),
    };
    Some(response(request.id?.get(), result))
}

fn id_of(request: &RawValue) -> Option<&str> {
    #[derive(Deserialize)]
    struct Id<'a> {
        #[serde(borrow, default)]
        id: Option<&'a RawValue>,
    }
    serde_json::from_str::<Id<'_>>(request.get())
        .ok()?
        .id
        .map(RawValue::get)
}

fn parse_error(error: &serde_json::Error) -> String {
    response(
        "null",
        Err(RpcError::new(PARSE_ERROR, format!("parse error: {error}"))),
    )
}

/// `id` is JSON text, sent back as it came.
fn response(id: &str, result: Result<Value, RpcError>) -> String {
    match result {
        Ok(value) => format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{value}}}"#),
        Err(RpcError {
            code,
            message,
            data,
        }) => {
            let mut error = json!({"code": code, "message": message});
            if let Some(data) = data {
                error["data"] = json!(data);
            }
            format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{error}}}"#)
        }
    }
}
