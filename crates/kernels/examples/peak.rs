//! What the arithmetic units of this machine can do at most: products and sums on registers alone, on all threads.
//!
//! ```console
//! $ peak
//! {"f32_gflops":210.4,"bf16_gflops":null,"threads":2}
//! ```
//!
//! `bf16_gflops` counts products of bf16 summed in single precision and is `null` where the machine has no such
//! instruction. Used by `benches/training.py` as the ceiling beside which rates are printed.
#![allow(unsafe_code)]

use std::io::Write;
use std::time::{Duration, Instant};

const TIME: Duration = Duration::from_millis(400);

fn main() -> std::io::Result<()> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let number = |rate: Option<f64>| rate.map_or("null".to_owned(), |rate| format!("{rate:.1}"));
    writeln!(
        std::io::stdout(),
        "{{\"f32_gflops\":{},\"bf16_gflops\":{},\"threads\":{threads}}}",
        number(rate(threads, single_precision())),
        number(rate(threads, bf16()))
    )
}

/// Does some multiply-adds and returns how many operations they were, a product and a sum counted as two.
type Burst = fn() -> f64;

/// Operations of all threads together, in 10⁹ a second.
fn rate(threads: usize, burst: Option<Burst>) -> Option<f64> {
    let burst = burst?;
    let workers: Vec<_> = (0..threads)
        .map(|_| {
            std::thread::spawn(move || {
                let (start, mut operations) = (Instant::now(), 0.0);
                while start.elapsed() < TIME {
                    operations += burst();
                }
                operations / start.elapsed().as_secs_f64()
            })
        })
        .collect();
    let rates = workers.into_iter().map(|worker| worker.join().ok());
    rates.sum::<Option<f64>>().map(|rate| rate / 1e9)
}

#[cfg(target_arch = "x86_64")]
fn single_precision() -> Option<Burst> {
    if is_x86_feature_detected!("avx512f") {
        return Some(|| {
            // SAFETY: the feature was detected before this function was handed out.
            unsafe { x86::f32_avx512() }
        });
    }
    (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")).then_some(|| {
        // SAFETY: as above.
        unsafe { x86::f32_avx2() }
    })
}

#[cfg(target_arch = "x86_64")]
fn bf16() -> Option<Burst> {
    (is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16")).then_some(
        || {
            // SAFETY: the features were detected before this function was handed out.
            unsafe { x86::bf16_avx512() }
        },
    )
}

#[cfg(not(target_arch = "x86_64"))]
fn single_precision() -> Option<Burst> {
    None
}

#[cfg(not(target_arch = "x86_64"))]
fn bf16() -> Option<Burst> {
    None
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    const TURNS: usize = 100_000;
    /// Independent sums: enough to hide the latency of an instruction on both of two units.
    const SUMS: usize = 12;

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn f32_avx2() -> f64 {
        let factor = black_box(_mm256_set1_ps(0.999));
        let mut sums = [_mm256_set1_ps(0.5); SUMS];
        for _ in 0..TURNS {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, factor, factor);
            }
        }
        black_box(sums);
        (TURNS * SUMS * 8 * 2) as f64
    }

    #[target_feature(enable = "avx512f")]
    pub(super) fn f32_avx512() -> f64 {
        let factor = black_box(_mm512_set1_ps(0.999));
        let mut sums = [_mm512_set1_ps(0.5); SUMS];
        for _ in 0..TURNS {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, factor, factor);
            }
        }
        black_box(sums);
        (TURNS * SUMS * 16 * 2) as f64
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) fn bf16_avx512() -> f64 {
        let factor = black_box(_mm512_cvtne2ps_pbh(
            _mm512_set1_ps(0.999),
            _mm512_set1_ps(0.5),
        ));
        let mut sums = [_mm512_set1_ps(0.5); SUMS];
        for _ in 0..TURNS {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, factor, factor);
            }
        }
        black_box(sums);
        (TURNS * SUMS * 32 * 2) as f64
    }
}
