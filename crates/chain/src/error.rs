use std::time::Duration;

use alloy_primitives::{Address, B256};

use crate::{ContractError, SigningError};

/// What can go wrong between this process and the chain.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChainError {
    /// The endpoint is not an http or https URL.
    #[error("\"{url}\" is not a usable RPC URL: {reason}")]
    InvalidRpcUrl {
        /// The text as given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Nothing answered at the endpoint.
    #[error("no answer from the chain endpoint {endpoint} after {attempts} attempts: {reason}")]
    Unreachable {
        /// Scheme, host and port, without path or credentials.
        endpoint: String,
        /// Attempts made.
        attempts: u32,
        /// Last failure.
        reason: String,
    },
    /// The endpoint refused the request or failed while working on it.
    #[error("the chain endpoint answered {method} with error {code}: {message}")]
    Rpc {
        /// JSON-RPC method.
        method: &'static str,
        /// JSON-RPC error code.
        code: i64,
        /// Text of the endpoint.
        message: String,
    },
    /// The answer does not have the form that the protocol demands.
    #[error("the answer to {method} is malformed: {reason}")]
    MalformedAnswer {
        /// JSON-RPC method or contract function.
        method: String,
        /// What is wrong.
        reason: String,
    },
    /// The endpoint serves another chain than expected.
    #[error(
        "the endpoint serves chain {found}, expected chain {expected}; check the network setting"
    )]
    WrongChain {
        /// Chain id of the chosen network.
        expected: u64,
        /// Chain id that the endpoint reported.
        found: u64,
    },
    /// There is no contract at an address that should hold one.
    #[error(
        "there is no {contract} contract at {address} on this chain; check the network setting"
    )]
    NotAContract {
        /// Contract name.
        contract: &'static str,
        /// Address that was called.
        address: Address,
    },
    /// The client has no wallet, so it can only read.
    #[error("this needs a wallet; log in first (0g-compute-cli login)")]
    NoWallet,
    /// The address table names no Flow contract.
    #[error("no storage Flow contract is known for this network")]
    NoFlowAddress,
    /// A contract refused a call, before anything was sent.
    #[error(transparent)]
    Reverted(#[from] ContractError),
    /// A transaction was mined and failed.
    #[error("transaction {hash} failed{}", reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default())]
    TransactionFailed {
        /// Transaction hash.
        hash: B256,
        /// Reason, where a replay of the call gives one.
        reason: Option<ContractError>,
    },
    /// A transaction was sent and not seen in a block in time; it may still be mined.
    #[error("transaction {hash} was not mined within {}s; it may still be", waited.as_secs())]
    ReceiptTimeout {
        /// Transaction hash.
        hash: B256,
        /// Time waited.
        waited: Duration,
    },
    /// The endpoint stopped answering while a transaction was sent; it may or may not be mined.
    #[error(
        "the chain endpoint stopped answering while transaction {hash} was sent; look it up before sending again: {reason}"
    )]
    SendUncertain {
        /// Transaction hash.
        hash: B256,
        /// Last failure.
        reason: String,
    },
    /// The account cannot pay value and gas.
    #[error("account {address} has not enough coins for this transaction and its gas: {message}")]
    InsufficientFunds {
        /// The sender.
        address: Address,
        /// Text of the endpoint.
        message: String,
    },
    /// The gas price is too low for the chain, or for replacing an earlier transaction.
    #[error("gas price {gas_price} is too low for the chain: {message}")]
    Underpriced {
        /// Price offered, in neuron.
        gas_price: u128,
        /// Text of the endpoint.
        message: String,
    },
    /// The chain asks for more than the caller allows (`--max-gas-price`).
    #[error("the chain asks for a gas price of {needed}, more than the allowed {maximum}")]
    GasPriceAboveMaximum {
        /// Price asked, in neuron.
        needed: u128,
        /// Price allowed, in neuron.
        maximum: u128,
    },
    /// Another transaction with the same nonce was mined.
    #[error("nonce {nonce} was used by another transaction; {hash} will never be mined")]
    NonceUsed {
        /// The nonce.
        nonce: u64,
        /// Hash of the transaction that lost.
        hash: B256,
    },
    /// Raw bytes are not a signed transaction of this crate.
    #[error("the stored transaction cannot be read: {0}")]
    MalformedTransaction(String),
    /// The wallet did not sign, or not as it should.
    #[error(transparent)]
    Signing(#[from] SigningError),
}

impl ChainError {
    /// Whether the same request can succeed later without anybody changing anything.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            // The JSON-RPC codes for a request that is wrong in itself.
            Self::Rpc { code, .. } => !(-32_602..=-32_600).contains(code),
            Self::Unreachable { .. }
            | Self::MalformedAnswer { .. }
            | Self::ReceiptTimeout { .. }
            | Self::Underpriced { .. } => true,
            _ => false,
        }
    }

    /// The contract's reason, if a contract refused.
    #[must_use]
    pub fn contract_error(&self) -> Option<&ContractError> {
        match self {
            Self::Reverted(error)
            | Self::TransactionFailed {
                reason: Some(error),
                ..
            } => Some(error),
            _ => None,
        }
    }
}
