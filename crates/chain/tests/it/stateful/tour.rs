//! A scripted play that reaches what random ones seldom do: every bound, every refusal, every re-entry.

use alloy_primitives::{Address, U256};
use zerog_devchain::accounts::ACCOUNTS;

use super::{
    acts::{Act, Contract, LedgerOnly, Offer, Service, Step, Text},
    generate::{Cast, SIGNERS},
    machine::Machine,
    tour_of_settlements,
};
use crate::support::{LOCK_TIME_S, og};

pub(super) const FINE_TUNING: &str = "fine-tuning-v1.0";
pub(super) const INFERENCE: &str = "inference-v1.0";

/// Registered and accepted services of all providers, and users with money in some of them.
pub(crate) fn opening(machine: &Machine) -> Vec<Step> {
    let cast = Cast::new(machine);
    let mut steps = Vec::new();
    for &provider in &cast.providers {
        for service in [Service::FineTuning, Service::Inference] {
            steps.push(act(provider, register(service)));
            steps.push(act(
                cast.owner,
                Act::AcknowledgeSignerByOwner {
                    service,
                    provider,
                    acknowledged: true,
                },
            ));
        }
    }
    for &user in &cast.users {
        steps.push(act(
            user,
            Act::AddLedger {
                info: Text::EMPTY,
                value: og(60),
            },
        ));
        for service in [FINE_TUNING, INFERENCE] {
            steps.push(act(user, transfer(cast.providers[0], service, og(3))));
        }
    }
    steps
}

/// The tour itself, after [`opening`].
pub(crate) fn tour(machine: &Machine) -> Vec<Step> {
    let cast = Cast::new(machine);
    let mut steps = opening(machine);
    steps.extend(ledger_bounds(&cast));
    steps.extend(registry(machine, &cast));
    steps.extend(service_bounds(&cast));
    steps.extend(sub_account_rules(&cast));
    steps.extend(tour_of_settlements::deliverables(&cast));
    steps.extend(tour_of_settlements::settlement_refusals(&cast));
    steps.extend(tour_of_settlements::batches(&cast));
    steps.extend(tour_of_settlements::reentry(&cast));
    steps.extend(tour_of_settlements::refused_payments(&cast));
    steps.extend(tour_of_settlements::leaving(&cast));
    steps.extend(tour_of_settlements::ownership(&cast));
    steps
}

pub(super) fn act(from: Address, act: Act) -> Step {
    Step::Act { from, act }
}

pub(super) fn wait(seconds: u64) -> Step {
    Step::Wait { seconds }
}

pub(super) fn transfer(provider: Address, service: &str, amount: U256) -> Act {
    Act::TransferFund {
        provider,
        service: service.to_owned(),
        amount,
    }
}

pub(super) fn retrieve(providers: Vec<Address>, service: &str) -> Act {
    Act::RetrieveFund {
        providers,
        service: service.to_owned(),
    }
}

pub(super) fn offer() -> Offer {
    Offer {
        url: Text('u', 30),
        kind: Text('k', 8),
        models: vec![Text('m', 12)],
        verifiability: Text('t', 5),
        info: Text('i', 40),
        price: 1,
        occupied: false,
        signer: ACCOUNTS[SIGNERS[0]].address,
    }
}

pub(super) fn register(service: Service) -> Act {
    Act::AddOrUpdateService {
        service,
        offer: offer(),
        stake: og(100),
    }
}

fn ledger_bounds(cast: &Cast) -> Vec<Step> {
    let (user, stranger) = (cast.users[0], cast.stranger);
    let long = Text('n', 4097);
    let too_much = U256::from(1) << 128;
    let newcomer = cast.owner;
    let mut steps = vec![
        act(
            newcomer,
            Act::AddLedger {
                info: long,
                value: og(3),
            },
        ),
        act(
            newcomer,
            Act::AddLedger {
                info: long,
                value: og(2),
            },
        ),
        act(
            newcomer,
            Act::AddLedger {
                info: Text::EMPTY,
                value: too_much,
            },
        ),
        act(
            user,
            Act::AddLedger {
                info: Text::EMPTY,
                value: og(3),
            },
        ),
        act(user, Act::DepositFund { value: U256::ZERO }),
        act(
            user,
            Act::DepositFund {
                value: U256::from(1),
            },
        ),
        act(user, Act::DepositFund { value: too_much }),
        act(newcomer, Act::DepositFund { value: og(2) }),
        act(
            user,
            Act::DepositFundFor {
                recipient: Address::ZERO,
                value: og(3),
            },
        ),
        act(
            user,
            Act::DepositFundFor {
                recipient: newcomer,
                value: og(3),
            },
        ),
        act(newcomer, Act::Refund { amount: og(4) }),
        act(newcomer, Act::Refund { amount: og(2) }),
        act(newcomer, Act::Refund { amount: U256::ZERO }),
        act(newcomer, Act::DeleteLedger),
        act(newcomer, Act::Refund { amount: og(3) }),
        act(newcomer, Act::Refund { amount: og(3) }),
        act(newcomer, Act::DeleteLedger),
        act(newcomer, transfer(cast.providers[0], FINE_TUNING, og(1))),
        act(newcomer, retrieve(Vec::new(), FINE_TUNING)),
        act(newcomer, Act::UpdateAdditionalInfo { info: Text('n', 3) }),
        act(user, Act::UpdateAdditionalInfo { info: long }),
        act(
            user,
            Act::UpdateAdditionalInfo {
                info: Text('n', 4096),
            },
        ),
        act(user, Act::UpdateAdditionalInfo { info: Text::EMPTY }),
        act(user, transfer(cast.providers[0], "inference", og(1))),
        act(
            user,
            transfer(cast.providers[1], FINE_TUNING, og(1) - U256::from(1)),
        ),
        act(user, transfer(cast.providers[1], FINE_TUNING, og(1_000))),
        act(user, retrieve(vec![cast.providers[0]; 51], FINE_TUNING)),
        act(user, retrieve(vec![cast.providers[0]], "inference")),
        act(
            stranger,
            Act::SpendFund {
                user,
                amount: U256::from(1),
            },
        ),
        act(
            stranger,
            Act::Pay {
                to: Contract::Ledger,
                value: U256::from(1),
            },
        ),
        act(
            stranger,
            Act::Initialize {
                contract: Contract::Ledger,
            },
        ),
    ];
    // A user has 50 providers in a service and not one more.
    let crowded = cast.users[2];
    for index in 0..50 {
        let provider = Address::repeat_byte(0x40 + index);
        steps.push(act(crowded, transfer(provider, INFERENCE, og(1))));
    }
    let everyone = (0..50)
        .map(|index| Address::repeat_byte(0x40 + index))
        .collect();
    steps.push(act(crowded, retrieve(everyone, INFERENCE)));
    steps
}

fn registry(machine: &Machine, cast: &Cast) -> Vec<Step> {
    let second = machine.second_inference;
    let register = |kind: &str, version: &str, address| Act::RegisterService {
        kind: kind.to_owned(),
        version: version.to_owned(),
        address,
    };
    let recommend = |kind: &str, version: &str| Act::SetRecommendedService {
        kind: kind.to_owned(),
        version: version.to_owned(),
    };
    let owner = cast.owner;
    vec![
        act(cast.stranger, register("inference", "v2.0", second)),
        act(owner, register("inference", "v2.0", Address::ZERO)),
        act(owner, register("", "v2.0", second)),
        act(owner, register("inference", "", second)),
        act(
            owner,
            register("inference", "v2.0", machine.addresses.inference),
        ),
        act(owner, register("inference", "v1.0", second)),
        act(owner, register("inference", "v2.0", cast.stranger)),
        act(
            owner,
            register("inference", "v2.0", machine.addresses.ledger),
        ),
        act(owner, recommend("inference", "v2.0")),
        act(owner, register("inference", "v2.0", second)),
        act(cast.stranger, recommend("inference", "v2.0")),
        act(owner, recommend("inference", "v2.0")),
        act(
            cast.users[1],
            transfer(cast.providers[0], "inference-v2.0", og(2)),
        ),
    ]
}

/// A change of an offer that is otherwise fine.
type Alteration = (Service, fn(&mut Offer));

fn service_bounds(cast: &Cast) -> Vec<Step> {
    let (provider, stranger, owner) = (cast.providers[0], cast.stranger, cast.owner);
    let altered: [Alteration; 11] = [
        (Service::FineTuning, |offer| offer.url.1 = 1025),
        (Service::FineTuning, |offer| offer.kind.1 = 257),
        (Service::FineTuning, |offer| {
            offer.models = vec![Text('m', 3); 65]
        }),
        (Service::FineTuning, |offer| {
            offer.models = vec![Text('m', 257)]
        }),
        (Service::FineTuning, |offer| {
            offer.models = vec![Text('m', 256); 64]
        }),
        (Service::Inference, |offer| offer.info.1 = 4097),
        (Service::Inference, |offer| offer.url.1 = 1025),
        (Service::Inference, |offer| offer.kind.1 = 257),
        (Service::Inference, |offer| {
            offer.models = vec![Text('m', 257)]
        }),
        (Service::Inference, |offer| offer.verifiability.1 = 257),
        (Service::Inference, |offer| offer.price = 9),
    ];
    let update = |service, offer, stake| {
        act(
            provider,
            Act::AddOrUpdateService {
                service,
                offer,
                stake,
            },
        )
    };
    let mut steps: Vec<Step> = altered
        .into_iter()
        .map(|(service, alter)| {
            let mut offer = offer();
            alter(&mut offer);
            update(service, offer, U256::ZERO)
        })
        .collect();
    for service in [Service::FineTuning, Service::Inference] {
        let contract = Contract::Serving(service);
        let accept = |from, acknowledged| {
            act(
                from,
                Act::AcknowledgeSignerByOwner {
                    service,
                    provider,
                    acknowledged,
                },
            )
        };
        let mut other = offer();
        other.signer = ACCOUNTS[SIGNERS[1]].address;
        steps.extend([
            update(service, offer(), U256::from(1)),
            update(service, other, U256::ZERO),
            update(service, offer(), U256::ZERO),
            accept(stranger, true),
            accept(stranger, false),
            accept(owner, true),
            accept(owner, true),
            accept(owner, false),
            accept(owner, true),
            act(
                stranger,
                Act::AddOrUpdateService {
                    service,
                    offer: offer(),
                    stake: og(100) - U256::from(1),
                },
            ),
            act(stranger, Act::RemoveService { service }),
            act(
                owner,
                Act::AcknowledgeSignerByOwner {
                    service,
                    provider: stranger,
                    acknowledged: true,
                },
            ),
            act(stranger, register(service)),
            act(stranger, Act::RemoveService { service }),
            act(
                stranger,
                Act::Pay {
                    to: contract,
                    value: U256::from(1),
                },
            ),
            act(stranger, Act::Initialize { contract }),
            act(
                stranger,
                Act::UpdateLockTime {
                    service,
                    seconds: 7_200,
                },
            ),
        ]);
        for seconds in [3_599, 604_801, 3_600, 604_800, LOCK_TIME_S, LOCK_TIME_S] {
            steps.push(act(owner, Act::UpdateLockTime { service, seconds }));
        }
    }
    steps.extend([
        act(stranger, Act::UpdatePenalty { percentage: 1 }),
        act(owner, Act::UpdatePenalty { percentage: 101 }),
        act(owner, Act::UpdatePenalty { percentage: 100 }),
        act(owner, Act::UpdatePenalty { percentage: 30 }),
        act(stranger, Act::UpdateAckWindow { seconds: 1 }),
        act(owner, Act::UpdateAckWindow { seconds: 604_801 }),
        act(owner, Act::UpdateAckWindow { seconds: 604_800 }),
        act(owner, Act::UpdateAckWindow { seconds: 172_800 }),
    ]);
    steps
}

fn sub_account_rules(cast: &Cast) -> Vec<Step> {
    let (user, provider, stranger) = (cast.users[0], cast.providers[0], cast.stranger);
    let rich = U256::from(1) << 113;
    let mut steps = vec![
        act(user, Act::DepositFund { value: rich }),
        act(user, transfer(Address::ZERO, FINE_TUNING, og(1))),
        act(user, transfer(user, FINE_TUNING, og(1))),
        // 2^112 neuron are more than a sub-account holds, at once or in sum.
        act(user, transfer(provider, FINE_TUNING, U256::from(1) << 112)),
        act(
            user,
            transfer(Address::repeat_byte(0xb0), INFERENCE, U256::from(1) << 112),
        ),
        act(
            user,
            transfer(
                provider,
                FINE_TUNING,
                (U256::from(1) << 112) - U256::from(1),
            ),
        ),
        act(user, Act::Refund { amount: rich }),
    ];
    for service in [Service::FineTuning, Service::Inference] {
        for function in [
            LedgerOnly::AddAccount,
            LedgerOnly::DepositFund,
            LedgerOnly::RequestRefundAll,
            LedgerOnly::ProcessRefund,
            LedgerOnly::DeleteAccount,
        ] {
            let call = Act::LedgerOnly {
                service,
                function,
                user,
                provider,
            };
            steps.push(act(stranger, call));
        }
        for acknowledged in [false, true] {
            let flag = Act::AcknowledgeSigner {
                service,
                provider,
                acknowledged,
            };
            steps.push(act(user, flag.clone()));
            steps.push(act(stranger, flag));
        }
    }
    let service = Service::Inference;
    steps.extend([
        act(
            user,
            Act::RevokeToken {
                service,
                provider,
                id: 255,
            },
        ),
        act(
            user,
            Act::RevokeTokens {
                service,
                provider,
                ids: vec![0, 1, 1, 254],
            },
        ),
        act(
            user,
            Act::RevokeTokens {
                service,
                provider,
                ids: vec![5; 256],
            },
        ),
        act(
            user,
            Act::RevokeTokens {
                service,
                provider,
                ids: vec![5; 257],
            },
        ),
        act(user, Act::RevokeAllTokens { service, provider }),
        act(
            user,
            Act::RevokeToken {
                service,
                provider,
                id: 3,
            },
        ),
        act(
            stranger,
            Act::RevokeToken {
                service,
                provider,
                id: 1,
            },
        ),
        act(
            stranger,
            Act::RevokeTokens {
                service,
                provider,
                ids: vec![],
            },
        ),
        act(stranger, Act::RevokeAllTokens { service, provider }),
    ]);
    // Five live refunds: the sixth request is skipped, and collecting goes on.
    steps.push(act(user, retrieve(vec![provider], INFERENCE)));
    for amount in [800, 400, 200, 100, 50] {
        steps.push(wait(60));
        let part = crate::support::milli(amount);
        steps.push(act(user, transfer(provider, INFERENCE, part)));
        steps.push(act(user, retrieve(vec![provider], INFERENCE)));
    }
    steps.push(wait(LOCK_TIME_S - 120));
    for _ in 0..2 {
        steps.push(act(user, retrieve(vec![provider, provider], INFERENCE)));
        steps.push(wait(LOCK_TIME_S));
    }
    steps.push(act(user, transfer(provider, INFERENCE, og(3))));
    steps
}
