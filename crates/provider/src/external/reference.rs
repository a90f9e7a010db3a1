//! The reference answers of an adapter, compared through a server's HTTP interface.
//!
//! Weaker than the built-in engine's check, because a server tells only the log probabilities of its twenty most probable
//! tokens and computes in half precision: logits are compared up to a constant, for the tokens that are told, and a small
//! error of the adapter's effect passes. What is certain: the server's base model ranks and weighs tokens as the recorded
//! one did, and the adapter moves them in the recorded direction by seven to thirteen tenths of the recorded size.

use std::collections::HashMap;

use zerog_inference::Canary;
use zerog_inference::canary::{LEAST_EFFECT, Tolerance};

/// Tokens that record and answer must have in common, for a prompt to say anything.
const LEAST_IN_COMMON: usize = 3;
/// Least and most share of the recorded effect.
const SHARE: std::ops::RangeInclusive<f64> = 0.7..=1.3;

/// Log probabilities of the most probable next tokens.
pub(super) type Next = HashMap<u32, f32>;

/// Compares one pair of answers, without and with the adapter, for each prompt of the record.
///
/// # Errors
/// A sentence: what differs.
pub(super) fn compare(record: &Canary, answers: &[(Next, Next)]) -> Result<f64, String> {
    if record.probes.is_empty() || record.probes.len() != answers.len() {
        return Err("the adapter's reference logits have no prompts".into());
    }
    if record.largest_effect() < LEAST_EFFECT {
        return Err("the adapter has no effect: its own record says so".into());
    }
    let (mut product, mut square) = (0.0, 0.0);
    let mut told = 0;
    for (index, (probe, (base, adapted))) in record.probes.iter().zip(answers).enumerate() {
        let recorded = probe
            .logit_ids
            .iter()
            .zip(probe.base_logits.iter().zip(&probe.adapter_logits));
        let (mut errors, mut largest) = (Vec::new(), 0f32);
        let (mut wanted, mut found) = (Vec::new(), Vec::new());
        for (id, (base_logit, adapter_logit)) in recorded {
            let Some(base) = base.get(id) else { continue };
            if !(base.is_finite() && base_logit.is_finite() && adapter_logit.is_finite()) {
                return Err(format!(
                    "prompt {index}: the answers are not finite numbers"
                ));
            }
            errors.push(f64::from(base - base_logit));
            largest = largest.max(base_logit.abs());
            if let Some(adapted) = adapted.get(id) {
                if !adapted.is_finite() {
                    return Err(format!(
                        "prompt {index}: the answers are not finite numbers"
                    ));
                }
                wanted.push(f64::from(adapter_logit - base_logit));
                found.push(f64::from(adapted - base));
            }
        }
        if errors.len() < LEAST_IN_COMMON {
            return Err(format!(
                "prompt {index}: the server's base model finds other tokens probable than the recorded one; it serves other \
                 weights"
            ));
        }
        centre(&mut errors);
        let error = errors
            .iter()
            .fold(0.0, |most: f64, error| most.max(error.abs()));
        let allowed = Tolerance::ROUNDED.absolute + Tolerance::ROUNDED.relative * largest;
        if error > f64::from(allowed) {
            return Err(format!(
                "prompt {index}: the server's base model differs from the recorded one by {error:.3}; it serves other weights"
            ));
        }
        if wanted.len() < LEAST_IN_COMMON {
            continue;
        }
        told += 1;
        centre(&mut wanted);
        centre(&mut found);
        for (wanted, found) in wanted.iter().zip(&found) {
            product += wanted * found;
            square += wanted * wanted;
        }
    }
    if told == 0 || square == 0.0 {
        return Err(
            "the adapter's answers have no tokens in common with its record: it does something else than after training"
                .into(),
        );
    }
    let share = product / square;
    if SHARE.contains(&share) {
        return Ok(share);
    }
    Err(format!(
        "the adapter changes the server's answers by {share:.2} times what was recorded after training; it is not applied, or \
         another one is"
    ))
}

/// Whether an adapter without a record makes a difference: more than two answers of the base model differ from each other.
///
/// # Errors
/// A sentence.
pub(super) fn has_effect(answers: &[(Next, Next, Next)]) -> Result<(), String> {
    let difference = |left: &Next, right: &Next| {
        let common = left
            .iter()
            .filter_map(|(id, value)| right.get(id).map(|other| (value - other).abs()));
        let most = common.fold(0.0, f32::max);
        // Tokens that only one of them finds probable are a difference too.
        let is_missing = left.keys().any(|id| !right.contains_key(id));
        if is_missing {
            most.max(LEAST_EFFECT)
        } else {
            most
        }
    };
    let noise = answers
        .iter()
        .map(|(first, second, _)| difference(first, second))
        .fold(0.0, f32::max);
    let effect = answers
        .iter()
        .map(|(first, _, adapted)| difference(first, adapted))
        .fold(0.0, f32::max);
    if effect > LEAST_EFFECT.max(4.0 * noise) {
        return Ok(());
    }
    Err(format!(
        "the adapter has no effect that shows: its answers differ by {effect:.5}, and the base model's own by {noise:.5}"
    ))
}

fn centre(values: &mut [f64]) {
    let mean = values.iter().sum::<f64>() / values.len().max(1) as f64;
    for value in values {
        *value -= mean;
    }
}

#[cfg(test)]
mod tests {
    use zerog_inference::CanaryProbe;

    use super::*;

    fn record() -> Canary {
        let probe = CanaryProbe {
            tokens: vec![1, 2],
            logit_ids: vec![3, 4, 5, 6],
            base_logits: vec![9.0, 8.0, 7.5, 6.0],
            adapter_logits: vec![8.6, 8.7, 7.4, 6.2],
        };
        Canary {
            version: 1,
            base_model_sha256: String::new(),
            probes: vec![probe],
        }
    }

    /// A server's answers: shifted, rounded, and the adapter applied by a share.
    fn answers(share: f32) -> Vec<(Next, Next)> {
        let probe = record().probes.remove(0);
        let rounding = [0.02, -0.03, 0.01, 0.02];
        let next = |share: f32, shift: f32| {
            (0..4)
                .map(|at| {
                    let (base, adapted) = (probe.base_logits[at], probe.adapter_logits[at]);
                    let value = base + share * (adapted - base) - shift + rounding[at];
                    (probe.logit_ids[at], value)
                })
                .collect()
        };
        vec![(next(0.0, 9.4), next(share, 9.6))]
    }

    #[test]
    fn what_was_recorded_passes_up_to_shift_and_rounding() {
        let share = compare(&record(), &answers(1.0)).unwrap();
        assert!((share - 1.0).abs() < 0.05, "{share}");
    }

    #[test]
    fn an_adapter_that_is_not_applied_half_applied_or_reversed_is_refused() {
        for share in [0.0, 0.5, -1.0, 2.0] {
            let refused = compare(&record(), &answers(share)).unwrap_err();
            assert!(refused.contains("times what was recorded"), "{refused}");
        }
    }

    #[test]
    fn another_base_model_is_refused() {
        let mut other = answers(1.0);
        other[0].0.insert(3, -7.0);
        assert!(
            compare(&record(), &other)
                .unwrap_err()
                .contains("other weights")
        );
        other[0].0.clear();
        assert!(
            compare(&record(), &other)
                .unwrap_err()
                .contains("other weights")
        );
    }

    #[test]
    fn without_a_record_only_more_than_the_servers_own_noise_counts() {
        let next = |value: f32| Next::from([(1, -1.0), (2, value)]);
        has_effect(&[(next(-2.0), next(-2.01), next(-2.2))]).unwrap();
        has_effect(&[(next(-2.0), next(-2.01), next(-2.02))]).unwrap_err();
        has_effect(&[(next(-2.0), next(-2.0), next(-2.0))]).unwrap_err();
    }
}
