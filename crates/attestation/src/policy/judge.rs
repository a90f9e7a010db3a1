//! Where findings are recorded, and what follows from all of them.

use alloy_primitives::Address;

use super::verdict::{Assurance, Level, Verdict};
use crate::checks::{Check, CheckId, CheckStatus};
use crate::rejection::Rejection;

#[derive(Default)]
pub(super) struct Judge {
    pub(super) checks: Vec<Check>,
    pub(super) simulated: bool,
    pub(super) hardware: bool,
    pub(super) signer: Option<Address>,
    pub(super) sealing_key: Option<[u8; 32]>,
    pub(super) compose_hash: Option<String>,
    pub(super) images: Vec<String>,
    pub(super) tcb_status: Option<String>,
    pub(super) advisory_ids: Vec<String>,
}

impl Judge {
    pub(super) fn record(
        &mut self,
        id: CheckId,
        name: &'static str,
        required: bool,
        status: CheckStatus,
        detail: String,
    ) {
        self.checks.push(Check {
            id,
            name,
            status,
            detail,
            rejection: None,
            required,
        });
    }

    /// Says what kind of fault the check that was recorded last has found.
    pub(super) fn because(&mut self, rejection: Option<Rejection>) {
        if let Some(check) = self.checks.last_mut() {
            check.rejection = rejection;
        }
    }

    pub(super) fn pass(
        &mut self,
        id: CheckId,
        name: &'static str,
        required: bool,
        detail: impl Into<String>,
    ) {
        self.record(id, name, required, CheckStatus::Pass, detail.into());
    }

    pub(super) fn fail(
        &mut self,
        id: CheckId,
        name: &'static str,
        required: bool,
        detail: impl Into<String>,
    ) {
        self.record(id, name, required, CheckStatus::Fail, detail.into());
    }

    pub(super) fn open(
        &mut self,
        id: CheckId,
        name: &'static str,
        status: CheckStatus,
        detail: impl Into<String>,
    ) {
        self.record(id, name, false, status, detail.into());
    }

    pub(super) fn conclude(self) -> Verdict {
        let failed = self.checks.iter().any(|check| {
            check.status == CheckStatus::Fail
                || (check.required && check.status == CheckStatus::Skipped)
        });
        let open = self
            .checks
            .iter()
            .any(|check| matches!(check.status, CheckStatus::Skipped | CheckStatus::Warning));
        let level = match (failed, self.simulated, open) {
            (true, _, _) => Level::Failed,
            (false, true, _) => Level::Simulated,
            (false, false, true) => Level::Partial,
            (false, false, false) => Level::Verified,
        };
        let assurance = match (self.simulated, self.hardware && level != Level::Failed) {
            (true, _) => Assurance::Simulated,
            (false, true) => Assurance::Hardware,
            (false, false) => Assurance::None,
        };
        Verdict {
            level,
            assurance,
            checks: self.checks,
            signer: self.signer,
            sealing_key: self.sealing_key,
            compose_hash: self.compose_hash,
            images: self.images,
            tcb_status: self.tcb_status,
            advisory_ids: self.advisory_ids,
        }
    }
}
