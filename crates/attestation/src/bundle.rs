//! The body of `GET /v1/quote`, written and read (`docs/protocol.md`, attestation: JSON served by providers).

use serde_json::{Map, Value, json};
use zerog_protocol::{Address, SecretKey, recipient, seal, signing};

use crate::quote::{QuoteError, TdxQuote};
use crate::report_data::{self, ReportDataError};

/// Longest body that is read, in bytes.
pub const MAX_BODY_BYTES: usize = 5_000_000;
/// Response header that carries the signer's signature over the body.
pub const SIGNATURE_HEADER: &str = "ZG-Quote-Signature";
/// Response header and value that a simulated provider adds.
pub const SIMULATED_HEADER: (&str, &str) = ("X-TEE-Mode", "simulated");
/// Sealing formats that a provider of ours advertises.
pub const SEALING_FORMATS: [&str; 2] = [seal::SEAL_VERSION, seal::PERSONAL_SEAL_VERSION];
/// Forms of recipient keys that a provider of ours advertises.
pub const RECIPIENT_KEY_FORMATS: [&str; 1] = [recipient::RECIPIENT_KEY_VERSION];

/// Why a body is not a quote bundle.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum BundleError {
    /// More than [`MAX_BODY_BYTES`].
    #[error("the quote body has {bytes} bytes, more than {MAX_BODY_BYTES}")]
    TooLong {
        /// Size found.
        bytes: usize,
    },
    /// Not a JSON object.
    #[error("the quote body is not a JSON object")]
    NotJson,
    /// A member is missing or has the wrong type.
    #[error("the quote body has no usable member `{member}`")]
    Member {
        /// Name of the member.
        member: &'static str,
    },
    /// The quote does not parse.
    #[error(transparent)]
    Quote(#[from] QuoteError),
    /// The report data does not parse.
    #[error(transparent)]
    ReportData(#[from] ReportDataError),
}

/// Evidence of one enclave, as it travels. Nothing in it is proven before [`crate::evaluate`] has read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuoteBundle {
    /// The binary quote.
    pub quote: Vec<u8>,
    /// JSON text of the event log.
    pub event_log: String,
    /// Copy of the quote's report data.
    pub report_data: [u8; 64],
    /// JSON text describing the virtual hardware.
    pub vm_config: String,
    /// JSON text with measurements and the compose text.
    pub tcb_info: String,
    /// Whether the provider itself says that its TEE is simulated.
    pub simulated: bool,
    /// Formats in which data can be sealed to the enclave; empty with other providers.
    pub sealing: Vec<String>,
    /// Forms of recipient keys that models can be sealed to; empty with other providers.
    pub recipient_keys: Vec<String>,
    /// SHA-256 of the SubjectPublicKeyInfo of the enclave's TLS key, as the provider says; a quote that answers a nonce
    /// commits to it. None where TLS ends outside.
    pub tls_key_sha256: Option<[u8; 32]>,
    /// GPU evidence, where the machine has a confidential GPU.
    pub nvidia_payload: Option<Value>,
}

impl QuoteBundle {
    /// The JSON text to serve. Strings stay strings: published verifiers insist on it.
    pub fn to_json(&self) -> String {
        let mut body = json!({
            "quote": hex::encode(&self.quote),
            "event_log": self.event_log,
            "report_data": report_data::to_base64(&self.report_data),
            "vm_config": self.vm_config,
            "tcb_info": self.tcb_info,
            "sealing": self.sealing,
            "recipientKeys": self.recipient_keys,
        });
        if let Some(members) = body.as_object_mut() {
            if self.simulated {
                members.insert("simulated".into(), true.into());
            }
            if let Some(key) = &self.tls_key_sha256 {
                members.insert("tls_spki_sha256".into(), hex::encode(key).into());
            }
            if let Some(payload) = &self.nvidia_payload {
                members.insert("nvidia_payload".into(), payload.clone());
            }
        }
        body.to_string()
    }

    /// Reads a body, also in the looser forms of other providers: `event_log` or `tcb_info` as JSON values,
    /// `tcb_info` inside `info`, report data of 42 bytes, `intel_quote` for `quote`.
    ///
    /// # Errors
    /// [`BundleError`], naming what is missing.
    pub fn parse(body: &[u8]) -> Result<Self, BundleError> {
        if body.len() > MAX_BODY_BYTES {
            return Err(BundleError::TooLong { bytes: body.len() });
        }
        let Ok(Value::Object(members)) = serde_json::from_slice(body) else {
            return Err(BundleError::NotJson);
        };
        let quote_text = member(&members, "quote")
            .or_else(|| member(&members, "intel_quote"))
            .and_then(Value::as_str)
            .ok_or(BundleError::Member { member: "quote" })?;
        let report_text = member(&members, "report_data")
            .and_then(Value::as_str)
            .ok_or(BundleError::Member {
                member: "report_data",
            })?;
        let tcb_info = member(&members, "tcb_info")
            .or_else(|| member(&members, "info").and_then(|info| info.get("tcb_info")))
            .map_or_else(String::new, json_text);
        Ok(Self {
            quote: hex::decode(quote_text).map_err(|_| QuoteError::NotHex)?,
            event_log: member(&members, "event_log")
                .map(json_text)
                .ok_or(BundleError::Member {
                    member: "event_log",
                })?,
            report_data: report_data::from_base64(report_text)?,
            vm_config: member(&members, "vm_config").map_or_else(String::new, json_text),
            tcb_info,
            simulated: member(&members, "simulated")
                .and_then(Value::as_bool)
                .unwrap_or(false),
            sealing: texts(&members, "sealing"),
            recipient_keys: texts(&members, "recipientKeys"),
            tls_key_sha256: member(&members, "tls_spki_sha256")
                .and_then(Value::as_str)
                .and_then(|digits| hex::decode(digits).ok()?.try_into().ok()),
            nvidia_payload: member(&members, "nvidia_payload")
                .filter(|payload| !payload.is_null())
                .cloned(),
        })
    }

    /// The parsed quote.
    ///
    /// # Errors
    /// [`QuoteError`].
    pub fn parsed_quote(&self) -> Result<TdxQuote, QuoteError> {
        TdxQuote::parse(&self.quote)
    }

    /// The exact compose text out of `tcb_info`, if there is one.
    pub fn app_compose(&self) -> Option<String> {
        let tcb_info: Value = serde_json::from_str(&self.tcb_info).ok()?;
        tcb_info.get("app_compose")?.as_str().map(str::to_owned)
    }

    /// Whether data can be sealed to this enclave in the given format.
    pub fn seals(&self, format: &str) -> bool {
        self.sealing.iter().any(|known| known == format)
    }

    /// Whether this enclave seals models to recipient keys of the given form.
    pub fn takes_recipient_keys(&self, form: &str) -> bool {
        self.recipient_keys.iter().any(|known| known == form)
    }
}

/// Value of [`SIGNATURE_HEADER`] for a body: the signer's EIP-191 signature over the body's keccak-256.
pub fn sign_body(signer: &SecretKey, body: &[u8]) -> String {
    signing::sign_personal(signer, alloy_primitives::keccak256(body))
}

/// Whether a value of [`SIGNATURE_HEADER`] was made by `signer` over exactly this body.
pub fn body_signature_is_valid(body: &[u8], signature: &str, signer: Address) -> bool {
    signing::verify_personal(alloy_primitives::keccak256(body), signature, signer).is_ok()
}

fn member<'a>(members: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    members.get(name)
}

/// The texts of a list, none where there is no list.
fn texts(members: &Map<String, Value>, name: &str) -> Vec<String> {
    let list = member(members, name).and_then(Value::as_array);
    let texts = list.into_iter().flatten().filter_map(Value::as_str);
    texts.map(str::to_owned).collect()
}

/// JSON text of a member that may be text already.
fn json_text(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}
