//! Attempts and pauses as data.

use crate::deadline::Timestamp;
use crate::effect::EffectKind;

/// How often an effect is tried and how long to pause between attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Attempts in total, the first included.
    pub attempts: u32,
    /// Pause after the first failure in milliseconds; it doubles each time.
    pub first_pause_ms: u64,
    /// Longest pause in milliseconds.
    pub longest_pause_ms: u64,
}

impl RetryPolicy {
    /// When to try again after `failures` failures (1 or more); `None` when the attempts are used up.
    #[must_use]
    pub fn next_attempt(&self, failures: u32, now: Timestamp) -> Option<Timestamp> {
        if failures >= self.attempts {
            return None;
        }
        Some(now.plus_ms(self.pause_ms(failures)))
    }

    /// The pause after `failures` failures in milliseconds.
    #[must_use]
    pub fn pause_ms(&self, failures: u32) -> u64 {
        let doublings = failures.saturating_sub(1).min(32);
        self.first_pause_ms
            .saturating_mul(1u64 << doublings)
            .min(self.longest_pause_ms)
    }
}

/// How long to wait before looking whether a full disk has room again, in milliseconds. Waiting uses no attempt up: the
/// operator's disk is no fault of the task, and before delivery its user can cancel it.
pub const DISK_FULL_PAUSE_MS: u64 = 15_000;

/// The policy of each effect. Settlement and the two timers go on until a deadline of the task ends them; their attempts
/// are therefore unlimited here.
#[must_use]
pub fn policy(kind: EffectKind) -> RetryPolicy {
    let (attempts, first_pause_ms, longest_pause_ms) = match kind {
        EffectKind::Prepare => (10, 1_000, 60_000),
        // A crash of the training process loses little, it goes on from its checkpoint; but a run that always crashes
        // must not hold the machine.
        EffectKind::Train => (4, 1_000, 30_000),
        EffectKind::Seal => (6, 1_000, 60_000),
        EffectKind::Publish | EffectKind::AddDeliverable => (40, 1_000, 300_000),
        EffectKind::Abandon => (20, 5_000, 600_000),
        EffectKind::Settle | EffectKind::SettleUnacknowledged => (u32::MAX, 1_000, 600_000),
        EffectKind::AckDeadline | EffectKind::Retention => (u32::MAX, 5_000, 300_000),
        EffectKind::RegisterAdapter | EffectKind::CleanUp => (20, 5_000, 600_000),
    };
    RetryPolicy {
        attempts,
        first_pause_ms,
        longest_pause_ms,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let policy = RetryPolicy {
            attempts: 4,
            first_pause_ms: 10,
            longest_pause_ms: 30,
        };
        let pauses: Vec<_> = (1..=4)
            .map(|failures| policy.next_attempt(failures, Timestamp(100)))
            .collect();
        assert_eq!(
            pauses,
            [
                Some(Timestamp(110)),
                Some(Timestamp(120)),
                Some(Timestamp(130)),
                None
            ]
        );
        assert_eq!(policy.pause_ms(u32::MAX), 30);
    }
}
