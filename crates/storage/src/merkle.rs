//! The Merkle tree of a stored file: padding, root, submission nodes, segment proofs.
//!
//! A file is cut into sectors of 256 bytes and padded with zero sectors; 1024 sectors are a segment. Leaves are hashes
//! of sectors; an unpaired last node of a level is carried up unchanged. A [`FileTree`] keeps the levels above the
//! segments only (64 bytes for every 256 KiB of file), which is all that proofs need. Rules and vectors:
//! `docs/protocol.md`, storage.

use std::{fs::File, io, path::Path, sync::LazyLock};

use alloy_primitives::{B256, Keccak256, keccak256};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use zerog_chain::flow::SubmissionNode;
use zerog_keccak::{Hash, hash_pairs, hash_sectors};

use crate::{Content, Error};

/// Bytes of a sector, the unit of payment and of leaves.
pub const SECTOR_BYTES: usize = 256;
/// Sectors of a segment, the unit of transfer and of proofs.
pub const SEGMENT_SECTORS: u64 = 1_024;
/// Bytes of a full segment.
pub const SEGMENT_BYTES: usize = SECTOR_BYTES * SEGMENT_SECTORS as usize;
/// The largest file this crate handles: 1 TiB. Its tree takes 256 MiB of memory, and no model comes near.
pub const MAX_FILE_BYTES: u64 = 1 << 40;

/// Height of a segment's root above its sectors.
const SEGMENT_HEIGHT: usize = 10;

/// How a file of some size is cut and padded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileShape {
    size: u64,
    sectors: u64,
    padded_sectors: u64,
}

impl FileShape {
    /// The shape of a file of `size` bytes.
    ///
    /// # Errors
    ///
    /// [`Error::EmptyFile`]: an empty file has no root. [`Error::FileTooLarge`] above [`MAX_FILE_BYTES`].
    pub fn new(size: u64) -> Result<Self, Error> {
        if size == 0 {
            return Err(Error::EmptyFile);
        }
        if size > MAX_FILE_BYTES {
            return Err(Error::FileTooLarge { size });
        }
        let sectors = size.div_ceil(SECTOR_BYTES as u64);
        let unit = (sectors.next_power_of_two() / 16).max(1);
        let padded_sectors = if sectors.is_power_of_two() {
            sectors
        } else {
            sectors.next_multiple_of(unit)
        };
        Ok(Self {
            size,
            sectors,
            padded_sectors,
        })
    }

    /// Bytes of the file.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Sectors of the file, the last one filled up.
    pub fn sectors(&self) -> u64 {
        self.sectors
    }

    /// Sectors after padding: what is paid for.
    pub fn padded_sectors(&self) -> u64 {
        self.padded_sectors
    }

    /// Segments that hold bytes of the file.
    pub fn segments(&self) -> u64 {
        self.sectors.div_ceil(SEGMENT_SECTORS)
    }

    /// Segments after padding: leaves of the proof tree.
    pub fn padded_segments(&self) -> u64 {
        self.padded_sectors.div_ceil(SEGMENT_SECTORS)
    }

    /// Bytes of segment `index` as it is transferred: whole sectors, without padding segments.
    pub fn segment_bytes(&self, index: u64) -> usize {
        let sectors = self
            .sectors
            .saturating_sub(index * SEGMENT_SECTORS)
            .min(SEGMENT_SECTORS);
        sectors as usize * SECTOR_BYTES
    }

    /// Bytes of the file in segment `index`.
    pub fn file_bytes(&self, index: u64) -> usize {
        self.size
            .saturating_sub(index * SEGMENT_BYTES as u64)
            .min(SEGMENT_BYTES as u64) as usize
    }

    /// Leaves of padded segment `index`.
    fn leaves(&self, index: u64) -> usize {
        (self.padded_sectors - index * SEGMENT_SECTORS).min(SEGMENT_SECTORS) as usize
    }

    /// Root of segment `index` over its transferred bytes.
    pub fn segment_root(&self, index: u64, data: &[u8]) -> B256 {
        B256::new(root_of(segment_leaves(data, self.leaves(index))))
    }

    /// Root over the padded segments `start..start + count`, all of them beyond the file.
    fn padding_root(&self, start: u64, count: u64) -> B256 {
        let ends_full = self.leaves(start + count - 1) == SEGMENT_SECTORS as usize;
        if count.is_power_of_two() && ends_full {
            return zero_hash(SEGMENT_HEIGHT + count.trailing_zeros() as usize);
        }
        tree_root(
            (start..start + count)
                .map(|index| self.segment_root(index, &[]))
                .collect(),
        )
    }
}

/// Root of a subtree of `2^height` zero sectors.
///
/// # Panics
///
/// When `height` is above 63, which no submission can have.
pub fn zero_hash(height: usize) -> B256 {
    static HASHES: LazyLock<[B256; 64]> = LazyLock::new(|| {
        let mut hash = keccak256([0; SECTOR_BYTES]);
        std::array::from_fn(|height| {
            if height > 0 {
                hash = parent(hash, hash);
            }
            hash
        })
    });
    HASHES[height]
}

/// Root of a tree over `leaves`, an unpaired last node of a level being carried up.
///
/// # Panics
///
/// Without leaves.
pub fn tree_root(leaves: Vec<B256>) -> B256 {
    B256::new(root_of(leaves.into_iter().map(|leaf| leaf.0).collect()))
}

fn root_of(mut level: Vec<Hash>) -> Hash {
    while level.len() > 1 {
        level = level_above(&level);
    }
    level[0]
}

/// Parents of the nodes of a level, an unpaired last one being its own.
fn level_above(level: &[Hash]) -> Vec<Hash> {
    let (pairs, unpaired) = level.as_chunks::<2>();
    let pairs = pairs.as_flattened().as_flattened().as_chunks().0;
    let mut above = vec![[0; 32]; pairs.len()];
    hash_pairs(pairs, &mut above);
    above.extend(unpaired);
    above
}

/// Root of a file from its submission nodes, as storage nodes compute it from the chain's event.
///
/// # Panics
///
/// Without nodes.
pub fn root_of_nodes(nodes: &[SubmissionNode]) -> B256 {
    let (last, before) = nodes
        .split_last()
        .expect("a submission has at least one node");
    before
        .iter()
        .rev()
        .fold(last.root, |root, node| parent(node.root, root))
}

/// Root of the file at `path`, in constant memory. Blocking; uses all cores.
///
/// # Errors
///
/// As [`FileTree::of_file`].
pub fn root_of_file(path: &Path) -> Result<B256, Error> {
    FileTree::of_file(path).map(|tree| tree.root())
}

/// The upper part of a file's tree: from segment roots to the file's root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileTree {
    shape: FileShape,
    /// Segment roots first, the file's root last.
    levels: Vec<Vec<Hash>>,
    /// Leaves of the last padded segment: the lowest submission nodes lie within it.
    last_leaves: Vec<Hash>,
}

impl FileTree {
    /// Reads and hashes a file. Blocking; uses all cores.
    ///
    /// # Errors
    ///
    /// [`Error::EmptyFile`], [`Error::FileTooLarge`], [`Error::File`]; the latter also when the file's length changes
    /// meanwhile.
    pub fn of_file(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::File {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(failed(io::Error::other("not a regular file")));
        }
        Self::read(FileShape::new(metadata.len())?, &file).map_err(failed)
    }

    /// Hashes `content`, which must have exactly the size of `shape`. Uses all cores; memory does not grow with the
    /// content, but for 32 bytes a segment.
    ///
    /// # Errors
    ///
    /// What the content fails with, and [`io::ErrorKind::InvalidData`] when it has another size, before or after.
    pub fn read(shape: FileShape, content: &(impl Content + ?Sized)) -> io::Result<Self> {
        let check_size = || match content.size()? {
            size if size == shape.size => Ok(()),
            size => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "it has {size} bytes instead of {}; it changed meanwhile",
                    shape.size
                ),
            )),
        };
        check_size()?;
        let segments = shape.segments();
        let last_segment = shape.padded_segments() - 1;
        // Every worker reads and hashes one segment at a time, so that the bytes are still in its cache.
        let mut hashed: Vec<(Hash, Vec<Hash>)> = (0..segments)
            .into_par_iter()
            .map_init(
                || vec![0; SEGMENT_BYTES],
                |buffer, index| {
                    let data = &mut buffer[..shape.file_bytes(index)];
                    content.read_exact_at(data, index * SEGMENT_BYTES as u64)?;
                    let leaves = segment_leaves(data, shape.leaves(index));
                    let kept = if index == last_segment {
                        leaves.clone()
                    } else {
                        Vec::new()
                    };
                    Ok((root_of(leaves), kept))
                },
            )
            .collect::<io::Result<_>>()?;
        check_size()?;
        for index in segments..=last_segment {
            let leaves = vec![zero_hash(0).0; shape.leaves(index)];
            hashed.push((root_of(leaves.clone()), leaves));
        }
        let last_leaves = hashed
            .last_mut()
            .map(|(_, leaves)| std::mem::take(leaves))
            .expect("a file has a segment");
        let segment_roots = hashed.into_iter().map(|(root, _)| root).collect();
        Ok(Self {
            shape,
            levels: levels(segment_roots),
            last_leaves,
        })
    }

    /// Size, sectors, segments.
    pub fn shape(&self) -> FileShape {
        self.shape
    }

    /// The file's root: its name on the network.
    pub fn root(&self) -> B256 {
        B256::new(self.levels.last().expect("a file has a segment")[0])
    }

    /// Root of padded segment `index`.
    pub fn segment_root(&self, index: u64) -> B256 {
        B256::new(self.levels[0][index as usize])
    }

    /// The proof that segment `index` belongs to the file.
    pub fn proof(&self, index: u64) -> FileProof {
        let mut position = index as usize;
        let mut lemma = vec![self.segment_root(index)];
        let mut path = Vec::new();
        for level in &self.levels {
            if let Some(sibling) = level.get(position ^ 1) {
                lemma.push(B256::new(*sibling));
                path.push(position.is_multiple_of(2));
            }
            position /= 2;
        }
        if !path.is_empty() {
            lemma.push(self.root());
        }
        FileProof { lemma, path }
    }

    /// The largest power-of-two subtrees that make up the file, as they are submitted.
    pub fn submission_nodes(&self) -> Vec<SubmissionNode> {
        let mut nodes = Vec::new();
        let mut start = 0_u64;
        for height in (0..64_u8)
            .rev()
            .filter(|height| self.shape.padded_sectors >> height & 1 == 1)
        {
            let sectors = 1_u64 << height;
            let root = if sectors >= SEGMENT_SECTORS {
                let first = (start / SEGMENT_SECTORS) as usize;
                root_of(
                    self.levels[0][first..first + (sectors / SEGMENT_SECTORS) as usize].to_vec(),
                )
            } else {
                let first = (start % SEGMENT_SECTORS) as usize;
                root_of(self.last_leaves[first..first + sectors as usize].to_vec())
            };
            nodes.push(SubmissionNode {
                root: B256::new(root),
                height,
            });
            start += sectors;
        }
        nodes
    }
}

/// The proof that a segment belongs to a file, as it goes over the wire.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileProof {
    /// Segment root, siblings from the bottom up, file root; for a file of one segment just its root.
    pub lemma: Vec<B256>,
    /// For every sibling, whether the proven node is the left one.
    pub path: Vec<bool>,
}

/// What is wrong with a segment or its proof. The texts are those of the storage network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidSegment {
    /// The file has no such segment.
    #[error("index out of bound")]
    Index,
    /// Not the number of bytes that the segment has.
    #[error("invalid data length")]
    Length,
    /// The proof does not have the form that its own length demands.
    #[error("invalid proof")]
    ProofForm,
    /// Data, position or root do not fit the proof.
    #[error("validation failed")]
    Mismatch,
    /// A sibling that lies in the padding is not made of zeros.
    #[error("invalid proof node value in the padding range")]
    Padding,
}

/// Checks that `data` is segment `index` of the file with this shape and root.
///
/// # Errors
///
/// The first thing that is wrong.
pub fn check_segment(
    shape: FileShape,
    root: B256,
    index: u64,
    data: &[u8],
    proof: &FileProof,
) -> Result<(), InvalidSegment> {
    if index >= shape.segments() {
        return Err(InvalidSegment::Index);
    }
    if data.len() != shape.segment_bytes(index) {
        return Err(InvalidSegment::Length);
    }
    let single = proof.lemma.len() == 1 && proof.path.is_empty();
    if !single
        && (proof.path.is_empty()
            || proof.lemma.len() != proof.path.len() + 2
            || proof.path.len() > 64)
    {
        return Err(InvalidSegment::ProofForm);
    }
    if proof.lemma.last() != Some(&root) {
        return Err(InvalidSegment::Mismatch);
    }
    check_position(shape, index, proof)?;
    let mut hash = shape.segment_root(index, data);
    if proof.lemma[0] != hash {
        return Err(InvalidSegment::Mismatch);
    }
    for (sibling, is_left) in proof.lemma[1..].iter().zip(&proof.path) {
        hash = if *is_left {
            parent(hash, *sibling)
        } else {
            parent(*sibling, hash)
        };
    }
    if hash == root {
        Ok(())
    } else {
        Err(InvalidSegment::Mismatch)
    }
}

/// Walks the path from the root down: it must lead to `index`, past nothing but zeros where the padding is.
fn check_position(shape: FileShape, index: u64, proof: &FileProof) -> Result<(), InvalidSegment> {
    let (mut start, mut count) = (0, shape.padded_segments());
    for (step, is_left) in proof.path.iter().enumerate().rev() {
        if count <= 1 {
            return Err(InvalidSegment::Mismatch);
        }
        let half = count.next_power_of_two() / 2;
        if *is_left {
            let (sibling_start, sibling_count) = (start + half, count - half);
            if sibling_start >= shape.segments()
                && proof.lemma[step + 1] != shape.padding_root(sibling_start, sibling_count)
            {
                return Err(InvalidSegment::Padding);
            }
            count = half;
        } else {
            start += half;
            count -= half;
        }
    }
    if count == 1 && start == index {
        Ok(())
    } else {
        Err(InvalidSegment::Mismatch)
    }
}

fn parent(left: B256, right: B256) -> B256 {
    let mut digest = Keccak256::new();
    digest.update(left);
    digest.update(right);
    digest.finalize()
}

/// Leaves of a segment: its sectors, the last one filled up with zeros, then zero sectors up to `count`.
fn segment_leaves(data: &[u8], count: usize) -> Vec<Hash> {
    let mut leaves = vec![zero_hash(0).0; count];
    let (whole, rest) = data.as_chunks::<SECTOR_BYTES>();
    hash_sectors(whole, &mut leaves[..whole.len()]);
    if !rest.is_empty() {
        let mut sector = [0; SECTOR_BYTES];
        sector[..rest.len()].copy_from_slice(rest);
        leaves[whole.len()] = keccak256(sector).0;
    }
    leaves
}

fn levels(leaves: Vec<Hash>) -> Vec<Vec<Hash>> {
    let mut levels = vec![leaves];
    while let Some(level) = levels.last().filter(|level| level.len() > 1) {
        levels.push(level_above(level));
    }
    levels
}
