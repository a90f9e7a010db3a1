//! Which examples a step reads, and how they are laid out for the model.
//!
//! The run reads one long stream: the examples in a fresh order for every epoch, drawn from
//! the seed. A step takes the next `batch × accumulation` of them. They are packed end to end
//! up to a token budget, so neither padding nor the split into batch and accumulation changes
//! the result: the loss is the mean over the learned tokens of the whole step.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use zerog_model::PackedBatch;
use zerog_tokenization::Example;

/// Most tokens of one forward pass, unless a single example is longer. Larger packs run
/// no faster on a CPU and need more memory for activations.
pub const PACK_TOKENS: usize = 2048;

/// The order of all examples of a run.
#[derive(Debug)]
pub struct Order {
    examples: usize,
    epochs: u64,
    seed: u64,
    /// The epoch whose order was computed last; steps ask for neighbours.
    cached: Option<(u64, Vec<usize>)>,
}

impl Order {
    /// The order of `epochs` passes over `examples` examples.
    pub fn new(examples: usize, epochs: u64, seed: u64) -> Self {
        Self {
            examples,
            epochs,
            seed,
            cached: None,
        }
    }

    /// The examples of step `step` (from 0) when a step reads `per_step`; the last step of a
    /// run may have fewer, a step after the end has none.
    pub fn of_step(&mut self, step: u64, per_step: u64) -> Vec<usize> {
        let total = self.examples as u64 * self.epochs;
        let begin = step.saturating_mul(per_step).min(total);
        let end = begin.saturating_add(per_step).min(total);
        (begin..end).map(|position| self.at(position)).collect()
    }

    fn at(&mut self, position: u64) -> usize {
        let epoch = position / self.examples as u64;
        let within = (position % self.examples as u64) as usize;
        if self
            .cached
            .as_ref()
            .is_none_or(|(cached, _)| *cached != epoch)
        {
            self.cached = Some((epoch, shuffled(self.examples, self.seed, epoch)));
        }
        self.cached
            .as_ref()
            .map_or(within, |(_, order)| order[within])
    }
}

fn shuffled(count: usize, seed: u64, epoch: u64) -> Vec<usize> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(epoch);
    let mut order: Vec<usize> = (0..count).collect();
    for index in (1..count).rev() {
        let other = (random.next_u64() % (index as u64 + 1)) as usize;
        order.swap(index, other);
    }
    order
}

/// Lays the examples of one step into as few packs as the token budget allows, in order.
pub fn pack<'a>(
    examples: impl IntoIterator<Item = &'a Example>,
    pack_tokens: usize,
) -> Vec<PackedBatch> {
    let mut packs: Vec<PackedBatch> = Vec::new();
    for example in examples {
        let fits = packs
            .last()
            .is_some_and(|pack| pack.tokens.len() + example.token_ids.len() <= pack_tokens);
        if !fits {
            packs.push(PackedBatch::default());
        }
        if let Some(pack) = packs.last_mut() {
            pack.push(&example.token_ids, &example.loss_mask);
        }
    }
    packs
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerog_tokenization::SourcePosition;

    #[test]
    fn every_epoch_reads_every_example_once_in_its_own_order() {
        let mut order = Order::new(10, 2, 1);
        let steps: Vec<Vec<usize>> = (0..7).map(|step| order.of_step(step, 3)).collect();
        assert_eq!(
            steps.iter().map(Vec::len).collect::<Vec<_>>(),
            [3, 3, 3, 3, 3, 3, 2]
        );
        assert!(order.of_step(7, 3).is_empty());
        let all = steps.concat();
        let (first, second) = all.split_at(10);
        assert_ne!(first, second);
        for epoch in [first, second] {
            let mut sorted = epoch.to_vec();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..10).collect::<Vec<_>>());
        }
        assert_eq!(Order::new(10, 2, 1).of_step(2, 3), steps[2]);
        assert_ne!(Order::new(10, 2, 2).of_step(0, 10), first);
    }

    #[test]
    fn packs_keep_order_and_budget() {
        let example = |length: usize| Example {
            token_ids: vec![1; length],
            loss_mask: vec![true; length],
            position: SourcePosition { line: 1, column: 1 },
            truncated_tokens: 0,
        };
        let examples = [example(4), example(5), example(2), example(30), example(1)];
        let packs = pack(&examples, 10);
        let lengths: Vec<_> = packs
            .iter()
            .map(|pack| pack.segment_lengths.clone())
            .collect();
        assert_eq!(lengths, [vec![4, 5], vec![2], vec![30], vec![1]]);
        assert_eq!(packs[0].supervised_tokens(), 7);
    }
}
