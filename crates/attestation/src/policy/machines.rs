//! What else computes: the GPU, and the machine that the model runs on (V17, V19).

use super::judge::Judge;
use crate::bundle::QuoteBundle;
use crate::checks::{CheckId, CheckStatus};
use crate::event_log::RuntimeFacts;
use crate::gpu::{self, GpuQuestion};
use crate::model_node::ModelNode;
use crate::quote::TdxQuote;

impl Judge {
    pub(super) fn gpu(
        &mut self,
        bundle: &QuoteBundle,
        quote: &TdxQuote,
        facts: Option<&RuntimeFacts>,
    ) {
        let (status, detail) = gpu::judge(&GpuQuestion {
            payload: bundle.nvidia_payload.as_ref(),
            vm_config: &bundle.vm_config,
            boot_attestation: facts.and_then(|facts| facts.gpu_attestation.as_deref()),
            signer: self.signer,
            sealing_key: self.sealing_key.as_ref(),
            report_data: &quote.report_data,
        });
        self.open(CheckId::GpuEvidence, "confidential GPU", status, detail);
    }

    pub(super) fn model_node(&mut self, node: ModelNode) {
        let name = "model in the same enclave";
        let (status, detail) = match node {
            ModelNode::Same => (
                CheckStatus::Inapplicable,
                "no machine behind this one is registered".to_owned(),
            ),
            ModelNode::Separated { signer } => {
                let signer = signer.map_or_else(
                    || "names no signer for it".to_owned(),
                    |signer| format!("names its signer {}", signer.to_checksum(None)),
                );
                (
                    CheckStatus::Skipped,
                    format!(
                        "the model runs on another machine, whose evidence is not checked: this enclave only relays its output; the registration {signer}"
                    ),
                )
            }
            ModelNode::Unknown => (
                CheckStatus::Skipped,
                "the registration does not say where the model runs".to_owned(),
            ),
        };
        self.open(CheckId::ModelNode, name, status, detail);
    }
}
