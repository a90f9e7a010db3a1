//! TDX under dstack: quotes and keys from the guest agent's Unix socket.
//!
//! The calls and answers are tested against a scripted socket; the agent itself runs only inside a dstack guest. On
//! systems without Unix sockets every call is an error of kind [`io::ErrorKind::Unsupported`]: clients, which verify
//! quotes and make none, are built there too.

use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Value, json};
use zeroize::{Zeroize, Zeroizing};

use super::{BackendError, TeeBackend, TeeKind};
use crate::bundle::{QuoteBundle, RECIPIENT_KEY_FORMATS, SEALING_FORMATS};

/// Sockets of the guest agent, newest name first.
pub const SOCKET_PATHS: [&str; 4] = [
    "/var/run/dstack.sock",
    "/run/dstack.sock",
    "/var/run/dstack/dstack.sock",
    "/run/dstack/dstack.sock",
];

/// Longest answer that is read, in bytes.
#[cfg(unix)]
const MAX_ANSWER_BYTES: u64 = 5_000_000;
/// Making a quote takes the agent well under a second; a minute means that it hangs.
#[cfg(unix)]
const TIMEOUT: std::time::Duration = std::time::Duration::from_secs(60);

/// The guest agent behind one socket.
#[derive(Debug, Clone)]
pub struct DstackBackend {
    socket: PathBuf,
}

#[derive(Deserialize)]
struct QuoteAnswer {
    quote: String,
    event_log: String,
    report_data: String,
    #[serde(default)]
    vm_config: String,
}

#[derive(Deserialize)]
struct InfoAnswer {
    #[serde(default)]
    tcb_info: String,
}

#[derive(Deserialize)]
struct KeyAnswer {
    key: String,
}

impl DstackBackend {
    /// The agent behind the given socket.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
        }
    }

    /// The agent behind the first of [`SOCKET_PATHS`] that exists.
    pub fn discover() -> Option<Self> {
        SOCKET_PATHS
            .iter()
            .map(Path::new)
            .find(|path| path.exists())
            .map(Self::new)
    }

    fn call<T: for<'de> Deserialize<'de>>(
        &self,
        method: &'static str,
        request: &Value,
    ) -> Result<T, BackendError> {
        let body = request.to_string();
        let request = format!(
            "POST /{method} HTTP/1.1\r\nHost: dstack\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
        let answer =
            exchange(&self.socket, &request).map_err(|source| BackendError::Unavailable {
                path: self.socket.clone(),
                source,
            })?;
        let (status, payload) = split_http(&answer).ok_or_else(|| BackendError::BadAnswer {
            method,
            reason: "not an HTTP response".into(),
        })?;
        let payload = Zeroizing::new(payload);
        if status != 200 {
            let text: String = String::from_utf8_lossy(&payload)
                .chars()
                .take(200)
                .collect();
            return Err(BackendError::Refused {
                method,
                status,
                message: text,
            });
        }
        serde_json::from_slice(&payload).map_err(|error| BackendError::BadAnswer {
            method,
            reason: error.to_string(),
        })
    }
}

impl TeeBackend for DstackBackend {
    fn kind(&self) -> TeeKind {
        TeeKind::Dstack
    }

    fn quote(&self, report_data: &[u8; 64]) -> Result<QuoteBundle, BackendError> {
        let method = "GetQuote";
        let bad = |reason: &str| BackendError::BadAnswer {
            method,
            reason: reason.into(),
        };
        let answer: QuoteAnswer =
            self.call(method, &json!({"report_data": hex::encode(report_data)}))?;
        let info: InfoAnswer = self.call("Info", &json!({}))?;
        let echoed = hex::decode(answer.report_data.trim_start_matches("0x"))
            .map_err(|_| bad("report_data is not hexadecimal"))?;
        if echoed != report_data {
            return Err(bad("the quote is over other report data"));
        }
        Ok(QuoteBundle {
            quote: hex::decode(answer.quote.trim_start_matches("0x"))
                .map_err(|_| bad("quote is not hexadecimal"))?,
            event_log: answer.event_log,
            report_data: *report_data,
            vm_config: answer.vm_config,
            tcb_info: info.tcb_info,
            simulated: false,
            sealing: SEALING_FORMATS.map(str::to_owned).to_vec(),
            recipient_keys: RECIPIENT_KEY_FORMATS.map(str::to_owned).to_vec(),
            tls_key_sha256: None,
            nvidia_payload: None,
        })
    }

    fn derive_key(&self, path: &str) -> Result<Zeroizing<[u8; 32]>, BackendError> {
        let method = "GetKey";
        let mut answer: KeyAnswer = self.call(
            method,
            &json!({"path": path, "purpose": "", "algorithm": "secp256k1"}),
        )?;
        let mut key = Zeroizing::new([0u8; 32]);
        let decoded = hex::decode_to_slice(answer.key.trim_start_matches("0x"), key.as_mut_slice());
        answer.key.zeroize();
        decoded.map_err(|_| BackendError::BadAnswer {
            method,
            reason: "key is not 32 hexadecimal bytes".into(),
        })?;
        Ok(key)
    }
}

/// Sends a request to a Unix socket and reads until the agent closes it.
#[cfg(unix)]
fn exchange(socket: &Path, request: &str) -> io::Result<Zeroizing<Vec<u8>>> {
    use std::io::{Read, Write};

    let mut stream = std::os::unix::net::UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = Zeroizing::new(Vec::new());
    stream.take(MAX_ANSWER_BYTES).read_to_end(&mut answer)?;
    Ok(answer)
}

#[cfg(not(unix))]
fn exchange(_: &Path, _: &str) -> io::Result<Zeroizing<Vec<u8>>> {
    Err(io::Error::new(
        io::ErrorKind::Unsupported,
        "this system has no Unix sockets; run the provider inside a dstack TDX guest on Linux",
    ))
}

/// Splits an HTTP/1.1 response into status and body, undoing the chunked transfer coding.
fn split_http(answer: &[u8]) -> Option<(u16, Vec<u8>)> {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(answer.get(..end)?).ok()?;
    let body = answer.get(end.checked_add(4)?..)?;
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let mut length = None;
    let mut chunked = false;
    for line in lines {
        let (name, value) = line.split_once(':')?;
        if name.eq_ignore_ascii_case("content-length") {
            length = Some(value.trim().parse::<usize>().ok()?);
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            chunked = value.trim().eq_ignore_ascii_case("chunked");
        }
    }
    let body = match (chunked, length) {
        (true, _) => join_chunks(body)?,
        (false, Some(length)) => body.get(..length)?.to_vec(),
        (false, None) => body.to_vec(),
    };
    Some((status, body))
}

fn join_chunks(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = rest.windows(2).position(|window| window == b"\r\n")?;
        let size_text = std::str::from_utf8(rest.get(..end)?).ok()?;
        let size = usize::from_str_radix(size_text.split(';').next()?.trim(), 16).ok()?;
        rest = rest.get(end.checked_add(2)?..)?;
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(rest.get(..size)?);
        rest = rest.get(size..)?.strip_prefix(b"\r\n")?;
    }
}

#[cfg(all(test, unix))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Read, Write};
    use std::os::unix::net::UnixListener;

    /// Serves the given answers in order and returns the request lines and bodies it saw.
    fn scripted_agent(
        path: &Path,
        answers: Vec<String>,
    ) -> std::thread::JoinHandle<Vec<(String, String)>> {
        let listener = UnixListener::bind(path).unwrap();
        std::thread::spawn(move || {
            let mut seen = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let mut first = String::new();
                reader.read_line(&mut first).unwrap();
                let mut length = 0;
                loop {
                    let mut line = String::new();
                    reader.read_line(&mut line).unwrap();
                    if let Some(value) = line.strip_prefix("Content-Length: ") {
                        length = value.trim().parse().unwrap();
                    }
                    if line == "\r\n" {
                        break;
                    }
                }
                let mut body = vec![0; length];
                reader.read_exact(&mut body).unwrap();
                seen.push((first.trim().to_owned(), String::from_utf8(body).unwrap()));
                stream.write_all(answer.as_bytes()).unwrap();
            }
            seen
        })
    }

    fn ok(body: &str) -> String {
        format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
    }

    #[test]
    fn quote_and_key_calls_have_the_agents_shape() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("agent.sock");
        let report_data = [7u8; 64];
        let quote = json!({"quote": "0400", "event_log": "[]", "report_data": hex::encode(report_data), "vm_config": "{}"});
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{\"tcb\r\n10\r\n_info\":\"{\\\"a\\\":1\r\n3\r\n}\"}\r\n0\r\n\r\n";
        let key = json!({"key": "11".repeat(32), "signature_chain": []});
        let agent = scripted_agent(
            &socket,
            vec![ok(&quote.to_string()), chunked.into(), ok(&key.to_string())],
        );
        let backend = DstackBackend::new(&socket);
        let bundle = backend.quote(&report_data).unwrap();
        assert_eq!(
            (bundle.quote.as_slice(), bundle.tcb_info.as_str()),
            ([4u8, 0].as_slice(), r#"{"a":1}"#)
        );
        assert!(!bundle.simulated);
        assert_eq!(*backend.derive_key("/").unwrap(), [0x11; 32]);
        let seen = agent.join().unwrap();
        assert_eq!(seen[0].0, "POST /GetQuote HTTP/1.1");
        assert!(seen[0].1.contains(&hex::encode(report_data)));
        assert_eq!(seen[1].0, "POST /Info HTTP/1.1");
        assert_eq!(
            seen[2].1,
            r#"{"path":"/","purpose":"","algorithm":"secp256k1"}"#
        );
    }

    #[test]
    fn refusals_and_foreign_report_data_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("agent.sock");
        let foreign = json!({"quote": "0400", "event_log": "[]", "report_data": "00".repeat(64), "vm_config": "{}"});
        let refusal = "HTTP/1.1 400 Bad Request\r\nContent-Length: 15\r\n\r\n{\"error\":\"bad\"}";
        let agent = scripted_agent(
            &socket,
            vec![refusal.into(), ok(&foreign.to_string()), ok("{}")],
        );
        let backend = DstackBackend::new(&socket);
        assert!(matches!(
            backend.derive_key("/"),
            Err(BackendError::Refused { status: 400, .. })
        ));
        assert!(matches!(
            backend.quote(&[7; 64]),
            Err(BackendError::BadAnswer {
                method: "GetQuote",
                ..
            })
        ));
        agent.join().unwrap();
        std::fs::remove_file(&socket).unwrap();
        assert!(matches!(
            backend.derive_key("/"),
            Err(BackendError::Unavailable { .. })
        ));
    }

    #[test]
    fn truncated_answers_are_refused() {
        for answer in [
            "",
            "HTTP/1.1 200",
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nshort",
        ] {
            assert_eq!(split_http(answer.as_bytes()), None, "{answer:?}");
        }
    }
}
