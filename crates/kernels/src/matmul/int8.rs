//! Weights as 8-bit integers with one scale for 32 of them along `K`.
//!
//! A weight takes 8.5 bits: the scale is a bf16 number, rounded up before the integers are chosen, so that its own
//! rounding costs nothing. For serving, each 32 activations of a row become integers with a scale too; the products of a
//! block are summed exactly, and blocks in single precision.
#![allow(unsafe_code)]

use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use super::Weight;
use super::invariant::{PARALLEL_ACTIVATIONS, Runs, tree};
use crate::dispatch::multiversion;

/// Integers that share a scale.
pub const BLOCK: usize = 32;

/// A borrowed quantised matrix `(N, K)`: integers row by row, and for each row `⌈K / 32⌉` scales.
#[derive(Clone, Copy, Debug)]
pub struct Int8Weight<'a> {
    values: &'a [i8],
    scales: &'a [bf16],
    inputs: usize,
}

impl<'a> Int8Weight<'a> {
    /// Joins what [`quantize`] made of a matrix with `inputs` columns.
    ///
    /// # Panics
    /// If the lengths do not belong together.
    pub fn new(values: &'a [i8], scales: &'a [bf16], inputs: usize) -> Self {
        let rows = values.len() / inputs.max(1);
        assert_eq!(values.len(), rows * inputs, "integers");
        assert_eq!(scales.len(), rows * inputs.div_ceil(BLOCK), "scales");
        Self {
            values,
            scales,
            inputs,
        }
    }

    /// Number of elements.
    pub(super) fn len(&self) -> usize {
        self.values.len()
    }

    /// Row `index`, widened.
    pub(super) fn copy_row(&self, index: usize, output: &mut [f32]) {
        let (values, scales) = self.row(index);
        for ((output, values), scale) in output
            .chunks_mut(BLOCK)
            .zip(values.chunks(BLOCK))
            .zip(scales)
        {
            let scale = widened(*scale);
            for (output, value) in output.iter_mut().zip(values) {
                *output = f32::from(*value) * scale;
            }
        }
    }

    /// The integers and the scales of row `index`.
    fn row(&self, index: usize) -> (&'a [i8], &'a [bf16]) {
        let blocks = self.inputs.div_ceil(BLOCK);
        (
            &self.values[index * self.inputs..][..self.inputs],
            &self.scales[index * blocks..][..blocks],
        )
    }
}

/// Activations `(T, K)` as integers, each row in blocks with a scale.
#[derive(Debug, Default)]
pub(super) struct RoundedRows {
    inputs: usize,
    values: Vec<i8>,
    scales: Vec<f32>,
}

impl RoundedRows {
    /// The integers and the scales of row `index`.
    fn row(&self, index: usize) -> (&[i8], &[f32]) {
        let blocks = self.inputs.div_ceil(BLOCK);
        (
            &self.values[index * self.inputs..][..self.inputs],
            &self.scales[index * blocks..][..blocks],
        )
    }
}

/// Rounds activations with `inputs` columns. What is not a number stays so, by its scale.
pub(super) fn round_rows(x: &[f32], inputs: usize, rounded: &mut RoundedRows) {
    let blocks = inputs.div_ceil(BLOCK);
    rounded.inputs = inputs;
    rounded.values.resize(x.len(), 0);
    rounded.scales.resize(x.len() / inputs.max(1) * blocks, 0.0);
    let inputs = inputs.max(1);
    let rows = (x.par_chunks(inputs))
        .zip(rounded.values.par_chunks_mut(inputs))
        .zip(rounded.scales.par_chunks_mut(blocks.max(1)));
    rows.with_min_len((PARALLEL_ACTIVATIONS / inputs).max(1))
        .for_each(|((x, values), scales)| round_row(x, values, scales));
}

multiversion! {
    fn round_row(x: &[f32], values: &mut [i8], scales: &mut [f32]) {
        let (blocks, rest) = x.as_chunks::<BLOCK>();
        let (rounded, rounded_rest) = values.as_chunks_mut::<BLOCK>();
        for ((x, values), scale) in blocks.iter().zip(rounded).zip(scales.iter_mut()) {
            *scale = round_block(x, values);
        }
        if !rest.is_empty() {
            let (mut block, mut values) = ([0.0; BLOCK], [0; BLOCK]);
            block[..rest.len()].copy_from_slice(rest);
            scales[blocks.len()] = round_block(&block, &mut values);
            rounded_rest.copy_from_slice(&values[..rest.len()]);
        }
    }
}

/// Rounds a block and returns its scale.
#[inline(always)]
fn round_block(x: &[f32; BLOCK], values: &mut [i8; BLOCK]) -> f32 {
    /// Added to a number of few bits, it leaves the nearest integer in the last bits of the sum.
    const ROUNDER: f32 = 12_582_912.0;
    let mut lanes = [0.0_f32; 8];
    let mut finite = [true; 8];
    for x in x.as_chunks::<8>().0 {
        for (lane, x) in x.iter().enumerate() {
            lanes[lane] = lanes[lane].max(x.abs());
            finite[lane] &= x.abs() < f32::INFINITY;
        }
    }
    let greatest = lanes.into_iter().fold(0.0_f32, f32::max);
    let inverse = if greatest > 0.0 {
        127.0 / greatest
    } else {
        0.0
    };
    for (value, x) in values.iter_mut().zip(x) {
        *value = (x * inverse + ROUNDER).to_bits() as i8;
    }
    match finite.into_iter().all(|finite| finite) {
        true => greatest / 127.0,
        false => f32::NAN,
    }
}

/// Rounds a matrix with `inputs` columns: the integers and the scales.
///
/// An element is off by at most half its block's scale, which is the block's greatest absolute value divided by 127,
/// rounded up to a bf16 number.
pub fn quantize(weight: Weight<'_>, inputs: usize) -> (Vec<i8>, Vec<bf16>) {
    let rows = weight.len() / inputs.max(1);
    let mut values = Vec::with_capacity(weight.len());
    let mut scales = Vec::with_capacity(rows * inputs.div_ceil(BLOCK));
    let mut row = vec![0.0; inputs];
    for index in 0..rows {
        weight.copy_row(index, inputs, &mut row);
        for block in row.chunks(BLOCK) {
            let greatest = block
                .iter()
                .fold(0.0_f32, |most, value| most.max(value.abs()));
            let scale = rounded_up(greatest / 127.0);
            let inverse = if scale > bf16::ZERO {
                1.0 / widened(scale)
            } else {
                0.0
            };
            scales.push(scale);
            values.extend(
                block
                    .iter()
                    .map(|value| (value * inverse).round().clamp(-127.0, 127.0) as i8),
            );
        }
    }
    (values, scales)
}

fn widened(scale: bf16) -> f32 {
    f32::from_bits(u32::from(scale.to_bits()) << 16)
}

/// The smallest bf16 number that is not below a positive one.
fn rounded_up(value: f32) -> bf16 {
    let bits = value.to_bits();
    bf16::from_bits(((bits >> 16) + u32::from(bits & 0xffff != 0)) as u16)
}

/// Sums over `chunk`, which begins with a block: eight sums of four neighbours a block, scaled and added to eight sums a row; the order of the wide kernel.
pub(super) fn portable_tile<const M: usize, const N: usize>(
    x: &RoundedRows,
    row: usize,
    weight: Int8Weight<'_>,
    runs: Runs,
    chunk: Range<usize>,
) -> [[f32; N]; M] {
    let mut sums = [[0.0; N]; M];
    for (number, sums) in sums.iter_mut().enumerate() {
        let (x, x_scales) = x.row(row + number);
        for (output, sum) in sums.iter_mut().enumerate() {
            let (values, scales) = weight.row(runs.row(output));
            let blocks = (x[chunk.clone()].chunks(BLOCK)).zip(values[chunk.clone()].chunks(BLOCK));
            let scales = x_scales.iter().zip(scales).skip(chunk.start / BLOCK);
            let mut lanes = [0.0_f32; 8];
            for ((x, values), (x_scale, scale)) in blocks.zip(scales) {
                let mut partial = [0_i32; 8];
                for (index, (x, value)) in x.iter().zip(values).enumerate() {
                    partial[index / 4] += i32::from(*x) * i32::from(*value);
                }
                let scale = x_scale * widened(*scale);
                for (lane, partial) in lanes.iter_mut().zip(partial) {
                    *lane += partial as f32 * scale;
                }
            }
            *sum = tree(lanes);
        }
    }
    sums
}

#[cfg(target_arch = "x86_64")]
pub(super) mod wide {
    use super::super::invariant::wide::{FETCH_STEP, bring, trees};
    use super::{BLOCK, Int8Weight, RoundedRows, Runs};
    use std::arch::x86_64::*;
    use std::ops::Range;

    /// `M × N` sums over the columns `chunk`, which begins with a block.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub(in super::super) fn tile<const M: usize, const N: usize, const F: usize>(
        x: &RoundedRows,
        row: usize,
        weight: Int8Weight<'_>,
        runs: Runs,
        chunk: Range<usize>,
        fetch: [usize; F],
    ) -> [[f32; N]; M] {
        const { assert!(FETCH_STEP == BLOCK) };
        let Int8Weight {
            values,
            scales,
            inputs,
        } = weight;
        let blocks = inputs.div_ceil(BLOCK);
        assert!(x.inputs == inputs && x.values.len() >= (row + M) * inputs);
        assert!(x.scales.len() >= (row + M) * blocks);
        assert!(runs.fit::<N>(values.len(), inputs) && runs.fit::<N>(scales.len(), blocks));
        assert!(
            chunk.start.is_multiple_of(BLOCK) && chunk.start <= chunk.end && chunk.end <= inputs
        );
        // SAFETY: all blocks of these rows lie inside the buffers, as was just checked.
        unsafe {
            let mut sums = [[_mm256_setzero_ps(); N]; M];
            let whole = chunk.end / BLOCK;
            for block in chunk.start / BLOCK..whole {
                for fetch in fetch {
                    bring(values.as_ptr().wrapping_add(fetch + block * BLOCK));
                }
                let mut activations = [(_mm256_setzero_si256(), _mm256_setzero_ps()); M];
                for (number, (integers, scale)) in activations.iter_mut().enumerate() {
                    let place = row + number;
                    let values = x.values.as_ptr().add(place * inputs + block * BLOCK);
                    *integers = _mm256_loadu_si256(values.cast());
                    *scale = _mm256_broadcast_ss(&*x.scales.as_ptr().add(place * blocks + block));
                }
                for number in 0..N {
                    let place = runs.row(number);
                    let values = values.as_ptr().add(place * inputs + block * BLOCK);
                    let scale = *scales.as_ptr().add(place * blocks + block);
                    let scale = _mm256_set1_epi32(i32::from(scale.to_bits()) << 16);
                    let weights = _mm256_loadu_si256(values.cast());
                    add_block(
                        &mut sums,
                        number,
                        activations,
                        weights,
                        _mm256_castsi256_ps(scale),
                    );
                }
            }
            if whole * BLOCK < chunk.end {
                // The last block of a row is short.
                let rest = whole * BLOCK..chunk.end;
                let mut activations = [(_mm256_setzero_si256(), _mm256_setzero_ps()); M];
                for (number, (integers, scale)) in activations.iter_mut().enumerate() {
                    let (values, scales) = x.row(row + number);
                    *integers = padded(&values[rest.clone()]);
                    *scale = _mm256_set1_ps(scales[whole]);
                }
                for number in 0..N {
                    let (values, scales) = weight.row(runs.row(number));
                    let scale = _mm256_set1_ps(scales[whole].to_f32());
                    add_block(
                        &mut sums,
                        number,
                        activations,
                        padded(&values[rest.clone()]),
                        scale,
                    );
                }
            }
            trees(sums)
        }
    }

    /// A block that ends with zeros.
    #[target_feature(enable = "avx2,fma")]
    fn padded(values: &[i8]) -> __m256i {
        let mut block = [0_i8; BLOCK];
        block[..values.len()].copy_from_slice(values);
        // SAFETY: the array holds 32 integers.
        unsafe { _mm256_loadu_si256(block.as_ptr().cast()) }
    }

    /// Adds the products of `M` blocks of activations with one of weights.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    #[allow(clippy::needless_range_loop)] // Plain indices keep the tile in registers.
    fn add_block<const M: usize, const N: usize>(
        sums: &mut [[__m256; N]; M],
        number: usize,
        activations: [(__m256i, __m256); M],
        weights: __m256i,
        scale: __m256,
    ) {
        // The instruction takes one side without a sign; the other gets it. Two products of at most 127² fit 16 bits.
        let lengths = _mm256_abs_epi8(weights);
        for row in 0..M {
            let (values, x_scale) = activations[row];
            let pairs = _mm256_maddubs_epi16(lengths, _mm256_sign_epi8(values, weights));
            let fours = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
            sums[row][number] = _mm256_fmadd_ps(
                _mm256_cvtepi32_ps(fours),
                _mm256_mul_ps(x_scale, scale),
                sums[row][number],
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Shape, Write, forward_batch_invariant, forward_plain};
    use super::*;

    fn numbers(count: usize, seed: u64) -> Vec<f32> {
        let key = crate::noise::NoiseKey::new(seed);
        (0..count as u64).map(|index| key.normal(index)).collect()
    }

    #[test]
    fn an_element_is_off_by_half_its_scale_at_most() {
        let inputs = 70;
        let mut weight = numbers(5 * inputs, 9);
        weight[inputs..2 * inputs].fill(0.0);
        weight[3] = 40.0;
        let (values, scales) = quantize(Weight::F32(&weight), inputs);
        let quantized = Int8Weight::new(&values, &scales, inputs);
        let mut row = vec![0.0; inputs];
        for index in 0..5 {
            quantized.copy_row(index, &mut row);
            let exact = &weight[index * inputs..(index + 1) * inputs];
            for (block, (row, exact)) in row.chunks(BLOCK).zip(exact.chunks(BLOCK)).enumerate() {
                let scale = scales[index * 3 + block].to_f32();
                let greatest = exact
                    .iter()
                    .fold(0.0_f32, |most, value| most.max(value.abs()));
                assert!(scale >= greatest / 127.0 && scale <= greatest / 127.0 * 1.01);
                for (row, exact) in row.iter().zip(exact) {
                    assert!(
                        (row - exact).abs() <= scale * 0.5001,
                        "{row} {exact} {scale}"
                    );
                }
            }
        }
    }

    /// The activations that the integers of `rounded` stand for.
    fn widened_rows(rounded: &RoundedRows) -> Vec<f32> {
        let rows = rounded.values.len() / rounded.inputs;
        let row = |row| {
            let (values, scales) = rounded.row(row);
            let blocks = values.chunks(BLOCK).zip(scales);
            blocks.flat_map(|(values, scale)| {
                values.iter().map(move |value| f32::from(*value) * scale)
            })
        };
        (0..rows).flat_map(row).collect()
    }

    #[test]
    fn an_activation_is_off_by_half_its_scale_and_what_is_not_a_number_stays_so() {
        let inputs = 70;
        let mut x = numbers(4 * inputs, 3);
        x[inputs..2 * inputs].fill(0.0);
        let mut rounded = RoundedRows::default();
        round_rows(&x, inputs, &mut rounded);
        for (index, (x, widened)) in x.iter().zip(widened_rows(&rounded)).enumerate() {
            let scale = rounded.row(index / inputs).1[index % inputs / BLOCK];
            assert!(
                (x - widened).abs() <= scale * 0.5001,
                "{x} {widened} {scale}"
            );
        }
        for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            x[65] = odd;
            round_rows(&x, inputs, &mut rounded);
            let scales = &rounded.row(0).1;
            assert!(scales[2].is_nan() && !scales[1].is_nan());
        }
    }

    #[test]
    fn products_equal_the_plain_one_in_any_batch_with_and_without_wide_instructions() {
        for (rows, outputs, inputs) in [
            (1, 1, 1),
            (1, 9, 40),
            (5, 7, 64),
            (50, 66, 33),
            (9, 300, 160),
            (1, 900, 1216),
            (6, 26, 5200),
        ] {
            let shape = Shape {
                rows,
                outputs,
                inputs,
            };
            let x = numbers(rows * inputs, 1);
            let mut rounded = RoundedRows::default();
            round_rows(&x, inputs, &mut rounded);
            let (values, scales) = quantize(Weight::F32(&numbers(outputs * inputs, 2)), inputs);
            let quantized = Int8Weight::new(&values, &scales, inputs);
            let weight = Weight::Int8(quantized);
            let (mut plain, mut fast) = (vec![0.5; rows * outputs], vec![0.5; rows * outputs]);
            forward_plain(
                shape,
                &widened_rows(&rounded),
                weight,
                &mut plain,
                Write::Add,
            );
            forward_batch_invariant(shape, &x, weight, &mut fast, Write::Add);
            for (plain, fast) in plain.iter().zip(&fast) {
                assert!((plain - fast).abs() < 1e-3, "{plain} {fast}");
            }
            forward_batch_invariant(shape, &x, weight, &mut fast, Write::Replace);
            for row in 0..rows {
                let x = &x[row * inputs..(row + 1) * inputs];
                let mut alone = vec![0.0; outputs];
                let one = Shape {
                    rows: 1,
                    outputs,
                    inputs,
                };
                forward_batch_invariant(one, x, weight, &mut alone, Write::Replace);
                assert_eq!(alone, fast[row * outputs..(row + 1) * outputs]);
            }
            let last = Runs::neighbours(outputs - 1);
            let [[portable]] =
                portable_tile::<1, 1>(&rounded, rows - 1, quantized, last, 0..inputs);
            assert!((portable - fast[rows * outputs - 1]).abs() < 1e-3);
        }
    }
}
