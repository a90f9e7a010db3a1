//! A deterministic embedded EVM with a JSON-RPC front.
//!
//! [`DevChain`] is a chain of one node for development, demos and tests: every transaction is mined at once in a block
//! of its own, blocks execute on revm under the Prague rules, and ethers, web3.py and alloy speak to it as to any other
//! node. It starts from a genesis of signed transactions, keeps its blocks in a data directory or only in memory, and
//! is ready in milliseconds. It has no consensus, no peers, no authentication, and listens on loopback only.
//!
//! What differs from a public chain: block headers carry a digest of the state changes instead of a Merkle state root,
//! `pending`, `safe` and `finalized` are the newest block, and blocks may share a timestamp.
//!
//! ```no_run
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! use zerog_devchain::{DevChain, Options};
//!
//! let chain = DevChain::open(Options::default())?;
//! let server = chain.serve(tokio::net::TcpListener::bind("127.0.0.1:0").await?)?;
//! println!("{}", server.url());
//! server.shutdown().await;
//! # Ok(())
//! # }
//! ```

pub mod accounts;
mod bare;
mod block;
mod chain;
mod error;
mod execution;
mod filters;
mod log;
mod queue;
mod rpc;
mod server;

use std::{fmt, path::PathBuf, sync::Arc};

use alloy_primitives::{Address, B256, Bytes, U256};
use parking_lot::{Mutex, RwLock};
use serde_json::Value;
use tokio::net::TcpListener;

pub use bare::{BareEvm, CallEnd, Executed};
pub use error::{Error, RpcError};
pub use server::ServerHandle;

use chain::Chain;
use rpc::Service;

/// The chain id of development chains.
pub const CHAIN_ID: u64 = 31_337;

/// The timestamp of the genesis blocks unless another one is chosen: 2025-01-01T00:00:00Z.
pub const GENESIS_TIMESTAMP: u64 = 1_735_689_600;

/// How a chain is made.
#[derive(Clone, Debug)]
pub struct Options {
    /// The chain id; [`CHAIN_ID`] by default.
    pub chain_id: u64,
    /// Signed transactions, each mined in its own block before the chain is handed out, in this order. All must
    /// succeed.
    pub genesis_transactions: Vec<Bytes>,
    /// Balances of block 0, in wei; the [`accounts`] by default.
    pub funded_accounts: Vec<(Address, U256)>,
    /// Where blocks are kept. `None` keeps them in memory only. A directory belongs to one genesis and one process.
    pub data_dir: Option<PathBuf>,
    /// The timestamp of all genesis blocks, in Unix seconds. Fixed, so that the same options give the same hashes.
    pub genesis_timestamp: u64,
    /// Where later timestamps come from.
    pub clock: Clock,
    /// Whether `evm_*` and `anvil_*` methods are served, which move time, money and history. Off by default.
    pub dev_methods: bool,
    /// Gas limit of a block and thereby of a transaction.
    pub block_gas_limit: u64,
    /// Bounds for what clients may ask.
    pub limits: Limits,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            chain_id: CHAIN_ID,
            genesis_transactions: Vec::new(),
            funded_accounts: accounts::funded(),
            data_dir: None,
            genesis_timestamp: GENESIS_TIMESTAMP,
            clock: Clock::System,
            dev_methods: false,
            block_gas_limit: 100_000_000,
            limits: Limits::default(),
        }
    }
}

/// Where block timestamps come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Clock {
    /// The system's clock, shifted by what the chain was moved ahead.
    #[default]
    System,
    /// Time stands still, from the last block on, until it is moved explicitly: the same calls give the same hashes.
    Manual,
}

/// Bounds for requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Size of an HTTP request body in bytes.
    pub request_bytes: usize,
    /// Requests in a batch.
    pub batch_requests: usize,
    /// Size of the answer to a batch, in bytes, after which its remaining requests are refused.
    pub response_bytes: usize,
    /// Logs in one answer.
    pub logs: usize,
    /// Blocks in one `eth_getLogs` range.
    pub log_blocks: u64,
    /// Gas of one `eth_call`.
    pub call_gas: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            request_bytes: 8 << 20,
            batch_requests: 1_000,
            response_bytes: 32 << 20,
            logs: 10_000,
            log_blocks: 1_000_000,
            call_gas: 100_000_000,
        }
    }
}

/// A chain. Clones are the same chain; it is closed when the last clone and the last server are gone.
#[derive(Clone)]
pub struct DevChain {
    service: Arc<Service>,
}

impl DevChain {
    /// Builds the genesis and, with a data directory, executes what is recorded there; every block must come out with
    /// its recorded hash. A half-written record at the end of the log is dropped. Blocking.
    ///
    /// # Errors
    ///
    /// [`Error::Genesis`] for a genesis transaction that fails; [`Error::InUse`], [`Error::OtherGenesis`],
    /// [`Error::NotAChainLog`], [`Error::DamagedLog`], [`Error::ReplayMismatch`] and [`Error::File`] for the directory.
    pub fn open(options: Options) -> Result<Self, Error> {
        let chain = Chain::open(&options)?;
        tracing::debug!(
            chain.id = options.chain_id,
            block = chain.tip_number(),
            "the chain is open"
        );
        let service = Service {
            chain: RwLock::new(chain),
            filters: Mutex::default(),
            limits: options.limits,
            dev_methods: options.dev_methods,
        };
        Ok(Self {
            service: Arc::new(service),
        })
    }

    /// Serves JSON-RPC on `listener`, which must be bound to a loopback address; port 0 is fine. Call it within a
    /// tokio runtime.
    ///
    /// # Errors
    ///
    /// [`Error::NotLoopback`] and [`Error::Listen`].
    pub fn serve(&self, listener: TcpListener) -> Result<ServerHandle, Error> {
        server::serve(self.service.clone(), listener)
    }

    /// Carries out one JSON-RPC call in-process. Blocking; never waits for anything but other calls.
    ///
    /// # Errors
    ///
    /// The error object that an HTTP client would get.
    pub fn request(&self, method: &str, parameters: &[Value]) -> Result<Value, RpcError> {
        self.service.call(method, parameters)
    }

    /// Takes in a signed transaction and mines it, or queues it when its nonce is ahead; returns its hash.
    ///
    /// # Errors
    ///
    /// When it cannot be included. A transaction that reverts is included, with status 0 in its receipt.
    pub fn send_raw_transaction(&self, raw: &[u8]) -> Result<B256, RpcError> {
        self.service.chain.write().send(raw)
    }

    /// The chain id.
    pub fn chain_id(&self) -> u64 {
        self.service.chain.read().chain_id()
    }

    /// The number of the newest block.
    pub fn block_number(&self) -> u64 {
        self.service.chain.read().tip_number()
    }

    /// The timestamp, in Unix seconds, that a block mined now would get.
    pub fn timestamp(&self) -> u64 {
        self.service.chain.read().next_time()
    }

    /// Moves time forward by `seconds` and mines a block then, whatever `dev_methods` says: this is the owner's call.
    ///
    /// # Errors
    ///
    /// When the time is beyond the year 9999 or the log cannot be written.
    pub fn advance_time(&self, seconds: u64) -> Result<(), RpcError> {
        let mut chain = self.service.chain.write();
        chain.increase_time(seconds)?;
        chain.mine_empty()
    }

    /// Waits until every mined block is on the disk. It is there at most 100 ms after mining in any case.
    ///
    /// # Errors
    ///
    /// What the operating system says.
    pub fn flush(&self) -> std::io::Result<()> {
        self.service.chain.read().flush()
    }
}

impl fmt::Debug for DevChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let chain = self.service.chain.read();
        f.debug_struct("DevChain")
            .field("chain_id", &chain.chain_id())
            .field("block_number", &chain.tip_number())
            .finish_non_exhaustive()
    }
}
