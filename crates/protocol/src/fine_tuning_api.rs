//! Request and response bodies of the fine-tuning broker's HTTP routes.

use serde::{Deserialize, Serialize};

use crate::models::ModelKind;
use crate::task::TaskState;

/// Body of `POST /v1/user/{addr}/task`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CreateTaskRequest {
    /// The user's address, spelling kept.
    pub user_address: String,
    /// Dataset hash, `0x` and 64 digits, exactly as signed.
    pub dataset_hash: String,
    /// Text of the training parameter file, verbatim.
    pub training_params: String,
    /// Hash of the base model.
    pub pre_trained_model_hash: String,
    /// `"0"`; a larger number is the most the user will pay, in neuron.
    pub fee: String,
    /// Decimal, above the account's nonce.
    pub nonce: String,
    /// Wire form of the create-task signature.
    pub signature: String,
    /// Whether the user accepts to queue behind other tasks.
    #[serde(default)]
    pub wait: bool,
    /// Whom the model's key is sealed to instead of the wallet, see [`crate::recipient`] (ours).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipient: Option<Recipient>,
}

/// A recipient key and who stands behind it (ours).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recipient {
    /// [`crate::recipient::public_key_text`].
    pub key: String,
    /// In a request, the user's signature over [`crate::recipient::TaskBinding::hash`]; in a task, the enclave's over
    /// [`crate::recipient::confirmation_hash`]. Wire form.
    pub signature: String,
}

/// Reply to a created task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateTaskResponse {
    /// Task id.
    pub id: String,
}

/// Body of `POST …/cancel`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CancelTaskRequest {
    /// Wire form of the cancel signature.
    pub signature: String,
}

/// Body of `POST …/lora`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoraDownloadRequest {
    /// Wire form of the download signature.
    pub signature: String,
    /// Unix seconds, as signed.
    pub timestamp: u64,
}

/// Body of `DELETE …/dataset/{hash}` (ours).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatasetDeleteRequest {
    /// Wire form of the delete signature.
    pub signature: String,
    /// Unix seconds, as signed.
    pub timestamp: u64,
}

/// Reply to a dataset upload or deletion.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DatasetUploadResponse {
    /// Keccak hash of the plaintext, `0x…`.
    pub dataset_hash: String,
    /// A sentence for people.
    pub message: String,
}

/// Header of a part of a dataset: the signature that the upload itself carries as a field.
pub const UPLOAD_SIGNATURE_HEADER: &str = "zg-signature";
/// Header of a part of a dataset: the time that is signed, in seconds.
pub const UPLOAD_TIMESTAMP_HEADER: &str = "zg-timestamp";

/// Reply to a part of a sealed dataset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadPosition {
    /// Bytes that the provider has, which is where the next part belongs.
    pub offset: u64,
}

/// A task as routes 3 and 4 show it. Members behind `wait` are ours; published clients ignore them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TaskView {
    /// Task id.
    pub id: String,
    /// RFC 3339 UTC with milliseconds.
    pub created_at: Option<String>,
    /// RFC 3339 UTC with milliseconds.
    pub updated_at: Option<String>,
    /// As submitted.
    pub user_address: String,
    /// As submitted.
    pub pre_trained_model_hash: String,
    /// As submitted.
    pub dataset_hash: String,
    /// As submitted.
    pub training_params: String,
    /// Decimal neuron; `"0"` until set-up has counted the tokens.
    pub fee: String,
    /// As submitted.
    pub nonce: String,
    /// As submitted.
    pub signature: String,
    /// State name.
    pub progress: String,
    /// Always 0 (deprecated).
    #[serde(default)]
    pub deliver_index: u64,
    /// Unix seconds of delivery, 0 before.
    #[serde(default)]
    pub deliver_time: u64,
    /// 0 predefined, 1 customised.
    #[serde(default)]
    pub model_type: u8,
    /// Always false.
    #[serde(default)]
    pub wait: bool,
    /// Why the task failed or was cancelled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_reason: Option<String>,
    /// What is being done right now, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<String>,
    /// Tasks ahead of this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_position: Option<u64>,
    /// Unix seconds until which the user should acknowledge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ack_deadline: Option<u64>,
    /// Whether the settlement put the key on chain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settled_with_secret: Option<bool>,
    /// Training tokens of one epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
    /// The fee's parts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fee_breakdown: Option<FeeBreakdown>,
    /// Training progress while the trainer runs and after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub training: Option<TrainingProgress>,
    /// Hash of the encrypted adapter on chain, `0x…`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_root_hash: Option<String>,
    /// When each state was reached.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub states: Vec<StateTime>,
    /// The recipient key that the model's key is sealed to, confirmed by the enclave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipient: Option<Recipient>,
}

impl TaskView {
    /// The state, if it is one of this protocol's.
    pub fn state(&self) -> Option<TaskState> {
        self.progress.parse().ok()
    }
}

/// One entry of a task's history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StateTime {
    /// State name.
    pub state: String,
    /// Unix milliseconds when it was reached.
    pub at_ms: u64,
}

/// The fee, itemised: `tokens × passes × price × coefficient + storage`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FeeBreakdown {
    /// Training tokens that are paid for, all passes together.
    pub billed_tokens: u64,
    /// Neuron for one token.
    pub price_per_token: String,
    /// Multiplier of the base model.
    pub price_coefficient: u64,
    /// Training part in neuron.
    pub training_fee: String,
    /// Storage part in neuron.
    pub storage_fee: String,
    /// Sum in neuron.
    pub total: String,
}

/// Progress of the trainer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TrainingProgress {
    /// Finished optimiser steps.
    pub step: u64,
    /// All optimiser steps.
    pub total_steps: u64,
    /// Loss of the newest step, per supervised token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// Loss of the first step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_loss: Option<f64>,
    /// Newest loss on the records set aside for validation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eval_loss: Option<f64>,
    /// Learning rate of the newest step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<f64>,
    /// Tokens trained per second, on average since the trainer started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_s: Option<f64>,
    /// Estimated seconds to the end of training.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eta_s: Option<f64>,
}

/// One server-sent event of `GET …/task/{id}/events` (ours). States and log lines are numbered within the task by the
/// event's `id`, so that `Last-Event-ID` continues without a gap; progress is only ever the newest.
#[derive(Debug, Clone, PartialEq)]
pub enum TaskEvent {
    /// The task reached a state.
    State(StateTime),
    /// A line was added to the log.
    Log(LogLine),
    /// Something else about the task changed.
    Progress(TaskProgress),
}

/// One line of a task's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LogLine {
    /// The line without its time.
    pub text: String,
    /// Unix milliseconds.
    pub at_ms: u64,
}

/// Where a task is, in short: members of [`TaskView`] under the same names.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TaskProgress {
    /// State name.
    pub progress: String,
    /// What is being done right now, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<String>,
    /// Tasks ahead of this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_position: Option<u64>,
    /// Training progress while the trainer runs and after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub training: Option<TrainingProgress>,
}

impl TaskEvent {
    /// The event's name on the wire.
    pub fn name(&self) -> &'static str {
        match self {
            Self::State(_) => "state",
            Self::Log(_) => "log",
            Self::Progress(_) => "progress",
        }
    }

    /// The event's data on the wire: one line of JSON.
    pub fn data(&self) -> String {
        let text = match self {
            Self::State(state) => serde_json::to_string(state),
            Self::Log(line) => serde_json::to_string(line),
            Self::Progress(progress) => serde_json::to_string(progress),
        };
        text.unwrap_or_default()
    }

    /// Reads an event; `None` for a name that this version does not know.
    ///
    /// # Errors
    /// Data that does not have the form of its name.
    pub fn parse(name: &str, data: &str) -> Result<Option<Self>, serde_json::Error> {
        Ok(Some(match name {
            "state" => Self::State(serde_json::from_str(data)?),
            "log" => Self::Log(serde_json::from_str(data)?),
            "progress" => Self::Progress(serde_json::from_str(data)?),
            _ => return Ok(None),
        }))
    }
}

/// A model as routes 10 and 11 show it. `hash` and later members of ours are ignored by published clients.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ModelView {
    /// Name.
    pub name: String,
    /// Hash, `0x…`.
    pub hash: String,
    /// Training image of the original; empty here.
    #[serde(default)]
    pub image: String,
    /// `text` or `image`.
    #[serde(default)]
    pub data_type: String,
    /// Training script of the original; empty here.
    #[serde(default)]
    pub training_script: String,
    /// A sentence or two; says so when a stand-in runs.
    #[serde(default)]
    pub description: String,
    /// Where the tokenizer comes from.
    #[serde(default)]
    pub tokenizer: String,
    /// SHA-256 of the tokenizer package that `/v1/model/{name}/tokenizer` serves, hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer_sha256: Option<String>,
    /// Multiplier of the token price.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price_coefficient: Option<u64>,
    /// Storage fee in neuron, decimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_fee: Option<String>,
    /// Longest sequence in tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// What the model learns from; absent from the original's answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_type: Option<ModelKind>,
    /// True when other weights than the named ones run (only on chain 31337).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stand_in: Option<bool>,
    /// SHA-256 of the weights that run, hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_model_sha256: Option<String>,
}

/// The body of every refusal.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// A sentence for people.
    pub error: String,
    /// A stable identifier for programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// The member of the request that is wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// Queue length, with `queue_not_empty`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_read_back_as_they_were_written() {
        let events = [
            TaskEvent::State(StateTime {
                state: "Training".into(),
                at_ms: 7,
            }),
            TaskEvent::Log(LogLine {
                text: "two\nlines".into(),
                at_ms: 8,
            }),
            TaskEvent::Progress(TaskProgress {
                progress: "Training".into(),
                stage: None,
                queue_position: Some(2),
                training: Some(TrainingProgress {
                    step: 1,
                    total_steps: 2,
                    loss: Some(0.5),
                    first_loss: None,
                    eval_loss: Some(0.75),
                    learning_rate: None,
                    tokens_per_s: Some(1200.5),
                    eta_s: None,
                }),
            }),
        ];
        for event in events {
            let data = event.data();
            assert!(!data.contains('\n'), "{data}");
            assert_eq!(TaskEvent::parse(event.name(), &data).unwrap(), Some(event));
        }
        assert_eq!(TaskEvent::parse("news", "?").unwrap(), None);
        assert!(TaskEvent::parse("log", "{}").is_err());
    }
}
