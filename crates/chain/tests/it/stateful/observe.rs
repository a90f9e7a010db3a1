//! The parts of the chain's state that change with almost every step, read once after each.

use std::collections::BTreeMap;

use alloy_primitives::{Address, U256};
use zerog_chain::bindings::{FineTuningServing as F, InferenceServing as I, LedgerManager as L};

use super::{acts::Service, machine::Machine};

const PAGE: usize = 50;

/// Sub-accounts and services of one inference contract.
#[derive(Clone)]
pub(crate) struct ObservedInference {
    pub(crate) accounts: Vec<I::Account>,
    pub(crate) services: Vec<I::Service>,
}

/// Everything of value, by who owns it.
#[derive(Clone)]
pub(crate) struct Observed {
    pub(crate) now: u64,
    pub(crate) coins: BTreeMap<Address, U256>,
    pub(crate) ledgers: Vec<L::Ledger>,
    pub(crate) fine_tuning: Vec<F::AccountSummary>,
    pub(crate) fine_tuning_services: Vec<F::Service>,
    pub(crate) inference: [ObservedInference; 2],
    pub(crate) stakes: BTreeMap<(Service, Address), U256>,
}

impl Observed {
    /// Reads the state; `actors` are all accounts that can own something.
    pub(crate) fn read(machine: &Machine, actors: &[Address]) -> Result<Self, String> {
        let ledger = machine.addresses.ledger;
        let fine_tuning = machine.addresses.fine_tuning;
        let mut coins: BTreeMap<Address, U256> = actors
            .iter()
            .map(|actor| (*actor, machine.coins(*actor)))
            .collect();
        coins.insert(ledger, machine.coins(ledger));
        let mut stakes = BTreeMap::new();
        for service in Service::ALL {
            let contract = service.address(machine);
            coins.insert(contract, machine.coins(contract));
            for &provider in actors {
                let stake = machine
                    .view(contract, &I::stakeOfCall { provider })
                    .map_err(|data| format!("stakeOf reverts with {data}"))?;
                if !stake.is_zero() {
                    stakes.insert((service, provider), stake);
                }
            }
        }
        let limit = U256::from(PAGE);
        Ok(Self {
            now: machine.now(),
            coins,
            ledgers: pages(|offset| {
                let answer = machine.view(ledger, &L::getAllLedgersCall { offset, limit })?;
                Ok((answer.ledgers, answer.total))
            })?,
            fine_tuning: pages(|offset| {
                let answer = machine.view(fine_tuning, &F::getAllAccountsCall { offset, limit })?;
                Ok((answer.accounts, answer.total))
            })?,
            fine_tuning_services: machine
                .view(fine_tuning, &F::getAllServicesCall {})
                .map_err(|data| format!("getAllServices reverts with {data}"))?,
            inference: [
                inference(machine, machine.addresses.inference)?,
                inference(machine, machine.second_inference)?,
            ],
            stakes,
        })
    }

    pub(crate) fn ledger_total(&self, user: Address) -> U256 {
        self.ledgers
            .iter()
            .find(|ledger| ledger.user == user)
            .map_or(U256::ZERO, |ledger| ledger.totalBalance)
    }

    /// User, balance and pending refund of each sub-account of a contract.
    pub(crate) fn balances(&self, service: Service) -> Vec<(Address, U256, U256)> {
        let inference = |observed: &ObservedInference| {
            observed
                .accounts
                .iter()
                .map(|account| (account.user, account.balance, account.pendingRefund))
                .collect()
        };
        match service {
            Service::FineTuning => self
                .fine_tuning
                .iter()
                .map(|account| (account.user, account.balance, account.pendingRefund))
                .collect(),
            Service::Inference => inference(&self.inference[0]),
            Service::SecondInference => inference(&self.inference[1]),
        }
    }
}

fn inference(machine: &Machine, contract: Address) -> Result<ObservedInference, String> {
    let limit = U256::from(PAGE);
    Ok(ObservedInference {
        accounts: pages(|offset| {
            let answer = machine.view(contract, &I::getAllAccountsCall { offset, limit })?;
            Ok((answer.accounts, answer.total))
        })?,
        services: pages(|offset| {
            let answer = machine.view(contract, &I::getAllServicesCall { offset, limit })?;
            Ok((answer.services, answer.total))
        })?,
    })
}

/// All entries of a list that comes in pages.
fn pages<T>(
    read: impl Fn(U256) -> Result<(Vec<T>, U256), alloy_primitives::Bytes>,
) -> Result<Vec<T>, String> {
    let mut entries = Vec::new();
    loop {
        let (page, total) = read(U256::from(entries.len()))
            .map_err(|data| format!("a list reverts with {data}"))?;
        let is_empty = page.is_empty();
        entries.extend(page);
        if is_empty || U256::from(entries.len()) >= total {
            if U256::from(entries.len()) != total {
                return Err(format!("a list says {total} and has {}", entries.len()));
            }
            return Ok(entries);
        }
    }
}
