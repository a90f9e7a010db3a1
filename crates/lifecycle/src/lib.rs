//! Decisions of a provider, without input or output.
//!
//! What happens next to a task or to a deployed adapter is a pure function of its state, an event and the time:
//! [`task::apply`] and [`adapter::apply`] return the new state and the effects to carry out, as data. The caller stores
//! both in one transaction and carries the effects out afterwards, at least once; a result whose effect is no longer the
//! one that the state waits for is refused, so late and repeated results change nothing.
//!
//! The crate also holds the arithmetic of fees ([`fee`]), deadlines ([`deadline`]) and retries ([`retry`]). It knows no
//! clock, no chain and no database.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::panic
)]

pub mod adapter;
pub mod deadline;
pub mod effect;
pub mod event;
pub mod fee;
pub mod retry;
pub mod task;

pub use adapter::{Adapter, AdapterEffect, AdapterEffectKind, AdapterEvent, AdapterTransition};
pub use deadline::Timestamp;
pub use effect::{Effect, EffectKey, EffectKind};
pub use event::{EffectFailure, Event, FailureReason};
pub use fee::{Fee, FeeError, FeeTerms};
pub use task::{Failure, Notice, OnMissedAck, Rejected, Task, Terms, Transition, apply};
