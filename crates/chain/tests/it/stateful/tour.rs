//! A scripted play that reaches what random ones seldom do: every bound, every refusal, every re-entry.

use alloy_primitives::{Address, Bytes, U256, keccak256};
use zerog_devchain::accounts::ACCOUNTS;

use super::{
    acts::{Act, Claim, Contract, Item, LedgerOnly, Offer, Reaction, Service, Signing, Step, Text},
    generate::{Cast, SIGNERS},
    machine::Machine,
};
use crate::support::{LOCK_TIME_S, og};

const FINE_TUNING: &str = "fine-tuning-v1.0";
const INFERENCE: &str = "inference-v1.0";

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
    steps.extend(deliverables(&cast));
    steps.extend(settlement_refusals(machine, &cast));
    steps.extend(batches(&cast));
    steps.extend(reentry(&cast));
    steps.extend(refused_payments(&cast));
    steps.extend(leaving(&cast));
    steps.extend(ownership(&cast));
    steps
}

fn act(from: Address, act: Act) -> Step {
    Step::Act { from, act }
}

fn wait(seconds: u64) -> Step {
    Step::Wait { seconds }
}

fn transfer(provider: Address, service: &str, amount: U256) -> Act {
    Act::TransferFund {
        provider,
        service: service.to_owned(),
        amount,
    }
}

fn retrieve(providers: Vec<Address>, service: &str) -> Act {
    Act::RetrieveFund {
        providers,
        service: service.to_owned(),
    }
}

fn offer() -> Offer {
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

fn register(service: Service) -> Act {
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

fn service_bounds(cast: &Cast) -> Vec<Step> {
    let (provider, stranger, owner) = (cast.providers[0], cast.stranger, cast.owner);
    let altered: [(Service, fn(&mut Offer)); 11] = [
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
    for amount in [8, 4, 2, 1, 1] {
        steps.push(wait(60));
        let part = crate::support::milli(amount * 100);
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

fn root(id: Text) -> Bytes {
    keccak256(id.to_string()).to_vec().into()
}

fn delivered(provider: Address, user: Address, id: Text) -> Step {
    act(
        provider,
        Act::AddDeliverable {
            user,
            id,
            root: root(id),
        },
    )
}

fn claim(user: Address, id: Text, nonce: u64, fee: U256) -> Claim {
    Claim {
        user,
        id,
        secret_bytes: 129,
        root: root(id),
        nonce: U256::from(nonce),
        fee,
        signing: Signing::Honest,
        signer: SIGNERS[0],
    }
}

fn deliverables(cast: &Cast) -> Vec<Step> {
    let (user, provider, stranger) = (cast.users[0], cast.providers[0], cast.stranger);
    let id = |number: usize| Text('t', number);
    let add = |id: Text, root: Vec<u8>| {
        act(
            provider,
            Act::AddDeliverable {
                user,
                id,
                root: root.into(),
            },
        )
    };
    let acknowledge = |id| act(user, Act::AcknowledgeDeliverable { provider, id });
    let abandon = |id| act(provider, Act::AbandonDeliverable { user, id });
    let mut steps = vec![
        add(Text::EMPTY, vec![1]),
        add(id(257), vec![1]),
        add(id(1), vec![1; 65]),
        delivered(provider, stranger, id(1)),
        acknowledge(id(1)),
        act(
            stranger,
            Act::AcknowledgeDeliverable {
                provider,
                id: id(1),
            },
        ),
        abandon(id(1)),
        act(stranger, Act::AbandonDeliverable { user, id: id(1) }),
    ];
    // Twenty acknowledged ones fill the ring; the next needs the oldest settled.
    for number in 1..=20 {
        steps.push(delivered(provider, user, id(number)));
        if number == 1 {
            steps.push(delivered(provider, user, id(1)));
            steps.push(delivered(provider, user, id(2)));
        }
        steps.push(acknowledge(id(number)));
    }
    steps.extend([
        acknowledge(id(20)),
        delivered(provider, user, id(21)),
        act(provider, Act::SettleFees(claim(user, id(1), 10, og(1)))),
        act(provider, Act::SettleFees(claim(user, id(1), 11, og(1)))),
        acknowledge(id(1)),
        abandon(id(1)),
        delivered(provider, user, id(21)),
        delivered(provider, user, id(22)),
        abandon(id(21)),
        abandon(id(21)),
        delivered(provider, user, id(22)),
        abandon(id(2)),
        delivered(provider, user, id(22)),
        // A penalty opens the gate: the later upgrade of the published contract.
        wait(LOCK_TIME_S / 2),
    ]);
    let mut penalty = claim(user, id(22), 20, og(1));
    penalty.secret_bytes = 0;
    steps.extend([
        act(provider, Act::SettleFees(penalty)),
        acknowledge(id(22)),
        abandon(id(22)),
        abandon(id(3)),
        delivered(provider, user, id(23)),
        acknowledge(id(23)),
    ]);
    steps
}

fn settlement_refusals(machine: &Machine, cast: &Cast) -> Vec<Step> {
    let (user, provider, owner) = (cast.users[1], cast.providers[0], cast.owner);
    let (id, service) = (Text('s', 5), Service::FineTuning);
    let good = claim(user, id, 100, og(1));
    let settle = |alter: &dyn Fn(&mut Claim)| {
        let mut claim = good.clone();
        alter(&mut claim);
        act(provider, Act::SettleFees(claim))
    };
    let accept = |acknowledged| {
        act(
            owner,
            Act::AcknowledgeSignerByOwner {
                service,
                provider,
                acknowledged,
            },
        )
    };
    let mut steps = vec![
        delivered(provider, user, id),
        settle(&|claim| claim.user = cast.owner),
        act(cast.stranger, Act::SettleFees(good.clone())),
        settle(&|_| {}),
        settle(&|claim| claim.secret_bytes = 0),
        act(user, Act::AcknowledgeDeliverable { provider, id }),
        accept(false),
        settle(&|_| {}),
        accept(true),
        settle(&|claim| claim.nonce = U256::ZERO),
        settle(&|claim| claim.fee = U256::MAX),
        settle(&|claim| claim.fee = og(1_000)),
        settle(&|claim| claim.id = Text('x', 1)),
        settle(&|claim| claim.root = Bytes::from_static(b"another")),
        settle(&|claim| claim.signer = SIGNERS[1]),
        settle(&|claim| claim.secret_bytes = 0),
        settle(&|claim| claim.secret_bytes = 1025),
    ];
    for signing in FORGERIES {
        steps.push(settle(&|claim| claim.signing = signing));
    }
    steps.push(settle(&|claim| claim.fee = U256::ZERO));
    // The user's own flag can be withdrawn at balance 0, and stops settlements too.
    let emptied = cast.users[3];
    steps.extend([
        delivered(provider, emptied, id),
        act(emptied, Act::AcknowledgeDeliverable { provider, id }),
        act(provider, Act::SettleFees(claim(emptied, id, 1, og(3)))),
        act(
            emptied,
            Act::AcknowledgeSigner {
                service,
                provider,
                acknowledged: false,
            },
        ),
        act(provider, Act::SettleFees(claim(emptied, id, 2, U256::ZERO))),
        act(emptied, transfer(provider, FINE_TUNING, og(2))),
    ]);
    // A signer that is nobody can never settle.
    let mut nobody = offer();
    nobody.signer = Address::ZERO;
    let nobody = Act::AddOrUpdateService {
        service,
        offer: nobody,
        stake: U256::ZERO,
    };
    let back = Act::AddOrUpdateService {
        service,
        offer: offer(),
        stake: U256::ZERO,
    };
    steps.extend([
        act(provider, nobody),
        accept(true),
        act(provider, Act::SettleFees(claim(emptied, id, 3, U256::ZERO))),
        act(provider, back),
        accept(true),
    ]);
    assert_ne!(machine.addresses.fine_tuning, Address::ZERO);
    steps
}

const FORGERIES: [Signing; 7] = [
    Signing::OverAnotherFee,
    Signing::OverAnotherUser,
    Signing::ForAnotherContract,
    Signing::HighS,
    Signing::LowV,
    Signing::Compact,
    Signing::Empty,
];

fn item(user: Address, provider: Address, nonce: u64, fee: U256) -> Item {
    Item {
        user,
        provider,
        nonce: U256::from(nonce),
        fee,
        signing: Signing::Honest,
        signer: SIGNERS[0],
    }
}

fn batches(cast: &Cast) -> Vec<Step> {
    let (user, poor, provider) = (cast.users[0], cast.users[1], cast.providers[0]);
    let service = Service::Inference;
    let settle = |from, items| act(from, Act::SettleFeesWithTee { service, items });
    // The published matrix of statuses, and forgeries.
    let mut matrix = vec![
        item(user, provider, 1, og(1)),
        item(poor, provider, 1, og(4)),
        item(cast.owner, provider, 1, og(1)),
        item(user, provider, 1, og(1)),
        Item {
            signer: SIGNERS[1],
            ..item(user, provider, 2, og(1))
        },
        item(user, cast.providers[1], 2, og(1)),
        item(poor, provider, 2, og(1)),
    ];
    for signing in FORGERIES {
        matrix.push(Item {
            signing,
            ..item(user, provider, 2, og(1))
        });
    }
    let accept = |acknowledged| {
        act(
            cast.owner,
            Act::AcknowledgeSignerByOwner {
                service,
                provider,
                acknowledged,
            },
        )
    };
    vec![
        settle(provider, Vec::new()),
        settle(provider, vec![item(user, provider, 1, og(1)); 51]),
        settle(provider, matrix),
        settle(
            provider,
            (2..52)
                .map(|nonce| item(user, provider, nonce, U256::from(nonce)))
                .collect(),
        ),
        settle(cast.stranger, vec![item(user, cast.stranger, 1, og(1))]),
        accept(false),
        settle(provider, vec![item(user, provider, 60, og(1))]),
        accept(true),
        // A pending refund is still within reach of a settlement.
        act(user, retrieve(vec![provider], INFERENCE)),
        settle(provider, vec![item(user, provider, 61, og(1))]),
        // Without a service nothing is settled.
        act(provider, Act::RemoveService { service }),
        settle(provider, vec![item(user, provider, 62, og(1))]),
        act(provider, register(service)),
        accept(true),
    ]
}

/// Contracts that call back while they are paid.
fn reentry(cast: &Cast) -> Vec<Step> {
    let [user, provider] = cast.puppets;
    let other = cast.users[2];
    let mut steps = Vec::new();
    let react = |puppet, actor, act: Act| Step::React {
        puppet,
        reaction: Reaction::Act {
            puppet: actor,
            act: Box::new(act),
        },
    };
    // A user in the middle of its refund: every door of the ledger is locked, the provider's settlement as well.
    let id = Text('r', 7);
    steps.extend([
        act(user, transfer(provider, FINE_TUNING, og(2))),
        delivered(provider, user, id),
        act(user, Act::AcknowledgeDeliverable { provider, id }),
    ]);
    let doors = [
        (user, Act::Refund { amount: og(1) }),
        (
            user,
            Act::AddLedger {
                info: Text::EMPTY,
                value: U256::ZERO,
            },
        ),
        (user, Act::DepositFund { value: U256::ZERO }),
        (
            provider,
            Act::DepositFundFor {
                recipient: user,
                value: U256::ZERO,
            },
        ),
        (user, transfer(provider, FINE_TUNING, og(1))),
        (user, retrieve(vec![provider], FINE_TUNING)),
        (user, Act::DeleteLedger),
        (user, Act::UpdateAdditionalInfo { info: Text('n', 1) }),
        (provider, Act::SettleFees(claim(user, id, 1, og(1)))),
    ];
    for (actor, door) in doors {
        steps.push(react(user, actor, door));
        steps.push(act(user, Act::Refund { amount: og(1) }));
    }
    // What touches nothing of the ledger goes through.
    steps.push(react(
        user,
        user,
        Act::AcknowledgeDeliverable { provider, id },
    ));
    steps.push(act(user, Act::Refund { amount: og(1) }));

    // A provider that is paid or gets its stake back: the same contract refuses nested entry.
    steps.push(act(other, transfer(provider, FINE_TUNING, og(2))));
    steps.push(act(other, transfer(provider, INFERENCE, og(2))));
    let number = |number: usize| Text('q', number);
    let batch = |nonce| Act::SettleFeesWithTee {
        service: Service::Inference,
        items: vec![item(other, provider, nonce, og(1) / U256::from(10))],
    };
    let nested = [
        Act::SettleFees(claim(other, number(2), 2, og(1))),
        Act::RemoveService {
            service: Service::FineTuning,
        },
        batch(1),
    ];
    for (round, nested) in nested.into_iter().enumerate() {
        let id = number(round + 1);
        steps.extend([
            delivered(provider, other, id),
            act(other, Act::AcknowledgeDeliverable { provider, id }),
            react(provider, provider, nested),
            act(
                provider,
                Act::SettleFees(claim(other, id, round as u64 + 1, og(1) / U256::from(10))),
            ),
        ]);
    }
    for nested in [
        batch(3),
        Act::RemoveService {
            service: Service::Inference,
        },
    ] {
        steps.push(react(provider, provider, nested));
        steps.push(act(provider, batch(2 + steps.len() as u64)));
    }
    for service in [Service::FineTuning, Service::Inference] {
        steps.push(react(provider, provider, Act::RemoveService { service }));
        steps.push(act(provider, Act::RemoveService { service }));
    }
    steps
}

/// Contracts that refuse to be paid hurt nobody but themselves.
fn refused_payments(cast: &Cast) -> Vec<Step> {
    let [user, provider] = cast.puppets;
    let refuse = |puppet| Step::React {
        puppet,
        reaction: Reaction::Refuse,
    };
    let take = |puppet| Step::React {
        puppet,
        reaction: Reaction::Take,
    };
    let mut steps = vec![
        refuse(user),
        act(user, Act::Refund { amount: og(1) }),
        take(user),
    ];
    for service in [Service::FineTuning, Service::Inference] {
        steps.extend([
            take(provider),
            act(provider, register(service)),
            act(
                cast.owner,
                Act::AcknowledgeSignerByOwner {
                    service,
                    provider,
                    acknowledged: true,
                },
            ),
            refuse(provider),
            act(provider, Act::RemoveService { service }),
        ]);
    }
    let other = cast.users[2];
    let id = Text('w', 3);
    steps.extend([
        delivered(provider, other, id),
        act(other, Act::AcknowledgeDeliverable { provider, id }),
        act(
            provider,
            Act::SettleFees(claim(other, id, 1_000, og(1) / U256::from(2))),
        ),
        act(
            provider,
            Act::SettleFeesWithTee {
                service: Service::Inference,
                items: vec![item(other, provider, 1_000, og(1) / U256::from(2))],
            },
        ),
        take(provider),
        act(
            provider,
            Act::SettleFees(claim(other, id, 1_000, og(1) / U256::from(2))),
        ),
    ]);
    steps
}

/// Everything out, and back again: nonce and generation survive, deliverables do not.
fn leaving(cast: &Cast) -> Vec<Step> {
    let (user, provider) = (cast.users[0], cast.providers[0]);
    let mut steps = Vec::new();
    for _ in 0..3 {
        for service in [FINE_TUNING, INFERENCE] {
            let providers = vec![provider, Address::repeat_byte(0xb0)];
            steps.push(act(user, retrieve(providers, service)));
        }
        steps.push(wait(LOCK_TIME_S));
    }
    // The exact amount is what the model knows; half a coin too much is refused, and the rest stays legal.
    steps.extend([
        act(user, Act::Refund { amount: og(10_000) }),
        act(
            user,
            Act::AddLedger {
                info: Text::EMPTY,
                value: og(3),
            },
        ),
        act(user, transfer(provider, FINE_TUNING, og(1))),
    ]);
    // A ledger that was spent to the last neuron is deleted by hand.
    let spent = cast.stranger;
    steps.extend([
        act(
            spent,
            Act::AddLedger {
                info: Text('n', 10),
                value: og(3),
            },
        ),
        act(spent, transfer(provider, INFERENCE, og(3))),
        act(
            provider,
            Act::SettleFeesWithTee {
                service: Service::Inference,
                items: vec![item(spent, provider, 7, og(4))],
            },
        ),
        act(spent, Act::DeleteLedger),
        act(
            spent,
            Act::AddLedger {
                info: Text::EMPTY,
                value: og(5),
            },
        ),
        act(spent, transfer(provider, INFERENCE, og(1))),
        act(
            provider,
            Act::SettleFeesWithTee {
                service: Service::Inference,
                items: vec![
                    item(spent, provider, 7, og(1)),
                    item(spent, provider, 8, og(1)),
                ],
            },
        ),
    ]);
    steps
}

fn ownership(cast: &Cast) -> Vec<Step> {
    let (owner, stranger) = (cast.owner, cast.stranger);
    let mut steps = Vec::new();
    let contracts = [
        Contract::Ledger,
        Contract::Serving(Service::FineTuning),
        Contract::Serving(Service::Inference),
    ];
    for contract in contracts {
        steps.extend([
            act(
                stranger,
                Act::TransferOwnership {
                    contract,
                    to: stranger,
                },
            ),
            act(
                owner,
                Act::TransferOwnership {
                    contract,
                    to: Address::ZERO,
                },
            ),
            act(
                owner,
                Act::TransferOwnership {
                    contract,
                    to: stranger,
                },
            ),
            act(owner, Act::RenounceOwnership { contract }),
            act(stranger, Act::RenounceOwnership { contract }),
            act(
                stranger,
                Act::TransferOwnership {
                    contract,
                    to: owner,
                },
            ),
        ]);
    }
    let mut steps_after = vec![act(owner, Act::UpdatePenalty { percentage: 5 })];
    steps.append(&mut steps_after);
    steps
}
