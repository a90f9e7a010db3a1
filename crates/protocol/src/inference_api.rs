//! Request and response bodies of the inference broker's own routes; chat bodies are OpenAI's.

use serde::{Deserialize, Serialize};

/// An adapter as the list and status routes show it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AdapterView {
    /// The `model` of chat requests.
    pub adapter_name: String,
    /// Task that made it.
    #[serde(default)]
    pub task_id: String,
    /// Base model name.
    #[serde(default)]
    pub base_model: String,
    /// Owner.
    #[serde(default)]
    pub user_address: String,
    /// State as shown to waiting clients.
    pub state: String,
    /// Hash of the encrypted adapter, `0x…`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_root_hash: Option<String>,
    /// Path in the provider's files; never sent by ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_path: Option<String>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The true state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tier: Option<String>,
    /// Whether a failed adapter may be deployed again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retryable: Option<bool>,
    /// RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at: Option<String>,
    /// RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub updated_at: Option<String>,
}

/// Reply of `GET /v1/lora/adapters`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct AdapterList {
    /// The caller's adapters. Some brokers write an empty list as null.
    #[serde(default, deserialize_with = "null_as_empty")]
    pub adapters: Vec<AdapterView>,
}

/// Body of `POST /v1/lora/adapters/{name}/share` (ours).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ShareRequest {
    /// Who may use the adapter.
    pub address: String,
    /// Whether that ends.
    #[serde(default)]
    pub revoke: bool,
}

/// Reply of the share routes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AdapterShares {
    /// The adapter.
    pub adapter_name: String,
    /// Addresses that may use it besides its owner.
    pub shared_with: Vec<String>,
}

fn null_as_empty<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// Body of `POST /v1/lora/adapters/deploy`: a task with its base model, or a name. The last two members hand an adapter
/// over to a provider that did not train it (`docs/protocol.md`, "Hand-over").
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeployRequest {
    /// Task that made the adapter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_id: Option<String>,
    /// Base model name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_model: Option<String>,
    /// Adapter name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter_name: Option<String>,
    /// The archive key, sealed to this enclave with purpose adapter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed_key: Option<String>,
    /// Root hash of the encrypted archive in 0G Storage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_hash: Option<String>,
    /// The fine-tuning provider that delivered the adapter, when it is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fine_tuning_provider: Option<String>,
}

/// Reply of a deploy request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeployResponse {
    /// `deploying` or `active`.
    #[serde(default)]
    pub status: String,
    /// The adapter's name at this provider.
    #[serde(default)]
    pub adapter_name: String,
    /// A sentence for people.
    #[serde(default)]
    pub message: String,
}

/// Body of `POST /internal/v1/adapter-keys`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AdapterKeyRequest {
    /// Task id.
    pub task_id: String,
    /// Root hash of the encrypted archive.
    pub storage_hash: String,
    /// ECIES blob of the archive key to the provider wallet's key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider_enc_key: Option<String>,
    /// The archive key, sealed to the receiving enclave with purpose adapter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tee_enc_key: Option<String>,
    /// Who signed the archive's tags.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tee_signer_address: Option<String>,
}

/// Reply of `GET /v1/user/{addr}/unsettledfee`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UnsettledFee {
    /// The caller.
    pub user_address: String,
    /// Decimal neuron.
    pub unsettled_fee: String,
}

/// Reply of `GET /v1/proxy/signature/{id}`. Members behind `signing_algo` are ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResponseSignature {
    /// The signed text: both body hashes.
    pub text: String,
    /// Personal signature of `text`, `0x…`.
    pub signature: String,
    /// The enclave signer.
    pub signing_address: String,
    /// `ecdsa`.
    pub signing_algo: String,
    /// SHA-256 of the request body, hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_hash: Option<String>,
    /// SHA-256 of the response body, hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_hash: Option<String>,
    /// What the caller asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Unix seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<u64>,
}
