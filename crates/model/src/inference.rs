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
/// Rows of a delta that are worth a piece of parallel work.
const DELTA_ROWS: usize = 32;
/// Inputs and outputs of all pieces together from which on deltas are computed in parallel.
const PARALLEL_DELTA: usize = 4096;

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
struct Group {
    adapter: Arc<LoraAdapter>,
    tokens: Range<usize>,
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
        let config = &self.config;
        for row in rows.iter() {
            self.check_row(row)?;
        }
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let tokens: usize = rows.iter().map(|row| row.tokens.len()).sum();
        // Entering the thread pool once is cheaper than once for every operation; a few tokens of a small model
        // need no second thread at all.
        if tokens * config.parameter_count() < PARALLEL_WORK {
            Ok(self.advance(rows, scratch))
        } else {
            Ok(rayon::scope(|_| self.advance(rows, scratch)))
        }
    }

    fn advance(&self, rows: &mut [Row<'_>], scratch: &mut InferenceScratch) -> Vec<Range<usize>> {
        let config = &self.config;
        // Rows of one adapter lie together, so that its delta is one product.
        let mut order: Vec<usize> = (0..rows.len()).collect();
        order.sort_by_key(|index| {
            rows[*index]
                .adapter
                .as_ref()
                .map(|adapter| Arc::as_ptr(adapter) as usize)
        });
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

        for row in rows.iter_mut() {
            row.cache.reserve(row.tokens.len());
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
        self.head_logits(rows, &spans, x, y, logits)
    }

    fn check_row(&self, row: &Row<'_>) -> Result<(), ModelError> {
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
        forward_batch_invariant(
            Shape {
                rows: tokens,
                outputs,
                inputs,
            },
            x,
            weight,
            y,
            Write::Replace,
        );
        let bias = weights.biases[projection.index()].as_deref();
        if let Some(bias) = bias {
            add_bias(y, bias);
        }
        // Pieces of rows with one adapter each; many small ones are computed side by side.
        let mut pieces = Vec::new();
        let (mut rest, mut done) = (y, 0);
        for group in groups {
            let Some(pair) = group.adapter.pair(layer, projection) else {
                continue;
            };
            let tokens = &group.tokens;
            let (_, behind) = rest.split_at_mut((tokens.start - done) * outputs);
            let (own, behind) = behind.split_at_mut(tokens.len() * outputs);
            (rest, done) = (behind, tokens.end);
            let x = &x[tokens.start * inputs..tokens.end * inputs];
            pieces.extend(
                own.chunks_mut(DELTA_ROWS * outputs)
                    .zip(x.chunks(DELTA_ROWS * inputs))
                    .map(|(y, x)| (pair, x, y)),
            );
        }
        let adapt = |low: &mut Vec<f32>, (pair, x, y): (&LowRank, &[f32], &mut [f32])| {
            pair.adapt(y.len() / outputs, x, y, (weight, bias), low);
        };
        if pieces.len() > 1 && pieces.len() * (inputs + outputs) >= PARALLEL_DELTA {
            pieces.into_par_iter().for_each_init(Vec::new, adapt);
        } else {
            pieces.into_iter().for_each(|piece| adapt(low, piece));
        }
    }

    /// Logits of the wanted tokens, from the states `x` after the last layer, and the place of each row's.
    fn head_logits(
        &self,
        rows: &[Row<'_>],
        spans: &[Range<usize>],
        x: &[f32],
        y: &mut [f32],
        logits: &mut Vec<f32>,
    ) -> Vec<Range<usize>> {
        let (hidden, vocabulary) = (self.config.hidden_size, self.config.vocabulary_size);
        let wanted: Vec<Range<usize>> = rows
            .iter()
            .zip(spans)
            .map(|(row, span)| match row.wanted {
                LogitsWanted::None => span.end..span.end,
                LogitsWanted::Last => span.end - 1..span.end,
                LogitsWanted::All => span.clone(),
            })
            .collect();
        let mut count = 0;
        for range in &wanted {
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
}
