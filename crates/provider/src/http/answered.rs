//! What every answer of the chat routes owes: its signature, its bill, and the headers that name both.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::http::HeaderValue;
use axum::response::Response;
use futures::StreamExt;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use zerog_inference::router::set_stream_headers;
use zerog_inference::{DONE, Usage};
use zerog_protocol::inference_api::ResponseSignature;
use zerog_protocol::signing::{response_text, sign_response_text};

use crate::app::App;
use crate::billing;

/// Events that wait for a slow caller before the engine does.
const WAITING_EVENTS: usize = 32;

/// What is known of an answer besides its bytes.
pub(super) struct Answered {
    /// Everything the provider has.
    pub(super) app: Arc<App>,
    /// Id of the bill and of the signature.
    pub(super) id: String,
    /// SHA-256 of the request's body.
    pub(super) request_hash: [u8; 32],
    /// The model by the name that the caller gave.
    pub(super) model: String,
}

impl Answered {
    pub(super) fn headers(&self, response: &mut Response) {
        if let Ok(value) = HeaderValue::from_str(&self.id) {
            response.headers_mut().insert("zg-res-key", value);
        }
    }

    /// Signs both hashes and remembers the signature under the key and the completion's id.
    pub(super) fn sign(&self, completion_id: &str, response_hash: [u8; 32]) {
        let Some(role) = &self.app.inference else {
            return;
        };
        let text = response_text(self.request_hash, response_hash);
        let signature = ResponseSignature {
            signature: sign_response_text(&self.app.identity.keys().signer, &text),
            text,
            signing_address: self.app.identity.signer().to_string(),
            signing_algo: "ecdsa".into(),
            request_hash: Some(hex::encode(self.request_hash)),
            response_hash: Some(hex::encode(response_hash)),
            model: Some(self.model.clone()),
            timestamp: Some(self.app.clock.system_ms() / 1000),
        };
        role.remember_signature(&[&self.id, completion_id], &signature);
    }

    pub(super) async fn bill(&self, usage: &Usage) {
        let Some(role) = &self.app.inference else {
            return;
        };
        let (input, output) = billing::fees(
            role.config.input_price,
            role.config.output_price,
            usage.prompt_tokens,
            usage.completion_tokens,
        );
        let tokens = (usage.prompt_tokens, usage.completion_tokens);
        if let Err(error) = self
            .app
            .store
            .bill_usage(&self.id, tokens, input, output)
            .await
        {
            tracing::error!(usage.id = self.id, %error, "a request could not be billed");
        }
    }

    pub(super) async fn release(&self) {
        if let Err(error) = self.app.store.release_usage(&self.id).await {
            tracing::error!(usage.id = self.id, %error, "a reservation could not be given back");
        }
    }
}

/// The caller left: nobody reads the stream any more.
#[derive(Debug)]
pub(super) struct CallerLeft;

/// A stream on its way to the caller. Its closing event goes out when the answer is signed and billed: whoever has seen the
/// end finds both.
pub(super) struct Outgoing {
    meta: Answered,
    completion_id: String,
    sender: mpsc::Sender<Bytes>,
    hash: Sha256,
    closing: Option<Bytes>,
}

impl Outgoing {
    /// A stream, and the response that carries it.
    pub(super) fn start(meta: Answered, completion_id: String) -> (Self, Response) {
        let (sender, receiver) = mpsc::channel::<Bytes>(WAITING_EVENTS);
        let receiver = tokio_stream::wrappers::ReceiverStream::new(receiver);
        let body = Body::from_stream(receiver.map(Ok::<_, std::convert::Infallible>));
        let mut response = Response::new(body);
        set_stream_headers(&mut response);
        meta.headers(&mut response);
        let outgoing = Self {
            meta,
            completion_id,
            sender,
            hash: Sha256::new(),
            closing: None,
        };
        (outgoing, response)
    }

    /// Sends one event.
    ///
    /// # Errors
    /// [`CallerLeft`].
    pub(super) async fn send(&mut self, event: Bytes) -> Result<(), CallerLeft> {
        self.hash.update(&event);
        if event == DONE {
            self.closing = Some(event);
            return Ok(());
        }
        self.sender.send(event).await.map_err(|_| CallerLeft)
    }

    /// Ends when the caller has left.
    pub(super) async fn left(&self) {
        self.sender.closed().await;
    }

    /// Signs what was sent, bills `usage`, and lets the caller see the end.
    pub(super) async fn close(self, usage: &Usage) {
        self.meta
            .sign(&self.completion_id, self.hash.finalize().into());
        self.meta.bill(usage).await;
        if let Some(closing) = self.closing {
            // Whoever has left does not miss it.
            let _ = self.sender.send(closing).await;
        }
    }
}
