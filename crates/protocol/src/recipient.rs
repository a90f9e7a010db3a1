//! Recipient keys: how a wallet that can sign and not decrypt gets a model that it can open (ours).
//!
//! A hardware wallet never lets its key out, so nothing can be encrypted to it. It signs one fixed text for each provider
//! instead, and the signature is the seed of a key pair that exists nowhere else: the same wallet signs the same text
//! again and has the same key again, on every machine, for as long as the wallet exists. The task carries the public key,
//! signed by the wallet; the enclave confirms it and seals the archive's key to it.

use alloy_primitives::{Address, B256, Signature, U256, keccak256};
use hkdf::Hkdf;
use k256::PublicKey;
use k256::elliptic_curve::sec1::ToEncodedPoint;
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::ids::TaskId;
use crate::secret::SecretKey;

/// The name under which a quote announces this.
pub const RECIPIENT_KEY_VERSION: &str = "v1";

const SEED_INFO: &[u8] = b"zerog/recipient-key/v1/seed";
const BINDING_LABEL: &str = "zerog/recipient-key/v1/task";
const CONFIRMATION_LABEL: &str = "zerog/recipient-key/v1/confirmed";

/// Not a public key in the form of [`public_key_text`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "a recipient key is 0x and 130 hexadecimal digits: a point of secp256k1, not compressed, starting with 04"
)]
pub struct RecipientKeyError;

/// What the wallet signs as a personal message to have its key for models of one provider. It is readable, because a
/// person reads it on a small screen and must not sign it anywhere else.
pub fn seed_message(chain_id: u64, provider: Address, user: Address) -> String {
    format!(
        "0G Compute fine-tuning: make the key that opens the models which provider {provider} trains for {user} on chain \
         {chain_id}. Whoever has this signature can open them: sign only in a program that you trust. \
         (zerog/recipient-key/v1)"
    )
}

/// The key pair that follows from a signature over [`seed_message`]. The recovery bit does not enter, because wallets
/// write it differently.
pub fn derive(signature: &Signature) -> SecretKey {
    let signature = signature.normalized_s();
    let mut scalars = Zeroizing::new([0u8; 64]);
    scalars[..32].copy_from_slice(&signature.r().to_be_bytes::<32>());
    scalars[32..].copy_from_slice(&signature.s().to_be_bytes::<32>());
    let seed = Hkdf::<Sha256>::new(None, &*scalars);
    // One number in 2^128 is no private key.
    for attempt in 0u8..=u8::MAX {
        let mut bytes = Zeroizing::new([0u8; 32]);
        seed.expand_multi_info(&[SEED_INFO, &[attempt]], &mut *bytes)
            .expect("32 bytes are within HKDF-SHA256's limit");
        if let Ok(key) = SecretKey::from_bytes(&bytes) {
            return key;
        }
    }
    unreachable!("256 derived numbers in a row are not outside the range of the curve")
}

/// A public key as it travels: `0x` and the 65 bytes.
pub fn public_key_text(public_key: &[u8; 65]) -> String {
    format!("0x{}", hex::encode(public_key))
}

/// Reads [`public_key_text`].
///
/// # Errors
/// [`RecipientKeyError`].
pub fn parse_public_key(text: &str) -> Result<[u8; 65], RecipientKeyError> {
    let mut bytes = [0u8; 65];
    let digits = text.strip_prefix("0x").ok_or(RecipientKeyError)?;
    hex::decode_to_slice(digits, &mut bytes).map_err(|_| RecipientKeyError)?;
    let point = PublicKey::from_sec1_bytes(&bytes).map_err(|_| RecipientKeyError)?;
    if point.to_encoded_point(false).as_bytes() != bytes {
        return Err(RecipientKeyError);
    }
    Ok(bytes)
}

/// The task for which a user names a recipient key: what he signs besides the request's own signature, which covers
/// neither provider nor model nor parameters.
#[derive(Debug, Clone, Copy)]
pub struct TaskBinding<'a> {
    /// Chain on which the fee is paid.
    pub chain_id: u64,
    /// Who trains.
    pub provider: Address,
    /// Who pays.
    pub user: Address,
    /// Nonce of the request, which no other task of the user has.
    pub nonce: U256,
    /// Dataset hash, as sent.
    pub dataset_hash: &'a str,
    /// Hash of the base model, as sent.
    pub model_hash: &'a str,
    /// Text of the training parameters, as sent.
    pub training_params: &'a str,
}

impl TaskBinding<'_> {
    /// The hash that the user signs as a personal message.
    pub fn hash(&self, public_key: &[u8; 65]) -> B256 {
        let mut payload = self.parties(BINDING_LABEL);
        payload.extend_from_slice(&self.nonce.to_be_bytes::<32>());
        for text in [self.dataset_hash, self.model_hash, self.training_params] {
            payload.extend_from_slice(keccak256(text).as_slice());
        }
        payload.extend_from_slice(public_key);
        keccak256(payload)
    }

    fn parties(&self, label: &str) -> Vec<u8> {
        parties(label, self.chain_id, self.provider, self.user)
    }
}

/// The hash that the enclave signs as a personal message to confirm that it seals a task's model to a recipient key.
/// Without it nobody can tell whether the key was removed from the request on its way.
pub fn confirmation_hash(
    chain_id: u64,
    provider: Address,
    user: Address,
    task: TaskId,
    public_key: &[u8; 65],
) -> B256 {
    let mut payload = parties(CONFIRMATION_LABEL, chain_id, provider, user);
    payload.extend_from_slice(task.as_bytes());
    payload.extend_from_slice(public_key);
    keccak256(payload)
}

fn parties(label: &str, chain_id: u64, provider: Address, user: Address) -> Vec<u8> {
    let mut payload = label.as_bytes().to_vec();
    payload.extend_from_slice(&chain_id.to_be_bytes());
    payload.extend_from_slice(provider.as_slice());
    payload.extend_from_slice(user.as_slice());
    payload
}

#[cfg(test)]
mod tests {
    use alloy_primitives::{address, eip191_hash_message};

    use super::*;

    const PROVIDER: Address = address!("3C44CdDdB6a900fa2b585dd299e03d12FA4293BC");

    fn user() -> SecretKey {
        "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"
            .parse()
            .unwrap()
    }

    fn seed(chain_id: u64, provider: Address) -> Signature {
        let message = seed_message(chain_id, provider, user().address());
        user().sign_digest(eip191_hash_message(message))
    }

    /// Whoever changes one of these locks people out of their models.
    #[test]
    fn the_text_and_the_key_never_change() {
        assert_eq!(
            seed_message(16661, PROVIDER, user().address()),
            "0G Compute fine-tuning: make the key that opens the models which provider 0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC trains for 0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266 on chain 16661. Whoever has this signature can open them: sign only in a program that you trust. (zerog/recipient-key/v1)"
        );
        assert_eq!(
            derive(&seed(16661, PROVIDER)).address().to_string(),
            "0x79AAD20e333AE9016f7D236462bd0e77e814D2e2"
        );
    }

    #[test]
    fn every_provider_and_chain_has_a_key_of_its_own_and_the_form_of_the_signature_does_not_matter()
    {
        let signature = seed(16661, PROVIDER);
        let key = derive(&signature);
        let order = k256_order();
        let other_form = Signature::new(signature.r(), order - signature.s(), !signature.v());
        assert_eq!(derive(&other_form).address(), key.address());
        for other in [seed(16602, PROVIDER), seed(16661, user().address())] {
            assert_ne!(derive(&other).address(), key.address());
        }
        assert_ne!(key.address(), user().address());
    }

    fn k256_order() -> U256 {
        U256::from_str_radix(
            "fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141",
            16,
        )
        .unwrap()
    }

    #[test]
    fn public_keys_are_read_in_one_form_only() {
        let key = user().public_key();
        let text = public_key_text(&key);
        assert_eq!(parse_public_key(&text), Ok(key));
        let mut off_curve = key;
        off_curve[64] ^= 1;
        let mut hybrid = key;
        hybrid[0] = 6;
        for bad in [
            "",
            "0x04",
            &text[2..],
            &public_key_text(&off_curve),
            &public_key_text(&hybrid),
            &format!("{text}00"),
        ] {
            assert_eq!(parse_public_key(bad), Err(RecipientKeyError), "{bad}");
        }
    }

    #[test]
    fn a_binding_covers_every_member() {
        let key = user().public_key();
        let binding = TaskBinding {
            chain_id: 1,
            provider: PROVIDER,
            user: user().address(),
            nonce: U256::from(7),
            dataset_hash: "0xaa",
            model_hash: "0xbb",
            training_params: "{}",
        };
        let changed = [
            TaskBinding {
                chain_id: 2,
                ..binding
            },
            TaskBinding {
                provider: Address::ZERO,
                ..binding
            },
            TaskBinding {
                user: Address::ZERO,
                ..binding
            },
            TaskBinding {
                nonce: U256::from(8),
                ..binding
            },
            TaskBinding {
                dataset_hash: "0xab",
                ..binding
            },
            TaskBinding {
                model_hash: "0xbc",
                ..binding
            },
            TaskBinding {
                training_params: "{ }",
                ..binding
            },
        ];
        for other in changed {
            assert_ne!(other.hash(&key), binding.hash(&key), "{other:?}");
        }
        assert_ne!(
            binding.hash(&SecretKey::random().public_key()),
            binding.hash(&key)
        );
        let task = TaskId::random();
        let confirmed = |task, key| confirmation_hash(1, PROVIDER, user().address(), task, key);
        assert_ne!(confirmed(task, &key), confirmed(TaskId::random(), &key));
        assert_ne!(
            confirmed(task, &key),
            confirmed(task, &SecretKey::random().public_key())
        );
    }
}
