//! The client stack that the product uses, unmodified, against the chain.

use alloy::{
    network::TransactionBuilder,
    primitives::{U256, address},
    providers::{Provider, ProviderBuilder},
    rpc::types::{Filter, TransactionRequest},
    signers::local::PrivateKeySigner,
};
use zerog_devchain::accounts::ACCOUNTS;

use crate::support::{COUNTER, REVERTER, init_code, options, serve};

#[tokio::test]
async fn alloy_fills_sends_waits_and_reads() {
    let node = serve(options()).await;
    let signer = PrivateKeySigner::from_bytes(&ACCOUNTS[2].private_key).unwrap();
    let provider = ProviderBuilder::new()
        .wallet(signer)
        .connect_http(node.server.url().parse().unwrap());
    assert_eq!(provider.get_chain_id().await.unwrap(), 31_337);

    let deployment = TransactionRequest::default().with_deploy_code(init_code(COUNTER));
    let receipt = provider
        .send_transaction(deployment)
        .await
        .unwrap()
        .get_receipt()
        .await
        .unwrap();
    let counter = receipt.contract_address.unwrap();
    assert_eq!(counter, ACCOUNTS[2].address.create(0));
    for _ in 0..3 {
        let request = TransactionRequest::default().with_to(counter);
        assert!(
            provider
                .send_transaction(request)
                .await
                .unwrap()
                .get_receipt()
                .await
                .unwrap()
                .status()
        );
    }
    let logs = provider
        .get_logs(&Filter::new().address(counter).from_block(0))
        .await
        .unwrap();
    assert_eq!(logs.len(), 3);
    assert_eq!(
        provider.get_storage_at(counter, U256::ZERO).await.unwrap(),
        U256::from(3)
    );
    let block = provider.get_block(4.into()).full().await.unwrap().unwrap();
    assert_eq!(block.transactions.len(), 1);
    assert_eq!(
        block.header.hash,
        block.header.inner.hash_slow(),
        "the hash is the header's"
    );
}

#[tokio::test]
async fn alloy_sees_revert_data_and_refusals() {
    let node = serve(options()).await;
    let reverter = node.deploy(0, 0, REVERTER).await.parse().unwrap();
    let provider = ProviderBuilder::new().connect_http(node.server.url().parse().unwrap());
    let error = provider
        .call(TransactionRequest::default().with_to(reverter))
        .await
        .unwrap_err();
    assert_eq!(
        error
            .as_error_resp()
            .unwrap()
            .as_revert_data()
            .unwrap()
            .as_ref(),
        [0xde, 0xad, 0xbe, 0xef]
    );

    let poor = PrivateKeySigner::from_bytes(&alloy::primitives::B256::repeat_byte(3)).unwrap();
    let provider = ProviderBuilder::new()
        .wallet(poor)
        .connect_http(node.server.url().parse().unwrap());
    let request = TransactionRequest::default()
        .with_to(address!("0000000000000000000000000000000000000001"))
        .with_value(U256::from(1));
    let error = provider.send_transaction(request).await.unwrap_err();
    assert!(
        error
            .as_error_resp()
            .unwrap()
            .message
            .starts_with("insufficient funds")
    );
}
