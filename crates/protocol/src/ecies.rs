//! ECIES over secp256k1 in the format of eciesjs and eciespy 0.4: `ephemeral key(65) ‖ nonce(16) ‖ tag(16) ‖ ciphertext`.

/// Why a blob could not be sealed or opened.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum EciesError {
    /// The recipient's public key is not a point of secp256k1.
    #[error("the recipient's public key is not a valid secp256k1 key")]
    PublicKey,
    /// The blob is empty: the provider has not published the key yet.
    #[error(
        "the encrypted key is empty: it is published when the task is settled (state Finished)"
    )]
    Empty,
    /// The blob was made for another key, cut or altered.
    #[error("the encrypted key was not made for this wallet, or it is damaged")]
    Open,
}

use crate::secret::SecretKey;

/// Encrypts `message` to a public key (33 or 65 bytes); the result is 97 bytes longer.
///
/// # Errors
/// [`EciesError::PublicKey`].
pub fn seal(public_key: &[u8], message: &[u8]) -> Result<Vec<u8>, EciesError> {
    ecies::encrypt(public_key, message).map_err(|_| EciesError::PublicKey)
}

/// Decrypts a blob with the recipient's key.
///
/// # Errors
/// [`EciesError::Empty`] or [`EciesError::Open`].
pub fn open(key: &SecretKey, blob: &[u8]) -> Result<Vec<u8>, EciesError> {
    if blob.is_empty() {
        return Err(EciesError::Empty);
    }
    // 65-byte key, 16-byte nonce, 16-byte tag: anything shorter cannot be a blob.
    if blob.len() < 97 {
        return Err(EciesError::Open);
    }
    let bytes = zeroize::Zeroizing::new(key.expose_bytes());
    ecies::decrypt(bytes.as_slice(), blob).map_err(|_| EciesError::Open)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `fine-tuning-broker.md` section 10.7: deterministic, eciesjs 0.4.18 and eciespy 0.4.7.
    #[test]
    fn blobs_of_the_published_libraries_open() {
        let key: SecretKey = "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"
            .parse()
            .unwrap();
        let expected: Vec<u8> = (0..32).collect();
        for blob in [
            "044f355bdcb7cc0af728ef3cceb9615d90684bb5b2ca5f859ab0f0b704075871aa385b6b1b8ead809ca67454d9683fcf2ba03456d6fe2c4abe2b07f0fbdbb2f1c1a0a1a2a3a4a5a6a7a8a9aaabacadaeaf627c38906a488dfd3a5c74dff79660fab5e28b620d4144740f8fb2963294548161f2b4714f6af8d09fadedeec9618ad7",
            "04ace3020a2b99f43355ce73352f6d01de10b888474882f1acc095a2a55b87b8b8f825ee07da4080c86f1113e4b625ec42167ec69211d69be88c684b49c5e4a264e6463e1a59c8546207373fc88e90e83c40b4ad1e5f2f8adc1ef2847a841dd677122bb4f4a6f7b6f575049f7c62fc0602c7d42f3d4743b1919327982e0214f566",
            "04b914d0412c3983151671c90404baecfff33549ae69962a21f96ea3d827d180fa93d5799181cd0ed2c2c7e83902f2fe9a493fdea67461caf7e4365e490b75880312bd1f81ef9c4cfd1b36b7d8c559de0d2901f065321c346f96c19716ead2365aaf15e26d0bde7647435a2c86acd13c37df70e490ac848385ff753418b50c62f5",
        ] {
            let blob = hex::decode(blob).unwrap();
            assert_eq!(open(&key, &blob).unwrap(), expected);
            let mut damaged = blob.clone();
            *damaged.last_mut().unwrap() ^= 1;
            assert_eq!(open(&key, &damaged), Err(EciesError::Open));
        }
        let blob = seal(&key.public_key(), &expected).unwrap();
        assert_eq!(blob.len(), 129);
        assert_eq!(open(&key, &blob).unwrap(), expected);
        assert_eq!(open(&SecretKey::random(), &blob), Err(EciesError::Open));
        assert_eq!(open(&key, &[]), Err(EciesError::Empty));
        assert_eq!(open(&key, &[4; 96]), Err(EciesError::Open));
        assert_eq!(seal(&[4; 65], b"x"), Err(EciesError::PublicKey));
    }
}
