//! `broker.inference`: discovery, sessions and API keys, verification, and deployed adapters under `lora`.

pub mod forward;
pub mod lora;
pub mod services;
pub mod session;
pub mod stream;
pub mod verify;

use std::path::Path;
use std::sync::Arc;

use alloy_primitives::Address;

use crate::broker::Context;
use crate::error::{Result, ServiceKind};
use crate::ledger::Ledger;
use crate::verification::{VerificationReport, VerificationStep};
use lora::Lora;

/// `broker.inference`.
#[derive(Debug, Clone)]
pub struct Inference {
    /// Adapters: deploy, look, chat.
    pub lora: Lora,
    pub(crate) context: Arc<Context>,
    pub(crate) ledger: Ledger,
}

impl Inference {
    pub(crate) fn new(context: Arc<Context>, ledger: Ledger, lora: Lora) -> Self {
        Self {
            lora,
            context,
            ledger,
        }
    }

    /// Judges the provider's enclave, as [`crate::FineTuning::verify_service`].
    ///
    /// # Errors
    /// As there.
    pub async fn verify_service(
        &self,
        provider: Address,
        output_dir: Option<&Path>,
        on_log: impl FnMut(&VerificationStep) + Send,
    ) -> Result<VerificationReport> {
        self.context
            .verify_service(provider, ServiceKind::Inference, output_dir, on_log)
            .await
    }
}
