//! Server-sent events as OpenAI's routes frame them.

use axum::body::Bytes;
use serde_json::Value;

/// Last event of a stream that ended well.
pub const DONE: &str = "data: [DONE]\n\n";

/// One event.
pub(crate) fn event(data: &Value) -> Bytes {
    Bytes::from(format!("data: {data}\n\n"))
}

/// The event that closes a stream that ended well.
pub(crate) fn done() -> Bytes {
    Bytes::from_static(DONE.as_bytes())
}
