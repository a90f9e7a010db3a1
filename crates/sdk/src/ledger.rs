//! The prepaid account: deposits, transfers to providers, and the way back.

use std::sync::Arc;

use alloy_primitives::{Address, U256};
use zerog_chain::Receipt;
use zerog_chain::ledger::LedgerAccount;

use crate::broker::Context;
use crate::error::{Error, Result, ServiceKind};

/// `broker.ledger`.
#[derive(Debug, Clone)]
pub struct Ledger {
    context: Arc<Context>,
}

impl Ledger {
    pub(crate) fn new(context: Arc<Context>) -> Self {
        Self { context }
    }

    /// The wallet's ledger.
    ///
    /// # Errors
    /// [`Error::LedgerMissing`], [`Error::NoWallet`] or a failed read.
    pub async fn get_ledger(&self) -> Result<LedgerAccount> {
        let user = self.context.user()?;
        self.context
            .chain
            .ledger()
            .account(user)
            .await?
            .ok_or(Error::LedgerMissing { user })
    }

    /// Creates the ledger with `amount` neuron.
    ///
    /// # Errors
    /// [`Error::Chain`]: `LedgerExists`, `MinimumDepositRequired`, or not enough coins.
    pub async fn add_ledger(&self, amount: U256) -> Result<Receipt> {
        self.context.wallet()?;
        Ok(self.context.chain.ledger().add_ledger(amount, "").await?)
    }

    /// Adds `amount` neuron, creating the ledger if there is none.
    ///
    /// # Errors
    /// As [`Ledger::add_ledger`].
    pub async fn deposit_fund(&self, amount: U256) -> Result<Receipt> {
        self.context.wallet()?;
        Ok(self.context.chain.ledger().deposit_fund(amount).await?)
    }

    /// Puts `amount` neuron into the ledger of another wallet, creating that ledger if there is none.
    ///
    /// # Errors
    /// As [`Ledger::add_ledger`].
    pub async fn deposit_fund_for(&self, recipient: Address, amount: U256) -> Result<Receipt> {
        self.context.wallet()?;
        Ok(self
            .context
            .chain
            .ledger()
            .deposit_fund_for(recipient, amount)
            .await?)
    }

    /// Moves `amount` neuron into the sub-account with `provider`, creating it if needed; the first transfer has a
    /// minimum, and any transfer acknowledges the provider's signer.
    ///
    /// # Errors
    /// [`Error::LedgerMissing`], [`Error::InsufficientLedger`], or [`Error::Chain`].
    pub async fn transfer_fund(
        &self,
        provider: Address,
        service: ServiceKind,
        amount: U256,
    ) -> Result<Receipt> {
        let ledger = self.get_ledger().await?;
        let pending = self.pending_refund(provider, service).await?;
        // A transfer first takes back what was asked to be refunded; only the rest leaves the ledger.
        let moved = amount.saturating_sub(pending);
        if ledger.available_balance < moved {
            return Err(Error::InsufficientLedger {
                required: moved,
                available: ledger.available_balance,
            });
        }
        let name = self.service_name(service).await?;
        Ok(self
            .context
            .chain
            .ledger()
            .transfer_fund(provider, &name, amount)
            .await?)
    }

    /// Collects unlocked refunds and asks everything else back, from the given providers or from all of the service.
    ///
    /// # Errors
    /// [`Error::LedgerMissing`] or [`Error::Chain`].
    pub async fn retrieve_fund(
        &self,
        service: ServiceKind,
        providers: Option<&[Address]>,
    ) -> Result<Vec<Receipt>> {
        self.get_ledger().await?;
        let name = self.service_name(service).await?;
        let providers = match providers {
            Some(providers) => providers.to_vec(),
            None => self.get_providers(service).await?,
        };
        if providers.is_empty() {
            return Ok(Vec::new());
        }
        Ok(self
            .context
            .chain
            .ledger()
            .retrieve_fund(&providers, &name)
            .await?)
    }

    /// Pays `amount` neuron of the available balance out to the wallet.
    ///
    /// # Errors
    /// [`Error::LedgerMissing`], [`Error::InsufficientLedger`], or [`Error::Chain`].
    pub async fn refund(&self, amount: U256) -> Result<Receipt> {
        let ledger = self.get_ledger().await?;
        if ledger.available_balance < amount {
            return Err(Error::InsufficientLedger {
                required: amount,
                available: ledger.available_balance,
            });
        }
        Ok(self.context.chain.ledger().refund(amount).await?)
    }

    /// Deletes a ledger whose funds are all spent or paid out.
    ///
    /// # Errors
    /// [`Error::Chain`]: `MustWithdrawAllFundsFirst`.
    pub async fn delete_ledger(&self) -> Result<Receipt> {
        self.context.wallet()?;
        Ok(self.context.chain.ledger().delete_ledger().await?)
    }

    /// Providers with whom the wallet has a sub-account.
    ///
    /// # Errors
    /// [`Error::NoWallet`] or a failed read.
    pub async fn get_providers(&self, service: ServiceKind) -> Result<Vec<Address>> {
        let name = self.service_name(service).await?;
        Ok(self
            .context
            .chain
            .ledger()
            .providers(self.context.user()?, &name)
            .await?)
    }

    /// Smallest first deposit in neuron.
    ///
    /// # Errors
    /// A failed read.
    pub async fn min_account_balance(&self) -> Result<U256> {
        Ok(self.context.chain.ledger().min_account_balance().await?)
    }

    /// Smallest transfer that creates a sub-account, in neuron.
    ///
    /// # Errors
    /// A failed read.
    pub async fn min_transfer_amount(&self) -> Result<U256> {
        Ok(self.context.chain.ledger().min_transfer_amount().await?)
    }

    async fn service_name(&self, service: ServiceKind) -> Result<String> {
        let ledger = self.context.chain.ledger();
        Ok(match service {
            ServiceKind::FineTuning => ledger.fine_tuning_service_name().await?,
            ServiceKind::Inference => ledger.inference_service_name().await?,
        })
    }

    async fn pending_refund(&self, provider: Address, service: ServiceKind) -> Result<U256> {
        let (user, chain) = (self.context.user()?, &self.context.chain);
        Ok(match service {
            ServiceKind::FineTuning => chain
                .fine_tuning()
                .account(user, provider)
                .await?
                .map_or(U256::ZERO, |account| account.pending_refund),
            ServiceKind::Inference => chain
                .inference()
                .account(user, provider)
                .await?
                .map_or(U256::ZERO, |account| account.pending_refund),
        })
    }
}
