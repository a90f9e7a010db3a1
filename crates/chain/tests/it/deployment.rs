use alloy_primitives::{U256, address, hex};
use serde_json::json;
use zerog_chain::{
    ChainClient, ChainError, ClientOptions, ContractErrorKind,
    deploy::{self, DeployOptions},
    networks,
};

use crate::support::{FINE_TUNING, INFERENCE, LOCK_TIME_S, OWNER, World, og, refusal, refused};

#[tokio::test]
async fn genesis_gives_a_working_network_at_the_published_addresses() {
    let world = World::start().await;
    let client = world.client(OWNER);
    assert_eq!(
        client.addresses().ledger,
        address!("9fE46736679d2D9a65F0992F2272dE9f3c7fa6e0")
    );
    assert_eq!(
        client.addresses().inference,
        address!("0165878A594ca255338adfa4d48449f69242Eb8F")
    );
    assert_eq!(
        client.addresses().fine_tuning,
        address!("A51c1fc2f0D1a1b8494Ed1FE312d7C3a78Ed91C0")
    );
    let flow = client.flow().unwrap();
    assert_eq!(
        flow.address(),
        address!("9A9f2CCfdE556A7E9Ff0848998Aa4a0CFD8863AE")
    );
    assert_eq!(
        flow.market().await.unwrap(),
        address!("959922bE3CAee4b8Cd9a407cc3ac1C251C2007B1")
    );
    assert_eq!(client.balance(flow.address()).await.unwrap(), og(1));

    let ledger = client.ledger();
    assert_eq!(
        ledger.fine_tuning_service_name().await.unwrap(),
        FINE_TUNING
    );
    assert_eq!(ledger.inference_service_name().await.unwrap(), INFERENCE);
    assert_eq!(ledger.owner().await.unwrap(), world.address(OWNER));
    assert_eq!(
        client.fine_tuning().owner().await.unwrap(),
        world.address(OWNER)
    );
    assert_eq!(
        client.fine_tuning().lock_time_s().await.unwrap(),
        LOCK_TIME_S
    );
    assert_eq!(client.fine_tuning().penalty_percentage().await.unwrap(), 30);
    assert_eq!(
        client.fine_tuning().ack_window_s().await.unwrap(),
        Some(172_800)
    );
    assert_eq!(client.inference().lock_time_s().await.unwrap(), LOCK_TIME_S);
    let services = ledger.services().await.unwrap();
    assert_eq!(services.len(), 2);
    assert!(services.iter().all(|service| service.is_recommended));
    assert_eq!(services[1].description, "fine-tuning serving service v1.0");
    assert!(
        ledger
            .service_info(world.address(5))
            .await
            .unwrap()
            .is_none()
    );
}

/// Minima that the official clients have built in (P-21).
#[tokio::test]
async fn minimum_amounts_are_those_of_the_official_clients() {
    let world = World::start().await;
    let ledger = world.client(OWNER).ledger();
    assert_eq!(ledger.min_account_balance().await.unwrap(), og(3));
    assert_eq!(ledger.min_transfer_amount().await.unwrap(), og(1));
    assert_eq!(
        world
            .client(OWNER)
            .fine_tuning()
            .min_provider_stake()
            .await
            .unwrap(),
        og(100)
    );
    assert_eq!(
        world
            .client(OWNER)
            .inference()
            .min_provider_stake()
            .await
            .unwrap(),
        og(100)
    );
}

#[tokio::test]
async fn proxies_name_their_beacon_and_implementations_are_locked() {
    let world = World::start().await;
    let slot = "0xa3f0ad74e5423aebfd80d3ef4346578335a9a72aeaee59ff6cb3582b35133d50";
    let stored = world
        .chain
        .request(
            "eth_getStorageAt",
            &[
                json!(networks::DEVNET.addresses.ledger),
                json!(slot),
                json!("latest"),
            ],
        )
        .unwrap();
    assert_eq!(
        stored,
        "0x000000000000000000000000e7f1725e7734ce288f8367e1bb143e90bb3f0512"
    );

    // The implementations sit at nonces 0, 4 and 10 of the deployer.
    let owner = world.address(OWNER);
    for (nonce, call) in [
        (
            0,
            zerog_chain::calls::ledger::initialize(owner.create(0), owner),
        ),
        (
            4,
            zerog_chain::calls::inference::initialize(owner.create(4), 86_400, owner, owner),
        ),
        (
            10,
            zerog_chain::calls::fine_tuning::initialize(
                owner.create(10),
                86_400,
                networks::DEVNET.addresses.ledger,
                owner,
                30,
            ),
        ),
    ] {
        let kind = refused(world.send(OWNER, call).await);
        assert_eq!(
            kind,
            ContractErrorKind::AlreadyInitialized,
            "implementation at nonce {nonce}"
        );
    }
    let call = zerog_chain::calls::ledger::initialize(networks::DEVNET.addresses.ledger, owner);
    assert_eq!(
        refused(world.send(OWNER, call).await),
        ContractErrorKind::AlreadyInitialized
    );
}

/// The same set goes to any chain; here from another wallet, which has used nonces before.
#[tokio::test]
async fn deployment_with_a_wallet_gives_a_working_set_elsewhere() {
    let world = World::start().await;
    let client = world.client(5);
    client
        .send(zerog_chain::ContractCall::payment(
            world.address(6),
            U256::from(1),
        ))
        .await
        .unwrap();
    let plan = deploy::deploy(
        client,
        &DeployOptions {
            lock_time_s: 3_600,
            ..DeployOptions::default()
        },
    )
    .await
    .unwrap();
    assert_ne!(plan.addresses, networks::DEVNET.addresses);

    let other = ChainClient::connect(&world.url, plan.addresses, ClientOptions::default())
        .await
        .unwrap();
    assert_eq!(other.ledger().owner().await.unwrap(), world.address(5));
    assert_eq!(other.fine_tuning().lock_time_s().await.unwrap(), 3_600);
    assert_eq!(
        other.ledger().fine_tuning_service_name().await.unwrap(),
        FINE_TUNING
    );
    assert_eq!(other.flow().unwrap().market().await.unwrap(), plan.market);
}

#[tokio::test]
async fn beacon_owner_alone_replaces_code() {
    let world = World::start().await;
    let beacon = world.address(OWNER).create(1);
    // upgradeTo(address) with an account that has no code.
    let mut data = hex!("3659cfe6").to_vec();
    data.extend([0; 12]);
    data.extend(world.address(7));
    let call = zerog_chain::ContractCall {
        name: "upgradeTo",
        to: Some(beacon),
        value: U256::ZERO,
        data: data.into(),
    };
    let (kind, text) = refusal(world.send(3, call.clone()).await);
    assert_eq!(
        (kind, text.as_str()),
        (ContractErrorKind::Text, "Ownable: caller is not the owner")
    );
    let (_, text) = refusal(world.send(OWNER, call).await);
    assert_eq!(text, "UpgradeableBeacon: implementation is not a contract");
}

#[tokio::test]
async fn wrong_network_settings_are_told() {
    let world = World::start().await;
    let client = world.client(OWNER);
    assert!(matches!(
        client.clone().expect_chain(16661),
        Err(ChainError::WrongChain {
            expected: 16661,
            found: 31337
        })
    ));
    let elsewhere = ChainClient::connect(
        &world.url,
        networks::MAINNET.addresses,
        ClientOptions::default(),
    )
    .await
    .unwrap();
    let error = elsewhere
        .ledger()
        .account(world.address(0))
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            ChainError::NotAContract {
                contract: "LedgerManager",
                ..
            }
        ),
        "{error}"
    );
}
