//! Keys and values of the tokens that a sequence has already seen, in blocks that sequences can share.
//!
//! A block holds [`BLOCK_TOKENS`] tokens of all layers. Blocks that are full never change, so any number of sequences
//! with the same beginning may hold the same ones; a block that is written to while others hold it is copied first.

use crate::config::ModelConfig;
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
    spare: Mutex<Vec<Vec<f32>>>,
}

impl KvPool {
    /// A pool for caches of models of this shape.
    pub fn new(config: &ModelConfig) -> Arc<Self> {
        Arc::new(Self {
            layers: config.layers,
            heads: config.heads(),
            live: AtomicUsize::new(0),
            spare: Mutex::default(),
        })
    }

    /// Blocks that somebody holds.
    pub fn live_blocks(&self) -> usize {
        self.live.load(Ordering::Relaxed)
    }

    /// A block that nobody else holds.
    pub fn fresh_block(self: &Arc<Self>) -> Arc<KvBlock> {
        Arc::new(self.block())
    }

    fn block(self: &Arc<Self>) -> KvBlock {
        let spare = self
            .spare
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        self.live.fetch_add(1, Ordering::Relaxed);
        KvBlock {
            values: spare.unwrap_or_else(|| vec![0.0; self.layers * block_elements(self.heads)]),
            pool: Arc::clone(self),
        }
    }
}

/// Keys and values of [`BLOCK_TOKENS`] tokens in all layers.
#[derive(Debug)]
pub struct KvBlock {
    values: Vec<f32>,
    pool: Arc<KvPool>,
}

impl KvBlock {
    fn copied(&self) -> Self {
        let mut copy = self.pool.block();
        copy.values.copy_from_slice(&self.values);
        copy
    }
}

impl Drop for KvBlock {
    fn drop(&mut self) {
        self.pool.live.fetch_sub(1, Ordering::Relaxed);
        let mut spare = self
            .pool
            .spare
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if spare.len() < SPARE_BLOCKS {
            spare.push(std::mem::take(&mut self.values));
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
        let elements: usize = self.blocks.iter().map(|block| block.values.len()).sum();
        elements * size_of::<f32>()
    }

    /// Bytes that a token takes in a cache of `config`.
    pub fn bytes_per_token(config: &ModelConfig) -> usize {
        2 * config.layers * config.key_width() * size_of::<f32>()
    }

    pub(crate) fn fits(&self, config: &ModelConfig) -> bool {
        self.pool.layers == config.layers && self.pool.heads == config.heads()
    }

    /// Makes room for `tokens` more tokens that nobody else sees; [`KvCache::append`] for every layer and
    /// [`KvCache::advance`] follow.
    pub(crate) fn reserve(&mut self, tokens: usize) {
        if tokens > 0
            && !self.length.is_multiple_of(BLOCK_TOKENS)
            && let Some(last) = self.blocks.get_mut(self.length / BLOCK_TOKENS)
            && Arc::get_mut(last).is_none()
        {
            *last = Arc::new(last.copied());
        }
        let needed = (self.length + tokens).div_ceil(BLOCK_TOKENS);
        while self.blocks.len() < needed {
            self.blocks.push(self.pool.fresh_block());
        }
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
            let part = &mut block.values[layer * elements..(layer + 1) * elements];
            store(heads, part, position % BLOCK_TOKENS, keys, values);
        }
    }

    /// The blocks of one layer.
    pub(crate) fn layer(&self, layer: usize) -> Vec<&[f32]> {
        let elements = block_elements(self.pool.heads);
        let range = layer * elements..(layer + 1) * elements;
        self.blocks
            .iter()
            .map(|block| &block.values[range.clone()])
            .collect()
    }

    pub(crate) fn advance(&mut self, tokens: usize) {
        self.length += tokens;
    }
}
