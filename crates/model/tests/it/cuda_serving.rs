//! Serving on a CUDA device, with emulated libraries of NVIDIA's, against serving on the processor.

use super::emulator::Order;
use super::*;
use crate::cuda::{config_of, open, open_alone};
use zerog_model::cuda::Cuda;

const SIZES: ServingSizes = ServingSizes {
    blocks: 64,
    step_tokens: 32,
    step_rows: 8,
    precision: Precision::F32,
};

fn on_device(base: &Arc<BaseModel>, cuda: &Cuda, sizes: ServingSizes) -> Serving {
    let placement = Placement::on_cuda(base, cuda).unwrap();
    Serving::new(base.clone(), &placement, &sizes).unwrap()
}

/// One adapter of each kind, and none.
fn adapters(base: &Arc<BaseModel>) -> Vec<Option<Arc<LoraAdapter>>> {
    let of = |lora| Some(Arc::new(trained(base, lora).adapter().unwrap()));
    vec![
        of(lora_config()),
        None,
        of(LoraConfig {
            rank: 5,
            seed: 77,
            dora: true,
            rank_stabilized: true,
            ..lora_config()
        }),
        of(LoraConfig {
            targets: targets(&[Projection::Value, Projection::Down]),
            ..lora_config()
        }),
    ]
}

fn prompt(row: usize, length: usize) -> Vec<u32> {
    let token = |index: usize| ((index * 31 + row * 17) % 29) as u32;
    (0..length).map(token).collect()
}

fn logits_of(serving: &mut Serving, rows: &mut [Row<'_>]) -> Vec<Vec<f32>> {
    let places = serving.forward(rows).unwrap();
    let logits = |place| serving.logits(place).to_vec();
    places.into_iter().map(logits).collect()
}

fn row<'a>(tokens: &'a [u32], cache: &'a mut KvCache) -> Row<'a> {
    Row {
        tokens,
        cache,
        adapter: None,
        wanted: LogitsWanted::Last,
    }
}

/// Prompts of all lengths and adapters come in pieces, are forked in the middle of a block, share their beginnings and
/// go on. Returns all logits.
fn conversation(
    serving: &mut Serving,
    adapters: &[Option<Arc<LoraAdapter>>],
) -> Vec<(String, Vec<f32>)> {
    let prompts: Vec<Vec<u32>> = [1, 20, 37, 5, 16, 33, 2, 48]
        .into_iter()
        .enumerate()
        .map(|(row, length)| prompt(row, length))
        .collect();
    let adapter_of = |row: usize| adapters[row % adapters.len()].clone();
    let pool = serving.pool().clone();
    let mut caches: Vec<KvCache> = prompts.iter().map(|_| KvCache::in_pool(&pool)).collect();
    let mut all = Vec::new();
    for part in 0..2 {
        let mut rows: Vec<Row<'_>> = Vec::new();
        for (row, (cache, prompt)) in caches.iter_mut().zip(&prompts).enumerate() {
            // Some prompts come whole in the first step, the others in two pieces.
            let cut = match row % 3 {
                0 => prompt.len(),
                1 => prompt.len() / 2,
                _ => prompt.len() - 1,
            };
            let (tokens, wanted) = match part {
                0 => (&prompt[..cut], LogitsWanted::None),
                _ => (&prompt[cut..], LogitsWanted::All),
            };
            let wanted = if row % 3 == 0 {
                LogitsWanted::Last
            } else {
                wanted
            };
            if !tokens.is_empty() {
                rows.push(Row {
                    tokens,
                    cache,
                    adapter: adapter_of(row),
                    wanted,
                });
            }
        }
        for (row, logits) in logits_of(serving, &mut rows).into_iter().enumerate() {
            all.push((format!("part {part}, row {row}"), logits));
        }
    }
    // Each sequence and its fork go on with another token; the shared last block is copied.
    let mut forks = caches.clone();
    for step in 0..2 {
        let tokens: Vec<[u32; 1]> = (0..16).map(|row| [(row * 5 + step) % 29]).collect();
        let mut rows: Vec<Row<'_>> = caches
            .iter_mut()
            .chain(&mut forks)
            .zip(&tokens)
            .enumerate()
            .map(|(row, (cache, tokens))| Row {
                tokens,
                cache,
                adapter: adapter_of(row % 8),
                wanted: LogitsWanted::Last,
            })
            .collect();
        for (row, logits) in logits_of(serving, &mut rows).into_iter().enumerate() {
            all.push((format!("fork {step}, row {row}"), logits));
        }
    }
    // A new sequence begins with the blocks of another one of the same adapter.
    let known = caches[5].full_blocks().to_vec();
    drop((caches, forks));
    let mut shared = KvCache::from_blocks(&pool, known);
    let row = Row {
        tokens: &[3, 1, 4],
        cache: &mut shared,
        adapter: adapter_of(5),
        wanted: LogitsWanted::All,
    };
    all.push((
        "shared".to_owned(),
        logits_of(serving, &mut [row]).remove(0),
    ));
    assert_eq!(pool.live_blocks(), 3);
    drop(shared);
    assert_eq!(pool.live_blocks(), 0);
    all
}

fn assert_same(actual: &[(String, Vec<f32>)], expected: &[(String, Vec<f32>)], tolerance: f32) {
    assert_eq!(actual.len(), expected.len());
    for ((what, actual), (_, expected)) in actual.iter().zip(expected) {
        assert_eq!(actual.len(), expected.len(), "{what}");
        let size = expected.iter().fold(0.0_f32, |size, x| size.max(x.abs()));
        for (index, (actual, expected)) in actual.iter().zip(expected).enumerate() {
            // Written so that what is no number fails.
            assert!(
                (actual - expected).abs() <= tolerance * size,
                "{what}, {index}: {actual} {expected}"
            );
        }
    }
}

#[test]
fn logits_of_every_family_agree_with_the_processors() {
    for (family, order) in [
        (ModelFamily::Qwen2, Order::Forward),
        (ModelFamily::Qwen3, Order::Reversed),
        (ModelFamily::Llama, Order::Forward),
    ] {
        let base = BaseModel::init_random(config_of(family), 3).unwrap();
        let adapters = adapters(&base);
        let expected = conversation(&mut Serving::on_processor(base.clone()), &adapters);
        let mut device = on_device(&base, &open(order), SIZES);
        assert_same(&conversation(&mut device, &adapters), &expected, 2e-5);
    }
}

#[test]
fn rounded_activations_stay_near_single_precision() {
    let base = BaseModel::init_random(config_of(ModelFamily::Llama), 3).unwrap();
    let adapters = adapters(&base);
    let cuda = open(Order::Forward);
    let single = conversation(&mut on_device(&base, &cuda, SIZES), &adapters);
    let rounded = ServingSizes {
        precision: Precision::Bf16,
        ..SIZES
    };
    let rounded = conversation(&mut on_device(&base, &cuda, rounded), &adapters);
    assert_ne!(rounded, single);
    assert_same(&rounded, &single, 0.03);
}

#[test]
fn a_row_alone_and_in_pieces_is_near_the_row_in_company() {
    let base = tiny_base(true);
    let adapters = adapters(&base);
    let mut serving = on_device(&base, &open(Order::Forward), SIZES);
    let together = conversation(&mut serving, &adapters);
    // The second piece of its prompt has ten tokens, and no other has.
    let (tokens, adapter) = (prompt(1, 20), adapters[1].clone());
    let mut alone = Vec::new();
    let mut cache = KvCache::in_pool(serving.pool());
    for token in tokens {
        let row = Row {
            tokens: &[token],
            cache: &mut cache,
            adapter: adapter.clone(),
            wanted: LogitsWanted::Last,
        };
        alone.extend(logits_of(&mut serving, &mut [row]).remove(0));
    }
    let of_row = together
        .iter()
        .find(|(_, logits)| logits.len() == 10 * 29)
        .unwrap();
    let alone = [("alone".to_owned(), alone[10 * 29..].to_vec())];
    assert_same(&alone, std::slice::from_ref(of_row), 2e-5);
}

#[test]
fn the_same_steps_give_the_same_bits_and_take_no_more_memory() {
    let base = tiny_base(false);
    let adapters = adapters(&base);
    let cuda = open_alone("same-steps");
    for precision in [Precision::F32, Precision::Bf16] {
        let sizes = ServingSizes {
            step_tokens: 200,
            step_rows: 48,
            precision,
            ..SIZES
        };
        let mut serving = on_device(&base, &cuda, sizes);
        let first = conversation(&mut serving, &adapters);
        let free = cuda.free_bytes().unwrap();
        assert_eq!(conversation(&mut serving, &adapters), first);
        assert_eq!(cuda.free_bytes().unwrap(), free);
    }
}

/// Bytes of device memory that are free after a step with `adapter`.
fn free_after(serving: &mut Serving, cuda: &Cuda, adapter: &Option<Arc<LoraAdapter>>) -> usize {
    let mut cache = KvCache::in_pool(serving.pool());
    let row = Row {
        tokens: &[1],
        cache: &mut cache,
        adapter: adapter.clone(),
        wanted: LogitsWanted::Last,
    };
    logits_of(serving, &mut [row]);
    cuda.free_bytes().unwrap()
}

#[test]
fn adapters_stay_on_the_device_as_long_as_they_live_and_there_is_room() {
    let base = tiny_base(true);
    let [first, _, second, _] = &mut adapters(&base)[..] else {
        unreachable!("four adapters")
    };
    let cuda = open_alone("residents");
    let mut serving = on_device(&base, &cuda, SIZES);
    let without = free_after(&mut serving, &cuda, &None);
    let with_first = free_after(&mut serving, &cuda, first);
    let with_both = free_after(&mut serving, &cuda, second);
    // Matrices of one adapter that are on the device, beside its small share of the step's tables.
    let bytes = first.as_ref().unwrap().bytes();
    assert!(without - with_first >= bytes, "{without} {with_first}");
    assert!(with_both < with_first);
    assert_eq!(free_after(&mut serving, &cuda, first), with_both);

    // Too little is left for a third: the one that was used longest ago leaves, and comes back when it is needed.
    let third = Some(Arc::new(LoraAdapter::clone(second.as_ref().unwrap())));
    let left = bytes / 2;
    let ballast = cuda.allocate::<u32>((with_both - left) / 4).unwrap();
    let full = free_after(&mut serving, &cuda, &third);
    assert!(full.abs_diff(left) < 16, "{full} {left}");
    assert_eq!(free_after(&mut serving, &cuda, first), full);
    assert_eq!(free_after(&mut serving, &cuda, second), full);
    drop(ballast);

    // What is dropped on the host leaves the device with the next step.
    (*first, *second) = (None, None);
    drop(third);
    let free = free_after(&mut serving, &cuda, &None);
    assert!(
        free.abs_diff(with_first + bytes) < 16,
        "{free} {with_first} {bytes}"
    );
}

#[test]
fn an_adapter_for_which_there_is_no_memory_costs_its_step_alone() {
    let base = tiny_base(true);
    let adapter = adapters(&base).remove(0);
    let cuda = open_alone("no-memory");
    let mut serving = on_device(&base, &cuda, SIZES);
    free_after(&mut serving, &cuda, &None);
    let ballast = cuda
        .allocate::<u32>(cuda.free_bytes().unwrap() / 4)
        .unwrap();
    let mut cache = KvCache::in_pool(serving.pool());
    let mut rows = [Row {
        tokens: &[1, 2],
        cache: &mut cache,
        adapter: adapter.clone(),
        wanted: LogitsWanted::Last,
    }];
    let error = serving.forward(&mut rows).unwrap_err();
    assert!(
        matches!(error, ModelError::Device(DeviceError::OutOfMemory { .. })),
        "{error}"
    );
    assert_eq!(cache.len(), 0);
    free_after(&mut serving, &cuda, &None);
    drop(ballast);
    free_after(&mut serving, &cuda, &adapter);
}

#[test]
fn blocks_that_are_used_up_are_an_error_and_come_back() {
    let base = tiny_base(true);
    let sizes = ServingSizes { blocks: 3, ..SIZES };
    let mut serving = on_device(&base, &open(Order::Forward), sizes);
    let pool = serving.pool().clone();
    let tokens = prompt(0, 33);
    for _ in 0..2 {
        let mut caches = [KvCache::in_pool(&pool), KvCache::in_pool(&pool)];
        let [first, second] = &mut caches;
        let alone = logits_of(&mut serving, &mut [row(&tokens[..20], first)]);
        let error = serving
            .forward(&mut [row(&tokens[20..22], first), row(&tokens, second)])
            .unwrap_err();
        assert!(
            matches!(error, ModelError::CacheFull { blocks: 3 }),
            "{error}"
        );
        assert_eq!((first.len(), second.len()), (20, 0));
        // A fork would have to copy a block.
        drop(caches);
        let mut cache = KvCache::in_pool(&pool);
        let again = logits_of(&mut serving, &mut [row(&tokens[..20], &mut cache)]);
        assert_eq!(again, alone);
        logits_of(&mut serving, &mut [row(&tokens[20..], &mut cache)]);
        let mut fork = cache.clone();
        let error = serving.forward(&mut [row(&[1], &mut fork)]).unwrap_err();
        assert!(matches!(error, ModelError::CacheFull { .. }), "{error}");
        assert_eq!(
            cache.bytes(),
            3 * 16 * KvCache::bytes_per_token(base.config())
        );
    }
    assert_eq!(pool.live_blocks(), 0);
}

#[test]
fn a_cache_that_does_not_fit_is_refused_with_the_number_that_does() {
    let base = tiny_base(true);
    let cuda = open_alone("large-cache");
    let placement = Placement::on_cuda(&base, &cuda).unwrap();
    let serving = |blocks| {
        let sizes = ServingSizes { blocks, ..SIZES };
        Serving::new(base.clone(), &placement, &sizes)
    };
    let Err(ModelError::CacheTooLarge { blocks, fitting }) = serving(1 << 24) else {
        panic!("a cache of many gigabytes fits")
    };
    assert_eq!(blocks, 1 << 24);
    assert!(matches!(
        serving(fitting + 1),
        Err(ModelError::CacheTooLarge { .. })
    ));
    let mut serving = serving(fitting).unwrap();
    free_after(&mut serving, &cuda, &adapters(&base)[0]);
}

#[test]
fn what_a_device_does_not_serve_is_refused() {
    let base = tiny_base(true);
    let cuda = open(Order::Forward);
    let mut device = on_device(&base, &cuda, SIZES);
    let mut processor = Serving::on_processor(base.clone());
    let mut of_processor = KvCache::in_pool(processor.pool());
    let mut of_device = KvCache::in_pool(device.pool());
    let mut of_other = KvCache::in_pool(on_device(&base, &cuda, SIZES).pool());
    for error in [
        device.forward(&mut [row(&[1], &mut of_processor)]),
        device.forward(&mut [row(&[1], &mut of_other)]),
        processor.forward(&mut [row(&[1], &mut of_device)]),
    ] {
        let error = error.unwrap_err();
        assert!(matches!(error, ModelError::CacheMismatch), "{error}");
    }
    let mut config = tiny_config(true);
    config.head_size = 260;
    let base = BaseModel::init_random(config, 1).unwrap();
    let placement = Placement::on_cuda(&base, &cuda).unwrap();
    let error = Serving::new(base, &placement, &SIZES).unwrap_err();
    assert!(error.to_string().contains("260"), "{error}");
}
