//! What the contracts should do, written a second time from the published rules and the adopted changes of
//! `docs/compatibility.md`, in the plainest form: maps and lists, no packing.
//!
//! For each act the model says the return or revert data to the byte, the logs in their order, and the state after it.

mod fine_tuning;
mod inference;
mod ledger;
mod serving;

use std::collections::{BTreeMap, BTreeSet};

use alloy_primitives::{Address, Bytes, Log, U256};
use alloy_sol_types::{Revert, SolError, SolEvent, SolValue};
use zerog_chain::bindings::{InferenceServing as I, LedgerManager as L};

pub(crate) use fine_tuning::Deliverable;
pub(crate) use inference::judge_batch;
pub(crate) use ledger::{Ledger, Registered};
pub(crate) use serving::{Account, Life, Serving};

use super::{
    acts::{Act, Contract, Reaction, Service, Step},
    machine::{Machine, Outcome, Puppet},
};

/// Result of an act, or its revert data.
pub(crate) type Answer<T = ()> = Result<T, Bytes>;

fn refuse<T>(error: impl SolError) -> Answer<T> {
    Err(error.abi_encode().into())
}

fn refuse_with_text<T>(reason: &str) -> Answer<T> {
    refuse(Revert::from(reason))
}

/// The whole state.
#[derive(Clone)]
pub(crate) struct Model {
    pub(crate) now: u64,
    /// Of every actor and contract, in neuron.
    pub(crate) coins: BTreeMap<Address, U256>,
    pub(crate) ledger: Ledger,
    /// In the order of [`Service::ALL`].
    pub(crate) servings: [Serving; 3],
    reactions: BTreeMap<Address, Reaction>,
    ledger_address: Address,
    /// During one transaction: users whose ledger is busy, contracts that refuse nested entry, puppets that react.
    locked: BTreeSet<Address>,
    entered: BTreeSet<Address>,
    reacting: BTreeSet<Address>,
    logs: Vec<Log>,
}

impl Model {
    /// The state right after deployment; `actors` are the accounts that will act or be paid.
    pub(crate) fn start(machine: &Machine, owner: Address, actors: &[Address]) -> Self {
        let serving = |service: Service| Serving::start(service, service.address(machine), owner);
        let mut coins = BTreeMap::new();
        for address in actors.iter().chain(&machine.puppets) {
            coins.insert(*address, machine.coins(*address));
        }
        let servings = Service::ALL.map(serving);
        for address in servings.iter().map(|serving| serving.address) {
            coins.insert(address, U256::ZERO);
        }
        coins.insert(machine.addresses.ledger, U256::ZERO);
        Self {
            now: machine.now(),
            coins,
            ledger: Ledger::start(machine, owner),
            servings,
            reactions: machine
                .puppets
                .iter()
                .map(|puppet| (*puppet, Reaction::Take))
                .collect(),
            ledger_address: machine.addresses.ledger,
            locked: BTreeSet::new(),
            entered: BTreeSet::new(),
            reacting: BTreeSet::new(),
            logs: Vec::new(),
        }
    }

    pub(crate) fn serving(&self, service: Service) -> &Serving {
        &self.servings[service as usize]
    }

    fn serving_mut(&mut self, service: Service) -> &mut Serving {
        &mut self.servings[service as usize]
    }

    /// What the puppets do with payments at present.
    pub(crate) fn reactions(&self) -> impl Iterator<Item = &Reaction> {
        self.reactions.values()
    }

    /// Takes one step and says what it does.
    pub(crate) fn step(&mut self, step: &Step) -> Outcome {
        let result = match step {
            Step::Wait { seconds } => {
                self.now += seconds;
                Ok(Bytes::new())
            }
            Step::React { puppet, reaction } => {
                self.reactions.insert(*puppet, reaction.clone());
                Ok(Bytes::new())
            }
            Step::Act { from, act } => {
                let before = self.clone();
                let result = self.run(*from, act);
                if result.is_err() {
                    *self = before;
                }
                result
            }
        };
        self.locked.clear();
        self.entered.clear();
        Outcome {
            result,
            logs: std::mem::take(&mut self.logs),
        }
    }

    /// Carries out an act; after a refusal the state is of no use.
    fn run(&mut self, from: Address, act: &Act) -> Answer<Bytes> {
        match act {
            Act::AddLedger { info, value } => {
                return self
                    .add_ledger(from, &info.to_string(), *value)
                    .map(|()| (*value, U256::ZERO).abi_encode().into());
            }
            Act::DepositFund { value } => self.deposit(from, from, *value),
            Act::DepositFundFor { recipient, value } => self.deposit_for(from, *recipient, *value),
            Act::Refund { amount } => self.refund(from, *amount),
            Act::TransferFund {
                provider,
                service,
                amount,
            } => self.transfer_fund(from, *provider, service, *amount),
            Act::RetrieveFund { providers, service } => {
                self.retrieve_fund(from, providers, service)
            }
            Act::DeleteLedger => self.delete_ledger(from),
            Act::UpdateAdditionalInfo { info } => self.update_info(from, &info.to_string()),
            Act::SpendFund { user, amount } => self.spend_fund(from, *user, *amount),
            Act::RegisterService {
                kind,
                version,
                address,
            } => self.register_service(from, kind, version, *address),
            Act::SetRecommendedService { kind, version } => {
                self.set_recommended(from, kind, version)
            }
            Act::Pay { to, .. } => self.pay_contract(*to),
            Act::TransferOwnership { contract, to } => {
                self.transfer_ownership(from, *contract, *to)
            }
            Act::RenounceOwnership { contract } => self.renounce_ownership(from, *contract),
            Act::Initialize { .. } => refuse(I::AlreadyInitialized {}),
            Act::LedgerOnly { service, .. } => self
                .serving(*service)
                .require_ledger(from, self.ledger_address),
            Act::AddOrUpdateService {
                service,
                offer,
                stake,
            } => self.add_or_update_service(from, *service, offer, *stake),
            Act::RemoveService { service } => self.remove_service(from, *service),
            Act::AcknowledgeSigner {
                service,
                provider,
                acknowledged,
            } => self.acknowledge_signer(from, *service, *provider, *acknowledged),
            Act::AcknowledgeSignerByOwner {
                service,
                provider,
                acknowledged,
            } => self.acknowledge_signer_by_owner(from, *service, *provider, *acknowledged),
            Act::UpdateLockTime { service, seconds } => {
                self.update_lock_time(from, *service, *seconds)
            }
            Act::UpdatePenalty { percentage } => self.update_penalty(from, *percentage),
            Act::UpdateAckWindow { seconds } => self.update_ack_window(from, *seconds),
            Act::AddDeliverable { user, id, root } => {
                self.add_deliverable(from, *user, &id.to_string(), root)
            }
            Act::AbandonDeliverable { user, id } => {
                self.abandon_deliverable(from, *user, &id.to_string())
            }
            Act::AcknowledgeDeliverable { provider, id } => {
                self.acknowledge_deliverable(from, *provider, &id.to_string())
            }
            Act::SettleFees(claim) => self.settle_fees(from, claim),
            Act::SettleFeesWithTee { service, items } => {
                return self.settle_batch(from, *service, items);
            }
            Act::RevokeToken {
                service,
                provider,
                id,
            } => self.revoke_token(from, *service, *provider, *id),
            Act::RevokeTokens {
                service,
                provider,
                ids,
            } => self.revoke_tokens(from, *service, *provider, ids),
            Act::RevokeAllTokens { service, provider } => {
                self.revoke_all_tokens(from, *service, *provider)
            }
        }
        .map(|()| Bytes::new())
    }

    fn log(&mut self, address: Address, event: impl SolEvent) {
        self.logs.push(Log {
            address,
            data: event.encode_log_data(),
        });
    }

    fn move_coins(&mut self, from: Address, to: Address, amount: U256) {
        let coins = |state: &BTreeMap<Address, U256>, address| {
            *state.get(&address).expect("every actor is in the books")
        };
        let rest = coins(&self.coins, from).checked_sub(amount);
        self.coins
            .insert(from, rest.expect("a play never sends more than there is"));
        let sum = coins(&self.coins, to) + amount;
        self.coins.insert(to, sum);
    }

    /// A contract pays an account, which may be a puppet that reacts; false when it refuses.
    fn pay(&mut self, from: Address, to: Address, amount: U256) -> bool {
        self.move_coins(from, to, amount);
        if self.reacting.contains(&to) {
            return true;
        }
        match self.reactions.get(&to).cloned() {
            None | Some(Reaction::Take) => true,
            Some(Reaction::Refuse) => {
                self.move_coins(to, from, amount);
                false
            }
            Some(Reaction::Act { puppet, act }) => {
                self.reacting.insert(to);
                let before = self.clone();
                let answer = self.run(puppet, &act);
                if answer.is_err() {
                    *self = before;
                }
                self.reacting.remove(&to);
                let event = Puppet::Reacted {
                    ok: answer.is_ok(),
                    answer: answer.unwrap_or_else(|refusal| refusal),
                };
                self.log(to, event);
                true
            }
        }
    }

    /// Nobody but a service contract may pay in without a call.
    fn pay_contract(&self, to: Contract) -> Answer {
        match to {
            Contract::Ledger => refuse(L::DirectDepositsDisabled {}),
            Contract::Serving(_) => refuse(I::DirectDepositsDisabled {}),
        }
    }

    fn owner_mut(&mut self, contract: Contract) -> &mut Address {
        match contract {
            Contract::Ledger => &mut self.ledger.owner,
            Contract::Serving(service) => &mut self.serving_mut(service).owner,
        }
    }

    fn address(&self, contract: Contract) -> Address {
        match contract {
            Contract::Ledger => self.ledger_address,
            Contract::Serving(service) => self.serving(service).address,
        }
    }

    fn require_owner(&mut self, from: Address, contract: Contract) -> Answer {
        if *self.owner_mut(contract) == from {
            return Ok(());
        }
        refuse_with_text("Ownable: caller is not the owner")
    }

    fn transfer_ownership(&mut self, from: Address, contract: Contract, to: Address) -> Answer {
        self.require_owner(from, contract)?;
        if to == Address::ZERO {
            return refuse_with_text("Ownable: new owner is the zero address");
        }
        self.set_owner(from, contract, to);
        Ok(())
    }

    fn renounce_ownership(&mut self, from: Address, contract: Contract) -> Answer {
        self.require_owner(from, contract)?;
        self.set_owner(from, contract, Address::ZERO);
        Ok(())
    }

    fn set_owner(&mut self, from: Address, contract: Contract, to: Address) {
        *self.owner_mut(contract) = to;
        let event = L::OwnershipTransferred {
            previousOwner: from,
            newOwner: to,
        };
        self.log(self.address(contract), event);
    }

    /// A function that refuses nested entry begins.
    fn enter(&mut self, contract: Address) -> Answer {
        if self.entered.insert(contract) {
            return Ok(());
        }
        refuse_with_text("ReentrancyGuard: reentrant call")
    }

    fn leave(&mut self, contract: Address) {
        self.entered.remove(&contract);
    }
}
