//! `0g-storage-client`: the storage helper that the published TypeScript and Python SDKs start, with the arguments,
//! texts and exit codes that they rely on.
//!
//! What they parse: the last line of an upload, `file uploaded, root = 0x…`, before which nothing may look like
//! `root = 0x…`; and the end of a download's output, `Succeeded to validate the downloaded file`. Everything is said on
//! standard error; the exit code is 0 or 1. Beyond the original: what the network has, or an interrupted upload paid
//! for, is not paid again (whatever `--skip-tx` says); an upload ends when the file can be fetched; every segment is
//! verified; downloads go on where they stopped; a file is one object unless `--fragment-size` is given.

mod arguments;
mod hide;
mod log;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use zerog_sdk::storage::{
    Decryption, DownloadOptions, Encryption, Endpoint, FileKey, Preference, Storage,
    StorageOptions, UploadOptions, UploadOutcome,
};
use zerog_sdk::wallet::parse_key;
use zerog_sdk::{Progress, SecretKey};
use zeroize::Zeroizing;

use crate::app::{parse_file_key, read_secret_file};
use crate::profile::Profile;
use arguments::{Arguments, Command, Common, Download, Upload};

/// The chain endpoint that wins over `--url`.
const RPC_OVERRIDE: &str = "ZG_STORAGE_RPC_OVERRIDE";
/// The indexer that wins over `--indexer`.
const INDEXER_OVERRIDE: &str = "ZG_STORAGE_INDEXER_OVERRIDE";
/// The wallet key when no flag names one.
const KEY_VARIABLE: &str = "ZG_PRIVATE_KEY";

/// Why a run failed, in one sentence.
type Outcome<T = ()> = Result<T, String>;

pub(crate) fn main() -> ExitCode {
    let arguments = match Arguments::try_parse_from(hide::arguments()) {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            // Help that was asked for is no failure; the original ends with 1 where clap would with 2.
            return ExitCode::from(u8::from(error.use_stderr()));
        }
    };
    let Some(command) = arguments.command else {
        let _ = <Arguments as clap::CommandFactory>::command().print_help();
        return ExitCode::SUCCESS;
    };
    log::start(arguments.common.log_level);
    let last_line = match run(&arguments.common, command) {
        Ok(last_line) => last_line,
        Err(reason) => {
            log::say(&format!("Error: {reason}"));
            return ExitCode::FAILURE;
        }
    };
    // Nothing may follow: callers look at the end of the output.
    log::say(&last_line);
    ExitCode::SUCCESS
}

/// Runs a command and returns what is said last. By then nothing else of the program is running.
fn run(common: &Common, command: Command) -> Outcome<String> {
    let runtime = crate::runtime().map_err(|error| format!("cannot start: {error}"))?;
    let timeout = match &command {
        Command::Upload(upload) => upload.timeout,
        Command::Download(download) => download.timeout,
    };
    let work = async {
        match command {
            Command::Upload(arguments) => upload(common, *arguments).await,
            Command::Download(arguments) => download(common, *arguments).await,
        }
    };
    let outcome = runtime.block_on(async {
        match timeout {
            Duration::ZERO => work.await,
            timeout => tokio::time::timeout(timeout, work)
                .await
                .unwrap_or_else(|_| {
                    Err(format!(
                        "not done within --timeout {}s; run the same command again, it goes on where it stopped",
                        timeout.as_secs_f64()
                    ))
                }),
        }
    });
    runtime.shutdown_timeout(crate::SHUTDOWN);
    outcome
}

async fn upload(common: &Common, arguments: Upload) -> Outcome<String> {
    let key = wallet_key(&arguments)?;
    let mut overridden = Vec::new();
    let rpc_url = with_override(RPC_OVERRIDE, arguments.url.clone(), &mut overridden)
        .ok_or("--url is needed to pay for the file")?;
    let endpoint = endpoint(&arguments.indexer, &arguments.node, &mut overridden)?;
    tell_overridden(&overridden);

    let mut options = StorageOptions::new(endpoint);
    options.rpc_url = Some(rpc_url);
    options.flow_address = arguments.flow_address;
    options.gas_price = common.gas_price;
    options.max_gas_price = arguments.max_gas_price;
    options.request_timeout = common.rpc_timeout;
    options.replicas = arguments.expected_replica;
    options.preference = preference(&arguments.method)?;
    options.parallel_calls = arguments.routines;
    options.segments_per_call = arguments.task_size;
    options.journal_dir = journal_dir();
    let upload_options = UploadOptions {
        encryption: encryption(&arguments, &key)?,
        fragment_bytes: arguments.fragment_size,
        tags: arguments.tags,
        submitter: arguments.submitter,
        max_fee: arguments.fee,
    };
    options.wallet = Some(key.into());
    let storage = Storage::connect(options).await.map_err(text)?;
    let outcomes = storage
        .upload(&arguments.file, &upload_options, shown("uploaded"))
        .await
        .map_err(text)?;
    for outcome in &outcomes {
        log::say(&paid_text(outcome));
    }
    Ok(match &outcomes[..] {
        [outcome] => format!("file uploaded, root = {}", outcome.root),
        outcomes => {
            let roots: Vec<String> = outcomes
                .iter()
                .map(|outcome| outcome.root.to_string())
                .collect();
            format!(
                "file uploaded in {} fragments, roots = {}",
                roots.len(),
                roots.join(",")
            )
        }
    })
}

async fn download(common: &Common, arguments: Download) -> Outcome<String> {
    let mut overridden = Vec::new();
    let endpoint = endpoint(&arguments.indexer, &arguments.node, &mut overridden)?;
    tell_overridden(&overridden);
    let mut options = StorageOptions::new(endpoint);
    options.request_timeout = common.rpc_timeout;
    options.parallel_calls = arguments.routines;
    let roots = match arguments.root {
        Some(root) => vec![root],
        None => arguments.roots.clone(),
    };
    let download_options = DownloadOptions {
        size: None,
        decryption: decryption(&arguments)?,
        // As the original. The old file stays until the new one is verified.
        replace: true,
    };
    let storage = Storage::connect(options).await.map_err(text)?;
    storage
        .download(
            &roots,
            &download_options,
            &arguments.file,
            shown("downloaded"),
        )
        .await
        .map_err(text)?;
    Ok("Succeeded to validate the downloaded file".to_owned())
}

/// Errors of the SDK name the flags of the other program.
fn text(error: zerog_sdk::Error) -> String {
    match error {
        zerog_sdk::Error::Argument { reason, .. } => reason,
        other => other.to_string(),
    }
}

fn endpoint(
    indexer: &Option<String>,
    nodes: &[String],
    overridden: &mut Vec<&'static str>,
) -> Outcome<Endpoint> {
    if !nodes.is_empty() {
        return Ok(Endpoint::Nodes(nodes.to_vec()));
    }
    with_override(INDEXER_OVERRIDE, indexer.clone(), overridden)
        .map(Endpoint::Indexer)
        .ok_or_else(|| "one of --indexer and --node is needed".to_owned())
}

/// The variable if it is set, else the flag.
fn with_override(
    variable: &'static str,
    flag: Option<String>,
    overridden: &mut Vec<&'static str>,
) -> Option<String> {
    match std::env::var(variable) {
        Ok(value) if !value.is_empty() => {
            overridden.push(variable);
            Some(value)
        }
        _ => flag,
    }
}

fn tell_overridden(variables: &[&str]) {
    if !variables.is_empty() {
        log::say(&format!(
            "Endpoints of the environment are used instead of the flags: {}",
            variables.join(", ")
        ));
    }
}

/// Flag, file, variable.
fn wallet_key(arguments: &Upload) -> Outcome<SecretKey> {
    let given = match (&arguments.key, &arguments.key_file) {
        (Some(key), _) => Zeroizing::new(key.expose().to_owned()),
        (None, Some(path)) => read_secret_file(path).map_err(|failure| failure.message)?,
        (None, None) => Zeroizing::new(std::env::var(KEY_VARIABLE).unwrap_or_default()),
    };
    if given.trim().is_empty() {
        return Err(format!(
            "a wallet key is needed to pay for the file: --key-file FILE, the variable {KEY_VARIABLE}, or --key"
        ));
    }
    parse_key(&given).map_err(text)
}

fn encryption(arguments: &Upload, wallet: &SecretKey) -> Outcome<Option<Encryption>> {
    if let Some(key) = &arguments.encryption_key {
        return Ok(Some(Encryption::Key(file_key(key.expose())?)));
    }
    Ok(arguments.encrypt.then(|| Encryption::Recipient {
        public_key: wallet.public_key().to_vec(),
        sender: wallet.clone(),
    }))
}

fn decryption(arguments: &Download) -> Outcome<Option<Decryption>> {
    if let Some(key) = &arguments.encryption_key {
        return Ok(Some(Decryption::Key(file_key(key.expose())?)));
    }
    if !arguments.decrypt {
        return Ok(None);
    }
    let given = match &arguments.private_key {
        Some(key) => Zeroizing::new(key.expose().to_owned()),
        None => Zeroizing::new(std::env::var(KEY_VARIABLE).unwrap_or_default()),
    };
    if given.trim().is_empty() {
        return Err(format!(
            "--decrypt needs the wallet key that the file was encrypted for: --private-key or the variable {KEY_VARIABLE}"
        ));
    }
    Ok(Some(Decryption::Wallet(parse_key(&given).map_err(text)?)))
}

fn file_key(text: &str) -> Outcome<FileKey> {
    parse_file_key(text)
        .ok_or_else(|| "--encryption-key must be 0x and 64 hexadecimal digits".to_owned())
}

fn preference(method: &str) -> Outcome<Preference> {
    match method {
        "min" | "random" => Ok(Preference::FewShards),
        "max" => Ok(Preference::ManyShards),
        number => number.parse().map(Preference::Exactly).map_err(|_| {
            format!("--method is min, max, random or a number of shards, not \"{number}\"")
        }),
    }
}

/// Where payments are noted, shared with `0g-compute-cli`.
fn journal_dir() -> Option<std::path::PathBuf> {
    match Profile::locate() {
        Ok(profile) => Some(profile.cache_dir().join("uploads")),
        Err(_) => {
            log::say(
                "Neither ZG_HOME nor HOME is set: should this upload be interrupted, only the network can say what was paid.",
            );
            None
        }
    }
}

fn paid_text(outcome: &UploadOutcome) -> String {
    let size = outcome.size;
    match outcome.tx_hash {
        Some(hash) => format!(
            "stored {size} bytes as submission {}, paid {} 0G in transaction {hash}",
            outcome.sequence,
            zerog_sdk::amount::format_0g(outcome.fee)
        ),
        None => format!(
            "{size} bytes are on the network already as submission {}, nothing was paid",
            outcome.sequence
        ),
    }
}

/// Tells steps, and every tenth of a transfer.
fn shown(done: &'static str) -> impl FnMut(Progress) + Send {
    let mut last_tenth = 0;
    move |progress| match progress {
        Progress::Step { text } | Progress::Notice { text } => log::say(&text),
        Progress::Transfer {
            done_bytes,
            total_bytes: Some(total),
        } if total > 0 => {
            let tenth = u128::from(done_bytes) * 10 / u128::from(total);
            if tenth > last_tenth {
                last_tenth = tenth;
                log::say(&format!("{done} {done_bytes} of {total} bytes"));
            }
        }
        _ => {}
    }
}
