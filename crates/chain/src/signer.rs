//! Who signs for an account: a key in this process, or a device that keeps its key to itself.
//!
//! A device may wait for a person, refuse, or answer with another account's signature. So every
//! signature is waited for with a limit and compared with the account before anybody gets to see it.

use std::{fmt, future::Future, sync::Arc, time::Duration};

use alloy_consensus::SignableTransaction;
use alloy_network::{FullSigner, TxSigner};
use alloy_primitives::{Address, Signature};
use alloy_signer_local::PrivateKeySigner;

/// Longest wait for a person to confirm on a device.
const CONFIRMATION_TIMEOUT: Duration = Duration::from_secs(120);

/// What a hardware wallet or a key service is to this crate: alloy's signer traits for messages and
/// transactions, as for example `alloy-signer-ledger` implements them.
pub type SigningDevice = Arc<dyn FullSigner<Signature> + Send + Sync>;

/// Why there is no signature. Nothing was sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SigningError {
    /// The wallet said no, or cannot be reached.
    #[error(
        "the wallet did not sign {what}: {reason}. Unlock the device, open its Ethereum app and confirm there; nothing was sent"
    )]
    Refused {
        /// What was to be signed.
        what: &'static str,
        /// What the device or its driver said.
        reason: String,
    },
    /// The wallet cannot sign this kind of thing at all.
    #[error(
        "the wallet cannot sign {what}: {reason}. Update the device, or use a wallet that signs personal messages and legacy transactions; nothing was sent"
    )]
    Unsupported {
        /// What was to be signed.
        what: &'static str,
        /// What the device or its driver said.
        reason: String,
    },
    /// Nobody confirmed in time.
    #[error(
        "nobody confirmed {what} on the wallet within {}s. Look at its screen and try again; nothing was sent", .waited.as_secs()
    )]
    TimedOut {
        /// What was to be signed.
        what: &'static str,
        /// How long was waited.
        waited: Duration,
    },
    /// The signature is another account's, or of something else.
    #[error(
        "the wallet's signature of {what} is not by {expected}{}. Choose that account on the device (the same derivation path), and check the connection to it; nothing was sent",
        found.map(|found| format!(" but by {found}")).unwrap_or_default()
    )]
    WrongSignature {
        /// What was to be signed.
        what: &'static str,
        /// The wallet's address.
        expected: Address,
        /// Whose it is, if it is anybody's.
        found: Option<Address>,
    },
}

impl SigningError {
    pub(crate) fn refused(what: &'static str, error: &alloy_signer::Error) -> Self {
        let reason = error.to_string();
        if error.is_unsupported() {
            Self::Unsupported { what, reason }
        } else {
            Self::Refused { what, reason }
        }
    }
}

/// An account that signs. Clones share the device.
#[derive(Clone)]
pub struct WalletSigner {
    device: SigningDevice,
    address: Address,
    timeout: Duration,
    asks_a_person: bool,
}

impl WalletSigner {
    /// An account on a device, which may ask a person for every signature.
    #[must_use]
    pub fn device(device: SigningDevice) -> Self {
        Self {
            address: TxSigner::address(&*device),
            device,
            timeout: CONFIRMATION_TIMEOUT,
            asks_a_person: true,
        }
    }

    /// The same account with another longest wait for a signature (two minutes by default).
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The account's address.
    #[must_use]
    pub fn address(&self) -> Address {
        self.address
    }

    /// Whether a person may have to confirm each signature, so that none is asked for without need.
    #[must_use]
    pub fn asks_a_person(&self) -> bool {
        self.asks_a_person
    }

    /// Signs a message as an EIP-191 personal message. `what` names it in errors.
    ///
    /// # Errors
    /// [`SigningError`].
    pub async fn sign_message(
        &self,
        what: &'static str,
        message: &[u8],
    ) -> Result<Signature, SigningError> {
        let signature = self.wait(what, self.device.sign_message(message)).await?;
        self.check(what, signature, |signature| {
            signature.recover_address_from_msg(message)
        })
    }

    /// Signs a transaction.
    ///
    /// # Errors
    /// [`SigningError`].
    pub async fn sign_transaction(
        &self,
        transaction: &mut dyn SignableTransaction<Signature>,
    ) -> Result<Signature, SigningError> {
        const WHAT: &str = "the transaction";
        let signature = self
            .wait(WHAT, self.device.sign_transaction(transaction))
            .await?;
        let hash = transaction.signature_hash();
        self.check(WHAT, signature, |signature| {
            signature.recover_address_from_prehash(&hash)
        })
    }

    async fn wait(
        &self,
        what: &'static str,
        signing: impl Future<Output = alloy_signer::Result<Signature>>,
    ) -> Result<Signature, SigningError> {
        match tokio::time::timeout(self.timeout, signing).await {
            // Some devices give the larger of the two values of s, which chains refuse.
            Ok(Ok(signature)) => Ok(signature.normalized_s()),
            Ok(Err(error)) => Err(SigningError::refused(what, &error)),
            Err(_) => Err(SigningError::TimedOut {
                what,
                waited: self.timeout,
            }),
        }
    }

    fn check<E>(
        &self,
        what: &'static str,
        signature: Signature,
        recover: impl Fn(&Signature) -> Result<Address, E>,
    ) -> Result<Signature, SigningError> {
        let found = recover(&signature).ok();
        if found == Some(self.address) {
            return Ok(signature);
        }
        Err(SigningError::WrongSignature {
            what,
            expected: self.address,
            found,
        })
    }
}

impl From<PrivateKeySigner> for WalletSigner {
    fn from(key: PrivateKeySigner) -> Self {
        Self {
            asks_a_person: false,
            ..Self::device(Arc::new(key))
        }
    }
}

impl From<SigningDevice> for WalletSigner {
    fn from(device: SigningDevice) -> Self {
        Self::device(device)
    }
}

impl fmt::Debug for WalletSigner {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("WalletSigner")
            .field("address", &self.address)
            .field("asks_a_person", &self.asks_a_person)
            .finish_non_exhaustive()
    }
}
