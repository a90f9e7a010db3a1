use alloy_primitives::{U256, hex};
use zerog_chain::{
    ContractErrorKind as Kind, calls,
    inference::{Settlement, SettlementStatus as Status},
};

use crate::support::{
    INFERENCE, OWNER, PROVIDER, TEE, USER, World, inference_digest, inference_service, og, refusal,
    refused, sign,
};

/// Published settlement vector: signature, logs and balance.
#[tokio::test]
async fn the_published_settlement_vector_is_accepted() {
    let world = World::funded().await;
    let inference = world.client(PROVIDER).inference();
    let item = Settlement {
        total_fee: U256::from(123_456_789_000_000_000_u64),
        ..world.inference_item(PROVIDER, USER, 17_650_000_000_000_000, U256::ZERO, TEE)
    };
    let signature = hex!(
        "facd42e721ff264ef5e1bd0abef65e42bc375f5498f3b0bb685388aa834ceae14a41507aa45430c25a5b7f3e7093f709a27d0fc333ee4cff45ed60fd4649023c1c"
    );
    let malleated = hex!(
        "facd42e721ff264ef5e1bd0abef65e42bc375f5498f3b0bb685388aa834ceae1b5beaf855babcf3da5a480c18f6c08f51831cd237b5a533c79e4fd8f89ed3f051b"
    );
    assert_eq!(
        inference_digest(&item, inference.address()),
        hex!("36089921072ef10d4a2d8adbc3d5415d8d20e9c0703d7276da917a73ee77ca0a")
    );
    let item = Settlement {
        signature: sign(TEE, inference_digest(&item, inference.address())),
        ..item
    };
    assert_eq!(item.signature.as_ref(), signature);
    let call =
        calls::inference::settle_fees_with_tee(inference.address(), std::slice::from_ref(&item));
    assert_eq!(
        hex::encode(&call.data),
        "8be74119000000000000000000000000000000000000000000000000000000000000002000000000000000000000000000000000000000000000000000000000000000010000000000000000000000000000000000000000000000000000000000000020000000000000000000000000f39fd6e51aad88f6f4ce6ab8827279cfffb922660000000000000000000000003c44cdddb6a900fa2b585dd299e03d12fa4293bc00000000000000000000000000000000000000000000000001b69b4ba57492007326bc0386c144375c6ec62d13ff8bbaad70c3bab31ecd667c3f86c12544e28d000000000000000000000000000000000000000000000000003eb494dc49200000000000000000000000000000000000000000000000000000000000000000c00000000000000000000000000000000000000000000000000000000000000041facd42e721ff264ef5e1bd0abef65e42bc375f5498f3b0bb685388aa834ceae14a41507aa45430c25a5b7f3e7093f709a27d0fc333ee4cff45ed60fd4649023c1c00000000000000000000000000000000000000000000000000000000000000"
    );

    let bad = Settlement {
        signature: malleated.into(),
        ..item.clone()
    };
    let (results, _) = inference.settle_fees_with_tee(&[bad]).await.unwrap();
    assert_eq!(results[0].status, Status::InvalidSignature);
    let (results, receipt) = inference.settle_fees_with_tee(&[item]).await.unwrap();
    assert_eq!(
        (results[0].status, results[0].unsettled_amount),
        (Status::Success, U256::ZERO)
    );
    let data: Vec<String> = receipt
        .logs
        .iter()
        .map(|log| hex::encode(&log.data))
        .collect();
    assert_eq!(data, [
        "00000000000000000000000000000000000000000000000001b69b4ba5749200".to_owned(),
        "0000000000000000000000000000000000000000000000001a0ad21ba9536e000000000000000000000000000000000000000000000000000000000000000000".to_owned(),
        "0".repeat(128),
    ]);
    let account = inference
        .account(world.address(USER), world.address(PROVIDER))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(account.balance, U256::from(1_876_543_211_000_000_000_u64));
}

/// The vector of the other published document: account 1 is the provider, account 0 the signer.
#[tokio::test]
async fn the_published_vector_of_one_request_is_accepted() {
    let world = World::start().await;
    world.register(1, 0).await;
    let ledger = world.client(2).ledger();
    ledger.add_ledger(og(3), "").await.unwrap();
    ledger
        .transfer_fund(world.address(1), INFERENCE, og(1))
        .await
        .unwrap();
    let item = Settlement {
        user: world.address(2),
        provider: world.address(1),
        total_fee: U256::from(1_000_000),
        requests_hash: hex!("5798117838aed63bc62c9dd091b798e99eb52e2dfbdbc9c064484cef024522bf").into(),
        nonce: U256::from(17_500_000_000_000_000_u64),
        signature: hex!("1d8b99f71dd8e456404d975bbad423d52b39aab5c265138205ad67b868695b9a7cdc9ab954c386d5a2aa9a57e2ea191163418c2fc60f289fe77749205885ba8e1c").into(),
    };
    let contract = world.client(1).inference().address();
    assert_eq!(
        inference_digest(&item, contract),
        hex!("d500eaa9f5eb1fabcb63f63171b10c6384a61445a22e6f9710d5c30667ac59f0")
    );
    let (results, _) = world
        .client(1)
        .inference()
        .settle_fees_with_tee(&[item])
        .await
        .unwrap();
    assert_eq!(results[0].status, Status::Success);
}

/// Published status matrix of one batch of seven items.
#[tokio::test]
async fn each_item_of_a_batch_gets_its_own_status() {
    let world = World::start().await;
    world.register(PROVIDER, TEE).await;
    let (a, b, z) = (3, 4, 5);
    for (user, amount) in [(a, 5), (b, 2)] {
        let ledger = world.client(user).ledger();
        ledger.add_ledger(og(10), "").await.unwrap();
        ledger
            .transfer_fund(world.address(PROVIDER), INFERENCE, og(amount))
            .await
            .unwrap();
    }
    let item = |user, nonce, fee, tee| world.inference_item(PROVIDER, user, nonce, og(fee), tee);
    let mut other_provider = item(a, 2, 1, TEE);
    other_provider.provider = world.address(9);
    let mut unsigned = item(a, 2, 1, TEE);
    unsigned.signature = Default::default();
    let batch = [
        item(a, 1, 1, TEE),
        item(b, 1, 3, TEE),
        item(z, 1, 1, TEE),
        item(a, 1, 1, TEE),
        item(a, 2, 1, 7),
        other_provider,
        unsigned,
    ];
    let inference = world.client(PROVIDER).inference();
    let preview = inference
        .preview_settlement(world.address(PROVIDER), &batch)
        .await
        .unwrap();
    // The fourth item is judged against the unchanged state, in which its nonce is still good.
    assert_eq!(preview.partial, [(world.address(b), og(1))]);
    let reasons: Vec<Status> = preview.failed.iter().map(|(_, status)| *status).collect();
    assert_eq!(
        reasons,
        [
            Status::InvalidSignature,
            Status::InvalidSignature,
            Status::ProviderMismatch,
            Status::InvalidSignature
        ]
    );

    let before = world
        .client(PROVIDER)
        .balance(world.address(PROVIDER))
        .await
        .unwrap();
    let (results, receipt) = inference.settle_fees_with_tee(&batch).await.unwrap();
    let statuses: Vec<u8> = results.iter().map(|result| result.status.code()).collect();
    assert_eq!(statuses, [0, 1, 5, 4, 5, 2, 5]);
    let unsettled: Vec<U256> = results
        .iter()
        .map(|result| result.unsettled_amount)
        .collect();
    assert_eq!(unsettled, [og(0), og(1), og(1), og(1), og(1), og(1), og(1)]);
    let after = world
        .client(PROVIDER)
        .balance(world.address(PROVIDER))
        .await
        .unwrap();
    assert_eq!(after + receipt.gas_cost(), before + og(3));
    assert_eq!(world.ledger(b).await, (og(8), og(8)));
}

#[tokio::test]
async fn batches_have_bounds_and_need_both_acknowledgements() {
    let world = World::funded().await;
    let inference = world.client(PROVIDER).inference();
    assert_eq!(
        refused(inference.settle_fees_with_tee(&[]).await),
        Kind::NoSettlementsProvided
    );
    let item = world.inference_item(PROVIDER, USER, 1, og(1), TEE);
    let many = vec![item.clone(); 51];
    assert_eq!(
        refused(inference.settle_fees_with_tee(&many).await),
        Kind::TooManySettlements
    );
    assert_eq!(
        refused(
            inference
                .preview_settlement(world.address(PROVIDER), &many)
                .await
        ),
        Kind::TooManySettlements
    );
    let owner = world.client(OWNER).inference();
    owner
        .revoke_tee_signer_acknowledgement(world.address(PROVIDER))
        .await
        .unwrap();
    let (results, _) = inference
        .settle_fees_with_tee(std::slice::from_ref(&item))
        .await
        .unwrap();
    assert_eq!(results[0].status, Status::NoTeeSigner);
    owner
        .acknowledge_tee_signer_by_owner(world.address(PROVIDER))
        .await
        .unwrap();
    // A fee of zero uses the nonce and pays nothing.
    let free = world.inference_item(PROVIDER, USER, 1, U256::ZERO, TEE);
    let (results, receipt) = inference.settle_fees_with_tee(&[free]).await.unwrap();
    assert_eq!(
        (results[0].status, receipt.logs.len()),
        (Status::Success, 1)
    );
    let (results, _) = inference.settle_fees_with_tee(&[item]).await.unwrap();
    assert_eq!(results[0].status, Status::InvalidNonce);
    // Without a service the provider cannot settle; the stake comes back at once.
    inference.remove_service().await.unwrap();
    let item = world.inference_item(PROVIDER, USER, 2, og(1), TEE);
    let (results, _) = inference.settle_fees_with_tee(&[item]).await.unwrap();
    assert_eq!(results[0].status, Status::ProviderMismatch);
    assert_eq!(
        refused(inference.remove_service().await),
        Kind::ServiceNotExist
    );
}

#[tokio::test]
async fn what_a_service_promises_needs_acceptance_again_when_it_changes() {
    let world = World::start().await;
    world.register(PROVIDER, TEE).await;
    let inference = world.client(PROVIDER).inference();
    let provider = world.address(PROVIDER);
    let mut params = inference_service(world.address(TEE));
    params.url = "http://elsewhere".to_owned();
    params.input_price = U256::from(7);
    params.output_price = U256::from(8);
    inference.add_or_update_service(&params).await.unwrap();
    let service = inference.service(provider).await.unwrap().unwrap();
    assert!(service.tee_signer_acknowledged);
    assert_eq!(
        (service.url.as_str(), service.input_price),
        ("http://elsewhere", U256::from(7))
    );

    let changes: [fn(&mut zerog_chain::inference::ServiceParams); 5] = [
        |params| params.service_type = "text-to-image".to_owned(),
        |params| params.model = "another".to_owned(),
        |params| params.verifiability = String::new(),
        |params| params.additional_info = "{\"a\":1}".to_owned(),
        |params| params.tee_signer = alloy_primitives::Address::repeat_byte(7),
    ];
    for change in changes {
        world
            .client(OWNER)
            .inference()
            .acknowledge_tee_signer_by_owner(provider)
            .await
            .unwrap();
        change(&mut params);
        inference.add_or_update_service(&params).await.unwrap();
        let service = inference.service(provider).await.unwrap().unwrap();
        assert!(!service.tee_signer_acknowledged, "{service:?}");
    }
    params.additional_info = "x".repeat(4097);
    assert_eq!(
        refused(inference.add_or_update_service(&params).await),
        Kind::AdditionalInfoTooLong
    );
    params.additional_info.clear();
    params.model = "x".repeat(257);
    assert_eq!(
        refused(inference.add_or_update_service(&params).await),
        Kind::FieldTooLong
    );
    let acknowledged = world
        .client(OWNER)
        .inference()
        .acknowledge_tee_signer_by_owner(world.address(9))
        .await;
    assert_eq!(refused(acknowledged), Kind::ServiceNotExist);
}

#[tokio::test]
async fn services_come_in_pages() {
    let world = World::start().await;
    for provider in 1..=9 {
        let inference = world.client(provider).inference();
        inference
            .add_or_update_service(&inference_service(world.address(TEE)))
            .await
            .unwrap();
    }
    world.client(3).inference().remove_service().await.unwrap();
    let services = world.client(0).inference().services().await.unwrap();
    let providers: Vec<_> = services.iter().map(|service| service.provider).collect();
    let expected: Vec<_> = [1, 2, 9, 4, 5, 6, 7, 8]
        .into_iter()
        .map(|account| world.address(account))
        .collect();
    assert_eq!(
        providers, expected,
        "the last one takes the place of the removed one"
    );

    let contract = world.client(0).inference().address();
    let page =
        |offset: u64, limit: u64| zerog_chain::bindings::InferenceServing::getAllServicesCall {
            offset: U256::from(offset),
            limit: U256::from(limit),
        };
    let answer = world
        .client(0)
        .call("InferenceServing", contract, None, &page(6, 5))
        .await
        .unwrap();
    assert_eq!((answer.services.len(), answer.total), (2, U256::from(8)));
    let answer = world
        .client(0)
        .call("InferenceServing", contract, None, &page(8, 0))
        .await
        .unwrap();
    assert_eq!((answer.services.len(), answer.total), (0, U256::from(8)));
    let (kind, details) = refusal(
        world
            .client(0)
            .call("InferenceServing", contract, None, &page(0, 51))
            .await,
    );
    assert_eq!(kind, Kind::LimitTooLarge);
    assert!(details.contains("max: 50"), "{details}");
}

#[tokio::test]
async fn session_tokens_are_revoked_one_by_one_and_all_at_once() {
    let world = World::funded().await;
    let (user, provider) = (world.address(USER), world.address(PROVIDER));
    let inference = world.client(USER).inference();
    let revoked = async |id: u8| {
        inference
            .is_token_revoked(user, provider, id)
            .await
            .unwrap()
    };
    assert_eq!(revoked(3).await, Some(false));
    inference.revoke_token(provider, 3).await.unwrap();
    inference
        .revoke_tokens(provider, &[0, 255, 7])
        .await
        .unwrap();
    for id in [0, 3, 7, 255] {
        assert_eq!(revoked(id).await, Some(true));
    }
    let account = inference.account(user, provider).await.unwrap().unwrap();
    assert!(account.is_token_revoked(255) && !account.is_token_revoked(254));
    assert_eq!(account.generation, U256::ZERO);
    inference.revoke_all_tokens(provider).await.unwrap();
    let account = inference.account(user, provider).await.unwrap().unwrap();
    assert_eq!(
        (account.generation, account.revoked_bitmap),
        (U256::from(1), U256::ZERO)
    );
    assert_eq!(revoked(3).await, Some(false));

    let stranger = world.client(5).inference();
    assert_eq!(
        refused(stranger.revoke_token(provider, 1).await),
        Kind::AccountNotExists
    );
    assert_eq!(
        refused(stranger.revoke_all_tokens(provider).await),
        Kind::AccountNotExists
    );
    assert_eq!(
        stranger
            .is_token_revoked(world.address(5), provider, 1)
            .await
            .unwrap(),
        None
    );
    assert_eq!(
        refused(inference.revoke_tokens(provider, &[1; 257]).await),
        Kind::FieldTooLong
    );
}

/// The batch view takes the provider from the caller; users without a sub-account are all zero.
#[tokio::test]
async fn a_provider_asks_for_many_users_at_once() {
    let world = World::funded().await;
    let contract = world.client(PROVIDER).inference().address();
    let call = zerog_chain::bindings::InferenceServing::getBatchAccountsByUsersCall {
        users: vec![world.address(USER), world.address(9)],
    };
    let from = Some(world.address(PROVIDER));
    let accounts = world
        .client(PROVIDER)
        .call("InferenceServing", contract, from, &call)
        .await
        .unwrap();
    assert_eq!(accounts[0].balance, og(2));
    assert!(accounts[1].user.is_zero() && !accounts[1].acknowledged);
    assert_eq!(
        world
            .client(PROVIDER)
            .inference()
            .accounts_by_provider(world.address(PROVIDER))
            .await
            .unwrap()
            .len(),
        1
    );
    assert_eq!(
        world
            .client(PROVIDER)
            .inference()
            .pending_refund(world.address(9), world.address(PROVIDER))
            .await
            .unwrap(),
        None
    );
}
