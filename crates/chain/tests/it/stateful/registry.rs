//! Service contracts that are many, and service contracts that fail.

use alloy_primitives::{Address, Bytes, U256};
use alloy_sol_types::{SolConstructor, SolError, sol};
use zerog_chain::{
    bindings::{BeaconProxy, LedgerManager as L},
    calls,
};
use zerog_devchain::accounts::ACCOUNTS;

use super::machine::{Machine, Outcome};
use crate::support::og;

sol!(
    #[derive(Debug, PartialEq, Eq)]
    BrokenServing,
    "../../contracts/artifacts/BrokenServing.json"
);

const OWNER: usize = 0;
const USER: usize = 3;

fn send(machine: &mut Machine, from: usize, call: zerog_chain::ContractCall) -> Outcome {
    machine.transact(ACCOUNTS[from].address, call.to, call.value, call.data)
}

fn succeed(machine: &mut Machine, from: usize, call: zerog_chain::ContractCall) {
    let name = call.name;
    let outcome = send(machine, from, call);
    assert!(outcome.result.is_ok(), "{name}: {outcome:?}");
}

fn providers(machine: &Machine, user: Address, service: Address) -> Vec<Address> {
    let call = L::getProvidersOfCall { user, service };
    machine.view(machine.addresses.ledger, &call).unwrap()
}

/// A ledger of 5 0G, all of it back from a sub-account in a service that cannot delete.
fn with_broken_service(failure: u8) -> (Machine, Address) {
    let mut machine = Machine::start();
    let owner = ACCOUNTS[OWNER].address;
    let broken = machine.create(owner, BrokenServing::BYTECODE.clone());
    let ledger = machine.addresses.ledger;
    let fail =
        zerog_chain::ContractCall::new("fail", broken, &BrokenServing::failCall { how: failure });
    succeed(&mut machine, OWNER, fail);
    let register = calls::ledger::register_service(ledger, "broken", "v1", broken, "");
    succeed(&mut machine, OWNER, register);
    succeed(
        &mut machine,
        USER,
        calls::ledger::add_ledger(ledger, "", og(5)),
    );
    let provider = ACCOUNTS[2].address;
    let transfer = |service| calls::ledger::transfer_fund(ledger, provider, service, og(1));
    succeed(&mut machine, USER, transfer("broken-v1"));
    succeed(&mut machine, USER, transfer("inference-v1.0"));
    let retrieve = |service| calls::ledger::retrieve_fund(ledger, vec![provider], service);
    succeed(&mut machine, USER, retrieve("broken-v1"));
    succeed(&mut machine, USER, retrieve("inference-v1.0"));
    machine.wait(86_400);
    succeed(&mut machine, USER, retrieve("inference-v1.0"));
    (machine, broken)
}

/// P-8: what cannot be deleted stays listed, and does not keep the user's money.
#[test]
fn a_service_that_fails_to_delete_neither_holds_a_user_nor_drops_out_of_sight() {
    let (user, provider) = (ACCOUNTS[USER].address, ACCOUNTS[2].address);
    for failure in [0, 1] {
        let (mut machine, broken) = with_broken_service(failure);
        let (ledger, inference) = (machine.addresses.ledger, machine.addresses.inference);
        let before = machine.coins(user);
        succeed(&mut machine, USER, calls::ledger::refund(ledger, og(5)));
        assert_eq!(machine.coins(user), before + og(5));
        assert_eq!(providers(&machine, user, broken), [provider]);
        assert!(providers(&machine, user, inference).is_empty());
        let gone = machine.view(ledger, &L::getLedgerCall { user });
        assert_eq!(gone, Err(L::LedgerNotExists { user }.abi_encode().into()));
    }
}

/// A service that burns all gas cannot be told from a gas limit that is too low, so the user keeps the minimum inside.
#[test]
fn a_service_that_burns_all_gas_costs_a_user_the_last_coins_only() {
    let (mut machine, _) = with_broken_service(2);
    let ledger = machine.addresses.ledger;
    let all = send(&mut machine, USER, calls::ledger::refund(ledger, og(5)));
    assert_eq!(all.result, Err(L::CallFailed {}.abi_encode().into()));
    succeed(&mut machine, USER, calls::ledger::refund(ledger, og(2)));
}

/// P-7: the reason of the service comes through; without one there is `CallFailed`.
#[test]
fn a_transfer_that_a_service_refuses_names_the_services_reason() {
    let expected: [Bytes; 2] = [
        BrokenServing::Broken {}.abi_encode().into(),
        L::CallFailed {}.abi_encode().into(),
    ];
    for (failure, expected) in (0..).zip(expected) {
        let (mut machine, _) = with_broken_service(failure);
        let ledger = machine.addresses.ledger;
        let top_up =
            calls::ledger::transfer_fund(ledger, ACCOUNTS[2].address, "broken-v1", U256::ZERO);
        assert_eq!(send(&mut machine, USER, top_up).result, Err(expected));
    }
}

#[test]
fn the_registry_ends_at_500_services() {
    let mut machine = Machine::start();
    let (owner, ledger) = (ACCOUNTS[OWNER].address, machine.addresses.ledger);
    let beacon = machine.inference_beacon();
    let arguments = BeaconProxy::constructorCall {
        beacon,
        data: Bytes::new(),
    };
    let code: Bytes = [BeaconProxy::BYTECODE.as_ref(), &arguments.abi_encode()]
        .concat()
        .into();
    for number in 2..=500 {
        let service = machine.create(owner, code.clone());
        let version = format!("v{number}.0");
        let register = calls::ledger::register_service(ledger, "inference", &version, service, "");
        let outcome = send(&mut machine, OWNER, register);
        let expected = if number < 500 {
            Ok(Bytes::new())
        } else {
            let limit = U256::from(500);
            Err(L::ServiceRegistryLimitReached { limit }.abi_encode().into())
        };
        assert_eq!(outcome.result, expected, "service {number}");
    }
    let all = machine.view(ledger, &L::getAllActiveServicesCall {});
    assert_eq!(all.unwrap().len(), 500);
    // With that many services a user still comes and goes.
    succeed(
        &mut machine,
        USER,
        calls::ledger::add_ledger(ledger, "", og(3)),
    );
    succeed(&mut machine, USER, calls::ledger::refund(ledger, og(3)));
}
