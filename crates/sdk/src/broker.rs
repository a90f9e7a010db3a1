//! Connection settings, and the broker that holds the three managers.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use alloy_primitives::Address;
use serde::{Deserialize, Serialize};
use zerog_attestation::{Policy, Requirement};
use zerog_chain::{Addresses, ChainClient, ClientOptions, Network, networks};

use crate::collateral::{CollateralCache, CollateralSources};
use crate::error::{Error, Result};
use crate::fine_tuning::FineTuning;
use crate::fine_tuning::recipient::RecipientKeys;
use crate::inference::session::SessionCache;
use crate::inference::{Inference, lora::Lora};
use crate::ledger::Ledger;
use crate::provider_client::{ProviderClient, install_tls};
use crate::wallet::Wallet;

/// Chain id of the development network.
pub const DEVNET_CHAIN_ID: u64 = 31337;

/// Endpoints and contract addresses of one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkSettings {
    /// `mainnet`, `testnet`, `testnet-dev`, `devnet` or a name of your own.
    pub name: String,
    /// Chain JSON-RPC endpoint.
    pub rpc_url: String,
    /// The chain that the endpoint must serve; 0 accepts any.
    pub chain_id: u64,
    /// Storage indexer.
    pub storage_indexer_url: String,
    /// Contract addresses.
    pub addresses: Addresses,
}

impl NetworkSettings {
    /// The settings of a known network.
    ///
    /// # Errors
    /// [`Error::Argument`] for an unknown name.
    pub fn by_name(name: &str) -> Result<Self> {
        networks::by_name(name)
            .map(Self::from)
            .ok_or_else(|| Error::Argument {
                name: "network",
                reason: format!(
                    "`{name}` is unknown; known are {}",
                    networks::ALL
                        .iter()
                        .map(|network| network.name)
                        .collect::<Vec<_>>()
                        .join(", ")
                ),
            })
    }

    /// The known network whose chain an endpoint serves, with that endpoint. The public testnet's chain means the public
    /// contracts.
    ///
    /// # Errors
    /// [`Error::Chain`] when nothing answers, [`Error::Argument`] for an unknown chain.
    pub async fn detect(rpc_url: &str) -> Result<Self> {
        install_tls();
        let probe = ChainClient::connect(
            rpc_url,
            networks::DEVNET.addresses,
            ClientOptions::default(),
        )
        .await?;
        let network = networks::by_chain_id(probe.chain_id()).ok_or_else(|| Error::Argument {
            name: "network",
            reason: format!(
                "chain {} is no known network; name its contracts with --ledger-ca and the like",
                probe.chain_id()
            ),
        })?;
        Ok(Self {
            rpc_url: rpc_url.to_owned(),
            ..network.into()
        })
    }
}

impl From<Network> for NetworkSettings {
    fn from(network: Network) -> Self {
        Self {
            name: network.name.to_owned(),
            rpc_url: network.rpc_url.to_owned(),
            chain_id: network.chain_id,
            storage_indexer_url: network.storage_indexer_url.to_owned(),
            addresses: network.addresses,
        }
    }
}

/// How a [`Broker`] is made.
#[derive(Debug, Clone)]
pub struct BrokerOptions {
    /// The network.
    pub network: NetworkSettings,
    /// The wallet; without one the broker can only read.
    pub wallet: Option<Wallet>,
    /// Gas price in neuron instead of the chain's suggestion.
    pub gas_price: Option<u128>,
    /// Highest gas price in neuron.
    pub max_gas_price: Option<u128>,
    /// How sure the caller must be of an enclave before data goes there.
    pub requirement: Requirement,
    /// What counts as a passed check ([`crate::read_policy`] reads one from a file). Whether simulated enclaves are
    /// recognised follows from the network alone.
    pub policy: Policy,
    /// Where collateral for quotes of real machines comes from.
    pub collateral: CollateralSources,
    /// Judge evidence at this time (Unix seconds) in `verify_service`, to repeat a verification of the past; none: now.
    /// What decides whether data is sent is always judged now.
    pub verification_time_s: Option<u64>,
    /// Where tokenizers and collateral are cached; none: a temporary folder, and only as long as the broker lives.
    pub cache_dir: Option<PathBuf>,
    /// A folder with `tokenizer.json`, used before all other sources.
    pub tokenizer_dir: Option<PathBuf>,
    /// Base URL of the model hub that is asked last for a tokenizer; none: never.
    pub hub_url: Option<String>,
    /// Pause between two looks at a task or adapter; none: 0.2 s on this machine, 3 s elsewhere.
    pub poll_interval: Option<Duration>,
    /// Longest wait for a provider's answer; none: 30 s. Chat and transfers have longer times of their own.
    pub answer_timeout: Option<Duration>,
}

impl BrokerOptions {
    /// Options for a known network, read-only. `devnet` is the one that runs ([`NetworkSettings::find`]).
    ///
    /// # Errors
    /// [`Error::Argument`] for an unknown name.
    pub fn network(name: &str) -> Result<Self> {
        Ok(Self::custom(NetworkSettings::find(name)?))
    }

    /// Options for any network, read-only.
    #[must_use]
    pub fn custom(network: NetworkSettings) -> Self {
        Self {
            network,
            wallet: None,
            gas_price: None,
            max_gas_price: None,
            requirement: Requirement::NothingFailed,
            policy: Policy::default(),
            collateral: CollateralSources::default(),
            verification_time_s: None,
            cache_dir: None,
            tokenizer_dir: None,
            hub_url: Some("https://huggingface.co".to_owned()),
            poll_interval: None,
            answer_timeout: None,
        }
    }

    /// The same options with a wallet: a [`SecretKey`](crate::SecretKey), or a device ([`Wallet::device`]).
    #[must_use]
    pub fn with_wallet(mut self, wallet: impl Into<Wallet>) -> Self {
        self.wallet = Some(wallet.into());
        self
    }

    /// The same options with another chain endpoint.
    #[must_use]
    pub fn with_rpc_url(mut self, url: impl Into<String>) -> Self {
        self.network.rpc_url = url.into();
        self
    }

    /// The same options with another storage indexer.
    #[must_use]
    pub fn with_storage_indexer_url(mut self, url: impl Into<String>) -> Self {
        self.network.storage_indexer_url = url.into();
        self
    }
}

/// What all managers share.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) chain: ChainClient,
    pub(crate) wallet: Option<Wallet>,
    pub(crate) options: BrokerOptions,
    pub(crate) http: ProviderClient,
    pub(crate) sessions: Arc<SessionCache>,
    pub(crate) recipient_keys: Arc<RecipientKeys>,
    pub(crate) collateral: Arc<CollateralCache>,
}

impl Context {
    pub(crate) fn wallet(&self) -> Result<&Wallet> {
        self.wallet.as_ref().ok_or(Error::NoWallet)
    }

    pub(crate) fn user(&self) -> Result<Address> {
        Ok(self.wallet()?.address())
    }

    /// Whether simulated enclaves are acceptable: the chosen network is `devnet`, on its chain, on this machine.
    pub(crate) fn is_devnet(&self) -> bool {
        self.options.network.name == "devnet"
            && self.chain.chain_id() == DEVNET_CHAIN_ID
            && self.chain.is_loopback()
    }

    pub(crate) fn policy(&self) -> Policy {
        Policy {
            accept_development_root: self.is_devnet(),
            ..self.options.policy.clone()
        }
    }

    pub(crate) fn requirement(&self) -> Requirement {
        match self.options.requirement {
            Requirement::NothingFailed if self.is_devnet() => Requirement::AllowSimulated,
            other => other,
        }
    }

    pub(crate) fn poll_interval(&self) -> Duration {
        let default = if self.chain.is_loopback() {
            Duration::from_millis(200)
        } else {
            Duration::from_secs(3)
        };
        self.options.poll_interval.unwrap_or(default)
    }

    /// Now in Unix milliseconds.
    pub(crate) fn now_ms() -> u64 {
        u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or(0)
    }

    /// Now in Unix seconds.
    pub(crate) fn now_s() -> u64 {
        Self::now_ms() / 1000
    }
}

/// A connection to the network: `broker.ledger`, `broker.fine_tuning`, `broker.inference` and `broker.inference.lora`.
/// Clones share it.
#[derive(Debug, Clone)]
pub struct Broker {
    /// The prepaid account.
    pub ledger: Ledger,
    /// Training.
    pub fine_tuning: FineTuning,
    /// Chat, API keys and deployed adapters.
    pub inference: Inference,
    pub(crate) context: Arc<Context>,
}

impl Broker {
    /// Connects to the chain and checks that it is the expected one.
    ///
    /// # Errors
    /// [`Error::Chain`] when the endpoint does not answer or serves another chain.
    pub async fn connect(options: BrokerOptions) -> Result<Self> {
        install_tls();
        let network = &options.network;
        let client_options = ClientOptions {
            gas_price: options.gas_price,
            max_gas_price: options.max_gas_price,
            ..ClientOptions::default()
        };
        let mut chain =
            ChainClient::connect(&network.rpc_url, network.addresses, client_options).await?;
        if network.chain_id != 0 {
            chain = chain.expect_chain(network.chain_id)?;
        }
        if let Some(wallet) = &options.wallet {
            chain = chain.with_wallet(wallet.signer().clone());
        }
        Ok(Self::new(Context {
            chain,
            wallet: options.wallet.clone(),
            http: ProviderClient::new(options.answer_timeout),
            sessions: Arc::default(),
            recipient_keys: Arc::default(),
            collateral: Arc::default(),
            options,
        }))
    }

    fn new(context: Context) -> Self {
        let context = Arc::new(context);
        let ledger = Ledger::new(Arc::clone(&context));
        Self {
            fine_tuning: FineTuning::new(Arc::clone(&context), ledger.clone()),
            inference: Inference::new(
                Arc::clone(&context),
                ledger.clone(),
                Lora::new(Arc::clone(&context), ledger.clone()),
            ),
            ledger,
            context,
        }
    }

    /// The same broker with other gas prices in neuron; none = what the chain suggests, without an upper bound.
    #[must_use]
    pub fn with_gas_prices(&self, gas_price: Option<u128>, max_gas_price: Option<u128>) -> Self {
        let context = &self.context;
        Self::new(Context {
            chain: context.chain.with_gas_prices(gas_price, max_gas_price),
            wallet: context.wallet.clone(),
            http: context.http.clone(),
            sessions: Arc::clone(&context.sessions),
            recipient_keys: Arc::clone(&context.recipient_keys),
            collateral: Arc::clone(&context.collateral),
            options: BrokerOptions {
                gas_price,
                max_gas_price,
                ..context.options.clone()
            },
        })
    }

    /// The wallet's address.
    ///
    /// # Errors
    /// [`Error::NoWallet`].
    pub fn address(&self) -> Result<Address> {
        self.context.user()
    }

    /// The network's settings.
    #[must_use]
    pub fn network(&self) -> &NetworkSettings {
        &self.context.options.network
    }

    /// The chain client, for reads beyond this interface.
    #[must_use]
    pub fn chain(&self) -> &ChainClient {
        &self.context.chain
    }

    /// Coins of the wallet outside the ledger, in neuron.
    ///
    /// # Errors
    /// [`Error::NoWallet`] or a failed read.
    pub async fn wallet_balance(&self) -> Result<alloy_primitives::U256> {
        Ok(self.context.chain.balance(self.context.user()?).await?)
    }
}
