//! The fine-tuning contract: services, sub-accounts, deliverables and settlement.

use alloy_primitives::{Address, Bytes, U256};
use serde::{Deserialize, Serialize};

use crate::{
    ChainClient, ChainError, ContractErrorKind, Receipt,
    bindings::FineTuningServing as abi,
    calls::{fine_tuning as calls, serving},
    revert::OrMissing,
    serving_contract::common_methods,
};

const NAME: &str = "FineTuningServing";
const PAGE: u64 = 50;

/// Machine behind a service; informative only, sizes in GB by convention.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Quota {
    /// CPU cores.
    pub cpu_count: u64,
    /// Memory, GB.
    pub node_memory: u64,
    /// GPUs.
    pub gpu_count: u64,
    /// Disk, GB.
    pub node_storage: u64,
    /// GPU model.
    pub gpu_type: String,
}

/// Offer of one provider.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    /// Provider account.
    pub provider: Address,
    /// Base URL of its HTTP API.
    pub url: String,
    /// Machine.
    pub quota: Quota,
    /// Price in neuron per token.
    pub price_per_token: U256,
    /// Whether a task runs, as told by the provider.
    pub occupied: bool,
    /// Names of customised models.
    pub models: Vec<String>,
    /// Key that signs settlements.
    pub tee_signer: Address,
    /// Whether the contract owner accepted that key.
    pub tee_signer_acknowledged: bool,
}

/// What a provider registers. The owner's acceptance is lost when `tee_signer` changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceParams {
    /// Base URL of the HTTP API; at most 1024 bytes.
    pub url: String,
    /// Machine.
    pub quota: Quota,
    /// Price in neuron per token.
    pub price_per_token: U256,
    /// Whether a task runs.
    pub occupied: bool,
    /// Names of customised models; at most 64.
    pub models: Vec<String>,
    /// Key that signs settlements.
    pub tee_signer: Address,
}

/// A refund that was requested and not collected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Refund {
    /// Position in the list.
    pub index: u64,
    /// Amount in neuron.
    pub amount: U256,
    /// Request time, seconds since 1970; it unlocks `lock_time` later.
    pub created_at: u64,
}

/// Where a deliverable is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum DeliverableState {
    /// Waits for the user.
    Delivered,
    /// Waits for the settlement.
    Acknowledged,
    /// Paid in full; the key is on chain.
    Settled,
    /// Settled for the penalty, without the key.
    SettledWithPenalty,
    /// Given up by the provider.
    Abandoned,
}

/// Record of one finished task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Deliverable {
    /// Task id.
    pub id: String,
    /// Storage root of the encrypted archive; 32 bytes from all known providers.
    pub model_root_hash: Bytes,
    /// Encrypted archive key; empty until settled in full.
    pub encrypted_secret: Bytes,
    /// The user's acknowledgement.
    pub acknowledged: bool,
    /// Delivery time, seconds since 1970.
    pub timestamp: u64,
    /// Whether it was settled or abandoned.
    pub settled: bool,
}

impl Deliverable {
    /// Where the deliverable is in its life.
    #[must_use]
    pub fn state(&self) -> DeliverableState {
        match (self.acknowledged, self.settled) {
            (false, false) => DeliverableState::Delivered,
            (true, false) => DeliverableState::Acknowledged,
            (false, true) => DeliverableState::SettledWithPenalty,
            (true, true) if self.encrypted_secret.is_empty() => DeliverableState::Abandoned,
            (true, true) => DeliverableState::Settled,
        }
    }

    /// Whether the pair cannot get another deliverable because of this one.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.state() == DeliverableState::Delivered
    }
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
    /// Deliverables, oldest first.
    pub deliverables: Vec<Deliverable>,
    /// The user's acknowledgement of the TEE signer.
    pub acknowledged: bool,
}

impl Account {
    /// What was not asked back, in neuron.
    #[must_use]
    pub fn free_balance(&self) -> U256 {
        self.balance.saturating_sub(self.pending_refund)
    }
}

/// A sub-account without its lists. Amounts are in neuron.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AccountSummary {
    /// Owner of the money.
    pub user: Address,
    /// Provider that can be paid from it.
    pub provider: Address,
    /// Nonce of the last settlement.
    pub nonce: U256,
    /// Everything in the sub-account.
    pub balance: U256,
    /// Part of it that was asked back.
    pub pending_refund: U256,
    /// Free text.
    pub additional_info: String,
    /// Deliverables on record.
    pub deliverables: u64,
    /// The user's acknowledgement of the TEE signer.
    pub acknowledged: bool,
}

/// Signed claim for the fee of one deliverable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settlement {
    /// Task id.
    pub id: String,
    /// Archive key encrypted to the user; empty for an unacknowledged deliverable.
    pub encrypted_secret: Bytes,
    /// Root as delivered.
    pub model_root_hash: Bytes,
    /// Nonce of the task.
    pub nonce: U256,
    /// 65-byte EIP-712 signature of the TEE signer.
    pub signature: Bytes,
    /// Full fee in neuron, also when only the penalty is charged.
    pub task_fee: U256,
    /// Owner of the sub-account.
    pub user: Address,
}

/// Reads and writes of the fine-tuning contract.
#[derive(Debug, Clone, Copy)]
pub struct FineTuning<'a> {
    client: &'a ChainClient,
}

common_methods!(FineTuning, AccountSummary);

impl<'a> FineTuning<'a> {
    pub(crate) fn new(client: &'a ChainClient) -> Self {
        Self { client }
    }

    /// Address of the contract, which is also the verifying contract of settlement signatures.
    #[must_use]
    pub fn address(&self) -> Address {
        self.client.addresses().fine_tuning
    }

    /// Every service, acknowledged by the owner or not.
    ///
    /// # Errors
    /// A failed read.
    pub async fn services(&self) -> Result<Vec<Service>, ChainError> {
        let services = self
            .client
            .call(NAME, self.address(), None, &abi::getAllServicesCall {})
            .await?;
        Ok(services.into_iter().map(Into::into).collect())
    }

    /// One deliverable; `None` if neither it nor its sub-account exists.
    ///
    /// # Errors
    /// A failed read.
    pub async fn deliverable(
        &self,
        user: Address,
        provider: Address,
        id: &str,
    ) -> Result<Option<Deliverable>, ChainError> {
        let call = abi::getDeliverableCall {
            user,
            provider,
            id: id.to_owned(),
        };
        let answer = self.client.call(NAME, self.address(), None, &call).await;
        let missing = [
            ContractErrorKind::DeliverableNotExists,
            ContractErrorKind::AccountNotExists,
        ];
        Ok(answer.or_missing(&missing)?.map(Into::into))
    }

    /// Deliverables of a pair, oldest first; empty without a sub-account.
    ///
    /// # Errors
    /// A failed read.
    pub async fn deliverables(
        &self,
        user: Address,
        provider: Address,
    ) -> Result<Vec<Deliverable>, ChainError> {
        let call = abi::getDeliverablesCall { user, provider };
        let answer = self.client.call(NAME, self.address(), None, &call).await;
        let answer = answer.or_missing(&[ContractErrorKind::AccountNotExists])?;
        Ok(answer
            .unwrap_or_default()
            .into_iter()
            .map(Into::into)
            .collect())
    }

    /// Time (seconds since 1970) from which an unacknowledged deliverable can be settled for the
    /// penalty. `None` on contracts without that rule, which are the published ones: there it is
    /// possible at once.
    ///
    /// # Errors
    /// A failed read, or [`ContractErrorKind::DeliverableNotExists`].
    pub async fn acknowledge_deadline(
        &self,
        user: Address,
        provider: Address,
        id: &str,
    ) -> Result<Option<u64>, ChainError> {
        let call = abi::acknowledgeDeadlineCall {
            user,
            provider,
            id: id.to_owned(),
        };
        let answer = self.client.call(NAME, self.address(), None, &call).await;
        Ok(answer
            .or_missing(&[ContractErrorKind::Empty])?
            .map(|deadline| deadline.saturating_to()))
    }

    /// Percent of the fee that an unacknowledged deliverable costs.
    ///
    /// # Errors
    /// A failed read.
    pub async fn penalty_percentage(&self) -> Result<u8, ChainError> {
        let percentage = self
            .client
            .call(NAME, self.address(), None, &abi::penaltyPercentageCall {})
            .await?;
        Ok(percentage.saturating_to())
    }

    /// Acknowledgement window of new deliverables in seconds, before it is cut to half the lock
    /// time; `None` on contracts without that rule.
    ///
    /// # Errors
    /// A failed read.
    pub async fn ack_window_s(&self) -> Result<Option<u64>, ChainError> {
        let answer = self
            .client
            .call(NAME, self.address(), None, &abi::ackWindowCall {})
            .await;
        Ok(answer
            .or_missing(&[ContractErrorKind::Empty])?
            .map(|seconds| seconds.saturating_to()))
    }

    /// Provider: records a finished task. `model_root_hash` is the storage root of the archive.
    ///
    /// # Errors
    /// As [`ChainClient::send`].
    pub async fn add_deliverable(
        &self,
        user: Address,
        id: &str,
        model_root_hash: Bytes,
    ) -> Result<Receipt, ChainError> {
        self.client
            .send(calls::add_deliverable(
                self.address(),
                user,
                id,
                model_root_hash,
            ))
            .await
    }

    /// Provider: gives a deliverable up without payment.
    ///
    /// # Errors
    /// As [`ChainClient::send`].
    pub async fn abandon_deliverable(
        &self,
        user: Address,
        id: &str,
    ) -> Result<Receipt, ChainError> {
        self.client
            .send(calls::abandon_deliverable(self.address(), user, id))
            .await
    }

    /// Provider: collects the fee of one deliverable.
    ///
    /// # Errors
    /// As [`ChainClient::send`].
    pub async fn settle_fees(&self, settlement: &Settlement) -> Result<Receipt, ChainError> {
        self.client
            .send(calls::settle_fees(self.address(), settlement))
            .await
    }

    /// User: accepts a deliverable.
    ///
    /// # Errors
    /// As [`ChainClient::send`].
    pub async fn acknowledge_deliverable(
        &self,
        provider: Address,
        id: &str,
    ) -> Result<Receipt, ChainError> {
        self.client
            .send(calls::acknowledge_deliverable(self.address(), provider, id))
            .await
    }
}

impl From<Quota> for abi::Quota {
    fn from(quota: Quota) -> Self {
        Self {
            cpuCount: U256::from(quota.cpu_count),
            nodeMemory: U256::from(quota.node_memory),
            gpuCount: U256::from(quota.gpu_count),
            nodeStorage: U256::from(quota.node_storage),
            gpuType: quota.gpu_type,
        }
    }
}

impl From<abi::Quota> for Quota {
    fn from(quota: abi::Quota) -> Self {
        Self {
            cpu_count: quota.cpuCount.saturating_to(),
            node_memory: quota.nodeMemory.saturating_to(),
            gpu_count: quota.gpuCount.saturating_to(),
            node_storage: quota.nodeStorage.saturating_to(),
            gpu_type: quota.gpuType,
        }
    }
}

impl From<abi::Service> for Service {
    fn from(service: abi::Service) -> Self {
        Self {
            provider: service.provider,
            url: service.url,
            quota: service.quota.into(),
            price_per_token: service.pricePerToken,
            occupied: service.occupied,
            models: service.models,
            tee_signer: service.teeSignerAddress,
            tee_signer_acknowledged: service.teeSignerAcknowledged,
        }
    }
}

impl From<abi::Deliverable> for Deliverable {
    fn from(deliverable: abi::Deliverable) -> Self {
        Self {
            id: deliverable.id,
            model_root_hash: deliverable.modelRootHash,
            encrypted_secret: deliverable.encryptedSecret,
            acknowledged: deliverable.acknowledged,
            timestamp: deliverable.timestamp.saturating_to(),
            settled: deliverable.settled,
        }
    }
}

impl From<abi::AccountDetails> for Account {
    fn from(account: abi::AccountDetails) -> Self {
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
            deliverables: account.deliverables.into_iter().map(Into::into).collect(),
            acknowledged: account.acknowledged,
        }
    }
}

impl From<abi::AccountSummary> for AccountSummary {
    fn from(account: abi::AccountSummary) -> Self {
        Self {
            user: account.user,
            provider: account.provider,
            nonce: account.nonce,
            balance: account.balance,
            pending_refund: account.pendingRefund,
            additional_info: account.additionalInfo,
            deliverables: account.deliverablesCount.saturating_to(),
            acknowledged: account.acknowledged,
        }
    }
}

impl From<Settlement> for abi::VerifierInput {
    fn from(settlement: Settlement) -> Self {
        Self {
            id: settlement.id,
            encryptedSecret: settlement.encrypted_secret,
            modelRootHash: settlement.model_root_hash,
            nonce: settlement.nonce,
            signature: settlement.signature,
            taskFee: settlement.task_fee,
            user: settlement.user,
        }
    }
}
