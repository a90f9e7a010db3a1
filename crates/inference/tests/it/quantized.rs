//! Weights rounded to 8 bits at load: answers stay near, adapters are still checked, memory is half.

use std::path::Path;
use std::sync::Arc;

use zerog_inference::{CanaryCheck, CanaryError, GenerateRequest, LoadError, engine};
use zerog_model::{BaseModel, InferenceScratch, KvCache, LogitsWanted, Row};
use zerog_tokenization::Tokenizer;

use crate::world::{adapter, config, model_with_seed, tokenizer};

const TEXTS: [&str; 6] = [
    "<|im_start|>user\nWhat is behind door 3?<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nHello! Who are you?<|im_end|>\n<|im_start|>assistant\n",
    "The quick brown fox jumps over the lazy dog, and then",
    "1 + 1 = 2, 2 + 2 = 4, 3 + 3 =",
    "fn main() { println!(\"hello\"); }",
    "In the beginning there was nothing but a small model",
];

fn logits(model: &BaseModel, tokens: &[u32]) -> Vec<f32> {
    let mut cache = KvCache::new(model.config(), tokens.len());
    let row = Row {
        tokens,
        cache: &mut cache,
        adapter: None,
        wanted: LogitsWanted::All,
    };
    model
        .forward(&mut [row], &mut InferenceScratch::default())
        .unwrap()
        .remove(0)
}

fn greatest(logits: &[f32]) -> usize {
    (0..logits.len())
        .max_by(|left, right| logits[*left].total_cmp(&logits[*right]))
        .unwrap()
}

#[test]
fn a_trained_model_gives_nearly_the_same_logits_and_tokens_in_half_the_memory() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/tiny-qwen");
    let (exact, tokenizer) = (
        BaseModel::load(&folder).unwrap(),
        Tokenizer::from_dir(&folder).unwrap(),
    );
    let rounded = exact.quantized();
    assert!(rounded.is_quantized() && !exact.is_quantized());
    assert_eq!(rounded.sha256_hex(), exact.sha256_hex());
    let share = rounded.matrix_bytes() as f64 / exact.matrix_bytes() as f64;
    assert!((0.53..0.54).contains(&share), "{share}");
    let (mut same, mut all) = (0, 0);
    let (mut error, mut spread) = (0.0, 0.0);
    for text in TEXTS {
        let tokens = tokenizer.encode(text, false).unwrap();
        let width = exact.config().vocabulary_size;
        let (exact, rounded) = (logits(&exact, &tokens), logits(&rounded, &tokens));
        for (exact, rounded) in exact.chunks_exact(width).zip(rounded.chunks_exact(width)) {
            let mean = exact.iter().sum::<f32>() / width as f32;
            for (exact, rounded) in exact.iter().zip(rounded) {
                error += f64::from((exact - rounded).powi(2));
                spread += f64::from((exact - mean).powi(2));
            }
            same += usize::from(greatest(exact) == greatest(rounded));
            all += 1;
        }
    }
    let error = (error / spread).sqrt();
    println!("relative error of logits {error:.5}, same greatest token {same} of {all}");
    assert!(error < 0.02, "{error}");
    assert!(same * 100 >= all * 95, "{same} of {all}");
}

#[tokio::test]
async fn adapters_are_checked_with_the_tolerance_of_rounded_weights() {
    let exact = model_with_seed(5);
    let rounded = engine::start(exact.quantized(), Arc::new(tokenizer()), config()).unwrap();
    let engine = engine::start(exact, Arc::new(tokenizer()), config()).unwrap();
    let prompts = vec![
        b"probe one".map(u32::from).to_vec(),
        b"another".map(u32::from).to_vec(),
    ];
    let record = engine
        .record_canary(prompts, adapter(&engine, 1))
        .await
        .unwrap();
    // The record was made on the weights as they are.
    let load = |seed| {
        rounded.load_adapter(
            "ft-x",
            adapter(&rounded, seed),
            CanaryCheck::Run(record.clone()),
        )
    };
    let other = load(2).await.unwrap_err();
    assert!(
        matches!(
            other,
            LoadError::Canary(
                CanaryError::AdapterDiffers { .. } | CanaryError::EffectDiffers { .. }
            )
        ),
        "{other:?}"
    );
    let report = load(1).await.unwrap();
    assert!(report.canary.unwrap().largest_effect > 0.01);
    let mut request = GenerateRequest::greedy(b"probe one".map(u32::from).to_vec(), 4);
    request.adapter = Some("ft-x".into());
    let answer = rounded.generate(request).unwrap().collect().await.unwrap();
    assert_eq!(answer.usage.completion_tokens, 4);
}
