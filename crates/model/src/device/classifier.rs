//! The passes of [`crate::encoder`] on a device. The head is computed on the processor: it has one row for each text, so
//! that little is copied, and its parameters and their gradients are there already.

use super::linear::{LinearPass, LinearScratch, SavedDelta};
use super::shared::{Squares, Tokens, add_gradients, keep_copy, put};
use super::weights::EncoderWeights;
use crate::encoder::{self, Encoder, Head, Texts};
use crate::lora::Projection;
use crate::noise::Noise;
use std::sync::Arc;
use zerog_kernels::cuda::{Attended, Buffer, Cuda, Part, PartMut, Tiles};
use zerog_kernels::device::DeviceError;
use zerog_kernels::matmul::{Precision, Write};

/// A classifier in training whose encoder is passed on a device.
#[derive(Debug)]
pub(crate) struct DeviceClassifier {
    weights: Arc<EncoderWeights>,
    squares: Squares,
    space: Space,
}

/// Buffers kept between passes; they grow to the largest batch.
#[derive(Debug)]
struct Space {
    values: Buffer<f32>,
    gradients: Buffer<f32>,
    tokens: Tokens,
    /// Numbers of the first tokens.
    starts: Buffer<u32>,
    /// The states of the first tokens `(S, H)`, then their gradient.
    pooled: Buffer<f32>,
    layers: Vec<Saved>,
    x: Buffer<f32>,
    y: Buffer<f32>,
    wide: Buffer<f32>,
    dx: Buffer<f32>,
    dy: Buffer<f32>,
    dq: Buffer<f32>,
    dk: Buffer<f32>,
    dv: Buffer<f32>,
    /// Of the feed-forward block, then of the attention.
    inner_gradient: Buffer<f32>,
    deltas: Buffer<f32>,
    linear: LinearScratch,
    head: Head,
}

/// What the backward pass of one layer needs, as in [`crate::encoder`].
#[derive(Debug)]
struct Saved {
    x: Buffer<f32>,
    q: Buffer<f32>,
    k: Buffer<f32>,
    v: Buffer<f32>,
    attended: Buffer<f32>,
    log_sums: Buffer<f32>,
    middle: Buffer<f32>,
    wide: Buffer<f32>,
    last: Buffer<f32>,
    deltas: [SavedDelta; 7],
}

impl Saved {
    fn new(cuda: &Cuda) -> Result<Self, DeviceError> {
        let empty = || cuda.allocate(0);
        Ok(Self {
            x: empty()?,
            q: empty()?,
            k: empty()?,
            v: empty()?,
            attended: empty()?,
            log_sums: empty()?,
            middle: empty()?,
            wide: empty()?,
            last: empty()?,
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
            starts: cuda.allocate(0)?,
            pooled: empty()?,
            layers: Vec::new(),
            x: empty()?,
            y: empty()?,
            wide: empty()?,
            dx: empty()?,
            dy: empty()?,
            dq: empty()?,
            dk: empty()?,
            dv: empty()?,
            inner_gradient: empty()?,
            deltas: empty()?,
            linear: LinearScratch::new(cuda)?,
            head: Head::default(),
        })
    }
}

/// What one pass over texts is computed with.
#[derive(Clone, Copy)]
struct Pass<'a> {
    weights: &'a EncoderWeights,
    squares: &'a Squares,
    model: &'a Encoder<'a>,
    texts: Texts<'a>,
    tiles: &'a Tiles,
    noise: Option<&'a Noise>,
    precision: Precision,
}

impl DeviceClassifier {
    /// For the classifier `model` on the weights of its encoder.
    pub(crate) fn new(
        weights: Arc<EncoderWeights>,
        model: &Encoder<'_>,
    ) -> Result<Self, DeviceError> {
        let cuda = &weights.cuda;
        // Shapes that the kernels do not cover are found before a run begins.
        Tiles::whole(cuda, encoder::heads(model.config), &[])?;
        let layers = model.layers.iter();
        let linears = layers.map(|layer| layer.linears.each_ref().map(Option::as_ref));
        Ok(Self {
            space: Space::new(cuda)?,
            squares: Squares::upload(cuda, linears)?,
            weights,
        })
    }

    /// As [`encoder::classify`] with the parameters `values` of the encoder's deltas.
    pub(crate) fn classify(
        &mut self,
        model: &Encoder<'_>,
        values: &[f32],
        texts: Texts<'_>,
        precision: Precision,
    ) -> Result<Vec<f32>, DeviceError> {
        let tiles = self.begin(model, values, texts)?;
        let (pass, space) = self.pass(model, texts, &tiles, None, precision);
        pass.forward(space, false)?;
        Ok(space.head.logits.clone())
    }

    /// As [`encoder::forward_backward`] with the parameters `values` of the encoder's deltas. Their gradients come first
    /// in `gradients`, those of the head after them.
    pub(crate) fn forward_backward(
        &mut self,
        model: &Encoder<'_>,
        values: &[f32],
        (texts, labels): (Texts<'_>, &[u32]),
        noise: &Noise,
        gradients: &mut [f32],
        precision: Precision,
    ) -> Result<f64, DeviceError> {
        let tiles = self.begin(model, values, texts)?;
        let (pass, space) = self.pass(model, texts, &tiles, Some(noise), precision);
        pass.forward(space, true)?;
        let loss = space.head.backward(model, labels, gradients);
        pass.backward(space)?;
        let of_deltas = &mut gradients[..values.len()];
        add_gradients(&self.weights.cuda, &self.space.gradients, of_deltas)?;
        Ok(loss)
    }

    /// Copies to the device what the pass over texts needs.
    fn begin(
        &mut self,
        model: &Encoder<'_>,
        values: &[f32],
        texts: Texts<'_>,
    ) -> Result<Tiles, DeviceError> {
        let (cuda, space) = (&self.weights.cuda, &mut self.space);
        let starts: Vec<u32> = encoder::starts(texts.lengths)
            .map(|start| start as u32)
            .collect();
        space.tokens.put(cuda, texts.tokens, texts.lengths)?;
        put(cuda, &mut space.starts, &starts)?;
        put(cuda, &mut space.values, values)?;
        space.gradients.resize(values.len())?;
        Tiles::whole(cuda, encoder::heads(model.config), texts.lengths)
    }

    fn pass<'a>(
        &'a mut self,
        model: &'a Encoder<'a>,
        texts: Texts<'a>,
        tiles: &'a Tiles,
        noise: Option<&'a Noise>,
        precision: Precision,
    ) -> (Pass<'a>, &'a mut Space) {
        let pass = Pass {
            weights: &self.weights,
            squares: &self.squares,
            model,
            texts,
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
        LinearPass {
            cuda: &self.weights.cuda,
            linear: self.model.layers[layer].linear(projection),
            weights: self.weights.layers[layer].linear(projection),
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
        let tokens = self.texts.tokens.len();
        let (width, wide) = (
            tokens * config.hidden_size,
            tokens * config.intermediate_size,
        );
        while space.layers.len() < if keep { config.layers } else { 1 } {
            space.layers.push(Saved::new(cuda)?);
        }
        let Space {
            values,
            tokens: ids,
            starts,
            pooled,
            layers,
            x,
            y,
            wide: activated,
            linear: scratch,
            head,
            ..
        } = space;
        let values = &*values;

        let y = y.resize(width)?;
        let (table, lengths) = (weights.words.table(), self.texts.lengths);
        ids.embed(cuda, table, lengths, self.noise, y)?;
        cuda.add_table_rows(weights.positions.table(), &ids.positions, &mut *y)?;
        weights.embedding_norm.forward(cuda, y, x.resize(width)?)?;

        for (index, layer) in weights.layers.iter().enumerate() {
            // Without a backward pass one set of buffers serves all layers.
            let saved = &mut layers[if keep { index } else { 0 }];
            let pass = Pass::<'_> { ..*self };
            let mut run = |projection: Projection,
                           x: &Buffer<f32>,
                           y: &mut Buffer<f32>,
                           write,
                           deltas: &mut [SavedDelta; 7]| {
                let saved = &mut deltas[projection.index()];
                let linear = pass.linear(index, projection, values);
                linear.forward(Part::from(x), y, write, saved, scratch)
            };
            if keep {
                keep_copy(cuda, x, &mut saved.x)?;
            }
            let deltas = &mut saved.deltas;
            let parts = [
                (Projection::Query, &mut saved.q),
                (Projection::Key, &mut saved.k),
                (Projection::Value, &mut saved.v),
            ];
            for (projection, part) in parts {
                run(projection, x, part.resize(width)?, Write::Replace, deltas)?;
            }
            let attended = saved.attended.resize(width)?;
            cuda.attention(
                self.tiles,
                [&saved.q, &saved.k, &saved.v].map(Part::from),
                &mut *attended,
                saved.log_sums.resize(tokens * config.heads)?,
            )?;
            // What a block computes is added to what it read.
            let middle = &mut saved.middle;
            keep_copy(cuda, x, middle)?;
            run(Projection::Output, attended, middle, Write::Add, deltas)?;
            layer.attention_norm.forward(cuda, middle, y)?;

            let up = saved.wide.resize(wide)?;
            run(Projection::Up, y, up, Write::Replace, deltas)?;
            cuda.gelu(&saved.wide, activated.resize(wide)?)?;
            let last = &mut saved.last;
            keep_copy(cuda, y, last)?;
            run(Projection::Down, activated, last, Write::Add, deltas)?;
            layer.output_norm.forward(cuda, last, x)?;
        }

        let pooled = pooled.resize(starts.len() * config.hidden_size)?;
        cuda.gather_rows(&*x, &*starts, &mut *pooled)?;
        head.pooled.resize(pooled.len(), 0.0);
        cuda.read(&*pooled, &mut head.pooled)?;
        head.forward(self.model);
        Ok(())
    }

    /// The backward pass of the deltas, from the gradient of the states in `space.head`.
    fn backward(&self, space: &mut Space) -> Result<(), DeviceError> {
        let (config, weights) = (self.model.config, self.weights);
        let cuda = &weights.cuda;
        let tokens = self.texts.tokens.len();
        let (width, wide) = (
            tokens * config.hidden_size,
            tokens * config.intermediate_size,
        );
        let Space {
            values,
            gradients,
            starts,
            pooled,
            layers,
            y,
            wide: activated,
            dx,
            dy,
            dq,
            dk,
            dv,
            inner_gradient,
            deltas,
            linear: scratch,
            head,
            ..
        } = space;
        let values = &*values;
        put(cuda, pooled, &head.pooled_gradient)?;
        cuda.clear(dx.resize(width)?)?;
        cuda.scatter_rows(&*pooled, &*starts, &mut *dx)?;
        for part in [&mut *dy, &mut *dq, &mut *dk, &mut *dv] {
            part.resize(width)?;
        }

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

            // Feed-forward block: `dy` is the gradient before the output norm, then also that of its input.
            layer.output_norm.backward(cuda, &saved.last, dx, dy)?;
            cuda.gelu(&saved.wide, activated.resize(wide)?)?;
            let dwide = inner_gradient.resize(wide)?;
            let target = Some((&mut *dwide, Write::Replace));
            run(Projection::Down, activated, dy, target)?;
            cuda.gelu_backward(&saved.wide, &mut *dwide)?;
            layer.attention_norm.forward(cuda, &saved.middle, y)?;
            run(Projection::Up, y, dwide, Some((&mut *dy, Write::Add)))?;

            // Attention block: `dx` is the gradient before its norm, then also that of the layer's input.
            layer.attention_norm.backward(cuda, &saved.middle, dy, dx)?;
            let dattended = inner_gradient.resize(width)?;
            let target = Some((&mut *dattended, Write::Replace));
            run(Projection::Output, &saved.attended, dx, target)?;
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
            // Nothing below the first layer is trained, so its input needs no gradient.
            let needed = index > 0;
            let parts = [
                (Projection::Query, &*dq),
                (Projection::Key, &*dk),
                (Projection::Value, &*dv),
            ];
            for (projection, gradient) in parts {
                let target = needed.then_some((&mut *dx, Write::Add));
                run(projection, &saved.x, gradient, target)?;
            }
        }
        Ok(())
    }
}
