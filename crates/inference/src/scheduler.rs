//! Which tokens are computed next: every running answer gets one token a step, and what is left of the step is shared
//! out among prompts. Each row of a step has its own adapter or none.
//!
//! Memory of keys and values is taken block by block. When it runs out, remembered beginnings go first; then the answer
//! that was admitted last gives its blocks back and is computed again later, on the processor to the same bits.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;
use zerog_model::{BLOCK_TOKENS, KvCache};
use zerog_tokenization::Tokenizer;

use crate::engine::{Counters, EngineConfig};
use crate::error::EngineError;
use crate::executor::{Executor, SequenceRow};
use crate::fair_queue::FairQueue;
use crate::grammar::Vocabulary;
use crate::prefix_cache::PrefixCache;
use crate::sequence::{Marks, Sequence};

/// Fewest prompt tokens of one row in a step: smaller pieces waste the pass over the weights.
const LEAST_PIECE: usize = 16;
/// Vocabularies from which on the tokens of several answers are chosen side by side.
const PARALLEL_VOCABULARY: usize = 16_384;

/// The running and the waiting requests of one engine.
pub(crate) struct Scheduler {
    executor: Executor,
    tokenizer: Arc<Tokenizer>,
    vocabulary: Vocabulary,
    config: EngineConfig,
    /// Blocks that all sequences and remembered beginnings may hold together.
    capacity: usize,
    waiting: FairQueue<Sequence>,
    running: Vec<Sequence>,
    prefixes: PrefixCache,
    counters: Arc<Counters>,
}

/// One row of a step.
struct Part {
    /// Place in the list of running sequences.
    index: usize,
    tokens: usize,
}

impl Scheduler {
    pub(crate) fn new(
        executor: Executor,
        tokenizer: Arc<Tokenizer>,
        config: EngineConfig,
        counters: Arc<Counters>,
    ) -> Self {
        let size = executor.model().config().vocabulary_size;
        Self {
            vocabulary: Vocabulary::of_table(tokenizer.table(), size),
            capacity: config.cache_blocks(),
            executor,
            tokenizer,
            config,
            waiting: FairQueue::default(),
            running: Vec::new(),
            prefixes: PrefixCache::default(),
            counters,
        }
    }

    pub(crate) fn executor(&mut self) -> &mut Executor {
        &mut self.executor
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    pub(crate) fn enqueue(&mut self, sequence: Sequence) {
        let flow = Arc::clone(&sequence.question.flow);
        self.waiting.push(&flow, sequence);
        self.count();
    }

    /// Drops what was cancelled, admits what fits, computes one step, and hands out what came of it.
    pub(crate) fn step(&mut self) {
        self.drop_cancelled();
        self.admit();
        let plan = self.plan();
        self.count();
        if plan.is_empty() {
            return;
        }
        let rows = rows_of(&mut self.running, &plan);
        match self.executor.forward(rows) {
            Ok(places) => {
                self.account(&plan);
                self.advance(&plan, places);
            }
            Err(error) => self.fail_all(&error),
        }
        self.count();
    }

    fn drop_cancelled(&mut self) {
        for sequence in self.waiting.remove_if(Sequence::drop_cancelled) {
            self.waiting.gone(&sequence.question.flow);
        }
        let gone: Vec<usize> = (0..self.running.len())
            .filter(|index| self.running[*index].drop_cancelled())
            .collect();
        self.release(&gone);
    }

    fn rows_in_use(&self) -> usize {
        self.running.iter().map(Sequence::rows).sum()
    }

    fn admit(&mut self) {
        while let Some(next) = self.waiting.peek() {
            let free_rows = self.config.max_running.saturating_sub(self.rows_in_use());
            if free_rows == 0 {
                return;
            }
            // At least one token is computed, because its logits are needed.
            let known = &next.tokens[..next.tokens.len() - 1];
            let blocks = self.prefixes.find(&next.question.root, known);
            let needed = next.tokens.len().div_ceil(BLOCK_TOKENS) - blocks.len();
            // Room for everyone's next block, so that a newcomer does not push others out at once.
            let spare = self.running.len();
            if self.free_blocks() + self.prefixes.evictable() < needed + spare
                && !self.running.is_empty()
            {
                return;
            }
            let Some(mut sequence) = self.waiting.pop() else {
                return;
            };
            if sequence.rows() > free_rows {
                self.split(&mut sequence, free_rows);
            }
            sequence.cache = KvCache::from_blocks(self.executor.pool(), blocks);
            if sequence.generated() == 0 {
                sequence.reused = sequence.cache.len();
            }
            self.running.push(sequence);
        }
    }

    /// Leaves `rows` answers with a sequence; the others become one of their own, which finds the prompt computed.
    fn split(&mut self, sequence: &mut Sequence, rows: usize) {
        let mut others = sequence.followers.split_off(rows - 1);
        let Some(choice) = others.pop() else { return };
        let rest = Sequence {
            followers: others,
            ..sequence.fork(choice)
        };
        let flow = Arc::clone(&rest.question.flow);
        self.waiting.push(&flow, rest);
    }

    fn free_blocks(&self) -> usize {
        self.capacity
            .saturating_sub(self.executor.pool().live_blocks())
    }

    /// The rows of the next step, with memory for all of them.
    fn plan(&mut self) -> Vec<Part> {
        loop {
            let plan = self.share_out();
            let needed: usize = plan
                .iter()
                .map(|part| self.running[part.index].cache.blocks_needed(part.tokens))
                .sum();
            let free = self.free_blocks();
            if needed <= free {
                return plan;
            }
            let evicted = self.prefixes.evict(needed - free);
            if needed <= free + evicted || self.running.len() <= 1 {
                return plan;
            }
            self.give_way();
        }
    }

    fn share_out(&self) -> Vec<Part> {
        let prompts = self.running.iter().filter(|one| !one.is_decoding()).count();
        let budget = self.config.prefill_chunk_tokens.max(1);
        let mut left = budget;
        let share = (budget / prompts.max(1)).max(LEAST_PIECE);
        let mut plan = Vec::with_capacity(self.running.len());
        for (index, sequence) in self.running.iter().enumerate() {
            let tokens = if sequence.is_decoding() {
                1
            } else {
                let tokens = sequence.left().min(share).min(left);
                left -= tokens;
                tokens
            };
            plan.push(Part { index, tokens });
        }
        // What short prompts left over goes to the others, first come, first served.
        for part in &mut plan {
            let sequence = &self.running[part.index];
            if !sequence.is_decoding() {
                let more = (sequence.left() - part.tokens).min(left);
                part.tokens += more;
                left -= more;
            }
        }
        plan.retain(|part| part.tokens > 0);
        plan
    }

    /// Sends the answer that was admitted last back to wait. What it has computed is remembered as long as there is
    /// room.
    fn give_way(&mut self) {
        let Some(index) = self.running.len().checked_sub(1) else {
            return;
        };
        self.remember(index);
        let Some(mut last) = self.running.pop() else {
            return;
        };
        last.cache = KvCache::in_pool(self.executor.pool());
        self.counters.preempted.fetch_add(1, Ordering::Relaxed);
        self.waiting.put_back(last);
    }

    /// Counts what a step computed.
    fn account(&mut self, plan: &[Part]) {
        for part in plan {
            let sequence = &self.running[part.index];
            if sequence.generated() == 0 {
                self.counters
                    .prompt
                    .fetch_add(part.tokens as u64, Ordering::Relaxed);
            }
            self.waiting
                .charge(&sequence.question.flow, part.tokens as u64);
        }
    }

    /// Chooses the next token of every answer whose tokens are all computed; `places` are those of the logits.
    fn advance(&mut self, plan: &[Part], places: Vec<Range<usize>>) {
        let mut logits_of: Vec<Option<Range<usize>>> = vec![None; self.running.len()];
        for (part, place) in plan.iter().zip(places) {
            let sequence = &mut self.running[part.index];
            if sequence.left() > 0 {
                continue;
            }
            logits_of[part.index] = Some(place.clone());
            if sequence.generated() > 0 {
                continue;
            }
            let followers = std::mem::take(&mut sequence.followers);
            for choice in followers {
                let follower = self.running[part.index].fork(choice);
                self.waiting.joined(&follower.question.flow);
                self.running.push(follower);
                logits_of.push(Some(place.clone()));
            }
            self.remember(part.index);
        }
        let Self {
            executor,
            tokenizer,
            vocabulary,
            running,
            ..
        } = self;
        let choose = |marks: &mut Marks, (sequence, place): (&mut Sequence, &Option<_>)| {
            place.clone().is_some_and(|place: Range<usize>| {
                sequence.advance(executor.logits(place), tokenizer, vocabulary, marks)
            })
        };
        let chosen = logits_of.iter().flatten().count();
        let has_ended: Vec<bool> = if chosen > 1 && vocabulary.len() >= PARALLEL_VOCABULARY {
            running
                .par_iter_mut()
                .zip(&logits_of)
                .map_init(Marks::default, choose)
                .collect()
        } else {
            let mut marks = Marks::default();
            let pairs = running.iter_mut().zip(&logits_of);
            pairs.map(|pair| choose(&mut marks, pair)).collect()
        };
        self.counters
            .generated
            .fetch_add(chosen as u64, Ordering::Relaxed);
        let ended: Vec<usize> = (0..has_ended.len())
            .filter(|index| has_ended[*index])
            .collect();
        self.release(&ended);
    }

    /// Keeps the full blocks of a sequence for others that begin like it.
    fn remember(&mut self, index: usize) {
        if self.config.reuse_prefixes {
            let sequence = &self.running[index];
            let blocks = sequence.cache.full_blocks();
            let root = &sequence.question.root;
            self.prefixes.remember(root, &sequence.tokens, blocks);
        }
    }

    fn fail_all(&mut self, error: &EngineError) {
        tracing::error!(%error, requests = self.running.len(), "an inference step failed");
        for sequence in std::mem::take(&mut self.running) {
            sequence.choice.fail(error);
            for choice in &sequence.followers {
                choice.fail(error);
            }
            self.waiting.gone(&sequence.question.flow);
        }
    }

    /// Removes running requests; `indices` are ascending.
    fn release(&mut self, indices: &[usize]) {
        for index in indices.iter().rev() {
            self.remember(*index);
            let sequence = self.running.remove(*index);
            self.waiting.gone(&sequence.question.flow);
        }
    }

    fn count(&self) {
        let counters = &self.counters;
        let set = |counter: &AtomicUsize, value| counter.store(value, Ordering::Relaxed);
        set(&counters.running, self.running.len());
        set(&counters.waiting, self.waiting.len());
        set(&counters.blocks, self.executor.pool().live_blocks());
    }
}

fn rows_of<'a>(running: &'a mut [Sequence], plan: &[Part]) -> Vec<SequenceRow<'a>> {
    let mut planned = plan.iter().peekable();
    let mut rows = Vec::with_capacity(plan.len());
    for (index, sequence) in running.iter_mut().enumerate() {
        let Some(part) = planned.next_if(|part| part.index == index) else {
            continue;
        };
        let start = sequence.cache.len();
        rows.push(SequenceRow {
            tokens: &sequence.tokens[start..start + part.tokens],
            samples: start + part.tokens == sequence.tokens.len(),
            cache: &mut sequence.cache,
            adapter: sequence
                .question
                .adapter
                .as_ref()
                .map(|adapter| Arc::clone(&adapter.weights)),
        });
    }
    rows
}
