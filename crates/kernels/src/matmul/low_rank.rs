//! The second half of a low-rank delta: a few numbers a row spread over all outputs.
#![allow(unsafe_code)]

use super::Weight;
use crate::dispatch::multiversion;
use crate::shared::Disjoint;
use half::bf16;
use rayon::prelude::*;
use std::ops::Range;

/// Outputs of one row that are summed in registers.
const WIDE: usize = 64;
/// Outputs of each of [`ROWS`] rows that are summed in registers, so that a widened number is used for all of them.
const NARROW: usize = 16;
const ROWS: usize = 4;
/// Multiplications from which on the outputs are divided between threads.
const PARALLEL_WORK: usize = 1 << 17;

/// `y (T, N) += low (T, R) · B`, with `b (R, N)`: `B` transposed.
///
/// Every element is summed in the order of `R`, starting from what `y` holds, so that a row gets the same bits in any
/// batch.
///
/// # Panics
/// If a length does not match, or for a quantised `b`.
pub fn add_low_rank(outputs: usize, low: &[f32], b: Weight<'_>, y: &mut [f32]) {
    let rank = b.len() / outputs.max(1);
    assert_eq!(low.len() * outputs, y.len() * rank, "low-rank product");
    assert_eq!(b.len(), rank * outputs, "low-rank matrix");
    let work = y.len() * rank;
    let y = Disjoint::new(y);
    let columns = |columns: Range<usize>| match b {
        Weight::F32(b) => spread_f32(low, b, &y, outputs, columns),
        Weight::Bf16(b) => spread_bf16(low, b, &y, outputs, columns),
        Weight::Int8(_) => unreachable!("adapters are not quantised"),
    };
    if work < PARALLEL_WORK {
        columns(0..outputs);
    } else {
        let size = outputs
            .div_ceil(rayon::current_num_threads())
            .next_multiple_of(WIDE);
        (0..outputs.div_ceil(size))
            .into_par_iter()
            .for_each(|piece| columns(piece * size..((piece + 1) * size).min(outputs)));
    }
}

multiversion! {
    fn spread_f32(low: &[f32], b: &[f32], y: &Disjoint<'_, f32>, outputs: usize, columns: Range<usize>) {
        spread(low, b, y, outputs, columns, |value| value);
    }
}

multiversion! {
    fn spread_bf16(low: &[f32], b: &[bf16], y: &Disjoint<'_, f32>, outputs: usize, columns: Range<usize>) {
        let widened = |value: bf16| f32::from_bits(u32::from(value.to_bits()) << 16);
        spread(low, b, y, outputs, columns, widened);
    }
}

/// Adds to `columns` of all rows, which no other thread does.
#[inline(always)]
fn spread<E: Copy>(
    low: &[f32],
    b: &[E],
    y: &Disjoint<'_, f32>,
    outputs: usize,
    columns: Range<usize>,
    widened: impl Fn(E) -> f32 + Copy,
) {
    let rank = b.len() / outputs.max(1);
    if rank == 0 {
        return;
    }
    let mut first = 0;
    let fours = low.chunks_exact(ROWS * rank);
    let rest = fours.remainder();
    for low in fours {
        tiles::<E, ROWS, NARROW>(low, b, y, outputs, (first, columns.clone()), widened);
        first += ROWS;
    }
    for low in rest.chunks_exact(rank) {
        tiles::<E, 1, WIDE>(low, b, y, outputs, (first, columns.clone()), widened);
        first += 1;
    }
}

/// Adds to `columns` of `M` rows from `first` on, `W` of them at a time.
#[inline(always)]
fn tiles<E: Copy, const M: usize, const W: usize>(
    low: &[f32],
    b: &[E],
    y: &Disjoint<'_, f32>,
    outputs: usize,
    (first, columns): (usize, Range<usize>),
    widened: impl Fn(E) -> f32 + Copy,
) {
    let rank = low.len() / M;
    let whole = columns.end - columns.len() % W;
    for start in (columns.start..whole).step_by(W) {
        let mut sums = [[0.0_f32; W]; M];
        for (row, sums) in sums.iter_mut().enumerate() {
            // SAFETY: only this thread takes these columns, and one row at a time.
            sums.copy_from_slice(unsafe { y.slice((first + row) * outputs + start, W) });
        }
        for (index, b) in b.chunks_exact(outputs).enumerate() {
            let mut values = [0.0_f32; W];
            for (value, b) in values.iter_mut().zip(&b[start..start + W]) {
                *value = widened(*b);
            }
            for (row, sums) in sums.iter_mut().enumerate() {
                let factor = low[row * rank + index];
                for (sum, value) in sums.iter_mut().zip(&values) {
                    *sum += value * factor;
                }
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            // SAFETY: as above.
            unsafe { y.slice((first + row) * outputs + start, W) }.copy_from_slice(sums);
        }
    }
    for (row, low) in low.chunks_exact(rank).enumerate() {
        // SAFETY: as above.
        let rest = unsafe { y.slice((first + row) * outputs + whole, columns.end - whole) };
        for (b, factor) in b.chunks_exact(outputs).zip(low) {
            for (sum, value) in rest.iter_mut().zip(&b[whole..]) {
                *sum += widened(*value) * factor;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_gets_its_sum_in_order_for_both_types() {
        let key = crate::noise::NoiseKey::new(5);
        for (rows, outputs, rank) in [
            (1, 3, 1),
            (2, 64, 4),
            (3, 200, 16),
            (9, 1000, 16),
            (6, 5000, 5),
        ] {
            let numbers = |count: usize, seed: u64| -> Vec<f32> {
                let key = key.child(seed);
                (0..count as u64).map(|index| key.normal(index)).collect()
            };
            let low = numbers(rows * rank, 1);
            let short: Vec<bf16> = numbers(rank * outputs, 2)
                .into_iter()
                .map(bf16::from_f32)
                .collect();
            let wide: Vec<f32> = short.iter().map(|value| value.to_f32()).collect();
            let before = numbers(rows * outputs, 3);
            let mut expected = before.clone();
            for row in 0..rows {
                for index in 0..rank {
                    for output in 0..outputs {
                        expected[row * outputs + output] +=
                            wide[index * outputs + output] * low[row * rank + index];
                    }
                }
            }
            for b in [Weight::F32(&wide), Weight::Bf16(&short)] {
                let mut y = before.clone();
                add_low_rank(outputs, &low, b, &mut y);
                assert_eq!(y, expected);
            }
        }
    }
}
