//! The key that opens a provider's models for a wallet that cannot decrypt (`docs/protocol.md`, recipient keys).

use std::collections::HashMap;
use std::sync::Arc;

use alloy_primitives::Address;
use tokio::sync::Mutex;
use zerog_protocol::fine_tuning_api::{CreateTaskRequest, Recipient, TaskView};
use zerog_protocol::recipient::{self, RECIPIENT_KEY_VERSION, TaskBinding};
use zerog_protocol::{SecretKey, TaskId, U256, signing};

use super::FineTuning;
use crate::broker::Context;
use crate::error::{Error, Result, ServiceKind};
use crate::wallet::Wallet;

/// Keys that were derived since the broker was made, by provider, so that a person is asked once.
#[derive(Debug, Default)]
pub(crate) struct RecipientKeys(Mutex<HashMap<Address, Arc<SecretKey>>>);

impl Context {
    /// The wallet's key for models of a provider. The wallet signs the same text twice the first time: one whose
    /// signatures differ would have another key whenever it is asked.
    pub(crate) async fn recipient_key(&self, provider: Address) -> Result<Arc<SecretKey>> {
        const WHAT: &str = "the text that your key for this provider's models is made from";
        let mut known = self.recipient_keys.0.lock().await;
        if let Some(key) = known.get(&provider) {
            return Ok(Arc::clone(key));
        }
        let wallet = self.wallet()?;
        let message = recipient::seed_message(self.chain.chain_id(), provider, wallet.address());
        let key = recipient::derive(&wallet.sign_message(WHAT, message.as_bytes()).await?);
        let again = recipient::derive(&wallet.sign_message(WHAT, message.as_bytes()).await?);
        if key.public_key() != again.public_key() {
            return Err(Error::SignaturesDiffer {
                address: wallet.address(),
            });
        }
        let key = Arc::new(key);
        known.insert(provider, Arc::clone(&key));
        Ok(key)
    }
}

impl FineTuning {
    /// Whether the wallet can open a model that the provider trains for it. A wallet with its key in this process can
    /// with every provider; a device needs one whose verified enclave announces recipient keys.
    ///
    /// # Errors
    /// [`Error::ModelNotOpenable`] when it cannot, [`Error::VerificationFailed`], or an unreachable provider.
    pub async fn check_openable(&self, provider: Address) -> Result<()> {
        if self.context.wallet()?.secret_key().is_some() {
            return Ok(());
        }
        let registration = self
            .context
            .registration(provider, ServiceKind::FineTuning)
            .await?;
        let enclave = self
            .context
            .require_enclave(&registration, &mut |_| ())
            .await?;
        if enclave.takes_recipient_keys {
            return Ok(());
        }
        Err(Error::ModelNotOpenable {
            provider,
            reason: format!(
                "it does not announce recipient keys ({RECIPIENT_KEY_VERSION}), so it encrypts models to the wallet itself, which cannot decrypt"
            ),
        })
    }

    /// The recipient of a request by a wallet that cannot decrypt, none for one that can.
    pub(super) async fn recipient(
        &self,
        wallet: &Wallet,
        provider: Address,
        nonce: U256,
        request: &CreateTaskRequest,
    ) -> Result<Option<Recipient>> {
        if wallet.secret_key().is_some() {
            return Ok(None);
        }
        let public_key = self.context.recipient_key(provider).await?.public_key();
        let binding = TaskBinding {
            chain_id: self.context.chain.chain_id(),
            provider,
            user: wallet.address(),
            nonce,
            dataset_hash: &request.dataset_hash,
            model_hash: &request.pre_trained_model_hash,
            training_params: &request.training_params,
        };
        let signature = wallet
            .sign_personal("the key that the model is for", binding.hash(&public_key))
            .await?;
        Ok(Some(Recipient {
            key: recipient::public_key_text(&public_key),
            signature,
        }))
    }

    /// Asks the enclave's confirmation that it seals the task's model to the wallet's recipient key. A wallet that can
    /// decrypt needs none.
    pub(super) async fn check_recipient(&self, provider: Address, task: TaskId) -> Result<()> {
        if self.context.wallet()?.secret_key().is_some() {
            return Ok(());
        }
        let view = self.get_task(provider, Some(task)).await?;
        let signer = self.get_service(provider).await?.tee_signer;
        let public_key = self.context.recipient_key(provider).await?.public_key();
        let hash = recipient::confirmation_hash(
            self.context.chain.chain_id(),
            provider,
            self.context.user()?,
            task,
            &public_key,
        );
        let reason = match confirmation(&view, &public_key) {
            Ok(signature) => match signing::verify_personal(hash, signature, signer) {
                Ok(_) => return Ok(()),
                Err(error) => format!("its confirmation is not the enclave's: {error}"),
            },
            Err(reason) => reason.to_owned(),
        };
        Err(Error::ModelNotOpenable { provider, reason })
    }
}

/// The signature that a task shows for the given key.
fn confirmation<'a>(
    view: &'a TaskView,
    public_key: &[u8; 65],
) -> std::result::Result<&'a str, &'static str> {
    let Some(shown) = &view.recipient else {
        return Err("the task is sealed to the wallet itself, which cannot decrypt");
    };
    if recipient::parse_public_key(&shown.key) != Ok(*public_key) {
        return Err("the task is sealed to a key that this wallet does not have");
    }
    Ok(&shown.signature)
}
