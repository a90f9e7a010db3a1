//! A chain, a node, a client; and a proxy that makes a node misbehave.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use alloy_signer_local::PrivateKeySigner;
use axum::{Json, Router, extract::State, routing::post};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use zerog_chain::{Addresses, ChainClient, ClientOptions as ChainOptions, deploy};
use zerog_devchain::{DevChain, Options, ServerHandle, accounts::ACCOUNTS};
use zerog_storage::{
    Client, ClientOptions, Progress,
    node::{NodeOptions, StorageNode},
    rpc_types::ShardConfig,
};

/// The content of the published vectors.
pub(crate) fn content(size: usize) -> Vec<u8> {
    (0..size).map(|i| ((i * 31 + 7) % 251) as u8).collect()
}

pub(crate) fn quiet(_: Progress) {}

/// A chain with all contracts, and a wallet on it.
pub(crate) struct Chain {
    pub(crate) devchain: DevChain,
    pub(crate) server: ServerHandle,
    pub(crate) addresses: Addresses,
    pub(crate) client: ChainClient,
    pub(crate) directory: TempDir,
}

impl Chain {
    pub(crate) async fn start() -> Self {
        let genesis = deploy::genesis(&deploy::DeployOptions::default()).unwrap();
        let options = Options {
            genesis_transactions: genesis.transactions,
            dev_methods: true,
            ..Default::default()
        };
        let devchain = DevChain::open(options).unwrap();
        let server = devchain
            .serve(TcpListener::bind("127.0.0.1:0").await.unwrap())
            .unwrap();
        let addresses = genesis.addresses;
        let client = wallet(&server.url(), addresses).await;
        Self {
            devchain,
            server,
            addresses,
            client,
            directory: tempfile::tempdir().unwrap(),
        }
    }

    /// Another process would have another chain client, which knows nothing of this one's nonces.
    pub(crate) async fn fresh_client(&self) -> ChainClient {
        wallet(&self.server.url(), self.addresses).await
    }

    pub(crate) fn node_options(&self, name: &str) -> NodeOptions {
        let flow = self.addresses.flow.unwrap();
        NodeOptions {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            poll_interval: Duration::from_millis(10),
            ..NodeOptions::new(self.directory.path().join(name), self.server.url(), flow)
        }
    }

    pub(crate) async fn node(&self) -> StorageNode {
        StorageNode::start(self.node_options("node")).await.unwrap()
    }

    pub(crate) async fn shard(&self, shard_id: u64, num_shard: u64) -> StorageNode {
        let options = self.node_options(&format!("shard-{shard_id}"));
        StorageNode::start(NodeOptions {
            shard: ShardConfig {
                shard_id,
                num_shard,
            },
            ..options
        })
        .await
        .unwrap()
    }

    pub(crate) fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    /// Submissions so far; each was paid.
    pub(crate) async fn submissions(&self) -> u64 {
        self.client.flow().unwrap().submissions().await.unwrap()
    }
}

async fn wallet(url: &str, addresses: Addresses) -> ChainClient {
    let signer = PrivateKeySigner::from_bytes(&ACCOUNTS[3].private_key).unwrap();
    let options = ChainOptions {
        poll_interval: Some(Duration::from_millis(5)),
        ..Default::default()
    };
    ChainClient::connect(url, addresses, options)
        .await
        .unwrap()
        .with_wallet(signer)
}

/// A client that gives up soon and polls often.
pub(crate) fn client(options: ClientOptions) -> Client {
    Client::new(brisk(options)).unwrap()
}

pub(crate) fn brisk(options: ClientOptions) -> ClientOptions {
    ClientOptions {
        poll_interval: Duration::from_millis(5),
        ..options
    }
}

pub(crate) fn hidden_files(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    entries
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "part")
        })
        .collect()
}

/// What a misbehaving node does with a call.
pub(crate) enum Behaviour {
    /// Answers properly.
    Honest,
    /// Answers null.
    Null,
    /// Refuses with this text.
    Refuse(&'static str),
    /// Flips a bit in the segment.
    Corrupt,
}

type Behave = dyn Fn(&str, &Value, usize) -> Behaviour + Send + Sync;

struct Proxied {
    target: String,
    http: reqwest::Client,
    behave: Box<Behave>,
    calls: AtomicUsize,
}

/// A node in front of `target`. `behave` gets the method, its parameters, and how many calls of it came before.
pub(crate) async fn proxy(
    target: String,
    method: &'static str,
    behave: impl Fn(&Value, usize) -> Behaviour + Send + Sync + 'static,
) -> String {
    let behave = move |called: &str, parameters: &Value, count: usize| {
        if called.starts_with(method) {
            behave(parameters, count)
        } else {
            Behaviour::Honest
        }
    };
    let _ = rustls::crypto::ring::default_provider().install_default();
    let state = Arc::new(Proxied {
        target,
        http: reqwest::Client::builder().no_proxy().build().unwrap(),
        behave: Box::new(behave),
        calls: AtomicUsize::new(0),
    });
    let prefix = method;
    let router = Router::new()
        .route("/", post(move |state, body| relay(state, body, prefix)))
        .layer(axum::extract::DefaultBodyLimit::disable())
        .with_state(state);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    url
}

async fn relay(
    State(proxied): State<Arc<Proxied>>,
    Json(request): Json<Value>,
    prefix: &'static str,
) -> Json<Value> {
    let method = request["method"].as_str().unwrap().to_owned();
    let count = if method.starts_with(prefix) {
        proxied.calls.fetch_add(1, Ordering::SeqCst)
    } else {
        0
    };
    let behaviour = (proxied.behave)(&method, &request["params"], count);
    let envelope = |member: &str, value: Value| {
        Json(json!({"jsonrpc": "2.0", "id": request["id"], member: value}))
    };
    match behaviour {
        Behaviour::Null => envelope("result", Value::Null),
        Behaviour::Refuse(text) => envelope("error", json!({"code": -32000, "message": text})),
        honest_or_corrupt => {
            let response = proxied
                .http
                .post(&proxied.target)
                .json(&request)
                .send()
                .await
                .unwrap();
            let mut answer: Value = response.json().await.unwrap();
            if matches!(honest_or_corrupt, Behaviour::Corrupt) {
                let data = answer["result"]["data"].as_str().unwrap().to_owned();
                // The first base64 letter holds six bits of the first byte.
                let flipped = if data.starts_with('A') { "B" } else { "A" };
                answer["result"]["data"] = json!(format!("{flipped}{}", &data[1..]));
            }
            Json(answer)
        }
    }
}

/// A raw call; the whole response object.
pub(crate) async fn raw(url: &str, body: Value) -> Value {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    http.post(url)
        .json(&body)
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap()
}

pub(crate) async fn call(url: &str, method: &str, parameters: Value) -> Value {
    let response = raw(
        url,
        json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": parameters}),
    )
    .await;
    assert!(
        response.get("error").is_none(),
        "{method} failed: {response}"
    );
    response["result"].clone()
}

/// Polls until `condition` gives something; thirty seconds are far more than anything here takes.
pub(crate) async fn eventually<T>(mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    for _ in 0..3_000 {
        if let Some(value) = condition().await {
            return value;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the condition was never met");
}
