//! Deployed adapters.

use alloy_primitives::Address;
use sqlx::any::AnyRow;
use sqlx::{Any, Row, Transaction};
use zerog_lifecycle::adapter::{self, Adapter, AdapterEvent, AdapterTransition};
use zerog_lifecycle::{AdapterEffectKind, Timestamp};

use super::effects::{self, EffectRow, Subject};
use super::tasks::address_text;
use super::{CONFLICT_RETRIES, Store, StoreError, to_i64, to_u64};

/// One adapter.
#[derive(Debug, Clone)]
pub struct AdapterRow {
    /// Internal id; files are named after it.
    pub id: String,
    /// Name in chat requests.
    pub name: String,
    /// Owner, lower case.
    pub user_address: String,
    /// Task that made it.
    pub task_id: String,
    /// Who trained it, lower case.
    pub fine_tuning_provider: String,
    /// Name of the base model.
    pub base_model: String,
    /// Root of the encrypted archive, `0x` lower case.
    pub storage_root: String,
    /// Who signed the archive, lower case.
    pub signer: String,
    /// The archive key under the vault key.
    pub sealed_key: String,
    /// Its life.
    pub machine: Adapter,
    /// Grows with every change.
    pub version: u64,
    /// Program and base weights for which the canary has passed.
    pub canary_build: Option<String>,
    /// Unix milliseconds.
    pub created_ms: u64,
    /// Unix milliseconds.
    pub updated_ms: u64,
}

/// What a new adapter is made of.
#[derive(Debug, Clone)]
pub struct NewAdapter {
    /// See [`AdapterRow`].
    pub id: String,
    /// Wished name; a number is appended when it is taken.
    pub name: String,
    /// Owner.
    pub user: Address,
    /// See [`AdapterRow`].
    pub task_id: String,
    /// Who trained it.
    pub fine_tuning_provider: Address,
    /// See [`AdapterRow`].
    pub base_model: String,
    /// See [`AdapterRow`].
    pub storage_root: String,
    /// Who signed the archive.
    pub signer: Address,
    /// See [`AdapterRow`].
    pub sealed_key: String,
}

impl AdapterRow {
    fn read(row: &AnyRow) -> Result<Self, StoreError> {
        let machine: String = row.try_get("machine")?;
        Ok(Self {
            id: row.try_get("id")?,
            name: row.try_get("name")?,
            user_address: row.try_get("user_address")?,
            task_id: row.try_get("task_id")?,
            fine_tuning_provider: row.try_get("fine_tuning_provider")?,
            base_model: row.try_get("base_model")?,
            storage_root: row.try_get("storage_root")?,
            signer: row.try_get("signer")?,
            sealed_key: row.try_get("sealed_key")?,
            machine: serde_json::from_str(&machine)
                .map_err(|error| StoreError::corrupt("adapter", error))?,
            version: to_u64(row.try_get("version")?),
            canary_build: row.try_get("canary_build")?,
            created_ms: to_u64(row.try_get("created_ms")?),
            updated_ms: to_u64(row.try_get("updated_ms")?),
        })
    }
}

impl Store {
    /// Stores an adapter unless it is there already, under the first free name. Returns the row that counts.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn insert_adapter(
        &self,
        new: &NewAdapter,
        now: Timestamp,
    ) -> Result<AdapterRow, StoreError> {
        let machine = Adapter::announced();
        let text = serde_json::to_string(&machine)
            .map_err(|error| StoreError::corrupt("adapter", error))?;
        for suffix in 1..100u32 {
            if let Some(row) = self.adapter(&new.id).await? {
                return Ok(row);
            }
            let name = if suffix == 1 {
                new.name.clone()
            } else {
                format!("{}-{suffix}", new.name)
            };
            sqlx::query(
                "INSERT INTO adapter (id, name, user_address, task_id, fine_tuning_provider, base_model, storage_root, signer,
                    sealed_key, state, machine, version, created_ms, updated_ms)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, 1, $12, $12) ON CONFLICT DO NOTHING",
            )
            .bind(&new.id)
            .bind(name)
            .bind(address_text(new.user))
            .bind(&new.task_id)
            .bind(address_text(new.fine_tuning_provider))
            .bind(&new.base_model)
            .bind(new.storage_root.to_lowercase())
            .bind(address_text(new.signer))
            .bind(&new.sealed_key)
            .bind(machine.state.as_str())
            .bind(&text)
            .bind(to_i64(now.0))
            .execute(&self.pool)
            .await?;
        }
        Err(StoreError::Conflict)
    }

    /// Replaces the key and origin of an adapter: a hand-over that came again.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn update_adapter_key(
        &self,
        id: &str,
        sealed_key: &str,
        storage_root: &str,
    ) -> Result<(), StoreError> {
        sqlx::query("UPDATE adapter SET sealed_key = $1, storage_root = $2 WHERE id = $3")
            .bind(sealed_key)
            .bind(storage_root.to_lowercase())
            .bind(id)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// One adapter.
    ///
    /// # Errors
    /// [`StoreError::Database`], [`StoreError::Corrupt`].
    pub async fn adapter(&self, id: &str) -> Result<Option<AdapterRow>, StoreError> {
        let row = sqlx::query("SELECT * FROM adapter WHERE id = $1")
            .bind(id)
            .fetch_optional(&self.pool)
            .await?;
        row.as_ref().map(AdapterRow::read).transpose()
    }

    /// Adapters of a user, newest first.
    ///
    /// # Errors
    /// As [`Store::adapter`].
    pub async fn adapters_of(&self, user: Address) -> Result<Vec<AdapterRow>, StoreError> {
        let rows = sqlx::query(
            "SELECT * FROM adapter WHERE user_address = $1 ORDER BY created_ms DESC, id LIMIT 1000",
        )
        .bind(address_text(user))
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(AdapterRow::read).collect()
    }

    /// Adapters that others share with a user, newest first.
    ///
    /// # Errors
    /// As [`Store::adapter`].
    pub async fn adapters_shared_with(&self, user: Address) -> Result<Vec<AdapterRow>, StoreError> {
        let rows = sqlx::query(
            "SELECT * FROM adapter WHERE id IN (SELECT adapter_id FROM adapter_share WHERE user_address = $1)
             ORDER BY created_ms DESC, id LIMIT 1000",
        )
        .bind(address_text(user))
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(AdapterRow::read).collect()
    }

    /// Lets somebody use an adapter. Sharing twice changes nothing.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn share_adapter(
        &self,
        id: &str,
        user: Address,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO adapter_share (adapter_id, user_address, created_ms) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
        )
        .bind(id)
        .bind(address_text(user))
        .bind(to_i64(now.0))
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Ends the sharing of an adapter with somebody.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn unshare_adapter(&self, id: &str, user: Address) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM adapter_share WHERE adapter_id = $1 AND user_address = $2")
            .bind(id)
            .bind(address_text(user))
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Addresses that may use an adapter besides its owner, lower case, in the order in which they were added.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn shares_of(&self, id: &str) -> Result<Vec<String>, StoreError> {
        let rows = sqlx::query(
            "SELECT user_address FROM adapter_share WHERE adapter_id = $1 ORDER BY created_ms, user_address",
        )
        .bind(id)
        .fetch_all(&self.pool)
        .await?;
        rows.iter()
            .map(|row| Ok(row.try_get("user_address")?))
            .collect()
    }

    /// The adapter with this name or task id, whoever owns it.
    ///
    /// # Errors
    /// As [`Store::adapter`].
    pub async fn adapter_named(
        &self,
        name_or_task: &str,
    ) -> Result<Option<AdapterRow>, StoreError> {
        let row = sqlx::query(
            "SELECT * FROM adapter WHERE name = $1 OR task_id = $1 ORDER BY created_ms LIMIT 1",
        )
        .bind(name_or_task)
        .fetch_optional(&self.pool)
        .await?;
        row.as_ref().map(AdapterRow::read).transpose()
    }

    /// Adapters in one state.
    ///
    /// # Errors
    /// As [`Store::adapter`].
    pub async fn adapters_in(
        &self,
        state: zerog_protocol::adapter::AdapterState,
    ) -> Result<Vec<AdapterRow>, StoreError> {
        let rows = sqlx::query("SELECT * FROM adapter WHERE state = $1")
            .bind(state.as_str())
            .fetch_all(&self.pool)
            .await?;
        rows.iter().map(AdapterRow::read).collect()
    }

    /// Notes for which program and base weights the canary has passed.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn set_canary_build(&self, id: &str, build: &str) -> Result<(), StoreError> {
        sqlx::query("UPDATE adapter SET canary_build = $1 WHERE id = $2")
            .bind(build)
            .bind(id)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Applies an event to an adapter in one transaction, as [`Store::apply_event`] does to a task. `None` when the
    /// adapter refused it or the claim is old.
    ///
    /// # Errors
    /// As [`Store::apply_event`].
    pub async fn apply_adapter_event(
        &self,
        id: &str,
        event: &AdapterEvent,
        claim: Option<&EffectRow>,
        now: Timestamp,
    ) -> Result<Option<Adapter>, StoreError> {
        let mut attempt = 0;
        loop {
            match self.try_apply_adapter(id, event, claim, now).await {
                Err(error) if error.is_conflict() && attempt < CONFLICT_RETRIES => attempt += 1,
                other => return other,
            }
        }
    }

    async fn try_apply_adapter(
        &self,
        id: &str,
        event: &AdapterEvent,
        claim: Option<&EffectRow>,
        now: Timestamp,
    ) -> Result<Option<Adapter>, StoreError> {
        let mut transaction = self.begin().await?;
        if let Some(claim) = claim
            && !effects::holds_fence(&mut transaction, claim).await?
        {
            return Ok(None);
        }
        let row = sqlx::query("SELECT * FROM adapter WHERE id = $1")
            .bind(id)
            .fetch_optional(&mut *transaction)
            .await?;
        let Some(row) = row.as_ref().map(AdapterRow::read).transpose()? else {
            return Ok(None);
        };
        let Ok(next) = adapter::apply(&row.machine, event, now) else {
            return Ok(None);
        };
        write_adapter(&mut transaction, &row, &next, now).await?;
        transaction.commit().await?;
        Ok(Some(next.adapter))
    }
}

async fn write_adapter(
    transaction: &mut Transaction<'static, Any>,
    row: &AdapterRow,
    next: &AdapterTransition,
    now: Timestamp,
) -> Result<(), StoreError> {
    let machine = serde_json::to_string(&next.adapter)
        .map_err(|error| StoreError::corrupt("adapter", error))?;
    let written = sqlx::query(
        "UPDATE adapter SET state = $1, machine = $2, version = version + 1, updated_ms = $3
         WHERE id = $4 AND version = $5 RETURNING id",
    )
    .bind(next.adapter.state.as_str())
    .bind(machine)
    .bind(to_i64(now.0))
    .bind(&row.id)
    .bind(to_i64(row.version))
    .fetch_optional(&mut **transaction)
    .await?;
    if written.is_none() {
        return Err(StoreError::Conflict);
    }
    for effect in &next.effects {
        let kind = effect.key.kind.as_str();
        effects::insert(
            transaction,
            Subject::Adapter,
            &row.id,
            kind,
            effect.key.generation,
            effect.due.0,
        )
        .await?;
    }
    for open in effects::of_subject(transaction, Subject::Adapter, &row.id).await? {
        let is_current = AdapterEffectKind::parse(&open.kind).is_some_and(|kind| {
            next.adapter.waits_for(adapter::AdapterEffectKey {
                kind,
                generation: open.generation,
            })
        });
        if !is_current {
            effects::remove(transaction, &open.id).await?;
        }
    }
    Ok(())
}
