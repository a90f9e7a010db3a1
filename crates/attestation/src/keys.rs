//! The enclave's keys, all derived from the secret of its TEE back-end, each from a path of its own.
//!
//! The derivation is dstack's, so that a provider that moves from one dstack release to the next keeps its signer.

use std::fmt;

use hkdf::Hkdf;
use hpke::{Deserializable as _, Kem as _, Serializable as _, kem::X25519HkdfSha256};
use sha2::Sha256;
use zerog_protocol::{Address, FileKey, SecretKey};
use zeroize::Zeroizing;

use crate::backend::{BackendError, TeeBackend};
use crate::report_data;

/// Path of the signer's key.
pub const SIGNER_PATH: &str = "/";
/// Path of the secret that the sealing key comes from.
pub const SEALING_PATH: &str = "/e2ee-enc";
/// Path of the key that files at rest are sealed with.
pub const VAULT_PATH: &str = "/zerog/vault";

/// HKDF information string between the sealing path and the key pair.
const SEALING_INFO: &[u8] = b"0g-pc/v1/enc-key";
/// HKDF salt of dstack's derivation.
const DERIVATION_SALT: &[u8] = b"RATLS";

/// Why the enclave's keys could not be derived.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The back-end gave no key.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The derived number is not a secp256k1 key. It does not happen by chance.
    #[error("the derived signer key is outside the range of secp256k1")]
    SignerOutOfRange,
}

/// The X25519 key pair that data for the enclave is sealed to.
#[derive(Clone)]
pub struct SealingKey {
    secret: Zeroizing<[u8; 32]>,
    public: [u8; 32],
}

impl SealingKey {
    /// Derives the pair as HPKE's `DeriveKeyPair` for DHKEM(X25519, HKDF-SHA256) does.
    pub fn derive(seed: &[u8; 32]) -> Self {
        let (secret, public) = X25519HkdfSha256::derive_keypair(seed);
        Self {
            secret: Zeroizing::new(secret.to_bytes().into()),
            public: public.to_bytes().into(),
        }
    }

    /// The pair with the given secret.
    pub fn from_secret(secret: [u8; 32]) -> Self {
        let secret = Zeroizing::new(secret);
        let private = <X25519HkdfSha256 as hpke::Kem>::PrivateKey::from_bytes(secret.as_slice())
            .expect("any 32 bytes are an X25519 secret");
        let public = X25519HkdfSha256::sk_to_pk(&private).to_bytes().into();
        Self { secret, public }
    }

    /// The public key, as bytes 0–31 of structured report data carry it.
    pub fn public(&self) -> [u8; 32] {
        self.public
    }

    /// The secret, for opening sealed keys only.
    pub fn expose_secret(&self) -> &[u8; 32] {
        &self.secret
    }

    /// A short name of the public key: the first 8 bytes of its SHA-256.
    pub fn id(&self) -> [u8; 8] {
        let [a, b, c, d, e, f, g, h, ..] = crate::sha256(&self.public);
        [a, b, c, d, e, f, g, h]
    }
}

impl fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "SealingKey([redacted], public {})",
            hex::encode(self.public)
        )
    }
}

/// Every key of one enclave.
#[derive(Debug, Clone)]
pub struct EnclaveKeys {
    /// Signs responses, deliveries and settlements; its address is in every quote and on chain.
    pub signer: SecretKey,
    /// Opens what clients seal to the enclave.
    pub sealing: SealingKey,
    /// Seals files at rest.
    pub vault: FileKey,
}

impl EnclaveKeys {
    /// Derives the keys from a back-end. The same enclave gives the same keys at every start.
    ///
    /// # Errors
    /// [`KeyError::Backend`], [`KeyError::SignerOutOfRange`].
    pub fn derive(backend: &dyn TeeBackend) -> Result<Self, KeyError> {
        let signer = SecretKey::from_bytes(&*backend.derive_key(SIGNER_PATH)?)
            .map_err(|_| KeyError::SignerOutOfRange)?;
        let seed = expand(&*backend.derive_key(SEALING_PATH)?, None, SEALING_INFO);
        let vault = FileKey::from_bytes(*backend.derive_key(VAULT_PATH)?);
        Ok(Self {
            signer,
            sealing: SealingKey::derive(&seed),
            vault,
        })
    }

    /// Address of the signer.
    pub fn signer_address(&self) -> Address {
        self.signer.address()
    }

    /// Report data of `/v1/quote`.
    pub fn legacy_report_data(&self) -> [u8; 64] {
        report_data::legacy(self.signer_address())
    }

    /// Report data of `/v1/quote?legacy=false`.
    pub fn structured_report_data(&self) -> [u8; 64] {
        report_data::structured(self.signer_address(), &self.sealing.public())
    }

    /// Report data of `/v1/quote?nonce=…`; TLS ends outside the enclave unless `tls_key_sha256` says otherwise.
    pub fn challenge_report_data(
        &self,
        nonce: &[u8; 32],
        tls_key_sha256: Option<&[u8; 32]>,
    ) -> [u8; 64] {
        let tls = tls_key_sha256.copied().unwrap_or_default();
        report_data::challenge(self.signer_address(), &self.sealing.public(), &tls, nonce)
    }
}

/// dstack's derivation of a path's key from the application key; purpose and algorithm do not enter it.
pub fn derive_path_key(application_key: &[u8; 32], path: &str) -> Zeroizing<[u8; 32]> {
    expand(application_key, Some(DERIVATION_SALT), path.as_bytes())
}

fn expand(secret: &[u8; 32], salt: Option<&[u8]>, info: &[u8]) -> Zeroizing<[u8; 32]> {
    let mut key = Zeroizing::new([0u8; 32]);
    Hkdf::<Sha256>::new(salt, secret)
        .expand(info, key.as_mut_slice())
        .expect("32 bytes are within HKDF-SHA256's limit");
    key
}
