//! A served chain, a plain JSON-RPC client, and transactions to send.

use std::sync::Once;

use alloy::{
    consensus::{SignableTransaction, TxEip1559, TxEip2930, TxEnvelope, TxLegacy},
    eips::eip2718::Encodable2718,
    primitives::{Address, B256, Bytes, TxKind, U256, hex},
    signers::{SignerSync, local::PrivateKeySigner},
};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use zerog_devchain::{CHAIN_ID, Clock, DevChain, Options, ServerHandle, accounts::ACCOUNTS};

/// Adds one to slot 0, logs the sum under topic 0x2a, and returns it.
pub(crate) const COUNTER: &[u8] = &hex!("60005460010180600055600052602a60206000a160206000f3");
/// Reverts with the bytes 0xdeadbeef.
pub(crate) const REVERTER: &[u8] = &hex!("63deadbeef6000526004601cfd");
/// Returns the block's timestamp.
pub(crate) const CLOCK: &[u8] = &hex!("4260005260206000f3");
/// Returns the hash of the block whose number is the first argument word.
pub(crate) const BLOCK_HASH: &[u8] = &hex!("6000354060005260206000f3");

pub(crate) fn options() -> Options {
    Options {
        dev_methods: true,
        clock: Clock::Manual,
        ..Default::default()
    }
}

pub(crate) struct Served {
    pub(crate) chain: DevChain,
    pub(crate) server: ServerHandle,
    pub(crate) client: reqwest::Client,
}

pub(crate) async fn serve(options: Options) -> Served {
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| {
        rustls::crypto::ring::default_provider()
            .install_default()
            .unwrap()
    });
    let chain = DevChain::open(options).unwrap();
    let server = chain
        .serve(TcpListener::bind("127.0.0.1:0").await.unwrap())
        .unwrap();
    Served {
        chain,
        server,
        client: reqwest::Client::new(),
    }
}

impl Served {
    pub(crate) async fn post(&self, body: impl Into<reqwest::Body>) -> reqwest::Response {
        let request = self
            .client
            .post(self.server.url())
            .header("content-type", "application/json");
        request.body(body).send().await.unwrap()
    }

    /// The whole response object.
    pub(crate) async fn respond(&self, method: &str, parameters: Value) -> Value {
        let body = json!({"jsonrpc": "2.0", "id": 7, "method": method, "params": parameters});
        let response: Value = self.post(body.to_string()).await.json().await.unwrap();
        assert_eq!(response["id"], 7);
        response
    }

    pub(crate) async fn call(&self, method: &str, parameters: Value) -> Value {
        let mut response = self.respond(method, parameters).await;
        assert!(
            response.get("error").is_none(),
            "{method} failed: {response}"
        );
        response["result"].take()
    }

    pub(crate) async fn error(&self, method: &str, parameters: Value) -> Value {
        let mut response = self.respond(method, parameters).await;
        assert!(
            response.get("result").is_none(),
            "{method} succeeded: {response}"
        );
        response["error"].take()
    }

    pub(crate) async fn number(&self, method: &str, parameters: Value) -> u64 {
        let value = self.call(method, parameters).await;
        u64::from_str_radix(value.as_str().unwrap().trim_start_matches("0x"), 16).unwrap()
    }

    pub(crate) async fn send(&self, raw: &Bytes) -> String {
        self.call("eth_sendRawTransaction", json!([raw]))
            .await
            .as_str()
            .unwrap()
            .to_owned()
    }

    pub(crate) async fn receipt(&self, hash: &str) -> Value {
        self.call("eth_getTransactionReceipt", json!([hash])).await
    }

    /// Deploys `runtime` from account `index` and returns the contract's address.
    pub(crate) async fn deploy(&self, index: usize, nonce: u64, runtime: &[u8]) -> String {
        let hash = self
            .send(
                &Send {
                    index,
                    nonce,
                    to: None,
                    data: init_code(runtime),
                    ..Default::default()
                }
                .sign(),
            )
            .await;
        let receipt = self.receipt(&hash).await;
        assert_eq!(receipt["status"], "0x1", "{receipt}");
        receipt["contractAddress"].as_str().unwrap().to_owned()
    }
}

/// Creation code that installs `runtime`.
pub(crate) fn init_code(runtime: &[u8]) -> Bytes {
    let mut code = vec![0x60, u8::try_from(runtime.len()).unwrap()];
    code.extend(hex!("80600b6000396000f3"));
    code.extend(runtime);
    code.into()
}

pub(crate) enum Kind {
    Legacy,
    AccessList,
    DynamicFee,
}

/// A transaction to be signed by development account `index`.
pub(crate) struct Send {
    pub(crate) index: usize,
    pub(crate) nonce: u64,
    pub(crate) to: Option<Address>,
    pub(crate) value: U256,
    pub(crate) data: Bytes,
    pub(crate) gas_limit: u64,
    pub(crate) max_fee: u128,
    pub(crate) chain_id: u64,
    pub(crate) kind: Kind,
}

impl Default for Send {
    fn default() -> Self {
        Self {
            index: 0,
            nonce: 0,
            to: Some(Address::repeat_byte(0x77)),
            value: U256::ZERO,
            data: Bytes::new(),
            gas_limit: 200_000,
            max_fee: 3_000_000_000,
            chain_id: CHAIN_ID,
            kind: Kind::DynamicFee,
        }
    }
}

impl Send {
    pub(crate) fn sign(self) -> Bytes {
        let signer = PrivateKeySigner::from_bytes(&ACCOUNTS[self.index].private_key).unwrap();
        let to = self.to.map_or(TxKind::Create, TxKind::Call);
        let Self {
            nonce,
            value,
            data: input,
            gas_limit,
            max_fee,
            chain_id,
            ..
        } = self;
        let envelope: TxEnvelope = match self.kind {
            Kind::Legacy => {
                let chain_id = Some(chain_id);
                signed(
                    TxLegacy {
                        chain_id,
                        nonce,
                        gas_price: max_fee,
                        gas_limit,
                        to,
                        value,
                        input,
                    },
                    &signer,
                )
            }
            Kind::AccessList => {
                let access_list = Default::default();
                signed(
                    TxEip2930 {
                        chain_id,
                        nonce,
                        gas_price: max_fee,
                        gas_limit,
                        to,
                        value,
                        access_list,
                        input,
                    },
                    &signer,
                )
            }
            Kind::DynamicFee => signed(
                TxEip1559 {
                    chain_id,
                    nonce,
                    gas_limit,
                    max_fee_per_gas: max_fee,
                    max_priority_fee_per_gas: 1_000_000_000.min(max_fee),
                    to,
                    value,
                    access_list: Default::default(),
                    input,
                },
                &signer,
            ),
        };
        envelope.encoded_2718().into()
    }
}

fn signed<T: SignableTransaction<alloy::primitives::Signature>>(
    transaction: T,
    signer: &PrivateKeySigner,
) -> TxEnvelope
where
    TxEnvelope: From<alloy::consensus::Signed<T>>,
{
    let hash: B256 = transaction.signature_hash();
    let signature = signer.sign_hash_sync(&hash).unwrap();
    transaction.into_signed(signature).into()
}

/// 32 bytes of `number` in hexadecimal.
pub(crate) fn word(number: u64) -> String {
    format!("0x{number:064x}")
}
