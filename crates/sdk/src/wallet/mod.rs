//! Who pays and signs: a key in this process, or a device that keeps its key to itself. And the encrypted file that a
//! key is kept in.

mod keystore;

use std::time::Duration;

use alloy_primitives::{Address, B256, Signature};
use alloy_signer_local::PrivateKeySigner;
use zerog_chain::{SigningDevice, WalletSigner};
use zerog_protocol::{SecretKey, signing};

use crate::error::Result;

pub use keystore::{Keystore, parse_key};

/// The account that a broker acts for.
///
/// Made from a [`SecretKey`], or from whatever implements alloy's signer traits: a hardware wallet
/// (`alloy-signer-ledger`, `alloy-signer-trezor`) or a key service.
///
/// Such a device is asked for every signature; one that does not come within two minutes is an error, and one that is
/// not by the device's account is never sent. It cannot decrypt, so tasks go only to providers that seal the model to a
/// key derived from one of its signatures (`docs/protocol.md`, recipient keys); others are refused before anything is
/// paid.
///
/// ```
/// use std::sync::Arc;
/// use zerog_sdk::{Broker, BrokerOptions, Wallet};
///
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let devnet = zerog_devnet::Devnet::start(Default::default()).await?;
/// # let network = devnet.network();
/// # let device = alloy_signer_local::PrivateKeySigner::from_slice(&devnet.key(6).expose_bytes())?;
/// // A real one: `let device = LedgerSigner::new(HDPath::LedgerLive(0), Some(network.chain_id)).await?;`
/// let wallet = Wallet::device(Arc::new(device));
/// let broker = Broker::connect(BrokerOptions::custom(network).with_wallet(wallet)).await?;
/// broker.ledger.deposit_fund(zerog_sdk::amount::parse_0g("3")?).await?;
/// # devnet.shutdown().await;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Wallet {
    signer: WalletSigner,
    secret: Option<SecretKey>,
}

impl Wallet {
    /// An account on a device.
    #[must_use]
    pub fn device(device: SigningDevice) -> Self {
        Self {
            signer: WalletSigner::device(device),
            secret: None,
        }
    }

    /// The same account with another longest wait for a person to confirm (two minutes by default). A signed request is
    /// five minutes old at most when it arrives, so that longer waits than four are of no use.
    #[must_use]
    pub fn with_confirmation_timeout(mut self, timeout: Duration) -> Self {
        self.signer = self.signer.with_timeout(timeout);
        self
    }

    /// The account's address.
    #[must_use]
    pub fn address(&self) -> Address {
        self.signer.address()
    }

    /// The key, if it is in this process: then what is encrypted to the account can be opened.
    #[must_use]
    pub fn secret_key(&self) -> Option<&SecretKey> {
        self.secret.as_ref()
    }

    /// Who signs for the account's transactions.
    pub(crate) fn signer(&self) -> &WalletSigner {
        &self.signer
    }

    /// Whether a person may have to confirm each signature.
    pub(crate) fn asks_a_person(&self) -> bool {
        self.signer.asks_a_person()
    }

    /// Signs a hash as a personal message of 32 bytes; the wire form. `what` names it in errors.
    pub(crate) async fn sign_personal(&self, what: &'static str, hash: B256) -> Result<String> {
        let signature = self.sign_message(what, hash.as_slice()).await?;
        Ok(signing::signature_hex(&signature))
    }

    /// Signs a personal message of any length.
    pub(crate) async fn sign_message(
        &self,
        what: &'static str,
        message: &[u8],
    ) -> Result<Signature> {
        Ok(self.signer.sign_message(what, message).await?)
    }
}

impl From<SecretKey> for Wallet {
    fn from(key: SecretKey) -> Self {
        let signer = PrivateKeySigner::from_signing_key(key.signing_key().clone());
        Self {
            signer: signer.into(),
            secret: Some(key),
        }
    }
}

impl From<SigningDevice> for Wallet {
    fn from(device: SigningDevice) -> Self {
        Self::device(device)
    }
}
