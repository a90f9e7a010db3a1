//! The provider's configuration: one TOML file, checked once, so that every value below `main` is already valid.
//!
//! A role is on when its section is present. Unknown keys are errors that name the nearest known key. Secrets are never
//! in the file: it names a key file or an environment variable.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use alloy_primitives::{Address, B256, U256};
use serde::Deserialize;
use zerog_lifecycle::OnMissedAck;
use zerog_protocol::SecretKey;
use zerog_protocol::models;
use zerog_protocol::training_params::{Schema, edit_distance};
use zerog_trainer::Device;
use zeroize::Zeroizing;

/// Chain id of the local development network, the only one where stand-ins and the simulated TEE are allowed by default.
pub const DEVNET_CHAIN_ID: u64 = 31337;

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Not TOML, an unknown key, or a value of the wrong type.
    #[error("the configuration is not valid: {0}")]
    Parse(String),
    /// A value that cannot be used.
    #[error("the configuration value `{key}` is not usable: {problem}")]
    Value {
        /// The key with its section.
        key: &'static str,
        /// What is wrong and what to do.
        problem: String,
    },
}

/// Everything the daemon needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// The chain and the wallet.
    pub chain: ChainConfig,
    /// Where keys and quotes come from.
    pub identity: IdentityConfig,
    /// `sqlite://…` or `postgres://…`; `None` = `provider.sqlite` in the data directory.
    pub database_url: Option<String>,
    /// Directory of everything the daemon keeps.
    pub data_dir: PathBuf,
    /// The HTTP side.
    pub server: ServerConfig,
    /// Base models on this machine.
    pub models: Vec<ModelConfig>,
    /// The fine-tuning role.
    pub fine_tuning: Option<FineTuningConfig>,
    /// The inference role.
    pub inference: Option<InferenceConfig>,
    /// Bounds.
    pub limits: LimitsConfig,
}

/// The chain and the wallet.
#[derive(Clone)]
pub struct ChainConfig {
    /// JSON-RPC endpoint.
    pub rpc_url: String,
    /// The chain that the endpoint must serve.
    pub chain_id: u64,
    /// Contract addresses.
    pub addresses: zerog_chain::Addresses,
    /// The provider's wallet: it owns the services and pays for transactions.
    pub wallet: SecretKey,
    /// Storage indexer endpoint.
    pub storage_indexer_url: String,
    /// A storage node to speak to directly, instead of asking the indexer.
    pub storage_node_url: Option<String>,
    /// Pause between two looks at the chain.
    pub poll_interval: Duration,
}

impl fmt::Debug for ChainConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChainConfig")
            .field("chain_id", &self.chain_id)
            .field("wallet", &self.wallet)
            .field("storage_indexer_url", &self.storage_indexer_url)
            .finish_non_exhaustive()
    }
}

/// Which TEE the provider runs in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdentityConfig {
    /// Development only: a seed file in the data directory.
    Simulated,
    /// TDX under a dstack guest agent; `None` = the agent's usual socket.
    Dstack {
        /// Path of the agent's socket.
        socket: Option<PathBuf>,
        /// Base URLs of the collateral services that are asked for this machine, in this order.
        collateral_services: Vec<String>,
    },
}

/// The HTTP side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerConfig {
    /// Address and port to listen on; port 0 takes a free one.
    pub listen: String,
    /// URL to register on chain, without a slash at the end; `None` = `http://` and the listening address.
    pub public_url: Option<String>,
    /// Peers whose forwarding headers are believed.
    pub trusted_proxies: Vec<std::net::IpAddr>,
    /// Whether the services are registered or updated on chain at the start.
    pub register: bool,
    /// Time for effects to finish after a request to stop.
    pub shutdown_timeout: Duration,
}

/// One base model on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelConfig {
    /// Name that users ask for.
    pub name: String,
    /// Hash that tasks carry.
    pub hash: B256,
    /// Folder with `config.json`, weights and tokenizer.
    pub folder: PathBuf,
    /// Whether other weights than the named ones are in the folder. Only on chain 31337.
    pub stand_in: bool,
    /// A sentence for lists.
    pub description: String,
    /// Multiplier of the token price.
    pub price_coefficient: u64,
    /// Flat storage fee in neuron.
    pub storage_fee: U256,
    /// Whether the model is one of the predefined ones; only the others are listed as customised.
    pub is_predefined: bool,
    /// A Markdown file for `model-usage`; `None` = one is written.
    pub usage_file: Option<PathBuf>,
}

/// The fine-tuning role.
#[derive(Debug, Clone)]
pub struct FineTuningConfig {
    /// Price in neuron per token.
    pub price_per_token: U256,
    /// Training processes at a time.
    pub workers: usize,
    /// Queue length above which new tasks are refused.
    pub max_queue: u64,
    /// Whether training parameters are limited to the published five keys.
    pub schema: Schema,
    /// What happens after a missed acknowledgement.
    pub on_missed_ack: OnMissedAck,
    /// How long artefacts are kept, in seconds.
    pub artifact_retention_s: u64,
    /// How long an unused dataset is kept, in seconds.
    pub dataset_retention_s: u64,
    /// Wallet balance below which no new work is started.
    pub min_wallet_balance: U256,
    /// The machine as registered; informative.
    pub quota: zerog_chain::fine_tuning::Quota,
    /// The training process.
    pub trainer: TrainerConfig,
}

/// The training process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrainerConfig {
    /// Program; `None` = the running executable. It is called with `train --job DIR`.
    pub command: Option<PathBuf>,
    /// Longest run in seconds.
    pub timeout_s: u64,
    /// Longest silence of the process in seconds before it is stopped and started again.
    pub stall_timeout_s: u64,
    /// Most memory of a run in bytes; `None` = no limit of ours.
    pub memory_limit_bytes: Option<u64>,
    /// Where the process trains.
    pub device: Device,
}

/// The inference role.
#[derive(Debug, Clone)]
pub struct InferenceConfig {
    /// Base model to serve, by name.
    pub model: String,
    /// Price in neuron per input token.
    pub input_price: U256,
    /// Price in neuron per output token.
    pub output_price: U256,
    /// Adapters that one user may have.
    pub max_adapters_per_user: u64,
    /// Longest wait of a chat request for an adapter that is being loaded.
    pub load_wait: Duration,
    /// Pause between settlement rounds.
    pub settlement_interval: Duration,
    /// Fees of a user below this many neuron wait.
    pub min_settlement_fee: U256,
    /// How long response signatures are kept.
    pub signature_retention: Duration,
    /// The fine-tuning provider whose deliverables are served; `None` = this one.
    pub fine_tuning_provider: Option<Address>,
    /// Whether archive keys encrypted to the provider's wallet are taken from other brokers.
    pub accept_wallet_key: bool,
    /// Disk that sealed adapters may take; beyond it the ones used longest ago stay in 0G Storage alone.
    pub max_adapter_disk_bytes: u64,
    /// Whether adapters without reference logits are served when they make a difference to the base model's answers.
    pub accept_unrecorded_adapters: bool,
    /// Most requests that run at once.
    pub max_running: usize,
    /// Most requests that wait.
    pub max_waiting: usize,
    /// Most tokens of all running requests and remembered beginnings whose keys and values are in memory.
    pub max_cached_tokens: usize,
    /// Whether weights are rounded when they are loaded; `None` = they are used as they are in the files.
    pub quantize: Option<Quantization>,
    /// Where the built-in engine computes.
    pub device: Device,
    /// A server that computes instead of the built-in engine.
    pub external: Option<ExternalConfig>,
}

/// How weights are rounded at load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Quantization {
    /// 8-bit integers with one scale for 32 of them: half the memory of bf16, less to read for a token.
    Int8,
}

impl std::str::FromStr for Quantization {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "int8" => Ok(Self::Int8),
            _ => Err("weights can be rounded to int8".into()),
        }
    }
}

/// A vLLM or SGLang server that computes for this provider.
#[derive(Clone)]
pub struct ExternalConfig {
    /// Its address, without a path.
    pub url: String,
    /// Which of the two it is.
    pub kind: ExternalKind,
    /// Name under which it serves the base model; `None` = the name of the served model.
    pub model: Option<String>,
    /// Folder in memory (tmpfs) that the server reads adapters from, under the same path.
    pub adapter_dir: PathBuf,
    /// Most adapters on the server at once; at most what it was started with.
    pub max_adapters: usize,
    /// Key that it asks for.
    pub api_key: Option<Zeroizing<String>>,
    /// Longest time for loading an adapter and for one reference answer.
    pub load_timeout: Duration,
    /// Longest time for an answer.
    pub answer_timeout: Duration,
    /// Longest silence within an answer.
    pub stall_timeout: Duration,
}

impl fmt::Debug for ExternalConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExternalConfig")
            .field("url", &self.url)
            .field("kind", &self.kind)
            .field("adapter_dir", &self.adapter_dir)
            .finish_non_exhaustive()
    }
}

impl ExternalConfig {
    fn check(&self) -> Result<(), ConfigError> {
        let refuse = |key, problem: &str| {
            Err(ConfigError::Value {
                key,
                problem: problem.into(),
            })
        };
        let rest = self
            .url
            .strip_prefix("http://")
            .or_else(|| self.url.strip_prefix("https://"));
        if rest.is_none_or(|rest| rest.is_empty() || rest.trim_end_matches('/').contains('/')) {
            return refuse(
                "inference.external.url",
                "give the server's address without a path, for example http://127.0.0.1:8000",
            );
        }
        if !self.adapter_dir.is_absolute() {
            return refuse(
                "inference.external.adapter_dir",
                "give an absolute path that the server sees too",
            );
        }
        if self.max_adapters == 0 {
            return refuse(
                "inference.external.max_adapters",
                "at least one adapter has to fit",
            );
        }
        Ok(())
    }

    /// A server with the default bounds.
    #[must_use]
    pub fn new(kind: ExternalKind, url: &str, adapter_dir: impl Into<PathBuf>) -> Self {
        Self {
            url: url.to_owned(),
            kind,
            model: None,
            adapter_dir: adapter_dir.into(),
            max_adapters: 16,
            api_key: None,
            load_timeout: Duration::from_secs(60),
            answer_timeout: Duration::from_secs(600),
            stall_timeout: Duration::from_secs(60),
        }
    }
}

/// Kinds of servers; they differ in routes and in how an adapter is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExternalKind {
    /// vLLM with `--enable-lora` and `VLLM_ALLOW_RUNTIME_LORA_UPDATING=True`.
    Vllm,
    /// SGLang with `--enable-lora`.
    Sglang,
}

/// Bounds.
#[derive(Debug, Clone, PartialEq)]
pub struct LimitsConfig {
    /// Largest dataset in bytes.
    pub max_dataset_bytes: u64,
    /// Bytes of uploaded datasets that one user may keep.
    pub max_dataset_bytes_per_user: u64,
    /// Quotes per second and address, and how many at once.
    pub quote_rate: (f64, f64),
    /// Uploads and downloads per second and user, and how many at once.
    pub transfer_rate: (f64, f64),
    /// Uploads and downloads of one user at the same time.
    pub transfers_per_user: usize,
    /// Chat requests of one user per minute.
    pub chat_per_minute: f64,
    /// Chat requests of one user at the same time.
    pub chats_per_user: usize,
    /// Open streams of task news to one address.
    pub watches_per_address: usize,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            max_dataset_bytes: zerog_protocol::limits::MAX_DATASET_BYTES,
            max_dataset_bytes_per_user: 5 * zerog_protocol::limits::MAX_DATASET_BYTES,
            quote_rate: (5.0, 20.0),
            transfer_rate: (0.5, 6.0),
            transfers_per_user: 2,
            chat_per_minute: 120.0,
            chats_per_user: 8,
            watches_per_address: 64,
        }
    }
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:3080".into(),
            public_url: None,
            trusted_proxies: Vec::new(),
            register: true,
            shutdown_timeout: Duration::from_secs(20),
        }
    }
}

impl Default for TrainerConfig {
    fn default() -> Self {
        Self {
            command: None,
            timeout_s: 12 * 3600,
            stall_timeout_s: 1800,
            memory_limit_bytes: None,
            device: Device::Cpu,
        }
    }
}

impl Default for FineTuningConfig {
    fn default() -> Self {
        Self {
            price_per_token: U256::from(500_000_000_000u64),
            workers: 1,
            max_queue: 5,
            schema: Schema::Extended,
            on_missed_ack: OnMissedAck::Release,
            artifact_retention_s: zerog_lifecycle::deadline::ARTIFACT_RETENTION_S,
            dataset_retention_s: 72 * 3600,
            min_wallet_balance: U256::from(10_000_000_000_000_000u64),
            quota: zerog_chain::fine_tuning::Quota {
                cpu_count: std::thread::available_parallelism()
                    .map_or(1, |count| count.get() as u64),
                node_memory: 4,
                gpu_count: 0,
                node_storage: 50,
                gpu_type: String::new(),
            },
            trainer: TrainerConfig::default(),
        }
    }
}

impl InferenceConfig {
    /// The role with default prices and limits, serving one of the configured models.
    #[must_use]
    pub fn serving(model: &str) -> Self {
        Self {
            model: model.to_owned(),
            input_price: U256::from(100_000_000_000u64),
            output_price: U256::from(400_000_000_000u64),
            max_adapters_per_user: 20,
            load_wait: Duration::from_secs(20),
            settlement_interval: Duration::from_secs(300),
            min_settlement_fee: U256::from(4_000_000_000_000_000u64),
            signature_retention: Duration::from_secs(20 * 60),
            fine_tuning_provider: None,
            accept_wallet_key: false,
            accept_unrecorded_adapters: false,
            max_adapter_disk_bytes: 100 << 30,
            max_running: 8,
            max_waiting: 64,
            max_cached_tokens: 32_768,
            quantize: None,
            device: Device::Cpu,
            external: None,
        }
    }

    fn check(&self) -> Result<(), ConfigError> {
        let refuse = |key, problem: &str| {
            Err(ConfigError::Value {
                key,
                problem: problem.into(),
            })
        };
        if self.max_cached_tokens == 0 {
            return refuse(
                "inference.max_cached_tokens",
                "at least one token has to fit",
            );
        }
        if self.quantize.is_some() && self.device != Device::Cpu {
            return refuse(
                "inference.quantize",
                "leave it out with a device: weights that are rounded to 8 bits are served on the processor only",
            );
        }
        let Some(external) = &self.external else {
            return Ok(());
        };
        external.check()?;
        if self.quantize.is_some() {
            return refuse(
                "inference.quantize",
                "leave it out with inference.external: the server rounds weights itself, if it is told to",
            );
        }
        if self.device != Device::Cpu {
            return refuse(
                "inference.device",
                "leave it out with inference.external: the server has its own",
            );
        }
        Ok(())
    }
}

impl ModelConfig {
    /// A predefined model (`mock-model`, `Qwen2.5-0.5B-Instruct`, …) out of a folder, with its published hash and fees.
    /// `None` for other names.
    #[must_use]
    pub fn predefined(name: &str, folder: impl Into<PathBuf>, stand_in: bool) -> Option<Self> {
        let model = models::find(name)?;
        Some(Self {
            name: model.name.to_owned(),
            hash: model.hash,
            folder: folder.into(),
            stand_in,
            description: model.description.to_owned(),
            price_coefficient: model.price_coefficient,
            storage_fee: model.storage_fee(),
            is_predefined: true,
            usage_file: None,
        })
    }
}

impl Config {
    /// A provider on a local development network with both roles: the base model in `model_folder` is `mock-model` and
    /// stands in for `Qwen2.5-0.5B-Instruct`. The caller changes what it wants to be different.
    ///
    /// `listen` is an address with a port; port 0 takes a free one and registers the real one.
    #[must_use]
    pub fn devnet(
        rpc_url: &str,
        addresses: zerog_chain::Addresses,
        storage_indexer_url: &str,
        wallet: SecretKey,
        data_dir: impl Into<PathBuf>,
        listen: &str,
        model_folder: impl Into<PathBuf>,
    ) -> Self {
        let folder = model_folder.into();
        let models = [(models::MOCK_MODEL, false), (models::QWEN_0_5B, true)]
            .into_iter()
            .filter_map(|(name, stand_in)| ModelConfig::predefined(name, folder.clone(), stand_in))
            .collect();
        Self {
            chain: ChainConfig {
                rpc_url: rpc_url.to_owned(),
                chain_id: DEVNET_CHAIN_ID,
                addresses,
                wallet,
                storage_indexer_url: storage_indexer_url.to_owned(),
                storage_node_url: None,
                poll_interval: Duration::from_millis(200),
            },
            identity: IdentityConfig::Simulated,
            database_url: None,
            data_dir: data_dir.into(),
            server: ServerConfig {
                listen: listen.to_owned(),
                ..ServerConfig::default()
            },
            models,
            fine_tuning: Some(FineTuningConfig::default()),
            inference: Some(InferenceConfig::serving(models::QWEN_0_5B)),
            limits: LimitsConfig::default(),
        }
    }

    /// Reads and checks a configuration file. The wallet key comes from the file or environment variable that it names.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.into(),
            source,
        })?;
        let file = File::parse(&text)?;
        let wallet = file.chain.wallet()?;
        file.into_config(wallet)
    }

    /// Checks the text of a configuration file without reading the wallet key; for `config check` and tests.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn check_text(text: &str) -> Result<(), ConfigError> {
        File::parse(text)?
            .into_config(SecretKey::random())
            .map(|_| ())
    }

    /// Checks what the types cannot say.
    ///
    /// # Errors
    /// [`ConfigError::Value`].
    pub fn check(&self) -> Result<(), ConfigError> {
        let refuse = |key, problem: String| Err(ConfigError::Value { key, problem });
        if self.fine_tuning.is_none() && self.inference.is_none() {
            return refuse(
                "fine_tuning",
                "no role is on: add a [fine_tuning] or an [inference] section".into(),
            );
        }
        if self.models.is_empty() {
            return refuse(
                "models",
                "no base model: add a [[models]] entry with its folder".into(),
            );
        }
        for (index, model) in self.models.iter().enumerate() {
            if self.models[..index]
                .iter()
                .any(|other| other.name == model.name || other.hash == model.hash)
            {
                return refuse(
                    "models",
                    format!("{} has the name or hash of another entry", model.name),
                );
            }
            if model.stand_in && self.chain.chain_id != DEVNET_CHAIN_ID {
                return refuse(
                    "models.stand_in",
                    "other weights may stand in for a model only on chain 31337".into(),
                );
            }
        }
        if let Some(inference) = &self.inference
            && !self
                .models
                .iter()
                .any(|model| model.name == inference.model)
        {
            return refuse(
                "inference.model",
                format!("there is no [[models]] entry named {}", inference.model),
            );
        }
        if let Some(inference) = &self.inference {
            inference.check()?;
        }
        if self
            .server
            .public_url
            .as_ref()
            .is_some_and(|url| url.ends_with('/'))
        {
            return refuse(
                "server.public_url",
                "leave out the slash at the end: clients append paths as they are".into(),
            );
        }
        if self.identity == IdentityConfig::Simulated && self.chain.chain_id != DEVNET_CHAIN_ID {
            return refuse(
                "identity.tee",
                "a simulated TEE is for chain 31337 only".into(),
            );
        }
        if self
            .fine_tuning
            .as_ref()
            .is_some_and(|role| role.on_missed_ack == OnMissedAck::Penalty)
        {
            tracing::warn!(
                "on_missed_ack = \"penalty\": users who do not acknowledge in time are charged for nothing"
            );
        }
        Ok(())
    }

    /// The database URL, defaulted.
    #[must_use]
    pub fn database_url(&self) -> String {
        self.database_url.clone().unwrap_or_else(|| {
            format!(
                "sqlite://{}",
                self.data_dir.join("provider.sqlite").display()
            )
        })
    }
}

// The file, as written. Every level refuses unknown keys; the nearest known one is named below.

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    data_dir: PathBuf,
    chain: FileChain,
    #[serde(default)]
    identity: FileIdentity,
    #[serde(default)]
    database: FileDatabase,
    #[serde(default)]
    server: FileServer,
    #[serde(default)]
    models: Vec<FileModel>,
    fine_tuning: Option<FileFineTuning>,
    inference: Option<FileInference>,
    #[serde(default)]
    limits: FileLimits,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileChain {
    network: Option<String>,
    rpc_url: Option<String>,
    chain_id: Option<u64>,
    ledger_address: Option<Address>,
    fine_tuning_address: Option<Address>,
    inference_address: Option<Address>,
    flow_address: Option<Address>,
    wallet_key_file: Option<PathBuf>,
    wallet_key_env: Option<String>,
    storage_indexer_url: Option<String>,
    storage_node_url: Option<String>,
    poll_interval_ms: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileIdentity {
    tee: Option<String>,
    dstack_socket: Option<PathBuf>,
    collateral_services: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileDatabase {
    url: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileServer {
    listen: Option<String>,
    public_url: Option<String>,
    trusted_proxies: Option<Vec<std::net::IpAddr>>,
    register: Option<bool>,
    shutdown_timeout_s: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileModel {
    name: String,
    folder: PathBuf,
    hash: Option<B256>,
    stand_in: Option<bool>,
    description: Option<String>,
    price_coefficient: Option<u64>,
    storage_fee_neuron: Option<String>,
    usage_file: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileFineTuning {
    price_per_token_neuron: Option<String>,
    workers: Option<usize>,
    max_queue: Option<u64>,
    strict_training_params: Option<bool>,
    on_missed_ack: Option<OnMissedAck>,
    artifact_retention_days: Option<u64>,
    dataset_retention_hours: Option<u64>,
    min_wallet_balance_0g: Option<String>,
    trainer: Option<FileTrainer>,
    quota: Option<FileQuota>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileTrainer {
    command: Option<PathBuf>,
    timeout_s: Option<u64>,
    stall_timeout_s: Option<u64>,
    memory_limit_mib: Option<u64>,
    device: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileQuota {
    cpu_count: Option<u64>,
    memory_gb: Option<u64>,
    gpu_count: Option<u64>,
    storage_gb: Option<u64>,
    gpu_type: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileInference {
    model: String,
    input_price_neuron: Option<String>,
    output_price_neuron: Option<String>,
    max_adapters_per_user: Option<u64>,
    load_wait_s: Option<u64>,
    settlement_interval_s: Option<u64>,
    min_settlement_fee_neuron: Option<String>,
    signature_retention_s: Option<u64>,
    fine_tuning_provider: Option<Address>,
    accept_wallet_key: Option<bool>,
    accept_unrecorded_adapters: Option<bool>,
    max_adapter_disk_gib: Option<u64>,
    max_running: Option<usize>,
    max_waiting: Option<usize>,
    max_cached_tokens: Option<usize>,
    quantize: Option<Quantization>,
    device: Option<String>,
    external: Option<FileExternal>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileExternal {
    kind: ExternalKind,
    url: String,
    adapter_dir: PathBuf,
    model: Option<String>,
    max_adapters: Option<usize>,
    api_key_env: Option<String>,
    load_timeout_s: Option<u64>,
    answer_timeout_s: Option<u64>,
    stall_timeout_s: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileLimits {
    max_dataset_bytes: Option<u64>,
    max_dataset_bytes_per_user: Option<u64>,
    quotes_per_second: Option<f64>,
    transfers_per_second: Option<f64>,
    transfers_per_user: Option<usize>,
    chat_per_minute: Option<f64>,
    chats_per_user: Option<usize>,
    watches_per_address: Option<usize>,
}

impl File {
    fn parse(text: &str) -> Result<Self, ConfigError> {
        toml::from_str(text).map_err(|error| {
            let message = error.message();
            let place = error
                .span()
                .map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            let place = place.map_or_else(String::new, |line| format!("line {line}: "));
            ConfigError::Parse(format!(
                "{place}{}",
                nearest_key_hint(message).unwrap_or_else(|| message.to_owned())
            ))
        })
    }

    fn into_config(self, wallet: SecretKey) -> Result<Config, ConfigError> {
        let chain = self.chain.into_config(wallet)?;
        let identity = match self.identity.tee.as_deref().unwrap_or("dstack") {
            "simulated" => IdentityConfig::Simulated,
            "dstack" => IdentityConfig::Dstack {
                socket: self.identity.dstack_socket,
                collateral_services: self.identity.collateral_services.unwrap_or_else(|| {
                    zerog_attestation::collateral::PUBLIC_SERVICES
                        .map(str::to_owned)
                        .to_vec()
                }),
            },
            other => {
                let problem = format!("`{other}` is none of \"simulated\" and \"dstack\"");
                return Err(ConfigError::Value {
                    key: "identity.tee",
                    problem,
                });
            }
        };
        let models = self
            .models
            .into_iter()
            .map(FileModel::into_config)
            .collect::<Result<_, _>>()?;
        let server = ServerConfig::default();
        let limits = LimitsConfig::default();
        let config = Config {
            chain,
            identity,
            database_url: self.database.url,
            data_dir: self.data_dir,
            server: ServerConfig {
                listen: self.server.listen.unwrap_or(server.listen),
                public_url: self.server.public_url,
                trusted_proxies: self.server.trusted_proxies.unwrap_or_default(),
                register: self.server.register.unwrap_or(server.register),
                shutdown_timeout: self
                    .server
                    .shutdown_timeout_s
                    .map_or(server.shutdown_timeout, Duration::from_secs),
            },
            models,
            fine_tuning: self
                .fine_tuning
                .map(FileFineTuning::into_config)
                .transpose()?,
            inference: self.inference.map(FileInference::into_config).transpose()?,
            limits: LimitsConfig {
                max_dataset_bytes: self
                    .limits
                    .max_dataset_bytes
                    .unwrap_or(limits.max_dataset_bytes),
                max_dataset_bytes_per_user: self
                    .limits
                    .max_dataset_bytes_per_user
                    .unwrap_or(limits.max_dataset_bytes_per_user),
                quote_rate: (
                    self.limits.quotes_per_second.unwrap_or(limits.quote_rate.0),
                    limits.quote_rate.1,
                ),
                transfer_rate: (
                    self.limits
                        .transfers_per_second
                        .unwrap_or(limits.transfer_rate.0),
                    limits.transfer_rate.1,
                ),
                transfers_per_user: self
                    .limits
                    .transfers_per_user
                    .unwrap_or(limits.transfers_per_user),
                chat_per_minute: self
                    .limits
                    .chat_per_minute
                    .unwrap_or(limits.chat_per_minute),
                chats_per_user: self.limits.chats_per_user.unwrap_or(limits.chats_per_user),
                watches_per_address: self
                    .limits
                    .watches_per_address
                    .unwrap_or(limits.watches_per_address),
            },
        };
        config.check()?;
        Ok(config)
    }
}

impl FileChain {
    fn wallet(&self) -> Result<SecretKey, ConfigError> {
        let key = "chain.wallet_key_file";
        let refuse = |problem: String| ConfigError::Value { key, problem };
        let text = match (&self.wallet_key_file, &self.wallet_key_env) {
            (Some(path), None) => std::fs::read_to_string(path)
                .map_err(|error| refuse(format!("{} cannot be read: {error}", path.display())))?,
            (None, Some(name)) => std::env::var(name)
                .map_err(|_| refuse(format!("the environment variable {name} is not set")))?,
            _ => {
                return Err(refuse(
                    "set exactly one of wallet_key_file and wallet_key_env".into(),
                ));
            }
        };
        let text = Zeroizing::new(text);
        text.parse()
            .map_err(|error: zerog_protocol::secret::SecretKeyError| refuse(error.to_string()))
    }

    fn into_config(self, wallet: SecretKey) -> Result<ChainConfig, ConfigError> {
        let known =
            match self.network.as_deref() {
                None => None,
                Some(name) => Some(zerog_chain::networks::by_name(name).ok_or_else(|| {
                    ConfigError::Value {
                        key: "chain.network",
                        problem: format!(
                            "`{name}` is none of mainnet, testnet, testnet-dev and devnet"
                        ),
                    }
                })?),
            };
        let missing = |key| ConfigError::Value {
            key,
            problem: "set it, or set chain.network".into(),
        };
        let address = |own: Option<Address>, of: fn(&zerog_chain::Addresses) -> Address, key| {
            own.or_else(|| known.as_ref().map(|network| of(&network.addresses)))
                .ok_or_else(|| missing(key))
        };
        Ok(ChainConfig {
            rpc_url: self
                .rpc_url
                .or_else(|| known.as_ref().map(|network| network.rpc_url.to_owned()))
                .ok_or_else(|| missing("chain.rpc_url"))?,
            chain_id: self
                .chain_id
                .or_else(|| known.as_ref().map(|network| network.chain_id))
                .ok_or_else(|| missing("chain.chain_id"))?,
            addresses: zerog_chain::Addresses {
                ledger: address(self.ledger_address, |a| a.ledger, "chain.ledger_address")?,
                inference: address(
                    self.inference_address,
                    |a| a.inference,
                    "chain.inference_address",
                )?,
                fine_tuning: address(
                    self.fine_tuning_address,
                    |a| a.fine_tuning,
                    "chain.fine_tuning_address",
                )?,
                flow: self
                    .flow_address
                    .or_else(|| known.as_ref().and_then(|network| network.addresses.flow)),
            },
            wallet,
            storage_indexer_url: self
                .storage_indexer_url
                .or_else(|| {
                    known
                        .as_ref()
                        .map(|network| network.storage_indexer_url.to_owned())
                })
                .ok_or_else(|| missing("chain.storage_indexer_url"))?,
            storage_node_url: self.storage_node_url,
            poll_interval: Duration::from_millis(self.poll_interval_ms.unwrap_or(2000).max(50)),
        })
    }
}

impl FileModel {
    fn into_config(self) -> Result<ModelConfig, ConfigError> {
        let storage_fee = self
            .storage_fee_neuron
            .as_deref()
            .map(|text| neuron("models.storage_fee_neuron", text))
            .transpose()?;
        let stand_in = self.stand_in.unwrap_or(false);
        if let Some(mut model) = ModelConfig::predefined(&self.name, &self.folder, stand_in)
            && self.hash.is_none_or(|hash| hash == model.hash)
        {
            model.description = self.description.unwrap_or(model.description);
            model.price_coefficient = self.price_coefficient.unwrap_or(model.price_coefficient);
            model.storage_fee = storage_fee.unwrap_or(model.storage_fee);
            model.usage_file = self.usage_file;
            return Ok(model);
        }
        let hash = self.hash.ok_or_else(|| ConfigError::Value {
            key: "models.hash",
            problem: format!(
                "{} is not a predefined model, so it needs a hash of your choice",
                self.name
            ),
        })?;
        if models::find(&hash.to_string()).is_some() {
            return Err(ConfigError::Value {
                key: "models.hash",
                problem: format!("{hash} belongs to a predefined model"),
            });
        }
        Ok(ModelConfig {
            description: self
                .description
                .unwrap_or_else(|| format!("The base model {}.", self.name)),
            name: self.name,
            hash,
            folder: self.folder,
            stand_in,
            price_coefficient: self.price_coefficient.unwrap_or(1),
            storage_fee: storage_fee.unwrap_or(U256::from(10_000_000_000_000_000u64)),
            is_predefined: false,
            usage_file: self.usage_file,
        })
    }
}

impl FileFineTuning {
    fn into_config(self) -> Result<FineTuningConfig, ConfigError> {
        let default = FineTuningConfig::default();
        let trainer = self.trainer.unwrap_or_default();
        let quota = self.quota.unwrap_or_default();
        let days = |days: u64| days.saturating_mul(86_400);
        Ok(FineTuningConfig {
            price_per_token: neuron_or(
                "fine_tuning.price_per_token_neuron",
                self.price_per_token_neuron.as_deref(),
                default.price_per_token,
            )?,
            workers: self.workers.unwrap_or(default.workers).max(1),
            max_queue: self.max_queue.unwrap_or(default.max_queue),
            schema: if self.strict_training_params == Some(true) {
                Schema::Strict
            } else {
                Schema::Extended
            },
            on_missed_ack: self.on_missed_ack.unwrap_or_default(),
            artifact_retention_s: self
                .artifact_retention_days
                .map_or(default.artifact_retention_s, days),
            dataset_retention_s: self
                .dataset_retention_hours
                .map_or(default.dataset_retention_s, |hours| hours * 3600),
            min_wallet_balance: match self.min_wallet_balance_0g.as_deref() {
                Some(text) => {
                    zerog_protocol::amount::parse_0g(text).map_err(|error| ConfigError::Value {
                        key: "fine_tuning.min_wallet_balance_0g",
                        problem: error.to_string(),
                    })?
                }
                None => default.min_wallet_balance,
            },
            quota: zerog_chain::fine_tuning::Quota {
                cpu_count: quota.cpu_count.unwrap_or(default.quota.cpu_count),
                node_memory: quota.memory_gb.unwrap_or(default.quota.node_memory),
                gpu_count: quota.gpu_count.unwrap_or(default.quota.gpu_count),
                node_storage: quota.storage_gb.unwrap_or(default.quota.node_storage),
                gpu_type: quota.gpu_type.unwrap_or(default.quota.gpu_type),
            },
            trainer: TrainerConfig {
                command: trainer.command,
                timeout_s: trainer.timeout_s.unwrap_or(default.trainer.timeout_s),
                stall_timeout_s: trainer
                    .stall_timeout_s
                    .unwrap_or(default.trainer.stall_timeout_s),
                memory_limit_bytes: trainer
                    .memory_limit_mib
                    .map(|mib| mib.saturating_mul(1 << 20)),
                device: device("fine_tuning.trainer.device", trainer.device.as_deref())?,
            },
        })
    }
}

impl FileInference {
    fn into_config(self) -> Result<InferenceConfig, ConfigError> {
        let default = InferenceConfig::serving(&self.model);
        Ok(InferenceConfig {
            input_price: neuron_or(
                "inference.input_price_neuron",
                self.input_price_neuron.as_deref(),
                default.input_price,
            )?,
            output_price: neuron_or(
                "inference.output_price_neuron",
                self.output_price_neuron.as_deref(),
                default.output_price,
            )?,
            max_adapters_per_user: self
                .max_adapters_per_user
                .unwrap_or(default.max_adapters_per_user),
            load_wait: self
                .load_wait_s
                .map_or(default.load_wait, Duration::from_secs),
            settlement_interval: self
                .settlement_interval_s
                .map_or(default.settlement_interval, Duration::from_secs),
            min_settlement_fee: neuron_or(
                "inference.min_settlement_fee_neuron",
                self.min_settlement_fee_neuron.as_deref(),
                default.min_settlement_fee,
            )?,
            signature_retention: self
                .signature_retention_s
                .map_or(default.signature_retention, Duration::from_secs),
            fine_tuning_provider: self.fine_tuning_provider,
            accept_wallet_key: self.accept_wallet_key.unwrap_or(false),
            accept_unrecorded_adapters: self.accept_unrecorded_adapters.unwrap_or(false),
            max_adapter_disk_bytes: self
                .max_adapter_disk_gib
                .unwrap_or(100)
                .saturating_mul(1 << 30),
            max_running: self.max_running.unwrap_or(default.max_running).max(1),
            max_waiting: self.max_waiting.unwrap_or(default.max_waiting),
            max_cached_tokens: self.max_cached_tokens.unwrap_or(default.max_cached_tokens),
            quantize: self.quantize,
            device: device("inference.device", self.device.as_deref())?,
            external: self.external.map(FileExternal::into_config).transpose()?,
            model: self.model,
        })
    }
}

impl FileExternal {
    fn into_config(self) -> Result<ExternalConfig, ConfigError> {
        let default = ExternalConfig::new(self.kind, &self.url, self.adapter_dir);
        let api_key = match self.api_key_env {
            Some(name) => {
                let key = std::env::var(&name).map_err(|_| ConfigError::Value {
                    key: "inference.external.api_key_env",
                    problem: format!("the environment variable {name} is not set"),
                })?;
                Some(Zeroizing::new(key))
            }
            None => None,
        };
        let seconds = |own: Option<u64>, default| own.map_or(default, Duration::from_secs);
        Ok(ExternalConfig {
            model: self.model,
            max_adapters: self.max_adapters.unwrap_or(default.max_adapters),
            api_key,
            load_timeout: seconds(self.load_timeout_s, default.load_timeout),
            answer_timeout: seconds(self.answer_timeout_s, default.answer_timeout),
            stall_timeout: seconds(self.stall_timeout_s, default.stall_timeout),
            ..default
        })
    }
}

/// A device by its text; the processor where none is given.
fn device(key: &'static str, text: Option<&str>) -> Result<Device, ConfigError> {
    let Some(text) = text else {
        return Ok(Device::Cpu);
    };
    text.parse()
        .map_err(|error: zerog_trainer::UnknownDevice| ConfigError::Value {
            key,
            problem: error.to_string(),
        })
}

fn neuron(key: &'static str, text: &str) -> Result<U256, ConfigError> {
    U256::from_str_radix(text.trim(), 10).map_err(|_| ConfigError::Value {
        key,
        problem: format!("`{text}` is not a whole number of neuron"),
    })
}

fn neuron_or(key: &'static str, text: Option<&str>, default: U256) -> Result<U256, ConfigError> {
    text.map_or(Ok(default), |text| neuron(key, text))
}

/// Turns serde's "unknown field `x`, expected one of `a`, `b`" into a text that names the nearest key first.
fn nearest_key_hint(message: &str) -> Option<String> {
    let rest = message.split_once("unknown field `")?.1;
    let (unknown, rest) = rest.split_once('`')?;
    let known: BTreeMap<usize, &str> = rest
        .split('`')
        .skip(1)
        .step_by(2)
        .map(|key| (edit_distance(unknown, key), key))
        .collect();
    let (_, nearest) = known.first_key_value()?;
    Some(format!(
        "unknown key `{unknown}`; did you mean `{nearest}`?"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALLEST: &str = r#"
        data_dir = "/tmp/x"
        [chain]
        network = "devnet"
        wallet_key_env = "K"
        [identity]
        tee = "simulated"
        [[models]]
        name = "mock-model"
        folder = "/models/tiny"
        [fine_tuning]
    "#;

    #[test]
    fn the_example_file_is_valid() {
        Config::check_text(include_str!("../../../provider.example.toml")).unwrap();
        Config::check_text(SMALLEST).unwrap();
    }

    #[test]
    fn unknown_keys_name_the_nearest_one() {
        let error = Config::check_text(&format!("{SMALLEST}\nwrokers = 2"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("did you mean `workers`"), "{error}");
        let error = Config::check_text(&format!("{SMALLEST}\n[sever]\nlisten = \"x\""))
            .unwrap_err()
            .to_string();
        assert!(error.contains("did you mean `server`"), "{error}");
    }

    #[test]
    fn what_cannot_work_is_refused_with_the_remedy() {
        let refused = |text: &str| Config::check_text(text).unwrap_err().to_string();
        assert!(refused(&SMALLEST.replace("[fine_tuning]", "")).contains("no role is on"));
        assert!(refused(&SMALLEST.replace("devnet", "testnet")).contains("31337"));
        assert!(refused(&SMALLEST.replace("devnet", "nowhere")).contains("nowhere"));
        assert!(refused(&SMALLEST.replace("mock-model", "mine")).contains("hash"));
        assert!(
            refused(&format!("{SMALLEST}\n[inference]\nmodel = \"Qwen3-32B\""))
                .contains("Qwen3-32B")
        );
        assert!(
            refused(&format!("{SMALLEST}\nprice_per_token_neuron = \"1.5\""))
                .contains("whole number")
        );
        assert!(
            refused(&format!("{SMALLEST}\n[server]\npublic_url = \"http://a/\"")).contains("slash")
        );
    }

    #[test]
    fn a_server_that_computes_is_named_with_its_folder() {
        let with = |external: &str| {
            let text = format!(
                "{SMALLEST}\n[inference]\nmodel = \"mock-model\"\n[inference.external]\n{external}"
            );
            Config::check_text(&text)
        };
        with("kind = \"vllm\"\nurl = \"http://127.0.0.1:8000\"\nadapter_dir = \"/dev/shm/a\"")
            .unwrap();
        with("kind = \"sglang\"\nurl = \"http://127.0.0.1:8000/v1\"\nadapter_dir = \"/dev/shm/a\"")
            .unwrap_err();
        with("kind = \"vllm\"\nurl = \"http://127.0.0.1:8000\"\nadapter_dir = \"a\"").unwrap_err();
        with("kind = \"other\"\nurl = \"http://127.0.0.1:8000\"\nadapter_dir = \"/a\"")
            .unwrap_err();
        let rounded = |section: &str| {
            let text = format!(
                "{SMALLEST}\n[inference]\nmodel = \"mock-model\"\nquantize = \"int8\"\n{section}"
            );
            Config::check_text(&text)
        };
        rounded("").unwrap();
        let both =
            "[inference.external]\nkind = \"vllm\"\nurl = \"http://a\"\nadapter_dir = \"/a\"";
        let refused = rounded(both).unwrap_err().to_string();
        assert!(refused.contains("inference.quantize"), "{refused}");
    }

    #[test]
    fn training_and_serving_may_run_on_a_device() {
        let trains_on = |device: &str| {
            Config::check_text(&format!(
                "{SMALLEST}\n[fine_tuning.trainer]\ndevice = \"{device}\""
            ))
        };
        trains_on("cpu").unwrap();
        trains_on("cuda:1").unwrap();
        let refused = trains_on("gpu").unwrap_err().to_string();
        assert!(
            refused.contains("fine_tuning.trainer.device") && refused.contains("cuda:0"),
            "{refused}"
        );
        let serves_on = |device: &str| {
            Config::check_text(&format!(
                "{SMALLEST}\n[inference]\nmodel = \"mock-model\"\ndevice = \"{device}\""
            ))
        };
        serves_on("cpu").unwrap();
        serves_on("cuda").unwrap();
        let refused = serves_on("gpu").unwrap_err().to_string();
        assert!(refused.contains("inference.device"), "{refused}");
        let rounded = serves_on("cuda:0\"\nquantize = \"int8").unwrap_err();
        assert!(rounded.to_string().contains("processor only"), "{rounded}");
        let external =
            "[inference.external]\nkind = \"vllm\"\nurl = \"http://a\"\nadapter_dir = \"/a";
        let both = serves_on(&format!("cuda:0\"\n{external}")).unwrap_err();
        assert!(both.to_string().contains("inference.device"), "{both}");
        let none = serves_on(
            "cpu\"\nmax_cached_tokens = 0\nfine_tuning_provider = \"0x0000000000000000000000000000000000000001",
        );
        let none = none.unwrap_err().to_string();
        assert!(none.contains("inference.max_cached_tokens"), "{none}");
    }

    #[test]
    fn the_wallet_key_is_never_printed() {
        let key: SecretKey = "0x59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d"
            .parse()
            .unwrap();
        let addresses = zerog_chain::networks::DEVNET.addresses;
        let config = Config::devnet(
            "http://127.0.0.1:1",
            addresses,
            "http://127.0.0.1:2",
            key,
            "/tmp/x",
            "127.0.0.1:0",
            "/m",
        );
        config.check().unwrap();
        assert!(
            !format!("{config:?}")
                .to_lowercase()
                .contains("59c6995e998f97a5")
        );
    }
}
