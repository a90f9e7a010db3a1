use alloy_primitives::{Address, U256};
use zerog_chain::{ContractErrorKind as Kind, calls};

use crate::support::{
    FINE_TUNING, INFERENCE, OWNER, PROVIDER, TEE, USER, World, fine_tuning_service, og, refusal,
    refused,
};

#[tokio::test]
async fn deposits_create_and_grow_a_ledger() {
    let world = World::start().await;
    let user = world.client(3);
    let ledger = user.ledger();
    assert_eq!(ledger.account(world.address(3)).await.unwrap(), None);

    assert_eq!(
        refused(ledger.deposit_fund(U256::ZERO).await),
        Kind::ZeroAmountNotAllowed
    );
    assert_eq!(
        refused(ledger.deposit_fund(og(2)).await),
        Kind::MinimumDepositRequired
    );
    assert_eq!(
        refused(ledger.add_ledger(og(2), "").await),
        Kind::MinimumDepositRequired
    );
    assert_eq!(
        refused(ledger.add_ledger(og(3), &"x".repeat(4097)).await),
        Kind::AdditionalInfoTooLong
    );
    ledger.add_ledger(og(3), "about me").await.unwrap();
    assert_eq!(
        refused(ledger.add_ledger(og(3), "").await),
        Kind::LedgerExists
    );
    ledger.deposit_fund(U256::from(1)).await.unwrap();

    let account = ledger.account(world.address(3)).await.unwrap().unwrap();
    assert_eq!(account.available_balance, og(3) + U256::from(1));
    assert_eq!(account.total_balance, account.available_balance);
    assert_eq!(account.additional_info, "about me");
    assert_eq!(account.locked_balance(), U256::ZERO);

    let other = world.client(4).ledger();
    assert_eq!(
        refused(other.deposit_fund_for(Address::ZERO, og(3)).await),
        Kind::ZeroAddressNotAllowed
    );
    other
        .deposit_fund_for(world.address(5), og(3))
        .await
        .unwrap();
    assert_eq!(world.ledger(5).await, (og(3), og(3)));
    assert_eq!(ledger.accounts().await.unwrap().len(), 2);
    ledger.update_additional_info("new").await.unwrap();
    assert_eq!(
        ledger
            .account(world.address(3))
            .await
            .unwrap()
            .unwrap()
            .additional_info,
        "new"
    );
}

#[tokio::test]
async fn a_refund_leaves_the_minimum_or_nothing() {
    let world = World::start().await;
    let ledger = world.client(3).ledger();
    assert_eq!(refused(ledger.refund(og(1)).await), Kind::LedgerNotExists);
    ledger.add_ledger(og(10), "").await.unwrap();
    assert_eq!(
        refused(ledger.refund(og(11)).await),
        Kind::InsufficientBalance
    );
    let (kind, details) = refusal(ledger.refund(og(8)).await);
    assert_eq!(kind, Kind::MinimumDepositRequired);
    assert!(
        details.contains("provided: 2000000000000000000"),
        "{details}"
    );

    let before = world.client(3).balance(world.address(3)).await.unwrap();
    let receipt = ledger.refund(og(7)).await.unwrap();
    let after = world.client(3).balance(world.address(3)).await.unwrap();
    assert_eq!(after + receipt.gas_cost(), before + og(7));
    assert_eq!(
        refused(ledger.delete_ledger().await),
        Kind::MustWithdrawAllFundsFirst
    );
    ledger.refund(og(3)).await.unwrap();
    assert_eq!(ledger.account(world.address(3)).await.unwrap(), None);
    assert_eq!(refused(ledger.delete_ledger().await), Kind::LedgerNotExists);
}

/// Checks of `transferFund` in the published order.
#[tokio::test]
async fn transfers_are_refused_for_the_first_reason_that_applies() {
    let world = World::start().await;
    let ledger = world.client(3).ledger();
    let provider = world.address(PROVIDER);
    assert_eq!(
        refused(ledger.transfer_fund(provider, "nothing-v1", og(0)).await),
        Kind::LedgerNotExists
    );
    ledger.add_ledger(og(3), "").await.unwrap();
    let (kind, details) = refusal(ledger.transfer_fund(provider, "nothing-v1", og(0)).await);
    assert_eq!(kind, Kind::ServiceNotFound);
    assert!(
        details.contains("0x0000000000000000000000000000000000000000"),
        "{details}"
    );
    let (kind, details) = refusal(ledger.transfer_fund(provider, FINE_TUNING, og(0)).await);
    assert_eq!(kind, Kind::MinimumDepositRequired);
    assert!(
        details.contains("required: 1000000000000000000"),
        "{details}"
    );
    assert_eq!(
        refused(ledger.transfer_fund(provider, FINE_TUNING, og(4)).await),
        Kind::InsufficientAvailableBalance
    );

    ledger
        .transfer_fund(provider, FINE_TUNING, og(1))
        .await
        .unwrap();
    assert_eq!(world.ledger(3).await, (og(2), og(3)));
    // Zero is legal for an existing sub-account.
    ledger
        .transfer_fund(provider, FINE_TUNING, U256::ZERO)
        .await
        .unwrap();
    assert_eq!(
        ledger
            .providers(world.address(3), FINE_TUNING)
            .await
            .unwrap(),
        [provider]
    );
    assert_eq!(
        ledger.providers(world.address(3), INFERENCE).await.unwrap(),
        Vec::<Address>::new()
    );
    assert_eq!(
        refused(ledger.providers(world.address(3), "nothing").await),
        Kind::ServiceNotFound
    );
}

/// P-7 and P-17: the reason of the service contract comes through, and both services refuse
/// impossible pairs.
#[tokio::test]
async fn a_transfer_names_the_reason_of_the_service_contract() {
    let world = World::start().await;
    let ledger = world.client(3).ledger();
    ledger.add_ledger(og(9), "").await.unwrap();
    for service in [FINE_TUNING, INFERENCE] {
        assert_eq!(
            refused(ledger.transfer_fund(Address::ZERO, service, og(1)).await),
            Kind::InvalidAddress
        );
        let own = ledger.transfer_fund(world.address(3), service, og(1)).await;
        assert_eq!(refused(own), Kind::ProviderCannotBeUser);
    }
    assert_eq!(world.ledger(3).await, (og(9), og(9)));
}

#[tokio::test]
async fn a_user_has_at_most_fifty_providers_in_a_service() {
    let world = World::start().await;
    let ledger = world.client(3).ledger();
    ledger.add_ledger(og(60), "").await.unwrap();
    let providers: Vec<Address> = (1..=50_u8).map(Address::repeat_byte).collect();
    for provider in &providers {
        ledger
            .transfer_fund(*provider, FINE_TUNING, og(1))
            .await
            .unwrap();
    }
    assert_eq!(
        refused(
            ledger
                .transfer_fund(Address::repeat_byte(51), FINE_TUNING, og(1))
                .await
        ),
        Kind::TooManyProvidersForService
    );
    assert_eq!(
        ledger
            .providers(world.address(3), FINE_TUNING)
            .await
            .unwrap(),
        providers
    );
    // P-6: everything a user can have goes into one call.
    let receipts = ledger.retrieve_fund(&providers, FINE_TUNING).await.unwrap();
    assert_eq!(receipts.len(), 1);
    let too_many =
        calls::ledger::retrieve_fund(ledger.address(), vec![providers[0]; 51], FINE_TUNING);
    assert_eq!(
        refused(world.send(3, too_many).await),
        Kind::TooManyProviders
    );

    let fine_tuning = world.client(3).fine_tuning();
    assert_eq!(fine_tuning.accounts().await.unwrap().len(), 50);
    assert_eq!(
        fine_tuning
            .accounts_by_user(world.address(3))
            .await
            .unwrap()
            .len(),
        50
    );
    assert_eq!(
        fine_tuning
            .accounts_by_provider(providers[7])
            .await
            .unwrap()
            .len(),
        1
    );
}

#[tokio::test]
async fn only_services_pay_in_or_spend() {
    let world = World::start().await;
    for to in [
        world.client(0).addresses().ledger,
        world.client(0).addresses().inference,
        world.client(0).addresses().fine_tuning,
    ] {
        let payment = zerog_chain::ContractCall::payment(to, og(1));
        assert_eq!(
            refused(world.send(3, payment).await),
            Kind::DirectDepositsDisabled
        );
    }
    let ledger = world.client(0).addresses().ledger;
    let spend = zerog_chain::bindings::LedgerManager::spendFundCall {
        user: world.address(3),
        amount: og(1),
    };
    let call = zerog_chain::ContractCall::new("spendFund", ledger, &spend);
    assert_eq!(
        refused(world.send(3, call).await),
        Kind::CallerNotRegisteredService
    );
    let add = zerog_chain::bindings::FineTuningServing::addAccountCall {
        user: world.address(3),
        provider: world.address(4),
        additionalInfo: String::new(),
    };
    for to in [
        world.client(0).addresses().inference,
        world.client(0).addresses().fine_tuning,
    ] {
        let call = zerog_chain::ContractCall::new("addAccount", to, &add);
        assert_eq!(refused(world.send(3, call).await), Kind::CallerNotLedger);
    }
}

#[tokio::test]
async fn the_registry_refuses_what_is_not_a_service() {
    let world = World::start().await;
    let ledger = world.client(OWNER).addresses().ledger;
    let register = |kind: &str, version: &str, service: Address| {
        calls::ledger::register_service(ledger, kind, version, service, "")
    };
    let inference = world.client(OWNER).addresses().inference;
    let (_, text) = refusal(world.send(3, register("a", "b", inference)).await);
    assert_eq!(text, "Ownable: caller is not the owner");
    assert_eq!(
        refused(world.send(OWNER, register("a", "b", Address::ZERO)).await),
        Kind::InvalidServiceAddress
    );
    assert_eq!(
        refused(world.send(OWNER, register("", "b", inference)).await),
        Kind::ServiceTypeRequired
    );
    assert_eq!(
        refused(world.send(OWNER, register("a", "", inference)).await),
        Kind::VersionRequired
    );
    assert_eq!(
        refused(world.send(OWNER, register("a", "b", inference)).await),
        Kind::ServiceAlreadyRegistered
    );
    let taken = register("inference", "v1.0", world.address(8));
    assert_eq!(
        refused(world.send(OWNER, taken).await),
        Kind::ServiceNameExists
    );
    for no_service in [
        world.address(8),
        ledger,
        world.client(OWNER).addresses().flow.unwrap(),
    ] {
        let call = register("other", "v1", no_service);
        assert_eq!(
            refused(world.send(OWNER, call).await),
            Kind::ServiceMustImplementIServing
        );
    }
    let unknown = calls::ledger::set_recommended_service(ledger, "other", "v1");
    assert_eq!(
        refused(world.send(OWNER, unknown).await),
        Kind::ServiceNotFound
    );
}

#[tokio::test]
async fn stakes_are_taken_once_and_returned() {
    let world = World::start().await;
    let client = world.client(PROVIDER);
    let provider = world.address(PROVIDER);
    let fine_tuning = client.fine_tuning();
    let params = fine_tuning_service(world.address(TEE));
    let contract = fine_tuning.address();

    let short = calls::fine_tuning::add_or_update_service(contract, &params, og(99));
    assert_eq!(
        refused(world.send(PROVIDER, short).await),
        Kind::InsufficientStake
    );
    assert_eq!(
        refused(fine_tuning.remove_service().await),
        Kind::ServiceNotExist
    );
    let first = calls::fine_tuning::add_or_update_service(contract, &params, og(101));
    world.send(PROVIDER, first).await.unwrap();
    assert_eq!(fine_tuning.stake_of(provider).await.unwrap(), Some(og(101)));
    let again = calls::fine_tuning::add_or_update_service(contract, &params, og(100));
    assert_eq!(
        refused(world.send(PROVIDER, again).await),
        Kind::CannotAddStakeWhenUpdating
    );
    fine_tuning.add_or_update_service(&params).await.unwrap();

    let before = client.balance(provider).await.unwrap();
    let receipt = fine_tuning.remove_service().await.unwrap();
    let after = client.balance(provider).await.unwrap();
    assert_eq!(after + receipt.gas_cost(), before + og(101));
    assert_eq!(fine_tuning.service(provider).await.unwrap(), None);
    assert_eq!(client.balance(contract).await.unwrap(), U256::ZERO);
}

#[tokio::test]
async fn a_new_signer_loses_the_owners_acceptance() {
    let world = World::start().await;
    world.register(PROVIDER, TEE).await;
    let provider = world.address(PROVIDER);
    let fine_tuning = world.client(PROVIDER).fine_tuning();
    let mut params = fine_tuning_service(world.address(TEE));
    params.url = "http://elsewhere".to_owned();
    params.occupied = true;
    params.models = vec!["a".to_owned(), "b".to_owned()];
    fine_tuning.add_or_update_service(&params).await.unwrap();
    let service = fine_tuning.service(provider).await.unwrap().unwrap();
    assert!(service.tee_signer_acknowledged && service.occupied);
    assert_eq!(
        (service.url.as_str(), service.models.as_slice()),
        ("http://elsewhere", &params.models[..])
    );
    params.models = vec!["b".to_owned()];
    params.tee_signer = world.address(7);
    fine_tuning.add_or_update_service(&params).await.unwrap();
    let service = fine_tuning.service(provider).await.unwrap().unwrap();
    assert!(!service.tee_signer_acknowledged);
    assert_eq!(service.models, params.models);
    assert_eq!(fine_tuning.services().await.unwrap(), [service]);
    world
        .client(OWNER)
        .fine_tuning()
        .acknowledge_tee_signer_by_owner(provider)
        .await
        .unwrap();
    world
        .client(OWNER)
        .fine_tuning()
        .revoke_tee_signer_acknowledgement(provider)
        .await
        .unwrap();
    let (kind, _) = refusal(
        world
            .client(3)
            .fine_tuning()
            .acknowledge_tee_signer_by_owner(provider)
            .await,
    );
    assert_eq!(kind, Kind::Text);
    // P-14: sizes are bounded.
    params.url = "x".repeat(1025);
    assert_eq!(
        refused(fine_tuning.add_or_update_service(&params).await),
        Kind::FieldTooLong
    );
}

#[tokio::test]
async fn a_user_withdraws_the_acknowledgement_only_without_money() {
    let world = World::funded().await;
    let provider = world.address(PROVIDER);
    let fine_tuning = world.client(USER).fine_tuning();
    assert_eq!(
        refused(fine_tuning.acknowledge_tee_signer(provider, false).await),
        Kind::CannotRevokeWithNonZeroBalance
    );
    let ledger = world.client(USER).ledger();
    ledger
        .retrieve_fund(&[provider], FINE_TUNING)
        .await
        .unwrap();
    world.advance(86_400);
    ledger
        .retrieve_fund(&[provider], FINE_TUNING)
        .await
        .unwrap();
    fine_tuning
        .acknowledge_tee_signer(provider, false)
        .await
        .unwrap();
    assert!(
        !fine_tuning
            .account(world.address(USER), provider)
            .await
            .unwrap()
            .unwrap()
            .acknowledged
    );
    // A transfer acknowledges again.
    ledger
        .transfer_fund(provider, FINE_TUNING, U256::ZERO)
        .await
        .unwrap();
    assert!(
        fine_tuning
            .account(world.address(USER), provider)
            .await
            .unwrap()
            .unwrap()
            .acknowledged
    );
    let stranger = world
        .client(4)
        .fine_tuning()
        .acknowledge_tee_signer(provider, true)
        .await;
    assert_eq!(refused(stranger), Kind::AccountNotExists);
}
