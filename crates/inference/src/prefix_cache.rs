//! Beginnings that sequences have in common: blocks of keys and values by the tokens that they hold.
//!
//! Blocks form a tree. A block is found only through the block before it and by its own tokens, compared one by one,
//! so nothing is ever taken for something else. Trees are apart by adapter, whose weights are in the values, and by
//! scope, so that one caller cannot learn from the time of an answer what another one has asked.

use std::collections::HashMap;
use std::sync::Arc;

use zerog_model::{BLOCK_TOKENS, KvBlock};

/// Which tree.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Root {
    /// Callers who may share.
    pub(crate) scope: Arc<str>,
    /// Instance of the adapter; 0 is the base model.
    pub(crate) adapter: u64,
}

/// Number of a node or of a tree.
type Id = u64;

/// Remembered blocks, least recently used out first, never one that a sequence holds.
#[derive(Debug, Default)]
pub(crate) struct PrefixCache {
    roots: HashMap<Root, Id>,
    /// Tree and number of blocks directly below its root.
    trees: HashMap<Id, (Root, usize)>,
    nodes: HashMap<Id, Node>,
    by_tokens: HashMap<(Id, [u32; BLOCK_TOKENS]), Id>,
    next_id: Id,
    clock: u64,
}

#[derive(Debug)]
struct Node {
    block: Arc<KvBlock>,
    parent: Id,
    tokens: [u32; BLOCK_TOKENS],
    last_used: u64,
    children: usize,
}

impl PrefixCache {
    /// Blocks of the longest known beginning of `tokens`.
    pub(crate) fn find(&mut self, root: &Root, tokens: &[u32]) -> Vec<Arc<KvBlock>> {
        self.clock += 1;
        let mut found = Vec::new();
        let Some(mut at) = self.roots.get(root).copied() else {
            return found;
        };
        for piece in tokens.as_chunks::<BLOCK_TOKENS>().0 {
            let Some(next) = self.by_tokens.get(&(at, *piece)) else {
                break;
            };
            at = *next;
            let node = self.nodes.get_mut(&at).expect("tokens name a node");
            node.last_used = self.clock;
            found.push(Arc::clone(&node.block));
        }
        found
    }

    /// Remembers the blocks of `tokens`, all of them full.
    pub(crate) fn remember(&mut self, root: &Root, tokens: &[u32], blocks: &[Arc<KvBlock>]) {
        if blocks.is_empty() {
            return;
        }
        self.clock += 1;
        let mut at = match self.roots.get(root) {
            Some(id) => *id,
            None => {
                let id = self.fresh_id();
                self.roots.insert(root.clone(), id);
                self.trees.insert(id, (root.clone(), 0));
                id
            }
        };
        for (piece, block) in tokens.as_chunks::<BLOCK_TOKENS>().0.iter().zip(blocks) {
            let known = self.by_tokens.get(&(at, *piece)).copied();
            let id = known.unwrap_or_else(|| self.add(at, *piece, block));
            self.nodes.get_mut(&id).expect("it is there").last_used = self.clock;
            at = id;
        }
    }

    /// Blocks that nobody but this cache holds.
    pub(crate) fn evictable(&self) -> usize {
        self.nodes
            .values()
            .filter(|node| Arc::strong_count(&node.block) == 1)
            .count()
    }

    /// Forgets up to `count` blocks that nobody else holds and returns how many.
    pub(crate) fn evict(&mut self, count: usize) -> usize {
        let mut evicted = 0;
        while evicted < count {
            // Only ends of the tree, so that no block becomes unreachable.
            let mut ends: Vec<(u64, Id)> = self
                .nodes
                .iter()
                .filter(|(_, node)| node.children == 0 && Arc::strong_count(&node.block) == 1)
                .map(|(id, node)| (node.last_used, *id))
                .collect();
            if ends.is_empty() {
                break;
            }
            ends.sort_unstable();
            for (_, id) in ends.into_iter().take(count - evicted) {
                self.remove(id);
                evicted += 1;
            }
        }
        evicted
    }

    fn add(&mut self, parent: Id, tokens: [u32; BLOCK_TOKENS], block: &Arc<KvBlock>) -> Id {
        let id = self.fresh_id();
        match self.nodes.get_mut(&parent) {
            Some(node) => node.children += 1,
            None => {
                if let Some(tree) = self.trees.get_mut(&parent) {
                    tree.1 += 1;
                }
            }
        }
        self.by_tokens.insert((parent, tokens), id);
        let node = Node {
            block: Arc::clone(block),
            parent,
            tokens,
            last_used: self.clock,
            children: 0,
        };
        self.nodes.insert(id, node);
        id
    }

    fn remove(&mut self, id: Id) {
        let Some(node) = self.nodes.remove(&id) else {
            return;
        };
        self.by_tokens.remove(&(node.parent, node.tokens));
        if let Some(parent) = self.nodes.get_mut(&node.parent) {
            parent.children -= 1;
        } else if let Some((root, blocks)) = self.trees.get_mut(&node.parent) {
            *blocks -= 1;
            if *blocks == 0 {
                self.roots.remove(root);
                self.trees.remove(&node.parent);
            }
        }
    }

    fn fresh_id(&mut self) -> Id {
        self.next_id += 1;
        self.next_id
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerog_model::{KvCache, KvPool, ModelConfig};

    fn pool() -> Arc<KvPool> {
        let config = serde_json::json!({
            "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": 8, "hidden_size": 8,
            "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1,
            "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
            "tie_word_embeddings": true, "hidden_act": "silu",
        });
        KvPool::new(&ModelConfig::from_json(config.to_string().as_bytes()).unwrap())
    }

    fn root(scope: &str, adapter: u64) -> Root {
        Root {
            scope: scope.into(),
            adapter,
        }
    }

    fn tokens(count: u32) -> Vec<u32> {
        (0..count).collect()
    }

    #[test]
    fn only_the_same_beginning_of_the_same_tree_is_found() {
        let pool = pool();
        let mut cache = PrefixCache::default();
        let blocks: Vec<_> = (0..3).map(|_| pool.fresh_block().unwrap()).collect();
        cache.remember(&root("a", 0), &tokens(50), &blocks);
        let found = cache.find(&root("a", 0), &tokens(40));
        assert_eq!(found.len(), 2);
        assert!(Arc::ptr_eq(&found[1], &blocks[1]));
        assert!(cache.find(&root("b", 0), &tokens(40)).is_empty());
        assert!(cache.find(&root("a", 1), &tokens(40)).is_empty());
        let mut other = tokens(40);
        other[17] = 99;
        assert_eq!(cache.find(&root("a", 0), &other).len(), 1);
        assert_eq!(KvCache::from_blocks(&pool, found).len(), 32);
    }

    #[test]
    fn the_least_recently_used_ends_go_first_and_held_blocks_stay() {
        let pool = pool();
        let mut cache = PrefixCache::default();
        let add = |cache: &mut PrefixCache, scope: &str, count: usize| {
            let blocks: Vec<_> = (0..count).map(|_| pool.fresh_block().unwrap()).collect();
            cache.remember(&root(scope, 0), &tokens(16 * count as u32), &blocks);
        };
        add(&mut cache, "old", 2);
        add(&mut cache, "new", 2);
        assert_eq!((cache.evictable(), pool.live_blocks()), (4, 4));
        let held = cache.find(&root("old", 0), &tokens(16));
        assert_eq!(cache.evictable(), 3);
        assert_eq!(cache.evict(1), 1);
        // The end of `old` was used least recently; its held beginning stays.
        assert_eq!(cache.find(&root("old", 0), &tokens(32)).len(), 1);
        assert_eq!(cache.evict(9), 2);
        assert_eq!(pool.live_blocks(), 1);
        drop(held);
        assert_eq!(cache.evict(9), 1);
        assert!(cache.nodes.is_empty() && cache.roots.is_empty() && cache.trees.is_empty());
        assert_eq!(pool.live_blocks(), 0);
    }
}
