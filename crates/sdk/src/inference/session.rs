//! Session tokens and API keys, and the money that must stand behind them.

use std::collections::HashMap;
use std::fmt;
use std::sync::Mutex;
use std::time::Duration;

use alloy_primitives::{Address, U256};
use serde::Serialize;
use zerog_chain::Receipt;
use zerog_protocol::amount::NEURON_PER_0G;
use zerog_protocol::inference_api::UnsettledFee;
use zerog_protocol::limits::EPHEMERAL_TOKEN_MAX_MS;
use zerog_protocol::session_token::{self, TokenClaims, UnsignedToken};

use super::Inference;
use crate::broker::Context;
use crate::error::{Error, Result, ServiceKind};
use crate::ledger::Ledger;
use crate::provider_client::join;
use crate::wallet::Wallet;

/// A cached token is used while it lives at least this much longer.
const MIN_REMAINING_MS: u64 = 60 * 60 * 1000;
/// What the sub-account should hold above the unsettled fees: the rule of the published clients.
const RESERVE_NEURON: u128 = 2 * NEURON_PER_0G;
/// Smallest top-up.
const MIN_TOP_UP_NEURON: u128 = NEURON_PER_0G;

/// Where chat requests go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ServiceMetadata {
    /// Base URL in front of `/chat/completions`.
    pub endpoint: String,
    /// Base model.
    pub model: String,
}

/// Headers of a chat request.
#[derive(Clone, PartialEq, Eq, Serialize)]
pub struct RequestHeaders {
    /// Value of `Authorization`.
    #[serde(rename = "Authorization")]
    pub authorization: String,
}

impl fmt::Debug for RequestHeaders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RequestHeaders([redacted])")
    }
}

/// A long-lived token for programs.
#[derive(Clone, PartialEq, Eq, Serialize)]
pub struct ApiKey {
    /// 0 to 254; the handle for revoking it.
    pub token_id: u8,
    /// Unix milliseconds.
    #[serde(rename = "created_at_ms")]
    pub created_at: u64,
    /// Unix milliseconds; 0 = never.
    #[serde(rename = "expires_at_ms")]
    pub expires_at: u64,
    /// The `app-sk-…` text.
    pub raw_token: String,
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiKey")
            .field("token_id", &self.token_id)
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

/// What was done so that a provider accepts requests.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Funding {
    /// Whether the sub-account was created.
    pub created: bool,
    /// Whether the signer was acknowledged.
    pub acknowledged: bool,
    /// Neuron moved into the sub-account.
    #[serde(
        rename = "transferred_neuron",
        serialize_with = "crate::neuron::serialize"
    )]
    pub transferred: U256,
}

impl Funding {
    /// A sentence for people; none when nothing was done.
    #[must_use]
    pub fn sentence(&self) -> Option<String> {
        if self.transferred.is_zero() {
            return self
                .acknowledged
                .then(|| "Acknowledged the inference provider.".to_owned());
        }
        let verb = if self.created {
            "Created the inference sub-account and moved"
        } else {
            "Moved"
        };
        let amount = zerog_protocol::amount::format_0g(self.transferred);
        Some(format!("{verb} {amount} 0G from the ledger into it."))
    }
}

/// Session tokens by provider.
#[derive(Default)]
pub(crate) struct SessionCache(Mutex<HashMap<Address, (String, u64)>>);

impl fmt::Debug for SessionCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionCache([redacted])")
    }
}

impl SessionCache {
    fn get(&self, provider: Address, now_ms: u64) -> Option<String> {
        let tokens = self
            .0
            .lock()
            .expect("no code panics while it holds this lock");
        let (token, expires_at) = tokens.get(&provider)?;
        (*expires_at > now_ms.saturating_add(MIN_REMAINING_MS)).then(|| token.clone())
    }

    fn put(&self, provider: Address, token: String, expires_at: u64) {
        self.0
            .lock()
            .expect("no code panics while it holds this lock")
            .insert(provider, (token, expires_at));
    }

    pub(crate) fn forget(&self, provider: Address) {
        self.0
            .lock()
            .expect("no code panics while it holds this lock")
            .remove(&provider);
    }
}

impl Context {
    /// The `Authorization` value for a provider, from the cache or new.
    pub(crate) async fn authorization(&self, provider: Address) -> Result<String> {
        let now_ms = Self::now_ms();
        if let Some(token) = self.sessions.get(provider, now_ms) {
            return Ok(format!("Bearer {token}"));
        }
        let wallet = self.wallet()?;
        let account = self
            .chain
            .inference()
            .account(wallet.address(), provider)
            .await?;
        let generation = account.map_or(0, |account| account.generation.saturating_to());
        let claims = session_token::ephemeral_claims(
            wallet.address(),
            provider,
            now_ms,
            EPHEMERAL_TOKEN_MAX_MS,
            generation,
        );
        let token = sign_token(wallet, &claims).await?;
        self.sessions
            .put(provider, token.clone(), claims.expires_at);
        Ok(format!("Bearer {token}"))
    }

    /// Creates, acknowledges and funds the inference sub-account so that the next requests are accepted.
    pub(crate) async fn prepare_inference_account(
        &self,
        ledger: &Ledger,
        provider: Address,
    ) -> Result<Funding> {
        let user = self.user()?;
        let service = self.inference_service(provider).await?;
        let contract = self.chain.inference();
        let account = contract.account(user, provider).await?;
        let mut funding = Funding {
            created: account.is_none(),
            ..Funding::default()
        };
        let unsettled = match &account {
            Some(account) => {
                self.unsettled_fee(&service.url, provider, account.balance)
                    .await
            }
            None => U256::ZERO,
        };
        let required = unsettled.saturating_add(U256::from(RESERVE_NEURON));
        let free = account
            .as_ref()
            .map_or(U256::ZERO, |account| account.free_balance());
        let deficit = required.saturating_sub(free);
        if !deficit.is_zero() {
            let amount = deficit.max(U256::from(MIN_TOP_UP_NEURON));
            // The server asks for half of the reserve: below that a failed top-up is an error, above it the chat goes on.
            let is_usable = account.as_ref().is_some_and(|account| account.acknowledged)
                && free >= unsettled.saturating_add(U256::from(RESERVE_NEURON / 2));
            match ledger
                .transfer_fund(provider, ServiceKind::Inference, amount)
                .await
            {
                Ok(_) => {
                    // Every transfer acknowledges the signer as well.
                    funding.transferred = amount;
                    funding.acknowledged = true;
                }
                Err(Error::InsufficientLedger { .. }) if is_usable => {
                    tracing::debug!(%provider, "the ledger cannot top up the sub-account, which still suffices");
                }
                Err(error) => return Err(error),
            }
        } else if account.is_some_and(|account| !account.acknowledged) {
            contract.acknowledge_tee_signer(provider, true).await?;
            funding.acknowledged = true;
        }
        Ok(funding)
    }

    /// What the provider has not collected yet. A provider that does not tell is not trusted with more than the reserve,
    /// nor is one that names more than the sub-account holds: it served nothing beyond that.
    async fn unsettled_fee(&self, url: &str, provider: Address, balance: U256) -> U256 {
        let asked = async {
            let user = self.user()?;
            let authorization = self.authorization(provider).await?;
            let url = join(url, &format!("/v1/user/{user}/unsettledfee"));
            let fee: UnsettledFee = self
                .http
                .get_json("unsettled fee", &url, Some(&authorization))
                .await?;
            fee.unsettled_fee
                .parse::<U256>()
                .map_err(|error| Error::ProviderAnswer {
                    operation: "unsettled fee",
                    reason: error.to_string(),
                })
        };
        match asked.await {
            Ok(fee) if fee <= balance => fee,
            Ok(fee) => {
                tracing::warn!(%provider, %fee, %balance, "the provider names more unsettled fees than there is money; ignored");
                U256::ZERO
            }
            Err(error) => {
                tracing::debug!(%error, "the unsettled fee is unknown");
                U256::ZERO
            }
        }
    }
}

async fn sign_token(wallet: &Wallet, claims: &TokenClaims) -> Result<String> {
    let unsigned = UnsignedToken::new(claims);
    let signature = wallet
        .sign_personal("the access token", unsigned.hash())
        .await?;
    Ok(unsigned.signed(&signature))
}

impl Inference {
    /// Headers for a chat request of your own; makes sure that the sub-account exists, is acknowledged and holds enough.
    ///
    /// # Errors
    /// [`Error::ServiceMissing`], [`Error::LedgerMissing`], [`Error::InsufficientLedger`], or the chain.
    pub async fn get_request_headers(&self, provider: Address) -> Result<RequestHeaders> {
        self.prepare_account(provider).await?;
        Ok(RequestHeaders {
            authorization: self.context.authorization(provider).await?,
        })
    }

    /// Creates, acknowledges and funds the sub-account by the published clients' rule: unsettled fees and 2 0G, at least
    /// 1 0G at a time.
    ///
    /// # Errors
    /// As [`Inference::get_request_headers`].
    pub async fn prepare_account(&self, provider: Address) -> Result<Funding> {
        self.context
            .prepare_inference_account(&self.ledger, provider)
            .await
    }

    /// Makes an API key. Nothing is stored anywhere: keep the result. `duration` none = never expires; `token_id` none =
    /// the first id that is not revoked.
    ///
    /// # Errors
    /// [`Error::Argument`] for a revoked or impossible id, [`Error::AccountMissing`].
    pub async fn create_api_key(
        &self,
        provider: Address,
        token_id: Option<u8>,
        duration: Option<Duration>,
    ) -> Result<ApiKey> {
        let wallet = self.context.wallet()?;
        self.context.inference_service(provider).await?;
        let account = self.get_account(provider).await?;
        let refused = |reason: String| Error::Argument {
            name: "token-id",
            reason,
        };
        let token_id = match token_id {
            Some(u8::MAX) => return Err(refused("255 is for sessions; use 0 to 254".into())),
            Some(id) if account.is_token_revoked(id) => {
                return Err(refused(format!(
                    "{id} is revoked; use another one, or revoke all tokens to start over"
                )));
            }
            Some(id) => id,
            None => (0..u8::MAX)
                .find(|id| !account.is_token_revoked(*id))
                .ok_or_else(|| {
                    refused("all 255 ids are revoked; revoke all tokens to start over".into())
                })?,
        };
        let created_at = Context::now_ms();
        let expires_at = duration.map_or(0, |duration| {
            created_at.saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
        });
        let claims = TokenClaims {
            address: wallet.address().to_string(),
            provider: provider.to_string(),
            timestamp: created_at,
            expires_at,
            nonce: session_token::random_nonce(),
            generation: account.generation.saturating_to(),
            token_id: u64::from(token_id),
        };
        Ok(ApiKey {
            token_id,
            created_at,
            expires_at,
            raw_token: sign_token(wallet, &claims).await?,
        })
    }

    /// Revokes one API key on chain.
    ///
    /// # Errors
    /// The chain.
    pub async fn revoke_token(&self, provider: Address, token_id: u8) -> Result<Receipt> {
        self.context.wallet()?;
        Ok(self
            .context
            .chain
            .inference()
            .revoke_token(provider, token_id)
            .await?)
    }

    /// Revokes several API keys on chain, in one transaction.
    ///
    /// # Errors
    /// The chain.
    pub async fn revoke_tokens(&self, provider: Address, token_ids: &[u8]) -> Result<Receipt> {
        self.context.wallet()?;
        Ok(self
            .context
            .chain
            .inference()
            .revoke_tokens(provider, token_ids)
            .await?)
    }

    /// Revokes every key and session on chain.
    ///
    /// # Errors
    /// The chain.
    pub async fn revoke_all_tokens(&self, provider: Address) -> Result<Receipt> {
        self.context.wallet()?;
        let receipt = self
            .context
            .chain
            .inference()
            .revoke_all_tokens(provider)
            .await?;
        self.context.sessions.forget(provider);
        Ok(receipt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cached_tokens_are_used_until_an_hour_before_their_end() {
        let cache = SessionCache::default();
        let provider = Address::repeat_byte(1);
        cache.put(provider, "t".into(), 10_000_000);
        assert_eq!(
            cache
                .get(provider, 10_000_000 - MIN_REMAINING_MS - 1)
                .as_deref(),
            Some("t")
        );
        assert_eq!(cache.get(provider, 10_000_000 - MIN_REMAINING_MS), None);
        assert_eq!(cache.get(Address::ZERO, 0), None);
        cache.forget(provider);
        assert_eq!(cache.get(provider, 0), None);
    }

    #[test]
    fn secrets_do_not_print() {
        let key = ApiKey {
            token_id: 1,
            created_at: 0,
            expires_at: 0,
            raw_token: "app-sk-secret".into(),
        };
        let headers = RequestHeaders {
            authorization: "Bearer secret".into(),
        };
        assert!(!format!("{key:?} {headers:?}").contains("secret"));
    }

    #[test]
    fn funding_is_told_in_words() {
        assert_eq!(Funding::default().sentence(), None);
        let funding = Funding {
            created: true,
            acknowledged: true,
            transferred: U256::from(RESERVE_NEURON),
        };
        assert_eq!(
            funding.sentence().unwrap(),
            "Created the inference sub-account and moved 2 0G from the ledger into it."
        );
    }
}
