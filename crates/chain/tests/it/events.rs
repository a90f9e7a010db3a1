use serde_json::json;
use zerog_chain::logs::{ChainEvent, FollowOptions, LogFollower, ServiceEvent, ServiceKind};

use crate::support::{INFERENCE, PROVIDER, USER, World, milli, og, root};

fn events(found: &[ChainEvent]) -> Vec<&ServiceEvent> {
    found.iter().map(|found| &found.event).collect()
}

#[tokio::test]
async fn a_follower_sees_each_event_once_and_in_order() {
    let world = World::funded().await;
    let (user, provider) = (world.address(USER), world.address(PROVIDER));
    let client = world.client(PROVIDER).clone();
    let mut follower = LogFollower::new(
        client.clone(),
        client.block_number().await.unwrap() + 1,
        FollowOptions {
            overlap_blocks: 0,
            ..FollowOptions::default()
        },
    );
    assert_eq!(follower.poll().await.unwrap(), []);

    client
        .fine_tuning()
        .add_deliverable(user, "t1", root("t1"))
        .await
        .unwrap();
    let found = follower.poll().await.unwrap();
    assert!(
        matches!(events(&found)[..], [ServiceEvent::DeliverableAdded { id, .. }] if id == "t1"),
        "{found:?}"
    );
    world
        .client(USER)
        .fine_tuning()
        .acknowledge_deliverable(provider, "t1")
        .await
        .unwrap();
    client
        .fine_tuning()
        .settle_fees(&world.settlement(USER, "t1", b"key", 9, milli(10)))
        .await
        .unwrap();
    world
        .client(USER)
        .inference()
        .revoke_tokens(provider, &[1, 2])
        .await
        .unwrap();
    world
        .client(USER)
        .inference()
        .revoke_all_tokens(provider)
        .await
        .unwrap();
    let found = follower.poll().await.unwrap();
    assert!(
        matches!(
            events(&found)[..],
            [
                ServiceEvent::DeliverableAcknowledged { .. },
                ServiceEvent::FeesSettled {
                    acknowledged: true,
                    ..
                },
                ServiceEvent::BalanceUpdated { .. },
                ServiceEvent::TokensRevoked { .. },
                ServiceEvent::AllTokensRevoked { .. },
            ]
        ),
        "{found:?}"
    );
    assert_eq!(found[0].service, ServiceKind::FineTuning);
    assert_eq!(found[4].service, ServiceKind::Inference);
    assert_eq!(follower.poll().await.unwrap(), []);
    assert_eq!(
        follower.checkpoint(),
        client.block_number().await.unwrap() + 1
    );
}

#[tokio::test]
async fn long_histories_are_read_in_spans_and_filtered_by_provider() {
    let world = World::funded().await;
    world.register(6, 7).await;
    let ledger = world.client(USER).ledger();
    ledger
        .transfer_fund(world.address(6), INFERENCE, og(1))
        .await
        .unwrap();
    let options = FollowOptions {
        provider: Some(world.address(6)),
        overlap_blocks: 3,
        span_blocks: 4,
    };
    let mut narrow = LogFollower::new(world.client(PROVIDER).clone(), 0, options);
    let found = narrow.poll().await.unwrap();
    assert!(
        found
            .iter()
            .all(|found| found.event.provider() == Some(world.address(6))),
        "{found:?}"
    );
    assert!(
        events(&found)
            .iter()
            .any(|event| matches!(event, ServiceEvent::BalanceUpdated { .. }))
    );
    let mut wide = LogFollower::new(world.client(PROVIDER).clone(), 0, FollowOptions::default());
    assert!(wide.poll().await.unwrap().len() > found.len());
    assert_eq!(wide.poll().await.unwrap(), []);
}

/// A block is replaced: what happened in the new one is reported, what stayed is not repeated.
#[tokio::test]
async fn a_reorganisation_loses_nothing() {
    let world = World::funded().await;
    let (user, provider) = (world.address(USER), world.address(PROVIDER));
    let client = world.client(PROVIDER).clone();
    let mut follower = LogFollower::new(
        client.clone(),
        client.block_number().await.unwrap() + 1,
        FollowOptions::default(),
    );
    follower.poll().await.unwrap();
    client
        .fine_tuning()
        .add_deliverable(user, "kept", root("kept"))
        .await
        .unwrap();
    assert_eq!(follower.poll().await.unwrap().len(), 1);

    let snapshot = world.chain.request("evm_snapshot", &[]).unwrap();
    world
        .client(USER)
        .fine_tuning()
        .acknowledge_deliverable(provider, "kept")
        .await
        .unwrap();
    assert_eq!(follower.poll().await.unwrap().len(), 1);
    world.chain.request("evm_revert", &[snapshot]).unwrap();
    world
        .chain
        .request("evm_increaseTime", &[json!(5)])
        .unwrap();
    client
        .fine_tuning()
        .abandon_deliverable(user, "kept")
        .await
        .unwrap();
    let found = follower.poll().await.unwrap();
    assert!(
        matches!(
            events(&found)[..],
            [ServiceEvent::DeliverableAbandoned { .. }]
        ),
        "{found:?}"
    );
}
