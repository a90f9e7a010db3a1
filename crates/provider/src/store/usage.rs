//! Billed requests and their settlement, one row each, so that a crash never charges twice.

use std::collections::BTreeMap;

use alloy_primitives::{Address, U256};
use sqlx::Row;
use sqlx::any::AnyRow;

use super::tasks::address_text;
use super::{Store, StoreError, to_i64};

/// The states of a billed request.
pub mod usage_state {
    /// Money is kept back for a request that runs.
    pub const RESERVED: &str = "reserved";
    /// Done and unpaid.
    pub const OPEN: &str = "open";
    /// Part of a settlement on its way.
    pub const IN_SETTLEMENT: &str = "in_settlement";
    /// Paid.
    pub const SETTLED: &str = "settled";
    /// Will never be paid: the balance was smaller.
    pub const WRITTEN_OFF: &str = "written_off";
}

/// A request that begins.
#[derive(Debug, Clone)]
pub struct NewUsage {
    /// Random id; it is also the `ZG-Res-Key`.
    pub id: String,
    /// Who pays.
    pub user: Address,
    /// Hash of the request body.
    pub request_hash: String,
    /// What was asked for.
    pub model: String,
    /// Most neuron that it can cost.
    pub reserved: U256,
    /// The instance that works on it.
    pub owner: String,
}

/// A billed request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageRow {
    /// Its id.
    pub id: String,
    /// Who pays, lower case.
    pub user_address: String,
    /// Hash of the request body.
    pub request_hash: String,
    /// Total in neuron.
    pub fee: U256,
    /// Part for prompt tokens.
    pub input_fee: U256,
    /// Part for completion tokens.
    pub output_fee: U256,
}

/// A settlement on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettlementRow {
    /// Who pays.
    pub user: Address,
    /// Settlement nonce.
    pub nonce: U256,
    /// Sum in neuron.
    pub total_fee: U256,
    /// Digest of the requests, `0x…`.
    pub requests_hash: String,
}

fn amount(row: &AnyRow, column: &'static str) -> Result<U256, StoreError> {
    let text: String = row.try_get(column)?;
    U256::from_str_radix(&text, 10).map_err(|error| StoreError::corrupt("amount", error))
}

impl UsageRow {
    fn read(row: &AnyRow) -> Result<Self, StoreError> {
        Ok(Self {
            id: row.try_get("id")?,
            user_address: row.try_get("user_address")?,
            request_hash: row.try_get("request_hash")?,
            fee: amount(row, "fee")?,
            input_fee: amount(row, "input_fee")?,
            output_fee: amount(row, "output_fee")?,
        })
    }
}

impl Store {
    /// Keeps money back for a request, if `available` covers it together with everything unpaid and kept back before plus
    /// `floor`. Returns what is missing otherwise.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn reserve_usage(
        &self,
        new: &NewUsage,
        available: U256,
        floor: U256,
        now_ms: u64,
    ) -> Result<Option<U256>, StoreError> {
        // One reservation at a time in this process: two that look at the same sum must not both pass.
        let _turn = self.reserving.lock().await;
        let mut transaction = self.begin().await?;
        let rows = sqlx::query(
            "SELECT fee FROM usage WHERE user_address = $1 AND state IN ('reserved', 'open', 'in_settlement')",
        )
        .bind(address_text(new.user))
        .fetch_all(&mut *transaction)
        .await?;
        let mut required = floor;
        for row in &rows {
            required = required.saturating_add(amount(row, "fee")?);
        }
        if available < required {
            return Ok(Some(required - available));
        }
        sqlx::query(
            "INSERT INTO usage (id, sequence, user_address, request_hash, model, prompt_tokens, completion_tokens, input_fee,
                output_fee, fee, state, owner, created_ms)
             VALUES ($1, (SELECT COALESCE(MAX(sequence), 0) + 1 FROM usage), $2, $3, $4, 0, 0, '0', '0', $5, 'reserved', $6, $7)",
        )
        .bind(&new.id)
        .bind(address_text(new.user))
        .bind(&new.request_hash)
        .bind(&new.model)
        .bind(new.reserved.to_string())
        .bind(&new.owner)
        .bind(to_i64(now_ms))
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(None)
    }

    /// Turns a reservation into a bill.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn bill_usage(
        &self,
        id: &str,
        tokens: (u64, u64),
        input_fee: U256,
        output_fee: U256,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "UPDATE usage SET prompt_tokens = $1, completion_tokens = $2, input_fee = $3, output_fee = $4, fee = $5, state = 'open'
             WHERE id = $6 AND state = 'reserved'",
        )
        .bind(to_i64(tokens.0))
        .bind(to_i64(tokens.1))
        .bind(input_fee.to_string())
        .bind(output_fee.to_string())
        .bind(input_fee.saturating_add(output_fee).to_string())
        .bind(id)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Gives a reservation back.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn release_usage(&self, id: &str) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM usage WHERE id = $1 AND state = 'reserved'")
            .bind(id)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Gives back every reservation of an earlier life of this instance: what those requests used is unknown, and nobody
    /// pays for the unknown.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn release_reservations(&self, owner: &str) -> Result<u64, StoreError> {
        let result = sqlx::query("DELETE FROM usage WHERE owner = $1 AND state = 'reserved'")
            .bind(owner)
            .execute(&self.pool)
            .await?;
        Ok(result.rows_affected())
    }

    /// What a user owes, reservations excluded, in neuron.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn unsettled_fee(&self, user: Address) -> Result<U256, StoreError> {
        let rows = sqlx::query(
            "SELECT fee FROM usage WHERE user_address = $1 AND state IN ('open', 'in_settlement')",
        )
        .bind(address_text(user))
        .fetch_all(&self.pool)
        .await?;
        let mut sum = U256::ZERO;
        for row in &rows {
            sum = sum.saturating_add(amount(row, "fee")?);
        }
        Ok(sum)
    }

    /// Unpaid requests by user, in order of creation.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn open_usage(&self) -> Result<BTreeMap<String, Vec<UsageRow>>, StoreError> {
        let rows =
            sqlx::query("SELECT * FROM usage WHERE state = 'open' ORDER BY sequence LIMIT 10000")
                .fetch_all(&self.pool)
                .await?;
        let mut by_user = BTreeMap::<String, Vec<UsageRow>>::new();
        for row in &rows {
            let row = UsageRow::read(row)?;
            by_user
                .entry(row.user_address.clone())
                .or_default()
                .push(row);
        }
        Ok(by_user)
    }

    /// Binds requests to a settlement before it is sent.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn begin_settlement(
        &self,
        settlement: &SettlementRow,
        usage: &[UsageRow],
        now_ms: u64,
    ) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        sqlx::query(
            "INSERT INTO settlement (user_address, nonce, total_fee, requests_hash, state, created_ms)
             VALUES ($1, $2, $3, $4, 'pending', $5)",
        )
        .bind(address_text(settlement.user))
        .bind(settlement.nonce.to_string())
        .bind(settlement.total_fee.to_string())
        .bind(&settlement.requests_hash)
        .bind(to_i64(now_ms))
        .execute(&mut *transaction)
        .await?;
        for row in usage {
            sqlx::query("UPDATE usage SET state = 'in_settlement', settlement_nonce = $1 WHERE id = $2 AND state = 'open'")
                .bind(settlement.nonce.to_string())
                .bind(&row.id)
                .execute(&mut *transaction)
                .await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    /// Settlements whose outcome is not known yet.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn pending_settlements(&self) -> Result<Vec<SettlementRow>, StoreError> {
        let rows =
            sqlx::query("SELECT * FROM settlement WHERE state = 'pending' ORDER BY created_ms")
                .fetch_all(&self.pool)
                .await?;
        rows.iter()
            .map(|row| {
                let user: String = row.try_get("user_address")?;
                Ok(SettlementRow {
                    user: user
                        .parse()
                        .map_err(|error| StoreError::corrupt("address", error))?,
                    nonce: amount(row, "nonce")?,
                    total_fee: amount(row, "total_fee")?,
                    requests_hash: row.try_get("requests_hash")?,
                })
            })
            .collect()
    }

    /// Ends a settlement: its requests become `usage` ([`usage_state`]), and it is not pending any more.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn end_settlement(
        &self,
        user: Address,
        nonce: U256,
        usage: &'static str,
    ) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        let nonce_column = if usage == usage_state::OPEN {
            None
        } else {
            Some(nonce.to_string())
        };
        sqlx::query(
            "UPDATE usage SET state = $1, settlement_nonce = $2
             WHERE user_address = $3 AND settlement_nonce = $4 AND state = 'in_settlement'",
        )
        .bind(usage)
        .bind(nonce_column)
        .bind(address_text(user))
        .bind(nonce.to_string())
        .execute(&mut *transaction)
        .await?;
        sqlx::query("UPDATE settlement SET state = $1 WHERE user_address = $2 AND nonce = $3")
            .bind(usage)
            .bind(address_text(user))
            .bind(nonce.to_string())
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(())
    }
}
