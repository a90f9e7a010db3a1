//! What a task will cost, said by the enclave before it is created: `POST /v1/user/{addr}/quote` (ours).
//!
//! The quote travels as the text that was signed, so that nobody has to agree on how JSON is written down.

use alloy_primitives::{Address, B256, keccak256};
use serde::{Deserialize, Serialize};

use crate::fine_tuning_api::FeeBreakdown;
use crate::secret::SecretKey;
use crate::signing::{self, SignatureError};

/// Version of [`TaskQuote`].
pub const QUOTE_VERSION: u32 = 1;

/// Body of `POST …/quote`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct QuoteRequest {
    /// Hash of a dataset that this user uploaded to this provider.
    pub dataset_hash: String,
    /// Text of the training parameter file, as the task will have it.
    pub training_params: String,
    /// Hash of the base model.
    pub pre_trained_model_hash: String,
    /// Wire form of the signature over [`request_hash`].
    pub signature: String,
    /// Unix seconds, as signed.
    pub timestamp: u64,
}

/// The hash behind a quote request: Keccak of a label, user, provider, dataset hash in lower case and decimal time in
/// seconds, joined by `/`.
pub fn request_hash(
    user: Address,
    provider: Address,
    dataset_hash: &str,
    timestamp_s: u64,
) -> B256 {
    keccak256(format!(
        "zerog/quote/v1/{user:#x}/{provider:#x}/{}/{timestamp_s}",
        dataset_hash.to_lowercase()
    ))
}

/// Answer to `POST …/quote`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedQuote {
    /// JSON of a [`TaskQuote`]; these bytes are signed.
    pub quote: String,
    /// Wire form of the enclave's personal signature over the Keccak hash of `quote`.
    pub signature: String,
}

impl SignedQuote {
    /// Writes a quote down and signs it.
    #[must_use]
    pub fn sign(quote: &TaskQuote, key: &SecretKey) -> Self {
        let quote = serde_json::to_string(quote).expect("a quote is plain data");
        let signature = signing::sign_personal(key, Self::digest(&quote));
        Self { quote, signature }
    }

    /// The quote, if `signer` signed it.
    ///
    /// # Errors
    /// See [`QuoteError`].
    pub fn open(&self, signer: Address) -> Result<TaskQuote, QuoteError> {
        signing::verify_personal(Self::digest(&self.quote), &self.signature, signer)?;
        let quote: TaskQuote = serde_json::from_str(&self.quote)?;
        if quote.version != QUOTE_VERSION {
            return Err(QuoteError::Version(quote.version));
        }
        Ok(quote)
    }

    /// Labelled, so that no other text that the enclave signs can be shown as a quote.
    fn digest(text: &str) -> B256 {
        keccak256(format!("zerog/quote/v1\n{text}"))
    }
}

/// Why a signed quote is not believed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QuoteError {
    /// Signed by somebody else, or changed.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// Signed, but no quote.
    #[error("the signed text is no quote: {0}")]
    Malformed(#[from] serde_json::Error),
    /// A later version.
    #[error("the quote has version {0}, this program reads {QUOTE_VERSION}; update it")]
    Version(u32),
}

/// What a provider says about a task before it is created.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TaskQuote {
    /// [`QUOTE_VERSION`].
    pub version: u32,
    /// Chain on which the fee is paid.
    pub chain_id: u64,
    /// Who trains.
    pub provider: Address,
    /// Who pays.
    pub user: Address,
    /// Dataset, as in the request.
    pub dataset_hash: String,
    /// Base model, as in the request.
    pub pre_trained_model_hash: String,
    /// Keccak hash of the parameter file's text.
    pub training_params_hash: B256,
    /// The count; none when the dataset has a mistake.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<QuoteCount>,
    /// The fee of the whole task; none when the dataset has a mistake.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fee: Option<FeeBreakdown>,
    /// Tasks that wait or train at the moment.
    pub queue_position: u64,
    /// Seconds until training could begin; none when nothing is known about the tasks ahead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimated_start_s: Option<u64>,
    /// Seconds of training, from earlier tasks on this model; none without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimated_duration_s: Option<u64>,
    /// What is to be said about the dataset, by line.
    pub findings: Vec<QuoteFinding>,
    /// Findings that were left out.
    #[serde(default)]
    pub more_findings: u64,
    /// Unix seconds.
    pub issued_at: u64,
}

/// What a run trains on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct QuoteCount {
    /// Training tokens of one epoch.
    pub tokens: u64,
    /// Examples of one epoch.
    pub examples: u64,
    /// Tokens among them that are learned.
    pub supervised_tokens: u64,
    /// Examples that are cut at `maxSeqLength`.
    pub truncated_examples: u64,
    /// Records of which nothing would be learned; they cost nothing.
    pub skipped_examples: u64,
    /// Longest example in tokens.
    pub max_seq_length: u32,
    /// Optimiser steps of the run.
    pub total_steps: u64,
}

/// One thing to know about a dataset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuoteFinding {
    /// Line in the file, from 1; none where it is about the whole file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
    /// `error` or `warning`.
    pub severity: String,
    /// What it is and what to do about it.
    pub message: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> SecretKey {
        SecretKey::from_bytes(&[byte; 32]).unwrap()
    }

    fn quote() -> TaskQuote {
        TaskQuote {
            version: QUOTE_VERSION,
            chain_id: 31337,
            provider: key(2).address(),
            user: key(3).address(),
            dataset_hash: "0xab".into(),
            pre_trained_model_hash: "0xcd".into(),
            training_params_hash: B256::ZERO,
            count: None,
            fee: None,
            queue_position: 1,
            estimated_start_s: Some(3),
            estimated_duration_s: None,
            findings: vec![QuoteFinding {
                line: Some(7),
                severity: "error".into(),
                message: "line 7: …".into(),
            }],
            more_findings: 0,
            issued_at: 9,
        }
    }

    #[test]
    fn a_signed_quote_opens_for_its_signer_alone() {
        let signed = SignedQuote::sign(&quote(), &key(1));
        assert_eq!(signed.open(key(1).address()).unwrap(), quote());
        assert!(matches!(
            signed.open(key(2).address()),
            Err(QuoteError::Signature(_))
        ));
        let mut cheaper = signed;
        cheaper.quote = cheaper.quote.replace("\"issuedAt\":9", "\"issuedAt\":8");
        assert!(cheaper.open(key(1).address()).is_err());
    }

    #[test]
    fn later_versions_are_refused() {
        let mut later = quote();
        later.version = 2;
        let signed = SignedQuote::sign(&later, &key(1));
        assert!(matches!(
            signed.open(key(1).address()),
            Err(QuoteError::Version(2))
        ));
    }

    #[test]
    fn a_request_is_for_one_provider_and_cannot_delete() {
        let (user, a, b) = (key(1).address(), key(2).address(), key(3).address());
        assert_ne!(
            request_hash(user, a, "0xAB", 5),
            request_hash(user, b, "0xAB", 5)
        );
        assert_eq!(
            request_hash(user, a, "0xAB", 5),
            request_hash(user, a, "0xab", 5)
        );
        assert_ne!(
            request_hash(user, a, "0xab", 5),
            signing::dataset_delete_hash("0xab", 5)
        );
    }
}
