//! Attention of serving: a few new tokens of many sequences over keys and values that lie in blocks.
//!
//! A block holds [`BLOCK_TOKENS`] tokens of one layer. Keys are stored with tokens innermost, so that the scores of a
//! whole block are computed side by side without adding up lanes; values are stored with the head innermost. Every
//! number of a token is computed in an order that depends on its own position alone: its bits depend neither on the
//! batch nor on how a prompt was cut into pieces.
#![allow(unsafe_code)]

use crate::attention::Heads;
use crate::dispatch::has_avx2;
use crate::shared::Disjoint;
use crate::softmax::{exponentials, scale};
use rayon::prelude::*;

/// Tokens of a block.
pub const BLOCK_TOKENS: usize = 16;
/// Tokens of one row per piece of work.
const TOKENS_PER_PIECE: usize = 8;
/// Query heads that are computed side by side.
const TILE: usize = 4;
/// Multiplications below which everything runs on the calling thread.
const PARALLEL_WORK: usize = 1 << 19;

/// Elements of a block: for each group its keys `(D, tokens)`, then its values `(tokens, D)`.
pub fn block_elements(heads: Heads) -> usize {
    2 * BLOCK_TOKENS * heads.groups * heads.size
}

/// Writes keys and values `(groups·D)` of one token into its place of a block.
pub fn store(heads: Heads, block: &mut [f32], place: usize, keys: &[f32], values: &[f32]) {
    assert!(place < BLOCK_TOKENS && block.len() == block_elements(heads));
    let size = heads.size;
    for (group, part) in block.chunks_exact_mut(2 * BLOCK_TOKENS * size).enumerate() {
        let (key_part, value_part) = part.split_at_mut(BLOCK_TOKENS * size);
        let range = group * size..(group + 1) * size;
        for (row, key) in key_part
            .chunks_exact_mut(BLOCK_TOKENS)
            .zip(&keys[range.clone()])
        {
            row[place] = *key;
        }
        value_part[place * size..(place + 1) * size].copy_from_slice(&values[range]);
    }
}

/// The new tokens of one sequence and its blocks, which already contain their keys and values.
#[derive(Clone, Debug)]
pub struct CachedRow<'a> {
    /// New tokens; they are the last ones of the sequence.
    pub tokens: usize,
    /// All tokens of the sequence.
    pub length: usize,
    /// The blocks in order, at least as many as `length` needs.
    pub blocks: Vec<&'a [f32]>,
}

/// Attention of the new tokens of several sequences, `q` and `output` being `(T, heads·D)` with the rows of the
/// sequences in order.
pub fn forward_cached(heads: Heads, rows: &[CachedRow<'_>], q: &[f32], output: &mut [f32]) {
    let tokens: usize = rows.iter().map(|row| row.tokens).sum();
    let width = heads.queries * heads.size;
    assert!(q.len() == tokens * width && output.len() == q.len());
    let mut pieces = Vec::new();
    let (mut start, mut work) = (0, 0);
    for row in rows {
        assert!(row.tokens <= row.length && row.length <= row.blocks.len() * BLOCK_TOKENS);
        assert!(
            row.blocks
                .iter()
                .all(|block| block.len() == block_elements(heads))
        );
        for first in (0..row.tokens).step_by(TOKENS_PER_PIECE) {
            for group in 0..heads.groups {
                pieces.push((row, start, first, group));
            }
        }
        work += row.tokens * row.length * width;
        start += row.tokens;
    }
    let output = Disjoint::new(output);
    let shared = heads.queries / heads.groups;
    let compute = |scores: &mut Vec<f32>, (row, start, first, group): Piece<'_>| {
        for token in first..row.tokens.min(first + TOKENS_PER_PIECE) {
            let mut head = group * shared;
            let end = head + shared;
            while head < end {
                let count = even_tile(end - head);
                let place = (start + token) * width + head * heads.size;
                let range = place..place + count * heads.size;
                // SAFETY: each token and head belongs to one piece, and a piece to one thread.
                let output = unsafe { output.slice(place, count * heads.size) };
                let seen = row.length - row.tokens + token + 1;
                attend(heads, group, &row.blocks, seen, &q[range], scores, output);
                head += count;
            }
        }
    };
    if work < PARALLEL_WORK {
        let mut scores = Vec::new();
        pieces
            .into_iter()
            .for_each(|piece| compute(&mut scores, piece));
    } else {
        pieces.into_par_iter().for_each_init(Vec::new, compute);
    }
}

/// Row, first token of the row in the batch, first token of the piece, group.
type Piece<'a> = (&'a CachedRow<'a>, usize, usize, usize);

/// Heads of the next tile, so that seven become four and three rather than four, two and one.
fn even_tile(heads: usize) -> usize {
    heads.div_ceil(heads.div_ceil(TILE))
}

/// One token's attention for the heads of one tile, whose queries and outputs lie side by side.
fn attend(
    heads: Heads,
    group: usize,
    blocks: &[&[f32]],
    seen: usize,
    queries: &[f32],
    scores: &mut Vec<f32>,
    output: &mut [f32],
) {
    let size = heads.size;
    let count = queries.len() / size;
    let needed = seen.div_ceil(BLOCK_TOKENS);
    let stride = needed * BLOCK_TOKENS;
    scores.resize(count * stride, 0.0);
    let start = group * 2 * BLOCK_TOKENS * size;
    let middle = start + BLOCK_TOKENS * size;
    let wide = has_avx2();
    for (index, block) in blocks[..needed].iter().enumerate() {
        let scores = &mut scores[index * BLOCK_TOKENS..];
        score(wide, size, queries, &block[start..middle], scores, stride);
    }
    let mut sums = [0.0; TILE];
    for (scores, sum) in scores.chunks_exact_mut(stride).zip(&mut sums) {
        *sum = exponentials(&mut scores[..seen], heads.scale()).1;
    }
    let end = middle + BLOCK_TOKENS * size;
    output.fill(0.0);
    for (index, block) in blocks[..needed].iter().enumerate() {
        let first = index * BLOCK_TOKENS;
        let tokens = BLOCK_TOKENS.min(seen - first);
        let weights = &scores[first..];
        add_weighted(
            wide,
            size,
            weights,
            stride,
            tokens,
            &block[middle..end],
            output,
        );
    }
    for (output, sum) in output.chunks_exact_mut(size).zip(sums) {
        scale(output, 1.0 / sum);
    }
}

/// Products of the queries with the keys of a block, those of query `i` at `scores[i·stride..]`.
fn score(
    wide: bool,
    size: usize,
    queries: &[f32],
    keys: &[f32],
    scores: &mut [f32],
    stride: usize,
) {
    let count = queries.len() / size;
    assert!(keys.len() == size * BLOCK_TOKENS && count <= TILE);
    assert!(scores.len() >= (count - 1) * stride + BLOCK_TOKENS);
    #[cfg(target_arch = "x86_64")]
    if wide {
        // SAFETY: the features were detected, and the lengths were just checked.
        unsafe {
            match count {
                1 => simd::score::<1>(size, queries, keys, scores, stride),
                2 => simd::score::<2>(size, queries, keys, scores, stride),
                3 => simd::score::<3>(size, queries, keys, scores, stride),
                _ => simd::score::<4>(size, queries, keys, scores, stride),
            }
        }
        return;
    }
    let _ = wide;
    for (query, scores) in queries.chunks_exact(size).zip(scores.chunks_mut(stride)) {
        let mut sums = [0.0; BLOCK_TOKENS];
        for (value, keys) in query.iter().zip(keys.chunks_exact(BLOCK_TOKENS)) {
            for (sum, key) in sums.iter_mut().zip(keys) {
                *sum += value * key;
            }
        }
        scores[..BLOCK_TOKENS].copy_from_slice(&sums);
    }
}

/// Adds the first `tokens` values of a block, weighted, to the outputs; weights of query `i` at `weights[i·stride..]`.
fn add_weighted(
    wide: bool,
    size: usize,
    weights: &[f32],
    stride: usize,
    tokens: usize,
    values: &[f32],
    output: &mut [f32],
) {
    let count = output.len() / size;
    assert!(values.len() == size * BLOCK_TOKENS && tokens <= BLOCK_TOKENS && count <= TILE);
    assert!(weights.len() >= (count - 1) * stride + tokens);
    let mut done = 0;
    #[cfg(target_arch = "x86_64")]
    if wide {
        done = size - size % simd::COLUMNS;
        // SAFETY: the features were detected, and the lengths were just checked.
        unsafe {
            match count {
                1 => simd::add_weighted::<1>(size, weights, stride, tokens, values, output),
                2 => simd::add_weighted::<2>(size, weights, stride, tokens, values, output),
                3 => simd::add_weighted::<3>(size, weights, stride, tokens, values, output),
                _ => simd::add_weighted::<4>(size, weights, stride, tokens, values, output),
            }
        }
    }
    let _ = wide;
    for (query, output) in output.chunks_exact_mut(size).enumerate() {
        for (token, values) in values.chunks_exact(size).take(tokens).enumerate() {
            let weight = weights[query * stride + token];
            for (output, value) in output[done..].iter_mut().zip(&values[done..]) {
                *output += weight * value;
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod simd {
    use super::BLOCK_TOKENS;
    use std::arch::x86_64::*;

    /// Columns of the values that are summed at a time; the caller does what is left of a head.
    pub(super) const COLUMNS: usize = 16;

    /// # Safety
    /// AVX2 and FMA; `queries` holds `Q` heads of `size`, `keys` `size` rows of a block's tokens, and `scores` a
    /// block's tokens at each of `Q` strides.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn score<const Q: usize>(
        size: usize,
        queries: &[f32],
        keys: &[f32],
        scores: &mut [f32],
        stride: usize,
    ) {
        let mut sums = [[_mm256_setzero_ps(); 2]; Q];
        for row in 0..size {
            // SAFETY: `row < size`, so the block's tokens of this row are inside `keys`.
            let (low, high) = unsafe {
                let keys = keys.as_ptr().add(row * BLOCK_TOKENS);
                (_mm256_loadu_ps(keys), _mm256_loadu_ps(keys.add(8)))
            };
            for (query, sums) in sums.iter_mut().enumerate() {
                // SAFETY: `query < Q` and `row < size`.
                let value =
                    unsafe { _mm256_broadcast_ss(&*queries.as_ptr().add(query * size + row)) };
                sums[0] = _mm256_fmadd_ps(value, low, sums[0]);
                sums[1] = _mm256_fmadd_ps(value, high, sums[1]);
            }
        }
        for (query, sums) in sums.iter().enumerate() {
            // SAFETY: sixteen elements are inside `scores` at each stride, by the caller's promise.
            unsafe {
                let target = scores.as_mut_ptr().add(query * stride);
                _mm256_storeu_ps(target, sums[0]);
                _mm256_storeu_ps(target.add(8), sums[1]);
            }
        }
    }

    /// # Safety
    /// AVX2 and FMA; `output` holds `Q` heads of `size`, `values` a block's tokens of `size`, and `weights` `tokens`
    /// elements at each of `Q` strides.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn add_weighted<const Q: usize>(
        size: usize,
        weights: &[f32],
        stride: usize,
        tokens: usize,
        values: &[f32],
        output: &mut [f32],
    ) {
        for column in (0..size - size % COLUMNS).step_by(COLUMNS) {
            let mut sums = [[_mm256_setzero_ps(); 2]; Q];
            for (query, sums) in sums.iter_mut().enumerate() {
                // SAFETY: `column + 16 <= size` and `query < Q`.
                unsafe {
                    let output = output.as_ptr().add(query * size + column);
                    *sums = [_mm256_loadu_ps(output), _mm256_loadu_ps(output.add(8))];
                }
            }
            for token in 0..tokens {
                // SAFETY: `token` is one of the block and `column + 16 <= size`.
                let (low, high) = unsafe {
                    let values = values.as_ptr().add(token * size + column);
                    (_mm256_loadu_ps(values), _mm256_loadu_ps(values.add(8)))
                };
                for (query, sums) in sums.iter_mut().enumerate() {
                    // SAFETY: `tokens` weights are readable at each stride, by the caller's promise.
                    let weight = unsafe {
                        _mm256_broadcast_ss(&*weights.as_ptr().add(query * stride + token))
                    };
                    sums[0] = _mm256_fmadd_ps(weight, low, sums[0]);
                    sums[1] = _mm256_fmadd_ps(weight, high, sums[1]);
                }
            }
            for (query, sums) in sums.iter().enumerate() {
                // SAFETY: as for the loads.
                unsafe {
                    let output = output.as_mut_ptr().add(query * size + column);
                    _mm256_storeu_ps(output, sums[0]);
                    _mm256_storeu_ps(output.add(8), sums[1]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attention;

    fn numbers(count: usize, seed: u64) -> Vec<f32> {
        let key = crate::noise::NoiseKey::new(seed);
        (0..count as u64).map(|index| key.normal(index)).collect()
    }

    fn blocks(heads: Heads, length: usize, k: &[f32], v: &[f32]) -> Vec<Vec<f32>> {
        let width = heads.groups * heads.size;
        // What lies behind the last token must not matter.
        let mut blocks = vec![vec![f32::NAN; block_elements(heads)]; length.div_ceil(BLOCK_TOKENS)];
        for token in 0..length {
            let range = token * width..(token + 1) * width;
            let block = &mut blocks[token / BLOCK_TOKENS];
            store(
                heads,
                block,
                token % BLOCK_TOKENS,
                &k[range.clone()],
                &v[range],
            );
        }
        blocks
    }

    #[test]
    fn attention_over_blocks_is_the_attention_of_training() {
        for (queries, groups, size) in [(7, 1, 64), (6, 2, 32), (4, 4, 8), (2, 1, 20)] {
            let heads = Heads {
                queries,
                groups,
                size,
            };
            for length in [1, 15, 16, 17, 70] {
                let (query_width, key_width) = (queries * size, groups * size);
                let q = numbers(length * query_width, 1);
                let (k, v) = (
                    numbers(length * key_width, 2),
                    numbers(length * key_width, 3),
                );
                let mut expected = vec![0.0; q.len()];
                let mut log_sums = vec![0.0; queries * length];
                attention::forward(heads, &[length], &q, &k, &v, &mut expected, &mut log_sums);
                let blocks = blocks(heads, length, &k, &v);
                let row = |tokens| CachedRow {
                    tokens,
                    length,
                    blocks: blocks.iter().map(Vec::as_slice).collect(),
                };
                let mut all = vec![0.0; q.len()];
                forward_cached(heads, &[row(length)], &q, &mut all);
                for (a, b) in expected.iter().zip(&all) {
                    assert!((a - b).abs() < 2e-5, "{heads:?} {length}: {a} {b}");
                }
                // The last token alone has the same bits as within its prompt.
                let last = (length - 1) * query_width;
                let mut alone = vec![0.0; query_width];
                forward_cached(heads, &[row(1)], &q[last..], &mut alone);
                assert_eq!(alone, all[last..]);
                // So do all of them when the prompt comes in pieces.
                let mut pieces = vec![0.0; q.len()];
                for start in (0..length).step_by(7) {
                    let end = length.min(start + 7);
                    let piece = CachedRow {
                        tokens: end - start,
                        length: end,
                        blocks: blocks.iter().map(Vec::as_slice).collect(),
                    };
                    let range = start * query_width..end * query_width;
                    forward_cached(heads, &[piece], &q[range.clone()], &mut pieces[range]);
                }
                assert_eq!(pieces, all);
            }
        }
    }

    #[test]
    fn the_portable_way_agrees() {
        let size = 32;
        let (queries, keys) = (numbers(3 * size, 4), numbers(size * BLOCK_TOKENS, 5));
        let (mut plain, mut fast) = (vec![0.0; 3 * 20], vec![0.0; 3 * 20]);
        score(false, size, &queries, &keys, &mut plain, 20);
        score(has_avx2(), size, &queries, &keys, &mut fast, 20);
        for (a, b) in plain.iter().zip(&fast) {
            assert!((a - b).abs() < 1e-4);
        }
        let (mut left, mut right) = (vec![1.0; 3 * size], vec![1.0; 3 * size]);
        add_weighted(false, size, &plain, 20, 11, &keys, &mut left);
        add_weighted(has_avx2(), size, &plain, 20, 11, &keys, &mut right);
        for (a, b) in left.iter().zip(&right) {
            assert!((a - b).abs() < 1e-3);
        }
    }
}
