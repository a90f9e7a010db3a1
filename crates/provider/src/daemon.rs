//! From a configuration to a running provider and back: start, resume, shut down.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use alloy_primitives::Address;
use alloy_signer_local::PrivateKeySigner;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, broadcast, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use zerog_chain::{ChainClient, ChainError, ClientOptions};
use zerog_lifecycle::adapter::AdapterEvent;
use zerog_protocol::adapter::AdapterState;
use zerog_protocol::limits::BLOCKING_JOBS;
use zerog_trainer::Device;

use crate::app::{App, Clock};
use crate::catalogue::{Catalogue, CatalogueError};
use crate::collateral::CollateralKeeper;
use crate::config::{Config, ConfigError, IdentityConfig};
use crate::http::limits::Limiter;
use crate::identity::{Identity, IdentityError};
use crate::inference_role::{Engine, EngineStartError, InferenceRole};
use crate::outbox::{Outbox, OutboxError};
use crate::store::{Store, StoreError};
use crate::vault::{Vault, VaultError};
use crate::{billing, chain_watcher, effects, http, registration};

/// File of this instance's name.
const INSTANCE_FILE: &str = "instance";
/// File that keeps a second daemon out of the data directory.
const LOCK_FILE: &str = "lock";

/// Why the provider did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The configuration cannot work.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The data directory cannot be used.
    #[error("the data directory {path} cannot be used: {source}")]
    DataDir {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Another daemon uses the data directory.
    #[error("another provider is using the data directory {path}")]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}; choose another port with server.listen")]
    Listen {
        /// As configured.
        address: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The chain cannot be reached or is another one.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// The storage endpoint is not usable.
    #[error(transparent)]
    Storage(#[from] zerog_storage::Error),
    /// The database cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There are no keys.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The sealed files cannot be used.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// A base model cannot be used.
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    /// The device for training cannot be used.
    #[error("fine_tuning.trainer.device: {0}")]
    Device(#[from] zerog_trainer::DeviceError),
    /// The engine did not start.
    #[error(transparent)]
    Engine(#[from] EngineStartError),
    /// The service could not be registered.
    #[error("the service could not be registered: {0}")]
    Registration(#[from] OutboxError),
}

/// A running provider. Dropping it does not stop it; call [`Provider::shutdown`].
#[derive(Debug)]
pub struct Provider {
    app: Arc<App>,
    url: String,
    local_url: String,
    _lock: std::fs::File,
}

/// Opens the device that training runs on, so that a missing driver is found now and not by the first task. A program of
/// its own may have another device.
async fn probe_device(config: &Config) -> Result<(), StartError> {
    let Some(role) = &config.fine_tuning else {
        return Ok(());
    };
    let device = role.trainer.device;
    if role.trainer.command.is_some() || device == Device::Cpu {
        return Ok(());
    }
    let probed = tokio::task::spawn_blocking(move || device.probe()).await;
    let name = probed.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?;
    tracing::info!(%device, name, "training runs on this device");
    Ok(())
}

/// What does not need a network: keys, files, models, database.
struct Ground {
    store: Store,
    chain: ChainClient,
    provider: Address,
    identity: Identity,
    catalogue: Catalogue,
    outbox: Outbox,
    lock: std::fs::File,
}

impl Provider {
    /// Starts a provider in this process: opens its data, resumes what an earlier life left, registers its services and
    /// serves HTTP. Returns when requests are answered.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(config: Config) -> Result<Self, StartError> {
        config.check()?;
        probe_device(&config).await?;
        install_tls();
        let listener = TcpListener::bind(&config.server.listen)
            .await
            .map_err(|source| StartError::Listen {
                address: config.server.listen.clone(),
                source,
            })?;
        let address = listener.local_addr().map_err(|source| StartError::Listen {
            address: config.server.listen.clone(),
            source,
        })?;
        let local_url = format!("http://{}", reachable(address));
        let url = config
            .server
            .public_url
            .clone()
            .unwrap_or_else(|| local_url.clone());
        let ground = lay_ground(&config).await?;
        let vault = Vault::open(&config.data_dir, ground.identity.keys().vault.clone())?;
        let storage = storage_client(&config, &vault)?;
        let inference = match config.inference.clone() {
            Some(role) => {
                let catalogue = ground.catalogue.clone();
                let started =
                    tokio::task::spawn_blocking(move || InferenceRole::start(role, &catalogue))
                        .await;
                Some(
                    started
                        .unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?,
                )
            }
            None => None,
        };
        let instance = instance_name(&config.data_dir).map_err(|source| StartError::DataDir {
            path: config.data_dir.clone(),
            source,
        })?;
        let app = Arc::new(App {
            limiter: Limiter::new(&config.limits),
            store: ground.store,
            chain: ground.chain,
            provider: ground.provider,
            identity: ground.identity,
            collateral: CollateralKeeper::new(match &config.identity {
                IdentityConfig::Dstack {
                    collateral_services,
                    ..
                } => collateral_services.clone(),
                IdentityConfig::Simulated => Vec::new(),
            }),
            vault,
            catalogue: ground.catalogue,
            storage,
            outbox: ground.outbox,
            clock: Clock::default(),
            instance,
            inference,
            blocking: Arc::new(Semaphore::new(BLOCKING_JOBS)),
            wake: watch::Sender::new(0),
            changed: broadcast::channel(256).0,
            shutdown: CancellationToken::new(),
            tracker: TaskTracker::new(),
            running: Mutex::new(HashMap::new()),
            config,
        });
        let provider = Self {
            app,
            url,
            local_url,
            _lock: ground.lock,
        };
        provider.resume().await?;
        if provider.app.config.server.register {
            register(&provider.app, &provider.url).await?;
        }
        provider.go(listener);
        provider.fetch_collateral();
        tracing::info!(provider.url = provider.url, provider.address = %provider.app.provider, "provider is ready");
        Ok(provider)
    }

    /// Has collateral ready before the first client asks. A failure is logged, and tried again when one does.
    fn fetch_collateral(&self) {
        let app = Arc::clone(&self.app);
        if app.identity.is_simulated() {
            return;
        }
        self.app.tracker.spawn(async move {
            let now_s = app.clock.system_ms() / 1000;
            let fetched = app.collateral.get(app.identity.binary_quote(), now_s);
            tokio::select! {
                _ = fetched => {}
                () = app.shutdown.cancelled() => {}
            }
        });
    }

    /// URL as registered on chain.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// URL of the listening address, with the real port.
    #[must_use]
    pub fn local_url(&self) -> &str {
        &self.local_url
    }

    /// The provider's account.
    #[must_use]
    pub fn address(&self) -> Address {
        self.app.provider
    }

    /// Address of the enclave signer.
    #[must_use]
    pub fn signer(&self) -> Address {
        self.app.identity.signer()
    }

    /// Stops taking requests, lets effects finish or give their lease back, asks trainers for a checkpoint, and returns
    /// when everything has ended or the configured time is over.
    pub async fn shutdown(self) {
        self.app.shutdown.cancel();
        self.app.tracker.close();
        if tokio::time::timeout(
            self.app.config.server.shutdown_timeout,
            self.app.tracker.wait(),
        )
        .await
        .is_err()
        {
            tracing::warn!("some work did not end in time; its leases will run out");
        }
        self.app.store.close().await;
    }

    /// Ends every task of this provider at once, as a killed process would: nothing is given back. For tests of
    /// recovery.
    pub async fn abandon(self) {
        self.app.store.close().await;
        self.app.shutdown.cancel();
        self.app.tracker.close();
        let _ = tokio::time::timeout(Duration::from_secs(20), self.app.tracker.wait()).await;
    }

    /// Takes up what an earlier life of this instance left.
    async fn resume(&self) -> Result<(), StartError> {
        let app = &self.app;
        let leases = app.store.reclaim_leases(&app.instance).await?;
        let reservations = app.store.release_reservations(&app.instance).await?;
        if leases + reservations > 0 {
            tracing::info!(leases, reservations, "resuming after an unfinished run");
        }
        app.outbox.resume().await?;
        if app.inference.is_some() {
            for state in [AdapterState::Active, AdapterState::Loading] {
                for row in app.store.adapters_in(state).await? {
                    app.apply_adapter(&row.id, &AdapterEvent::EngineRestarted, None)
                        .await?;
                }
            }
        }
        Ok(())
    }

    fn go(&self, listener: TcpListener) {
        let app = &self.app;
        effects::start(app);
        app.tracker.spawn(chain_watcher::run(Arc::clone(app)));
        if app.inference.is_some() {
            app.tracker.spawn(settle_forever(Arc::clone(app)));
            app.tracker.spawn(watch_external(Arc::clone(app)));
            app.tracker
                .spawn(crate::adapter_tiers::keep_within_quota(Arc::clone(app)));
        }
        app.tracker.spawn(http::serve(Arc::clone(app), listener));
    }
}

/// Removes both services of the configured wallet from the chain.
///
/// # Errors
/// As [`Provider::start`].
pub async fn remove_services(config: &Config) -> Result<(), StartError> {
    install_tls();
    let ground = lay_ground(config).await?;
    let now_ms = Clock::default().system_ms();
    if ground
        .chain
        .fine_tuning()
        .service(ground.provider)
        .await?
        .is_some()
    {
        let call =
            zerog_chain::calls::serving::remove_service(ground.chain.fine_tuning().address());
        ground
            .outbox
            .submit("service/remove_fine_tuning", call, now_ms)
            .await?;
    }
    if ground
        .chain
        .inference()
        .service(ground.provider)
        .await?
        .is_some()
    {
        let call = zerog_chain::calls::serving::remove_service(ground.chain.inference().address());
        ground
            .outbox
            .submit("service/remove_inference", call, now_ms)
            .await?;
    }
    ground.store.close().await;
    Ok(())
}

/// Registers or updates the services of a configuration without serving anything. It needs `server.public_url`.
///
/// # Errors
/// As [`Provider::start`].
pub async fn register_services(config: &Config) -> Result<(), StartError> {
    install_tls();
    let url = config
        .server
        .public_url
        .clone()
        .ok_or_else(|| ConfigError::Value {
            key: "server.public_url",
            problem: "set it: a registration needs the address that users connect to".into(),
        })?;
    let ground = lay_ground(config).await?;
    let signer = ground.identity.signer();
    let now_ms = Clock::default().system_ms();
    if let Some(role) = &config.fine_tuning {
        let offer = registration::fine_tuning_offer(role, &ground.catalogue, &url, signer);
        registration::register_fine_tuning(
            &ground.chain,
            &ground.outbox,
            ground.provider,
            &offer,
            now_ms,
        )
        .await?;
    }
    if let Some(role) = &config.inference {
        let offer =
            registration::inference_offer(role, &url, signer, ground.identity.is_simulated());
        registration::register_inference(
            &ground.chain,
            &ground.outbox,
            ground.provider,
            &offer,
            now_ms,
        )
        .await?;
    }
    ground.store.close().await;
    Ok(())
}

async fn lay_ground(config: &Config) -> Result<Ground, StartError> {
    let data_dir = |source| StartError::DataDir {
        path: config.data_dir.clone(),
        source,
    };
    crate::vault::create_private_folder(&config.data_dir).map_err(data_dir)?;
    let lock = lock(&config.data_dir)?;
    let store = Store::open(&config.database_url()).await?;
    let chain = ChainClient::connect(
        &config.chain.rpc_url,
        config.chain.addresses,
        ClientOptions::default(),
    )
    .await?
    .expect_chain(config.chain.chain_id)?;
    let chain = chain.with_wallet(PrivateKeySigner::from_signing_key(
        config.chain.wallet.signing_key().clone(),
    ));
    let (identity_config, directory, chain_id) = (
        config.identity.clone(),
        config.data_dir.clone(),
        chain.chain_id(),
    );
    let identity = tokio::task::spawn_blocking(move || {
        Identity::establish(&identity_config, &directory, chain_id)
    })
    .await;
    let identity =
        identity.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?;
    let catalogue = Catalogue::open(&config.models)?;
    Ok(Ground {
        outbox: Outbox::new(chain.clone(), store.clone()),
        provider: config.chain.wallet.address(),
        store,
        chain,
        identity,
        catalogue,
        lock,
    })
}

async fn register(app: &Arc<App>, url: &str) -> Result<(), StartError> {
    let signer = app.identity.signer();
    let now_ms = app.clock.system_ms();
    if let Some(role) = &app.config.fine_tuning {
        let offer = registration::fine_tuning_offer(role, &app.catalogue, url, signer);
        registration::register_fine_tuning(&app.chain, &app.outbox, app.provider, &offer, now_ms)
            .await?;
    }
    if let Some(role) = &app.config.inference {
        let offer = registration::inference_offer(role, url, signer, app.identity.is_simulated());
        registration::register_inference(&app.chain, &app.outbox, app.provider, &offer, now_ms)
            .await?;
    }
    Ok(())
}

/// Follows what an external engine has loaded; ends at once with the built-in one.
async fn watch_external(app: Arc<App>) {
    let Some(Engine::External(engine)) = app.inference.as_ref().map(|role| &role.engine) else {
        return;
    };
    let forgotten = |lost: Vec<String>| async {
        for id in lost {
            if let Err(error) = app.apply_adapter(&id, &AdapterEvent::Offloaded, None).await {
                tracing::warn!(adapter.id = id, %error, "an adapter's tier could not be stored");
            }
        }
    };
    engine.watch(&app.shutdown, forgotten).await;
}

async fn settle_forever(app: Arc<App>) {
    let Some(interval) = app
        .inference
        .as_ref()
        .map(|inference| inference.config.settlement_interval)
    else {
        return;
    };
    loop {
        tokio::select! {
            () = app.shutdown.cancelled() => return,
            () = tokio::time::sleep(interval) => {}
        }
        if let Err(error) = billing::settle_round(&app).await {
            tracing::warn!(%error, "a round of settlement ended early; it is tried again");
        }
    }
}

fn storage_client(
    config: &Config,
    vault: &Vault,
) -> Result<zerog_storage::Client, zerog_storage::Error> {
    let mut options = match &config.chain.storage_node_url {
        Some(url) => zerog_storage::ClientOptions::node(url),
        None => zerog_storage::ClientOptions::indexer(&config.chain.storage_indexer_url),
    };
    options.journal_dir = Some(vault.storage_journal());
    zerog_storage::Client::new(options)
}

/// The address that a client on this machine connects to.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        let loopback: std::net::IpAddr = match address {
            SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        };
        address.set_ip(loopback);
    }
    address
}

/// A name that is the same at every start, so that leases of an earlier life are recognised.
fn instance_name(data_dir: &Path) -> std::io::Result<String> {
    let path = data_dir.join(INSTANCE_FILE);
    match std::fs::read_to_string(&path) {
        Ok(name) if !name.trim().is_empty() => Ok(name.trim().to_owned()),
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => {
            let name = uuid::Uuid::new_v4().to_string();
            std::fs::write(&path, &name)?;
            Ok(name)
        }
    }
}

fn lock(data_dir: &Path) -> Result<std::fs::File, StartError> {
    let path = data_dir.join(LOCK_FILE);
    let failed = |source| StartError::DataDir {
        path: data_dir.to_path_buf(),
        source,
    };
    let file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(StartError::InUse {
            path: data_dir.to_path_buf(),
        }),
        Err(std::fs::TryLockError::Error(source)) => Err(failed(source)),
    }
}

/// Installs the process-wide TLS provider; an earlier choice of the binary stands.
fn install_tls() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}
