//! The trainer over real neighbours: the committed base model, the committed datasets, sealed
//! job directories, and the program that made the base model.

// Helpers of tests are tests too.
#![allow(clippy::unwrap_used)]

mod base_model;
#[cfg(feature = "cuda")]
mod cuda;
mod devices;
#[cfg(feature = "cuda")]
#[path = "../../../kernels/tests/emulator/mod.rs"]
mod emulator;
mod guards;
mod jobs;
mod kills;
mod memory;
mod methods;
mod tuning;
mod workshop;

// The program's own modules, so that the smoke run is the real recipe on a small scale.
#[allow(dead_code)]
#[path = "../../examples/base-model/corpus.rs"]
mod corpus;
#[allow(dead_code)]
#[path = "../../examples/base-model/recipe.rs"]
mod recipe;
#[allow(dead_code)]
#[path = "../../examples/base-model/tokenizer.rs"]
mod tokenizer;
#[allow(dead_code)]
#[path = "../../examples/base-model/world.rs"]
mod world;

use std::path::PathBuf;

/// A path below `fixtures`.
fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../fixtures")
        .join(name)
}
