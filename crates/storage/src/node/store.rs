//! Segments on disk: `objects/<root>-<size>/<index>`, each file a proof followed by the segment's sectors.
//!
//! A segment file proves itself, so it is checked against its root whenever it is read; one that fails is removed and
//! counts as never received. Files are named by root **and** size because the root does not bind the size.

use std::{
    collections::{BTreeSet, HashMap},
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use alloy_primitives::B256;
use parking_lot::Mutex;

use crate::{
    Error, FileShape,
    merkle::{FileProof, check_segment},
    rpc_types::SegmentWithProof,
};

#[derive(Debug)]
pub(super) struct Store {
    objects: PathBuf,
    received: Mutex<HashMap<(B256, u64), BTreeSet<u64>>>,
    temporary_names: AtomicU64,
}

impl Store {
    pub(super) fn open(directory: &Path) -> Result<Self, Error> {
        let objects = directory.join("objects");
        let failed = |source| Error::File {
            path: objects.clone(),
            source,
        };
        fs::create_dir_all(&objects).map_err(failed)?;
        let mut received = HashMap::new();
        for object in fs::read_dir(&objects).map_err(failed)? {
            let object = object.map_err(failed)?;
            let Some(key) = object.file_name().to_str().and_then(parse_key) else {
                continue;
            };
            let mut segments = BTreeSet::new();
            for segment in fs::read_dir(object.path()).map_err(failed)? {
                let segment = segment.map_err(failed)?;
                let name = segment.file_name();
                match name.to_str().and_then(|name| name.parse().ok()) {
                    Some(index) => drop(segments.insert(index)),
                    // A write that was interrupted.
                    None => fs::remove_file(segment.path()).map_err(failed)?,
                }
            }
            received.insert(key, segments);
        }
        Ok(Self {
            objects,
            received: Mutex::new(received),
            temporary_names: AtomicU64::new(0),
        })
    }

    /// How many files have at least one segment here.
    pub(super) fn files(&self) -> usize {
        self.received.lock().len()
    }

    pub(super) fn has(&self, root: B256, size: u64, index: u64) -> bool {
        self.received
            .lock()
            .get(&(root, size))
            .is_some_and(|segments| segments.contains(&index))
    }

    /// How many segments of the file are here.
    pub(super) fn count(&self, root: B256, size: u64) -> u64 {
        self.received
            .lock()
            .get(&(root, size))
            .map_or(0, |segments| segments.len() as u64)
    }

    /// Keeps a segment that was checked; when this returns it is on the disk.
    pub(super) fn put(&self, shape: FileShape, segment: &SegmentWithProof) -> Result<(), Error> {
        let directory = self.directory(segment.root, shape.size());
        let path = directory.join(segment.index.to_string());
        let failed = |source| Error::File {
            path: path.clone(),
            source,
        };
        let is_new = !directory.exists();
        fs::create_dir_all(&directory).map_err(failed)?;
        if is_new {
            File::open(&self.objects)
                .and_then(|objects| objects.sync_all())
                .map_err(failed)?;
        }
        let number = self.temporary_names.fetch_add(1, Ordering::Relaxed);
        let temporary = directory.join(format!("new-{number}"));
        let written = File::create(&temporary).and_then(|mut file| {
            file.write_all(&encode_proof(&segment.proof))?;
            file.write_all(&segment.data)?;
            file.sync_data()?;
            fs::rename(&temporary, &path)?;
            File::open(&directory)?.sync_all()
        });
        written.map_err(failed)?;
        self.received
            .lock()
            .entry((segment.root, shape.size()))
            .or_default()
            .insert(segment.index);
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
        let path = self.directory(root, shape.size()).join(index.to_string());
        let failed = |source| Error::File {
            path: path.clone(),
            source,
        };
        let decoded = match fs::read(&path) {
            Ok(bytes) => decode(&bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(source) => return Err(failed(source)),
        };
        let intact =
            decoded.filter(|(proof, data)| check_segment(shape, root, index, data, proof).is_ok());
        let Some((proof, data)) = intact else {
            tracing::warn!(path = %path.display(), "a stored segment is damaged and removed");
            match fs::remove_file(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(failed(source));
                }
                _ => {}
            }
            if let Some(segments) = self.received.lock().get_mut(&(root, shape.size())) {
                segments.remove(&index);
            }
            return Ok(None);
        };
        Ok(Some(SegmentWithProof {
            root,
            data,
            index,
            proof,
            file_size: shape.size(),
        }))
    }

    fn directory(&self, root: B256, size: u64) -> PathBuf {
        self.objects.join(format!("{root:x}-{size}"))
    }
}

fn parse_key(name: &str) -> Option<(B256, u64)> {
    let (root, size) = name.split_once('-')?;
    Some((root.parse().ok()?, size.parse().ok()?))
}

/// Number of steps, the path as one byte each, number of hashes, the hashes.
fn encode_proof(proof: &FileProof) -> Vec<u8> {
    let mut bytes = vec![proof.path.len() as u8];
    bytes.extend(proof.path.iter().map(|is_left| u8::from(*is_left)));
    bytes.push(proof.lemma.len() as u8);
    bytes.extend(proof.lemma.iter().flat_map(|hash| hash.0));
    bytes
}

fn decode(bytes: &[u8]) -> Option<(FileProof, Vec<u8>)> {
    let (steps, rest) = bytes.split_first()?;
    let (path, rest) = rest.split_at_checked(usize::from(*steps))?;
    let (hashes, rest) = rest.split_first()?;
    let (lemma, data) = rest.split_at_checked(usize::from(*hashes) * 32)?;
    let proof = FileProof {
        lemma: lemma.chunks_exact(32).map(B256::from_slice).collect(),
        path: path.iter().map(|is_left| *is_left == 1).collect(),
    };
    Some((proof, data.to_vec()))
}
