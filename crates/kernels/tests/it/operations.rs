//! Every kernel against the processor's function of the same name, on odd shapes.

use crate::emulator::Order;
use crate::{assert_close, in_both_orders, numbers, open};
use half::bf16;
use zerog_kernels::attention::{self, Heads};
use zerog_kernels::cross_entropy::{self, Gradients, Labels, NO_LABEL};
use zerog_kernels::cuda::{Attended, Cuda, Part, PartMut, Table, Tiles};
use zerog_kernels::matmul::{Precision, Weight};
use zerog_kernels::noise::{self, NoiseKey};
use zerog_kernels::rope::RopeTable;
use zerog_kernels::{activation, norm, reduce};

#[test]
fn embeddings_are_widened_and_get_the_processors_noise() {
    in_both_orders(|cuda| {
        const WIDTH: usize = 37;
        let table: Vec<bf16> = numbers(1, 9 * WIDTH)
            .into_iter()
            .map(bf16::from_f32)
            .collect();
        let wide: Vec<f32> = table.iter().map(|value| value.to_f32()).collect();
        let tokens = [3_u32, 8, 0, 3];
        let magnitudes = [0.0, 0.5, 0.5, 2.0];
        let key = NoiseKey::new(4).child(2);
        let mut expected = vec![0.0; tokens.len() * WIDTH];
        for (row, (token, magnitude)) in tokens.iter().zip(magnitudes).enumerate() {
            let target = &mut expected[row * WIDTH..(row + 1) * WIDTH];
            Weight::Bf16(&table).copy_row(*token as usize, WIDTH, target);
            noise::add_uniform(target, magnitude, key, (row * WIDTH) as u64);
        }
        let (narrow, wide) = (cuda.upload(&table).unwrap(), cuda.upload(&wide).unwrap());
        let (tokens, magnitudes) = (
            cuda.upload(&tokens).unwrap(),
            cuda.upload(&magnitudes).unwrap(),
        );
        for table in [
            Table::Bf16(Part::from(&narrow)),
            Table::F32(Part::from(&wide)),
        ] {
            let mut x = cuda.allocate(expected.len()).unwrap();
            cuda.embed(table, &tokens, &magnitudes, key, &mut x)
                .unwrap();
            assert_eq!(x.to_vec().unwrap(), expected);
        }
    });
}

#[test]
fn rows_of_tables_are_added() {
    in_both_orders(|cuda| {
        const WIDTH: usize = 37;
        let table: Vec<bf16> = numbers(1, 9 * WIDTH)
            .into_iter()
            .map(bf16::from_f32)
            .collect();
        let wide: Vec<f32> = table.iter().map(|value| value.to_f32()).collect();
        let rows = [0_u32, 8, 3, 0];
        let x = numbers(2, rows.len() * WIDTH);
        let mut expected = x.clone();
        for (row, target) in rows.iter().zip(expected.chunks_exact_mut(WIDTH)) {
            reduce::add_assign(target, &wide[*row as usize * WIDTH..][..WIDTH]);
        }
        let (narrow, wide) = (cuda.upload(&table).unwrap(), cuda.upload(&wide).unwrap());
        let rows = cuda.upload(&rows).unwrap();
        for table in [
            Table::Bf16(Part::from(&narrow)),
            Table::F32(Part::from(&wide)),
        ] {
            let mut sum = cuda.upload(&x).unwrap();
            cuda.add_table_rows(table, &rows, &mut sum).unwrap();
            assert_eq!(sum.to_vec().unwrap(), expected);
        }
    });
}

#[test]
fn norms_by_mean_and_variance_forward_and_backward() {
    in_both_orders(|cuda| {
        for (rows, width) in [(1, 1), (5, 6), (3, 700), (33, 64)] {
            // Far from zero, so that a variance without the mean would show.
            let mut x = numbers(1, rows * width);
            x.iter_mut().for_each(|value| *value += 3.0);
            let (weight, bias) = (numbers(2, width), numbers(3, width));
            let dy = numbers(4, rows * width);
            let [device_x, device_weight, device_bias, device_dy] =
                [&x, &weight, &bias, &dy].map(|values| cuda.upload(values).unwrap());
            let mut y = vec![0.0; x.len()];
            norm::layer_norm(&x, &weight, &bias, 1e-12, &mut y);
            let mut device_y = cuda.allocate(x.len()).unwrap();
            cuda.layer_norm(
                &device_x,
                &device_weight,
                &device_bias,
                1e-12,
                &mut device_y,
            )
            .unwrap();
            let what = format!("{rows} rows of {width}");
            assert_close(&what, &device_y.to_vec().unwrap(), &y, 1e-5);

            let mut dx = vec![0.0; x.len()];
            norm::layer_norm_backward(&x, &weight, 1e-12, &dy, &mut dx);
            let mut device_dx = cuda.allocate(x.len()).unwrap();
            cuda.layer_norm_backward(&device_x, &device_weight, 1e-12, &device_dy, &mut device_dx)
                .unwrap();
            assert_close(&what, &device_dx.to_vec().unwrap(), &dx, 1e-5);
        }
    });
}

#[test]
fn activations_without_a_gate() {
    in_both_orders(|cuda| {
        const COUNT: usize = 13 * 77;
        let (mut input, gradient) = (numbers(1, COUNT), numbers(2, COUNT));
        // Where the function is flat, too.
        input[..6].copy_from_slice(&[0.0, -0.0, 40.0, -40.0, 4.0, -6.0]);
        let device_input = cuda.upload(&input).unwrap();
        let mut output = vec![0.0; COUNT];
        activation::gelu(&input, &mut output);
        let mut device_output = cuda.allocate(COUNT).unwrap();
        cuda.gelu(&device_input, &mut device_output).unwrap();
        // Relative to numbers of the size of one.
        assert_close(
            "forward",
            &device_output.to_vec().unwrap(),
            &output,
            1e-6 / 40.0,
        );

        let mut expected = gradient.clone();
        activation::gelu_backward(&input, &mut expected);
        let mut device_gradient = cuda.upload(&gradient).unwrap();
        cuda.gelu_backward(&device_input, &mut device_gradient)
            .unwrap();
        assert_close(
            "backward",
            &device_gradient.to_vec().unwrap(),
            &expected,
            1e-6,
        );
    });
}

#[test]
fn norms_forward_and_backward() {
    in_both_orders(|cuda| {
        for (rows, width) in [(1, 1), (5, 6), (3, 700), (33, 64)] {
            let (x, weight) = (numbers(1, rows * width), numbers(2, width));
            let (dy, dx) = (numbers(3, rows * width), numbers(4, rows * width));
            let [device_x, device_weight, device_dy] =
                [&x, &weight, &dy].map(|values| cuda.upload(values).unwrap());
            let mut y = vec![0.0; x.len()];
            norm::rms_norm(&x, &weight, 1e-6, &mut y);
            let mut device_y = cuda.allocate(x.len()).unwrap();
            cuda.rms_norm(&device_x, &device_weight, 1e-6, &mut device_y)
                .unwrap();
            assert_close("forward", &device_y.to_vec().unwrap(), &y, 1e-6);
            let mut in_place = cuda.upload(&x).unwrap();
            cuda.rms_norm_in_place(&mut in_place, &device_weight, 1e-6)
                .unwrap();
            assert_eq!(in_place.to_vec().unwrap(), device_y.to_vec().unwrap());

            let mut expected = dx.clone();
            norm::rms_norm_backward(&x, &weight, 1e-6, &dy, &mut expected, None);
            let mut device_dx = cuda.upload(&dx).unwrap();
            cuda.rms_norm_backward(&device_x, &device_weight, 1e-6, &device_dy, &mut device_dx)
                .unwrap();
            assert_close("backward", &device_dx.to_vec().unwrap(), &expected, 1e-5);

            let mut expected = vec![0.0; x.len()];
            norm::rms_norm_backward(&x, &weight, 1e-6, &dy, &mut expected, None);
            let mut gradient = cuda.upload(&dy).unwrap();
            cuda.rms_norm_backward_in_place(&device_x, &device_weight, 1e-6, &mut gradient)
                .unwrap();
            assert_close(
                "backward in place",
                &gradient.to_vec().unwrap(),
                &expected,
                1e-5,
            );
        }
    });
}

#[test]
fn heads_turn_there_and_back() {
    in_both_orders(|cuda| {
        let table = RopeTable::new(6, 10_000.0, 40);
        let positions: Vec<u32> = (0..7).chain(0..30).collect();
        let mut expected = numbers(1, positions.len() * 4 * 6);
        let mut x = cuda.upload(&expected).unwrap();
        let rope = cuda.upload_rope(&table).unwrap();
        let device_positions = cuda.upload(&positions).unwrap();
        table.rotate(&mut expected, &positions);
        cuda.rotate(&rope, &mut x, &device_positions).unwrap();
        assert_close("there", &x.to_vec().unwrap(), &expected, 1e-6);
        table.rotate_back(&mut expected, &positions);
        cuda.rotate_back(&rope, &mut x, &device_positions).unwrap();
        assert_close("back", &x.to_vec().unwrap(), &expected, 1e-6);
    });
}

#[test]
fn gates_and_biases() {
    in_both_orders(|cuda| {
        // More elements than one block has threads, and not a multiple.
        const COUNT: usize = 13 * 77;
        let (gate, up, gradient) = (numbers(1, COUNT), numbers(2, COUNT), numbers(3, COUNT));
        let [device_gate, device_up] = [&gate, &up].map(|values| cuda.upload(values).unwrap());
        let mut hidden = vec![0.0; COUNT];
        activation::silu_gate(&gate, &up, &mut hidden);
        let mut device_hidden = cuda.allocate(COUNT).unwrap();
        cuda.silu_gate(&device_gate, &device_up, &mut device_hidden)
            .unwrap();
        assert_close("forward", &device_hidden.to_vec().unwrap(), &hidden, 1e-6);

        let (mut dup, mut dgate) = (gradient.clone(), vec![0.0; COUNT]);
        activation::silu_gate_backward(&gate, &up, &mut dup, &mut dgate);
        let (mut device_dup, mut device_dgate) = (
            cuda.upload(&gradient).unwrap(),
            cuda.allocate(COUNT).unwrap(),
        );
        cuda.silu_gate_backward(&device_gate, &device_up, &mut device_dup, &mut device_dgate)
            .unwrap();
        assert_close("of up", &device_dup.to_vec().unwrap(), &dup, 1e-6);
        assert_close("of gate", &device_dgate.to_vec().unwrap(), &dgate, 1e-6);

        let bias = numbers(4, 77);
        reduce::add_bias(&mut hidden, &bias);
        cuda.add_bias(&mut device_hidden, &cuda.upload(&bias).unwrap())
            .unwrap();
        assert_close("bias", &device_hidden.to_vec().unwrap(), &hidden, 1e-6);
        cuda.subtract(&mut device_hidden, &device_gate).unwrap();
        let less: Vec<f32> = hidden.iter().zip(&gate).map(|(a, b)| a - b).collect();
        assert_close("difference", &device_hidden.to_vec().unwrap(), &less, 1e-6);
    });
}

#[test]
fn dropout_drops_the_processors_elements() {
    in_both_orders(|cuda| {
        const COUNT: usize = 70_001;
        let (x, mut sum) = (numbers(1, COUNT), numbers(2, COUNT));
        let key = NoiseKey::new(9).child(1).child(35);
        let mut expected = vec![0.0; COUNT];
        noise::dropout(&x, &mut expected, key, 0.1);
        let device_x = cuda.upload(&x).unwrap();
        let mut dropped = cuda.allocate(COUNT).unwrap();
        cuda.dropout(&device_x, &mut dropped, key, 0.1).unwrap();
        assert_eq!(dropped.to_vec().unwrap(), expected);
        let mut device_sum = cuda.upload(&sum).unwrap();
        noise::add_dropout(&x, &mut sum, key, 0.1);
        cuda.add_dropout(&device_x, &mut device_sum, key, 0.1)
            .unwrap();
        assert_close("sum", &device_sum.to_vec().unwrap(), &sum, 1e-6);
    });
}

#[test]
fn rows_are_gathered_and_scattered() {
    in_both_orders(|cuda| {
        let source = numbers(1, 6 * 35);
        let rows = cuda.upload(&[4_u32, 1]).unwrap();
        let mut gathered = cuda.allocate(2 * 35).unwrap();
        cuda.gather_rows(&cuda.upload(&source).unwrap(), &rows, &mut gathered)
            .unwrap();
        assert_eq!(
            gathered.to_vec().unwrap(),
            [&source[140..175], &source[35..70]].concat()
        );
        let mut scattered = cuda.allocate(6 * 35).unwrap();
        cuda.clear(&mut scattered).unwrap();
        cuda.scatter_rows(&gathered, &rows, &mut scattered).unwrap();
        let mut expected = vec![0.0; 6 * 35];
        expected[140..175].copy_from_slice(&source[140..175]);
        expected[35..70].copy_from_slice(&source[35..70]);
        assert_eq!(scattered.to_vec().unwrap(), expected);
    });
}

/// The processor's operation includes the head; a head that is the identity leaves the loss of given logits.
#[test]
fn losses_and_gradients_of_logits() {
    in_both_orders(|cuda| {
        for vocabulary in [3, 1500] {
            let targets = [2, NO_LABEL, 0, 1];
            let weights = [0.5, 1.0, -2.0, 1.0];
            let mut logits = numbers(1, 4 * vocabulary);
            logits.iter_mut().for_each(|logit| *logit *= 5.0);
            let mut identity = vec![0.0; vocabulary * vocabulary];
            identity
                .iter_mut()
                .step_by(vocabulary + 1)
                .for_each(|value| *value = 1.0);
            let mut gradient = vec![0.0; logits.len()];
            let mut scratch = cross_entropy::Scratch::default();
            cross_entropy::head_loss(
                &logits,
                Weight::F32(&identity),
                Labels {
                    targets: &targets,
                    weights: Some(&weights),
                },
                Some(Gradients {
                    hidden: &mut gradient,
                    head: None,
                }),
                Precision::F32,
                &mut scratch,
            );
            let rows = [0_usize, 2, 3];
            let of_rows = |values: &[f32]| -> Vec<f32> {
                rows.iter()
                    .flat_map(|row| values[row * vocabulary..(row + 1) * vocabulary].to_vec())
                    .collect()
            };
            let mut device = cuda.upload(&of_rows(&logits)).unwrap();
            let device_targets = cuda.upload(&rows.map(|row| targets[row] as u32)).unwrap();
            let device_weights = cuda.upload(&rows.map(|row| weights[row])).unwrap();
            let mut losses = cuda.allocate::<f64>(3).unwrap();
            cuda.cross_entropy(&mut device, &device_targets, None, &mut losses)
                .unwrap();
            assert_eq!(device.to_vec().unwrap(), of_rows(&logits));
            for (loss, row) in losses.to_vec().unwrap().into_iter().zip(rows) {
                assert!((loss - scratch.token_losses()[row]).abs() < 1e-5, "{loss}");
            }
            cuda.cross_entropy(
                &mut device,
                &device_targets,
                Some(Part::from(&device_weights)),
                &mut losses,
            )
            .unwrap();
            assert_close(
                "gradient",
                &device.to_vec().unwrap(),
                &of_rows(&gradient),
                1e-6,
            );
        }
    });
}

#[test]
fn a_loss_of_what_is_not_a_number_is_none() {
    let cuda = open(Order::Forward);
    let mut logits = cuda.upload(&[0.0, f32::NAN, 1.0]).unwrap();
    let mut losses = cuda.allocate::<f64>(1).unwrap();
    cuda.cross_entropy(
        &mut logits,
        &cuda.upload(&[0_u32]).unwrap(),
        None,
        &mut losses,
    )
    .unwrap();
    assert!(losses.to_vec().unwrap()[0].is_nan());
}

/// Which tokens of its segment a token sees.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Sight {
    Causal,
    Whole,
}

fn attend(cuda: &Cuda, sight: Sight, heads: Heads, segments: &[usize]) {
    let tokens: usize = segments.iter().sum();
    let (wide, narrow) = (
        tokens * heads.queries * heads.size,
        tokens * heads.groups * heads.size,
    );
    let [q, doutput] = [1, 2].map(|seed| numbers(seed, wide));
    let [k, v] = [3, 4].map(|seed| numbers(seed, narrow));
    let (mut output, mut log_sums) = (vec![0.0; wide], vec![0.0; tokens * heads.queries]);
    let forward = match sight {
        Sight::Causal => attention::forward,
        Sight::Whole => attention::forward_whole,
    };
    forward(heads, segments, &q, &k, &v, &mut output, &mut log_sums);
    let (mut dq, mut dk, mut dv) = (vec![0.0; wide], vec![0.0; narrow], vec![0.0; narrow]);
    let saved = attention::Forward {
        q: &q,
        k: &k,
        v: &v,
        output: &output,
        log_sums: &log_sums,
    };
    let backward = match sight {
        Sight::Causal => attention::backward,
        Sight::Whole => attention::backward_whole,
    };
    backward(heads, segments, saved, &doutput, &mut dq, &mut dk, &mut dv);

    let tiles = match sight {
        Sight::Causal => Tiles::new(cuda, heads, segments),
        Sight::Whole => Tiles::whole(cuda, heads, segments),
    };
    let tiles = tiles.unwrap();
    let [q, k, v, doutput] = [&q, &k, &v, &doutput].map(|values| cuda.upload(values).unwrap());
    let (mut device_output, mut device_sums) = (
        cuda.allocate(wide).unwrap(),
        cuda.allocate(log_sums.len()).unwrap(),
    );
    let parts = [&q, &k, &v].map(Part::from);
    cuda.attention(&tiles, parts, &mut device_output, &mut device_sums)
        .unwrap();
    let what = format!("{sight:?} {heads:?} {segments:?}");
    assert_close(&what, &device_output.to_vec().unwrap(), &output, 1e-5);
    let by_token: Vec<f32> = (0..tokens)
        .flat_map(|token| (0..heads.queries).map(move |head| (token, head)))
        .map(|(token, head)| log_sums[head * tokens + token])
        .collect();
    assert_close(&what, &device_sums.to_vec().unwrap(), &by_token, 1e-5);

    let mut gradients = [wide, narrow, narrow].map(|length| cuda.allocate::<f32>(length).unwrap());
    let saved = Attended {
        q: parts[0],
        k: parts[1],
        v: parts[2],
        output: Part::from(&device_output),
        log_sums: Part::from(&device_sums),
    };
    let mut deltas = cuda.allocate(0).unwrap();
    let targets = gradients.each_mut().map(PartMut::from);
    cuda.attention_backward(&tiles, saved, &doutput, &mut deltas, targets)
        .unwrap();
    for (gradient, expected) in gradients.iter().zip([&dq, &dk, &dv]) {
        assert_close(&what, &gradient.to_vec().unwrap(), expected, 1e-5);
    }
}

#[test]
fn attention_of_grouped_heads_over_segments() {
    in_both_orders(|cuda| {
        let heads = |queries, groups, size| Heads {
            queries,
            groups,
            size,
        };
        for sight in [Sight::Causal, Sight::Whole] {
            attend(cuda, sight, heads(4, 2, 6), &[1, 33, 64, 5]);
            attend(cuda, sight, heads(2, 2, 64), &[70]);
            attend(cuda, sight, heads(3, 1, 80), &[17, 40]);
            attend(cuda, sight, heads(2, 1, 256), &[9, 20]);
        }
    });
}

#[test]
fn lengths_of_adapted_rows_and_scaled_columns() {
    in_both_orders(|cuda| {
        const OUTPUTS: usize = 301;
        const INPUTS: usize = 9;
        const RANK: usize = 3;
        let (w, a, b) = (
            numbers(1, OUTPUTS * INPUTS),
            numbers(2, RANK * INPUTS),
            numbers(3, OUTPUTS * RANK),
        );
        let row =
            |matrix: &[f32], index: usize| matrix[index * INPUTS..(index + 1) * INPUTS].to_vec();
        let dot = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f32>();
        let squares: Vec<f32> = (0..OUTPUTS)
            .map(|output| dot(&row(&w, output), &row(&w, output)))
            .collect();
        let crossed: Vec<f32> = (0..RANK * OUTPUTS)
            .map(|i| dot(&row(&a, i / OUTPUTS), &row(&w, i % OUTPUTS)))
            .collect();
        let gram: Vec<f32> = (0..RANK * RANK)
            .map(|i| dot(&row(&a, i / RANK), &row(&a, i % RANK)))
            .collect();
        // The definition: the adapted rows themselves.
        let expected: Vec<f32> = (0..OUTPUTS)
            .map(|output| {
                let mut adapted = row(&w, output);
                for index in 0..RANK {
                    reduce::add_scaled(
                        &mut adapted,
                        &row(&a, index),
                        0.7 * b[output * RANK + index],
                    );
                }
                dot(&adapted, &adapted).sqrt()
            })
            .collect();
        let [squares, crossed, gram, b] =
            [&squares, &crossed, &gram, &b].map(|values| cuda.upload(values).unwrap());
        let mut lengths = cuda.allocate(OUTPUTS).unwrap();
        cuda.adapted_lengths(&squares, &crossed, &gram, &b, 0.7, &mut lengths)
            .unwrap();
        assert_close("lengths", &lengths.to_vec().unwrap(), &expected, 1e-5);

        let (source, above) = (numbers(4, 4 * OUTPUTS), numbers(5, OUTPUTS));
        let scaled: Vec<f32> = source
            .iter()
            .enumerate()
            .map(|(i, x)| x * above[i % OUTPUTS] / expected[i % OUTPUTS])
            .collect();
        let (device_source, above) = (cuda.upload(&source).unwrap(), cuda.upload(&above).unwrap());
        let mut rows = cuda.allocate(source.len()).unwrap();
        cuda.scale_columns(&mut rows, &device_source, &above, &lengths)
            .unwrap();
        assert_close("scaled", &rows.to_vec().unwrap(), &scaled, 1e-5);
        cuda.add_scaled_columns(&mut rows, &device_source, &above, &lengths)
            .unwrap();
        let twice: Vec<f32> = scaled.iter().map(|value| 2.0 * value).collect();
        assert_close("added", &rows.to_vec().unwrap(), &twice, 1e-5);

        let dy = numbers(6, 4 * OUTPUTS);
        let sums: Vec<f32> = (0..OUTPUTS)
            .map(|column| {
                let places = (0..4).map(|row| row * OUTPUTS + column);
                places.map(|place| dy[place] * source[place]).sum::<f32>() / expected[column]
            })
            .collect();
        let mut gradient = cuda.allocate(OUTPUTS).unwrap();
        cuda.lengths_gradient(
            &cuda.upload(&dy).unwrap(),
            &device_source,
            &lengths,
            &mut gradient,
        )
        .unwrap();
        assert_close("gradient", &gradient.to_vec().unwrap(), &sums, 1e-5);
    });
}
