//! What every command needs: flags, profile, a connected broker, and answers to questions.

use std::io::{IsTerminal, Read, Write};

use zerog_sdk::storage::FileKey;
use zerog_sdk::wallet::{Keystore, parse_key};
use zerog_sdk::{Broker, BrokerOptions, NetworkSettings, Requirement, SecretKey};
use zeroize::Zeroizing;

use crate::args::{Global, Require};
use crate::exit_code::{AUTHENTICATION, Failure, Outcome};
use crate::output::Output;
use crate::profile::{Profile, SavedKey};

/// Longest key or password file that is read, in bytes.
const MAX_SECRET_BYTES: u64 = 64 * 1024;

/// Whether a command needs the wallet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wallet {
    /// It signs, or asks about the user.
    Needed,
    /// It only reads.
    NotNeeded,
}

/// One run of the program.
pub(crate) struct App {
    pub(crate) global: Global,
    pub(crate) profile: Profile,
    pub(crate) output: Output,
    /// The broker with the wallet: what a command says before it sends and what it sends share it, so that a password is
    /// asked for once.
    connected: tokio::sync::OnceCell<Broker>,
}

impl App {
    pub(crate) fn new(global: Global, output: Output) -> Outcome<Self> {
        Ok(Self {
            profile: Profile::locate()?,
            global,
            output,
            connected: tokio::sync::OnceCell::new(),
        })
    }

    /// A broker for the chosen network.
    pub(crate) async fn broker(&self, wallet: Wallet) -> Outcome<Broker> {
        match wallet {
            Wallet::Needed => {
                let connected = self
                    .connected
                    .get_or_try_init(|| self.connect(wallet))
                    .await?;
                Ok(connected.clone())
            }
            Wallet::NotNeeded => self.connect(wallet).await,
        }
    }

    async fn connect(&self, wallet: Wallet) -> Outcome<Broker> {
        let mut options = BrokerOptions::custom(self.network().await?);
        if wallet == Wallet::Needed {
            options.wallet = Some(self.wallet_key()?.into());
        }
        options.gas_price = self.global.gas_price;
        options.max_gas_price = self.global.max_gas_price;
        options.requirement = match self.global.require {
            Require::Verified => Requirement::Verified,
            Require::NothingFailed => Requirement::NothingFailed,
        };
        if let Some(path) = &self.global.policy {
            options.policy = zerog_sdk::read_policy(path)?;
        }
        let collateral = &mut options.collateral;
        collateral.file.clone_from(&self.global.collateral);
        collateral.refresh = self.global.refresh_collateral;
        if !self.global.collateral_service.is_empty() {
            collateral
                .services
                .clone_from(&self.global.collateral_service);
        }
        options.cache_dir = Some(self.profile.cache_dir());
        options.tokenizer_dir.clone_from(&self.global.tokenizer_dir);
        Ok(Broker::connect(options).await?)
    }

    /// The network: flags over environment over profile; an endpoint alone names its network by its chain id.
    pub(crate) async fn network(&self) -> Outcome<NetworkSettings> {
        let base = match (&self.global.network, self.profile.network()?) {
            (Some(name), Some(saved)) if saved.name == *name => saved,
            (Some(name), _) => self.find_network(name)?,
            (None, Some(saved)) => saved,
            (None, None) => match &self.global.rpc {
                Some(url) => NetworkSettings::detect(url).await?,
                None => {
                    return Err(Failure::usage(
                        "no network is chosen; run `0g-compute-cli setup-network --network testnet` (or mainnet, devnet) first",
                    ));
                }
            },
        };
        Ok(self.with_overrides(base))
    }

    /// A network by name: one that was saved under it, else one of the known ones.
    pub(crate) fn find_network(&self, name: &str) -> Outcome<NetworkSettings> {
        if let Some(network) = self.profile.named_network(name)? {
            return Ok(network);
        }
        NetworkSettings::find(name).map_err(|error| {
            let mut failure = Failure::from(error);
            let saved = self.profile.named_networks().unwrap_or_default();
            if !saved.is_empty() {
                let names: Vec<_> = saved.into_iter().map(|network| network.name).collect();
                failure.message =
                    format!("{}; saved networks: {}", failure.message, names.join(", "));
            }
            failure
        })
    }

    /// Settings with the endpoints and addresses of the flags.
    pub(crate) fn with_overrides(&self, mut network: NetworkSettings) -> NetworkSettings {
        if let Some(url) = &self.global.rpc {
            network.rpc_url.clone_from(url);
        }
        if let Some(url) = &self.global.storage_indexer {
            network.storage_indexer_url.clone_from(url);
        }
        let addresses = &mut network.addresses;
        addresses.ledger = self.global.ledger_ca.unwrap_or(addresses.ledger);
        addresses.inference = self.global.inference_ca.unwrap_or(addresses.inference);
        addresses.fine_tuning = self.global.fine_tuning_ca.unwrap_or(addresses.fine_tuning);
        network
    }

    /// The wallet key: key file, variable, saved key.
    pub(crate) fn wallet_key(&self) -> Outcome<SecretKey> {
        if let Some(key) = self.given_key()? {
            return Ok(key);
        }
        match self.profile.key()? {
            Some(SavedKey::Plain(key)) => Ok(key),
            Some(SavedKey::Encrypted(keystore)) => self.unlock(&keystore),
            None => Err(zerog_sdk::Error::NoWallet.into()),
        }
    }

    /// A key given for this run alone.
    pub(crate) fn given_key(&self) -> Outcome<Option<SecretKey>> {
        if let Some(path) = &self.global.key_file {
            let text = read_secret_file(path)?;
            return Ok(Some(parse_key(&text)?));
        }
        match std::env::var("ZG_PRIVATE_KEY") {
            Ok(text) if !text.is_empty() => Ok(Some(parse_key(&Zeroizing::new(text))?)),
            _ => Ok(None),
        }
    }

    fn unlock(&self, keystore: &Keystore) -> Outcome<SecretKey> {
        let password = match self.given_password()? {
            Some(password) => password,
            None if std::io::stdin().is_terminal() => prompt_secret("Keystore password: ")?,
            None => {
                return Err(Failure::new(
                    AUTHENTICATION,
                    "password_needed",
                    "the saved key is encrypted; give its password with --password-file or ZG_KEYSTORE_PASSWORD",
                ));
            }
        };
        Ok(keystore.decrypt(&password)?)
    }

    /// A password from file or variable.
    pub(crate) fn given_password(&self) -> Outcome<Option<Zeroizing<String>>> {
        if let Some(path) = &self.global.password_file {
            let text = read_secret_file(path)?;
            return Ok(Some(Zeroizing::new(
                text.trim_end_matches(['\r', '\n']).to_owned(),
            )));
        }
        Ok(std::env::var("ZG_KEYSTORE_PASSWORD")
            .ok()
            .filter(|text| !text.is_empty())
            .map(Zeroizing::new))
    }

    /// Asks a question that yes and no answer. Off a terminal, `--yes` must have answered it.
    pub(crate) async fn confirm(&self, question: &str) -> Outcome<bool> {
        if self.global.yes {
            return Ok(true);
        }
        if !is_interactive() {
            return Err(Failure::usage(format!(
                "{question} Answer with --yes when there is no terminal"
            )));
        }
        let question = format!("{question} (yes/no): ");
        let asking = tokio::task::spawn_blocking(move || {
            loop {
                match ask(&question)?.trim().to_ascii_lowercase().as_str() {
                    "y" | "yes" => return Ok(true),
                    "n" | "no" => return Ok(false),
                    _ => {}
                }
            }
        });
        asking.await.expect("asking does not panic")
    }
}

/// Whether a person can be asked.
pub(crate) fn is_interactive() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

/// Asks for a line, visibly.
pub(crate) fn ask(question: &str) -> Outcome<String> {
    let failed = |error: std::io::Error| {
        Failure::new(
            crate::exit_code::GENERAL,
            "input",
            format!("cannot ask: {error}"),
        )
    };
    write!(std::io::stderr(), "{question}")
        .and_then(|()| std::io::stderr().flush())
        .map_err(failed)?;
    let mut line = String::new();
    if std::io::stdin().read_line(&mut line).map_err(failed)? == 0 {
        return Err(Failure::usage(
            "the input ended before the question was answered",
        ));
    }
    Ok(line)
}

/// Asks for a secret, invisibly.
pub(crate) fn prompt_secret(question: &str) -> Outcome<Zeroizing<String>> {
    rpassword::prompt_password(question)
        .map(Zeroizing::new)
        .map_err(|error| {
            Failure::new(
                AUTHENTICATION,
                "input",
                format!("cannot ask for it: {error}"),
            )
        })
}

/// The key of one file: 64 hexadecimal digits, with or without `0x`.
pub(crate) fn parse_file_key(text: &str) -> Option<FileKey> {
    let digits = text.trim();
    let digits = digits.strip_prefix("0x").unwrap_or(digits);
    let mut bytes = Zeroizing::new([0; 32]);
    hex::decode_to_slice(digits, &mut *bytes).ok()?;
    Some(FileKey::from_bytes(*bytes))
}

/// Reads a key or password file.
pub(crate) fn read_secret_file(path: &std::path::Path) -> Outcome<Zeroizing<String>> {
    let failed = |error: std::io::Error| {
        Failure::new(
            AUTHENTICATION,
            "key_file",
            format!("cannot read {}: {error}", path.display()),
        )
    };
    let mut text = Zeroizing::new(String::new());
    std::fs::File::open(path)
        .map_err(failed)?
        .take(MAX_SECRET_BYTES)
        .read_to_string(&mut text)
        .map_err(failed)?;
    Ok(text)
}
