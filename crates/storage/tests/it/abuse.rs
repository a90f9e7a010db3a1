//! What no client sends on purpose, as raw bytes: node, indexer and chain refuse it as JSON with a status that fits.

use std::time::Duration;

use alloy_primitives::B256;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::{Chain, call};

/// An answer: status, the text of its head, its body as JSON.
struct Answer {
    status: u16,
    head: String,
    body: Value,
}

/// Whether a caller stops in the middle. Only then it says that nothing follows: a server may take that, after a whole
/// request, for one who no longer wants the answer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sends {
    All,
    Part,
}

/// Sends bytes as they are and reads the whole answer.
async fn raw(url: &str, request: &[u8], sends: Sends) -> Answer {
    let authority = url.strip_prefix("http://").unwrap().trim_end_matches('/');
    let mut stream = TcpStream::connect(authority).await.unwrap();
    stream.write_all(request).await.unwrap();
    if sends == Sends::Part {
        stream.shutdown().await.unwrap();
    }
    let mut answer = Vec::new();
    tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer))
        .await
        .expect("the server answers or hangs up")
        .unwrap();
    let shown = String::from_utf8_lossy(request).into_owned();
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .unwrap_or_else(|| panic!("{shown}: no answer: {answer}"));
    let head = head.to_ascii_lowercase();
    assert!(
        head.contains("content-type: application/json"),
        "{shown}: {answer}"
    );
    Answer {
        status: head[9..12].parse().unwrap(),
        body: serde_json::from_str(body).unwrap_or_else(|_| panic!("{shown}: no JSON: {answer}")),
        head,
    }
}

async fn request(url: &str, verb: &str, path: &str, length: usize, body: &str) -> Answer {
    let request = format!(
        "{verb} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    let sends = if !body.is_empty() && body.len() < length {
        Sends::Part
    } else {
        Sends::All
    };
    raw(url, request.as_bytes(), sends).await
}

async fn get(url: &str, path: &str) -> Answer {
    request(url, "GET", path, 0, "").await
}

/// The object of a JSON-RPC refusal, with nothing beside what the published clients allow.
fn rpc_refusal(what: &str, answer: &Answer) -> (u16, i64) {
    let error = answer.body["error"].as_object();
    let error = error.unwrap_or_else(|| panic!("{what}: {}", answer.body));
    assert_eq!(answer.body["jsonrpc"], "2.0", "{what}");
    assert_eq!(answer.body["id"], Value::Null, "{what}");
    assert!(
        error["message"]
            .as_str()
            .is_some_and(|text| !text.is_empty()),
        "{what}: {}",
        answer.body
    );
    let known = |member: &String| ["code", "message", "data"].contains(&member.as_str());
    assert!(error.keys().all(known), "{what}: {}", answer.body);
    (answer.status, error["code"].as_i64().unwrap())
}

/// The code of a plain route's envelope, which has exactly its three members.
fn plain_refusal(what: &str, answer: &Answer) -> (u16, i64) {
    let members = answer.body.as_object().unwrap();
    let mut names: Vec<&str> = members.keys().map(String::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["code", "data", "message"], "{what}");
    let message = answer.body["message"].as_str();
    assert!(message.is_some_and(|text| !text.is_empty()), "{what}");
    (answer.status, answer.body["code"].as_i64().unwrap())
}

/// Calls that do not arrive whole or not where calls go, to the node and to the chain.
async fn broken_calls_are_refused(url: &str, method: &str, too_long: usize) {
    let whole = json!({"jsonrpc": "2.0", "id": 1, "method": method}).to_string();
    let half = &whole[..whole.len() / 2];
    let truncated = request(url, "POST", "/", whole.len(), half).await;
    assert_eq!(rpc_refusal("cut off", &truncated), (400, -32_700));
    let parsed = request(url, "POST", "/", half.len(), half).await;
    assert_eq!(rpc_refusal("half", &parsed), (200, -32_700));
    let parsed = request(url, "POST", "/", 2, "\u{7f}\u{1}").await;
    assert_eq!(rpc_refusal("no JSON", &parsed), (200, -32_700));
    let chunked = "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{\"jso\r\n";
    let cut = raw(url, chunked.as_bytes(), Sends::Part).await;
    assert_eq!(rpc_refusal("cut off in chunks", &cut), (400, -32_700));
    let announced = request(url, "POST", "/", too_long, "").await;
    assert_eq!(rpc_refusal("too long", &announced), (413, -32_600));
    for verb in ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "BREW"] {
        let answer = request(url, verb, "/", 0, "").await;
        assert_eq!(rpc_refusal(verb, &answer), (405, -32_600));
        assert!(answer.head.contains("allow: post"), "{}", answer.head);
    }
}

#[tokio::test]
async fn the_chain_refuses_as_json() {
    let chain = Chain::start().await;
    let url = chain.server.url();
    let limit = zerog_devchain::Limits::default().request_bytes;
    broken_calls_are_refused(&url, "eth_chainId", limit + 1).await;
    for path in [
        "/health",
        "/..%2f..%2fetc/passwd",
        "/%ff",
        "//",
        "/v1/x?y=%zz",
    ] {
        for verb in ["GET", "POST", "DELETE"] {
            let answer = request(&url, verb, path, 0, "").await;
            assert_eq!(rpc_refusal(path, &answer), (404, -32_600), "{verb}");
        }
    }
    // It was the requests that were wrong.
    assert_eq!(call(&url, "eth_chainId", json!([])).await, "0x7a69");
}

#[tokio::test]
async fn node_and_indexer_refuse_as_json() {
    let chain = Chain::start().await;
    let node = chain.node().await;
    let url = node.node_url();
    broken_calls_are_refused(&url, "zgs_getStatus", (100 << 20) + 1).await;
    for path in [
        "/nowhere",
        "/file/",
        "/file/info/",
        "/file/segment",
        "/file/..%2f..%2fetc/passwd",
        "/../../etc/passwd",
        "/%ff",
        "/metrics?x=%zz",
    ] {
        for verb in ["GET", "POST", "DELETE"] {
            let answer = request(&url, verb, path, 0, "").await;
            assert_eq!(plain_refusal(path, &answer), (404, 101), "{verb}");
        }
    }
    for path in ["/file", "/file/info/0", "/files/info", "/node/status"] {
        for verb in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"] {
            let answer = request(&url, verb, path, 0, "").await;
            assert_eq!(plain_refusal(path, &answer), (405, 1), "{verb}");
            assert!(answer.head.contains("allow: get"), "{}", answer.head);
        }
    }
    let root = B256::ZERO;
    let long = "a".repeat(8_000);
    for path in [
        "/file".to_owned(),
        "/file?".to_owned(),
        "/file?root=".to_owned(),
        "/file?root=0x12".to_owned(),
        "/file?root=../../etc/passwd".to_owned(),
        "/file?root=%ff%fe".to_owned(),
        "/file?root=%zz".to_owned(),
        format!("/file?root={long}"),
        format!("/file?root={root}&root={root}"),
        format!("/file?root={root}&txSeq=0"),
        "/file?txSeq=".to_owned(),
        "/file?txSeq=-1".to_owned(),
        "/file?txSeq=1e3".to_owned(),
        "/file?txSeq=18446744073709551616".to_owned(),
        "/file/info/-1".to_owned(),
        "/file/info/0x12".to_owned(),
        "/file/info/%ff".to_owned(),
        "/file/info/..%2f..%2fetc%2fpasswd".to_owned(),
        format!("/file/info/{long}"),
        "/files/info".to_owned(),
        "/files/info?cid=".to_owned(),
        "/files/info?cid=0,,1".to_owned(),
        "/files/info?cid=-1".to_owned(),
        "/files/info?cid=0&cid=1".to_owned(),
        format!("/files/info?cid={}", "0,".repeat(500)),
    ] {
        let answer = get(&url, &path).await;
        assert_eq!(plain_refusal(&path, &answer), (200, 1));
        assert!(!answer.body.to_string().contains("root:"), "{path}");
    }
    // What is well formed and not there has another code.
    for path in [format!("/file?root={root}"), "/file?txSeq=0".to_owned()] {
        let answer = get(&url, &path).await;
        assert_eq!(plain_refusal(&path, &answer), (200, 101));
    }
    assert_eq!(get(&url, "/node/status").await.body["code"], 0);
    assert_eq!(call(&url, "zgs_getStatus", json!([])).await["nextTxSeq"], 0);
}
