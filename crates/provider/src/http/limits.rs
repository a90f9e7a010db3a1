//! Rates per caller and numbers at once, in memory.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use alloy_primitives::Address;
use axum::http::HeaderMap;
use parking_lot::Mutex;

use super::error::ApiError;
use crate::config::LimitsConfig;

/// Callers that are remembered before full buckets are forgotten.
const MAX_BUCKETS: usize = 10_000;

/// All limiters of the daemon.
#[derive(Debug)]
pub(crate) struct Limiter {
    quotes: Buckets<IpAddr>,
    transfers: Buckets<Address>,
    chats: Buckets<Address>,
    transferring: Counters<Address>,
    chatting: Counters<Address>,
    watching: Counters<IpAddr>,
}

impl Limiter {
    /// Limiters with the configured rates.
    #[must_use]
    pub(crate) fn new(config: &LimitsConfig) -> Self {
        Self {
            quotes: Buckets::new(config.quote_rate.0, config.quote_rate.1),
            transfers: Buckets::new(config.transfer_rate.0, config.transfer_rate.1),
            chats: Buckets::new(
                config.chat_per_minute / 60.0,
                (config.chat_per_minute / 4.0).max(5.0),
            ),
            transferring: Counters::new(config.transfers_per_user),
            chatting: Counters::new(config.chats_per_user),
            watching: Counters::new(config.watches_per_address),
        }
    }

    /// One quote for an address.
    pub(crate) fn quote(&self, address: IpAddr) -> Result<(), ApiError> {
        self.quotes.take(address)
    }

    /// One stream of a task's news to an address; it ends when the result is dropped.
    pub(crate) fn watch(&self, address: IpAddr) -> Result<Slot<IpAddr>, ApiError> {
        self.watching.enter(address)
    }

    /// One upload or download of a user whose signature was verified; it ends when the result is dropped.
    pub(crate) fn transfer(&self, user: Address) -> Result<Slot<Address>, ApiError> {
        let slot = self.transferring.enter(user)?;
        self.transfers.take(user)?;
        Ok(slot)
    }

    /// The next piece of such a transfer, which was counted when it began.
    pub(crate) fn transfer_under_way(&self, user: Address) -> Result<Slot<Address>, ApiError> {
        self.transferring.enter(user)
    }

    /// One chat request of a user whose token was verified.
    pub(crate) fn chat(&self, user: Address) -> Result<Slot<Address>, ApiError> {
        let slot = self.chatting.enter(user)?;
        self.chats.take(user)?;
        Ok(slot)
    }
}

#[derive(Debug)]
struct Buckets<K> {
    per_second: f64,
    burst: f64,
    buckets: Mutex<HashMap<K, (f64, Instant)>>,
}

impl<K: std::hash::Hash + Eq> Buckets<K> {
    fn new(per_second: f64, burst: f64) -> Self {
        Self {
            per_second,
            burst,
            buckets: Mutex::default(),
        }
    }

    fn take(&self, key: K) -> Result<(), ApiError> {
        let now = Instant::now();
        let mut buckets = self.buckets.lock();
        if buckets.len() >= MAX_BUCKETS {
            let full = |(tokens, at): &(f64, Instant)| {
                tokens + at.elapsed().as_secs_f64() * self.per_second >= self.burst
            };
            buckets.retain(|_, bucket| !full(bucket));
        }
        let (tokens, at) = buckets.entry(key).or_insert((self.burst, now));
        *tokens = (*tokens + at.elapsed().as_secs_f64() * self.per_second).min(self.burst);
        *at = now;
        if *tokens < 1.0 {
            let wait = ((1.0 - *tokens) / self.per_second.max(1e-6))
                .ceil()
                .clamp(1.0, 60.0);
            return Err(ApiError::too_many(wait as u64));
        }
        *tokens -= 1.0;
        Ok(())
    }
}

#[derive(Debug)]
struct Counters<K> {
    most: usize,
    counts: Arc<Mutex<HashMap<K, usize>>>,
}

impl<K: std::hash::Hash + Eq + Copy> Counters<K> {
    fn new(most: usize) -> Self {
        Self {
            most,
            counts: Arc::default(),
        }
    }

    fn enter(&self, who: K) -> Result<Slot<K>, ApiError> {
        let mut counts = self.counts.lock();
        let count = counts.entry(who).or_insert(0);
        if *count >= self.most {
            return Err(ApiError::too_many(1));
        }
        *count += 1;
        Ok(Slot {
            who,
            counts: Arc::clone(&self.counts),
        })
    }
}

/// A place that is free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Slot<K: std::hash::Hash + Eq + Copy> {
    who: K,
    counts: Arc<Mutex<HashMap<K, usize>>>,
}

impl<K: std::hash::Hash + Eq + Copy> Drop for Slot<K> {
    fn drop(&mut self) {
        let mut counts = self.counts.lock();
        if let Some(count) = counts.get_mut(&self.who) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                counts.remove(&self.who);
            }
        }
    }
}

/// The caller's address; forwarding headers count only from configured proxies.
pub(crate) fn client_address(peer: SocketAddr, headers: &HeaderMap, trusted: &[IpAddr]) -> IpAddr {
    if !trusted.contains(&peer.ip()) {
        return peer.ip();
    }
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    header("x-forwarded-for")
        // The last entry is the one that the trusted proxy added.
        .and_then(|list| list.rsplit(',').next())
        .or_else(|| header("x-real-ip"))
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(peer.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_the_next_one_waits() {
        let buckets = Buckets::new(0.001, 3.0);
        for _ in 0..3 {
            buckets.take("a").unwrap();
        }
        assert_eq!(buckets.take("a").unwrap_err().status.as_u16(), 429);
        buckets.take("b").unwrap();
    }

    #[test]
    fn slots_come_back() {
        let counters = Counters::new(1);
        let slot = counters.enter(Address::ZERO).unwrap();
        assert!(counters.enter(Address::ZERO).is_err());
        drop(slot);
        counters.enter(Address::ZERO).unwrap();
        assert!(counters.counts.lock().is_empty());
    }

    #[test]
    fn forwarding_headers_count_only_from_proxies() {
        let peer: SocketAddr = "10.0.0.1:5".parse().unwrap();
        let mut headers = HeaderMap::new();
        headers.insert("x-forwarded-for", "1.1.1.1, 2.2.2.2".parse().unwrap());
        assert_eq!(client_address(peer, &headers, &[]), peer.ip());
        assert_eq!(
            client_address(peer, &headers, &[peer.ip()]),
            "2.2.2.2".parse::<IpAddr>().unwrap()
        );
    }
}
