//! Whole lives of tasks and adapters: properties over random events, and a seeded simulation with faults.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod properties;
mod simulation;
