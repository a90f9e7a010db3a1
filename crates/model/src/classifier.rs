//! Training a classifier: low-rank deltas in the frozen encoder, and a head that is trained whole.

use crate::classifier_base::{ClassifierBase, HEAD};
use crate::classifier_config::ENCODER_LINEARS;
use crate::delta::{Delta, DeltaPlaces};
use crate::device::{DeviceClassifier, Placement};
use crate::encoder::{self, Encoder, Texts, Workspace, head_linear};
use crate::error::ModelError;
use crate::linear::{Linear, Trained};
use crate::lora::{HeadWeights, LoraAdapter, LoraConfig, Projection};
use crate::noise::Noise;
use crate::parameters::Parameters;
use crate::trainable::Trainable;
use crate::training::{AdapterUse, StepLoss, StepOptions};
use std::ops::Range;
use std::sync::Arc;
use zerog_kernels::matmul::Precision;

/// Texts with their classes, laid end to end without padding.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClassifierBatch {
    /// Token ids of all texts, special tokens included.
    pub tokens: Vec<u32>,
    /// Lengths of the texts; they add up to the number of tokens.
    pub lengths: Vec<usize>,
    /// The class of each text.
    pub labels: Vec<u32>,
}

impl ClassifierBatch {
    /// Appends a text.
    pub fn push(&mut self, tokens: &[u32], label: u32) {
        self.tokens.extend_from_slice(tokens);
        self.lengths.push(tokens.len());
        self.labels.push(label);
    }

    fn texts(&self) -> Texts<'_> {
        Texts {
            tokens: &self.tokens,
            lengths: &self.lengths,
        }
    }
}

/// A classifier in training. Gradients are of the loss **sum** over texts; the same calls give the same bits on any
/// number of threads.
#[derive(Debug)]
pub struct TrainableClassifier {
    base: Arc<ClassifierBase>,
    lora: LoraConfig,
    classes: usize,
    places: Vec<[Option<DeltaPlaces>; 7]>,
    /// Weight and bias of each module of the head.
    head: [[Range<usize>; 2]; 2],
    parameters: Parameters,
    space: Workspace,
    /// Where the encoder is passed instead of on the processor.
    device: Option<Box<DeviceClassifier>>,
    precision: Precision,
}

impl TrainableClassifier {
    /// A new adapter on `base` for `classes` classes: `A` random from the seed, `B` zero, the head as
    /// [`ClassifierBase`] has it or random from the seed.
    ///
    /// # Errors
    /// [`ModelError::InvalidLora`], also for a target that the encoder does not have.
    pub fn new(
        base: Arc<ClassifierBase>,
        lora: LoraConfig,
        classes: usize,
    ) -> Result<Self, ModelError> {
        lora.check()?;
        let encoder_has = |target: &Projection| ENCODER_LINEARS.contains(target);
        if !lora.targets.iter().all(encoder_has) {
            return Err(ModelError::InvalidLora {
                setting: "target_modules",
                value: lora.targets.len() as f64,
            });
        }
        if classes == 0 {
            return Err(ModelError::InvalidLora {
                setting: "classes",
                value: 0.0,
            });
        }
        let layout = base.config.layout();
        let mut parameters = Parameters::default();
        let mut places = Vec::with_capacity(base.config.layers);
        for layer in 0..base.config.layers {
            let mut row = <[Option<DeltaPlaces>; 7]>::default();
            for module in &layout.modules {
                if lora.targets.contains(&module.projection) {
                    let name = layout.module_path(layer, module);
                    let weight = base.weight(layer, module.projection);
                    row[module.projection.index()] = Some(DeltaPlaces::add(
                        &mut parameters,
                        &name,
                        &lora,
                        (layer, module.projection),
                        (module.outputs, module.inputs),
                        weight,
                    ));
                }
            }
            places.push(row);
        }
        let head = base.initial_head(classes, lora.seed).map(|module| {
            let name = |part: &str| format!("{}.{part}", module.name);
            [
                parameters.add(name("weight"), &module.weight, true),
                parameters.add(name("bias"), &module.bias, false),
            ]
        });
        Ok(Self {
            base,
            lora,
            classes,
            places,
            head,
            parameters,
            space: Workspace::default(),
            device: None,
            precision: Precision::F32,
        })
    }

    /// Continues from `adapter`, with fresh optimiser moments. `lora` must have its rank, scale and targets.
    ///
    /// # Errors
    /// [`ModelError::InvalidLora`], [`ModelError::AdapterMismatch`].
    pub fn from_adapter(
        base: Arc<ClassifierBase>,
        lora: LoraConfig,
        adapter: &LoraAdapter,
    ) -> Result<Self, ModelError> {
        let classes = adapter.classes().ok_or(ModelError::AdapterMismatch)?;
        let mut model = Self::new(base, lora, classes)?;
        let shape = |projection| model.base.config.projection_shape(projection);
        if !adapter.has_shapes(model.base.config.layers, shape) {
            return Err(ModelError::AdapterMismatch);
        }
        for (places, pairs) in model.places.iter().zip(&adapter.layers) {
            for (place, pair) in places.iter().zip(pairs) {
                match (place, pair) {
                    (None, None) => {}
                    (Some(place), Some(pair)) => {
                        place.take_over(&mut model.parameters, pair, &model.lora)?;
                    }
                    _ => return Err(ModelError::AdapterMismatch),
                }
            }
        }
        for module in &adapter.head {
            let place = HEAD.iter().position(|name| *name == module.name);
            let [weight, bias] = place
                .map(|place| model.head[place].clone())
                .filter(|[weight, bias]| {
                    weight.len() == module.weight.len() && bias.len() == module.bias.len()
                })
                .ok_or(ModelError::AdapterMismatch)?;
            model.parameters.values[weight].copy_from_slice(&module.weight);
            model.parameters.values[bias].copy_from_slice(&module.bias);
        }
        Ok(model)
    }

    /// Chooses how activations meet bf16 weights; the default is [`Precision::F32`].
    pub fn set_precision(&mut self, precision: Precision) {
        self.precision = precision;
    }

    /// Runs the passes of the encoder where `placement` says. The head, parameters and everything that is done with them
    /// stay where they are.
    ///
    /// # Errors
    /// [`ModelError::Device`].
    ///
    /// # Panics
    /// If the placement was made for another base model.
    pub fn place(&mut self, placement: &Placement) -> Result<(), ModelError> {
        self.device = match placement.encoder_of(&self.base) {
            Some(weights) => {
                let values = &self.parameters.values;
                let encoder = trained_encoder(
                    &self.base,
                    &self.lora,
                    self.classes,
                    &self.places,
                    &self.head,
                    values,
                );
                Some(Box::new(DeviceClassifier::new(weights, &encoder)?))
            }
            None => None,
        };
        Ok(())
    }

    /// The encoder.
    pub fn base(&self) -> &Arc<ClassifierBase> {
        &self.base
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// Loss of `batch`; the gradients of its sum are added to those of earlier calls.
    ///
    /// # Errors
    /// [`ModelError::EmptyBatch`], [`ModelError::BatchLengths`], [`ModelError::TokenOutOfRange`],
    /// [`ModelError::SequenceTooLong`], [`ModelError::LossNotFinite`], [`ModelError::Device`].
    pub fn forward_backward(
        &mut self,
        batch: &ClassifierBatch,
        options: &StepOptions,
    ) -> Result<StepLoss, ModelError> {
        self.check(batch)?;
        let noise = Noise::new(
            self.lora.seed,
            options.batch_number,
            self.lora.dropout,
            options.neftune_alpha,
        );
        let Parameters {
            values, gradients, ..
        } = &mut self.parameters;
        let encoder = trained_encoder(
            &self.base,
            &self.lora,
            self.classes,
            &self.places,
            &self.head,
            values,
        );
        let (space, precision) = (&mut self.space, self.precision);
        let (texts, labels) = (batch.texts(), &batch.labels[..]);
        let loss_sum = match &mut self.device {
            Some(device) => {
                let values = &values[..deltas_end(&self.head)];
                let labelled = (texts, labels);
                device.forward_backward(&encoder, values, labelled, &noise, gradients, precision)?
            }
            None => rayon::scope(|_| {
                encoder::forward_backward(
                    &encoder, texts, labels, &noise, gradients, space, precision,
                )
            }),
        };
        if !loss_sum.is_finite() {
            return Err(ModelError::LossNotFinite);
        }
        Ok(StepLoss {
            loss_sum,
            supervised_tokens: batch.labels.len(),
        })
    }

    /// Logits of every text of `batch`, one row each, without dropout and noise. Labels are not looked at.
    ///
    /// # Errors
    /// As [`TrainableClassifier::forward_backward`].
    pub fn logits(
        &mut self,
        batch: &ClassifierBatch,
        adapter: AdapterUse,
    ) -> Result<Vec<Vec<f32>>, ModelError> {
        self.check(batch)?;
        let initial;
        let encoder = match adapter {
            AdapterUse::With => trained_encoder(
                &self.base,
                &self.lora,
                self.classes,
                &self.places,
                &self.head,
                &self.parameters.values,
            ),
            AdapterUse::Without => {
                initial = self.base.initial_head(self.classes, self.lora.seed);
                let weight = |layer, projection| self.base.weight(layer, projection);
                self.base.encoder(weight, initial.each_ref())
            }
        };
        let (space, precision) = (&mut self.space, self.precision);
        let texts = batch.texts();
        let logits = match &mut self.device {
            Some(device) => {
                let values = &self.parameters.values[..deltas_end(&self.head)];
                device.classify(&encoder, values, texts, precision)?
            }
            None => rayon::scope(|_| encoder::classify(&encoder, texts, space, precision)),
        };
        Ok(logits
            .chunks_exact(self.classes)
            .map(<[f32]>::to_vec)
            .collect())
    }

    /// Negative logarithm of the probability that `logits` give to `label`.
    pub fn loss(logits: &[f32], label: u32) -> f64 {
        encoder::loss_of(&mut logits.to_vec(), label as usize)
    }

    /// A copy of the adapter with its head as trained so far.
    pub fn adapter(&self) -> LoraAdapter {
        let values = &self.parameters.values;
        let layers = self
            .places
            .iter()
            .map(|row| {
                std::array::from_fn(|index| {
                    let place = row[index].as_ref()?;
                    Some(place.pair(values, &self.lora))
                })
            })
            .collect();
        let mut names = HEAD.into_iter();
        let head = self.head.each_ref().map(|[weight, bias]| HeadWeights {
            name: names.next().unwrap_or_default(),
            weight: values[weight.clone()].to_vec(),
            bias: values[bias.clone()].to_vec(),
        });
        LoraAdapter {
            settings: self.lora.clone(),
            layers,
            head: head.into(),
            layout: self.base.config.layout(),
        }
    }

    fn check(&self, batch: &ClassifierBatch) -> Result<(), ModelError> {
        let total: usize = batch.lengths.iter().sum();
        if batch.labels.is_empty() {
            return Err(ModelError::EmptyBatch);
        }
        if total != batch.tokens.len() || batch.labels.len() != batch.lengths.len() {
            return Err(ModelError::BatchLengths {
                tokens: batch.tokens.len(),
                targets: batch.labels.len(),
                segments: total,
            });
        }
        let mut rest = batch.tokens.as_slice();
        for length in &batch.lengths {
            let (text, after) = rest.split_at(*length);
            self.base.check_text(text)?;
            rest = after;
        }
        match batch
            .labels
            .iter()
            .find(|label| **label as usize >= self.classes)
        {
            Some(label) => Err(ModelError::TokenOutOfRange {
                token: i64::from(*label),
                vocabulary: self.classes,
            }),
            None => Ok(()),
        }
    }
}

impl Trainable for TrainableClassifier {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn parameters_mut(&mut self) -> &mut Parameters {
        &mut self.parameters
    }
}

/// Where the parameters of the deltas end, which come before those of the head.
fn deltas_end(head: &[[Range<usize>; 2]; 2]) -> usize {
    head[0][0].start
}

/// The encoder with deltas and head from `values`.
fn trained_encoder<'a>(
    base: &'a ClassifierBase,
    lora: &LoraConfig,
    classes: usize,
    places: &'a [[Option<DeltaPlaces>; 7]],
    head: &[[Range<usize>; 2]; 2],
    values: &'a [f32],
) -> Encoder<'a> {
    let hidden = base.config.hidden_size;
    let linear = |layer: usize, projection: Projection| {
        let (outputs, inputs) = base.config.projection_shape(projection);
        let (weight, bias) = base.linear_weights(layer, projection);
        Linear {
            outputs,
            inputs,
            weight: Trained::frozen(weight.weight()),
            bias: Some(Trained::frozen(bias)),
            delta: places[layer][projection.index()]
                .as_ref()
                .map(|place| Delta::of(place, values, lora)),
        }
    };
    let vector = |range: &Range<usize>| Trained {
        value: &values[range.clone()],
        gradient: Some(range.clone()),
    };
    let module = |outputs, [weight, bias]: &[Range<usize>; 2]| {
        head_linear(outputs, hidden, vector(weight), vector(bias))
    };
    base.with_layers(linear, module(hidden, &head[0]), module(classes, &head[1]))
}
