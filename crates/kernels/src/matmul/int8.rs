//! Weights as 8-bit integers with one scale for 32 of them along `K`; activations stay in single precision.
//!
//! A weight takes 8.5 bits: the scale is a bf16 number, rounded up before the integers are chosen, so that its own
//! rounding costs nothing.
#![allow(unsafe_code)]

use half::bf16;

use super::Weight;
use super::invariant::Streams;

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

    /// Sums of `M` rows of activations with `N` rows of weights.
    #[inline]
    pub(super) fn tile<const M: usize, const N: usize>(
        &self,
        x: &[f32],
        streams: Streams,
        wide: bool,
    ) -> [[f32; N]; M] {
        #[cfg(target_arch = "x86_64")]
        if wide {
            // SAFETY: `wide` is set only where AVX2 and FMA were detected.
            return unsafe { wide::tile::<M, N>(x, *self, streams) };
        }
        let _ = wide;
        portable_tile(x, *self, streams)
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

/// Eight interleaved sums a block, scaled and added to eight interleaved sums a row; the order of the wide kernel.
fn portable_tile<const M: usize, const N: usize>(
    x: &[f32],
    weight: Int8Weight<'_>,
    streams: Streams,
) -> [[f32; N]; M] {
    let inputs = weight.inputs;
    let mut sums = [[0.0; N]; M];
    for (row, sums) in sums.iter_mut().enumerate() {
        let x = &x[row * inputs..(row + 1) * inputs];
        for (output, sum) in sums.iter_mut().enumerate() {
            let (values, scales) = weight.row(streams.row(output));
            let mut lanes = [0.0_f32; 8];
            for ((x, values), scale) in x.chunks(BLOCK).zip(values.chunks(BLOCK)).zip(scales) {
                let mut partial = [0.0_f32; 8];
                for (index, (x, value)) in x.iter().zip(values).enumerate() {
                    partial[index % 8] += x * f32::from(*value);
                }
                for (lane, partial) in lanes.iter_mut().zip(partial) {
                    *lane += partial * widened(*scale);
                }
            }
            *sum = super::invariant::tree(lanes);
        }
    }
    sums
}

#[cfg(target_arch = "x86_64")]
mod wide {
    use super::{BLOCK, Int8Weight, Streams, widened};
    use std::arch::x86_64::*;

    /// `M × N` sums over the columns of `weight` with AVX2 and FMA; `x` holds `M` rows.
    #[target_feature(enable = "avx2,fma")]
    #[allow(clippy::needless_range_loop)] // Plain indices keep the tile in registers and the loops readable.
    pub(super) fn tile<const M: usize, const N: usize>(
        x: &[f32],
        weight: Int8Weight<'_>,
        streams: Streams,
    ) -> [[f32; N]; M] {
        let Int8Weight {
            values,
            scales,
            inputs,
        } = weight;
        let blocks = inputs.div_ceil(BLOCK);
        assert!(x.len() >= M * inputs && streams.fit::<N>(values.len(), inputs));
        assert!(streams.fit::<N>(scales.len(), blocks));
        let mut sums = [[_mm256_setzero_ps(); N]; M];
        let whole = inputs / BLOCK;
        let fetched = streams.fetched::<N>();
        for block in 0..whole {
            let first = block * BLOCK;
            for number in fetched.clone() {
                // The address may be behind the weight: it is a hint and never read.
                let place = streams.row_ahead(number) * inputs + first;
                _mm_prefetch::<_MM_HINT_T0>(values.as_ptr().wrapping_add(place));
            }
            for output in 0..N {
                let output_row = streams.row(output);
                // SAFETY: block `block` of this row lies inside `values`, its scale inside `scales`.
                let (start, scale) = unsafe {
                    (
                        values.as_ptr().add(output_row * inputs + first),
                        *scales.as_ptr().add(output_row * blocks + block),
                    )
                };
                let scale = _mm256_set1_ps(widened(scale));
                let mut weights = [_mm256_setzero_ps(); BLOCK / 8];
                for part in 0..BLOCK / 8 {
                    // SAFETY: eight integers of the block.
                    let integers = unsafe { _mm_loadl_epi64(start.add(part * 8).cast()) };
                    weights[part] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(integers));
                }
                for row in 0..M {
                    let mut partial = _mm256_setzero_ps();
                    for part in 0..BLOCK / 8 {
                        // SAFETY: the same eight columns of a row of `x`.
                        let x = unsafe {
                            _mm256_loadu_ps(x.as_ptr().add(row * inputs + first + part * 8))
                        };
                        partial = _mm256_fmadd_ps(x, weights[part], partial);
                    }
                    sums[row][output] = _mm256_fmadd_ps(partial, scale, sums[row][output]);
                }
            }
        }
        // The last block of a row may be short.
        let first = whole * BLOCK;
        if first < inputs {
            for output in 0..N {
                let (values, scales) = weight.row(streams.row(output));
                let scale = _mm256_set1_ps(widened(scales[whole]));
                let mut right = [0.0_f32; BLOCK];
                for (right, value) in right.iter_mut().zip(&values[first..]) {
                    *right = f32::from(*value);
                }
                for row in 0..M {
                    let mut left = [0.0_f32; BLOCK];
                    left[..inputs - first]
                        .copy_from_slice(&x[row * inputs + first..(row + 1) * inputs]);
                    let mut partial = _mm256_setzero_ps();
                    for part in 0..BLOCK / 8 {
                        // SAFETY: both arrays hold 32 elements.
                        let (left, right) = unsafe {
                            (
                                _mm256_loadu_ps(left.as_ptr().add(part * 8)),
                                _mm256_loadu_ps(right.as_ptr().add(part * 8)),
                            )
                        };
                        partial = _mm256_fmadd_ps(left, right, partial);
                    }
                    sums[row][output] = _mm256_fmadd_ps(partial, scale, sums[row][output]);
                }
            }
        }
        let mut result = [[0.0; N]; M];
        for row in 0..M {
            for output in 0..N {
                let mut lanes = [0.0_f32; 8];
                // SAFETY: the array holds eight elements.
                unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), sums[row][output]) };
                result[row][output] = super::super::invariant::tree(lanes);
            }
        }
        result
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

    #[test]
    fn products_equal_the_plain_one_in_any_batch_with_and_without_wide_instructions() {
        for (rows, outputs, inputs) in [
            (1, 1, 1),
            (1, 9, 40),
            (5, 7, 64),
            (50, 66, 33),
            (9, 300, 160),
            (1, 900, 1216),
        ] {
            let shape = Shape {
                rows,
                outputs,
                inputs,
            };
            let x = numbers(rows * inputs, 1);
            let (values, scales) = quantize(Weight::F32(&numbers(outputs * inputs, 2)), inputs);
            let quantized = Int8Weight::new(&values, &scales, inputs);
            let weight = Weight::Int8(quantized);
            let (mut plain, mut fast) = (vec![0.5; rows * outputs], vec![0.5; rows * outputs]);
            forward_plain(shape, &x, weight, &mut plain, Write::Add);
            forward_batch_invariant(shape, &x, weight, &mut fast, Write::Add);
            for (plain, fast) in plain.iter().zip(&fast) {
                assert!((plain - fast).abs() < 5e-4, "{plain} {fast}");
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
                let [[portable]] = quantized.tile::<1, 1>(x, Streams::single(outputs - 1), false);
                assert!((portable - alone[outputs - 1]).abs() < 5e-4);
            }
        }
    }
}
