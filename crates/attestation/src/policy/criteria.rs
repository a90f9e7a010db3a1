//! What a caller accepts.

use dcap_qvl::TcbStatus;

use crate::Measurement;

/// What a caller accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Whether quotes of the development root give [`Level::Simulated`](super::Level::Simulated) instead of
    /// [`Level::Failed`](super::Level::Failed).
    pub accept_development_root: bool,
    /// TCB statuses besides `UpToDate`.
    pub extra_tcb_statuses: Vec<TcbStatus>,
    /// Lowest accepted number of the TCB data set.
    pub min_tcb_evaluation_number: u32,
    /// Reviewed compose texts, by SHA-256. Empty: the compose text is printed for review.
    pub known_compose_hashes: Vec<[u8; 32]>,
    /// Known operating-system images. Empty: not checked.
    pub known_os_images: Vec<OsMeasurement>,
    /// Ids of expected key-management roots. Empty: any `kms` passes with a warning.
    pub known_kms_ids: Vec<String>,
}

impl Default for Policy {
    /// Intel's root, `UpToDate` only, no lists.
    fn default() -> Self {
        Self {
            accept_development_root: false,
            extra_tcb_statuses: Vec::new(),
            min_tcb_evaluation_number: 0,
            known_compose_hashes: Vec::new(),
            known_os_images: Vec::new(),
            known_kms_ids: Vec::new(),
        }
    }
}

impl Policy {
    /// The policy of the development network: like the default, but simulated quotes are recognised.
    pub fn devnet() -> Self {
        Self {
            accept_development_root: true,
            ..Self::default()
        }
    }
}

/// Measurements of a known operating-system image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OsMeasurement {
    /// Name to show.
    pub name: String,
    /// Firmware.
    pub mrtd: Measurement,
    /// RTMR0 to RTMR2.
    pub rtmr: [Measurement; 3],
}
