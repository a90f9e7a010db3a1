//! The inference role: the engine, who may use which adapter, accounts as the chain has them, and signatures of answers.

use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use alloy_primitives::Address;
use parking_lot::Mutex;
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use zerog_chain::inference::{Account, Service};
use zerog_chain::{ChainClient, ChainError};
use zerog_inference::{AdapterPin, EngineConfig, EngineHandle, engine};
use zerog_model::{BaseModel, Device, ModelError, Placement};
use zerog_protocol::FileKey;
use zerog_protocol::ids::{adapter_name, canonical_adapter_name};
use zerog_protocol::inference_api::ResponseSignature;
use zerog_tokenization::Tokenizer;

use crate::adapter_tiers::LastUses;
use crate::app::App;
use crate::catalogue::Catalogue;
use crate::config::{InferenceConfig, Quantization};
use crate::external::{ExternalEngine, ExternalPin};
use crate::store::{AdapterRow, StoreError};
use crate::vault::KeyUse;

/// Age up to which a read of the chain is used without asking again.
const FRESH: Duration = Duration::from_secs(15);
/// Age up to which the last read is used while the chain cannot be reached.
const STALE: Duration = Duration::from_secs(600);
/// Most accounts that are remembered.
const MAX_ACCOUNTS: usize = 10_000;
/// Most response signatures that are remembered; each answer takes two.
const MAX_SIGNATURES: usize = 20_000;

/// Why the engine did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineStartError {
    /// The base model cannot be loaded.
    #[error("the base model in {folder} cannot be loaded: {problem}")]
    Model {
        /// Its folder.
        folder: String,
        /// What is wrong.
        problem: String,
    },
    /// The configured model is not in the catalogue.
    #[error("the served model {0} is not configured")]
    Unknown(String),
    /// The configured server cannot be used.
    #[error("the external engine cannot be used: {0}")]
    External(String),
    /// The weights cannot be put on the configured device.
    #[error("inference.device: {0}")]
    Device(ModelError),
    /// The engine cannot be started where the weights are.
    #[error("inference: {0}")]
    Engine(#[from] zerog_inference::StartError),
}

/// What computes.
pub(crate) enum Engine {
    /// The engine of this program.
    BuiltIn(EngineHandle),
    /// A vLLM or SGLang server.
    External(Box<ExternalEngine>),
}

/// Keeps an adapter where it computes while a request runs on it.
#[derive(Debug)]
pub(crate) enum Pin {
    /// In memory of this program.
    BuiltIn(#[allow(dead_code)] AdapterPin),
    /// On the server.
    External(#[allow(dead_code)] ExternalPin),
}

impl Engine {
    /// Makes tokens as the served model does.
    pub(crate) fn tokenizer(&self) -> &Arc<Tokenizer> {
        match self {
            Self::BuiltIn(engine) => engine.tokenizer(),
            Self::External(engine) => engine.tokenizer(),
        }
    }

    /// Whether an adapter can answer at once.
    pub(crate) fn has_adapter(&self, id: &str) -> bool {
        match self {
            Self::BuiltIn(engine) => engine.has_adapter(id),
            Self::External(engine) => engine.has_adapter(id),
        }
    }

    /// Keeps a loaded adapter where it is; `None` when it is not loaded.
    pub(crate) fn pin_adapter(&self, id: &str) -> Option<Pin> {
        match self {
            Self::BuiltIn(engine) => engine.pin_adapter(id).map(Pin::BuiltIn),
            Self::External(engine) => engine.pin_adapter(id).map(Pin::External),
        }
    }

    /// Takes an adapter out; requests that run on it finish.
    pub(crate) async fn unload_adapter(&self, id: &str) {
        match self {
            Self::BuiltIn(engine) => {
                engine.unload_adapter(id);
            }
            Self::External(engine) => engine.unload_adapter(id).await,
        }
    }
}

/// The role while it runs.
pub(crate) struct InferenceRole {
    /// As configured.
    pub config: InferenceConfig,
    /// The engine.
    pub engine: Engine,
    /// Names of the base model, the served one first.
    pub base_names: Vec<String>,
    /// SHA-256 of the base weights.
    pub base_sha256: String,
    /// Longest prompt and answer together, in tokens.
    pub max_tokens: u32,
    accounts: Mutex<HashMap<Address, Cached<Option<Account>>>>,
    service: Mutex<Option<Cached<Option<Service>>>>,
    signatures: Mutex<SignatureCache>,
    uses: LastUses,
    /// One lock for each adapter that is being loaded.
    turns: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
    changed: watch::Sender<u64>,
}

#[derive(Debug, Clone)]
struct Cached<T> {
    value: T,
    read_at: Instant,
}

#[derive(Default)]
struct SignatureCache {
    by_id: HashMap<String, ResponseSignature>,
    order: VecDeque<(Instant, String)>,
}

impl std::fmt::Debug for InferenceRole {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InferenceRole")
            .field("base_names", &self.base_names)
            .finish_non_exhaustive()
    }
}

impl InferenceRole {
    /// Loads the base model and starts its engine. Blocks.
    ///
    /// # Errors
    /// [`EngineStartError`].
    pub(crate) fn start(
        config: InferenceConfig,
        catalogue: &Catalogue,
    ) -> Result<Self, EngineStartError> {
        let entry = catalogue
            .find(&config.model)
            .ok_or_else(|| EngineStartError::Unknown(config.model.clone()))?;
        let folder = entry.config.folder.clone();
        let failed = |problem: String| EngineStartError::Model {
            folder: folder.display().to_string(),
            problem,
        };
        let model = BaseModel::load(&folder).map_err(|error| failed(error.to_string()))?;
        let base_sha256 = model.sha256_hex();
        catalogue.set_weights_sha256(&folder, &base_sha256);
        let model = match config.quantize {
            Some(Quantization::Int8) => model.quantized(),
            None => model,
        };
        let tokenizer = entry
            .tokenizer()
            .map_err(|error| failed(error.to_string()))?;
        let sizes = EngineConfig {
            max_running: config.max_running,
            max_waiting: config.max_waiting,
            max_cached_tokens: config.max_cached_tokens,
            ..EngineConfig::default()
        };
        let max_tokens = entry
            .max_tokens
            .min(u32::try_from(sizes.max_context_tokens).unwrap_or(u32::MAX));
        let engine = match &config.external {
            Some(external) => Engine::External(Box::new(
                ExternalEngine::open(external, &config.model, model, tokenizer)
                    .map_err(EngineStartError::External)?,
            )),
            None => {
                let placement =
                    Placement::new(&model, config.device).map_err(EngineStartError::Device)?;
                Engine::BuiltIn(engine::start_on(&placement, model, tokenizer, sizes)?)
            }
        };
        Ok(Self {
            base_names: catalogue.names_of_same_weights(&config.model),
            config,
            engine,
            base_sha256,
            max_tokens,
            accounts: Mutex::default(),
            service: Mutex::default(),
            signatures: Mutex::default(),
            turns: Mutex::default(),
            uses: LastUses::default(),
            changed: watch::Sender::new(0),
        })
    }

    /// Names this program, base weights and kind of device; a canary that passed once need not run again for them.
    #[must_use]
    pub(crate) fn build(&self) -> String {
        let program = std::env::current_exe()
            .ok()
            .and_then(|path| fingerprint(&path))
            .unwrap_or_default();
        let rounding = match self.config.quantize {
            Some(Quantization::Int8) => "/int8",
            None => "",
        };
        let device = match self.config.device {
            Device::Cpu => "",
            Device::Cuda(_) => "/cuda",
        };
        format!(
            "{}/{program}/{}{rounding}{device}",
            env!("CARGO_PKG_VERSION"),
            self.base_sha256
        )
    }

    /// Notes that an adapter is used now.
    pub(crate) fn note_use(&self, id: &str) {
        self.uses.note(id);
    }

    /// When an adapter was used last, if this process did.
    #[must_use]
    pub(crate) fn last_use(&self, id: &str) -> Option<Instant> {
        self.uses.of(id)
    }

    /// The lock under which an adapter is brought back into the engine.
    #[must_use]
    pub(crate) fn turn_of(&self, id: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.turns.lock();
        if let Some(turn) = turns.get(id).and_then(Weak::upgrade) {
            return turn;
        }
        turns.retain(|_, turn| turn.strong_count() > 0);
        let turn = Arc::default();
        turns.insert(id.to_owned(), Arc::downgrade(&turn));
        turn
    }

    /// Tells waiting requests that an adapter changed.
    pub(crate) fn adapter_changed(&self) {
        self.changed
            .send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Goes on at every change of an adapter.
    #[must_use]
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// The caller's account, at most 15 seconds old; up to ten minutes old while the chain cannot be reached. `None` when
    /// there is no account.
    ///
    /// # Errors
    /// A failed read without anything to fall back on.
    pub(crate) async fn account(
        &self,
        chain: &ChainClient,
        provider: Address,
        user: Address,
    ) -> Result<Option<Account>, ChainError> {
        let known = self.accounts.lock().get(&user).cloned();
        if let Some(known) = known
            .as_ref()
            .filter(|known| known.read_at.elapsed() < FRESH)
        {
            return Ok(known.value.clone());
        }
        match chain.inference().account(user, provider).await {
            Ok(value) => {
                let mut accounts = self.accounts.lock();
                if accounts.len() >= MAX_ACCOUNTS {
                    accounts.retain(|_, known| known.read_at.elapsed() < FRESH);
                }
                accounts.insert(
                    user,
                    Cached {
                        value: value.clone(),
                        read_at: Instant::now(),
                    },
                );
                Ok(value)
            }
            Err(error) => match known {
                Some(known) if known.read_at.elapsed() < STALE => {
                    tracing::warn!(%error, "the chain cannot be read; an older account state is used");
                    Ok(known.value)
                }
                _ => Err(error),
            },
        }
    }

    /// Forgets what is known about an account, because the chain said that it changed.
    pub(crate) fn forget_account(&self, user: Address) {
        self.accounts.lock().remove(&user);
    }

    /// Forgets what is known about the service.
    pub(crate) fn forget_service(&self) {
        *self.service.lock() = None;
    }

    /// Whether the contract owner accepted the enclave signer of this service, at most 15 seconds old.
    ///
    /// # Errors
    /// A failed read.
    pub(crate) async fn is_service_acknowledged(
        &self,
        chain: &ChainClient,
        provider: Address,
    ) -> Result<bool, ChainError> {
        let known = self
            .service
            .lock()
            .clone()
            .filter(|known| known.read_at.elapsed() < FRESH);
        let service = match known {
            Some(known) => known.value,
            None => {
                let value = chain.inference().service(provider).await?;
                *self.service.lock() = Some(Cached {
                    value: value.clone(),
                    read_at: Instant::now(),
                });
                value
            }
        };
        Ok(service.is_some_and(|service| service.tee_signer_acknowledged))
    }

    /// Remembers the signature of an answer under several ids.
    pub(crate) fn remember_signature(&self, ids: &[&str], signature: &ResponseSignature) {
        let mut cache = self.signatures.lock();
        let now = Instant::now();
        while cache.order.len() >= MAX_SIGNATURES
            || cache
                .order
                .front()
                .is_some_and(|(at, _)| at.elapsed() > self.config.signature_retention)
        {
            let Some((_, id)) = cache.order.pop_front() else {
                break;
            };
            cache.by_id.remove(&id);
        }
        for id in ids {
            let id = id.to_lowercase();
            cache.by_id.insert(id.clone(), signature.clone());
            cache.order.push_back((now, id));
        }
    }

    /// The signature of an answer, if it is still remembered.
    #[must_use]
    pub(crate) fn signature(&self, id: &str) -> Option<ResponseSignature> {
        self.signatures
            .lock()
            .by_id
            .get(&id.to_lowercase())
            .cloned()
    }

    /// Whether `name` names the base model; the empty name does too.
    #[must_use]
    pub(crate) fn is_base(&self, name: &str) -> bool {
        let short = name.rsplit('/').next().unwrap_or(name);
        name.is_empty()
            || self
                .base_names
                .iter()
                .any(|base| base == name || base == short)
    }

    /// Whether `name` means this adapter: its name, its task, or any name that a client computes from any name of the
    /// base model.
    #[must_use]
    pub(crate) fn means_adapter(&self, name: &str, row: &AdapterRow) -> bool {
        if row.name == name || row.task_id == name {
            return true;
        }
        self.base_names
            .iter()
            .chain(std::iter::once(&row.base_model))
            .flat_map(|base| {
                let hub = zerog_protocol::models::find(base)
                    .map_or(base.as_str(), |model| model.tokenizer);
                [
                    adapter_name(base, &row.task_id),
                    canonical_adapter_name(base, &row.task_id),
                    adapter_name(hub, &row.task_id),
                ]
            })
            .any(|alias| alias == name)
    }
}

/// Internal id of an adapter, which also names its file: a task id is text of another party.
#[must_use]
pub(crate) fn adapter_id(fine_tuning_provider: Address, user: Address, task_id: &str) -> String {
    let mut hash = Sha256::new();
    hash.update(fine_tuning_provider);
    hash.update(user);
    hash.update(task_id.as_bytes());
    hex::encode(&hash.finalize()[..16])
}

/// A key that another broker of this provider handed over.
#[derive(Debug)]
pub(crate) struct HandedOverKey {
    /// The archive key.
    pub(crate) key: FileKey,
    /// Root of the archive, `0x…`.
    pub(crate) storage_hash: String,
    /// Who signs the archive.
    pub(crate) signer: Address,
}

/// Keeps a handed-over key, sealed, until its owner acknowledges. Handing over again replaces it.
pub(crate) async fn keep_handed_over_key(
    app: &App,
    task_id: &str,
    key: &HandedOverKey,
) -> Result<(), StoreError> {
    let record = json!({
        "storageHash": key.storage_hash,
        "sealedKey": app.vault.seal_key(KeyUse::Adapter, task_id, &key.key),
        "signer": key.signer,
    });
    app.store
        .set_setting(&setting_of(task_id), &record.to_string())
        .await
}

/// The key that was handed over for a task, if one was.
pub(crate) async fn handed_over_key(
    app: &App,
    task_id: &str,
) -> Result<Option<HandedOverKey>, StoreError> {
    let Some(text) = app.store.setting(&setting_of(task_id)).await? else {
        return Ok(None);
    };
    let corrupt = |problem: &dyn std::fmt::Display| StoreError::corrupt("handed-over key", problem);
    let record: serde_json::Value = serde_json::from_str(&text).map_err(|error| corrupt(&error))?;
    let member = |name: &str| {
        record
            .get(name)
            .and_then(serde_json::Value::as_str)
            .unwrap_or_default()
    };
    let sealed = member("sealedKey");
    Ok(Some(HandedOverKey {
        key: app
            .vault
            .open_key(KeyUse::Adapter, task_id, sealed)
            .map_err(|error| corrupt(&error))?,
        storage_hash: member("storageHash").to_owned(),
        signer: member("signer").parse().map_err(|error| corrupt(&error))?,
    }))
}

fn setting_of(task_id: &str) -> String {
    format!("adapter_key/{task_id}")
}

/// Size and time of the program file: cheaper than its hash, and different after every build.
fn fingerprint(path: &Path) -> Option<String> {
    let metadata = std::fs::metadata(path).ok()?;
    let modified = metadata
        .modified()
        .ok()?
        .duration_since(std::time::UNIX_EPOCH)
        .ok()?;
    Some(format!("{}-{}", metadata.len(), modified.as_nanos()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adapter_ids_depend_on_all_three_parts() {
        let (a, b) = (Address::repeat_byte(1), Address::repeat_byte(2));
        let id = adapter_id(a, b, "t");
        assert_eq!(id.len(), 32);
        assert!(id != adapter_id(b, a, "t") && id != adapter_id(a, b, "u"));
    }
}
