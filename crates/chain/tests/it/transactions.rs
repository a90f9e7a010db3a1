use alloy_primitives::U256;
use serde_json::json;
use zerog_chain::{
    ChainClient, ChainError, ClientOptions, ContractCall, ContractErrorKind as Kind,
    PreparedTransaction, calls, networks,
};
use zerog_devchain::accounts::ACCOUNTS;

use crate::support::{World, key, og, refused};

fn payment(world: &World, amount: u64) -> ContractCall {
    ContractCall::payment(world.address(9), U256::from(amount))
}

async fn received(world: &World) -> U256 {
    world.client(9).balance(world.address(9)).await.unwrap()
        - og(zerog_devchain::accounts::FUNDED_0G)
}

#[tokio::test]
async fn concurrent_sends_of_one_wallet_are_all_mined() {
    let world = World::start().await;
    let sends = (0..20_u64).map(|amount| {
        let client = world.client(3).clone();
        let call = payment(&world, amount + 1);
        tokio::spawn(async move { client.send(call).await })
    });
    for send in sends.collect::<Vec<_>>() {
        send.await.unwrap().unwrap();
    }
    assert_eq!(received(&world).await, U256::from(210));
    assert_eq!(world.client(3).pending_nonce().await.unwrap(), 20);
}

#[tokio::test]
async fn a_refused_call_leaves_no_gap() {
    let world = World::start().await;
    let client = world.client(3);
    assert_eq!(
        refused(client.ledger().refund(og(1)).await),
        Kind::LedgerNotExists
    );
    client.send(payment(&world, 1)).await.unwrap();
    assert_eq!(client.pending_nonce().await.unwrap(), 1);
}

/// The provider's way: store first, send afterwards, and after a crash send the same bytes again.
#[tokio::test]
async fn a_stored_transaction_is_sent_again_after_a_restart() {
    let world = World::start().await;
    let prepared = world.client(3).prepare(payment(&world, 5)).await.unwrap();
    let stored = serde_json::to_string(&prepared).unwrap();
    assert_eq!(world.client(3).receipt(prepared.hash).await.unwrap(), None);

    // The process died before it sent anything; another one takes over.
    let client = ChainClient::connect(
        &world.url,
        networks::DEVNET.addresses,
        ClientOptions::default(),
    )
    .await
    .unwrap();
    let client = client.with_wallet(key(ACCOUNTS[3].private_key));
    let restored: PreparedTransaction = serde_json::from_str(&stored).unwrap();
    assert_eq!(restored, prepared);
    client
        .resume(std::slice::from_ref(&restored))
        .await
        .unwrap();
    let next = client.prepare(payment(&world, 7)).await.unwrap();
    assert_eq!(next.nonce, restored.nonce + 1, "the stored nonce is taken");

    assert_eq!(client.broadcast(&restored).await.unwrap(), restored.hash);
    assert!(client.wait(restored.hash).await.unwrap().succeeded);
    // Sending again, before or after mining, is harmless.
    client.broadcast(&restored).await.unwrap();
    client.broadcast(&next).await.unwrap();
    client.broadcast(&next).await.unwrap();
    client.wait(next.hash).await.unwrap();
    assert_eq!(received(&world).await, U256::from(12));
}

#[tokio::test]
async fn a_lost_race_for_a_nonce_is_told() {
    let world = World::start().await;
    let prepared = world.client(3).prepare(payment(&world, 5)).await.unwrap();
    let other = ChainClient::connect(
        &world.url,
        networks::DEVNET.addresses,
        ClientOptions::default(),
    )
    .await
    .unwrap();
    let other = other.with_wallet(key(ACCOUNTS[3].private_key));
    other.send(payment(&world, 1)).await.unwrap();
    let error = world.client(3).broadcast(&prepared).await.unwrap_err();
    assert!(
        matches!(error, ChainError::NonceUsed { nonce: 0, hash } if hash == prepared.hash),
        "{error}"
    );
    // The client that lost goes on with the next free nonce.
    world.client(3).release(&prepared).await.unwrap();
    world.client(3).send(payment(&world, 2)).await.unwrap();
    assert_eq!(received(&world).await, U256::from(3));
}

#[tokio::test]
async fn a_released_nonce_is_used_again_and_a_repriced_transaction_keeps_it() {
    let world = World::start().await;
    let client = world.client(3);
    let first = client.prepare(payment(&world, 1)).await.unwrap();
    let second = client.prepare(payment(&world, 2)).await.unwrap();
    assert_eq!((first.nonce, second.nonce), (0, 1));
    client.release(&second).await.unwrap();
    let repriced = client.reprice(&first).await.unwrap();
    assert_eq!(repriced.nonce, first.nonce);
    assert!(repriced.gas_price > first.gas_price && repriced.hash != first.hash);
    client.broadcast(&repriced).await.unwrap();
    client.wait(repriced.hash).await.unwrap();
    client.send(payment(&world, 4)).await.unwrap();
    assert_eq!(received(&world).await, U256::from(5));
}

#[tokio::test]
async fn gas_price_settings_are_kept() {
    let world = World::start().await;
    let connect = async |options| {
        let client = ChainClient::connect(&world.url, networks::DEVNET.addresses, options)
            .await
            .unwrap();
        client.with_wallet(key(ACCOUNTS[3].private_key))
    };
    let fixed = connect(ClientOptions {
        gas_price: Some(3_000_000_000),
        ..ClientOptions::default()
    })
    .await;
    assert_eq!(
        fixed.prepare(payment(&world, 1)).await.unwrap().gas_price,
        3_000_000_000
    );
    let cheap = connect(ClientOptions {
        max_gas_price: Some(1),
        ..ClientOptions::default()
    })
    .await;
    let error = cheap.send(payment(&world, 1)).await.unwrap_err();
    assert!(
        matches!(error, ChainError::GasPriceAboveMaximum { maximum: 1, .. }),
        "{error}"
    );
}

#[tokio::test]
async fn an_empty_wallet_is_told_so() {
    let world = World::start().await;
    let poor = alloy_signer_local::PrivateKeySigner::from_bytes(
        &alloy_primitives::B256::repeat_byte(0x42),
    )
    .unwrap();
    let client = world.client(3).with_wallet(poor);
    let error = client.ledger().add_ledger(og(3), "").await.unwrap_err();
    assert!(
        matches!(error, ChainError::InsufficientFunds { .. }),
        "{error}"
    );
    let reader = ChainClient::connect(
        &world.url,
        networks::DEVNET.addresses,
        ClientOptions::default(),
    )
    .await
    .unwrap();
    assert!(matches!(
        reader.ledger().deposit_fund(og(1)).await.unwrap_err(),
        ChainError::NoWallet
    ));
}

/// A call that was good when it was prepared and is bad when it is mined.
#[tokio::test]
async fn a_mined_failure_names_the_contracts_reason() {
    let world = World::start().await;
    let client = world.client(3);
    let ledger = client.addresses().ledger;
    client.ledger().add_ledger(og(10), "").await.unwrap();
    let first = client
        .prepare(calls::ledger::refund(ledger, og(7)))
        .await
        .unwrap();
    let second = client
        .prepare(calls::ledger::refund(ledger, og(7)))
        .await
        .unwrap();
    client.broadcast(&first).await.unwrap();
    client.broadcast(&second).await.unwrap();
    client.wait(first.hash).await.unwrap();
    let error = client.wait(second.hash).await.unwrap_err();
    assert!(
        matches!(error, ChainError::TransactionFailed { hash, .. } if hash == second.hash),
        "{error}"
    );
    assert_eq!(
        error.contract_error().unwrap().kind,
        Kind::InsufficientBalance
    );
}

#[tokio::test]
async fn a_dead_endpoint_is_an_error_and_never_a_value() {
    let world = World::start().await;
    let options = ClientOptions {
        attempts: 2,
        ..ClientOptions::default()
    };
    let client = ChainClient::connect(&world.url, networks::DEVNET.addresses, options)
        .await
        .unwrap();
    let user = world.address(3);
    drop(world);
    let error = client.ledger().account(user).await.unwrap_err();
    assert!(
        matches!(error, ChainError::Unreachable { attempts: 2, .. }),
        "{error}"
    );
    assert!(error.is_retryable());
    let error = ChainClient::connect("ftp://x", networks::DEVNET.addresses, options)
        .await
        .unwrap_err();
    assert!(matches!(error, ChainError::InvalidRpcUrl { .. }));
}

#[tokio::test]
async fn blocks_and_balances_are_read() {
    let world = World::start().await;
    let client = world.client(0);
    let latest = client.latest_block().await.unwrap();
    assert_eq!(latest.number, client.block_number().await.unwrap());
    assert_eq!(client.block(latest.number).await.unwrap(), Some(latest));
    assert_eq!(client.block(latest.number + 1).await.unwrap(), None);
    world.advance(1_000);
    let moved = client.latest_block().await.unwrap();
    assert!(moved.timestamp >= latest.timestamp + 1_000);
    let chain_id = world
        .chain
        .request("eth_chainId", &[json!(null)][..0])
        .unwrap();
    assert_eq!(chain_id, "0x7a69");
    assert_eq!(client.chain_id(), 31_337);
}
