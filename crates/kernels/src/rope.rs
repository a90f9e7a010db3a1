//! Rotary position embedding in the "rotate half" layout of the Qwen and Llama families: element `i` of a
//! head turns together with element `i + D/2` by the angle `position / theta^(2i/D)`.

use rayon::prelude::*;

/// Rows per piece of work.
const ROWS_PER_PIECE: usize = 32;

/// Cosines and sines for positions `0..positions`.
#[derive(Clone, Debug)]
pub struct RopeTable {
    half: usize,
    cosines: Vec<f32>,
    sines: Vec<f32>,
}

impl RopeTable {
    /// A table for heads of `head_size` elements and `positions` positions.
    ///
    /// Angles are computed in single precision as the reference implementation does, so that long
    /// contexts agree with it.
    pub fn new(head_size: usize, theta: f64, positions: usize) -> Self {
        let frequencies: Vec<f32> = (0..head_size / 2)
            .map(|i| (1.0 / theta.powf((2 * i) as f64 / head_size as f64)) as f32)
            .collect();
        Self::with_frequencies(&frequencies, 1.0, positions)
    }

    /// A table for heads of twice as many elements as there are `frequencies`; cosines and sines are multiplied
    /// by `amplitude`.
    pub fn with_frequencies(frequencies: &[f32], amplitude: f32, positions: usize) -> Self {
        let half = frequencies.len();
        let mut table = Self {
            half,
            cosines: Vec::new(),
            sines: Vec::new(),
        };
        table.cosines.reserve(positions * half);
        table.sines.reserve(positions * half);
        for position in 0..positions {
            for frequency in frequencies {
                let angle = f64::from(position as f32 * frequency);
                table.cosines.push(angle.cos() as f32 * amplitude);
                table.sines.push(angle.sin() as f32 * amplitude);
            }
        }
        table
    }

    /// Number of positions in the table.
    pub fn positions(&self) -> usize {
        self.cosines.len().checked_div(self.half).unwrap_or(0)
    }

    /// Half the size of a head.
    #[cfg(feature = "cuda")]
    pub(crate) fn half(&self) -> usize {
        self.half
    }

    /// Cosines and sines `(positions, D/2)`.
    #[cfg(feature = "cuda")]
    pub(crate) fn angles(&self) -> (&[f32], &[f32]) {
        (&self.cosines, &self.sines)
    }

    /// Turns the rows of `x (T, heads·D)` forward; row `t` stands at `positions[t]`.
    pub fn rotate(&self, x: &mut [f32], positions: &[u32]) {
        self.apply(x, positions, 1.0);
    }

    /// The backward pass of [`RopeTable::rotate`], and its inverse where the amplitude is 1.
    pub fn rotate_back(&self, x: &mut [f32], positions: &[u32]) {
        self.apply(x, positions, -1.0);
    }

    fn apply(&self, x: &mut [f32], positions: &[u32], direction: f32) {
        if positions.is_empty() {
            return;
        }
        assert!(x.len().is_multiple_of(positions.len()));
        let width = x.len() / positions.len();
        let rows = |x: &mut [f32], positions: &[u32]| {
            for (row, position) in x.chunks_exact_mut(width).zip(positions) {
                let start = *position as usize * self.half;
                let cosines = &self.cosines[start..start + self.half];
                let sines = &self.sines[start..start + self.half];
                for head in row.chunks_exact_mut(2 * self.half) {
                    let (low, high) = head.split_at_mut(self.half);
                    for (((low, high), cosine), sine) in
                        low.iter_mut().zip(high).zip(cosines).zip(sines)
                    {
                        let sine = *sine * direction;
                        let (a, b) = (*low, *high);
                        *low = a * cosine - b * sine;
                        *high = b * cosine + a * sine;
                    }
                }
            }
        };
        if positions.len() <= ROWS_PER_PIECE {
            rows(x, positions);
        } else {
            x.par_chunks_mut(width * ROWS_PER_PIECE)
                .zip(positions.par_chunks(ROWS_PER_PIECE))
                .for_each(|(x, positions)| rows(x, positions));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turning_there_and_back_is_the_identity_and_keeps_relative_angles() {
        let table = RopeTable::new(8, 10_000.0, 64);
        let original: Vec<f32> = (0..40 * 16).map(|i| (i as f32 * 0.37).sin()).collect();
        let positions: Vec<u32> = (0..40).collect();
        let mut x = original.clone();
        table.rotate(&mut x, &positions);
        assert_eq!(&x[..16], &original[..16]);
        table.rotate_back(&mut x, &positions);
        for (a, b) in x.iter().zip(&original) {
            assert!((a - b).abs() < 1e-5);
        }
        // A query at p and a key at q interact through q - p alone.
        let dot = |p: u32, q: u32| {
            let (mut a, mut b) = (original[..8].to_vec(), original[8..16].to_vec());
            table.rotate(&mut a, &[p]);
            table.rotate(&mut b, &[q]);
            a.iter().zip(&b).map(|(a, b)| a * b).sum::<f32>()
        };
        assert!((dot(3, 10) - dot(20, 27)).abs() < 1e-4);
    }
}
