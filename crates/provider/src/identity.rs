//! The enclave's keys and quotes.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use alloy_primitives::Address;
use rand::RngCore;
use sha2::{Digest, Sha256};
use zerog_attestation::{
    BackendError, Collateral, DstackBackend, EnclaveKeys, KeyError, Simulated, SimulatedOptions,
    TeeBackend, TeeKind,
};
use zeroize::Zeroizing;

use crate::config::IdentityConfig;

/// File of a simulated enclave's seed.
const SEED_FILE: &str = "enclave-seed";

/// Why the provider has no identity.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// The TEE does not answer.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The keys could not be derived.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// There is no dstack agent.
    #[error(
        "no dstack guest agent was found: run inside a dstack TDX guest, or set identity.tee = \"simulated\" on chain 31337"
    )]
    NoAgent,
    /// The seed file cannot be used.
    #[error("the enclave seed file cannot be used: {0}")]
    Seed(#[from] std::io::Error),
    /// The simulated evidence would have no measurement.
    #[error("the running program cannot be read, which simulated evidence names by its hash: {0}")]
    Program(std::io::Error),
}

/// Keys, cached quotes and the way to fresh ones.
#[derive(Clone)]
pub(crate) struct Identity {
    backend: Arc<dyn TeeBackend>,
    keys: EnclaveKeys,
    legacy_quote: Arc<str>,
    structured_quote: Arc<str>,
    /// The quote itself, for the collateral that belongs to it.
    binary_quote: Arc<[u8]>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity")
            .field("keys", &self.keys)
            .finish_non_exhaustive()
    }
}

impl Identity {
    /// Derives the keys and takes both quotes. Blocks for as long as the TEE takes.
    ///
    /// # Errors
    /// See [`IdentityError`].
    pub(crate) fn establish(
        config: &IdentityConfig,
        data_dir: &Path,
        chain_id: u64,
    ) -> Result<Self, IdentityError> {
        let backend: Arc<dyn TeeBackend> = match config {
            IdentityConfig::Simulated => {
                Simulated::check_chain(chain_id)?;
                let options = SimulatedOptions::new(*seed(data_dir)?)
                    .program_sha256(program_sha256().map_err(IdentityError::Program)?);
                Arc::new(Simulated::new(options))
            }
            IdentityConfig::Dstack {
                socket: Some(socket),
                ..
            } => Arc::new(DstackBackend::new(socket)),
            IdentityConfig::Dstack { socket: None, .. } => {
                Arc::new(DstackBackend::discover().ok_or(IdentityError::NoAgent)?)
            }
        };
        let keys = EnclaveKeys::derive(backend.as_ref())?;
        let legacy_bundle = backend.quote(&keys.legacy_report_data())?;
        let legacy_quote = legacy_bundle.to_json().into();
        let structured_quote = backend
            .quote(&keys.structured_report_data())?
            .to_json()
            .into();
        Ok(Self {
            backend,
            keys,
            legacy_quote,
            structured_quote,
            binary_quote: legacy_bundle.quote.into(),
        })
    }

    /// Every key of the enclave.
    #[must_use]
    pub(crate) fn keys(&self) -> &EnclaveKeys {
        &self.keys
    }

    /// Address that signs deliveries, settlements and responses.
    #[must_use]
    pub(crate) fn signer(&self) -> Address {
        self.keys.signer_address()
    }

    /// Whether the quotes prove nothing.
    #[must_use]
    pub(crate) fn is_simulated(&self) -> bool {
        self.backend.kind() == TeeKind::Simulated
    }

    /// Body of `/v1/quote`, or of `?legacy=false`.
    #[must_use]
    pub(crate) fn quote(&self, is_legacy: bool) -> Arc<str> {
        Arc::clone(if is_legacy {
            &self.legacy_quote
        } else {
            &self.structured_quote
        })
    }

    /// One of this machine's quotes, in binary.
    #[must_use]
    pub(crate) fn binary_quote(&self) -> &[u8] {
        &self.binary_quote
    }

    /// A fresh quote that answers a caller's nonce. Blocks.
    ///
    /// # Errors
    /// [`BackendError`].
    pub(crate) fn challenge(&self, nonce: &[u8; 32]) -> Result<String, BackendError> {
        Ok(self
            .backend
            .quote(&self.keys.challenge_report_data(nonce, None))?
            .to_json())
    }

    /// Collateral of the development root; `None` on hardware.
    #[must_use]
    pub(crate) fn development_collateral(&self, now_s: u64) -> Option<Collateral> {
        self.is_simulated()
            .then(|| zerog_attestation::backend::simulated::development_collateral(now_s))
    }
}

/// The seed of a simulated enclave: made once, then the same at every start.
fn seed(data_dir: &Path) -> Result<Zeroizing<[u8; 32]>, std::io::Error> {
    let path = data_dir.join(SEED_FILE);
    let mut seed = Zeroizing::new([0u8; 32]);
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            let text = Zeroizing::new(text);
            hex::decode_to_slice(text.trim(), seed.as_mut_slice()).map_err(|_| {
                std::io::Error::other(format!("{} is damaged; it holds 64 digits", path.display()))
            })?;
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            rand::rng().fill_bytes(seed.as_mut_slice());
            let temporary = data_dir.join(format!("{SEED_FILE}.new"));
            let _ = std::fs::remove_file(&temporary);
            let mut file = std::fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&temporary)?;
            file.write_all(Zeroizing::new(hex::encode(*seed)).as_bytes())?;
            file.sync_all()?;
            // A second process that was faster keeps its seed.
            match std::fs::hard_link(&temporary, &path) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                    std::fs::remove_file(&temporary)?;
                    return self::seed(data_dir);
                }
                Err(error) => return Err(error),
            }
            std::fs::remove_file(&temporary)?;
            crate::vault::sync_folder(data_dir)?;
        }
        Err(error) => return Err(error),
    }
    Ok(seed)
}

/// SHA-256 of the running program, which the simulated evidence names as what runs. It is read once.
fn program_sha256() -> std::io::Result<[u8; 32]> {
    static DIGEST: OnceLock<[u8; 32]> = OnceLock::new();
    if let Some(digest) = DIGEST.get() {
        return Ok(*digest);
    }
    let mut program = std::fs::File::open(std::env::current_exe()?)?;
    let mut hasher = Sha256::new();
    std::io::copy(&mut program, &mut hasher)?;
    Ok(*DIGEST.get_or_init(|| hasher.finalize().into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_simulated_identity_is_stable_and_private() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let first = Identity::establish(&IdentityConfig::Simulated, folder.path(), 31337).unwrap();
        let second = Identity::establish(&IdentityConfig::Simulated, folder.path(), 31337).unwrap();
        assert_eq!(first.signer(), second.signer());
        let mode = std::fs::metadata(folder.path().join(SEED_FILE))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(first.quote(true).contains("\"simulated\":true"));
        assert_ne!(first.quote(true), first.quote(false));
        let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let digest: [u8; 32] = Sha256::digest(program).into();
        assert_eq!(program_sha256().unwrap(), digest);
        let image = format!("zerog/provider@sha256:{}", hex::encode(digest));
        let bundle = zerog_attestation::QuoteBundle::parse(first.quote(true).as_bytes()).unwrap();
        assert!(bundle.tcb_info.contains(&image), "{}", bundle.tcb_info);
        let other = tempfile::tempdir().unwrap();
        let other = Identity::establish(&IdentityConfig::Simulated, other.path(), 31337).unwrap();
        assert_ne!(first.signer(), other.signer());
        assert!(Identity::establish(&IdentityConfig::Simulated, folder.path(), 16661).is_err());
    }
}
