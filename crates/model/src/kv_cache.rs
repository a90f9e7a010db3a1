//! Keys and values of the tokens that a sequence has already seen, in blocks that sequences can share.
//!
//! A block holds [`BLOCK_TOKENS`] tokens of all layers. Blocks that are full never change, so any number of sequences
//! with the same beginning may hold the same ones; a block that is written to while others hold it is copied first.
//! What a block holds is numbers on the host, or a place in the memory of a device; all else is the same.

use crate::config::ModelConfig;
use crate::device::DeviceCache;
use crate::error::ModelError;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use zerog_kernels::attention::Heads;
pub use zerog_kernels::cached_attention::BLOCK_TOKENS;
use zerog_kernels::cached_attention::{block_elements, store};

/// Unused blocks that a pool keeps for the next sequences.
const SPARE_BLOCKS: usize = 256;

/// Where blocks come from; it knows how many are in use.
#[derive(Debug)]
pub struct KvPool {
    layers: usize,
    heads: Heads,
    live: AtomicUsize,
    store: Store,
}

/// What blocks are made of.
#[derive(Debug)]
enum Store {
    /// Numbers on the host; lists that nobody uses are kept for the next sequences.
    Host(Mutex<Vec<Vec<f32>>>),
    /// Places in memory that a device has set aside.
    Device(DeviceCache),
}

impl KvPool {
    /// A pool on the host for caches of models of this shape.
    pub fn new(config: &ModelConfig) -> Arc<Self> {
        Self::of(config, Store::Host(Mutex::default()))
    }

    /// A pool of the blocks that a device has set aside for models of this shape.
    pub(crate) fn on_device(config: &ModelConfig, cache: DeviceCache) -> Arc<Self> {
        Self::of(config, Store::Device(cache))
    }

    fn of(config: &ModelConfig, store: Store) -> Arc<Self> {
        Arc::new(Self {
            layers: config.layers,
            heads: config.heads(),
            live: AtomicUsize::new(0),
            store,
        })
    }

    /// The blocks on the device, if they are there.
    pub(crate) fn device(&self) -> Option<&DeviceCache> {
        match &self.store {
            Store::Host(_) => None,
            Store::Device(cache) => Some(cache),
        }
    }

    /// Blocks that somebody holds.
    pub fn live_blocks(&self) -> usize {
        self.live.load(Ordering::Relaxed)
    }

    /// A block that nobody else holds.
    ///
    /// # Errors
    /// [`ModelError::CacheFull`] on a device. On the host there is always another one.
    pub fn fresh_block(self: &Arc<Self>) -> Result<Arc<KvBlock>, ModelError> {
        Ok(Arc::new(self.block()?))
    }

    fn block(self: &Arc<Self>) -> Result<KvBlock, ModelError> {
        let content = match &self.store {
            Store::Host(spare) => {
                let spare = spare.lock().unwrap_or_else(PoisonError::into_inner).pop();
                let elements = self.layers * block_elements(self.heads);
                Content::Host(spare.unwrap_or_else(|| vec![0.0; elements]))
            }
            Store::Device(cache) => Content::Device(cache.take().ok_or(ModelError::CacheFull {
                blocks: cache.blocks(),
            })?),
        };
        self.live.fetch_add(1, Ordering::Relaxed);
        Ok(KvBlock {
            content,
            pool: Arc::clone(self),
        })
    }
}

/// Keys and values of [`BLOCK_TOKENS`] tokens in all layers.
#[derive(Debug)]
pub struct KvBlock {
    content: Content,
    pool: Arc<KvPool>,
}

#[derive(Debug)]
enum Content {
    /// The numbers.
    Host(Vec<f32>),
    /// The number of the block on the device of its pool.
    Device(u32),
}

impl KvBlock {
    fn copied(&self) -> Result<Self, ModelError> {
        let mut copy = self.pool.block()?;
        match (&self.content, &mut copy.content, &self.pool.store) {
            (Content::Host(values), Content::Host(copy), _) => copy.copy_from_slice(values),
            (Content::Device(from), Content::Device(to), Store::Device(cache)) => {
                cache.copy(*from, *to)?;
            }
            _ => unreachable!("blocks of a pool are where the pool is"),
        }
        Ok(copy)
    }

    fn values(&self) -> &[f32] {
        match &self.content {
            Content::Host(values) => values,
            Content::Device(_) => unreachable!("caches are checked before a pass"),
        }
    }
}

impl Drop for KvBlock {
    fn drop(&mut self) {
        self.pool.live.fetch_sub(1, Ordering::Relaxed);
        match (&mut self.content, &self.pool.store) {
            (Content::Host(values), Store::Host(spare)) => {
                let mut spare = spare.lock().unwrap_or_else(PoisonError::into_inner);
                if spare.len() < SPARE_BLOCKS {
                    spare.push(std::mem::take(values));
                }
            }
            (Content::Device(block), Store::Device(cache)) => cache.give_back(*block),
            _ => unreachable!("blocks of a pool are where the pool is"),
        }
    }
}

/// The cache of one sequence. Cloning it forks the sequence: both hold the same blocks until one of them writes.
#[derive(Clone, Debug)]
pub struct KvCache {
    pool: Arc<KvPool>,
    blocks: Vec<Arc<KvBlock>>,
    length: usize,
}

impl KvCache {
    /// An empty cache with a pool of its own, with room for a list of as many blocks as `expected_tokens` take.
    pub fn new(config: &ModelConfig, expected_tokens: usize) -> Self {
        let mut cache = Self::in_pool(&KvPool::new(config));
        let expected = expected_tokens.min(config.maximum_positions);
        cache.blocks.reserve(expected.div_ceil(BLOCK_TOKENS));
        cache
    }

    /// An empty cache whose blocks come from `pool`.
    pub fn in_pool(pool: &Arc<KvPool>) -> Self {
        Self {
            pool: Arc::clone(pool),
            blocks: Vec::new(),
            length: 0,
        }
    }

    /// A sequence that has seen the tokens of whole blocks of another one of the same pool.
    pub fn from_blocks(pool: &Arc<KvPool>, blocks: Vec<Arc<KvBlock>>) -> Self {
        assert!(
            blocks.iter().all(|block| Arc::ptr_eq(&block.pool, pool)),
            "one pool"
        );
        Self {
            pool: Arc::clone(pool),
            length: blocks.len() * BLOCK_TOKENS,
            blocks,
        }
    }

    /// The blocks that are full, in order.
    pub fn full_blocks(&self) -> &[Arc<KvBlock>] {
        &self.blocks[..self.length / BLOCK_TOKENS]
    }

    /// Blocks that appending `tokens` tokens would take from the pool.
    pub fn blocks_needed(&self, tokens: usize) -> usize {
        let last = (self.length + tokens).div_ceil(BLOCK_TOKENS);
        // A shared last block is copied before it is written to.
        let is_copied = tokens > 0
            && !self.length.is_multiple_of(BLOCK_TOKENS)
            && self
                .blocks
                .get(self.length / BLOCK_TOKENS)
                .is_some_and(|block| Arc::strong_count(block) > 1);
        last.saturating_sub(self.blocks.len()) + usize::from(is_copied)
    }

    /// Tokens in the cache.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether no token is in the cache.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Forgets all tokens after the first `length`; does nothing if there are fewer.
    pub fn truncate(&mut self, length: usize) {
        if length < self.length {
            self.length = length;
            self.blocks.truncate(length.div_ceil(BLOCK_TOKENS));
        }
    }

    /// Bytes of the blocks of this cache, shared ones included.
    pub fn bytes(&self) -> usize {
        let elements = self.pool.layers * block_elements(self.pool.heads);
        self.blocks.len() * elements * size_of::<f32>()
    }

    /// Bytes that a token takes in a cache of `config`.
    pub fn bytes_per_token(config: &ModelConfig) -> usize {
        2 * config.layers * config.key_width() * size_of::<f32>()
    }

    pub(crate) fn fits(&self, config: &ModelConfig) -> bool {
        self.pool.layers == config.layers && self.pool.heads == config.heads()
    }

    /// Where the blocks come from.
    pub(crate) fn pool(&self) -> &Arc<KvPool> {
        &self.pool
    }

    /// Makes room for `tokens` more tokens that nobody else sees; [`KvCache::append`] for every layer and
    /// [`KvCache::advance`] follow.
    ///
    /// # Errors
    /// [`ModelError::CacheFull`] and [`ModelError::Device`] on a device; the tokens in the cache are still there.
    pub(crate) fn reserve(&mut self, tokens: usize) -> Result<(), ModelError> {
        if tokens > 0
            && !self.length.is_multiple_of(BLOCK_TOKENS)
            && let Some(last) = self.blocks.get_mut(self.length / BLOCK_TOKENS)
            && Arc::get_mut(last).is_none()
        {
            *last = Arc::new(last.copied()?);
        }
        let needed = (self.length + tokens).div_ceil(BLOCK_TOKENS);
        while self.blocks.len() < needed {
            self.blocks.push(self.pool.fresh_block()?);
        }
        Ok(())
    }

    /// Writes rows `(tokens, key_width)` of one layer behind the tokens that are there.
    pub(crate) fn append(&mut self, layer: usize, keys: &[f32], values: &[f32]) {
        let heads = self.pool.heads;
        let width = heads.groups * heads.size;
        let elements = block_elements(heads);
        let rows = keys.chunks_exact(width).zip(values.chunks_exact(width));
        for (position, (keys, values)) in (self.length..).zip(rows) {
            let block = Arc::get_mut(&mut self.blocks[position / BLOCK_TOKENS])
                .expect("room was made in blocks that nobody else holds");
            let Content::Host(content) = &mut block.content else {
                unreachable!("caches are checked before a pass")
            };
            let part = &mut content[layer * elements..(layer + 1) * elements];
            store(heads, part, position % BLOCK_TOKENS, keys, values);
        }
    }

    /// The blocks of one layer.
    pub(crate) fn layer(&self, layer: usize) -> Vec<&[f32]> {
        let elements = block_elements(self.pool.heads);
        let range = layer * elements..(layer + 1) * elements;
        self.blocks
            .iter()
            .map(|block| &block.values()[range.clone()])
            .collect()
    }

    /// The numbers of the blocks on the device of the pool.
    #[cfg(feature = "cuda")]
    pub(crate) fn device_blocks(&self) -> Vec<u32> {
        let number = |block: &Arc<KvBlock>| match block.content {
            Content::Device(number) => number,
            Content::Host(_) => unreachable!("caches are checked before a pass"),
        };
        self.blocks.iter().map(number).collect()
    }

    pub(crate) fn advance(&mut self, tokens: usize) {
        self.length += tokens;
    }
}
