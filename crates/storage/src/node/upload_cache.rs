//! Segments of files whose payment was not seen yet, in memory, within bounds.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use alloy_primitives::B256;

use crate::rpc_types::SegmentWithProof;

/// The largest file that is accepted before its payment is seen.
pub(super) const MAX_FILE_BYTES: u64 = 10 << 20;
const MAX_POOL_BYTES: usize = 64 << 20;
const LIFETIME: Duration = Duration::from_secs(300);

#[derive(Debug, Default)]
pub(super) struct UploadCache {
    files: HashMap<(B256, u64), CachedFile>,
}

#[derive(Debug)]
struct CachedFile {
    segments: BTreeMap<u64, SegmentWithProof>,
    touched: Instant,
}

impl UploadCache {
    /// Keeps a checked segment for five minutes after the file's last one; `false` when there is no room.
    pub(super) fn add(&mut self, segment: SegmentWithProof, now: Instant) -> bool {
        self.files
            .retain(|_, file| now.saturating_duration_since(file.touched) < LIFETIME);
        let held: usize = self
            .files
            .values()
            .flat_map(|file| file.segments.values())
            .map(|held| held.data.len())
            .sum();
        if held + segment.data.len() > MAX_POOL_BYTES {
            return false;
        }
        let file = self
            .files
            .entry((segment.root, segment.file_size))
            .or_insert_with(|| CachedFile {
                segments: BTreeMap::new(),
                touched: now,
            });
        file.touched = now;
        file.segments.insert(segment.index, segment);
        true
    }

    pub(super) fn has(&self, root: B256, size: u64) -> bool {
        self.files.contains_key(&(root, size))
    }

    /// All segments of a file, which are forgotten here.
    pub(super) fn take(&mut self, root: B256, size: u64) -> Vec<SegmentWithProof> {
        self.files
            .remove(&(root, size))
            .map(|file| file.segments.into_values().collect())
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::merkle::FileProof;

    fn segment(root: u8, index: u64, bytes: usize) -> SegmentWithProof {
        let proof = FileProof {
            lemma: Vec::new(),
            path: Vec::new(),
        };
        SegmentWithProof {
            root: B256::repeat_byte(root),
            data: vec![0; bytes],
            index,
            proof,
            file_size: 1,
        }
    }

    #[test]
    fn segments_expire_and_the_pool_is_bounded() {
        let mut cache = UploadCache::default();
        let start = Instant::now();
        assert!(cache.add(segment(1, 0, MAX_POOL_BYTES - 10), start));
        assert!(!cache.add(segment(2, 0, 11), start));
        assert!(cache.add(segment(2, 0, 10), start + LIFETIME / 2));
        assert!(
            cache.add(segment(3, 0, 11), start + LIFETIME),
            "the first file has expired"
        );
        assert!(cache.take(B256::repeat_byte(1), 1).is_empty());
        assert_eq!(cache.take(B256::repeat_byte(2), 1).len(), 1);
        assert!(!cache.has(B256::repeat_byte(2), 1));
    }
}
