//! What must move where before a task can be paid and its adapter be asked.

use alloy_primitives::{Address, U256};
use serde::Serialize;
use zerog_protocol::amount::NEURON_PER_0G;

use crate::broker::Broker;
use crate::error::{Error, Result, ServiceKind};
use crate::progress::Progress;

/// Left in the wallet for gas.
const GAS_RESERVE_NEURON: u128 = NEURON_PER_0G / 100;

/// Amounts to move, all in neuron and all zero when everything is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct FundPlan {
    /// From the wallet into the ledger.
    #[serde(rename = "deposit_neuron", serialize_with = "crate::neuron::serialize")]
    pub deposit: U256,
    /// From the ledger to the fine-tuning sub-account.
    #[serde(
        rename = "fine_tuning_neuron",
        serialize_with = "crate::neuron::serialize"
    )]
    pub fine_tuning: U256,
    /// From the ledger to the inference sub-account.
    #[serde(
        rename = "inference_neuron",
        serialize_with = "crate::neuron::serialize"
    )]
    pub inference: U256,
    /// Who trains.
    pub fine_tuning_provider: Address,
    /// Who serves; none: the adapter is not deployed.
    pub inference_provider: Option<Address>,
}

impl FundPlan {
    /// Whether nothing has to move.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.deposit.is_zero() && self.fine_tuning.is_zero() && self.inference.is_zero()
    }
}

impl Broker {
    /// Works out what is missing for a task of `fee` neuron and, if a serving provider is named, for chat afterwards.
    ///
    /// # Errors
    /// [`Error::InsufficientCoins`] when the wallet cannot pay it, or a failed read.
    pub async fn plan_funds(
        &self,
        fine_tuning_provider: Address,
        fee: U256,
        inference_provider: Option<Address>,
    ) -> Result<FundPlan> {
        let user = self.address()?;
        let chain = self.chain();
        let minimum = self.ledger.min_transfer_amount().await?;
        let account = chain
            .fine_tuning()
            .account(user, fine_tuning_provider)
            .await?;
        let pending = account
            .as_ref()
            .map_or(U256::ZERO, |account| account.pending_refund);
        let fine_tuning = match &account {
            None => fee.max(minimum),
            Some(account) => fee.saturating_sub(account.free_balance()),
        };
        let mut from_ledger = fine_tuning.saturating_sub(pending);
        let mut inference = U256::ZERO;
        if let Some(provider) = inference_provider {
            let account = chain.inference().account(user, provider).await?;
            let free = account
                .as_ref()
                .map_or(U256::ZERO, |account| account.free_balance());
            let deficit = U256::from(2 * NEURON_PER_0G).saturating_sub(free);
            if !deficit.is_zero() {
                inference = deficit.max(minimum);
                let pending = account.map_or(U256::ZERO, |account| account.pending_refund);
                from_ledger = from_ledger.saturating_add(inference.saturating_sub(pending));
            }
        }
        let deposit = match chain.ledger().account(user).await? {
            Some(ledger) => from_ledger.saturating_sub(ledger.available_balance),
            None => from_ledger.max(self.ledger.min_account_balance().await?),
        };
        if !deposit.is_zero() {
            let available = self.wallet_balance().await?;
            let required = deposit.saturating_add(U256::from(GAS_RESERVE_NEURON));
            if available < required {
                return Err(Error::InsufficientCoins {
                    address: user,
                    required,
                    available,
                });
            }
        }
        Ok(FundPlan {
            deposit,
            fine_tuning,
            inference,
            fine_tuning_provider,
            inference_provider,
        })
    }

    /// Moves what a plan says.
    ///
    /// # Errors
    /// The chain.
    pub async fn apply_funds(
        &self,
        plan: &FundPlan,
        mut on_progress: impl FnMut(Progress) + Send,
    ) -> Result<()> {
        if !plan.deposit.is_zero() {
            self.ledger.deposit_fund(plan.deposit).await?;
        }
        if !plan.fine_tuning.is_zero() {
            let (provider, service) = (plan.fine_tuning_provider, ServiceKind::FineTuning);
            self.ledger
                .transfer_fund(provider, service, plan.fine_tuning)
                .await?;
            on_progress(Progress::Funded {
                service,
                provider,
                amount: plan.fine_tuning,
            });
        }
        if let Some(provider) = plan
            .inference_provider
            .filter(|_| !plan.inference.is_zero())
        {
            let service = ServiceKind::Inference;
            self.ledger
                .transfer_fund(provider, service, plan.inference)
                .await?;
            on_progress(Progress::Funded {
                service,
                provider,
                amount: plan.inference,
            });
        }
        Ok(())
    }
}
