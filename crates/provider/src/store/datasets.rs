//! Datasets at rest: which sealed file holds which user's data, and its key under the vault key.

use alloy_primitives::Address;
use sqlx::Row;
use sqlx::any::AnyRow;

use super::tasks::address_text;
use super::{Store, StoreError, to_i64, to_u64};

/// One stored dataset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatasetRow {
    /// Its owner, lower case.
    pub user_address: String,
    /// Hash as tasks name it, `0x` lower case.
    pub hash: String,
    /// Name of the sealed file in the datasets folder.
    pub file: String,
    /// The file's key under the vault key.
    pub sealed_key: String,
    /// Size of the plaintext.
    pub bytes: u64,
    /// Unix milliseconds.
    pub created_ms: u64,
}

impl DatasetRow {
    fn read(row: &AnyRow) -> Result<Self, StoreError> {
        Ok(Self {
            user_address: row.try_get("user_address")?,
            hash: row.try_get("hash")?,
            file: row.try_get("file")?,
            sealed_key: row.try_get("sealed_key")?,
            bytes: to_u64(row.try_get("bytes")?),
            created_ms: to_u64(row.try_get("created_ms")?),
        })
    }
}

impl Store {
    /// Stores a dataset unless the user has it already; true when it is new.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn insert_dataset(&self, row: &DatasetRow) -> Result<bool, StoreError> {
        let inserted = sqlx::query(
            "INSERT INTO dataset (user_address, hash, file, sealed_key, bytes, created_ms, used_ms)
             VALUES ($1, $2, $3, $4, $5, $6, $6) ON CONFLICT DO NOTHING RETURNING hash",
        )
        .bind(&row.user_address)
        .bind(&row.hash)
        .bind(&row.file)
        .bind(&row.sealed_key)
        .bind(to_i64(row.bytes))
        .bind(to_i64(row.created_ms))
        .fetch_optional(&self.pool)
        .await?;
        Ok(inserted.is_some())
    }

    /// A user's dataset by its hash in any case.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn dataset(
        &self,
        user: Address,
        hash: &str,
    ) -> Result<Option<DatasetRow>, StoreError> {
        let row = sqlx::query("SELECT * FROM dataset WHERE user_address = $1 AND hash = $2")
            .bind(address_text(user))
            .bind(hash.to_lowercase())
            .fetch_optional(&self.pool)
            .await?;
        row.as_ref().map(DatasetRow::read).transpose()
    }

    /// Bytes of all datasets of a user.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn dataset_bytes(&self, user: Address) -> Result<u64, StoreError> {
        let rows = sqlx::query("SELECT bytes FROM dataset WHERE user_address = $1")
            .bind(address_text(user))
            .fetch_all(&self.pool)
            .await?;
        let mut sum = 0u64;
        for row in rows {
            sum = sum.saturating_add(to_u64(row.try_get("bytes")?));
        }
        Ok(sum)
    }

    /// Notes that a dataset was asked for, which keeps it longer.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn touch_dataset(&self, row: &DatasetRow, now_ms: u64) -> Result<(), StoreError> {
        sqlx::query("UPDATE dataset SET used_ms = $1 WHERE user_address = $2 AND hash = $3")
            .bind(to_i64(now_ms))
            .bind(&row.user_address)
            .bind(&row.hash)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Datasets that nobody asked for since the given time.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn stale_datasets(&self, before_ms: u64) -> Result<Vec<DatasetRow>, StoreError> {
        let rows = sqlx::query("SELECT * FROM dataset WHERE used_ms < $1")
            .bind(to_i64(before_ms))
            .fetch_all(&self.pool)
            .await?;
        rows.iter().map(DatasetRow::read).collect()
    }

    /// Removes a dataset's row.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn delete_dataset(&self, row: &DatasetRow) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM dataset WHERE user_address = $1 AND hash = $2")
            .bind(&row.user_address)
            .bind(&row.hash)
            .execute(&self.pool)
            .await?;
        Ok(())
    }
}
