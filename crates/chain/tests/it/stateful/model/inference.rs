//! Inference: settlement in batches and the revocation of session tokens.

use alloy_primitives::{Address, Bytes, U256};
use alloy_sol_types::SolValue;
use zerog_chain::bindings::InferenceServing as I;
use zerog_devchain::accounts::ACCOUNTS;

use super::{
    Answer, Model, Service, refuse,
    serving::{require_length, transfer_failed},
};
use crate::stateful::claims::{Item, Signing};

/// The published numbers of what became of an item.
const SUCCESS: u8 = 0;
const PARTIAL: u8 = 1;
const PROVIDER_MISMATCH: u8 = 2;
const NO_TEE_SIGNER: u8 = 3;
const INVALID_NONCE: u8 = 4;
const INVALID_SIGNATURE: u8 = 5;

impl Model {
    /// Status of one item for the caller, and what stays unpaid.
    pub(crate) fn judge(&self, caller: Address, service: Service, item: &Item) -> (u8, U256) {
        let serving = self.serving(service);
        let unpaid = |status| (status, item.fee);
        if item.provider != caller {
            return unpaid(PROVIDER_MISMATCH);
        }
        let Some(life) = serving.life(item.user, caller) else {
            return unpaid(INVALID_SIGNATURE);
        };
        let Some(registration) = serving.registrations.get(&caller) else {
            return unpaid(PROVIDER_MISMATCH);
        };
        let signer = registration.offer.signer;
        if !life.acknowledged || !registration.acknowledged || signer == Address::ZERO {
            return unpaid(NO_TEE_SIGNER);
        }
        if serving.account(item.user, caller).nonce >= item.nonce {
            return unpaid(INVALID_NONCE);
        }
        if item.signing != Signing::Honest || ACCOUNTS[item.signer].address != signer {
            return unpaid(INVALID_SIGNATURE);
        }
        if item.fee > life.balance {
            return (PARTIAL, item.fee - life.balance);
        }
        (SUCCESS, U256::ZERO)
    }

    pub(super) fn settle_batch(
        &mut self,
        provider: Address,
        service: Service,
        items: &[Item],
    ) -> Answer<Bytes> {
        let contract = self.serving(service).address;
        self.enter(contract)?;
        require_batch(items.len())?;
        let (mut statuses, mut payout) = (Vec::new(), U256::ZERO);
        for item in items {
            let (status, unsettled) = self.judge(provider, service, item);
            if status == SUCCESS || status == PARTIAL {
                let account = self.serving_mut(service).account_mut(item.user, provider);
                account.nonce = item.nonce;
                let amount = item.fee - unsettled;
                if !amount.is_zero() {
                    self.spend(service, item.user, provider, amount)?;
                    payout += amount;
                }
            }
            statuses.push(U256::from(status));
            let event = I::TEESettlementResult {
                user: item.user,
                status,
                unsettledAmount: unsettled,
            };
            self.log(contract, event);
        }
        if !payout.is_zero() && !self.pay(contract, provider, payout) {
            return Err(transfer_failed(service).into());
        }
        self.leave(contract);
        Ok(statuses.abi_encode().into())
    }

    pub(super) fn revoke_token(
        &mut self,
        user: Address,
        service: Service,
        provider: Address,
        id: u8,
    ) -> Answer {
        let serving = self.serving_mut(service);
        let contract = serving.address;
        serving.existing(user, provider)?.revoked |= U256::from(1) << id;
        let event = I::TokenRevoked {
            user,
            provider,
            tokenId: id,
        };
        self.log(contract, event);
        Ok(())
    }

    pub(super) fn revoke_tokens(
        &mut self,
        user: Address,
        service: Service,
        provider: Address,
        ids: &[u8],
    ) -> Answer {
        let serving = self.serving_mut(service);
        let contract = serving.address;
        let life = serving.existing(user, provider)?;
        require_length("tokenIds", ids.len(), 256)?;
        for id in ids {
            life.revoked |= U256::from(1) << *id;
        }
        let event = I::TokensRevoked {
            user,
            provider,
            tokenIds: ids.to_vec(),
        };
        self.log(contract, event);
        Ok(())
    }

    pub(super) fn revoke_all_tokens(
        &mut self,
        user: Address,
        service: Service,
        provider: Address,
    ) -> Answer {
        let serving = self.serving_mut(service);
        let contract = serving.address;
        serving.existing(user, provider)?.revoked = U256::ZERO;
        let account = serving.account_mut(user, provider);
        account.generation += 1;
        let event = I::AllTokensRevoked {
            user,
            provider,
            newGeneration: U256::from(account.generation),
        };
        self.log(contract, event);
        Ok(())
    }
}

/// Bounds of a batch, for settlement and preview.
fn require_batch(count: usize) -> Answer {
    if count == 0 {
        return refuse(I::NoSettlementsProvided {});
    }
    if count > 50 {
        return refuse(I::TooManySettlements {
            count: U256::from(count),
            max: U256::from(50),
        });
    }
    Ok(())
}

/// User, status and unpaid part of each item, every one judged against the present state.
pub(crate) fn judge_batch(
    model: &Model,
    caller: Address,
    service: Service,
    items: &[Item],
) -> Answer<Vec<(Address, u8, U256)>> {
    require_batch(items.len())?;
    let judge = |item: &Item| {
        let (status, unsettled) = model.judge(caller, service, item);
        (item.user, status, unsettled)
    };
    Ok(items.iter().map(judge).collect())
}
