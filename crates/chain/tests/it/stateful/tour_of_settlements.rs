//! The second half of the tour: deliverables, settlements, contracts that call back, leaving, ownership.

use alloy_primitives::{Address, Bytes, U256, keccak256};

use super::{
    acts::{Act, Contract, Reaction, Service, Step, Text},
    claims::{Claim, Item, Signing},
    generate::{Cast, SIGNERS},
    tour::{FINE_TUNING, INFERENCE, act, offer, register, retrieve, transfer, wait},
};
use crate::support::{LOCK_TIME_S, og};

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

pub(super) fn deliverables(cast: &Cast) -> Vec<Step> {
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

pub(super) fn settlement_refusals(cast: &Cast) -> Vec<Step> {
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

pub(super) fn batches(cast: &Cast) -> Vec<Step> {
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
pub(super) fn reentry(cast: &Cast) -> Vec<Step> {
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
pub(super) fn refused_payments(cast: &Cast) -> Vec<Step> {
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
pub(super) fn leaving(cast: &Cast) -> Vec<Step> {
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

pub(super) fn ownership(cast: &Cast) -> Vec<Step> {
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
    // Nobody administrates any more.
    steps.push(act(owner, Act::UpdatePenalty { percentage: 5 }));
    steps
}
