//! The envelope: ids, batches, notifications, malformed input, limits, shutdown.

use alloy::signers::local::PrivateKeySigner;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use zerog_devchain::{DevChain, Error, Limits, Options, accounts::ACCOUNTS};

use crate::support::{COUNTER, Send, options, serve};

#[test]
fn development_keys_belong_to_their_addresses() {
    for account in ACCOUNTS {
        assert_eq!(
            PrivateKeySigner::from_bytes(&account.private_key)
                .unwrap()
                .address(),
            account.address
        );
    }
}

#[tokio::test]
async fn constant_methods_answer_what_clients_expect() {
    let node = serve(options()).await;
    assert_eq!(node.call("eth_chainId", json!([])).await, "0x7a69");
    assert_eq!(node.call("net_version", json!([])).await, "31337");
    assert_eq!(node.call("eth_syncing", json!([])).await, false);
    assert_eq!(node.call("eth_accounts", json!([])).await, json!([]));
    assert_eq!(
        node.call("eth_maxPriorityFeePerGas", json!([])).await,
        "0x3b9aca00"
    );
    assert!(
        node.call("web3_clientVersion", json!([]))
            .await
            .as_str()
            .unwrap()
            .starts_with("zerog-devchain/")
    );
    let balance = node
        .call("eth_getBalance", json!([ACCOUNTS[9].address, "latest"]))
        .await;
    assert_eq!(balance, "0x21e19e0c9bab2400000");
    assert_eq!(node.number("eth_gasPrice", json!([])).await, 1_875_000_000);
}

#[tokio::test]
async fn batches_keep_order_and_ids_and_isolate_failures() {
    let node = serve(options()).await;
    let batch = r#" [{"jsonrpc":"2.0","id":"a","method":"eth_chainId"},
        {"jsonrpc":"2.0","method":"eth_chainId","params":[]},
        {"jsonrpc":"2.0","id":2,"method":"eth_unknown","params":[]},
        17,
        {"jsonrpc":"2.0","id":null,"method":"eth_blockNumber","params":null},
        {"jsonrpc":"2.0","id":4,"method":"eth_getBalance","params":{"address":"0x"}}]"#;
    let answers: Value = node.post(batch).await.json().await.unwrap();
    let answers = answers.as_array().unwrap();
    assert_eq!(
        answers[0],
        json!({"jsonrpc": "2.0", "id": "a", "result": "0x7a69"})
    );
    assert_eq!(
        (&answers[1]["id"], &answers[1]["error"]["code"]),
        (&json!(2), &json!(-32601))
    );
    assert_eq!(
        (&answers[2]["id"], &answers[2]["error"]["code"]),
        (&json!(null), &json!(-32600))
    );
    // A null id is an id; only a request without one is not answered.
    assert_eq!(
        answers[3],
        json!({"jsonrpc": "2.0", "id": null, "result": "0x0"})
    );
    assert_eq!(answers[4]["error"]["code"], -32602, "{}", answers[4]);
    assert_eq!((answers.len(), &answers[4]["id"]), (5, &json!(4)));
}

#[tokio::test]
async fn malformed_bodies_get_error_objects() {
    let node = serve(options()).await;
    for (body, code) in [
        ("{", -32700),
        ("", -32700),
        ("[]", -32600),
        (r#"{"id":1}"#, -32600),
        ("[1,", -32700),
    ] {
        let answer: Value = node.post(body).await.json().await.unwrap();
        assert_eq!(answer["error"]["code"], code, "{body}");
    }
    let missing = node.error("eth_getBalance", json!([])).await;
    assert_eq!(missing["code"], -32602);
    let notification = node
        .post(r#"{"jsonrpc":"2.0","method":"eth_chainId"}"#)
        .await;
    assert_eq!(notification.status(), 204);
    let odd = node
        .post(r#"{"jsonrpc":"2.0","id":null,"method":"eth_chainId"}"#)
        .await;
    assert_eq!(odd.status(), 200);
    let answer: Value = odd.json().await.unwrap();
    assert_eq!(
        answer,
        json!({"jsonrpc": "2.0", "id": null, "result": "0x7a69"})
    );
}

#[tokio::test]
async fn limits_hold() {
    let limits = Limits {
        request_bytes: 2_000,
        batch_requests: 3,
        response_bytes: 150,
        logs: 2,
        ..Default::default()
    };
    let node = serve(Options {
        limits,
        ..options()
    })
    .await;
    assert_eq!(node.post(vec![b' '; 2_001]).await.status(), 413);

    let one = json!({"jsonrpc": "2.0", "id": 1, "method": "eth_getBlockByNumber", "params": ["latest", false]});
    let answer: Value = node
        .post(json!([one, one, one, one]).to_string())
        .await
        .json()
        .await
        .unwrap();
    assert_eq!(answer["error"]["code"], -32600);
    let answer: Value = node
        .post(json!([one, one, one]).to_string())
        .await
        .json()
        .await
        .unwrap();
    assert!(answer[0]["result"].is_object());
    assert_eq!(
        (&answer[1]["error"]["code"], &answer[2]["id"]),
        (&json!(-32003), &json!(1))
    );

    let counter = node.deploy(0, 0, COUNTER).await;
    let address = counter.parse().unwrap();
    for nonce in 1..=3 {
        node.send(
            &Send {
                nonce,
                to: Some(address),
                ..Default::default()
            }
            .sign(),
        )
        .await;
    }
    let error = node
        .error("eth_getLogs", json!([{"fromBlock": "0x0"}]))
        .await;
    assert_eq!(error["code"], -32005);
    assert_eq!(
        error["message"],
        "query returned more than 2 results; try with the block range 0 to 3"
    );
    let found = node
        .call(
            "eth_getLogs",
            json!([{"fromBlock": "0x0", "toBlock": "0x3"}]),
        )
        .await;
    assert_eq!(found.as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn development_methods_are_off_unless_asked_for() {
    let node = serve(Options::default()).await;
    for method in [
        "evm_mine",
        "evm_increaseTime",
        "evm_snapshot",
        "evm_revert",
        "anvil_setBalance",
    ] {
        assert_eq!(
            node.error(method, json!([1])).await["code"],
            -32601,
            "{method}"
        );
    }
}

#[tokio::test]
async fn shutdown_frees_the_port_and_only_loopback_is_served() {
    let node = serve(options()).await;
    let address = node.server.local_addr();
    let _ = node.call("eth_chainId", json!([])).await;
    node.server.shutdown().await;
    drop(node.client);
    TcpListener::bind(address).await.unwrap();

    let public = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let chain = DevChain::open(Options::default()).unwrap();
    assert!(matches!(
        chain.serve(public),
        Err(Error::NotLoopback { .. })
    ));
}
