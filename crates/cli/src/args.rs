//! Commands and flags, under the published names.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use zerog_sdk::{Address, B256, TaskId, U256};

/// Fine-tune models on the 0G Compute network and talk to the result.
#[derive(Debug, Parser)]
#[command(name = "0g-compute-cli", version, after_help = crate::exit_code::HELP, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags of every command.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Common options")]
pub(crate) struct Global {
    /// Print the result as JSON; progress goes to standard error as JSON lines.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Send nothing: say what would be sent and what it would cost. Only for commands that spend.
    #[arg(long, global = true)]
    pub(crate) dry_run: bool,
    /// Answer every question with yes.
    #[arg(long, short = 'y', global = true)]
    pub(crate) yes: bool,
    /// Use this network instead of the chosen one: mainnet, testnet, testnet-dev, devnet, or a name that setup-network
    /// saved.
    #[arg(long, global = true, env = "ZG_NETWORK", value_name = "NAME")]
    pub(crate) network: Option<String>,
    /// Chain JSON-RPC endpoint.
    #[arg(long, global = true, env = "ZG_RPC_URL", value_name = "URL")]
    pub(crate) rpc: Option<String>,
    /// Storage indexer endpoint.
    #[arg(
        long,
        global = true,
        env = "ZG_STORAGE_INDEXER_URL",
        value_name = "URL"
    )]
    pub(crate) storage_indexer: Option<String>,
    /// Address of the ledger contract.
    #[arg(long, global = true, value_name = "ADDRESS")]
    pub(crate) ledger_ca: Option<Address>,
    /// Address of the inference contract.
    #[arg(long, global = true, value_name = "ADDRESS")]
    pub(crate) inference_ca: Option<Address>,
    /// Address of the fine-tuning contract.
    #[arg(long, global = true, value_name = "ADDRESS")]
    pub(crate) fine_tuning_ca: Option<Address>,
    /// Gas price in neuron.
    #[arg(long, global = true, value_name = "NEURON")]
    pub(crate) gas_price: Option<u128>,
    /// Highest gas price in neuron, also for replacements.
    #[arg(long, global = true, value_name = "NEURON")]
    pub(crate) max_gas_price: Option<u128>,
    /// Accepted for compatibility: replacements are priced by the client.
    #[arg(long, global = true, hide = true)]
    pub(crate) step: Option<String>,
    /// Read the wallet key from this file (or from the variable ZG_PRIVATE_KEY) instead of the saved one.
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) key_file: Option<PathBuf>,
    /// Read the keystore password from this file (or from the variable ZG_KEYSTORE_PASSWORD).
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) password_file: Option<PathBuf>,
    /// How sure to be of an enclave before data goes there.
    #[arg(long, global = true, value_enum, default_value_t = Require::NothingFailed)]
    pub(crate) require: Require,
    /// What counts as a passed check of an enclave, as TOML or JSON (docs/security.md).
    #[arg(long, global = true, env = "ZG_POLICY", value_name = "FILE")]
    pub(crate) policy: Option<PathBuf>,
    /// Collateral for quotes, as a verification writes it; nobody is asked for any then.
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) collateral: Option<PathBuf>,
    /// Collateral service (PCCS) to ask instead of the public ones; may be repeated.
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) collateral_service: Vec<String>,
    /// Fetch collateral anew instead of using what is cached.
    #[arg(long, global = true)]
    pub(crate) refresh_collateral: bool,
    /// Folder with tokenizer.json, used before cache, provider and model hub.
    #[arg(long, global = true, env = "ZG_TOKENIZER_DIR", value_name = "DIR")]
    pub(crate) tokenizer_dir: Option<PathBuf>,
    /// Log what happens inside (RUST_LOG refines it).
    #[arg(long, short = 'v', global = true)]
    pub(crate) verbose: bool,
}

/// Trust requirement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Require {
    /// Every check passed.
    Verified,
    /// No check failed; what was not checked is printed.
    NothingFailed,
}

/// Everything that can be asked for.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Choose the network and save it.
    SetupNetwork(SetupNetwork),
    /// Show the network in use, and the saved ones.
    ShowNetwork,
    /// Save the wallet key, encrypted.
    Login(Login),
    /// Forget the saved wallet key.
    Logout,
    /// Show network and wallet of this profile, without asking anybody.
    Status,
    /// Put coins into the ledger, creating it if there is none.
    Deposit(Amount),
    /// Create the ledger.
    AddAccount(Amount),
    /// Show the ledger and the sub-accounts.
    GetAccount,
    /// Show the sub-account with a provider.
    GetSubAccount(SubAccount),
    /// Move coins from the ledger to the sub-account with a provider.
    TransferFund(TransferFund),
    /// Ask coins back from sub-accounts, and collect what is unlocked.
    RetrieveFund(RetrieveFund),
    /// Pay coins of the ledger out to the wallet.
    Refund(Amount),
    /// Train: datasets, tasks, adapters.
    #[command(subcommand, visible_alias = "ft")]
    FineTuning(FineTuning),
    /// Serve: providers, keys, verification.
    #[command(subcommand, visible_alias = "inf")]
    Inference(Inference),
    /// Store files on the storage network and fetch them.
    #[command(subcommand)]
    Storage(Storage),
    /// Check key, network, money, providers and storage, and say what to fix.
    Doctor {
        /// Check this provider; default: every provider with a sub-account, else the listed ones.
        #[arg(long, value_name = "ADDRESS")]
        provider: Option<Address>,
    },
    /// Write the manual pages of every command.
    ManPages {
        /// Folder for the pages; it is made if there is none.
        #[arg(long, value_name = "DIR", default_value = ".")]
        output_dir: PathBuf,
    },
    /// Print a completion script for a shell.
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Args)]
pub(crate) struct SetupNetwork {
    /// A name for settings that are none of the known networks; --network takes it from then on.
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Login {
    /// Read the key from standard input.
    #[arg(long)]
    pub(crate) key_stdin: bool,
    /// Take key and network from the npm program's configuration; without FILE from ~/.0g-compute-cli/config.json.
    #[arg(long, value_name = "FILE", num_args = 0..=1, conflicts_with = "key_stdin")]
    pub(crate) import: Option<Option<PathBuf>>,
    /// Save the key unencrypted, in a file that only this user can read.
    #[arg(long)]
    pub(crate) plaintext: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Amount {
    /// Amount in 0G, for example 3 or 0.25.
    #[arg(long, value_parser = amount, value_name = "0G")]
    pub(crate) amount: U256,
}

#[derive(Debug, Args)]
pub(crate) struct SubAccount {
    /// Address of the provider.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) provider: Address,
    /// fine-tuning or inference; default: the provider's only service, else fine-tuning.
    #[arg(long, value_parser = service)]
    pub(crate) service: Option<zerog_sdk::ServiceKind>,
}

#[derive(Debug, Args)]
pub(crate) struct TransferFund {
    #[command(flatten)]
    pub(crate) account: SubAccount,
    /// Amount in 0G.
    #[arg(long, value_parser = amount, value_name = "0G")]
    pub(crate) amount: U256,
}

#[derive(Debug, Args)]
pub(crate) struct RetrieveFund {
    /// Only this service; default: both.
    #[arg(long, value_parser = service)]
    pub(crate) service: Option<zerog_sdk::ServiceKind>,
    /// Only this provider; default: all.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) provider: Option<Address>,
}

/// Where a dataset goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Via {
    /// Into the provider's enclave.
    Tee,
    /// In clear onto public storage.
    Storage,
}

/// Commands of `fine-tuning`.
#[derive(Debug, Subcommand)]
pub(crate) enum FineTuning {
    /// List providers.
    ListProviders {
        /// Also providers that the network's owner has not acknowledged.
        #[arg(long)]
        include_invalid: bool,
    },
    /// List base models.
    ListModels,
    /// Save a model's usage package (a .md path gets its README).
    ModelUsage {
        #[arg(long, value_name = "ADDRESS")]
        provider: Address,
        #[arg(long)]
        model: String,
        #[arg(long, value_name = "PATH")]
        output: PathBuf,
    },
    /// Write a training parameter file with every key and its default.
    InitConfig {
        /// Base model that it is for.
        #[arg(long)]
        model: Option<String>,
        /// File to write.
        #[arg(long, value_name = "FILE", default_value = "training_params.json")]
        output: PathBuf,
        /// Only the five keys that every provider takes.
        #[arg(long)]
        strict: bool,
    },
    /// Check a dataset; with --model also count what would be trained.
    CheckDataset {
        #[arg(long, value_name = "FILE")]
        dataset_path: PathBuf,
        #[arg(long)]
        model: Option<String>,
        /// Asked for the tokenizer.
        #[arg(long, value_name = "ADDRESS")]
        provider: Option<Address>,
        /// Training parameters, for max_seq_length.
        #[arg(long, value_name = "FILE")]
        config_path: Option<PathBuf>,
    },
    /// Store a dataset in clear on public storage, or with --provider in that provider's enclave.
    Upload {
        #[arg(long, value_name = "FILE")]
        data_path: PathBuf,
        /// Seal the file to this provider's enclave instead.
        #[arg(long, value_name = "ADDRESS")]
        provider: Option<Address>,
        /// With --provider: do not seal the file.
        #[arg(long, requires = "provider")]
        plain: bool,
    },
    /// Remove an uploaded dataset from a provider.
    DeleteDataset {
        #[arg(long, value_name = "ADDRESS")]
        provider: Address,
        /// Hash that the upload printed.
        #[arg(long, value_name = "HASH")]
        dataset: B256,
    },
    /// Fetch a stored file by its root hash.
    Download {
        #[arg(long, value_name = "FILE")]
        data_path: PathBuf,
        #[arg(long, value_name = "HASH")]
        data_root: B256,
    },
    /// Count a dataset's training tokens.
    CalculateToken {
        #[arg(long)]
        model: String,
        #[arg(long, value_name = "FILE")]
        dataset_path: PathBuf,
        /// Asked for the tokenizer, and for the price with --config-path.
        #[arg(long, value_name = "ADDRESS")]
        provider: Option<Address>,
        /// Training parameters; with --provider the fee is printed too.
        #[arg(long, value_name = "FILE")]
        config_path: Option<PathBuf>,
    },
    /// Say what a task would cost and when it could run, and what is wrong with its dataset, before anything is paid.
    Quote(Quote),
    /// Create a training task.
    CreateTask(CreateTask),
    /// Show a task, by default the newest.
    GetTask(TaskArgs),
    /// List the tasks with a provider.
    ListTasks {
        #[arg(long, value_name = "ADDRESS")]
        provider: Address,
    },
    /// Print a task's log.
    GetLog {
        #[command(flatten)]
        task: TaskArgs,
        /// Print it as it grows.
        #[arg(long, short = 'f')]
        follow: bool,
        #[command(flatten)]
        curve: Curve,
    },
    /// Cancel a task before it is trained.
    CancelTask {
        #[arg(long, value_name = "ADDRESS")]
        provider: Address,
        #[arg(long, visible_alias = "task-id", value_name = "ID")]
        task: TaskId,
    },
    /// Download the encrypted adapter, check it, and acknowledge it on chain.
    AcknowledgeModel(AcknowledgeModel),
    /// Acknowledge without downloading or checking anything.
    AcknowledgeDeliverable {
        #[arg(long, value_name = "ADDRESS")]
        provider: Address,
        #[arg(long, visible_alias = "task", value_name = "ID")]
        task_id: TaskId,
    },
    /// Verify a provider and acknowledge its signer.
    #[command(alias = "ack-provider")]
    AcknowledgeProvider {
        #[arg(long, value_name = "ADDRESS")]
        provider: Address,
    },
    /// Take the acknowledgement of a provider back.
    #[command(hide = true)]
    Revoke {
        #[arg(long, value_name = "ADDRESS")]
        provider: Address,
    },
    /// Decrypt a downloaded adapter to a zip file.
    DecryptModel {
        #[arg(long, value_name = "ADDRESS")]
        provider: Address,
        #[arg(long, visible_alias = "task", value_name = "ID")]
        task_id: TaskId,
        #[arg(long, value_name = "FILE")]
        encrypted_model: PathBuf,
        /// Zip file to write.
        #[arg(long, value_name = "FILE")]
        output: PathBuf,
        /// Also unpack it into this new folder.
        #[arg(long, value_name = "DIR")]
        unpack: Option<PathBuf>,
        /// Longest wait for the key, in seconds.
        #[arg(long, default_value_t = 600, value_name = "SECONDS")]
        timeout: u64,
    },
    /// Print the name of a task's adapter.
    GetAdapterName {
        #[arg(long)]
        model: String,
        #[arg(long, visible_alias = "task", value_name = "ID")]
        task_id: String,
    },
    /// List your adapters at an inference provider.
    ListAdapters {
        #[arg(long, value_name = "ADDRESS")]
        provider: Address,
    },
    /// Let another address use one of your adapters, or end that with --revoke.
    ShareAdapter {
        #[arg(long, value_name = "ADDRESS")]
        provider: Address,
        #[arg(long, value_name = "NAME")]
        adapter_name: String,
        /// Who may use it.
        #[arg(long, value_name = "ADDRESS")]
        address: Address,
        #[arg(long)]
        revoke: bool,
    },
    /// Load an adapter at an inference provider.
    DeployAdapter(DeployAdapter),
    /// Ask an adapter a question.
    Chat(Chat),
    /// Verify a provider's enclave.
    Verify(Verify),
    /// Everything from a dataset to a deployed adapter in one go.
    Run(Run),
}

#[derive(Debug, Args)]
pub(crate) struct TaskArgs {
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) provider: Address,
    /// Task id; default: the newest task.
    #[arg(long, visible_alias = "task-id", value_name = "ID")]
    pub(crate) task: Option<TaskId>,
}

/// What becomes of the losses in a log.
#[derive(Debug, Args)]
pub(crate) struct Curve {
    /// Draw the losses in place of the log's text.
    #[arg(long, conflicts_with = "follow")]
    pub(crate) chart: bool,
    /// Write step, loss, learning rate, epoch and validation loss as CSV.
    #[arg(long, value_name = "FILE", conflicts_with = "follow")]
    pub(crate) csv: Option<PathBuf>,
    /// Draw the losses into an SVG file.
    #[arg(long, value_name = "FILE", conflicts_with = "follow")]
    pub(crate) svg: Option<PathBuf>,
    /// Write an event file for TensorBoard into this folder.
    #[arg(long, value_name = "DIR", conflicts_with = "follow")]
    pub(crate) tensorboard: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Quote {
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) provider: Address,
    #[arg(long)]
    pub(crate) model: String,
    /// Training parameter file; default: every parameter's default.
    #[arg(long, value_name = "FILE")]
    pub(crate) config_path: Option<PathBuf>,
    /// Dataset file; it is counted here and not sent, unless --upload is given.
    #[arg(
        long,
        value_name = "FILE",
        required_unless_present = "dataset",
        conflicts_with = "dataset"
    )]
    pub(crate) dataset_path: Option<PathBuf>,
    /// Hash of a dataset that is at the provider; the enclave counts it and signs the quote.
    #[arg(long, value_name = "HASH")]
    pub(crate) dataset: Option<B256>,
    /// Seal and upload the dataset file first, for a quote that the enclave signs.
    #[arg(long, requires = "dataset_path")]
    pub(crate) upload: bool,
    /// Keep the signed quote in this file, for create-task --quote.
    #[arg(long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct CreateTask {
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) provider: Address,
    #[arg(long)]
    pub(crate) model: String,
    /// Training parameter file.
    #[arg(long, value_name = "FILE")]
    pub(crate) config_path: PathBuf,
    /// Hash of an uploaded dataset.
    #[arg(long, value_name = "HASH")]
    pub(crate) dataset: Option<String>,
    /// Dataset file to upload first.
    #[arg(long, value_name = "FILE")]
    pub(crate) dataset_path: Option<PathBuf>,
    /// Where --dataset-path goes.
    #[arg(long, value_enum, default_value_t = Via::Tee)]
    pub(crate) via: Via,
    /// With --via tee: do not seal the file.
    #[arg(long)]
    pub(crate) plain: bool,
    /// The number that calculate-token printed; it is checked.
    #[arg(long, value_name = "TOKENS")]
    pub(crate) data_size: Option<u64>,
    /// Most 0G that the task may cost.
    #[arg(long, value_parser = amount, value_name = "0G")]
    pub(crate) max_fee: Option<U256>,
    /// A signed quote that `quote --output` wrote; the task never costs more than it says.
    #[arg(long, value_name = "FILE", conflicts_with = "max_fee")]
    pub(crate) quote: Option<PathBuf>,
    /// Wait in line when other tasks are pending.
    #[arg(long, conflicts_with = "no_queue")]
    pub(crate) queue: bool,
    /// Give up when other tasks are pending.
    #[arg(long)]
    pub(crate) no_queue: bool,
    /// Wait until the task is delivered or has ended.
    #[arg(long)]
    pub(crate) wait: bool,
}

#[derive(Debug, Args)]
pub(crate) struct AcknowledgeModel {
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) provider: Address,
    #[arg(long, visible_alias = "task", value_name = "ID")]
    pub(crate) task_id: TaskId,
    /// File or folder for the encrypted adapter.
    #[arg(long, value_name = "PATH")]
    pub(crate) data_path: PathBuf,
    /// auto, tee or 0g-storage.
    #[arg(long, default_value = "auto", value_parser = download_method)]
    pub(crate) download_method: zerog_sdk::DownloadMethod,
    /// Deploy the adapter afterwards.
    #[arg(long)]
    pub(crate) deploy: bool,
    /// Base model, for --deploy; default: the task's.
    #[arg(long)]
    pub(crate) model: Option<String>,
    /// Where to deploy; default: --provider.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) inference_provider: Option<Address>,
}

#[derive(Debug, Args)]
pub(crate) struct AdapterArgs {
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) provider: Address,
    #[arg(long, value_name = "NAME")]
    pub(crate) adapter_name: Option<String>,
    #[arg(long)]
    pub(crate) model: Option<String>,
    #[arg(long, visible_alias = "task", value_name = "ID")]
    pub(crate) task_id: Option<TaskId>,
}

#[derive(Debug, Args)]
pub(crate) struct DeployAdapter {
    #[command(flatten)]
    pub(crate) adapter: AdapterArgs,
    /// Who trained it, when another provider did; default: looked up on chain.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) fine_tuning_provider: Option<Address>,
    /// Wait until it is served.
    #[arg(long)]
    pub(crate) wait: bool,
    /// Longest wait in seconds.
    #[arg(long, default_value_t = 120, value_name = "SECONDS")]
    pub(crate) timeout: u64,
}

#[derive(Debug, Args)]
pub(crate) struct Chat {
    #[command(flatten)]
    pub(crate) adapter: AdapterArgs,
    #[arg(long)]
    pub(crate) message: String,
    /// System prompt.
    #[arg(long, default_value = zerog_sdk::inference::lora::DEFAULT_SYSTEM_PROMPT)]
    pub(crate) system: String,
    /// Most tokens of the answer.
    #[arg(long)]
    pub(crate) max_tokens: Option<u32>,
    /// 0 = always the likeliest token.
    #[arg(long)]
    pub(crate) temperature: Option<f64>,
    /// Check that the enclave signed this answer.
    #[arg(long)]
    pub(crate) verify: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Verify {
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) provider: Address,
    /// Folder for the raw report.
    #[arg(long, default_value = ".", value_name = "DIR")]
    pub(crate) output_dir: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Run {
    #[arg(long, value_name = "FILE")]
    pub(crate) dataset_path: PathBuf,
    #[arg(long)]
    pub(crate) model: String,
    /// Training parameter file; default: every parameter's default.
    #[arg(long, value_name = "FILE")]
    pub(crate) config_path: Option<PathBuf>,
    /// Default: the cheapest free provider.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) provider: Option<Address>,
    /// Where to deploy; default: the training provider.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) inference_provider: Option<Address>,
    /// New folder for the adapter; default: a name from the task.
    #[arg(long, value_name = "DIR")]
    pub(crate) output_dir: Option<PathBuf>,
    /// Where the dataset goes.
    #[arg(long, value_enum, default_value_t = Via::Tee)]
    pub(crate) via: Via,
    /// With --via tee: do not seal the file.
    #[arg(long)]
    pub(crate) plain: bool,
    /// Wait in line when other tasks are pending.
    #[arg(long, conflicts_with = "no_queue")]
    pub(crate) queue: bool,
    /// Give up when other tasks are pending.
    #[arg(long)]
    pub(crate) no_queue: bool,
    /// auto, tee or 0g-storage.
    #[arg(long, default_value = "auto", value_parser = download_method)]
    pub(crate) download_method: zerog_sdk::DownloadMethod,
    /// Do not deploy.
    #[arg(long)]
    pub(crate) no_deploy: bool,
}

/// Commands of `inference`.
#[derive(Debug, Subcommand)]
pub(crate) enum Inference {
    /// List providers.
    ListProviders {
        /// Also providers that the network's owner has not acknowledged.
        #[arg(long)]
        include_invalid: bool,
    },
    /// List providers with endpoint, signer, and whether they answer.
    ListProvidersDetail {
        /// Also providers that the network's owner has not acknowledged.
        #[arg(long)]
        include_invalid: bool,
    },
    /// Show a provider's model catalogue.
    GetModels {
        #[arg(long, value_name = "ADDRESS")]
        provider: Address,
    },
    /// Verify a provider and acknowledge its signer.
    #[command(alias = "ack-provider")]
    AcknowledgeProvider {
        #[arg(long, value_name = "ADDRESS")]
        provider: Address,
    },
    /// Take the acknowledgement of a provider back.
    #[command(hide = true)]
    Revoke {
        #[arg(long, value_name = "ADDRESS")]
        provider: Address,
    },
    /// Save a provider's evidence as it is served. Nothing is checked: see verify.
    DownloadReport {
        #[arg(long, value_name = "ADDRESS")]
        provider: Address,
        #[arg(long, value_name = "FILE")]
        output: PathBuf,
    },
    /// Make an API key for programs.
    GetSecret {
        #[arg(long, value_name = "ADDRESS")]
        provider: Address,
        /// 0 to 254; default: the first that is not revoked.
        #[arg(long)]
        token_id: Option<u8>,
        /// Milliseconds until it expires; 0 = never.
        #[arg(long, default_value_t = 0, value_name = "MS")]
        duration: u64,
    },
    /// Revoke one API key on chain.
    RevokeToken {
        #[arg(long, value_name = "ADDRESS")]
        provider: Address,
        #[arg(long)]
        token_id: u8,
    },
    /// Revoke every key and session on chain.
    RevokeAllTokens {
        #[arg(long, value_name = "ADDRESS")]
        provider: Address,
    },
    /// Verify a provider's enclave.
    Verify(Verify),
    /// Serve a provider on this machine to programs that know OpenAI's interface; requests are signed and paid.
    Serve(Serve),
    /// Serve a model folder and adapter folders on this machine, without a chain.
    ///
    /// The engine is in 0g-compute-provider, which this command starts with the arguments given here: `--model DIR`,
    /// `--adapter NAME=DIR`, `--port N`.
    ServeLocal {
        /// Arguments of `0g-compute-provider serve-local`.
        #[arg(
            trailing_var_arg = true,
            allow_hyphen_values = true,
            required = true,
            value_name = "ARGUMENT"
        )]
        arguments: Vec<std::ffi::OsString>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Serve {
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) provider: Address,
    /// 0 = any that is free.
    #[arg(long, default_value_t = 3000)]
    pub(crate) port: u16,
    /// Address to listen on. Whoever reaches it spends.
    #[arg(long, default_value = "127.0.0.1", value_name = "IP")]
    pub(crate) host: std::net::IpAddr,
}

/// Commands of `storage`.
#[derive(Debug, Subcommand)]
pub(crate) enum Storage {
    /// Store a file; what the network has, or an interrupted upload paid for, is not paid again.
    Upload {
        #[arg(long, value_name = "FILE")]
        file: PathBuf,
        /// Encrypt it so that only this wallet can read it.
        #[arg(long, conflicts_with = "encryption_key_file")]
        encrypt: bool,
        /// Encrypt it with the key in this file (64 hexadecimal digits).
        #[arg(long, value_name = "FILE")]
        encryption_key_file: Option<PathBuf>,
        /// Cut it into objects of at most this many bytes, each with its own root; default: one object.
        #[arg(long, value_name = "BYTES")]
        fragment_size: Option<u64>,
        /// Most 0G that an object may cost.
        #[arg(long, value_parser = amount, value_name = "0G")]
        max_fee: Option<U256>,
    },
    /// Fetch a file by its root; an interrupted download goes on.
    Download {
        /// Where it goes.
        #[arg(long, value_name = "FILE")]
        file: PathBuf,
        /// Its root, or the roots of its fragments in order.
        #[arg(
            long,
            visible_alias = "roots",
            value_name = "HASH,…",
            value_delimiter = ',',
            required = true
        )]
        root: Vec<B256>,
        /// Decrypt it with the wallet's key.
        #[arg(long, conflicts_with = "encryption_key_file")]
        decrypt: bool,
        /// Decrypt it with the key in this file (64 hexadecimal digits).
        #[arg(long, value_name = "FILE")]
        encryption_key_file: Option<PathBuf>,
    },
    /// Compute a file's root without sending anything.
    Root {
        #[arg(long, value_name = "FILE")]
        file: PathBuf,
    },
    /// Show what storing a file would cost.
    Cost {
        #[arg(long, value_name = "FILE")]
        file: PathBuf,
    },
}

fn amount(text: &str) -> Result<U256, String> {
    zerog_sdk::amount::parse_0g(text).map_err(|error| error.to_string())
}

fn service(text: &str) -> Result<zerog_sdk::ServiceKind, String> {
    text.parse()
        .map_err(|error: zerog_sdk::Error| error.to_string())
}

fn download_method(text: &str) -> Result<zerog_sdk::DownloadMethod, String> {
    text.parse()
        .map_err(|error: zerog_sdk::Error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    /// `docs/api.md` names commands that exist, and every visible command is in it.
    #[test]
    fn the_table_of_the_api_and_the_commands_agree() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/api.md");
        let table = std::fs::read_to_string(path).unwrap();
        let mut named = std::collections::BTreeSet::new();
        for row in table
            .lines()
            .filter(|line| line.starts_with("| ") && line.split('|').count() == 6)
        {
            let cell = row.split('|').nth(4).unwrap();
            named.extend(cell.split('`').skip(1).step_by(2).map(str::to_owned));
        }
        let command = Cli::command();
        for name in &named {
            let mut at = &command;
            for word in name.split(' ') {
                at = at
                    .find_subcommand(word)
                    .unwrap_or_else(|| panic!("docs/api.md names `{name}`, which does not exist"));
            }
        }
        for group in command.get_subcommands() {
            let prefix = group.get_name();
            let names: Vec<String> = if group.has_subcommands() {
                group
                    .get_subcommands()
                    .map(|inner| format!("{prefix} {}", inner.get_name()))
                    .collect()
            } else {
                vec![prefix.to_owned()]
            };
            for name in names {
                assert!(named.contains(&name), "`{name}` is missing in docs/api.md");
            }
        }
    }

    #[test]
    fn no_flag_takes_a_key() {
        fn walk(command: &clap::Command) {
            for argument in command.get_arguments() {
                let name = argument.get_id().as_str();
                assert!(
                    !["key", "private_key", "password", "mnemonic"].contains(&name),
                    "{name} would put a secret into argv"
                );
            }
            command.get_subcommands().for_each(walk);
        }
        walk(&Cli::command());
    }
}
