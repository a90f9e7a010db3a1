//! Wallet keys in files: the encrypted Web3 secret storage format, version 3 (scrypt, AES-128-CTR, Keccak).

use aes::Aes128;
use alloy_primitives::{Address, keccak256};
use ctr::Ctr128BE;
use ctr::cipher::{KeyIvInit, StreamCipher};
use rand::RngCore;
use serde::{Deserialize, Serialize};
use zerog_protocol::SecretKey;
use zeroize::Zeroizing;

use crate::error::{Error, Result};

/// Work factor of new files: 2^15, about 0.1 s and 32 MiB.
const LOG_N: u8 = 15;
/// Highest accepted work factor: 2^20, 1 GiB.
const MAX_LOG_N: u8 = 20;

/// An encrypted key file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keystore {
    version: u32,
    id: String,
    address: String,
    crypto: Crypto,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Crypto {
    cipher: String,
    cipherparams: CipherParams,
    ciphertext: String,
    kdf: String,
    kdfparams: KdfParams,
    mac: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct CipherParams {
    iv: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct KdfParams {
    dklen: usize,
    n: u64,
    r: u32,
    p: u32,
    salt: String,
}

impl Keystore {
    /// Encrypts a key under a password.
    ///
    /// # Errors
    /// [`Error::InvalidKey`] for an empty password.
    pub fn encrypt(key: &SecretKey, password: &str) -> Result<Self> {
        if password.is_empty() {
            return Err(Error::InvalidKey {
                reason: "the password is empty".into(),
            });
        }
        let (mut salt, mut iv) = ([0u8; 32], [0u8; 16]);
        rand::rng().fill_bytes(&mut salt);
        rand::rng().fill_bytes(&mut iv);
        let derived = derive(password, &salt, LOG_N, 8, 1)?;
        let mut ciphertext = Zeroizing::new(key.expose_bytes());
        apply_cipher(&derived, &iv, ciphertext.as_mut_slice());
        Ok(Self {
            version: 3,
            id: uuid::Uuid::new_v4().to_string(),
            address: hex::encode(key.address()),
            crypto: Crypto {
                cipher: "aes-128-ctr".into(),
                cipherparams: CipherParams {
                    iv: hex::encode(iv),
                },
                mac: hex::encode(mac(&derived, ciphertext.as_slice())),
                ciphertext: hex::encode(ciphertext.as_slice()),
                kdf: "scrypt".into(),
                kdfparams: KdfParams {
                    dklen: 32,
                    n: 1 << LOG_N,
                    r: 8,
                    p: 1,
                    salt: hex::encode(salt),
                },
            },
        })
    }

    /// The address of the key inside, readable without the password.
    #[must_use]
    pub fn address(&self) -> Option<Address> {
        self.address.parse().ok()
    }

    /// Decrypts the key.
    ///
    /// # Errors
    /// [`Error::InvalidKey`]: wrong password, or a file of another make.
    pub fn decrypt(&self, password: &str) -> Result<SecretKey> {
        let refused = |reason: &str| Error::InvalidKey {
            reason: reason.to_owned(),
        };
        if self.version != 3 || self.crypto.cipher != "aes-128-ctr" || self.crypto.kdf != "scrypt" {
            return Err(refused(
                "the keystore is not version 3 with scrypt and aes-128-ctr",
            ));
        }
        let params = &self.crypto.kdfparams;
        let log_n = u8::try_from(params.n.trailing_zeros()).unwrap_or(u8::MAX);
        let memory = 128u64
            .saturating_mul(params.n)
            .saturating_mul(u64::from(params.r));
        if !params.n.is_power_of_two()
            || log_n > MAX_LOG_N
            || params.p > 16
            || memory > 1 << 30
            || params.dklen != 32
        {
            return Err(refused(
                "the keystore asks for more work than is acceptable",
            ));
        }
        let damaged = || refused("the keystore is damaged");
        let decode = |text: &str| hex::decode(text).map_err(|_| damaged());
        let iv: [u8; 16] = decode(&self.crypto.cipherparams.iv)?
            .try_into()
            .map_err(|_| damaged())?;
        let ciphertext = decode(&self.crypto.ciphertext)?;
        let mut bytes =
            Zeroizing::new(<[u8; 32]>::try_from(ciphertext.as_slice()).map_err(|_| damaged())?);
        let derived = derive(password, &decode(&params.salt)?, log_n, params.r, params.p)?;
        if mac(&derived, bytes.as_slice()).as_slice() != decode(&self.crypto.mac)? {
            return Err(refused("the password is wrong"));
        }
        apply_cipher(&derived, &iv, bytes.as_mut_slice());
        SecretKey::from_bytes(&bytes).map_err(|error| refused(&error.to_string()))
    }
}

/// Reads a key from text as it stands in files and variables; the text is not repeated in errors.
///
/// # Errors
/// [`Error::InvalidKey`].
pub fn parse_key(text: &str) -> Result<SecretKey> {
    text.parse().map_err(
        |error: zerog_protocol::secret::SecretKeyError| Error::InvalidKey {
            reason: error.to_string(),
        },
    )
}

fn derive(password: &str, salt: &[u8], log_n: u8, r: u32, p: u32) -> Result<Zeroizing<[u8; 32]>> {
    let refused = |_| Error::InvalidKey {
        reason: "the keystore's scrypt parameters are impossible".into(),
    };
    let params = scrypt::Params::new(log_n, r, p, 32).map_err(refused)?;
    let mut derived = Zeroizing::new([0u8; 32]);
    scrypt::scrypt(password.as_bytes(), salt, &params, derived.as_mut_slice())
        .expect("32 bytes is a valid output length");
    Ok(derived)
}

fn apply_cipher(derived: &[u8; 32], iv: &[u8; 16], bytes: &mut [u8]) {
    let mut key = [0u8; 16];
    key.copy_from_slice(&derived[..16]);
    Ctr128BE::<Aes128>::new(&key.into(), iv.into()).apply_keystream(bytes);
}

fn mac(derived: &[u8; 32], ciphertext: &[u8]) -> [u8; 32] {
    keccak256([&derived[16..], ciphertext].concat()).0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made with other implementations: Python's scrypt and Keccak, OpenSSL's AES.
    #[test]
    fn a_keystore_of_another_make_opens() {
        let text = r#"{"version":3,"id":"3198bc9c-6672-5ab3-d995-4942343ae5b6","address":"f39fd6e51aad88f6f4ce6ab8827279cfffb92266","crypto":{"cipher":"aes-128-ctr","cipherparams":{"iv":"101112131415161718191a1b1c1d1e1f"},"ciphertext":"682607f569c2ccd07575691c317c4d66f32d7cfd9a69aed8da603213e2732385","kdf":"scrypt","kdfparams":{"dklen":32,"n":32768,"r":8,"p":1,"salt":"000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"},"mac":"36830d21e1d7e42c518cfbba3ed49e408962529367b2486243a5de53654f2fe7"}}"#;
        let keystore: Keystore = serde_json::from_str(text).unwrap();
        let key = keystore.decrypt("testpassword").unwrap();
        assert_eq!(Some(key.address()), keystore.address());
        assert!(keystore.decrypt("testpasswor").is_err());
    }

    #[test]
    fn keys_round_trip_and_wrong_passwords_are_named() {
        let key = SecretKey::random();
        let keystore = Keystore::encrypt(&key, "pass").unwrap();
        let text = serde_json::to_string(&keystore).unwrap();
        assert!(!text.contains(&hex::encode(key.expose_bytes())));
        let keystore: Keystore = serde_json::from_str(&text).unwrap();
        assert_eq!(keystore.address(), Some(key.address()));
        assert_eq!(keystore.decrypt("pass").unwrap().address(), key.address());
        assert!(
            keystore
                .decrypt("Pass")
                .unwrap_err()
                .to_string()
                .contains("password is wrong")
        );
        assert!(Keystore::encrypt(&key, "").is_err());
        let mut greedy = keystore.clone();
        greedy.crypto.kdfparams.n = 1 << 30;
        assert!(
            greedy
                .decrypt("pass")
                .unwrap_err()
                .to_string()
                .contains("more work")
        );
    }

    #[test]
    fn bad_keys_do_not_appear_in_errors() {
        let error = parse_key("0xsecretsecret").unwrap_err();
        assert!(!error.to_string().contains("secretsecret"), "{error}");
        assert_eq!(error.code(), "invalid_key");
    }
}
