//! The storage network: as the managers use it, and on its own.
//!
//! [`Storage`] needs no account with the compute network. For fetching it needs nothing but an indexer or nodes, for
//! storing also a chain endpoint and a wallet that pays the fee.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use alloy_primitives::{Address, B256};
use zerog_chain::{Addresses, ChainClient, ClientOptions as ChainOptions, networks};
use zerog_storage::{Client, ClientOptions, Phase, merkle};

use crate::broker::{Broker, Context};
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::provider_client::install_tls;
use crate::wallet::Wallet;

pub use zerog_protocol::FileKey;
pub use zerog_storage::indexer::Preference;
pub use zerog_storage::{
    Decryption, DownloadOptions, DownloadOutcome, Encryption, Endpoint, UploadCost, UploadOptions,
    UploadOutcome,
};

/// Storage root of a local file: its name on the network. Nothing is sent.
///
/// # Errors
/// [`Error::File`], [`Error::Storage`] for an empty file.
pub fn file_root(path: &Path) -> Result<B256> {
    merkle::root_of_file(path).map_err(storage_error)
}

/// How a [`Storage`] is made without a broker.
#[derive(Debug, Clone)]
pub struct StorageOptions {
    /// Indexer or nodes.
    pub endpoint: Endpoint,
    /// Chain JSON-RPC endpoint; only for storing.
    pub rpc_url: Option<String>,
    /// Who pays; only for storing.
    pub wallet: Option<Wallet>,
    /// The Flow contract; by default that of the known network with the endpoint's chain id, else the one that all
    /// nodes name.
    pub flow_address: Option<Address>,
    /// Gas price in neuron instead of the chain's suggestion.
    pub gas_price: Option<u128>,
    /// Highest gas price in neuron.
    pub max_gas_price: Option<u128>,
    /// Longest wait for one answer of chain or node.
    pub request_timeout: Duration,
    /// Where uploads note what was paid, so that nothing is paid twice; without it only this process remembers.
    pub journal_dir: Option<PathBuf>,
    /// Nodes that shall keep each segment.
    pub replicas: u32,
    /// Which nodes an upload prefers.
    pub preference: Preference,
    /// Calls that move segments at the same time; none: a good number.
    pub parallel_calls: Option<usize>,
    /// Segments in one upload call; none: a good number.
    pub segments_per_call: Option<usize>,
}

impl StorageOptions {
    /// Read-only defaults.
    #[must_use]
    pub fn new(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            rpc_url: None,
            wallet: None,
            flow_address: None,
            gas_price: None,
            max_gas_price: None,
            request_timeout: Duration::from_secs(30),
            journal_dir: None,
            replicas: 1,
            preference: Preference::FewShards,
            parallel_calls: None,
            segments_per_call: None,
        }
    }

    fn client(&self) -> Result<Client> {
        let mut options = match &self.endpoint {
            Endpoint::Indexer(url) => ClientOptions::indexer(url),
            Endpoint::Nodes(urls) => ClientOptions {
                endpoint: Endpoint::Nodes(urls.clone()),
                ..ClientOptions::indexer("")
            },
        };
        options.request_timeout = self.request_timeout;
        options.journal_dir.clone_from(&self.journal_dir);
        options.replicas = self.replicas;
        options.preference = self.preference;
        if let Some(calls) = self.parallel_calls {
            options.parallel_calls = calls;
        }
        if let Some(segments) = self.segments_per_call {
            options.segments_per_call = segments;
        }
        Client::new(options).map_err(storage_error)
    }
}

/// A connection to the storage network. Clones share it.
#[derive(Debug, Clone)]
pub struct Storage {
    client: Client,
    chain: Option<ChainClient>,
}

impl Storage {
    /// Connects; the chain is only asked when there is an endpoint for it.
    ///
    /// # Errors
    /// [`Error::Chain`] when the chain does not answer, [`Error::Storage`] for an unusable URL or when the Flow contract
    /// has to be asked for and the nodes do not agree.
    pub async fn connect(options: StorageOptions) -> Result<Self> {
        install_tls();
        let client = options.client()?;
        let chain = match &options.rpc_url {
            Some(url) => Some(chain(url, &options, &client).await?),
            None => None,
        };
        Ok(Self { client, chain })
    }

    /// Asks a storage node which network it serves: whether anybody is there at all.
    ///
    /// # Errors
    /// [`Error::Storage`].
    pub async fn ping(&self) -> Result<()> {
        self.client
            .network_identity()
            .await
            .map_err(storage_error)?;
        Ok(())
    }

    /// Root, sectors and fee of a file, without storing it.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::Chain`], [`Error::Storage`].
    pub async fn cost(&self, path: &Path) -> Result<UploadCost> {
        self.client
            .upload_cost(path, self.chain()?)
            .await
            .map_err(storage_error)
    }

    /// Stores a file and waits until the network has it; one outcome for each object that it was cut into. What the
    /// network has already, or what an interrupted upload paid for, is not paid again.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::Chain`], [`Error::Storage`]. The same call may be repeated after any of them.
    pub async fn upload(
        &self,
        path: &Path,
        options: &UploadOptions,
        mut on_progress: impl FnMut(Progress) + Send,
    ) -> Result<Vec<UploadOutcome>> {
        let teller = Teller::new(&mut on_progress);
        self.client
            .upload(path, options, self.chain()?, &|progress| {
                teller.tell(progress);
            })
            .await
            .map_err(storage_error)
    }

    /// Fetches a file by its root, or by the roots of the objects that it was cut into. Every segment is verified on
    /// arrival and the whole at the end; an interrupted download goes on.
    ///
    /// # Errors
    /// [`Error::Storage`], [`Error::File`], [`Error::Argument`] when the target exists with other content.
    pub async fn download(
        &self,
        roots: &[B256],
        options: &DownloadOptions,
        path: &Path,
        mut on_progress: impl FnMut(Progress) + Send,
    ) -> Result<DownloadOutcome> {
        let teller = Teller::new(&mut on_progress);
        self.client
            .download(roots, options, path, &|progress| teller.tell(progress))
            .await
            .map_err(storage_error)
    }

    fn chain(&self) -> Result<&ChainClient> {
        self.chain.as_ref().ok_or(Error::Argument {
            name: "rpc",
            reason: "storing needs a chain endpoint".to_owned(),
        })
    }
}

impl Broker {
    /// The storage network of this broker's network.
    ///
    /// # Errors
    /// [`Error::Storage`] for an unusable indexer URL.
    pub fn storage(&self) -> Result<Storage> {
        self.context.storage()
    }
}

/// Connects to the chain, with the right Flow contract.
async fn chain(url: &str, options: &StorageOptions, client: &Client) -> Result<ChainClient> {
    let chain_options = ChainOptions {
        gas_price: options.gas_price,
        max_gas_price: options.max_gas_price,
        timeout: options.request_timeout,
        ..ChainOptions::default()
    };
    // Only Flow is called; the other contracts play no part.
    let addresses = |flow| Addresses {
        ledger: Address::ZERO,
        inference: Address::ZERO,
        fine_tuning: Address::ZERO,
        flow,
    };
    let probe = ChainClient::connect(url, addresses(options.flow_address), chain_options).await?;
    let known = networks::by_chain_id(probe.chain_id()).and_then(|known| known.addresses.flow);
    let flow = match options.flow_address.or(known) {
        Some(flow) => flow,
        None => {
            client
                .network_identity()
                .await
                .map_err(storage_error)?
                .flow_address
        }
    };
    let chain = probe.with_addresses(addresses(Some(flow)));
    Ok(match &options.wallet {
        Some(wallet) => chain.with_wallet(wallet.signer().clone()),
        None => chain,
    })
}

impl Context {
    fn storage(&self) -> Result<Storage> {
        let indexer = &self.options.network.storage_indexer_url;
        let mut options = StorageOptions::new(Endpoint::Indexer(indexer.clone()));
        options.journal_dir = self
            .options
            .cache_dir
            .as_ref()
            .map(|folder| folder.join("uploads"));
        Ok(Storage {
            client: options.client()?,
            chain: Some(self.chain.clone()),
        })
    }

    /// Stores a file, paying once, and returns its root.
    pub(crate) async fn storage_upload(
        &self,
        path: &Path,
        on_progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<B256> {
        let outcomes = self
            .storage()?
            .upload(path, &UploadOptions::default(), on_progress)
            .await?;
        let [outcome] = &outcomes[..] else {
            unreachable!("a file that is not cut is one object");
        };
        Ok(outcome.root)
    }

    /// Fetches a file by its root, every segment verified, and returns its size in bytes.
    pub(crate) async fn storage_download(
        &self,
        root: B256,
        path: &Path,
        on_progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<u64> {
        let outcome = self
            .storage()?
            .download(&[root], &DownloadOptions::default(), path, on_progress)
            .await?;
        Ok(outcome.size)
    }
}

/// Passes the transfer's reports on; a phase is told when it begins.
struct Teller<'a>(Mutex<Telling<'a>>);

struct Telling<'a> {
    on_progress: &'a mut (dyn FnMut(Progress) + Send),
    last_phase: Option<Phase>,
}

impl<'a> Teller<'a> {
    fn new(on_progress: &'a mut (dyn FnMut(Progress) + Send)) -> Self {
        Self(Mutex::new(Telling {
            on_progress,
            last_phase: None,
        }))
    }

    fn tell(&self, progress: zerog_storage::Progress) {
        let Ok(mut guard) = self.0.lock() else {
            return;
        };
        let Telling {
            on_progress,
            last_phase,
        } = &mut *guard;
        if last_phase.replace(progress.phase) != Some(progress.phase)
            && let Some(text) = phase_text(progress.phase)
        {
            on_progress(Progress::step(text));
        }
        on_progress(Progress::Transfer {
            done_bytes: progress.done_bytes,
            total_bytes: Some(progress.total_bytes),
        });
    }
}

fn phase_text(phase: Phase) -> Option<&'static str> {
    match phase {
        Phase::Hashing => Some("computing the storage root"),
        Phase::Paying => Some("paying the storage fee"),
        Phase::Syncing => Some("waiting for the storage nodes to see the payment"),
        Phase::Transferring => None,
        Phase::Finalizing => Some("waiting for the storage nodes to finalize the file"),
    }
}

/// Errors of the storage crate by what the caller can do about them.
fn storage_error(error: zerog_storage::Error) -> Error {
    use zerog_storage::Error as Failure;
    let remedy = match &error {
        Failure::File { path, source } => {
            let source = std::io::Error::new(source.kind(), source.to_string());
            return Error::file("use", path, source);
        }
        Failure::Chain(_) => {
            let Failure::Chain(chain) = error else {
                unreachable!("just matched")
            };
            return chain.into();
        }
        Failure::DestinationExists { path } => {
            return Error::Argument {
                name: "data-path",
                reason: format!(
                    "{} exists with other content; remove it or name another file",
                    path.display()
                ),
            };
        }
        Failure::EmptyFile
        | Failure::FileTooLarge { .. }
        | Failure::InvalidRecipient
        | Failure::NotEncrypted => "",
        Failure::FeeTooHigh { .. } => "; allow more, or store a smaller file",
        Failure::FileChanged { .. } => {
            "; leave the file alone during the upload and run the command again"
        }
        Failure::InvalidUrl { .. } | Failure::WrongChain { .. } | Failure::WrongFlow { .. } => {
            "; check the chain endpoint, the indexer and the Flow address (0g-compute-cli show-network)"
        }
        Failure::NotFound { .. } => "; check the root hash and the network",
        Failure::Busy { .. } => "; wait for the other command to end",
        _ => "; run the command again later, it goes on where it stopped and pays nothing twice",
    };
    Error::Storage {
        reason: format!("{error}{remedy}"),
    }
}
