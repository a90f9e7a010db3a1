//! Tasks: acceptance, and the one transaction in which an event changes a task.

use alloy_primitives::Address;
use sqlx::any::AnyRow;
use sqlx::{Any, Row, Transaction};
use zerog_lifecycle::effect::EffectKind;
use zerog_lifecycle::task::Notice;
use zerog_lifecycle::{Event, Rejected, Task, Timestamp, Transition};

use super::effects::{self, EffectRow, Subject};
use super::{CONFLICT_RETRIES, Store, StoreError, events, to_i64, to_u64};
use crate::task_log;

/// One task with everything that its user sent.
#[derive(Debug, Clone)]
pub struct TaskRow {
    /// Its life.
    pub task: Task,
    /// Grows with every change.
    pub version: u64,
    /// Order of acceptance.
    pub sequence: u64,
    /// The user's address as spelled in the request.
    pub submitted_address: String,
    /// Decimal nonce.
    pub nonce: String,
    /// Dataset hash as signed.
    pub dataset_hash: String,
    /// Text of the parameter file, verbatim.
    pub training_params: String,
    /// Base model hash as sent.
    pub model_hash: String,
    /// Base model name.
    pub model_name: String,
    /// Wire form of the create-task signature.
    pub signature: String,
    /// The user's uncompressed public key, hexadecimal.
    pub user_public_key: String,
    /// Training progress as JSON.
    pub progress: Option<String>,
    /// The archive key under the vault key, once there is one.
    pub sealed_file_key: Option<String>,
    /// The archive key encrypted to the user, hexadecimal.
    pub encrypted_secret: Option<String>,
    /// Unix milliseconds.
    pub created_ms: u64,
    /// Unix milliseconds.
    pub updated_ms: u64,
}

/// What a new task is made of.
#[derive(Debug, Clone)]
pub struct NewTask {
    /// The accepted task and its first effect.
    pub transition: Transition,
    /// See [`TaskRow`].
    pub submitted_address: String,
    /// See [`TaskRow`].
    pub nonce: String,
    /// See [`TaskRow`].
    pub dataset_hash: String,
    /// See [`TaskRow`].
    pub training_params: String,
    /// See [`TaskRow`].
    pub model_hash: String,
    /// See [`TaskRow`].
    pub model_name: String,
    /// See [`TaskRow`].
    pub signature: String,
    /// See [`TaskRow`].
    pub user_public_key: String,
    /// First lines of the log.
    pub log: Vec<String>,
}

/// What became of an event.
#[derive(Debug)]
pub enum ApplyOutcome {
    /// The task changed. `void` names the effects that nobody waits for any more.
    Applied {
        /// The task afterwards.
        task: Box<Task>,
        /// Effects that were closed.
        void: Vec<String>,
    },
    /// The task refused the event.
    Rejected(Rejected),
    /// The claim behind the event is not the newest one.
    Fenced,
    /// There is no such task.
    Missing,
}

impl TaskRow {
    fn read(row: &AnyRow) -> Result<Self, StoreError> {
        let machine: String = row.try_get("machine")?;
        Ok(Self {
            task: serde_json::from_str(&machine)
                .map_err(|error| StoreError::corrupt("task", error))?,
            version: to_u64(row.try_get("version")?),
            sequence: to_u64(row.try_get("sequence")?),
            submitted_address: row.try_get("submitted_address")?,
            nonce: row.try_get("nonce")?,
            dataset_hash: row.try_get("dataset_hash")?,
            training_params: row.try_get("training_params")?,
            model_hash: row.try_get("model_hash")?,
            model_name: row.try_get("model_name")?,
            signature: row.try_get("signature")?,
            user_public_key: row.try_get("user_public_key")?,
            progress: row.try_get("progress")?,
            sealed_file_key: row.try_get("sealed_file_key")?,
            encrypted_secret: row.try_get("encrypted_secret")?,
            created_ms: to_u64(row.try_get("created_ms")?),
            updated_ms: to_u64(row.try_get("updated_ms")?),
        })
    }

    /// The id as text.
    #[must_use]
    pub fn id(&self) -> String {
        self.task.id.to_string()
    }
}

/// Addresses are compared as bytes, so they are stored in one spelling.
pub(super) fn address_text(address: Address) -> String {
    format!("{address:#x}")
}

impl Store {
    /// Accepts a task: its row, its first effect and the first lines of its log, all or nothing.
    ///
    /// # Errors
    /// [`StoreError::OpenTask`] when the user has an unfinished one.
    pub async fn insert_task(&self, new: &NewTask, now: Timestamp) -> Result<(), StoreError> {
        let mut attempt = 0;
        loop {
            match self.try_insert_task(new, now).await {
                Err(error) if error.is_unique_violation() => {
                    if self.open_task(new.transition.task.user).await?.is_some() {
                        return Err(StoreError::OpenTask);
                    }
                    attempt += 1;
                    if attempt > CONFLICT_RETRIES {
                        return Err(StoreError::Conflict);
                    }
                }
                Err(error) if error.is_conflict() && attempt < CONFLICT_RETRIES => attempt += 1,
                other => return other,
            }
        }
    }

    async fn try_insert_task(&self, new: &NewTask, now: Timestamp) -> Result<(), StoreError> {
        let task = &new.transition.task;
        let id = task.id.to_string();
        let machine = machine_text(task)?;
        let mut transaction = self.begin().await?;
        sqlx::query(
            "INSERT INTO task (id, user_address, state, is_ended, machine, version, sequence, submitted_address, nonce,
                dataset_hash, training_params, model_hash, model_name, signature, user_public_key, created_ms, updated_ms)
             VALUES ($1, $2, $3, 0, $4, 1, (SELECT COALESCE(MAX(sequence), 0) + 1 FROM task), $5, $6, $7, $8, $9, $10, $11,
                $12, $13, $13)",
        )
        .bind(&id)
        .bind(address_text(task.user))
        .bind(task.state.as_str())
        .bind(machine)
        .bind(&new.submitted_address)
        .bind(&new.nonce)
        .bind(&new.dataset_hash)
        .bind(&new.training_params)
        .bind(&new.model_hash)
        .bind(&new.model_name)
        .bind(&new.signature)
        .bind(&new.user_public_key)
        .bind(to_i64(now.0))
        .execute(&mut *transaction)
        .await?;
        for effect in &new.transition.effects {
            let kind = effect.key.kind.as_str();
            effects::insert(
                &mut transaction,
                Subject::Task,
                &id,
                kind,
                effect.key.generation,
                effect.due.0,
            )
            .await?;
        }
        let mut lines = vec![("state", task.state.as_str().to_owned())];
        lines.extend(new.log.iter().map(|line| ("log", line.clone())));
        events::append(&mut transaction, &id, now.0, &lines).await?;
        transaction.commit().await?;
        Ok(())
    }

    /// Applies an event to a task in one transaction: state, effects, lines for the user, and the end of the effect that
    /// caused it.
    ///
    /// `claim` is the effect that the event is the outcome of; its fence must be the newest.
    ///
    /// # Errors
    /// [`StoreError::Database`]; [`StoreError::Conflict`] when others were faster too often.
    pub async fn apply_event(
        &self,
        task_id: &str,
        event: &Event,
        claim: Option<&EffectRow>,
        now: Timestamp,
    ) -> Result<ApplyOutcome, StoreError> {
        let mut attempt = 0;
        loop {
            match self.try_apply(task_id, event, claim, now).await {
                Err(error) if error.is_conflict() && attempt < CONFLICT_RETRIES => attempt += 1,
                other => return other,
            }
        }
    }

    async fn try_apply(
        &self,
        task_id: &str,
        event: &Event,
        claim: Option<&EffectRow>,
        now: Timestamp,
    ) -> Result<ApplyOutcome, StoreError> {
        let mut transaction = self.begin().await?;
        if let Some(claim) = claim
            && !effects::holds_fence(&mut transaction, claim).await?
        {
            return Ok(ApplyOutcome::Fenced);
        }
        let row = sqlx::query("SELECT * FROM task WHERE id = $1")
            .bind(task_id)
            .fetch_optional(&mut *transaction)
            .await?;
        let Some(row) = row else {
            return Ok(ApplyOutcome::Missing);
        };
        let row = TaskRow::read(&row)?;
        let next = match zerog_lifecycle::apply(&row.task, event, now) {
            Ok(next) => next,
            Err(rejected) => return Ok(ApplyOutcome::Rejected(rejected)),
        };
        write_task(&mut transaction, &row, &next.task, now).await?;
        for effect in &next.effects {
            let kind = effect.key.kind.as_str();
            effects::insert(
                &mut transaction,
                Subject::Task,
                task_id,
                kind,
                effect.key.generation,
                effect.due.0,
            )
            .await?;
        }
        let mut void = Vec::new();
        for open in effects::of_subject(&mut transaction, Subject::Task, task_id).await? {
            let reports = open
                .kind
                .parse::<EffectKind>()
                .is_ok_and(EffectKind::reports);
            if reports && !waits_for(&next.task, &open) {
                effects::remove(&mut transaction, &open.id).await?;
                void.push(open.id);
            }
        }
        let mut lines = Vec::new();
        for notice in &next.notices {
            if let Notice::State { to, .. } = notice {
                lines.push(("state", to.as_str().to_owned()));
            }
            lines.extend(
                task_log::lines(&row.task, notice)
                    .into_iter()
                    .map(|line| ("log", line)),
            );
        }
        events::append(&mut transaction, task_id, now.0, &lines).await?;
        transaction.commit().await?;
        Ok(ApplyOutcome::Applied {
            task: Box::new(next.task),
            void,
        })
    }

    /// One task.
    ///
    /// # Errors
    /// [`StoreError::Database`], [`StoreError::Corrupt`].
    pub async fn task(&self, task_id: &str) -> Result<Option<TaskRow>, StoreError> {
        let row = sqlx::query("SELECT * FROM task WHERE id = $1")
            .bind(task_id)
            .fetch_optional(&self.pool)
            .await?;
        row.as_ref().map(TaskRow::read).transpose()
    }

    /// The task that a user created with this nonce, if there is one.
    ///
    /// # Errors
    /// As [`Store::task`].
    pub async fn task_by_nonce(
        &self,
        user: Address,
        nonce: &str,
    ) -> Result<Option<TaskRow>, StoreError> {
        let row = sqlx::query("SELECT * FROM task WHERE user_address = $1 AND nonce = $2 LIMIT 1")
            .bind(address_text(user))
            .bind(nonce)
            .fetch_optional(&self.pool)
            .await?;
        row.as_ref().map(TaskRow::read).transpose()
    }

    /// Tasks of a user, newest first, at most `limit`.
    ///
    /// # Errors
    /// As [`Store::task`].
    pub async fn tasks_of(&self, user: Address, limit: u64) -> Result<Vec<TaskRow>, StoreError> {
        let rows = sqlx::query(
            "SELECT * FROM task WHERE user_address = $1 ORDER BY sequence DESC LIMIT $2",
        )
        .bind(address_text(user))
        .bind(to_i64(limit))
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(TaskRow::read).collect()
    }

    /// The unfinished task of a user, if there is one.
    ///
    /// # Errors
    /// As [`Store::task`].
    pub async fn open_task(&self, user: Address) -> Result<Option<TaskRow>, StoreError> {
        let row = sqlx::query("SELECT * FROM task WHERE user_address = $1 AND is_ended = 0")
            .bind(address_text(user))
            .fetch_optional(&self.pool)
            .await?;
        row.as_ref().map(TaskRow::read).transpose()
    }

    /// Tasks in one state.
    ///
    /// # Errors
    /// As [`Store::task`].
    pub async fn tasks_in(
        &self,
        state: zerog_protocol::task::TaskState,
    ) -> Result<Vec<TaskRow>, StoreError> {
        let rows = sqlx::query("SELECT * FROM task WHERE state = $1 ORDER BY sequence")
            .bind(state.as_str())
            .fetch_all(&self.pool)
            .await?;
        rows.iter().map(TaskRow::read).collect()
    }

    /// The newest tasks on a base model whose training is done, at most `limit`.
    ///
    /// # Errors
    /// As [`Store::task`].
    pub async fn trained_tasks(
        &self,
        model_name: &str,
        limit: u64,
    ) -> Result<Vec<TaskRow>, StoreError> {
        let rows = sqlx::query(
            "SELECT * FROM task WHERE model_name = $1
             AND state IN ('Trained', 'Delivering', 'Delivered', 'UserAcknowledged', 'Finished')
             ORDER BY sequence DESC LIMIT $2",
        )
        .bind(model_name)
        .bind(to_i64(limit))
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(TaskRow::read).collect()
    }

    /// Tasks that wait or train, of all users.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn pending_tasks(&self) -> Result<u64, StoreError> {
        self.pending_before(i64::MAX as u64).await
    }

    /// Pending tasks that were accepted before the given one.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn pending_before(&self, sequence: u64) -> Result<u64, StoreError> {
        let row = sqlx::query(
            "SELECT COUNT(*) AS count FROM task
             WHERE state IN ('Init', 'SettingUp', 'SetUp', 'Training') AND sequence < $1",
        )
        .bind(to_i64(sequence))
        .fetch_one(&self.pool)
        .await?;
        Ok(to_u64(row.try_get("count")?))
    }

    /// Whether an unfinished task uses a dataset.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn is_dataset_in_use(&self, user: &str, hash: &str) -> Result<bool, StoreError> {
        let row = sqlx::query(
            "SELECT id FROM task WHERE user_address = $1 AND LOWER(dataset_hash) = $2 AND is_ended = 0 LIMIT 1",
        )
        .bind(user)
        .bind(hash)
        .fetch_optional(&self.pool)
        .await?;
        Ok(row.is_some())
    }

    /// Stores training progress as JSON.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn set_progress(&self, task_id: &str, progress: &str) -> Result<(), StoreError> {
        sqlx::query("UPDATE task SET progress = $1 WHERE id = $2")
            .bind(progress)
            .bind(task_id)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Stores the archive key, sealed and encrypted to the user, unless there is one already. Returns the row's values,
    /// which are the ones that count.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn set_archive_key(
        &self,
        task_id: &str,
        sealed_file_key: &str,
        encrypted_secret: &str,
    ) -> Result<(String, String), StoreError> {
        sqlx::query("UPDATE task SET sealed_file_key = $1, encrypted_secret = $2 WHERE id = $3 AND sealed_file_key IS NULL")
            .bind(sealed_file_key)
            .bind(encrypted_secret)
            .bind(task_id)
            .execute(&self.pool)
            .await?;
        let row = sqlx::query("SELECT sealed_file_key, encrypted_secret FROM task WHERE id = $1")
            .bind(task_id)
            .fetch_one(&self.pool)
            .await?;
        Ok((
            row.try_get("sealed_file_key")?,
            row.try_get("encrypted_secret")?,
        ))
    }
}

fn machine_text(task: &Task) -> Result<String, StoreError> {
    serde_json::to_string(task).map_err(|error| StoreError::corrupt("task", error))
}

fn waits_for(task: &Task, open: &EffectRow) -> bool {
    open.kind.parse::<EffectKind>().is_ok_and(|kind| {
        task.waits_for(zerog_lifecycle::EffectKey {
            kind,
            generation: open.generation,
        })
    })
}

async fn write_task(
    transaction: &mut Transaction<'static, Any>,
    row: &TaskRow,
    next: &Task,
    now: Timestamp,
) -> Result<(), StoreError> {
    let written = sqlx::query(
        "UPDATE task SET state = $1, is_ended = $2, machine = $3, version = version + 1, updated_ms = $4
         WHERE id = $5 AND version = $6 RETURNING id",
    )
    .bind(next.state.as_str())
    .bind(i64::from(next.is_ended()))
    .bind(machine_text(next)?)
    .bind(to_i64(now.0))
    .bind(next.id.to_string())
    .bind(to_i64(row.version))
    .fetch_optional(&mut **transaction)
    .await?;
    if written.is_none() {
        return Err(StoreError::Conflict);
    }
    Ok(())
}
