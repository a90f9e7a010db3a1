//! Whether an answer really came from the enclave: both bodies are hashed and the signature is recovered.

use alloy_primitives::Address;
use serde::Serialize;
use zerog_protocol::inference_api::ResponseSignature;
use zerog_protocol::signing;

use super::Inference;
use crate::broker::Context;
use crate::error::{Error, Result};
use crate::fine_tuning::services::path_segment;
use crate::provider_client::join;

/// A proven response.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ResponseProof {
    /// The enclave signer, equal to the one on chain.
    pub signer: Address,
    /// The signed text: both body hashes.
    pub text: String,
}

impl Inference {
    /// Checks that the enclave registered on chain signed exactly this request and this response. `chat_id` is the
    /// `ZG-Res-Key` header, or the completion's `id`; for a stream the response is every byte of the body.
    ///
    /// # Errors
    /// [`Error::ResponseNotProven`], or an unreachable provider.
    pub async fn process_response(
        &self,
        provider: Address,
        chat_id: &str,
        request_body: &[u8],
        response_body: &[u8],
    ) -> Result<ResponseProof> {
        self.context
            .verify_response(provider, chat_id, request_body, response_body)
            .await
    }
}

impl Context {
    pub(crate) async fn verify_response(
        &self,
        provider: Address,
        chat_id: &str,
        request_body: &[u8],
        response_body: &[u8],
    ) -> Result<ResponseProof> {
        let refused = |reason: String| Error::ResponseNotProven { reason };
        let service = self.inference_service(provider).await?;
        let url = join(
            &service.url,
            &format!(
                "/v1/proxy/signature/{}?model={}",
                path_segment(chat_id),
                path_segment(&service.model)
            ),
        );
        let signed: ResponseSignature = match self
            .http
            .get_json("get response signature", &url, None)
            .await
        {
            Err(Error::ProviderRefused { message, .. }) => {
                return Err(refused(format!(
                    "the provider has no signature for it ({message})"
                )));
            }
            other => other?,
        };
        let expected = signing::response_text(
            signing::sha256(request_body),
            signing::sha256(response_body),
        );
        if signed.text != expected {
            return Err(refused(
                "the provider signed another request or response".into(),
            ));
        }
        let signer = signing::recover_response_signer(&signed.text, &signed.signature)
            .map_err(|error| refused(error.to_string()))?;
        if signer != service.tee_signer {
            return Err(refused(format!(
                "it is signed by {signer}, the chain names {}",
                service.tee_signer
            )));
        }
        Ok(ResponseProof {
            signer,
            text: signed.text,
        })
    }
}
