//! The passes of [`crate::decoder`] on a device. Parameters are copied there before a pass and gradients back after it:
//! an adapter is small beside what it is trained with, and update, clipping, checkpoints and files stay the same code.

use super::linear::{Direction, LinearPass, LinearScratch, ProductScratch, SavedDelta, product};
use super::shared::{Squares, Tokens, add_gradients, keep_copy, put};
use super::weights::DeviceWeights;
use crate::batch::{NO_LABEL, PackedBatch};
use crate::decoder::{self, Decoder, PreferenceLoss};
use crate::lora::Projection;
use crate::noise::Noise;
use std::sync::Arc;
use zerog_kernels::cross_entropy::{HeadLoss, rows_per_chunk};
use zerog_kernels::cuda::{Attended, Buffer, Cuda, Part, PartMut, Tiles};
use zerog_kernels::device::DeviceError;
use zerog_kernels::matmul::{Precision, Write};

/// An adapter in training whose passes run on a device.
#[derive(Debug)]
pub(crate) struct DeviceTraining {
    weights: Arc<DeviceWeights>,
    squares: Squares,
    space: Space,
}

/// Buffers kept between passes; they grow to the largest batch.
#[derive(Debug)]
struct Space {
    values: Buffer<f32>,
    gradients: Buffer<f32>,
    tokens: Tokens,
    layers: Vec<Saved>,
    x: Buffer<f32>,
    y: Buffer<f32>,
    hidden: Buffer<f32>,
    gate_gradient: Buffer<f32>,
    dx: Buffer<f32>,
    dy: Buffer<f32>,
    dq: Buffer<f32>,
    dk: Buffer<f32>,
    dv: Buffer<f32>,
    deltas: Buffer<f32>,
    linear: LinearScratch,
    head: Head,
}

/// What the backward pass of one layer needs, as in [`crate::decoder`].
#[derive(Debug)]
struct Saved {
    x: Buffer<f32>,
    raw: [Buffer<f32>; 2],
    q: Buffer<f32>,
    k: Buffer<f32>,
    v: Buffer<f32>,
    attended: Buffer<f32>,
    log_sums: Buffer<f32>,
    middle: Buffer<f32>,
    gate: Buffer<f32>,
    up: Buffer<f32>,
    deltas: [SavedDelta; 7],
}

/// Buffers of the head and the losses of the last batch.
#[derive(Debug)]
struct Head {
    rows: Buffer<u32>,
    targets: Buffer<u32>,
    weights: Buffer<f32>,
    hidden: Buffer<f32>,
    logits: Buffer<f32>,
    gradient: Buffer<f32>,
    losses: Buffer<f64>,
    products: ProductScratch,
    /// The loss of each token; 0 where there is no label.
    token_losses: Vec<f64>,
}

impl Saved {
    fn new(cuda: &Cuda) -> Result<Self, DeviceError> {
        let empty = || cuda.allocate(0);
        Ok(Self {
            x: empty()?,
            raw: [empty()?, empty()?],
            q: empty()?,
            k: empty()?,
            v: empty()?,
            attended: empty()?,
            log_sums: empty()?,
            middle: empty()?,
            gate: empty()?,
            up: empty()?,
            deltas: SavedDelta::of_layer(cuda)?,
        })
    }
}

impl Space {
    fn new(cuda: &Cuda) -> Result<Self, DeviceError> {
        let empty = || cuda.allocate(0);
        Ok(Self {
            values: empty()?,
            gradients: empty()?,
            tokens: Tokens::new(cuda)?,
            layers: Vec::new(),
            x: empty()?,
            y: empty()?,
            hidden: empty()?,
            gate_gradient: empty()?,
            dx: empty()?,
            dy: empty()?,
            dq: empty()?,
            dk: empty()?,
            dv: empty()?,
            deltas: empty()?,
            linear: LinearScratch::new(cuda)?,
            head: Head {
                rows: cuda.allocate(0)?,
                targets: cuda.allocate(0)?,
                weights: empty()?,
                hidden: empty()?,
                logits: empty()?,
                gradient: empty()?,
                losses: cuda.allocate(0)?,
                products: ProductScratch::new(cuda)?,
                token_losses: Vec::new(),
            },
        })
    }
}

/// What one pass over a batch is computed with.
#[derive(Clone, Copy)]
struct Pass<'a> {
    weights: &'a DeviceWeights,
    squares: &'a Squares,
    model: &'a Decoder<'a>,
    batch: &'a PackedBatch,
    tiles: &'a Tiles,
    noise: Option<&'a Noise>,
    precision: Precision,
}

impl DeviceTraining {
    /// For the adapter of `model` on its weights.
    pub(crate) fn new(
        weights: Arc<DeviceWeights>,
        model: &Decoder<'_>,
    ) -> Result<Self, DeviceError> {
        let cuda = &weights.cuda;
        // Shapes that the kernels do not cover are found before a run begins.
        Tiles::new(cuda, model.config.heads(), &[])?;
        let layers = model.layers.iter();
        Ok(Self {
            space: Space::new(cuda)?,
            squares: Squares::upload(cuda, layers.map(|layer| layer.linears.each_ref().map(Some)))?,
            weights,
        })
    }

    /// As [`decoder::evaluate`] with the trained parameters `values`.
    pub(crate) fn evaluate(
        &mut self,
        model: &Decoder<'_>,
        values: &[f32],
        batch: &PackedBatch,
        precision: Precision,
    ) -> Result<HeadLoss, DeviceError> {
        let tiles = self.begin(model, values, batch)?;
        let (pass, space) = self.pass(model, batch, &tiles, None, precision);
        pass.forward(space, false)?;
        pass.head_loss(space, None, false)
    }

    /// As [`decoder::forward_backward`] with the trained parameters `values`.
    pub(crate) fn forward_backward(
        &mut self,
        model: &Decoder<'_>,
        values: &[f32],
        batch: &PackedBatch,
        noise: &Noise,
        gradients: &mut [f32],
        precision: Precision,
    ) -> Result<HeadLoss, DeviceError> {
        let tiles = self.begin(model, values, batch)?;
        let (pass, space) = self.pass(model, batch, &tiles, Some(noise), precision);
        pass.forward(space, true)?;
        let loss = pass.head_loss(space, None, true)?;
        pass.backward(space)?;
        add_gradients(&self.weights.cuda, &self.space.gradients, gradients)?;
        Ok(loss)
    }

    /// As [`decoder::preference_loss`] of `(model, reference)` with the trained parameters `values`.
    pub(crate) fn preference_loss(
        &mut self,
        (model, reference): (&Decoder<'_>, &Decoder<'_>),
        values: &[f32],
        batch: &PackedBatch,
        beta: f64,
        training: Option<(&Noise, &mut [f32])>,
        precision: Precision,
    ) -> Result<PreferenceLoss, DeviceError> {
        let tiles = self.begin(model, values, batch)?;
        let (pass, space) = self.pass(reference, batch, &tiles, None, precision);
        pass.forward(space, false)?;
        pass.head_loss(space, None, false)?;
        let expected = decoder::margins(&space.head.token_losses, batch);
        let noise = training.as_ref().map(|(noise, _)| *noise);
        let (pass, space) = self.pass(model, batch, &tiles, noise, precision);
        pass.forward(space, noise.is_some())?;
        pass.head_loss(space, None, false)?;
        let actual = decoder::margins(&space.head.token_losses, batch);
        let (result, weights) = decoder::compare_margins(&actual, &expected, batch, beta);
        if let Some((_, gradients)) = training {
            pass.head_loss(space, Some(&weights), true)?;
            pass.backward(space)?;
            add_gradients(&self.weights.cuda, &self.space.gradients, gradients)?;
        }
        Ok(result)
    }

    /// Copies to the device what the passes over a batch need.
    fn begin(
        &mut self,
        model: &Decoder<'_>,
        values: &[f32],
        batch: &PackedBatch,
    ) -> Result<Tiles, DeviceError> {
        let (cuda, space) = (&self.weights.cuda, &mut self.space);
        space
            .tokens
            .put(cuda, &batch.tokens, &batch.segment_lengths)?;
        put(cuda, &mut space.values, values)?;
        space.gradients.resize(values.len())?;
        Tiles::new(cuda, model.config.heads(), &batch.segment_lengths)
    }

    fn pass<'a>(
        &'a mut self,
        model: &'a Decoder<'a>,
        batch: &'a PackedBatch,
        tiles: &'a Tiles,
        noise: Option<&'a Noise>,
        precision: Precision,
    ) -> (Pass<'a>, &'a mut Space) {
        let pass = Pass {
            weights: &self.weights,
            squares: &self.squares,
            model,
            batch,
            tiles,
            noise,
            precision,
        };
        (pass, &mut self.space)
    }
}

impl<'a> Pass<'a> {
    fn linear(
        &self,
        layer: usize,
        projection: Projection,
        values: &'a Buffer<f32>,
    ) -> LinearPass<'a> {
        let index = projection.index();
        LinearPass {
            cuda: &self.weights.cuda,
            linear: &self.model.layers[layer].linears[index],
            weights: &self.weights.layers[layer].linears[index],
            values,
            squares: self.squares.of(layer, projection),
            dropout: self
                .noise
                .and_then(|noise| noise.dropout_key(layer, projection)),
            precision: self.precision,
        }
    }

    fn forward(&self, space: &mut Space, keep: bool) -> Result<(), DeviceError> {
        let (config, weights) = (self.model.config, self.weights);
        let cuda = &weights.cuda;
        let tokens = self.batch.tokens.len();
        let (hidden, epsilon) = (config.hidden_size, config.norm_epsilon);
        let wide = tokens * config.intermediate_size;
        while space.layers.len() < if keep { config.layers } else { 1 } {
            space.layers.push(Saved::new(cuda)?);
        }
        let noise = self.noise;
        let x = space.x.resize(tokens * hidden)?;
        let segments = &self.batch.segment_lengths;
        let table = weights.embedding.table();
        space.tokens.embed(cuda, table, segments, noise, x)?;
        space.y.resize(tokens * hidden)?;
        let Space {
            values,
            tokens: Tokens { positions, .. },
            x,
            y,
            hidden: gated,
            layers,
            linear: scratch,
            ..
        } = space;
        let values = &*values;

        for (index, layer) in weights.layers.iter().enumerate() {
            // Without a backward pass one set of buffers serves all layers.
            let saved = &mut layers[if keep { index } else { 0 }];
            let pass = Pass::<'_> { ..*self };
            let run = |projection: Projection,
                       x: &Buffer<f32>,
                       y: &mut Buffer<f32>,
                       write,
                       deltas: &mut [SavedDelta; 7],
                       scratch: &mut LinearScratch| {
                let saved = &mut deltas[projection.index()];
                let linear = pass.linear(index, projection, values);
                linear.forward(Part::from(x), y, write, saved, scratch)
            };
            if keep {
                keep_copy(cuda, x, &mut saved.x)?;
            }
            cuda.rms_norm(&*x, &layer.input_norm, epsilon, &mut *y)?;
            let deltas = &mut saved.deltas;
            let parts = [
                (Projection::Query, &mut saved.q, config.query_width()),
                (Projection::Key, &mut saved.k, config.key_width()),
                (Projection::Value, &mut saved.v, config.key_width()),
            ];
            for (projection, part, width) in parts {
                let part = part.resize(tokens * width)?;
                run(projection, y, part, Write::Replace, deltas, scratch)?;
            }
            if let Some(norms) = &layer.head_norms {
                let parts = [&mut saved.q, &mut saved.k];
                for ((part, norm), raw) in parts.into_iter().zip(norms).zip(&mut saved.raw) {
                    if keep {
                        keep_copy(cuda, part, raw)?;
                    }
                    cuda.rms_norm_in_place(part, norm, epsilon)?;
                }
            }
            cuda.rotate(&weights.rope, &mut saved.q, &*positions)?;
            cuda.rotate(&weights.rope, &mut saved.k, &*positions)?;
            let attended = saved.attended.resize(tokens * config.query_width())?;
            cuda.attention(
                self.tiles,
                [&saved.q, &saved.k, &saved.v].map(Part::from),
                &mut *attended,
                saved.log_sums.resize(tokens * config.query_heads)?,
            )?;
            run(Projection::Output, attended, x, Write::Add, deltas, scratch)?;

            if keep {
                keep_copy(cuda, x, &mut saved.middle)?;
            }
            cuda.rms_norm(&*x, &layer.post_norm, epsilon, &mut *y)?;
            let gate = saved.gate.resize(wide)?;
            run(Projection::Gate, y, gate, Write::Replace, deltas, scratch)?;
            let up = saved.up.resize(wide)?;
            run(Projection::Up, y, up, Write::Replace, deltas, scratch)?;
            cuda.silu_gate(&saved.gate, &saved.up, gated.resize(wide)?)?;
            run(Projection::Down, gated, x, Write::Add, deltas, scratch)?;
        }
        cuda.rms_norm(&*x, &weights.final_norm, epsilon, &mut *y)
    }

    /// Loss from the normalised states in `space.y`, as [`zerog_kernels::cross_entropy::head_loss`]; with `want`, their
    /// gradient goes to `space.dy`.
    fn head_loss(
        &self,
        space: &mut Space,
        weights: Option<&[f32]>,
        want: bool,
    ) -> Result<HeadLoss, DeviceError> {
        let cuda = &self.weights.cuda;
        let targets = &self.batch.targets;
        let width = self.model.config.hidden_size;
        let table = (self.weights.head(), width);
        let vocabulary = self.model.config.vocabulary_size;
        let Space {
            y, dy, head: room, ..
        } = space;
        if want {
            cuda.clear(dy.resize(y.len())?)?;
        }
        room.token_losses.clear();
        room.token_losses.resize(targets.len(), 0.0);
        let supervised: Vec<u32> = (0..targets.len() as u32)
            .filter(|token| targets[*token as usize] != NO_LABEL)
            .collect();
        let mut result = HeadLoss {
            loss_sum: 0.0,
            supervised_tokens: supervised.len(),
        };
        for chunk in supervised.chunks(rows_per_chunk(supervised.len(), vocabulary)) {
            let of_chunk = |value: &dyn Fn(usize) -> f32| -> Vec<f32> {
                chunk.iter().map(|token| value(*token as usize)).collect()
            };
            // Batches were checked: every target is in the vocabulary.
            let ids: Vec<u32> = chunk
                .iter()
                .map(|token| targets[*token as usize] as u32)
                .collect();
            put(cuda, &mut room.rows, chunk)?;
            put(cuda, &mut room.targets, &ids)?;
            let hidden = room.hidden.resize(chunk.len() * width)?;
            cuda.gather_rows(&*y, &room.rows, &mut *hidden)?;
            let logits = room.logits.resize(chunk.len() * vocabulary)?;
            product(
                cuda,
                Direction::Forward,
                Part::from(&*hidden),
                table,
                PartMut::from(&mut *logits),
                Write::Replace,
                self.precision,
                &mut room.products,
            )?;
            let counts = of_chunk(&|token| weights.map_or(1.0, |weights| weights[token]));
            put(cuda, &mut room.weights, &counts)?;
            let losses = room.losses.resize(chunk.len())?;
            let counts = want.then(|| Part::from(&room.weights));
            cuda.cross_entropy(&mut *logits, &room.targets, counts, &mut *losses)?;
            let losses = losses.to_vec()?;
            for (token, loss) in chunk.iter().zip(&losses) {
                room.token_losses[*token as usize] = *loss;
            }
            result.loss_sum += losses.into_iter().sum::<f64>();
            if want {
                let gradient = room.gradient.resize(chunk.len() * width)?;
                product(
                    cuda,
                    Direction::Gradient,
                    Part::from(&*logits),
                    table,
                    PartMut::from(&mut *gradient),
                    Write::Replace,
                    self.precision,
                    &mut room.products,
                )?;
                cuda.scatter_rows(&*gradient, &room.rows, &mut *dy)?;
            }
        }
        Ok(result)
    }

    /// The backward pass of the adapter, from the gradient of the normalised states in `space.dy`.
    fn backward(&self, space: &mut Space) -> Result<(), DeviceError> {
        let (config, weights) = (self.model.config, self.weights);
        let cuda = &weights.cuda;
        let tokens = self.batch.tokens.len();
        let epsilon = config.norm_epsilon;
        let wide = tokens * config.intermediate_size;
        let Space {
            values,
            gradients,
            tokens: Tokens { positions, .. },
            layers,
            x,
            y,
            hidden,
            gate_gradient,
            dx,
            dy,
            dq,
            dk,
            dv,
            deltas,
            linear: scratch,
            ..
        } = space;
        let values = &*values;
        cuda.clear(dx.resize(tokens * config.hidden_size)?)?;
        cuda.rms_norm_backward(&*x, &weights.final_norm, epsilon, &*dy, &mut *dx)?;

        for (index, layer) in weights.layers.iter().enumerate().rev() {
            let saved = &layers[index];
            let pass = Pass::<'_> { ..*self };
            let mut run = |projection: Projection,
                           x: &Buffer<f32>,
                           dy: &Buffer<f32>,
                           dx: Option<(&mut Buffer<f32>, Write)>| {
                let linear = pass.linear(index, projection, values);
                let delta = &saved.deltas[projection.index()];
                linear.backward(x.into(), dy.into(), dx, delta, gradients, scratch)
            };

            // Feed-forward block. `hidden` turns from the gated product into the gradient of the gate.
            cuda.silu_gate(&saved.gate, &saved.up, hidden.resize(wide)?)?;
            let dup = gate_gradient.resize(wide)?;
            run(Projection::Down, hidden, dx, Some((dup, Write::Replace)))?;
            cuda.silu_gate_backward(&saved.gate, &saved.up, &mut *gate_gradient, &mut *hidden)?;
            cuda.rms_norm(&saved.middle, &layer.post_norm, epsilon, &mut *y)?;
            run(
                Projection::Gate,
                y,
                hidden,
                Some((&mut *dy, Write::Replace)),
            )?;
            run(
                Projection::Up,
                y,
                gate_gradient,
                Some((&mut *dy, Write::Add)),
            )?;
            cuda.rms_norm_backward(&saved.middle, &layer.post_norm, epsilon, &*dy, &mut *dx)?;

            // Attention block.
            let dattended = hidden.resize(tokens * config.query_width())?;
            let target = Some((&mut *dattended, Write::Replace));
            run(Projection::Output, &saved.attended, dx, target)?;
            let parts = [
                (&mut *dq, config.query_width()),
                (&mut *dk, config.key_width()),
                (&mut *dv, config.key_width()),
            ];
            for (part, width) in parts {
                part.resize(tokens * width)?;
            }
            cuda.attention_backward(
                self.tiles,
                Attended {
                    q: Part::from(&saved.q),
                    k: Part::from(&saved.k),
                    v: Part::from(&saved.v),
                    output: Part::from(&saved.attended),
                    log_sums: Part::from(&saved.log_sums),
                },
                &*dattended,
                deltas,
                [&mut *dq, &mut *dk, &mut *dv].map(PartMut::from),
            )?;
            cuda.rotate_back(&weights.rope, &mut *dq, &*positions)?;
            cuda.rotate_back(&weights.rope, &mut *dk, &*positions)?;
            if let Some(norms) = &layer.head_norms {
                let parts = [&mut *dq, &mut *dk];
                for ((part, norm), raw) in parts.into_iter().zip(norms).zip(&saved.raw) {
                    cuda.rms_norm_backward_in_place(raw, norm, epsilon, part)?;
                }
            }
            cuda.rms_norm(&saved.x, &layer.input_norm, epsilon, &mut *y)?;
            // Nothing below the first layer is trained with an adapter, so its input needs no gradient.
            let needed = index > 0;
            let parts = [
                (Projection::Query, &*dq, Write::Replace),
                (Projection::Key, &*dk, Write::Add),
                (Projection::Value, &*dv, Write::Add),
            ];
            for (projection, gradient, write) in parts {
                let target = needed.then_some((&mut *dy, write));
                run(projection, y, gradient, target)?;
            }
            if needed {
                cuda.rms_norm_backward(&saved.x, &layer.input_norm, epsilon, &*dy, &mut *dx)?;
            }
        }
        Ok(())
    }
}
