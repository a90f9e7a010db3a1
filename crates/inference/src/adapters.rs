//! Adapters in memory: which are loaded, which were used last, and which must stay because a request runs on them.
//!
//! This is host memory. An engine on a device copies adapters there when they are used first, as long as they are here
//! and there is room. What falls out of here is still sealed on the provider's disk and is loaded again on first use.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use zerog_model::LoraAdapter;

/// An adapter that passed its checks.
#[derive(Debug)]
pub(crate) struct LoadedAdapter {
    /// Name under which requests ask for it.
    pub(crate) id: String,
    /// The low-rank weights.
    pub(crate) weights: Arc<LoraAdapter>,
    /// Memory of the weights.
    pub(crate) bytes: usize,
    /// A number that no other load has had, so that nothing computed with other weights of this name is reused.
    pub(crate) instance: u64,
}

impl LoadedAdapter {
    pub(crate) fn new(id: &str, weights: Arc<LoraAdapter>) -> Self {
        static INSTANCES: AtomicU64 = AtomicU64::new(1);
        Self {
            id: id.to_owned(),
            bytes: weights.bytes(),
            weights,
            instance: INSTANCES.fetch_add(1, Ordering::Relaxed),
        }
    }
}

/// One loaded adapter, as lists show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterInfo {
    /// Name under which requests ask for it.
    pub id: String,
    /// Memory of the weights in bytes.
    pub bytes: usize,
    /// Requests that run on it now.
    pub in_use: usize,
}

/// There is no room, and everything loaded is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no room for another adapter: {loaded} are loaded and the rest is in use")]
pub struct NoRoom {
    /// Adapters that are loaded.
    pub loaded: usize,
}

/// The loaded adapters, least recently used out first, never one that is in use.
#[derive(Debug)]
pub(crate) struct AdapterCache {
    entries: HashMap<String, Entry>,
    max_adapters: usize,
    max_bytes: usize,
    clock: u64,
}

#[derive(Debug)]
struct Entry {
    adapter: Arc<LoadedAdapter>,
    last_used: u64,
}

impl AdapterCache {
    pub(crate) fn new(max_adapters: usize, max_bytes: usize) -> Self {
        Self {
            entries: HashMap::new(),
            max_adapters,
            max_bytes,
            clock: 0,
        }
    }

    /// The adapter for one request; it stays pinned until the request drops it.
    pub(crate) fn use_adapter(&mut self, id: &str) -> Option<Arc<LoadedAdapter>> {
        self.clock += 1;
        let entry = self.entries.get_mut(id)?;
        entry.last_used = self.clock;
        Some(Arc::clone(&entry.adapter))
    }

    pub(crate) fn contains(&self, id: &str) -> bool {
        self.entries.contains_key(id)
    }

    /// Adds an adapter and returns the ids that had to leave.
    pub(crate) fn insert(&mut self, adapter: LoadedAdapter) -> Result<Vec<String>, NoRoom> {
        self.clock += 1;
        // Requests that run on an older version keep it; the name now means the new one.
        self.entries.remove(&adapter.id);
        let mut idle: Vec<(u64, String, usize)> = self
            .entries
            .values()
            .filter(|entry| Arc::strong_count(&entry.adapter) == 1)
            .map(|entry| {
                (
                    entry.last_used,
                    entry.adapter.id.clone(),
                    entry.adapter.bytes,
                )
            })
            .collect();
        idle.sort_unstable_by_key(|entry| std::cmp::Reverse(entry.0));
        let mut evicted = Vec::new();
        let (mut count, mut bytes) = (self.entries.len(), self.bytes());
        while count >= self.max_adapters || bytes.saturating_add(adapter.bytes) > self.max_bytes {
            let Some((_, id, size)) = idle.pop() else {
                return Err(NoRoom {
                    loaded: self.entries.len(),
                });
            };
            count -= 1;
            bytes -= size;
            evicted.push(id);
        }
        for id in &evicted {
            self.entries.remove(id);
        }
        let last_used = self.clock;
        self.entries.insert(
            adapter.id.clone(),
            Entry {
                adapter: Arc::new(adapter),
                last_used,
            },
        );
        Ok(evicted)
    }

    /// Forgets an adapter; requests that run on it finish.
    pub(crate) fn remove(&mut self, id: &str) -> bool {
        self.entries.remove(id).is_some()
    }

    pub(crate) fn list(&self) -> Vec<AdapterInfo> {
        let mut list: Vec<AdapterInfo> = self
            .entries
            .values()
            .map(|entry| AdapterInfo {
                id: entry.adapter.id.clone(),
                bytes: entry.adapter.bytes,
                in_use: Arc::strong_count(&entry.adapter) - 1,
            })
            .collect();
        list.sort_unstable_by(|left, right| left.id.cmp(&right.id));
        list
    }

    fn bytes(&self) -> usize {
        self.entries.values().map(|entry| entry.adapter.bytes).sum()
    }
}
