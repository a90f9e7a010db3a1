//! Billed requests and their settlement, one row each, so that a crash never charges twice.
//!
//! A request is `reserved` while it runs, `open` when it is done and unpaid, `in_settlement` while a settlement that it is
//! part of is on its way, and `settled` when it is paid.

use std::collections::BTreeMap;

use alloy_primitives::{Address, U256};
use sqlx::Row;
use sqlx::any::AnyRow;

use super::tasks::address_text;
use super::{Store, StoreError, to_i64};

/// What a settlement did for its requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SettlementOutcome {
    /// All of them are paid.
    Paid,
    /// This much neuron was paid, less than their sum: the oldest are paid first, the rest is owed on.
    PaidInPart(U256),
    /// Nothing was paid: all of them are owed on.
    Refused,
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

    /// The same request after `covered` of its fee was paid, the prompt's part first.
    fn owes_after(&self, covered: U256) -> Self {
        let of_input = self.input_fee.min(covered);
        let input_fee = self.input_fee - of_input;
        let fee = self.fee.saturating_sub(covered);
        Self {
            fee,
            input_fee,
            output_fee: fee.saturating_sub(input_fee),
            ..self.clone()
        }
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

    /// Ends a settlement: its requests are paid or owed on as the outcome says, and it is not pending any more. A request
    /// that was paid in part stays open with what is left of its fee.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn end_settlement(
        &self,
        user: Address,
        nonce: U256,
        outcome: SettlementOutcome,
    ) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        let rows = sqlx::query(
            "SELECT * FROM usage WHERE user_address = $1 AND settlement_nonce = $2 AND state = 'in_settlement'
             ORDER BY sequence",
        )
        .bind(address_text(user))
        .bind(nonce.to_string())
        .fetch_all(&mut *transaction)
        .await?;
        let mut paid = match outcome {
            SettlementOutcome::Paid => U256::MAX,
            SettlementOutcome::PaidInPart(paid) => paid,
            SettlementOutcome::Refused => U256::ZERO,
        };
        for row in &rows {
            let row = UsageRow::read(row)?;
            let covered = row.fee.min(paid);
            paid -= covered;
            let rest = row.owes_after(covered);
            let is_paid = rest.fee.is_zero();
            let query = if is_paid {
                sqlx::query("UPDATE usage SET state = 'settled' WHERE id = $1").bind(&row.id)
            } else {
                sqlx::query(
                    "UPDATE usage SET state = 'open', settlement_nonce = NULL, input_fee = $1, output_fee = $2, fee = $3
                     WHERE id = $4",
                )
                .bind(rest.input_fee.to_string())
                .bind(rest.output_fee.to_string())
                .bind(rest.fee.to_string())
                .bind(&row.id)
            };
            query.execute(&mut *transaction).await?;
        }
        let state = match outcome {
            SettlementOutcome::Paid => "settled",
            SettlementOutcome::PaidInPart(_) => "partial",
            SettlementOutcome::Refused => "refused",
        };
        sqlx::query("UPDATE settlement SET state = $1 WHERE user_address = $2 AND nonce = $3")
            .bind(state)
            .bind(address_text(user))
            .bind(nonce.to_string())
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(())
    }
}
