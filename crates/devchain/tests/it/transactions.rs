//! Sending, queueing, refusing, calling, estimating.

use alloy::{
    consensus::{SignableTransaction, TxEnvelope, crypto::SECP256K1N_HALF},
    eips::eip2718::{Decodable2718, Encodable2718},
};
use alloy_primitives::{Address, Signature, U256, hex};
use serde_json::json;
use zerog_devchain::accounts::ACCOUNTS;

use crate::support::{CLOCK, COUNTER, Kind, REVERTER, Send, init_code, options, serve, word};

#[tokio::test]
async fn every_transaction_type_is_mined_at_once() {
    let node = serve(options()).await;
    for (nonce, kind, tag) in [
        (0, Kind::Legacy, "0x0"),
        (1, Kind::AccessList, "0x1"),
        (2, Kind::DynamicFee, "0x2"),
    ] {
        let hash = node
            .send(
                &Send {
                    nonce,
                    kind,
                    value: U256::from(5),
                    ..Default::default()
                }
                .sign(),
            )
            .await;
        let receipt = node.receipt(&hash).await;
        assert_eq!(
            (&receipt["status"], &receipt["type"]),
            (&json!("0x1"), &json!(tag))
        );
        assert_eq!(receipt["blockNumber"], format!("{:#x}", nonce + 1));
        assert_eq!(receipt["gasUsed"], "0x5208");
        let transaction = node.call("eth_getTransactionByHash", json!([hash])).await;
        assert_eq!(transaction["blockHash"], receipt["blockHash"]);
        let block = node
            .call("eth_getBlockByNumber", json!(["latest", true]))
            .await;
        assert_eq!(block["transactions"][0], transaction);
        let by_hash = node
            .call("eth_getBlockByHash", json!([block["hash"], false]))
            .await;
        assert_eq!(by_hash["transactions"], json!([hash]));
    }
    assert_eq!(
        node.number(
            "eth_getBalance",
            json!([Address::repeat_byte(0x77), "latest"])
        )
        .await,
        15
    );
}

#[tokio::test]
async fn future_nonces_wait_and_are_mined_in_order() {
    let node = serve(options()).await;
    let raw: Vec<_> = (0..20)
        .map(|nonce| {
            Send {
                nonce,
                ..Default::default()
            }
            .sign()
        })
        .collect();
    let mut hashes = vec![String::new(); raw.len()];
    for index in (1..raw.len()).rev() {
        hashes[index] = node.send(&raw[index]).await;
    }
    assert_eq!(node.number("eth_blockNumber", json!([])).await, 0);
    let waiting = node
        .call("eth_getTransactionByHash", json!([hashes[5]]))
        .await;
    assert_eq!(
        (&waiting["blockNumber"], &waiting["nonce"]),
        (&json!(null), &json!("0x5"))
    );
    assert!(node.receipt(&hashes[5]).await.is_null());
    assert_eq!(
        node.number(
            "eth_getTransactionCount",
            json!([ACCOUNTS[0].address, "pending"])
        )
        .await,
        0
    );
    assert_eq!(
        node.error("eth_sendRawTransaction", json!([raw[3]])).await["message"],
        "already known"
    );

    hashes[0] = node.send(&raw[0]).await;
    assert_eq!(node.number("eth_blockNumber", json!([])).await, 20);
    for (index, hash) in hashes.iter().enumerate() {
        assert_eq!(
            node.receipt(hash).await["blockNumber"],
            format!("{:#x}", index + 1)
        );
    }
    // "pending" counts what will be mined without a gap: 21 and 22 wait for 20.
    node.send(
        &Send {
            nonce: 21,
            ..Default::default()
        }
        .sign(),
    )
    .await;
    node.send(
        &Send {
            nonce: 22,
            ..Default::default()
        }
        .sign(),
    )
    .await;
    let pending = json!([ACCOUNTS[0].address, "pending"]);
    assert_eq!(
        node.number("eth_getTransactionCount", pending.clone())
            .await,
        20
    );
    node.send(
        &Send {
            nonce: 20,
            ..Default::default()
        }
        .sign(),
    )
    .await;
    assert_eq!(node.number("eth_getTransactionCount", pending).await, 23);
}

#[tokio::test]
async fn a_queued_transaction_is_replaced_only_by_a_dearer_one() {
    let node = serve(options()).await;
    let send = |max_fee| {
        Send {
            nonce: 1,
            max_fee,
            ..Default::default()
        }
        .sign()
    };
    node.send(&send(3_000_000_000)).await;
    let error = node
        .error("eth_sendRawTransaction", json!([send(3_200_000_000)]))
        .await;
    assert_eq!(error["message"], "replacement transaction underpriced");
    let dearer = node.send(&send(3_300_000_000)).await;
    node.send(&Send::default().sign()).await;
    assert_eq!(node.receipt(&dearer).await["blockNumber"], "0x2");
}

#[tokio::test]
async fn refusals_have_the_texts_that_clients_match() {
    let node = serve(options()).await;
    node.send(&Send::default().sign()).await;
    let refused = async |send: Send| {
        let error = node
            .error("eth_sendRawTransaction", json!([send.sign()]))
            .await;
        assert_eq!(error["code"], -32000);
        error["message"].as_str().unwrap().to_owned()
    };
    assert_eq!(
        refused(Send {
            value: U256::from(1),
            ..Default::default()
        })
        .await,
        "nonce too low: next nonce 1, tx nonce 0"
    );
    assert_eq!(refused(Send::default()).await, "already known");
    let too_much = refused(Send {
        nonce: 1,
        value: U256::from(10).pow(U256::from(23)),
        ..Default::default()
    })
    .await;
    assert!(
        too_much.starts_with("insufficient funds for gas * price + value: have 9999"),
        "{too_much}"
    );
    assert_eq!(
        refused(Send {
            nonce: 1,
            max_fee: 1,
            ..Default::default()
        })
        .await,
        "max fee per gas less than block base fee"
    );
    assert_eq!(
        refused(Send {
            nonce: 1,
            gas_limit: 100_000_001,
            ..Default::default()
        })
        .await,
        "exceeds block gas limit"
    );
    let low = refused(Send {
        nonce: 1,
        gas_limit: 20_000,
        ..Default::default()
    })
    .await;
    assert_eq!(low, "intrinsic gas too low: have 20000, want 21000");
    assert_eq!(
        refused(Send {
            nonce: 1,
            chain_id: 1,
            ..Default::default()
        })
        .await,
        "invalid chain id for signer"
    );
    let garbage = node
        .error("eth_sendRawTransaction", json!(["0x02ff"]))
        .await;
    assert!(
        garbage["message"]
            .as_str()
            .unwrap()
            .starts_with("failed to decode signed transaction")
    );
    assert_eq!(node.number("eth_blockNumber", json!([])).await, 1);
}

#[tokio::test]
async fn a_reverting_transaction_is_mined_with_status_0_and_its_fee() {
    let node = serve(options()).await;
    let reverter: Address = node.deploy(0, 0, REVERTER).await.parse().unwrap();
    let hash = node
        .send(
            &Send {
                nonce: 1,
                to: Some(reverter),
                ..Default::default()
            }
            .sign(),
        )
        .await;
    let receipt = node.receipt(&hash).await;
    assert_eq!(
        (&receipt["status"], &receipt["logs"]),
        (&json!("0x0"), &json!([]))
    );
    assert_eq!(
        node.number(
            "eth_getTransactionCount",
            json!([ACCOUNTS[0].address, "latest"])
        )
        .await,
        2
    );
}

#[tokio::test]
async fn calls_and_estimates_carry_revert_data_under_code_3() {
    let node = serve(options()).await;
    let reverter = node.deploy(0, 0, REVERTER).await;
    for method in ["eth_call", "eth_estimateGas"] {
        let error = node
            .error(method, json!([{"to": reverter}, "latest"]))
            .await;
        assert_eq!(
            error,
            json!({"code": 3, "message": "execution reverted", "data": "0xdeadbeef"}),
            "{method}"
        );
    }
    let poor = json!({"from": Address::repeat_byte(0x55), "to": reverter, "value": "0x1"});
    let error = node.error("eth_estimateGas", json!([poor])).await;
    assert!(
        error["message"]
            .as_str()
            .unwrap()
            .starts_with("insufficient funds"),
        "{error}"
    );
    let overridden = json!([{"to": reverter}, "latest", {reverter.as_str(): {"balance": "0x1"}}]);
    assert_eq!(node.error("eth_call", overridden).await["code"], -32602);
}

#[tokio::test]
async fn an_estimate_is_enough_and_one_gas_less_than_used_is_not() {
    let node = serve(options()).await;
    assert_eq!(
        node.number(
            "eth_estimateGas",
            json!([{"to": ACCOUNTS[1].address, "value": "0x1", "from": ACCOUNTS[0].address}])
        )
        .await,
        21_000
    );
    let data = init_code(COUNTER);
    let deployment = json!([{"from": ACCOUNTS[0].address, "data": data}]);
    let gas_limit = node.number("eth_estimateGas", deployment).await;
    let hash = node
        .send(
            &Send {
                to: None,
                data,
                gas_limit,
                ..Default::default()
            }
            .sign(),
        )
        .await;
    let receipt = node.receipt(&hash).await;
    assert_eq!(receipt["status"], "0x1");

    let counter = receipt["contractAddress"].as_str().unwrap();
    let gas_limit = node
        .number("eth_estimateGas", json!([{"to": counter, "input": "0x"}]))
        .await;
    let to = Some(counter.parse().unwrap());
    let hash = node
        .send(
            &Send {
                nonce: 1,
                to,
                gas_limit,
                ..Default::default()
            }
            .sign(),
        )
        .await;
    let receipt = node.receipt(&hash).await;
    assert_eq!(receipt["status"], "0x1");
    let used = u64::from_str_radix(&receipt["gasUsed"].as_str().unwrap()[2..], 16).unwrap();
    // Room for what other transactions change before the block, and no more of it than other nodes leave.
    assert!(
        gas_limit > used && gas_limit <= used + used / 66,
        "{gas_limit} for {used}"
    );
    let error = node
        .error("eth_estimateGas", json!([{"to": counter, "gas": "0x6000"}]))
        .await;
    assert_eq!(
        error["message"],
        "out of gas: gas required exceeds allowance (24576)"
    );
}

#[tokio::test]
async fn contract_state_is_readable() {
    let node = serve(options()).await;
    let counter = node.deploy(0, 0, COUNTER).await;
    let to = Some(counter.parse().unwrap());
    let hash = node
        .send(
            &Send {
                nonce: 1,
                to,
                ..Default::default()
            }
            .sign(),
        )
        .await;
    let log = &node.receipt(&hash).await["logs"][0];
    assert_eq!(
        (&log["topics"], &log["data"]),
        (&json!([word(0x2a)]), &json!(word(1)))
    );
    assert_eq!(
        node.call("eth_getStorageAt", json!([counter, "0x0", "latest"]))
            .await,
        word(1)
    );
    assert_eq!(
        node.call("eth_call", json!([{"to": counter}, "latest"]))
            .await,
        word(2)
    );
    assert_eq!(
        node.call("eth_getStorageAt", json!([counter, "0x0", "latest"]))
            .await,
        word(1)
    );
    let code = node.call("eth_getCode", json!([counter, "latest"])).await;
    assert_eq!(code, json!(alloy_primitives::Bytes::from_static(COUNTER)));
    assert_eq!(
        node.call("eth_getCode", json!([counter, "0x0"])).await,
        "0x"
    );
}

#[tokio::test]
async fn a_call_sees_the_time_of_the_next_block() {
    let node = serve(options()).await;
    let clock = node.deploy(0, 0, CLOCK).await;
    let before = node.chain.timestamp();
    assert_eq!(
        node.call("eth_call", json!([{"to": clock}])).await,
        word(before)
    );
    node.call("evm_increaseTime", json!([86_400])).await;
    assert_eq!(
        node.call("eth_call", json!([{"to": clock}, "latest"]))
            .await,
        word(before + 86_400)
    );
}

/// The other `s` of a signature recovers the same sender, and is none on Ethereum (EIP-2).
#[tokio::test]
async fn the_larger_s_of_a_signature_is_refused() {
    let node = serve(options()).await;
    let raw = Send {
        kind: Kind::DynamicFee,
        ..Default::default()
    }
    .sign();
    let signed = TxEnvelope::decode_2718(&mut raw.as_ref()).unwrap();
    let TxEnvelope::Eip1559(signed) = signed else {
        panic!("{signed:?}")
    };
    let order = SECP256K1N_HALF * U256::from(2) + U256::ONE;
    let signature = signed.signature();
    let turned = Signature::new(signature.r(), order - signature.s(), !signature.v());
    let turned = TxEnvelope::from(signed.tx().clone().into_signed(turned)).encoded_2718();
    let error = node
        .error(
            "eth_sendRawTransaction",
            json!([hex::encode_prefixed(turned)]),
        )
        .await;
    assert_eq!(error["message"], "invalid sender", "{error}");
    node.send(&raw).await;
}
