use alloy_primitives::U256;
use zerog_chain::{ContractErrorKind as Kind, calls, inference::SettlementStatus};

use crate::support::{
    FINE_TUNING, INFERENCE, LOCK_TIME_S, OWNER, PROVIDER, TEE, USER, World, milli, og, refused,
};

/// The published scenario of refunds, step by step: available / total, balance / pending, live.
#[tokio::test]
async fn refunds_settlements_and_transfers_follow_the_published_scenario() {
    let world = World::start().await;
    world.register(PROVIDER, TEE).await;
    let ledger = world.client(USER).ledger();
    let provider = world.address(PROVIDER);
    let inference = world.client(PROVIDER).inference();
    ledger.add_ledger(og(50), "").await.unwrap();
    ledger
        .transfer_fund(provider, INFERENCE, og(5))
        .await
        .unwrap();
    let settle = async |nonce: u64| {
        let item = world.inference_item(PROVIDER, USER, nonce, og(1), TEE);
        let (results, _) = inference.settle_fees_with_tee(&[item]).await.unwrap();
        assert_eq!(results[0].status, SettlementStatus::Success);
    };
    let check = async |available: u64, total: u64, balance: u64, pending: u64, live: &[u64]| {
        assert_eq!(world.ledger(USER).await, (og(available), og(total)));
        let account = inference
            .account(world.address(USER), provider)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(
            (account.balance, account.pending_refund),
            (og(balance), og(pending))
        );
        let refunds: Vec<U256> = account.refunds.iter().map(|refund| refund.amount).collect();
        assert_eq!(
            refunds,
            live.iter().map(|amount| og(*amount)).collect::<Vec<_>>()
        );
    };
    settle(1).await;
    check(45, 49, 4, 0, &[]).await;
    ledger.retrieve_fund(&[provider], INFERENCE).await.unwrap();
    check(45, 49, 4, 4, &[4]).await;
    settle(2).await;
    check(45, 48, 3, 3, &[3]).await;
    ledger
        .transfer_fund(provider, INFERENCE, og(1))
        .await
        .unwrap();
    check(45, 48, 3, 2, &[2]).await;
    ledger
        .transfer_fund(provider, INFERENCE, og(5))
        .await
        .unwrap();
    check(42, 48, 6, 0, &[]).await;
    ledger.retrieve_fund(&[provider], INFERENCE).await.unwrap();
    check(42, 48, 6, 6, &[6]).await;
    world.advance(LOCK_TIME_S);
    ledger.retrieve_fund(&[provider], INFERENCE).await.unwrap();
    check(48, 48, 0, 0, &[]).await;
}

#[tokio::test]
async fn a_refund_is_locked_until_its_time() {
    let world = World::funded().await;
    let ledger = world.client(USER).ledger();
    let provider = world.address(PROVIDER);
    ledger
        .retrieve_fund(&[provider], FINE_TUNING)
        .await
        .unwrap();
    assert_eq!(world.sub_account(USER).await, (og(2), og(2)));
    world.advance(LOCK_TIME_S - 2);
    ledger
        .retrieve_fund(&[provider], FINE_TUNING)
        .await
        .unwrap();
    assert_eq!(world.sub_account(USER).await, (og(2), og(2)));
    world.advance(2);
    ledger
        .retrieve_fund(&[provider], FINE_TUNING)
        .await
        .unwrap();
    assert_eq!(world.sub_account(USER).await, (U256::ZERO, U256::ZERO));
    assert_eq!(world.ledger(USER).await, (og(48), og(50)));
}

/// P-6: a full list of refunds skips the request; nothing reverts, and collecting goes on.
#[tokio::test]
async fn a_sixth_refund_is_skipped_and_stops_nothing() {
    let world = World::funded().await;
    let ledger = world.client(USER).ledger();
    let provider = world.address(PROVIDER);
    let live = async || {
        let account = world
            .client(USER)
            .fine_tuning()
            .account(world.address(USER), provider)
            .await;
        account
            .unwrap()
            .unwrap()
            .refunds
            .iter()
            .map(|refund| refund.amount)
            .collect::<Vec<_>>()
    };
    ledger
        .retrieve_fund(&[provider], FINE_TUNING)
        .await
        .unwrap();
    // Each transfer cancels half of the newest refund, and that half is requested anew.
    for amount in [1_000, 500, 250, 125] {
        world.advance(60);
        ledger
            .transfer_fund(provider, FINE_TUNING, milli(amount))
            .await
            .unwrap();
        ledger
            .retrieve_fund(&[provider], FINE_TUNING)
            .await
            .unwrap();
    }
    let five: Vec<U256> = [1_000, 500, 250, 125, 125].into_iter().map(milli).collect();
    assert_eq!(live().await, five);
    ledger
        .transfer_fund(provider, FINE_TUNING, milli(25))
        .await
        .unwrap();
    ledger
        .retrieve_fund(&[provider], FINE_TUNING)
        .await
        .unwrap();
    let five: Vec<U256> = [1_000, 500, 250, 125, 100].into_iter().map(milli).collect();
    assert_eq!(live().await, five);
    assert_eq!(world.sub_account(USER).await, (og(2), milli(1_975)));

    // The oldest two unlock; the rest moves together and the free part is requested now.
    world.advance(LOCK_TIME_S - 180);
    ledger
        .retrieve_fund(&[provider], FINE_TUNING)
        .await
        .unwrap();
    let rest: Vec<U256> = [250, 125, 100, 25].into_iter().map(milli).collect();
    assert_eq!(live().await, rest);
    assert_eq!(world.sub_account(USER).await, (milli(500), milli(500)));
    assert_eq!(world.ledger(USER).await.0, milli(47_500));
}

/// Nonce and generation survive deletion, so that old signatures stay dead.
#[tokio::test]
async fn leaving_and_coming_back_keeps_nonce_and_generation() {
    let world = World::funded().await;
    let ledger = world.client(USER).ledger();
    let (user, provider) = (world.address(USER), world.address(PROVIDER));
    let item = world.inference_item(PROVIDER, USER, 77, og(1), TEE);
    world
        .client(PROVIDER)
        .inference()
        .settle_fees_with_tee(std::slice::from_ref(&item))
        .await
        .unwrap();
    world
        .client(USER)
        .inference()
        .revoke_all_tokens(provider)
        .await
        .unwrap();
    world
        .client(USER)
        .inference()
        .revoke_token(provider, 3)
        .await
        .unwrap();
    world
        .client(PROVIDER)
        .fine_tuning()
        .add_deliverable(user, "t1", crate::support::root("t1"))
        .await
        .unwrap();

    for service in [FINE_TUNING, INFERENCE] {
        ledger.retrieve_fund(&[provider], service).await.unwrap();
    }
    world.advance(LOCK_TIME_S);
    for service in [FINE_TUNING, INFERENCE] {
        ledger.retrieve_fund(&[provider], service).await.unwrap();
    }
    assert_eq!(world.ledger(USER).await, (og(49), og(49)));
    assert_eq!(
        refused(ledger.refund(og(48)).await),
        Kind::MinimumDepositRequired
    );
    ledger.refund(og(49)).await.unwrap();
    assert_eq!(ledger.account(user).await.unwrap(), None);
    assert!(
        !world
            .client(USER)
            .inference()
            .account_exists(user, provider)
            .await
            .unwrap()
    );
    assert_eq!(
        world
            .client(USER)
            .fine_tuning()
            .account(user, provider)
            .await
            .unwrap(),
        None
    );
    assert_eq!(
        world
            .client(USER)
            .fine_tuning()
            .deliverable(user, provider, "t1")
            .await
            .unwrap(),
        None
    );

    ledger.add_ledger(og(10), "").await.unwrap();
    for service in [FINE_TUNING, INFERENCE] {
        ledger
            .transfer_fund(provider, service, og(2))
            .await
            .unwrap();
    }
    let account = world
        .client(USER)
        .inference()
        .account(user, provider)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        (account.nonce, account.generation),
        (U256::from(77), U256::from(1))
    );
    assert_eq!(account.revoked_bitmap, U256::ZERO);
    let (results, _) = world
        .client(PROVIDER)
        .inference()
        .settle_fees_with_tee(&[item])
        .await
        .unwrap();
    assert_eq!(results[0].status, SettlementStatus::InvalidNonce);
    // The deliverable of the first life is gone: the pair is free and the id can be used again.
    assert!(
        world
            .client(USER)
            .fine_tuning()
            .deliverables(user, provider)
            .await
            .unwrap()
            .is_empty()
    );
    world
        .client(PROVIDER)
        .fine_tuning()
        .add_deliverable(user, "t1", crate::support::root("t1"))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_ledger_spent_to_the_last_neuron_can_be_deleted() {
    let world = World::start().await;
    world.register(PROVIDER, TEE).await;
    let ledger = world.client(3).ledger();
    ledger.add_ledger(og(3), "").await.unwrap();
    ledger
        .transfer_fund(world.address(PROVIDER), INFERENCE, og(3))
        .await
        .unwrap();
    let item = world.inference_item(PROVIDER, 3, 1, og(3), TEE);
    world
        .client(PROVIDER)
        .inference()
        .settle_fees_with_tee(&[item])
        .await
        .unwrap();
    assert_eq!(world.ledger(3).await, (U256::ZERO, U256::ZERO));
    ledger.delete_ledger().await.unwrap();
    assert_eq!(ledger.account(world.address(3)).await.unwrap(), None);
    assert!(
        !world
            .client(3)
            .inference()
            .account_exists(world.address(3), world.address(PROVIDER))
            .await
            .unwrap()
    );
}

#[tokio::test]
async fn the_lock_time_stays_within_its_range() {
    let world = World::start().await;
    for contract in [
        world.client(0).addresses().fine_tuning,
        world.client(0).addresses().inference,
    ] {
        for seconds in [3_599, 604_801] {
            let call = calls::serving::update_lock_time(contract, seconds);
            assert_eq!(
                refused(world.send(OWNER, call).await),
                Kind::LockTimeOutOfRange
            );
        }
        world
            .send(OWNER, calls::serving::update_lock_time(contract, 3_600))
            .await
            .unwrap();
        assert_eq!(
            refused(
                world
                    .send(3, calls::serving::update_lock_time(contract, 7_200))
                    .await
            ),
            Kind::Text
        );
    }
    assert_eq!(
        world.client(0).fine_tuning().lock_time_s().await.unwrap(),
        3_600
    );
}
