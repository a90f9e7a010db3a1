//! The engine and its routes over a small random model, two adapters and a byte tokenizer.

// Helpers outside `#[test]` functions may fail a test by panicking too.
#![allow(clippy::unwrap_used)]

mod adapters;
mod broken_adapters;
#[cfg(feature = "cuda")]
mod cuda_serving;
#[cfg(feature = "cuda")]
#[path = "../../../kernels/tests/emulator/mod.rs"]
mod emulator;
mod engine;
mod memory;
mod parameters;
mod quantized;
mod routes;
mod world;
