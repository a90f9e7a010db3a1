//! What an upload has paid for and how far it came, written down before money moves.
//!
//! One file per chain, Flow contract, root and size. It is removed when the file is finalized.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::Write,
    path::{Path, PathBuf},
};

use alloy_primitives::{Address, B256, Bytes, U256};
use serde::{Deserialize, Serialize};

use crate::{Error, content::sync_directory};

/// What identifies a paid submission.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) chain_id: u64,
    pub(super) flow: Address,
    pub(super) root: B256,
    pub(super) size: u64,
}

/// The content of a journal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    /// The payment, written before it is broadcast.
    pub(super) payment: Option<Payment>,
}

/// A signed submission.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Payment {
    /// Who pays.
    pub(super) submitter: Address,
    /// Signed transaction.
    pub(super) raw: Bytes,
    /// Its hash.
    pub(super) hash: B256,
    /// The fee in wei, without gas.
    pub(super) fee: U256,
    /// A block that the chain had then: if it is gone, this is another chain, and the payment never happened on it.
    pub(super) known_block: u64,
    /// Hash of that block.
    pub(super) known_block_hash: B256,
    /// Number of the submission, once mined.
    pub(super) sequence: Option<u64>,
}

/// What a client without a journal directory remembers.
#[derive(Debug, Default)]
pub(super) struct Memory(Entry);

/// An open journal; nobody else has it open.
#[derive(Debug)]
pub(super) enum Journal<'a> {
    Memory(&'a mut Memory),
    File {
        path: PathBuf,
        entry: Box<Entry>,
        lock: File,
        lock_path: PathBuf,
    },
}

impl<'a> Journal<'a> {
    pub(super) fn open(
        directory: Option<&Path>,
        key: Key,
        memory: &'a mut Memory,
    ) -> Result<Self, Error> {
        let Some(directory) = directory else {
            return Ok(Self::Memory(memory));
        };
        let in_directory = |source| Error::File {
            path: directory.to_owned(),
            source,
        };
        fs::create_dir_all(directory).map_err(in_directory)?;
        let name = format!(
            "{}-{:x}-{:x}-{}",
            key.chain_id, key.flow, key.root, key.size
        );
        let lock_path = directory.join(format!("{name}.lock"));
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(|source| Error::File {
                path: lock_path.clone(),
                source,
            })?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::Busy { path: lock_path }),
            Err(TryLockError::Error(source)) => {
                return Err(Error::File {
                    path: lock_path,
                    source,
                });
            }
        }
        let path = directory.join(format!("{name}.json"));
        let entry = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|_| Error::DamagedJournal { path: path.clone() })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Box::default(),
            Err(source) => return Err(Error::File { path, source }),
        };
        Ok(Self::File {
            path,
            entry,
            lock,
            lock_path,
        })
    }

    pub(super) fn payment(&self) -> Option<&Payment> {
        match self {
            Self::Memory(memory) => memory.0.payment.as_ref(),
            Self::File { entry, .. } => entry.payment.as_ref(),
        }
    }

    /// Remembers a payment; when this returns it is on the disk.
    pub(super) fn set_payment(&mut self, payment: Option<Payment>) -> Result<(), Error> {
        match self {
            Self::Memory(memory) => memory.0.payment = payment,
            Self::File { path, entry, .. } => {
                entry.payment = payment;
                write(path, entry).map_err(|source| Error::File {
                    path: path.clone(),
                    source,
                })?;
            }
        }
        Ok(())
    }

    /// The file is stored for good: nothing is left to remember.
    pub(super) fn close(self) {
        match self {
            Self::Memory(memory) => memory.0 = Entry::default(),
            Self::File {
                path,
                lock,
                lock_path,
                ..
            } => {
                // A journal that stays behind costs nothing: the next upload finds the file finalized.
                let _ = fs::remove_file(path);
                let _ = fs::remove_file(lock_path);
                drop(lock);
            }
        }
    }
}

fn write(path: &Path, entry: &Entry) -> std::io::Result<()> {
    let temporary = path.with_extension("json.new");
    let mut file = File::create(&temporary)?;
    file.write_all(&serde_json::to_vec_pretty(entry)?)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    if let Some(directory) = path.parent() {
        sync_directory(directory)?;
    }
    Ok(())
}
