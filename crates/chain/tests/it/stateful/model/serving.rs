//! What both service contracts share: sub-accounts, refunds, stakes, acknowledgements, lock time.

use std::collections::BTreeMap;

use alloy_primitives::{Address, U256};
use alloy_sol_types::SolError;
use zerog_chain::bindings::{FineTuningServing as F, InferenceServing as I};

use super::{Answer, Contract, Model, Service, fine_tuning::Deliverables, refuse};
use crate::{stateful::acts::Offer, support::LOCK_TIME_S};

pub(crate) const MAX_REFUNDS: usize = 5;
pub(crate) const STAKE: u64 = 100;
const MAX_URL: usize = 1024;
const MAX_TEXT: usize = 256;

/// What survives the deletion of a sub-account, and its present life if it has one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) nonce: U256,
    pub(crate) generation: u64,
    pub(crate) life: Option<Life>,
}

/// A sub-account from its creation to its deletion.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Life {
    pub(crate) balance: U256,
    pub(crate) pending: U256,
    /// Amount and request time, oldest first.
    pub(crate) refunds: Vec<(U256, u64)>,
    pub(crate) acknowledged: bool,
    pub(crate) info: String,
    pub(crate) revoked: U256,
    pub(crate) deliverables: Deliverables,
}

/// A registered service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Registration {
    pub(crate) offer: Offer,
    pub(crate) updated_at: u64,
    /// The owner's flag.
    pub(crate) acknowledged: bool,
}

/// One service contract.
#[derive(Debug, Clone)]
pub(crate) struct Serving {
    pub(crate) service: Service,
    pub(crate) address: Address,
    pub(crate) owner: Address,
    pub(crate) lock_time: u64,
    /// Fine-tuning only.
    pub(crate) penalty: u64,
    pub(crate) ack_window: u64,
    pub(crate) accounts: BTreeMap<(Address, Address), Account>,
    /// Order of enumeration: removal puts the last in the free place.
    pub(crate) pairs: Vec<(Address, Address)>,
    pub(crate) pairs_of: BTreeMap<Address, Vec<(Address, Address)>>,
    pub(crate) providers: Vec<Address>,
    pub(crate) registrations: BTreeMap<Address, Registration>,
    pub(crate) stakes: BTreeMap<Address, U256>,
}

impl Serving {
    pub(super) fn start(service: Service, address: Address, owner: Address) -> Self {
        Self {
            service,
            address,
            owner,
            lock_time: LOCK_TIME_S,
            penalty: 30,
            ack_window: 48 * 3600,
            accounts: BTreeMap::new(),
            pairs: Vec::new(),
            pairs_of: BTreeMap::new(),
            providers: Vec::new(),
            registrations: BTreeMap::new(),
            stakes: BTreeMap::new(),
        }
    }

    pub(crate) fn life(&self, user: Address, provider: Address) -> Option<&Life> {
        self.accounts.get(&(user, provider))?.life.as_ref()
    }

    pub(crate) fn account(&self, user: Address, provider: Address) -> Account {
        self.accounts
            .get(&(user, provider))
            .cloned()
            .unwrap_or_default()
    }

    pub(super) fn existing(&mut self, user: Address, provider: Address) -> Answer<&mut Life> {
        let account = self.accounts.get_mut(&(user, provider));
        match account.and_then(|account| account.life.as_mut()) {
            Some(life) => Ok(life),
            None => refuse(I::AccountNotExists { user, provider }),
        }
    }

    pub(super) fn account_mut(&mut self, user: Address, provider: Address) -> &mut Account {
        self.accounts.entry((user, provider)).or_default()
    }

    pub(super) fn require_ledger(&self, from: Address, ledger: Address) -> Answer {
        if from == ledger {
            return Ok(());
        }
        if self.service.is_fine_tuning() {
            refuse(F::CallerNotLedger {})
        } else {
            refuse(I::CallerNotLedger { caller: from })
        }
    }

    fn require_lock_time(&self, seconds: u64) -> Answer {
        if (3_600..=604_800).contains(&seconds) {
            return Ok(());
        }
        let value = U256::from(seconds);
        if self.service.is_fine_tuning() {
            return refuse(F::LockTimeOutOfRange { lockTime: value });
        }
        refuse(I::LockTimeOutOfRange {
            lockTime: value,
            min: U256::from(3_600),
            max: U256::from(604_800),
        })
    }
}

impl Life {
    /// Takes `amount` out of the pending refunds, newest first.
    fn cancel(&mut self, mut amount: U256) {
        while !amount.is_zero() {
            let Some((newest, _)) = self.refunds.last_mut() else {
                return;
            };
            let part = amount.min(*newest);
            *newest -= part;
            if newest.is_zero() {
                self.refunds.pop();
            }
            self.pending -= part;
            amount -= part;
        }
    }
}

fn narrow(amount: U256) -> Answer<U256> {
    if amount >= U256::from(1) << 112 {
        return refuse(I::AmountTooLarge { amount });
    }
    Ok(amount)
}

fn require_pair(user: Address, provider: Address) -> Answer {
    for addr in [user, provider] {
        if addr == Address::ZERO {
            return refuse(I::InvalidAddress { addr });
        }
    }
    if user == provider {
        return refuse(I::ProviderCannotBeUser {});
    }
    Ok(())
}

pub(super) fn require_length(field: &str, length: usize, max: usize) -> Answer {
    if length <= max {
        return Ok(());
    }
    refuse(I::FieldTooLong {
        field: field.to_owned(),
        length: U256::from(length),
        max: U256::from(max),
    })
}

fn remove_pair(list: &mut Vec<(Address, Address)>, pair: (Address, Address)) {
    let position = list.iter().position(|known| *known == pair);
    list.swap_remove(position.expect("a sub-account is in the enumerations"));
}

impl Model {
    /// Event of the present balance and pending refund of a sub-account.
    fn log_balance(&mut self, service: Service, user: Address, provider: Address) {
        let serving = self.serving(service);
        let (address, life) = (serving.address, serving.life(user, provider));
        let (amount, pending) = life.map_or((U256::ZERO, U256::ZERO), |life| {
            (life.balance, life.pending)
        });
        let event = I::BalanceUpdated {
            user,
            provider,
            amount,
            pendingRefund: pending,
        };
        self.log(address, event);
    }

    pub(super) fn add_account(
        &mut self,
        service: Service,
        user: Address,
        provider: Address,
        info: &str,
        value: U256,
    ) -> Answer {
        require_pair(user, provider)?;
        narrow(value)?;
        let serving = self.serving_mut(service);
        serving.account_mut(user, provider).life = Some(Life {
            balance: value,
            acknowledged: true,
            info: info.to_owned(),
            ..Life::default()
        });
        serving.pairs.push((user, provider));
        serving
            .pairs_of
            .entry(provider)
            .or_default()
            .push((user, provider));
        self.log_balance(service, user, provider);
        Ok(())
    }

    pub(super) fn deposit_account(
        &mut self,
        service: Service,
        user: Address,
        provider: Address,
        cancelled: U256,
        value: U256,
    ) -> Answer {
        let life = self.serving_mut(service).existing(user, provider)?;
        life.cancel(cancelled);
        life.balance = narrow(life.balance + value)?;
        life.acknowledged = true;
        self.log_balance(service, user, provider);
        Ok(())
    }

    /// Sends what is unlocked to the ledger and returns how much it is.
    pub(super) fn process_refund(
        &mut self,
        service: Service,
        user: Address,
        provider: Address,
    ) -> U256 {
        let now = self.now;
        let serving = self.serving_mut(service);
        let (lock, contract) = (serving.lock_time, serving.address);
        let Ok(life) = serving.existing(user, provider) else {
            return U256::ZERO;
        };
        let (unlocked, locked): (Vec<_>, Vec<_>) = life
            .refunds
            .drain(..)
            .partition(|(_, requested)| now >= requested + lock);
        life.refunds = locked;
        let sum: U256 = unlocked.iter().map(|(amount, _)| *amount).sum();
        if sum.is_zero() {
            return sum;
        }
        life.balance -= sum;
        life.pending -= sum;
        self.log_balance(service, user, provider);
        self.move_coins(contract, self.ledger_address, sum);
        sum
    }

    pub(super) fn request_refund_all(
        &mut self,
        service: Service,
        user: Address,
        provider: Address,
    ) {
        let now = self.now;
        let serving = self.serving_mut(service);
        let contract = serving.address;
        let Ok(life) = serving.existing(user, provider) else {
            return;
        };
        let free = life.balance - life.pending;
        let index = life.refunds.len();
        if free.is_zero() || index == MAX_REFUNDS {
            return;
        }
        life.refunds.push((free, now));
        life.pending = life.balance;
        let event = I::RefundRequested {
            user,
            provider,
            index: U256::from(index),
            timestamp: U256::from(now),
        };
        self.log(contract, event);
    }

    pub(super) fn delete_account(&mut self, service: Service, user: Address, provider: Address) {
        let serving = self.serving_mut(service);
        let contract = serving.address;
        let life = serving.account_mut(user, provider).life.take();
        if life.is_some() {
            remove_pair(&mut serving.pairs, (user, provider));
            let of_provider = serving.pairs_of.entry(provider).or_default();
            remove_pair(of_provider, (user, provider));
        }
        let event = I::AccountDeleted {
            user,
            provider,
            refundedAmount: life.map_or(U256::ZERO, |life| life.balance),
        };
        self.log(contract, event);
    }

    /// Takes a fee out of a sub-account and tells the ledger; the caller pays the provider.
    pub(super) fn spend(
        &mut self,
        service: Service,
        user: Address,
        provider: Address,
        fee: U256,
    ) -> Answer {
        let serving = self.serving_mut(service);
        let contract = serving.address;
        let life = serving.existing(user, provider)?;
        let free = life.balance - life.pending;
        life.cancel(fee.saturating_sub(free));
        life.balance -= fee;
        self.spend_fund(contract, user, fee)?;
        self.log_balance(service, user, provider);
        Ok(())
    }

    pub(super) fn acknowledge_signer(
        &mut self,
        user: Address,
        service: Service,
        provider: Address,
        acknowledged: bool,
    ) -> Answer {
        let serving = self.serving_mut(service);
        let contract = serving.address;
        let life = serving.existing(user, provider)?;
        if life.acknowledged && !acknowledged && !life.balance.is_zero() {
            return refuse(I::CannotRevokeWithNonZeroBalance {
                user,
                provider,
                balance: life.balance,
            });
        }
        if life.acknowledged != acknowledged {
            life.acknowledged = acknowledged;
            let event = I::UserAcknowledgementChanged {
                user,
                provider,
                acknowledged,
            };
            self.log(contract, event);
        }
        Ok(())
    }

    pub(super) fn acknowledge_signer_by_owner(
        &mut self,
        from: Address,
        service: Service,
        provider: Address,
        acknowledged: bool,
    ) -> Answer {
        self.require_owner(from, Contract::Serving(service))?;
        let serving = self.serving_mut(service);
        let contract = serving.address;
        let Some(registration) = serving.registrations.get_mut(&provider) else {
            return refuse(I::ServiceNotExist { provider });
        };
        registration.acknowledged = acknowledged;
        let event = I::ProviderTEESignerAcknowledged {
            provider,
            teeSignerAddress: registration.offer.signer,
            acknowledged,
        };
        self.log(contract, event);
        Ok(())
    }

    pub(super) fn update_lock_time(
        &mut self,
        from: Address,
        service: Service,
        seconds: u64,
    ) -> Answer {
        self.require_owner(from, Contract::Serving(service))?;
        let serving = self.serving_mut(service);
        serving.require_lock_time(seconds)?;
        let (contract, old) = (serving.address, serving.lock_time);
        if old != seconds {
            serving.lock_time = seconds;
            let event = I::LockTimeUpdated {
                oldLockTime: U256::from(old),
                newLockTime: U256::from(seconds),
            };
            self.log(contract, event);
        }
        Ok(())
    }

    pub(super) fn add_or_update_service(
        &mut self,
        provider: Address,
        service: Service,
        offer: &Offer,
        stake: U256,
    ) -> Answer {
        let contract = self.serving(service).address;
        self.move_coins(provider, contract, stake);
        let required = crate::support::og(STAKE);
        if !self.serving(service).stakes.contains_key(&provider) {
            if stake < required {
                return refuse(I::InsufficientStake {
                    provided: stake,
                    required,
                });
            }
            self.serving_mut(service).stakes.insert(provider, stake);
            self.log(
                contract,
                I::ProviderStaked {
                    provider,
                    amount: stake,
                },
            );
        } else if !stake.is_zero() {
            return refuse(I::CannotAddStakeWhenUpdating {});
        }
        require_offer(service, offer)?;

        let now = self.now;
        let serving = self.serving_mut(service);
        if !serving.registrations.contains_key(&provider) {
            serving.providers.push(provider);
        }
        let previous = serving.registrations.remove(&provider);
        let acknowledged = previous
            .is_some_and(|old| old.acknowledged && keeps_acceptance(service, &old.offer, offer));
        let registration = Registration {
            offer: offer.clone(),
            updated_at: now,
            acknowledged,
        };
        serving.registrations.insert(provider, registration);
        if service.is_fine_tuning() {
            let params = offer.fine_tuning();
            let event = F::ServiceUpdated {
                provider,
                url: params.url,
                quota: params.quota.into(),
                pricePerToken: params.price_per_token,
                teeSignerAddress: params.tee_signer,
                occupied: params.occupied,
            };
            self.log(contract, event);
        } else {
            let params = offer.inference();
            let event = I::ServiceUpdated {
                service: provider,
                serviceType: params.service_type,
                url: params.url,
                inputPrice: params.input_price,
                outputPrice: params.output_price,
                updatedAt: U256::from(now),
                model: params.model,
                verifiability: params.verifiability,
            };
            self.log(contract, event);
        }
        Ok(())
    }

    pub(super) fn remove_service(&mut self, provider: Address, service: Service) -> Answer {
        let contract = self.serving(service).address;
        self.enter(contract)?;
        let serving = self.serving_mut(service);
        if serving.registrations.remove(&provider).is_none() {
            return refuse(I::ServiceNotExist { provider });
        }
        let position = serving
            .providers
            .iter()
            .position(|known| *known == provider);
        serving
            .providers
            .swap_remove(position.expect("a service is in the enumeration"));
        let stake = serving
            .stakes
            .remove(&provider)
            .expect("a service has a stake");
        self.log(
            contract,
            I::ProviderStakeReturned {
                provider,
                amount: stake,
            },
        );
        if !self.pay(contract, provider, stake) {
            return Err(transfer_failed(service).into());
        }
        self.log(contract, I::ServiceRemoved { service: provider });
        self.leave(contract);
        Ok(())
    }
}

/// The provider refused its money: each contract has its own error for that.
pub(super) fn transfer_failed(service: Service) -> Vec<u8> {
    if service.is_fine_tuning() {
        F::ETHTransferFailed {}.abi_encode()
    } else {
        I::TransferFailed {}.abi_encode()
    }
}

fn require_offer(service: Service, offer: &Offer) -> Answer {
    if service.is_fine_tuning() {
        require_length("url", offer.url.1, MAX_URL)?;
        require_length("gpuType", offer.kind.1, MAX_TEXT)?;
        require_length("models", offer.models.len(), 64)?;
        for model in &offer.models {
            require_length("model", model.1, MAX_TEXT)?;
        }
        return Ok(());
    }
    if offer.info.1 > 4096 {
        return refuse(I::AdditionalInfoTooLong {});
    }
    require_length("url", offer.url.1, MAX_URL)?;
    require_length("serviceType", offer.kind.1, MAX_TEXT)?;
    require_length("model", offer.model().1, MAX_TEXT)?;
    require_length("verifiability", offer.verifiability.1, MAX_TEXT)
}

/// Whether the owner's flag survives an update.
fn keeps_acceptance(service: Service, old: &Offer, new: &Offer) -> bool {
    if service.is_fine_tuning() {
        return old.signer == new.signer;
    }
    old.signer == new.signer
        && old.kind == new.kind
        && old.model() == new.model()
        && old.verifiability == new.verifiability
        && old.info == new.info
}
