//! Answers that arrive piece by piece.

use alloy_primitives::Address;
use serde_json::{Value, json};

use super::lora::{ChatAnswer, Lora};
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::provider_client::unreachable;

/// Largest streamed answer in bytes.
const MAX_STREAM_BYTES: usize = 16 * 1024 * 1024;

/// An answer on its way: call [`ChatStream::next`] until it gives `None`.
///
/// ```
/// # use zerog_sdk::{Broker, BrokerOptions, amount::parse_0g};
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let devnet = zerog_devnet::Devnet::start(Default::default()).await?;
/// # let broker = Broker::connect(BrokerOptions::custom(devnet.network()).with_wallet(devnet.key(5))).await?;
/// # broker.ledger.deposit_fund(parse_0g("5")?).await?;
/// # let provider = broker.inference.list_service(0, 1, false).await?[0].provider;
/// let model = broker.inference.get_service_metadata(provider).await?.model;
/// let body = serde_json::json!({"model": model, "messages": [{"role": "user", "content": "Who are you?"}]});
/// let mut stream = broker.inference.lora.chat_stream(provider, body, |_| ()).await?;
/// let mut pieces = Vec::new();
/// while let Some(text) = stream.next().await? {
///     pieces.push(text);
/// }
/// let answer = stream.finish().await?;
/// assert_eq!(answer.content(), Some(pieces.concat().as_str()));
/// // The enclave signed these bytes, or this fails.
/// broker.inference.lora.verify_answer(provider, &answer).await?;
/// # devnet.shutdown().await;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct ChatStream {
    url: String,
    model: String,
    chat_id: Option<String>,
    request_body: Vec<u8>,
    response: reqwest::Response,
    /// Every byte so far: the enclave signs their hash.
    response_body: Vec<u8>,
    /// Where the line that is not complete yet begins.
    line_start: usize,
    text: String,
    role: Option<String>,
    finish_reason: Value,
    usage: Value,
    id: Value,
    created: Value,
    is_done: bool,
}

impl Lora {
    /// Sends any chat-completion body and hands the answer out as it is made; `stream` is set here.
    ///
    /// # Errors
    /// As [`Lora::chat_completion`].
    pub async fn chat_stream(
        &self,
        provider: Address,
        mut body: Value,
        mut on_progress: impl FnMut(Progress) + Send,
    ) -> Result<ChatStream> {
        let Some(members) = body.as_object_mut() else {
            return Err(Error::Argument {
                name: "body",
                reason: "it must be a JSON object with `model` and `messages`".into(),
            });
        };
        members.insert("stream".into(), json!(true));
        members
            .entry("stream_options")
            .or_insert_with(|| json!({"include_usage": true}));
        let model = members.get("model").and_then(Value::as_str);
        let model = model.unwrap_or_default().to_owned();
        let request_body = serde_json::to_vec(&body).expect("a JSON value is always writable");
        let (url, response) = self
            .post_chat(provider, &request_body, &mut on_progress)
            .await?;
        let chat_id = response.headers().get("ZG-Res-Key");
        Ok(ChatStream {
            url,
            model,
            chat_id: chat_id.and_then(|id| id.to_str().ok()).map(str::to_owned),
            request_body,
            response,
            response_body: Vec::new(),
            line_start: 0,
            text: String::new(),
            role: None,
            finish_reason: Value::Null,
            usage: Value::Null,
            id: Value::Null,
            created: Value::Null,
            is_done: false,
        })
    }
}

impl ChatStream {
    /// The next piece of text of the first choice; `None` at the end of the answer.
    ///
    /// # Errors
    /// [`Error::ProviderUnreachable`] when the connection breaks, [`Error::ProviderAnswer`] for an answer that ends in
    /// an error or before its end.
    pub async fn next(&mut self) -> Result<Option<String>> {
        loop {
            while let Some(line) = self.take_line() {
                if let Some(text) = self.read_line(&line)? {
                    return Ok(Some(text));
                }
            }
            let chunk = self.response.chunk().await;
            match chunk.map_err(|error| unreachable(&self.url, &error))? {
                Some(chunk) if self.response_body.len() + chunk.len() > MAX_STREAM_BYTES => {
                    return Err(refused(format!("more than {MAX_STREAM_BYTES} bytes")));
                }
                Some(chunk) => self.response_body.extend_from_slice(&chunk),
                None if self.is_done => return Ok(None),
                None => return Err(refused("the stream ended before the answer did".into())),
            }
        }
    }

    /// Reads to the end and returns the whole answer, in the form of one that was not streamed and fit for
    /// [`Lora::verify_answer`].
    ///
    /// # Errors
    /// As [`ChatStream::next`].
    pub async fn finish(mut self) -> Result<ChatAnswer> {
        while self.next().await?.is_some() {}
        let id = self.id.as_str().map(str::to_owned);
        let mut response = json!({
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.model,
            "choices": [{
                "index": 0,
                "message": {"role": self.role.as_deref().unwrap_or("assistant"), "content": self.text},
                "finish_reason": self.finish_reason,
            }],
        });
        if !self.usage.is_null() {
            response["usage"] = self.usage;
        }
        Ok(ChatAnswer {
            model: self.model,
            response,
            chat_id: self.chat_id.or(id),
            request_body: self.request_body,
            response_body: self.response_body,
        })
    }

    /// The next complete line, without its end.
    fn take_line(&mut self) -> Option<Vec<u8>> {
        let rest = &self.response_body[self.line_start..];
        let length = rest.iter().position(|byte| *byte == b'\n')?;
        let line = rest[..length].trim_ascii().to_vec();
        self.line_start += length + 1;
        Some(line)
    }

    fn read_line(&mut self, line: &[u8]) -> Result<Option<String>> {
        // Blank lines end events, and lines with a colon first are comments that keep the connection open.
        let Some(data) = line.strip_prefix(b"data:").map(<[u8]>::trim_ascii) else {
            return Ok(None);
        };
        if data == b"[DONE]" {
            self.is_done = true;
            return Ok(None);
        }
        let event: Value =
            serde_json::from_slice(data).map_err(|error| refused(error.to_string()))?;
        if let Some(error) = event.get("error") {
            let text = error.get("message").and_then(Value::as_str);
            return Err(refused(text.unwrap_or("it ended in an error").to_owned()));
        }
        for (member, target) in [("id", &mut self.id), ("created", &mut self.created)] {
            if let (Some(value), true) = (event.get(member), target.is_null()) {
                *target = value.clone();
            }
        }
        if let Some(usage) = event.get("usage").filter(|usage| !usage.is_null()) {
            self.usage = usage.clone();
        }
        let choices = event.get("choices").and_then(Value::as_array);
        let first = choices
            .into_iter()
            .flatten()
            .find(|choice| choice.get("index").and_then(Value::as_u64).unwrap_or(0) == 0);
        let Some(choice) = first else { return Ok(None) };
        if let Some(reason) = choice
            .get("finish_reason")
            .filter(|reason| !reason.is_null())
        {
            self.finish_reason = reason.clone();
        }
        let delta = |name: &str| choice.pointer(&format!("/delta/{name}"))?.as_str();
        if let Some(role) = delta("role") {
            self.role = Some(role.to_owned());
        }
        let text = delta("content").unwrap_or_default();
        if text.is_empty() {
            return Ok(None);
        }
        self.text.push_str(text);
        Ok(Some(text.to_owned()))
    }
}

fn refused(reason: String) -> Error {
    Error::ProviderAnswer {
        operation: "chat",
        reason,
    }
}
