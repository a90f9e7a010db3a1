//! The forward product for serving: every element is summed in an order that depends on `K` alone.
//!
//! A row therefore gives the same bits whether it is computed alone or with others, on one thread or on
//! many, so that one request can never change another's output. Eight interleaved partial sums run along
//! `K` and are added in a fixed tree; tiles only decide how many elements are computed side by side.
#![allow(unsafe_code)]

use super::{Int8Weight, Shape, Weight, Write, check};
use crate::dispatch::has_avx2;
use crate::shared::Disjoint;
use half::bf16;
use rayon::prelude::*;
use std::ops::Range;

/// Interleaved partial sums along `K`.
const LANES: usize = 8;
/// Elements of activations that stay in the second-level cache while weights stream past.
const BLOCK_ELEMENTS: usize = 64 * 1024;
/// Most rows of activations of such a block.
const MOST_ROWS_PER_BLOCK: usize = 64;
/// Most rows of activations of a tile.
const MOST_TILE_ROWS: usize = 4;
/// Output features of a piece of parallel work are a multiple of this: of the tiles' three and of a single row's eight.
const PIECE_STEP: usize = 24;
/// Most of them for rows that fit one tile: long runs of weights are read faster than short ones.
const MOST_OUTPUTS_READ_ONCE: usize = 144;
/// Most of them for more rows: the weights of a piece stay in the second-level cache beside the activations.
const MOST_OUTPUTS_READ_AGAIN: usize = 72;
/// So few rows are one block, whatever `K` is: weights are read once.
const ROWS_NOT_CUT: usize = 16;
/// Pieces for each thread, so that threads end together.
const PIECES_PER_THREAD: usize = 4;
/// Multiplications below which the product runs on the calling thread.
const PARALLEL_WORK: usize = 1 << 20;

/// `y (T, N) = x (T, K) · Wᵀ`, or added to `y`, with bits that do not depend on the other rows.
pub fn forward_batch_invariant(
    shape: Shape,
    x: &[f32],
    weight: Weight<'_>,
    y: &mut [f32],
    write: Write,
) {
    check(shape, x.len(), weight.len(), y.len());
    match weight {
        Weight::F32(weight) => run(shape, x, Plain(weight), y, write),
        Weight::Bf16(weight) => run(shape, x, Plain(weight), y, write),
        Weight::Int8(weight) => run(shape, x, weight, y, write),
    }
}

fn run<W: Rows>(shape: Shape, x: &[f32], weight: W, y: &mut [f32], write: Write) {
    let Shape {
        rows,
        outputs,
        inputs,
    } = shape;
    let add = write == Write::Add;
    let wide = has_avx2();
    let y = Disjoint::new(y);
    let rows_per_block = match rows <= ROWS_NOT_CUT {
        true => rows.max(1),
        // Whole tiles of four rows.
        false => (BLOCK_ELEMENTS / inputs.max(1)).clamp(4, MOST_ROWS_PER_BLOCK) & !3,
    };
    let piece = |first: usize, last: usize| {
        for block in (0..rows).step_by(rows_per_block) {
            let block_end = (block + rows_per_block).min(rows);
            let tile = Tile {
                x,
                weight,
                y: &y,
                inputs,
                outputs,
                add,
                wide,
                fetch: rows <= ROWS_NOT_CUT,
            };
            tile.block(block..block_end, first..last);
        }
    };
    if rows * outputs * inputs < PARALLEL_WORK {
        piece(0, outputs);
        return;
    }
    let wanted = outputs / (PIECES_PER_THREAD * rayon::current_num_threads());
    let most = match rows <= MOST_TILE_ROWS {
        true => MOST_OUTPUTS_READ_ONCE,
        false => MOST_OUTPUTS_READ_AGAIN,
    };
    let size = wanted.next_multiple_of(PIECE_STEP).clamp(PIECE_STEP, most);
    (0..outputs.div_ceil(size))
        .into_par_iter()
        .for_each(|index| piece(index * size, ((index + 1) * size).min(outputs)));
}

struct Tile<'a, W> {
    x: &'a [f32],
    weight: W,
    y: &'a Disjoint<'a, f32>,
    inputs: usize,
    outputs: usize,
    add: bool,
    wide: bool,
    /// Whether weights are fetched ahead. More rows compute for so long that reading does not matter, and what is fetched
    /// drives out what is used.
    fetch: bool,
}

impl<W: Rows> Tile<'_, W> {
    /// Computes the elements `rows × outputs`, which no other thread computes.
    ///
    /// Where one tile holds all rows, reading weights is the limit: its weights lie far apart, so that each of them
    /// begins a run of rows that the processor reads ahead by itself. With more tiles the weights of a tile lie side by
    /// side and are used again at once; those of the next are fetched meanwhile if there are few rows.
    fn block(&self, rows: Range<usize>, outputs: Range<usize>) {
        let done = match rows.len() {
            // Eight streams keep the arithmetic units busy with a single row.
            1 => self.far::<8>(&rows, &outputs),
            2..=MOST_TILE_ROWS => self.far::<3>(&rows, &outputs),
            _ => self.near::<3>(&rows, &outputs),
        };
        for output in outputs.start + done..outputs.end {
            self.column::<1>(&rows, Streams::single(output));
        }
    }

    /// Computes as many outputs as make `N` equal runs side by side and returns their number.
    fn far<const N: usize>(&self, rows: &Range<usize>, outputs: &Range<usize>) -> usize {
        let stride = outputs.len() / N;
        for first in outputs.start..outputs.start + stride {
            let streams = Streams {
                first,
                stride,
                ahead: 1,
                ..Streams::single(first)
            };
            self.column::<N>(rows, streams);
        }
        stride * N
    }

    /// Computes as many outputs as make groups of `N` and returns their number.
    fn near<const N: usize>(&self, rows: &Range<usize>, outputs: &Range<usize>) -> usize {
        let groups = outputs.len() / N;
        let ahead = if self.fetch { N } else { 0 };
        for group in 0..groups {
            let first = outputs.start + group * N;
            let streams = Streams {
                ahead,
                ..Streams::single(first)
            };
            self.column::<N>(rows, streams);
        }
        groups * N
    }

    /// Four rows by three weights are twelve sums in flight, which hides the latency of the arithmetic units, and each
    /// widened weight is used four times.
    fn column<const N: usize>(&self, rows: &Range<usize>, mut streams: Streams) {
        streams.tiles = rows.len().div_ceil(MOST_TILE_ROWS);
        let mut row = rows.start;
        while row < rows.end {
            row += match rows.end - row {
                1 => self.tile::<1, N>(row, streams),
                2 => self.tile::<2, N>(row, streams),
                // Five rows are better three and two than four and one.
                3 | 5 => self.tile::<3, N>(row, streams),
                _ => self.tile::<4, N>(row, streams),
            };
            streams.tile += 1;
        }
    }

    /// Computes `M` rows by `N` outputs and returns `M`.
    #[inline]
    fn tile<const M: usize, const N: usize>(&self, row: usize, streams: Streams) -> usize {
        let x = &self.x[row * self.inputs..(row + M) * self.inputs];
        let sums: [[f32; N]; M] = self.weight.sums(x, streams, self.inputs, self.wide);
        let write = |target: &mut f32, sum: f32| {
            *target = if self.add { *target + sum } else { sum };
        };
        for (index, sums) in sums.iter().enumerate() {
            let start = (row + index) * self.outputs + streams.first;
            // SAFETY: each element of `y` belongs to exactly one tile, and tiles to one thread.
            unsafe {
                if streams.stride == 1 {
                    let targets = self.y.slice(start, N);
                    targets
                        .iter_mut()
                        .zip(sums)
                        .for_each(|(target, sum)| write(target, *sum));
                } else {
                    for (number, sum) in sums.iter().enumerate() {
                        write(
                            &mut self.y.slice(start + number * streams.stride, 1)[0],
                            *sum,
                        );
                    }
                }
            }
        }
        M
    }
}

/// The rows of a weight that a tile uses, and those that it fetches into the cache for a later one.
#[derive(Clone, Copy)]
pub(super) struct Streams {
    first: usize,
    /// From one row to the next.
    stride: usize,
    /// From each row to the one to fetch; 0 for none.
    ahead: usize,
    /// Which one of the tiles this is that use the same rows, and their number: they share the fetching.
    tile: usize,
    tiles: usize,
}

impl Streams {
    /// The row `first`, and nothing to fetch.
    pub(super) fn single(first: usize) -> Self {
        Self {
            first,
            stride: 1,
            ahead: 0,
            tile: 0,
            tiles: 1,
        }
    }

    /// The row of a weight with this number.
    pub(super) fn row(&self, number: usize) -> usize {
        self.first + number * self.stride
    }

    /// Whether `N` rows lie within a weight of `elements`.
    pub(super) fn fit<const N: usize>(&self, elements: usize, inputs: usize) -> bool {
        elements >= (self.row(N - 1) + 1) * inputs
    }

    /// The numbers of the rows, out of `N`, behind which this tile is to fetch one with [`Streams::row_ahead`].
    pub(super) fn fetched<const N: usize>(&self) -> Range<usize> {
        if self.ahead == 0 {
            return 0..0;
        }
        let share = N.div_ceil(self.tiles);
        (self.tile * share).min(N)..((self.tile + 1) * share).min(N)
    }

    /// The row of a weight that is to be fetched for the row with this number.
    pub(super) fn row_ahead(&self, number: usize) -> usize {
        self.row(number) + self.ahead
    }
}

/// A weight by its rows, one for each output.
trait Rows: Copy + Send + Sync {
    /// Sums of `M` rows of activations with `N` rows of weights. `wide` says that AVX2 and FMA were detected.
    fn sums<const M: usize, const N: usize>(
        &self,
        x: &[f32],
        streams: Streams,
        inputs: usize,
        wide: bool,
    ) -> [[f32; N]; M];
}

/// One number for each element.
#[derive(Clone, Copy)]
struct Plain<'a, E>(&'a [E]);

impl<E: Element> Rows for Plain<'_, E> {
    #[inline]
    fn sums<const M: usize, const N: usize>(
        &self,
        x: &[f32],
        streams: Streams,
        inputs: usize,
        wide: bool,
    ) -> [[f32; N]; M] {
        #[cfg(target_arch = "x86_64")]
        if wide {
            // SAFETY: `wide` is set only where the features of the kernel were detected.
            return unsafe { wide::tile::<E, M, N>(x, self.0, streams, inputs) };
        }
        let _ = wide;
        portable_tile(x, self.0, streams, inputs)
    }
}

impl Rows for Int8Weight<'_> {
    #[inline]
    fn sums<const M: usize, const N: usize>(
        &self,
        x: &[f32],
        streams: Streams,
        _inputs: usize,
        wide: bool,
    ) -> [[f32; N]; M] {
        self.tile(x, streams, wide)
    }
}

/// Adds the partial sums in the one order that all kernels use.
#[inline(always)]
pub(super) fn tree(lanes: [f32; LANES]) -> f32 {
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}

/// The kernel without special instructions: same order, products rounded before they are added.
fn portable_tile<E: Element, const M: usize, const N: usize>(
    x: &[f32],
    weight: &[E],
    streams: Streams,
    inputs: usize,
) -> [[f32; N]; M] {
    let mut sums = [[0.0; N]; M];
    for (row, sums) in sums.iter_mut().enumerate() {
        let x = &x[row * inputs..(row + 1) * inputs];
        for (output, sum) in sums.iter_mut().enumerate() {
            let weight = &weight[streams.row(output) * inputs..][..inputs];
            let mut lanes = [0.0_f32; LANES];
            for (index, (x, weight)) in x.iter().zip(weight).enumerate() {
                lanes[index % LANES] += x * weight.widened();
            }
            *sum = tree(lanes);
        }
    }
    sums
}

/// A stored weight element.
pub(super) trait Element: Copy + Send + Sync {
    fn widened(self) -> f32;

    /// # Safety
    /// AVX2 must be available and eight elements readable at `start`.
    #[cfg(target_arch = "x86_64")]
    unsafe fn load(start: *const Self) -> std::arch::x86_64::__m256;
}

impl Element for f32 {
    #[inline(always)]
    fn widened(self) -> f32 {
        self
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load(start: *const Self) -> std::arch::x86_64::__m256 {
        // SAFETY: eight elements are readable and AVX2 is available by the trait's contract.
        unsafe { std::arch::x86_64::_mm256_loadu_ps(start) }
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn widened(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load(start: *const Self) -> std::arch::x86_64::__m256 {
        use std::arch::x86_64::*;
        // SAFETY: eight elements are readable and AVX2 is available by the trait's contract.
        unsafe {
            let halves = _mm_loadu_si128(start.cast());
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(halves)))
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod wide {
    use super::{Element, LANES, Streams};
    use std::arch::x86_64::*;

    /// Bytes that are fetched at once.
    const CACHE_LINE: usize = 64;
    /// Elements after which the next lines are fetched.
    const FETCH_STEP: usize = 32;

    /// `M × N` sums over `inputs` with AVX2 and FMA.
    ///
    /// `x` holds `M` rows of `inputs` elements and `weight` all rows.
    #[target_feature(enable = "avx2,fma")]
    #[allow(clippy::needless_range_loop)] // Plain indices keep the tile in registers and the loops readable.
    pub(super) fn tile<E: Element, const M: usize, const N: usize>(
        x: &[f32],
        weight: &[E],
        streams: Streams,
        inputs: usize,
    ) -> [[f32; N]; M] {
        assert!(x.len() >= M * inputs && streams.fit::<N>(weight.len(), inputs));
        let mut sums = [[_mm256_setzero_ps(); N]; M];
        let whole = inputs - inputs % LANES;
        let fetched = streams.fetched::<N>();
        // SAFETY: all of these rows lie inside `weight`, as was just checked.
        let starts: [*const E; N] = std::array::from_fn(|number| unsafe {
            weight.as_ptr().add(streams.row(number) * inputs)
        });
        // The longest stretch without fetching.
        let stretch = match fetched.is_empty() {
            true => whole,
            false => FETCH_STEP,
        };
        let mut index = 0;
        while index < whole {
            for number in fetched.clone() {
                let place = streams.row_ahead(number) * inputs + index;
                fetch(
                    weight.as_ptr().wrapping_add(place).cast(),
                    FETCH_STEP * size_of::<E>(),
                );
            }
            // A loop of its own, so that nothing of the above takes its registers.
            let end = (index + stretch).min(whole);
            while index < end {
                let mut weights = [_mm256_setzero_ps(); N];
                for (value, start) in weights.iter_mut().zip(starts) {
                    // SAFETY: `index + 8 <= inputs`, so eight elements of this row are inside `weight`; AVX2 is enabled.
                    *value = unsafe { E::load(start.add(index)) };
                }
                for row in 0..M {
                    // SAFETY: as above for `x`.
                    let x = unsafe { _mm256_loadu_ps(x.as_ptr().add(row * inputs + index)) };
                    for output in 0..N {
                        sums[row][output] = _mm256_fmadd_ps(x, weights[output], sums[row][output]);
                    }
                }
                index += LANES;
            }
        }
        if whole < inputs {
            let rest = inputs - whole;
            for row in 0..M {
                let mut left = [0.0_f32; LANES];
                left[..rest].copy_from_slice(&x[row * inputs + whole..(row + 1) * inputs]);
                for output in 0..N {
                    let mut right = [0.0_f32; LANES];
                    for (right, weight) in right
                        .iter_mut()
                        .zip(&weight[streams.row(output) * inputs..][whole..inputs])
                    {
                        *right = weight.widened();
                    }
                    // SAFETY: both arrays hold eight elements.
                    let (left, right) = unsafe {
                        (
                            _mm256_loadu_ps(left.as_ptr()),
                            _mm256_loadu_ps(right.as_ptr()),
                        )
                    };
                    sums[row][output] = _mm256_fmadd_ps(left, right, sums[row][output]);
                }
            }
        }
        let mut result = [[0.0; N]; M];
        for row in 0..M {
            for output in 0..N {
                result[row][output] = tree_of(sums[row][output]);
            }
        }
        result
    }

    /// Asks for the cache lines of `bytes` from `start` on. It is a hint: the address may be behind a weight and is never
    /// read.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn fetch(start: *const i8, bytes: usize) {
        for line in 0..bytes / CACHE_LINE {
            _mm_prefetch::<_MM_HINT_T0>(start.wrapping_add(line * CACHE_LINE));
        }
    }

    /// [`super::tree`] of a register.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn tree_of(lanes: __m256) -> f32 {
        let halves = _mm_add_ps(
            _mm256_castps256_ps128(lanes),
            _mm256_extractf128_ps::<1>(lanes),
        );
        let quarters = _mm_add_ps(halves, _mm_movehl_ps(halves, halves));
        _mm_cvtss_f32(_mm_add_ss(
            quarters,
            _mm_shuffle_ps::<1>(quarters, quarters),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::super::forward_plain;
    use super::*;

    fn numbers(count: usize, seed: u64) -> Vec<f32> {
        let key = crate::noise::NoiseKey::new(seed);
        (0..count as u64).map(|index| key.normal(index)).collect()
    }

    #[test]
    fn every_shape_is_close_to_the_plain_product_and_independent_of_the_batch() {
        for (rows, outputs, inputs) in [
            (1, 1, 1),
            (1, 9, 17),
            (5, 7, 64),
            (50, 66, 33),
            (11, 80, 72),
            (7, 300, 160),
            (1, 2000, 640),
        ] {
            let shape = Shape {
                rows,
                outputs,
                inputs,
            };
            let x = numbers(rows * inputs, 1);
            let weight: Vec<bf16> = numbers(outputs * inputs, 2)
                .into_iter()
                .map(bf16::from_f32)
                .collect();
            let (mut plain, mut fast) = (vec![0.5; rows * outputs], vec![0.5; rows * outputs]);
            forward_plain(shape, &x, Weight::Bf16(&weight), &mut plain, Write::Add);
            forward_batch_invariant(shape, &x, Weight::Bf16(&weight), &mut fast, Write::Add);
            for (plain, fast) in plain.iter().zip(&fast) {
                assert!((plain - fast).abs() < 2e-4, "{plain} {fast}");
            }
            forward_batch_invariant(shape, &x, Weight::Bf16(&weight), &mut fast, Write::Replace);
            let widened: Vec<f32> = weight.iter().map(|w| w.to_f32()).collect();
            for row in 0..rows {
                let mut alone = vec![0.0; outputs];
                let one = Shape {
                    rows: 1,
                    outputs,
                    inputs,
                };
                let x = &x[row * inputs..(row + 1) * inputs];
                forward_batch_invariant(one, x, Weight::F32(&widened), &mut alone, Write::Replace);
                assert_eq!(alone, fast[row * outputs..(row + 1) * outputs]);
            }
        }
    }

    #[test]
    fn portable_kernel_agrees() {
        let (x, weight) = (numbers(3 * 100, 3), numbers(4 * 100, 4));
        let sums = portable_tile::<f32, 3, 4>(&x, &weight, Streams::single(0), 100);
        let mut plain = vec![0.0; 12];
        let shape = Shape {
            rows: 3,
            outputs: 4,
            inputs: 100,
        };
        forward_plain(shape, &x, Weight::F32(&weight), &mut plain, Write::Replace);
        for (a, b) in sums.iter().flatten().zip(&plain) {
            assert!((a - b).abs() < 1e-4);
        }
    }
}
