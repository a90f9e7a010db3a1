//! HTTP to a provider: timeouts, size limits, retries, and errors whatever form they come in.
//!
//! Providers of other makers answer failures as JSON, as plain text or with an empty body; all become
//! [`Error::ProviderRefused`]. Requests that may be repeated safely are repeated when the connection fails or the
//! provider says to come back later.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use reqwest::tls::TlsInfo;
use reqwest::{Method, Response, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::Value;
use zerog_attestation::{Connection, PeerCertificate};

use crate::error::{Error, Result};

/// Longest wait for a JSON answer; the published clients use the same.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest pause between two pieces of a body.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest time for one part of a file.
const PART_TIMEOUT: Duration = Duration::from_secs(120);
/// A chat answer may take as long as its tokens.
const CHAT_TIMEOUT: Duration = Duration::from_secs(15 * 60);
/// Attempts of a request that may be repeated, the first included.
const ATTEMPTS: u32 = 4;
/// First pause between attempts; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(300);
/// Longest pause that a provider may ask for.
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// Largest JSON answer in bytes: a list of a few thousand tasks.
const MAX_JSON_BYTES: usize = 16 * 1024 * 1024;
/// Largest log or package in bytes.
pub(crate) const MAX_FILE_BYTES: usize = 256 * 1024 * 1024;
/// Largest error body that is read, in bytes.
const MAX_ERROR_BYTES: usize = 64 * 1024;
/// Longest error text that is shown, in characters.
const MAX_ERROR_CHARS: usize = 600;

/// A body with its headers.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Response headers.
    pub headers: HeaderMap,
    /// Response body.
    pub body: Vec<u8>,
    /// How it came.
    pub connection: Connection,
}

impl Answer {
    /// A header's text, if it is there and readable.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// HTTP client for providers. Clones share connections.
#[derive(Debug, Clone, Default)]
pub struct ProviderClient {
    clients: Arc<Clients>,
    /// Longest wait for an ordinary answer; none: 30 s.
    answer_timeout: Option<Duration>,
}

/// Made when they are first needed: reading the system's certificates takes longer than a call of the chain, and many
/// commands talk to no provider.
#[derive(Debug, Default)]
struct Clients {
    remote: OnceLock<reqwest::Client>,
    local: OnceLock<reqwest::Client>,
}

/// What a request carries.
#[derive(Debug, Clone, Default)]
pub(crate) enum Body {
    #[default]
    Empty,
    /// JSON text and its media type.
    Json(Vec<u8>),
}

impl ProviderClient {
    /// Makes a client and installs the process-wide TLS provider, unless there is one. `answer_timeout` is the longest
    /// wait for an ordinary answer (none: 30 s); it bounds the pauses of a transfer as well when it is given.
    #[must_use]
    pub fn new(answer_timeout: Option<Duration>) -> Self {
        install_tls();
        Self {
            answer_timeout,
            ..Self::default()
        }
    }

    /// GET with retries; the answer as JSON.
    pub(crate) async fn get_json<T: DeserializeOwned>(
        &self,
        operation: &'static str,
        url: &str,
        authorization: Option<&str>,
    ) -> Result<T> {
        let answer = self
            .get(operation, url, authorization, MAX_JSON_BYTES)
            .await?;
        parse_json(operation, &answer.body)
    }

    /// GET with retries; the answer as text.
    pub(crate) async fn get_text(
        &self,
        operation: &'static str,
        url: &str,
        max_bytes: usize,
    ) -> Result<String> {
        let answer = self.get(operation, url, None, max_bytes).await?;
        Ok(String::from_utf8_lossy(&answer.body).into_owned())
    }

    /// GET with retries; headers and body.
    pub(crate) async fn get(
        &self,
        operation: &'static str,
        url: &str,
        authorization: Option<&str>,
        max_bytes: usize,
    ) -> Result<Answer> {
        let mut backoff = Backoff::new(FIRST_PAUSE, MAX_PAUSE);
        let mut attempt = 1;
        loop {
            let outcome = async {
                let response = self
                    .send(
                        Method::GET,
                        operation,
                        url,
                        authorization,
                        Body::Empty,
                        self.answer_timeout(),
                    )
                    .await?;
                read_body(operation, url, response, max_bytes).await
            }
            .await;
            match outcome {
                Err(error) if attempt < ATTEMPTS && error.is_passing() => {
                    tracing::debug!(operation, attempt, %error, "request failed, trying again");
                    backoff.pause(&error).await;
                    attempt += 1;
                }
                other => return other,
            }
        }
    }

    /// POST of JSON without repetition, except when the provider refused because of its rate limit (the request was
    /// not worked on then).
    pub(crate) async fn post_json(
        &self,
        operation: &'static str,
        url: &str,
        authorization: Option<&str>,
        body: &impl serde::Serialize,
    ) -> Result<Answer> {
        let body = serde_json::to_vec(body).expect("request bodies are plain data");
        self.post_bytes(operation, url, authorization, &body, self.answer_timeout())
            .await
    }

    /// As [`ProviderClient::post_json`] with the exact bytes of the body, for requests that are signed or hashed.
    pub(crate) async fn post_bytes(
        &self,
        operation: &'static str,
        url: &str,
        authorization: Option<&str>,
        body: &[u8],
        timeout: Duration,
    ) -> Result<Answer> {
        let response = self
            .post_response(operation, url, authorization, body, timeout)
            .await?;
        read_answer(operation, url, response).await
    }

    /// POST of a chat request; the answer may take minutes and is not read yet.
    pub(crate) async fn post_chat(
        &self,
        url: &str,
        authorization: &str,
        body: &[u8],
    ) -> Result<Response> {
        self.post_response("chat", url, Some(authorization), body, CHAT_TIMEOUT)
            .await
    }

    async fn post_response(
        &self,
        operation: &'static str,
        url: &str,
        authorization: Option<&str>,
        body: &[u8],
        timeout: Duration,
    ) -> Result<Response> {
        let mut attempt = 1;
        loop {
            let sent = self
                .send(
                    Method::POST,
                    operation,
                    url,
                    authorization,
                    Body::Json(body.to_vec()),
                    timeout,
                )
                .await;
            match sent {
                Err(
                    error @ Error::ProviderRefused {
                        status: 429 | 503,
                        retry_after_s: Some(_),
                        ..
                    },
                ) if attempt < ATTEMPTS => {
                    tokio::time::sleep(pause_for(&error, FIRST_PAUSE)).await;
                    attempt += 1;
                }
                other => return other,
            }
        }
    }

    /// DELETE with a JSON body, once.
    pub(crate) async fn delete_json(
        &self,
        operation: &'static str,
        url: &str,
        body: &impl serde::Serialize,
    ) -> Result<Answer> {
        let body = serde_json::to_vec(body).expect("request bodies are plain data");
        let response = self
            .send(
                Method::DELETE,
                operation,
                url,
                None,
                Body::Json(body),
                REQUEST_TIMEOUT,
            )
            .await?;
        read_body(operation, url, response, MAX_JSON_BYTES).await
    }

    /// POST of a multipart form, once.
    pub(crate) async fn post_form(
        &self,
        operation: &'static str,
        url: &str,
        form: reqwest::multipart::Form,
        timeout: Duration,
    ) -> Result<Answer> {
        let sent = self
            .client(url)?
            .post(url)
            .timeout(timeout)
            .multipart(form)
            .send()
            .await;
        let response = check(operation, url, sent).await?;
        read_body(operation, url, response, MAX_JSON_BYTES).await
    }

    /// PUT of one part of a file, once, with the headers that say who sends it.
    pub(crate) async fn put_part(
        &self,
        operation: &'static str,
        url: &str,
        headers: [(&'static str, String); 2],
        part: Vec<u8>,
    ) -> Result<Answer> {
        let mut request = self.client(url)?.put(url).timeout(PART_TIMEOUT).body(part);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let response = check(operation, url, request.send().await).await?;
        read_body(operation, url, response, MAX_JSON_BYTES).await
    }

    /// One POST whose answer is streamed, from byte `from` on; any of 200, 206 and 416 is a success here.
    pub(crate) async fn post_range(
        &self,
        operation: &'static str,
        url: &str,
        body: &impl serde::Serialize,
        from: u64,
    ) -> Result<Response> {
        let mut request = self.client(url)?.post(url).json(body);
        if from > 0 {
            request = request.header("range", format!("bytes={from}-"));
        }
        let response = request
            .send()
            .await
            .map_err(|error| unreachable(url, &error))?;
        if response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            return Ok(response);
        }
        refuse_failure(operation, response).await
    }

    /// One GET of an event stream, which may stay open for as long as something comes; after the event `last_id`.
    pub(crate) async fn get_events(
        &self,
        operation: &'static str,
        url: &str,
        last_id: Option<&str>,
    ) -> Result<Response> {
        let mut request = self
            .client(url)?
            .get(url)
            .header(ACCEPT, "text/event-stream");
        if let Some(id) = last_id {
            request = request.header("last-event-id", id);
        }
        check(operation, url, request.send().await).await
    }

    fn answer_timeout(&self) -> Duration {
        self.answer_timeout.unwrap_or(REQUEST_TIMEOUT)
    }

    async fn send(
        &self,
        method: Method,
        operation: &'static str,
        url: &str,
        authorization: Option<&str>,
        body: Body,
        timeout: Duration,
    ) -> Result<Response> {
        let mut request = self.client(url)?.request(method, url).timeout(timeout);
        if let Some(value) = authorization {
            request = request.header(AUTHORIZATION, value);
        }
        if let Body::Json(body) = body {
            request = request.header(CONTENT_TYPE, "application/json").body(body);
        }
        check(operation, url, request.send().await).await
    }

    /// The client for a URL.
    ///
    /// # Errors
    /// [`Error::Argument`] when the system's certificate store cannot be used.
    fn client(&self, url: &str) -> Result<&reqwest::Client> {
        let is_local = is_loopback(url);
        let place = if is_local {
            &self.clients.local
        } else {
            &self.clients.remote
        };
        if let Some(client) = place.get() {
            return Ok(client);
        }
        let mut builder = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .tls_info(true)
            .read_timeout(self.answer_timeout.unwrap_or(READ_TIMEOUT))
            .user_agent(concat!("zerog-sdk/", env!("CARGO_PKG_VERSION")));
        if is_local {
            // A proxy of the environment cannot reach this machine's own ports.
            builder = builder.no_proxy();
        }
        let client = builder.build().map_err(|error| Error::Argument {
            name: "http",
            reason: describe(&error),
        })?;
        Ok(place.get_or_init(|| client))
    }
}

/// Installs the TLS provider of this process; an earlier choice of the binary stands.
pub(crate) fn install_tls() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// Whether a URL names this machine.
pub(crate) fn is_loopback(url: &str) -> bool {
    let Ok(url) = reqwest::Url::parse(url) else {
        return false;
    };
    match url.host_str() {
        Some("localhost") => true,
        Some(host) => {
            let host = host.trim_start_matches('[').trim_end_matches(']');
            host.parse::<std::net::IpAddr>()
                .is_ok_and(|address| address.is_loopback())
        }
        None => false,
    }
}

/// Path below a service's base URL, whichever way the base ends.
pub(crate) fn join(base: &str, path: &str) -> String {
    format!(
        "{}/{}",
        base.trim_end_matches('/'),
        path.trim_start_matches('/')
    )
}

/// Parses an answer, naming the request when it does not fit.
pub(crate) fn parse_json<T: DeserializeOwned>(operation: &'static str, body: &[u8]) -> Result<T> {
    serde_json::from_slice(body).map_err(|error| Error::ProviderAnswer {
        operation,
        reason: error.to_string(),
    })
}

/// Pauses between attempts: each twice as long as the one before, unless the provider says how long.
pub(crate) struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    pub(crate) fn new(first: Duration, longest: Duration) -> Self {
        Self {
            first,
            longest,
            next: first,
        }
    }

    /// An attempt got further: the next pause is the first again.
    pub(crate) fn reset(&mut self) {
        self.next = self.first;
    }

    /// Waits after an attempt that failed with `error`.
    pub(crate) async fn pause(&mut self, error: &Error) {
        tokio::time::sleep(pause_for(error, self.next)).await;
        self.next = (self.next * 2).min(self.longest);
    }
}

/// How long a failed request should wait.
fn pause_for(error: &Error, otherwise: Duration) -> Duration {
    match error {
        Error::ProviderRefused {
            retry_after_s: Some(seconds),
            ..
        } => Duration::from_secs(*seconds).min(MAX_PAUSE),
        _ => otherwise,
    }
}

/// A broken connection as an error of the SDK.
pub(crate) fn unreachable(url: &str, error: &reqwest::Error) -> Error {
    Error::ProviderUnreachable {
        url: without_query(url),
        reason: describe(error),
    }
}

async fn check(
    operation: &'static str,
    url: &str,
    sent: reqwest::Result<Response>,
) -> Result<Response> {
    refuse_failure(operation, sent.map_err(|error| unreachable(url, &error))?).await
}

async fn refuse_failure(operation: &'static str, response: Response) -> Result<Response> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let retry_after_s = response
        .headers()
        .get(RETRY_AFTER)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.trim().parse().ok());
    let body = read_at_most(response, MAX_ERROR_BYTES).await;
    let (message, code) = error_text(status, &body);
    Err(Error::ProviderRefused {
        operation,
        status: status.as_u16(),
        code,
        message,
        retry_after_s,
    })
}

/// The text and stable code of an error body: `{"error": "text", "code"}`, OpenAI's `{"error": {"message", "code"}}`,
/// plain text, or nothing.
pub(crate) fn error_text(status: StatusCode, body: &[u8]) -> (String, Option<String>) {
    let phrase = || {
        status
            .canonical_reason()
            .unwrap_or("no explanation")
            .to_owned()
    };
    let text_of = |value: &Value| value.as_str().map(str::to_owned);
    if let Ok(Value::Object(members)) = serde_json::from_slice::<Value>(body) {
        let code = members.get("code").and_then(text_of);
        let (message, inner) = match members.get("error") {
            Some(Value::String(text)) => (Some(text.clone()), None),
            Some(Value::Object(inner)) => (
                inner.get("message").and_then(text_of),
                inner.get("code").and_then(text_of),
            ),
            _ => (members.get("message").and_then(text_of), None),
        };
        return (shortened(&message.unwrap_or_else(phrase)), code.or(inner));
    }
    let text = String::from_utf8_lossy(body);
    let text = text.trim();
    // A page of HTML explains nothing.
    let message = if text.is_empty() || text.starts_with('<') {
        phrase()
    } else {
        shortened(text)
    };
    (message, None)
}

/// Texts of a provider are printed: control characters go, and length is bounded.
fn shortened(text: &str) -> String {
    text.trim()
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(MAX_ERROR_CHARS)
        .collect()
}

/// Reads a JSON answer, of bounded size.
pub(crate) async fn read_answer(
    operation: &'static str,
    url: &str,
    response: Response,
) -> Result<Answer> {
    read_body(operation, url, response, MAX_JSON_BYTES).await
}

async fn read_body(
    operation: &'static str,
    url: &str,
    mut response: Response,
    max_bytes: usize,
) -> Result<Answer> {
    let (headers, connection) = (response.headers().clone(), connection(&response));
    let mut body = Vec::new();
    while let Some(chunk) = response
        .chunk()
        .await
        .map_err(|error| unreachable(url, &error))?
    {
        if body.len() + chunk.len() > max_bytes {
            return Err(Error::ProviderAnswer {
                operation,
                reason: format!("more than {max_bytes} bytes"),
            });
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Answer {
        headers,
        body,
        connection,
    })
}

/// How a response came: redirects lead to the last connection, which is the one that counts.
fn connection(response: &Response) -> Connection {
    if response.url().scheme() != "https" {
        return if is_loopback(response.url().as_str()) {
            Connection::Local
        } else {
            Connection::Plain
        };
    }
    response
        .extensions()
        .get::<TlsInfo>()
        .and_then(TlsInfo::peer_certificate)
        .and_then(|certificate| PeerCertificate::parse(certificate).ok())
        .map_or(Connection::UnreadableTls, Connection::Tls)
}

async fn read_at_most(mut response: Response, max_bytes: usize) -> Vec<u8> {
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        let room = max_bytes - body.len();
        body.extend_from_slice(&chunk[..chunk.len().min(room)]);
        if body.len() >= max_bytes {
            break;
        }
    }
    body
}

fn without_query(url: &str) -> String {
    url.split(['?', '#']).next().unwrap_or(url).to_owned()
}

/// The innermost reason of a transport error, which names the actual trouble.
fn describe(error: &reqwest::Error) -> String {
    let mut reason: &dyn std::error::Error = error;
    while let Some(source) = reason.source() {
        reason = source;
    }
    if error.is_timeout() {
        "no answer in time".to_owned()
    } else {
        reason.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_bodies_of_every_kind_give_one_text() {
        let not_found = StatusCode::NOT_FOUND;
        let cases: [(&str, &str, Option<&str>); 7] = [
            (
                r#"{"error":"no such task","code":"task_not_found"}"#,
                "no such task",
                Some("task_not_found"),
            ),
            (
                r#"{"error":{"message":"too many","code":"rate_limit"}}"#,
                "too many",
                Some("rate_limit"),
            ),
            (r#"{"message":"hm"}"#, "hm", None),
            ("404 page not found", "404 page not found", None),
            ("", "Not Found", None),
            ("<html><body>gateway</body></html>", "Not Found", None),
            ("bell\u{7} and\nnewline", "bell  and newline", None),
        ];
        for (body, message, code) in cases {
            assert_eq!(
                error_text(not_found, body.as_bytes()),
                (message.to_owned(), code.map(str::to_owned)),
                "{body}"
            );
        }
        assert_eq!(
            error_text(not_found, "x".repeat(5000).as_bytes()).0.len(),
            MAX_ERROR_CHARS
        );
    }

    #[test]
    fn paths_join_with_and_without_slashes() {
        for base in ["http://h:1", "http://h:1/", "http://h:1//"] {
            assert_eq!(join(base, "/v1/quote"), "http://h:1/v1/quote");
        }
    }

    #[test]
    fn loopback_is_recognised() {
        for url in [
            "http://127.0.0.1:3080",
            "http://localhost:1/x",
            "http://[::1]:9",
        ] {
            assert!(is_loopback(url), "{url}");
        }
        for url in ["http://10.0.0.1", "https://example.com", "not a url"] {
            assert!(!is_loopback(url), "{url}");
        }
    }
}
