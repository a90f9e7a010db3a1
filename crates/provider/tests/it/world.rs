//! A chain, a storage node and a user, for providers to live in.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use alloy_primitives::{Address, U256};
use alloy_signer_local::PrivateKeySigner;
use serde_json::{Value, json};
use zerog_chain::{Addresses, ChainClient, ClientOptions, deploy};
use zerog_devchain::accounts::ACCOUNTS;
use zerog_devchain::{DevChain, ServerHandle};
use zerog_protocol::session_token;
use zerog_protocol::{SecretKey, TaskId, signing};
use zerog_provider::{Config, Provider};
use zerog_storage::node::{NodeOptions, StorageNode};

/// Hash of the small base model.
pub(crate) const MOCK_MODEL: &str =
    "0xcb42b5ca9e998c82dd239ef2d20d22a4ae16b3dc0ce0a855c93b52c7c2bab6dc";
/// A short run.
pub(crate) const PARAMS: &str = r#"{"num_train_epochs":1,"per_device_train_batch_size":4,"learning_rate":0.002,"max_steps":4,"lora_dropout":0.0,"max_seq_length":64}"#;

/// Everything around a provider.
pub(crate) struct World {
    pub(crate) addresses: Addresses,
    pub(crate) rpc_url: String,
    pub(crate) storage: StorageNode,
    pub(crate) chain: DevChain,
    _rpc: ServerHandle,
    folder: tempfile::TempDir,
}

impl World {
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let genesis = deploy::genesis(&deploy::DeployOptions::default()).unwrap();
        let chain = DevChain::open(zerog_devchain::Options {
            genesis_transactions: genesis.transactions,
            dev_methods: true,
            ..Default::default()
        })
        .unwrap();
        let rpc = chain
            .serve(tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap())
            .unwrap();
        let rpc_url = rpc.url();
        let storage = StorageNode::start(NodeOptions {
            listen: ([127, 0, 0, 1], 0).into(),
            ..NodeOptions::new(
                folder.path().join("storage"),
                rpc_url.clone(),
                genesis.addresses.flow.unwrap(),
            )
        })
        .await
        .unwrap();
        Self {
            addresses: genesis.addresses,
            rpc_url,
            storage,
            chain,
            _rpc: rpc,
            folder,
        }
    }

    /// A provider's configuration in a data directory of its own, or of an earlier life.
    pub(crate) fn config(&self, name: &str) -> Config {
        let mut config = Config::devnet(
            &self.rpc_url,
            self.addresses,
            &self.storage.indexer_url(),
            key(2),
            self.folder.path().join(name),
            "127.0.0.1:0",
            base_model(),
        );
        config.chain.poll_interval = Duration::from_millis(50);
        // No test waits for rates.
        config.limits.transfer_rate = (1000.0, 1000.0);
        config.limits.quote_rate = (1000.0, 1000.0);
        config.fine_tuning.as_mut().unwrap().trainer.command =
            Some(PathBuf::from(env!("CARGO_BIN_EXE_0g-compute-provider")));
        config
    }

    pub(crate) async fn client(&self, account: usize) -> ChainClient {
        let signer = PrivateKeySigner::from_bytes(&ACCOUNTS[account].private_key).unwrap();
        ChainClient::connect(&self.rpc_url, self.addresses, ClientOptions::default())
            .await
            .unwrap()
            .with_wallet(signer)
    }

    /// The owner accepts both services of the provider.
    pub(crate) async fn accept(&self, provider: &Provider) {
        let owner = self.client(0).await;
        owner
            .fine_tuning()
            .acknowledge_tee_signer_by_owner(provider.address())
            .await
            .unwrap();
        owner
            .inference()
            .acknowledge_tee_signer_by_owner(provider.address())
            .await
            .unwrap();
    }

    /// A user with money at the provider for both roles.
    pub(crate) async fn user(&self, account: usize, provider: &Provider) -> User {
        let user = self.stranger(account, provider).await;
        let one = U256::from(10u128.pow(18));
        user.chain
            .ledger()
            .add_ledger(one * U256::from(20), "")
            .await
            .unwrap();
        for (name, amount) in [
            (
                user.chain
                    .ledger()
                    .fine_tuning_service_name()
                    .await
                    .unwrap(),
                2,
            ),
            (
                user.chain.ledger().inference_service_name().await.unwrap(),
                5,
            ),
        ] {
            user.chain
                .ledger()
                .transfer_fund(provider.address(), &name, one * U256::from(amount))
                .await
                .unwrap();
        }
        user.chain
            .fine_tuning()
            .acknowledge_tee_signer(provider.address(), true)
            .await
            .unwrap();
        user.chain
            .inference()
            .acknowledge_tee_signer(provider.address(), true)
            .await
            .unwrap();
        user
    }

    /// A user without anything.
    pub(crate) async fn stranger(&self, account: usize, provider: &Provider) -> User {
        User {
            key: key(account),
            chain: self.client(account).await,
            provider: provider.address(),
            url: provider.url().to_owned(),
            http: reqwest::Client::builder().no_proxy().build().unwrap(),
        }
    }
}

pub(crate) fn key(account: usize) -> SecretKey {
    SecretKey::from_bytes(&ACCOUNTS[account].private_key.0).unwrap()
}

pub(crate) fn base_model() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/tiny-qwen")
}

/// A few records that a small model can learn from.
pub(crate) fn dataset() -> String {
    (0..12)
        .map(|number| {
            json!({"messages": [
                {"role": "user", "content": format!("What is behind door {number}?")},
                {"role": "assistant", "content": format!("Behind door {number} is a lamp.")},
            ]})
            .to_string()
                + "\n"
        })
        .collect()
}

pub(crate) fn now_s() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs()
}

/// Somebody who talks to the provider.
#[derive(Clone)]
pub(crate) struct User {
    pub(crate) key: SecretKey,
    pub(crate) chain: ChainClient,
    pub(crate) provider: Address,
    pub(crate) url: String,
    pub(crate) http: reqwest::Client,
}

/// Status and body of an answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: reqwest::header::HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {}", self.text()))
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The text of a refusal, which is always JSON with a code.
    pub(crate) fn refusal(&self, status: u16, code: &str) -> String {
        let body = self.json();
        assert_eq!(self.status, status, "{body}");
        assert_eq!(body["code"], code, "{body}");
        body["error"].as_str().unwrap().to_owned()
    }
}

pub(crate) async fn send(request: reqwest::RequestBuilder) -> Answer {
    let response = request
        .timeout(Duration::from_secs(60))
        .send()
        .await
        .unwrap();
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    Answer {
        status,
        headers,
        body: response.bytes().await.unwrap().to_vec(),
    }
}

impl User {
    pub(crate) fn address(&self) -> Address {
        self.key.address()
    }

    pub(crate) fn path(&self, rest: &str) -> String {
        format!("{}/v1/user/{}/{rest}", self.url, self.address())
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        send(self.http.get(format!("{}{path}", self.url))).await
    }

    pub(crate) async fn post(&self, url: &str, body: Value) -> Answer {
        send(
            self.http
                .post(url)
                .header("content-type", "application/json")
                .body(body.to_string()),
        )
        .await
    }

    /// A plain upload with the parts in the order of the published TypeScript client: file first.
    pub(crate) async fn upload(&self, name: &str, content: &[u8]) -> Answer {
        let timestamp = now_s();
        let signature = signing::sign_personal(
            &self.key,
            signing::dataset_upload_hash(&self.address().to_string(), timestamp),
        );
        let file = reqwest::multipart::Part::bytes(content.to_vec()).file_name(name.to_owned());
        let form = reqwest::multipart::Form::new()
            .part("file", file)
            .text("signature", signature)
            .text("timestamp", timestamp.to_string());
        send(self.http.post(self.path("dataset")).multipart(form)).await
    }

    pub(crate) fn task_request(&self, dataset_hash: &str, nonce: u64) -> Value {
        let hash = signing::create_task_hash(self.address(), U256::from(nonce), dataset_hash);
        json!({
            "userAddress": self.address().to_string(),
            "datasetHash": dataset_hash,
            "trainingParams": PARAMS,
            "preTrainedModelHash": MOCK_MODEL,
            "fee": "0",
            "nonce": nonce.to_string(),
            "signature": signing::sign_personal(&self.key, hash),
            "wait": true,
        })
    }

    pub(crate) async fn create(&self, request: Value) -> Answer {
        self.post(&self.path("task"), request).await
    }

    /// Uploads the usual dataset and creates a task.
    pub(crate) async fn submit(&self) -> TaskId {
        let uploaded = self.upload("d.jsonl", dataset().as_bytes()).await;
        assert_eq!(uploaded.status, 200, "{}", uploaded.text());
        let hash = uploaded.json()["datasetHash"].as_str().unwrap().to_owned();
        let created = self
            .create(self.task_request(&hash, now_s() * 10_000_000 + 40))
            .await;
        assert_eq!(created.status, 201, "{}", created.text());
        created.json()["id"].as_str().unwrap().parse().unwrap()
    }

    pub(crate) async fn task(&self, id: TaskId) -> Value {
        let answer = send(self.http.get(self.path(&format!("task/{id}")))).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()
    }

    pub(crate) async fn log(&self, id: TaskId) -> String {
        send(self.http.get(self.path(&format!("task/{id}/log"))))
            .await
            .text()
    }

    /// Polls until the task is in one of the states.
    pub(crate) async fn wait(&self, id: TaskId, states: &[&str]) -> Value {
        let started = Instant::now();
        loop {
            let task = self.task(id).await;
            let state = task["progress"].as_str().unwrap();
            if states.contains(&state) {
                return task;
            }
            let is_ended = ["Finished", "Failed", "Cancelled"].contains(&state);
            if is_ended || started.elapsed() > Duration::from_secs(120) {
                panic!("waiting for {states:?}: {task:#}\n{}", self.log(id).await);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) fn token(&self) -> String {
        let claims = session_token::ephemeral_claims(
            self.address(),
            self.provider,
            now_s() * 1000,
            3_600_000,
            0,
        );
        format!("Bearer {}", session_token::create(&self.key, &claims))
    }

    pub(crate) async fn get_signed(&self, path: &str) -> Answer {
        send(
            self.http
                .get(format!("{}{path}", self.url))
                .header("authorization", self.token()),
        )
        .await
    }

    pub(crate) async fn post_signed(&self, path: &str, body: Value) -> Answer {
        let request = self
            .http
            .post(format!("{}{path}", self.url))
            .header("authorization", self.token());
        send(
            request
                .header("content-type", "application/json")
                .body(body.to_string()),
        )
        .await
    }
}
