//! The one error of the SDK: a stable code, a category for exit codes, and a message that names the remedy.

use std::path::{Path, PathBuf};
use std::time::Duration;

use alloy_primitives::{Address, U256};
use zerog_chain::{ChainError, ContractErrorKind, SigningError};
use zerog_protocol::amount::format_0g;
use zerog_protocol::{B256, TaskId};

/// What kind of trouble an [`Error`] is; the command line turns it into its exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Category {
    /// Anything without a category of its own.
    General,
    /// The call itself is wrong: a missing or contradictory argument.
    Usage,
    /// No key, a wrong key or a wrong password.
    Authentication,
    /// Not enough money in the wallet, the ledger or a sub-account, or no account at all.
    Funds,
    /// A dataset, model name or training parameter that cannot be used.
    Validation,
    /// The provider does not answer, or refuses.
    Provider,
    /// The chain does not answer, or a contract refuses.
    Chain,
    /// Evidence, hash or signature does not hold.
    Verification,
    /// Something did not happen in time.
    Timeout,
    /// The user stopped the operation.
    Interrupted,
    /// The storage network does not answer, refuses, or has not the file.
    Storage,
    /// A local file cannot be read or written.
    Disk,
}

impl Category {
    /// One word in lower case, for programs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::General => "general",
            Self::Usage => "usage",
            Self::Authentication => "authentication",
            Self::Funds => "funds",
            Self::Validation => "validation",
            Self::Provider => "provider",
            Self::Chain => "chain",
            Self::Verification => "verification",
            Self::Timeout => "timeout",
            Self::Interrupted => "interrupted",
            Self::Storage => "storage",
            Self::Disk => "disk",
        }
    }
}

/// Which of the two service contracts something is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServiceKind {
    /// Training.
    FineTuning,
    /// Chat.
    Inference,
}

impl ServiceKind {
    /// The name that users type: `fine-tuning` or `inference`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::FineTuning => "fine-tuning",
            Self::Inference => "inference",
        }
    }
}

impl std::fmt::Display for ServiceKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for ServiceKind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "fine-tuning" | "finetuning" | "ft" | "fine-tuning-v1.0" => Ok(Self::FineTuning),
            "inference" | "inf" | "inference-v1.0" => Ok(Self::Inference),
            other => Err(Error::Argument {
                name: "service",
                reason: format!("`{other}` is no service; use fine-tuning or inference"),
            }),
        }
    }
}

/// Everything that can go wrong in a call of the SDK.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The broker was made without a wallet.
    #[error(
        "this needs a wallet key. Log in with `0g-compute-cli login`, or pass a key file (--key-file) or ZG_PRIVATE_KEY"
    )]
    NoWallet,
    /// The text is no private key.
    #[error("the private key cannot be used: {reason}. Check the file or variable it comes from")]
    InvalidKey {
        /// What is wrong; never the key.
        reason: String,
    },
    /// An argument that cannot be right.
    #[error("{name}: {reason}")]
    Argument {
        /// Argument name.
        name: &'static str,
        /// What is wrong and what to write instead.
        reason: String,
    },
    /// The chain or a contract.
    #[error("{}", chain_message(.0))]
    Chain(#[source] ChainError),
    /// The wallet did not sign; nothing was sent.
    #[error(transparent)]
    Signing(#[from] SigningError),
    /// The wallet signs the same text differently each time, so that no key can be derived from it.
    #[error(
        "wallet {address} signs the same text differently each time, so the key for a trained model could not be made again and the model would be lost. Use a wallet with deterministic signatures (RFC 6979), as Ledger and Trezor have them, or a key file"
    )]
    SignaturesDiffer {
        /// The wallet.
        address: Address,
    },
    /// The wallet could not open the model that the provider delivers.
    #[error(
        "this wallet could not open a model of provider {provider}: {reason}. Nothing was paid for it. Choose a provider that announces recipient keys, or use a wallet whose key is in a file"
    )]
    ModelNotOpenable {
        /// The provider.
        provider: Address,
        /// Why.
        reason: String,
    },
    /// The wallet has no ledger.
    #[error(
        "{user} has no ledger account yet. Create it with `0g-compute-cli add-account --amount 3` or `deposit --amount 3`"
    )]
    LedgerMissing {
        /// The wallet.
        user: Address,
    },
    /// No sub-account with this provider.
    #[error(
        "{user} has no {service} account with provider {provider}. Create it with `0g-compute-cli transfer-fund --provider {provider} --service {service} --amount 1`"
    )]
    AccountMissing {
        /// The wallet.
        user: Address,
        /// The provider.
        provider: Address,
        /// Which contract.
        service: ServiceKind,
    },
    /// A sub-account holds less than an operation needs.
    #[error("the {service} account with provider {provider} holds {} 0G available, {} 0G are needed. Add funds with `0g-compute-cli transfer-fund --provider {provider} --service {service} --amount {}`", format_0g(*.available), format_0g(*.required), format_0g(missing_rounded(*.required, *.available)))]
    InsufficientAccount {
        /// The provider.
        provider: Address,
        /// Which contract.
        service: ServiceKind,
        /// Needed, in neuron.
        required: U256,
        /// There, in neuron.
        available: U256,
    },
    /// The ledger holds less than a transfer needs.
    #[error("the ledger holds {} 0G available, {} 0G are needed. Add funds with `0g-compute-cli deposit --amount {}`", format_0g(*.available), format_0g(*.required), format_0g(missing_rounded(*.required, *.available)))]
    InsufficientLedger {
        /// Needed, in neuron.
        required: U256,
        /// There, in neuron.
        available: U256,
    },
    /// The wallet holds less than an operation needs.
    #[error("wallet {address} holds {} 0G, {} 0G are needed. Send coins to this address first", format_0g(*.available), format_0g(*.required))]
    InsufficientCoins {
        /// The wallet.
        address: Address,
        /// Needed, in neuron.
        required: U256,
        /// There, in neuron.
        available: U256,
    },
    /// The provider has no service on chain.
    #[error(
        "provider {provider} has no {service} service on this network. See `0g-compute-cli {service} list-providers`"
    )]
    ServiceMissing {
        /// The provider.
        provider: Address,
        /// Which contract.
        service: ServiceKind,
    },
    /// The contract owner has not acknowledged the provider's signer.
    #[error(
        "the TEE signer of provider {provider} has not been acknowledged by the network's owner, so its {service} service cannot be paid. Choose another provider"
    )]
    ServiceNotAcknowledged {
        /// The provider.
        provider: Address,
        /// Which contract.
        service: ServiceKind,
    },
    /// The user has not acknowledged the provider's signer.
    #[error(
        "you have not acknowledged provider {provider}. Run `0g-compute-cli {service} acknowledge-provider --provider {provider}`"
    )]
    NotAcknowledged {
        /// The provider.
        provider: Address,
        /// Which contract.
        service: ServiceKind,
    },
    /// No connection, or the connection broke.
    #[error(
        "no answer from the provider at {url}: {reason}. Check that it is running, and try again"
    )]
    ProviderUnreachable {
        /// The request.
        url: String,
        /// What happened.
        reason: String,
    },
    /// The provider answered with an error.
    #[error("{operation} failed: {message} (HTTP {status}){}", retry_hint(*.retry_after_s))]
    ProviderRefused {
        /// What was asked, as a phrase that starts a sentence.
        operation: &'static str,
        /// HTTP status.
        status: u16,
        /// Stable code of the provider, if it sent one.
        code: Option<String>,
        /// The provider's text.
        message: String,
        /// When to try again, in seconds, if the provider said so.
        retry_after_s: Option<u64>,
    },
    /// The provider answered something that the protocol does not allow.
    #[error(
        "the provider's answer to {operation} cannot be read: {reason}. The address may belong to another kind of server"
    )]
    ProviderAnswer {
        /// What was asked.
        operation: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The dataset file is bad.
    #[error("dataset {path}: {reason}")]
    Dataset {
        /// The file.
        path: PathBuf,
        /// Line, column, field and remedy.
        reason: String,
    },
    /// The training parameters are bad.
    #[error("training parameters: {reason}")]
    TrainingParameters {
        /// Field and remedy.
        reason: String,
    },
    /// No provider knows this model.
    #[error("unknown model `{model}`{}", known_models(.known))]
    UnknownModel {
        /// As typed.
        model: String,
        /// What there is.
        known: Vec<String>,
    },
    /// No tokenizer for a model.
    #[error(
        "no tokenizer for {model} was found: {reason}. Name a provider that serves the model (--provider), or put tokenizer.json into a local folder (--tokenizer-dir)"
    )]
    Tokenizer {
        /// Model name.
        model: String,
        /// What was tried.
        reason: String,
    },
    /// The provider's evidence is not good enough.
    #[error("provider {provider} is not verified ({level}): {}. Nothing was sent to it", .failures.join("; "))]
    VerificationFailed {
        /// The provider.
        provider: Address,
        /// FAILED, PARTIAL or SIMULATED.
        level: String,
        /// Failed checks, or what the requirement demands.
        failures: Vec<String>,
    },
    /// The enclave accepts no sealed data.
    #[error(
        "provider {provider} accepts no datasets that this wallet can seal. Use --plain to send the dataset over TLS only, or --via storage to store it in clear on public storage"
    )]
    SealingUnsupported {
        /// The provider.
        provider: Address,
    },
    /// A downloaded file is not the one on chain.
    #[error(
        "the downloaded file is not the delivered one: the chain says {expected}, the file has storage root {storage_root} and Keccak hash {keccak}. It was removed and nothing was acknowledged; try again, or use another --download-method"
    )]
    HashMismatch {
        /// Hash on chain.
        expected: B256,
        /// Merkle root of the file.
        storage_root: B256,
        /// Keccak hash of the file.
        keccak: B256,
    },
    /// The archive does not open or is signed by somebody else.
    #[error("{path} cannot be decrypted: {reason}")]
    Archive {
        /// The encrypted file.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// An adapter archive that is unsafe or not an adapter.
    #[error("{path} is not a usable adapter archive: {reason}")]
    AdapterArchive {
        /// The zip file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A response signature does not hold.
    #[error("the response is not proven: {reason}. Do not rely on it")]
    ResponseNotProven {
        /// What is wrong.
        reason: String,
    },
    /// A quote is not what was asked for, or not signed by the registered enclave.
    #[error(
        "the quote of provider {provider} is not proven: {reason}. Ask for a new one and do not rely on this one"
    )]
    QuoteNotProven {
        /// The provider.
        provider: Address,
        /// What is wrong.
        reason: String,
    },
    /// Other tasks wait at the provider.
    #[error(
        "there are {pending} tasks in the provider's queue. Use --queue to wait in line, or --no-queue to give up"
    )]
    QueueNotEmpty {
        /// How many.
        pending: u64,
    },
    /// The task has no deliverable on chain.
    #[error(
        "task {task} has no deliverable on chain yet. Wait until `fine-tuning get-task` shows Delivered"
    )]
    DeliverableMissing {
        /// The task.
        task: TaskId,
    },
    /// The deliverable must be acknowledged first.
    #[error(
        "the deliverable of task {task} is not acknowledged yet. Run `0g-compute-cli fine-tuning acknowledge-model` first"
    )]
    DeliverableNotAcknowledged {
        /// The task.
        task: TaskId,
    },
    /// The provider has no task for this user.
    #[error("provider {provider} has no task of {user}")]
    NoTask {
        /// The provider.
        provider: Address,
        /// The wallet.
        user: Address,
    },
    /// A task ended without a result.
    #[error("task {task} ended as {state}: {reason}. See `0g-compute-cli fine-tuning get-log`")]
    TaskEnded {
        /// The task.
        task: TaskId,
        /// Failed or Cancelled.
        state: String,
        /// The provider's reason.
        reason: String,
    },
    /// An adapter could not be prepared or loaded.
    #[error("adapter {adapter} failed: {reason}")]
    AdapterFailed {
        /// Adapter name.
        adapter: String,
        /// The provider's reason.
        reason: String,
    },
    /// Something did not happen in time.
    #[error("timed out after {}s waiting for {what}{}", .waited.as_secs(), last_seen(.last))]
    Timeout {
        /// What was waited for, with the remedy.
        what: String,
        /// How long.
        waited: Duration,
        /// Last state seen.
        last: Option<String>,
    },
    /// The user stopped the operation.
    #[error(
        "interrupted. Finished parts of a download are kept and the same command goes on from there"
    )]
    Interrupted,
    /// The storage network.
    #[error("storage: {reason}")]
    Storage {
        /// What went wrong and what to do.
        reason: String,
    },
    /// The disk, a quota or a limit on file sizes is exhausted.
    #[error(
        "no space left for {path}: the disk, a quota or a file-size limit is full. Nothing half-written was kept; free some space and run the command again"
    )]
    DiskFull {
        /// The file.
        path: PathBuf,
    },
    /// A local file.
    #[error("cannot {action} {path}: {source}")]
    File {
        /// `read`, `write`, …
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

impl Error {
    /// A stable identifier in snake case, for programs.
    #[must_use]
    pub fn code(&self) -> &str {
        match self {
            Self::NoWallet => "no_wallet",
            Self::InvalidKey { .. } => "invalid_key",
            Self::Argument { .. } => "invalid_argument",
            Self::Chain(error) => chain_code(error),
            Self::Signing(error) => signing_code(error),
            Self::SignaturesDiffer { .. } => "signatures_differ",
            Self::ModelNotOpenable { .. } => "model_not_openable",
            Self::LedgerMissing { .. } => "ledger_missing",
            Self::AccountMissing { .. } => "account_missing",
            Self::InsufficientAccount { .. } => "insufficient_account_balance",
            Self::InsufficientLedger { .. } => "insufficient_ledger_balance",
            Self::InsufficientCoins { .. } => "insufficient_coins",
            Self::ServiceMissing { .. } => "service_missing",
            Self::ServiceNotAcknowledged { .. } => "service_not_acknowledged",
            Self::NotAcknowledged { .. } => "provider_not_acknowledged",
            Self::ProviderUnreachable { .. } => "provider_unreachable",
            Self::ProviderRefused {
                code: Some(code), ..
            } => code,
            Self::ProviderRefused { .. } => "provider_refused",
            Self::ProviderAnswer { .. } => "provider_answer_malformed",
            Self::Dataset { .. } => "invalid_dataset",
            Self::TrainingParameters { .. } => "invalid_training_parameters",
            Self::UnknownModel { .. } => "unknown_model",
            Self::Tokenizer { .. } => "tokenizer_missing",
            Self::VerificationFailed { .. } => "verification_failed",
            Self::SealingUnsupported { .. } => "sealing_unsupported",
            Self::HashMismatch { .. } => "hash_mismatch",
            Self::Archive { .. } => "archive_unreadable",
            Self::AdapterArchive { .. } => "adapter_archive_invalid",
            Self::ResponseNotProven { .. } => "response_not_proven",
            Self::QuoteNotProven { .. } => "quote_not_proven",
            Self::QueueNotEmpty { .. } => "queue_not_empty",
            Self::DeliverableMissing { .. } => "deliverable_missing",
            Self::DeliverableNotAcknowledged { .. } => "deliverable_not_acknowledged",
            Self::NoTask { .. } => "no_task",
            Self::TaskEnded { .. } => "task_ended",
            Self::AdapterFailed { .. } => "adapter_failed",
            Self::Timeout { .. } => "timeout",
            Self::Interrupted => "interrupted",
            Self::Storage { .. } => "storage",
            Self::DiskFull { .. } => "disk_full",
            Self::File { .. } => "file",
        }
    }

    /// The category, which decides the exit code of the command line.
    #[must_use]
    pub fn category(&self) -> Category {
        match self {
            Self::Signing(SigningError::TimedOut { .. }) => Category::Timeout,
            Self::NoWallet
            | Self::InvalidKey { .. }
            | Self::Signing(_)
            | Self::SignaturesDiffer { .. } => Category::Authentication,
            Self::Argument { .. } => Category::Usage,
            Self::Chain(error) => chain_category(error),
            Self::LedgerMissing { .. }
            | Self::AccountMissing { .. }
            | Self::InsufficientAccount { .. }
            | Self::InsufficientLedger { .. }
            | Self::InsufficientCoins { .. } => Category::Funds,
            Self::Dataset { .. }
            | Self::TrainingParameters { .. }
            | Self::UnknownModel { .. }
            | Self::Tokenizer { .. } => Category::Validation,
            Self::ProviderRefused { status: 401, .. } => Category::Authentication,
            Self::ProviderRefused { status: 402, .. } => Category::Funds,
            Self::ProviderRefused {
                status: 413 | 422, ..
            } => Category::Validation,
            Self::ProviderRefused {
                code: Some(code), ..
            } => refusal_category(code),
            Self::ServiceMissing { .. }
            | Self::ServiceNotAcknowledged { .. }
            | Self::NotAcknowledged { .. }
            | Self::ProviderUnreachable { .. }
            | Self::ProviderRefused { .. }
            | Self::ProviderAnswer { .. }
            | Self::QueueNotEmpty { .. }
            | Self::NoTask { .. }
            | Self::TaskEnded { .. }
            | Self::AdapterFailed { .. }
            | Self::ModelNotOpenable { .. }
            | Self::DeliverableMissing { .. }
            | Self::DeliverableNotAcknowledged { .. } => Category::Provider,
            Self::VerificationFailed { .. }
            | Self::SealingUnsupported { .. }
            | Self::HashMismatch { .. }
            | Self::Archive { .. }
            | Self::AdapterArchive { .. }
            | Self::ResponseNotProven { .. }
            | Self::QuoteNotProven { .. } => Category::Verification,
            Self::Timeout { .. } => Category::Timeout,
            Self::Interrupted => Category::Interrupted,
            Self::Storage { .. } => Category::Storage,
            Self::DiskFull { .. } | Self::File { .. } => Category::Disk,
        }
    }

    /// A failed file operation, with a full disk told apart.
    pub fn file(action: &'static str, path: impl AsRef<Path>, source: std::io::Error) -> Self {
        use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        let path = path.as_ref().to_path_buf();
        if matches!(source.kind(), StorageFull | QuotaExceeded | FileTooLarge) {
            return Self::DiskFull { path };
        }
        Self::File {
            action,
            path,
            source,
        }
    }

    /// Whether the same call can succeed later without anybody changing anything.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Chain(error) => error.is_retryable(),
            Self::ProviderUnreachable { .. } => true,
            Self::ProviderRefused { status, .. } => matches!(status, 408 | 429 | 500..),
            _ => false,
        }
    }
}

impl From<ChainError> for Error {
    fn from(error: ChainError) -> Self {
        match error {
            ChainError::Signing(error) => Self::Signing(error),
            other => Self::Chain(other),
        }
    }
}

/// The result of every call of the SDK.
pub type Result<T, E = Error> = std::result::Result<T, E>;

fn refusal_category(code: &str) -> Category {
    match code {
        code if ["balance", "fund", "account_missing"]
            .iter()
            .any(|part| code.contains(part)) =>
        {
            Category::Funds
        }
        code if code.contains("signature") || code.contains("unauthor") => Category::Authentication,
        code if code.contains("dataset") || code.contains("model") || code.contains("param") => {
            Category::Validation
        }
        _ => Category::Provider,
    }
}

/// What is missing, rounded up to a hundredth of a 0G so that the printed command is short and enough.
fn missing_rounded(required: U256, available: U256) -> U256 {
    let step = U256::from(10_000_000_000_000_000u64);
    let missing = required.saturating_sub(available);
    missing.div_ceil(step).saturating_mul(step).max(step)
}

fn retry_hint(retry_after_s: Option<u64>) -> String {
    retry_after_s.map_or_else(String::new, |seconds| format!("; try again in {seconds} s"))
}

fn known_models(known: &[String]) -> String {
    if known.is_empty() {
        ". See `0g-compute-cli fine-tuning list-models`".to_owned()
    } else {
        format!(
            "; known are {}. See `0g-compute-cli fine-tuning list-models`",
            known.join(", ")
        )
    }
}

fn last_seen(last: &Option<String>) -> String {
    last.as_ref()
        .map_or_else(String::new, |state| format!(" (last state: {state})"))
}

fn chain_message(error: &ChainError) -> String {
    let remedy = match error {
        ChainError::InvalidRpcUrl { .. } => "Write it as http://host:port or https://host (--rpc)",
        ChainError::Unreachable { .. } => {
            "Check the network setting (`0g-compute-cli show-network`) or name another endpoint (--rpc)"
        }
        ChainError::Rpc { .. } | ChainError::MalformedAnswer { .. } => {
            "Try again, or name another endpoint (--rpc)"
        }
        ChainError::TransactionFailed { reason: None, .. } => {
            "Nothing was changed; run the command again"
        }
        ChainError::ReceiptTimeout { .. } => {
            "Look it up before you repeat the command, or offer more gas (--gas-price)"
        }
        ChainError::InsufficientFunds { .. } => "Send coins to this address first",
        ChainError::Underpriced { .. } => "Offer more with --gas-price",
        ChainError::GasPriceAboveMaximum { .. } => "Raise --max-gas-price or wait",
        ChainError::NonceUsed { .. } => "Run the command again",
        _ => return error.to_string(),
    };
    format!("{error}. {remedy}")
}

fn chain_code(error: &ChainError) -> &'static str {
    match error {
        ChainError::InvalidRpcUrl { .. } => "invalid_rpc_url",
        ChainError::Unreachable { .. } => "chain_unreachable",
        ChainError::Rpc { .. } => "chain_rpc",
        ChainError::MalformedAnswer { .. } => "chain_answer_malformed",
        ChainError::WrongChain { .. } => "wrong_chain",
        ChainError::NotAContract { .. } => "not_a_contract",
        ChainError::NoWallet => "no_wallet",
        ChainError::NoFlowAddress => "no_flow_address",
        ChainError::Reverted(_) | ChainError::TransactionFailed { .. } => "contract_refused",
        ChainError::ReceiptTimeout { .. } => "receipt_timeout",
        ChainError::InsufficientFunds { .. } => "insufficient_coins",
        ChainError::Underpriced { .. } | ChainError::GasPriceAboveMaximum { .. } => "gas_price",
        ChainError::NonceUsed { .. } => "nonce_used",
        _ => "chain",
    }
}

fn signing_code(error: &SigningError) -> &'static str {
    match error {
        SigningError::TimedOut { .. } => "signing_timeout",
        SigningError::WrongSignature { .. } => "wrong_signature",
        SigningError::Unsupported { .. } => "signing_unsupported",
        _ => "signing_refused",
    }
}

fn chain_category(error: &ChainError) -> Category {
    let Some(contract) = error.contract_error() else {
        return match error {
            ChainError::NoWallet => Category::Authentication,
            ChainError::InsufficientFunds { .. } => Category::Funds,
            ChainError::ReceiptTimeout { .. } => Category::Timeout,
            ChainError::InvalidRpcUrl { .. } => Category::Usage,
            _ => Category::Chain,
        };
    };
    match contract.kind {
        ContractErrorKind::LedgerNotExists
        | ContractErrorKind::AccountNotExists
        | ContractErrorKind::InsufficientBalance
        | ContractErrorKind::InsufficientAvailableBalance
        | ContractErrorKind::MinimumDepositRequired
        | ContractErrorKind::MustWithdrawAllFundsFirst => Category::Funds,
        _ => Category::Chain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_the_remedy() {
        let provider = Address::repeat_byte(1);
        let error = Error::InsufficientAccount {
            provider,
            service: ServiceKind::FineTuning,
            required: U256::from(2_000_000_000_000_000_001u64),
            available: U256::from(1_000_000_000_000_000_000u64),
        };
        let text = error.to_string();
        assert!(
            text.contains("holds 1 0G available, 2.000000000000000001 0G are needed"),
            "{text}"
        );
        assert!(
            text.contains(&format!(
                "transfer-fund --provider {provider} --service fine-tuning --amount 1.01"
            )),
            "{text}"
        );
        assert_eq!(
            (error.code(), error.category()),
            ("insufficient_account_balance", Category::Funds)
        );
    }

    #[test]
    fn a_full_disk_is_told_apart() {
        let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
        assert_eq!(Error::file("write", "x", full).code(), "disk_full");
        let denied = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
        assert_eq!(Error::file("write", "x", denied).code(), "file");
    }

    #[test]
    fn refusals_keep_the_providers_code() {
        let refused = |status, code: Option<&str>| Error::ProviderRefused {
            operation: "create task",
            status,
            code: code.map(str::to_owned),
            message: "no".into(),
            retry_after_s: None,
        };
        assert_eq!(
            refused(409, Some("unfinished_task")).code(),
            "unfinished_task"
        );
        assert_eq!(refused(402, None).category(), Category::Funds);
        assert_eq!(refused(401, None).category(), Category::Authentication);
        assert_eq!(
            refused(400, Some("insufficient_balance")).category(),
            Category::Funds
        );
        assert!(refused(429, None).is_passing() && !refused(404, None).is_passing());
    }
}
