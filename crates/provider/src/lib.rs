//! The provider daemon: fine-tuning tasks and inference behind one HTTP address, in one measured program.
//!
//! [`Provider::start`] runs it inside a process; the binary `0g-compute-provider` is a thin command line over it. Decisions
//! are made by `zerog_lifecycle`; this crate stores them ([`store`]), carries the effects out, follows the chain and answers
//! requests. Everything is built so that a process that is killed at any moment goes on at its next start.
//!
//! ```no_run
//! # async fn example(wallet: zerog_protocol::SecretKey) -> Result<(), Box<dyn std::error::Error>> {
//! use zerog_provider::{Config, Provider};
//!
//! let config = Config::devnet(
//!     "http://127.0.0.1:8545",
//!     zerog_chain::networks::DEVNET.addresses,
//!     "http://127.0.0.1:5678",
//!     wallet,
//!     "/tmp/provider",
//!     "127.0.0.1:0",
//!     "fixtures/tiny-qwen",
//! );
//! let provider = Provider::start(config).await?;
//! println!("{}", provider.url());
//! provider.shutdown().await;
//! # Ok(())
//! # }
//! ```

mod adapter_tiers;
mod app;
mod billing;
mod catalogue;
mod chain_watcher;
mod collateral;
pub mod config;
mod continued;
mod daemon;
mod effects;
mod external;
mod http;
mod identity;
mod inference_role;
mod outbox;
mod registration;
mod serve_local;
mod stop_signals;
pub mod store;
mod task_log;
mod training_process;
mod vault;

pub use catalogue::CatalogueError;
pub use config::{Config, ConfigError};
pub use daemon::{Provider, StartError, register_services, remove_services};
pub use identity::IdentityError;
pub use inference_role::EngineStartError;
pub use outbox::OutboxError;
pub use serve_local::{LocalError, LocalOptions, LocalServer};
pub use stop_signals::StopSignals;
pub use vault::VaultError;
pub use zerog_trainer::child_main as train_child;
