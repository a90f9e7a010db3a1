//! Speed of training and decoding on a small random model.
//!
//! `cargo run --release -p zerog-model --example throughput -- [hidden] [layers] [vocabulary]`

use std::io::Write;
use std::sync::Arc;
use std::time::Instant;
use zerog_model::*;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut numbers = std::env::args()
        .skip(1)
        .map(|argument| argument.parse::<usize>());
    let mut next = |default| numbers.next().unwrap_or(Ok(default));
    let (hidden, layers, vocabulary) = (next(192)?, next(6)?, next(2048)?);
    let config = ModelConfig {
        family: ModelFamily::Qwen2,
        vocabulary_size: vocabulary,
        hidden_size: hidden,
        intermediate_size: hidden * 8 / 3 / 32 * 32,
        layers,
        query_heads: hidden / 32,
        key_value_heads: hidden / 64,
        head_size: 32,
        maximum_positions: 1024,
        norm_epsilon: 1e-6,
        rope: RopeSettings {
            theta: 10_000.0,
            scaling: RopeScaling::None,
        },
        tied_embeddings: true,
        biases: Biases {
            query_key_value: true,
            ..Biases::default()
        },
        head_norms: false,
        bos_token_id: None,
        eos_token_ids: vec![],
    };
    let mut out = std::io::stdout();
    writeln!(out, "{} parameters", config.parameter_count())?;
    let base = BaseModel::init_random(config, 0)?;
    let mut batch = PackedBatch::default();
    for segment in 0..16_u32 {
        let tokens: Vec<u32> = (0..128)
            .map(|index| (index * 7 + segment * 31) % vocabulary as u32)
            .collect();
        batch.push(&tokens, &[true; 128]);
    }
    let full = TrainableModel::full(&base, 0);
    let lora = TrainableModel::lora(base.clone(), LoraConfig::default())?;
    for (name, mut model) in [("full", full), ("LoRA", lora)] {
        let mut best = f64::INFINITY;
        for batch_number in 0..6 {
            let start = Instant::now();
            let loss = model.forward_backward(
                &batch,
                &StepOptions {
                    batch_number,
                    neftune_alpha: 0.0,
                },
            )?;
            model.apply_update(&UpdateOptions {
                learning_rate: 1e-3,
                weight_decay: 0.0,
                betas: (0.9, 0.95),
                epsilon: 1e-8,
                gradient_scale: 1.0 / loss.supervised_tokens as f32,
            });
            best = best.min(start.elapsed().as_secs_f64());
        }
        writeln!(
            out,
            "{name} training: {:.0} tokens/s",
            batch.tokens.len() as f64 / best
        )?;
    }
    let prompt: Vec<u32> = (0..128)
        .map(|index| index * 5 % vocabulary as u32)
        .collect();
    for sequences in [1, 8] {
        let mut scratch = InferenceScratch::default();
        let mut caches: Vec<KvCache> = (0..sequences)
            .map(|_| KvCache::new(base.config(), 256))
            .collect();
        let mut advance = |tokens: &[u32], adapter: Option<Arc<LoraAdapter>>| {
            let mut rows: Vec<Row<'_>> = caches
                .iter_mut()
                .map(|cache| Row {
                    tokens,
                    cache,
                    adapter: adapter.clone(),
                    wanted: LogitsWanted::Last,
                })
                .collect();
            let start = Instant::now();
            base.forward(&mut rows, &mut scratch)
                .map(|_| start.elapsed().as_secs_f64())
        };
        let prefill = advance(&prompt, None)?;
        let mut decode = 0.0;
        for _ in 0..64 {
            decode += advance(&[1], None)?;
        }
        writeln!(
            out,
            "{sequences} sequences: prefill {:.0} tokens/s, decode {:.0} tokens/s",
            (128 * sequences) as f64 / prefill,
            (64 * sequences) as f64 / decode
        )?;
    }
    Ok(())
}
