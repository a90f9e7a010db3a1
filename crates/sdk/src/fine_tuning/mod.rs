//! `broker.fine_tuning`: discovery, accounts, datasets, tasks, deliverables.

pub mod account;
pub mod dataset;
pub mod deliverable;
pub mod offer;
pub mod quote;
pub(crate) mod recipient;
pub mod services;
pub mod task;
mod upload;
pub mod watch;

use std::path::Path;
use std::sync::Arc;

use alloy_primitives::Address;

use crate::broker::Context;
use crate::error::{Result, ServiceKind};
use crate::ledger::Ledger;
use crate::progress::Progress;
use crate::verification::{VerificationReport, VerificationStep};

/// `broker.fine_tuning`.
#[derive(Debug, Clone)]
pub struct FineTuning {
    pub(crate) context: Arc<Context>,
    pub(crate) ledger: Ledger,
}

impl FineTuning {
    pub(crate) fn new(context: Arc<Context>, ledger: Ledger) -> Self {
        Self { context, ledger }
    }

    /// Judges the provider's enclave and, if `output_dir` is given, keeps the raw report there. Returns normally also
    /// when the provider fails; look at `is_valid` and `level`.
    ///
    /// # Errors
    /// [`crate::Error::ServiceMissing`], an unreachable provider, or an unwritable folder.
    pub async fn verify_service(
        &self,
        provider: Address,
        output_dir: Option<&Path>,
        on_log: impl FnMut(&VerificationStep) + Send,
    ) -> Result<VerificationReport> {
        self.context
            .verify_service(provider, ServiceKind::FineTuning, output_dir, on_log)
            .await
    }

    /// Refuses a provider whose enclave does not satisfy the broker's requirement; uploads and deployments do the same
    /// by themselves.
    ///
    /// # Errors
    /// [`crate::Error::VerificationFailed`], [`crate::Error::ServiceMissing`], or an unreachable provider.
    pub async fn require_verified(
        &self,
        provider: Address,
        mut on_progress: impl FnMut(Progress) + Send,
    ) -> Result<()> {
        let registration = self
            .context
            .registration(provider, ServiceKind::FineTuning)
            .await?;
        self.context
            .require_enclave(&registration, &mut on_progress)
            .await?;
        Ok(())
    }
}
