//! Random steps that are likely to mean something: the model is asked what exists and what fits.

use alloy_primitives::{Address, Bytes, U256, keccak256};
use zerog_devchain::accounts::ACCOUNTS;

use super::{
    acts::{Act, Contract, LedgerOnly, Offer, Reaction, Service, Step, Text},
    claims::{Claim, Item},
    machine::Machine,
    model::Model,
    random::Random,
};
use crate::support::og;

/// Development accounts whose keys sign for enclaves.
pub(crate) const SIGNERS: [usize; 2] = [1, 8];

/// Who takes part.
#[derive(Clone)]
pub(crate) struct Cast {
    pub(crate) owner: Address,
    pub(crate) users: Vec<Address>,
    pub(crate) providers: Vec<Address>,
    pub(crate) puppets: [Address; 2],
    pub(crate) stranger: Address,
    /// Sends the transactions that make puppets act.
    pub(crate) driver: Address,
}

impl Cast {
    pub(crate) fn new(machine: &Machine) -> Self {
        let account = |index: usize| ACCOUNTS[index].address;
        let puppets = machine.puppets;
        Self {
            owner: account(0),
            users: vec![account(3), account(4), account(5), puppets[0]],
            providers: vec![account(2), account(6), puppets[1]],
            puppets,
            stranger: account(7),
            driver: account(9),
        }
    }

    /// Everybody who can own something.
    pub(crate) fn everybody(&self) -> Vec<Address> {
        let mut all = vec![self.owner, self.stranger, self.driver];
        all.extend(&self.users);
        all.extend(&self.providers);
        all
    }
}

pub(crate) struct Generator<'a> {
    pub(crate) random: &'a mut Random,
    pub(crate) model: &'a Model,
    pub(crate) cast: &'a Cast,
}

impl Generator<'_> {
    /// Anything by anybody.
    pub(crate) fn step(&mut self) -> Step {
        match self.random.below(100) {
            0..8 => Step::Wait {
                seconds: self.seconds(),
            },
            8..12 => self.reaction(),
            _ => {
                let (from, act) = self.act();
                Step::Act { from, act }
            }
        }
    }

    /// Anything by somebody who is not `user`, except settlements and the administration of the owner.
    pub(crate) fn interference(&mut self, user: Address) -> Option<Step> {
        for _ in 0..8 {
            let (from, act) = self.act();
            let is_settlement = matches!(act, Act::SettleFees(_) | Act::SettleFeesWithTee { .. });
            if from != user && from != self.cast.owner && !is_settlement {
                return Some(Step::Act { from, act });
            }
        }
        None
    }

    fn reaction(&mut self) -> Step {
        let puppet = self.random.pick(&self.cast.puppets);
        let reaction = match self.random.below(4) {
            0 => Reaction::Refuse,
            1 => Reaction::Take,
            _ => {
                let (actor, act) = self.nested_act();
                Reaction::Act {
                    puppet: actor,
                    act: Box::new(act),
                }
            }
        };
        Step::React { puppet, reaction }
    }

    /// An act of a puppet that sends no coins.
    fn nested_act(&mut self) -> (Address, Act) {
        loop {
            let actor = self.random.pick(&self.cast.puppets);
            let user = self.cast.users[0];
            let act = match self.random.below(8) {
                0 => Act::Refund {
                    amount: self.refund_amount(actor),
                },
                1 => Act::RetrieveFund {
                    providers: self.cast.providers.clone(),
                    service: self.service_name(),
                },
                2 => Act::DeleteLedger,
                _ => {
                    let (_, act) = self.act_of(actor, user);
                    act
                }
            };
            let sends_coins = match &act {
                Act::AddLedger { value, .. }
                | Act::DepositFund { value }
                | Act::DepositFundFor { value, .. }
                | Act::Pay { value, .. }
                | Act::AddOrUpdateService { stake: value, .. } => !value.is_zero(),
                _ => false,
            };
            if !sends_coins {
                return (actor, act);
            }
        }
    }

    pub(crate) fn act(&mut self) -> (Address, Act) {
        let user = self.user();
        let provider = self.provider();
        // Providers, users and strangers come in turns; sometimes the wrong one does it.
        if self.random.percent(3) {
            return self.act_of(self.cast.stranger, user);
        }
        self.act_of(provider, user)
    }

    /// An act of `user`, of `provider`, or of the owner, by its kind.
    fn act_of(&mut self, provider: Address, user: Address) -> (Address, Act) {
        match self.random.below(100) {
            0..30 => (user, self.ledger_act(user)),
            30..44 => (user, self.user_act(user)),
            44..50 => (provider, self.service_act(provider)),
            50..76 => (provider, self.deliverable_act(provider)),
            76..88 => (provider, self.batch(provider)),
            88..96 => self.owner_act(provider),
            _ => self.odd_act(user, provider),
        }
    }

    fn ledger_act(&mut self, user: Address) -> Act {
        let info = self.info();
        match self.random.below(30) {
            0..2 => Act::AddLedger {
                info,
                value: self.amount(&[og(3), og(40)]),
            },
            2..4 => Act::DepositFund {
                value: self.amount(&[og(3), og(20)]),
            },
            4 => Act::DepositFundFor {
                recipient: self.user(),
                value: self.amount(&[og(3)]),
            },
            5..9 => Act::Refund {
                amount: self.refund_amount(user),
            },
            9..19 => self.transfer(user),
            19..28 => Act::RetrieveFund {
                providers: self.retrieved(user),
                service: self.service_name(),
            },
            28 => Act::DeleteLedger,
            _ => Act::UpdateAdditionalInfo { info },
        }
    }

    fn transfer(&mut self, user: Address) -> Act {
        let service = self.service_name();
        let provider = match self.random.below(40) {
            0 => Address::ZERO,
            1 => user,
            2..5 => Address::repeat_byte(0xb0 + self.random.below(3) as u8),
            _ => self.provider(),
        };
        let mut hints = vec![og(1), og(2)];
        if let Some(entry) = self.model.ledger.named(&service) {
            let life = self.model.serving(entry.service).life(user, provider);
            hints.extend(life.map(|life| life.pending));
        }
        let record = self.model.ledger.records.get(&user);
        hints.extend(record.map(|record| record.available));
        Act::TransferFund {
            provider,
            service,
            amount: self.amount(&hints),
        }
    }

    fn user_act(&mut self, user: Address) -> Act {
        let service = self.service();
        let provider = self.provider();
        match self.random.below(14) {
            0..9 => {
                let pairs = self.pairs(Service::FineTuning, |(owner, _)| owner == user);
                let provider = self
                    .random
                    .maybe_pick(&pairs)
                    .map_or(provider, |pair| pair.1);
                let id = self.known_id(user, provider);
                Act::AcknowledgeDeliverable { provider, id }
            }
            9 | 10 => Act::AcknowledgeSigner {
                service,
                provider,
                acknowledged: self.random.percent(50),
            },
            11 => Act::RevokeToken {
                service: self.inference(),
                provider,
                id: self.random.below(256) as u8,
            },
            12 => Act::RevokeTokens {
                service: self.inference(),
                provider,
                ids: (0..self.random.below(5))
                    .map(|id| (id * 61) as u8)
                    .collect(),
            },
            _ => Act::RevokeAllTokens {
                service: self.inference(),
                provider,
            },
        }
    }

    fn service_act(&mut self, provider: Address) -> Act {
        let service = self.service();
        if self.random.percent(25) {
            return Act::RemoveService { service };
        }
        let has_stake = self.model.serving(service).stakes.contains_key(&provider);
        let fits = self.random.percent(90);
        let stake = match (has_stake, fits) {
            (false, true) => og(100 + self.random.below(2)),
            (false, false) => og(100) - U256::from(1),
            (true, true) => U256::ZERO,
            (true, false) => U256::from(1),
        };
        Act::AddOrUpdateService {
            service,
            offer: self.offer(),
            stake,
        }
    }

    fn offer(&mut self) -> Offer {
        let signer = match self.random.below(12) {
            0 => Address::ZERO,
            1 => ACCOUNTS[SIGNERS[1]].address,
            _ => ACCOUNTS[SIGNERS[0]].address,
        };
        let mut offer = Offer {
            url: Text(self.random.pick(&['u', 'v']), 30),
            kind: Text(self.random.pick(&['k', 'k', 'l']), 8),
            models: vec![Text('m', 12); self.random.below(4) as usize],
            verifiability: Text('t', 5),
            info: Text(self.random.pick(&['i', 'i', 'j']), 40),
            price: self.random.below(4),
            occupied: self.random.percent(50),
            signer,
        };
        match self.random.below(40) {
            0 => offer.url.1 = 1025,
            1 => offer.kind.1 = 257,
            2 => offer.models = vec![Text('m', 3); 65],
            3 => offer.models = vec![Text('m', 257)],
            4 => offer.verifiability.1 = 257,
            5 => offer.info.1 = 4097,
            6 => offer.info.1 = 4096,
            _ => {}
        }
        offer
    }

    fn deliverable_act(&mut self, provider: Address) -> Act {
        let pairs = self.pairs(Service::FineTuning, |(_, of)| of == provider);
        let user = match self.random.maybe_pick(&pairs) {
            Some((user, _)) if self.random.percent(95) => user,
            _ => self.user(),
        };
        match self.random.below(24) {
            0..9 => {
                let id = self.new_id(user, provider);
                let length = match self.random.below(30) {
                    0 => 0,
                    1 => 64,
                    2 => 65,
                    _ => 32,
                };
                let root = [keccak256(id.to_string()).0, [0; 32]].concat();
                let mut root = root;
                root.resize(length.max(1), 1);
                root.truncate(length);
                Act::AddDeliverable {
                    user,
                    id,
                    root: root.into(),
                }
            }
            9..12 => Act::AbandonDeliverable {
                user,
                id: self.known_id(user, provider),
            },
            _ => self.claim(user, provider),
        }
    }

    fn claim(&mut self, user: Address, provider: Address) -> Act {
        let id = self.known_id(user, provider);
        let serving = self.model.serving(Service::FineTuning);
        let account = serving.account(user, provider);
        let life = account.life.unwrap_or_default();
        let deliverable = life.deliverables.find(&id.to_string());
        let acknowledged = deliverable.is_some_and(|deliverable| deliverable.acknowledged);
        let secret_bytes = match (acknowledged, self.random.below(24)) {
            (_, 0) => 1025,
            (true, 1) | (false, 2..) => 0,
            _ => 129,
        };
        let root = match deliverable {
            Some(deliverable) if self.random.percent(96) => deliverable.root.clone(),
            _ => Bytes::from_static(b"another root"),
        };
        let registered = serving.registrations.get(&provider);
        let signer = registered.map(|registration| registration.offer.signer);
        let fee = if acknowledged {
            self.amount(&[life.balance])
        } else {
            // A fee whose penalty share is all there is.
            let percentage = U256::from(serving.penalty.max(1));
            self.amount(&[life.balance * U256::from(100) / percentage])
        };
        Act::SettleFees(Claim {
            user,
            id,
            secret_bytes,
            root,
            nonce: self.nonce(account.nonce),
            fee,
            signing: self.signing(),
            signer: self.signer(signer),
        })
    }

    fn batch(&mut self, provider: Address) -> Act {
        let service = self.inference();
        Act::SettleFeesWithTee {
            service,
            items: self.items(service, provider),
        }
    }

    /// Items of a settlement of `provider`.
    pub(crate) fn items(&mut self, service: Service, provider: Address) -> Vec<Item> {
        let pairs = self.pairs(service, |(_, of)| of == provider);
        let serving = self.model.serving(service);
        let registered = serving.registrations.get(&provider);
        let accepted = registered.map(|registration| registration.offer.signer);
        let count = match self.random.below(60) {
            0 => 0,
            1 => 51,
            2 => 50,
            _ => 1 + self.random.below(4),
        };
        let mut items: Vec<Item> = Vec::new();
        for _ in 0..count {
            let user = match self.random.maybe_pick(&pairs) {
                Some((user, _)) if self.random.percent(95) => user,
                _ => self.user(),
            };
            let account = serving.account(user, provider);
            let used = items.iter().rfind(|item| item.user == user);
            let last = used.map_or(account.nonce, |item| item.nonce.max(account.nonce));
            let balance = account.life.map_or(U256::ZERO, |life| life.balance);
            items.push(Item {
                user,
                provider: if self.random.percent(97) {
                    provider
                } else {
                    user
                },
                nonce: self.nonce(last),
                fee: self.amount(&[balance, balance / U256::from(2)]),
                signing: self.signing(),
                signer: self.signer(accepted),
            });
        }
        items
    }

    fn owner_act(&mut self, provider: Address) -> (Address, Act) {
        let service = self.service();
        let fine_tuning = Contract::Serving(Service::FineTuning);
        let (contract, act) = match self.random.below(20) {
            0..11 => (
                Contract::Serving(service),
                Act::AcknowledgeSignerByOwner {
                    service,
                    provider,
                    acknowledged: self.random.percent(85),
                },
            ),
            11..14 => (
                Contract::Serving(service),
                Act::UpdateLockTime {
                    service,
                    seconds: self
                        .random
                        .pick(&[3_600, 86_400, 86_400, 604_800, 3_599, 604_801]),
                },
            ),
            14 | 15 => (
                fine_tuning,
                Act::UpdatePenalty {
                    percentage: self.random.pick(&[0, 1, 30, 30, 99, 100, 101]),
                },
            ),
            16 | 17 => (
                fine_tuning,
                Act::UpdateAckWindow {
                    seconds: self.random.pick(&[0, 60, 172_800, 604_800, 604_801]),
                },
            ),
            18 => {
                let (kind, version) = (self.kind(), self.version());
                let act = if self.random.percent(50) {
                    Act::SetRecommendedService { kind, version }
                } else {
                    let contracts = Service::ALL.map(|service| self.model.serving(service).address);
                    let address = if self.random.percent(60) {
                        self.random.pick(&contracts)
                    } else {
                        self.anybody()
                    };
                    Act::RegisterService {
                        kind,
                        version,
                        address,
                    }
                };
                (Contract::Ledger, act)
            }
            _ => {
                let contract = self.contract();
                let to = self
                    .random
                    .pick(&[self.cast.owner, self.cast.owner, self.cast.stranger]);
                (contract, Act::TransferOwnership { contract, to })
            }
        };
        let owner = match contract {
            Contract::Ledger => self.model.ledger.owner,
            Contract::Serving(service) => self.model.serving(service).owner,
        };
        // Nobody owns a contract after the ownership was given up.
        if owner == Address::ZERO || self.random.percent(5) {
            return (self.cast.stranger, act);
        }
        (owner, act)
    }

    /// What nobody is allowed to do.
    fn odd_act(&mut self, user: Address, provider: Address) -> (Address, Act) {
        let service = self.service();
        let functions = [
            LedgerOnly::AddAccount,
            LedgerOnly::DepositFund,
            LedgerOnly::RequestRefundAll,
            LedgerOnly::ProcessRefund,
            LedgerOnly::DeleteAccount,
        ];
        let act = match self.random.below(5) {
            0 => Act::SpendFund {
                user,
                amount: self.amount(&[]),
            },
            1 => Act::Pay {
                to: self.contract(),
                value: self.amount(&[]),
            },
            2 => Act::Initialize {
                contract: self.contract(),
            },
            _ => Act::LedgerOnly {
                service,
                function: self.random.pick(&functions),
                user,
                provider,
            },
        };
        (self.random.pick(&[user, provider, self.cast.stranger]), act)
    }
}
