//! Exponentials and softmax of rows.

use crate::dispatch::multiversion;

/// Number of independent partial results in sums and maxima; fixes their order.
const LANES: usize = 16;

/// `e^x` with a relative error near `1e-7`, without branches, so that loops over it vectorise.
///
/// Values below about -87.3 give the smallest normal number rather than zero, values above 88.3 saturate.
/// The polynomial is the one of Cephes `expf`.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Adding this number rounds to an integer held in the low bits of the mantissa.
    const ROUNDER: f32 = 12_582_912.0;
    let x = x.clamp(-87.3, 88.3);
    let shifted = x * std::f32::consts::LOG2_E + ROUNDER;
    let whole = shifted - ROUNDER;
    let rest = x - whole * 0.693_359_4 + whole * 2.121_944_4e-4;
    let mut polynomial = 1.987_569_2e-4_f32;
    polynomial = polynomial * rest + 1.398_2e-3;
    polynomial = polynomial * rest + 8.333_452e-3;
    polynomial = polynomial * rest + 4.166_579_6e-2;
    polynomial = polynomial * rest + 1.666_666_5e-1;
    polynomial = polynomial * rest + 0.5;
    let mantissa = polynomial * rest * rest + rest + 1.0;
    let exponent = shifted
        .to_bits()
        .wrapping_sub(ROUNDER.to_bits())
        .wrapping_add(127)
        << 23;
    mantissa * f32::from_bits(exponent)
}

multiversion! {
    /// Replaces `row` by `e^(scale·row - max)` and returns `(max, sum)`, `max` being that of `scale·row`.
    ///
    /// An empty row gives `(-inf, 0)`.
    pub fn exponentials(row: &mut [f32], scale: f32) -> (f32, f32) {
        let mut maxima = [f32::NEG_INFINITY; LANES];
        let mut chunks = row.chunks_exact_mut(LANES);
        for chunk in &mut chunks {
            for lane in 0..LANES {
                let value = chunk[lane] * scale;
                chunk[lane] = value;
                maxima[lane] = if value > maxima[lane] { value } else { maxima[lane] };
            }
        }
        for (lane, value) in chunks.into_remainder().iter_mut().enumerate() {
            *value *= scale;
            maxima[lane] = if *value > maxima[lane] { *value } else { maxima[lane] };
        }
        let mut maximum = f32::NEG_INFINITY;
        for value in maxima {
            maximum = if value > maximum { value } else { maximum };
        }
        let mut sums = [0.0_f32; LANES];
        let mut chunks = row.chunks_exact_mut(LANES);
        for chunk in &mut chunks {
            for lane in 0..LANES {
                let value = exp(chunk[lane] - maximum);
                chunk[lane] = value;
                sums[lane] += value;
            }
        }
        for (lane, value) in chunks.into_remainder().iter_mut().enumerate() {
            *value = exp(*value - maximum);
            sums[lane] += *value;
        }
        let mut width = LANES / 2;
        while width > 0 {
            for lane in 0..width {
                sums[lane] += sums[lane + width];
            }
            width /= 2;
        }
        (maximum, sums[0])
    }
}

multiversion! {
    /// Multiplies every element of `row` by `factor`.
    pub fn scale(row: &mut [f32], factor: f32) {
        for value in row {
            *value *= factor;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponential_is_accurate_over_its_range() {
        let mut worst = 0.0_f64;
        for step in -8700..=8800 {
            let x = step as f32 / 100.0;
            let expected = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) - expected).abs() / expected);
        }
        assert!(worst < 3e-7, "relative error {worst}");
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn rows_of_every_length_sum_to_one() {
        for length in 1..70 {
            let mut row: Vec<f32> = (0..length).map(|i| ((i * 37 % 11) as f32) - 4.0).collect();
            let original = row.clone();
            let (maximum, sum) = exponentials(&mut row, 0.5);
            let expected: f64 = original
                .iter()
                .map(|v| f64::from(v * 0.5 - maximum).exp())
                .sum();
            assert!((f64::from(sum) - expected).abs() < 1e-5 * expected);
            scale(&mut row, 1.0 / sum);
            assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-5);
        }
    }
}
