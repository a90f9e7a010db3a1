//! `setup-network`, `show-network`.

use zerog_sdk::{NetworkSettings, networks};

use crate::app::{App, ask, is_interactive};
use crate::args::SetupNetwork;
use crate::exit_code::{Failure, Outcome};
use crate::output::Table;
use crate::profile::is_network_name;

pub(super) async fn setup(app: &App, arguments: &SetupNetwork) -> Outcome {
    let base = match (&app.global.network, &app.global.rpc) {
        (Some(name), _) => app.find_network(name)?,
        (None, Some(url)) => NetworkSettings::detect(url).await?,
        (None, None) if is_interactive() => choose()?,
        (None, None) => {
            return Err(Failure::usage(
                "name a network with --network: mainnet, testnet, testnet-dev or devnet",
            ));
        }
    };
    let mut network = app.with_overrides(base);
    if let Some(name) = &arguments.name {
        if !is_network_name(name) {
            return Err(Failure::usage(format!(
                "--name {name}: use up to 64 letters, digits, `-`, `_` and `.`, not beginning with `.`"
            )));
        }
        if NetworkSettings::by_name(name).is_ok() {
            return Err(Failure::usage(format!(
                "--name {name} is the name of a known network; choose another"
            )));
        }
        network.name.clone_from(name);
    }
    app.profile.save_network(&network)?;
    app.output.line(format!(
        "Network set to {} (chain {}, {})",
        network.name, network.chain_id, network.rpc_url
    ));
    app.output.json(&network);
    Ok(())
}

fn choose() -> Outcome<NetworkSettings> {
    let mut question = String::from("Networks:\n");
    for (index, network) in networks::ALL.iter().enumerate() {
        question.push_str(&format!(
            "  {} {} (chain {})\n",
            index + 1,
            network.name,
            network.chain_id
        ));
    }
    question.push_str("Choose by number or name: ");
    let answer = ask(&question)?;
    let answer = answer.trim();
    let by_number = answer
        .parse::<usize>()
        .ok()
        .and_then(|number| networks::ALL.get(number.wrapping_sub(1)));
    match by_number {
        Some(network) => Ok((*network).into()),
        None => Ok(NetworkSettings::find(answer)?),
    }
}

pub(super) async fn show(app: &App) -> Outcome {
    let network = app.network().await?;
    let mut table = Table::with_head(&[("Field", 24), ("Value", 60)]);
    let addresses = &network.addresses;
    let rows = [
        ("Network", network.name.clone()),
        ("Chain id", network.chain_id.to_string()),
        ("RPC", network.rpc_url.clone()),
        ("Storage indexer", network.storage_indexer_url.clone()),
        ("Ledger contract", addresses.ledger.to_string()),
        ("Fine-tuning contract", addresses.fine_tuning.to_string()),
        ("Inference contract", addresses.inference.to_string()),
        ("Profile", app.profile.folder().display().to_string()),
    ];
    for (field, value) in rows {
        table.row([field.to_owned(), value]);
    }
    app.output.table(&table);
    let saved = app.profile.named_networks()?;
    if !saved.is_empty() {
        let mut table = Table::with_head(&[("Saved network", 24), ("Chain id", 12), ("RPC", 60)]);
        for network in &saved {
            table.row([
                network.name.clone(),
                network.chain_id.to_string(),
                network.rpc_url.clone(),
            ]);
        }
        app.output.table(&table);
    }
    let names: Vec<_> = saved.iter().map(|network| &network.name).collect();
    let mut value = serde_json::to_value(&network).expect("settings are plain data");
    value["saved_networks"] = serde_json::json!(names);
    app.output.json(&value);
    Ok(())
}
