//! The ledger: a user's prepaid account, and the registry of service contracts.

use alloy_primitives::{Address, U256};
use serde::{Deserialize, Serialize};

use crate::{
    ChainClient, ChainError, ContractErrorKind, Receipt, bindings::LedgerManager as abi,
    calls::ledger as calls, revert::OrMissing,
};

const NAME: &str = "LedgerManager";
const PAGE: u64 = 50;

/// A user's ledger. Amounts are in neuron.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LedgerAccount {
    /// Owner.
    pub user: Address,
    /// What can be paid out or transferred now.
    pub available_balance: U256,
    /// Available plus what is in sub-accounts.
    pub total_balance: U256,
    /// Free text.
    pub additional_info: String,
}

impl LedgerAccount {
    /// What is in sub-accounts, in neuron.
    #[must_use]
    pub fn locked_balance(&self) -> U256 {
        self.total_balance.saturating_sub(self.available_balance)
    }
}

/// Registry entry of a service contract.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceInfo {
    /// Service contract.
    pub service_address: Address,
    /// `inference` or `fine-tuning`.
    pub service_type: String,
    /// E.g. `v1.0`.
    pub version: String,
    /// `serviceType-version`, the name that the transfer functions take.
    pub full_name: String,
    /// Free text.
    pub description: String,
    /// Whether this is the recommended version of its type.
    pub is_recommended: bool,
    /// Registration time, seconds since 1970.
    pub registered_at: u64,
}

/// Reads and writes of the ledger contract.
#[derive(Debug, Clone, Copy)]
pub struct Ledger<'a> {
    client: &'a ChainClient,
}

impl<'a> Ledger<'a> {
    pub(crate) fn new(client: &'a ChainClient) -> Self {
        Self { client }
    }

    /// Address of the contract.
    #[must_use]
    pub fn address(&self) -> Address {
        self.client.addresses().ledger
    }

    /// The ledger of `user`; `None` if there is none.
    ///
    /// # Errors
    /// A failed read.
    pub async fn account(&self, user: Address) -> Result<Option<LedgerAccount>, ChainError> {
        let answer = self
            .client
            .call(NAME, self.address(), None, &abi::getLedgerCall { user })
            .await;
        Ok(answer
            .or_missing(&[ContractErrorKind::LedgerNotExists])?
            .map(Into::into))
    }

    /// Every ledger.
    ///
    /// # Errors
    /// A failed read.
    pub async fn accounts(&self) -> Result<Vec<LedgerAccount>, ChainError> {
        let mut accounts = Vec::new();
        loop {
            let call = abi::getAllLedgersCall {
                offset: U256::from(accounts.len()),
                limit: U256::from(PAGE),
            };
            let page = self.client.call(NAME, self.address(), None, &call).await?;
            let done = page.ledgers.is_empty();
            accounts.extend(page.ledgers.into_iter().map(LedgerAccount::from));
            if done || U256::from(accounts.len()) >= page.total {
                return Ok(accounts);
            }
        }
    }

    /// Providers with which `user` has a sub-account in the service of this full name.
    ///
    /// # Errors
    /// [`ContractErrorKind::ServiceNotFound`] for an unknown name, or a failed read.
    pub async fn providers(
        &self,
        user: Address,
        service_name: &str,
    ) -> Result<Vec<Address>, ChainError> {
        let call = abi::getLedgerProvidersCall {
            user,
            serviceName: service_name.to_owned(),
        };
        self.client.call(NAME, self.address(), None, &call).await
    }

    /// Registry entry of a service contract; `None` if it is not registered.
    ///
    /// # Errors
    /// A failed read.
    pub async fn service_info(&self, service: Address) -> Result<Option<ServiceInfo>, ChainError> {
        let call = abi::getServiceInfoCall {
            serviceAddress: service,
        };
        let info = self.client.call(NAME, self.address(), None, &call).await?;
        Ok((!info.serviceAddress.is_zero()).then(|| info.into()))
    }

    /// Full name under which this client's fine-tuning contract is registered.
    ///
    /// # Errors
    /// [`ChainError::NotAContract`] if it is not registered, or a failed read.
    pub async fn fine_tuning_service_name(&self) -> Result<String, ChainError> {
        self.service_name("FineTuningServing", self.client.addresses().fine_tuning)
            .await
    }

    /// Full name under which this client's inference contract is registered.
    ///
    /// # Errors
    /// [`ChainError::NotAContract`] if it is not registered, or a failed read.
    pub async fn inference_service_name(&self) -> Result<String, ChainError> {
        self.service_name("InferenceServing", self.client.addresses().inference)
            .await
    }

    /// Every registered service contract.
    ///
    /// # Errors
    /// A failed read.
    pub async fn services(&self) -> Result<Vec<ServiceInfo>, ChainError> {
        let services = self
            .client
            .call(
                NAME,
                self.address(),
                None,
                &abi::getAllActiveServicesCall {},
            )
            .await?;
        Ok(services.into_iter().map(Into::into).collect())
    }

    /// Smallest first deposit, and smallest rest after a refund, in neuron.
    ///
    /// # Errors
    /// A failed read.
    pub async fn min_account_balance(&self) -> Result<U256, ChainError> {
        self.client
            .call(NAME, self.address(), None, &abi::MIN_ACCOUNT_BALANCECall {})
            .await
    }

    /// Smallest transfer that creates a sub-account, in neuron.
    ///
    /// # Errors
    /// A failed read.
    pub async fn min_transfer_amount(&self) -> Result<U256, ChainError> {
        self.client
            .call(NAME, self.address(), None, &abi::MIN_TRANSFER_AMOUNTCall {})
            .await
    }

    /// Most providers in one [`Ledger::retrieve_fund`].
    ///
    /// # Errors
    /// A failed read.
    pub async fn max_providers_per_batch(&self) -> Result<u64, ChainError> {
        let max = self
            .client
            .call(
                NAME,
                self.address(),
                None,
                &abi::MAX_PROVIDERS_PER_BATCHCall {},
            )
            .await?;
        Ok(max.saturating_to())
    }

    /// Administrator of the contract.
    ///
    /// # Errors
    /// A failed read.
    pub async fn owner(&self) -> Result<Address, ChainError> {
        self.client
            .call(NAME, self.address(), None, &abi::ownerCall {})
            .await
    }

    /// Creates the wallet's ledger with `amount` neuron.
    ///
    /// # Errors
    /// As [`ChainClient::send`].
    pub async fn add_ledger(
        &self,
        amount: U256,
        additional_info: &str,
    ) -> Result<Receipt, ChainError> {
        self.client
            .send(calls::add_ledger(self.address(), additional_info, amount))
            .await
    }

    /// Adds `amount` neuron to the wallet's ledger, creating it if needed.
    ///
    /// # Errors
    /// As [`ChainClient::send`].
    pub async fn deposit_fund(&self, amount: U256) -> Result<Receipt, ChainError> {
        self.client
            .send(calls::deposit_fund(self.address(), amount))
            .await
    }

    /// Adds `amount` neuron to the ledger of `recipient`, creating it if needed.
    ///
    /// # Errors
    /// As [`ChainClient::send`].
    pub async fn deposit_fund_for(
        &self,
        recipient: Address,
        amount: U256,
    ) -> Result<Receipt, ChainError> {
        self.client
            .send(calls::deposit_fund_for(self.address(), recipient, amount))
            .await
    }

    /// Pays `amount` neuron of the available balance out to the wallet.
    ///
    /// # Errors
    /// As [`ChainClient::send`].
    pub async fn refund(&self, amount: U256) -> Result<Receipt, ChainError> {
        self.client
            .send(calls::refund(self.address(), amount))
            .await
    }

    /// Moves `amount` neuron to the wallet's sub-account with `provider`.
    ///
    /// # Errors
    /// As [`ChainClient::send`].
    pub async fn transfer_fund(
        &self,
        provider: Address,
        service_name: &str,
        amount: U256,
    ) -> Result<Receipt, ChainError> {
        self.client
            .send(calls::transfer_fund(
                self.address(),
                provider,
                service_name,
                amount,
            ))
            .await
    }

    /// Collects unlocked refunds of `providers` and requests the rest. More providers than one
    /// transaction takes go into several.
    ///
    /// # Errors
    /// As [`ChainClient::send`].
    pub async fn retrieve_fund(
        &self,
        providers: &[Address],
        service_name: &str,
    ) -> Result<Vec<Receipt>, ChainError> {
        let batch = usize::try_from(self.max_providers_per_batch().await?)
            .unwrap_or(usize::MAX)
            .max(1);
        let mut receipts = Vec::new();
        for providers in providers.chunks(batch) {
            let call = calls::retrieve_fund(self.address(), providers.to_vec(), service_name);
            receipts.push(self.client.send(call).await?);
        }
        Ok(receipts)
    }

    /// Deletes the wallet's ledger, whose funds must all be spent.
    ///
    /// # Errors
    /// As [`ChainClient::send`].
    pub async fn delete_ledger(&self) -> Result<Receipt, ChainError> {
        self.client.send(calls::delete_ledger(self.address())).await
    }

    /// Replaces the text of the wallet's ledger.
    ///
    /// # Errors
    /// As [`ChainClient::send`].
    pub async fn update_additional_info(
        &self,
        additional_info: &str,
    ) -> Result<Receipt, ChainError> {
        self.client
            .send(calls::update_additional_info(
                self.address(),
                additional_info,
            ))
            .await
    }

    async fn service_name(
        &self,
        contract: &'static str,
        address: Address,
    ) -> Result<String, ChainError> {
        match self.service_info(address).await? {
            Some(info) => Ok(info.full_name),
            None => Err(ChainError::NotAContract { contract, address }),
        }
    }
}

impl From<abi::Ledger> for LedgerAccount {
    fn from(ledger: abi::Ledger) -> Self {
        Self {
            user: ledger.user,
            available_balance: ledger.availableBalance,
            total_balance: ledger.totalBalance,
            additional_info: ledger.additionalInfo,
        }
    }
}

impl From<abi::ServiceInfo> for ServiceInfo {
    fn from(info: abi::ServiceInfo) -> Self {
        Self {
            service_address: info.serviceAddress,
            service_type: info.serviceType,
            version: info.version,
            full_name: info.fullName,
            description: info.description,
            is_recommended: info.isRecommended,
            registered_at: info.registeredAt.saturating_to(),
        }
    }
}
