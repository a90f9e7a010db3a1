//! From logits to the next token.

use zerog_kernels::noise::NoiseKey;
use zerog_kernels::vocabulary;

/// How the next token is chosen. The default is greedy.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits; 0 chooses the most likely token.
    pub temperature: f32,
    /// Keeps the most likely tokens only; 0 keeps all.
    pub top_k: usize,
    /// Keeps the most likely tokens that together reach this probability; 1 keeps all.
    pub top_p: f32,
    /// Keeps tokens with at least this fraction of the greatest probability; 0 keeps all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens in the prompt or the answer; 1 does nothing.
    pub repetition_penalty: f32,
    /// Subtracted from logits of tokens that the answer contains.
    pub presence_penalty: f32,
    /// Subtracted from logits once for each time that the answer contains the token.
    pub frequency_penalty: f32,
    /// Added to the logits of single tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// Start of the random numbers; the same seed, parameters and logits give the same tokens.
    pub seed: u64,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
        }
    }
}

/// A chosen token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampled {
    /// Its id.
    pub token: u32,
}

/// The sampler of one sequence: parameters, random numbers and the tokens counted by penalties.
#[derive(Clone, Debug)]
pub struct Sampler {
    params: SamplingParams,
    key: NoiseKey,
    drawn: u64,
    /// For each token id: whether the prompt has it, and how often the answer has it.
    seen: std::collections::HashMap<u32, (bool, u32)>,
    /// Reused between tokens.
    scratch: Scratch,
}

#[derive(Clone, Debug, Default)]
struct Scratch {
    adjusted: Vec<f32>,
    weights: Vec<f32>,
    candidates: Vec<(f32, u32)>,
}

impl Sampler {
    /// A sampler for a sequence that starts with `prompt`.
    pub fn new(params: SamplingParams, prompt: &[u32]) -> Self {
        let mut seen = std::collections::HashMap::new();
        if params.repetition_penalty != 1.0 {
            seen.extend(prompt.iter().map(|token| (*token, (true, 0))));
        }
        let key = NoiseKey::new(params.seed).child(0x5a3b1e);
        Self {
            params,
            key,
            drawn: 0,
            seen,
            scratch: Scratch::default(),
        }
    }

    /// Chooses the token after the one that gave `logits`, and counts it as part of the answer.
    ///
    /// `logits` holds one number for each token of the vocabulary and must not be empty. Logits that are not
    /// a number are never chosen.
    pub fn sample(&mut self, logits: &[f32]) -> Sampled {
        self.sample_among(logits, None)
    }

    /// [`Sampler::sample`] among the tokens whose place in `allowed` is true; tokens beyond its end are not.
    pub fn sample_among(&mut self, logits: &[f32], allowed: Option<&[bool]>) -> Sampled {
        let mut scratch = std::mem::take(&mut self.scratch);
        let token = self.choose(logits, allowed, &mut scratch);
        self.scratch = scratch;
        let params = &self.params;
        if params.repetition_penalty != 1.0
            || params.presence_penalty != 0.0
            || params.frequency_penalty != 0.0
        {
            self.seen.entry(token).or_default().1 += 1;
        }
        Sampled { token }
    }

    fn choose(&mut self, logits: &[f32], allowed: Option<&[bool]>, scratch: &mut Scratch) -> u32 {
        let params = &self.params;
        let Scratch {
            adjusted,
            weights,
            candidates,
        } = scratch;
        let logits = if self.seen.is_empty() && params.logit_bias.is_empty() && allowed.is_none() {
            logits
        } else {
            self.adjust(logits, allowed, adjusted);
            adjusted
        };
        // The lowest id wins a tie, so that the choice does not depend on the order of the search.
        let Some((best, maximum)) = vocabulary::greatest(logits) else {
            return 0;
        };
        if params.temperature <= 0.0 {
            return best as u32;
        }
        let bits = self.key.bits(self.drawn);
        self.drawn += 1;
        let point = (bits >> 11) as f64 / (1_u64 << 53) as f64;
        let cuts = params.top_k > 0 || params.top_p < 1.0 || params.min_p > 0.0;
        // A temperature so small that its inverse overflows leaves the best token only.
        let factor = 1.0 / params.temperature;
        if !factor.is_finite() || maximum == f32::INFINITY {
            return best as u32;
        }
        weights.resize(logits.len(), 0.0);
        if !cuts || params.top_k == 0 {
            let sums = vocabulary::weights(logits, maximum, factor, weights);
            if !cuts {
                return draw_from_all(weights, &sums, point);
            }
        }
        cut(logits, maximum, params, weights, candidates);
        draw_from(candidates, maximum, params, point).unwrap_or(best as u32)
    }

    /// The logits after biases and penalties, minus infinity where a token is not allowed.
    fn adjust(&self, logits: &[f32], allowed: Option<&[bool]>, adjusted: &mut Vec<f32>) {
        let params = &self.params;
        adjusted.clear();
        adjusted.extend_from_slice(logits);
        for (token, bias) in &params.logit_bias {
            if let Some(logit) = adjusted.get_mut(*token as usize) {
                *logit += bias;
            }
        }
        for (token, (_, count)) in &self.seen {
            let Some(logit) = adjusted.get_mut(*token as usize) else {
                continue;
            };
            let penalty = params.repetition_penalty;
            *logit = if *logit > 0.0 {
                *logit / penalty
            } else {
                *logit * penalty
            };
            if *count > 0 {
                *logit -= params.presence_penalty + params.frequency_penalty * *count as f32;
            }
        }
        if let Some(allowed) = allowed {
            let (inside, beyond) = adjusted.split_at_mut(allowed.len().min(logits.len()));
            for (logit, allowed) in inside.iter_mut().zip(allowed) {
                *logit = if *allowed { *logit } else { f32::NEG_INFINITY };
            }
            beyond.fill(f32::NEG_INFINITY);
        }
    }
}

/// The token at `point` in `[0, 1)` of all weights, whose sums are given for each block.
fn draw_from_all(weights: &[f32], sums: &[f64], point: f64) -> u32 {
    let mut left = point * sums.iter().sum::<f64>();
    let mut last = 0;
    for (block, (weights, sum)) in weights.chunks(vocabulary::BLOCK).zip(sums).enumerate() {
        // Sums of a block are rounded: within a block the exact walk decides, and a rest goes to the next one.
        if left >= *sum {
            left -= sum;
            continue;
        }
        for (place, weight) in weights.iter().enumerate().filter(|entry| *entry.1 > 0.0) {
            last = (block * vocabulary::BLOCK + place) as u32;
            left -= f64::from(*weight);
            if left < 0.0 {
                return last;
            }
        }
    }
    // Rounding can leave a tiny rest; the last token of positive weight takes it.
    weights
        .iter()
        .rposition(|weight| *weight > 0.0)
        .map_or(last, |place| place as u32)
}

/// Weight of a candidate relative to the best one.
fn weight(logit: f32, maximum: f32, params: &SamplingParams) -> f64 {
    (f64::from(logit - maximum) / f64::from(params.temperature)).exp()
}

/// Keeps the tokens that top-k, min-p and top-p leave, one after the other, most likely first.
///
/// `weights` are those of all tokens, unless top-k is on.
fn cut(
    logits: &[f32],
    maximum: f32,
    params: &SamplingParams,
    weights: &[f32],
    candidates: &mut Vec<(f32, u32)>,
) {
    let order = |a: &(f32, u32), b: &(f32, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
    if params.top_k > 0 {
        take_best(logits, maximum, params.top_k, candidates);
        candidates.sort_unstable_by(order);
    } else {
        let least = if params.min_p > 0.0 {
            // A little more than needed; the exact comparison follows.
            maximum + params.temperature * params.min_p.ln() * 1.001 - 1e-3
        } else {
            f32::MIN
        };
        gather(logits, least, candidates);
    }
    if params.min_p > 0.0 {
        candidates.retain(|(logit, _)| weight(*logit, maximum, params) >= f64::from(params.min_p));
    }
    if params.top_p >= 1.0 {
        return;
    }
    let of = |candidates: &[(f32, u32)]| -> f64 {
        candidates
            .iter()
            .map(|candidate| weight(candidate.0, maximum, params))
            .sum()
    };
    let total = if params.top_k > 0 || params.min_p > 0.0 {
        of(candidates)
    } else {
        weights
            .chunks(vocabulary::BLOCK)
            .map(|block| f64::from(block.iter().sum::<f32>()))
            .sum()
    };
    let wanted = f64::from(params.top_p) * total;
    // Sorting everything would be the dearest part of sampling; the likely ones usually suffice.
    let mut count = 256;
    while count < candidates.len() {
        candidates.select_nth_unstable_by(count, order);
        if of(&candidates[..count]) >= wanted * 1.000_01 {
            candidates.truncate(count);
            break;
        }
        count *= 8;
    }
    candidates.sort_unstable_by(order);
    let mut reached = 0.0;
    let kept = candidates
        .iter()
        .position(|candidate| {
            reached += weight(candidate.0, maximum, params);
            reached >= wanted
        })
        .map_or(candidates.len(), |last| last + 1);
    candidates.truncate(kept.max(1));
}

/// All tokens with at least this logit.
fn gather(logits: &[f32], least: f32, candidates: &mut Vec<(f32, u32)>) {
    candidates.clear();
    candidates.extend(
        logits
            .iter()
            .copied()
            .zip(0..)
            .filter(|(logit, _)| *logit >= least),
    );
}

/// The `count` most likely tokens, and nothing that cannot be chosen.
fn take_best(logits: &[f32], maximum: f32, count: usize, candidates: &mut Vec<(f32, u32)>) {
    let order = |a: &(f32, u32), b: &(f32, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
    // Few tokens are near the best one; a wider search follows only where they do not suffice.
    let mut distance = 4.0;
    loop {
        let least = (maximum - distance).max(f32::MIN);
        gather(logits, least, candidates);
        if candidates.len() >= count || least == f32::MIN {
            break;
        }
        distance *= 4.0;
    }
    if count < candidates.len() {
        candidates.select_nth_unstable_by(count - 1, order);
        candidates.truncate(count);
    }
}

/// The candidate at `point` in `[0, 1)`.
fn draw_from(
    candidates: &[(f32, u32)],
    maximum: f32,
    params: &SamplingParams,
    point: f64,
) -> Option<u32> {
    let weight = |logit: f32| weight(logit, maximum, params);
    let total: f64 = candidates.iter().map(|candidate| weight(candidate.0)).sum();
    let mut left = point * total;
    for (logit, token) in candidates {
        left -= weight(*logit);
        if left < 0.0 {
            return Some(*token);
        }
    }
    // Rounding can leave a tiny rest; the last candidate of positive probability takes it.
    candidates
        .iter()
        .rev()
        .find(|candidate| weight(candidate.0) > 0.0)
        .map(|candidate| candidate.1)
}

/// Natural logarithms of the probabilities of all tokens.
pub fn log_probabilities(logits: &[f32]) -> Vec<f32> {
    let total = vocabulary::log_sum_exp(logits);
    logits.iter().map(|logit| logit - total).collect()
}

/// The natural logarithm of the probability of one token; minus infinity for one outside the vocabulary.
pub fn log_probability(logits: &[f32], token: u32) -> f32 {
    logits
        .get(token as usize)
        .map_or(f32::NEG_INFINITY, |logit| {
            logit - vocabulary::log_sum_exp(logits)
        })
}

/// The `count` most likely tokens with the logarithms of their probabilities, most likely first.
pub fn top_log_probabilities(logits: &[f32], count: usize) -> Vec<(u32, f32)> {
    let Some((_, maximum)) = vocabulary::greatest(logits).filter(|_| count > 0) else {
        return Vec::new();
    };
    let mut best = Vec::new();
    take_best(logits, maximum, count, &mut best);
    best.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let total = vocabulary::log_sum_exp(logits);
    best.into_iter()
        .map(|(logit, token)| (token, logit - total))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 5] = [1.0, 3.0, 2.0, 3.0, -1.0];

    fn counts(params: &SamplingParams, draws: u64) -> [u32; 5] {
        let mut counts = [0; 5];
        for seed in 0..draws {
            let params = SamplingParams {
                seed,
                ..params.clone()
            };
            counts[Sampler::new(params, &[]).sample(&LOGITS).token as usize] += 1;
        }
        counts
    }

    #[test]
    fn greedy_takes_the_first_of_the_greatest() {
        let sampled = Sampler::new(SamplingParams::default(), &[]).sample(&LOGITS);
        assert_eq!(sampled.token, 1);
        let total: f32 = LOGITS.iter().map(|logit| logit.exp()).sum();
        assert!((log_probability(&LOGITS, 1) - (3.0 - total.ln())).abs() < 1e-5);
        assert_eq!(
            Sampler::new(SamplingParams::default(), &[])
                .sample(&[f32::NAN, 0.0])
                .token,
            1
        );
    }

    #[test]
    fn draws_follow_the_probabilities_and_repeat_with_the_seed() {
        let params = SamplingParams {
            temperature: 1.0,
            ..SamplingParams::default()
        };
        let counts = counts(&params, 20_000);
        let total: f32 = LOGITS.iter().map(|logit| logit.exp()).sum();
        for (count, logit) in counts.iter().zip(LOGITS) {
            assert!(
                (*count as f32 / 20_000.0 - logit.exp() / total).abs() < 0.015,
                "{counts:?}"
            );
        }
        let run = || {
            let params = SamplingParams {
                temperature: 2.0,
                seed: 9,
                ..SamplingParams::default()
            };
            let mut sampler = Sampler::new(params, &[]);
            (0..20)
                .map(|_| sampler.sample(&LOGITS).token)
                .collect::<Vec<_>>()
        };
        assert_eq!(run(), run());
    }

    #[test]
    fn cuts_keep_only_likely_tokens() {
        let base = SamplingParams {
            temperature: 1.0,
            ..SamplingParams::default()
        };
        let kept = |params: SamplingParams| {
            let counts = counts(&params, 500);
            (0..5)
                .filter(|token| counts[*token] > 0)
                .collect::<Vec<_>>()
        };
        assert_eq!(
            kept(SamplingParams {
                top_k: 2,
                ..base.clone()
            }),
            [1, 3]
        );
        assert_eq!(
            kept(SamplingParams {
                top_k: 1,
                ..base.clone()
            }),
            [1]
        );
        assert_eq!(
            kept(SamplingParams {
                top_p: 0.9,
                ..base.clone()
            }),
            [1, 2, 3]
        );
        assert_eq!(
            kept(SamplingParams {
                top_p: 0.01,
                ..base.clone()
            }),
            [1]
        );
        assert_eq!(
            kept(SamplingParams {
                min_p: 0.2,
                ..base.clone()
            }),
            [1, 2, 3]
        );
    }

    #[test]
    fn penalties_and_biases_move_the_choice() {
        let greedy = SamplingParams::default();
        let mut sampler = Sampler::new(
            SamplingParams {
                presence_penalty: 0.5,
                ..greedy.clone()
            },
            &[],
        );
        let tokens: Vec<u32> = (0..3).map(|_| sampler.sample(&LOGITS).token).collect();
        assert_eq!(tokens, [1, 3, 1]);
        let mut sampler = Sampler::new(
            SamplingParams {
                frequency_penalty: 0.6,
                ..greedy.clone()
            },
            &[],
        );
        let tokens: Vec<u32> = (0..5).map(|_| sampler.sample(&LOGITS).token).collect();
        assert_eq!(tokens, [1, 3, 1, 3, 2]);
        let params = SamplingParams {
            repetition_penalty: 2.0,
            ..greedy.clone()
        };
        assert_eq!(Sampler::new(params, &[1, 3]).sample(&LOGITS).token, 2);
        let params = SamplingParams {
            logit_bias: vec![(4, 10.0), (99, 1.0)],
            ..greedy
        };
        assert_eq!(Sampler::new(params, &[]).sample(&LOGITS).token, 4);
    }

    /// Every cut, alone and together, keeps what its definition over the sorted vocabulary keeps.
    #[test]
    fn cuts_agree_with_their_definition_on_a_large_vocabulary() {
        let key = NoiseKey::new(3);
        let logits: Vec<f32> = (0..9000).map(|index| key.normal(index) * 3.0).collect();
        let mut sorted: Vec<(f32, u32)> = logits.iter().copied().zip(0..).collect();
        sorted.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let maximum = sorted[0].0;
        for (top_k, top_p, min_p) in [
            (0, 0.5, 0.0),
            (0, 0.99, 0.0),
            (50, 1.0, 0.0),
            (3000, 0.9, 0.0),
            (0, 1.0, 0.05),
            (0, 0.7, 0.001),
            (40, 0.8, 0.01),
        ] {
            let params = SamplingParams {
                temperature: 1.3,
                top_k,
                top_p,
                min_p,
                ..SamplingParams::default()
            };
            let mut expected = sorted.clone();
            if top_k > 0 {
                expected.truncate(top_k);
            }
            expected.retain(|entry| weight(entry.0, maximum, &params) >= f64::from(min_p));
            if top_p < 1.0 {
                let total: f64 = expected.iter().map(|e| weight(e.0, maximum, &params)).sum();
                let mut reached = 0.0;
                let end = expected.iter().position(|entry| {
                    reached += weight(entry.0, maximum, &params);
                    reached >= f64::from(top_p) * total
                });
                expected.truncate(end.unwrap() + 1);
            }
            let mut weights = vec![0.0; logits.len()];
            vocabulary::weights(&logits, maximum, 1.0 / params.temperature, &mut weights);
            let mut kept = Vec::new();
            cut(&logits, maximum, &params, &weights, &mut kept);
            kept.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            assert_eq!(
                kept, expected,
                "top_k {top_k}, top_p {top_p}, min_p {min_p}"
            );
        }
    }

    #[test]
    fn only_allowed_tokens_are_chosen() {
        let allowed = [true, false, true, false];
        for temperature in [0.0, 1.0, 1000.0] {
            for seed in 0..200 {
                let params = SamplingParams {
                    temperature,
                    seed,
                    ..SamplingParams::default()
                };
                let token = Sampler::new(params, &[])
                    .sample_among(&LOGITS, Some(&allowed))
                    .token;
                assert!(token == 0 || token == 2, "{token}");
            }
        }
    }

    #[test]
    fn top_log_probabilities_are_ordered() {
        let top = top_log_probabilities(&LOGITS, 3);
        assert_eq!(
            top.iter().map(|entry| entry.0).collect::<Vec<_>>(),
            [1, 3, 2]
        );
        assert_eq!(top[0].1, log_probabilities(&LOGITS)[1]);
        assert_eq!(top_log_probabilities(&LOGITS, 99).len(), 5);
        assert!(top_log_probabilities(&LOGITS, 0).is_empty());
    }
}
