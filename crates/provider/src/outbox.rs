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

/// What became of a transaction that was written down.
#[derive(Debug)]
pub(crate) enum Fate {
    /// There is none for this purpose, or it can never be mined.
    None,
    /// It may still be mined.
    OnItsWay,
    /// It was mined, with or without effect.
    Mined(Receipt),
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
        let receipt = self.submit_and_keep(id, call, now_ms).await?;
        self.forget(id).await?;
        Ok(receipt)
    }

    /// As [`Outbox::submit`], but the mined transaction stays written down until the caller has recorded what it did and
    /// calls [`Outbox::forget`]. After a crash in between, [`Outbox::fate`] has the receipt.
    ///
    /// # Errors
    /// As there.
    pub(crate) async fn submit_and_keep(
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
        // Mined in vain, or another transaction took its nonce.
        if let Err(OutboxError::Chain(
            ChainError::TransactionFailed { .. }
            | ChainError::NonceUsed { .. }
            | ChainError::MalformedTransaction(_),
        )) = &outcome
        {
            self.forget(id).await?;
        }
        outcome
    }

    /// Frees a purpose.
    ///
    /// # Errors
    /// [`OutboxError::Store`].
    pub(crate) async fn forget(&self, id: &str) -> Result<(), OutboxError> {
        Ok(self.store.delete_transaction(id).await?)
    }

    /// What became of the transaction for this purpose. One that can never be mined is forgotten.
    ///
    /// # Errors
    /// A failed read; nothing is forgotten then.
    pub(crate) async fn fate(&self, id: &str) -> Result<Fate, OutboxError> {
        let Some(row) = self.store.transaction(id).await? else {
            return Ok(Fate::None);
        };
        let prepared = read(&row)?;
        if let Some(receipt) = self.chain.receipt(prepared.hash).await? {
            return Ok(Fate::Mined(receipt));
        }
        match self.chain.broadcast(&prepared).await {
            Ok(_) => Ok(Fate::OnItsWay),
            // Mined in this moment, or replaced.
            Err(ChainError::NonceUsed { .. }) => match self.chain.receipt(prepared.hash).await? {
                Some(receipt) => Ok(Fate::Mined(receipt)),
                None => {
                    self.forget(id).await?;
                    Ok(Fate::None)
                }
            },
            Err(error) => Err(error.into()),
        }
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
