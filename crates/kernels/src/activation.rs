//! Activations of feed-forward blocks: the gated `h = silu(gate) · up`, `silu(z) = z / (1 + e^-z)`, and the plain
//! `h = gelu(z) = z · Φ(z)` with the normal distribution function `Φ`.

use crate::dispatch::multiversion;
use crate::softmax::exp;
use rayon::prelude::*;

/// Elements per piece of work.
const PIECE: usize = 8_192;

multiversion! {
    fn forward_piece(gate: &[f32], up: &[f32], hidden: &mut [f32]) {
        for ((hidden, gate), up) in hidden.iter_mut().zip(gate).zip(up) {
            *hidden = *gate / (1.0 + exp(-*gate)) * *up;
        }
    }
}

multiversion! {
    fn backward_piece(gate: &[f32], up: &[f32], dhidden: &mut [f32], dgate: &mut [f32]) {
        for (((gate, up), dhidden), dgate) in gate.iter().zip(up).zip(dhidden).zip(dgate) {
            let sigmoid = 1.0 / (1.0 + exp(-*gate));
            let gradient = *dhidden;
            *dgate = gradient * *up * sigmoid * (1.0 + *gate * (1.0 - sigmoid));
            *dhidden = gradient * *gate * sigmoid;
        }
    }
}

/// `hidden = silu(gate) · up`; all slices have one length.
pub fn silu_gate(gate: &[f32], up: &[f32], hidden: &mut [f32]) {
    assert!(gate.len() == up.len() && gate.len() == hidden.len());
    if gate.len() <= PIECE {
        return forward_piece(gate, up, hidden);
    }
    hidden
        .par_chunks_mut(PIECE)
        .zip(gate.par_chunks(PIECE).zip(up.par_chunks(PIECE)))
        .for_each(|(hidden, (gate, up))| forward_piece(gate, up, hidden));
}

/// Backward of [`silu_gate`]: `dhidden` holds the gradient of `hidden` and is replaced by that of `up`;
/// `dgate` receives that of `gate`.
pub fn silu_gate_backward(gate: &[f32], up: &[f32], dhidden: &mut [f32], dgate: &mut [f32]) {
    assert!(gate.len() == up.len() && gate.len() == dhidden.len() && gate.len() == dgate.len());
    dhidden
        .par_chunks_mut(PIECE)
        .zip(dgate.par_chunks_mut(PIECE))
        .zip(gate.par_chunks(PIECE).zip(up.par_chunks(PIECE)))
        .for_each(|((dhidden, dgate), (gate, up))| backward_piece(gate, up, dhidden, dgate));
}

/// The normal distribution function, with an absolute error below 2e-7 (Abramowitz and Stegun 7.1.26).
#[inline(always)]
fn normal_distribution(z: f32) -> f32 {
    let x = z * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * x.abs());
    let mut polynomial = 1.061_405_4_f32;
    polynomial = polynomial * t - 1.453_152;
    polynomial = polynomial * t + 1.421_413_7;
    polynomial = polynomial * t - 0.284_496_74;
    polynomial = polynomial * t + 0.254_829_6;
    let tail = 0.5 * polynomial * t * exp(-x * x);
    if z > 0.0 { 1.0 - tail } else { tail }
}

multiversion! {
    fn gelu_piece(input: &[f32], output: &mut [f32]) {
        for (output, z) in output.iter_mut().zip(input) {
            *output = *z * normal_distribution(*z);
        }
    }
}

multiversion! {
    fn gelu_backward_piece(input: &[f32], gradient: &mut [f32]) {
        for (gradient, z) in gradient.iter_mut().zip(input) {
            let density = exp(-0.5 * *z * *z) * 0.398_942_3;
            *gradient *= normal_distribution(*z) + *z * density;
        }
    }
}

/// `output = gelu(input)`; both slices have one length.
pub fn gelu(input: &[f32], output: &mut [f32]) {
    assert_eq!(input.len(), output.len());
    output
        .par_chunks_mut(PIECE)
        .zip(input.par_chunks(PIECE))
        .for_each(|(output, input)| gelu_piece(input, output));
}

/// Backward of [`gelu`]: `gradient` holds that of the output and is replaced by that of `input`.
pub fn gelu_backward(input: &[f32], gradient: &mut [f32]) {
    assert_eq!(input.len(), gradient.len());
    gradient
        .par_chunks_mut(PIECE)
        .zip(input.par_chunks(PIECE))
        .for_each(|(gradient, input)| gelu_backward_piece(input, gradient));
}
