//! What a data directory promises: everything mined survives, whatever was half-written does not.

use std::{fs, path::Path};

use serde_json::{Value, json};
use zerog_devchain::{DevChain, Error, Options, accounts::ACCOUNTS};

use crate::support::{COUNTER, Send, init_code, options};

fn open(directory: &Path) -> Result<DevChain, Error> {
    DevChain::open(Options {
        data_dir: Some(directory.to_owned()),
        ..options()
    })
}

fn tip(chain: &DevChain) -> Value {
    chain
        .request("eth_getBlockByNumber", &[json!("latest"), json!(true)])
        .unwrap()
}

/// Deploys the counter and counts to `count`; 1 + `count` blocks.
fn fill(chain: &DevChain, count: u64) {
    chain
        .send_raw_transaction(
            &Send {
                to: None,
                data: init_code(COUNTER),
                ..Default::default()
            }
            .sign(),
        )
        .unwrap();
    for nonce in 1..=count {
        let to = Some(ACCOUNTS[0].address.create(0));
        chain
            .send_raw_transaction(
                &Send {
                    nonce,
                    to,
                    ..Default::default()
                }
                .sign(),
            )
            .unwrap();
    }
}

#[test]
fn a_restart_brings_back_blocks_state_logs_and_time() {
    let directory = tempfile::tempdir().unwrap();
    let chain = open(directory.path()).unwrap();
    fill(&chain, 5);
    chain.request("evm_snapshot", &[]).unwrap();
    chain
        .request(
            "anvil_setBalance",
            &[json!(ACCOUNTS[3].address), json!("0x63")],
        )
        .unwrap();
    chain.request("evm_revert", &[json!("0x1")]).unwrap();
    chain
        .request(
            "anvil_setBalance",
            &[json!(ACCOUNTS[4].address), json!("0x64")],
        )
        .unwrap();
    chain.advance_time(5_000).unwrap();
    let (before, time) = (tip(&chain), chain.timestamp());
    let everything = [json!({"fromBlock": "0x0"})];
    let logs = chain.request("eth_getLogs", &everything).unwrap();
    drop(chain);

    let chain = open(directory.path()).unwrap();
    assert_eq!(tip(&chain), before);
    assert_eq!(chain.timestamp(), time);
    assert_eq!(chain.request("eth_getLogs", &everything).unwrap(), logs);
    assert_eq!(logs.as_array().unwrap().len(), 5);
    let balance = |index: usize| {
        chain
            .request("eth_getBalance", &[json!(ACCOUNTS[index].address)])
            .unwrap()
    };
    assert_eq!(
        (balance(3), balance(4)),
        (json!("0x21e19e0c9bab2400000"), json!("0x64"))
    );
    chain
        .send_raw_transaction(
            &Send {
                nonce: 6,
                ..Default::default()
            }
            .sign(),
        )
        .unwrap();
}

#[test]
fn a_torn_tail_costs_only_the_torn_block() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("chain.log");
    let chain = open(directory.path()).unwrap();
    fill(&chain, 3);
    let kept = tip(&chain);
    chain.flush().unwrap();
    let length = fs::metadata(&log).unwrap().len();
    chain
        .send_raw_transaction(
            &Send {
                nonce: 4,
                ..Default::default()
            }
            .sign(),
        )
        .unwrap();
    drop(chain);
    let whole = fs::read(&log).unwrap();
    for cut in [length as usize + 1, length as usize + 9, whole.len() - 1] {
        fs::write(&log, &whole[..cut]).unwrap();
        let chain = open(directory.path()).unwrap();
        assert_eq!(tip(&chain), kept, "cut at {cut}");
        drop(chain);
    }
    // The chain goes on where it was cut, and that lasts too.
    let chain = open(directory.path()).unwrap();
    chain
        .send_raw_transaction(
            &Send {
                nonce: 4,
                ..Default::default()
            }
            .sign(),
        )
        .unwrap();
    let continued = tip(&chain);
    drop(chain);
    assert_eq!(tip(&open(directory.path()).unwrap()), continued);
}

#[test]
fn a_log_of_another_genesis_and_a_second_opening_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let chain = open(directory.path()).unwrap();
    fill(&chain, 1);
    assert!(matches!(open(directory.path()), Err(Error::InUse { .. })));
    drop(chain);
    let other = Options {
        data_dir: Some(directory.path().to_owned()),
        funded_accounts: Vec::new(),
        ..options()
    };
    assert!(matches!(
        DevChain::open(other),
        Err(Error::OtherGenesis { .. })
    ));
    assert_eq!(open(directory.path()).unwrap().block_number(), 2);
}

#[test]
fn a_failing_genesis_transaction_is_named() {
    let good = Send::default().sign();
    let reverting = Send {
        nonce: 1,
        to: None,
        data: vec![0xfe].into(),
        ..Default::default()
    }
    .sign();
    for (bad, reason) in [
        (good.clone(), "nonce too low"),
        (reverting, "reverts"),
        (vec![1].into(), "decode"),
    ] {
        let options = Options {
            genesis_transactions: vec![good.clone(), bad],
            ..options()
        };
        let error = DevChain::open(options).unwrap_err();
        assert!(matches!(error, Error::Genesis { index: 1, .. }), "{error}");
        assert!(error.to_string().contains(reason), "{error}");
    }
}
