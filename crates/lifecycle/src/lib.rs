//! Decisions: task and adapter state machines, fees, deadlines.
