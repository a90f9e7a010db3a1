//! The gated activation of the feed-forward block: `h = silu(gate) · up`, `silu(z) = z / (1 + e^-z)`.

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
