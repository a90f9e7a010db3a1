//! Promises about the future, tried on a copy of the present state.
//!
//! A user gets everything back without the provider's help, whatever others do meanwhile short of a signed settlement.
//! Where an open deliverable keeps the next one out, the user alone and the provider alone can each let it in.

use alloy_primitives::{Address, Bytes, U256};

use super::{
    acts::{Act, Reaction, Service, Step, Text},
    generate::Generator,
    machine::Outcome,
    play::{Coverage, Play},
    random::Random,
};
use crate::support::og;

/// How many states were tried.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tally {
    /// Withdrawals of everything.
    pub(crate) refunds: usize,
    /// Pairs whose open deliverable kept the next one out.
    pub(crate) closed_gates: usize,
    /// Pairs with 20 deliverables, the oldest of them not settled.
    pub(crate) full_rings: usize,
}

/// Tries everything that the present state gives occasion for.
pub(crate) fn run(play: &Play, random: &mut Random, tally: &mut Tally) -> Result<(), String> {
    let users: Vec<Address> = play.model.ledger.users.clone();
    for user in users {
        tally.refunds += 1;
        withdraw_everything(play.fork(), user, random)
            .map(drop)
            .map_err(|reason| format!("{user} cannot withdraw everything: {reason}"))?;
    }
    let serving = play.model.serving(Service::FineTuning);
    for &(user, provider) in &serving.pairs {
        let Some(life) = serving.life(user, provider) else {
            continue;
        };
        let Some(newest) = life.deliverables.list.last() else {
            continue;
        };
        if newest.closes_gate() {
            tally.closed_gates += 1;
            open_gate(play, user, provider, &newest.id)
                .map_err(|reason| format!("gate of {user} and {provider}: {reason}"))?;
        } else if life.deliverables.list.len() == 20 && !life.deliverables.list[0].settled {
            tally.full_rings += 1;
            make_room(play, user, provider, random)
                .map_err(|reason| format!("full ring of {user} and {provider}: {reason}"))?;
        } else {
            deliver(&mut play.fork(), user, provider)
                .map_err(|reason| format!("open gate of {user} and {provider}: {reason}"))?;
        }
    }
    Ok(())
}

/// The user acts alone; others do what they like between the steps, short of settlements.
fn withdraw_everything(mut play: Play, user: Address, random: &mut Random) -> Result<Play, String> {
    // A user that is a contract takes its money, and is not made to act by others.
    if play.cast.puppets.contains(&user) {
        for puppet in play.cast.puppets {
            let reaction = Reaction::Take;
            must(&mut play, &Step::React { puppet, reaction })?;
        }
    }
    let total = |play: &Play| {
        let record = play.model.ledger.records.get(&user);
        record.map_or(U256::ZERO, |record| record.total)
    };
    let owned = total(&play);
    let names: Vec<(String, Service)> = play
        .model
        .ledger
        .registry
        .iter()
        .map(|entry| (entry.full_name(), entry.service))
        .collect();
    let longest = 604_800;
    // Requested already; requested now; requested after a full list was collected.
    for _ in 0..3 {
        for (name, service) in &names {
            let providers = play.model.ledger.providers_of(user, *service).to_vec();
            let act = Act::RetrieveFund {
                providers,
                service: name.clone(),
            };
            must(&mut play, &Step::Act { from: user, act })?;
            interfere(&mut play, user, random)?;
        }
        must(&mut play, &Step::Wait { seconds: longest })?;
    }
    let record = play.model.ledger.records.get(&user);
    let Some((available, all)) = record.map(|record| (record.available, record.total)) else {
        return Err("the ledger vanished".to_owned());
    };
    if available != all || all < owned {
        return Err(format!(
            "{available} of {all} came back, there were {owned}"
        ));
    }
    let before = play.machine.coins(user);
    let act = if all.is_zero() {
        Act::DeleteLedger
    } else {
        Act::Refund { amount: all }
    };
    must(&mut play, &Step::Act { from: user, act })?;
    if play.machine.coins(user) != before + all || !total(&play).is_zero() {
        return Err("the money did not arrive".to_owned());
    }
    Ok(play)
}

/// Something that others do; money may come in by it and never go out.
fn interfere(play: &mut Play, user: Address, random: &mut Random) -> Result<(), String> {
    let step = Generator {
        random,
        model: &play.model,
        cast: &play.cast,
    }
    .interference(user);
    match step {
        Some(step) => play.take(&step, &mut Coverage::default()),
        None => Ok(()),
    }
}

/// The newest deliverable is open: the user lets the next one in without any download, and so does the provider
/// without any payment.
fn open_gate(play: &Play, user: Address, provider: Address, newest: &str) -> Result<(), String> {
    let id = text(newest);
    if deliver(&mut play.fork(), user, provider).is_ok() {
        return Err("a second open deliverable was accepted".to_owned());
    }
    let exits = [
        (user, Act::AcknowledgeDeliverable { provider, id }),
        (provider, Act::AbandonDeliverable { user, id }),
    ];
    for (from, act) in exits {
        let mut alone = play.fork();
        must(&mut alone, &Step::Act { from, act })?;
        if has_room(&alone, user, provider) {
            deliver(&mut alone, user, provider)?;
        }
    }
    Ok(())
}

/// 20 deliverables and the oldest not settled: the provider abandons it; the user leaves and comes back.
fn make_room(
    play: &Play,
    user: Address,
    provider: Address,
    random: &mut Random,
) -> Result<(), String> {
    let mut alone = play.fork();
    let life = play.model.serving(Service::FineTuning).life(user, provider);
    let Some(oldest) = life.and_then(|life| life.deliverables.list.first()) else {
        return Err("no deliverable to abandon".to_owned());
    };
    let act = Act::AbandonDeliverable {
        user,
        id: text(&oldest.id),
    };
    must(
        &mut alone,
        &Step::Act {
            from: provider,
            act,
        },
    )?;
    deliver(&mut alone, user, provider)?;

    let mut alone = withdraw_everything(play.fork(), user, random)?;
    let acts = [
        Act::AddLedger {
            info: Text::EMPTY,
            value: og(3),
        },
        Act::TransferFund {
            provider,
            service: "fine-tuning-v1.0".to_owned(),
            amount: og(1),
        },
    ];
    for act in acts {
        must(&mut alone, &Step::Act { from: user, act })?;
    }
    deliver(&mut alone, user, provider)
}

fn has_room(play: &Play, user: Address, provider: Address) -> bool {
    let life = play.model.serving(Service::FineTuning).life(user, provider);
    life.is_some_and(|life| life.deliverables.list.len() < 20 || life.deliverables.list[0].settled)
}

fn deliver(play: &mut Play, user: Address, provider: Address) -> Result<(), String> {
    let act = Act::AddDeliverable {
        user,
        id: Text('p', 100),
        root: Bytes::from_static(&[1; 32]),
    };
    must(
        play,
        &Step::Act {
            from: provider,
            act,
        },
    )
}

/// Takes a step that has to succeed.
fn must(play: &mut Play, step: &Step) -> Result<(), String> {
    let mut coverage = Coverage::default();
    play.take(step, &mut coverage)?;
    if coverage.accepted == 0 {
        let Outcome { result, .. } = play.model.clone().step(step);
        return Err(format!("{step:?} is refused: {result:?}"));
    }
    Ok(())
}

fn text(id: &str) -> Text {
    Text(id.chars().next().unwrap_or('z'), id.len())
}
