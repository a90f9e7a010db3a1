//! The inference contract: services, sub-accounts, session-token revocation and batch settlement.

use alloy_primitives::{Address, B256, Bytes, U256};
use alloy_sol_types::SolEvent;
use serde::{Deserialize, Serialize};

pub use crate::fine_tuning::Refund;
use crate::{
    ChainClient, ChainError, ContractErrorKind, Receipt,
    bindings::InferenceServing as abi,
    calls::{inference as calls, serving},
    revert::OrMissing,
    serving_contract::common_methods,
};

const NAME: &str = "InferenceServing";
const PAGE: u64 = 50;

/// Most items of one settlement.
pub const MAX_SETTLEMENTS: usize = 50;

/// Offer of one provider.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    /// Provider account.
    pub provider: Address,
    /// `chatbot`, `text-to-image`, …
    pub service_type: String,
    /// Base URL of its HTTP API.
    pub url: String,
    /// Price in neuron per input token.
    pub input_price: U256,
    /// Price in neuron per output token.
    pub output_price: U256,
    /// Time of the last update, seconds since 1970.
    pub updated_at: u64,
    /// Model name.
    pub model: String,
    /// E.g. `TeeML`.
    pub verifiability: String,
    /// Free text, JSON by convention.
    pub additional_info: String,
    /// Key that signs settlements.
    pub tee_signer: Address,
    /// Whether the contract owner accepted that key.
    pub tee_signer_acknowledged: bool,
}

/// What a provider registers. The owner's acceptance is lost when anything but `url` and the prices
/// changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceParams {
    /// `chatbot`, `text-to-image`, …
    pub service_type: String,
    /// Base URL of the HTTP API; at most 1024 bytes.
    pub url: String,
    /// Model name.
    pub model: String,
    /// E.g. `TeeML`.
    pub verifiability: String,
    /// Price in neuron per input token.
    pub input_price: U256,
    /// Price in neuron per output token.
    pub output_price: U256,
    /// Free text, JSON by convention; at most 4096 bytes.
    pub additional_info: String,
    /// Key that signs settlements.
    pub tee_signer: Address,
}

/// Sub-account of a user with a provider. Amounts are in neuron.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Account {
    /// Owner of the money.
    pub user: Address,
    /// Provider that can be paid from it.
    pub provider: Address,
    /// Nonce of the last settlement; the next must be larger.
    pub nonce: U256,
    /// Everything in the sub-account.
    pub balance: U256,
    /// Part of it that was asked back; a settlement can still use it.
    pub pending_refund: U256,
    /// Live refunds, oldest first.
    pub refunds: Vec<Refund>,
    /// Free text.
    pub additional_info: String,
    /// The user's acknowledgement of the TEE signer.
    pub acknowledged: bool,
    /// Session tokens of other generations are dead.
    pub generation: U256,
    /// Bit n is set if token id n of this generation is revoked.
    pub revoked_bitmap: U256,
}

impl Account {
    /// What was not asked back, in neuron.
    #[must_use]
    pub fn free_balance(&self) -> U256 {
        self.balance.saturating_sub(self.pending_refund)
    }

    /// Whether the bit of a token id is set in the present generation.
    #[must_use]
    pub fn is_token_revoked(&self, token_id: u8) -> bool {
        self.revoked_bitmap.bit(usize::from(token_id))
    }
}

/// Signed claim for the fees of one user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settlement {
    /// Owner of the sub-account.
    pub user: Address,
    /// The sender.
    pub provider: Address,
    /// Sum in neuron.
    pub total_fee: U256,
    /// Digest of the settled requests; opaque to the contract.
    pub requests_hash: B256,
    /// Larger than the sub-account's nonce.
    pub nonce: U256,
    /// 65-byte EIP-712 signature of the TEE signer.
    pub signature: Bytes,
}

/// What became of one settlement item.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SettlementStatus {
    /// 0: all of it was paid.
    Success,
    /// 1: the whole balance was paid, which was less; the nonce is used.
    Partial,
    /// 2: another provider's item, or the sender has no service.
    ProviderMismatch,
    /// 3: an acknowledgement or the TEE signer is missing.
    NoTeeSigner,
    /// 4: the nonce is not larger than the last one.
    InvalidNonce,
    /// 5: wrong signature, or the user has no sub-account.
    InvalidSignature,
}

impl SettlementStatus {
    /// Number on the wire.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Partial => 1,
            Self::ProviderMismatch => 2,
            Self::NoTeeSigner => 3,
            Self::InvalidNonce => 4,
            Self::InvalidSignature => 5,
        }
    }

    /// The status with this number.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        [
            Self::Success,
            Self::Partial,
            Self::ProviderMismatch,
            Self::NoTeeSigner,
            Self::InvalidNonce,
            Self::InvalidSignature,
        ]
        .into_iter()
        .find(|status| status.code() == code)
    }
}

/// What a settlement would do, item by item against the present state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SettlementPreview {
    /// Items that would be refused.
    pub failed: Vec<(Address, SettlementStatus)>,
    /// Items that would be paid in part, with the part that stays unpaid, in neuron.
    pub partial: Vec<(Address, U256)>,
}

/// Result of one item of a mined settlement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SettlementResult {
    /// Owner of the sub-account.
    pub user: Address,
    /// What became of it.
    pub status: SettlementStatus,
    /// What stays unpaid, in neuron.
    pub unsettled_amount: U256,
}

/// Reads and writes of the inference contract.
#[derive(Debug, Clone, Copy)]
pub struct Inference<'a> {
    client: &'a ChainClient,
}

common_methods!(Inference, Account);

impl<'a> Inference<'a> {
    pub(crate) fn new(client: &'a ChainClient) -> Self {
        Self { client }
    }

    /// Address of the contract, which is also the verifying contract of settlement signatures.
    #[must_use]
    pub fn address(&self) -> Address {
        self.client.addresses().inference
    }

    /// Every service, acknowledged by the owner or not.
    ///
    /// # Errors
    /// A failed read.
    pub async fn services(&self) -> Result<Vec<Service>, ChainError> {
        let mut services = Vec::new();
        loop {
            let call = abi::getAllServicesCall {
                offset: U256::from(services.len()),
                limit: U256::from(PAGE),
            };
            let page = self.client.call(NAME, self.address(), None, &call).await?;
            let done = page.services.is_empty();
            services.extend(page.services.into_iter().map(Service::from));
            if done || U256::from(services.len()) >= page.total {
                return Ok(services);
            }
        }
    }

    /// Whether a token id of the present generation is revoked; `None` without a sub-account.
    ///
    /// # Errors
    /// A failed read.
    pub async fn is_token_revoked(
        &self,
        user: Address,
        provider: Address,
        token_id: u8,
    ) -> Result<Option<bool>, ChainError> {
        let call = abi::isTokenRevokedCall {
            user,
            provider,
            tokenId: token_id,
        };
        let answer = self.client.call(NAME, self.address(), None, &call).await;
        answer.or_missing(&[ContractErrorKind::AccountNotExists])
    }

    /// What settling `settlements` from `provider` would do now. Each item is judged on its own.
    ///
    /// # Errors
    /// [`ChainError::Reverted`] for an empty list or more than [`MAX_SETTLEMENTS`]; a failed read.
    pub async fn preview_settlement(
        &self,
        provider: Address,
        settlements: &[Settlement],
    ) -> Result<SettlementPreview, ChainError> {
        let call = abi::previewSettlementResultsCall {
            settlements: settlements.iter().cloned().map(Into::into).collect(),
        };
        let answer = self
            .client
            .call(NAME, self.address(), Some(provider), &call)
            .await?;
        let malformed = |reason: &str| ChainError::MalformedAnswer {
            method: "previewSettlementResults".to_owned(),
            reason: reason.to_owned(),
        };
        if answer.failedUsers.len() != answer.failureReasons.len()
            || answer.partialUsers.len() != answer.partialAmounts.len()
        {
            return Err(malformed("arrays of different lengths"));
        }
        let mut preview = SettlementPreview::default();
        for (user, reason) in answer.failedUsers.into_iter().zip(answer.failureReasons) {
            let status =
                SettlementStatus::from_code(reason).ok_or_else(|| malformed("unknown status"))?;
            preview.failed.push((user, status));
        }
        preview.partial = answer
            .partialUsers
            .into_iter()
            .zip(answer.partialAmounts)
            .collect();
        Ok(preview)
    }

    /// Results of a mined settlement, one per item in order.
    ///
    /// # Errors
    /// [`ChainError::MalformedAnswer`] for a status this crate does not know.
    pub fn settlement_results(
        &self,
        receipt: &Receipt,
    ) -> Result<Vec<SettlementResult>, ChainError> {
        let malformed = |reason: String| ChainError::MalformedAnswer {
            method: "TEESettlementResult".to_owned(),
            reason,
        };
        let mut results = Vec::new();
        for log in &receipt.logs {
            if log.address != self.address()
                || log.topics.first() != Some(&abi::TEESettlementResult::SIGNATURE_HASH)
            {
                continue;
            }
            let event =
                abi::TEESettlementResult::decode_raw_log(log.topics.iter().copied(), &log.data)
                    .map_err(|error| malformed(error.to_string()))?;
            let status = SettlementStatus::from_code(event.status)
                .ok_or_else(|| malformed(format!("unknown status {}", event.status)))?;
            results.push(SettlementResult {
                user: event.user,
                status,
                unsettled_amount: event.unsettledAmount,
            });
        }
        Ok(results)
    }

    /// Provider: collects signed fees and returns what became of each item.
    ///
    /// # Errors
    /// As [`ChainClient::send`] and [`Inference::settlement_results`].
    pub async fn settle_fees_with_tee(
        &self,
        settlements: &[Settlement],
    ) -> Result<(Vec<SettlementResult>, Receipt), ChainError> {
        let receipt = self
            .client
            .send(calls::settle_fees_with_tee(self.address(), settlements))
            .await?;
        Ok((self.settlement_results(&receipt)?, receipt))
    }

    /// User: revokes one session token id.
    ///
    /// # Errors
    /// As [`ChainClient::send`].
    pub async fn revoke_token(
        &self,
        provider: Address,
        token_id: u8,
    ) -> Result<Receipt, ChainError> {
        self.client
            .send(calls::revoke_token(self.address(), provider, token_id))
            .await
    }

    /// User: revokes several session token ids.
    ///
    /// # Errors
    /// As [`ChainClient::send`].
    pub async fn revoke_tokens(
        &self,
        provider: Address,
        token_ids: &[u8],
    ) -> Result<Receipt, ChainError> {
        self.client
            .send(calls::revoke_tokens(self.address(), provider, token_ids))
            .await
    }

    /// User: revokes every session token.
    ///
    /// # Errors
    /// As [`ChainClient::send`].
    pub async fn revoke_all_tokens(&self, provider: Address) -> Result<Receipt, ChainError> {
        self.client
            .send(calls::revoke_all_tokens(self.address(), provider))
            .await
    }
}

impl From<ServiceParams> for abi::ServiceParams {
    fn from(params: ServiceParams) -> Self {
        Self {
            serviceType: params.service_type,
            url: params.url,
            model: params.model,
            verifiability: params.verifiability,
            inputPrice: params.input_price,
            outputPrice: params.output_price,
            additionalInfo: params.additional_info,
            teeSignerAddress: params.tee_signer,
        }
    }
}

impl From<abi::Service> for Service {
    fn from(service: abi::Service) -> Self {
        Self {
            provider: service.provider,
            service_type: service.serviceType,
            url: service.url,
            input_price: service.inputPrice,
            output_price: service.outputPrice,
            updated_at: service.updatedAt.saturating_to(),
            model: service.model,
            verifiability: service.verifiability,
            additional_info: service.additionalInfo,
            tee_signer: service.teeSignerAddress,
            tee_signer_acknowledged: service.teeSignerAcknowledged,
        }
    }
}

impl From<abi::Account> for Account {
    fn from(account: abi::Account) -> Self {
        // Entries from `validRefundsLength` on are leftovers of collected refunds.
        let live: usize = account.validRefundsLength.saturating_to();
        let refunds = account.refunds.into_iter().take(live).map(|refund| Refund {
            index: refund.index.saturating_to(),
            amount: refund.amount,
            created_at: refund.createdAt.saturating_to(),
        });
        Self {
            user: account.user,
            provider: account.provider,
            nonce: account.nonce,
            balance: account.balance,
            pending_refund: account.pendingRefund,
            refunds: refunds.collect(),
            additional_info: account.additionalInfo,
            acknowledged: account.acknowledged,
            generation: account.generation,
            revoked_bitmap: account.revokedBitmap,
        }
    }
}

impl From<Settlement> for abi::TEESettlementData {
    fn from(settlement: Settlement) -> Self {
        Self {
            user: settlement.user,
            provider: settlement.provider,
            totalFee: settlement.total_fee,
            requestsHash: settlement.requests_hash,
            nonce: settlement.nonce,
            signature: settlement.signature,
        }
    }
}
