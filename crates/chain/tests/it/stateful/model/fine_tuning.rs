//! Fine-tuning: deliverables and their settlement.

use alloy_primitives::{Address, Bytes, U256};
use zerog_chain::bindings::FineTuningServing as F;

use super::{
    Answer, Contract, Model, Service, refuse,
    serving::{require_length, transfer_failed},
};
use crate::stateful::claims::{Claim, Signing};
use zerog_devchain::accounts::ACCOUNTS;

pub(crate) const MAX_DELIVERABLES: usize = 20;
const SERVICE: Service = Service::FineTuning;

/// Deliverables of one life of a sub-account, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Deliverables {
    pub(crate) list: Vec<Deliverable>,
    /// How often a new one took the place of the oldest.
    pub(crate) evictions: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Deliverable {
    pub(crate) id: String,
    pub(crate) root: Bytes,
    pub(crate) secret: Bytes,
    pub(crate) delivered_at: u64,
    pub(crate) acknowledge_until: u64,
    pub(crate) acknowledged: bool,
    pub(crate) settled: bool,
}

impl Deliverable {
    /// Whether the next deliverable has to wait for this one.
    pub(crate) fn closes_gate(&self) -> bool {
        !self.acknowledged && !self.settled
    }
}

impl Deliverables {
    pub(crate) fn find(&self, id: &str) -> Option<&Deliverable> {
        self.list.iter().find(|deliverable| deliverable.id == id)
    }

    fn existing(&mut self, id: &str) -> Answer<&mut Deliverable> {
        match self
            .list
            .iter_mut()
            .find(|deliverable| deliverable.id == id)
        {
            Some(deliverable) => Ok(deliverable),
            None => refuse(F::DeliverableNotExists { id: id.to_owned() }),
        }
    }
}

impl Claim {
    /// Whether its signature is the honest one of `signer`.
    fn is_signed_by(&self, signer: Address) -> bool {
        self.signing == Signing::Honest && ACCOUNTS[self.signer].address == signer
    }
}

impl Model {
    pub(super) fn update_penalty(&mut self, from: Address, percentage: u64) -> Answer {
        self.require_owner(from, Contract::Serving(SERVICE))?;
        if percentage > 100 {
            return refuse(F::PenaltyPercentageTooHigh {
                percentage: U256::from(percentage),
            });
        }
        let serving = self.serving_mut(SERVICE);
        let (contract, old) = (serving.address, serving.penalty);
        serving.penalty = percentage;
        let event = F::PenaltyPercentageUpdated {
            oldPercentage: U256::from(old),
            newPercentage: U256::from(percentage),
        };
        self.log(contract, event);
        Ok(())
    }

    pub(super) fn update_ack_window(&mut self, from: Address, seconds: u64) -> Answer {
        self.require_owner(from, Contract::Serving(SERVICE))?;
        let max = 7 * 86_400;
        if seconds > max {
            return refuse(F::AckWindowOutOfRange {
                window: U256::from(seconds),
                max: U256::from(max),
            });
        }
        let serving = self.serving_mut(SERVICE);
        let (contract, old) = (serving.address, serving.ack_window);
        serving.ack_window = seconds;
        let event = F::AckWindowUpdated {
            oldWindow: U256::from(old),
            newWindow: U256::from(seconds),
        };
        self.log(contract, event);
        Ok(())
    }

    pub(super) fn add_deliverable(
        &mut self,
        provider: Address,
        user: Address,
        id: &str,
        root: &Bytes,
    ) -> Answer {
        if id.is_empty() || id.len() > 256 {
            return refuse(F::DeliverableIdInvalidLength {
                length: U256::from(id.len()),
            });
        }
        require_length("modelRootHash", root.len(), 64)?;
        let now = self.now;
        let serving = self.serving_mut(SERVICE);
        let contract = serving.address;
        let window = serving.ack_window.min(serving.lock_time / 2);
        let deliverables = &mut serving.existing(user, provider)?.deliverables;
        if deliverables.find(id).is_some() {
            return refuse(F::DeliverableAlreadyExists { id: id.to_owned() });
        }
        if let Some(newest) = deliverables
            .list
            .last()
            .filter(|newest| newest.closes_gate())
        {
            return refuse(F::PreviousDeliverableNotAcknowledged {
                id: newest.id.clone(),
            });
        }
        let mut evicted = None;
        if deliverables.list.len() == MAX_DELIVERABLES {
            if !deliverables.list[0].settled {
                return refuse(F::CannotEvictUnsettledDeliverable {
                    id: deliverables.list[0].id.clone(),
                });
            }
            evicted = Some(deliverables.list.remove(0).id);
            deliverables.evictions += 1;
        }
        deliverables.list.push(Deliverable {
            id: id.to_owned(),
            root: root.clone(),
            secret: Bytes::new(),
            delivered_at: now,
            acknowledge_until: now + window,
            acknowledged: false,
            settled: false,
        });
        if let Some(evicted) = evicted {
            let event = F::DeliverableEvicted {
                provider,
                user,
                evictedDeliverableId: evicted,
                newDeliverableId: id.to_owned(),
                timestamp: U256::from(now),
            };
            self.log(contract, event);
        }
        let event = F::DeliverableAdded {
            user,
            provider,
            deliverableId: id.to_owned(),
            modelRootHash: root.clone(),
            timestamp: U256::from(now),
        };
        self.log(contract, event);
        Ok(())
    }

    pub(super) fn abandon_deliverable(
        &mut self,
        provider: Address,
        user: Address,
        id: &str,
    ) -> Answer {
        let now = self.now;
        let serving = self.serving_mut(SERVICE);
        let contract = serving.address;
        let deliverable = serving
            .existing(user, provider)?
            .deliverables
            .existing(id)?;
        if deliverable.settled {
            return refuse(F::CannotAbandonSettledDeliverable { id: id.to_owned() });
        }
        deliverable.acknowledged = true;
        deliverable.settled = true;
        let event = F::DeliverableAbandoned {
            user,
            provider,
            deliverableId: id.to_owned(),
            timestamp: U256::from(now),
        };
        self.log(contract, event);
        Ok(())
    }

    pub(super) fn acknowledge_deliverable(
        &mut self,
        user: Address,
        provider: Address,
        id: &str,
    ) -> Answer {
        let now = self.now;
        let serving = self.serving_mut(SERVICE);
        let contract = serving.address;
        let deliverable = serving
            .existing(user, provider)?
            .deliverables
            .existing(id)?;
        if deliverable.settled {
            return refuse(F::CannotAcknowledgeSettledDeliverable { id: id.to_owned() });
        }
        deliverable.acknowledged = true;
        let event = F::DeliverableAcknowledged {
            user,
            provider,
            deliverableId: id.to_owned(),
            timestamp: U256::from(now),
        };
        self.log(contract, event);
        Ok(())
    }

    pub(super) fn settle_fees(&mut self, provider: Address, claim: &Claim) -> Answer {
        let (user, id, now) = (claim.user, claim.id.to_string(), self.now);
        let contract = self.serving(SERVICE).address;
        self.enter(contract)?;
        let invalid = |reason: &str| {
            refuse(F::InvalidVerifierInput {
                reason: reason.to_owned(),
            })
        };
        let serving = self.serving_mut(SERVICE);
        let penalty = U256::from(serving.penalty);
        let (balance, acknowledged_signer) = {
            let life = serving.existing(user, provider)?;
            (life.balance, life.acknowledged)
        };
        let Some(registration) = serving.registrations.get(&provider) else {
            return refuse(F::ServiceNotExist { provider });
        };
        let signer = registration.offer.signer;
        if !acknowledged_signer || !registration.acknowledged || signer == Address::ZERO {
            return invalid("TEE signer not acknowledged");
        }
        if serving.account(user, provider).nonce >= claim.nonce {
            return invalid("nonce should larger than the current nonce");
        }
        let life = serving.existing(user, provider)?;
        let fee = match life.deliverables.find(&id) {
            Some(deliverable) if !deliverable.acknowledged => share(claim.fee, penalty),
            _ => claim.fee,
        };
        if balance < fee {
            return invalid("insufficient balance");
        }
        let deliverable = life.deliverables.existing(&id)?;
        if deliverable.settled {
            return refuse(F::DeliverableAlreadySettled { id });
        }
        if deliverable.root != claim.root {
            return invalid("model root hash mismatch");
        }
        if !claim.is_signed_by(signer) {
            return invalid("TEE settlement validation failed");
        }
        if deliverable.acknowledged {
            if claim.secret_bytes == 0 {
                return refuse(F::SecretShouldNotBeEmpty {});
            }
            require_length("encryptedSecret", claim.secret_bytes, 1024)?;
            deliverable.secret = claim.secret();
        } else {
            if claim.secret_bytes != 0 {
                return refuse(F::SecretShouldBeEmpty {});
            }
            if now < deliverable.acknowledge_until {
                return refuse(F::AckWindowOpen {
                    until: U256::from(deliverable.acknowledge_until),
                });
            }
        }
        deliverable.settled = true;
        let acknowledged = deliverable.acknowledged;
        serving.account_mut(user, provider).nonce = claim.nonce;
        let event = F::FeesSettled {
            user,
            provider,
            deliverableId: id,
            fee,
            acknowledged,
            nonce: claim.nonce,
        };
        self.log(contract, event);
        self.spend(SERVICE, user, provider, fee)?;
        if !self.pay(contract, provider, fee) {
            return Err(transfer_failed(SERVICE).into());
        }
        self.leave(contract);
        Ok(())
    }
}

/// `percentage` of `fee`, rounded down.
fn share(fee: U256, percentage: U256) -> U256 {
    let wide = fee.widening_mul::<256, 4, 512, 8>(percentage);
    let quotient = wide / alloy_primitives::U512::from(100);
    U256::from(quotient)
}
