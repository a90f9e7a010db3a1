//! What a user can read about a task, append-only.

use sqlx::any::AnyRow;
use sqlx::{Any, Row, Transaction};

use super::{Store, StoreError, to_i64, to_u64};

/// Most lines kept for one task; progress beyond it is dropped with a marker.
const MAX_EVENTS: i64 = 20_000;

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventRow {
    /// Position within the task, from 1.
    pub sequence: u64,
    /// Unix milliseconds.
    pub at_ms: u64,
    /// `log` for a line of text, `state` for a state name.
    pub kind: String,
    /// The text.
    pub content: String,
}

impl EventRow {
    fn read(row: &AnyRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            sequence: to_u64(row.try_get("sequence")?),
            at_ms: to_u64(row.try_get("at_ms")?),
            kind: row.try_get("kind")?,
            content: row.try_get("content")?,
        })
    }
}

pub(super) async fn append(
    transaction: &mut Transaction<'static, Any>,
    task_id: &str,
    at_ms: u64,
    lines: &[(&'static str, String)],
) -> Result<(), StoreError> {
    if lines.is_empty() {
        return Ok(());
    }
    let row = sqlx::query(
        "SELECT COALESCE(MAX(sequence), 0) AS newest FROM task_event WHERE task_id = $1",
    )
    .bind(task_id)
    .fetch_one(&mut **transaction)
    .await?;
    let mut sequence: i64 = row.try_get("newest")?;
    for (kind, content) in lines {
        sequence += 1;
        let is_log = *kind == "log";
        if is_log && sequence > MAX_EVENTS {
            continue;
        }
        let content = if is_log && sequence == MAX_EVENTS {
            "the log is full; further lines are dropped"
        } else {
            content
        };
        sqlx::query("INSERT INTO task_event (task_id, sequence, at_ms, kind, content) VALUES ($1, $2, $3, $4, $5)")
            .bind(task_id)
            .bind(sequence)
            .bind(to_i64(at_ms))
            .bind(*kind)
            .bind(content)
            .execute(&mut **transaction)
            .await?;
    }
    Ok(())
}

impl Store {
    /// Appends lines to a task's log.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn append_log(
        &self,
        task_id: &str,
        at_ms: u64,
        lines: &[String],
    ) -> Result<(), StoreError> {
        let lines: Vec<_> = lines.iter().map(|line| ("log", line.clone())).collect();
        let mut attempt = 0;
        loop {
            let mut transaction = self.begin().await?;
            let result = match append(&mut transaction, task_id, at_ms, &lines).await {
                Ok(()) => transaction.commit().await.map_err(StoreError::from),
                Err(error) => Err(error),
            };
            match result {
                Err(error) if error.is_conflict() && attempt < super::CONFLICT_RETRIES => {
                    attempt += 1
                }
                other => return other,
            }
        }
    }

    /// Lines of a task after the given position, oldest first, at most `limit`.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn events(
        &self,
        task_id: &str,
        after: u64,
        limit: u64,
    ) -> Result<Vec<EventRow>, StoreError> {
        let rows = sqlx::query(
            "SELECT sequence, at_ms, kind, content FROM task_event WHERE task_id = $1 AND sequence > $2
             ORDER BY sequence LIMIT $3",
        )
        .bind(task_id)
        .bind(to_i64(after))
        .bind(to_i64(limit))
        .fetch_all(&self.pool)
        .await?;
        rows.iter()
            .map(|row| EventRow::read(row).map_err(StoreError::from))
            .collect()
    }

    /// When a task reached its states, oldest first.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn state_events(&self, task_id: &str) -> Result<Vec<EventRow>, StoreError> {
        let rows = sqlx::query(
            "SELECT sequence, at_ms, kind, content FROM task_event WHERE task_id = $1 AND kind = 'state' ORDER BY sequence",
        )
        .bind(task_id)
        .fetch_all(&self.pool)
        .await?;
        rows.iter()
            .map(|row| EventRow::read(row).map_err(StoreError::from))
            .collect()
    }
}
