//! The second half of a low-rank delta: a few numbers a row spread over all outputs.

use super::Weight;
use crate::dispatch::multiversion;
use half::bf16;

/// Outputs that are summed in registers.
const WIDE: usize = 64;

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
    for (y, low) in y.chunks_exact_mut(outputs).zip(low.chunks_exact(rank)) {
        match b {
            Weight::F32(b) => spread_f32(low, b, y),
            Weight::Bf16(b) => spread_bf16(low, b, y),
            Weight::Int8(_) => unreachable!("adapters are not quantised"),
        }
    }
}

multiversion! {
    fn spread_f32(low: &[f32], b: &[f32], y: &mut [f32]) {
        spread(low, b, y, |value| value);
    }
}

multiversion! {
    fn spread_bf16(low: &[f32], b: &[bf16], y: &mut [f32]) {
        spread(low, b, y, |value| f32::from_bits(u32::from(value.to_bits()) << 16));
    }
}

#[inline(always)]
fn spread<E: Copy>(low: &[f32], b: &[E], y: &mut [f32], widened: impl Fn(E) -> f32) {
    let outputs = y.len();
    let mut blocks = y.chunks_exact_mut(WIDE);
    let mut start = 0;
    for block in &mut blocks {
        let mut sums = [0.0_f32; WIDE];
        sums.copy_from_slice(block);
        for (row, factor) in b.chunks_exact(outputs).zip(low) {
            let row = &row[start..start + WIDE];
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum += widened(*value) * factor;
            }
        }
        block.copy_from_slice(&sums);
        start += WIDE;
    }
    let rest = blocks.into_remainder();
    for (row, factor) in b.chunks_exact(outputs).zip(low) {
        for (sum, value) in rest.iter_mut().zip(&row[start..]) {
            *sum += widened(*value) * factor;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_gets_its_sum_in_order_for_both_types() {
        let key = crate::noise::NoiseKey::new(5);
        for (rows, outputs, rank) in [(1, 3, 1), (2, 64, 4), (3, 200, 16)] {
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
