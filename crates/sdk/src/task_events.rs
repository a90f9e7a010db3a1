//! A task's news as a provider pushes them: server-sent events, continued after a break where they ended.

use std::time::Duration;

use reqwest::Response;
use reqwest::header::CONTENT_TYPE;
use zerog_protocol::fine_tuning_api::TaskEvent;

use crate::error::{Error, Result};
use crate::provider_client::{ProviderClient, unreachable};

const OPERATION: &str = "follow task";
/// Longest event in bytes.
const MAX_EVENT_BYTES: usize = 1024 * 1024;

/// One connection after the other to the events of a task.
#[derive(Debug)]
pub(crate) struct TaskEvents {
    http: ProviderClient,
    url: String,
    connection: Option<(Response, Decoder)>,
    last_id: Option<String>,
    waiting: Vec<TaskEvent>,
}

impl TaskEvents {
    /// Connects; `None` when the provider does not push.
    ///
    /// # Errors
    /// An unreachable provider.
    pub(crate) async fn connect(http: &ProviderClient, url: String) -> Result<Option<Self>> {
        let mut events = Self {
            http: http.clone(),
            url,
            connection: None,
            last_id: None,
            waiting: Vec::new(),
        };
        match events.open().await {
            Ok(true) => Ok(Some(events)),
            // Other providers have no such route, whatever they answer instead.
            Ok(false) => Ok(None),
            Err(error) if error.is_passing() => Err(error),
            Err(_) => Ok(None),
        }
    }

    /// The next event; `None` when the provider ended the stream. Connects again when the connection was lost before.
    /// Nothing is lost when this is dropped.
    ///
    /// # Errors
    /// A lost connection or an unreadable event; the next call goes on after the last numbered event.
    pub(crate) async fn next(&mut self) -> Result<Option<TaskEvent>> {
        loop {
            if !self.waiting.is_empty() {
                return Ok(Some(self.waiting.remove(0)));
            }
            if self.connection.is_none() && !self.open().await? {
                return Err(self.unreadable("it is no event stream any more"));
            }
            let Some((response, decoder)) = &mut self.connection else {
                continue;
            };
            let chunk = match response.chunk().await {
                Ok(chunk) => chunk,
                Err(error) => {
                    self.connection = None;
                    return Err(unreachable(&self.url, &error));
                }
            };
            let Some(chunk) = chunk else {
                self.connection = None;
                return Ok(None);
            };
            for raw in decoder.push(&chunk) {
                match TaskEvent::parse(&raw.name, &raw.data) {
                    Ok(Some(event)) => self.waiting.push(event),
                    Ok(None) => {}
                    Err(error) => {
                        self.connection = None;
                        return Err(self.unreadable(&error.to_string()));
                    }
                }
                if raw.id.is_some() {
                    self.last_id = raw.id;
                }
            }
            if decoder.pending_bytes() > MAX_EVENT_BYTES {
                self.connection = None;
                return Err(self.unreadable(&format!("more than {MAX_EVENT_BYTES} bytes")));
            }
        }
    }

    /// Forgets the connection, so that the next call makes a new one.
    pub(crate) fn disconnect(&mut self) {
        self.connection = None;
    }

    async fn open(&mut self) -> Result<bool> {
        let response = self
            .http
            .get_events(OPERATION, &self.url, self.last_id.as_deref())
            .await?;
        let is_stream = response
            .headers()
            .get(CONTENT_TYPE)
            .is_some_and(|value| value.as_bytes().starts_with(b"text/event-stream"));
        self.connection = is_stream.then(|| (response, Decoder::default()));
        Ok(is_stream)
    }

    fn unreadable(&self, reason: &str) -> Error {
        Error::ProviderAnswer {
            operation: OPERATION,
            reason: reason.to_owned(),
        }
    }
}

/// How long a lost connection is left alone.
pub(crate) const PAUSE: Duration = Duration::from_millis(500);

/// One event as it is framed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct RawEvent {
    id: Option<String>,
    name: String,
    data: String,
}

/// Cuts a byte stream into events (WHATWG HTML, "Server-sent events").
#[derive(Debug, Default)]
struct Decoder {
    line: Vec<u8>,
    /// The byte before was a carriage return; a line feed after it belongs to it.
    after_return: bool,
    id: Option<String>,
    name: String,
    data: String,
}

impl Decoder {
    fn push(&mut self, bytes: &[u8]) -> Vec<RawEvent> {
        let mut events = Vec::new();
        for byte in bytes {
            let follows_return = std::mem::replace(&mut self.after_return, *byte == b'\r');
            match byte {
                b'\n' if follows_return => {}
                b'\n' | b'\r' => {
                    let line = std::mem::take(&mut self.line);
                    events.extend(self.end_line(&String::from_utf8_lossy(&line)));
                }
                byte => self.line.push(*byte),
            }
        }
        events
    }

    fn end_line(&mut self, line: &str) -> Option<RawEvent> {
        if line.is_empty() {
            let id = self.id.take();
            let name = std::mem::take(&mut self.name);
            let mut data = std::mem::take(&mut self.data);
            // An event without data is none.
            data.pop()?;
            return Some(RawEvent { id, name, data });
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.name),
            "data" => {
                self.data.push_str(value);
                self.data.push('\n');
            }
            "id" if !value.contains('\0') => self.id = Some(value.to_owned()),
            // Comments, and fields of later versions.
            _ => {}
        }
        None
    }

    fn pending_bytes(&self) -> usize {
        self.line.len() + self.data.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(id: Option<&str>, name: &str, data: &str) -> RawEvent {
        RawEvent {
            id: id.map(str::to_owned),
            name: name.into(),
            data: data.into(),
        }
    }

    /// The same bytes in pieces of every size, with each of the three line ends.
    #[test]
    fn events_are_cut_the_same_wherever_the_bytes_are() {
        let text = "retry: 500\n\n: alive\n\nid: 7\nevent: state\ndata: {\"a\":1}\n\ndata:x\ndata:  y\nevent\n\nid: 8\n\n";
        let expected = [
            event(Some("7"), "state", "{\"a\":1}"),
            event(None, "", "x\n y"),
        ];
        for ending in ["\n", "\r\n", "\r"] {
            let bytes = text.replace('\n', ending).into_bytes();
            for size in 1..bytes.len() {
                let mut decoder = Decoder::default();
                let events: Vec<_> = bytes
                    .chunks(size)
                    .flat_map(|piece| decoder.push(piece))
                    .collect();
                assert_eq!(events, expected, "{ending:?} in pieces of {size}");
            }
        }
    }

    #[test]
    fn an_endless_event_is_noticed() {
        let mut decoder = Decoder::default();
        assert!(decoder.push(&vec![b'x'; MAX_EVENT_BYTES + 1]).is_empty());
        assert!(decoder.pending_bytes() > MAX_EVENT_BYTES);
    }
}
