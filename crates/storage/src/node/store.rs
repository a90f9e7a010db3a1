//! Segments on disk: one directory `objects/<root>-<size>` for each file that somebody stores.
//!
//! - `data`: the sectors, every segment at its place;
//! - `proofs`: a record of fixed length for every segment, all zeros while the segment is absent;
//! - `synced`: how many segments were known to be on the disk at some time. It is put in place after they were synced.
//!
//! With its record a segment proves itself, so it is checked against the root whenever it is read; one that fails
//! counts as never received. Segments are synced all at once when the last one has arrived, and only then is the file
//! called complete; files without a truthful `synced` are checked segment by segment when the node starts. Directories
//! are named by root **and** size because the root does not bind the size.

use std::{
    collections::{BTreeSet, HashMap},
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use alloy_primitives::B256;
use parking_lot::Mutex;

use crate::{
    Content, Error, FileShape,
    content::{sync_directory, write_all_at},
    merkle::{FileProof, SEGMENT_BYTES, check_segment},
    rpc_types::SegmentWithProof,
};

const DATA: &str = "data";
const PROOFS: &str = "proofs";
const SYNCED: &str = "synced";

#[derive(Debug)]
pub(super) struct Store {
    objects: PathBuf,
    held: Mutex<HashMap<Key, Held>>,
}

type Key = (B256, u64);

/// Segments of one file.
#[derive(Debug, Default)]
struct Held {
    received: BTreeSet<u64>,
    /// Those that would survive a crash.
    synced: BTreeSet<u64>,
    /// Held by whoever makes them survive one.
    syncing: Arc<Mutex<()>>,
}

impl Store {
    /// Reads what is there and checks what was not synced.
    pub(super) fn open(directory: &Path) -> Result<Self, Error> {
        let objects = directory.join("objects");
        let failed = |source| Error::File {
            path: objects.clone(),
            source,
        };
        fs::create_dir_all(&objects).map_err(failed)?;
        let store = Self {
            objects: objects.clone(),
            held: Mutex::default(),
        };
        for entry in fs::read_dir(&objects).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let Some((root, size)) = name.to_str().and_then(parse_key) else {
                continue;
            };
            // A name with a size that no file has is none of ours.
            if let Ok(shape) = FileShape::new(size) {
                store.read_object(root, shape)?;
            }
        }
        Ok(store)
    }

    fn read_object(&self, root: B256, shape: FileShape) -> Result<(), Error> {
        let object = Object::new(&self.objects, root, shape);
        let Some(received) = object.recorded()? else {
            return Ok(());
        };
        let known_count = fs::read_to_string(object.directory.join(SYNCED))
            .ok()
            .and_then(|text| text.trim().parse::<usize>().ok());
        let is_synced = known_count == Some(received.len());
        let held = Held {
            synced: received.clone(),
            received,
            ..Held::default()
        };
        let indices: Vec<u64> = held.received.iter().copied().collect();
        self.held.lock().insert((root, shape.size()), held);
        if !is_synced {
            for index in indices {
                self.get(root, shape, index)?;
            }
        }
        Ok(())
    }

    /// How many files have at least one segment here.
    pub(super) fn files(&self) -> usize {
        self.held.lock().len()
    }

    pub(super) fn has(&self, root: B256, size: u64, index: u64) -> bool {
        self.held
            .lock()
            .get(&(root, size))
            .is_some_and(|held| held.received.contains(&index))
    }

    /// How many segments of the file are here.
    pub(super) fn count(&self, root: B256, size: u64) -> u64 {
        self.held
            .lock()
            .get(&(root, size))
            .map_or(0, |held| held.received.len() as u64)
    }

    /// What is here of the segments that `wanted` names, `count` in number.
    pub(super) fn presence(
        &self,
        root: B256,
        shape: FileShape,
        count: u64,
        wanted: impl Iterator<Item = u64> + Clone,
    ) -> Presence {
        let held = self.held.lock();
        let nothing = Held::default();
        let held = held.get(&(root, shape.size())).unwrap_or(&nothing);
        let has_all = |segments: &BTreeSet<u64>| {
            // Counting answers without looking at every segment while a file arrives, and when it is here as a whole.
            let length = segments.len() as u64;
            length >= count
                && (length == shape.segments()
                    || wanted.clone().all(|index| segments.contains(&index)))
        };
        // What is synced was received.
        if has_all(&held.synced) {
            Presence::Synced
        } else if has_all(&held.received) {
            Presence::Received
        } else {
            Presence::Missing
        }
    }

    /// Keeps a segment that was checked. It survives a crash only after [`sync`](Self::sync).
    pub(super) fn put(&self, shape: FileShape, segment: &SegmentWithProof) -> Result<(), Error> {
        Object::new(&self.objects, segment.root, shape).write(segment)?;
        self.held
            .lock()
            .entry((segment.root, shape.size()))
            .or_default()
            .received
            .insert(segment.index);
        Ok(())
    }

    /// Makes everything that was received of a file durable.
    pub(super) fn sync(&self, root: B256, shape: FileShape) -> Result<(), Error> {
        let key = (root, shape.size());
        let syncing = match self.held.lock().get(&key) {
            Some(held) => Arc::clone(&held.syncing),
            None => return Ok(()),
        };
        // The last segment and its submission may arrive together, and each makes the file durable.
        let _turn = syncing.lock();
        let received = match self.held.lock().get(&key) {
            Some(held) if held.synced != held.received => held.received.clone(),
            _ => return Ok(()),
        };
        Object::new(&self.objects, root, shape).sync(received.len())?;
        if let Some(held) = self.held.lock().get_mut(&key) {
            held.synced = received;
        }
        Ok(())
    }

    /// Reads and checks a segment; `None` when it is not here, or was damaged.
    pub(super) fn get(
        &self,
        root: B256,
        shape: FileShape,
        index: u64,
    ) -> Result<Option<SegmentWithProof>, Error> {
        if !self.has(root, shape.size(), index) {
            return Ok(None);
        }
        let object = Object::new(&self.objects, root, shape);
        if let Some(segment) = object.read(index)? {
            return Ok(Some(segment));
        }
        tracing::warn!(path = %object.directory.display(), index, "a stored segment is damaged and forgotten");
        object.erase(index)?;
        if let Some(held) = self.held.lock().get_mut(&(root, shape.size())) {
            held.received.remove(&index);
            held.synced.remove(&index);
        }
        Ok(None)
    }
}

/// What is here of the segments that were asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Presence {
    /// Not all of them.
    Missing,
    /// All, but a crash might lose some.
    Received,
    /// All, on the disk.
    Synced,
}

/// The files of one object.
struct Object {
    root: B256,
    shape: FileShape,
    directory: PathBuf,
}

impl Object {
    fn new(objects: &Path, root: B256, shape: FileShape) -> Self {
        Self {
            root,
            shape,
            directory: objects.join(format!("{root:x}-{}", shape.size())),
        }
    }

    /// Segments with a record; `None` when there is no such object.
    fn recorded(&self) -> Result<Option<BTreeSet<u64>>, Error> {
        let path = self.directory.join(PROOFS);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(Error::File { path, source }),
        };
        let records = bytes.chunks(self.record_bytes()).zip(0..);
        Ok(Some(
            records
                .filter(|(record, index)| record[0] != 0 && *index < self.shape.segments())
                .map(|(_, index)| index)
                .collect(),
        ))
    }

    fn write(&self, segment: &SegmentWithProof) -> Result<(), Error> {
        if !self.directory.exists() {
            fs::create_dir_all(&self.directory).map_err(|source| self.failed(DATA, source))?;
        }
        let at = |name, bytes: &[u8], offset| {
            OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .open(self.directory.join(name))
                .and_then(|file| write_all_at(&file, bytes, offset))
                .map_err(|source| self.failed(name, source))
        };
        let record = self.encode_proof(&segment.proof);
        at(DATA, &segment.data, segment.index * SEGMENT_BYTES as u64)?;
        at(PROOFS, &record, segment.index * record.len() as u64)
    }

    fn read(&self, index: u64) -> Result<Option<SegmentWithProof>, Error> {
        let mut record = vec![0; self.record_bytes()];
        let mut data = vec![0; self.shape.segment_bytes(index)];
        let record_offset = index * record.len() as u64;
        let is_complete = self.fill(PROOFS, &mut record, record_offset)?
            && self.fill(DATA, &mut data, index * SEGMENT_BYTES as u64)?;
        let Some(proof) = decode_proof(&record).filter(|_| is_complete) else {
            return Ok(None);
        };
        let is_intact = check_segment(self.shape, self.root, index, &data, &proof).is_ok();
        Ok(is_intact.then(|| SegmentWithProof {
            root: self.root,
            data,
            index,
            proof,
            file_size: self.shape.size(),
        }))
    }

    /// Reads from one of the files; `false` when it is not that long.
    fn fill(&self, name: &str, buffer: &mut [u8], offset: u64) -> Result<bool, Error> {
        let read = File::open(self.directory.join(name))
            .and_then(|file| file.read_exact_at(buffer, offset));
        match read {
            Ok(()) => Ok(true),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::UnexpectedEof | io::ErrorKind::NotFound
                ) =>
            {
                Ok(false)
            }
            Err(source) => Err(self.failed(name, source)),
        }
    }

    fn erase(&self, index: u64) -> Result<(), Error> {
        let record = vec![0; self.record_bytes()];
        let opened = OpenOptions::new()
            .write(true)
            .open(self.directory.join(PROOFS));
        match opened {
            Ok(file) => write_all_at(&file, &record, index * record.len() as u64)
                .map_err(|source| self.failed(PROOFS, source)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(self.failed(PROOFS, source)),
        }
    }

    fn sync(&self, segments: usize) -> Result<(), Error> {
        for name in [DATA, PROOFS] {
            File::open(self.directory.join(name))
                .and_then(|file| file.sync_all())
                .map_err(|source| self.failed(name, source))?;
        }
        let temporary = self.directory.join("synced.new");
        let put_in_place = || {
            fs::write(&temporary, segments.to_string())?;
            File::open(&temporary)?.sync_all()?;
            fs::rename(&temporary, self.directory.join(SYNCED))?;
            sync_directory(&self.directory)?;
            self.directory.parent().map_or(Ok(()), sync_directory)
        };
        put_in_place().map_err(|source| self.failed(SYNCED, source))
    }

    fn failed(&self, name: &str, source: io::Error) -> Error {
        Error::File {
            path: self.directory.join(name),
            source,
        }
    }

    /// Most steps that a proof of this file can have.
    fn depth(&self) -> usize {
        self.shape
            .padded_segments()
            .next_power_of_two()
            .trailing_zeros() as usize
    }

    /// One byte, one for every step, one hash more than steps and the root.
    fn record_bytes(&self) -> usize {
        1 + self.depth() + 32 * (self.depth() + 2)
    }

    /// One more than the steps, the steps, the hashes; filled up with zeros.
    fn encode_proof(&self, proof: &FileProof) -> Vec<u8> {
        let mut bytes = vec![proof.path.len() as u8 + 1];
        bytes.extend(proof.path.iter().map(|is_left| u8::from(*is_left)));
        bytes.extend(proof.lemma.iter().flat_map(|hash| hash.0));
        debug_assert!(bytes.len() <= self.record_bytes(), "the proof was checked");
        bytes.resize(self.record_bytes(), 0);
        bytes
    }
}

fn decode_proof(record: &[u8]) -> Option<FileProof> {
    let (steps, rest) = record.split_first()?;
    let steps = usize::from(steps.checked_sub(1)?);
    let (path, rest) = rest.split_at_checked(steps)?;
    let hashes = if steps == 0 { 1 } else { steps + 2 };
    let lemma = rest.get(..32 * hashes)?;
    Some(FileProof {
        lemma: lemma.chunks_exact(32).map(B256::from_slice).collect(),
        path: path.iter().map(|is_left| *is_left == 1).collect(),
    })
}

fn parse_key(name: &str) -> Option<(B256, u64)> {
    let (root, size) = name.split_once('-')?;
    Some((root.parse().ok()?, size.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::merkle::FileTree;

    #[test]
    fn several_can_make_a_file_durable_at_the_same_time() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        for size in 1..=40_u64 {
            let shape = FileShape::new(size).unwrap();
            let content = vec![7; size as usize];
            let tree = FileTree::read(shape, &content[..]).unwrap();
            let mut data = content;
            data.resize(shape.segment_bytes(0), 0);
            let segment = SegmentWithProof {
                root: tree.root(),
                data,
                index: 0,
                proof: tree.proof(0),
                file_size: size,
            };
            store.put(shape, &segment).unwrap();
            std::thread::scope(|scope| {
                let syncing = [(); 4].map(|()| scope.spawn(|| store.sync(tree.root(), shape)));
                for outcome in syncing {
                    outcome.join().unwrap().unwrap();
                }
            });
            assert_eq!(
                store.presence(tree.root(), shape, 1, std::iter::once(0)),
                Presence::Synced
            );
        }
    }
}
