//! The recorded numbers of the reference libraries (`fixtures/parity`, made by `parity/reference.py`).

#[path = "../../examples/parity/compare.rs"]
mod compare;

pub(crate) use compare::Place;

use std::path::Path;
use zerog_model::Device;

fn check(case: &str) {
    check_where(case, &Device::Cpu);
}

/// As the reference computed it, trained in `place`.
pub(crate) fn check_where(case: &str, place: &dyn Place) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fixtures/parity")
        .join(case);
    for measure in compare::compare(&folder, None, place).unwrap() {
        assert!(measure.passed(), "{case}, {}: {measure:?}", measure.name);
    }
}

#[test]
fn qwen2_with_tied_embeddings() {
    check("qwen2-tied");
}

#[test]
fn qwen2_with_shards_yarn_and_rslora() {
    check("qwen2-untied-rslora");
}

#[test]
fn qwen3() {
    check("qwen3");
}

#[test]
fn llama_with_stretched_frequencies() {
    check("llama3");
}

#[test]
fn llama_with_biases() {
    check("llama-biases");
}

#[test]
fn dora() {
    check("qwen2-dora");
}

#[test]
fn direct_preference_optimisation() {
    check("qwen3-dpo");
}

#[test]
fn distilbert_with_adapted_attention() {
    check("distilbert");
}

#[test]
fn distilbert_with_adapted_feed_forward() {
    check("distilbert-all-linear");
}

#[test]
fn no_case_is_left_out() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/parity");
    assert_eq!(compare::cases(&folder).unwrap().len(), 9);
}
