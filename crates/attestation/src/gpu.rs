//! What a provider shows about its confidential GPUs (`docs/protocol.md`, attestation: NVIDIA evidence).
//!
//! It is read and reported, not verified: device certificates, measurements and their reference values are for NVIDIA's
//! service. Two things are judged here. The evidence must carry a nonce that belongs to this enclave's signer, and there
//! must be as much of it as the machine has GPUs. The evidence is made once: it never answers a caller's nonce, and it
//! stays the same in every answer of one signer.

use std::fmt;

use alloy_primitives::Address;
use serde_json::Value;

use crate::checks::CheckStatus;
use crate::report_data;

/// Most devices that are read.
const MAX_DEVICES: usize = 64;
const BEGIN_CERTIFICATE: &[u8] = b"-----BEGIN CERTIFICATE-----";

/// Why the member `nvidia_payload` says nothing about GPUs.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum GpuEvidenceError {
    /// Neither a JSON object nor text that holds one.
    #[error("nvidia_payload is neither a JSON object nor text that holds one")]
    NotAnObject,
    /// No array `evidence_list`.
    #[error("nvidia_payload has no evidence_list")]
    NoList,
    /// More than 64 entries.
    #[error("nvidia_payload has {devices} entries, more than {MAX_DEVICES}")]
    TooMany {
        /// Entries found.
        devices: usize,
    },
}

/// GPU evidence as it was served. None of it is proven.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuEvidence {
    /// The nonce that the evidence says it carries; `None` where it is missing or not 32 bytes of hexadecimal.
    pub nonce: Option<[u8; 32]>,
    /// One entry for each GPU.
    pub devices: Vec<GpuDevice>,
}

/// Evidence of one GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuDevice {
    /// Architecture, such as `HOPPER`; empty where none is named.
    pub architecture: String,
    /// Certificates in the device's chain; 0 where there is none or it cannot be read.
    pub certificates: usize,
    /// Size of the signed measurements, bytes; 0 where there are none or they cannot be read.
    pub evidence_bytes: usize,
}

impl GpuEvidence {
    /// Reads `nvidia_payload`, which is a JSON object or, often, text that holds one.
    ///
    /// # Errors
    /// [`GpuEvidenceError`].
    pub fn parse(payload: &Value) -> Result<Self, GpuEvidenceError> {
        let inner: Value;
        let members = match payload {
            Value::Object(members) => members,
            Value::String(text) => {
                inner = serde_json::from_str(text).map_err(|_| GpuEvidenceError::NotAnObject)?;
                inner.as_object().ok_or(GpuEvidenceError::NotAnObject)?
            }
            _ => return Err(GpuEvidenceError::NotAnObject),
        };
        let list = members
            .get("evidence_list")
            .and_then(Value::as_array)
            .ok_or(GpuEvidenceError::NoList)?;
        if list.len() > MAX_DEVICES {
            return Err(GpuEvidenceError::TooMany {
                devices: list.len(),
            });
        }
        let common = text(members.get("arch"));
        let devices = list
            .iter()
            .map(|entry| {
                let own = text(entry.get("arch"));
                let chain = base64(entry.get("certificate"));
                GpuDevice {
                    architecture: clean(if own.is_empty() { common } else { own }),
                    certificates: chain
                        .windows(BEGIN_CERTIFICATE.len())
                        .filter(|window| *window == BEGIN_CERTIFICATE)
                        .count(),
                    evidence_bytes: base64(entry.get("evidence")).len(),
                }
            })
            .collect();
        Ok(Self {
            nonce: nonce(text(members.get("nonce"))),
            devices,
        })
    }

    /// Whether the nonce is one that the enclave of this signer asks its GPUs with: made from the report data in the plain
    /// or the structured layout, or from the quote's own.
    pub fn belongs_to(
        &self,
        signer: Address,
        sealing_key: Option<&[u8; 32]>,
        quoted: &[u8; 64],
    ) -> bool {
        let structured = sealing_key.map(|key| report_data::structured(signer, key));
        [Some(*quoted), Some(report_data::legacy(signer)), structured]
            .iter()
            .flatten()
            .any(|data| self.nonce == Some(report_data::gpu_nonce(data)))
    }
}

impl fmt::Display for GpuEvidence {
    /// Number, architectures and certificates, for people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut architectures: Vec<&str> = self
            .devices
            .iter()
            .map(|device| device.architecture.as_str())
            .filter(|name| !name.is_empty())
            .collect();
        architectures.sort_unstable();
        architectures.dedup();
        let certified = self
            .devices
            .iter()
            .filter(|device| device.certificates > 0)
            .count();
        let measured = self
            .devices
            .iter()
            .filter(|device| device.evidence_bytes > 0)
            .count();
        write!(
            f,
            "evidence of {} GPU(s), architecture {}, {certified} with certificates, {measured} with measurements",
            self.devices.len(),
            if architectures.is_empty() {
                "not named".to_owned()
            } else {
                architectures.join(" and ")
            }
        )
    }
}

/// Everything that the check of GPUs looks at.
pub(crate) struct GpuQuestion<'a> {
    /// The member `nvidia_payload`.
    pub(crate) payload: Option<&'a Value>,
    /// JSON text of the virtual hardware.
    pub(crate) vm_config: &'a str,
    /// What the guest measured about its GPUs while booting.
    pub(crate) boot_attestation: Option<&'a [u8]>,
    /// Signer of the quote.
    pub(crate) signer: Option<Address>,
    /// Sealing key, where it is known.
    pub(crate) sealing_key: Option<&'a [u8; 32]>,
    /// Report data of the quote.
    pub(crate) report_data: &'a [u8; 64],
}

/// Status and finding of the check.
pub(crate) fn judge(question: &GpuQuestion<'_>) -> (CheckStatus, String) {
    let expected = gpus_of(question.vm_config);
    let at_boot = if question.boot_attestation.is_some() {
        "; the guest measured a GPU attestation of its own while booting, which is not verified here"
    } else {
        ""
    };
    let Some(payload) = question.payload else {
        return match (expected, question.boot_attestation) {
            (None | Some(0), None) => (
                CheckStatus::Inapplicable,
                "the provider shows no GPU evidence and names no GPU".to_owned(),
            ),
            (number, _) => (
                CheckStatus::Skipped,
                format!(
                    "not verified: no GPU evidence is shown, and vm_config names {} GPU(s){at_boot}",
                    number.unwrap_or_default()
                ),
            ),
        };
    };
    let evidence = match GpuEvidence::parse(payload) {
        Ok(evidence) => evidence,
        Err(error) => {
            return (
                CheckStatus::Warning,
                format!("not verified: {error}{at_boot}"),
            );
        }
    };
    let bound = question.signer.is_some_and(|signer| {
        evidence.belongs_to(signer, question.sealing_key, question.report_data)
    });
    if evidence.nonce.is_some() && !bound {
        return (
            CheckStatus::Fail,
            format!("the nonce belongs to another signer: {evidence}"),
        );
    }
    if !bound {
        return (
            CheckStatus::Warning,
            format!("not verified: no nonce binds it to this enclave: {evidence}{at_boot}"),
        );
    }
    match expected {
        Some(number) if number != evidence.devices.len() as u64 => (
            CheckStatus::Warning,
            format!("not verified: vm_config names {number} GPU(s): {evidence}{at_boot}"),
        ),
        _ => (
            CheckStatus::Skipped,
            format!(
                "the nonce fits; not verified, which needs NVIDIA's service: {evidence}{at_boot}"
            ),
        ),
    }
}

/// Number of GPUs that the virtual hardware is said to have.
fn gpus_of(vm_config: &str) -> Option<u64> {
    serde_json::from_str::<Value>(vm_config)
        .ok()?
        .get("num_gpus")?
        .as_u64()
}

fn text(value: Option<&Value>) -> &str {
    value.and_then(Value::as_str).unwrap_or_default()
}

fn base64(value: Option<&Value>) -> Vec<u8> {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD
        .decode(text(value))
        .unwrap_or_default()
}

fn nonce(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    let digits = text.strip_prefix("0x").unwrap_or(text);
    hex::decode_to_slice(digits, &mut bytes).ok()?;
    Some(bytes)
}

/// A short foreign name for a message.
fn clean(name: &str) -> String {
    name.chars()
        .filter(char::is_ascii_alphanumeric)
        .take(24)
        .collect()
}
