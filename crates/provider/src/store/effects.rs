//! The queue of effects: due times, leases and fences.

use sqlx::any::AnyRow;
use sqlx::{Any, AssertSqlSafe, Row, Transaction};

use super::{Store, StoreError, to_i64, to_u64};

/// What an effect belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Subject {
    /// A fine-tuning task.
    Task,
    /// A deployed adapter.
    Adapter,
}

impl Subject {
    /// The stored word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Task => "task",
            Self::Adapter => "adapter",
        }
    }
}

/// One effect as it stands in the queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EffectRow {
    /// Idempotency key as text.
    pub id: String,
    /// What it belongs to.
    pub subject: Subject,
    /// Id of the task or adapter.
    pub subject_id: String,
    /// Name of the kind.
    pub kind: String,
    /// Number within the subject.
    pub generation: u32,
    /// Not before, Unix milliseconds.
    pub due_ms: u64,
    /// Failures of an effect that does not report.
    pub failures: u32,
    /// Grows with every claim; a result with an older fence is dropped.
    pub fence: u64,
}

impl EffectRow {
    fn read(row: &AnyRow) -> Result<Self, StoreError> {
        let subject: String = row.try_get("subject")?;
        Ok(Self {
            id: row.try_get("id")?,
            subject: match subject.as_str() {
                "task" => Subject::Task,
                "adapter" => Subject::Adapter,
                other => return Err(StoreError::corrupt("effect subject", other)),
            },
            subject_id: row.try_get("subject_id")?,
            kind: row.try_get("kind")?,
            generation: u32::try_from(row.try_get::<i64, _>("generation")?)
                .map_err(|error| StoreError::corrupt("effect generation", error))?,
            due_ms: to_u64(row.try_get("due_ms")?),
            failures: u32::try_from(row.try_get::<i64, _>("failures")?).unwrap_or(u32::MAX),
            fence: to_u64(row.try_get("fence")?),
        })
    }
}

/// The idempotency key of an effect as text.
pub(super) fn effect_id(subject: Subject, subject_id: &str, kind: &str, generation: u32) -> String {
    format!("{}/{subject_id}/{kind}/{generation}", subject.as_str())
}

pub(super) async fn insert(
    transaction: &mut Transaction<'static, Any>,
    subject: Subject,
    subject_id: &str,
    kind: &str,
    generation: u32,
    due_ms: u64,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO effect (id, subject, subject_id, kind, generation, due_ms, failures, lease_owner, lease_expires_ms, fence)
         VALUES ($1, $2, $3, $4, $5, $6, 0, NULL, 0, 0) ON CONFLICT DO NOTHING",
    )
    .bind(effect_id(subject, subject_id, kind, generation))
    .bind(subject.as_str())
    .bind(subject_id)
    .bind(kind)
    .bind(i64::from(generation))
    .bind(to_i64(due_ms))
    .execute(&mut **transaction)
    .await?;
    Ok(())
}

pub(super) async fn of_subject(
    transaction: &mut Transaction<'static, Any>,
    subject: Subject,
    subject_id: &str,
) -> Result<Vec<EffectRow>, StoreError> {
    let rows = sqlx::query("SELECT * FROM effect WHERE subject = $1 AND subject_id = $2")
        .bind(subject.as_str())
        .bind(subject_id)
        .fetch_all(&mut **transaction)
        .await?;
    rows.iter().map(EffectRow::read).collect()
}

pub(super) async fn remove(
    transaction: &mut Transaction<'static, Any>,
    id: &str,
) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM effect WHERE id = $1")
        .bind(id)
        .execute(&mut **transaction)
        .await?;
    Ok(())
}

/// Whether a claim is still the newest one.
pub(super) async fn holds_fence(
    transaction: &mut Transaction<'static, Any>,
    claim: &EffectRow,
) -> Result<bool, StoreError> {
    let row = sqlx::query("SELECT fence FROM effect WHERE id = $1")
        .bind(&claim.id)
        .fetch_optional(&mut **transaction)
        .await?;
    Ok(match row {
        Some(row) => to_u64(row.try_get("fence")?) == claim.fence,
        None => false,
    })
}

impl Store {
    /// Claims the effect of the given kinds that is due longest; `None` when nothing is due.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn claim_effect(
        &self,
        kinds: &[&'static str],
        owner: &str,
        now_ms: u64,
        lease_ms: u64,
    ) -> Result<Option<EffectRow>, StoreError> {
        // The kinds are constants of this program.
        let kinds = kinds
            .iter()
            .map(|kind| format!("'{kind}'"))
            .collect::<Vec<_>>()
            .join(", ");
        let row = sqlx::query(AssertSqlSafe(format!(
            "UPDATE effect SET lease_owner = $1, lease_expires_ms = $2, fence = fence + 1
             WHERE id = (SELECT id FROM effect WHERE kind IN ({kinds}) AND due_ms <= $3 AND lease_expires_ms <= $3
                         ORDER BY due_ms, id LIMIT 1)
               AND lease_expires_ms <= $3
             RETURNING *"
        )))
        .bind(owner)
        .bind(to_i64(now_ms.saturating_add(lease_ms)))
        .bind(to_i64(now_ms))
        .fetch_optional(&self.pool)
        .await?;
        row.as_ref().map(EffectRow::read).transpose()
    }

    /// Extends a lease; false when the effect is void or claimed by another.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn renew_lease(&self, claim: &EffectRow, until_ms: u64) -> Result<bool, StoreError> {
        let row = sqlx::query(
            "UPDATE effect SET lease_expires_ms = $1 WHERE id = $2 AND fence = $3 RETURNING id",
        )
        .bind(to_i64(until_ms))
        .bind(&claim.id)
        .bind(to_i64(claim.fence))
        .fetch_optional(&self.pool)
        .await?;
        Ok(row.is_some())
    }

    /// Gives a lease back, so that the effect can be claimed again at once.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn release_effect(&self, claim: &EffectRow) -> Result<(), StoreError> {
        sqlx::query("UPDATE effect SET lease_owner = NULL, lease_expires_ms = 0 WHERE id = $1 AND fence = $2")
            .bind(&claim.id)
            .bind(to_i64(claim.fence))
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Closes an effect that does not report.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn finish_effect(&self, claim: &EffectRow) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM effect WHERE id = $1 AND fence = $2")
            .bind(&claim.id)
            .bind(to_i64(claim.fence))
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Puts an effect that does not report back into the queue.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn postpone_effect(&self, claim: &EffectRow, due_ms: u64) -> Result<(), StoreError> {
        sqlx::query(
            "UPDATE effect SET lease_owner = NULL, lease_expires_ms = 0, due_ms = $1, failures = failures + 1
             WHERE id = $2 AND fence = $3",
        )
        .bind(to_i64(due_ms))
        .bind(&claim.id)
        .bind(to_i64(claim.fence))
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Gives back every lease of an earlier life of this instance. Returns how many.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn reclaim_leases(&self, owner: &str) -> Result<u64, StoreError> {
        let result = sqlx::query(
            "UPDATE effect SET lease_owner = NULL, lease_expires_ms = 0 WHERE lease_owner = $1",
        )
        .bind(owner)
        .execute(&self.pool)
        .await?;
        Ok(result.rows_affected())
    }

    /// When the next effect is due that nobody works on.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn next_due_ms(&self) -> Result<Option<u64>, StoreError> {
        let row = sqlx::query("SELECT MIN(CASE WHEN due_ms > lease_expires_ms THEN due_ms ELSE lease_expires_ms END) AS due FROM effect")
            .fetch_one(&self.pool)
            .await?;
        Ok(row.try_get::<Option<i64>, _>("due")?.map(to_u64))
    }

    /// Every open effect of a task or adapter.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn open_effects(
        &self,
        subject: Subject,
        subject_id: &str,
    ) -> Result<Vec<EffectRow>, StoreError> {
        let mut transaction = self.begin().await?;
        let rows = of_subject(&mut transaction, subject, subject_id).await?;
        transaction.commit().await?;
        Ok(rows)
    }
}
