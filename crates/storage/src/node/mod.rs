//! A storage node and indexer in one process, on one port.
//!
//! The node follows the Flow contract, accepts segments of paid files (small ones up to five minutes before their
//! payment is seen), keeps them as self-proving files under its data directory, and delivers them. It speaks the RPC of
//! the public network; it has no peers, no mining, and no authentication. Everything is verified on the way in and on
//! the way out.

mod api;
mod flow_log;
mod store;
mod upload_cache;

use std::{
    fs::{File, OpenOptions, TryLockError},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use alloy_primitives::Address;
use parking_lot::{Mutex, RwLock};
use tokio::{
    net::TcpListener,
    sync::{Notify, watch},
    task::JoinHandle,
};
use zerog_chain::flow::Submitted;

use crate::{
    Error,
    merkle::SEGMENT_SECTORS,
    rpc::JsonRpc,
    rpc_types::{NetworkIdentity, ProtocolVersion, ShardConfig},
};
use flow_log::{FlowLog, StoredSubmission};
use store::{Presence, Store};
use upload_cache::UploadCache;

/// The port that storage nodes listen on.
pub const DEFAULT_PORT: u16 = 5_678;

/// The protocol version that the node reports; clients only display it.
const PROTOCOL_VERSION: ProtocolVersion = ProtocolVersion {
    major: 0,
    minor: 4,
    build: 0,
};
const CHAIN_TIMEOUT: Duration = Duration::from_secs(15);
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

/// How an embedded node is started.
#[derive(Clone, Debug)]
pub struct NodeOptions {
    /// Where it listens; loopback and [`DEFAULT_PORT`] by default, port 0 picks a free one.
    pub listen: SocketAddr,
    /// Where segments are kept. One node per directory.
    pub data_dir: PathBuf,
    /// The chain endpoint from which submissions are learned. Without it they are announced with
    /// [`StorageNode::announce`] and kept in the data directory.
    pub rpc_url: Option<String>,
    /// Chain id of a node without `rpc_url`; with it the endpoint is asked.
    pub chain_id: u64,
    /// The Flow contract.
    pub flow_address: Address,
    /// First block that may hold submissions.
    pub start_block: u64,
    /// Time between two looks for new blocks. A question about a submission that is not known makes it look at once.
    pub poll_interval: Duration,
    /// Which segments the node keeps; all by default.
    pub shard: ShardConfig,
}

impl NodeOptions {
    /// A whole node on loopback that follows `flow_address` over `rpc_url`.
    pub fn new(
        data_dir: impl Into<PathBuf>,
        rpc_url: impl Into<String>,
        flow_address: Address,
    ) -> Self {
        Self {
            rpc_url: Some(rpc_url.into()),
            ..Self::without_chain(data_dir, 0, flow_address)
        }
    }

    /// A whole node on loopback that is told about submissions.
    pub fn without_chain(
        data_dir: impl Into<PathBuf>,
        chain_id: u64,
        flow_address: Address,
    ) -> Self {
        Self {
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), DEFAULT_PORT),
            data_dir: data_dir.into(),
            rpc_url: None,
            chain_id,
            flow_address,
            start_block: 0,
            poll_interval: Duration::from_millis(100),
            shard: ShardConfig::WHOLE,
        }
    }
}

/// A running node. Dropping it stops it too, without waiting.
#[derive(Debug)]
pub struct StorageNode {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

/// What requests and the chain follower share.
#[derive(Debug)]
struct Shared {
    identity: NetworkIdentity,
    shard: ShardConfig,
    url: String,
    started_unix_s: i64,
    log: RwLock<FlowLog>,
    store: Store,
    cache: Mutex<UploadCache>,
    /// Somebody waits for a submission that is not known yet.
    asked_in_vain: Notify,
    _directory_lock: File,
}

impl StorageNode {
    /// Reads the data directory, catches up with the chain, and starts serving.
    ///
    /// # Errors
    ///
    /// [`Error::File`], [`Error::Busy`] for the directory; [`Error::InvalidUrl`], [`Error::Call`] for the chain endpoint;
    /// [`Error::Listen`]; [`Error::InvalidShard`].
    pub async fn start(options: NodeOptions) -> Result<Self, Error> {
        let ShardConfig {
            shard_id,
            num_shard,
        } = options.shard;
        if !options.shard.is_valid() {
            return Err(Error::InvalidShard {
                shard_id,
                num_shard,
            });
        }
        let chain = match &options.rpc_url {
            Some(url) => Some(JsonRpc::new(url, CHAIN_TIMEOUT)?),
            None => None,
        };
        let chain_id = match &chain {
            Some(chain) => flow_log::chain_id(chain).await?,
            None => options.chain_id,
        };
        let listen_failed = |source| Error::Listen {
            address: options.listen,
            source,
        };
        let listener = TcpListener::bind(options.listen)
            .await
            .map_err(listen_failed)?;
        let address = listener.local_addr().map_err(listen_failed)?;

        let data_dir = options.data_dir.clone();
        let (lock, store, log) = crate::client::blocking(move || {
            let lock = lock_directory(&data_dir)?;
            let store = Store::open(&data_dir)?;
            let log = if options.rpc_url.is_some() {
                FlowLog::default()
            } else {
                FlowLog::load(&data_dir)?
            };
            Ok((lock, store, log))
        })
        .await?;
        let shared = Arc::new(Shared {
            identity: NetworkIdentity {
                chain_id,
                flow_address: options.flow_address,
                p2p_protocol_version: PROTOCOL_VERSION,
            },
            shard: options.shard,
            url: format!("http://{address}"),
            started_unix_s: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |elapsed| {
                    i64::try_from(elapsed.as_secs()).unwrap_or(i64::MAX)
                }),
            log: RwLock::new(log),
            store,
            cache: Mutex::default(),
            asked_in_vain: Notify::new(),
            _directory_lock: lock,
        });

        let (stop, stopped) = watch::channel(false);
        let mut tasks = Vec::new();
        if let Some(chain) = chain {
            let mut follower = flow_log::Follower::new(
                Arc::clone(&shared),
                chain,
                options.start_block,
                options.poll_interval,
            );
            follower.catch_up().await?;
            tasks.push(tokio::spawn(follower.run(stopped.clone())));
        }
        tasks.push(tokio::spawn(api::serve(
            Arc::clone(&shared),
            listener,
            stopped,
        )));
        tracing::debug!(%address, files = shared.store.files(), "the storage node serves");
        Ok(Self {
            address,
            shared,
            stop,
            tasks,
        })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// The node's endpoint (`zgs_*`).
    pub fn node_url(&self) -> String {
        self.shared.url.clone()
    }

    /// The indexer's endpoint (`indexer_*`), which is the same one.
    pub fn indexer_url(&self) -> String {
        self.shared.url.clone()
    }

    /// Tells the node about a submission, as the chain would; it is remembered across restarts of a node without a
    /// chain endpoint. Telling it again changes nothing.
    ///
    /// # Errors
    ///
    /// [`Error::File`] when it cannot be written down; [`Error::EmptyFile`] and [`Error::FileTooLarge`] for a length
    /// that no file has.
    pub async fn announce(&self, submitted: Submitted) -> Result<(), Error> {
        let shared = Arc::clone(&self.shared);
        crate::client::blocking(move || shared.admit(&submitted)).await
    }

    /// Stops following the chain and serving; requests that are being answered get five seconds.
    pub async fn shutdown(mut self) {
        let _ = self.stop.send(true);
        for mut task in std::mem::take(&mut self.tasks) {
            if tokio::time::timeout(SHUTDOWN_TIMEOUT, &mut task)
                .await
                .is_err()
            {
                task.abort();
            }
        }
    }
}

impl Shared {
    /// Takes a submission in, with the segments that came before it.
    fn admit(&self, submitted: &Submitted) -> Result<(), Error> {
        let Some(submission) = self.log.write().add(submitted)? else {
            return Ok(());
        };
        self.keep_cached(&submission)
    }

    /// Keeps the segments that came before their submission.
    fn keep_cached(&self, submission: &StoredSubmission) -> Result<(), Error> {
        let (root, size) = (submission.root, submission.shape.size());
        let cached = self.cache.lock().take(root, size);
        for segment in &cached {
            self.store.put(submission.shape, segment)?;
        }
        if self.presence(submission) == Presence::Received {
            self.store.sync(root, submission.shape)?;
        }
        Ok(())
    }

    /// What is here of the segments of this node's shard. Segments belong to root and size, so that one upload
    /// completes all submissions of the same file.
    fn presence(&self, submission: &StoredSubmission) -> Presence {
        let (first, shape) = (submission.start_sector / SEGMENT_SECTORS, submission.shape);
        let count = self.shard.held_among(first, shape.segments());
        let wanted = (0..shape.segments()).filter(|index| self.shard.holds(first + index));
        self.store.presence(submission.root, shape, count, wanted)
    }

    /// Whether the file is here, on the disk.
    fn is_finalized(&self, submission: &StoredSubmission) -> bool {
        self.presence(submission) == Presence::Synced
    }
}

fn lock_directory(directory: &std::path::Path) -> Result<File, Error> {
    let failed = |source| Error::File {
        path: directory.to_owned(),
        source,
    };
    std::fs::create_dir_all(directory).map_err(failed)?;
    let path = directory.join("lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::Busy { path }),
        Err(TryLockError::Error(source)) => Err(Error::File { path, source }),
    }
}
