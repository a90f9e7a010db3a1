//! The 64 bytes that bind keys to a quote (`docs/protocol.md`, attestation: report data).

use alloy_primitives::{Address, keccak256};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

/// Version number at bytes 52–55 of the structured layout.
const STRUCTURED_VERSION: u32 = 1;
/// Version number of the layout that also carries a caller's nonce.
const CHALLENGE_VERSION: u32 = 3;

/// Why report data names no signer.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReportDataError {
    /// Not 42 or 64 bytes of base64.
    #[error("report data is not base64 of 42 or 64 bytes")]
    NotBase64,
    /// Neither a known version number nor the text of an address.
    #[error("report data has no known layout")]
    UnknownLayout,
    /// The signer is the zero address.
    #[error("report data names the zero address")]
    ZeroSigner,
}

/// What report data says, by layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReportData {
    /// The text of the signer's address; what `/v1/quote` serves unless asked otherwise.
    Legacy {
        /// Address of the enclave signer.
        signer: Address,
    },
    /// X25519 key and signer; `/v1/quote?legacy=false`.
    Structured {
        /// X25519 public key that data for the enclave is sealed to.
        sealing_key: [u8; 32],
        /// Address of the enclave signer.
        signer: Address,
    },
    /// A hash over keys, TLS key and nonce, and the signer; `/v1/quote?nonce=…`.
    Challenge {
        /// SHA-256 that [`challenge`] computes.
        commitment: [u8; 32],
        /// Address of the enclave signer.
        signer: Address,
    },
}

impl ReportData {
    /// Recognises the layout of the 64 bytes.
    ///
    /// # Errors
    /// [`ReportDataError::UnknownLayout`], [`ReportDataError::ZeroSigner`].
    pub fn parse(bytes: &[u8; 64]) -> Result<Self, ReportDataError> {
        let [first @ .., _, _, _, _, _, _, _, _, _, _, _, _] = bytes;
        let (head, signer) = first.split_at(32);
        let version = bytes.get(52..56).map_or(0, |word| {
            word.iter()
                .fold(0u32, |sum, byte| (sum << 8) | u32::from(*byte))
        });
        let mut key = [0u8; 32];
        key.copy_from_slice(head);
        let data = match version {
            STRUCTURED_VERSION => Self::Structured {
                sealing_key: key,
                signer: Address::from_slice(signer),
            },
            CHALLENGE_VERSION => Self::Challenge {
                commitment: key,
                signer: Address::from_slice(signer),
            },
            _ => Self::Legacy {
                signer: parse_address_text(bytes).ok_or(ReportDataError::UnknownLayout)?,
            },
        };
        if data.signer().is_zero() {
            Err(ReportDataError::ZeroSigner)
        } else {
            Ok(data)
        }
    }

    /// The signer's address, in every layout.
    pub fn signer(&self) -> Address {
        match self {
            Self::Legacy { signer }
            | Self::Structured { signer, .. }
            | Self::Challenge { signer, .. } => *signer,
        }
    }

    /// The X25519 public key, where the layout carries it.
    pub fn sealing_key(&self) -> Option<[u8; 32]> {
        match self {
            Self::Structured { sealing_key, .. } => Some(*sealing_key),
            Self::Legacy { .. } | Self::Challenge { .. } => None,
        }
    }
}

/// Report data of the legacy layout: the checksummed address as text, then zeros.
pub fn legacy(signer: Address) -> [u8; 64] {
    let mut bytes = [0u8; 64];
    for (place, byte) in bytes.iter_mut().zip(signer.to_checksum(None).bytes()) {
        *place = byte;
    }
    bytes
}

/// Report data of the structured layout: X25519 key, signer, version 1.
pub fn structured(signer: Address, sealing_key: &[u8; 32]) -> [u8; 64] {
    versioned(sealing_key, signer, STRUCTURED_VERSION)
}

/// Report data that answers a caller's nonce: commitment, signer, version 3.
///
/// `tls_key_sha256` is the SHA-256 of the TLS public key, or zeros where TLS ends outside the enclave.
pub fn challenge(
    signer: Address,
    sealing_key: &[u8; 32],
    tls_key_sha256: &[u8; 32],
    nonce: &[u8; 32],
) -> [u8; 64] {
    versioned(
        &challenge_commitment(signer, sealing_key, tls_key_sha256, nonce),
        signer,
        CHALLENGE_VERSION,
    )
}

/// The SHA-256 at bytes 0–31 of [`challenge`].
pub fn challenge_commitment(
    signer: Address,
    sealing_key: &[u8; 32],
    tls_key_sha256: &[u8; 32],
    nonce: &[u8; 32],
) -> [u8; 32] {
    let parts: [&[u8]; 5] = [
        b"0g-attest-v3",
        signer.as_slice(),
        sealing_key,
        tls_key_sha256,
        nonce,
    ];
    crate::sha256(&parts.concat())
}

/// The nonce that GPU evidence for this report data carries: keccak-256 of the address text in the legacy layout, of
/// all 64 bytes otherwise.
pub fn gpu_nonce(report_data: &[u8; 64]) -> [u8; 32] {
    let text_bytes = if matches!(
        ReportData::parse(report_data),
        Ok(ReportData::Legacy { .. })
    ) {
        42
    } else {
        64
    };
    keccak256(report_data.get(..text_bytes).unwrap_or(report_data)).0
}

/// Report data as the JSON body carries it: base64 of 64 bytes.
pub fn to_base64(report_data: &[u8; 64]) -> String {
    BASE64.encode(report_data)
}

/// Reads the JSON form; 42 bytes are padded with zeros.
///
/// # Errors
/// [`ReportDataError::NotBase64`].
pub fn from_base64(text: &str) -> Result<[u8; 64], ReportDataError> {
    let bytes = BASE64
        .decode(text)
        .map_err(|_| ReportDataError::NotBase64)?;
    if bytes.len() != 42 && bytes.len() != 64 {
        return Err(ReportDataError::NotBase64);
    }
    let mut padded = [0u8; 64];
    for (place, byte) in padded.iter_mut().zip(bytes) {
        *place = byte;
    }
    Ok(padded)
}

fn versioned(head: &[u8; 32], signer: Address, version: u32) -> [u8; 64] {
    let joined = [
        head.as_slice(),
        signer.as_slice(),
        &version.to_be_bytes(),
        &[0u8; 8],
    ]
    .concat();
    let mut bytes = [0u8; 64];
    for (place, byte) in bytes.iter_mut().zip(joined) {
        *place = byte;
    }
    bytes
}

fn parse_address_text(bytes: &[u8; 64]) -> Option<Address> {
    let text = std::str::from_utf8(bytes).ok()?.trim_matches('\0');
    let digits = text.strip_prefix("0x")?;
    if digits.len() != 40 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    text.parse().ok()
}
