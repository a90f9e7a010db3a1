//! The command line of the original helper: every flag that it has, and what it means here.
//!
//! Grammar: `--flag value` and `--flag=value`; a switch stands alone or has `=true` or `=false`; lists are separated by
//! commas or repeated; durations read `30s`, `1h2m`; the last of several equal flags counts.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use tracing_subscriber::filter::LevelFilter;
use zerog_sdk::{Address, B256, U256};
use zeroize::Zeroizing;

/// Store files on the 0G Storage network and fetch them.
#[derive(Debug, Parser)]
#[command(name = "0g-storage-client", args_override_self = true)]
pub(super) struct Arguments {
    #[command(flatten)]
    pub(super) common: Common,
    #[command(subcommand)]
    pub(super) command: Option<Command>,
}

/// Flags of every command.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global flags")]
pub(super) struct Common {
    /// Accepted for compatibility: gas is estimated.
    #[arg(long, global = true, value_name = "GAS")]
    pub(super) gas_limit: Option<u64>,
    /// Gas price to offer, in neuron.
    #[arg(long, global = true, value_name = "NEURON")]
    pub(super) gas_price: Option<u128>,
    /// Accepted for compatibility: there are no colours.
    #[arg(long, global = true, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value = "false", value_parser = switch, value_name = "BOOL", action = clap::ArgAction::Set)]
    pub(super) log_color_disabled: bool,
    /// How much is said: trace, debug, info, warn, error.
    #[arg(long, global = true, default_value = "info", value_parser = log_level, value_name = "LEVEL")]
    pub(super) log_level: LevelFilter,
    /// Accepted for compatibility: calls are repeated a few times when that may help.
    #[arg(long, global = true, default_value_t = 5, value_name = "COUNT")]
    pub(super) rpc_retry_count: u32,
    /// Accepted for compatibility: pauses grow from 100 ms.
    #[arg(long, global = true, default_value = "5s", value_parser = duration, value_name = "DURATION")]
    pub(super) rpc_retry_interval: Duration,
    /// Longest wait for the answer to one call.
    #[arg(long, global = true, default_value = "30s", value_parser = duration, value_name = "DURATION")]
    pub(super) rpc_timeout: Duration,
    /// Accepted for compatibility: --log-level debug shows calls of the chain.
    #[arg(long, global = true, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value = "false", value_parser = switch, value_name = "BOOL", action = clap::ArgAction::Set)]
    pub(super) web3_log_enabled: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Upload file to the storage network.
    #[command(args_override_self = true)]
    Upload(Box<Upload>),
    /// Download file from the storage network.
    #[command(args_override_self = true)]
    Download(Box<Download>),
}

#[derive(Debug, Args)]
pub(super) struct Upload {
    /// Chain endpoint (the variable ZG_STORAGE_RPC_OVERRIDE wins).
    #[arg(long, value_name = "URL")]
    pub(super) url: Option<String>,
    /// Private key of the wallet that pays. Better: --key-file, or the variable ZG_PRIVATE_KEY.
    #[arg(long, value_name = "HEX")]
    pub(super) key: Option<Secret>,
    /// File with the private key.
    #[arg(long, value_name = "FILE", conflicts_with = "key")]
    pub(super) key_file: Option<PathBuf>,
    /// Storage indexer (the variable ZG_STORAGE_INDEXER_OVERRIDE wins).
    #[arg(long, value_name = "URL", conflicts_with = "node")]
    pub(super) indexer: Option<String>,
    /// Storage nodes instead of an indexer.
    #[arg(long, value_name = "URL,…", value_delimiter = ',')]
    pub(super) node: Vec<String>,
    /// File to upload.
    #[arg(long, value_name = "FILE", allow_hyphen_values = true)]
    pub(super) file: PathBuf,
    /// Bytes that go into the submission beside the file.
    #[arg(long, default_value = "0x", value_name = "HEX", value_parser = tags)]
    pub(super) tags: zerog_sdk::Bytes,
    /// Whom the submission names; default: the wallet.
    #[arg(long, value_name = "ADDRESS")]
    pub(super) submitter: Option<Address>,
    /// Nodes that shall keep each segment.
    #[arg(long, default_value_t = 1, value_name = "COUNT")]
    pub(super) expected_replica: u32,
    /// Accepted for compatibility: what the network has is never paid again.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "true",
          value_parser = switch, value_name = "BOOL", action = clap::ArgAction::Set)]
    pub(super) skip_tx: bool,
    /// Accepted for compatibility: the end is always when the file can be fetched.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false",
          value_parser = switch, value_name = "BOOL", action = clap::ArgAction::Set)]
    pub(super) finality_required: bool,
    /// Segments in one call.
    #[arg(long, value_name = "COUNT")]
    pub(super) task_size: Option<usize>,
    /// Accepted for compatibility: small files are fast anyway.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "true",
          value_parser = switch, value_name = "BOOL", action = clap::ArgAction::Set)]
    pub(super) fast_mode: bool,
    /// Cut the file into objects of at most this many bytes, each with its own root; default: one object.
    #[arg(long, value_name = "BYTES")]
    pub(super) fragment_size: Option<u64>,
    /// Accepted for compatibility: fragments are paid one by one.
    #[arg(long, default_value_t = 10, value_name = "COUNT")]
    pub(super) batch_size: u64,
    /// Calls at the same time.
    #[arg(long, value_name = "COUNT")]
    pub(super) routines: Option<usize>,
    /// Highest gas price to offer, in neuron.
    #[arg(long, value_name = "NEURON")]
    pub(super) max_gas_price: Option<u128>,
    /// Accepted for compatibility: other nodes are tried by themselves.
    #[arg(long, default_value_t = 0, value_name = "COUNT")]
    pub(super) n_retries: u32,
    /// Accepted for compatibility: replacements offer an eighth more.
    #[arg(long, default_value_t = 15, value_name = "TENTHS")]
    pub(super) step: u64,
    /// Which nodes to prefer: min, max, random, or a number of shards.
    #[arg(long, default_value = "min", value_name = "METHOD")]
    pub(super) method: String,
    /// Accepted for compatibility: only nodes that the indexer trusts are used.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "true",
          value_parser = switch, value_name = "BOOL", action = clap::ArgAction::Set)]
    pub(super) full_trusted: bool,
    /// Longest time for everything; 0 = no limit.
    #[arg(long, default_value = "0", value_parser = duration, value_name = "DURATION")]
    pub(super) timeout: Duration,
    /// Accepted for compatibility: the wallet's next nonce is used.
    #[arg(long, value_name = "NONCE")]
    pub(super) nonce: Option<u64>,
    /// Most that an object may cost, in 0G; the exact fee is paid.
    #[arg(long, value_parser = fee, value_name = "0G")]
    pub(super) fee: Option<U256>,
    /// The Flow contract; default: that of the known network, else the one that the nodes name.
    #[arg(long, value_name = "ADDRESS")]
    pub(super) flow_address: Option<Address>,
    /// Accepted for compatibility: Flow names its market.
    #[arg(long, value_name = "ADDRESS")]
    pub(super) market_address: Option<Address>,
    /// Encrypt the file with this key (0x and 64 hexadecimal digits).
    #[arg(long, value_name = "HEX", conflicts_with = "encrypt")]
    pub(super) encryption_key: Option<Secret>,
    /// Encrypt the file so that only this wallet can read it.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false",
          value_parser = switch, value_name = "BOOL", action = clap::ArgAction::Set)]
    pub(super) encrypt: bool,
}

#[derive(Debug, Args)]
pub(super) struct Download {
    /// Where the file goes.
    #[arg(long, value_name = "FILE", allow_hyphen_values = true)]
    pub(super) file: PathBuf,
    /// Root of the file.
    #[arg(
        long,
        value_name = "HASH",
        required_unless_present = "roots",
        conflicts_with = "roots"
    )]
    pub(super) root: Option<B256>,
    /// Roots of its fragments, in order.
    #[arg(long, value_name = "HASH,…", value_delimiter = ',')]
    pub(super) roots: Vec<B256>,
    /// Storage indexer (the variable ZG_STORAGE_INDEXER_OVERRIDE wins).
    #[arg(long, value_name = "URL", conflicts_with = "node")]
    pub(super) indexer: Option<String>,
    /// Storage nodes instead of an indexer.
    #[arg(long, value_name = "URL,…", value_delimiter = ',')]
    pub(super) node: Vec<String>,
    /// Accepted for compatibility: everything is always verified.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false",
          value_parser = switch, value_name = "BOOL", action = clap::ArgAction::Set)]
    pub(super) proof: bool,
    /// Calls at the same time.
    #[arg(long, value_name = "COUNT")]
    pub(super) routines: Option<usize>,
    /// Longest time for everything; 0 = no limit.
    #[arg(long, default_value = "0", value_parser = duration, value_name = "DURATION")]
    pub(super) timeout: Duration,
    /// Decrypt the file with this key (0x and 64 hexadecimal digits).
    #[arg(long, value_name = "HEX", conflicts_with = "decrypt")]
    pub(super) encryption_key: Option<Secret>,
    /// Decrypt the file with a wallet key.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false",
          value_parser = switch, value_name = "BOOL", action = clap::ArgAction::Set)]
    pub(super) decrypt: bool,
    /// That wallet key. Better: the variable ZG_PRIVATE_KEY.
    #[arg(long, value_name = "HEX")]
    pub(super) private_key: Option<Secret>,
    /// Accepted for compatibility: a paid cache is never asked, the nodes have the file.
    #[arg(long, value_name = "URL")]
    pub(super) hot_router: Option<String>,
    /// Accepted for compatibility: only payments to that cache are bound to a chain.
    #[arg(long, value_name = "ID")]
    pub(super) chain_id: Option<u64>,
}

/// A secret from the command line; it never prints.
#[derive(Clone)]
pub(super) struct Secret(Zeroizing<String>);

impl Secret {
    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for Secret {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(Zeroizing::new(text.to_owned())))
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[redacted]")
    }
}

/// A switch's value in the spellings of Go.
fn switch(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("true or false is expected".to_owned()),
    }
}

fn log_level(text: &str) -> Result<LevelFilter, String> {
    match text.to_ascii_lowercase().as_str() {
        "trace" => Ok(LevelFilter::TRACE),
        "debug" => Ok(LevelFilter::DEBUG),
        "info" => Ok(LevelFilter::INFO),
        "warn" | "warning" => Ok(LevelFilter::WARN),
        "error" | "fatal" | "panic" => Ok(LevelFilter::ERROR),
        _ => Err("one of trace, debug, info, warn, error, fatal, panic is expected".to_owned()),
    }
}

fn tags(text: &str) -> Result<zerog_sdk::Bytes, String> {
    text.parse()
        .map_err(|_| "0x and pairs of hexadecimal digits are expected".to_owned())
}

fn fee(text: &str) -> Result<U256, String> {
    zerog_sdk::amount::parse_0g(text).map_err(|error| error.to_string())
}

/// Numbers with units, one after the other: `90s`, `1h30m`, `1.5s`, `0`.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "a duration like 30s, 10m or 1h30m is expected".to_owned();
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest
            .find(|character: char| !character.is_ascii_digit() && character != '.')
            .ok_or_else(wrong)?;
        let number: f64 = rest[..digits].parse().map_err(|_| wrong())?;
        rest = &rest[digits..];
        let letters = rest
            .find(|character: char| character.is_ascii_digit())
            .unwrap_or(rest.len());
        seconds += number
            * match &rest[..letters] {
                "ns" => 1e-9,
                "us" | "µs" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3_600.0,
                _ => return Err(wrong()),
            };
        rest = &rest[letters..];
    }
    if text.is_empty() {
        return Err(wrong());
    }
    Duration::try_from_secs_f64(seconds).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn upload(arguments: &[&str]) -> Result<Upload, clap::Error> {
        let parsed =
            Arguments::try_parse_from(["0g-storage-client", "upload"].iter().chain(arguments))?;
        match parsed.command {
            Some(Command::Upload(upload)) => Ok(*upload),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_definition_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn the_published_invocations_are_understood() {
        let key = "ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80";
        let exact = [
            "--url",
            "http://a",
            "--key",
            key,
            "--indexer",
            "http://b",
            "--file",
            "f",
            "--skip-tx=false",
            "--log-level=debug",
            "--gas-price",
            "7",
            "--max-gas-price",
            "9",
        ];
        let parsed = upload(&exact).unwrap();
        assert!(!parsed.skip_tx);
        assert_eq!(parsed.max_gas_price, Some(9));
        assert_eq!(parsed.key.as_ref().unwrap().expose(), key);
        assert!(!format!("{parsed:?}").contains("ac0974"));
        let download = Arguments::try_parse_from([
            "0g-storage-client",
            "download",
            "--file",
            "f",
            "--indexer",
            "http://b",
            "--roots",
            "0x71bfab3b73c19ec6548f3e1dcc56d9a8c7c66b51b71e4dbbfb1fc0e0bf2826ba,0x0af84e92712ea3870e9f46a72a782ec228efa122479adb34658fce532020c6bd",
        ]);
        match download.unwrap().command {
            Some(Command::Download(download)) => assert_eq!(download.roots.len(), 2),
            other => panic!("{other:?}"),
        }
    }

    /// Every flag that the original has, with a value of its kind. `Bool` is a switch in all its spellings.
    #[test]
    fn every_flag_of_the_original_is_understood() {
        enum Kind {
            Value(&'static str),
            Bool,
        }
        use Kind::{Bool, Value};
        const KEY: &str = "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80";
        const ADDRESS: &str = "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266";
        const ROOT: &str = "0x71bfab3b73c19ec6548f3e1dcc56d9a8c7c66b51b71e4dbbfb1fc0e0bf2826ba";
        let global = [
            ("--gas-limit", Value("200000")),
            ("--gas-price", Value("7")),
            ("--log-color-disabled", Bool),
            ("--log-level", Value("debug")),
            ("--rpc-retry-count", Value("5")),
            ("--rpc-retry-interval", Value("5s")),
            ("--rpc-timeout", Value("30s")),
            ("--web3-log-enabled", Bool),
        ];
        let upload = [
            ("--url", Value("http://a")),
            ("--key", Value(KEY)),
            ("--file", Value("f")),
            ("--indexer", Value("http://b")),
            ("--tags", Value("0x00ff")),
            ("--submitter", Value(ADDRESS)),
            ("--expected-replica", Value("1")),
            ("--skip-tx", Bool),
            ("--finality-required", Bool),
            ("--task-size", Value("10")),
            ("--fast-mode", Bool),
            ("--fragment-size", Value("4294967296")),
            ("--batch-size", Value("10")),
            ("--routines", Value("8")),
            ("--max-gas-price", Value("9")),
            ("--n-retries", Value("3")),
            ("--step", Value("15")),
            ("--method", Value("min")),
            ("--full-trusted", Bool),
            ("--timeout", Value("10m")),
            ("--nonce", Value("7")),
            ("--fee", Value("0.25")),
            ("--flow-address", Value(ADDRESS)),
            ("--market-address", Value(ADDRESS)),
            ("--encrypt", Bool),
        ];
        let download = [
            ("--file", Value("f")),
            ("--roots", Value(ROOT)),
            ("--indexer", Value("http://b")),
            ("--proof", Bool),
            ("--routines", Value("8")),
            ("--timeout", Value("10m")),
            ("--decrypt", Bool),
            ("--private-key", Value(KEY)),
            ("--hot-router", Value("http://c")),
            ("--chain-id", Value("16602")),
        ];
        // Flags that exclude one of those above, on their own.
        let apart = [
            ["upload", "--file=f", "--node=http://b,http://c"].as_slice(),
            &["upload", "--file=f", "--encryption-key", KEY],
            &["download", "--file=f", "--root", ROOT, "--node=http://b"],
            &[
                "download",
                "--file=f",
                "--root",
                ROOT,
                "--encryption-key",
                KEY,
            ],
        ];
        let parse = |arguments: &[String]| {
            let all = std::iter::once("0g-storage-client".to_owned()).chain(arguments.to_vec());
            Arguments::try_parse_from(all).unwrap_or_else(|error| panic!("{arguments:?}: {error}"))
        };
        for (command, flags) in [("upload", &upload[..]), ("download", &download[..])] {
            let (mut spaced, mut joined) = (vec![command.to_owned()], vec![command.to_owned()]);
            for (flag, kind) in global.iter().chain(flags) {
                match kind {
                    Value(value) => {
                        spaced.extend([(*flag).to_owned(), (*value).to_owned()]);
                        joined.push(format!("{flag}={value}"));
                    }
                    Bool => {
                        spaced.push((*flag).to_owned());
                        joined.extend([format!("{flag}=true"), format!("{flag}=false")]);
                    }
                }
            }
            parse(&spaced);
            parse(&joined);
        }
        for arguments in apart {
            parse(
                &arguments
                    .iter()
                    .map(|&text| text.to_owned())
                    .collect::<Vec<_>>(),
            );
        }
    }

    #[test]
    fn switches_stand_alone_or_have_a_value_and_the_last_flag_counts() {
        let parsed = upload(&[
            "--file",
            "f",
            "--skip-tx",
            "--finality-required",
            "--skip-tx=0",
            "--task-size=3",
            "--task-size",
            "4",
            "--node",
            "a,b",
            "--node",
            "c",
        ])
        .unwrap();
        assert!(!parsed.skip_tx && parsed.finality_required && parsed.full_trusted);
        assert_eq!(parsed.task_size, Some(4));
        assert_eq!(parsed.node, ["a", "b", "c"]);
        assert!(upload(&["--file", "f", "--skip-tx=maybe"]).is_err());
        assert!(upload(&["--file", "f", "--bogus"]).is_err());
        assert!(upload(&[]).is_err(), "the file is required");
    }

    #[test]
    fn durations_are_those_of_go() {
        assert_eq!(
            duration("1h2m3.5s").unwrap(),
            Duration::from_millis(3_723_500)
        );
        assert_eq!(duration("300ms").unwrap(), Duration::from_millis(300));
        assert_eq!(duration("0").unwrap(), Duration::ZERO);
        for wrong in ["", "5", "s", "-1s", "1x", "1s2"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
