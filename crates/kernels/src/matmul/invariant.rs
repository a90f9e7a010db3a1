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

/// Interleaved partial sums along `K`.
const LANES: usize = 8;
/// Elements of activations that stay in the second-level cache while weights stream past.
const BLOCK_ELEMENTS: usize = 64 * 1024;
/// Most rows of activations of such a block.
const MOST_ROWS_PER_BLOCK: usize = 64;
/// Output features per piece of parallel work; a multiple of the tiles' three and of a single row's eight.
const OUTPUTS_PER_PIECE: usize = 72;
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
    // Whole tiles of four rows.
    let rows_per_block = (BLOCK_ELEMENTS / inputs.max(1)).clamp(4, MOST_ROWS_PER_BLOCK) & !3;
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
            };
            tile.block(block..block_end, first..last);
        }
    };
    if rows * outputs * inputs < PARALLEL_WORK || outputs <= OUTPUTS_PER_PIECE {
        piece(0, outputs);
    } else {
        (0..outputs.div_ceil(OUTPUTS_PER_PIECE))
            .into_par_iter()
            .for_each(|index| {
                piece(
                    index * OUTPUTS_PER_PIECE,
                    ((index + 1) * OUTPUTS_PER_PIECE).min(outputs),
                );
            });
    }
}

struct Tile<'a, W> {
    x: &'a [f32],
    weight: W,
    y: &'a Disjoint<'a, f32>,
    inputs: usize,
    outputs: usize,
    add: bool,
    wide: bool,
}

impl<W: Rows> Tile<'_, W> {
    /// Computes the elements `rows × outputs`, which no other thread computes.
    fn block(&self, rows: std::ops::Range<usize>, outputs: std::ops::Range<usize>) {
        let mut output = outputs.start;
        // A single row is bound by reading weights; eight streams keep the arithmetic units busy.
        if rows.len() == 1 {
            while output + 8 <= outputs.end {
                self.tile::<1, 8>(rows.start, output);
                output += 8;
            }
        }
        while output + 3 <= outputs.end {
            self.column::<3>(rows.clone(), output);
            output += 3;
        }
        while output < outputs.end {
            self.column::<1>(rows.clone(), output);
            output += 1;
        }
    }

    /// Four rows by three weights are twelve sums in flight, which hides the latency of the arithmetic units, and each
    /// widened weight is used four times.
    fn column<const N: usize>(&self, rows: std::ops::Range<usize>, output: usize) {
        let mut row = rows.start;
        while row < rows.end {
            row += match rows.end - row {
                1 => self.tile::<1, N>(row, output),
                2 => self.tile::<2, N>(row, output),
                // Five rows are better three and two than four and one.
                3 | 5 => self.tile::<3, N>(row, output),
                _ => self.tile::<4, N>(row, output),
            };
        }
    }

    /// Computes `M` rows by `N` outputs and returns `M`.
    #[inline]
    fn tile<const M: usize, const N: usize>(&self, row: usize, output: usize) -> usize {
        let x = &self.x[row * self.inputs..(row + M) * self.inputs];
        let sums: [[f32; N]; M] = self.weight.sums(x, output, self.inputs, self.wide);
        for (index, sums) in sums.iter().enumerate() {
            // SAFETY: each element of `y` belongs to exactly one tile, and tiles to one thread.
            let target = unsafe { self.y.slice((row + index) * self.outputs + output, N) };
            for (target, sum) in target.iter_mut().zip(sums) {
                *target = if self.add { *target + sum } else { *sum };
            }
        }
        M
    }
}

/// A weight by its rows, one for each output.
trait Rows: Copy + Send + Sync {
    /// Sums of `M` rows of activations with the `N` rows of weights from `output` on. `wide` says that AVX2 and FMA were
    /// detected.
    fn sums<const M: usize, const N: usize>(
        &self,
        x: &[f32],
        output: usize,
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
        output: usize,
        inputs: usize,
        wide: bool,
    ) -> [[f32; N]; M] {
        let weight = &self.0[output * inputs..(output + N) * inputs];
        #[cfg(target_arch = "x86_64")]
        if wide {
            // SAFETY: `wide` is set only where the features of the kernel were detected.
            return unsafe { wide::tile::<E, M, N>(x, weight, inputs) };
        }
        let _ = wide;
        portable_tile(x, weight, inputs)
    }
}

impl Rows for Int8Weight<'_> {
    #[inline]
    fn sums<const M: usize, const N: usize>(
        &self,
        x: &[f32],
        output: usize,
        _inputs: usize,
        wide: bool,
    ) -> [[f32; N]; M] {
        self.tile(x, output, wide)
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
    inputs: usize,
) -> [[f32; N]; M] {
    let mut sums = [[0.0; N]; M];
    for (row, sums) in sums.iter_mut().enumerate() {
        let x = &x[row * inputs..(row + 1) * inputs];
        for (output, sum) in sums.iter_mut().enumerate() {
            let weight = &weight[output * inputs..(output + 1) * inputs];
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
    use super::{Element, LANES};
    use std::arch::x86_64::*;

    /// `M × N` sums over `inputs` with AVX2 and FMA.
    ///
    /// `x` holds `M` rows and `weight` `N` rows of `inputs` elements.
    #[target_feature(enable = "avx2,fma")]
    #[allow(clippy::needless_range_loop)] // Plain indices keep the tile in registers and the loops readable.
    pub(super) fn tile<E: Element, const M: usize, const N: usize>(
        x: &[f32],
        weight: &[E],
        inputs: usize,
    ) -> [[f32; N]; M] {
        assert!(x.len() >= M * inputs && weight.len() >= N * inputs);
        let mut sums = [[_mm256_setzero_ps(); N]; M];
        let whole = inputs - inputs % LANES;
        let mut index = 0;
        while index < whole {
            let mut weights = [_mm256_setzero_ps(); N];
            for (output, value) in weights.iter_mut().enumerate() {
                // SAFETY: `index + 8 <= inputs`, so eight elements of this row are inside `weight`; AVX2 is enabled.
                *value = unsafe { E::load(weight.as_ptr().add(output * inputs + index)) };
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
        if whole < inputs {
            let rest = inputs - whole;
            for row in 0..M {
                let mut left = [0.0_f32; LANES];
                left[..rest].copy_from_slice(&x[row * inputs + whole..(row + 1) * inputs]);
                for output in 0..N {
                    let mut right = [0.0_f32; LANES];
                    for (right, weight) in right
                        .iter_mut()
                        .zip(&weight[output * inputs + whole..(output + 1) * inputs])
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
        let sums = portable_tile::<f32, 3, 4>(&x, &weight, 100);
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
