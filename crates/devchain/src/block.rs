//! One mined block: header, transaction, receipt, and what undoes it.

use alloy_consensus::{
    Eip658Value, Header, Receipt, ReceiptEnvelope, ReceiptWithBloom, Transaction as _, TxEnvelope,
    TxType,
    proofs::{calculate_receipt_root, calculate_transaction_root},
    transaction::Recovered,
};
use alloy_primitives::{Address, B256, Bloom, Keccak256, U256};
use alloy_rpc_types_eth::{
    Block, BlockTransactions, Header as RpcHeader, Log as RpcLog, Transaction, TransactionReceipt,
};
use revm::{
    context::result::{ExecutionResult, Output},
    state::AccountInfo,
};

/// A block as the chain keeps it. Automining puts at most one transaction in it.
#[derive(Debug)]
pub(crate) struct MinedBlock {
    pub(crate) header: RpcHeader,
    pub(crate) transaction: Option<(Transaction, TransactionReceipt)>,
    /// What the block changed, sorted by address.
    pub(crate) changes: Vec<AccountChange>,
}

/// An account that a block changed.
#[derive(Debug)]
pub(crate) struct AccountChange {
    pub(crate) address: Address,
    pub(crate) before: AccountInfo,
    pub(crate) after: AccountInfo,
    /// Changed slots in ascending order.
    pub(crate) slots: Vec<SlotChange>,
}

#[derive(Debug)]
pub(crate) struct SlotChange {
    pub(crate) slot: U256,
    pub(crate) before: U256,
    pub(crate) after: U256,
}

/// Where and when a block is mined.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Position {
    pub(crate) parent_hash: B256,
    pub(crate) parent_state: B256,
    pub(crate) number: u64,
    pub(crate) timestamp: u64,
    pub(crate) gas_limit: u64,
    pub(crate) base_fee: u64,
}

impl MinedBlock {
    pub(crate) fn new(
        position: Position,
        executed: Option<(Recovered<TxEnvelope>, ExecutionResult)>,
        changes: Vec<AccountChange>,
    ) -> Self {
        let gas_used = executed
            .as_ref()
            .map_or(0, |(_, result)| result.tx_gas_used());
        let mut parts =
            executed.map(|(transaction, result)| (receipt(&transaction, result), transaction));
        let header = Header {
            parent_hash: position.parent_hash,
            number: position.number,
            timestamp: position.timestamp,
            gas_limit: position.gas_limit,
            gas_used,
            base_fee_per_gas: Some(position.base_fee),
            state_root: state_commitment(position.parent_state, &changes),
            logs_bloom: parts
                .as_ref()
                .map_or(Bloom::ZERO, |((receipt, _), _)| *receipt.logs_bloom()),
            receipts_root: calculate_receipt_root(
                parts
                    .as_ref()
                    .map_or(&[][..], |((receipt, _), _)| std::slice::from_ref(receipt)),
            ),
            transactions_root: calculate_transaction_root(
                parts.as_ref().map_or(&[][..], |(_, transaction)| {
                    std::slice::from_ref(transaction.inner())
                }),
            ),
            ..Default::default()
        };
        let header = RpcHeader::new(header);
        let transaction = parts
            .take()
            .map(|((receipt, contract_address), transaction)| {
                let price = transaction.effective_gas_price(Some(position.base_fee));
                let receipt = TransactionReceipt {
                    transaction_hash: *transaction.tx_hash(),
                    transaction_index: Some(0),
                    block_hash: Some(header.hash),
                    block_number: Some(header.number),
                    gas_used,
                    effective_gas_price: price,
                    blob_gas_used: None,
                    blob_gas_price: None,
                    from: transaction.signer(),
                    to: transaction.to(),
                    contract_address,
                    inner: receipt.map_logs({
                        let transaction_hash = *transaction.tx_hash();
                        let mut log_index = 0;
                        let header = &header;
                        move |log| {
                            log_index += 1;
                            RpcLog {
                                inner: log,
                                block_hash: Some(header.hash),
                                block_number: Some(header.number),
                                block_timestamp: Some(header.timestamp),
                                transaction_hash: Some(transaction_hash),
                                transaction_index: Some(0),
                                log_index: Some(log_index - 1),
                                removed: false,
                            }
                        }
                    }),
                };
                let transaction = Transaction {
                    inner: transaction,
                    block_hash: Some(header.hash),
                    block_number: Some(header.number),
                    transaction_index: Some(0),
                    effective_gas_price: Some(price),
                    block_timestamp: Some(header.timestamp),
                };
                (transaction, receipt)
            });
        Self {
            header,
            transaction,
            changes,
        }
    }

    pub(crate) fn transaction_hash(&self) -> Option<B256> {
        self.transaction
            .as_ref()
            .map(|(transaction, _)| *transaction.inner.tx_hash())
    }

    pub(crate) fn logs(&self) -> &[RpcLog] {
        self.transaction
            .as_ref()
            .map_or(&[], |(_, receipt)| receipt.logs())
    }

    /// The JSON-RPC form, with transactions in `full` or as hashes.
    pub(crate) fn to_rpc(&self, full: bool) -> Block {
        let transactions = if full {
            BlockTransactions::Full(
                self.transaction
                    .iter()
                    .map(|(transaction, _)| transaction.clone())
                    .collect(),
            )
        } else {
            BlockTransactions::Hashes(self.transaction_hash().into_iter().collect())
        };
        Block {
            header: self.header.clone(),
            uncles: Vec::new(),
            transactions,
            withdrawals: None,
        }
    }
}

/// The receipt proper and the created contract.
fn receipt(
    transaction: &Recovered<TxEnvelope>,
    result: ExecutionResult,
) -> (ReceiptEnvelope<alloy_primitives::Log>, Option<Address>) {
    let status = Eip658Value::Eip658(result.is_success());
    let cumulative_gas_used = result.tx_gas_used();
    let (logs, created) = match result {
        ExecutionResult::Success {
            logs,
            output: Output::Create(_, created),
            ..
        } => (logs, created),
        ExecutionResult::Success { logs, .. } => (logs, None),
        _ => (Vec::new(), None),
    };
    let logs_bloom = logs.iter().collect();
    let receipt = ReceiptWithBloom {
        receipt: Receipt {
            status,
            cumulative_gas_used,
            logs,
        },
        logs_bloom,
    };
    let envelope = match transaction.tx_type() {
        TxType::Legacy => ReceiptEnvelope::Legacy(receipt),
        TxType::Eip2930 => ReceiptEnvelope::Eip2930(receipt),
        TxType::Eip1559 => ReceiptEnvelope::Eip1559(receipt),
        TxType::Eip4844 => ReceiptEnvelope::Eip4844(receipt),
        TxType::Eip7702 => ReceiptEnvelope::Eip7702(receipt),
    };
    (envelope, created)
}

/// The header's state root. It is no Merkle root: a chain of digests over the changes commits to the same state for a
/// small part of the cost, and makes the block hash cover every effect of a replayed block.
fn state_commitment(parent: B256, changes: &[AccountChange]) -> B256 {
    if changes.is_empty() {
        return parent;
    }
    let mut digest = Keccak256::new();
    digest.update(parent);
    for change in changes {
        digest.update(change.address);
        digest.update(change.after.nonce.to_be_bytes());
        digest.update(change.after.balance.to_be_bytes::<32>());
        digest.update(change.after.code_hash);
        digest.update((change.slots.len() as u64).to_be_bytes());
        for slot in &change.slots {
            digest.update(slot.slot.to_be_bytes::<32>());
            digest.update(slot.after.to_be_bytes::<32>());
        }
    }
    digest.finalize()
}
