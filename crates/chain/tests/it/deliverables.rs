use alloy_primitives::{Address, Bytes, U256, hex, keccak256};
use alloy_sol_types::{SolCall, SolConstructor, SolValue};
use zerog_chain::{
    Addresses, ContractCall, ContractErrorKind as Kind,
    bindings::{BeaconProxy, FineTuningServing, LedgerManager, UpgradeableBeacon},
    calls,
    fine_tuning::{DeliverableState, Settlement},
};

use crate::support::{
    FINE_TUNING, LOCK_TIME_S, OWNER, PROVIDER, TEE, USER, World, fine_tuning_digest, milli, og,
    refusal, refused, root, sign,
};

const PUBLISHED_ID: &str = "3f2b1c9e-8a54-4d0f-9f0e-2b7c1d5e6a90";

/// Published vector, acknowledged: calldata, signature, logs and the stored record.
#[tokio::test]
async fn the_published_settlement_vector_is_accepted() {
    let world = World::funded().await;
    let (user, provider) = (world.address(USER), world.address(PROVIDER));
    let model_root = Bytes::from(keccak256("model-root").to_vec());
    let settlement = Settlement {
        id: PUBLISHED_ID.to_owned(),
        encrypted_secret: (1..=32).collect::<Vec<u8>>().into(),
        model_root_hash: model_root.clone(),
        nonce: U256::from(17_600_000_000_000_040_u64),
        signature: hex!("6376ebe443a978c2fd39f85eee3b0e9e859e0c23028ee1abfa4571ee87d0fc5d3f1224429ee8ba649165172641b3379410f61d82fbe1226f529d1a87a06451d51c").into(),
        task_fee: milli(250),
        user,
    };
    let contract = world.client(PROVIDER).fine_tuning().address();
    assert_eq!(
        fine_tuning_digest(&settlement, contract),
        hex!("15718eace8279aa0286f731049463b8ac9d1556164a84b06a5986c50f76667ff")
    );
    assert_eq!(
        sign(TEE, fine_tuning_digest(&settlement, contract)),
        settlement.signature
    );
    let call = calls::fine_tuning::settle_fees(contract, &settlement);
    assert_eq!(hex::encode(&call.data), PUBLISHED_SETTLEMENT);

    let fine_tuning = world.client(PROVIDER).fine_tuning();
    fine_tuning
        .add_deliverable(user, PUBLISHED_ID, model_root)
        .await
        .unwrap();
    world
        .client(USER)
        .fine_tuning()
        .acknowledge_deliverable(provider, PUBLISHED_ID)
        .await
        .unwrap();
    let receipt = fine_tuning.settle_fees(&settlement).await.unwrap();

    let data: Vec<String> = receipt
        .logs
        .iter()
        .map(|log| hex::encode(&log.data))
        .collect();
    assert_eq!(
        data,
        [
            "000000000000000000000000000000000000000000000000000000000000008000000000000000000000000000000000000000000000000003782dace9d900000000000000000000000000000000000000000000000000000000000000000001000000000000000000000000000000000000000000000000003e871b540c0028000000000000000000000000000000000000000000000000000000000000002433663262316339652d386135342d346430662d396630652d32623763316435653661393000000000000000000000000000000000000000000000000000000000",
            "00000000000000000000000000000000000000000000000003782dace9d90000",
            "00000000000000000000000000000000000000000000000018493fba64ef00000000000000000000000000000000000000000000000000000000000000000000",
        ]
    );
    assert_eq!(
        receipt.logs[1].address,
        world.client(USER).addresses().ledger
    );

    let account = fine_tuning.account(user, provider).await.unwrap().unwrap();
    assert_eq!(account.balance, milli(1_750));
    assert_eq!(account.nonce, settlement.nonce);
    let delivered = fine_tuning
        .deliverable(user, provider, PUBLISHED_ID)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(delivered.encrypted_secret, settlement.encrypted_secret);
    assert_eq!(delivered.state(), DeliverableState::Settled);
    assert_eq!(account.deliverables, std::slice::from_ref(&delivered));

    // The answer's bytes, with the published time in place of ours.
    let answer = FineTuningServing::Deliverable {
        id: delivered.id,
        modelRootHash: delivered.model_root_hash,
        encryptedSecret: delivered.encrypted_secret,
        acknowledged: delivered.acknowledged,
        timestamp: alloy_primitives::Uint::from(0x6b01_f52a_u64),
        settled: delivered.settled,
    };
    assert_eq!(hex::encode(answer.abi_encode()), PUBLISHED_DELIVERABLE);
}

const PUBLISHED_DELIVERABLE: &str = "000000000000000000000000000000000000000000000000000000000000002000000000000000000000000000000000000000000000000000000000000000c0000000000000000000000000000000000000000000000000000000000000012000000000000000000000000000000000000000000000000000000000000001600000000000000000000000000000000000000000000000000000000000000001000000000000000000000000000000000000000000000000000000006b01f52a0000000000000000000000000000000000000000000000000000000000000001000000000000000000000000000000000000000000000000000000000000002433663262316339652d386135342d346430662d396630652d32623763316435653661393000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000002044a56b126c2f006b1dd376d118236897abc703751abb78eaac730e554dd49f7700000000000000000000000000000000000000000000000000000000000000200102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20";

const PUBLISHED_SETTLEMENT: &str = "3d60456a000000000000000000000000000000000000000000000000000000000000002000000000000000000000000000000000000000000000000000000000000000e000000000000000000000000000000000000000000000000000000000000001400000000000000000000000000000000000000000000000000000000000000180000000000000000000000000000000000000000000000000003e871b540c002800000000000000000000000000000000000000000000000000000000000001c000000000000000000000000000000000000000000000000003782dace9d90000000000000000000000000000f39fd6e51aad88f6f4ce6ab8827279cfffb92266000000000000000000000000000000000000000000000000000000000000002433663262316339652d386135342d346430662d396630652d3262376331643565366139300000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000200102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20000000000000000000000000000000000000000000000000000000000000002044a56b126c2f006b1dd376d118236897abc703751abb78eaac730e554dd49f7700000000000000000000000000000000000000000000000000000000000000416376ebe443a978c2fd39f85eee3b0e9e859e0c23028ee1abfa4571ee87d0fc5d3f1224429ee8ba649165172641b3379410f61d82fbe1226f529d1a87a06451d51c00000000000000000000000000000000000000000000000000000000000000";

/// Published vector, not acknowledged. The window of P-3 holds it back until half the lock time
/// has passed.
#[tokio::test]
async fn the_published_penalty_vector_is_accepted_after_the_window() {
    let world = World::funded().await;
    let (user, provider) = (world.address(USER), world.address(PROVIDER));
    let model_root = Bytes::from(keccak256("model-root").to_vec());
    let settlement = Settlement {
        id: PUBLISHED_ID.to_owned(),
        encrypted_secret: Bytes::new(),
        model_root_hash: model_root.clone(),
        nonce: U256::from(17_600_000_000_000_040_u64),
        signature: hex!("06c83320ad728f67c07b0c2030f89eac26e8e0d8a349b55ac475e99f4bf91f3023645ae4f5366dc0e048006d41d2d1425110b5c74464199d367b4696742ec6c71b").into(),
        task_fee: milli(250),
        user,
    };
    let fine_tuning = world.client(PROVIDER).fine_tuning();
    let call = calls::fine_tuning::settle_fees(fine_tuning.address(), &settlement);
    assert_eq!(
        keccak256(&call.data),
        hex!("b025da921d78d7772c2b3a9c6178193a1fa4955c63b15f213a988f9cc77596db")
    );

    fine_tuning
        .add_deliverable(user, PUBLISHED_ID, model_root)
        .await
        .unwrap();
    let delivered_at = fine_tuning
        .deliverable(user, provider, PUBLISHED_ID)
        .await
        .unwrap()
        .unwrap()
        .timestamp;
    let deadline = fine_tuning
        .acknowledge_deadline(user, provider, PUBLISHED_ID)
        .await
        .unwrap();
    assert_eq!(deadline, Some(delivered_at + LOCK_TIME_S / 2));
    let (kind, details) = refusal(fine_tuning.settle_fees(&settlement).await);
    assert_eq!(kind, Kind::AckWindowOpen);
    assert!(
        details.contains(&format!("until: {}", deadline.unwrap())),
        "{details}"
    );

    world.advance(LOCK_TIME_S / 2 - 2);
    assert_eq!(
        refused(fine_tuning.settle_fees(&settlement).await),
        Kind::AckWindowOpen
    );
    world.advance(2);
    fine_tuning.settle_fees(&settlement).await.unwrap();
    assert_eq!(world.sub_account(USER).await.0, milli(1_925));
    let delivered = fine_tuning
        .deliverable(user, provider, PUBLISHED_ID)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(delivered.state(), DeliverableState::SettledWithPenalty);
    let late = world
        .client(USER)
        .fine_tuning()
        .acknowledge_deliverable(provider, PUBLISHED_ID)
        .await;
    assert_eq!(refused(late), Kind::CannotAcknowledgeSettledDeliverable);
}

/// The vectors of the other published document are made for a contract at the first address of the
/// deployer. Everything else comes from account 3, so that account 0 can create exactly that.
#[tokio::test]
async fn settlement_vectors_for_another_contract_address_are_accepted() {
    let deployer = zerog_devchain::accounts::ACCOUNTS[3].address;
    let contract = zerog_devchain::accounts::ACCOUNTS[0].address.create(0);
    let addresses = Addresses {
        ledger: deployer.create(2),
        fine_tuning: contract,
        inference: Address::ZERO,
        flow: None,
    };
    let world = World::empty(addresses).await;
    let create = |code: &Bytes, arguments: Vec<u8>| ContractCall {
        name: "create",
        to: None,
        value: U256::ZERO,
        data: [code.as_ref(), &arguments].concat().into(),
    };
    let beacon = |implementation| {
        UpgradeableBeacon::constructorCall {
            implementation_: implementation,
        }
        .abi_encode()
    };
    let proxy = |beacon| {
        BeaconProxy::constructorCall {
            beacon,
            data: Bytes::new(),
        }
        .abi_encode()
    };
    for call in [
        create(&LedgerManager::BYTECODE, Vec::new()),
        create(&UpgradeableBeacon::BYTECODE, beacon(deployer.create(0))),
        create(&BeaconProxy::BYTECODE, proxy(deployer.create(1))),
        create(&FineTuningServing::BYTECODE, Vec::new()),
        create(&UpgradeableBeacon::BYTECODE, beacon(deployer.create(3))),
        calls::ledger::initialize(addresses.ledger, world.address(OWNER)),
    ] {
        world.send(3, call).await.unwrap();
    }
    world
        .send(0, create(&BeaconProxy::BYTECODE, proxy(deployer.create(4))))
        .await
        .unwrap();
    for call in [
        calls::fine_tuning::initialize(
            contract,
            LOCK_TIME_S,
            addresses.ledger,
            world.address(OWNER),
            30,
        ),
        calls::ledger::register_service(addresses.ledger, "fine-tuning", "v1.0", contract, ""),
    ] {
        world.send(OWNER, call).await.unwrap();
    }
    let fine_tuning = world.client(PROVIDER).fine_tuning();
    let service = crate::support::fine_tuning_service(world.address(TEE));
    fine_tuning.add_or_update_service(&service).await.unwrap();
    world
        .client(OWNER)
        .fine_tuning()
        .acknowledge_tee_signer_by_owner(world.address(PROVIDER))
        .await
        .unwrap();
    let ledger = world.client(USER).ledger();
    ledger.add_ledger(og(3), "").await.unwrap();
    ledger
        .transfer_fund(world.address(PROVIDER), FINE_TUNING, og(2))
        .await
        .unwrap();

    let mut settlement = Settlement {
        id: "6b607314-88b0-4fef-91e7-43227a54de57".to_owned(),
        encrypted_secret: hex!("044f355bdcb7cc0af728ef3cceb9615d90684bb5b2ca5f859ab0f0b704075871aa385b6b1b8ead809ca67454d9683fcf2ba03456d6fe2c4abe2b07f0fbdbb2f1c1a0a1a2a3a4a5a6a7a8a9aaabacadaeaf627c38906a488dfd3a5c74dff79660fab5e28b620d4144740f8fb2963294548161f2b4714f6af8d09fadedeec9618ad7").into(),
        model_root_hash: hex!("fc8d10138665075cded4670f5be1bf375357da6574d0ed8a45320f4abb55d84c").into(),
        nonce: U256::from(17_600_000_000_000_040_u64),
        signature: hex!("496de32497d05ee9e0b7cf43f2f929d77b344d42ca5a9c41e8773d68339843c059829b079a27365a5fa34b0f6a01744d31210137a08e32b5b8abb3bc0fb2a84a1b").into(),
        task_fee: milli(25),
        user: world.address(USER),
    };
    fine_tuning
        .add_deliverable(
            settlement.user,
            &settlement.id,
            settlement.model_root_hash.clone(),
        )
        .await
        .unwrap();
    let provider = world.address(PROVIDER);
    world
        .client(USER)
        .fine_tuning()
        .acknowledge_deliverable(provider, &settlement.id)
        .await
        .unwrap();
    fine_tuning.settle_fees(&settlement).await.unwrap();
    assert_eq!(world.sub_account(USER).await.0, milli(1_975));

    // The second vector has the same nonce: only its signature can be checked, through the digest.
    settlement.encrypted_secret = Bytes::new();
    let signature = hex!(
        "cc87b6cd7e43d5a6a60e3e12fb195a7115d261627afe64dca8cf9d80983a7a7348a14ee381477c5688ece1a799e63566216f2a6d8bb9e8c36636ecfbe1d047051c"
    );
    assert_eq!(
        sign(TEE, fine_tuning_digest(&settlement, contract)),
        Bytes::from(signature)
    );
}

/// Published order of the checks of `settleFees`.
#[tokio::test]
async fn a_settlement_is_refused_for_the_first_reason_that_applies() {
    let world = World::start().await;
    let (user, provider) = (world.address(USER), world.address(PROVIDER));
    let fine_tuning = world.client(PROVIDER).fine_tuning();
    let mut claim = world.settlement(USER, "t1", b"key", 10, og(3));
    let invalid = |reason: &str| {
        (
            Kind::InvalidVerifierInput,
            format!("InvalidVerifierInput {{ reason: {reason:?} }}"),
        )
    };

    assert_eq!(
        refused(fine_tuning.settle_fees(&claim).await),
        Kind::AccountNotExists
    );
    let ledger = world.client(USER).ledger();
    ledger.add_ledger(og(20), "").await.unwrap();
    ledger
        .transfer_fund(provider, FINE_TUNING, og(2))
        .await
        .unwrap();
    assert_eq!(
        refused(fine_tuning.settle_fees(&claim).await),
        Kind::ServiceNotExist
    );
    let service = crate::support::fine_tuning_service(world.address(TEE));
    fine_tuning.add_or_update_service(&service).await.unwrap();
    assert_eq!(
        refusal(fine_tuning.settle_fees(&claim).await),
        invalid("TEE signer not acknowledged")
    );
    world
        .client(OWNER)
        .fine_tuning()
        .acknowledge_tee_signer_by_owner(provider)
        .await
        .unwrap();
    claim.nonce = U256::ZERO;
    assert_eq!(
        refusal(fine_tuning.settle_fees(&claim).await),
        invalid("nonce should larger than the current nonce")
    );
    claim.nonce = U256::from(10);
    assert_eq!(
        refusal(fine_tuning.settle_fees(&claim).await),
        invalid("insufficient balance")
    );
    ledger
        .transfer_fund(provider, FINE_TUNING, og(2))
        .await
        .unwrap();
    assert_eq!(
        refused(fine_tuning.settle_fees(&claim).await),
        Kind::DeliverableNotExists
    );
    fine_tuning
        .add_deliverable(user, "t1", root("t1"))
        .await
        .unwrap();
    claim.model_root_hash = root("other");
    assert_eq!(
        refusal(fine_tuning.settle_fees(&claim).await),
        invalid("model root hash mismatch")
    );
    claim.model_root_hash = root("t1");
    claim.task_fee = og(2);
    assert_eq!(
        refusal(fine_tuning.settle_fees(&claim).await),
        invalid("TEE settlement validation failed")
    );
    claim.task_fee = og(3);
    assert_eq!(
        refused(fine_tuning.settle_fees(&claim).await),
        Kind::SecretShouldBeEmpty
    );
    world
        .client(USER)
        .fine_tuning()
        .acknowledge_deliverable(provider, "t1")
        .await
        .unwrap();
    let keyless = world.settlement(USER, "t1", b"", 10, og(3));
    assert_eq!(
        refused(fine_tuning.settle_fees(&keyless).await),
        Kind::SecretShouldNotBeEmpty
    );
    let large = world.settlement(USER, "t1", &[7; 1025], 10, og(3));
    assert_eq!(
        refused(fine_tuning.settle_fees(&large).await),
        Kind::FieldTooLong
    );
    fine_tuning.settle_fees(&claim).await.unwrap();
    let again = world.settlement(USER, "t1", b"key", 11, milli(1));
    assert_eq!(
        refused(fine_tuning.settle_fees(&again).await),
        Kind::DeliverableAlreadySettled
    );
}

#[tokio::test]
async fn only_a_canonical_signature_of_the_right_key_counts() {
    let world = World::funded().await;
    let (user, provider) = (world.address(USER), world.address(PROVIDER));
    let fine_tuning = world.client(PROVIDER).fine_tuning();
    fine_tuning
        .add_deliverable(user, "t1", root("t1"))
        .await
        .unwrap();
    world
        .client(USER)
        .fine_tuning()
        .acknowledge_deliverable(provider, "t1")
        .await
        .unwrap();
    let good = world.settlement(USER, "t1", b"key", 1, milli(10));
    let with = |signature: Vec<u8>| Settlement {
        signature: signature.into(),
        ..good.clone()
    };
    let bytes = good.signature.to_vec();

    let mut zero_based = bytes.clone();
    zero_based[64] -= 27;
    let order = U256::from_be_bytes(hex!(
        "fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141"
    ));
    let high_s = order - U256::from_be_slice(&bytes[32..64]);
    let flipped = if bytes[64] == 27 { 28 } else { 27 };
    let malleated = [&bytes[..32], &high_s.to_be_bytes::<32>(), &[flipped]].concat();
    let compact = bytes[..64].to_vec();
    let contract = fine_tuning.address();
    let other_key = sign(5, fine_tuning_digest(&good, contract)).to_vec();
    let other_contract = sign(TEE, fine_tuning_digest(&good, provider)).to_vec();
    for bad in [
        zero_based,
        malleated,
        compact,
        Vec::new(),
        other_key,
        other_contract,
    ] {
        let (kind, details) = refusal(fine_tuning.settle_fees(&with(bad)).await);
        assert_eq!(kind, Kind::InvalidVerifierInput);
        assert!(
            details.contains("TEE settlement validation failed"),
            "{details}"
        );
    }
    fine_tuning.settle_fees(&good).await.unwrap();
}

/// P-13: a sub-account that covers the penalty but not the full fee can pay the penalty.
#[tokio::test]
async fn a_penalty_needs_only_the_penalty() {
    let world = World::funded().await;
    let fine_tuning = world.client(PROVIDER).fine_tuning();
    fine_tuning
        .add_deliverable(world.address(USER), "t1", root("t1"))
        .await
        .unwrap();
    world.advance(LOCK_TIME_S / 2);
    let too_much = world.settlement(USER, "t1", b"", 1, og(7));
    assert_eq!(
        refused(fine_tuning.settle_fees(&too_much).await),
        Kind::InvalidVerifierInput
    );
    let claim = world.settlement(USER, "t1", b"", 1, og(6));
    fine_tuning.settle_fees(&claim).await.unwrap();
    assert_eq!(world.sub_account(USER).await.0, milli(200));
}

/// The serial gate, and its exits: by the user alone, by the provider alone, and by settling.
#[tokio::test]
async fn one_deliverable_of_a_pair_is_open_at_a_time() {
    let world = World::funded().await;
    let (user, provider) = (world.address(USER), world.address(PROVIDER));
    let fine_tuning = world.client(PROVIDER).fine_tuning();
    let users_side = world.client(USER).fine_tuning();
    let add = async |id: &str| fine_tuning.add_deliverable(user, id, root(id)).await;

    add("t1").await.unwrap();
    let (kind, details) = refusal(add("t2").await);
    assert_eq!(kind, Kind::PreviousDeliverableNotAcknowledged);
    assert!(details.contains("\"t1\""), "{details}");
    // The user alone.
    users_side
        .acknowledge_deliverable(provider, "t1")
        .await
        .unwrap();
    add("t2").await.unwrap();
    // The provider alone.
    assert_eq!(
        refused(add("t3").await),
        Kind::PreviousDeliverableNotAcknowledged
    );
    fine_tuning.abandon_deliverable(user, "t2").await.unwrap();
    add("t3").await.unwrap();
    // A penalty settlement, which locked the pair for ever in the first published code (P-1).
    world.advance(LOCK_TIME_S / 2);
    fine_tuning
        .settle_fees(&world.settlement(USER, "t3", b"", 1, milli(100)))
        .await
        .unwrap();
    add("t4").await.unwrap();

    let states: Vec<DeliverableState> = users_side
        .deliverables(user, provider)
        .await
        .unwrap()
        .iter()
        .map(|found| found.state())
        .collect();
    use DeliverableState::{Abandoned, Acknowledged, Delivered, SettledWithPenalty};
    assert_eq!(
        states,
        [Acknowledged, Abandoned, SettledWithPenalty, Delivered]
    );

    assert_eq!(refused(add("t4").await), Kind::DeliverableAlreadyExists);
    assert_eq!(
        refused(fine_tuning.abandon_deliverable(user, "t3").await),
        Kind::CannotAbandonSettledDeliverable
    );
    assert_eq!(
        refused(fine_tuning.abandon_deliverable(user, "t9").await),
        Kind::DeliverableNotExists
    );
    assert_eq!(
        refused(users_side.acknowledge_deliverable(provider, "t9").await),
        Kind::DeliverableNotExists
    );
    // Acknowledging twice is allowed.
    users_side
        .acknowledge_deliverable(provider, "t1")
        .await
        .unwrap();
    users_side
        .acknowledge_deliverable(provider, "t1")
        .await
        .unwrap();
}

#[tokio::test]
async fn deliverables_have_bounded_names_and_roots() {
    let world = World::funded().await;
    let user = world.address(USER);
    let fine_tuning = world.client(PROVIDER).fine_tuning();
    for id in [String::new(), "x".repeat(257)] {
        assert_eq!(
            refused(fine_tuning.add_deliverable(user, &id, root("r")).await),
            Kind::DeliverableIdInvalidLength
        );
    }
    let stranger = fine_tuning
        .add_deliverable(world.address(9), "t1", root("r"))
        .await;
    assert_eq!(refused(stranger), Kind::AccountNotExists);
    let long_root = fine_tuning
        .add_deliverable(user, "t1", vec![1; 65].into())
        .await;
    assert_eq!(refused(long_root), Kind::FieldTooLong);
    fine_tuning
        .add_deliverable(user, &"x".repeat(256), vec![1; 64].into())
        .await
        .unwrap();
}

/// Twenty records, then a ring: only a settled oldest one makes room.
#[tokio::test]
async fn the_oldest_settled_deliverable_makes_room() {
    let world = World::funded().await;
    let (user, provider) = (world.address(USER), world.address(PROVIDER));
    let fine_tuning = world.client(PROVIDER).fine_tuning();
    for number in 1..=20 {
        let id = format!("t{number}");
        fine_tuning
            .add_deliverable(user, &id, root(&id))
            .await
            .unwrap();
        world
            .client(USER)
            .fine_tuning()
            .acknowledge_deliverable(provider, &id)
            .await
            .unwrap();
    }
    let (kind, details) = refusal(fine_tuning.add_deliverable(user, "t21", root("t21")).await);
    assert_eq!(kind, Kind::CannotEvictUnsettledDeliverable);
    assert!(details.contains("\"t1\""), "{details}");
    fine_tuning
        .settle_fees(&world.settlement(USER, "t1", b"key", 1, milli(1)))
        .await
        .unwrap();
    fine_tuning
        .add_deliverable(user, "t21", root("t21"))
        .await
        .unwrap();

    let call = FineTuningServing::getAccountCall { user, provider };
    let details = world
        .client(USER)
        .call("FineTuningServing", fine_tuning.address(), None, &call)
        .await
        .unwrap();
    assert_eq!(
        (details.deliverablesHead, details.deliverablesCount),
        (U256::from(1), U256::from(20))
    );
    let ids: Vec<String> = details
        .deliverables
        .into_iter()
        .map(|found| found.id)
        .collect();
    assert_eq!(
        ids,
        (2..=21)
            .map(|number| format!("t{number}"))
            .collect::<Vec<_>>()
    );
    assert_eq!(
        fine_tuning.deliverable(user, provider, "t1").await.unwrap(),
        None
    );
    // An evicted id is free again, once the pair is.
    fine_tuning.abandon_deliverable(user, "t21").await.unwrap();
    fine_tuning
        .settle_fees(&world.settlement(USER, "t2", b"key", 2, milli(1)))
        .await
        .unwrap();
    fine_tuning
        .add_deliverable(user, "t1", root("t1"))
        .await
        .unwrap();
}

/// P-3: a deliverable keeps the window that it was added under.
#[tokio::test]
async fn the_window_is_the_smaller_of_the_setting_and_half_the_lock_time() {
    let world = World::funded().await;
    let (user, provider) = (world.address(USER), world.address(PROVIDER));
    let fine_tuning = world.client(PROVIDER).fine_tuning();
    let contract = fine_tuning.address();
    let deadline = async |id: &str| {
        let delivered = fine_tuning
            .deliverable(user, provider, id)
            .await
            .unwrap()
            .unwrap();
        fine_tuning
            .acknowledge_deadline(user, provider, id)
            .await
            .unwrap()
            .unwrap()
            - delivered.timestamp
    };
    fine_tuning
        .add_deliverable(user, "t1", root("t1"))
        .await
        .unwrap();
    for call in [
        calls::fine_tuning::update_ack_window(contract, 600),
        calls::serving::update_lock_time(contract, 604_800),
    ] {
        world.send(OWNER, call).await.unwrap();
    }
    assert_eq!(deadline("t1").await, 43_200);
    fine_tuning.abandon_deliverable(user, "t1").await.unwrap();
    fine_tuning
        .add_deliverable(user, "t2", root("t2"))
        .await
        .unwrap();
    assert_eq!(deadline("t2").await, 600);
    fine_tuning.abandon_deliverable(user, "t2").await.unwrap();
    world
        .send(
            OWNER,
            calls::fine_tuning::update_ack_window(contract, 172_800),
        )
        .await
        .unwrap();
    fine_tuning
        .add_deliverable(user, "t3", root("t3"))
        .await
        .unwrap();
    assert_eq!(deadline("t3").await, 172_800);

    let too_long = calls::fine_tuning::update_ack_window(contract, 604_801);
    assert_eq!(
        refused(world.send(OWNER, too_long).await),
        Kind::AckWindowOutOfRange
    );
    assert_eq!(
        refused(
            world
                .send(3, calls::fine_tuning::update_ack_window(contract, 1))
                .await
        ),
        Kind::Text
    );
    let penalty = calls::fine_tuning::update_penalty_percentage(contract, 101);
    assert_eq!(
        refused(world.send(OWNER, penalty).await),
        Kind::PenaltyPercentageTooHigh
    );
    world
        .send(
            OWNER,
            calls::fine_tuning::update_penalty_percentage(contract, 0),
        )
        .await
        .unwrap();
    // A zero fee is legal: settled, nothing paid.
    world.advance(172_800);
    fine_tuning
        .settle_fees(&world.settlement(USER, "t3", b"", 1, milli(500)))
        .await
        .unwrap();
    assert_eq!(world.sub_account(USER).await.0, og(2));
}

/// A settlement reaches money that was asked back and not collected.
#[tokio::test]
async fn a_settlement_uses_pending_refunds() {
    let world = World::funded().await;
    let (user, provider) = (world.address(USER), world.address(PROVIDER));
    let fine_tuning = world.client(PROVIDER).fine_tuning();
    world
        .client(USER)
        .ledger()
        .retrieve_fund(&[provider], FINE_TUNING)
        .await
        .unwrap();
    fine_tuning
        .add_deliverable(user, "t1", root("t1"))
        .await
        .unwrap();
    world
        .client(USER)
        .fine_tuning()
        .acknowledge_deliverable(provider, "t1")
        .await
        .unwrap();
    let before = world.client(PROVIDER).balance(provider).await.unwrap();
    let receipt = fine_tuning
        .settle_fees(&world.settlement(USER, "t1", b"key", 1, milli(500)))
        .await
        .unwrap();
    let after = world.client(PROVIDER).balance(provider).await.unwrap();
    assert_eq!(after + receipt.gas_cost(), before + milli(500));
    assert_eq!(world.sub_account(USER).await, (milli(1_500), milli(1_500)));
    assert_eq!(world.ledger(USER).await, (og(46), milli(49_500)));
}

/// Calldata of the published acknowledgement calls.
#[test]
fn published_calldata_is_produced() {
    let provider = zerog_devchain::accounts::ACCOUNTS[2].address;
    let user = zerog_devchain::accounts::ACCOUNTS[0].address;
    let contract = Address::ZERO;
    let data = |call: ContractCall| hex::encode(&call.data);
    assert_eq!(
        data(calls::serving::acknowledge_tee_signer(
            contract, provider, true
        )),
        "7ff6fc1c0000000000000000000000003c44cdddb6a900fa2b585dd299e03d12fa4293bc0000000000000000000000000000000000000000000000000000000000000001"
    );
    assert_eq!(
        data(calls::serving::acknowledge_tee_signer(
            contract, provider, false
        )),
        "7ff6fc1c0000000000000000000000003c44cdddb6a900fa2b585dd299e03d12fa4293bc0000000000000000000000000000000000000000000000000000000000000000"
    );
    assert_eq!(
        data(calls::serving::acknowledge_tee_signer_by_owner(
            contract, provider
        )),
        "b2394d090000000000000000000000003c44cdddb6a900fa2b585dd299e03d12fa4293bc"
    );
    assert_eq!(
        data(calls::fine_tuning::acknowledge_deliverable(
            contract,
            provider,
            PUBLISHED_ID
        )),
        "a296bf4f0000000000000000000000003c44cdddb6a900fa2b585dd299e03d12fa4293bc0000000000000000000000000000000000000000000000000000000000000040000000000000000000000000000000000000000000000000000000000000002433663262316339652d386135342d346430662d396630652d32623763316435653661393000000000000000000000000000000000000000000000000000000000"
    );
    assert_eq!(
        data(calls::fine_tuning::add_deliverable(
            contract,
            user,
            PUBLISHED_ID,
            keccak256("model-root").to_vec().into()
        )),
        "6dc7513d000000000000000000000000f39fd6e51aad88f6f4ce6ab8827279cfffb92266000000000000000000000000000000000000000000000000000000000000006000000000000000000000000000000000000000000000000000000000000000c0000000000000000000000000000000000000000000000000000000000000002433663262316339652d386135342d346430662d396630652d32623763316435653661393000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000002044a56b126c2f006b1dd376d118236897abc703751abb78eaac730e554dd49f77"
    );
    assert_eq!(
        data(calls::ledger::transfer_fund(
            contract,
            provider,
            FINE_TUNING,
            og(1)
        )),
        "2ba43b820000000000000000000000003c44cdddb6a900fa2b585dd299e03d12fa4293bc00000000000000000000000000000000000000000000000000000000000000600000000000000000000000000000000000000000000000000de0b6b3a7640000000000000000000000000000000000000000000000000000000000000000001066696e652d74756e696e672d76312e3000000000000000000000000000000000"
    );
    assert_eq!(
        FineTuningServing::settleFeesCall::SELECTOR,
        hex!("3d60456a")
    );
}
