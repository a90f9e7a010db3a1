//! The ledger: deposits, transfers, withdrawals, the registry.

use std::collections::BTreeMap;

use alloy_primitives::{Address, U256};
use zerog_chain::bindings::LedgerManager as L;

use super::{Answer, Contract, Model, Service, refuse};
use crate::stateful::{acts::DESCRIPTION, machine::Machine};

pub(crate) const MIN_ACCOUNT_BALANCE: u64 = 3;
pub(crate) const MIN_TRANSFER_AMOUNT: u64 = 1;
pub(crate) const MAX_PROVIDERS: usize = 50;
const MAX_INFO: usize = 4096;

/// One user's prepaid account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) available: U256,
    pub(crate) total: U256,
    pub(crate) info: String,
}

/// A registered service contract.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Registered {
    pub(crate) service: Service,
    pub(crate) address: Address,
    pub(crate) kind: String,
    pub(crate) version: String,
    pub(crate) description: String,
    pub(crate) at: u64,
}

impl Registered {
    pub(crate) fn full_name(&self) -> String {
        format!("{}-{}", self.kind, self.version)
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Ledger {
    pub(crate) owner: Address,
    /// Order of enumeration: removal puts the last in the free place.
    pub(crate) users: Vec<Address>,
    pub(crate) records: BTreeMap<Address, Record>,
    pub(crate) providers: BTreeMap<(Address, Service), Vec<Address>>,
    pub(crate) registry: Vec<Registered>,
    /// Recommended contract of each type.
    pub(crate) recommended: BTreeMap<String, Address>,
}

impl Ledger {
    pub(super) fn start(machine: &Machine, owner: Address) -> Self {
        let registered = |service: Service, kind: &str| Registered {
            service,
            address: service.address(machine),
            kind: kind.to_owned(),
            version: "v1.0".to_owned(),
            description: format!("{kind} serving service v1.0"),
            at: machine.now(),
        };
        let registry = vec![
            registered(Service::Inference, "inference"),
            registered(Service::FineTuning, "fine-tuning"),
        ];
        let recommended = registry
            .iter()
            .map(|entry| (entry.kind.clone(), entry.address))
            .collect();
        Self {
            owner,
            users: Vec::new(),
            records: BTreeMap::new(),
            providers: BTreeMap::new(),
            registry,
            recommended,
        }
    }

    pub(crate) fn named(&self, name: &str) -> Option<&Registered> {
        self.registry.iter().find(|entry| entry.full_name() == name)
    }

    /// Providers of a user in one service contract, in the order of the first transfer.
    pub(crate) fn providers_of(&self, user: Address, service: Service) -> &[Address] {
        self.providers
            .get(&(user, service))
            .map_or(&[], Vec::as_slice)
    }
}

/// Whole 0G in neuron.
fn og(amount: u64) -> U256 {
    crate::support::og(amount)
}

fn narrow(amount: U256) -> Answer<U256> {
    if amount > U256::from(u128::MAX) {
        return refuse(L::AmountTooLarge { amount });
    }
    Ok(amount)
}

fn require_info(info: &str) -> Answer {
    if info.len() > MAX_INFO {
        return refuse(L::AdditionalInfoTooLong {
            length: U256::from(info.len()),
            max: U256::from(MAX_INFO),
        });
    }
    Ok(())
}

impl Model {
    pub(super) fn registered(&self, address: Address) -> bool {
        self.ledger
            .registry
            .iter()
            .any(|entry| entry.address == address)
    }

    fn lock(&mut self, user: Address) -> Answer {
        if self.locked.insert(user) {
            return Ok(());
        }
        refuse(L::LedgerLocked {})
    }

    fn unlock(&mut self, user: Address) {
        self.locked.remove(&user);
    }

    fn record(&mut self, user: Address) -> Answer<&mut Record> {
        match self.ledger.records.get_mut(&user) {
            Some(record) => Ok(record),
            None => refuse(L::LedgerNotExists { user }),
        }
    }

    fn named_service(&self, name: &str) -> Answer<Service> {
        match self.ledger.named(name) {
            Some(entry) => Ok(entry.service),
            None => refuse(L::ServiceNotFound {
                serviceAddress: Address::ZERO,
            }),
        }
    }

    pub(super) fn add_ledger(&mut self, user: Address, info: &str, value: U256) -> Answer {
        self.move_coins(user, self.ledger_address, value);
        self.lock(user)?;
        if value < og(MIN_ACCOUNT_BALANCE) {
            return refuse(L::MinimumDepositRequired {
                provided: value,
                required: og(MIN_ACCOUNT_BALANCE),
            });
        }
        require_info(info)?;
        if self.ledger.records.contains_key(&user) {
            return refuse(L::LedgerExists { user });
        }
        self.create(user, user, value)?;
        self.record(user)?.info = info.to_owned();
        self.unlock(user);
        Ok(())
    }

    fn create(&mut self, payer: Address, user: Address, value: U256) -> Answer {
        narrow(value)?;
        let record = Record {
            available: value,
            total: value,
            info: String::new(),
        };
        self.ledger.users.push(user);
        self.ledger.records.insert(user, record);
        self.deposited(payer, user, value);
        Ok(())
    }

    fn deposited(&mut self, payer: Address, user: Address, amount: U256) {
        let event = L::FundDeposited {
            user,
            payer,
            amount,
        };
        self.log(self.ledger_address, event);
    }

    /// `payer` adds to the ledger of `user`; both are the same for `depositFund`.
    pub(super) fn deposit(&mut self, payer: Address, user: Address, value: U256) -> Answer {
        self.move_coins(payer, self.ledger_address, value);
        self.lock(user)?;
        if value.is_zero() {
            return refuse(L::ZeroAmountNotAllowed {});
        }
        if let Ok(record) = self.record(user) {
            record.available = narrow(record.available + value)?;
            record.total = narrow(record.total + value)?;
            self.deposited(payer, user, value);
        } else {
            if value < og(MIN_ACCOUNT_BALANCE) {
                return refuse(L::MinimumDepositRequired {
                    provided: value,
                    required: og(MIN_ACCOUNT_BALANCE),
                });
            }
            self.create(payer, user, value)?;
        }
        self.unlock(user);
        Ok(())
    }

    pub(super) fn deposit_for(&mut self, payer: Address, user: Address, value: U256) -> Answer {
        if user == Address::ZERO {
            return refuse(L::ZeroAddressNotAllowed {});
        }
        self.deposit(payer, user, value)
    }

    pub(super) fn refund(&mut self, user: Address, amount: U256) -> Answer {
        self.lock(user)?;
        let record = self.record(user)?;
        if record.available < amount {
            return refuse(L::InsufficientBalance { user });
        }
        let rest = record.available - amount;
        if !rest.is_zero() && rest < og(MIN_ACCOUNT_BALANCE) {
            return refuse(L::MinimumDepositRequired {
                provided: rest,
                required: og(MIN_ACCOUNT_BALANCE),
            });
        }
        record.available = rest;
        record.total -= amount;
        if record.total.is_zero() {
            self.remove(user);
        }
        self.log(self.ledger_address, L::FundRefunded { user, amount });
        if !self.pay(self.ledger_address, user, amount) {
            return refuse(L::TransferFailed {});
        }
        self.unlock(user);
        Ok(())
    }

    /// The ledger goes, and with it all sub-accounts, which are empty.
    fn remove(&mut self, user: Address) {
        let position = self.ledger.users.iter().position(|known| *known == user);
        self.ledger
            .users
            .swap_remove(position.expect("a ledger is in the enumeration"));
        self.ledger.records.remove(&user);
        let services: Vec<Service> = self
            .ledger
            .registry
            .iter()
            .map(|entry| entry.service)
            .collect();
        for service in services {
            let providers = self.ledger.providers.remove(&(user, service));
            for provider in providers.unwrap_or_default() {
                self.delete_account(service, user, provider);
            }
        }
    }

    pub(super) fn transfer_fund(
        &mut self,
        user: Address,
        provider: Address,
        name: &str,
        amount: U256,
    ) -> Answer {
        self.lock(user)?;
        self.record(user)?;
        let service = self.named_service(name)?;
        let pending = self
            .serving(service)
            .life(user, provider)
            .map(|life| life.pending);
        let cancelled = pending.unwrap_or_default().min(amount);
        if pending.is_none() {
            if amount < og(MIN_TRANSFER_AMOUNT) {
                return refuse(L::MinimumDepositRequired {
                    provided: amount,
                    required: og(MIN_TRANSFER_AMOUNT),
                });
            }
            let list = self.ledger.providers.entry((user, service)).or_default();
            if list.len() >= MAX_PROVIDERS {
                return refuse(L::TooManyProvidersForService {
                    current: U256::from(list.len()),
                    maximum: U256::from(MAX_PROVIDERS),
                });
            }
            list.push(provider);
        }
        let moved = amount - cancelled;
        let record = self.record(user)?;
        if record.available < moved {
            return refuse(L::InsufficientAvailableBalance {
                available: record.available,
                required: moved,
            });
        }
        record.available -= moved;
        let info = record.info.clone();
        let contract = self.serving(service).address;
        let event = L::FundTransferred {
            user,
            provider,
            service: contract,
            amount: moved,
            cancelled,
        };
        self.log(self.ledger_address, event);
        self.move_coins(self.ledger_address, contract, moved);
        if pending.is_some() {
            self.deposit_account(service, user, provider, cancelled, moved)?;
        } else {
            self.add_account(service, user, provider, &info, moved)?;
        }
        self.unlock(user);
        Ok(())
    }

    pub(super) fn retrieve_fund(
        &mut self,
        user: Address,
        providers: &[Address],
        name: &str,
    ) -> Answer {
        self.lock(user)?;
        if providers.len() > MAX_PROVIDERS {
            return refuse(L::TooManyProviders {
                requested: U256::from(providers.len()),
                maximum: U256::from(MAX_PROVIDERS),
            });
        }
        let service = self.named_service(name)?;
        self.record(user)?;
        for &provider in providers {
            if self.serving(service).life(user, provider).is_none() {
                continue;
            }
            let amount = self.process_refund(service, user, provider);
            if !amount.is_zero() {
                self.record(user)?.available += amount;
                let event = L::FundRetrieved {
                    user,
                    provider,
                    service: self.serving(service).address,
                    amount,
                };
                self.log(self.ledger_address, event);
            }
            self.request_refund_all(service, user, provider);
        }
        self.unlock(user);
        Ok(())
    }

    pub(super) fn delete_ledger(&mut self, user: Address) -> Answer {
        self.enter(self.ledger_address)?;
        self.lock(user)?;
        let total = self.record(user)?.total;
        if !total.is_zero() {
            return refuse(L::MustWithdrawAllFundsFirst {
                remainingBalance: total,
            });
        }
        self.remove(user);
        self.unlock(user);
        self.leave(self.ledger_address);
        Ok(())
    }

    pub(super) fn update_info(&mut self, user: Address, info: &str) -> Answer {
        self.lock(user)?;
        require_info(info)?;
        self.record(user)?.info = info.to_owned();
        let event = L::LedgerInfoUpdated {
            user,
            additionalInfo: info.to_owned(),
        };
        self.log(self.ledger_address, event);
        self.unlock(user);
        Ok(())
    }

    pub(super) fn spend_fund(&mut self, caller: Address, user: Address, amount: U256) -> Answer {
        if !self.registered(caller) {
            return refuse(L::CallerNotRegisteredService { caller });
        }
        if self.locked.contains(&user) {
            return refuse(L::LedgerLocked {});
        }
        let record = self.record(user)?;
        let outside = record.total - record.available;
        if outside < amount {
            return refuse(L::InsufficientAvailableBalance {
                available: outside,
                required: amount,
            });
        }
        record.total -= amount;
        let event = L::FundSpent {
            user,
            service: caller,
            amount,
        };
        self.log(self.ledger_address, event);
        Ok(())
    }

    pub(super) fn register_service(
        &mut self,
        from: Address,
        kind: &str,
        version: &str,
        address: Address,
    ) -> Answer {
        self.require_owner(from, Contract::Ledger)?;
        if address == Address::ZERO {
            return refuse(L::InvalidServiceAddress {
                serviceAddress: address,
            });
        }
        if kind.is_empty() {
            return refuse(L::ServiceTypeRequired {});
        }
        if version.is_empty() {
            return refuse(L::VersionRequired {});
        }
        if self.registered(address) {
            return refuse(L::ServiceAlreadyRegistered {
                serviceAddress: address,
            });
        }
        let full_name = format!("{kind}-{version}");
        if self.ledger.named(&full_name).is_some() {
            return refuse(L::ServiceNameExists {
                serviceName: full_name,
            });
        }
        let serving = Service::ALL
            .into_iter()
            .find(|service| self.serving(*service).address == address);
        let Some(service) = serving else {
            return refuse(L::ServiceMustImplementIServing {
                serviceAddress: address,
            });
        };
        self.ledger.registry.push(Registered {
            service,
            address,
            kind: kind.to_owned(),
            version: version.to_owned(),
            description: DESCRIPTION.to_owned(),
            at: self.now,
        });
        let event = L::ServiceRegistered {
            serviceAddress: address,
            serviceName: full_name,
        };
        self.log(self.ledger_address, event);
        Ok(())
    }

    pub(super) fn set_recommended(&mut self, from: Address, kind: &str, version: &str) -> Answer {
        self.require_owner(from, Contract::Ledger)?;
        let Some(entry) = self.ledger.named(&format!("{kind}-{version}")) else {
            return refuse(L::ServiceNotFound {
                serviceAddress: Address::ZERO,
            });
        };
        let service = entry.address;
        self.ledger.recommended.insert(kind.to_owned(), service);
        let event = L::RecommendedServiceUpdated {
            serviceType: kind.to_owned(),
            version: version.to_owned(),
            serviceAddress: service,
        };
        self.log(self.ledger_address, event);
        Ok(())
    }
}
