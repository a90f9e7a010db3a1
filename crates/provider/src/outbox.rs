//! Transactions that are written down before they are sent, so that a restart sends the same one again instead of a
//! second one.

use alloy_primitives::{Bytes, hex};
use zerog_chain::{ChainClient, ChainError, ContractCall, PreparedTransaction, Receipt};

use crate::store::{Store, StoreError, TransactionRow};

/// Why a transaction had no effect, or has none yet.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OutboxError {
    /// The chain or a contract refused, or cannot be reached.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Sends the wallet's transactions, each for one purpose.
#[derive(Debug, Clone)]
pub(crate) struct Outbox {
    chain: ChainClient,
    store: Store,
}

impl Outbox {
    /// An outbox for a client with a wallet.
    #[must_use]
    pub(crate) fn new(chain: ChainClient, store: Store) -> Self {
        Self { chain, store }
    }

    /// Sends again what an earlier life of this process had written down. Nothing is waited for.
    ///
    /// # Errors
    /// [`OutboxError::Store`]; a chain that is down is only logged, since every purpose is tried again anyway.
    pub(crate) async fn resume(&self) -> Result<(), OutboxError> {
        let mut stored = Vec::new();
        for row in self.store.transactions().await? {
            match read(&row) {
                Ok(prepared) => stored.push((row, prepared)),
                Err(error) => {
                    tracing::error!(transaction.id = row.id, %error, "a stored transaction cannot be read");
                    self.store.delete_transaction(&row.id).await?;
                }
            }
        }
        if stored.is_empty() {
            return Ok(());
        }
        let prepared: Vec<_> = stored
            .iter()
            .map(|(_, prepared)| prepared.clone())
            .collect();
        self.chain.resume(&prepared).await?;
        for (row, prepared) in stored {
            tracing::info!(transaction.id = row.id, transaction.hash = %prepared.hash, "sending a stored transaction again");
            if let Err(error) = self.chain.broadcast(&prepared).await {
                tracing::warn!(transaction.id = row.id, %error, "a stored transaction was not taken");
            }
        }
        Ok(())
    }

    /// Carries out a call once: prepares, writes down, sends, waits until it is mined. A transaction for the same purpose
    /// that is on its way already is waited for instead of `call`.
    ///
    /// The caller has looked whether the purpose is fulfilled before it calls.
    ///
    /// # Errors
    /// [`OutboxError::Chain`]. After a transaction that can never have an effect the purpose is free again.
    pub(crate) async fn submit(
        &self,
        id: &str,
        call: ContractCall,
        now_ms: u64,
    ) -> Result<Receipt, OutboxError> {
        let prepared = match self.store.transaction(id).await? {
            Some(row) => read(&row)?,
            None => {
                let prepared = self.chain.prepare(call).await?;
                if let Err(error) = self.write_down(id, &prepared, now_ms).await {
                    self.chain.release(&prepared).await?;
                    return Err(error.into());
                }
                prepared
            }
        };
        let outcome = self.see_through(id, prepared, now_ms).await;
        match &outcome {
            // Mined, in vain or not; or another transaction took its nonce.
            Ok(_)
            | Err(OutboxError::Chain(
                ChainError::TransactionFailed { .. }
                | ChainError::NonceUsed { .. }
                | ChainError::MalformedTransaction(_),
            )) => self.store.delete_transaction(id).await?,
            Err(_) => {}
        }
        outcome
    }

    /// Whether a transaction for this purpose may still be mined. One that was, or never can be, is forgotten.
    ///
    /// # Errors
    /// A failed read; nothing is forgotten then.
    pub(crate) async fn is_on_its_way(&self, id: &str) -> Result<bool, OutboxError> {
        let Some(row) = self.store.transaction(id).await? else {
            return Ok(false);
        };
        let prepared = read(&row)?;
        let is_over = match self.chain.receipt(prepared.hash).await? {
            Some(_) => true,
            None => match self.chain.broadcast(&prepared).await {
                Ok(_) => false,
                // Mined in this moment, or replaced: either way these bytes are history.
                Err(ChainError::NonceUsed { .. }) => true,
                Err(error) => return Err(error.into()),
            },
        };
        if is_over {
            self.store.delete_transaction(id).await?;
        }
        Ok(!is_over)
    }

    async fn see_through(
        &self,
        id: &str,
        first: PreparedTransaction,
        now_ms: u64,
    ) -> Result<Receipt, OutboxError> {
        let mut prepared = first;
        // Mined before this process started: the nonce is used, by this very transaction.
        if let Some(receipt) = self.chain.receipt(prepared.hash).await?
            && receipt.succeeded
        {
            return Ok(receipt);
        }
        for _ in 0..8 {
            match self.chain.broadcast(&prepared).await {
                Ok(_) => {}
                Err(ChainError::Underpriced { .. }) => {
                    prepared = self.reprice(id, &prepared, now_ms).await?;
                    continue;
                }
                Err(ChainError::NonceUsed { nonce, hash }) => {
                    return match self.chain.receipt(prepared.hash).await? {
                        Some(receipt) if receipt.succeeded => Ok(receipt),
                        _ => Err(ChainError::NonceUsed { nonce, hash }.into()),
                    };
                }
                Err(error) => return Err(error.into()),
            }
            match self.chain.wait(prepared.hash).await {
                Err(ChainError::ReceiptTimeout { .. }) => {
                    prepared = self.reprice(id, &prepared, now_ms).await?
                }
                other => return Ok(other?),
            }
        }
        let receipt = self.chain.wait(prepared.hash).await?;
        Ok(receipt)
    }

    /// The same transaction at a higher price, written down in place of the first.
    async fn reprice(
        &self,
        id: &str,
        prepared: &PreparedTransaction,
        now_ms: u64,
    ) -> Result<PreparedTransaction, OutboxError> {
        let raised = self.chain.reprice(prepared).await?;
        self.write_down(id, &raised, now_ms).await?;
        Ok(raised)
    }

    async fn write_down(
        &self,
        id: &str,
        prepared: &PreparedTransaction,
        now_ms: u64,
    ) -> Result<(), StoreError> {
        let row = TransactionRow {
            id: id.to_owned(),
            nonce: prepared.nonce,
            raw: hex::encode_prefixed(&prepared.raw),
            hash: prepared.hash.to_string(),
        };
        self.store.put_transaction(&row, now_ms).await
    }
}

fn read(row: &TransactionRow) -> Result<PreparedTransaction, ChainError> {
    let raw = hex::decode(&row.raw)
        .map_err(|error| ChainError::MalformedTransaction(error.to_string()))?;
    PreparedTransaction::from_raw(Bytes::from(raw))
}
