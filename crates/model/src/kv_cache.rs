//! Keys and values of the tokens that a sequence has already seen.

use crate::config::ModelConfig;

/// The cache of one sequence. Cloning it forks the sequence, for example to share a prompt.
#[derive(Clone, Debug)]
pub struct KvCache {
    layers: Vec<LayerCache>,
    key_width: usize,
    length: usize,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct LayerCache {
    /// `(length, key_width)`.
    pub(crate) keys: Vec<f32>,
    /// `(length, key_width)`.
    pub(crate) values: Vec<f32>,
}

impl KvCache {
    /// An empty cache that grows as needed; room for `expected_tokens` is reserved at first use.
    pub fn new(config: &ModelConfig, expected_tokens: usize) -> Self {
        let key_width = config.key_width();
        let expected = expected_tokens.min(config.maximum_positions) * key_width;
        let layers = (0..config.layers)
            .map(|_| LayerCache {
                keys: Vec::with_capacity(expected),
                values: Vec::with_capacity(expected),
            })
            .collect();
        Self {
            layers,
            key_width,
            length: 0,
        }
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
            for layer in &mut self.layers {
                layer.keys.truncate(length * self.key_width);
                layer.values.truncate(length * self.key_width);
            }
            self.length = length;
        }
    }

    /// Bytes reserved by this cache.
    pub fn bytes(&self) -> usize {
        let elements: usize = self
            .layers
            .iter()
            .map(|layer| layer.keys.capacity() + layer.values.capacity())
            .sum();
        elements * size_of::<f32>()
    }

    /// Bytes that a token takes in a cache of `config`.
    pub fn bytes_per_token(config: &ModelConfig) -> usize {
        2 * config.layers * config.key_width() * size_of::<f32>()
    }

    pub(crate) fn fits(&self, config: &ModelConfig) -> bool {
        self.layers.len() == config.layers && self.key_width == config.key_width()
    }

    /// Appends rows `(tokens, key_width)` of one layer; [`KvCache::advance`] follows when all layers have them.
    pub(crate) fn append(&mut self, layer: usize, keys: &[f32], values: &[f32]) {
        self.layers[layer].keys.extend_from_slice(keys);
        self.layers[layer].values.extend_from_slice(values);
    }

    pub(crate) fn layer(&self, layer: usize) -> &LayerCache {
        &self.layers[layer]
    }

    pub(crate) fn advance(&mut self, tokens: usize) {
        self.length += tokens;
    }
}
