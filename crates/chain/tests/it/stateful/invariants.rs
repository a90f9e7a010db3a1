//! What must hold after every step whatever the model thinks: from the chain's own numbers and logs alone.

use std::collections::{BTreeMap, BTreeSet};

use alloy_primitives::{Address, Log, Signature, U256};
use alloy_sol_types::SolEvent;
use zerog_chain::bindings::{FineTuningServing as F, LedgerManager as L};

use super::{
    acts::{Act, Reaction, Service, Step},
    claims::{Claim, signed},
    machine::Machine,
    observe::Observed,
};
use crate::support::{fine_tuning_digest, inference_digest};

/// Sums of a whole play.
#[derive(Clone, Default)]
pub(crate) struct Books {
    deposited: U256,
    refunded: U256,
    pub(crate) spent: U256,
}

/// Checks one step: `earlier` and `before` are the chain before it, `reactions` the acts that puppets may have
/// taken during it.
pub(crate) fn check(
    earlier: &Machine,
    before: &Observed,
    after: &Observed,
    step: &Step,
    reactions: &[(Address, Act)],
    logs: &[Log],
    books: &mut Books,
) -> Result<(), String> {
    let fail = |text: String| Err(format!("invariant broken: {text}"));
    let coins = |observed: &Observed| observed.coins.values().copied().sum::<U256>();
    if coins(before) != coins(after) {
        return fail("coins appear or vanish".to_owned());
    }
    solvency(earlier, after).or_else(fail)?;
    let spent = enter(books, logs);
    let owed: U256 = after.ledgers.iter().map(|ledger| ledger.totalBalance).sum();
    if books.deposited != owed + books.refunded + books.spent {
        return fail(format!(
            "deposits of {} are not {owed} owed, {} paid back and {} paid to providers",
            books.deposited, books.refunded, books.spent
        ));
    }
    movements(earlier, before, after, step, reactions, &spent).or_else(fail)
}

/// Each contract holds exactly what it owes, and each user's total is the sum of its parts.
fn solvency(machine: &Machine, after: &Observed) -> Result<(), String> {
    let available: U256 = after
        .ledgers
        .iter()
        .map(|ledger| ledger.availableBalance)
        .sum();
    let held = after.coins[&machine.addresses.ledger];
    if held != available {
        return Err(format!("the ledger holds {held} and owes {available}"));
    }
    let mut in_sub_accounts: BTreeMap<Address, U256> = BTreeMap::new();
    for service in Service::ALL {
        let mut owed: U256 = after
            .stakes
            .iter()
            .filter(|((staked_in, _), _)| *staked_in == service)
            .map(|(_, stake)| *stake)
            .sum();
        for (user, balance, pending) in after.balances(service) {
            if pending > balance {
                return Err(format!("{pending} of {balance} is pending for {user}"));
            }
            owed += balance;
            *in_sub_accounts.entry(user).or_default() += balance;
        }
        let held = after.coins[&service.address(machine)];
        if held != owed {
            return Err(format!("{service:?} holds {held} and owes {owed}"));
        }
    }
    for ledger in &after.ledgers {
        let outside = in_sub_accounts.remove(&ledger.user).unwrap_or_default();
        if ledger.totalBalance != ledger.availableBalance + outside {
            return Err(format!(
                "the total of {} is not the sum of its parts",
                ledger.user
            ));
        }
    }
    match in_sub_accounts
        .into_iter()
        .find(|(_, balance)| !balance.is_zero())
    {
        Some((user, balance)) => Err(format!("{user} has {balance} and no ledger")),
        None => Ok(()),
    }
}

/// Adds the logs to the books; returns what was spent for each user.
fn enter(books: &mut Books, logs: &[Log]) -> BTreeMap<Address, U256> {
    let mut spent: BTreeMap<Address, U256> = BTreeMap::new();
    for log in logs {
        if let Ok(event) = L::FundDeposited::decode_log(log) {
            books.deposited += event.amount;
        } else if let Ok(event) = L::FundRefunded::decode_log(log) {
            books.refunded += event.amount;
        } else if let Ok(event) = L::FundSpent::decode_log(log) {
            books.spent += event.amount;
            *spent.entry(event.user).or_default() += event.amount;
        }
    }
    spent
}

/// A user's money moves by the user's own act, or by a settlement that the enclave signed; somebody else's act never
/// makes a user poorer.
fn movements(
    machine: &Machine,
    before: &Observed,
    after: &Observed,
    step: &Step,
    reactions: &[(Address, Act)],
    spent: &BTreeMap<Address, U256>,
) -> Result<(), String> {
    let mut acts: Vec<(Address, &Act)> = reactions.iter().map(|(from, act)| (*from, act)).collect();
    if let Step::Act { from, act } = step {
        acts.push((*from, act));
    }
    let actors: BTreeSet<Address> = acts.iter().map(|(from, _)| *from).collect();
    let mut authorized: BTreeMap<Address, U256> = BTreeMap::new();
    for (from, act) in &acts {
        for (user, fee) in authorized_fees(machine, before, *from, act) {
            let sum = authorized.entry(user).or_default();
            *sum = sum.saturating_add(fee);
        }
    }
    for (user, amount) in spent {
        let allowed = authorized.get(user).copied().unwrap_or_default();
        if *amount > allowed {
            return Err(format!(
                "{amount} of {user} is spent, {allowed} is signed for"
            ));
        }
    }
    for (address, had) in &before.coins {
        if actors.contains(address) || after.coins[address] >= *had {
            continue;
        }
        let is_contract = *address == machine.addresses.ledger
            || Service::ALL
                .iter()
                .any(|service| service.address(machine) == *address);
        if !is_contract {
            return Err(format!("{address} lost coins by somebody else's act"));
        }
    }
    for ledger in &before.ledgers {
        let user = ledger.user;
        let lost = ledger.totalBalance.saturating_sub(after.ledger_total(user));
        let paid = spent.get(&user).copied().unwrap_or_default();
        if lost > paid && !actors.contains(&user) {
            return Err(format!("{user} lost {lost} by somebody else's act"));
        }
    }
    Ok(())
}

/// What an act may take from users: fees over which the accepted signer of the caller's service put its signature.
fn authorized_fees(
    machine: &Machine,
    before: &Observed,
    from: Address,
    act: &Act,
) -> Vec<(Address, U256)> {
    match act {
        Act::SettleFees(claim) => {
            let service = before
                .fine_tuning_services
                .iter()
                .find(|service| service.provider == from && service.teeSignerAcknowledged);
            let fee = service
                .filter(|service| claim_is_signed(machine, claim, service.teeSignerAddress))
                .and_then(|_| chargeable(machine, before, from, claim));
            fee.map(|fee| (claim.user, fee)).into_iter().collect()
        }
        Act::SettleFeesWithTee { service, items } => {
            let contract = service.address(machine);
            let observed = match service {
                Service::SecondInference => &before.inference[1],
                _ => &before.inference[0],
            };
            let accepted = observed
                .services
                .iter()
                .find(|service| service.provider == from && service.teeSignerAcknowledged);
            let Some(accepted) = accepted else {
                return Vec::new();
            };
            let is_authentic = |item: &&zerog_chain::inference::Settlement| {
                let digest = inference_digest(item, contract);
                item.provider == from
                    && recovers(&item.signature, digest, accepted.teeSignerAddress)
            };
            let items = signed(items, contract, machine);
            items
                .iter()
                .filter(is_authentic)
                .map(|item| (item.user, item.total_fee))
                .collect()
        }
        _ => Vec::new(),
    }
}

fn claim_is_signed(machine: &Machine, claim: &Claim, signer: Address) -> bool {
    let settlement = claim.signed(machine);
    let digest = fine_tuning_digest(&settlement, machine.addresses.fine_tuning);
    recovers(&settlement.signature, digest, signer)
}

fn recovers(signature: &[u8], digest: alloy_primitives::B256, signer: Address) -> bool {
    let Ok(parsed) = Signature::from_raw(signature) else {
        return false;
    };
    parsed.normalize_s().is_none()
        && signature[64] >= 27
        && signer != Address::ZERO
        && parsed
            .recover_address_from_prehash(&digest)
            .is_ok_and(|found| found == signer)
}

/// The whole fee of an acknowledged deliverable, the penalty of another one after its window, else nothing.
fn chargeable(
    machine: &Machine,
    before: &Observed,
    provider: Address,
    claim: &Claim,
) -> Option<U256> {
    let contract = machine.addresses.fine_tuning;
    let (user, id) = (claim.user, claim.id.to_string());
    let call = F::getDeliverableCall {
        user,
        provider,
        id: id.clone(),
    };
    let deliverable = machine.view(contract, &call).ok()?;
    if deliverable.acknowledged {
        return Some(claim.fee);
    }
    let deadline = machine
        .view(contract, &F::acknowledgeDeadlineCall { user, provider, id })
        .ok()?;
    let percentage = machine.view(contract, &F::penaltyPercentageCall {}).ok()?;
    let penalty = claim.fee / U256::from(100) * percentage
        + claim.fee % U256::from(100) * percentage / U256::from(100);
    (U256::from(before.now) >= deadline).then_some(penalty)
}

/// Acts that puppets take when they are paid.
pub(crate) fn possible_reactions<'a>(
    reactions: impl Iterator<Item = &'a Reaction>,
) -> Vec<(Address, Act)> {
    reactions
        .filter_map(|reaction| match reaction {
            Reaction::Act { puppet, act } => Some((*puppet, (**act).clone())),
            _ => None,
        })
        .collect()
}
