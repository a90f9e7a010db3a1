//! Secrets as types: they never print and are cleared when dropped.

use std::fmt;
use std::str::FromStr;

use alloy_primitives::{Address, B256, Signature};
use k256::ecdsa::SigningKey;
use rand::RngCore;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// Why a private key was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum SecretKeyError {
    /// The text is not 64 hexadecimal digits with or without `0x`.
    #[error("a private key is 64 hexadecimal digits, with or without 0x in front")]
    NotHex,
    /// The number is zero or not below the order of secp256k1.
    #[error("the private key is outside the range of secp256k1")]
    OutOfRange,
}

/// A secp256k1 private key: a wallet or an enclave signer.
#[derive(Clone)]
pub struct SecretKey(SigningKey);

impl SecretKey {
    /// The key with the given 32 big-endian bytes.
    ///
    /// # Errors
    /// [`SecretKeyError::OutOfRange`] when the number is zero or too large.
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self, SecretKeyError> {
        SigningKey::from_bytes(bytes.into())
            .map(Self)
            .map_err(|_| SecretKeyError::OutOfRange)
    }

    /// A fresh random key.
    pub fn random() -> Self {
        let mut bytes = [0u8; 32];
        loop {
            rand::rng().fill_bytes(&mut bytes);
            if let Ok(key) = Self::from_bytes(&bytes) {
                bytes.zeroize();
                return key;
            }
        }
    }

    /// The Ethereum address of this key.
    pub fn address(&self) -> Address {
        Address::from_public_key(self.0.verifying_key())
    }

    /// The 65-byte uncompressed public key, starting with `0x04`.
    pub fn public_key(&self) -> [u8; 65] {
        let point = self.0.verifying_key().to_encoded_point(false);
        let mut bytes = [0u8; 65];
        bytes.copy_from_slice(point.as_bytes());
        bytes
    }

    /// Signs a 32-byte digest as it is (no prefix), RFC 6979 deterministic, low s.
    pub fn sign_digest(&self, digest: B256) -> Signature {
        let (signature, recovery_id) = self
            .0
            .sign_prehash_recoverable(digest.as_slice())
            .expect("a 32-byte digest is always signable");
        Signature::from((signature, recovery_id))
    }

    /// The raw bytes, for key derivation and sealed storage only. The caller clears them.
    pub fn expose_bytes(&self) -> [u8; 32] {
        self.0.to_bytes().into()
    }

    /// The key in the form that the `k256` crate and alloy's local signer take.
    pub fn signing_key(&self) -> &SigningKey {
        &self.0
    }
}

impl FromStr for SecretKey {
    type Err = SecretKeyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        let digits = text
            .strip_prefix("0x")
            .or_else(|| text.strip_prefix("0X"))
            .unwrap_or(text);
        let mut bytes = [0u8; 32];
        hex::decode_to_slice(digits, &mut bytes).map_err(|_| SecretKeyError::NotHex)?;
        let key = Self::from_bytes(&bytes);
        bytes.zeroize();
        key
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey([redacted], address {})", self.address())
    }
}

/// A 32-byte AES-256 key of one file.
#[derive(Clone, Zeroize, ZeroizeOnDrop, PartialEq, Eq)]
pub struct FileKey([u8; 32]);

impl FileKey {
    /// A fresh random key.
    pub fn random() -> Self {
        let mut bytes = [0u8; 32];
        rand::rng().fill_bytes(&mut bytes);
        Self(bytes)
    }

    /// The key with the given bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The key with the given bytes, if there are exactly 32.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The raw bytes.
    pub fn expose_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for FileKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FileKey([redacted])")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_never_print() {
        let key: SecretKey = "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"
            .parse()
            .unwrap();
        let printed = format!("{key:?} {:?}", FileKey::from_bytes([7; 32]));
        assert!(!printed.to_lowercase().contains("ac0974"));
        assert!(printed.contains("[redacted]"));
        assert_eq!(
            key.address().to_string(),
            "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266"
        );
    }

    #[test]
    fn bad_keys_are_named() {
        assert_eq!(
            "zz".parse::<SecretKey>().unwrap_err(),
            SecretKeyError::NotHex
        );
        assert_eq!(
            "0".repeat(64).parse::<SecretKey>().unwrap_err(),
            SecretKeyError::OutOfRange
        );
    }
}
