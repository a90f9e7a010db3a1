//! Randomness of one forward and backward pass: dropout of deltas' inputs and noise on embeddings.

use crate::linear::Dropout;
use crate::lora::Projection;
use zerog_kernels::noise::{self, NoiseKey};

/// Random numbers of one batch; the same key gives the same numbers, in a resumed run too.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Noise {
    pub(crate) key: NoiseKey,
    pub(crate) dropout: f32,
    pub(crate) neftune_alpha: f32,
}

impl Noise {
    /// The numbers of batch `batch_number` of a run with `seed`.
    pub(crate) fn new(seed: u64, batch_number: u64, dropout: f32, neftune_alpha: f32) -> Self {
        Self {
            key: NoiseKey::new(seed).child(0x57e9).child(batch_number),
            dropout,
            neftune_alpha,
        }
    }

    pub(crate) fn dropout_key(&self, layer: usize, projection: Projection) -> Dropout {
        let key = self
            .key
            .child(1)
            .child((layer * 16 + projection.index()) as u64);
        (self.dropout > 0.0).then_some((key, self.dropout))
    }

    /// Uniform noise of NEFTune (Jain et al. 2023) on embeddings `x (T, hidden)`, scaled by segment.
    pub(crate) fn add_to_embeddings(&self, segments: &[usize], hidden: usize, x: &mut [f32]) {
        if self.neftune_alpha <= 0.0 {
            return;
        }
        let mut start = 0;
        for length in segments {
            let magnitude = self.embedding_magnitude(*length, hidden);
            let end = start + length * hidden;
            noise::add_uniform(
                &mut x[start..end],
                magnitude,
                self.embedding_key(),
                start as u64,
            );
            start = end;
        }
    }

    /// Largest noise on an element of the embeddings of a segment of `length` tokens; 0 without noise.
    pub(crate) fn embedding_magnitude(&self, length: usize, hidden: usize) -> f32 {
        self.neftune_alpha.max(0.0) / ((length * hidden) as f32).sqrt()
    }

    /// The random numbers of the embeddings.
    pub(crate) fn embedding_key(&self) -> NoiseKey {
        self.key.child(2)
    }
}
