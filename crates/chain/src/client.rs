//! Connection to one chain, and reads of blocks, balances and contracts.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use alloy_primitives::{Address, B256, Bytes, TxKind, U64, U256};
use alloy_sol_types::SolCall;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    ChainError, ContractCall, ContractError, Network, PreparedTransaction, Receipt,
    fine_tuning::FineTuning,
    flow::Flow,
    inference::Inference,
    ledger::Ledger,
    rpc::{Rpc, RpcFailure},
    signer::WalletSigner,
    transaction::Sender,
};

/// Where the contracts of one network are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    /// LedgerManager.
    pub ledger: Address,
    /// InferenceServing.
    pub inference: Address,
    /// FineTuningServing.
    pub fine_tuning: Address,
    /// Storage Flow, if the network's is known.
    pub flow: Option<Address>,
}

/// Limits of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientOptions {
    /// Longest wait for one answer of the endpoint.
    pub timeout: Duration,
    /// Attempts of one read, the first included.
    pub attempts: u32,
    /// Longest wait for a transaction to be mined.
    pub receipt_timeout: Duration,
    /// Time between two looks for a receipt; by default 20 ms on this machine and 1 s elsewhere.
    pub poll_interval: Option<Duration>,
    /// Gas price to offer, in neuron, instead of the endpoint's suggestion (`--gas-price`).
    pub gas_price: Option<u128>,
    /// Highest gas price to offer, in neuron, also when a transaction has to be replaced
    /// (`--max-gas-price`).
    pub max_gas_price: Option<u128>,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(15),
            attempts: 4,
            receipt_timeout: Duration::from_secs(300),
            poll_interval: None,
            gas_price: None,
            max_gas_price: None,
        }
    }
}

/// What callers need to know of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockInfo {
    /// Height.
    pub number: u64,
    /// Block hash.
    pub hash: B256,
    /// Seconds since 1970.
    pub timestamp: u64,
}

impl BlockInfo {
    /// How far this machine's clock is ahead of the block, in seconds (negative: behind). Large
    /// values mean a wrong clock or a chain that stands still.
    #[must_use]
    pub fn age_s(&self) -> i64 {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |elapsed| elapsed.as_secs());
        i64::try_from(i128::from(now) - i128::from(self.timestamp)).unwrap_or(i64::MAX)
    }
}

/// One chain, with or without a wallet. Clones share the connection and the wallet's nonces.
#[derive(Clone, Debug)]
pub struct ChainClient {
    rpc: Arc<Rpc>,
    chain_id: u64,
    addresses: Addresses,
    options: ClientOptions,
    sender: Option<Arc<Sender>>,
}

impl ChainClient {
    /// Connects and asks the chain id.
    ///
    /// # Errors
    /// [`ChainError::InvalidRpcUrl`], or a failed read.
    pub async fn connect(
        rpc_url: &str,
        addresses: Addresses,
        options: ClientOptions,
    ) -> Result<Self, ChainError> {
        let rpc = Arc::new(Rpc::new(rpc_url, options.timeout, options.attempts)?);
        let chain_id: U64 = rpc.read("eth_chainId", &json!([])).await?;
        Ok(Self {
            rpc,
            chain_id: chain_id.to(),
            addresses,
            options,
            sender: None,
        })
    }

    /// Connects to a known network and checks that the endpoint serves its chain.
    ///
    /// # Errors
    /// As [`ChainClient::connect`], and [`ChainError::WrongChain`].
    pub async fn connect_network(
        network: &Network,
        options: ClientOptions,
    ) -> Result<Self, ChainError> {
        Self::connect(network.rpc_url, network.addresses, options)
            .await?
            .expect_chain(network.chain_id)
    }

    /// This client, if its endpoint serves the expected chain.
    ///
    /// # Errors
    /// [`ChainError::WrongChain`].
    pub fn expect_chain(self, expected: u64) -> Result<Self, ChainError> {
        if self.chain_id != expected {
            return Err(ChainError::WrongChain {
                expected,
                found: self.chain_id,
            });
        }
        Ok(self)
    }

    /// The same connection with other contracts.
    #[must_use]
    pub fn with_addresses(&self, addresses: Addresses) -> Self {
        Self {
            addresses,
            ..self.clone()
        }
    }

    /// The same connection with a wallet: a key, or whatever else signs ([`WalletSigner`]). Call it once
    /// per wallet and clone the result: nonces are counted per returned client and its clones.
    #[must_use]
    pub fn with_wallet(&self, signer: impl Into<WalletSigner>) -> Self {
        let sender = Sender::new(
            Arc::clone(&self.rpc),
            self.chain_id,
            signer.into(),
            self.options,
        );
        Self {
            sender: Some(Arc::new(sender)),
            ..self.clone()
        }
    }

    /// The same client and wallet with other gas prices (see [`ClientOptions`]).
    #[must_use]
    pub fn with_gas_prices(&self, gas_price: Option<u128>, max_gas_price: Option<u128>) -> Self {
        let options = ClientOptions {
            gas_price,
            max_gas_price,
            ..self.options
        };
        Self {
            sender: self
                .sender
                .as_ref()
                .map(|sender| Arc::new(sender.with_options(options))),
            options,
            ..self.clone()
        }
    }

    /// Address of the wallet, if there is one.
    #[must_use]
    pub fn wallet_address(&self) -> Option<Address> {
        self.sender.as_ref().map(|sender| sender.address())
    }

    /// EIP-155 chain id, as reported at connection.
    #[must_use]
    pub fn chain_id(&self) -> u64 {
        self.chain_id
    }

    /// Contract addresses.
    #[must_use]
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Scheme, host and port of the endpoint, fit for messages.
    #[must_use]
    pub fn endpoint(&self) -> String {
        self.rpc.endpoint()
    }

    /// Whether the endpoint is on this machine.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        self.rpc.is_loopback()
    }

    /// The ledger contract.
    #[must_use]
    pub fn ledger(&self) -> Ledger<'_> {
        Ledger::new(self)
    }

    /// The fine-tuning contract.
    #[must_use]
    pub fn fine_tuning(&self) -> FineTuning<'_> {
        FineTuning::new(self)
    }

    /// The inference contract.
    #[must_use]
    pub fn inference(&self) -> Inference<'_> {
        Inference::new(self)
    }

    /// The storage Flow contract.
    ///
    /// # Errors
    /// [`ChainError::NoFlowAddress`].
    pub fn flow(&self) -> Result<Flow<'_>, ChainError> {
        let address = self.addresses.flow.ok_or(ChainError::NoFlowAddress)?;
        Ok(Flow::new(self, address))
    }

    /// Height of the newest block.
    ///
    /// # Errors
    /// A failed read.
    pub async fn block_number(&self) -> Result<u64, ChainError> {
        let number: U64 = self.rpc.read("eth_blockNumber", &json!([])).await?;
        Ok(number.to())
    }

    /// The newest block; its time is the chain's clock.
    ///
    /// # Errors
    /// A failed read.
    pub async fn latest_block(&self) -> Result<BlockInfo, ChainError> {
        self.block_by_tag("latest")
            .await?
            .ok_or_else(|| ChainError::MalformedAnswer {
                method: "eth_getBlockByNumber".to_owned(),
                reason: "no latest block".to_owned(),
            })
    }

    /// A block by height; `None` if the chain is not that long.
    ///
    /// # Errors
    /// A failed read.
    pub async fn block(&self, number: u64) -> Result<Option<BlockInfo>, ChainError> {
        self.block_by_tag(&format!("0x{number:x}")).await
    }

    /// Coins of an account, in neuron.
    ///
    /// # Errors
    /// A failed read.
    pub async fn balance(&self, address: Address) -> Result<U256, ChainError> {
        self.rpc
            .read("eth_getBalance", &json!([address, "latest"]))
            .await
    }

    /// Runtime code at an address; empty if there is no contract.
    ///
    /// # Errors
    /// A failed read.
    pub async fn code(&self, address: Address) -> Result<Bytes, ChainError> {
        self.rpc
            .read("eth_getCode", &json!([address, "latest"]))
            .await
    }

    /// Gas price that the endpoint suggests, in neuron.
    ///
    /// # Errors
    /// A failed read.
    pub async fn gas_price(&self) -> Result<u128, ChainError> {
        let price: U256 = self.rpc.read("eth_gasPrice", &json!([])).await?;
        Ok(price.saturating_to())
    }

    /// Calls a view function. `contract` names the contract in errors.
    ///
    /// # Errors
    /// [`ChainError::Reverted`] with the contract's reason, [`ChainError::NotAContract`], or a failed
    /// read.
    pub async fn call<C: SolCall>(
        &self,
        contract: &'static str,
        to: Address,
        from: Option<Address>,
        call: &C,
    ) -> Result<C::Return, ChainError> {
        let mut request = json!({ "to": to, "data": Bytes::from(call.abi_encode()) });
        if let Some(from) = from {
            request["from"] = json!(from);
        }
        let answer: Bytes = match self
            .rpc
            .request("eth_call", &json!([request, "latest"]))
            .await
        {
            Ok(answer) => answer,
            Err(failure) => return Err(call_error(&self.rpc, "eth_call", failure)),
        };
        if answer.is_empty() && self.code(to).await?.is_empty() {
            return Err(ChainError::NotAContract {
                contract,
                address: to,
            });
        }
        C::abi_decode_returns(&answer).map_err(|error| ChainError::MalformedAnswer {
            method: format!("{contract}.{}", C::SIGNATURE),
            reason: error.to_string(),
        })
    }

    /// Estimates, signs and sends a call, and waits until it is mined.
    ///
    /// # Errors
    /// [`ChainError::NoWallet`]; [`ChainError::Reverted`] if a contract refuses, in which case
    /// nothing was sent; [`ChainError::TransactionFailed`]; [`ChainError::ReceiptTimeout`].
    pub async fn send(&self, call: ContractCall) -> Result<Receipt, ChainError> {
        self.sender()?.send(call).await
    }

    /// Estimates and signs a call without sending it, so that the caller can store it first. Its
    /// nonce stays reserved until [`ChainClient::broadcast`] or [`ChainClient::release`].
    ///
    /// # Errors
    /// [`ChainError::NoWallet`], [`ChainError::Reverted`], or a failed read.
    pub async fn prepare(&self, call: ContractCall) -> Result<PreparedTransaction, ChainError> {
        self.sender()?.prepare(call).await
    }

    /// The same call with the same nonce at a higher gas price, for a prepared transaction that the
    /// chain calls underpriced or does not mine.
    ///
    /// # Errors
    /// [`ChainError::GasPriceAboveMaximum`], [`ChainError::MalformedTransaction`].
    pub async fn reprice(
        &self,
        prepared: &PreparedTransaction,
    ) -> Result<PreparedTransaction, ChainError> {
        self.sender()?.reprice(prepared).await
    }

    /// Gives the nonce of a prepared transaction back that will never be broadcast.
    ///
    /// # Errors
    /// [`ChainError::NoWallet`].
    pub async fn release(&self, prepared: &PreparedTransaction) -> Result<(), ChainError> {
        self.sender()?.release(prepared).await;
        Ok(())
    }

    /// Reserves the nonces of stored transactions, after a restart and before anything new is
    /// prepared. Broadcast them again afterwards.
    ///
    /// # Errors
    /// [`ChainError::NoWallet`].
    pub async fn resume(&self, stored: &[PreparedTransaction]) -> Result<(), ChainError> {
        self.sender()?.resume(stored).await;
        Ok(())
    }

    /// Sends a signed transaction. Sending it again is harmless: one that is known or mined counts as
    /// sent.
    ///
    /// # Errors
    /// [`ChainError::NonceUsed`], [`ChainError::Underpriced`], [`ChainError::InsufficientFunds`], or
    /// a failed request.
    pub async fn broadcast(&self, prepared: &PreparedTransaction) -> Result<B256, ChainError> {
        self.sender()?.broadcast(prepared).await
    }

    /// Waits until a transaction is mined and succeeded.
    ///
    /// # Errors
    /// [`ChainError::ReceiptTimeout`], [`ChainError::TransactionFailed`], or a failed read.
    pub async fn wait(&self, hash: B256) -> Result<Receipt, ChainError> {
        crate::transaction::wait(&self.rpc, hash, &self.options).await
    }

    /// The receipt of a transaction, failed ones included; `None` while it is not mined.
    ///
    /// # Errors
    /// A failed read.
    pub async fn receipt(&self, hash: B256) -> Result<Option<Receipt>, ChainError> {
        crate::transaction::receipt(&self.rpc, hash).await
    }

    /// The wallet's next nonce on chain, pending transactions included.
    ///
    /// # Errors
    /// [`ChainError::NoWallet`] or a failed read.
    pub async fn pending_nonce(&self) -> Result<u64, ChainError> {
        self.sender()?.pending_nonce().await
    }

    pub(crate) fn rpc(&self) -> &Rpc {
        &self.rpc
    }

    fn sender(&self) -> Result<&Sender, ChainError> {
        self.sender.as_deref().ok_or(ChainError::NoWallet)
    }

    async fn block_by_tag(&self, tag: &str) -> Result<Option<BlockInfo>, ChainError> {
        #[derive(Deserialize)]
        struct Header {
            number: U64,
            hash: B256,
            timestamp: U64,
        }
        let header: Option<Header> = self
            .rpc
            .read("eth_getBlockByNumber", &json!([tag, false]))
            .await?;
        Ok(header.map(|header| BlockInfo {
            number: header.number.to(),
            hash: header.hash,
            timestamp: header.timestamp.to(),
        }))
    }
}

/// A refusal of a contract becomes [`ChainError::Reverted`]; anything else stays what it was.
pub(crate) fn call_error(rpc: &Rpc, method: &'static str, failure: RpcFailure) -> ChainError {
    if let RpcFailure::Answer {
        code,
        message,
        data,
    } = &failure
    {
        let lower = message.to_ascii_lowercase();
        if data.as_ref().is_some_and(|data| !data.is_empty())
            || *code == 3
            || lower.contains("revert")
        {
            return ContractError::decode(data.clone().unwrap_or_default()).into();
        }
    }
    rpc.error(method, failure)
}

/// JSON form of a call for estimation.
pub(crate) fn call_request(from: Address, call: &ContractCall) -> serde_json::Value {
    let mut request = json!({ "from": from, "value": call.value, "data": call.data });
    if let TxKind::Call(to) = call.to.into() {
        request["to"] = json!(to);
    }
    request
}
