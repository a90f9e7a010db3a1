//! The client of the 0G Compute fine-tuning network: one [`Broker`] with `ledger`, `fine_tuning` and `inference`.
//!
//! Methods, arguments and defaults follow the published Python interface in the same words (`docs/api.md`). Everything
//! is async; long operations report [`Progress`] to a closure. Amounts are in neuron (1 0G = 10^18 neuron).
//!
//! ```no_run
//! use zerog_sdk::{Broker, BrokerOptions, CreateTask, DownloadMethod, ServiceKind, amount::parse_0g};
//!
//! # async fn walk(provider: zerog_sdk::Address) -> Result<(), Box<dyn std::error::Error>> {
//! let key = std::fs::read_to_string("wallet.key")?.parse()?;
//! let broker = Broker::connect(BrokerOptions::network("devnet")?.with_wallet(key)).await?;
//! broker.ledger.deposit_fund(parse_0g("3")?).await?;
//! broker.ledger.transfer_fund(provider, ServiceKind::FineTuning, parse_0g("1")?).await?;
//! let uploaded = broker.fine_tuning.upload_dataset_to_tee(provider, "data.jsonl".as_ref(), &Default::default()).await?;
//! let task = broker
//!     .fine_tuning
//!     .create_task(&CreateTask {
//!         provider,
//!         model: "Qwen2.5-0.5B-Instruct".into(),
//!         dataset_hash: uploaded.dataset_hash,
//!         training_params: "{\"num_train_epochs\": 3}".into(),
//!         queue: false,
//!         max_fee: None,
//!     })
//!     .await?;
//! broker.fine_tuning.wait_for_delivery(provider, task, &Default::default(), |progress| println!("{progress:?}")).await?;
//! broker.fine_tuning.acknowledge_model(provider, task, "adapter.enc".as_ref(), DownloadMethod::Auto, |_| ()).await?;
//! # Ok(())
//! # }
//! ```

pub mod broker;
pub mod error;
pub mod fine_tuning;
pub mod funds;
pub mod inference;
pub mod ledger;
mod neuron;
pub mod progress;
pub mod provider_client;
pub mod storage;
mod task_events;
mod transfer;
pub mod verification;
pub mod wallet;

pub use alloy_primitives::{Address, B256, Bytes, U256};
pub use broker::{Broker, BrokerOptions, NetworkSettings};
pub use error::{Category, Error, Result, ServiceKind};
pub use fine_tuning::FineTuning;
pub use fine_tuning::account::{AccountDetail, PendingRefund};
pub use fine_tuning::dataset::{DatasetReport, UploadOptions, UploadResult};
pub use fine_tuning::deliverable::{AcknowledgedModel, DownloadMethod};
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
pub use progress::Progress;
pub use storage::{Storage, StorageOptions};
pub use verification::{VerificationReport, VerificationStep};

pub use zerog_attestation::{Assurance, Check, CheckStatus, Level, Requirement, Verdict};
pub use zerog_chain::fine_tuning::{
    Account as FineTuningAccount, Deliverable, Quota, Service as FineTuningService,
};
pub use zerog_chain::inference::{Account as InferenceAccount, Service as InferenceService};
pub use zerog_chain::ledger::LedgerAccount;
pub use zerog_chain::{Addresses, Receipt, networks};
pub use zerog_protocol::adapter::AdapterState;
pub use zerog_protocol::fine_tuning_api::{
    FeeBreakdown, ModelView, StateTime, TaskView as Task, TrainingProgress,
};
pub use zerog_protocol::inference_api::{AdapterView, DeployResponse};
pub use zerog_protocol::task::TaskState;
pub use zerog_protocol::training_params::{Schema, TrainingParams};
pub use zerog_protocol::{SecretKey, TaskId, amount, ids, limits, models};
