//! The committed artifacts belong to the sources and have the published interface.

use std::{collections::BTreeSet, fs, path::PathBuf};

use alloy_primitives::{hex, keccak256};
use serde_json::Value;

fn contracts() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../contracts")
}

pub(crate) fn artifact(name: &str) -> Value {
    let text = fs::read_to_string(contracts().join(format!("artifacts/{name}.json"))).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn artifact_names() -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(contracts().join("artifacts"))
        .unwrap()
        .map(|entry| {
            entry
                .unwrap()
                .path()
                .file_stem()
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    names.sort();
    names
}

fn solidity_files(folder: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(contracts().join(folder)).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let path = format!("{folder}/{name}");
        if name.ends_with(".sol") {
            found.insert(path);
        } else {
            found.extend(solidity_files(&path));
        }
    }
    found
}

/// Edited Solidity without `node build.mjs` fails here, without a compiler.
#[test]
fn artifacts_were_built_from_the_present_sources() {
    let mut used = BTreeSet::new();
    for name in artifact_names() {
        let artifact = artifact(&name);
        for (path, recorded) in artifact["sources"].as_object().unwrap() {
            let source = fs::read(contracts().join(path))
                .unwrap_or_else(|_| panic!("{path} is gone; run node build.mjs"));
            let found = format!("0x{}", hex::encode(keccak256(&source)));
            assert_eq!(
                recorded, &found,
                "{path} changed after {name} was built; run node build.mjs in contracts/"
            );
            used.insert(path.clone());
        }
    }
    let mut sources = solidity_files("src");
    sources.extend(solidity_files("test"));
    assert_eq!(used, sources, "every source is part of some artifact");
}

#[test]
fn lock_file_names_no_registry() {
    let lock = fs::read_to_string(contracts().join("package-lock.json")).unwrap();
    assert!(
        !lock.contains("\"resolved\""),
        "package-lock.json must not name download addresses"
    );
}

#[test]
fn contracts_fit_into_the_size_that_chains_accept() {
    for name in artifact_names() {
        let code = artifact(&name)["deployedBytecode"].as_str().unwrap().len() / 2 - 1;
        assert!(code > 100 && code <= 24_576, "{name} has {code} bytes");
    }
}

/// Canonical type of an ABI parameter.
fn type_of(parameter: &Value) -> String {
    let name = parameter["type"].as_str().unwrap();
    match name.strip_prefix("tuple") {
        Some(suffix) => format!("({}){suffix}", types_of(&parameter["components"])),
        None => name.to_owned(),
    }
}

fn types_of(parameters: &Value) -> String {
    let types: Vec<String> = parameters.as_array().unwrap().iter().map(type_of).collect();
    types.join(",")
}

pub(crate) fn items<'a>(artifact: &'a Value, kind: &str) -> Vec<(String, &'a Value)> {
    let items = artifact["abi"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|item| item["type"] == kind);
    items
        .map(|item| {
            (
                format!(
                    "{}({})",
                    item["name"].as_str().unwrap(),
                    types_of(&item["inputs"])
                ),
                item,
            )
        })
        .collect()
}

#[test]
fn every_published_selector_is_there() {
    let published: Value = serde_json::from_str(include_str!("published_abi.json")).unwrap();
    let mut compared = 0;
    for (contract, kinds) in published.as_object().unwrap() {
        let artifact = artifact(contract);
        for (kind, group) in [
            ("function", "functions"),
            ("event", "events"),
            ("error", "errors"),
        ] {
            let present: Vec<(String, String)> = items(&artifact, kind)
                .into_iter()
                .map(|(signature, _)| {
                    let digest = keccak256(&signature);
                    let hash = if kind == "event" {
                        hex::encode(digest)
                    } else {
                        hex::encode(&digest[..4])
                    };
                    (signature, format!("0x{hash}"))
                })
                .collect();
            for (name, selector) in kinds[group].as_object().unwrap() {
                let wanted = selector.as_str().unwrap();
                let matches = present.iter().any(|(signature, hash)| {
                    hash == wanted && signature.starts_with(&format!("{name}("))
                });
                assert!(
                    matches,
                    "{contract}: {kind} {name} {wanted} is missing; present: {present:?}"
                );
                compared += 1;
            }
        }
    }
    assert!(compared > 200, "only {compared} entries compared");
}

#[test]
fn return_types_are_the_published_ones() {
    const REFUNDS: &str = "(uint256,uint256,uint256,bool)[]";
    const QUOTA: &str = "(uint256,uint256,uint256,uint256,string)";
    const DELIVERABLE: &str = "(string,bytes,bytes,bool,uint248,bool)";
    let service = format!("(address,string,{QUOTA},uint256,bool,string[],address,bool)");
    let inference_service =
        "(address,string,string,uint256,uint256,uint256,string,string,string,address,bool)"
            .to_owned();
    let inference_account = format!(
        "(address,address,uint256,uint256,uint256,{REFUNDS},string,bool,uint256,uint256,uint256)"
    );
    let summary =
        "(address,address,uint256,uint256,uint256,string,uint256,uint256,bool)".to_owned();
    let details = format!(
        "(address,address,uint256,uint256,uint256,{REFUNDS},string,{DELIVERABLE}[],uint256,uint256,uint256,bool)"
    );
    let info = "(address,address,string,string,string,string,bool,uint256)".to_owned();
    let ledger = "(address,uint256,uint256,string)".to_owned();
    let expected = [
        ("LedgerManager", "getLedger", ledger.clone()),
        (
            "LedgerManager",
            "getAllLedgers",
            format!("{ledger}[],uint256"),
        ),
        (
            "LedgerManager",
            "getLedgerProviders",
            "address[]".to_owned(),
        ),
        ("LedgerManager", "getServiceInfo", info.clone()),
        ("LedgerManager", "getAllActiveServices", format!("{info}[]")),
        (
            "LedgerManager",
            "getRecommendedService",
            "string,address".to_owned(),
        ),
        (
            "LedgerManager",
            "getAllVersions",
            "string[],address[],bool[]".to_owned(),
        ),
        ("LedgerManager", "addLedger", "uint256,uint256".to_owned()),
        ("InferenceServing", "getService", inference_service.clone()),
        (
            "InferenceServing",
            "getAllServices",
            format!("{inference_service}[],uint256"),
        ),
        ("InferenceServing", "getAccount", inference_account.clone()),
        (
            "InferenceServing",
            "getAllAccounts",
            format!("{inference_account}[],uint256"),
        ),
        (
            "InferenceServing",
            "getAccountsByProvider",
            format!("{inference_account}[],uint256"),
        ),
        (
            "InferenceServing",
            "getAccountsByUser",
            format!("{inference_account}[],uint256"),
        ),
        (
            "InferenceServing",
            "getBatchAccountsByUsers",
            format!("{inference_account}[]"),
        ),
        (
            "InferenceServing",
            "settleFeesWithTEE",
            "uint8[]".to_owned(),
        ),
        (
            "InferenceServing",
            "previewSettlementResults",
            "address[],uint8[],address[],uint256[]".to_owned(),
        ),
        (
            "InferenceServing",
            "processRefund",
            "uint256,uint256,uint256".to_owned(),
        ),
        ("FineTuningServing", "getService", service.clone()),
        (
            "FineTuningServing",
            "getAllServices",
            format!("{service}[]"),
        ),
        ("FineTuningServing", "getAccount", details),
        (
            "FineTuningServing",
            "getAllAccounts",
            format!("{summary}[],uint256"),
        ),
        (
            "FineTuningServing",
            "getAccountsByProvider",
            format!("{summary}[],uint256"),
        ),
        (
            "FineTuningServing",
            "getAccountsByUser",
            format!("{summary}[],uint256"),
        ),
        (
            "FineTuningServing",
            "getBatchAccountsByUsers",
            format!("{summary}[]"),
        ),
        (
            "FineTuningServing",
            "getDeliverable",
            DELIVERABLE.to_owned(),
        ),
        (
            "FineTuningServing",
            "getDeliverables",
            format!("{DELIVERABLE}[]"),
        ),
        (
            "Flow",
            "submit",
            "uint256,bytes32,uint256,uint256".to_owned(),
        ),
    ];
    for (contract, function, outputs) in expected {
        let artifact = artifact(contract);
        let prefix = format!("{function}(");
        let (_, item) = items(&artifact, "function")
            .into_iter()
            .find(|(signature, _)| signature.starts_with(&prefix))
            .unwrap_or_else(|| panic!("{contract}.{function} is missing"));
        assert_eq!(types_of(&item["outputs"]), outputs, "{contract}.{function}");
    }
}

#[test]
fn indexed_event_fields_are_the_published_ones() {
    let expected: [(&str, &str, &[&str]); 12] = [
        ("LedgerManager", "FundSpent", &["user", "service"]),
        ("InferenceServing", "BalanceUpdated", &["user", "provider"]),
        (
            "InferenceServing",
            "RefundRequested",
            &["user", "provider", "index"],
        ),
        ("InferenceServing", "TEESettlementResult", &["user"]),
        ("InferenceServing", "ServiceUpdated", &["service"]),
        ("InferenceServing", "TokenRevoked", &["user", "provider"]),
        ("InferenceServing", "ContractInitialized", &["owner"]),
        (
            "FineTuningServing",
            "DeliverableAdded",
            &["user", "provider"],
        ),
        (
            "FineTuningServing",
            "DeliverableEvicted",
            &["provider", "user"],
        ),
        ("FineTuningServing", "FeesSettled", &["user", "provider"]),
        (
            "FineTuningServing",
            "ProviderTEESignerAcknowledged",
            &["provider", "teeSignerAddress"],
        ),
        ("Flow", "Submit", &["sender", "identity"]),
    ];
    for (contract, event, fields) in expected {
        let artifact = artifact(contract);
        let (_, item) = items(&artifact, "event")
            .into_iter()
            .find(|(signature, _)| signature.starts_with(&format!("{event}(")))
            .unwrap();
        let indexed: Vec<&str> = item["inputs"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|input| input["indexed"] == true)
            .map(|input| input["name"].as_str().unwrap())
            .collect();
        assert_eq!(indexed, fields, "{contract}.{event}");
    }
}
