//! A chain with all contracts, one registered provider, and an HTTP server that answers what a test tells it to.

use std::sync::{Arc, Mutex};

use alloy_primitives::{Address, B256, Bytes, U256};
use alloy_signer_local::PrivateKeySigner;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use zerog_attestation::{EnclaveKeys, Simulated, SimulatedOptions, TeeBackend};
use zerog_chain::deploy::{self, DeployOptions};
use zerog_chain::fine_tuning::{Quota, ServiceParams, Settlement};
use zerog_chain::{ChainClient, ClientOptions, inference};
use zerog_devchain::accounts::ACCOUNTS;
use zerog_devchain::{DevChain, Options, ServerHandle};
use zerog_protocol::signing::FineTuningSettlement;
use zerog_sdk::{Broker, BrokerOptions, NetworkSettings, SecretKey, TaskId};

const OWNER: usize = 0;
const USER: usize = 3;
const PROVIDER: usize = 2;

/// A request as the scripted provider got it.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// Path with query.
    pub(crate) path: String,
    /// Header lines in lower case.
    pub(crate) headers: String,
    pub(crate) body: Vec<u8>,
}

impl Request {
    /// First byte that is asked for.
    pub(crate) fn range_start(&self) -> Option<usize> {
        let line = self
            .headers
            .lines()
            .find_map(|line| line.strip_prefix("range: bytes="))?;
        line.trim_end_matches('-').parse().ok()
    }
}

/// What it answers.
#[derive(Debug, Clone)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// Close the connection after so many bytes of the body.
    pub(crate) cut_at: Option<usize>,
    pub(crate) manner: Manner,
}

/// How an answer is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    Usual,
    /// The connection stays open and nothing comes.
    Silent,
    /// The connection is closed before the first byte.
    Closed,
    /// The head comes, then one byte of the body every so often.
    Dripping(std::time::Duration),
    /// The body is repeated without end and without a length.
    Endless,
}

impl Response {
    pub(crate) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: body.into(),
            cut_at: None,
            manner: Manner::Usual,
        }
    }

    pub(crate) fn sent(mut self, manner: Manner) -> Self {
        self.manner = manner;
        self
    }

    pub(crate) fn header(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    pub(crate) fn cut_at(mut self, bytes: usize) -> Self {
        self.cut_at = Some(bytes);
        self
    }

    /// The part of `content` that a request asks for, as a server with ranges sends it.
    pub(crate) fn ranged(request: &Request, content: &[u8]) -> Self {
        match request.range_start() {
            None => Self::new(200, content),
            Some(start) if start >= content.len() => {
                Self::new(416, "").header("content-range", format!("bytes */{}", content.len()))
            }
            Some(start) => Self::new(206, &content[start..]).header(
                "content-range",
                format!("bytes {start}-{}/{}", content.len() - 1, content.len()),
            ),
        }
    }
}

type Script = Box<dyn FnMut(&Request) -> Option<Response> + Send>;

pub(crate) struct World {
    pub(crate) broker: Broker,
    pub(crate) provider: Address,
    pub(crate) user: SecretKey,
    pub(crate) keys: EnclaveKeys,
    pub(crate) tee: Arc<Simulated>,
    provider_chain: ChainClient,
    rpc_url: String,
    url: String,
    script: Arc<Mutex<Script>>,
    requests: Arc<Mutex<Vec<Request>>>,
    _chain: DevChain,
    _server: ServerHandle,
}

impl World {
    /// A funded user: 50 0G in the ledger, 2 0G in the fine-tuning sub-account.
    pub(crate) async fn start() -> Self {
        let genesis = deploy::genesis(&DeployOptions::default()).unwrap();
        let chain = DevChain::open(Options {
            genesis_transactions: genesis.transactions,
            ..Options::default()
        })
        .unwrap();
        let server = chain
            .serve(TcpListener::bind("127.0.0.1:0").await.unwrap())
            .unwrap();
        let rpc_url = server.url().to_string();
        let tee = Arc::new(Simulated::new(SimulatedOptions::new([7; 32])));
        let keys = EnclaveKeys::derive(tee.as_ref()).unwrap();

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let script: Arc<Mutex<Script>> = Arc::new(Mutex::new(Box::new(|_| None)));
        let requests = Arc::new(Mutex::new(Vec::new()));
        tokio::spawn(serve(listener, Arc::clone(&script), Arc::clone(&requests)));

        let addresses = zerog_chain::networks::DEVNET.addresses;
        let client = ChainClient::connect(&rpc_url, addresses, ClientOptions::default())
            .await
            .unwrap();
        let wallet = |account: usize| {
            client
                .with_wallet(PrivateKeySigner::from_bytes(&ACCOUNTS[account].private_key).unwrap())
        };
        let provider_chain = wallet(PROVIDER);
        register(&provider_chain, &wallet(OWNER), &url, keys.signer_address()).await;

        let user = SecretKey::from_bytes(&ACCOUNTS[USER].private_key.0).unwrap();
        let broker = connect(&rpc_url, "devnet", user.clone(), None).await;
        let provider = ACCOUNTS[PROVIDER].address;
        broker.ledger.add_ledger(og(50)).await.unwrap();
        broker
            .ledger
            .transfer_fund(provider, zerog_sdk::ServiceKind::FineTuning, og(2))
            .await
            .unwrap();
        let world = Self {
            broker,
            provider,
            user,
            keys,
            tee,
            provider_chain,
            rpc_url,
            url,
            script,
            requests,
            _chain: chain,
            _server: server,
        };
        world.answer(|_| None);
        world
    }

    /// Base URL of the scripted provider.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// What the user's broker is made from.
    pub(crate) fn options(&self) -> BrokerOptions {
        options(&self.rpc_url, "devnet", self.user.clone(), None)
    }

    /// The same user on a network that is not called devnet, so that simulated enclaves are refused.
    pub(crate) async fn strict_broker(&self) -> Broker {
        connect(&self.rpc_url, "elsewhere", self.user.clone(), None).await
    }

    /// The same user, with little patience.
    pub(crate) async fn hasty_broker(&self) -> Broker {
        let timeout = std::time::Duration::from_millis(250);
        connect(&self.rpc_url, "devnet", self.user.clone(), Some(timeout)).await
    }

    /// Registers the inference service again, with other additional information.
    pub(crate) async fn describe_inference(&self, additional_info: &str) {
        let inference = self.provider_chain.inference();
        let service = inference.service(self.provider).await.unwrap().unwrap();
        inference
            .add_or_update_service(&inference_offer(
                &service.url,
                service.tee_signer,
                additional_info,
            ))
            .await
            .unwrap();
    }

    /// Registers both services again, at another URL.
    pub(crate) async fn move_to(&self, url: &str) {
        let (chain, signer) = (&self.provider_chain, self.keys.signer_address());
        chain
            .fine_tuning()
            .add_or_update_service(&fine_tuning_offer(url, signer))
            .await
            .unwrap();
        chain
            .inference()
            .add_or_update_service(&inference_offer(url, signer, "{}"))
            .await
            .unwrap();
    }

    /// What the user owns in the ledger and in the sub-accounts with the provider.
    pub(crate) async fn money(&self) -> (U256, U256, U256) {
        let chain = &self.provider_chain;
        let (user, provider) = (self.user.address(), self.provider);
        let ledger = chain.ledger().account(user).await.unwrap().unwrap();
        let fine_tuning = chain.fine_tuning().account(user, provider).await.unwrap();
        let inference = chain.inference().account(user, provider).await.unwrap();
        (
            ledger.available_balance,
            fine_tuning.map_or(U256::ZERO, |account| account.balance),
            inference.map_or(U256::ZERO, |account| account.balance),
        )
    }

    /// Transactions that the user has sent.
    pub(crate) async fn transactions(&self) -> u64 {
        let wallet = PrivateKeySigner::from_bytes(&self.user.expose_bytes().into()).unwrap();
        let client = self.provider_chain.with_wallet(wallet);
        client.pending_nonce().await.unwrap()
    }

    /// The quote of an honest provider as JSON, for tests that alter it.
    pub(crate) fn quote(&self) -> serde_json::Value {
        let report_data = self.keys.legacy_report_data();
        let bundle = self.tee.quote(&report_data).unwrap();
        serde_json::from_str(&bundle.to_json()).unwrap()
    }

    /// Answers requests with `script`; what it leaves open is served as an honest provider would: quotes are, the rest
    /// is an unknown route.
    pub(crate) fn answer(
        &self,
        mut script: impl FnMut(&Request) -> Option<Response> + Send + 'static,
    ) {
        let (tee, legacy, structured) = (
            Arc::clone(&self.tee),
            self.keys.legacy_report_data(),
            self.keys.structured_report_data(),
        );
        *self.script.lock().unwrap() = Box::new(move |request| {
            script(request).or_else(|| {
                let report_data = match request.path.as_str() {
                    "/v1/quote" => &legacy,
                    "/v1/quote?legacy=false" => &structured,
                    _ => return None,
                };
                let mut bundle = tee.quote(report_data).unwrap();
                bundle.sealing = vec!["v1".into()];
                bundle.recipient_keys = Vec::new();
                Some(Response::new(200, bundle.to_json()))
            })
        });
    }

    /// Requests so far whose path contains `part`.
    pub(crate) fn requests(&self, part: &str) -> Vec<Request> {
        self.requests
            .lock()
            .unwrap()
            .iter()
            .filter(|request| request.path.contains(part))
            .cloned()
            .collect()
    }

    /// Puts a deliverable on chain.
    pub(crate) async fn deliver(&self, task: TaskId, hash: B256) {
        self.deliver_as(task, Bytes::from(hash.0)).await;
    }

    /// The same with any bytes for the hash.
    pub(crate) async fn deliver_as(&self, task: TaskId, written: Bytes) {
        let contract = self.provider_chain.fine_tuning();
        contract
            .add_deliverable(self.user.address(), &task.to_string(), written)
            .await
            .unwrap();
    }

    /// Settles an acknowledged deliverable with the given encrypted key.
    pub(crate) async fn settle(&self, task: TaskId, hash: B256, secret: Vec<u8>) {
        self.settle_with_nonce(task, hash, secret, 1).await;
    }

    /// The same for one of several; nonces must increase.
    pub(crate) async fn settle_with_nonce(
        &self,
        task: TaskId,
        hash: B256,
        secret: Vec<u8>,
        nonce: u64,
    ) {
        let contract = self.provider_chain.fine_tuning();
        let claim = FineTuningSettlement {
            id: task.to_string(),
            encrypted_secret: secret.into(),
            model_root_hash: Bytes::from(hash.0),
            nonce: U256::from(nonce),
            task_fee: U256::from(5u64),
            user: self.user.address(),
        };
        let digest = claim.digest(31337, contract.address());
        let settlement = Settlement {
            id: claim.id,
            encrypted_secret: claim.encrypted_secret,
            model_root_hash: claim.model_root_hash,
            nonce: claim.nonce,
            signature: Bytes::from(self.keys.signer.sign_digest(digest).as_bytes().to_vec()),
            task_fee: claim.task_fee,
            user: claim.user,
        };
        contract.settle_fees(&settlement).await.unwrap();
    }

    /// Whether the user's acknowledgement is on chain.
    pub(crate) async fn is_acknowledged(&self, task: TaskId) -> bool {
        self.broker
            .fine_tuning
            .deliverable(self.provider, task)
            .await
            .unwrap()
            .acknowledged
    }
}

async fn connect(
    rpc_url: &str,
    name: &str,
    user: SecretKey,
    answer_timeout: Option<std::time::Duration>,
) -> Broker {
    Broker::connect(options(rpc_url, name, user, answer_timeout))
        .await
        .unwrap()
}

fn options(
    rpc_url: &str,
    name: &str,
    user: SecretKey,
    answer_timeout: Option<std::time::Duration>,
) -> BrokerOptions {
    let mut network = NetworkSettings::by_name("devnet").unwrap();
    network.name = name.to_owned();
    network.rpc_url = rpc_url.to_owned();
    // Nothing listens there: storage is down.
    network.storage_indexer_url = "http://127.0.0.1:9".to_owned();
    let mut options = BrokerOptions::custom(network).with_wallet(user);
    options.poll_interval = Some(std::time::Duration::from_millis(5));
    options.answer_timeout = answer_timeout;
    options.hub_url = None;
    // Nobody outside this machine is asked.
    options.collateral.services.clear();
    options
}

fn inference_offer(url: &str, signer: Address, additional_info: &str) -> inference::ServiceParams {
    inference::ServiceParams {
        service_type: "chatbot".into(),
        url: url.to_owned(),
        model: "mock-model".into(),
        verifiability: "TeeML".into(),
        input_price: U256::from(10u64),
        output_price: U256::from(20u64),
        additional_info: additional_info.to_owned(),
        tee_signer: signer,
    }
}

fn fine_tuning_offer(url: &str, signer: Address) -> ServiceParams {
    ServiceParams {
        url: url.to_owned(),
        quota: Quota::default(),
        price_per_token: U256::from(500_000_000_000u64),
        occupied: false,
        models: Vec::new(),
        tee_signer: signer,
    }
}

async fn register(provider: &ChainClient, owner: &ChainClient, url: &str, signer: Address) {
    let address = provider.wallet_address().unwrap();
    provider
        .fine_tuning()
        .add_or_update_service(&fine_tuning_offer(url, signer))
        .await
        .unwrap();
    owner
        .fine_tuning()
        .acknowledge_tee_signer_by_owner(address)
        .await
        .unwrap();
    provider
        .inference()
        .add_or_update_service(&inference_offer(url, signer, "{}"))
        .await
        .unwrap();
    owner
        .inference()
        .acknowledge_tee_signer_by_owner(address)
        .await
        .unwrap();
}

/// Whole 0G in neuron.
pub(crate) fn og(amount: u64) -> U256 {
    U256::from(amount) * U256::from(10u64).pow(U256::from(18u64))
}

async fn serve(
    listener: TcpListener,
    script: Arc<Mutex<Script>>,
    requests: Arc<Mutex<Vec<Request>>>,
) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(connection(
            stream,
            Arc::clone(&script),
            Arc::clone(&requests),
        ));
    }
}

/// One request per connection.
async fn connection(
    mut stream: TcpStream,
    script: Arc<Mutex<Script>>,
    requests: Arc<Mutex<Vec<Request>>>,
) {
    let Some(request) = read_request(&mut stream).await else {
        return;
    };
    requests.lock().unwrap().push(request.clone());
    let answer = (script.lock().unwrap())(&request);
    let response = answer.unwrap_or_else(|| Response::new(404, "404 page not found"));
    let length = match response.manner {
        Manner::Silent => {
            // Until the client has enough of it.
            let _ = stream.read(&mut [0; 1]).await;
            return;
        }
        Manner::Closed => return,
        Manner::Endless => String::new(),
        _ => format!("content-length: {}\r\n", response.body.len()),
    };
    let mut head = format!(
        "HTTP/1.1 {} X\r\n{length}connection: close\r\n",
        response.status
    );
    for (name, value) in &response.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    let sent = &response.body[..response
        .cut_at
        .unwrap_or(response.body.len())
        .min(response.body.len())];
    let _ = stream.write_all(head.as_bytes()).await;
    match response.manner {
        Manner::Endless => while stream.write_all(sent).await.is_ok() {},
        Manner::Dripping(pause) => {
            for byte in sent {
                if stream.write_all(&[*byte]).await.is_err() {
                    break;
                }
                tokio::time::sleep(pause).await;
            }
        }
        _ => {
            let _ = stream.write_all(sent).await;
        }
    }
    let _ = stream.shutdown().await;
}

async fn read_request(stream: &mut TcpStream) -> Option<Request> {
    let mut received = Vec::new();
    let mut buffer = [0u8; 16 * 1024];
    let head_end = loop {
        let count = stream
            .read(&mut buffer)
            .await
            .ok()
            .filter(|count| *count > 0)?;
        received.extend_from_slice(&buffer[..count]);
        if let Some(position) = received.windows(4).position(|window| window == b"\r\n\r\n") {
            break position;
        }
    };
    let head = String::from_utf8_lossy(&received[..head_end]).into_owned();
    let mut words = head.lines().next()?.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let headers = head.to_ascii_lowercase();
    let length: usize = headers
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "))
        .map_or(0, |text| text.trim().parse().unwrap());
    let mut body = received.split_off(head_end + 4);
    while body.len() < length {
        let count = stream
            .read(&mut buffer)
            .await
            .ok()
            .filter(|count| *count > 0)?;
        body.extend_from_slice(&buffer[..count]);
    }
    Some(Request {
        method,
        path,
        headers,
        body,
    })
}
