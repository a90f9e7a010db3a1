//! Typed access to the contracts.
