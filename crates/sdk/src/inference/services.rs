//! Discovery of inference providers, and the sub-account with them.

use alloy_primitives::Address;
use serde_json::Value;
use zerog_chain::Receipt;
use zerog_chain::inference::{Account, Service};

use super::Inference;
use super::session::ServiceMetadata;
use crate::error::{Error, Result, ServiceKind};
use crate::fine_tuning::account::{AccountDetail, pending_refund};
use crate::progress::Progress;
use crate::provider_client::{join, parse_json};

/// Largest model catalogue in bytes, as the published clients.
const MAX_MODELS_BYTES: usize = 5_000_000;

impl Inference {
    /// Inference services, from `offset` on, at most `limit`; unacknowledged ones only on demand.
    ///
    /// # Errors
    /// A failed read.
    pub async fn list_service(
        &self,
        offset: usize,
        limit: usize,
        include_unacknowledged: bool,
    ) -> Result<Vec<Service>> {
        let mut services = self.context.chain.inference().services().await?;
        services.retain(|service| include_unacknowledged || service.tee_signer_acknowledged);
        Ok(services.into_iter().skip(offset).take(limit).collect())
    }

    /// One provider's service.
    ///
    /// # Errors
    /// [`Error::ServiceMissing`] or a failed read.
    pub async fn get_service(&self, provider: Address) -> Result<Service> {
        self.context.inference_service(provider).await
    }

    /// Endpoint and base model of a provider.
    ///
    /// # Errors
    /// As [`Inference::get_service`].
    pub async fn get_service_metadata(&self, provider: Address) -> Result<ServiceMetadata> {
        let service = self.get_service(provider).await?;
        Ok(ServiceMetadata {
            endpoint: join(&service.url, "/v1/proxy"),
            model: service.model,
        })
    }

    /// The provider's model catalogue, in OpenAI's shape.
    ///
    /// # Errors
    /// An unreachable provider or an unexpected answer.
    pub async fn get_provider_models(&self, provider: Address) -> Result<Vec<Value>> {
        let url = join(&self.get_service(provider).await?.url, "/v1/models");
        let answer = self
            .context
            .http
            .get("list models", &url, None, MAX_MODELS_BYTES)
            .await?;
        let body: Value = parse_json("list models", &answer.body)?;
        match body.get("data") {
            Some(Value::Array(models)) => Ok(models.clone()),
            _ => Err(Error::ProviderAnswer {
                operation: "list models",
                reason: "there is no \"data\" array".into(),
            }),
        }
    }

    /// The provider's evidence as served: the raw body of `/v1/quote`. Nothing is checked:
    /// [`Inference::verify_service`] does that.
    ///
    /// # Errors
    /// As [`Inference::get_service`], or an unreachable provider.
    pub async fn get_quote(&self, provider: Address) -> Result<String> {
        let url = self.get_service(provider).await?.url;
        let answer = self.context.fetch_quote(&url, "/v1/quote").await?;
        Ok(String::from_utf8_lossy(&answer.body).into_owned())
    }

    /// The wallet's sub-account with a provider.
    ///
    /// # Errors
    /// [`Error::AccountMissing`] or a failed read.
    pub async fn get_account(&self, provider: Address) -> Result<Account> {
        let user = self.context.user()?;
        self.context
            .chain
            .inference()
            .account(user, provider)
            .await?
            .ok_or(Error::AccountMissing {
                user,
                provider,
                service: ServiceKind::Inference,
            })
    }

    /// The sub-account with the time left of every refund.
    ///
    /// # Errors
    /// As [`Inference::get_account`].
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

    /// Seconds between asking for a refund and collecting it.
    ///
    /// # Errors
    /// A failed read.
    pub async fn get_locked_time(&self) -> Result<u64> {
        Ok(self.context.chain.inference().lock_time_s().await?)
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
        let service = ServiceKind::Inference;
        let registration = self.context.registration(provider, service).await?;
        if !registration.acknowledged {
            return Err(Error::ServiceNotAcknowledged { provider, service });
        }
        self.context
            .require_enclave(&registration, &mut on_progress)
            .await?;
        let contract = self.context.chain.inference();
        match contract.account(user, provider).await? {
            Some(account) if account.acknowledged => Ok(None),
            Some(_) => Ok(Some(contract.acknowledge_tee_signer(provider, true).await?)),
            None => {
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
        let contract = self.context.chain.inference();
        if contract.owner().await? == user {
            return Ok(contract.revoke_tee_signer_acknowledgement(provider).await?);
        }
        self.get_account(provider).await?;
        Ok(contract.acknowledge_tee_signer(provider, false).await?)
    }
}

impl crate::broker::Context {
    pub(crate) async fn inference_service(&self, provider: Address) -> Result<Service> {
        let service = self.chain.inference().service(provider).await?;
        service.ok_or(Error::ServiceMissing {
            provider,
            service: ServiceKind::Inference,
        })
    }
}
