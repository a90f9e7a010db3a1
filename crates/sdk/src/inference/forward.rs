//! Requests of other programs, passed on with a signature and their bytes as they are.

use alloy_primitives::Address;

use super::lora::Lora;
use crate::error::Result;
use crate::progress::Progress;
use crate::provider_client::unreachable;

/// An answer on its way back: call [`ForwardedAnswer::chunk`] until it gives `None`.
#[derive(Debug)]
pub struct ForwardedAnswer {
    url: String,
    response: reqwest::Response,
}

impl Lora {
    /// Sends a chat-completion body as another program wrote it, streamed or not, and hands the answer on byte by byte.
    /// The sub-account is prepared and the request signed as in [`Lora::chat_completion`].
    ///
    /// # Errors
    /// As [`Lora::chat_completion`]; a refusal of the provider is an error here, not an answer.
    pub async fn forward_chat(
        &self,
        provider: Address,
        body: &[u8],
        mut on_progress: impl FnMut(Progress) + Send,
    ) -> Result<ForwardedAnswer> {
        let (url, response) = self.post_chat(provider, body, &mut on_progress).await?;
        Ok(ForwardedAnswer { url, response })
    }
}

impl ForwardedAnswer {
    /// A header of the answer: `content-type`, or `ZG-Res-Key`, by which the answer can be proven.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.response.headers().get(name)?.to_str().ok()
    }

    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// [`crate::Error::ProviderUnreachable`] when the connection breaks.
    pub async fn chunk(&mut self) -> Result<Option<Vec<u8>>> {
        match self.response.chunk().await {
            Ok(chunk) => Ok(chunk.map(Vec::from)),
            Err(error) => Err(unreachable(&self.url, &error)),
        }
    }
}
