//! Typed access to the ledger, fine-tuning, inference and Flow contracts.
//!
//! A [`ChainClient`] reads; with a wallet ([`ChainClient::with_wallet`]) it also writes. Reads have a
//! timeout and bounded retries, and a failed read is always an error, never a default value: a
//! record that does not exist is `None`, everything else that goes wrong is a [`ChainError`].
//!
//! ```no_run
//! # async fn example() -> Result<(), zerog_chain::ChainError> {
//! use zerog_chain::{ChainClient, ClientOptions, networks};
//!
//! let network = networks::DEVNET;
//! let client = ChainClient::connect_network(&network, ClientOptions::default()).await?;
//! for service in client.fine_tuning().services().await? {
//!     println!("{} {}", service.provider, service.url);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Contract rules, selectors and addresses follow `docs/protocol.md`; where our own contracts differ
//! from the published ones, `docs/compatibility.md` says so.

pub mod bindings;
pub mod calls;
mod client;
pub mod deploy;
mod error;
pub mod fine_tuning;
pub mod flow;
pub mod inference;
pub mod ledger;
pub mod logs;
pub mod networks;
pub mod revert;
mod rpc;
mod serving_contract;
pub mod signer;
pub mod transaction;

pub use calls::ContractCall;
pub use client::{Addresses, BlockInfo, ChainClient, ClientOptions};
pub use error::ChainError;
pub use networks::Network;
pub use revert::{ContractError, ContractErrorKind};
pub use signer::{SigningDevice, SigningError, WalletSigner};
pub use transaction::{Log, PreparedTransaction, Receipt};
