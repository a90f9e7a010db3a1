//! `login`, `logout`.

use std::io::{IsTerminal, Read};

use zerog_sdk::SecretKey;
use zerog_sdk::wallet::{Keystore, parse_key};
use zeroize::Zeroizing;

use crate::app::{App, prompt_secret};
use crate::args::Login;
use crate::exit_code::{Failure, Outcome};

pub(super) fn login(app: &App, arguments: &Login) -> Outcome {
    let key = key_to_save(app, arguments)?;
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
    app.output
        .json(&serde_json::json!({ "address": key.address(), "encrypted": !arguments.plaintext }));
    Ok(())
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
