//! Starting and stopping the parts of a local network.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use alloy_primitives::Address;
use alloy_signer_local::PrivateKeySigner;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use zerog_chain::{ChainClient, ChainError, ClientOptions, deploy};
use zerog_devchain::accounts::{self, DevelopmentAccount};
use zerog_devchain::{DevChain, ServerHandle};
use zerog_provider::{Config, Provider, StartError};
use zerog_sdk::{NetworkSettings, SecretKey};
use zerog_storage::node::{NodeOptions, StorageNode};

use crate::base_model;

/// Development account 0: deployer and owner of the contracts, and the first user.
pub const OWNER: usize = 0;
/// Development account 2: the provider.
pub const PROVIDER: usize = 2;

/// How a local network is made.
#[derive(Debug, Clone)]
pub struct DevnetOptions {
    /// Where everything is kept. `None`: a temporary folder that goes with the network.
    pub data_dir: Option<PathBuf>,
    /// Port of the chain's JSON-RPC; 0 takes a free one.
    pub rpc_port: u16,
    /// Port of storage node and indexer; 0 takes a free one.
    pub storage_port: u16,
    /// Port of the provider; 0 takes a free one.
    pub provider_port: u16,
    /// Whether the provider runs in this process. Without it, `provider_url` in the ready information is empty and the
    /// owner still acknowledges every service that registers.
    pub provider: bool,
    /// The program with a `train` subcommand. `None`: the running executable.
    pub trainer_command: Option<PathBuf>,
    /// The base model's folder. `None`: the small model inside this binary.
    pub model_folder: Option<PathBuf>,
}

impl Default for DevnetOptions {
    fn default() -> Self {
        Self {
            data_dir: None,
            rpc_port: 0,
            storage_port: 0,
            provider_port: 0,
            provider: true,
            trainer_command: None,
            model_folder: None,
        }
    }
}

/// Why a local network did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DevnetError {
    /// A port is taken by another program.
    #[error(
        "port {port} ({purpose}) is taken: stop the program that uses it, or choose another with {flag}"
    )]
    PortTaken {
        /// The port.
        port: u16,
        /// What it was for.
        purpose: &'static str,
        /// The option that moves it.
        flag: &'static str,
    },
    /// A file or folder could not be used.
    #[error("{what}: {source}")]
    File {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// The embedded chain did not start.
    #[error("the embedded chain did not start: {0}")]
    Chain(#[from] zerog_devchain::Error),
    /// A contract call failed.
    #[error("a contract call failed: {0}")]
    Contract(#[from] ChainError),
    /// The storage node did not start.
    #[error("the storage node did not start: {0}")]
    Storage(#[from] zerog_storage::Error),
    /// The provider did not start.
    #[error("the provider did not start: {0}")]
    Provider(#[from] StartError),
    /// The services were not acknowledged in time.
    #[error("the provider's services were not registered and acknowledged within {0:?}")]
    NotReady(Duration),
}

/// What a user of the network needs to know, also the content of the ready file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadyInfo {
    /// Chain JSON-RPC.
    pub rpc_url: String,
    /// 31337.
    pub chain_id: u64,
    /// Storage node JSON-RPC.
    pub storage_url: String,
    /// Storage indexer JSON-RPC.
    pub indexer_url: String,
    /// The provider's base URL; empty when it runs elsewhere.
    pub provider_url: String,
    /// The provider's wallet address.
    pub provider_address: Address,
    /// Contract addresses.
    pub contracts: Contracts,
    /// Funded accounts with their published keys; worthless anywhere else.
    pub accounts: Vec<FundedAccount>,
}

/// Contract addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contracts {
    /// LedgerManager.
    pub ledger: Address,
    /// InferenceServing.
    pub inference: Address,
    /// FineTuningServing.
    pub fine_tuning: Address,
    /// Storage Flow.
    pub flow: Address,
    /// Storage fee market.
    pub market: Address,
}

/// One development account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FundedAccount {
    /// Its address.
    pub address: Address,
    /// Its private key: public knowledge.
    pub private_key: String,
}

/// A running network.
#[derive(Debug)]
pub struct Devnet {
    /// Addresses and keys.
    pub info: ReadyInfo,
    data_dir: PathBuf,
    provider: Option<Provider>,
    owner: JoinHandle<()>,
    storage: StorageNode,
    rpc_server: ServerHandle,
    chain: DevChain,
    // Dropped last: everything above may still write into it.
    _temporary: Option<tempfile::TempDir>,
}

/// How long the provider may take to register before the start counts as failed.
const READY_TIMEOUT: Duration = Duration::from_secs(30);
/// How often the owner looks for services to acknowledge.
const OWNER_POLL: Duration = Duration::from_millis(100);

impl Devnet {
    /// Starts chain, storage node and (unless switched off) the provider, and returns when everything answers.
    ///
    /// # Errors
    /// See [`DevnetError`]. What was started before the error is stopped.
    pub async fn start(options: DevnetOptions) -> Result<Self, DevnetError> {
        let temporary = match &options.data_dir {
            Some(_) => None,
            None => Some(
                tempfile::tempdir()
                    .map_err(|source| file("cannot create a temporary folder", source))?,
            ),
        };
        let data_dir = match (&options.data_dir, &temporary) {
            (Some(data_dir), _) => data_dir.clone(),
            (None, Some(temporary)) => temporary.path().to_path_buf(),
            (None, None) => unreachable!("one of the two was just set"),
        };
        std::fs::create_dir_all(&data_dir)
            .map_err(|source| file(format!("cannot create {}", data_dir.display()), source))?;

        let genesis = deploy::genesis(&deploy::DeployOptions::default())?;
        let chain = DevChain::open(zerog_devchain::Options {
            genesis_transactions: genesis.transactions,
            data_dir: options.data_dir.is_some().then(|| data_dir.join("chain")),
            dev_methods: true,
            ..Default::default()
        })?;
        let rpc_server =
            chain.serve(listen(options.rpc_port, "chain JSON-RPC", "--rpc-port").await?)?;
        let rpc_url = rpc_server.url();

        let flow = genesis.addresses.flow.unwrap_or_default();
        let storage = StorageNode::start(NodeOptions {
            listen: SocketAddr::from(([127, 0, 0, 1], options.storage_port)),
            ..NodeOptions::new(data_dir.join("storage"), rpc_url.clone(), flow)
        })
        .await
        .map_err(|error| match error {
            zerog_storage::Error::Listen { source, .. } => cannot_listen(
                source,
                options.storage_port,
                "storage node",
                "--storage-port",
            ),
            error => error.into(),
        })?;

        let owner_client =
            ChainClient::connect(&rpc_url, genesis.addresses, ClientOptions::default())
                .await?
                .with_wallet(signer(&accounts::ACCOUNTS[OWNER]));
        let owner = tokio::spawn(acknowledge_services(owner_client.clone()));

        let provider_account = accounts::ACCOUNTS[PROVIDER];
        let provider = if options.provider {
            let model_folder = match &options.model_folder {
                Some(folder) => folder.clone(),
                None => base_model::unpack(&data_dir)
                    .map_err(|source| file("cannot unpack the base model", source))?,
            };
            let mut config = Config::devnet(
                &rpc_url,
                genesis.addresses,
                &storage.indexer_url(),
                secret_key(&provider_account),
                data_dir.join("provider"),
                &format!("127.0.0.1:{}", options.provider_port),
                model_folder,
            );
            if let Some(fine_tuning) = &mut config.fine_tuning {
                fine_tuning.trainer.command = options.trainer_command.clone();
            }
            let provider = Provider::start(config).await.map_err(|error| match error {
                StartError::Listen { source, .. } => {
                    cannot_listen(source, options.provider_port, "provider", "--provider-port")
                }
                error => error.into(),
            })?;
            wait_acknowledged(&owner_client, provider_account.address).await?;
            Some(provider)
        } else {
            None
        };

        let info = ReadyInfo {
            rpc_url,
            chain_id: chain.chain_id(),
            storage_url: storage.node_url(),
            indexer_url: storage.indexer_url(),
            provider_url: provider
                .as_ref()
                .map(|provider| provider.url().to_owned())
                .unwrap_or_default(),
            provider_address: provider_account.address,
            contracts: Contracts {
                ledger: genesis.addresses.ledger,
                inference: genesis.addresses.inference,
                fine_tuning: genesis.addresses.fine_tuning,
                flow,
                market: genesis.market,
            },
            accounts: accounts::ACCOUNTS
                .iter()
                .map(|account| FundedAccount {
                    address: account.address,
                    private_key: account.private_key.to_string(),
                })
                .collect(),
        };
        Ok(Self {
            info,
            data_dir,
            provider,
            owner,
            storage,
            rpc_server,
            chain,
            _temporary: temporary,
        })
    }

    /// The network as the SDK wants it.
    pub fn network(&self) -> NetworkSettings {
        self.info.network()
    }

    /// The private key of a development account.
    pub fn key(&self, account: usize) -> SecretKey {
        secret_key(&accounts::ACCOUNTS[account])
    }

    /// Where the network keeps its files.
    pub fn data_dir(&self) -> &std::path::Path {
        &self.data_dir
    }

    /// The embedded chain, for moving its clock.
    pub fn chain(&self) -> &DevChain {
        &self.chain
    }

    /// Stops everything in reverse order; the provider finishes or hands back what it is doing.
    pub async fn shutdown(self) {
        if let Some(provider) = self.provider {
            provider.shutdown().await;
        }
        self.owner.abort();
        self.storage.shutdown().await;
        self.rpc_server.shutdown().await;
    }
}

impl ReadyInfo {
    /// The network as the SDK wants it.
    pub fn network(&self) -> NetworkSettings {
        NetworkSettings {
            name: "devnet".to_owned(),
            rpc_url: self.rpc_url.clone(),
            chain_id: self.chain_id,
            storage_indexer_url: self.indexer_url.clone(),
            addresses: zerog_chain::Addresses {
                ledger: self.contracts.ledger,
                inference: self.contracts.inference,
                fine_tuning: self.contracts.fine_tuning,
                flow: Some(self.contracts.flow),
            },
        }
    }
}

/// The owner's part of the network: acknowledges the TEE signer of every service that registers or changes.
async fn acknowledge_services(owner: ChainClient) {
    let mut ticks = tokio::time::interval(OWNER_POLL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        if let Err(error) = acknowledge_once(&owner).await {
            tracing::warn!(%error, "the owner could not acknowledge a service; trying again");
        }
    }
}

async fn acknowledge_once(owner: &ChainClient) -> Result<(), ChainError> {
    for service in owner.fine_tuning().services().await? {
        if !service.tee_signer_acknowledged && !service.tee_signer.is_zero() {
            owner
                .fine_tuning()
                .acknowledge_tee_signer_by_owner(service.provider)
                .await?;
        }
    }
    for service in owner.inference().services().await? {
        if !service.tee_signer_acknowledged && !service.tee_signer.is_zero() {
            owner
                .inference()
                .acknowledge_tee_signer_by_owner(service.provider)
                .await?;
        }
    }
    Ok(())
}

async fn wait_acknowledged(client: &ChainClient, provider: Address) -> Result<(), DevnetError> {
    let started = Instant::now();
    while started.elapsed() < READY_TIMEOUT {
        let fine_tuning = client.fine_tuning().service(provider).await?;
        let inference = client.inference().service(provider).await?;
        let both = fine_tuning.is_some_and(|service| service.tee_signer_acknowledged)
            && inference.is_some_and(|service| service.tee_signer_acknowledged);
        if both {
            return Ok(());
        }
        tokio::time::sleep(OWNER_POLL / 2).await;
    }
    Err(DevnetError::NotReady(READY_TIMEOUT))
}

async fn listen(
    port: u16,
    purpose: &'static str,
    flag: &'static str,
) -> Result<TcpListener, DevnetError> {
    TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], port)))
        .await
        .map_err(|source| cannot_listen(source, port, purpose, flag))
}

/// A taken port is reported with the option that moves it.
fn cannot_listen(
    source: io::Error,
    port: u16,
    purpose: &'static str,
    flag: &'static str,
) -> DevnetError {
    if source.kind() == io::ErrorKind::AddrInUse {
        DevnetError::PortTaken {
            port,
            purpose,
            flag,
        }
    } else {
        file(format!("cannot listen on port {port} ({purpose})"), source)
    }
}

fn file(what: impl Into<String>, source: io::Error) -> DevnetError {
    DevnetError::File {
        what: what.into(),
        source,
    }
}

fn secret_key(account: &DevelopmentAccount) -> SecretKey {
    SecretKey::from_bytes(&account.private_key.0).expect("development keys are valid")
}

fn signer(account: &DevelopmentAccount) -> PrivateKeySigner {
    PrivateKeySigner::from_bytes(&account.private_key).expect("development keys are valid")
}
