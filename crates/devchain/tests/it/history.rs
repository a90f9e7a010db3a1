//! Blocks, logs and filters; old states; time travel; snapshots.

use alloy_primitives::{Address, U256};
use serde_json::{Value, json};
use zerog_devchain::{GENESIS_TIMESTAMP, Options, accounts::ACCOUNTS};

use crate::support::{BLOCK_HASH, COUNTER, Send, Served, options, serve, word};

async fn count(node: &Served, counter: &str, nonces: std::ops::Range<u64>) {
    for nonce in nonces {
        node.send(
            &Send {
                nonce,
                to: Some(counter.parse().unwrap()),
                ..Default::default()
            }
            .sign(),
        )
        .await;
    }
}

#[tokio::test]
async fn old_states_are_read_and_executed_on() {
    let node = serve(options()).await;
    let counter = node.deploy(0, 0, COUNTER).await;
    count(&node, &counter, 1..6).await;
    for block in 1..=6_u64 {
        let tag = format!("{block:#x}");
        assert_eq!(
            node.call("eth_getStorageAt", json!([counter, "0x0", tag]))
                .await,
            word(block - 1)
        );
        assert_eq!(
            node.call("eth_call", json!([{"to": counter}, tag])).await,
            word(block)
        );
        assert_eq!(
            node.number("eth_getTransactionCount", json!([ACCOUNTS[0].address, tag]))
                .await,
            block
        );
    }
    let third = node
        .call("eth_getBlockByNumber", json!(["0x3", false]))
        .await;
    let by_hash = json!([{"to": counter}, {"blockHash": third["hash"]}]);
    assert_eq!(node.call("eth_call", by_hash).await, word(3));
    let genesis = node
        .call("eth_getBalance", json!([ACCOUNTS[0].address, "earliest"]))
        .await;
    assert_eq!(genesis, "0x21e19e0c9bab2400000");
    assert_eq!(
        node.error("eth_call", json!([{"to": counter}, "0x7"]))
            .await["code"],
        -32001
    );
    assert!(
        node.call("eth_getBlockByNumber", json!(["0x7", false]))
            .await
            .is_null()
    );
}

#[tokio::test]
async fn the_blockhash_instruction_knows_the_blocks() {
    let node = serve(options()).await;
    let probe = node.deploy(0, 0, BLOCK_HASH).await;
    node.call("anvil_mine", json!([300])).await;
    let hash_of = async |number: u64| {
        node.call("eth_call", json!([{"to": probe, "data": word(number)}]))
            .await
    };
    let tag = |number: u64| json!([format!("{number:#x}"), false]);
    for number in [299, 100] {
        assert_eq!(
            hash_of(number).await,
            node.call("eth_getBlockByNumber", tag(number)).await["hash"]
        );
    }
    assert_eq!(hash_of(10).await, word(0));
}

#[tokio::test]
async fn logs_are_found_by_range_address_topic_and_block() {
    let node = serve(options()).await;
    let counter = node.deploy(0, 0, COUNTER).await;
    count(&node, &counter, 1..6).await;
    let length = async |filter: Value| {
        node.call("eth_getLogs", json!([filter]))
            .await
            .as_array()
            .unwrap()
            .len()
    };
    assert_eq!(length(json!({"fromBlock": "earliest"})).await, 5);
    assert_eq!(
        length(json!({})).await,
        1,
        "without a range only the newest block counts"
    );
    assert_eq!(
        length(json!({"fromBlock": "0x3", "toBlock": "0x4", "address": counter})).await,
        2
    );
    assert_eq!(
        length(json!({"fromBlock": "0x0", "address": [ACCOUNTS[0].address]})).await,
        0
    );
    assert_eq!(
        length(json!({"fromBlock": "0x0", "topics": [[word(1), word(0x2a)]]})).await,
        5
    );
    assert_eq!(
        length(json!({"fromBlock": "0x0", "topics": [word(1)]})).await,
        0
    );
    assert_eq!(
        length(json!({"fromBlock": "0x0", "topics": [null, word(1)]})).await,
        0
    );
    let block = node
        .call("eth_getBlockByNumber", json!(["0x3", false]))
        .await;
    let log = node
        .call("eth_getLogs", json!([{"blockHash": block["hash"]}]))
        .await[0]
        .take();
    assert_eq!(
        (&log["blockNumber"], &log["data"], &log["removed"]),
        (&json!("0x3"), &json!(word(2)), &json!(false))
    );
    assert_eq!(
        length(json!({"fromBlock": "0x7"})).await,
        0,
        "a range in the future is empty"
    );
    let upside_down = node
        .error(
            "eth_getLogs",
            json!([{"fromBlock": "0x5", "toBlock": "0x2"}]),
        )
        .await;
    assert_eq!(upside_down["code"], -32602);
}

#[tokio::test]
async fn filters_report_each_event_once() {
    let node = serve(options()).await;
    let counter = node.deploy(0, 0, COUNTER).await;
    let logs = node
        .call("eth_newFilter", json!([{"address": counter}]))
        .await;
    let blocks = node.call("eth_newBlockFilter", json!([])).await;
    let transactions = node
        .call("eth_newPendingTransactionFilter", json!([]))
        .await;
    let length = async |method: &str, id: &Value| {
        node.call(method, json!([id]))
            .await
            .as_array()
            .unwrap()
            .len()
    };
    count(&node, &counter, 1..4).await;
    for id in [&logs, &blocks, &transactions] {
        assert_eq!(length("eth_getFilterChanges", id).await, 3);
        assert_eq!(length("eth_getFilterChanges", id).await, 0);
    }
    count(&node, &counter, 4..5).await;
    assert_eq!(length("eth_getFilterChanges", &logs).await, 1);
    assert_eq!(length("eth_getFilterLogs", &logs).await, 4);
    assert_eq!(node.call("eth_uninstallFilter", json!([logs])).await, true);
    assert_eq!(node.call("eth_uninstallFilter", json!([logs])).await, false);
    assert_eq!(
        node.error("eth_getFilterChanges", json!([logs])).await["message"],
        "filter not found"
    );
}

#[tokio::test]
async fn fee_history_has_the_shape_of_the_specification() {
    let node = serve(options()).await;
    let counter = node.deploy(0, 0, COUNTER).await;
    count(&node, &counter, 1..4).await;
    let history = node
        .call("eth_feeHistory", json!(["0x3", "latest", [25, 75.5]]))
        .await;
    assert_eq!(history["oldestBlock"], "0x2");
    assert_eq!(history["baseFeePerGas"].as_array().unwrap().len(), 4);
    assert_eq!(history["gasUsedRatio"].as_array().unwrap().len(), 3);
    assert_eq!(
        history["reward"],
        json!([
            ["0x3b9aca00", "0x3b9aca00"],
            ["0x3b9aca00", "0x3b9aca00"],
            ["0x3b9aca00", "0x3b9aca00"]
        ])
    );
    let next =
        node.call("eth_feeHistory", json!([1, "0x2", null])).await["baseFeePerGas"][1].take();
    let third = node
        .call("eth_getBlockByNumber", json!(["0x3", false]))
        .await;
    assert_eq!(next, third["baseFeePerGas"]);
    assert_eq!(
        node.error("eth_feeHistory", json!([1, "latest", [50, 10]]))
            .await["code"],
        -32602
    );
}

#[tokio::test]
async fn time_moves_only_forward_and_as_told() {
    let node = serve(options()).await;
    let time = async || {
        let block = node
            .call("eth_getBlockByNumber", json!(["latest", false]))
            .await;
        u64::from_str_radix(&block["timestamp"].as_str().unwrap()[2..], 16).unwrap()
            - GENESIS_TIMESTAMP
    };
    node.call("evm_mine", json!([])).await;
    assert_eq!(time().await, 0);
    assert_eq!(node.call("evm_increaseTime", json!([100])).await, 100);
    assert_eq!(node.call("evm_increaseTime", json!(["0x10"])).await, 116);
    node.call("evm_mine", json!([])).await;
    assert_eq!(time().await, 116);
    node.call(
        "evm_setNextBlockTimestamp",
        json!([GENESIS_TIMESTAMP + 500]),
    )
    .await;
    node.send(&Send::default().sign()).await;
    assert_eq!(time().await, 500);
    node.call("evm_mine", json!([])).await;
    assert_eq!(time().await, 500, "the clock goes on from the set time");
    node.call("evm_mine", json!([{"timestamp": GENESIS_TIMESTAMP + 700}]))
        .await;
    assert_eq!(time().await, 700);
    let back = node
        .error("evm_setNextBlockTimestamp", json!([GENESIS_TIMESTAMP]))
        .await;
    assert_eq!(back["code"], -32602);
    assert_eq!(
        node.error("evm_increaseTime", json!(["-5"])).await["code"],
        -32602
    );
    node.chain.advance_time(50).unwrap();
    assert_eq!(time().await, 750);
}

#[tokio::test]
async fn reverting_to_a_snapshot_restores_state_history_time_and_filters() {
    let node = serve(options()).await;
    let counter = node.deploy(0, 0, COUNTER).await;
    count(&node, &counter, 1..3).await;
    let tip = node
        .call("eth_getBlockByNumber", json!(["latest", false]))
        .await;
    let filter = node.call("eth_newFilter", json!([{}])).await;
    let outer = node.call("evm_snapshot", json!([])).await;
    let inner = node.call("evm_snapshot", json!([])).await;

    node.call("evm_increaseTime", json!([1_000])).await;
    let created = node.deploy(0, 3, COUNTER).await;
    count(&node, &counter, 4..8).await;
    node.call("anvil_setBalance", json!([ACCOUNTS[1].address, "0x5"]))
        .await;
    assert_eq!(
        node.call("eth_getBalance", json!([ACCOUNTS[1].address]))
            .await,
        "0x5"
    );
    let undone = node
        .send(
            &Send {
                nonce: 8,
                value: U256::from(1),
                ..Default::default()
            }
            .sign(),
        )
        .await;
    node.send(
        &Send {
            nonce: 10,
            ..Default::default()
        }
        .sign(),
    )
    .await;
    assert_eq!(
        node.call("eth_getFilterChanges", json!([filter]))
            .await
            .as_array()
            .unwrap()
            .len(),
        4
    );

    assert_eq!(node.call("evm_revert", json!([outer])).await, true);
    assert_eq!(
        node.call("eth_getBlockByNumber", json!(["latest", false]))
            .await,
        tip
    );
    assert_eq!(
        node.call("eth_getStorageAt", json!([counter, "0x0"])).await,
        word(2)
    );
    assert_eq!(node.call("eth_getCode", json!([created])).await, "0x");
    assert_eq!(
        node.call("eth_getBalance", json!([ACCOUNTS[1].address]))
            .await,
        "0x21e19e0c9bab2400000"
    );
    assert_eq!(
        node.call("eth_getBalance", json!([Address::repeat_byte(0x77)]))
            .await,
        "0x0"
    );
    assert!(node.receipt(&undone).await.is_null());
    assert_eq!(
        node.number(
            "eth_getTransactionCount",
            json!([ACCOUNTS[0].address, "pending"])
        )
        .await,
        3
    );
    assert_eq!(node.chain.timestamp(), GENESIS_TIMESTAMP);
    assert_eq!(
        node.call("evm_revert", json!([outer])).await,
        false,
        "a snapshot is used up"
    );
    assert_eq!(
        node.call("evm_revert", json!([inner])).await,
        false,
        "and so are later ones"
    );

    assert_eq!(node.deploy(0, 3, COUNTER).await, created);
    count(&node, &counter, 4..5).await;
    assert_eq!(
        node.call("eth_getStorageAt", json!([created, "0x0"])).await,
        word(0)
    );
    assert_eq!(
        node.call("eth_getFilterChanges", json!([filter]))
            .await
            .as_array()
            .unwrap()
            .len(),
        1
    );
}

#[tokio::test]
async fn the_same_calls_give_the_same_hashes() {
    let genesis_transactions = vec![
        Send {
            to: None,
            data: crate::support::init_code(COUNTER),
            ..Default::default()
        }
        .sign(),
    ];
    let mut hashes = Vec::new();
    for _ in 0..2 {
        let node = serve(Options {
            genesis_transactions: genesis_transactions.clone(),
            ..options()
        })
        .await;
        assert_eq!(node.number("eth_blockNumber", json!([])).await, 1);
        let contract = ACCOUNTS[0].address.create(0);
        node.send(
            &Send {
                nonce: 1,
                to: Some(contract),
                ..Default::default()
            }
            .sign(),
        )
        .await;
        assert_eq!(
            node.call("eth_getStorageAt", json!([contract, "0x0"]))
                .await,
            word(1)
        );
        hashes.push(
            node.call("eth_getBlockByNumber", json!(["latest", false]))
                .await["hash"]
                .take(),
        );
    }
    assert_eq!(hashes[0], hashes[1]);
}
