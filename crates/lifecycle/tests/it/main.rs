//! Whole lives of tasks and adapters: properties over random events, and a seeded simulation with faults.

mod properties;
mod simulation;
