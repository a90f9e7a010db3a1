//! The client of the 0G Compute fine-tuning network: one [`Broker`] with `ledger`, `fine_tuning` and `inference`.
//!
//! Methods, arguments and defaults follow the published Python interface in the same words (`docs/api.md`). Everything
//! is async; long operations report [`Progress`] to a closure. Amounts are in neuron (1 0G = 10^18 neuron).
//!
//! ```
//! use std::path::Path;
//! use zerog_sdk::{Broker, BrokerOptions, ServiceKind, amount::parse_0g};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let devnet = zerog_devnet::Devnet::start(Default::default()).await?;
//! # let (network, key) = (devnet.network(), devnet.key(3));
//! // `BrokerOptions::network("devnet")?` finds a running `0g-compute-devnet up`; this one is in the same process.
//! let broker = Broker::connect(BrokerOptions::custom(network).with_wallet(key)).await?;
//! let provider = broker.fine_tuning.list_service(false).await?[0].provider;
//!
//! broker.ledger.deposit_fund(parse_0g("5")?).await?;
//! broker.ledger.transfer_fund(provider, ServiceKind::FineTuning, parse_0g("1")?).await?;
//!
//! # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/datasets");
//! # let folder = Path::new(folder);
//! let dataset = folder.join("willow-farm.instruction.jsonl");
//! let params = r#"{"num_train_epochs": 3}"#;
//! let quote = broker.fine_tuning.quote_fee(provider, "Qwen2.5-0.5B-Instruct", &dataset, params).await?;
//! assert_eq!(quote.billed_tokens, 3 * quote.calculation.tokens);
//!
//! let uploaded = broker.fine_tuning.upload_dataset_to_tee(provider, &dataset, &Default::default()).await?;
//! assert!(uploaded.sealed, "only the enclave can read it");
//! # devnet.shutdown().await;
//! # Ok(())
//! # }
//! ```
//!
//! Then [`FineTuning::create_task`], [`FineTuning::wait_for_delivery`], [`FineTuning::acknowledge_model`] and
//! [`inference::lora::Lora::deploy_adapter`]. Real programs are in `examples/`, and tests run them: `whole_walk` does
//! everything, `compare_providers` ranks offers by price and queue, `resume` survives being killed at any time, and
//! `chat_stream` prints an answer while it is made.
//!
//! Every call fails with [`Error`], which has a stable code, a category, and a message with the remedy:
//!
//! ```
//! # use zerog_sdk::{Broker, BrokerOptions, Category};
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let devnet = zerog_devnet::Devnet::start(Default::default()).await?;
//! # let broker = Broker::connect(BrokerOptions::custom(devnet.network()).with_wallet(devnet.key(4))).await?;
//! let error = broker.ledger.get_ledger().await.unwrap_err();
//! assert_eq!((error.code(), error.category()), ("ledger_missing", Category::Funds));
//! assert!(error.to_string().contains("add-account"));
//! # devnet.shutdown().await;
//! # Ok(())
//! # }
//! ```

pub mod broker;
pub mod collateral;
pub mod devnet;
pub mod error;
pub mod fine_tuning;
pub mod funds;
pub mod inference;
pub mod ledger;
pub mod loss_curve;
mod neuron;
pub mod policy_file;
pub mod progress;
pub mod provider_client;
pub mod storage;
mod task_events;
mod transfer;
pub mod verification;
pub mod wallet;

pub use alloy_primitives::{Address, B256, Bytes, U256};
pub use broker::{Broker, BrokerOptions, NetworkSettings};
pub use collateral::CollateralSources;
pub use error::{Category, Error, Result, ServiceKind};
pub use fine_tuning::FineTuning;
pub use fine_tuning::account::{AccountDetail, PendingRefund};
pub use fine_tuning::dataset::{DatasetReport, UploadOptions, UploadResult};
pub use fine_tuning::deliverable::{AcknowledgedModel, DownloadMethod};
pub use fine_tuning::offer::{DatasetFinding, Quote};
pub use fine_tuning::quote::{FeeQuote, TokenCalculation};
pub use fine_tuning::services::{ListedModel, write_file};
pub use fine_tuning::task::CreateTask;
pub use fine_tuning::watch::WaitOptions;
pub use funds::FundPlan;
pub use inference::Inference;
pub use inference::lora::{ChatAnswer, DeployOptions, Lora};
pub use inference::session::{ApiKey, Funding, RequestHeaders, ServiceMetadata};
pub use inference::verify::ResponseProof;
pub use ledger::Ledger;
pub use policy_file::read_policy;
pub use progress::Progress;
pub use storage::{Storage, StorageOptions};
pub use verification::{VerificationReport, VerificationStep};
pub use wallet::Wallet;

pub use zerog_attestation::{
    Assurance, Check, CheckId, CheckStatus, Level, Policy, Rejection, Requirement, Verdict,
};
pub use zerog_chain::fine_tuning::{
    Account as FineTuningAccount, Deliverable, Quota, Service as FineTuningService,
};
pub use zerog_chain::inference::{Account as InferenceAccount, Service as InferenceService};
pub use zerog_chain::ledger::LedgerAccount;
pub use zerog_chain::{Addresses, Receipt, SigningDevice, SigningError, networks};
pub use zerog_protocol::adapter::AdapterState;
pub use zerog_protocol::fine_tuning_api::{
    FeeBreakdown, ModelView, Recipient, StateTime, TaskView as Task, TrainingProgress,
};
pub use zerog_protocol::inference_api::{AdapterShares, AdapterView, DeployResponse};
pub use zerog_protocol::quote::SignedQuote;
pub use zerog_protocol::task::TaskState;
pub use zerog_protocol::training_params::{Schema, TrainingParams};
pub use zerog_protocol::{SecretKey, TaskId, amount, ids, limits, models};
