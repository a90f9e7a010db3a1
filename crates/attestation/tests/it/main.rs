//! Public API of the crate against golden vectors, real quotes and the simulated TEE.

// Helpers outside `#[test]` functions may fail a test by panicking too.
#![allow(clippy::unwrap_used)]

mod endpoint;
mod evidence;
mod golden;
mod mutations;
mod real_quotes;
mod samples;
mod simulated;

/// Reads a file of `fixtures/quotes`.
fn fixture(name: &str) -> Vec<u8> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fixtures/quotes")
        .join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
