//! A chain with all contracts, and what several tests do with it.

use alloy_consensus::{SignableTransaction, TxEnvelope, TxLegacy};
use alloy_eips::eip2718::Encodable2718;
use alloy_primitives::{Address, B256, Bytes, U256, keccak256};
use alloy_signer::SignerSync;
use alloy_signer_local::PrivateKeySigner;
use alloy_sol_types::{SolStruct, eip712_domain, sol};
use serde_json::json;
use zerog_chain::{
    ChainClient, ChainError, ClientOptions, ContractCall, ContractErrorKind, Receipt,
    deploy::{self, DeployOptions},
    fine_tuning::{self, Settlement},
    inference,
};
use zerog_devchain::{Clock, DevChain, Options, ServerHandle, accounts::ACCOUNTS};

pub(crate) const FINE_TUNING: &str = "fine-tuning-v1.0";
pub(crate) const INFERENCE: &str = "inference-v1.0";
pub(crate) const LOCK_TIME_S: u64 = 86_400;

/// Account numbers of the development accounts.
pub(crate) const OWNER: usize = 0;
pub(crate) const USER: usize = 0;
pub(crate) const TEE: usize = 1;
pub(crate) const PROVIDER: usize = 2;

sol! {
    struct VerifierMessage {
        string id;
        bytes encryptedSecret;
        bytes modelRootHash;
        uint256 nonce;
        uint256 taskFee;
        address user;
    }

    struct TEESettlement {
        bytes32 requestsHash;
        uint256 nonce;
        address provider;
        address user;
        uint256 totalFee;
    }
}

pub(crate) struct World {
    pub(crate) chain: DevChain,
    pub(crate) url: String,
    clients: Vec<ChainClient>,
    _server: ServerHandle,
}

impl World {
    /// The development network of `deploy::genesis`, in which time stands still until it is moved.
    pub(crate) async fn start() -> Self {
        let genesis = deploy::genesis(&DeployOptions::default()).unwrap();
        Self::with_genesis(
            genesis.transactions,
            zerog_chain::networks::DEVNET.addresses,
        )
        .await
    }

    /// A chain on which nothing happened yet.
    pub(crate) async fn empty(addresses: zerog_chain::Addresses) -> Self {
        Self::with_genesis(Vec::new(), addresses).await
    }

    async fn with_genesis(transactions: Vec<Bytes>, addresses: zerog_chain::Addresses) -> Self {
        let chain = DevChain::open(Options {
            genesis_transactions: transactions,
            clock: Clock::Manual,
            dev_methods: true,
            ..Options::default()
        })
        .unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = chain.serve(listener).unwrap();
        let url = server.url().to_string();
        let client = ChainClient::connect(&url, addresses, ClientOptions::default())
            .await
            .unwrap();
        let clients = ACCOUNTS
            .iter()
            .map(|account| client.with_wallet(key(account.private_key)))
            .collect();
        Self {
            chain,
            url,
            clients,
            _server: server,
        }
    }

    /// Client with the wallet of a development account.
    pub(crate) fn client(&self, account: usize) -> &ChainClient {
        &self.clients[account]
    }

    pub(crate) fn address(&self, account: usize) -> Address {
        ACCOUNTS[account].address
    }

    pub(crate) fn advance(&self, seconds: u64) {
        self.chain.advance_time(seconds).unwrap();
    }

    /// Gas limit that a call needs, as the node says.
    pub(crate) fn gas_needed(&self, account: usize, call: &ContractCall) -> u64 {
        let request = json!({
            "from": self.address(account), "to": call.to, "value": call.value, "data": call.data,
        });
        let gas = self.chain.request("eth_estimateGas", &[request]).unwrap();
        u64::from_str_radix(gas.as_str().unwrap().trim_start_matches("0x"), 16).unwrap()
    }

    /// Sends with exactly this gas limit, as clients do that do not estimate.
    pub(crate) async fn send_with_gas_limit(
        &self,
        account: usize,
        call: ContractCall,
        gas_limit: u64,
    ) -> Receipt {
        let client = self.client(account);
        let transaction = TxLegacy {
            chain_id: Some(31337),
            nonce: client.pending_nonce().await.unwrap(),
            gas_price: client.gas_price().await.unwrap(),
            gas_limit,
            to: call.to.into(),
            value: call.value,
            input: call.data,
        };
        let signature = key(ACCOUNTS[account].private_key)
            .sign_hash_sync(&transaction.signature_hash())
            .unwrap();
        let raw = TxEnvelope::Legacy(transaction.into_signed(signature)).encoded_2718();
        let hash = self.chain.send_raw_transaction(&raw).unwrap();
        client
            .wait(hash)
            .await
            .unwrap_or_else(|error| panic!("{}: {error}", call.name))
    }

    pub(crate) async fn send(
        &self,
        account: usize,
        call: ContractCall,
    ) -> Result<Receipt, ChainError> {
        self.client(account).send(call).await
    }

    /// Registers account `provider` in both service contracts, signing with `tee`, and accepts the
    /// signer as owner.
    pub(crate) async fn register(&self, provider: usize, tee: usize) {
        let client = self.client(provider);
        client
            .fine_tuning()
            .add_or_update_service(&fine_tuning_service(self.address(tee)))
            .await
            .unwrap();
        client
            .inference()
            .add_or_update_service(&inference_service(self.address(tee)))
            .await
            .unwrap();
        let owner = self.client(OWNER);
        owner
            .fine_tuning()
            .acknowledge_tee_signer_by_owner(self.address(provider))
            .await
            .unwrap();
        owner
            .inference()
            .acknowledge_tee_signer_by_owner(self.address(provider))
            .await
            .unwrap();
    }

    /// The usual start: a registered provider, a user with a ledger of 50 0G and 2 0G in each
    /// sub-account.
    pub(crate) async fn funded() -> Self {
        let world = Self::start().await;
        world.register(PROVIDER, TEE).await;
        let ledger = world.client(USER).ledger();
        ledger.add_ledger(og(50), "").await.unwrap();
        ledger
            .transfer_fund(world.address(PROVIDER), FINE_TUNING, og(2))
            .await
            .unwrap();
        ledger
            .transfer_fund(world.address(PROVIDER), INFERENCE, og(2))
            .await
            .unwrap();
        world
    }

    /// A signed claim of the standard provider.
    pub(crate) fn settlement(
        &self,
        user: usize,
        id: &str,
        secret: &[u8],
        nonce: u64,
        fee: U256,
    ) -> Settlement {
        let mut settlement = Settlement {
            id: id.to_owned(),
            encrypted_secret: Bytes::copy_from_slice(secret),
            model_root_hash: root(id),
            nonce: U256::from(nonce),
            signature: Bytes::new(),
            task_fee: fee,
            user: self.address(user),
        };
        let contract = self.client(OWNER).addresses().fine_tuning;
        settlement.signature = sign(TEE, fine_tuning_digest(&settlement, contract));
        settlement
    }

    /// A signed item of an inference settlement by account `provider`.
    pub(crate) fn inference_item(
        &self,
        provider: usize,
        user: usize,
        nonce: u64,
        fee: U256,
        tee: usize,
    ) -> inference::Settlement {
        let mut item = inference::Settlement {
            user: self.address(user),
            provider: self.address(provider),
            total_fee: fee,
            requests_hash: keccak256("requests"),
            nonce: U256::from(nonce),
            signature: Bytes::new(),
        };
        item.signature = sign(
            tee,
            inference_digest(&item, self.client(OWNER).addresses().inference),
        );
        item
    }

    /// Balance and pending refund of a fine-tuning sub-account.
    pub(crate) async fn sub_account(&self, user: usize) -> (U256, U256) {
        let account = self
            .client(user)
            .fine_tuning()
            .account(self.address(user), self.address(PROVIDER))
            .await;
        let account = account.unwrap().unwrap();
        (account.balance, account.pending_refund)
    }

    /// Available and total balance of a ledger.
    pub(crate) async fn ledger(&self, user: usize) -> (U256, U256) {
        let account = self
            .client(user)
            .ledger()
            .account(self.address(user))
            .await
            .unwrap()
            .unwrap();
        (account.available_balance, account.total_balance)
    }
}

/// Whole 0G in neuron.
pub(crate) fn og(amount: u64) -> U256 {
    U256::from(amount) * U256::from(10).pow(U256::from(18))
}

/// Thousandths of a 0G in neuron.
pub(crate) fn milli(amount: u64) -> U256 {
    U256::from(amount) * U256::from(10).pow(U256::from(15))
}

pub(crate) fn key(private_key: B256) -> PrivateKeySigner {
    PrivateKeySigner::from_bytes(&private_key).unwrap()
}

/// Model root that these tests deliver for a task.
pub(crate) fn root(id: &str) -> Bytes {
    keccak256(id).to_vec().into()
}

pub(crate) fn sign(account: usize, digest: B256) -> Bytes {
    let signature = key(ACCOUNTS[account].private_key)
        .sign_hash_sync(&digest)
        .unwrap();
    signature.as_bytes().to_vec().into()
}

pub(crate) fn fine_tuning_digest(settlement: &Settlement, contract: Address) -> B256 {
    let domain = eip712_domain! {
        name: "0G Fine-Tuning Serving", version: "1", chain_id: 31337, verifying_contract: contract,
    };
    VerifierMessage {
        id: settlement.id.clone(),
        encryptedSecret: settlement.encrypted_secret.clone(),
        modelRootHash: settlement.model_root_hash.clone(),
        nonce: settlement.nonce,
        taskFee: settlement.task_fee,
        user: settlement.user,
    }
    .eip712_signing_hash(&domain)
}

pub(crate) fn inference_digest(item: &inference::Settlement, contract: Address) -> B256 {
    let domain = eip712_domain! {
        name: "0G Inference Serving", version: "1", chain_id: 31337, verifying_contract: contract,
    };
    TEESettlement {
        requestsHash: item.requests_hash,
        nonce: item.nonce,
        provider: item.provider,
        user: item.user,
        totalFee: item.total_fee,
    }
    .eip712_signing_hash(&domain)
}

pub(crate) fn fine_tuning_service(tee_signer: Address) -> fine_tuning::ServiceParams {
    fine_tuning::ServiceParams {
        url: "http://127.0.0.1:3080".to_owned(),
        quota: fine_tuning::Quota {
            cpu_count: 2,
            node_memory: 24,
            gpu_count: 0,
            node_storage: 50,
            gpu_type: String::new(),
        },
        price_per_token: U256::from(1_000_000_000_u64),
        occupied: false,
        models: vec!["mock-model".to_owned()],
        tee_signer,
    }
}

pub(crate) fn inference_service(tee_signer: Address) -> inference::ServiceParams {
    inference::ServiceParams {
        service_type: "chatbot".to_owned(),
        url: "http://127.0.0.1:3080".to_owned(),
        model: "mock-model".to_owned(),
        verifiability: "TeeML".to_owned(),
        input_price: U256::from(50_000_000_000_u64),
        output_price: U256::from(100_000_000_000_u64),
        additional_info: "{}".to_owned(),
        tee_signer,
    }
}

/// The contract's reason for refusing.
pub(crate) fn refusal<T: std::fmt::Debug>(
    result: Result<T, ChainError>,
) -> (ContractErrorKind, String) {
    let error = result.expect_err("the contract should refuse");
    let reason = error
        .contract_error()
        .unwrap_or_else(|| panic!("not a refusal: {error}"));
    (reason.kind, reason.details.clone())
}

/// Only the kind of [`refusal`].
pub(crate) fn refused<T: std::fmt::Debug>(result: Result<T, ChainError>) -> ContractErrorKind {
    refusal(result).0
}
