//! Sums in a fixed order, so that results depend neither on scheduling nor on the number of threads.

use crate::dispatch::multiversion;
use rayon::prelude::*;

/// Elements or rows per piece of work; part of the definition of the order of summation.
const PIECE: usize = 16_384;
const ROWS_PER_PIECE: usize = 64;

multiversion! {
    fn piece_sum_of_squares(values: &[f32]) -> f64 {
        let mut lanes = [0.0_f64; 8];
        let chunks = values.chunks_exact(8);
        for (lane, value) in chunks.remainder().iter().enumerate() {
            lanes[lane] += f64::from(*value) * f64::from(*value);
        }
        for chunk in chunks {
            for lane in 0..8 {
                let value = f64::from(chunk[lane]);
                lanes[lane] += value * value;
            }
        }
        ((lanes[0] + lanes[4]) + (lanes[1] + lanes[5])) + ((lanes[2] + lanes[6]) + (lanes[3] + lanes[7]))
    }
}

multiversion! {
    /// `target += source`, element by element.
    pub fn add_assign(target: &mut [f32], source: &[f32]) {
        assert_eq!(target.len(), source.len());
        for (target, source) in target.iter_mut().zip(source) {
            *target += *source;
        }
    }
}

multiversion! {
    /// `target += factor · source`, element by element.
    pub fn add_scaled(target: &mut [f32], source: &[f32], factor: f32) {
        assert_eq!(target.len(), source.len());
        for (target, source) in target.iter_mut().zip(source) {
            *target += *source * factor;
        }
    }
}

/// The sum of the squares of all `values`.
pub fn sum_of_squares(values: &[f32]) -> f64 {
    if values.len() <= PIECE {
        return piece_sum_of_squares(values);
    }
    let pieces: Vec<f64> = values.par_chunks(PIECE).map(piece_sum_of_squares).collect();
    pieces.into_iter().sum()
}

/// Adds `bias (N)` to every row of `rows (T, N)`.
pub fn add_bias(rows: &mut [f32], bias: &[f32]) {
    rows.par_chunks_mut(bias.len() * ROWS_PER_PIECE)
        .for_each(|piece| {
            for row in piece.chunks_exact_mut(bias.len()) {
                add_assign(row, bias);
            }
        });
}

/// Adds the sum over the rows of `rows (T, N)` to `sums (N)`.
pub fn add_column_sums(rows: &[f32], sums: &mut [f32]) {
    let width = sums.len();
    let pieces: Vec<Vec<f32>> = rows
        .par_chunks(width * ROWS_PER_PIECE)
        .map(|piece| {
            let mut partial = vec![0.0; width];
            for row in piece.chunks_exact(width) {
                add_assign(&mut partial, row);
            }
            partial
        })
        .collect();
    for partial in pieces {
        add_assign(sums, &partial);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_equal_plain_sums() {
        let values: Vec<f32> = (0..50_003)
            .map(|i| ((i % 97) as f32) * 0.01 - 0.4)
            .collect();
        let plain: f64 = values.iter().map(|v| f64::from(*v) * f64::from(*v)).sum();
        assert!((sum_of_squares(&values) - plain).abs() < 1e-6 * plain);

        let rows: Vec<f32> = (0..300 * 7).map(|i| (i % 13) as f32).collect();
        let mut sums = vec![1.0; 7];
        add_column_sums(&rows, &mut sums);
        for (column, sum) in sums.iter().enumerate() {
            let plain: f32 = 1.0 + rows.iter().skip(column).step_by(7).sum::<f32>();
            assert_eq!(*sum, plain);
        }
    }
}
