//! Transactions that wait for an earlier nonce of the same sender.

use std::collections::{BTreeMap, HashMap};

use alloy_consensus::{Transaction as _, TxEnvelope, transaction::Recovered};
use alloy_primitives::{Address, B256};

use crate::RpcError;

/// The queue as a whole. A burst of 2000 parallel sends must fit with room to spare; each waiting transaction takes
/// memory until its predecessor comes.
const MAX_QUEUED: usize = 16_384;
/// How far ahead of the account a nonce may be.
const MAX_NONCE_GAP: u64 = 16_384;

#[derive(Debug, Default)]
pub(crate) struct Queue {
    by_nonce: BTreeMap<(Address, u64), Recovered<TxEnvelope>>,
    by_hash: HashMap<B256, (Address, u64)>,
}

impl Queue {
    /// Keeps `transaction` until the account's nonce, now `next_nonce`, reaches its own.
    pub(crate) fn insert(
        &mut self,
        transaction: Recovered<TxEnvelope>,
        next_nonce: u64,
    ) -> Result<(), RpcError> {
        let key = (transaction.signer(), transaction.nonce());
        if key.1 - next_nonce > MAX_NONCE_GAP {
            return Err(RpcError::server(format!(
                "nonce too high: next nonce {next_nonce}, tx nonce {}",
                key.1
            )));
        }
        match self.by_nonce.get(&key) {
            // The usual rule of nodes: a replacement pays at least a tenth more.
            Some(waiting)
                if transaction.max_fee_per_gas()
                    < waiting.max_fee_per_gas() + waiting.max_fee_per_gas().div_ceil(10) =>
            {
                return Err(RpcError::server("replacement transaction underpriced"));
            }
            Some(waiting) => {
                self.by_hash.remove(waiting.tx_hash());
            }
            None if self.by_nonce.len() >= MAX_QUEUED => {
                return Err(RpcError::server("txpool is full"));
            }
            None => {}
        }
        self.by_hash.insert(*transaction.tx_hash(), key);
        self.by_nonce.insert(key, transaction);
        Ok(())
    }

    pub(crate) fn get(&self, hash: B256) -> Option<&Recovered<TxEnvelope>> {
        self.by_nonce.get(self.by_hash.get(&hash)?)
    }

    pub(crate) fn take(&mut self, sender: Address, nonce: u64) -> Option<Recovered<TxEnvelope>> {
        let transaction = self.by_nonce.remove(&(sender, nonce))?;
        self.by_hash.remove(transaction.tx_hash());
        Some(transaction)
    }

    /// The nonce after the last one of an unbroken run that starts at `next_nonce`.
    pub(crate) fn pending_nonce(&self, sender: Address, mut next_nonce: u64) -> u64 {
        while self.by_nonce.contains_key(&(sender, next_nonce)) {
            next_nonce += 1;
        }
        next_nonce
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }
}
