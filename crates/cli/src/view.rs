//! What `--json` prints for types whose own JSON belongs to the chain or to a wire protocol.
//!
//! One style for every command: names in snake case, amounts of coins as decimal neuron in strings under names that end
//! in `_neuron`, units last, absent values as `null`. Each type is taken apart member by member, so that a new member
//! does not compile before somebody has given it a name here.

use serde::Serialize;
use serde_json::Value;
use zerog_sdk::storage::{UploadCost, UploadOutcome};
use zerog_sdk::{
    AcknowledgedModel, AdapterView, Address, B256, ChatAnswer, DeployResponse, DownloadMethod,
    FeeBreakdown, FineTuningService, InferenceService, LedgerAccount, PendingRefund, Quota,
    Receipt, ResponseProof, ServiceKind, StateTime, Task, TrainingProgress, U256,
};

/// A mined transaction, without its events.
#[derive(Debug, Serialize)]
pub(crate) struct ReceiptOutput {
    transaction_hash: B256,
    block_number: u64,
    block_hash: B256,
    succeeded: bool,
    gas_used: u64,
    gas_price_neuron: String,
    gas_cost_neuron: String,
}

impl From<&Receipt> for ReceiptOutput {
    fn from(receipt: &Receipt) -> Self {
        let Receipt {
            transaction_hash,
            block_number,
            block_hash,
            succeeded,
            gas_used,
            effective_gas_price,
            contract_address: _,
            logs: _,
        } = receipt;
        Self {
            transaction_hash: *transaction_hash,
            block_number: *block_number,
            block_hash: *block_hash,
            succeeded: *succeeded,
            gas_used: *gas_used,
            gas_price_neuron: effective_gas_price.to_string(),
            gas_cost_neuron: receipt.gas_cost().to_string(),
        }
    }
}

/// A transaction that may have been unnecessary.
#[derive(Debug, Serialize)]
pub(crate) struct AcknowledgementOutput {
    was_acknowledged_before: bool,
    receipt: Option<ReceiptOutput>,
}

impl From<&Option<Receipt>> for AcknowledgementOutput {
    fn from(receipt: &Option<Receipt>) -> Self {
        Self {
            was_acknowledged_before: receipt.is_none(),
            receipt: receipt.as_ref().map(ReceiptOutput::from),
        }
    }
}

/// Refunds that were asked for or collected with one service.
#[derive(Debug, Serialize)]
pub(crate) struct RetrievalOutput {
    pub(crate) service: ServiceKind,
    pub(crate) receipt: ReceiptOutput,
}

/// Everything that the wallet has on the network.
#[derive(Debug, Serialize)]
pub(crate) struct AccountOutput {
    pub(crate) ledger: LedgerOutput,
    pub(crate) wallet_balance_neuron: String,
    pub(crate) sub_accounts: Vec<SubAccountOutput>,
}

/// The ledger.
#[derive(Debug, Serialize)]
pub(crate) struct LedgerOutput {
    user: Address,
    total_balance_neuron: String,
    available_balance_neuron: String,
    locked_balance_neuron: String,
    additional_info: String,
}

impl From<&LedgerAccount> for LedgerOutput {
    fn from(ledger: &LedgerAccount) -> Self {
        let LedgerAccount {
            user,
            available_balance,
            total_balance,
            additional_info,
        } = ledger;
        Self {
            user: *user,
            total_balance_neuron: total_balance.to_string(),
            available_balance_neuron: available_balance.to_string(),
            locked_balance_neuron: ledger.locked_balance().to_string(),
            additional_info: additional_info.clone(),
        }
    }
}

/// A sub-account.
#[derive(Debug, Serialize)]
pub(crate) struct SubAccountOutput {
    pub(crate) service: ServiceKind,
    pub(crate) provider: Address,
    pub(crate) balance_neuron: String,
    pub(crate) pending_refund_neuron: String,
    pub(crate) available_neuron: String,
    pub(crate) acknowledged: bool,
    pub(crate) refunds: Vec<PendingRefund>,
}

/// An offer of training.
#[derive(Debug, Serialize)]
pub(crate) struct FineTuningServiceOutput {
    provider: Address,
    url: String,
    quota: QuotaOutput,
    price_per_token_neuron: String,
    occupied: bool,
    models: Vec<String>,
    tee_signer: Address,
    tee_signer_acknowledged: bool,
}

/// The machine behind an offer, as the provider told it.
#[derive(Debug, Serialize)]
struct QuotaOutput {
    cpu_count: u64,
    memory_gb: u64,
    gpu_count: u64,
    storage_gb: u64,
    gpu_type: String,
}

impl From<&FineTuningService> for FineTuningServiceOutput {
    fn from(service: &FineTuningService) -> Self {
        let FineTuningService {
            provider,
            url,
            quota:
                Quota {
                    cpu_count,
                    node_memory,
                    gpu_count,
                    node_storage,
                    gpu_type,
                },
            price_per_token,
            occupied,
            models,
            tee_signer,
            tee_signer_acknowledged,
        } = service.clone();
        Self {
            provider,
            url,
            quota: QuotaOutput {
                cpu_count,
                memory_gb: node_memory,
                gpu_count,
                storage_gb: node_storage,
                gpu_type,
            },
            price_per_token_neuron: price_per_token.to_string(),
            occupied,
            models,
            tee_signer,
            tee_signer_acknowledged,
        }
    }
}

/// An offer of chat.
#[derive(Debug, Serialize)]
pub(crate) struct InferenceServiceOutput {
    provider: Address,
    service_type: String,
    url: String,
    input_price_neuron: String,
    output_price_neuron: String,
    updated_at_s: u64,
    model: String,
    verifiability: String,
    additional_info: String,
    tee_signer: Address,
    tee_signer_acknowledged: bool,
}

/// A provider with its health.
#[derive(Debug, Serialize)]
pub(crate) struct InferenceServiceDetail {
    #[serde(flatten)]
    pub(crate) service: InferenceServiceOutput,
    pub(crate) is_reachable: bool,
    pub(crate) error: Option<String>,
}

impl From<&InferenceService> for InferenceServiceOutput {
    fn from(service: &InferenceService) -> Self {
        let InferenceService {
            provider,
            service_type,
            url,
            input_price,
            output_price,
            updated_at,
            model,
            verifiability,
            additional_info,
            tee_signer,
            tee_signer_acknowledged,
        } = service.clone();
        Self {
            provider,
            service_type,
            url,
            input_price_neuron: input_price.to_string(),
            output_price_neuron: output_price.to_string(),
            updated_at_s: updated_at,
            model,
            verifiability,
            additional_info,
            tee_signer,
            tee_signer_acknowledged,
        }
    }
}

/// One entry of a provider's catalogue. Providers write what they like into theirs; these members mean the same with all.
#[derive(Debug, Serialize)]
pub(crate) struct ServedModelOutput {
    id: Option<String>,
    name: Option<String>,
    description: Option<String>,
    context_length: Option<u64>,
    max_completion_tokens: Option<u64>,
    input_price_neuron: Option<String>,
    output_price_neuron: Option<String>,
    verifiability: Option<String>,
    tee_attested: Option<bool>,
    supports_fine_tuned_adapters: Option<bool>,
    stand_in: Option<bool>,
    base_model_sha256: Option<String>,
}

impl From<&Value> for ServedModelOutput {
    fn from(model: &Value) -> Self {
        let text = |pointer: &str| Some(model.pointer(pointer)?.as_str()?.to_owned());
        let number = |name: &str| model.get(name)?.as_u64();
        let flag = |name: &str| model.get(name)?.as_bool();
        let price = |pointer: &str| {
            text(pointer)?
                .parse::<U256>()
                .ok()
                .map(|price| price.to_string())
        };
        Self {
            id: text("/id"),
            name: text("/name"),
            description: text("/description"),
            context_length: number("context_length"),
            max_completion_tokens: number("max_completion_tokens"),
            input_price_neuron: price("/pricing/prompt"),
            output_price_neuron: price("/pricing/completion"),
            verifiability: text("/verifiability"),
            tee_attested: flag("tee_attested"),
            supports_fine_tuned_adapters: flag("supports_fine_tuned_adapters"),
            stand_in: flag("stand_in"),
            base_model_sha256: text("/base_model_sha256"),
        }
    }
}

/// A task.
#[derive(Debug, Serialize)]
pub(crate) struct TaskOutput {
    task_id: String,
    /// State name as on the wire.
    progress: String,
    created_at: Option<String>,
    updated_at: Option<String>,
    user: String,
    model_hash: String,
    dataset_hash: String,
    training_params: String,
    fee_neuron: String,
    fee_breakdown: Option<FeeOutput>,
    nonce: String,
    signature: String,
    stage: Option<String>,
    failure_reason: Option<String>,
    queue_position: Option<u64>,
    /// Unix time; none before the delivery.
    delivered_at_s: Option<u64>,
    /// Unix time.
    ack_deadline_s: Option<u64>,
    settled_with_secret: Option<bool>,
    tokens: Option<u64>,
    training: Option<TrainingOutput>,
    model_root_hash: Option<String>,
    /// Public key that the model's key is sealed to instead of the wallet's.
    recipient_key: Option<String>,
    states: Vec<StateOutput>,
}

#[derive(Debug, Serialize)]
struct FeeOutput {
    billed_tokens: u64,
    price_per_token_neuron: String,
    price_coefficient: u64,
    training_fee_neuron: String,
    storage_fee_neuron: String,
    total_neuron: String,
}

#[derive(Debug, Serialize)]
struct TrainingOutput {
    step: u64,
    total_steps: u64,
    loss: Option<f64>,
    first_loss: Option<f64>,
    eval_loss: Option<f64>,
    learning_rate: Option<f64>,
    tokens_per_s: Option<f64>,
    eta_s: Option<f64>,
}

#[derive(Debug, Serialize)]
struct StateOutput {
    state: String,
    at_ms: u64,
}

impl From<&Task> for TaskOutput {
    fn from(task: &Task) -> Self {
        let Task {
            id,
            created_at,
            updated_at,
            user_address,
            pre_trained_model_hash,
            dataset_hash,
            training_params,
            fee,
            nonce,
            signature,
            progress,
            deliver_index: _,
            deliver_time,
            model_type: _,
            wait: _,
            failure_reason,
            stage,
            queue_position,
            ack_deadline,
            settled_with_secret,
            tokens,
            fee_breakdown,
            training,
            model_root_hash,
            states,
            recipient,
        } = task.clone();
        Self {
            task_id: id,
            progress,
            created_at,
            updated_at,
            user: user_address,
            model_hash: pre_trained_model_hash,
            dataset_hash,
            training_params,
            fee_neuron: fee,
            fee_breakdown: fee_breakdown.map(FeeOutput::from),
            nonce,
            signature,
            stage,
            failure_reason,
            queue_position,
            delivered_at_s: (deliver_time > 0).then_some(deliver_time),
            ack_deadline_s: ack_deadline,
            settled_with_secret,
            tokens,
            training: training.map(TrainingOutput::from),
            model_root_hash,
            recipient_key: recipient.map(|recipient| recipient.key),
            states: states.into_iter().map(StateOutput::from).collect(),
        }
    }
}

impl From<FeeBreakdown> for FeeOutput {
    fn from(fee: FeeBreakdown) -> Self {
        let FeeBreakdown {
            billed_tokens,
            price_per_token,
            price_coefficient,
            training_fee,
            storage_fee,
            total,
        } = fee;
        Self {
            billed_tokens,
            price_per_token_neuron: price_per_token,
            price_coefficient,
            training_fee_neuron: training_fee,
            storage_fee_neuron: storage_fee,
            total_neuron: total,
        }
    }
}

impl From<TrainingProgress> for TrainingOutput {
    fn from(training: TrainingProgress) -> Self {
        let TrainingProgress {
            step,
            total_steps,
            loss,
            first_loss,
            eval_loss,
            learning_rate,
            tokens_per_s,
            eta_s,
        } = training;
        Self {
            step,
            total_steps,
            loss,
            first_loss,
            eval_loss,
            learning_rate,
            tokens_per_s,
            eta_s,
        }
    }
}

impl From<StateTime> for StateOutput {
    fn from(state: StateTime) -> Self {
        let StateTime { state, at_ms } = state;
        Self { state, at_ms }
    }
}

/// A downloaded, checked and acknowledged adapter.
#[derive(Debug, Serialize)]
pub(crate) struct AcknowledgedOutput {
    path: std::path::PathBuf,
    model_root_hash: B256,
    method: Option<DownloadMethod>,
    bytes: u64,
    receipt: Option<ReceiptOutput>,
}

impl From<&AcknowledgedModel> for AcknowledgedOutput {
    fn from(model: &AcknowledgedModel) -> Self {
        let AcknowledgedModel {
            path,
            model_root_hash,
            method,
            bytes,
            receipt,
        } = model;
        Self {
            path: path.clone(),
            model_root_hash: *model_root_hash,
            method: *method,
            bytes: *bytes,
            receipt: receipt.as_ref().map(ReceiptOutput::from),
        }
    }
}

/// An adapter at a provider.
#[derive(Debug, Serialize)]
pub(crate) struct AdapterOutput {
    adapter_name: String,
    task_id: String,
    base_model: String,
    user: String,
    /// As published clients see it.
    state: String,
    /// The true state.
    tier: Option<String>,
    storage_root_hash: Option<String>,
    error: Option<String>,
    retryable: Option<bool>,
    created_at: Option<String>,
    updated_at: Option<String>,
}

impl From<&AdapterView> for AdapterOutput {
    fn from(adapter: &AdapterView) -> Self {
        let AdapterView {
            adapter_name,
            task_id,
            base_model,
            user_address,
            state,
            storage_root_hash,
            storage_path: _,
            error,
            tier,
            retryable,
            created_at,
            updated_at,
        } = adapter.clone();
        Self {
            adapter_name,
            task_id,
            base_model,
            user: user_address,
            state,
            tier,
            storage_root_hash,
            error,
            retryable,
            created_at,
            updated_at,
        }
    }
}

/// What came of a deployment.
#[derive(Debug, Serialize)]
pub(crate) struct DeploymentOutput {
    status: String,
    adapter_name: String,
    message: String,
}

impl From<&DeployResponse> for DeploymentOutput {
    fn from(response: &DeployResponse) -> Self {
        let DeployResponse {
            status,
            adapter_name,
            message,
        } = response.clone();
        Self {
            status,
            adapter_name,
            message,
        }
    }
}

/// An answer.
#[derive(Debug, Serialize)]
pub(crate) struct ChatOutput {
    model: String,
    content: Option<String>,
    finish_reason: Option<String>,
    prompt_tokens: Option<u64>,
    completion_tokens: Option<u64>,
    total_tokens: Option<u64>,
    chat_id: Option<String>,
    proof: Option<ResponseProof>,
}

impl ChatOutput {
    /// An answer and, if it was asked for, its proof.
    pub(crate) fn new(answer: &ChatAnswer, proof: Option<ResponseProof>) -> Self {
        let usage = answer.usage();
        let reason = answer.response.pointer("/choices/0/finish_reason");
        Self {
            model: answer.model.clone(),
            content: answer.content().map(str::to_owned),
            finish_reason: reason.and_then(Value::as_str).map(str::to_owned),
            prompt_tokens: usage.map(|(prompt, ..)| prompt),
            completion_tokens: usage.map(|(_, completion, _)| completion),
            total_tokens: usage.map(|(.., total)| total),
            chat_id: answer.chat_id.clone(),
            proof,
        }
    }
}

/// A stored file or fragment.
#[derive(Debug, Serialize)]
pub(crate) struct StoredOutput {
    root_hash: B256,
    bytes: u64,
    sequence: u64,
    already_present: bool,
    transaction_hash: Option<B256>,
    fee_neuron: String,
}

impl From<&UploadOutcome> for StoredOutput {
    fn from(outcome: &UploadOutcome) -> Self {
        let UploadOutcome {
            root,
            size,
            sequence,
            already_present,
            tx_hash,
            fee,
        } = outcome.clone();
        Self {
            root_hash: root,
            bytes: size,
            sequence,
            already_present,
            transaction_hash: tx_hash,
            fee_neuron: fee.to_string(),
        }
    }
}

/// What storing a file would cost.
#[derive(Debug, Serialize)]
pub(crate) struct StorageCostOutput {
    root_hash: B256,
    sectors: u64,
    fee_neuron: String,
}

impl From<&UploadCost> for StorageCostOutput {
    fn from(cost: &UploadCost) -> Self {
        let UploadCost { root, sectors, fee } = cost;
        Self {
            root_hash: *root,
            sectors: *sectors,
            fee_neuron: fee.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn catalogue_entries_of_any_provider_are_read() {
        let model = serde_json::json!({
            "id": "m", "contextLength": 1, "context_length": 2048, "pricing": {"prompt": "500", "completion": "0x1f"},
        });
        let output = serde_json::to_value(ServedModelOutput::from(&model)).unwrap();
        assert_eq!(output["context_length"], 2048);
        assert_eq!(output["input_price_neuron"], "500");
        assert_eq!(output["output_price_neuron"], "31", "amounts are decimal");
        assert_eq!(output["name"], Value::Null);
    }
}
