//! Between JSON-RPC and EVM: transaction environments, and what execution results mean in words.

use alloy_consensus::{
    Transaction as _, TxEnvelope, Typed2718, crypto::SECP256K1N_HALF, transaction::Recovered,
};
use alloy_eips::Decodable2718;
use alloy_primitives::{Address, Bytes, TxKind, U256, hex};
use alloy_rpc_types_eth::TransactionRequest;
use revm::{
    context::{
        CfgEnv, TxEnv,
        either::Either,
        result::{EVMError, ExecutionResult, HaltReason, InvalidTransaction},
    },
    primitives::hardfork::SpecId,
};
use secp256k1::{
    Message, SECP256K1,
    ecdsa::{RecoverableSignature, RecoveryId},
};

use crate::RpcError;

/// Decodes a signed transaction and recovers its sender.
pub(crate) fn decode_transaction(raw: &[u8]) -> Result<Recovered<TxEnvelope>, RpcError> {
    let mut rest = raw;
    let transaction = TxEnvelope::decode_2718(&mut rest).map_err(|error| {
        RpcError::server(format!("failed to decode signed transaction: {error}"))
    })?;
    if !rest.is_empty() {
        return Err(RpcError::server(
            "failed to decode signed transaction: trailing bytes",
        ));
    }
    if transaction.is_eip4844() {
        return Err(RpcError::server("transaction type not supported"));
    }
    let sender = recover_sender(&transaction).ok_or_else(|| RpcError::server("invalid sender"))?;
    Ok(Recovered::new_unchecked(transaction, sender))
}

/// The sender of a transaction, by libsecp256k1: this is most of what a transaction costs here, and four times faster
/// than in pure Rust. As on Ethereum, only the smaller of the two values of `s` is a signature (EIP-2).
fn recover_sender(transaction: &TxEnvelope) -> Option<Address> {
    let signature = transaction.signature();
    if signature.s() > SECP256K1N_HALF {
        return None;
    }
    let recovery = RecoveryId::try_from(i32::from(signature.v())).ok()?;
    let compact = &signature.as_bytes()[..64];
    let signature = RecoverableSignature::from_compact(compact, recovery).ok()?;
    let message = Message::from_digest(transaction.signature_hash().0);
    let key = SECP256K1.recover_ecdsa(message, &signature).ok()?;
    // Without the leading byte, which says that the point is not compressed.
    Some(Address::from_raw_public_key(
        &key.serialize_uncompressed()[1..],
    ))
}

pub(crate) fn configuration(chain_id: u64) -> CfgEnv {
    CfgEnv::new_with_spec(SpecId::PRAGUE).with_chain_id(chain_id)
}

/// The configuration for calls that are not transactions: no nonce, no fees, any sender.
pub(crate) fn call_configuration(chain_id: u64, value: U256) -> CfgEnv {
    let mut configuration = configuration(chain_id);
    configuration.disable_nonce_check = true;
    configuration.disable_base_fee = true;
    configuration.disable_eip3607 = true;
    // The gas price of calls is zero, so only sent value can be lacking.
    configuration.disable_balance_check = value.is_zero();
    configuration
}

pub(crate) fn transaction_environment(transaction: &Recovered<TxEnvelope>) -> TxEnv {
    TxEnv {
        tx_type: transaction.ty(),
        caller: transaction.signer(),
        gas_limit: transaction.gas_limit(),
        gas_price: transaction.max_fee_per_gas(),
        gas_priority_fee: transaction.max_priority_fee_per_gas(),
        kind: transaction.kind(),
        value: transaction.value(),
        data: transaction.input().clone(),
        nonce: transaction.nonce(),
        chain_id: transaction.chain_id(),
        access_list: transaction.access_list().cloned().unwrap_or_default(),
        authorization_list: transaction
            .authorization_list()
            .map(|list| list.iter().cloned().map(Either::Left).collect())
            .unwrap_or_default(),
        ..Default::default()
    }
}

/// `nonce` is the sender's: a call that creates a contract gets the address that a transaction would.
pub(crate) fn call_environment(
    request: &TransactionRequest,
    chain_id: u64,
    nonce: u64,
    gas_limit: u64,
) -> TxEnv {
    TxEnv {
        caller: caller(request),
        gas_limit,
        gas_price: 0,
        kind: request.to.unwrap_or(TxKind::Create),
        value: request.value.unwrap_or_default(),
        data: request.input.input().cloned().unwrap_or_default(),
        nonce,
        chain_id: Some(chain_id),
        access_list: request.access_list.clone().unwrap_or_default(),
        ..Default::default()
    }
}

pub(crate) fn caller(request: &TransactionRequest) -> Address {
    request.from.unwrap_or_default()
}

/// The words for a transaction that cannot be included. ethers maps "nonce too low" and "insufficient funds" by text.
pub(crate) fn refusal<E: std::fmt::Debug>(error: &EVMError<E>) -> RpcError {
    RpcError::server(match error {
        EVMError::Transaction(InvalidTransaction::LackOfFundForMaxFee { fee, balance }) => {
            format!("insufficient funds for gas * price + value: have {balance} want {fee}")
        }
        EVMError::Transaction(InvalidTransaction::NonceTooLow { tx, state }) => {
            nonce_too_low(*state, *tx)
        }
        EVMError::Transaction(InvalidTransaction::GasPriceLessThanBasefee) => {
            "max fee per gas less than block base fee".to_owned()
        }
        EVMError::Transaction(InvalidTransaction::PriorityFeeGreaterThanMaxFee) => {
            "max priority fee per gas higher than max fee per gas".to_owned()
        }
        EVMError::Transaction(
            InvalidTransaction::CallGasCostMoreThanGasLimit {
                initial_gas: needed,
                gas_limit,
            }
            | InvalidTransaction::GasFloorMoreThanGasLimit {
                gas_floor: needed,
                gas_limit,
            },
        ) => format!("intrinsic gas too low: have {gas_limit}, want {needed}"),
        EVMError::Transaction(InvalidTransaction::CallerGasLimitMoreThanBlock) => {
            EXCEEDS_BLOCK_GAS.to_owned()
        }
        EVMError::Transaction(InvalidTransaction::InvalidChainId) => INVALID_CHAIN_ID.to_owned(),
        EVMError::Transaction(InvalidTransaction::CreateInitCodeSizeLimit) => {
            "max initcode size exceeded".to_owned()
        }
        EVMError::Transaction(error) => format!("invalid transaction: {error}"),
        error => format!("execution failed: {error:?}"),
    })
}

pub(crate) const EXCEEDS_BLOCK_GAS: &str = "exceeds block gas limit";
pub(crate) const INVALID_CHAIN_ID: &str = "invalid chain id for signer";

pub(crate) fn nonce_too_low(next: u64, found: u64) -> String {
    format!("nonce too low: next nonce {next}, tx nonce {found}")
}

/// The output of a call, or the error that a failed one is answered with. `gas_limit` is what the call had.
pub(crate) fn call_output(result: ExecutionResult, gas_limit: u64) -> Result<Bytes, RpcError> {
    match result {
        ExecutionResult::Success { output, .. } => Ok(output.into_data()),
        ExecutionResult::Revert { output, .. } => Err(RpcError {
            code: 3,
            message: revert_message(&output),
            data: Some(output),
        }),
        ExecutionResult::Halt {
            reason: HaltReason::OutOfGas(_),
            ..
        } => Err(RpcError::server(format!(
            "out of gas: gas required exceeds allowance ({gas_limit})"
        ))),
        ExecutionResult::Halt { reason, .. } => {
            Err(RpcError::server(format!("execution halted: {reason:?}")))
        }
    }
}

/// "execution reverted", with the reason where the data is a Solidity `Error(string)` or `Panic(uint256)`.
fn revert_message(data: &[u8]) -> String {
    const ERROR_STRING: [u8; 4] = hex!("08c379a0");
    const PANIC: [u8; 4] = hex!("4e487b71");
    match data.split_first_chunk::<4>() {
        Some((&ERROR_STRING, body)) => string_argument(body).map_or_else(
            || "execution reverted".to_owned(),
            |reason| format!("execution reverted: {}", String::from_utf8_lossy(reason)),
        ),
        Some((&PANIC, body)) if body.len() == 32 => {
            format!(
                "execution reverted: panic code {:#04x}",
                U256::from_be_slice(body)
            )
        }
        _ => "execution reverted".to_owned(),
    }
}

/// The bytes of a single ABI-encoded `string` argument.
fn string_argument(body: &[u8]) -> Option<&[u8]> {
    let length = usize::try_from(U256::from_be_slice(body.get(32..64)?)).ok()?;
    body.get(64..)?.get(..length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revert_reasons_are_read_and_hostile_ones_survived() {
        let mut text = hex!("08c379a0").to_vec();
        text.extend(U256::from(32).to_be_bytes::<32>());
        text.extend(U256::from(3).to_be_bytes::<32>());
        text.extend(b"odd");
        text.extend([0; 29]);
        assert_eq!(revert_message(&text), "execution reverted: odd");
        text[36..68].fill(0xff);
        assert_eq!(revert_message(&text), "execution reverted");
        assert_eq!(revert_message(&text[..20]), "execution reverted");
        let mut panic = hex!("4e487b71").to_vec();
        panic.extend(U256::from(0x11).to_be_bytes::<32>());
        assert_eq!(
            revert_message(&panic),
            "execution reverted: panic code 0x11"
        );
        assert_eq!(revert_message(&[]), "execution reverted");
    }
}
