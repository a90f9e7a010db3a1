//! The operations of serving: blocks of keys and values, attention over them, deltas of many adapters.

use crate::{assert_close, in_both_orders, numbers};
use half::bf16;
use zerog_kernels::attention::{self, Heads};
use zerog_kernels::cached_attention::BLOCK_TOKENS;
use zerog_kernels::cuda::{
    Buffer, CacheBlocks, Cuda, Delta, DeltaRoom, Deltas, PagedRow, PagedRows, Part, Table,
};

const LAYERS: usize = 3;

/// Sequences of tokens before the step and new ones.
const SEQUENCES: [(usize, usize); 4] = [(0, 37), (0, 1), (47, 3), (15, 18)];

/// Keys, values and queries of whole sequences `(T, width)`, and what attention makes of them.
struct Sequence {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    expected: Vec<f32>,
}

fn sequence(heads: Heads, length: usize, seed: u64) -> Sequence {
    let (query_width, key_width) = (heads.queries * heads.size, heads.groups * heads.size);
    let q = numbers(seed, length * query_width);
    let k = numbers(seed + 1, length * key_width);
    let v = numbers(seed + 2, length * key_width);
    let mut expected = vec![0.0; q.len()];
    let mut log_sums = vec![0.0; length * heads.queries];
    attention::forward(heads, &[length], &q, &k, &v, &mut expected, &mut log_sums);
    Sequence { q, k, v, expected }
}

/// Stores the tokens `spans` of the sequences in `layer` and returns the outputs of their queries.
fn step(
    cuda: &Cuda,
    cache: &mut CacheBlocks,
    (layer, heads): (usize, Heads),
    sequences: &[Sequence],
    blocks: &[Vec<u32>],
    spans: &[(usize, usize)],
) -> Vec<Vec<f32>> {
    let of_spans = |values: &dyn Fn(&Sequence) -> &Vec<f32>, width: usize| -> Buffer<f32> {
        let parts = sequences
            .iter()
            .zip(spans)
            .map(|(sequence, span)| &values(sequence)[span.0 * width..(span.0 + span.1) * width]);
        cuda.upload(&parts.collect::<Vec<_>>().concat()).unwrap()
    };
    let (query_width, key_width) = (heads.queries * heads.size, heads.groups * heads.size);
    let rows: Vec<PagedRow<'_>> = spans
        .iter()
        .zip(blocks)
        .map(|(&(before, tokens), blocks)| PagedRow {
            tokens,
            before,
            blocks,
        })
        .collect();
    let mut described = PagedRows::new(cuda).unwrap();
    described.describe(cache, &rows).unwrap();
    let k = of_spans(&|sequence| &sequence.k, key_width);
    let v = of_spans(&|sequence| &sequence.v, key_width);
    let q = of_spans(&|sequence| &sequence.q, query_width);
    cache.store(layer, &described, &k, &v).unwrap();
    let mut output = cuda.allocate(q.len()).unwrap();
    cache.attend(layer, &described, &q, &mut output).unwrap();
    let mut rest = output.to_vec().unwrap();
    spans
        .iter()
        .map(|(_, tokens)| {
            let behind = rest.split_off(tokens * query_width);
            std::mem::replace(&mut rest, behind)
        })
        .collect()
}

#[test]
fn attention_over_blocks_is_the_attention_of_training() {
    in_both_orders(|cuda| {
        for (queries, groups, size) in [
            (7, 1, 64),
            (6, 2, 10),
            (4, 4, 8),
            (3, 1, 126),
            (2, 1, 250),
            (40, 1, 2),
        ] {
            let heads = Heads {
                queries,
                groups,
                size,
            };
            let width = queries * size;
            let sequences: Vec<Sequence> = SEQUENCES
                .iter()
                .zip(0_u64..)
                .map(|((before, new), index)| sequence(heads, before + new, 10 * index))
                .collect();
            // Blocks of a sequence lie apart and in no order.
            let blocks: Vec<Vec<u32>> = SEQUENCES
                .iter()
                .zip(0_u32..)
                .map(|(_, index)| (0..4).map(|block| (5 - block) * 4 - 1 - index).collect())
                .collect();
            let mut cache = CacheBlocks::new(cuda, heads, LAYERS, 20).unwrap();
            let mut run = |layer, spans: &[(usize, usize)]| {
                let place = (layer, heads);
                step(cuda, &mut cache, place, &sequences, &blocks, spans)
            };
            let before = SEQUENCES.map(|(before, _)| (0, before.max(1)));
            run(1, &before);
            let together = run(1, &SEQUENCES);
            for ((span, sequence), output) in SEQUENCES.iter().zip(&sequences).zip(&together) {
                let expected = &sequence.expected[span.0 * width..];
                assert_close(&format!("{heads:?} {span:?}"), output, expected, 1e-5);
            }
            // Token by token, and in another layer: the same bits.
            let longest = SEQUENCES.map(|(before, new)| before + new);
            let mut alone = vec![Vec::new(); SEQUENCES.len()];
            for token in 0..longest.into_iter().max().unwrap() {
                // Sequences that have ended compute their last token again.
                let spans = longest.map(|length| (token.min(length - 1), 1));
                for (index, output) in run(2, &spans).into_iter().enumerate() {
                    if token < longest[index] {
                        alone[index].extend(output);
                    }
                }
            }
            for ((span, alone), together) in SEQUENCES.iter().zip(&alone).zip(&together) {
                assert_eq!(alone[span.0 * width..], *together, "{heads:?} {span:?}");
            }
        }
    });
}

#[test]
fn a_copied_block_holds_all_layers() {
    in_both_orders(|cuda| {
        let heads = Heads {
            queries: 2,
            groups: 1,
            size: 6,
        };
        let mut cache = CacheBlocks::new(cuda, heads, LAYERS, 3).unwrap();
        let sequences = [sequence(heads, 9, 1)];
        for layer in 0..LAYERS {
            let blocks = [vec![2]];
            step(
                cuda,
                &mut cache,
                (layer, heads),
                &sequences,
                &blocks,
                &[(0, 8)],
            );
        }
        cache.copy_block(2, 0).unwrap();
        for layer in 0..LAYERS {
            let blocks = [vec![0]];
            let place = (layer, heads);
            let output = step(cuda, &mut cache, place, &sequences, &blocks, &[(8, 1)]);
            assert_close("copied", &output[0], &sequences[0].expected[8 * 12..], 1e-5);
        }
    });
}

/// The matrices of an adapter as numbers.
struct Matrices {
    rank: usize,
    a: Vec<f32>,
    b: Vec<f32>,
    factors: Option<Vec<f32>>,
    scale: f32,
}

/// What an adapter makes of one row of outputs.
fn adapted(matrices: &Matrices, x: &[f32], y: &[f32], bias: &[f32]) -> Vec<f32> {
    let (inputs, outputs) = (x.len(), y.len());
    let low: Vec<f32> = matrices
        .a
        .chunks_exact(inputs)
        .map(|a| a.iter().zip(x).map(|(a, x)| a * x).sum::<f32>() * matrices.scale)
        .collect();
    (0..outputs)
        .map(|output| {
            let delta: f32 = (0..matrices.rank)
                .map(|index| low[index] * matrices.b[index * outputs + output])
                .sum();
            let sum = y[output] + delta;
            match &matrices.factors {
                Some(factors) => (sum - bias[output]) * factors[output] + bias[output],
                None => sum,
            }
        })
        .collect()
}

#[test]
fn each_token_gets_the_delta_of_its_adapter() {
    const TOKENS: usize = 31;
    in_both_orders(|cuda| {
        for (inputs, outputs) in [(5, 3), (70, 300), (513, 33)] {
            let matrices: Vec<Matrices> = [(1, false), (9, true), (4, false)]
                .into_iter()
                .zip(0_u64..)
                .map(|((rank, has_factors), index)| Matrices {
                    rank,
                    a: numbers(10 * index, rank * inputs),
                    b: numbers(10 * index + 1, rank * outputs),
                    factors: has_factors.then(|| numbers(10 * index + 2, outputs)),
                    scale: 0.5 + index as f32,
                })
                .collect();
            // The second adapter's numbers are bf16.
            let narrow = |values: &[f32]| values.iter().map(|v| bf16::from_f32(*v)).collect();
            let (narrow_a, narrow_b): (Vec<bf16>, Vec<bf16>) =
                (narrow(&matrices[1].a), narrow(&matrices[1].b));
            let rounded = Matrices {
                a: narrow_a.iter().map(|value| value.to_f32()).collect(),
                b: narrow_b.iter().map(|value| value.to_f32()).collect(),
                factors: matrices[1].factors.clone(),
                ..matrices[1]
            };
            let (narrow_a, narrow_b) = (
                cuda.upload(&narrow_a).unwrap(),
                cuda.upload(&narrow_b).unwrap(),
            );
            let factors = cuda.upload(rounded.factors.as_ref().unwrap()).unwrap();
            let wide: Vec<[Buffer<f32>; 2]> = matrices
                .iter()
                .map(|one| [&one.a, &one.b].map(|values| cuda.upload(values).unwrap()))
                .collect();
            let delta = |index: usize| Delta {
                a: match index {
                    1 => Table::Bf16(Part::from(&narrow_a)),
                    _ => Table::F32(Part::from(&wide[index][0])),
                },
                b: match index {
                    1 => Table::Bf16(Part::from(&narrow_b)),
                    _ => Table::F32(Part::from(&wide[index][1])),
                },
                factors: (index == 1).then(|| Part::from(&factors)),
                rank: matrices[index].rank,
                scale: matrices[index].scale,
            };
            // The first linear layer has no delta, the second lacks that of the third adapter.
            let layers = [
                vec![None, None, None],
                vec![Some(delta(0)), Some(delta(1)), None],
                vec![Some(delta(0)), Some(delta(1)), Some(delta(2))],
            ];
            let users = [0..1, 3..22, 22..30];
            let (x, y) = (numbers(7, TOKENS * inputs), numbers(8, TOKENS * outputs));
            let bias = numbers(9, outputs);
            let (device_x, device_bias) = (cuda.upload(&x).unwrap(), cuda.upload(&bias).unwrap());
            let mut room = DeltaRoom::new(cuda).unwrap();
            let mut deltas = Deltas::new(cuda, &mut room, &layers, &users, TOKENS).unwrap();
            for (place, layer) in layers.iter().enumerate() {
                for has_bias in [true, false] {
                    let mut device_y = cuda.upload(&y).unwrap();
                    let device_bias = has_bias.then(|| Part::from(&device_bias));
                    deltas
                        .adapt(place, &device_x, device_bias, &mut device_y)
                        .unwrap();
                    let zero = vec![0.0; outputs];
                    let bias = if has_bias { &bias } else { &zero };
                    let mut expected = y.clone();
                    for (token, y) in expected.chunks_exact_mut(outputs).enumerate() {
                        let user = users.iter().position(|users| users.contains(&token));
                        let Some(user) = user.filter(|user| layer[*user].is_some()) else {
                            continue;
                        };
                        let own = if user == 1 { &rounded } else { &matrices[user] };
                        let x = &x[token * inputs..(token + 1) * inputs];
                        let new = adapted(own, x, y, bias);
                        y.copy_from_slice(&new);
                    }
                    let what = format!("{inputs} {outputs}, layer {place}, bias {has_bias}");
                    let actual = device_y.to_vec().unwrap();
                    assert_close(&what, &actual, &expected, 1e-5);
                    // Tokens without an adapter are left alone.
                    assert_eq!(actual[outputs..3 * outputs], y[outputs..3 * outputs]);
                    assert_eq!(place == 0, actual == y);
                }
            }
        }
    });
}

#[test]
fn sums_are_added() {
    in_both_orders(|cuda| {
        let (mut values, others) = (numbers(1, 1001), numbers(2, 1001));
        let mut sum = cuda.upload(&values).unwrap();
        cuda.add(&mut sum, &cuda.upload(&others).unwrap()).unwrap();
        zerog_kernels::reduce::add_assign(&mut values, &others);
        assert_eq!(sum.to_vec().unwrap(), values);
    });
}

#[test]
#[should_panic(expected = "cache.blocks")]
fn a_block_that_is_not_there_is_a_bug_of_the_caller() {
    let cuda = crate::open(crate::emulator::Order::Forward);
    let heads = Heads {
        queries: 1,
        groups: 1,
        size: 2,
    };
    let cache = CacheBlocks::new(&cuda, heads, 1, 4).unwrap();
    let row = PagedRow {
        tokens: 1,
        before: BLOCK_TOKENS,
        blocks: &[0, 4],
    };
    let mut rows = PagedRows::new(&cuda).unwrap();
    let _ = rows.describe(&cache, &[row]);
}
