//! Batched inference: parity with training, independence of rows.

use super::*;

fn run(base: &BaseModel, rows: &mut [Row<'_>]) -> Vec<Vec<f32>> {
    base.forward(rows, &mut InferenceScratch::default())
        .unwrap()
}

#[test]
fn serving_and_training_give_the_same_probabilities() {
    for tied in [true, false] {
        let base = tiny_base(tied);
        let mut model = trained(&base, lora_config());
        let adapter = Some(Arc::new(model.adapter().unwrap()));
        let tokens = [3, 9, 9, 14, 28, 1];
        for adapter in [adapter, None] {
            let mut cache = KvCache::new(base.config(), 8);
            let row = Row {
                tokens: &tokens,
                cache: &mut cache,
                adapter: adapter.clone(),
                wanted: LogitsWanted::All,
            };
            let logits = run(&base, &mut [row]).remove(0);
            if adapter.is_none() {
                model = TrainableModel::lora(base.clone(), lora_config()).unwrap();
            }
            for place in 0..5 {
                let mut batch = PackedBatch::default();
                let mut trained = [false; 6];
                trained[place + 1] = true;
                batch.push(&tokens, &trained);
                let loss = model.eval_loss(&batch).unwrap().loss_sum;
                let row = log_probabilities(&logits[place * 29..(place + 1) * 29]);
                let expected = -f64::from(row[tokens[place + 1] as usize]);
                assert!(
                    (loss - expected).abs() < 1e-4,
                    "{tied} {place}: {loss} {expected}"
                );
            }
            let last = model
                .logits(
                    &tokens,
                    if adapter.is_some() {
                        AdapterUse::With
                    } else {
                        AdapterUse::Without
                    },
                )
                .unwrap();
            assert_eq!(
                last,
                logits[5 * 29..],
                "canary logits are the serving code's"
            );
        }
    }
}

#[test]
fn rows_get_the_same_bits_alone_and_in_any_batch() {
    // Wide enough for parallel products and tiles of several rows.
    let config = ModelConfig {
        hidden_size: 72,
        intermediate_size: 200,
        vocabulary_size: 400,
        ..tiny_config(true)
    };
    let base = BaseModel::init_random(config, 8).unwrap();
    let adapters: Vec<Option<Arc<LoraAdapter>>> = vec![
        Some(Arc::new(trained(&base, lora_config()).adapter().unwrap())),
        None,
        Some(Arc::new(
            trained(
                &base,
                LoraConfig {
                    rank: 5,
                    seed: 77,
                    ..lora_config()
                },
            )
            .adapter()
            .unwrap(),
        )),
        None,
    ];
    let prompts: Vec<Vec<u32>> = (0..8_usize)
        .map(|row| {
            (0..3 + 6 * row)
                .map(|index| ((index * 31 + row * 17) % 400) as u32)
                .collect()
        })
        .collect();
    let adapter_of = |row: usize| adapters[row % adapters.len()].clone();

    let alone: Vec<Vec<Vec<f32>>> = prompts
        .iter()
        .enumerate()
        .map(|(row, prompt)| {
            let mut cache = KvCache::new(base.config(), 0);
            let mut outputs = Vec::new();
            // Token by token.
            for token in prompt {
                let tokens = [*token];
                let row = Row {
                    tokens: &tokens,
                    cache: &mut cache,
                    adapter: adapter_of(row),
                    wanted: LogitsWanted::Last,
                };
                outputs.push(run(&base, &mut [row]).remove(0));
            }
            outputs
        })
        .collect();
    assert_ne!(alone[0], alone[1]);

    // All prompts at once.
    let mut caches: Vec<KvCache> = prompts
        .iter()
        .map(|_| KvCache::new(base.config(), 64))
        .collect();
    let mut rows: Vec<Row<'_>> = caches
        .iter_mut()
        .zip(&prompts)
        .enumerate()
        .map(|(row, (cache, tokens))| Row {
            tokens,
            cache,
            adapter: adapter_of(row),
            wanted: LogitsWanted::All,
        })
        .collect();
    let together = run(&base, &mut rows);
    for (alone, together) in alone.iter().zip(&together) {
        assert_eq!(alone.concat(), *together);
    }

    // Prompts in two pieces, with a decoding row beside them, on one thread.
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(1)
        .build()
        .unwrap();
    let mut caches: Vec<KvCache> = prompts
        .iter()
        .map(|_| KvCache::new(base.config(), 64))
        .collect();
    for part in 0..2 {
        let mut rows: Vec<Row<'_>> = caches
            .iter_mut()
            .zip(&prompts)
            .enumerate()
            .map(|(row, (cache, prompt))| {
                let cut = if row == 3 {
                    prompt.len() - 1
                } else {
                    prompt.len() / 2
                };
                let tokens = if part == 0 {
                    &prompt[..cut]
                } else {
                    &prompt[cut..]
                };
                let wanted = if part == 0 {
                    LogitsWanted::None
                } else {
                    LogitsWanted::Last
                };
                Row {
                    tokens,
                    cache,
                    adapter: adapter_of(row),
                    wanted,
                }
            })
            .collect();
        let logits = pool.install(|| run(&base, &mut rows));
        for (logits, alone) in logits.iter().zip(&alone) {
            if part == 0 {
                assert!(logits.is_empty());
            } else {
                assert_eq!(logits, alone.last().unwrap());
            }
        }
    }
}

#[test]
fn a_cache_can_be_forked_and_cut_back() {
    let base = tiny_base(true);
    let prompt = [5, 6, 7, 8];
    let mut cache = KvCache::new(base.config(), 4);
    run(
        &base,
        &mut [Row {
            tokens: &prompt,
            cache: &mut cache,
            adapter: None,
            wanted: LogitsWanted::None,
        }],
    );
    let mut fork = cache.clone();
    let after = |cache: &mut KvCache, token: u32| {
        let tokens = [token];
        run(
            &base,
            &mut [Row {
                tokens: &tokens,
                cache,
                adapter: None,
                wanted: LogitsWanted::Last,
            }],
        )
        .remove(0)
    };
    let first = after(&mut cache, 9);
    assert_eq!(cache.len(), 5);
    assert_ne!(after(&mut fork, 10), first);
    cache.truncate(4);
    assert_eq!(after(&mut cache, 9), first);
    assert!(cache.bytes() >= 5 * KvCache::bytes_per_token(base.config()));
}

#[test]
fn impossible_rows_are_refused_before_anything_changes() {
    let base = tiny_base(true);
    let other = BaseModel::init_random(
        ModelConfig {
            layers: 3,
            ..tiny_config(true)
        },
        0,
    )
    .unwrap();
    let mut cache = KvCache::new(base.config(), 4);
    let mut good = KvCache::new(base.config(), 4);
    let mut refused = |tokens: &[u32], cache: &mut KvCache, adapter| {
        let mut rows = [
            Row {
                tokens: &[1, 2],
                cache: &mut good,
                adapter: None,
                wanted: LogitsWanted::Last,
            },
            Row {
                tokens,
                cache,
                adapter,
                wanted: LogitsWanted::Last,
            },
        ];
        let error = base
            .forward(&mut rows, &mut InferenceScratch::default())
            .unwrap_err();
        assert_eq!(good.len(), 0);
        error
    };
    assert!(matches!(
        refused(&[], &mut cache, None),
        ModelError::EmptyBatch
    ));
    assert!(matches!(
        refused(&[29], &mut cache, None),
        ModelError::TokenOutOfRange { .. }
    ));
    assert!(matches!(
        refused(&[1; 65], &mut cache, None),
        ModelError::SequenceTooLong { .. }
    ));
    let mut wrong = KvCache::new(other.config(), 4);
    assert!(matches!(
        refused(&[1], &mut wrong, None),
        ModelError::CacheMismatch
    ));
    let adapter = Arc::new(trained(&other, lora_config()).adapter().unwrap());
    assert!(matches!(
        refused(&[1], &mut cache, Some(adapter)),
        ModelError::AdapterMismatch
    ));
}
