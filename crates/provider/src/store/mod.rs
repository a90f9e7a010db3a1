//! Everything that survives a crash: one SQL text for SQLite and PostgreSQL.
//!
//! A task's state, the effects that follow from it and the lines its user reads are written in one transaction, under a
//! check of the row's version. Effects are claimed with a lease and a fence. Nothing here decides; see
//! `zerog_lifecycle`.

mod adapters;
mod datasets;
mod effects;
mod events;
mod tasks;
mod transactions;
mod usage;

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use sqlx::any::{AnyConnectOptions, AnyPoolOptions};
use sqlx::{Any, AnyPool, AssertSqlSafe, Executor, Row, Transaction};

pub use adapters::{AdapterRow, NewAdapter};
pub use datasets::DatasetRow;
pub use effects::{EffectRow, Subject};
pub use events::EventRow;
pub use tasks::{ApplyOutcome, NewTask, TaskRow};
pub use transactions::TransactionRow;
pub use usage::{NewUsage, SettlementOutcome, SettlementRow, UsageRow};

/// The migrations in order. Only ever added.
const MIGRATIONS: &[(i64, &str)] = &[
    (1, include_str!("migrations/0001_initial.sql")),
    (3, include_str!("migrations/0003_adapter_share.sql")),
];

/// How often a transaction is tried again when another writer was faster.
const CONFLICT_RETRIES: u32 = 20;

/// What can go wrong with the database.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The database refused or cannot be reached.
    #[error("the database failed: {0}")]
    Database(#[from] sqlx::Error),
    /// A stored value does not have the form that this version writes.
    #[error("the stored {what} cannot be read: {problem}")]
    Corrupt {
        /// Which value.
        what: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// Other writers were faster too often.
    #[error("the record is being changed by others all the time")]
    Conflict,
    /// The user already has an unfinished task.
    #[error("the user has an unfinished task")]
    OpenTask,
    /// The directory of the database cannot be made.
    #[error("the database directory cannot be made: {0}")]
    Directory(#[from] std::io::Error),
}

impl StoreError {
    pub(crate) fn corrupt(what: &'static str, problem: impl ToString) -> Self {
        Self::Corrupt {
            what,
            problem: problem.to_string(),
        }
    }

    /// Whether the database had no room: SQLite's `SQLITE_FULL`, PostgreSQL's `disk_full`.
    pub(crate) fn is_disk_full(&self) -> bool {
        let Self::Database(sqlx::Error::Database(error)) = self else {
            return false;
        };
        matches!(error.code().as_deref(), Some("13" | "53100"))
    }

    fn is_unique_violation(&self) -> bool {
        matches!(self, Self::Database(sqlx::Error::Database(error)) if error.is_unique_violation())
    }

    /// Whether trying the transaction again can help: a busy SQLite file, or a serialisation failure.
    fn is_conflict(&self) -> bool {
        match self {
            Self::Conflict => true,
            Self::Database(sqlx::Error::Database(error)) => {
                error.is_unique_violation()
                    || matches!(
                        error.code().as_deref(),
                        Some("5" | "6" | "517" | "40001" | "40P01")
                    )
            }
            _ => false,
        }
    }
}

/// The database. Clones share one pool.
#[derive(Debug, Clone)]
pub struct Store {
    pool: AnyPool,
    reserving: Arc<tokio::sync::Mutex<()>>,
}

impl Store {
    /// Opens or creates a database and brings it up to date.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn open(url: &str) -> Result<Self, StoreError> {
        sqlx::any::install_default_drivers();
        let is_sqlite = url.starts_with("sqlite:");
        let url = if is_sqlite && !url.contains('?') {
            format!("{url}?mode=rwc")
        } else {
            url.to_owned()
        };
        let options = AnyConnectOptions::from_str(&url)?;
        let pool = AnyPoolOptions::new()
            // SQLite has one writer; one connection also keeps reads in order with writes and never meets a lock.
            .max_connections(if is_sqlite { 1 } else { 16 })
            .acquire_timeout(Duration::from_secs(60))
            .idle_timeout(None)
            .max_lifetime(None)
            .after_connect(move |connection, _| {
                Box::pin(async move {
                    if is_sqlite {
                        for pragma in [
                            "PRAGMA journal_mode = WAL",
                            // A transaction on its way to the chain must survive a power cut.
                            "PRAGMA synchronous = FULL",
                            "PRAGMA busy_timeout = 10000",
                        ] {
                            connection.execute(pragma).await?;
                        }
                    }
                    Ok(())
                })
            })
            .connect_with(options)
            .await?;
        let store = Self {
            pool,
            reserving: Arc::default(),
        };
        store.migrate().await?;
        Ok(store)
    }

    /// Closes every connection.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    async fn migrate(&self) -> Result<(), StoreError> {
        let mut attempt = 0;
        loop {
            match self.try_migrate().await {
                // Two processes that start on one new database.
                Err(error) if error.is_conflict() && attempt < CONFLICT_RETRIES => {
                    attempt += 1;
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                other => return other,
            }
        }
    }

    async fn try_migrate(&self) -> Result<(), StoreError> {
        sqlx::query("CREATE TABLE IF NOT EXISTS schema_migration (version BIGINT PRIMARY KEY)")
            .execute(&self.pool)
            .await?;
        for (version, text) in MIGRATIONS {
            let mut transaction = self.pool.begin().await?;
            // The inserted row is the lock: a second process waits here until the first has committed.
            let inserted =
                sqlx::query("INSERT INTO schema_migration (version) VALUES ($1) ON CONFLICT DO NOTHING RETURNING version")
                    .bind(*version)
                    .fetch_optional(&mut *transaction)
                    .await?;
            if inserted.is_some() {
                let without_comments: String = text
                    .lines()
                    .filter(|line| !line.trim_start().starts_with("--"))
                    .collect::<Vec<_>>()
                    .join("\n");
                for statement in without_comments
                    .split(';')
                    .map(str::trim)
                    .filter(|statement| !statement.is_empty())
                {
                    sqlx::query(AssertSqlSafe(statement))
                        .execute(&mut *transaction)
                        .await?;
                }
            }
            transaction.commit().await?;
        }
        Ok(())
    }

    async fn begin(&self) -> Result<Transaction<'static, Any>, StoreError> {
        Ok(self.pool.begin().await?)
    }

    /// A stored setting.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn setting(&self, name: &str) -> Result<Option<String>, StoreError> {
        let row = sqlx::query("SELECT content FROM setting WHERE name = $1")
            .bind(name)
            .fetch_optional(&self.pool)
            .await?;
        Ok(row.map(|row| row.try_get("content")).transpose()?)
    }

    /// Stores a setting.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn set_setting(&self, name: &str, content: &str) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO setting (name, content) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET content = excluded.content",
        )
        .bind(name)
        .bind(content)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Marks a signature as used until `expires_ms`; false when it was used before.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn spend_signature(
        &self,
        id: &str,
        expires_ms: u64,
        now_ms: u64,
    ) -> Result<bool, StoreError> {
        sqlx::query("DELETE FROM spent_signature WHERE expires_ms < $1")
            .bind(to_i64(now_ms))
            .execute(&self.pool)
            .await?;
        let row = sqlx::query(
            "INSERT INTO spent_signature (id, expires_ms) VALUES ($1, $2) ON CONFLICT DO NOTHING RETURNING id",
        )
        .bind(id)
        .bind(to_i64(expires_ms))
        .fetch_optional(&self.pool)
        .await?;
        Ok(row.is_some())
    }
}

/// Times and counters fit: the year 292 million is far.
fn to_i64(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn to_u64(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}
