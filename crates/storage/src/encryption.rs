//! Client-side encryption of stored objects, as the published storage clients do it: a header, then AES-256 in counter
//! mode. There is no authentication tag; integrity comes from the root.
//!
//! | version | header | AES key |
//! |---|---|---|
//! | 1 | `01` ‖ nonce (16) | given |
//! | 2 | `02` ‖ compressed ephemeral key (33) ‖ nonce (16) | HKDF-SHA256 of the x-coordinate of the shared point |
//!
//! Nonce and ephemeral key are derived from the sender's secret and the content, so that the same file encrypted again
//! is the same object: an interrupted upload goes on, and nothing is paid twice. Different contents have different
//! nonces; all that shows is that two objects of one sender are equal.

use std::{
    fs::File,
    io::{self, Read, Seek, Write},
    path::Path,
};

use aes::Aes256;
use ctr::{
    Ctr128BE,
    cipher::{KeyIvInit, StreamCipher, StreamCipherSeek},
};
use hkdf::Hkdf;
use k256::{PublicKey, ecdh::diffie_hellman, elliptic_curve::sec1::ToEncodedPoint};
use sha2::Sha256;
use zerog_protocol::{FileKey, SecretKey};
use zeroize::Zeroizing;

use crate::{Error, FileTree};

const NONCE_BYTES: usize = 16;
const COMPRESSED_KEY_BYTES: usize = 33;
/// Longest header: version, ephemeral key, nonce.
const MAX_HEADER_BYTES: usize = 1 + COMPRESSED_KEY_BYTES + NONCE_BYTES;
/// Fixed by the published clients.
const ECIES_INFO: &[u8] = b"0g-storage-client/ecies/v1/aes-256";
const NONCE_INFO: &[u8] = b"zerog/storage/nonce/v1";
const EPHEMERAL_INFO: &[u8] = b"zerog/storage/ephemeral/v1";
/// Bytes decrypted at a time.
const BLOCK_BYTES: usize = 1 << 20;

/// How a file is encrypted before it is stored.
#[derive(Clone, Debug)]
pub enum Encryption {
    /// Version 1: with a key that the readers have.
    Key(FileKey),
    /// Version 2: for the holder of a private key.
    Recipient {
        /// Public key of the reader, SEC 1 encoded, compressed or not; [`SecretKey::public_key`] of the own wallet for
        /// files that only the owner shall read.
        public_key: Vec<u8>,
        /// The sender's wallet, from which the ephemeral key is derived.
        sender: SecretKey,
    },
}

/// What opens an encrypted object.
#[derive(Clone, Debug)]
pub enum Decryption {
    /// The key of version 1.
    Key(FileKey),
    /// The private key that version 2 was encrypted for.
    Wallet(SecretKey),
}

impl Encryption {
    /// The cipher of a file whose plaintext has this tree.
    pub(crate) fn cipher(&self, plain: &FileTree) -> Result<Cipher, Error> {
        let content = [plain.root().as_slice(), &plain.shape().size().to_be_bytes()].concat();
        match self {
            Self::Key(key) => {
                let mut nonce = [0; NONCE_BYTES];
                derive(key.expose_bytes(), &[NONCE_INFO, &content], &mut nonce);
                Ok(Cipher::version_1(key, nonce))
            }
            Self::Recipient { public_key, sender } => {
                let recipient =
                    PublicKey::from_sec1_bytes(public_key).map_err(|_| Error::InvalidRecipient)?;
                let recipient_bytes = recipient.to_encoded_point(true);
                let sender = Zeroizing::new(sender.expose_bytes());
                let mut nonce = [0; NONCE_BYTES];
                derive(
                    &*sender,
                    &[NONCE_INFO, recipient_bytes.as_bytes(), &content],
                    &mut nonce,
                );
                // One number in 2^128 is no private key.
                for attempt in 0_u8..=u8::MAX {
                    let mut ephemeral = Zeroizing::new([0; 32]);
                    let info = [
                        EPHEMERAL_INFO,
                        recipient_bytes.as_bytes(),
                        &content,
                        &[attempt],
                    ];
                    derive(&*sender, &info, &mut *ephemeral);
                    if let Ok(ephemeral) = SecretKey::from_bytes(&ephemeral) {
                        return Ok(Cipher::version_2(&ephemeral, &recipient, nonce));
                    }
                }
                unreachable!("256 derived numbers in a row are not outside the range of the curve")
            }
        }
    }
}

fn derive(secret: &[u8], info: &[&[u8]], output: &mut [u8]) {
    Hkdf::<Sha256>::new(None, secret)
        .expand_multi_info(info, output)
        .expect("the output is far shorter than HKDF's limit");
}

/// A header and the key stream behind it.
#[derive(Clone)]
pub(crate) struct Cipher {
    header: Vec<u8>,
    key: FileKey,
    nonce: [u8; NONCE_BYTES],
}

impl std::fmt::Debug for Cipher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Cipher([redacted])")
    }
}

impl Cipher {
    fn version_1(key: &FileKey, nonce: [u8; NONCE_BYTES]) -> Self {
        Self {
            header: [&[1][..], &nonce].concat(),
            key: key.clone(),
            nonce,
        }
    }

    fn version_2(ephemeral: &SecretKey, recipient: &PublicKey, nonce: [u8; NONCE_BYTES]) -> Self {
        let public = PublicKey::from(ephemeral.signing_key().verifying_key());
        Self {
            header: [&[2][..], public.to_encoded_point(true).as_bytes(), &nonce].concat(),
            key: shared_key(ephemeral, recipient),
            nonce,
        }
    }

    /// The cipher of a stored object that begins with these bytes; `None` when they are no header that the key fits.
    fn of_object(beginning: &[u8], key: &Decryption) -> Option<Self> {
        let (version, rest) = beginning.split_first()?;
        match (version, key) {
            (1, Decryption::Key(key)) => Some(Self::version_1(key, *rest.first_chunk()?)),
            (2, Decryption::Wallet(wallet)) => {
                let (ephemeral, rest) = rest.split_at_checked(COMPRESSED_KEY_BYTES)?;
                let nonce: [u8; NONCE_BYTES] = *rest.first_chunk()?;
                let public = PublicKey::from_sec1_bytes(ephemeral).ok()?;
                Some(Self {
                    header: [&[2][..], ephemeral, &nonce].concat(),
                    key: shared_key(wallet, &public),
                    nonce,
                })
            }
            _ => None,
        }
    }

    pub(crate) fn header(&self) -> &[u8] {
        &self.header
    }

    /// Encrypts or decrypts bytes that begin at `offset` of the plaintext.
    pub(crate) fn apply(&self, bytes: &mut [u8], offset: u64) {
        let mut stream =
            Ctr128BE::<Aes256>::new(self.key.expose_bytes().into(), &self.nonce.into());
        stream.seek(offset);
        stream.apply_keystream(bytes);
    }
}

/// AES key of version 2: HKDF over the x-coordinate of the shared point.
fn shared_key(own: &SecretKey, other: &PublicKey) -> FileKey {
    let shared = diffie_hellman(own.signing_key().as_nonzero_scalar(), other.as_affine());
    let mut key = Zeroizing::new([0; 32]);
    derive(shared.raw_secret_bytes(), &[ECIES_INFO], &mut *key);
    FileKey::from_bytes(*key)
}

/// Decrypts the stored object at `object` to the new file `plain`. Blocking; memory does not grow with the file.
///
/// # Errors
///
/// [`Error::NotEncrypted`] when the object has no header that the key fits; [`Error::File`].
pub fn decrypt_file(object: &Path, plain: &mut File, key: &Decryption) -> Result<u64, Error> {
    let reader = File::open(object).map_err(|source| Error::File {
        path: object.to_owned(),
        source,
    })?;
    decrypt_open_file(reader, object, plain, key)
}

/// As [`decrypt_file`], from the beginning of a file that is open. Where a lock binds everybody, as on Windows, a file
/// that this process has locked is readable through the handle that holds the lock alone.
pub(crate) fn decrypt_open_file(
    mut reader: File,
    object: &Path,
    plain: &mut File,
    key: &Decryption,
) -> Result<u64, Error> {
    let failed = |source| Error::File {
        path: object.to_owned(),
        source,
    };
    reader.rewind().map_err(failed)?;
    let mut beginning = Vec::new();
    Read::by_ref(&mut reader)
        .take(MAX_HEADER_BYTES as u64)
        .read_to_end(&mut beginning)
        .map_err(failed)?;
    let cipher = Cipher::of_object(&beginning, key).ok_or(Error::NotEncrypted)?;
    let mut rest = io::Read::chain(&beginning[cipher.header().len()..], reader);
    let mut block = vec![0; BLOCK_BYTES];
    let mut offset = 0;
    loop {
        let read = rest.read(&mut block).map_err(failed)?;
        if read == 0 {
            return Ok(offset);
        }
        cipher.apply(&mut block[..read], offset);
        plain.write_all(&block[..read]).map_err(failed)?;
        offset += read as u64;
    }
}

#[cfg(test)]
mod tests {
    use alloy_primitives::{B256, hex};

    use super::*;
    use crate::{Content, FileShape, content::StoredObject};

    fn plain() -> Vec<u8> {
        (0..64).map(|i| ((i * 31 + 7) % 251) as u8).collect()
    }

    fn nonce() -> [u8; NONCE_BYTES] {
        std::array::from_fn(|i| 0xa0 + i as u8)
    }

    fn key() -> FileKey {
        FileKey::from_bytes(std::array::from_fn(|i| i as u8))
    }

    fn object(cipher: Cipher, content: &[u8]) -> Vec<u8> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        let object = StoredObject::open(file.path()).unwrap().encrypted(cipher);
        let mut bytes = vec![0; object.length() as usize];
        object.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    fn root(bytes: &[u8]) -> B256 {
        FileTree::read(FileShape::new(bytes.len() as u64).unwrap(), bytes)
            .unwrap()
            .root()
    }

    fn opened(object: &[u8], key: &Decryption) -> Result<Vec<u8>, Error> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), object).unwrap();
        let target = tempfile::NamedTempFile::new().unwrap();
        decrypt_file(file.path(), &mut target.reopen().unwrap(), key)?;
        Ok(std::fs::read(target.path()).unwrap())
    }

    #[test]
    fn version_1_is_the_published_vector() {
        let object = object(Cipher::version_1(&key(), nonce()), &plain());
        let published = "01a0a1a2a3a4a5a6a7a8a9aaabacadaeafdbb94499f51abded0b68aae48b94523de0f1d44f01dd2ef21597c4d11da96b486ff1ddfa9ff12cde86b936d5d97c31a03f360e19ae31ab1486f84a877ecec088";
        assert_eq!(hex::encode(&object), published);
        assert_eq!(
            root(&object).to_string(),
            "0xbf7d98e4f2b15d524316dc84c07d01880aecccc7fb6efd555ea96670cd6e2f88"
        );
        assert_eq!(opened(&object, &Decryption::Key(key())).unwrap(), plain());
    }

    #[test]
    fn version_2_is_the_published_vector() {
        let recipient = SecretKey::from_bytes(&[0x11; 32]).unwrap();
        let ephemeral = SecretKey::from_bytes(&[0x22; 32]).unwrap();
        let public = PublicKey::from_sec1_bytes(&recipient.public_key()).unwrap();
        let cipher = Cipher::version_2(&ephemeral, &public, nonce());
        assert_eq!(
            hex::encode(cipher.key.expose_bytes()),
            "ab936d89723fc2b1ce02c58a236fe8b91bd815b46f985d559c6e3524ba66867d"
        );
        let object = object(cipher, &plain());
        let published = "0202466d7fcae563e5cb09a0d1870bb580344804617879a14949cf22285f1bae3f27a0a1a2a3a4a5a6a7a8a9aaabacadaeaf63ec7439630d01b1e13c7fa1a5e378a2cab3257769554637a3f2c3bbe67599dee275b7deabb2235ec32d61c2a966f819373a0915665293bebd3a068a76d890c1";
        assert_eq!(hex::encode(&object), published);
        assert_eq!(
            root(&object).to_string(),
            "0x6e36b4ac152fdef99e701f5e337570118643c48671bafb366b91ccf24acd47c2"
        );
        assert_eq!(
            opened(&object, &Decryption::Wallet(recipient)).unwrap(),
            plain()
        );
    }

    #[test]
    fn the_counter_carries_and_wraps_as_published() {
        let carries = [[0; 8], [0xff; 8]].concat().try_into().unwrap();
        let vectors = [
            (
                carries,
                "a6fbdb5cfde07d1b58fd362177bcffdf511dd5ef9a682b7da49f91c86c4f7ac3",
            ),
            (
                [0xff; 16],
                "e999e41d4ca770da5387117b5d8f57eef29000b62a499fd0a9f39a6add2e7780",
            ),
        ];
        for (nonce, key_stream) in vectors {
            let cipher = Cipher::version_1(&key(), nonce);
            let mut bytes = [0; 32];
            cipher.apply(&mut bytes, 0);
            assert_eq!(hex::encode(bytes), key_stream);
            for offset in 0..32 {
                let mut tail = vec![0; 32 - offset];
                cipher.apply(&mut tail, offset as u64);
                assert_eq!(tail, bytes[offset..], "from the middle of a block");
            }
        }
    }

    #[test]
    fn encrypting_again_gives_the_same_object_and_other_content_another_nonce() {
        let wallet = SecretKey::from_bytes(&[0x33; 32]).unwrap();
        let reader = SecretKey::from_bytes(&[0x44; 32]).unwrap();
        let for_reader = Encryption::Recipient {
            public_key: reader.public_key().to_vec(),
            sender: wallet,
        };
        let tree = |bytes: &[u8]| {
            FileTree::read(FileShape::new(bytes.len() as u64).unwrap(), bytes).unwrap()
        };
        for encryption in [Encryption::Key(key()), for_reader] {
            let header = |bytes: &[u8]| encryption.cipher(&tree(bytes)).unwrap().header().to_vec();
            assert_eq!(header(b"one"), header(b"one"));
            assert_ne!(header(b"one"), header(b"two"));
            assert_ne!(header(b"one"), header(b"one\0"), "the size counts too");
        }
    }

    #[test]
    fn the_wrong_kind_of_key_and_a_short_object_are_refused() {
        let encrypted = object(Cipher::version_1(&key(), nonce()), &plain());
        let wallet = Decryption::Wallet(SecretKey::random());
        assert!(matches!(
            opened(&encrypted, &wallet),
            Err(Error::NotEncrypted)
        ));
        let short = opened(&encrypted[..10], &Decryption::Key(key()));
        assert!(matches!(short, Err(Error::NotEncrypted)));
    }

    #[test]
    fn fragments_continue_the_key_stream() {
        let content: Vec<u8> = (0..3000_u32).map(|i| (i * 31 % 251) as u8).collect();
        let cipher = || Cipher::version_1(&key(), nonce());
        let whole = object(cipher(), &content);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &content).unwrap();
        let fragments = StoredObject::open(file.path())
            .unwrap()
            .encrypted(cipher())
            .fragments(1024)
            .unwrap();
        let mut joined = Vec::new();
        for fragment in fragments {
            let mut bytes = vec![0; fragment.length() as usize];
            fragment.read_exact_at(&mut bytes, 0).unwrap();
            joined.extend(bytes);
        }
        assert_eq!(joined, whole);
    }
}
