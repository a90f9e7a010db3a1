//! From logits to the next token.

use zerog_kernels::noise::NoiseKey;

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
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampled {
    /// Its id.
    pub token: u32,
    /// Natural logarithm of its probability under the model, before temperature, penalties and cuts.
    pub log_probability: f32,
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
            candidates: Vec::new(),
        }
    }

    /// Chooses the token after the one that gave `logits`, and counts it as part of the answer.
    ///
    /// `logits` holds one number for each token of the vocabulary and must not be empty. Logits that are not
    /// a number are never chosen.
    pub fn sample(&mut self, logits: &[f32]) -> Sampled {
        let token = self.choose(logits);
        let log_probability = logits[token as usize] - log_sum(logits);
        self.seen.entry(token).or_default().1 += 1;
        Sampled {
            token,
            log_probability,
        }
    }

    fn choose(&mut self, logits: &[f32]) -> u32 {
        let params = &self.params;
        let mut candidates = std::mem::take(&mut self.candidates);
        candidates.clear();
        candidates.extend(logits.iter().zip(0..).map(|(logit, token)| {
            (
                if logit.is_nan() {
                    f32::NEG_INFINITY
                } else {
                    *logit
                },
                token,
            )
        }));
        for (token, bias) in &params.logit_bias {
            if let Some(candidate) = candidates.get_mut(*token as usize) {
                candidate.0 += bias;
            }
        }
        for (token, (_, count)) in &self.seen {
            let Some((logit, _)) = candidates.get_mut(*token as usize) else {
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
        let token = if params.temperature <= 0.0 {
            // The lowest id wins a tie, so that the choice does not depend on the order of the search.
            candidates
                .iter()
                .copied()
                .reduce(|best, next| if next.0 > best.0 { next } else { best })
                .map_or(0, |c| c.1)
        } else {
            let point = self.key.bits(self.drawn);
            self.drawn += 1;
            draw(
                &mut candidates,
                params,
                (point >> 11) as f64 / (1_u64 << 53) as f64,
            )
        };
        self.candidates = candidates;
        token
    }
}

/// Cuts the candidates, turns them into probabilities and takes the one at `point` in `[0, 1)`.
fn draw(candidates: &mut Vec<(f32, u32)>, params: &SamplingParams, point: f64) -> u32 {
    let order = |a: &(f32, u32), b: &(f32, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
    let needs_order = params.top_p < 1.0 || params.top_k > 0;
    if params.top_k > 0 && params.top_k < candidates.len() {
        candidates.select_nth_unstable_by(params.top_k - 1, order);
        candidates.truncate(params.top_k);
    }
    if needs_order {
        candidates.sort_unstable_by(order);
    }
    let maximum = candidates
        .iter()
        .map(|candidate| candidate.0)
        .fold(f32::NEG_INFINITY, f32::max);
    let temperature = f64::from(params.temperature);
    let weight = |logit: f32| (f64::from(logit - maximum) / temperature).exp();
    if params.min_p > 0.0 {
        candidates.retain(|(logit, _)| weight(*logit) >= f64::from(params.min_p));
    }
    if params.top_p < 1.0 {
        let total: f64 = candidates.iter().map(|candidate| weight(candidate.0)).sum();
        let mut reached = 0.0;
        let kept = candidates
            .iter()
            .position(|candidate| {
                reached += weight(candidate.0) / total;
                reached >= f64::from(params.top_p)
            })
            .map_or(candidates.len(), |last| last + 1);
        candidates.truncate(kept.max(1));
    }
    let total: f64 = candidates.iter().map(|candidate| weight(candidate.0)).sum();
    let mut left = point * total;
    for (logit, token) in candidates.iter() {
        left -= weight(*logit);
        if left < 0.0 {
            return *token;
        }
    }
    // Rounding can leave a tiny rest; the last candidate of positive probability takes it.
    candidates
        .iter()
        .rev()
        .find(|candidate| weight(candidate.0) > 0.0)
        .map_or(0, |candidate| candidate.1)
}

/// Logarithm of the sum of exponentials.
fn log_sum(logits: &[f32]) -> f32 {
    let maximum = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits
        .iter()
        .map(|logit| f64::from(logit - maximum).exp())
        .sum();
    maximum + sum.ln() as f32
}

/// Natural logarithms of the probabilities of all tokens.
pub fn log_probabilities(logits: &[f32]) -> Vec<f32> {
    let total = log_sum(logits);
    logits.iter().map(|logit| logit - total).collect()
}

/// The `count` most likely tokens with the logarithms of their probabilities, most likely first.
pub fn top_log_probabilities(logits: &[f32], count: usize) -> Vec<(u32, f32)> {
    let total = log_sum(logits);
    let mut all: Vec<(u32, f32)> = (0..)
        .zip(logits.iter().map(|logit| logit - total))
        .collect();
    let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    if count < all.len() && count > 0 {
        all.select_nth_unstable_by(count - 1, order);
    }
    all.truncate(count);
    all.sort_unstable_by(order);
    all
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
        assert!((sampled.log_probability - (3.0 - total.ln())).abs() < 1e-5);
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
