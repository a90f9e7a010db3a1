//! The published vectors, as files, in both directions: what we make is what they say, and what they say verifies.
#![allow(
    clippy::unwrap_used,
    reason = "a test may stop at what it did not expect"
)]

mod ecies;
mod vectors;
