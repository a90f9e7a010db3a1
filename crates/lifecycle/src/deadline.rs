//! Points in time and the windows that the protocol fixes.

use serde::{Deserialize, Serialize};

/// The longest acknowledgement window in seconds (48 hours); half the contract's lock time may shorten it.
pub const ACK_WINDOW_S: u64 = 48 * 3600;
/// How long an artefact is kept after a missed acknowledgement or after settlement, in seconds (30 days).
pub const ARTIFACT_RETENTION_S: u64 = 30 * 24 * 3600;

/// A point in time in Unix milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// The point `seconds` after 1970.
    #[must_use]
    pub fn from_s(seconds: u64) -> Self {
        Self(seconds.saturating_mul(1000))
    }

    /// Whole seconds since 1970, rounded down.
    #[must_use]
    pub fn as_s(self) -> u64 {
        self.0 / 1000
    }

    /// This point and `milliseconds` more.
    #[must_use]
    pub fn plus_ms(self, milliseconds: u64) -> Self {
        Self(self.0.saturating_add(milliseconds))
    }

    /// This point and `seconds` more.
    #[must_use]
    pub fn plus_s(self, seconds: u64) -> Self {
        self.plus_ms(seconds.saturating_mul(1000))
    }
}

/// The acknowledgement window of a contract with the given lock time, both in seconds: 48 hours, at most half the lock
/// time.
#[must_use]
pub fn ack_window_s(lock_time_s: u64) -> u64 {
    ACK_WINDOW_S.min(lock_time_s / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_is_48_hours_or_half_the_lock_time() {
        assert_eq!(ack_window_s(86_400), 43_200);
        assert_eq!(ack_window_s(7 * 86_400), ACK_WINDOW_S);
        assert_eq!(Timestamp::from_s(5).plus_s(u64::MAX), Timestamp(u64::MAX));
        assert_eq!(Timestamp(1999).as_s(), 1);
    }
}
