//! Attention with grouped queries over packed segments: causal in training, and in both directions for encoders.
//! Serving has [`crate::cached_attention`].
//!
//! Queries are `(T, heads·D)`, keys and values `(T, groups·D)`; `heads / groups` query heads share one key
//! and value head. Segments are independent sequences laid end to end: no token sees another segment.
#![allow(unsafe_code)]

use crate::dispatch::multiversion;
use crate::matmul::{Matrix, Write, multiply_block};
use crate::shared::Disjoint;
use crate::softmax::{exp, exponentials, scale};
use rayon::prelude::*;

/// Query rows that are scored together.
const QUERY_BLOCK: usize = 64;

/// Numbers of heads and their size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub queries: usize,
    /// Key and value heads; divides `queries`.
    pub groups: usize,
    /// `D`, elements of a head.
    pub size: usize,
}

impl Heads {
    fn query_width(self) -> usize {
        self.queries * self.size
    }

    fn key_width(self) -> usize {
        self.groups * self.size
    }

    pub(crate) fn scale(self) -> f32 {
        1.0 / (self.size as f32).sqrt()
    }
}

/// Which tokens of its segment a token sees.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Sight {
    /// Itself and those before it.
    Causal,
    /// All.
    Whole,
}

impl Sight {
    /// Tokens that row `row` of a block sees, of the `seen` that the block scores.
    fn visible(self, first: usize, row: usize, seen: usize) -> usize {
        match self {
            Self::Causal => first + row + 1,
            Self::Whole => seen,
        }
    }

    /// Tokens that a block of `count` rows from `first` scores in a segment of `length`.
    fn seen(self, first: usize, count: usize, length: usize) -> usize {
        match self {
            Self::Causal => first + count,
            Self::Whole => length,
        }
    }
}

/// Output `(T, heads·D)` and, for the backward pass, the logarithm of each softmax sum `(heads, T)`.
///
/// `segments` are the lengths of the sequences in order; they add up to `T`.
pub fn forward(
    heads: Heads,
    segments: &[usize],
    q: &[f32],
    k: &[f32],
    v: &[f32],
    output: &mut [f32],
    log_sums: &mut [f32],
) {
    attend_segments(Sight::Causal, heads, segments, [q, k, v], output, log_sums);
}

/// As [`forward()`], but every token sees its whole segment.
pub fn forward_whole(
    heads: Heads,
    segments: &[usize],
    q: &[f32],
    k: &[f32],
    v: &[f32],
    output: &mut [f32],
    log_sums: &mut [f32],
) {
    attend_segments(Sight::Whole, heads, segments, [q, k, v], output, log_sums);
}

fn attend_segments(
    sight: Sight,
    heads: Heads,
    segments: &[usize],
    [q, k, v]: [&[f32]; 3],
    output: &mut [f32],
    log_sums: &mut [f32],
) {
    let tokens: usize = segments.iter().sum();
    let (query_width, key_width) = (heads.query_width(), heads.key_width());
    assert!(q.len() == tokens * query_width && output.len() == q.len());
    assert!(k.len() == tokens * key_width && v.len() == k.len());
    assert_eq!(log_sums.len(), heads.queries * tokens);

    let mut items = Vec::new();
    let mut start = 0;
    for &length in segments {
        for first in (0..length).step_by(QUERY_BLOCK) {
            for head in 0..heads.queries {
                let count = QUERY_BLOCK.min(length - first);
                items.push((start, first, count, sight.seen(first, count, length), head));
            }
        }
        start += length;
    }
    let (output, log_sums) = (Disjoint::new(output), Disjoint::new(log_sums));
    items.into_par_iter().for_each_init(
        Vec::new,
        |scores: &mut Vec<f32>, (start, first, count, seen, head)| {
            scores.resize(count * seen, 0.0);
            let group = head * heads.groups / heads.queries;
            let query_start = (start + first) * query_width + head * heads.size;
            let key_start = start * key_width + group * heads.size;
            let queries = Matrix::rows(&q[query_start..], query_width);
            let keys = Matrix::columns(&k[key_start..], key_width);
            // SAFETY: the scores belong to this item alone and hold `count` rows of `seen` elements.
            unsafe {
                multiply_block(
                    [count, seen, heads.size],
                    queries,
                    keys,
                    scores.as_mut_ptr(),
                    seen,
                    Write::Replace,
                    1.0,
                );
            }
            // SAFETY: items of one head cover different tokens.
            let log_sums = unsafe { log_sums.slice(head * tokens + start + first, count) };
            for (row, log_sum) in log_sums.iter_mut().enumerate() {
                let (visible, hidden) = scores[row * seen..(row + 1) * seen]
                    .split_at_mut(sight.visible(first, row, seen));
                let (maximum, sum) = exponentials(visible, heads.scale());
                scale(visible, 1.0 / sum);
                hidden.fill(0.0);
                *log_sum = maximum + sum.ln();
            }
            let values = Matrix::rows(&v[key_start..], key_width);
            // SAFETY: items write different tokens or different heads of the output; the block ends before
            // the end of the last token's row because the head does.
            unsafe {
                multiply_block(
                    [count, heads.size, seen],
                    Matrix::rows(scores, seen),
                    values,
                    output.pointer(query_start),
                    query_width,
                    Write::Replace,
                    1.0,
                );
            }
        },
    );
}

/// What the forward pass read and wrote.
#[derive(Clone, Copy, Debug)]
pub struct Forward<'a> {
    /// Queries `(T, heads·D)`.
    pub q: &'a [f32],
    /// Keys `(T, groups·D)`.
    pub k: &'a [f32],
    /// Values `(T, groups·D)`.
    pub v: &'a [f32],
    /// Output `(T, heads·D)`.
    pub output: &'a [f32],
    /// Logarithms of the softmax sums `(heads, T)`.
    pub log_sums: &'a [f32],
}

/// Backward of [`forward()`]: overwrites `dq`, `dk` and `dv` with gradients, given that of the output.
pub fn backward(
    heads: Heads,
    segments: &[usize],
    saved: Forward<'_>,
    doutput: &[f32],
    dq: &mut [f32],
    dk: &mut [f32],
    dv: &mut [f32],
) {
    segments_backward(Sight::Causal, heads, segments, saved, doutput, [dq, dk, dv]);
}

/// Backward of [`forward_whole`].
pub fn backward_whole(
    heads: Heads,
    segments: &[usize],
    saved: Forward<'_>,
    doutput: &[f32],
    dq: &mut [f32],
    dk: &mut [f32],
    dv: &mut [f32],
) {
    segments_backward(Sight::Whole, heads, segments, saved, doutput, [dq, dk, dv]);
}

fn segments_backward(
    sight: Sight,
    heads: Heads,
    segments: &[usize],
    saved: Forward<'_>,
    doutput: &[f32],
    [dq, dk, dv]: [&mut [f32]; 3],
) {
    let Forward {
        q,
        k,
        v,
        output,
        log_sums,
    } = saved;
    let tokens: usize = segments.iter().sum();
    let (query_width, key_width) = (heads.query_width(), heads.key_width());
    assert!(q.len() == tokens * query_width && doutput.len() == q.len() && dq.len() == q.len());
    assert!(output.len() == q.len() && log_sums.len() == heads.queries * tokens);
    assert!(
        k.len() == tokens * key_width
            && v.len() == k.len()
            && dk.len() == k.len()
            && dv.len() == k.len()
    );

    dk.fill(0.0);
    dv.fill(0.0);
    let mut items = Vec::new();
    let mut start = 0;
    for &length in segments {
        for group in 0..heads.groups {
            items.push((start, length, group));
        }
        start += length;
    }
    let shared = heads.queries / heads.groups;
    let (dq, dk, dv) = (Disjoint::new(dq), Disjoint::new(dk), Disjoint::new(dv));
    items.into_par_iter().for_each_init(
        || (Vec::new(), Vec::new()),
        |(scores, gradients): &mut (Vec<f32>, Vec<f32>), (start, length, group)| {
            let key_start = start * key_width + group * heads.size;
            for head in group * shared..(group + 1) * shared {
                for first in (0..length).step_by(QUERY_BLOCK) {
                    let count = QUERY_BLOCK.min(length - first);
                    let seen = sight.seen(first, count, length);
                    scores.resize(count * seen, 0.0);
                    gradients.resize(count * seen, 0.0);
                    let query_start = (start + first) * query_width + head * heads.size;
                    let queries = &q[query_start..];
                    let doutputs = &doutput[query_start..];
                    // SAFETY: both buffers belong to this item and hold `count` rows of `seen` elements.
                    unsafe {
                        multiply_block(
                            [count, seen, heads.size],
                            Matrix::rows(queries, query_width),
                            Matrix::columns(&k[key_start..], key_width),
                            scores.as_mut_ptr(),
                            seen,
                            Write::Replace,
                            1.0,
                        );
                        multiply_block(
                            [count, seen, heads.size],
                            Matrix::rows(doutputs, query_width),
                            Matrix::columns(&v[key_start..], key_width),
                            gradients.as_mut_ptr(),
                            seen,
                            Write::Replace,
                            1.0,
                        );
                    }
                    for row in 0..count {
                        let token = start + first + row;
                        let head_range = token * query_width + head * heads.size;
                        let head_range = head_range..head_range + heads.size;
                        let delta: f32 = output[head_range.clone()]
                            .iter()
                            .zip(&doutput[head_range])
                            .map(|(a, b)| a * b)
                            .sum();
                        let range = row * seen..(row + 1) * seen;
                        let sighted = sight.visible(first, row, seen);
                        let (visible, hidden) = scores[range.clone()].split_at_mut(sighted);
                        let (dvisible, dhidden) = gradients[range].split_at_mut(sighted);
                        let log_sum = log_sums[head * tokens + token];
                        score_gradients(visible, dvisible, heads.scale(), log_sum, delta);
                        hidden.fill(0.0);
                        dhidden.fill(0.0);
                    }
                    // SAFETY: this item alone writes this segment's queries of these heads and its keys and
                    // values of this group.
                    unsafe {
                        multiply_block(
                            [count, heads.size, seen],
                            Matrix::rows(gradients, seen),
                            Matrix::rows(&k[key_start..], key_width),
                            dq.pointer(query_start),
                            query_width,
                            Write::Replace,
                            1.0,
                        );
                        multiply_block(
                            [seen, heads.size, count],
                            Matrix::columns(gradients, seen),
                            Matrix::rows(queries, query_width),
                            dk.pointer(key_start),
                            key_width,
                            Write::Add,
                            1.0,
                        );
                        multiply_block(
                            [seen, heads.size, count],
                            Matrix::columns(scores, seen),
                            Matrix::rows(doutputs, query_width),
                            dv.pointer(key_start),
                            key_width,
                            Write::Add,
                            1.0,
                        );
                    }
                }
            }
        },
    );
}

multiversion! {
    /// Turns scores into probabilities and gradients of probabilities into gradients of scores.
    fn score_gradients(scores: &mut [f32], gradients: &mut [f32], factor: f32, log_sum: f32, delta: f32) {
        for (score, gradient) in scores.iter_mut().zip(gradients) {
            let probability = exp(*score * factor - log_sum);
            *score = probability;
            *gradient = probability * (*gradient - delta) * factor;
        }
    }
}
