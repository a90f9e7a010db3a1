//! Random numbers addressed by a counter: element `i` of stream `key` is a pure function of both.
//!
//! Dropout masks and noise are computed again in the backward pass and after a resume instead of being
//! stored, and they do not depend on the order in which elements are visited.

use rayon::prelude::*;

/// Elements per piece of work.
const PIECE: usize = 16_384;

/// The key of one stream of random numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoiseKey(u64);

impl NoiseKey {
    /// The stream of `seed`.
    pub fn new(seed: u64) -> Self {
        Self(mix(seed ^ 0x5a5a_7e57_0bad_cafe))
    }

    /// A stream that is independent of this one and of every other `label`.
    #[must_use]
    pub fn child(self, label: u64) -> Self {
        Self(mix(self.0 ^ mix(label.wrapping_add(0x9e37_79b9_7f4a_7c15))))
    }

    /// The number that makes the stream, for code that computes it elsewhere.
    #[cfg(feature = "cuda")]
    pub(crate) fn number(self) -> u64 {
        self.0
    }

    /// 64 random bits for element `index`.
    #[inline(always)]
    pub fn bits(self, index: u64) -> u64 {
        mix(self
            .0
            .wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
    }

    /// A number in `[0, 1)` with 24 random bits for element `index`.
    #[inline(always)]
    pub fn uniform(self, index: u64) -> f32 {
        (self.bits(index) >> 40) as f32 * (1.0 / 16_777_216.0)
    }

    /// A number of the standard normal distribution for element `index` (Box-Muller).
    pub fn normal(self, index: u64) -> f32 {
        let bits = self.bits(index);
        let radius = ((bits >> 32) as f64 + 1.0) / 4_294_967_296.0;
        let angle = (bits & 0xffff_ffff) as f64 / 4_294_967_296.0 * std::f64::consts::TAU;
        ((-2.0 * radius.ln()).sqrt() * angle.cos()) as f32
    }
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014).
#[inline(always)]
fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// `output = input · mask / (1 - probability)`; each element is dropped with `probability`.
///
/// The same call on a gradient is the backward pass.
pub fn dropout(input: &[f32], output: &mut [f32], key: NoiseKey, probability: f32) {
    assert_eq!(input.len(), output.len());
    let keep = 1.0 / (1.0 - probability);
    output
        .par_chunks_mut(PIECE)
        .zip(input.par_chunks(PIECE))
        .enumerate()
        .for_each(|(piece, (output, input))| {
            let start = (piece * PIECE) as u64;
            for (offset, (output, input)) in output.iter_mut().zip(input).enumerate() {
                let kept = key.uniform(start + offset as u64) >= probability;
                *output = if kept { *input * keep } else { 0.0 };
            }
        });
}

/// `target += dropout(source)` with the mask of [`dropout`], used to add a gradient.
pub fn add_dropout(source: &[f32], target: &mut [f32], key: NoiseKey, probability: f32) {
    assert_eq!(source.len(), target.len());
    let keep = 1.0 / (1.0 - probability);
    target
        .par_chunks_mut(PIECE)
        .zip(source.par_chunks(PIECE))
        .enumerate()
        .for_each(|(piece, (target, source))| {
            let start = (piece * PIECE) as u64;
            for (offset, (target, source)) in target.iter_mut().zip(source).enumerate() {
                if key.uniform(start + offset as u64) >= probability {
                    *target += *source * keep;
                }
            }
        });
}

/// Adds uniform noise in `[-magnitude, magnitude)` to `values`; element `i` uses number `first + i`.
pub fn add_uniform(values: &mut [f32], magnitude: f32, key: NoiseKey, first: u64) {
    for (offset, value) in values.iter_mut().enumerate() {
        *value += (key.uniform(first + offset as u64) * 2.0 - 1.0) * magnitude;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropout_keeps_the_mean_and_repeats_with_its_key() {
        let input = vec![1.0_f32; 100_000];
        let (mut once, mut again, mut other) = (input.clone(), input.clone(), input.clone());
        let key = NoiseKey::new(7).child(3);
        dropout(&input, &mut once, key, 0.25);
        dropout(&input, &mut again, key, 0.25);
        dropout(&input, &mut other, key.child(1), 0.25);
        assert_eq!(once, again);
        assert_ne!(once, other);
        let mean = once.iter().sum::<f32>() / input.len() as f32;
        assert!((mean - 1.0).abs() < 0.01, "mean {mean}");
        let mut added = vec![0.0; input.len()];
        add_dropout(&input, &mut added, key, 0.25);
        assert_eq!(added, once);
    }

    #[test]
    fn normal_numbers_have_mean_zero_and_variance_one() {
        let key = NoiseKey::new(1);
        let values: Vec<f64> = (0..100_000).map(|i| f64::from(key.normal(i))).collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let variance =
            values.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / values.len() as f64;
        assert!(
            mean.abs() < 0.01 && (variance - 1.0).abs() < 0.02,
            "{mean} {variance}"
        );
    }
}
