//! Storing and fetching files.

mod download;
mod journal;
mod upload;

use std::{collections::HashMap, path::PathBuf, sync::Arc, time::Duration};

use alloy_primitives::{Address, B256};
use parking_lot::Mutex;

pub use download::{DownloadOptions, DownloadOutcome};
#[cfg(feature = "node")]
pub(crate) use upload::blocking;
pub use upload::{UploadCost, UploadOptions, UploadOutcome};

use crate::{
    CallError, Error, IndexerClient, NodeClient,
    indexer::{Preference, select_covering},
    rpc_types::{NetworkIdentity, ShardConfig, ShardedNode},
};

/// Where the network is entered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// An indexer, which names the nodes.
    Indexer(String),
    /// These nodes, which together keep every segment.
    Nodes(Vec<String>),
}

/// How a client works.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// Where the network is entered.
    pub endpoint: Endpoint,
    /// Where uploads note what was paid, so that a restarted process does not pay again. Without it only this process
    /// remembers.
    pub journal_dir: Option<PathBuf>,
    /// Nodes that shall keep each segment.
    pub replicas: u32,
    /// Which nodes an upload prefers.
    pub preference: Preference,
    /// Longest wait for the answer to one call.
    pub request_timeout: Duration,
    /// Longest wait for nodes to see a paid submission.
    pub sync_timeout: Duration,
    /// Longest wait for nodes to finalize a file that was uploaded completely.
    pub finality_timeout: Duration,
    /// Time between two looks while waiting; by default 10 ms, growing to 1 s.
    pub poll_interval: Duration,
    /// Calls that move segments at the same time, each with up to [`segments_per_call`](Self::segments_per_call).
    pub parallel_calls: usize,
    /// Segments in one upload call.
    pub segments_per_call: usize,
}

impl ClientOptions {
    /// Defaults, with an indexer.
    pub fn indexer(url: impl Into<String>) -> Self {
        Self::new(Endpoint::Indexer(url.into()))
    }

    /// Defaults, with one node that keeps everything.
    pub fn node(url: impl Into<String>) -> Self {
        Self::new(Endpoint::Nodes(vec![url.into()]))
    }

    fn new(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            journal_dir: None,
            replicas: 1,
            preference: Preference::FewShards,
            request_timeout: Duration::from_secs(30),
            sync_timeout: Duration::from_secs(180),
            finality_timeout: Duration::from_secs(180),
            poll_interval: Duration::from_millis(10),
            parallel_calls: 8,
            segments_per_call: 4,
        }
    }
}

/// What a transfer is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Computing the root of a local file.
    Hashing,
    /// Paying for the submission.
    Paying,
    /// Waiting for nodes to see the submission.
    Syncing,
    /// Moving segments.
    Transferring,
    /// Waiting for nodes to call the file complete.
    Finalizing,
}

/// How far a transfer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What is being done.
    pub phase: Phase,
    /// Bytes of the file moved so far, those of earlier attempts included.
    pub done_bytes: u64,
    /// Bytes of the file.
    pub total_bytes: u64,
}

/// Is called from the transfer's task whenever something moved; it must return quickly.
pub type ProgressCallback<'a> = &'a (dyn Fn(Progress) + Send + Sync);

/// A client of one storage network. Clones share what they know.
#[derive(Clone, Debug)]
pub struct Client {
    options: Arc<ClientOptions>,
    indexer: Option<IndexerClient>,
    /// One upload of a file at a time within this process; the journal's lock does the same between processes.
    uploads: Arc<Mutex<HashMap<journal::Key, Arc<tokio::sync::Mutex<journal::Memory>>>>>,
}

/// A node that takes part in a transfer.
#[derive(Clone, Debug)]
struct Peer {
    node: NodeClient,
    shard: ShardConfig,
    url: String,
}

impl Client {
    /// Nothing is sent yet.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidUrl`].
    pub fn new(options: ClientOptions) -> Result<Self, Error> {
        let indexer = match &options.endpoint {
            Endpoint::Indexer(url) => Some(IndexerClient::new(url, options.request_timeout)?),
            Endpoint::Nodes(urls) => {
                for url in urls {
                    NodeClient::new(url, options.request_timeout)?;
                }
                None
            }
        };
        Ok(Self {
            options: Arc::new(options),
            indexer,
            uploads: Arc::default(),
        })
    }

    /// The chain and the Flow contract that the nodes of an upload serve.
    ///
    /// # Errors
    ///
    /// [`Error::Call`], [`Error::NoCoverage`]; [`Error::WrongChain`] and [`Error::WrongFlow`] when they do not agree.
    pub async fn network_identity(&self) -> Result<NetworkIdentity, Error> {
        let mut agreed: Option<NetworkIdentity> = None;
        for peer in self.covering_peers(&[]).await? {
            let identity = peer.node.status().await?.network_identity;
            let expected = agreed.get_or_insert_with(|| identity.clone());
            expect_network(&peer, &identity, expected.chain_id, expected.flow_address)?;
        }
        agreed.ok_or_else(|| Error::NoCoverage {
            offered: 0,
            failures: Vec::new(),
        })
    }

    /// Nodes that together keep every segment, without those in `dropped`.
    async fn covering_peers(&self, dropped: &[String]) -> Result<Vec<Peer>, Error> {
        let mut failures = Vec::new();
        let offered: Vec<ShardedNode> = match (&self.indexer, &self.options.endpoint) {
            (Some(indexer), _) => indexer.sharded_nodes().await?.trusted,
            (None, Endpoint::Nodes(urls)) => {
                let mut nodes = Vec::new();
                for url in urls {
                    let node = NodeClient::new(url, self.options.request_timeout)?;
                    match node.shard_config().await {
                        Ok(config) => nodes.push(ShardedNode {
                            url: url.clone(),
                            config,
                            latency: 0,
                            since: 0,
                        }),
                        Err(error) => failures.push(error.to_string()),
                    }
                }
                nodes
            }
            (None, Endpoint::Indexer(_)) => Vec::new(),
        };
        let candidates: Vec<ShardedNode> = offered
            .iter()
            .filter(|node| !dropped.contains(&node.url))
            .cloned()
            .collect();
        let selected = select_covering(&candidates, self.options.replicas, self.options.preference)
            .ok_or(Error::NoCoverage {
                offered: candidates.len(),
                failures,
            })?;
        self.peers(&selected)
    }

    fn peers(&self, nodes: &[ShardedNode]) -> Result<Vec<Peer>, Error> {
        nodes
            .iter()
            .map(|node| {
                Ok(Peer {
                    node: NodeClient::new(&node.url, self.options.request_timeout)?,
                    shard: node.config,
                    url: node.url.clone(),
                })
            })
            .collect()
    }

    /// Nodes that may have the file.
    async fn locations(&self, root: B256) -> Result<Vec<Peer>, Error> {
        match (&self.indexer, &self.options.endpoint) {
            (Some(indexer), _) => match indexer.file_locations(root).await {
                Ok(Some(nodes)) if !nodes.is_empty() => self.peers(&nodes),
                Ok(_) => Err(Error::NotAvailable { root }),
                Err(error) if error.says("file not found") => Err(Error::NotFound { root }),
                Err(error) => Err(error.into()),
            },
            (None, Endpoint::Nodes(urls)) => {
                let mut peers = Vec::new();
                let mut last_error: Option<CallError> = None;
                for url in urls {
                    let node = NodeClient::new(url, self.options.request_timeout)?;
                    match node.shard_config().await {
                        Ok(shard) => peers.push(Peer {
                            node,
                            shard,
                            url: url.clone(),
                        }),
                        Err(error) => last_error = Some(error),
                    }
                }
                match last_error {
                    Some(error) if peers.is_empty() => Err(error.into()),
                    _ => Ok(peers),
                }
            }
            (None, Endpoint::Indexer(_)) => Ok(Vec::new()),
        }
    }
}

/// Refuses a node of another chain or Flow contract.
fn expect_network(
    peer: &Peer,
    identity: &NetworkIdentity,
    chain_id: u64,
    flow_address: Address,
) -> Result<(), Error> {
    if identity.chain_id != chain_id {
        return Err(Error::WrongChain {
            url: peer.node.origin(),
            found: identity.chain_id,
            expected: chain_id,
        });
    }
    if identity.flow_address != flow_address {
        return Err(Error::WrongFlow {
            url: peer.node.origin(),
            found: identity.flow_address,
            expected: flow_address,
        });
    }
    Ok(())
}

/// Waiting with growing pauses until a deadline.
struct Patience {
    pause: Duration,
    started: tokio::time::Instant,
    limit: Duration,
}

impl Patience {
    fn new(first_pause: Duration, limit: Duration) -> Self {
        Self {
            pause: first_pause.max(Duration::from_millis(1)),
            started: tokio::time::Instant::now(),
            limit,
        }
    }

    /// Pauses; `false` when the time is up.
    async fn pause(&mut self) -> bool {
        if self.started.elapsed() >= self.limit {
            return false;
        }
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 3 / 2)
            .min(Duration::from_secs(1))
            .max(Duration::from_millis(1));
        true
    }
}
