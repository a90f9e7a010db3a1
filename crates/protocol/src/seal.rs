//! HPKE sealing of a file key to an enclave's X25519 key (`zerog/seal/v1`).
//!
//! Base mode, DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM (RFC 9180). The associated data binds chain, provider,
//! user, purpose and object, so that a sealed key cannot be replayed for anything else. Wire form: hex of
//! `enc(32) ‖ ciphertext(48)`.

use alloy_primitives::{Address, keccak256};
use hpke::aead::AesGcm256;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::{Deserializable, Kem as _, OpModeR, OpModeS, Serializable};

use crate::secret::FileKey;

type Kem = X25519HkdfSha256;
const INFO: &[u8] = b"zerog/seal/v1";
const ENCAPSULATED_BYTES: usize = 32;
const SEALED_BYTES: usize = ENCAPSULATED_BYTES + 32 + 16;

/// The name under which a quote advertises this format, with an encrypted file whose tags its sender signed as they are.
pub const SEAL_VERSION: &str = "v1";
/// The same format with tags that are signed as a personal message, which is all that hardware wallets sign.
pub const PERSONAL_SEAL_VERSION: &str = "v2";

/// What a sealed key opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum SealPurpose {
    /// A dataset for training; the id is the `0x…` Keccak hash of the plaintext.
    Dataset = 1,
    /// An adapter archive for serving; the id is the task id.
    Adapter = 2,
}

/// What a sealed key is bound to.
#[derive(Debug, Clone)]
pub struct SealContext<'a> {
    /// Chain the parties meet on.
    pub chain_id: u64,
    /// The provider whose enclave opens the key.
    pub provider: Address,
    /// The user who owns the content.
    pub user: Address,
    /// What the key opens.
    pub purpose: SealPurpose,
    /// The object's id text, see [`SealPurpose`].
    pub id: &'a str,
}

impl SealContext<'_> {
    fn associated_data(&self) -> Vec<u8> {
        let mut data = Vec::with_capacity(81);
        data.extend_from_slice(&self.chain_id.to_be_bytes());
        data.extend_from_slice(self.provider.as_slice());
        data.extend_from_slice(self.user.as_slice());
        data.push(self.purpose as u8);
        data.extend_from_slice(keccak256(self.id.as_bytes()).as_slice());
        data
    }
}

/// Why a key could not be sealed or opened.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum SealError {
    /// The enclave's public key is unusable.
    #[error("the enclave's sealing key is not a valid X25519 key")]
    PublicKey,
    /// Not 80 bytes of hex.
    #[error("a sealed key is {SEALED_BYTES} bytes in hexadecimal")]
    Malformed,
    /// Sealed for another enclave, user or object, or altered.
    #[error(
        "the sealed key does not open: it was made for another enclave, user or object; fetch the quote again and seal anew"
    )]
    Open,
}

/// Seals a file key to an enclave's public X25519 key; returns the wire form `0x…`.
///
/// # Errors
/// [`SealError::PublicKey`].
pub fn seal_key(
    enclave_key: &[u8; 32],
    context: &SealContext<'_>,
    key: &FileKey,
) -> Result<String, SealError> {
    let public_key =
        <Kem as hpke::Kem>::PublicKey::from_bytes(enclave_key).map_err(|_| SealError::PublicKey)?;
    let (encapsulated, ciphertext) = hpke::single_shot_seal::<AesGcm256, HkdfSha256, Kem>(
        &OpModeS::Base,
        &public_key,
        INFO,
        key.expose_bytes(),
        &context.associated_data(),
    )
    .map_err(|_| SealError::PublicKey)?;
    let mut wire = encapsulated.to_bytes().to_vec();
    wire.extend_from_slice(&ciphertext);
    Ok(format!("0x{}", hex::encode(wire)))
}

/// Opens a sealed file key with the enclave's private X25519 key.
///
/// # Errors
/// [`SealError::Malformed`] or [`SealError::Open`].
pub fn open_key(
    private_key: &[u8; 32],
    context: &SealContext<'_>,
    sealed: &str,
) -> Result<FileKey, SealError> {
    let wire = hex::decode(sealed.strip_prefix("0x").unwrap_or(sealed))
        .map_err(|_| SealError::Malformed)?;
    if wire.len() != SEALED_BYTES {
        return Err(SealError::Malformed);
    }
    let (encapsulated, ciphertext) = wire.split_at(ENCAPSULATED_BYTES);
    let private_key =
        <Kem as hpke::Kem>::PrivateKey::from_bytes(private_key).map_err(|_| SealError::Open)?;
    let encapsulated = <Kem as hpke::Kem>::EncappedKey::from_bytes(encapsulated)
        .map_err(|_| SealError::Malformed)?;
    let plaintext = hpke::single_shot_open::<AesGcm256, HkdfSha256, Kem>(
        &OpModeR::Base,
        &private_key,
        &encapsulated,
        INFO,
        ciphertext,
        &context.associated_data(),
    )
    .map_err(|_| SealError::Open)?;
    FileKey::from_slice(&plaintext).ok_or(SealError::Open)
}

/// The public X25519 key of a private one, as it stands in the report data.
///
/// # Errors
/// [`SealError::Open`] when the bytes are no private key.
pub fn sealing_public_key(private_key: &[u8; 32]) -> Result<[u8; 32], SealError> {
    let private_key =
        <Kem as hpke::Kem>::PrivateKey::from_bytes(private_key).map_err(|_| SealError::Open)?;
    let mut bytes = [0u8; 32];
    bytes.copy_from_slice(&Kem::sk_to_pk(&private_key).to_bytes());
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_key_opens_only_in_its_context() {
        let private_key = [7u8; 32];
        let public_key = sealing_public_key(&private_key).unwrap();
        let context = SealContext {
            chain_id: 31337,
            provider: Address::repeat_byte(1),
            user: Address::repeat_byte(2),
            purpose: SealPurpose::Dataset,
            id: "0xabc",
        };
        let key = FileKey::random();
        let sealed = seal_key(&public_key, &context, &key).unwrap();
        assert_eq!(sealed.len(), 2 + 2 * SEALED_BYTES);
        assert!(open_key(&private_key, &context, &sealed).unwrap() == key);
        let others = [
            SealContext {
                chain_id: 1,
                ..context.clone()
            },
            SealContext {
                provider: Address::ZERO,
                ..context.clone()
            },
            SealContext {
                user: Address::ZERO,
                ..context.clone()
            },
            SealContext {
                purpose: SealPurpose::Adapter,
                ..context.clone()
            },
            SealContext {
                id: "0xabd",
                ..context.clone()
            },
        ];
        for other in others {
            assert_eq!(
                open_key(&private_key, &other, &sealed).unwrap_err(),
                SealError::Open
            );
        }
        assert_eq!(
            open_key(&[8; 32], &context, &sealed).unwrap_err(),
            SealError::Open
        );
        assert_eq!(
            open_key(&private_key, &context, "0x00").unwrap_err(),
            SealError::Malformed
        );
    }
}
