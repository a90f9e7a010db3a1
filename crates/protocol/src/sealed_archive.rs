//! The encrypted file of the protocol: chunked AES-256-GCM with one signature over all tags.
//!
//! Layout: `signature(65) ‖ nonce(12) ‖ chunk_0 ‖ chunk_1 ‖ …`; a chunk is the ciphertext of exactly 64 MiB of plaintext
//! (the last one 1 byte to 64 MiB) followed by its 16-byte tag; the nonce counts up by one per chunk, big-endian. The
//! signature is ECDSA over the Keccak hash of all tags, without the personal-message prefix, v 0 or 1. Readers accept
//! 27 and 28 too. The same layout without a signature (65 zero bytes) seals files at rest. A sender whose wallet signs
//! personal messages only signs the tags' hash as one ([`write_signature`], ours).

use std::io::{self, Read, Seek, SeekFrom, Write};

use aes_gcm::aead::{AeadInPlace, KeyInit};
use aes_gcm::{Aes256Gcm, Nonce};
use alloy_primitives::{Address, B256, Keccak256, Signature, eip191_hash_message};
use rand::RngCore;
use zeroize::Zeroizing;

use crate::limits::ARCHIVE_CHUNK_BYTES;
use crate::secret::{FileKey, SecretKey};
use crate::signing::{parse_signature_bytes, recover};

const SIGNATURE_BYTES: usize = 65;
const NONCE_BYTES: usize = 12;
const TAG_BYTES: usize = 16;
/// Bytes in front of the first chunk.
pub const HEADER_BYTES: usize = SIGNATURE_BYTES + NONCE_BYTES;

/// Why an encrypted file could not be written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArchiveError {
    /// Reading or writing failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Nothing to encrypt.
    #[error("there is nothing to encrypt: the plaintext is empty")]
    EmptyPlaintext,
    /// The file ends before its first chunk or inside a tag.
    #[error("the encrypted file is cut short: download it again")]
    Truncated,
    /// A chunk does not authenticate: wrong key, or altered bytes.
    #[error(
        "chunk {index} does not decrypt: the key belongs to another file, or the file was altered; download it again"
    )]
    Chunk {
        /// Number of the chunk, from 0.
        index: u64,
    },
    /// The tags are signed by somebody else.
    #[error(
        "the file is not signed by the expected enclave: signed by {found}, expected {expected}"
    )]
    Signer {
        /// Who signed; zero when the signature is malformed.
        found: Address,
        /// Who should have signed.
        expected: Address,
    },
}

/// Encrypts everything from `plaintext` to `output` and signs the tags, whose Keccak hash it returns. Memory use is one
/// chunk.
///
/// # Errors
/// [`ArchiveError::EmptyPlaintext`] or [`ArchiveError::Io`]; the output is then incomplete and must be dropped.
pub fn encrypt(
    plaintext: &mut impl Read,
    output: &mut (impl Write + Seek),
    key: &FileKey,
    signer: &SecretKey,
) -> Result<B256, ArchiveError> {
    let mut nonce = [0u8; NONCE_BYTES];
    rand::rng().fill_bytes(&mut nonce);
    encrypt_with_nonce(plaintext, output, key, nonce, Some(signer))
}

/// Encrypts a file at rest: as [`encrypt`], with zeros in place of the signature.
///
/// # Errors
/// As [`encrypt`].
pub fn encrypt_unsigned(
    plaintext: &mut impl Read,
    output: &mut (impl Write + Seek),
    key: &FileKey,
) -> Result<B256, ArchiveError> {
    let mut nonce = [0u8; NONCE_BYTES];
    rand::rng().fill_bytes(&mut nonce);
    encrypt_with_nonce(plaintext, output, key, nonce, None)
}

/// Puts a signature into the file that begins at `start` of `output`, and goes to its end.
///
/// # Errors
/// What writing failed with.
pub fn write_signature(
    output: &mut (impl Write + Seek),
    start: u64,
    signature: &Signature,
) -> io::Result<()> {
    let mut bytes = signature.as_bytes();
    bytes[64] -= 27;
    output.seek(SeekFrom::Start(start))?;
    output.write_all(&bytes)?;
    output.seek(SeekFrom::End(0))?;
    output.flush()
}

fn encrypt_with_nonce(
    plaintext: &mut impl Read,
    output: &mut (impl Write + Seek),
    key: &FileKey,
    first_nonce: [u8; NONCE_BYTES],
    signer: Option<&SecretKey>,
) -> Result<B256, ArchiveError> {
    let cipher = Aes256Gcm::new(key.expose_bytes().into());
    let start = output.stream_position()?;
    output.write_all(&[0u8; SIGNATURE_BYTES])?;
    output.write_all(&first_nonce)?;
    let mut nonce = first_nonce;
    let mut tags = Keccak256::new();
    let mut buffer = Zeroizing::new(Vec::new());
    let mut chunks = 0u64;
    loop {
        buffer.clear();
        plaintext
            .take(ARCHIVE_CHUNK_BYTES as u64)
            .read_to_end(&mut buffer)?;
        if buffer.is_empty() {
            break;
        }
        let tag = cipher
            .encrypt_in_place_detached(&Nonce::from(nonce), b"", &mut buffer)
            .map_err(|_| io::Error::other("chunk too large for AES-GCM"))?;
        output.write_all(&buffer)?;
        output.write_all(&tag)?;
        tags.update(tag);
        increment(&mut nonce);
        chunks += 1;
        if buffer.len() < ARCHIVE_CHUNK_BYTES {
            break;
        }
    }
    if chunks == 0 {
        return Err(ArchiveError::EmptyPlaintext);
    }
    let tags_hash = tags.finalize();
    match signer {
        Some(signer) => write_signature(output, start, &signer.sign_digest(tags_hash))?,
        None => output.flush()?,
    }
    Ok(tags_hash)
}

/// What a decrypted file says about its origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decrypted {
    /// Keccak hash of all tags.
    pub tags_hash: B256,
    /// The signature; `None` when it is malformed or absent.
    signature: Option<Signature>,
}

impl Decrypted {
    /// Who signed the tags' hash as it is.
    pub fn signer(&self) -> Option<Address> {
        self.signer_of(self.tags_hash)
    }

    /// Who signed the tags' hash as a personal message.
    pub fn personal_signer(&self) -> Option<Address> {
        self.signer_of(eip191_hash_message(self.tags_hash))
    }

    fn signer_of(&self, digest: B256) -> Option<Address> {
        let (address, _) = recover(self.signature.as_ref()?, digest).ok()?;
        Some(address)
    }
}

/// Decrypts `input` to `output` and reports who signed it. The caller must hold the output back (temporary file) until it
/// has compared the signer; [`decrypt_signed_by`] does the comparison.
///
/// # Errors
/// [`ArchiveError::Truncated`], [`ArchiveError::Chunk`] or [`ArchiveError::Io`].
pub fn decrypt(
    input: &mut impl Read,
    output: &mut impl Write,
    key: &FileKey,
) -> Result<Decrypted, ArchiveError> {
    let cipher = Aes256Gcm::new(key.expose_bytes().into());
    let mut header = [0u8; HEADER_BYTES];
    input.read_exact(&mut header).map_err(truncated)?;
    let (signature, nonce) = header.split_at(SIGNATURE_BYTES);
    let mut nonce: [u8; NONCE_BYTES] = nonce.try_into().map_err(|_| ArchiveError::Truncated)?;
    let mut tags = Keccak256::new();
    let mut buffer = Zeroizing::new(Vec::new());
    let mut index = 0u64;
    loop {
        buffer.clear();
        input
            .take((ARCHIVE_CHUNK_BYTES + TAG_BYTES) as u64)
            .read_to_end(&mut buffer)?;
        if buffer.is_empty() && index > 0 {
            break;
        }
        let Some(length) = buffer
            .len()
            .checked_sub(TAG_BYTES)
            .filter(|length| *length > 0)
        else {
            return Err(ArchiveError::Truncated);
        };
        let is_last = length < ARCHIVE_CHUNK_BYTES;
        let (ciphertext, tag) = buffer.split_at_mut(length);
        cipher
            .decrypt_in_place_detached(&Nonce::from(nonce), b"", ciphertext, (&*tag).into())
            .map_err(|_| ArchiveError::Chunk { index })?;
        output.write_all(ciphertext)?;
        tags.update(&*tag);
        increment(&mut nonce);
        index += 1;
        if is_last {
            break;
        }
    }
    output.flush()?;
    let tags_hash = tags.finalize();
    let signature = signature
        .try_into()
        .ok()
        .and_then(|bytes| parse_signature_bytes(bytes).ok());
    Ok(Decrypted {
        tags_hash,
        signature,
    })
}

/// Decrypts as [`decrypt`] and fails unless `expected` signed the tags. On any error the output must be dropped.
///
/// # Errors
/// As [`decrypt`], and [`ArchiveError::Signer`].
pub fn decrypt_signed_by(
    input: &mut impl Read,
    output: &mut impl Write,
    key: &FileKey,
    expected: Address,
) -> Result<(), ArchiveError> {
    expect_signer(decrypt(input, output, key)?.signer(), expected)
}

/// As [`decrypt_signed_by`], for tags that are signed as a personal message.
///
/// # Errors
/// As there.
pub fn decrypt_personally_signed_by(
    input: &mut impl Read,
    output: &mut impl Write,
    key: &FileKey,
    expected: Address,
) -> Result<(), ArchiveError> {
    expect_signer(decrypt(input, output, key)?.personal_signer(), expected)
}

fn expect_signer(found: Option<Address>, expected: Address) -> Result<(), ArchiveError> {
    if found == Some(expected) {
        return Ok(());
    }
    Err(ArchiveError::Signer {
        found: found.unwrap_or_default(),
        expected,
    })
}

/// Length of the encrypted file of a plaintext with the given length in bytes.
pub fn encrypted_length(plaintext_bytes: u64) -> u64 {
    let chunks = plaintext_bytes.div_ceil(ARCHIVE_CHUNK_BYTES as u64);
    plaintext_bytes + HEADER_BYTES as u64 + chunks * TAG_BYTES as u64
}

fn increment(nonce: &mut [u8; NONCE_BYTES]) {
    for byte in nonce.iter_mut().rev() {
        let (next, overflow) = byte.overflowing_add(1);
        *byte = next;
        if !overflow {
            break;
        }
    }
}

fn truncated(error: io::Error) -> ArchiveError {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        ArchiveError::Truncated
    } else {
        ArchiveError::Io(error)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use alloy_primitives::keccak256;

    use super::*;

    fn key() -> FileKey {
        FileKey::from_bytes(std::array::from_fn(|i| i as u8))
    }

    fn signer() -> SecretKey {
        "0x59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d"
            .parse()
            .unwrap()
    }

    const NONCE: [u8; 12] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0, 255];

    fn encrypted(plaintext: &[u8]) -> Vec<u8> {
        let mut output = Cursor::new(Vec::new());
        encrypt_with_nonce(
            &mut &plaintext[..],
            &mut output,
            &key(),
            NONCE,
            Some(&signer()),
        )
        .unwrap();
        output.into_inner()
    }

    /// `fine-tuning-broker.md` section 10.8, one chunk.
    #[test]
    fn one_chunk_equals_the_vector() {
        let file = encrypted(b"0G fine-tuning delivery vector\n");
        assert_eq!(
            hex::encode(&file),
            "ddbe98e3a6b1534f81c4ae8409af630baa58f8473af92870d6314cc7b00438e87680049b14b8a3c219e52c16766a9adeb44390a37c0ab42e4aeab015fac7ee42000102030405060708090a00ffe2f12c3cf1a1fdaed0d5d792718c9b1f88b0cadd2421e2d9e34cf04a06ef3dadaa3dbd09a1bef9f9b5a5927b4a3236"
        );
        assert_eq!(
            keccak256(&file).to_string(),
            "0xfc8d10138665075cded4670f5be1bf375357da6574d0ed8a45320f4abb55d84c"
        );
        for v in [0u8, 27] {
            let mut file = file.clone();
            file[64] = v;
            let mut plain = Vec::new();
            decrypt_signed_by(&mut &file[..], &mut plain, &key(), signer().address()).unwrap();
            assert_eq!(plain, b"0G fine-tuning delivery vector\n");
        }
    }

    /// `fine-tuning-broker.md` section 10.8, two chunks.
    #[test]
    fn two_chunks_equal_the_vector() {
        let plaintext: Vec<u8> = (0..67_108_869u32).map(|i| i as u8).collect();
        let file = encrypted(&plaintext);
        assert_eq!(file.len(), 67_108_978);
        assert_eq!(encrypted_length(67_108_869), 67_108_978);
        assert_eq!(
            keccak256(&file).to_string(),
            "0x3e3ef43028a77d56ac6bc760c54edbbb462c46658377ab23fb96972aba1ffc7e"
        );
        let mut plain = Vec::new();
        let decrypted = decrypt(&mut &file[..], &mut plain, &key()).unwrap();
        assert_eq!(
            decrypted.tags_hash.to_string(),
            "0x6ae0237b3203aa9d5ae7466048f8c3845a8f3507bcb3a17c28dde57b68c39766"
        );
        assert!(plain == plaintext);
    }

    #[test]
    fn damage_and_foreign_signers_are_refused() {
        let file = encrypted(b"weights");
        let open = |file: &[u8], expected| {
            decrypt_signed_by(&mut &file[..], &mut Vec::new(), &key(), expected)
        };
        assert!(matches!(
            open(&file, Address::ZERO),
            Err(ArchiveError::Signer { .. })
        ));
        for cut in [0, 64, 76, HEADER_BYTES, HEADER_BYTES + 16] {
            assert!(
                matches!(
                    open(&file[..cut], signer().address()),
                    Err(ArchiveError::Truncated)
                ),
                "{cut}"
            );
        }
        for index in 0..file.len() {
            let mut damaged = file.clone();
            damaged[index] ^= 0x40;
            assert!(open(&damaged, signer().address()).is_err(), "byte {index}");
        }
        let mut nothing = Cursor::new(Vec::new());
        assert!(matches!(
            encrypt(&mut &b""[..], &mut nothing, &key(), &signer()),
            Err(ArchiveError::EmptyPlaintext)
        ));
        let wrong = FileKey::from_bytes([9; 32]);
        assert!(matches!(
            decrypt(&mut &file[..], &mut Vec::new(), &wrong),
            Err(ArchiveError::Chunk { index: 0 })
        ));
    }

    #[test]
    fn a_personal_signature_is_not_taken_for_a_plain_one() {
        let mut file = Cursor::new(vec![9; 5]);
        file.set_position(5);
        let tags = encrypt_unsigned(&mut &b"records"[..], &mut file, &key()).unwrap();
        let signature = signer().sign_digest(eip191_hash_message(tags));
        write_signature(&mut file, 5, &signature).unwrap();
        assert_eq!(file.position(), file.get_ref().len() as u64);
        let file = &file.get_ref()[5..];
        let (mut plain, address) = (Vec::new(), signer().address());
        decrypt_personally_signed_by(&mut &file[..], &mut plain, &key(), address).unwrap();
        assert_eq!(plain, b"records");
        let taken = decrypt_signed_by(&mut &file[..], &mut Vec::new(), &key(), address);
        assert!(matches!(taken, Err(ArchiveError::Signer { .. })));
        let other = encrypted(b"records");
        let taken = decrypt_personally_signed_by(&mut &other[..], &mut Vec::new(), &key(), address);
        assert!(matches!(taken, Err(ArchiveError::Signer { .. })));
    }

    #[test]
    fn files_at_rest_round_trip() {
        let mut output = Cursor::new(Vec::new());
        encrypt_unsigned(&mut &b"checkpoint"[..], &mut output, &key()).unwrap();
        let mut plain = Vec::new();
        decrypt(&mut &output.get_ref()[..], &mut plain, &key()).unwrap();
        assert_eq!(plain, b"checkpoint");
    }
}
