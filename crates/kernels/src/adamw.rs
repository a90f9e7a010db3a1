//! AdamW with decoupled weight decay.

use crate::dispatch::multiversion;
use rayon::prelude::*;

/// Elements per piece of work.
const PIECE: usize = 16_384;

/// The numbers of one update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub learning_rate: f32,
    /// Decay rates of the first and second moment.
    pub betas: (f32, f32),
    /// Added to the root of the second moment.
    pub epsilon: f32,
    /// Decoupled weight decay; the value shrinks by `learning_rate · weight_decay`.
    pub weight_decay: f32,
    /// Multiplies every gradient before use: clipping and the mean over tokens in one factor.
    pub gradient_scale: f32,
    /// Number of this update, from 1, for the correction of the bias of the moments.
    pub step: u64,
}

/// Updates `values` and both moments from `gradients`. All slices have one length.
///
/// The formula is that of PyTorch's `torch.optim.AdamW`.
pub fn update(
    values: &mut [f32],
    gradients: &[f32],
    first: &mut [f32],
    second: &mut [f32],
    options: &AdamW,
) {
    assert!(
        gradients.len() == values.len()
            && first.len() == values.len()
            && second.len() == values.len()
    );
    let power = |beta: f32| 1.0 - f64::from(beta).powf(options.step as f64);
    let correction = (power(options.betas.0), power(options.betas.1));
    let step_size = (f64::from(options.learning_rate) / correction.0) as f32;
    let root_scale = (1.0 / correction.1.sqrt()) as f32;
    values
        .par_chunks_mut(PIECE)
        .zip(gradients.par_chunks(PIECE))
        .zip(
            first
                .par_chunks_mut(PIECE)
                .zip(second.par_chunks_mut(PIECE)),
        )
        .for_each(|((values, gradients), (first, second))| {
            update_piece(
                values, gradients, first, second, options, step_size, root_scale,
            );
        });
}

multiversion! {
    fn update_piece(
        values: &mut [f32],
        gradients: &[f32],
        first: &mut [f32],
        second: &mut [f32],
        options: &AdamW,
        step_size: f32,
        root_scale: f32,
    ) {
        let (beta1, beta2) = options.betas;
        let keep = 1.0 - options.learning_rate * options.weight_decay;
        for (((value, gradient), first), second) in values.iter_mut().zip(gradients).zip(first).zip(second) {
            let gradient = *gradient * options.gradient_scale;
            *first = beta1 * *first + (1.0 - beta1) * gradient;
            *second = beta2 * *second + (1.0 - beta2) * gradient * gradient;
            *value = *value * keep - step_size * *first / (second.sqrt() * root_scale + options.epsilon);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // p = torch.tensor([1., -2., .5]); o = torch.optim.AdamW([p], lr=.1, weight_decay=.01)
    // with gradients [.1, -.2, 3.] and then [-.3, .4, 1.]: the moments and updates by hand in f64.
    #[test]
    fn two_steps_equal_the_published_formula_in_double_precision() {
        let gradients = [[0.1_f32, -0.2, 3.0], [-0.3, 0.4, 1.0]];
        let mut values = [1.0_f32, -2.0, 0.5];
        let (mut first, mut second) = ([0.0_f32; 3], [0.0_f32; 3]);
        let (mut expected, mut m, mut v) = ([1.0_f64, -2.0, 0.5], [0.0_f64; 3], [0.0_f64; 3]);
        for (index, gradient) in gradients.iter().enumerate() {
            let step = index as i32 + 1;
            let options = AdamW {
                learning_rate: 0.1,
                betas: (0.9, 0.999),
                epsilon: 1e-8,
                weight_decay: 0.01,
                gradient_scale: 0.5,
                step: step as u64,
            };
            update(&mut values, gradient, &mut first, &mut second, &options);
            for i in 0..3 {
                let g = f64::from(gradient[i]) * 0.5;
                m[i] = 0.9 * m[i] + 0.1 * g;
                v[i] = 0.999 * v[i] + 0.001 * g * g;
                let (mh, vh) = (
                    m[i] / (1.0 - 0.9_f64.powi(step)),
                    v[i] / (1.0 - 0.999_f64.powi(step)),
                );
                expected[i] = expected[i] * (1.0 - 0.1 * 0.01) - 0.1 * mh / (vh.sqrt() + 1e-8);
            }
        }
        for (value, expected) in values.iter().zip(expected) {
            assert!(
                (f64::from(*value) - expected).abs() < 1e-5,
                "{value} {expected}"
            );
        }
    }
}
