//! Requirement G-1: the official Python client sends fixed gas limits and never estimates.

use alloy_primitives::{Address, U256};
use zerog_chain::{ContractCall, calls};

use crate::support::{
    FINE_TUNING, INFERENCE, LOCK_TIME_S, OWNER, PROVIDER, TEE, USER, World, inference_service, og,
    root,
};

/// Asserts that a call needs less than the Python client grants, sends it, and returns the need.
async fn within(world: &World, account: usize, name: &str, limit: u64, call: ContractCall) -> u64 {
    let needed = world.gas_needed(account, &call);
    println!("{name}: needs {needed} of {limit}");
    assert!(
        needed < limit,
        "{name} needs a gas limit of {needed}, the Python client grants {limit}"
    );
    world.send_with_gas_limit(account, call, limit).await;
    needed
}

#[tokio::test]
async fn every_call_of_the_python_client_fits_its_gas_limit() {
    let world = World::start().await;
    let addresses = *world.client(USER).addresses();
    let (ledger, ft, inf) = (addresses.ledger, addresses.fine_tuning, addresses.inference);
    world.register(PROVIDER, TEE).await;
    let provider = world.address(PROVIDER);
    let others = [Address::repeat_byte(0xa1), Address::repeat_byte(0xa2)];

    // The very first of everything on a fresh contract is the most expensive one.
    within(
        &world,
        USER,
        "addLedger, first",
        300_000,
        calls::ledger::add_ledger(ledger, "", og(60)),
    )
    .await;
    within(
        &world,
        3,
        "depositFund, creating",
        200_000,
        calls::ledger::deposit_fund(ledger, og(10)),
    )
    .await;
    within(
        &world,
        USER,
        "depositFund",
        200_000,
        calls::ledger::deposit_fund(ledger, og(1)),
    )
    .await;
    let call = calls::ledger::deposit_fund_for(ledger, world.address(4), og(10));
    within(&world, USER, "depositFundFor, creating", 200_000, call).await;

    for (service, name) in [(FINE_TUNING, "fine-tuning"), (INFERENCE, "inference")] {
        let transfer =
            |provider, amount| calls::ledger::transfer_fund(ledger, provider, service, amount);
        let first = format!("transferFund, first {name} sub-account of all");
        within(&world, USER, &first, 300_000, transfer(provider, og(2))).await;
        for other in others {
            let next = format!("transferFund, another {name} sub-account");
            within(&world, USER, &next, 300_000, transfer(other, og(1))).await;
        }
        within(
            &world,
            3,
            &format!("transferFund, another user, {name}"),
            300_000,
            transfer(provider, og(1)),
        )
        .await;
        within(
            &world,
            USER,
            &format!("transferFund, top-up, {name}"),
            300_000,
            transfer(provider, og(1)),
        )
        .await;
    }

    let ack = |contract, value| calls::serving::acknowledge_tee_signer(contract, provider, value);
    for contract in [ft, inf] {
        within(
            &world,
            USER,
            "acknowledgeTEESigner",
            300_000,
            ack(contract, true),
        )
        .await;
        let revoke = calls::serving::revoke_tee_signer_acknowledgement(contract, provider);
        within(
            &world,
            OWNER,
            "revokeTEESignerAcknowledgement",
            200_000,
            revoke,
        )
        .await;
        let accept = calls::serving::acknowledge_tee_signer_by_owner(contract, provider);
        within(
            &world,
            OWNER,
            "acknowledgeTEESignerByOwner",
            200_000,
            accept,
        )
        .await;
    }
    let token_ids: Vec<u8> = (0..20).collect();
    within(
        &world,
        USER,
        "revokeToken",
        200_000,
        calls::inference::revoke_token(inf, provider, 200),
    )
    .await;
    within(
        &world,
        USER,
        "revokeTokens x20",
        250_000,
        calls::inference::revoke_tokens(inf, provider, &token_ids),
    )
    .await;
    within(
        &world,
        USER,
        "revokeAllTokens",
        200_000,
        calls::inference::revoke_all_tokens(inf, provider),
    )
    .await;

    let deliver = calls::fine_tuning::add_deliverable(
        ft,
        world.address(USER),
        "3f2b1c9e-8a54-4d0f-9f0e-2b7c1d5e6a90",
        root("t"),
    );
    let needed = world.gas_needed(PROVIDER, &deliver);
    println!("addDeliverable: needs {needed}");
    assert!(needed < 275_219, "the published contract needs 275219");
    world.send(PROVIDER, deliver).await.unwrap();
    let call = calls::fine_tuning::acknowledge_deliverable(
        ft,
        provider,
        "3f2b1c9e-8a54-4d0f-9f0e-2b7c1d5e6a90",
    );
    within(&world, USER, "acknowledgeDeliverable", 300_000, call).await;

    let mut update = inference_service(world.address(TEE));
    update.url = "http://another-host.example.org:8080/with/a/longer/path".to_owned();
    update.additional_info = "{\"note\":\"changed\"}".to_owned();
    let update = calls::inference::add_or_update_service(inf, &update, U256::ZERO);
    within(
        &world,
        PROVIDER,
        "inference addOrUpdateService, update",
        300_000,
        update,
    )
    .await;

    // Refunds: request with 3 providers, collect with 3, then everything out.
    let all = [provider, others[0], others[1]];
    for (service, name) in [(FINE_TUNING, "fine-tuning"), (INFERENCE, "inference")] {
        for count in 1..=3 {
            let request = calls::ledger::retrieve_fund(ledger, all[..count].to_vec(), service);
            let needed = world.gas_needed(USER, &request);
            println!("retrieveFund, {count} new {name} refunds: needs {needed} of 200000");
            assert!(needed < 200_000);
        }
        let request = calls::ledger::retrieve_fund(ledger, all.to_vec(), service);
        within(&world, USER, "retrieveFund x3, request", 200_000, request).await;
    }
    world.advance(LOCK_TIME_S);
    for service in [FINE_TUNING, INFERENCE] {
        let collect = calls::ledger::retrieve_fund(ledger, all.to_vec(), service);
        within(&world, USER, "retrieveFund x3, collect", 200_000, collect).await;
    }
    within(
        &world,
        USER,
        "refund, part",
        200_000,
        calls::ledger::refund(ledger, og(1)),
    )
    .await;
    let removal = calls::serving::remove_service;
    within(
        &world,
        PROVIDER,
        "fine-tuning removeService",
        300_000,
        removal(ft),
    )
    .await;
    within(
        &world,
        PROVIDER,
        "inference removeService",
        200_000,
        removal(inf),
    )
    .await;
}

/// One sub-account in each service, with history: deliverables, revoked tokens, collected refunds.
#[tokio::test]
async fn leaving_with_a_sub_account_in_each_service_fits() {
    let world = World::funded().await;
    let (user, provider) = (world.address(USER), world.address(PROVIDER));
    let addresses = *world.client(USER).addresses();
    let fine_tuning = world.client(PROVIDER).fine_tuning();
    for number in 0..20_u64 {
        let id = format!("3f2b1c9e-8a54-4d0f-9f0e-2b7c1d5e6a{number:02}");
        fine_tuning
            .add_deliverable(user, &id, root(&id))
            .await
            .unwrap();
        fine_tuning.abandon_deliverable(user, &id).await.unwrap();
    }
    world
        .client(USER)
        .inference()
        .revoke_token(provider, 9)
        .await
        .unwrap();
    let ledger = world.client(USER).ledger();
    for _ in 0..2 {
        for service in [FINE_TUNING, INFERENCE] {
            ledger.retrieve_fund(&[provider], service).await.unwrap();
        }
        world.advance(LOCK_TIME_S);
    }
    assert_eq!(world.ledger(USER).await, (og(50), og(50)));
    let leave = calls::ledger::refund(addresses.ledger, og(50));
    within(
        &world,
        USER,
        "refund of everything, 2 sub-accounts",
        200_000,
        leave,
    )
    .await;
    assert_eq!(ledger.account(user).await.unwrap(), None);
    assert!(
        !world
            .client(USER)
            .fine_tuning()
            .account_exists(user, provider)
            .await
            .unwrap()
    );
    assert!(
        !world
            .client(USER)
            .inference()
            .account_exists(user, provider)
            .await
            .unwrap()
    );
}

/// The estimate covers the deletions: a client that adds no margin loses none of them.
#[tokio::test]
async fn the_estimate_of_leaving_covers_every_deletion() {
    let world = World::funded().await;
    let (user, provider) = (world.address(USER), world.address(PROVIDER));
    let ledger = world.client(USER).ledger();
    ledger
        .update_additional_info(&"a long text about me; ".repeat(100))
        .await
        .unwrap();
    ledger
        .transfer_fund(Address::repeat_byte(0xb1), FINE_TUNING, og(1))
        .await
        .unwrap();
    for _ in 0..2 {
        ledger
            .retrieve_fund(&[provider, Address::repeat_byte(0xb1)], FINE_TUNING)
            .await
            .unwrap();
        ledger.retrieve_fund(&[provider], INFERENCE).await.unwrap();
        world.advance(LOCK_TIME_S);
    }
    let leave = calls::ledger::refund(ledger.address(), og(50));
    let needed = world.gas_needed(USER, &leave);
    world.send_with_gas_limit(USER, leave, needed).await;
    assert_eq!(ledger.account(user).await.unwrap(), None);
    assert!(
        world
            .client(USER)
            .fine_tuning()
            .accounts()
            .await
            .unwrap()
            .is_empty()
    );
    assert!(
        !world
            .client(USER)
            .inference()
            .account_exists(user, provider)
            .await
            .unwrap()
    );
    assert!(
        ledger
            .providers(user, FINE_TUNING)
            .await
            .unwrap()
            .is_empty()
    );
}

#[tokio::test]
async fn deleting_a_spent_ledger_fits() {
    let world = World::start().await;
    world.register(PROVIDER, TEE).await;
    let ledger = world.client(3).ledger();
    ledger.add_ledger(og(3), "").await.unwrap();
    ledger
        .transfer_fund(world.address(PROVIDER), FINE_TUNING, og(1))
        .await
        .unwrap();
    ledger
        .transfer_fund(world.address(PROVIDER), INFERENCE, og(2))
        .await
        .unwrap();
    let item = world.inference_item(PROVIDER, 3, 1, og(2), TEE);
    world
        .client(PROVIDER)
        .inference()
        .settle_fees_with_tee(&[item])
        .await
        .unwrap();
    let fine_tuning = world.client(PROVIDER).fine_tuning();
    fine_tuning
        .add_deliverable(world.address(3), "t", root("t"))
        .await
        .unwrap();
    world
        .client(3)
        .fine_tuning()
        .acknowledge_deliverable(world.address(PROVIDER), "t")
        .await
        .unwrap();
    fine_tuning
        .settle_fees(&world.settlement(3, "t", b"key", 1, og(1)))
        .await
        .unwrap();
    within(
        &world,
        3,
        "deleteLedger, 2 sub-accounts",
        200_000,
        calls::ledger::delete_ledger(ledger.address()),
    )
    .await;
}
