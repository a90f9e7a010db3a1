//! Passes over the logits of a whole vocabulary: the greatest, the logarithm of the sum of exponentials, weights.
//!
//! A vocabulary has 10^5 tokens and every generated token needs a pass or two, so these are written to vectorise. What
//! is not a number counts as minus infinity.

use crate::dispatch::multiversion;
use crate::softmax::exp;

/// Elements whose exponentials are added in single precision before they join the double-precision sum.
pub const BLOCK: usize = 1024;
/// Independent partial results within a block.
const LANES: usize = 16;
/// Exponents below this give zero: the exponential would not be a normal number.
const LEAST_EXPONENT: f32 = -87.0;

multiversion! {
    /// The greatest element, or minus infinity.
    fn maximum(values: &[f32]) -> f32 {
        let mut lanes = [f32::NEG_INFINITY; LANES];
        let mut chunks = values.chunks_exact(LANES);
        for chunk in &mut chunks {
            for (lane, value) in lanes.iter_mut().zip(chunk) {
                *lane = if *value > *lane { *value } else { *lane };
            }
        }
        for (lane, value) in lanes.iter_mut().zip(chunks.remainder()) {
            *lane = if *value > *lane { *value } else { *lane };
        }
        lanes.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
}

/// Index and value of the greatest element; the first of several equal ones. `None` when no element is greater than
/// minus infinity.
pub fn greatest(values: &[f32]) -> Option<(usize, f32)> {
    let maximum = maximum(values);
    if maximum == f32::NEG_INFINITY {
        return None;
    }
    // A block at a time: most are passed over by a vectorised search.
    let block = values
        .chunks(BLOCK)
        .position(|block| contains(block, maximum))?;
    let start = block * BLOCK;
    let place = values[start..].iter().position(|value| *value == maximum)?;
    Some((start + place, maximum))
}

multiversion! {
    fn contains(values: &[f32], wanted: f32) -> bool {
        let mut found = false;
        for value in values {
            found |= *value == wanted;
        }
        found
    }
}

multiversion! {
    fn block_weights(values: &[f32], maximum: f32, factor: f32, weights: &mut [f32]) -> f32 {
        let mut sums = [0.0_f32; LANES];
        for (values, weights) in values.chunks(LANES).zip(weights.chunks_mut(LANES)) {
            for ((value, weight), sum) in values.iter().zip(weights).zip(&mut sums) {
                let exponent = (*value - maximum) * factor;
                // False for what is not a number, too.
                *weight = if exponent > LEAST_EXPONENT { exp(exponent) } else { 0.0 };
                *sum += *weight;
            }
        }
        let mut width = LANES / 2;
        while width > 0 {
            for lane in 0..width {
                sums[lane] += sums[lane + width];
            }
            width /= 2;
        }
        sums[0]
    }
}

/// Overwrites `weights` with `e^(factor·(value − maximum))` and returns their sum for each [`BLOCK`] elements.
///
/// `maximum` is the greatest value and finite, `factor` positive.
pub fn weights(values: &[f32], maximum: f32, factor: f32, weights: &mut [f32]) -> Vec<f64> {
    assert_eq!(values.len(), weights.len());
    values
        .chunks(BLOCK)
        .zip(weights.chunks_mut(BLOCK))
        .map(|(values, weights)| f64::from(block_weights(values, maximum, factor, weights)))
        .collect()
}

/// `ln Σ e^value`; minus infinity without a value above it.
pub fn log_sum_exp(values: &[f32]) -> f32 {
    let maximum = maximum(values);
    if maximum == f32::NEG_INFINITY {
        return maximum;
    }
    let mut scratch = [0.0; BLOCK];
    let sum: f64 = values
        .chunks(BLOCK)
        .map(|block| {
            f64::from(block_weights(
                block,
                maximum,
                1.0,
                &mut scratch[..block.len()],
            ))
        })
        .sum();
    maximum + sum.ln() as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize) -> Vec<f32> {
        let key = crate::noise::NoiseKey::new(5);
        (0..count as u64)
            .map(|index| key.normal(index) * 4.0)
            .collect()
    }

    #[test]
    fn passes_agree_with_their_definitions_at_every_length() {
        for length in [1, 15, 16, 17, 1023, 1024, 1025, 5000] {
            let values = numbers(length);
            let best = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let (place, value) = greatest(&values).unwrap();
            assert!(value == best && values[place] == best);
            let sum: f64 = values.iter().map(|value| f64::from(*value).exp()).sum();
            assert!((f64::from(log_sum_exp(&values)) - sum.ln()).abs() < 1e-5);
            let mut made = vec![0.0; length];
            let sums = weights(&values, best, 0.5, &mut made);
            let expected: f64 = values
                .iter()
                .map(|value| (f64::from(value - best) * 0.5).exp())
                .sum();
            assert!((sums.iter().sum::<f64>() / expected - 1.0).abs() < 1e-5);
            assert_eq!(made[place], 1.0);
        }
    }

    #[test]
    fn what_is_not_a_number_counts_for_nothing() {
        let values = [f32::NAN, 1.0, f32::NEG_INFINITY, 1.0];
        assert_eq!(greatest(&values), Some((1, 1.0)));
        let mut made = [9.0; 4];
        let sums = weights(&values, 1.0, 1.0, &mut made);
        assert_eq!((made, sums), ([0.0, 1.0, 0.0, 1.0], vec![2.0]));
        assert!((log_sum_exp(&values) - (1.0 + 2.0_f32.ln())).abs() < 1e-6);
        assert_eq!(greatest(&[f32::NAN, f32::NEG_INFINITY]), None);
        assert_eq!(log_sum_exp(&[]), f32::NEG_INFINITY);
    }
}
