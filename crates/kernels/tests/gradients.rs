//! Every backward pass against central finite differences of its forward pass.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use zerog_kernels::attention::{self, Heads};
use zerog_kernels::cross_entropy::{self, Gradients, NO_LABEL, Scratch};
use zerog_kernels::matmul::{self, Precision, Shape, Weight, Write};
use zerog_kernels::noise::NoiseKey;
use zerog_kernels::rope::RopeTable;
use zerog_kernels::{activation, norm};

fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let key = NoiseKey::new(seed);
    (0..count as u64).map(|index| key.normal(index)).collect()
}

/// Compares `gradient` with differences of `loss` along every element of `input`.
fn check(name: &str, input: &[f32], gradient: &[f32], loss: impl Fn(&[f32]) -> f64) {
    const STEP: f32 = 4e-3;
    let size = (gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>()
        / gradient.len() as f64)
        .sqrt();
    for index in 0..input.len() {
        let mut moved = input.to_vec();
        moved[index] = input[index] + STEP;
        let above = loss(&moved);
        moved[index] = input[index] - STEP;
        let below = loss(&moved);
        let difference = (above - below) / (2.0 * f64::from(STEP));
        let error = (difference - f64::from(gradient[index])).abs();
        assert!(
            error < 4e-3 * (size + difference.abs()) + 1e-4,
            "{name}[{index}]: {difference} {}",
            gradient[index]
        );
    }
}

/// A scalar that depends on every output with its own weight.
fn weighted(output: &[f32], weights: &[f32]) -> f64 {
    output
        .iter()
        .zip(weights)
        .map(|(a, b)| f64::from(*a) * f64::from(*b))
        .sum()
}

#[test]
fn rms_norm() {
    let (x, w, weights) = (numbers(3 * 20, 1), numbers(20, 2), numbers(60, 3));
    let run = |x: &[f32], w: &[f32]| {
        let mut y = vec![0.0; 60];
        norm::rms_norm(x, w, 1e-6, &mut y);
        weighted(&y, &weights)
    };
    let (mut dx, mut dw) = (vec![0.0; 60], vec![0.0; 20]);
    norm::rms_norm_backward(&x, &w, 1e-6, &weights, &mut dx, Some(&mut dw));
    check("x", &x, &dx, |x| run(x, &w));
    check("weight", &w, &dw, |w| run(&x, w));
    let mut in_place = x.clone();
    norm::rms_norm_in_place(&mut in_place, &w, 1e-6);
    assert!((weighted(&in_place, &weights) - run(&x, &w)).abs() < 1e-4);
}

#[test]
fn silu_gate() {
    let (gate, up, weights) = (numbers(50, 1), numbers(50, 2), numbers(50, 3));
    let run = |gate: &[f32], up: &[f32]| {
        let mut hidden = vec![0.0; 50];
        activation::silu_gate(gate, up, &mut hidden);
        weighted(&hidden, &weights)
    };
    let (mut dup, mut dgate) = (weights.clone(), vec![0.0; 50]);
    activation::silu_gate_backward(&gate, &up, &mut dup, &mut dgate);
    check("gate", &gate, &dgate, |gate| run(gate, &up));
    check("up", &up, &dup, |up| run(&gate, up));
}

#[test]
fn gelu() {
    let (input, weights) = (numbers(60, 1), numbers(60, 2));
    let run = |input: &[f32]| {
        let mut output = vec![0.0; 60];
        activation::gelu(input, &mut output);
        weighted(&output, &weights)
    };
    let mut gradient = weights.clone();
    activation::gelu_backward(&input, &mut gradient);
    check("input", &input, &gradient, run);
    // Values of `torch.nn.functional.gelu`.
    let known = [
        (-3.0_f32, -0.004_049_7_f32),
        (-1.0, -0.158_655_25),
        (0.0, 0.0),
        (0.5, 0.345_731_2),
        (2.0, 1.954_499_7),
        (8.0, 8.0),
    ];
    for (input, expected) in known {
        let mut output = [0.0];
        activation::gelu(&[input], &mut output);
        assert!((output[0] - expected).abs() < 1e-6, "{input}: {output:?}");
    }
}

#[test]
fn layer_norm() {
    let (x, w, b) = (numbers(3 * 20, 1), numbers(20, 2), numbers(20, 3));
    let weights = numbers(60, 4);
    let run = |x: &[f32]| {
        let mut y = vec![0.0; 60];
        norm::layer_norm(x, &w, &b, 1e-6, &mut y);
        weighted(&y, &weights)
    };
    let mut dx = vec![7.0; 60];
    norm::layer_norm_backward(&x, &w, 1e-6, &weights, &mut dx);
    check("x", &x, &dx, run);
    let mut y = vec![0.0; 60];
    norm::layer_norm(&x, &[1.0; 20], &[0.0; 20], 0.0, &mut y);
    for row in y.chunks_exact(20) {
        let mean = row.iter().sum::<f32>() / 20.0;
        let variance = row.iter().map(|value| (value - mean).powi(2)).sum::<f32>() / 20.0;
        assert!(mean.abs() < 1e-6 && (variance - 1.0).abs() < 1e-4);
    }
}

#[test]
fn rope() {
    let table = RopeTable::new(6, 100.0, 16);
    let positions = [0, 3, 11];
    let (x, weights) = (numbers(3 * 12, 1), numbers(36, 2));
    let mut dx = weights.clone();
    table.rotate_back(&mut dx, &positions);
    check("x", &x, &dx, |x| {
        let mut y = x.to_vec();
        table.rotate(&mut y, &positions);
        weighted(&y, &weights)
    });
}

#[test]
fn matrix_products() {
    let shape = Shape {
        rows: 5,
        outputs: 7,
        inputs: 6,
    };
    let (x, w, weights) = (numbers(30, 1), numbers(42, 2), numbers(35, 3));
    let run = |x: &[f32], w: &[f32]| {
        let mut y = vec![0.0; 35];
        matmul::forward(
            shape,
            x,
            Weight::F32(w),
            &mut y,
            Write::Replace,
            1.0,
            Precision::F32,
        );
        weighted(&y, &weights)
    };
    let (mut dx, mut dw) = (vec![0.0; 30], vec![0.0; 42]);
    matmul::input_gradient(
        shape,
        &weights,
        Weight::F32(&w),
        &mut dx,
        Write::Replace,
        Precision::F32,
    );
    matmul::weight_gradient(shape, &weights, &x, &mut dw, Write::Replace, 1.0);
    check("x", &x, &dx, |x| run(x, &w));
    check("weight", &w, &dw, |w| run(&x, w));
}

#[test]
fn packed_attention() {
    let heads = Heads {
        queries: 4,
        groups: 2,
        size: 6,
    };
    let segments = [3, 1, 5];
    let (q, k, v) = (numbers(9 * 24, 1), numbers(9 * 12, 2), numbers(9 * 12, 3));
    let weights = numbers(9 * 24, 4);
    let run = |q: &[f32], k: &[f32], v: &[f32]| {
        let (mut output, mut log_sums) = (vec![0.0; 9 * 24], vec![0.0; 4 * 9]);
        attention::forward(heads, &segments, q, k, v, &mut output, &mut log_sums);
        (weighted(&output, &weights), output, log_sums)
    };
    let (_, output, log_sums) = run(&q, &k, &v);
    let (mut dq, mut dk, mut dv) = (vec![0.0; 9 * 24], vec![0.0; 9 * 12], vec![0.0; 9 * 12]);
    let saved = attention::Forward {
        q: &q,
        k: &k,
        v: &v,
        output: &output,
        log_sums: &log_sums,
    };
    attention::backward(heads, &segments, saved, &weights, &mut dq, &mut dk, &mut dv);
    check("q", &q, &dq, |q| run(q, &k, &v).0);
    check("k", &k, &dk, |k| run(&q, k, &v).0);
    check("v", &v, &dv, |v| run(&q, &k, v).0);
}

#[test]
fn packed_attention_in_both_directions() {
    let heads = Heads {
        queries: 2,
        groups: 2,
        size: 6,
    };
    let segments = [3, 1, 5];
    let (q, k, v) = (numbers(9 * 12, 1), numbers(9 * 12, 2), numbers(9 * 12, 3));
    let weights = numbers(9 * 12, 4);
    let run = |q: &[f32], k: &[f32], v: &[f32]| {
        let (mut output, mut log_sums) = (vec![0.0; 9 * 12], vec![0.0; 2 * 9]);
        attention::forward_whole(heads, &segments, q, k, v, &mut output, &mut log_sums);
        (weighted(&output, &weights), output, log_sums)
    };
    let (_, output, log_sums) = run(&q, &k, &v);
    let (mut dq, mut dk, mut dv) = (vec![0.0; 9 * 12], vec![0.0; 9 * 12], vec![0.0; 9 * 12]);
    let saved = attention::Forward {
        q: &q,
        k: &k,
        v: &v,
        output: &output,
        log_sums: &log_sums,
    };
    attention::backward_whole(heads, &segments, saved, &weights, &mut dq, &mut dk, &mut dv);
    check("q", &q, &dq, |q| run(q, &k, &v).0);
    check("k", &k, &dk, |k| run(&q, k, &v).0);
    check("v", &v, &dv, |v| run(&q, &k, v).0);
    // The first token depends on the last of its segment and on nothing of another one.
    let moved = |token: usize| {
        let mut moved = v.clone();
        moved[token * 12] += 1.0;
        run(&q, &k, &moved).1[0]
    };
    assert!(moved(2) != output[0] && moved(3) == output[0]);
}

#[test]
fn long_segments_cross_blocks() {
    // More than two query blocks: directional differences instead of one per element.
    let heads = Heads {
        queries: 2,
        groups: 1,
        size: 8,
    };
    let segments = [150, 70];
    let tokens = 220;
    let (q, k, v) = (
        numbers(tokens * 16, 1),
        numbers(tokens * 8, 2),
        numbers(tokens * 8, 3),
    );
    let weights = numbers(tokens * 16, 4);
    let run = |q: &[f32], k: &[f32], v: &[f32]| {
        let (mut output, mut log_sums) = (vec![0.0; tokens * 16], vec![0.0; 2 * tokens]);
        attention::forward(heads, &segments, q, k, v, &mut output, &mut log_sums);
        (weighted(&output, &weights), output, log_sums)
    };
    let (_, output, log_sums) = run(&q, &k, &v);
    let (mut dq, mut dk, mut dv) = (
        vec![0.0; tokens * 16],
        vec![0.0; tokens * 8],
        vec![0.0; tokens * 8],
    );
    let saved = attention::Forward {
        q: &q,
        k: &k,
        v: &v,
        output: &output,
        log_sums: &log_sums,
    };
    attention::backward(heads, &segments, saved, &weights, &mut dq, &mut dk, &mut dv);
    let moved = |x: &[f32], direction: &[f32], step: f32| -> Vec<f32> {
        x.iter().zip(direction).map(|(x, d)| x + step * d).collect()
    };
    let step = 1e-3_f32;
    for (seed, gradient) in [(7, &dq), (8, &dk), (9, &dv)] {
        let direction = numbers(gradient.len(), seed);
        let loss = |step: f32| match seed {
            7 => run(&moved(&q, &direction, step), &k, &v).0,
            8 => run(&q, &moved(&k, &direction, step), &v).0,
            _ => run(&q, &k, &moved(&v, &direction, step)).0,
        };
        let difference = (loss(step) - loss(-step)) / (2.0 * f64::from(step));
        let expected = weighted(gradient, &direction);
        assert!(
            (difference - expected).abs() < 0.01 * expected.abs() + 0.05,
            "{seed}: {difference} {expected}"
        );
    }
}

#[test]
fn fused_head_and_cross_entropy() {
    let (width, vocabulary) = (6, 11);
    let targets = [3, NO_LABEL, 10, 0];
    let (x, head) = (numbers(4 * width, 1), numbers(vocabulary * width, 2));
    let run = |x: &[f32], head: &[f32]| {
        cross_entropy::head_loss(
            x,
            Weight::F32(head),
            targets[..].into(),
            None,
            Precision::F32,
            &mut Scratch::default(),
        )
        .loss_sum
    };
    let (mut dx, mut dhead) = (vec![1.0; 4 * width], vec![0.0; vocabulary * width]);
    let gradients = Gradients {
        hidden: &mut dx,
        head: Some(&mut dhead),
    };
    let loss = cross_entropy::head_loss(
        &x,
        Weight::F32(&head),
        targets[..].into(),
        Some(gradients),
        Precision::F32,
        &mut Scratch::default(),
    );
    assert_eq!(loss.supervised_tokens, 3);
    let mut plain = 0.0;
    for (token, target) in targets
        .iter()
        .enumerate()
        .filter(|(_, target)| **target >= 0)
    {
        let logit = |v: usize| {
            weighted(
                &x[token * width..(token + 1) * width],
                &head[v * width..(v + 1) * width],
            )
        };
        let sum: f64 = (0..vocabulary).map(|v| logit(v).exp()).sum();
        plain += sum.ln() - logit(*target as usize);
    }
    assert!((loss.loss_sum - plain).abs() < 1e-4);
    assert!(dx[width..2 * width].iter().all(|value| *value == 0.0));
    check("hidden", &x, &dx, |x| run(x, &head));
    check("head", &head, &dhead, |head| run(&x, head));
}

#[test]
fn tokens_can_count_differently_in_the_gradient() {
    let (width, vocabulary) = (6, 11);
    let targets = [3, NO_LABEL, 10, 0];
    let weights = [0.5_f32, 9.0, -2.0, 1.5];
    let (x, head) = (numbers(4 * width, 1), numbers(vocabulary * width, 2));
    let run = |x: &[f32]| {
        let mut scratch = Scratch::default();
        let labels = targets[..].into();
        let head = Weight::F32(&head);
        cross_entropy::head_loss(x, head, labels, None, Precision::F32, &mut scratch);
        let losses = scratch.token_losses();
        assert_eq!((losses.len(), losses[1]), (4, 0.0));
        losses
            .iter()
            .zip(&weights)
            .map(|(loss, weight)| loss * f64::from(*weight))
            .sum()
    };
    let mut dx = vec![1.0; 4 * width];
    let gradients = Gradients {
        hidden: &mut dx,
        head: None,
    };
    let labels = cross_entropy::Labels {
        targets: &targets,
        weights: Some(&weights),
    };
    cross_entropy::head_loss(
        &x,
        Weight::F32(&head),
        labels,
        Some(gradients),
        Precision::F32,
        &mut Scratch::default(),
    );
    check("hidden", &x, &dx, run);
}

#[test]
fn bf16_weights_give_the_same_as_their_widened_values() {
    let shape = Shape {
        rows: 33,
        outputs: 70,
        inputs: 50,
    };
    let (x, g) = (numbers(33 * 50, 1), numbers(33 * 70, 2));
    let weight: Vec<half::bf16> = numbers(70 * 50, 3)
        .into_iter()
        .map(half::bf16::from_f32)
        .collect();
    let widened: Vec<f32> = weight.iter().map(|w| w.to_f32()).collect();
    let product = |weight| {
        let (mut y, mut dx) = (vec![1.0; 33 * 70], vec![1.0; 33 * 50]);
        matmul::forward(shape, &x, weight, &mut y, Write::Add, 0.5, Precision::F32);
        matmul::input_gradient(shape, &g, weight, &mut dx, Write::Add, Precision::F32);
        (y, dx)
    };
    assert_eq!(
        product(Weight::Bf16(&weight)),
        product(Weight::F32(&widened))
    );
    let (mut plain, mut fast) = (vec![0.0; 33 * 70], vec![0.0; 33 * 70]);
    matmul::forward_plain(shape, &x, Weight::Bf16(&weight), &mut plain, Write::Replace);
    matmul::forward(
        shape,
        &x,
        Weight::Bf16(&weight),
        &mut fast,
        Write::Replace,
        1.0,
        Precision::F32,
    );
    for (a, b) in plain.iter().zip(&fast) {
        assert!((a - b).abs() < 1e-4);
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let shape = Shape {
        rows: 200,
        outputs: 300,
        inputs: 190,
    };
    let (x, w, g) = (
        numbers(200 * 190, 1),
        numbers(300 * 190, 2),
        numbers(200 * 300, 3),
    );
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| {
            let (mut y, mut dx, mut dw) = (
                vec![0.0; 200 * 300],
                vec![0.0; 200 * 190],
                vec![0.0; 300 * 190],
            );
            matmul::forward(
                shape,
                &x,
                Weight::F32(&w),
                &mut y,
                Write::Replace,
                1.0,
                Precision::F32,
            );
            matmul::input_gradient(
                shape,
                &g,
                Weight::F32(&w),
                &mut dx,
                Write::Replace,
                Precision::F32,
            );
            matmul::weight_gradient(shape, &g, &x, &mut dw, Write::Replace, 1.0);
            let mut sums = vec![0.0; 300];
            zerog_kernels::reduce::add_column_sums(&g, &mut sums);
            (y, dx, dw, sums)
        })
    };
    let one = run(1);
    assert_eq!(one, run(2));
    assert_eq!(one, run(5));
}
