//! The append-only log of mined blocks.
//!
//! The file starts with a header that names the genesis; every record after it is a length, a CRC-32 and an
//! RLP-encoded [`Record`]. Records are handed to the operating system as they come, so a killed process loses nothing;
//! a background thread forces them to the disk at most [`SYNC_INTERVAL`] later, so a power cut loses at most that.
//! What a power cut leaves half-written at the end is dropped at the next start.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, BufReader, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    thread::JoinHandle,
    time::Duration,
};

use alloy_primitives::{Address, B256, Bytes, U256};
use alloy_rlp::{Decodable, Encodable, RlpDecodable, RlpEncodable};

use crate::Error;

/// The longest time that a mined block stays only in the operating system's cache.
const SYNC_INTERVAL: Duration = Duration::from_millis(100);
const MAGIC: &[u8; 8] = b"zgchain1";
const HEADER_BYTES: usize = MAGIC.len() + 8 + 32;
/// A record is one block with at most one transaction; this is far above any transaction that fits the gas limit.
const MAX_RECORD_BYTES: u32 = 64 << 20;

/// One line of history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    /// A mined block.
    Block(BlockRecord),
    /// The blocks above `height` were taken back (`evm_revert`).
    Rollback { height: u64 },
}

/// What is needed to mine a block again, and the hash it must have then.
#[derive(Clone, Debug, PartialEq, Eq, RlpEncodable, RlpDecodable)]
pub(crate) struct BlockRecord {
    pub(crate) timestamp: u64,
    pub(crate) hash: B256,
    pub(crate) balance_overrides: Vec<BalanceOverride>,
    /// Empty or one transaction.
    pub(crate) transactions: Vec<RecordedTransaction>,
}

/// A balance set by `anvil_setBalance`.
#[derive(Clone, Debug, PartialEq, Eq, RlpEncodable, RlpDecodable)]
pub(crate) struct BalanceOverride {
    pub(crate) address: Address,
    pub(crate) balance: U256,
}

/// A signed transaction with its recovered sender: recovering is the slow part of a replay, and a wrong sender would
/// give a wrong block hash.
#[derive(Clone, Debug, PartialEq, Eq, RlpEncodable, RlpDecodable)]
pub(crate) struct RecordedTransaction {
    pub(crate) sender: Address,
    pub(crate) raw: Bytes,
}

/// An open chain log, positioned at its end.
#[derive(Debug)]
pub(crate) struct ChainLog {
    file: File,
    path: PathBuf,
    dirty: Option<SyncSender<()>>,
    syncer: Option<JoinHandle<()>>,
    // Held for as long as the log is open: one process per directory.
    _lock: File,
}

impl ChainLog {
    /// Opens or creates the log in `directory` and returns its records.
    pub(crate) fn open(
        directory: &Path,
        chain_id: u64,
        genesis: B256,
    ) -> Result<(Self, Vec<Record>), Error> {
        let in_directory = |source| Error::File {
            path: directory.to_owned(),
            source,
        };
        std::fs::create_dir_all(directory).map_err(in_directory)?;
        let lock_path = directory.join("lock");
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
            Err(TryLockError::WouldBlock) => {
                return Err(Error::InUse {
                    path: directory.to_owned(),
                });
            }
            Err(TryLockError::Error(source)) => {
                return Err(Error::File {
                    path: lock_path,
                    source,
                });
            }
        }

        let path = directory.join("chain.log");
        let failed = |source| Error::File {
            path: path.clone(),
            source,
        };
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        let records = if length < HEADER_BYTES as u64 {
            // New, or the very first write was cut short.
            file.set_len(0)
                .and_then(|()| file.rewind())
                .map_err(failed)?;
            file.write_all(&header(chain_id, genesis))
                .and_then(|()| file.sync_all())
                .map_err(failed)?;
            File::open(directory)
                .and_then(|d| d.sync_all())
                .map_err(in_directory)?;
            Vec::new()
        } else {
            let (records, valid_bytes) = read(&path, &mut file, length, chain_id, genesis)?;
            if valid_bytes < length {
                tracing::warn!(
                    path = %path.display(),
                    dropped_bytes = length - valid_bytes,
                    "the chain log ends in a half-written record, which is dropped"
                );
                file.set_len(valid_bytes)
                    .and_then(|()| file.sync_all())
                    .map_err(failed)?;
            }
            file.seek(SeekFrom::End(0)).map_err(failed)?;
            records
        };

        let (dirty, receiver) = sync_channel(1);
        let synced = file.try_clone().map_err(failed)?;
        let syncer_path = path.clone();
        let syncer = std::thread::Builder::new()
            .name("chain-log".into())
            .spawn(move || sync_when_dirty(&synced, &receiver, &syncer_path))
            .map_err(failed)?;
        Ok((
            Self {
                file,
                path,
                dirty: Some(dirty),
                syncer: Some(syncer),
                _lock: lock,
            },
            records,
        ))
    }

    /// Appends a record. It survives the death of the process at once, and of the machine after [`SYNC_INTERVAL`].
    pub(crate) fn append(&mut self, record: &Record) -> io::Result<()> {
        let payload = encode(record);
        let mut bytes = Vec::with_capacity(payload.len() + 8);
        bytes.extend((payload.len() as u32).to_le_bytes());
        bytes.extend(crc32fast::hash(&payload).to_le_bytes());
        bytes.extend(payload);
        self.file.write_all(&bytes)?;
        if let Some(dirty) = &self.dirty {
            match dirty.try_send(()) {
                // A full channel means that a sync is due already.
                Ok(()) | Err(TrySendError::Full(())) => {}
                Err(TrySendError::Disconnected(())) => {
                    return Err(io::Error::other("the log was not forced to disk"));
                }
            }
        }
        Ok(())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Waits until everything appended so far is on the disk.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

impl Drop for ChainLog {
    fn drop(&mut self) {
        // Without its channel the thread syncs once more and ends.
        self.dirty = None;
        if let Some(syncer) = self.syncer.take() {
            let _ = syncer.join();
        }
    }
}

fn sync_when_dirty(file: &File, dirty: &Receiver<()>, path: &Path) {
    loop {
        let closing = dirty.recv().is_err();
        if !closing {
            std::thread::sleep(SYNC_INTERVAL);
            while dirty.try_recv().is_ok() {}
        }
        if let Err(error) = file.sync_data() {
            tracing::error!(path = %path.display(), %error, "the chain log cannot be forced to disk");
            // Dropping the receiver makes the next append fail: nothing more is accepted that would not last.
            return;
        }
        if closing {
            return;
        }
    }
}

fn header(chain_id: u64, genesis: B256) -> Vec<u8> {
    [
        MAGIC.as_slice(),
        &chain_id.to_le_bytes(),
        genesis.as_slice(),
    ]
    .concat()
}

/// Reads all records; returns them and the number of bytes up to the end of the last intact one.
fn read(
    path: &Path,
    file: &mut File,
    length: u64,
    chain_id: u64,
    genesis: B256,
) -> Result<(Vec<Record>, u64), Error> {
    let failed = |source| Error::File {
        path: path.to_owned(),
        source,
    };
    file.rewind().map_err(failed)?;
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let mut found = [0; HEADER_BYTES];
    reader.read_exact(&mut found).map_err(failed)?;
    if !found.starts_with(MAGIC) {
        return Err(Error::NotAChainLog {
            path: path.to_owned(),
        });
    }
    if found != header(chain_id, genesis)[..] {
        let found = B256::from_slice(&found[HEADER_BYTES - 32..]);
        return Err(Error::OtherGenesis {
            path: path.to_owned(),
            found,
            expected: genesis,
        });
    }
    let mut records = Vec::new();
    let mut offset = HEADER_BYTES as u64;
    loop {
        match read_record(&mut reader, length - offset).map_err(failed)? {
            Frame::Intact(record, bytes) => {
                records.push(record);
                offset += bytes;
            }
            Frame::Short => return Ok((records, offset)),
            Frame::Damaged(bytes) => {
                // A torn write is the last thing in the file. An intact record behind the bad one means that something
                // else happened, and cutting here would silently forget blocks that are there.
                return match read_record(&mut reader, length - offset - bytes).map_err(failed)? {
                    Frame::Intact(..) => Err(Error::DamagedLog {
                        path: path.to_owned(),
                        offset,
                    }),
                    Frame::Short | Frame::Damaged(_) => Ok((records, offset)),
                };
            }
        }
    }
}

enum Frame {
    /// A record and its length in the file.
    Intact(Record, u64),
    /// The file ends before the record does.
    Short,
    /// A record of this length in the file whose checksum or content is wrong.
    Damaged(u64),
}

fn read_record(reader: &mut impl Read, remaining: u64) -> io::Result<Frame> {
    if remaining < 8 {
        return Ok(Frame::Short);
    }
    let mut word = [0; 4];
    reader.read_exact(&mut word)?;
    let length = u32::from_le_bytes(word);
    reader.read_exact(&mut word)?;
    let checksum = u32::from_le_bytes(word);
    if length > MAX_RECORD_BYTES || u64::from(length) > remaining - 8 {
        return Ok(Frame::Short);
    }
    let mut payload = vec![0; length as usize];
    reader.read_exact(&mut payload)?;
    let bytes = 8 + u64::from(length);
    if crc32fast::hash(&payload) != checksum {
        return Ok(Frame::Damaged(bytes));
    }
    Ok(decode(&payload).map_or(Frame::Damaged(bytes), |record| Frame::Intact(record, bytes)))
}

fn encode(record: &Record) -> Vec<u8> {
    let mut payload = Vec::new();
    match record {
        Record::Block(block) => {
            payload.push(1);
            block.encode(&mut payload);
        }
        Record::Rollback { height } => {
            payload.push(2);
            height.encode(&mut payload);
        }
    }
    payload
}

fn decode(payload: &[u8]) -> Option<Record> {
    let (kind, mut rest) = payload.split_first()?;
    let record = match kind {
        1 => Record::Block(BlockRecord::decode(&mut rest).ok()?),
        2 => Record::Rollback {
            height: u64::decode(&mut rest).ok()?,
        },
        _ => return None,
    };
    rest.is_empty().then_some(record)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(number: u8) -> Record {
        Record::Block(BlockRecord {
            timestamp: 7,
            hash: B256::repeat_byte(number),
            balance_overrides: vec![BalanceOverride {
                address: Address::repeat_byte(1),
                balance: U256::from(5),
            }],
            transactions: vec![RecordedTransaction {
                sender: Address::repeat_byte(number),
                raw: Bytes::from(vec![number; 300]),
            }],
        })
    }

    fn reopen(directory: &Path) -> Result<Vec<Record>, Error> {
        ChainLog::open(directory, 1, B256::ZERO).map(|(_, records)| records)
    }

    #[test]
    fn records_come_back_in_order() {
        let directory = tempfile::tempdir().unwrap();
        let all = [block(1), Record::Rollback { height: 0 }, block(2)];
        let (mut log, records) = ChainLog::open(directory.path(), 1, B256::ZERO).unwrap();
        assert!(records.is_empty());
        all.iter().for_each(|record| log.append(record).unwrap());
        drop(log);
        assert_eq!(reopen(directory.path()).unwrap(), all);
    }

    #[test]
    fn every_possible_cut_of_the_last_record_drops_only_that_record() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("chain.log");
        let (mut log, _) = ChainLog::open(directory.path(), 1, B256::ZERO).unwrap();
        log.append(&block(1)).unwrap();
        let kept = std::fs::metadata(&path).unwrap().len();
        log.append(&block(2)).unwrap();
        drop(log);
        let whole = std::fs::read(&path).unwrap();
        for cut in kept as usize..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            assert_eq!(
                reopen(directory.path()).unwrap(),
                [block(1)],
                "cut at {cut}"
            );
            assert_eq!(std::fs::metadata(&path).unwrap().len(), kept);
        }
        // Bytes that were never written are zeros after some power cuts.
        let mut zeroed = whole.clone();
        zeroed[kept as usize + 20..].fill(0);
        std::fs::write(&path, &zeroed).unwrap();
        assert_eq!(reopen(directory.path()).unwrap(), [block(1)]);
    }

    #[test]
    fn damage_before_intact_records_is_an_error_and_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("chain.log");
        let (mut log, _) = ChainLog::open(directory.path(), 1, B256::ZERO).unwrap();
        log.append(&block(1)).unwrap();
        log.append(&block(2)).unwrap();
        drop(log);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[HEADER_BYTES + 20] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert!(
            matches!(reopen(directory.path()), Err(Error::DamagedLog { offset, .. }) if offset == HEADER_BYTES as u64)
        );
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
    }

    #[test]
    fn another_genesis_another_process_and_another_file_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let (log, _) = ChainLog::open(directory.path(), 1, B256::ZERO).unwrap();
        assert!(matches!(reopen(directory.path()), Err(Error::InUse { .. })));
        drop(log);
        let other = ChainLog::open(directory.path(), 1, B256::repeat_byte(9));
        assert!(matches!(other, Err(Error::OtherGenesis { .. })));
        std::fs::write(directory.path().join("chain.log"), [b'x'; 100]).unwrap();
        assert!(matches!(
            reopen(directory.path()),
            Err(Error::NotAChainLog { .. })
        ));
    }
}
