//! Nonces, fees, sending again, and receipts.
//!
//! Estimation comes before the nonce is taken, so that a refused call never leaves a gap. Sending the
//! same bytes twice is success. A transaction can be prepared, stored by the caller and broadcast
//! afterwards; after a restart the caller broadcasts the same bytes again.

use std::{
    collections::BTreeSet,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use alloy_consensus::{SignableTransaction, Transaction, TxEnvelope, TxLegacy};
use alloy_eips::eip2718::{Decodable2718, Encodable2718};
use alloy_primitives::{Address, B256, Bytes, Signature, U64, U256};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::Mutex;

use crate::{
    ChainError, ClientOptions, ContractCall, ContractError,
    client::{call_error, call_request},
    rpc::{Rpc, RpcFailure},
    signer::WalletSigner,
};

/// Other transactions may land between estimation and mining, and gas refunds make limits tight.
const GAS_MARGIN_PERCENT: u64 = 20;
/// Nodes demand 10 % more for a replacement; one more half makes rounding harmless.
const PRICE_STEP_PER_MILLE: u128 = 1125;
const MAX_PRICE_STEPS: u32 = 8;
const MAX_NONCE_RETRIES: u32 = 3;
/// How long an endpoint behind a load balancer may lag behind our own nonce.
const NONCE_MEMORY: Duration = Duration::from_secs(30);
/// Unmined for this long: offer more.
const REPRICE_AFTER: Duration = Duration::from_secs(45);
const LOOPBACK_POLL: Duration = Duration::from_millis(20);
const REMOTE_POLL: Duration = Duration::from_secs(1);

/// A signed transaction, complete enough to be stored and sent again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreparedTransaction {
    /// Sender's nonce.
    pub nonce: u64,
    /// Signed bytes.
    pub raw: Bytes,
    /// Transaction hash.
    pub hash: B256,
    /// Gas price offered, in neuron.
    pub gas_price: u128,
    /// Gas limit.
    pub gas_limit: u64,
}

impl PreparedTransaction {
    /// Reads stored bytes.
    ///
    /// # Errors
    /// [`ChainError::MalformedTransaction`].
    pub fn from_raw(raw: Bytes) -> Result<Self, ChainError> {
        let transaction = decode(&raw)?;
        Ok(Self {
            nonce: transaction.nonce,
            gas_price: transaction.gas_price,
            gas_limit: transaction.gas_limit,
            hash: alloy_primitives::keccak256(&raw),
            raw,
        })
    }
}

/// A mined transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// Transaction hash.
    pub transaction_hash: B256,
    /// Height of its block.
    pub block_number: u64,
    /// Hash of its block.
    pub block_hash: B256,
    /// Whether it had an effect.
    pub succeeded: bool,
    /// Gas used.
    pub gas_used: u64,
    /// Price paid for one unit of gas, in neuron.
    pub effective_gas_price: u128,
    /// Address of the contract that it created.
    pub contract_address: Option<Address>,
    /// Events.
    pub logs: Vec<Log>,
}

impl Receipt {
    /// What the transaction cost the sender besides its value, in neuron.
    #[must_use]
    pub fn gas_cost(&self) -> U256 {
        U256::from(self.gas_used) * U256::from(self.effective_gas_price)
    }
}

/// One event as the chain reports it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Log {
    /// Emitting contract.
    pub address: Address,
    /// Event selector and indexed fields.
    pub topics: Vec<B256>,
    /// Other fields, ABI-encoded.
    pub data: Bytes,
    /// Height of the block.
    pub block_number: u64,
    /// Hash of the block.
    pub block_hash: B256,
    /// Transaction.
    pub transaction_hash: B256,
    /// Position in the block.
    pub log_index: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireReceipt {
    transaction_hash: B256,
    block_number: U64,
    block_hash: B256,
    status: Option<U64>,
    gas_used: U64,
    effective_gas_price: Option<U256>,
    contract_address: Option<Address>,
    logs: Vec<WireLog>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct WireLog {
    address: Address,
    topics: Vec<B256>,
    data: Bytes,
    block_number: U64,
    block_hash: B256,
    transaction_hash: B256,
    log_index: U64,
}

impl From<WireLog> for Log {
    fn from(log: WireLog) -> Self {
        Self {
            address: log.address,
            topics: log.topics,
            data: log.data,
            block_number: log.block_number.to(),
            block_hash: log.block_hash,
            transaction_hash: log.transaction_hash,
            log_index: log.log_index.to(),
        }
    }
}

impl From<WireReceipt> for Receipt {
    fn from(receipt: WireReceipt) -> Self {
        Self {
            transaction_hash: receipt.transaction_hash,
            block_number: receipt.block_number.to(),
            block_hash: receipt.block_hash,
            succeeded: receipt.status == Some(U64::from(1)),
            gas_used: receipt.gas_used.to(),
            effective_gas_price: receipt
                .effective_gas_price
                .unwrap_or_default()
                .saturating_to(),
            contract_address: receipt.contract_address,
            logs: receipt.logs.into_iter().map(Into::into).collect(),
        }
    }
}

/// Sends for one account.
pub(crate) struct Sender {
    rpc: Arc<Rpc>,
    chain_id: u64,
    signer: WalletSigner,
    options: ClientOptions,
    nonces: Arc<Mutex<Nonces>>,
}

/// Nonces of this process that the endpoint may not know of yet.
#[derive(Default)]
struct Nonces {
    /// Prepared and not broadcast.
    reserved: BTreeSet<u64>,
    /// One above the last broadcast, and when that was.
    after_last: Option<(u64, Instant)>,
}

impl Nonces {
    fn next(&mut self, pending: u64) -> u64 {
        self.reserved = self.reserved.split_off(&pending);
        let mut nonce = pending;
        if let Some((after_last, at)) = self.after_last
            && at.elapsed() < NONCE_MEMORY
        {
            nonce = nonce.max(after_last);
        }
        while self.reserved.contains(&nonce) {
            nonce += 1;
        }
        nonce
    }

    fn sent(&mut self, nonce: u64) {
        self.reserved.remove(&nonce);
        let after = self.after_last.map_or(0, |(after, _)| after).max(nonce + 1);
        self.after_last = Some((after, Instant::now()));
    }
}

impl fmt::Debug for Sender {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Sender")
            .field("address", &self.signer.address())
            .finish_non_exhaustive()
    }
}

impl Sender {
    pub(crate) fn new(
        rpc: Arc<Rpc>,
        chain_id: u64,
        signer: WalletSigner,
        options: ClientOptions,
    ) -> Self {
        Self {
            rpc,
            chain_id,
            signer,
            options,
            nonces: Arc::default(),
        }
    }

    /// The same account with other limits; both count nonces together.
    pub(crate) fn with_options(&self, options: ClientOptions) -> Self {
        Self {
            rpc: Arc::clone(&self.rpc),
            chain_id: self.chain_id,
            signer: self.signer.clone(),
            options,
            nonces: Arc::clone(&self.nonces),
        }
    }

    pub(crate) fn address(&self) -> Address {
        self.signer.address()
    }

    pub(crate) async fn pending_nonce(&self) -> Result<u64, ChainError> {
        let nonce: U64 = self
            .rpc
            .read(
                "eth_getTransactionCount",
                &json!([self.address(), "pending"]),
            )
            .await?;
        Ok(nonce.to())
    }

    pub(crate) async fn prepare(
        &self,
        call: ContractCall,
    ) -> Result<PreparedTransaction, ChainError> {
        let (gas_limit, gas_price) = self.estimate(&call).await?;
        let mut nonces = self.nonces.lock().await;
        let nonce = nonces.next(self.pending_nonce().await?);
        let prepared = self.sign(&call, nonce, gas_limit, gas_price).await?;
        nonces.reserved.insert(nonce);
        Ok(prepared)
    }

    pub(crate) async fn reprice(
        &self,
        prepared: &PreparedTransaction,
    ) -> Result<PreparedTransaction, ChainError> {
        let suggested = self.suggested_gas_price().await?;
        let mut transaction = decode(&prepared.raw)?;
        transaction.gas_price =
            self.within_maximum(raised(transaction.gas_price).max(suggested))?;
        self.sign_transaction(transaction).await
    }

    pub(crate) async fn release(&self, prepared: &PreparedTransaction) {
        self.nonces.lock().await.reserved.remove(&prepared.nonce);
    }

    pub(crate) async fn resume(&self, stored: &[PreparedTransaction]) {
        self.nonces
            .lock()
            .await
            .reserved
            .extend(stored.iter().map(|prepared| prepared.nonce));
    }

    pub(crate) async fn broadcast(
        &self,
        prepared: &PreparedTransaction,
    ) -> Result<B256, ChainError> {
        self.submit(prepared).await?;
        self.nonces.lock().await.sent(prepared.nonce);
        Ok(prepared.hash)
    }

    pub(crate) async fn send(&self, call: ContractCall) -> Result<Receipt, ChainError> {
        let (gas_limit, gas_price) = self.estimate(&call).await?;
        let prepared = self.sign_and_submit(&call, gas_limit, gas_price).await?;
        tracing::debug!(call = call.name, transaction.hash = %prepared.hash, nonce = prepared.nonce, "transaction sent");
        self.see_through(prepared).await
    }

    /// Takes a nonce and sends, under one lock, so that concurrent calls of one account stay in order.
    async fn sign_and_submit(
        &self,
        call: &ContractCall,
        gas_limit: u64,
        mut gas_price: u128,
    ) -> Result<PreparedTransaction, ChainError> {
        let mut nonces = self.nonces.lock().await;
        let mut price_steps = 0;
        let mut nonce_retries = 0;
        loop {
            let nonce = nonces.next(self.pending_nonce().await?);
            let prepared = self.sign(call, nonce, gas_limit, gas_price).await?;
            match self.submit(&prepared).await {
                Ok(()) => {
                    nonces.sent(nonce);
                    return Ok(prepared);
                }
                Err(ChainError::Underpriced { .. }) if price_steps < MAX_PRICE_STEPS => {
                    gas_price = self.within_maximum(raised(gas_price))?;
                    price_steps += 1;
                }
                // Somebody else sends from the same account: look at the chain's count again.
                Err(ChainError::NonceUsed { .. }) if nonce_retries < MAX_NONCE_RETRIES => {
                    nonces.after_last = None;
                    nonce_retries += 1;
                }
                Err(error @ ChainError::Unreachable { .. }) => {
                    let reason = error.to_string();
                    return Err(ChainError::SendUncertain {
                        hash: prepared.hash,
                        reason,
                    });
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits for the receipt; offers more, with the same nonce, while the transaction is not mined.
    async fn see_through(&self, first: PreparedTransaction) -> Result<Receipt, ChainError> {
        let started = Instant::now();
        let poll = poll_interval(&self.rpc, &self.options);
        let mut attempts = vec![first];
        let mut last_offer = Instant::now();
        loop {
            for prepared in &attempts {
                if let Some(receipt) = look(&self.rpc, prepared.hash).await? {
                    return succeeded(&self.rpc, receipt).await;
                }
            }
            let newest = attempts.last().expect("the first attempt is always there");
            if started.elapsed() >= self.options.receipt_timeout {
                return Err(ChainError::ReceiptTimeout {
                    hash: newest.hash,
                    waited: started.elapsed(),
                });
            }
            // Nobody is asked to sign the same payment again without having called for it; and while a
            // person is asked, no receipt is looked for.
            if !self.signer.asks_a_person() && last_offer.elapsed() >= REPRICE_AFTER {
                last_offer = Instant::now();
                match self.offer_more(newest).await {
                    Ok(replacement) => attempts.push(replacement),
                    // The transaction that is already out may still be mined.
                    Err(error) => tracing::debug!(%error, "the transaction was not replaced"),
                }
            }
            tokio::time::sleep(poll).await;
        }
    }

    async fn offer_more(
        &self,
        newest: &PreparedTransaction,
    ) -> Result<PreparedTransaction, ChainError> {
        let replacement = self.reprice(newest).await?;
        self.submit(&replacement).await?;
        Ok(replacement)
    }

    /// Gas limit with margin, and gas price.
    async fn estimate(&self, call: &ContractCall) -> Result<(u64, u128), ChainError> {
        let request = call_request(self.address(), call);
        let gas: U64 = match self.rpc.request("eth_estimateGas", &json!([request])).await {
            Ok(gas) => gas,
            Err(failure) => return Err(self.classify("eth_estimateGas", failure)),
        };
        let gas: u64 = gas.to();
        let gas_limit = gas.saturating_add(gas.saturating_mul(GAS_MARGIN_PERCENT) / 100);
        let gas_price = self.within_maximum(self.suggested_gas_price().await?)?;
        Ok((gas_limit, gas_price))
    }

    async fn suggested_gas_price(&self) -> Result<u128, ChainError> {
        if let Some(price) = self.options.gas_price {
            return Ok(price);
        }
        let price: U256 = self.rpc.read("eth_gasPrice", &json!([])).await?;
        Ok(price.saturating_to())
    }

    fn within_maximum(&self, needed: u128) -> Result<u128, ChainError> {
        match self.options.max_gas_price {
            Some(maximum) if needed > maximum => {
                Err(ChainError::GasPriceAboveMaximum { needed, maximum })
            }
            _ => Ok(needed),
        }
    }

    async fn sign(
        &self,
        call: &ContractCall,
        nonce: u64,
        gas_limit: u64,
        gas_price: u128,
    ) -> Result<PreparedTransaction, ChainError> {
        self.sign_transaction(TxLegacy {
            chain_id: Some(self.chain_id),
            nonce,
            gas_price,
            gas_limit,
            to: call.to.into(),
            value: call.value,
            input: call.data.clone(),
        })
        .await
    }

    /// Signs a legacy transaction, the form that every client of these networks uses.
    async fn sign_transaction(
        &self,
        mut transaction: TxLegacy,
    ) -> Result<PreparedTransaction, ChainError> {
        let signature = self.signer.sign_transaction(&mut transaction).await?;
        Ok(prepared(transaction, signature))
    }

    /// Sends signed bytes; bytes that are known or mined already count as sent.
    async fn submit(&self, prepared: &PreparedTransaction) -> Result<(), ChainError> {
        const METHOD: &str = "eth_sendRawTransaction";
        let failure = match self
            .rpc
            .request::<B256>(METHOD, &json!([prepared.raw]))
            .await
        {
            Ok(_) => return Ok(()),
            Err(failure) => failure,
        };
        let RpcFailure::Answer { message, .. } = &failure else {
            return Err(self.rpc.error(METHOD, failure));
        };
        let text = message.to_ascii_lowercase();
        let says = |phrases: &[&str]| phrases.iter().any(|phrase| text.contains(phrase));
        if says(&[
            "already known",
            "already imported",
            "known transaction",
            "already in mempool",
            "already exists",
        ]) {
            return Ok(());
        }
        if says(&[
            "nonce too low",
            "nonce is too low",
            "invalid nonce",
            "old nonce",
        ]) {
            if receipt(&self.rpc, prepared.hash).await?.is_some() {
                return Ok(());
            }
            return Err(ChainError::NonceUsed {
                nonce: prepared.nonce,
                hash: prepared.hash,
            });
        }
        if says(&[
            "underpriced",
            "fee too low",
            "less than block base fee",
            "gas price too low",
            "mempool is full",
        ]) {
            return Err(ChainError::Underpriced {
                gas_price: prepared.gas_price,
                message: message.clone(),
            });
        }
        Err(self.classify(METHOD, failure))
    }

    fn classify(&self, method: &'static str, failure: RpcFailure) -> ChainError {
        if let RpcFailure::Answer { message, .. } = &failure {
            let text = message.to_ascii_lowercase();
            if text.contains("insufficient funds") || text.contains("lack of funds") {
                return ChainError::InsufficientFunds {
                    address: self.address(),
                    message: message.clone(),
                };
            }
        }
        call_error(&self.rpc, method, failure)
    }
}

/// A transaction with its signature, ready to be stored and sent.
pub(crate) fn prepared(transaction: TxLegacy, signature: Signature) -> PreparedTransaction {
    let (nonce, gas_price, gas_limit) = (
        transaction.nonce,
        transaction.gas_price,
        transaction.gas_limit,
    );
    let signed = transaction.into_signed(signature);
    let hash = *signed.hash();
    let raw = TxEnvelope::Legacy(signed).encoded_2718().into();
    PreparedTransaction {
        nonce,
        raw,
        hash,
        gas_price,
        gas_limit,
    }
}

fn decode(raw: &[u8]) -> Result<TxLegacy, ChainError> {
    let malformed = |reason: &str| ChainError::MalformedTransaction(reason.to_owned());
    let envelope =
        TxEnvelope::decode_2718(&mut &*raw).map_err(|error| malformed(&error.to_string()))?;
    match envelope {
        TxEnvelope::Legacy(signed) if signed.tx().chain_id().is_some() => {
            Ok(signed.strip_signature())
        }
        _ => Err(malformed("not a replay-protected legacy transaction")),
    }
}

fn raised(price: u128) -> u128 {
    price.saturating_mul(PRICE_STEP_PER_MILLE) / 1000 + 1
}

fn poll_interval(rpc: &Rpc, options: &ClientOptions) -> Duration {
    options.poll_interval.unwrap_or(if rpc.is_loopback() {
        LOOPBACK_POLL
    } else {
        REMOTE_POLL
    })
}

pub(crate) async fn receipt(rpc: &Rpc, hash: B256) -> Result<Option<Receipt>, ChainError> {
    let receipt: Option<WireReceipt> = rpc
        .read("eth_getTransactionReceipt", &json!([hash]))
        .await?;
    Ok(receipt.map(Into::into))
}

/// The receipt, where an endpoint that fails for a while only means "not yet": the transaction is
/// out, and the wait has its own limit.
async fn look(rpc: &Rpc, hash: B256) -> Result<Option<Receipt>, ChainError> {
    match receipt(rpc, hash).await {
        Err(error) if error.is_retryable() => {
            tracing::debug!(%error, transaction.hash = %hash, "no receipt could be read");
            Ok(None)
        }
        other => other,
    }
}

pub(crate) async fn wait(
    rpc: &Rpc,
    hash: B256,
    options: &ClientOptions,
) -> Result<Receipt, ChainError> {
    let started = Instant::now();
    let poll = poll_interval(rpc, options);
    loop {
        if let Some(receipt) = look(rpc, hash).await? {
            return succeeded(rpc, receipt).await;
        }
        if started.elapsed() >= options.receipt_timeout {
            return Err(ChainError::ReceiptTimeout {
                hash,
                waited: started.elapsed(),
            });
        }
        tokio::time::sleep(poll).await;
    }
}

/// The receipt, or the reason why the transaction failed.
async fn succeeded(rpc: &Rpc, receipt: Receipt) -> Result<Receipt, ChainError> {
    if receipt.succeeded {
        return Ok(receipt);
    }
    let reason = replay(rpc, &receipt).await;
    Err(ChainError::TransactionFailed {
        hash: receipt.transaction_hash,
        reason,
    })
}

/// Calls a failed transaction again on the state before its block. The reason is help for people, so
/// that a chain that cannot answer only makes the message shorter.
async fn replay(rpc: &Rpc, receipt: &Receipt) -> Option<ContractError> {
    #[derive(Deserialize)]
    struct Sent {
        from: Address,
        to: Option<Address>,
        value: U256,
        input: Bytes,
        gas: U64,
    }
    let sent: Option<Sent> = rpc
        .read(
            "eth_getTransactionByHash",
            &json!([receipt.transaction_hash]),
        )
        .await
        .ok()?;
    let sent = sent?;
    let mut request =
        json!({ "from": sent.from, "value": sent.value, "data": sent.input, "gas": sent.gas });
    if let Some(to) = sent.to {
        request["to"] = json!(to);
    }
    let block = format!("0x{:x}", receipt.block_number.saturating_sub(1));
    match rpc
        .request::<Bytes>("eth_call", &json!([request, block]))
        .await
    {
        Ok(_) => None,
        Err(failure) => match call_error(rpc, "eth_call", failure) {
            ChainError::Reverted(reason) => Some(reason),
            _ => None,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloy_signer::SignerSync;
    use alloy_signer_local::PrivateKeySigner;

    #[test]
    fn nonces_skip_what_is_reserved_and_follow_the_chain() {
        let mut nonces = Nonces::default();
        assert_eq!(nonces.next(5), 5);
        nonces.reserved.insert(5);
        nonces.reserved.insert(6);
        assert_eq!(nonces.next(5), 7);
        nonces.sent(5);
        assert_eq!(
            nonces.next(5),
            7,
            "the endpoint lags behind, 6 is still reserved"
        );
        assert_eq!(nonces.next(9), 9, "the chain went on without us");
        assert!(nonces.reserved.is_empty());
    }

    #[test]
    fn a_stored_transaction_is_read_back() {
        let signer: PrivateKeySigner = crate::deploy::DEVELOPMENT_KEY_0.parse().unwrap();
        let transaction = TxLegacy {
            chain_id: Some(31337),
            nonce: 7,
            gas_price: 1_000_000_000,
            gas_limit: 21_000,
            to: Address::repeat_byte(0x11).into(),
            value: U256::from(5),
            input: Bytes::new(),
        };
        let signature = signer
            .sign_hash_sync(&transaction.signature_hash())
            .unwrap();
        let prepared = prepared(transaction.clone(), signature);
        assert_eq!(
            PreparedTransaction::from_raw(prepared.raw.clone()).unwrap(),
            prepared
        );
        assert_eq!(decode(&prepared.raw).unwrap(), transaction);
        assert!(PreparedTransaction::from_raw(Bytes::from_static(b"no transaction")).is_err());
    }

    #[test]
    fn every_price_step_is_a_valid_replacement() {
        for price in [0_u128, 1, 9, 1_000_000_000] {
            assert!(raised(price) * 100 > price * 110);
        }
    }
}
