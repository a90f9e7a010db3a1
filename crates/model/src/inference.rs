//! Serving: many sequences advance together, each with its own cache and its own adapter.
//!
//! One pass over the base weights serves the whole batch; low-rank deltas are added for the rows of each
//! adapter. Every number of a row is computed in an order that does not depend on the other rows, so a row
//! gets the same bits alone and in any batch, and whether its prompt comes at once or in pieces.
#![allow(clippy::too_many_arguments)] // A layer's operation names every buffer it reads and writes.

use crate::base_model::BaseModel;
use crate::batch::check_tokens;
use crate::error::ModelError;
use crate::kv_cache::KvCache;
use crate::lora::{LoraAdapter, LowRank, Projection};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;
use zerog_kernels::activation::silu_gate;
use zerog_kernels::cached_attention::{CachedRow, forward_cached};
use zerog_kernels::matmul::{Shape, Write, forward_batch_invariant};
use zerog_kernels::norm::{rms_norm, rms_norm_in_place};
use zerog_kernels::reduce::{add_assign, add_bias};

/// Multiplications of a batch below which it is computed on the calling thread.
const PARALLEL_WORK: usize = 1 << 24;
/// Rows of a delta that are a piece of parallel work; fewer are divided by their outputs.
const DELTA_ROWS: usize = 32;
/// Inputs and outputs of all pieces together from which on deltas are computed in parallel.
const PARALLEL_DELTA: usize = 4096;
/// Multiplications of a product from which on deltas are begun beside it.
const PARALLEL_PRODUCT: usize = 1 << 22;

/// The part of one sequence in a batch.
#[derive(Debug)]
pub struct Row<'a> {
    /// New tokens: a prompt, a piece of one, or the token chosen last.
    pub tokens: &'a [u32],
    /// What the sequence has seen; the new tokens are appended.
    pub cache: &'a mut KvCache,
    /// The adapter of this sequence.
    pub adapter: Option<Arc<LoraAdapter>>,
    /// Which logits to compute.
    pub wanted: LogitsWanted,
}

/// Which logits of a row are returned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogitsWanted {
    /// None; for all but the last piece of a prompt.
    None,
    /// Those after the last new token.
    #[default]
    Last,
    /// Those after every new token, one after the other.
    All,
}

/// Buffers kept between calls of [`BaseModel::forward`].
#[derive(Debug, Default)]
pub struct InferenceScratch {
    x: Vec<f32>,
    y: Vec<f32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    attended: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    hidden: Vec<f32>,
    low: Vec<f32>,
    logits: Vec<f32>,
}

impl InferenceScratch {
    /// The logits of the last [`BaseModel::forward_in_place`], where it said that they are.
    pub fn logits(&self, place: Range<usize>) -> &[f32] {
        &self.logits[place]
    }
}

/// Rows of the batch that use one adapter.
pub(crate) struct Group {
    pub(crate) adapter: Arc<LoraAdapter>,
    pub(crate) tokens: Range<usize>,
}

/// How the tokens of all rows lie in the buffers of a step.
pub(crate) struct Arrangement {
    /// Numbers of the rows, those of one adapter together, so that its delta is one product.
    pub(crate) order: Vec<usize>,
    /// The tokens of each row.
    pub(crate) spans: Vec<Range<usize>>,
    /// Of each token in its sequence.
    pub(crate) positions: Vec<u32>,
    pub(crate) groups: Vec<Group>,
}

impl Arrangement {
    pub(crate) fn of(rows: &[Row<'_>]) -> Self {
        // The same rows lie in the same order in every run, wherever their adapters are in memory.
        let first_user = |index: &usize| {
            let adapter = rows[*index].adapter.as_ref()?;
            let uses_it = |row: &Row<'_>| {
                row.adapter
                    .as_ref()
                    .is_some_and(|it| Arc::ptr_eq(it, adapter))
            };
            rows.iter().position(uses_it)
        };
        let mut order: Vec<usize> = (0..rows.len()).collect();
        order.sort_by_cached_key(first_user);
        let mut groups: Vec<Group> = Vec::new();
        let mut spans = vec![0..0; rows.len()];
        let mut positions = Vec::new();
        for &index in &order {
            let row = &rows[index];
            let span = positions.len()..positions.len() + row.tokens.len();
            let seen = row.cache.len();
            positions.extend(seen as u32..(seen + row.tokens.len()) as u32);
            if let Some(adapter) = &row.adapter {
                match groups
                    .last_mut()
                    .filter(|group| Arc::ptr_eq(&group.adapter, adapter))
                {
                    Some(group) => group.tokens.end = span.end,
                    None => groups.push(Group {
                        adapter: adapter.clone(),
                        tokens: span.clone(),
                    }),
                }
            }
            spans[index] = span;
        }
        Self {
            order,
            spans,
            positions,
            groups,
        }
    }

    /// For each row, the tokens whose logits are wanted.
    pub(crate) fn wanted(&self, rows: &[Row<'_>]) -> Vec<Range<usize>> {
        rows.iter()
            .zip(&self.spans)
            .map(|(row, span)| match row.wanted {
                LogitsWanted::None => span.end..span.end,
                LogitsWanted::Last => span.end - 1..span.end,
                LogitsWanted::All => span.clone(),
            })
            .collect()
    }
}

/// Where the logits of the `wanted` tokens of each row lie, one after the other.
pub(crate) fn places_of(wanted: &[Range<usize>], vocabulary: usize) -> Vec<Range<usize>> {
    let mut start = 0;
    wanted
        .iter()
        .map(|range| {
            let place = start..start + range.len() * vocabulary;
            start = place.end;
            place
        })
        .collect()
}

fn sized(buffer: &mut Vec<f32>, length: usize) -> &mut [f32] {
    buffer.resize(length, 0.0);
    buffer
}

impl BaseModel {
    /// Appends the new tokens of every row to its cache and returns, for each row in order, the wanted logits
    /// `(count, vocabulary)`.
    ///
    /// # Errors
    /// [`ModelError::EmptyBatch`] if a row has no token, [`ModelError::TokenOutOfRange`],
    /// [`ModelError::SequenceTooLong`], [`ModelError::CacheMismatch`], [`ModelError::AdapterMismatch`]. No cache
    /// has changed then.
    pub fn forward(
        &self,
        rows: &mut [Row<'_>],
        scratch: &mut InferenceScratch,
    ) -> Result<Vec<Vec<f32>>, ModelError> {
        let places = self.forward_in_place(rows, scratch)?;
        let logits = |place: Range<usize>| scratch.logits[place].to_vec();
        Ok(places.into_iter().map(logits).collect())
    }

    /// [`BaseModel::forward`] without copying: the logits of row `i` stay in [`InferenceScratch::logits`] at the
    /// `i`-th returned place until the next call.
    ///
    /// # Errors
    /// As [`BaseModel::forward`].
    pub fn forward_in_place(
        &self,
        rows: &mut [Row<'_>],
        scratch: &mut InferenceScratch,
    ) -> Result<Vec<Range<usize>>, ModelError> {
        for row in rows.iter() {
            self.check_row(row)?;
            if row.cache.pool().device().is_some() {
                return Err(ModelError::CacheMismatch);
            }
        }
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        for row in rows.iter_mut() {
            row.cache.reserve(row.tokens.len())?;
        }
        // Entering the thread pool once is cheaper than once for every operation.
        if self.is_parallel(rows) {
            Ok(rayon::scope(|_| self.advance(rows, scratch)))
        } else {
            Ok(self.advance(rows, scratch))
        }
    }

    /// Whether a step is worth more than one thread: a few tokens of a small model are not.
    pub(crate) fn is_parallel(&self, rows: &[Row<'_>]) -> bool {
        let tokens: usize = rows.iter().map(|row| row.tokens.len()).sum();
        tokens * self.config.parameter_count() >= PARALLEL_WORK
    }

    fn advance(&self, rows: &mut [Row<'_>], scratch: &mut InferenceScratch) -> Vec<Range<usize>> {
        let config = &self.config;
        let arrangement = Arrangement::of(rows);
        let wanted = arrangement.wanted(rows);
        let Arrangement {
            order,
            spans,
            positions,
            groups,
        } = arrangement;
        let tokens = positions.len();
        let (hidden, epsilon) = (config.hidden_size, config.norm_epsilon);
        let InferenceScratch {
            x,
            y,
            q,
            k,
            v,
            attended,
            gate,
            up,
            hidden: product,
            low,
            logits,
        } = scratch;
        let x = sized(x, tokens * hidden);
        let y = sized(y, tokens * hidden);
        let q = sized(q, tokens * config.query_width());
        let k = sized(k, tokens * config.key_width());
        let v = sized(v, tokens * config.key_width());
        let attended = sized(attended, tokens * config.query_width());
        let gate = sized(gate, tokens * config.intermediate_size);
        let up = sized(up, tokens * config.intermediate_size);
        let product = sized(product, tokens * config.intermediate_size);
        let embedding = self.embedding.weight();
        for &index in &order {
            for (token, place) in rows[index].tokens.iter().zip(spans[index].clone()) {
                embedding.copy_row(
                    *token as usize,
                    hidden,
                    &mut x[place * hidden..(place + 1) * hidden],
                );
            }
        }

        for index in 0..config.layers {
            let layer = &self.layers[index];
            let mut run = |projection: Projection, input: &[f32], output: &mut [f32]| {
                self.linear(index, projection, tokens, input, output, &groups, low);
            };
            rms_norm(x, &layer.input_norm, epsilon, y);
            run(Projection::Query, y, q);
            run(Projection::Key, y, k);
            run(Projection::Value, y, v);
            if let Some([queries, keys]) = &layer.head_norms {
                rms_norm_in_place(q, queries, epsilon);
                rms_norm_in_place(k, keys, epsilon);
            }
            self.rope.rotate(q, &positions);
            self.rope.rotate(k, &positions);
            let width = config.key_width();
            for (row, span) in rows.iter_mut().zip(&spans) {
                let range = span.start * width..span.end * width;
                row.cache.append(index, &k[range.clone()], &v[range]);
            }
            let cached: Vec<CachedRow<'_>> = order
                .iter()
                .map(|&place| CachedRow {
                    tokens: rows[place].tokens.len(),
                    length: rows[place].cache.len() + rows[place].tokens.len(),
                    blocks: rows[place].cache.layer(index),
                })
                .collect();
            forward_cached(config.heads(), &cached, q, attended);
            run(Projection::Output, attended, y);
            add_assign(x, y);

            rms_norm(x, &layer.post_norm, epsilon, y);
            run(Projection::Gate, y, gate);
            run(Projection::Up, y, up);
            silu_gate(gate, up, product);
            run(Projection::Down, product, y);
            add_assign(x, y);
        }
        for (row, span) in rows.iter_mut().zip(&spans) {
            row.cache.advance(span.len());
        }
        self.head_logits(&wanted, x, y, logits)
    }

    pub(crate) fn check_row(&self, row: &Row<'_>) -> Result<(), ModelError> {
        let config = &self.config;
        if row.tokens.is_empty() {
            return Err(ModelError::EmptyBatch);
        }
        check_tokens(row.tokens, config)?;
        if !row.cache.fits(config) {
            return Err(ModelError::CacheMismatch);
        }
        let total = row.cache.len() + row.tokens.len();
        if total > config.maximum_positions {
            return Err(ModelError::SequenceTooLong {
                tokens: total,
                limit: config.maximum_positions,
            });
        }
        if row
            .adapter
            .as_ref()
            .is_some_and(|adapter| !adapter.fits(config))
        {
            return Err(ModelError::AdapterMismatch);
        }
        Ok(())
    }

    /// A linear layer for all tokens, and the deltas of the groups for theirs.
    fn linear(
        &self,
        layer: usize,
        projection: Projection,
        tokens: usize,
        x: &[f32],
        y: &mut [f32],
        groups: &[Group],
        low: &mut Vec<f32>,
    ) {
        let (outputs, inputs) = self.config.projection_shape(projection);
        let weights = &self.layers[layer];
        let weight = weights.linears[projection.index()].weight();
        let bias = weights.biases[projection.index()].as_deref();
        // Pieces of rows with one adapter each; many small ones are computed side by side.
        let mut pieces = Vec::new();
        for group in groups {
            if let Some(pair) = group.adapter.pair(layer, projection) {
                let ends = group.tokens.clone().step_by(DELTA_ROWS);
                pieces.extend(ends.map(|start| {
                    let end = (start + DELTA_ROWS).min(group.tokens.end);
                    (pair, start..end)
                }));
            }
        }
        let is_shared = pieces.len() > 1 && pieces.len() * (inputs + outputs) >= PARALLEL_DELTA;
        let ranks = |(pair, tokens): &(&LowRank, Range<usize>)| pair.rank * tokens.len();
        let mut rest = sized(low, pieces.iter().map(ranks).sum());
        let mut lows = Vec::with_capacity(pieces.len());
        for piece in pieces {
            let (low, behind) = rest.split_at_mut(ranks(&piece));
            rest = behind;
            lows.push((piece, low));
        }

        let project = |((pair, tokens), low): &mut ((&LowRank, Range<usize>), &mut [f32])| {
            pair.project(&x[tokens.start * inputs..tokens.end * inputs], low);
        };
        let mut project_all = || match is_shared {
            true => lows.par_iter_mut().for_each(project),
            false => lows.iter_mut().for_each(project),
        };
        let shape = Shape {
            rows: tokens,
            outputs,
            inputs,
        };
        let product = |y: &mut [f32]| {
            forward_batch_invariant(shape, x, weight, y, Write::Replace);
            if let Some(bias) = bias {
                add_bias(y, bias);
            }
        };
        if groups.is_empty() || tokens * outputs * inputs < PARALLEL_PRODUCT {
            product(y);
            project_all();
        } else {
            // Small products leave no core without work beside a large one.
            rayon::join(|| product(y), project_all);
        }

        let (mut rest, mut done) = (y, 0);
        let mut deltas = Vec::with_capacity(lows.len());
        for ((pair, tokens), low) in lows {
            let (_, behind) = rest.split_at_mut((tokens.start - done) * outputs);
            let (own, behind) = behind.split_at_mut(tokens.len() * outputs);
            (rest, done) = (behind, tokens.end);
            deltas.push((pair, &*low, own));
        }
        let expand = |(pair, low, y): (&LowRank, &[f32], &mut [f32])| {
            pair.expand(low, y, (weight, bias));
        };
        match is_shared {
            true => deltas.into_par_iter().for_each(expand),
            false => deltas.into_iter().for_each(expand),
        }
    }

    /// Logits of the `wanted` tokens, from the states `x` after the last layer, and the place of each row's.
    fn head_logits(
        &self,
        wanted: &[Range<usize>],
        x: &[f32],
        y: &mut [f32],
        logits: &mut Vec<f32>,
    ) -> Vec<Range<usize>> {
        let (hidden, vocabulary) = (self.config.hidden_size, self.config.vocabulary_size);
        let mut count = 0;
        for range in wanted {
            let states = &x[range.start * hidden..range.end * hidden];
            let target = &mut y[count * hidden..(count + range.len()) * hidden];
            rms_norm(states, &self.final_norm, self.config.norm_epsilon, target);
            count += range.len();
        }
        let logits = sized(logits, count * vocabulary);
        let shape = Shape {
            rows: count,
            outputs: vocabulary,
            inputs: hidden,
        };
        forward_batch_invariant(
            shape,
            &y[..count * hidden],
            self.head_weight(),
            logits,
            Write::Replace,
        );
        places_of(wanted, vocabulary)
    }
}
