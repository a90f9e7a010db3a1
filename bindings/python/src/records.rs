//! The SDK's structs as dictionaries, under the names of the Python records.

use pyo3::prelude::*;
use zerog_sdk::broker::NetworkSettings;
use zerog_sdk::fine_tuning::account::{AccountDetail, PendingRefund};
use zerog_sdk::funds::FundPlan;
use zerog_sdk::inference::lora::ChatAnswer;
use zerog_sdk::inference::session::{ApiKey, Funding, RequestHeaders, ServiceMetadata};
use zerog_sdk::inference::verify::ResponseProof;
use zerog_sdk::{
    AcknowledgedModel, AdapterView, Check, DatasetFinding, DatasetReport, Deliverable,
    DeployResponse, DownloadMethod, FeeBreakdown, FeeQuote, FineTuningAccount, FineTuningService,
    InferenceAccount, InferenceService, LedgerAccount, ListedModel, ModelView, Progress, Quota,
    Quote, Receipt, SignedQuote, Task, TokenCalculation, TrainingProgress, UploadResult,
    VerificationReport, VerificationStep,
};

use crate::convert::{Binary, ToPython, record};

record!(Receipt, this:
    transaction_hash, block_number, gas_used,
    status = u64::from(this.succeeded), success = this.succeeded);

record!(LedgerAccount, this:
    balance = this.available_balance, locked = this.locked_balance(), total_balance);

record!(Quota, this: cpu_count, node_memory, gpu_count, node_storage, gpu_type);
record!(FineTuningService, this:
    provider, url, quota, price_per_token, occupied, models,
    tee_signer_address = this.tee_signer, tee_signer_acknowledged);

/// Refunds of both contracts have the same fields.
struct Refund(u64, zerog_sdk::U256, u64);
record!(Refund, this: index = this.0, amount = this.1, created_at = this.2);

record!(Deliverable, this:
    id, acknowledged, timestamp, settled,
    model_root_hash = Binary(&this.model_root_hash), encrypted_secret = Binary(&this.encrypted_secret));

record!(FineTuningAccount, this:
    user, provider, nonce, balance, pending_refund, additional_info, deliverables, acknowledged,
    refunds = this.refunds.iter().map(|refund| Refund(refund.index, refund.amount, refund.created_at)).collect::<Vec<_>>());

record!(InferenceAccount, this:
    user, provider, nonce, balance, pending_refund, additional_info, acknowledged, generation, revoked_bitmap,
    refunds = this.refunds.iter().map(|refund| Refund(refund.index, refund.amount, refund.created_at)).collect::<Vec<_>>());

record!(PendingRefund, this: amount, remain_time);

impl<A: ToPython> ToPython for AccountDetail<A> {
    fn to_python<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        (&self.account, &self.refunds).to_python(py)
    }
}

record!(ListedModel, this: name, hash, description, tokenizer, provider);
record!(ModelView, this:
    name, hash, image, data_type, training_script, description, tokenizer, tokenizer_sha256, price_coefficient,
    storage_fee, max_tokens, stand_in, base_model_sha256);

record!(DatasetReport, this: format, records, bytes, keccak);
record!(UploadResult, this: dataset_hash, message, sealed);
record!(TokenCalculation, this:
    tokens, examples, supervised_tokens, truncated_examples, max_seq_length, tokenizer, is_estimate);
record!(FeeQuote, this:
    calculation, billed_tokens, total_steps, price_per_token, price_coefficient, training_fee, storage_fee, total,
    is_estimate);

record!(DatasetFinding, this: line, severity, message);
record!(SignedQuote, this: quote, signature);
record!(Quote, this:
    provider, model, dataset_hash, fee, queue_position, estimated_start_s, estimated_duration_s, findings, more_findings,
    signed, signer);

record!(FeeBreakdown, this:
    billed_tokens, price_per_token, price_coefficient, training_fee, storage_fee, total);
record!(TrainingProgress, this: step, total_steps, loss, first_loss, eval_loss, learning_rate, tokens_per_s, eta_s);
record!(Task, this:
    id, created_at, updated_at, user_address, pre_trained_model_hash, dataset_hash, training_params, fee, nonce, signature,
    state = this.progress, deliver_index, deliver_time, model_type, wait, failure_reason, stage, queue_position,
    ack_deadline, settled_with_secret, tokens, fee_breakdown, training, model_root_hash,
    states = this.states.iter().map(|state| (&state.state, state.at_ms)).collect::<Vec<_>>());

impl ToPython for DownloadMethod {
    fn to_python<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        match self {
            Self::Auto => "auto",
            Self::Tee => "tee",
            Self::Storage => "0g-storage",
        }
        .to_python(py)
    }
}
record!(AcknowledgedModel, this: path, model_root_hash, method, bytes, receipt);

record!(FundPlan, this: deposit, fine_tuning, inference, fine_tuning_provider, inference_provider);
record!(Funding, this: created, acknowledged, transferred);

record!(InferenceService, this:
    provider, service_type, url, input_price, output_price, updated_at, model, verifiability, additional_info,
    tee_signer_address = this.tee_signer, tee_signer_acknowledged);
record!(ServiceMetadata, this: endpoint, model);
record!(ApiKey, this: token_id, created_at, expires_at, raw_token);
record!(ResponseProof, this: signer, text);
record!(ChatAnswer, this:
    response, chat_id,
    request_body = Binary(&this.request_body), response_body = Binary(&this.response_body));

impl ToPython for RequestHeaders {
    fn to_python<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let headers = pyo3::types::PyDict::new(py);
        headers.set_item("Authorization", &self.authorization)?;
        Ok(headers.into_any())
    }
}

record!(AdapterView, this:
    adapter_name, task_id, base_model, user_address, state, storage_root_hash, storage_path, error, tier, retryable,
    created_at, updated_at);
record!(DeployResponse, this: status, adapter_name, message);

record!(VerificationStep, this: kind, message);
record!(Check, this:
    id = this.id.to_string(), name, detail,
    rejection = this.rejection.map(|kind| kind.to_string()),
    status = format!("{:?}", this.status).to_lowercase());
record!(VerificationReport, this:
    provider, is_valid, quote_available, signer_match, compose_hash_match, docker_images, tee_signer, expected_signer,
    errors, checks, nonce, report = Binary(&this.report), report_path, verdict_path, summary_path, steps,
    level = this.level.to_string(),
    assurance = format!("{:?}", this.assurance).to_lowercase());

record!(NetworkSettings, this:
    name, rpc_url, chain_id, storage_indexer_url,
    ledger_address = this.addresses.ledger, inference_address = this.addresses.inference,
    fine_tuning_address = this.addresses.fine_tuning, flow_address = this.addresses.flow);

impl ToPython for Progress {
    fn to_python<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let event = pyo3::types::PyDict::new(py);
        let set = |name: &str, value: &dyn ToPython| event.set_item(name, value.to_python(py)?);
        match self {
            Self::Step { text } => {
                set("event", &"step")?;
                set("text", text)?;
            }
            Self::Notice { text } => {
                set("event", &"notice")?;
                set("text", text)?;
            }
            Self::Transfer {
                done_bytes,
                total_bytes,
            } => {
                set("event", &"transfer")?;
                set("done_bytes", done_bytes)?;
                set("total_bytes", total_bytes)?;
            }
            Self::Task {
                state,
                step,
                total_steps,
                loss,
                eval_loss,
                learning_rate,
                tokens_per_s,
                eta_s,
                queue_position,
                stage,
            } => {
                set("event", &"task")?;
                set("state", state)?;
                set("step", step)?;
                set("total_steps", total_steps)?;
                set("loss", loss)?;
                set("eval_loss", eval_loss)?;
                set("learning_rate", learning_rate)?;
                set("tokens_per_s", tokens_per_s)?;
                set("eta_s", eta_s)?;
                set("queue_position", queue_position)?;
                set("stage", stage)?;
            }
            Self::Adapter { state } => {
                set("event", &"adapter")?;
                set("state", state)?;
            }
            Self::Funded {
                service,
                provider,
                amount,
            } => {
                set("event", &"funded")?;
                set("service", &service.name())?;
                set("provider", provider)?;
                set("amount", amount)?;
            }
            // News of a newer SDK.
            other => {
                set("event", &"notice")?;
                set("text", &format!("{other:?}"))?;
            }
        }
        Ok(event.into_any())
    }
}
