//! The sub-account with a fine-tuning provider, and the acknowledgement of its signer.

use alloy_primitives::{Address, U256};
use serde::Serialize;
use zerog_chain::Receipt;
use zerog_chain::fine_tuning::Account;

use super::FineTuning;
use crate::error::{Error, Result, ServiceKind};
use crate::progress::Progress;

/// A refund on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct PendingRefund {
    /// Neuron.
    #[serde(rename = "amount_neuron", serialize_with = "crate::neuron::serialize")]
    pub amount: U256,
    /// Seconds until it can be collected; 0 = now.
    #[serde(rename = "remaining_s")]
    pub remain_time: u64,
}

/// A sub-account with the timing of its refunds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AccountDetail<A> {
    /// The sub-account.
    pub account: A,
    /// Its live refunds, oldest first.
    pub refunds: Vec<PendingRefund>,
}

/// The time left of a refund. The chain's clock decides.
pub(crate) fn pending_refund(
    amount: U256,
    created_at: u64,
    lock_time_s: u64,
    chain_time_s: u64,
) -> PendingRefund {
    let unlocked_at = created_at.saturating_add(lock_time_s);
    PendingRefund {
        amount,
        remain_time: unlocked_at.saturating_sub(chain_time_s),
    }
}

impl FineTuning {
    /// The wallet's sub-account with a provider.
    ///
    /// # Errors
    /// [`Error::AccountMissing`] or a failed read.
    pub async fn get_account(&self, provider: Address) -> Result<Account> {
        let user = self.context.user()?;
        self.context
            .chain
            .fine_tuning()
            .account(user, provider)
            .await?
            .ok_or(Error::AccountMissing {
                user,
                provider,
                service: ServiceKind::FineTuning,
            })
    }

    /// The sub-account with the time left of every refund.
    ///
    /// # Errors
    /// As [`FineTuning::get_account`].
    pub async fn get_account_with_detail(
        &self,
        provider: Address,
    ) -> Result<AccountDetail<Account>> {
        let account = self.get_account(provider).await?;
        let lock_time_s = self.get_locked_time().await?;
        let now_s = self.context.chain.latest_block().await?.timestamp;
        let refunds = account
            .refunds
            .iter()
            .map(|refund| pending_refund(refund.amount, refund.created_at, lock_time_s, now_s))
            .collect();
        Ok(AccountDetail { account, refunds })
    }

    /// Seconds between asking for a refund and collecting it. This is not the time to acknowledge a deliverable.
    ///
    /// # Errors
    /// A failed read.
    pub async fn get_locked_time(&self) -> Result<u64> {
        Ok(self.context.chain.fine_tuning().lock_time_s().await?)
    }

    /// Verifies the provider's enclave and acknowledges its signer; creates the sub-account with the contract's minimum
    /// if there is none. `None` when it was acknowledged already.
    ///
    /// # Errors
    /// [`Error::VerificationFailed`], [`Error::ServiceNotAcknowledged`], [`Error::InsufficientLedger`], or the chain.
    pub async fn acknowledge_provider_signer(
        &self,
        provider: Address,
        mut on_progress: impl FnMut(Progress) + Send,
    ) -> Result<Option<Receipt>> {
        let user = self.context.user()?;
        let service = ServiceKind::FineTuning;
        let registration = self.context.registration(provider, service).await?;
        if !registration.acknowledged {
            return Err(Error::ServiceNotAcknowledged { provider, service });
        }
        self.context
            .require_enclave(&registration, &mut on_progress)
            .await?;
        let contract = self.context.chain.fine_tuning();
        match contract.account(user, provider).await? {
            Some(account) if account.acknowledged => Ok(None),
            Some(_) => Ok(Some(contract.acknowledge_tee_signer(provider, true).await?)),
            None => {
                // Creating the account acknowledges the signer in the same transaction.
                let amount = self.ledger.min_transfer_amount().await?;
                let receipt = self.ledger.transfer_fund(provider, service, amount).await?;
                on_progress(Progress::Funded {
                    service,
                    provider,
                    amount,
                });
                Ok(Some(receipt))
            }
        }
    }

    /// Takes an acknowledgement back: the contract's owner for everybody, anyone else for themselves.
    ///
    /// # Errors
    /// [`Error::Chain`] with `CannotRevokeWithNonZeroBalance` while the sub-account holds money.
    pub async fn revoke_tee_signer_acknowledgement(&self, provider: Address) -> Result<Receipt> {
        let user = self.context.user()?;
        let contract = self.context.chain.fine_tuning();
        if contract.owner().await? == user {
            return Ok(contract.revoke_tee_signer_acknowledgement(provider).await?);
        }
        self.get_account(provider).await?;
        Ok(contract.acknowledge_tee_signer(provider, false).await?)
    }

    /// The sub-account, acknowledged and with at least `required` neuron free; tops it up from the ledger.
    ///
    /// # Errors
    /// [`Error::LedgerMissing`], [`Error::InsufficientLedger`], or the chain.
    pub async fn ensure_funds(
        &self,
        provider: Address,
        required: U256,
        mut on_progress: impl FnMut(Progress) + Send,
    ) -> Result<()> {
        let user = self.context.user()?;
        let service = ServiceKind::FineTuning;
        let account = self
            .context
            .chain
            .fine_tuning()
            .account(user, provider)
            .await?;
        let minimum = self.ledger.min_transfer_amount().await?;
        let amount = match &account {
            None => required.max(minimum),
            Some(account) => required.saturating_sub(account.free_balance()),
        };
        if !amount.is_zero() {
            self.ledger.transfer_fund(provider, service, amount).await?;
            on_progress(Progress::Funded {
                service,
                provider,
                amount,
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refunds_never_show_negative_time() {
        let refund = |now| pending_refund(U256::from(5), 1000, 100, now).remain_time;
        assert_eq!(
            (refund(1000), refund(1099), refund(1100), refund(5000)),
            (100, 1, 0, 0)
        );
    }
}
