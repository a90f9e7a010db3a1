//! Transactions that were written down before they were sent.

use sqlx::Row;
use sqlx::any::AnyRow;

use super::{Store, StoreError, to_i64, to_u64};

/// One transaction on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransactionRow {
    /// What it is for, for example `task/<id>/add_deliverable`.
    pub id: String,
    /// The wallet's nonce.
    pub nonce: u64,
    /// Signed bytes, `0x…`.
    pub raw: String,
    /// Hash, `0x…`.
    pub hash: String,
}

impl TransactionRow {
    fn read(row: &AnyRow) -> Result<Self, StoreError> {
        Ok(Self {
            id: row.try_get("id")?,
            nonce: to_u64(row.try_get("nonce")?),
            raw: row.try_get("raw")?,
            hash: row.try_get("hash")?,
        })
    }
}

impl Store {
    /// Writes a transaction down, in place of an earlier one with the same purpose.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn put_transaction(
        &self,
        row: &TransactionRow,
        now_ms: u64,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO chain_transaction (id, nonce, raw, hash, created_ms) VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (id) DO UPDATE SET nonce = excluded.nonce, raw = excluded.raw, hash = excluded.hash,
                created_ms = excluded.created_ms",
        )
        .bind(&row.id)
        .bind(to_i64(row.nonce))
        .bind(&row.raw)
        .bind(&row.hash)
        .bind(to_i64(now_ms))
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// The transaction for a purpose, if one is on its way.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn transaction(&self, id: &str) -> Result<Option<TransactionRow>, StoreError> {
        let row = sqlx::query("SELECT * FROM chain_transaction WHERE id = $1")
            .bind(id)
            .fetch_optional(&self.pool)
            .await?;
        row.as_ref().map(TransactionRow::read).transpose()
    }

    /// Every transaction on its way, in nonce order.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn transactions(&self) -> Result<Vec<TransactionRow>, StoreError> {
        let rows = sqlx::query("SELECT * FROM chain_transaction ORDER BY nonce")
            .fetch_all(&self.pool)
            .await?;
        rows.iter().map(TransactionRow::read).collect()
    }

    /// Forgets a transaction that is mined or can never be.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn delete_transaction(&self, id: &str) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM chain_transaction WHERE id = $1")
            .bind(id)
            .execute(&self.pool)
            .await?;
        Ok(())
    }
}
