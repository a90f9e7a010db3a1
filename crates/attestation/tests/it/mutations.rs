//! No changed quote is accepted, whatever is changed: a signed field, a length, a certificate or its text form.
//!
//! The ordinary run tries some hundreds. `ZEROG_MUTATED_QUOTES=100000` tries as many as it says; that takes minutes.

use std::sync::atomic::{AtomicUsize, Ordering};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use zerog_attestation::{Collateral, TrustRoot, verify_quote};

use crate::fixture;

const TIME_OF_V4: u64 = 1_751_000_000;
/// Mutations of an ordinary run.
const FEW: usize = 400;

/// One random change: a flipped bit, another byte, a swapped, repeated or zeroed range, or another length.
fn mutate(quote: &[u8], random: &mut StdRng) -> Vec<u8> {
    let mut changed = quote.to_vec();
    let at = random.random_range(0..quote.len());
    let length = random.random_range(1..=64).min(quote.len() - at);
    match random.random_range(0..7) {
        0 | 1 => changed[at] ^= 1 << random.random_range(0..8),
        2 => changed[at] = random.random(),
        3 => random.fill(&mut changed[at..at + length]),
        4 => changed[at..at + length].fill(0),
        5 => changed.truncate(at),
        _ => {
            let to = random.random_range(0..=quote.len() - length);
            changed.copy_within(at..at + length, to);
        }
    }
    changed
}

#[test]
fn no_changed_quote_is_accepted() {
    let count = std::env::var("ZEROG_MUTATED_QUOTES")
        .ok()
        .map_or(FEW, |text| text.parse().expect("a number of mutations"));
    let mut quote = fixture("tdx_v4.bin");
    let collateral: Collateral =
        serde_json::from_slice(&fixture("tdx_v4_collateral.json")).unwrap();
    let verify = |quote: &[u8]| verify_quote(quote, &collateral, &TrustRoot::Intel, TIME_OF_V4);
    let padded = verify(&quote).unwrap();
    // The zeros behind it are not part of the quote: fewer of them are no change.
    let signature_data = u32::from_le_bytes(quote[632..636].try_into().unwrap());
    quote.truncate(636 + signature_data as usize);
    assert_eq!(verify(&quote).unwrap(), padded);
    let (tried, unchanged) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let (quote, verify, tried, unchanged) = (&quote, &verify, &tried, &unchanged);
            scope.spawn(move || {
                for index in (thread..count).step_by(threads) {
                    // Every mutation can be made again by its number.
                    let mut random = StdRng::seed_from_u64(index as u64);
                    let changed = mutate(quote, &mut random);
                    if changed == *quote {
                        unchanged.fetch_add(1, Ordering::Relaxed);
                        continue;
                    }
                    tried.fetch_add(1, Ordering::Relaxed);
                    assert!(verify(&changed).is_err(), "mutation {index} is accepted");
                }
            });
        }
    });
    let (tried, unchanged) = (tried.into_inner(), unchanged.into_inner());
    assert_eq!(tried + unchanged, count);
    assert!(unchanged * 20 < count, "{unchanged} changed nothing");
}
