//! A hardware wallet as alloy's crates are one: a key behind the two traits, which signs messages and transactions when a
//! person says so, and no bare hashes.

use std::sync::{Arc, Mutex};

use alloy_consensus::SignableTransaction;
use alloy_network::TxSigner;
use alloy_primitives::{Address, B256, ChainId, Signature, U256, eip191_hash_message};
use alloy_signer::{Error, Result, Signer, UnsupportedSignerOperation};
use async_trait::async_trait;
use k256::ecdsa::hazmat::SignPrimitive;
use k256::ecdsa::{SigningKey, VerifyingKey};
use k256::elliptic_curve::Curve;
use k256::elliptic_curve::bigint::ArrayEncoding;
use sha2::Sha256;
use zerog_sdk::{SecretKey, Wallet};

/// What the person, or the device, does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    Confirms,
    Refuses,
    /// Nobody is there.
    Waits,
    /// Another account than the chosen one signs.
    MixesUp,
    /// A signature of the same message is another one each time.
    Varies,
    /// The signature has the larger value of s, which chains refuse.
    SignsHigh,
}

/// What was shown on the screen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Prompt {
    Message(Vec<u8>),
    Transaction,
}

/// The device; clones are the same one.
#[derive(Clone)]
pub(crate) struct Device {
    address: Address,
    key: SecretKey,
    state: Arc<Mutex<(Manner, Vec<Prompt>)>>,
}

impl Device {
    pub(crate) fn new(key: &SecretKey) -> Self {
        Self {
            address: key.address(),
            key: key.clone(),
            state: Arc::new(Mutex::new((Manner::Confirms, Vec::new()))),
        }
    }

    pub(crate) fn wallet(&self) -> Wallet {
        Wallet::device(Arc::new(self.clone()))
    }

    pub(crate) fn now(&self, manner: Manner) {
        self.state.lock().unwrap().0 = manner;
    }

    /// What was shown since the last call.
    pub(crate) fn prompts(&self) -> Vec<Prompt> {
        std::mem::take(&mut self.state.lock().unwrap().1)
    }

    async fn sign(&self, prompt: Prompt, digest: B256) -> Result<Signature> {
        let (manner, count) = {
            let mut state = self.state.lock().unwrap();
            state.1.push(prompt);
            (state.0, state.1.len())
        };
        match manner {
            Manner::Confirms => Ok(self.key.sign_digest(digest)),
            Manner::Refuses => Err(Error::message("denied by the user (0x6985)")),
            Manner::Waits => std::future::pending().await,
            Manner::MixesUp => Ok(SecretKey::random().sign_digest(digest)),
            Manner::Varies => Ok(self.varied(digest, count)),
            Manner::SignsHigh => {
                let low = self.key.sign_digest(digest);
                let order = U256::from_be_slice(&k256::Secp256k1::ORDER.to_be_byte_array());
                Ok(Signature::new(low.r(), order - low.s(), !low.v()))
            }
        }
    }

    /// A valid signature with another random number for every count.
    fn varied(&self, digest: B256, count: usize) -> Signature {
        let key: &SigningKey = self.key.signing_key();
        let (signature, _) = key
            .as_nonzero_scalar()
            .try_sign_prehashed_rfc6979::<Sha256>(&digest.0.into(), &count.to_be_bytes())
            .unwrap();
        let signature = signature.normalize_s().unwrap_or(signature);
        let id = k256::ecdsa::RecoveryId::trial_recovery_from_prehash(
            &VerifyingKey::from(key),
            digest.as_slice(),
            &signature,
        );
        Signature::from((signature, id.unwrap()))
    }
}

#[async_trait]
impl Signer for Device {
    async fn sign_hash(&self, _hash: &B256) -> Result<Signature> {
        Err(Error::UnsupportedOperation(
            UnsupportedSignerOperation::SignHash,
        ))
    }

    async fn sign_message(&self, message: &[u8]) -> Result<Signature> {
        self.sign(
            Prompt::Message(message.to_vec()),
            eip191_hash_message(message),
        )
        .await
    }

    fn address(&self) -> Address {
        self.address
    }

    fn chain_id(&self) -> Option<ChainId> {
        None
    }

    fn set_chain_id(&mut self, _chain_id: Option<ChainId>) {}
}

#[async_trait]
impl TxSigner<Signature> for Device {
    fn address(&self) -> Address {
        self.address
    }

    async fn sign_transaction(
        &self,
        transaction: &mut dyn SignableTransaction<Signature>,
    ) -> Result<Signature> {
        self.sign(Prompt::Transaction, transaction.signature_hash())
            .await
    }
}
