//! Answers of an external engine: forwarded, renamed, counted, signed as they go out, and billed.

use std::sync::Arc;

use axum::body::Bytes;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use zerog_inference::{DONE, Prepared, Target};
use zerog_protocol::signing::sha256;

use super::answered::{Answered, Outgoing};
use super::error::ApiError;
use crate::external::{AnswerReader, ExternalEngine, ExternalError, Forwarded, Piece};

/// A request that is checked and paid for.
pub(super) struct Asked {
    /// As it came.
    pub(super) body: Bytes,
    /// The same, read.
    pub(super) prepared: Prepared,
    /// Who answers.
    pub(super) target: Target,
    /// The answer's id.
    pub(super) id: String,
}

/// Sends a request to the server and answers with what comes. `held` is kept until the answer has ended.
///
/// # Errors
/// [`ApiError`]; nothing is billed then.
pub(super) async fn answer(
    engine: &ExternalEngine,
    meta: Answered,
    asked: Asked,
    held: impl Send + 'static,
) -> Result<Response, ApiError> {
    let request = asked.prepared.request();
    let reader = AnswerReader::new(
        &asked.target.model,
        &asked.id,
        request.include_usage,
        asked.prepared.prompt_tokens() as u64,
    );
    let adapter = asked.target.adapter.as_deref();
    let forwarded = match engine.forward(&asked.body, request, adapter, reader).await {
        Ok(forwarded) => forwarded,
        Err(error) => {
            meta.release().await;
            return Err(error.into());
        }
    };
    if request.stream {
        Ok(stream(meta, forwarded, asked.id, held))
    } else {
        whole(meta, forwarded, asked.id, held).await
    }
}

/// Waits for the whole answer. It is awaited, and billed, when the caller leaves.
async fn whole(
    meta: Answered,
    forwarded: Forwarded,
    id: String,
    held: impl Send + 'static,
) -> Result<Response, ApiError> {
    let tracker = meta.app.tracker.clone();
    let work = tracker.spawn(async move {
        let _held = held;
        let Some(role) = &meta.app.inference else {
            return Err(ApiError::internal("the inference role is off"));
        };
        match forwarded.whole(role.engine.tokenizer()).await {
            Ok((body, usage)) => {
                meta.sign(&id, sha256(&body));
                meta.bill(&usage).await;
                let json = [(header::CONTENT_TYPE, "application/json")];
                let mut response = (StatusCode::OK, json, body).into_response();
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

/// The answer as it comes. When the caller leaves, the server is told by closing the connection, and what it had made is
/// billed.
fn stream(
    meta: Answered,
    mut forwarded: Forwarded,
    id: String,
    held: impl Send + 'static,
) -> Response {
    let app = Arc::clone(&meta.app);
    let (mut outgoing, response) = Outgoing::start(meta, id);
    let tracker = app.tracker.clone();
    tracker.spawn(async move {
        let _held = held;
        pass_on(&mut forwarded, &mut outgoing).await;
        if let Some(role) = &app.inference {
            let usage = forwarded.reader.usage(role.engine.tokenizer());
            outgoing.close(&usage).await;
        }
    });
    response
}

/// Passes lines on until the end, an error, or the caller's leaving.
async fn pass_on(forwarded: &mut Forwarded, outgoing: &mut Outgoing) {
    let mut rest = Vec::new();
    loop {
        let next = tokio::select! {
            next = forwarded.next_lines(&mut rest) => next,
            () = outgoing.left() => return,
        };
        let pieces = match next {
            Ok(Some(pieces)) => pieces,
            Ok(None) => {
                tracing::warn!("a stream of the inference server ended without its last line");
                vec![AnswerReader::broken_off("the inference server broke off")]
            }
            Err(error) => {
                tracing::warn!(%error, "a stream of the inference server broke off");
                let text = match error {
                    ExternalError::Unreachable(_) => "the inference server broke off",
                    _ => "the inference server failed",
                };
                vec![AnswerReader::broken_off(text)]
            }
        };
        for piece in pieces {
            let (text, is_last) = match piece {
                Piece::Event(text) => (text, false),
                Piece::Failed(text) => (text, true),
                Piece::Done => (DONE.to_owned(), true),
                Piece::Nothing => continue,
            };
            if outgoing.send(Bytes::from(text)).await.is_err() || is_last {
                return;
            }
        }
    }
}
