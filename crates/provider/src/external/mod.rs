//! An engine outside this process: a vLLM or SGLang server with the same life of adapters as the built-in engine.
//!
//! The server reads adapters from a folder in memory that it shares with this process. It is trusted to compute, not to
//! remember: what it has loaded is compared with what it should have, and every load is followed by the reference answers.

mod folder;
mod forward;
mod reference;
mod wire;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use zerog_inference::{AdapterPackage, Canary, PackageError};
use zerog_model::{BaseModel, LoraAdapter};
use zerog_tokenization::Tokenizer;

use self::folder::AdapterFolder;
use self::wire::{Loading, Wire};
use crate::config::{ExternalConfig, ExternalKind};
use crate::http::ApiError;

pub(crate) use self::forward::{AnswerReader, Forwarded, Piece};

/// Names of our adapters on the server begin with this; anything else there is left alone.
const NAME_PREFIX: &str = "zerog-";
/// Pause between two looks at what the server has loaded.
const WATCH_PAUSE: Duration = Duration::from_secs(5);
/// Prompts by which an adapter without a record is compared with the base model.
const EFFECT_PROMPTS: [&str; 3] = [
    "Hello! Who are you?",
    "What can you help me with?",
    "1 + 1 =",
];

/// Why the server does not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExternalError {
    /// No connection, no answer in time, or an answer that breaks off.
    #[error("the inference server cannot be reached: {0}")]
    Unreachable(String),
    /// It has too much to do.
    #[error("the inference server is busy")]
    Busy,
    /// It said no.
    #[error("the inference server refuses ({status}): {message}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// Its own words.
        message: String,
    },
    /// Its answer is not of the protocol.
    #[error("the inference server's answer is not understood: {0}")]
    Unexpected(String),
    /// The adapter is refused before the server hears of it.
    #[error("{0}")]
    Package(String),
    /// The reference answers do not hold.
    #[error("{0}")]
    Reference(String),
    /// Everything loaded is in use.
    #[error("no room for another adapter: all {0} that the server holds are in use")]
    NoRoom(usize),
    /// The shared folder cannot be written.
    #[error("the adapter's files cannot be written: {0}")]
    Folder(#[from] std::io::Error),
}

impl ExternalError {
    fn unreachable(error: reqwest::Error) -> Self {
        // The address may be nobody's business.
        Self::Unreachable(error.without_url().to_string())
    }

    fn unexpected(problem: &str) -> Self {
        Self::Unexpected(problem.to_owned())
    }

    /// Whether the same may go well later.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::Busy | Self::NoRoom(_) | Self::Folder(_) => true,
            Self::Refused { status, .. } => *status >= 500,
            Self::Unexpected(_) | Self::Package(_) | Self::Reference(_) => false,
        }
    }
}

impl From<ExternalError> for ApiError {
    fn from(error: ExternalError) -> Self {
        let bad_gateway = |code, text: &str| Self::new(StatusCode::BAD_GATEWAY, code, text);
        match error {
            ExternalError::Busy | ExternalError::NoRoom(_) => {
                Self::unavailable("engine_busy", error.to_string())
            }
            // The request itself is at fault; the server's words say where.
            ExternalError::Refused {
                status: status @ (400 | 413 | 422),
                message,
            } => Self::new(
                StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST),
                "invalid_request",
                message,
            ),
            other => {
                tracing::error!(error = %other, "the inference server failed");
                match other {
                    ExternalError::Unreachable(_) => bad_gateway(
                        "engine_unreachable",
                        "the inference server cannot be reached, please retry later",
                    ),
                    _ => bad_gateway(
                        "engine_failed",
                        "the inference server failed, please retry later",
                    ),
                }
            }
        }
    }
}

/// The server and what it has loaded for us.
pub(crate) struct ExternalEngine {
    wire: Wire,
    kind: ExternalKind,
    /// For checks of adapters; mapped from disk, nothing is computed with it.
    model: Arc<BaseModel>,
    tokenizer: Arc<Tokenizer>,
    folder: PathBuf,
    max_adapters: usize,
    loaded: Mutex<Table>,
    /// Loading and unloading happen one after the other.
    changing: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Table {
    entries: HashMap<String, Entry>,
    clock: u64,
}

#[derive(Debug)]
struct Entry {
    uses: Arc<()>,
    last_used: u64,
    files: AdapterFolder,
    record: Option<Canary>,
}

/// Keeps an adapter on the server while a request runs on it.
#[derive(Debug)]
pub(crate) struct ExternalPin(#[allow(dead_code)] Arc<()>);

impl std::fmt::Debug for ExternalEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExternalEngine")
            .field("wire", &self.wire)
            .finish_non_exhaustive()
    }
}

impl ExternalEngine {
    /// Prepares the shared folder and the connection; nothing is sent yet, because such a server may need minutes to start.
    ///
    /// # Errors
    /// A sentence with the remedy.
    pub(crate) fn open(
        config: &ExternalConfig,
        served: &str,
        model: Arc<BaseModel>,
        tokenizer: Arc<Tokenizer>,
    ) -> Result<Self, String> {
        Ok(Self {
            wire: Wire::new(config, config.model.as_deref().unwrap_or(served))?,
            kind: config.kind,
            model,
            tokenizer,
            folder: folder::open_shared(&config.adapter_dir)?,
            max_adapters: config.max_adapters,
            loaded: Mutex::default(),
            changing: tokio::sync::Mutex::default(),
        })
    }

    /// Makes tokens as the served model does.
    pub(crate) fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// Whether the server has the adapter, as far as is known.
    pub(crate) fn has_adapter(&self, id: &str) -> bool {
        self.loaded.lock().entries.contains_key(id)
    }

    /// Requests that run on adapters now.
    pub(crate) fn running(&self) -> usize {
        let table = self.loaded.lock();
        table
            .entries
            .values()
            .map(|entry| Arc::strong_count(&entry.uses) - 1)
            .sum()
    }

    /// Keeps an adapter on the server; `None` when it is not there.
    pub(crate) fn pin_adapter(&self, id: &str) -> Option<ExternalPin> {
        let mut table = self.loaded.lock();
        table.clock += 1;
        let now = table.clock;
        let entry = table.entries.get_mut(id)?;
        entry.last_used = now;
        Some(ExternalPin(Arc::clone(&entry.uses)))
    }

    /// Puts an adapter on the server and checks its reference answers there. Returns the adapters that had to leave.
    ///
    /// # Errors
    /// [`ExternalError`]; the adapter is not on the server then.
    pub(crate) async fn load(
        &self,
        id: &str,
        zip: zeroize::Zeroizing<Vec<u8>>,
        accepts_unrecorded: bool,
    ) -> Result<Vec<String>, ExternalError> {
        let _turn = self.changing.lock().await;
        if self.has_adapter(id) {
            return Ok(Vec::new());
        }
        let name = server_name(id);
        let (files, record) = self.unpack(&name, &zip, accepts_unrecorded)?;
        drop(zip);
        let evicted = self.make_room().await?;
        self.load_checked(&name, &files, record.as_ref()).await?;
        let mut table = self.loaded.lock();
        table.clock += 1;
        let entry = Entry {
            uses: Arc::default(),
            last_used: table.clock,
            files,
            record,
        };
        table.entries.insert(id.to_owned(), entry);
        Ok(evicted)
    }

    /// Takes an adapter off the server and its files out of memory.
    pub(crate) async fn unload_adapter(&self, id: &str) {
        let _turn = self.changing.lock().await;
        let entry = self.loaded.lock().entries.remove(id);
        if entry.is_some()
            && let Err(error) = self.wire.unload(&server_name(id)).await
        {
            tracing::warn!(%error, "an adapter could not be unloaded; it is tried again");
        }
    }

    /// After a refusal: loads the adapter again if the server has lost it, because it was started anew. Returns whether it had.
    ///
    /// # Errors
    /// [`ExternalError`]; the adapter then counts as not loaded.
    async fn restore(&self, id: &str) -> Result<bool, ExternalError> {
        let _turn = self.changing.lock().await;
        let name = server_name(id);
        let (folder, record) = {
            let table = self.loaded.lock();
            let Some(entry) = table.entries.get(id) else {
                return Ok(false);
            };
            (entry.files.path().to_owned(), entry.record.clone())
        };
        let outcome = match self.wire.load(&name, &folder).await {
            Ok(Loading::AlreadyLoaded) => return Ok(false),
            Ok(Loading::Loaded) => self.check(&name, record.as_ref()).await,
            Err(error) => Err(error),
        };
        if let Err(error) = outcome {
            self.loaded.lock().entries.remove(id);
            return Err(error);
        }
        tracing::warn!(
            adapter.id = id,
            "the inference server had lost an adapter; it is loaded again"
        );
        Ok(true)
    }

    /// Looks what the server has loaded until `stop`: takes away what a former life of this process left there, and forgets
    /// what the server lost. `forgotten` is called with the adapters that left.
    pub(crate) async fn watch<F>(
        &self,
        stop: &CancellationToken,
        mut forgotten: impl FnMut(Vec<String>) -> F,
    ) where
        F: Future<Output = ()>,
    {
        let mut was_reached = None;
        loop {
            let looked = self.look().await;
            if was_reached != Some(looked.is_ok()) {
                match &looked {
                    Ok(_) => tracing::info!("the inference server is reached"),
                    Err(error) => {
                        tracing::warn!(%error, "the inference server does not answer; it is tried again")
                    }
                }
                was_reached = Some(looked.is_ok());
            }
            if let Ok(lost) = looked
                && !lost.is_empty()
            {
                forgotten(lost).await;
            }
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(WATCH_PAUSE) => {}
            }
        }
        self.leave().await;
    }

    /// Takes everything off the server and out of memory at the end.
    async fn leave(&self) {
        let _turn = self.changing.lock().await;
        let entries = std::mem::take(&mut self.loaded.lock().entries);
        for id in entries.keys() {
            if let Err(error) = self.wire.unload(&server_name(id)).await {
                tracing::warn!(%error, "adapters could not be unloaded; the next start does it");
                return;
            }
        }
    }

    async fn look(&self) -> Result<Vec<String>, ExternalError> {
        let _turn = self.changing.lock().await;
        let listed = self.wire.models().await?;
        for name in listed.iter().filter(|name| name.starts_with(NAME_PREFIX)) {
            let is_ours = name
                .strip_prefix(NAME_PREFIX)
                .is_some_and(|id| self.has_adapter(id));
            if !is_ours {
                self.wire.unload(name).await?;
            }
        }
        // Not every version of SGLang lists its adapters.
        if self.kind != ExternalKind::Vllm {
            return Ok(Vec::new());
        }
        let mut table = self.loaded.lock();
        let lost: Vec<String> = table
            .entries
            .keys()
            .filter(|id| !listed.contains(&server_name(id)))
            .cloned()
            .collect();
        table.entries.retain(|id, _| !lost.contains(id));
        Ok(lost)
    }

    /// Reads and checks a package without the server, and puts its files into the shared folder.
    fn unpack(
        &self,
        name: &str,
        zip: &[u8],
        accepts_unrecorded: bool,
    ) -> Result<(AdapterFolder, Option<Canary>), ExternalError> {
        let refused = |error: PackageError| ExternalError::Package(error.to_string());
        let package = AdapterPackage::from_zip(zip).map_err(refused)?;
        package
            .check_fits(&self.model, &self.tokenizer)
            .map_err(refused)?;
        // Shapes, ranks and numbers, as for the built-in engine.
        LoraAdapter::from_bytes(&package.config, &package.weights, self.model.config()).map_err(
            |error| ExternalError::Package(format!("the adapter's files are refused: {error}")),
        )?;
        if let Some(record) = &package.canary {
            let found = self.model.sha256_hex();
            let expected = record.base_model_sha256.trim_start_matches("0x");
            if !expected.eq_ignore_ascii_case(&found) {
                return Err(ExternalError::Package(format!(
                    "the adapter was trained on base weights {expected}; this provider serves {found}"
                )));
            }
        } else if !accepts_unrecorded {
            return Err(ExternalError::Package(
                zerog_inference::CanaryError::NoRecord.to_string(),
            ));
        }
        let files = AdapterFolder::write(&self.folder, name, &package)?;
        Ok((files, package.canary))
    }

    async fn make_room(&self) -> Result<Vec<String>, ExternalError> {
        let mut evicted = Vec::new();
        loop {
            let leaving = {
                let mut table = self.loaded.lock();
                if table.entries.len() < self.max_adapters {
                    return Ok(evicted);
                }
                let idle = table
                    .entries
                    .iter()
                    .filter(|(_, entry)| Arc::strong_count(&entry.uses) == 1)
                    .min_by_key(|(_, entry)| entry.last_used)
                    .map(|(id, _)| id.clone());
                let Some(id) = idle else {
                    return Err(ExternalError::NoRoom(table.entries.len()));
                };
                let entry = table.entries.remove(&id);
                (id, entry)
            };
            // The files stay until the server has let go.
            let (id, _entry) = leaving;
            self.wire.unload(&server_name(&id)).await?;
            evicted.push(id);
        }
    }

    async fn load_checked(
        &self,
        name: &str,
        files: &AdapterFolder,
        record: Option<&Canary>,
    ) -> Result<(), ExternalError> {
        if self.wire.load(name, files.path()).await? == Loading::AlreadyLoaded {
            // Left by a former life, maybe with other weights.
            self.wire.unload(name).await?;
            if self.wire.load(name, files.path()).await? == Loading::AlreadyLoaded {
                return Err(ExternalError::unexpected(
                    "it unloads an adapter and still has it",
                ));
            }
        }
        self.check(name, record).await
    }

    /// Runs the reference answers; an adapter that fails them leaves the server.
    async fn check(&self, name: &str, record: Option<&Canary>) -> Result<(), ExternalError> {
        let checked = match record {
            Some(record) => self.check_record(name, record).await,
            None => self.check_effect(name).await,
        };
        if checked.is_err()
            && let Err(error) = self.wire.unload(name).await
        {
            tracing::warn!(%error, "a refused adapter could not be unloaded; it is tried again");
        }
        checked
    }

    async fn check_record(&self, name: &str, record: &Canary) -> Result<(), ExternalError> {
        zerog_inference::canary::check_record(
            record,
            self.model.config().vocabulary_size,
            self.model.config().maximum_positions,
        )
        .map_err(|error| ExternalError::Reference(error.to_string()))?;
        let mut answers = Vec::with_capacity(record.probes.len());
        for probe in &record.probes {
            let ask = |adapter| {
                let wire = &self.wire;
                wire.next_token(adapter, &probe.tokens, &probe.logit_ids, &self.tokenizer)
            };
            answers.push((ask(None).await?, ask(Some(name)).await?));
        }
        let share = reference::compare(record, &answers).map_err(ExternalError::Reference)?;
        tracing::debug!(share, "an adapter's reference answers hold");
        Ok(())
    }

    async fn check_effect(&self, name: &str) -> Result<(), ExternalError> {
        let every: Vec<u32> =
            (0..u32::try_from(self.model.config().vocabulary_size).unwrap_or(0)).collect();
        let mut answers = Vec::new();
        for text in EFFECT_PROMPTS {
            let tokens = self
                .tokenizer
                .encode(text, true)
                .map_err(|error| ExternalError::Package(error.to_string()))?;
            let ask = |adapter| {
                self.wire
                    .next_token(adapter, &tokens, &every, &self.tokenizer)
            };
            answers.push((ask(None).await?, ask(None).await?, ask(Some(name)).await?));
        }
        reference::has_effect(&answers).map_err(ExternalError::Reference)
    }
}

fn server_name(id: &str) -> String {
    format!("{NAME_PREFIX}{id}")
}
