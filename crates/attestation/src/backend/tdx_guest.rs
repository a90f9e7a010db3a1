//! TDX through the kernel alone: quotes from the configfs report interface (`/sys/kernel/config/tsm/report`).
//!
//! The kernel gives quotes but no secrets, so the root secret is random and lives as long as the process: the signer
//! changes at every start and has to be registered again. Use dstack where the signer must survive. Only the file
//! exchange is tested; the kernel interface exists only inside a TDX guest.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rand::RngCore as _;
use zeroize::Zeroizing;

use super::{BackendError, TeeBackend, TeeKind};
use crate::bundle::{QuoteBundle, RECIPIENT_KEY_FORMATS, SEALING_FORMATS};
use crate::keys::derive_path_key;

/// Folder of the kernel's report interface.
pub const REPORT_FOLDER: &str = "/sys/kernel/config/tsm/report";

/// Name that the kernel gives to its TDX provider.
const TDX_PROVIDER: &str = "tdx_guest";

/// The kernel's report interface and a root secret of this process.
pub struct TdxGuestBackend {
    folder: PathBuf,
    root_secret: Zeroizing<[u8; 32]>,
    requests: AtomicU64,
}

impl TdxGuestBackend {
    /// The interface at [`REPORT_FOLDER`].
    pub fn new() -> Self {
        Self::at(Path::new(REPORT_FOLDER))
    }

    /// The interface mounted at another place.
    pub fn at(folder: &Path) -> Self {
        let mut root_secret = Zeroizing::new([0u8; 32]);
        rand::rng().fill_bytes(root_secret.as_mut_slice());
        Self {
            folder: folder.to_owned(),
            root_secret,
            requests: AtomicU64::new(0),
        }
    }

    /// Whether this machine has the interface.
    pub fn is_available() -> bool {
        Path::new(REPORT_FOLDER).is_dir()
    }
}

impl Default for TdxGuestBackend {
    fn default() -> Self {
        Self::new()
    }
}

impl TeeBackend for TdxGuestBackend {
    fn kind(&self) -> TeeKind {
        TeeKind::TdxGuest
    }

    fn quote(&self, report_data: &[u8; 64]) -> Result<QuoteBundle, BackendError> {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        let request = self
            .folder
            .join(format!("zerog-{}-{number}", std::process::id()));
        fs::create_dir(&request).map_err(|source| BackendError::Unavailable {
            path: request.clone(),
            source,
        })?;
        let quote = read_report(&request, report_data);
        // The request folder is the kernel's; a failed removal leaves an empty entry and harms nothing.
        let _ = fs::remove_dir(&request);
        Ok(QuoteBundle {
            quote: quote?,
            // Without a guest agent nobody records run-time events, so verdicts on such quotes stay partial at best.
            event_log: "[]".into(),
            report_data: *report_data,
            vm_config: "{}".into(),
            tcb_info: "{}".into(),
            simulated: false,
            sealing: SEALING_FORMATS.map(str::to_owned).to_vec(),
            recipient_keys: RECIPIENT_KEY_FORMATS.map(str::to_owned).to_vec(),
            tls_key_sha256: None,
            nvidia_payload: None,
        })
    }

    fn derive_key(&self, path: &str) -> Result<Zeroizing<[u8; 32]>, BackendError> {
        Ok(derive_path_key(&self.root_secret, path))
    }
}

/// Writes the report data, reads the quote, and checks that nobody else wrote in between.
fn read_report(request: &Path, report_data: &[u8; 64]) -> Result<Vec<u8>, BackendError> {
    let unavailable = |source: io::Error| BackendError::Unavailable {
        path: request.to_owned(),
        source,
    };
    let provider = fs::read_to_string(request.join("provider")).map_err(unavailable)?;
    if provider.trim() != TDX_PROVIDER {
        let reason = format!(
            "the kernel's provider is {}, not {TDX_PROVIDER}",
            provider.trim()
        );
        return Err(BackendError::BadAnswer {
            method: "provider",
            reason,
        });
    }
    let before = generation(request)?;
    fs::write(request.join("inblob"), report_data).map_err(unavailable)?;
    let quote = fs::read(request.join("outblob")).map_err(unavailable)?;
    // The kernel counts writes: exactly one, ours, may lie between.
    if generation(request)? > before.saturating_add(1) {
        return Err(BackendError::Interrupted {
            path: request.to_owned(),
        });
    }
    let parsed =
        crate::quote::TdxQuote::parse(&quote).map_err(|error| BackendError::BadAnswer {
            method: "outblob",
            reason: error.to_string(),
        })?;
    if &parsed.report_data != report_data {
        return Err(BackendError::Interrupted {
            path: request.to_owned(),
        });
    }
    Ok(quote)
}

fn generation(request: &Path) -> Result<u64, BackendError> {
    let text = fs::read_to_string(request.join("generation")).map_err(|source| {
        BackendError::Unavailable {
            path: request.to_owned(),
            source,
        }
    })?;
    text.trim().parse().map_err(|_| BackendError::BadAnswer {
        method: "generation",
        reason: "not a number".into(),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{Simulated, SimulatedOptions};

    fn fake_request(folder: &Path, provider: &str, quote: &[u8]) {
        fs::write(folder.join("provider"), provider).unwrap();
        fs::write(folder.join("generation"), "3\n").unwrap();
        fs::write(folder.join("outblob"), quote).unwrap();
    }

    #[test]
    fn a_report_is_written_and_read() {
        let folder = tempfile::tempdir().unwrap();
        let data = [9u8; 64];
        let quote = Simulated::new(SimulatedOptions::new([1; 32]))
            .quote(&data)
            .unwrap()
            .quote;
        fake_request(folder.path(), "tdx_guest\n", &quote);
        assert_eq!(read_report(folder.path(), &data).unwrap(), quote);
        assert_eq!(fs::read(folder.path().join("inblob")).unwrap(), data);
        assert!(matches!(
            read_report(folder.path(), &[8; 64]),
            Err(BackendError::Interrupted { .. })
        ));
    }

    #[test]
    fn other_providers_and_missing_interfaces_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        fake_request(folder.path(), "sev_guest\n", b"");
        assert!(matches!(
            read_report(folder.path(), &[0; 64]),
            Err(BackendError::BadAnswer {
                method: "provider",
                ..
            })
        ));
        let missing = TdxGuestBackend::at(&folder.path().join("nowhere"));
        assert!(matches!(
            missing.quote(&[0; 64]),
            Err(BackendError::Unavailable { .. })
        ));
        assert_ne!(
            missing.derive_key("/").unwrap(),
            missing.derive_key("/x").unwrap()
        );
    }
}
