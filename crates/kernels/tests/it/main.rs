//! The CUDA backend against the processor's functions, on emulated libraries.
#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used)] // Helpers of tests.

mod compile;
#[path = "../emulator/mod.rs"]
mod emulator;
mod failures;
mod operations;
mod products;
mod serving;

use emulator::Order;
use zerog_kernels::cuda::{Cuda, Libraries};
use zerog_kernels::noise::NoiseKey;

fn libraries(order: Order) -> Libraries {
    Libraries::Folder(emulator::folder(env!("CARGO_TARGET_TMPDIR"), order))
}

fn open(order: Order) -> Cuda {
    Cuda::open(0, &libraries(order)).unwrap()
}

/// Runs a check with both orders of threads.
fn in_both_orders(check: impl Fn(&Cuda)) {
    check(&open(Order::Forward));
    check(&open(Order::Reversed));
}

/// `count` numbers of a normal distribution.
fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let key = NoiseKey::new(seed);
    (0..count as u64).map(|index| key.normal(index)).collect()
}

/// Fails unless all numbers agree up to `tolerance`, relative to the largest.
fn assert_close(what: &str, actual: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(actual.len(), expected.len(), "{what}");
    let size = expected
        .iter()
        .fold(1e-3_f32, |size, value| size.max(value.abs()));
    for (index, (actual, expected)) in actual.iter().zip(expected).enumerate() {
        let error = (actual - expected).abs();
        // Written so that what is no number fails.
        assert!(
            error <= tolerance * size,
            "{what}, {index}: {actual} {expected}"
        );
    }
}
