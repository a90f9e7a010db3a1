//! `login`, `logout`.

use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};

use zerog_sdk::wallet::{Keystore, parse_key};
use zerog_sdk::{NetworkSettings, SecretKey};
use zeroize::Zeroizing;

use crate::app::{App, prompt_secret};
use crate::args::Login;
use crate::exit_code::{Failure, Outcome};
use crate::output::Table;
use crate::profile::SavedKey;

/// Longest configuration that is imported, in bytes.
const MAX_CONFIG_BYTES: u64 = 64 * 1024;

/// The members of the npm program's `config.json` that mean something here.
#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct NpmConfig {
    #[serde(default, deserialize_with = "secret")]
    private_key: Option<Zeroizing<String>>,
    rpc_endpoint: Option<String>,
    network: Option<String>,
}

fn secret<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Zeroizing<String>>, D::Error> {
    let text: Option<String> = serde::Deserialize::deserialize(deserializer)?;
    Ok(text.map(Zeroizing::new))
}

pub(super) async fn login(app: &App, arguments: &Login) -> Outcome {
    let imported = match &arguments.import {
        Some(path) => Some(import(app, path.as_deref())?),
        None => None,
    };
    let key = match imported
        .as_ref()
        .and_then(|(_, config)| config.private_key.as_ref())
    {
        Some(text) => parse_key(text)?,
        None => key_to_save(app, arguments)?,
    };
    if arguments.plaintext {
        let text = Zeroizing::new(format!("0x{}", hex::encode(key.expose_bytes())));
        app.profile.save_plain_key(&text)?;
        app.output
            .warn("The key is saved unencrypted, readable for this user alone.");
    } else {
        app.profile
            .save_keystore(&Keystore::encrypt(&key, &new_password(app)?)?)?;
    }
    app.output.line(format!("Logged in as {}", key.address()));
    let mut network = None;
    if let Some((path, config)) = &imported {
        network = import_network(app, config).await?;
        app.output.warn(format!(
            "{} still holds the key in clear; delete it once the npm program is no longer used",
            path.display()
        ));
    }
    app.output.json(&serde_json::json!({
        "address": key.address(), "encrypted": !arguments.plaintext, "network": network,
    }));
    Ok(())
}

/// Shows what this profile would use: neither the chain is asked, nor a password.
pub(super) async fn status(app: &App) -> Outcome {
    let network = match (app.profile.network()?, &app.global.network) {
        (None, None) => None,
        _ => Some(app.network().await?),
    };
    let (key, address) = match (app.given_key()?, app.profile.key()?) {
        (Some(key), _) => ("given for this run", Some(key.address())),
        (None, Some(SavedKey::Encrypted(keystore))) => ("encrypted keystore", keystore.address()),
        (None, Some(SavedKey::Plain(key))) => ("plain file", Some(key.address())),
        (None, None) => ("none; run `0g-compute-cli login`", None),
    };
    let mut table = Table::with_head(&[("Field", 24), ("Value", 60)]);
    let name = network
        .as_ref()
        .map_or("none; run `0g-compute-cli setup-network`", |network| {
            &network.name
        });
    table.row(["Network".into(), name.to_owned()]);
    if let Some(network) = &network {
        table.row(["RPC".into(), network.rpc_url.clone()]);
    }
    table.row([
        "Wallet".into(),
        address.map_or_else(|| "unknown".to_owned(), |address| address.to_string()),
    ]);
    table.row(["Key".into(), key.to_owned()]);
    table.row(["Profile".into(), app.profile.folder().display().to_string()]);
    app.output.table(&table);
    app.output.json(&serde_json::json!({
        "network": network.as_ref().map(|network| &network.name),
        "rpc_url": network.as_ref().map(|network| &network.rpc_url),
        "address": address,
        "key": key,
        "profile": app.profile.folder(),
    }));
    Ok(())
}

/// Reads the npm program's configuration, which must hold a key.
fn import(app: &App, path: Option<&Path>) -> Outcome<(PathBuf, NpmConfig)> {
    if app.global.key_file.is_some() {
        return Err(Failure::usage(
            "give the key with --key-file or --import, not with both",
        ));
    }
    let path = match path {
        Some(path) => path.to_path_buf(),
        None => npm_config_path()?,
    };
    let failed = |error| Failure::file("read", &path, error);
    let mut text = Zeroizing::new(String::new());
    std::fs::File::open(&path)
        .map_err(failed)?
        .take(MAX_CONFIG_BYTES)
        .read_to_string(&mut text)
        .map_err(failed)?;
    // The parser's message could quote the key.
    let config: NpmConfig = serde_json::from_str(&text).map_err(|_| {
        Failure::usage(format!(
            "{} is no configuration of the npm program; name its config.json",
            path.display()
        ))
    })?;
    if config.private_key.is_none() {
        return Err(Failure::new(
            crate::exit_code::AUTHENTICATION,
            "no_wallet",
            format!(
                "{} holds no key; give one with --key-file or --key-stdin",
                path.display()
            ),
        ));
    }
    Ok((path, config))
}

/// Where the npm program keeps its configuration.
fn npm_config_path() -> Outcome<PathBuf> {
    let home = std::env::var_os("HOME").or_else(|| std::env::var_os("USERPROFILE"));
    match home.filter(|home| !home.is_empty()) {
        Some(home) => Ok(PathBuf::from(home).join(".0g-compute-cli/config.json")),
        None => Err(Failure::usage(
            "HOME is not set; name the file: --import FILE",
        )),
    }
}

/// Saves the imported network, unless one was chosen here before.
async fn import_network(app: &App, config: &NpmConfig) -> Outcome<Option<String>> {
    let endpoint = app.global.rpc.as_ref().or(config.rpc_endpoint.as_ref());
    if app.profile.network()?.is_some() || (config.network.is_none() && endpoint.is_none()) {
        return Ok(None);
    }
    let known = config
        .network
        .as_deref()
        .and_then(|name| NetworkSettings::by_name(name).ok());
    let network = match (known, endpoint) {
        (Some(mut network), Some(url)) => {
            network.rpc_url.clone_from(url);
            network
        }
        (Some(network), None) => network,
        (None, Some(url)) => match NetworkSettings::detect(url).await {
            Ok(network) => network,
            Err(error) => {
                app.output.warn(format!(
                    "The key is imported, the network is not: {error}. Choose one with setup-network"
                ));
                return Ok(None);
            }
        },
        (None, None) => return Ok(None),
    };
    app.profile.save_network(&network)?;
    app.output.line(format!(
        "Network set to {} (chain {}, {})",
        network.name, network.chain_id, network.rpc_url
    ));
    Ok(Some(network.name))
}

fn key_to_save(app: &App, arguments: &Login) -> Outcome<SecretKey> {
    if arguments.key_stdin {
        if app.global.key_file.is_some() {
            return Err(Failure::usage(
                "give the key with --key-file or --key-stdin, not with both",
            ));
        }
        let mut text = Zeroizing::new(String::new());
        std::io::stdin()
            .take(4096)
            .read_to_string(&mut text)
            .map_err(|error| {
                Failure::new(
                    crate::exit_code::AUTHENTICATION,
                    "input",
                    format!("cannot read the key: {error}"),
                )
            })?;
        return Ok(parse_key(&text)?);
    }
    if let Some(key) = app.given_key()? {
        return Ok(key);
    }
    if !std::io::stdin().is_terminal() {
        return Err(Failure::usage(
            "give the key with --key-file FILE or --key-stdin; it is asked for on a terminal only",
        ));
    }
    Ok(parse_key(&prompt_secret("Wallet private key: ")?)?)
}

fn new_password(app: &App) -> Outcome<Zeroizing<String>> {
    if let Some(password) = app.given_password()? {
        return Ok(password);
    }
    if !std::io::stdin().is_terminal() {
        return Err(Failure::usage(
            "give a password for the keystore with --password-file or ZG_KEYSTORE_PASSWORD, or save the key unencrypted with --plaintext",
        ));
    }
    let password = prompt_secret("New keystore password: ")?;
    if *prompt_secret("Again: ")? != *password {
        return Err(Failure::new(
            crate::exit_code::AUTHENTICATION,
            "password",
            "the passwords differ; run login again",
        ));
    }
    Ok(password)
}

pub(super) fn logout(app: &App) -> Outcome {
    let was_saved = app.profile.forget_key()?;
    app.output.line(if was_saved {
        "Logged out"
    } else {
        "No key was saved"
    });
    app.output
        .json(&serde_json::json!({ "removed": was_saved }));
    Ok(())
}
