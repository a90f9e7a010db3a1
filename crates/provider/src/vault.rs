//! Files and keys at rest, sealed under a key that only this enclave can derive.
//!
//! Every file has a random key of its own; that key stands in the database, encrypted under the vault key and bound to
//! what it is for. Nothing here is ever written in clear.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read};
use std::path::{Path, PathBuf};

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use alloy_primitives::Address;
use hkdf::Hkdf;
use rand::RngCore;
use sha2::Sha256;
use zerog_protocol::FileKey;
use zerog_protocol::sealed_archive::{self, ArchiveError};
use zeroize::Zeroizing;

const NONCE_BYTES: usize = 12;
/// Folder of files on their way in.
const INCOMING: &str = "incoming";
/// How names of temporary files begin.
const TEMPORARY: &str = ".tmp";

/// Why something sealed could not be written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VaultError {
    /// A file cannot be read or written.
    #[error("cannot use {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A sealed file does not open.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// A sealed key does not open: the enclave's keys are others than when it was sealed.
    #[error("a stored key does not open with this enclave's keys")]
    Key,
}

impl VaultError {
    /// Whether there was no room.
    pub(crate) fn is_disk_full(&self) -> bool {
        match self {
            Self::Io { source, .. } | Self::Archive(ArchiveError::Io(source)) => {
                is_disk_full(source)
            }
            _ => false,
        }
    }
}

/// What a sealed key is for; part of its seal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeyUse {
    /// A dataset file.
    Dataset,
    /// The archive of a task.
    Archive,
    /// An adapter's archive for serving.
    Adapter,
}

impl KeyUse {
    fn as_str(self) -> &'static str {
        match self {
            Self::Dataset => "dataset",
            Self::Archive => "archive",
            Self::Adapter => "adapter",
        }
    }
}

/// The folders of the data directory and the vault key.
#[derive(Debug, Clone)]
pub(crate) struct Vault {
    key: FileKey,
    data_dir: PathBuf,
}

impl Vault {
    /// A vault in a directory; its folders are made, and what a killed process had half written is removed. Only one
    /// process may have it open.
    ///
    /// # Errors
    /// [`VaultError::Io`].
    pub(crate) fn open(data_dir: &Path, key: FileKey) -> Result<Self, VaultError> {
        for folder in [
            "datasets",
            "jobs",
            "archives",
            "adapters",
            INCOMING,
            "storage-journal",
        ] {
            let path = data_dir.join(folder);
            create_private_folder(&path)
                .and_then(|()| remove_unfinished(&path, folder == INCOMING))
                .map_err(|source| VaultError::Io { path, source })?;
        }
        Ok(Self {
            key,
            data_dir: data_dir.to_path_buf(),
        })
    }

    /// File of a stored dataset.
    #[must_use]
    pub(crate) fn dataset_path(&self, file: &str) -> PathBuf {
        self.data_dir.join("datasets").join(file)
    }

    /// Job directory of a task.
    #[must_use]
    pub(crate) fn job_path(&self, task_id: &str) -> PathBuf {
        self.data_dir.join("jobs").join(task_id)
    }

    /// Encrypted archive of a task, as users download it.
    #[must_use]
    pub(crate) fn archive_path(&self, task_id: &str) -> PathBuf {
        self.data_dir
            .join("archives")
            .join(format!("{task_id}.data"))
    }

    /// Sealed archive of an adapter that is served here.
    #[must_use]
    pub(crate) fn adapter_path(&self, adapter_id: &str) -> PathBuf {
        self.data_dir
            .join("adapters")
            .join(format!("{adapter_id}.sealed"))
    }

    /// Folder for files on their way in.
    #[must_use]
    pub(crate) fn incoming(&self) -> PathBuf {
        self.data_dir.join(INCOMING)
    }

    /// Folder where paid uploads are noted.
    #[must_use]
    pub(crate) fn storage_journal(&self) -> PathBuf {
        self.data_dir.join("storage-journal")
    }

    /// The key of a task's job directory, the same each time.
    #[must_use]
    pub(crate) fn job_key(&self, task_id: &str) -> FileKey {
        self.derive(&format!("zerog/vault/job/{task_id}"))
    }

    /// The key of an adapter's sealed file, the same each time.
    #[must_use]
    pub(crate) fn adapter_key(&self, adapter_id: &str) -> FileKey {
        self.derive(&format!("zerog/vault/adapter/{adapter_id}"))
    }

    fn derive(&self, info: &str) -> FileKey {
        let mut key = Zeroizing::new([0u8; 32]);
        Hkdf::<Sha256>::new(None, self.key.expose_bytes())
            .expand(info.as_bytes(), key.as_mut_slice())
            .expect("32 bytes are within HKDF-SHA256's limit");
        FileKey::from_bytes(*key)
    }

    fn wrapping(&self, usage: KeyUse) -> Aes256Gcm {
        let key = self.derive(&format!("zerog/vault/wrap/{}", usage.as_str()));
        Aes256Gcm::new(key.expose_bytes().into())
    }

    /// Seals a key for the database; `id` says what it belongs to.
    #[must_use]
    pub(crate) fn seal_key(&self, usage: KeyUse, id: &str, key: &FileKey) -> String {
        let mut nonce = [0u8; NONCE_BYTES];
        rand::rng().fill_bytes(&mut nonce);
        let payload = Payload {
            msg: key.expose_bytes(),
            aad: id.as_bytes(),
        };
        let sealed = self
            .wrapping(usage)
            .encrypt(&Nonce::from(nonce), payload)
            .expect("32 bytes are within the limit of AES-GCM");
        format!("{}{}", hex::encode(nonce), hex::encode(sealed))
    }

    /// Opens a key from the database.
    ///
    /// # Errors
    /// [`VaultError::Key`].
    pub(crate) fn open_key(
        &self,
        usage: KeyUse,
        id: &str,
        sealed: &str,
    ) -> Result<FileKey, VaultError> {
        let bytes = hex::decode(sealed).map_err(|_| VaultError::Key)?;
        let (nonce, ciphertext) = bytes
            .split_first_chunk::<NONCE_BYTES>()
            .ok_or(VaultError::Key)?;
        let payload = Payload {
            msg: ciphertext,
            aad: id.as_bytes(),
        };
        let opened = self
            .wrapping(usage)
            .decrypt(&Nonce::from(*nonce), payload)
            .map_err(|_| VaultError::Key)?;
        FileKey::from_slice(&Zeroizing::new(opened)).ok_or(VaultError::Key)
    }
}

/// Encrypts into a file that appears complete or not at all. Blocks.
///
/// # Errors
/// [`VaultError`].
pub(crate) fn seal_to_file(
    path: &Path,
    plaintext: &mut impl Read,
    key: &FileKey,
    signer: Option<&zerog_protocol::SecretKey>,
) -> Result<(), VaultError> {
    let io = |source| VaultError::Io {
        path: path.to_path_buf(),
        source,
    };
    let folder = path.parent().unwrap_or(Path::new("."));
    let temporary = tempfile::NamedTempFile::new_in(folder).map_err(io)?;
    {
        let mut output = BufWriter::new(temporary.as_file());
        match signer {
            Some(signer) => sealed_archive::encrypt(plaintext, &mut output, key, signer)?,
            None => sealed_archive::encrypt_unsigned(plaintext, &mut output, key)?,
        };
    }
    temporary.as_file().sync_all().map_err(io)?;
    temporary.persist(path).map_err(|error| io(error.error))?;
    sync_folder(folder).map_err(io)
}

/// Decrypts a file into memory that is cleared afterwards. Blocks.
///
/// # Errors
/// [`VaultError`].
pub(crate) fn open_to_memory(
    path: &Path,
    key: &FileKey,
    signer: Option<Address>,
) -> Result<Zeroizing<Vec<u8>>, VaultError> {
    let io = |source| VaultError::Io {
        path: path.to_path_buf(),
        source,
    };
    let file = File::open(path).map_err(io)?;
    let length = file.metadata().map_err(io)?.len();
    // Room for everything at once: a growing buffer would leave copies behind.
    let mut plaintext = Zeroizing::new(Vec::with_capacity(usize::try_from(length).unwrap_or(0)));
    let mut input = BufReader::new(file);
    match signer {
        Some(expected) => {
            sealed_archive::decrypt_signed_by(&mut input, &mut *plaintext, key, expected)?
        }
        None => sealed_archive::decrypt(&mut input, &mut *plaintext, key).map(|_| ())?,
    }
    Ok(plaintext)
}

/// Removes temporary files, or everything in a folder that holds nothing else.
fn remove_unfinished(folder: &Path, everything: bool) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if !everything && !entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
            continue;
        }
        if entry.file_type()?.is_dir() {
            std::fs::remove_dir_all(entry.path())?;
        } else {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Whether something failed because disk, quota or a limit on file sizes is exhausted.
pub(crate) fn is_disk_full(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

/// Makes a rename durable.
pub(crate) fn sync_folder(folder: &Path) -> std::io::Result<()> {
    File::open(folder)?.sync_all()
}

/// A folder that only this user enters.
pub(crate) fn create_private_folder(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_open_only_for_what_they_were_sealed_for() {
        let folder = tempfile::tempdir().unwrap();
        let vault = Vault::open(folder.path(), FileKey::from_bytes([7; 32])).unwrap();
        let key = FileKey::random();
        let sealed = vault.seal_key(KeyUse::Archive, "task-1", &key);
        assert!(!sealed.contains(&hex::encode(key.expose_bytes())));
        assert!(vault.open_key(KeyUse::Archive, "task-1", &sealed).unwrap() == key);
        assert!(vault.open_key(KeyUse::Archive, "task-2", &sealed).is_err());
        assert!(vault.open_key(KeyUse::Dataset, "task-1", &sealed).is_err());
        let other = Vault::open(folder.path(), FileKey::from_bytes([8; 32])).unwrap();
        assert!(matches!(
            other.open_key(KeyUse::Archive, "task-1", &sealed),
            Err(VaultError::Key)
        ));
        assert!(
            other.job_key("a") != vault.job_key("a") && vault.job_key("a") != vault.job_key("b")
        );
    }

    #[test]
    fn what_a_killed_process_left_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Vault::open(folder.path(), FileKey::from_bytes([7; 32])).unwrap();
        let vault = open();
        std::fs::create_dir(vault.incoming().join("upload")).unwrap();
        std::fs::write(vault.incoming().join("upload/file"), b"half").unwrap();
        std::fs::write(vault.archive_path("t").with_file_name(".tmpAb12"), b"half").unwrap();
        std::fs::write(vault.archive_path("t"), b"whole").unwrap();
        open();
        assert_eq!(std::fs::read_dir(vault.incoming()).unwrap().count(), 0);
        let archives = vault.archive_path("t").parent().unwrap().to_owned();
        assert_eq!(std::fs::read_dir(archives).unwrap().count(), 1);
        assert!(vault.archive_path("t").exists());
    }

    #[test]
    fn files_appear_whole_and_never_in_clear() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        let key = FileKey::random();
        seal_to_file(&path, &mut &b"a marker nobody may see"[..], &key, None).unwrap();
        assert_eq!(
            open_to_memory(&path, &key, None).unwrap().as_slice(),
            b"a marker nobody may see"
        );
        assert!(
            !std::fs::read(&path)
                .unwrap()
                .windows(6)
                .any(|window| window == b"marker")
        );
        assert!(seal_to_file(&path, &mut &b""[..], &key, None).is_err());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        assert!(open_to_memory(&path, &FileKey::random(), None).is_err());
        assert!(open_to_memory(&path, &key, Some(Address::ZERO)).is_err());
    }
}
