//! Training steps: gradients of packed batches, AdamW updates, exact resume.

use crate::base_model::{self, BaseModel, LayerWeights, TensorSource};
use crate::batch::{PackedBatch, PreferenceBatch, check_tokens};
use crate::config::ModelConfig;
use crate::decoder::{self, Decoder, Layer, PreferenceLoss, Workspace};
use crate::delta::{Delta, DeltaPlaces};
use crate::device::{DeviceTraining, Placement};
use crate::error::ModelError;
use crate::inference::{InferenceScratch, LogitsWanted, Row};
use crate::kv_cache::KvCache;
use crate::linear::{Linear, Trained};
use crate::lora::{LoraAdapter, LoraConfig, Projection};
use crate::noise::Noise;
use crate::parameters::Parameters;
use crate::trainable::Trainable;
use crate::weights::Tensor;
use half::bf16;
use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use zerog_kernels::matmul::{Precision, Weight};
use zerog_kernels::rope::RopeTable;

/// A model in training: an adapter on a frozen base, or every parameter.
///
/// Gradients are of the loss **sum** over supervised tokens. The same calls give the same bits on any number of
/// threads.
#[derive(Debug)]
pub struct TrainableModel {
    mode: Mode,
    parameters: Parameters,
    space: Workspace,
    /// Where the passes run instead of on the processor.
    device: Option<Box<DeviceTraining>>,
    precision: Precision,
}

#[derive(Debug)]
enum Mode {
    Lora {
        base: Arc<BaseModel>,
        lora: LoraConfig,
        places: Vec<[Option<DeltaPlaces>; 7]>,
    },
    Full {
        config: Box<ModelConfig>,
        rope: RopeTable,
        places: FullPlaces,
        seed: u64,
    },
}

#[derive(Debug)]
struct FullPlaces {
    embedding: Range<usize>,
    head: Option<Range<usize>>,
    final_norm: Range<usize>,
    layers: Vec<LayerPlaces>,
}

#[derive(Debug)]
struct LayerPlaces {
    weights: [Range<usize>; 7],
    biases: [Option<Range<usize>>; 7],
    input_norm: Range<usize>,
    post_norm: Range<usize>,
    head_norms: Option<[Range<usize>; 2]>,
}

/// What differs between the batches of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepOptions {
    /// A number that is different for every batch of the run, for example their count so far. Dropout and noise
    /// depend on it and on the seed alone, so that a resumed run repeats them.
    pub batch_number: u64,
    /// Strength of NEFTune noise on the embeddings; 0 for none.
    pub neftune_alpha: f32,
}

/// Loss of one batch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepLoss {
    /// Sum over supervised tokens of the negative logarithm of the target's probability.
    pub loss_sum: f64,
    /// Number of supervised tokens.
    pub supervised_tokens: usize,
}

impl StepLoss {
    /// Loss per supervised token; 0 if there is none.
    pub fn mean(&self) -> f64 {
        if self.supervised_tokens == 0 {
            0.0
        } else {
            self.loss_sum / self.supervised_tokens as f64
        }
    }

    /// Adds another batch.
    pub fn add(&mut self, other: Self) {
        self.loss_sum += other.loss_sum;
        self.supervised_tokens += other.supervised_tokens;
    }
}

/// Whether [`TrainableModel::logits`] uses the adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdapterUse {
    /// The model as trained so far.
    With,
    /// The frozen base model.
    Without,
}

impl TrainableModel {
    /// A new adapter on `base`: `A` random from the seed, `B` zero, so that training starts at the base model.
    ///
    /// # Errors
    /// [`ModelError::InvalidLora`].
    pub fn lora(base: Arc<BaseModel>, lora: LoraConfig) -> Result<Self, ModelError> {
        lora.check()?;
        let mut parameters = Parameters::default();
        let mut places = Vec::new();
        for layer in 0..base.config.layers {
            let mut row = <[Option<DeltaPlaces>; 7]>::default();
            for projection in &lora.targets {
                let (outputs, inputs) = base.config.projection_shape(*projection);
                let name = base_model::linear_name(layer, *projection);
                let weight = base.layers[layer].linears[projection.index()].weight();
                row[projection.index()] = Some(DeltaPlaces::add(
                    &mut parameters,
                    &name,
                    &lora,
                    (layer, *projection),
                    (outputs, inputs),
                    weight,
                ));
            }
            places.push(row);
        }
        let mode = Mode::Lora { base, lora, places };
        Ok(Self {
            mode,
            parameters,
            space: Workspace::default(),
            device: None,
            precision: Precision::F32,
        })
    }

    /// An adapter that continues from `adapter`, with fresh optimiser moments. `lora` must have its rank and
    /// targets.
    ///
    /// # Errors
    /// [`ModelError::InvalidLora`], [`ModelError::AdapterMismatch`].
    pub fn lora_from(
        base: Arc<BaseModel>,
        lora: LoraConfig,
        adapter: &LoraAdapter,
    ) -> Result<Self, ModelError> {
        let mut model = Self::lora(base, lora)?;
        let Mode::Lora { base, lora, places } = &model.mode else {
            unreachable!("just made for an adapter")
        };
        if !adapter.fits(&base.config) {
            return Err(ModelError::AdapterMismatch);
        }
        for (places, pairs) in places.iter().zip(&adapter.layers) {
            for (place, pair) in places.iter().zip(pairs) {
                match (place, pair) {
                    (None, None) => {}
                    (Some(place), Some(pair)) => {
                        place.take_over(&mut model.parameters, pair, lora)?;
                    }
                    _ => return Err(ModelError::AdapterMismatch),
                }
            }
        }
        Ok(model)
    }

    /// All parameters of `base`, in f32. `seed` starts the random numbers of noise.
    pub fn full(base: &BaseModel, seed: u64) -> Self {
        let config = Box::new(base.config.clone());
        let mut parameters = Parameters::default();
        let embedding = parameters.add(
            base_model::EMBEDDING.to_owned(),
            &base.embedding.to_f32(),
            true,
        );
        let head = base
            .head
            .as_ref()
            .map(|head| parameters.add(base_model::HEAD.to_owned(), &head.to_f32(), true));
        let final_norm = parameters.add(base_model::FINAL_NORM.to_owned(), &base.final_norm, false);
        let mut layers = Vec::new();
        for (index, layer) in base.layers.iter().enumerate() {
            let weights = Projection::ALL.map(|projection| {
                let name = format!("{}.weight", base_model::linear_name(index, projection));
                parameters.add(name, &layer.linears[projection.index()].to_f32(), true)
            });
            let biases = Projection::ALL.map(|projection| {
                let name = format!("{}.bias", base_model::linear_name(index, projection));
                layer.biases[projection.index()]
                    .as_ref()
                    .map(|bias| parameters.add(name, bias, false))
            });
            let input_norm =
                parameters.add(base_model::input_norm_name(index), &layer.input_norm, false);
            let post_norm =
                parameters.add(base_model::post_norm_name(index), &layer.post_norm, false);
            let head_norms = layer.head_norms.as_ref().map(|[queries, keys]| {
                let [query_name, key_name] = base_model::head_norm_names(index);
                [
                    parameters.add(query_name, queries, false),
                    parameters.add(key_name, keys, false),
                ]
            });
            layers.push(LayerPlaces {
                weights,
                biases,
                input_norm,
                post_norm,
                head_norms,
            });
        }
        let places = FullPlaces {
            embedding,
            head,
            final_norm,
            layers,
        };
        let mode = Mode::Full {
            rope: base.rope.clone(),
            config,
            places,
            seed,
        };
        Self {
            mode,
            parameters,
            space: Workspace::default(),
            device: None,
            precision: Precision::F32,
        }
    }

    /// Chooses how activations meet bf16 weights; the default is [`Precision::F32`].
    pub fn set_precision(&mut self, precision: Precision) {
        self.precision = precision;
    }

    /// Whether the backward pass computes layers a second time from their inputs instead of keeping what it needs of all of
    /// them (gradient checkpointing). It takes longer and gives the same bits. On a device everything is kept.
    pub fn set_recompute(&mut self, recompute: bool) {
        self.space.recompute = recompute;
    }

    /// Runs the passes of training and evaluation where `placement` says. Parameters and everything that is done with
    /// them stay where they are, and [`TrainableModel::logits`] are the serving code's on the processor.
    ///
    /// # Errors
    /// [`ModelError::WrongMode`] for a device if every parameter is trained; [`ModelError::Device`].
    ///
    /// # Panics
    /// If the placement was made for another base model.
    pub fn place(&mut self, placement: &Placement) -> Result<(), ModelError> {
        let weights = match &self.mode {
            Mode::Lora { base, .. } => placement.weights_of(base),
            Mode::Full { .. } if placement.is_on_device() => {
                return Err(ModelError::WrongMode {
                    operation: "computing on a device",
                });
            }
            Mode::Full { .. } => None,
        };
        self.device = match weights {
            Some(weights) => {
                let decoder = self.mode.decoder(&self.parameters.values);
                Some(Box::new(DeviceTraining::new(weights, &decoder)?))
            }
            None => None,
        };
        Ok(())
    }

    /// The configuration of the model.
    pub fn config(&self) -> &ModelConfig {
        match &self.mode {
            Mode::Lora { base, .. } => &base.config,
            Mode::Full { config, .. } => config,
        }
    }

    /// Loss of `batch`; the gradients of its sum are added to those of earlier calls.
    ///
    /// # Errors
    /// [`ModelError::EmptyBatch`], [`ModelError::BatchLengths`], [`ModelError::TokenOutOfRange`],
    /// [`ModelError::SequenceTooLong`], [`ModelError::LossNotFinite`].
    pub fn forward_backward(
        &mut self,
        batch: &PackedBatch,
        options: &StepOptions,
    ) -> Result<StepLoss, ModelError> {
        batch.check(self.config())?;
        let (seed, dropout) = match &self.mode {
            Mode::Lora { lora, .. } => (lora.seed, lora.dropout),
            Mode::Full { seed, .. } => (*seed, 0.0),
        };
        let noise = Noise::new(seed, options.batch_number, dropout, options.neftune_alpha);
        let Parameters {
            values, gradients, ..
        } = &mut self.parameters;
        let decoder = self.mode.decoder(values);
        let (space, precision) = (&mut self.space, self.precision);
        if let Some(device) = &mut self.device {
            return finite(
                device.forward_backward(&decoder, values, batch, &noise, gradients, precision)?,
            );
        }
        // Inside the pool from the start: entering it once is cheaper than once for every operation.
        let loss = rayon::scope(|_| {
            decoder::forward_backward(&decoder, batch, &noise, gradients, space, precision)
        });
        finite(loss)
    }

    /// Loss of `batch` without dropout, noise or gradients.
    ///
    /// # Errors
    /// As [`TrainableModel::forward_backward`].
    pub fn eval_loss(&mut self, batch: &PackedBatch) -> Result<StepLoss, ModelError> {
        batch.check(self.config())?;
        let values = &self.parameters.values;
        let decoder = self.mode.decoder(values);
        let (space, precision) = (&mut self.space, self.precision);
        if let Some(device) = &mut self.device {
            return finite(device.evaluate(&decoder, values, batch, precision)?);
        }
        finite(rayon::scope(|_| {
            decoder::evaluate(&decoder, batch, space, precision)
        }))
    }

    /// Loss of pairs of answers with strength `beta`, the frozen base model being the reference; the gradients of
    /// its sum are added to those of earlier calls.
    ///
    /// # Errors
    /// As [`TrainableModel::forward_backward`]; [`ModelError::WrongMode`] if every parameter is trained.
    pub fn preference_forward_backward(
        &mut self,
        batch: &PreferenceBatch,
        beta: f64,
        options: &StepOptions,
    ) -> Result<PreferenceLoss, ModelError> {
        self.preference(batch, beta, Some(options))
    }

    /// As [`TrainableModel::preference_forward_backward`] without dropout, noise or gradients.
    ///
    /// # Errors
    /// The same.
    pub fn preference_eval(
        &mut self,
        batch: &PreferenceBatch,
        beta: f64,
    ) -> Result<PreferenceLoss, ModelError> {
        self.preference(batch, beta, None)
    }

    fn preference(
        &mut self,
        batch: &PreferenceBatch,
        beta: f64,
        options: Option<&StepOptions>,
    ) -> Result<PreferenceLoss, ModelError> {
        let packed = batch.packed();
        packed.check(self.config())?;
        let Mode::Lora { base, lora, .. } = &self.mode else {
            return Err(ModelError::WrongMode {
                operation: "training on preferences",
            });
        };
        let noise = options.map(|options| {
            let StepOptions {
                batch_number,
                neftune_alpha,
            } = *options;
            Noise::new(lora.seed, batch_number, lora.dropout, neftune_alpha)
        });
        let reference = base.decoder(|_, _| None);
        let Parameters {
            values, gradients, ..
        } = &mut self.parameters;
        let decoder = self.mode.decoder(values);
        let (space, precision) = (&mut self.space, self.precision);
        let training = noise.as_ref().map(|noise| (noise, &mut gradients[..]));
        let loss = match &mut self.device {
            Some(device) => {
                let models = (&decoder, &reference);
                device.preference_loss(models, values, packed, beta, training, precision)?
            }
            None => rayon::scope(|_| {
                decoder::preference_loss(
                    &decoder, &reference, packed, beta, training, space, precision,
                )
            }),
        };
        if !loss.loss_sum.is_finite() {
            return Err(ModelError::LossNotFinite);
        }
        Ok(loss)
    }

    /// A copy of the adapter as trained so far.
    ///
    /// # Errors
    /// [`ModelError::WrongMode`] if every parameter is trained.
    pub fn adapter(&self) -> Result<LoraAdapter, ModelError> {
        let Mode::Lora { base, lora, places } = &self.mode else {
            return Err(ModelError::WrongMode {
                operation: "taking an adapter",
            });
        };
        let values = &self.parameters.values;
        let pair = |place: &DeltaPlaces| place.pair(values, lora);
        let layers = places
            .iter()
            .map(|row| std::array::from_fn(|index| row[index].as_ref().map(pair)))
            .collect();
        Ok(LoraAdapter {
            settings: lora.clone(),
            layers,
            head: Vec::new(),
            layout: base.config.layout(),
        })
    }

    /// The model as trained so far, rounded to bf16.
    ///
    /// # Errors
    /// [`ModelError::WrongMode`] if an adapter is trained.
    pub fn to_base_model(&self) -> Result<BaseModel, ModelError> {
        let Mode::Full { config, .. } = &self.mode else {
            return Err(ModelError::WrongMode {
                operation: "making a base model",
            });
        };
        let places = self.parameters.slots().collect();
        BaseModel::build(
            ModelConfig::clone(config),
            &mut ParameterSource {
                values: &self.parameters.values,
                places,
            },
        )
    }

    /// Writes the model as trained so far: `config.json` and `model.safetensors` in bf16.
    ///
    /// # Errors
    /// [`ModelError::WrongMode`], [`ModelError::Io`].
    pub fn save_base_model(&self, directory: &Path) -> Result<(), ModelError> {
        self.to_base_model()?.save(directory)
    }

    /// Logits after the last of `tokens`, computed by the serving code: an engine that loads the saved adapter
    /// gets the same bits.
    ///
    /// # Errors
    /// [`ModelError::EmptyBatch`], [`ModelError::TokenOutOfRange`], [`ModelError::SequenceTooLong`];
    /// [`ModelError::WrongMode`] for the base model's logits when there is none.
    pub fn logits(&self, tokens: &[u32], adapter: AdapterUse) -> Result<Vec<f32>, ModelError> {
        check_tokens(tokens, self.config())?;
        let trained;
        let (base, adapter) = match (&self.mode, adapter) {
            (Mode::Lora { base, .. }, AdapterUse::With) => {
                (&**base, Some(Arc::new(self.adapter()?)))
            }
            (Mode::Lora { base, .. }, AdapterUse::Without) => (&**base, None),
            (Mode::Full { .. }, AdapterUse::With) => {
                trained = self.to_base_model()?;
                (&trained, None)
            }
            (Mode::Full { .. }, AdapterUse::Without) => {
                return Err(ModelError::WrongMode {
                    operation: "computing the base model's logits",
                });
            }
        };
        let mut cache = KvCache::new(&base.config, tokens.len());
        let mut rows = [Row {
            tokens,
            cache: &mut cache,
            adapter,
            wanted: LogitsWanted::Last,
        }];
        let mut logits = base.forward(&mut rows, &mut InferenceScratch::default())?;
        Ok(logits.swap_remove(0))
    }
}

impl Trainable for TrainableModel {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn parameters_mut(&mut self) -> &mut Parameters {
        &mut self.parameters
    }
}

fn finite(loss: zerog_kernels::cross_entropy::HeadLoss) -> Result<StepLoss, ModelError> {
    if !loss.loss_sum.is_finite() {
        return Err(ModelError::LossNotFinite);
    }
    Ok(StepLoss {
        loss_sum: loss.loss_sum,
        supervised_tokens: loss.supervised_tokens,
    })
}

impl Mode {
    /// The weights of a step: the base with deltas from `values`, or `values` alone.
    fn decoder<'a>(&'a self, values: &'a [f32]) -> Decoder<'a> {
        match self {
            Self::Lora { base, lora, places } => base.decoder(|layer, index| {
                places[layer][index]
                    .as_ref()
                    .map(|place| Delta::of(place, values, lora))
            }),
            Self::Full {
                config,
                rope,
                places,
                ..
            } => {
                let matrix = |range: &Range<usize>| Trained {
                    value: Weight::F32(&values[range.clone()]),
                    gradient: Some(range.clone()),
                };
                let vector = |range: &Range<usize>| Trained {
                    value: &values[range.clone()],
                    gradient: Some(range.clone()),
                };
                Decoder {
                    config,
                    rope,
                    embedding: matrix(&places.embedding),
                    head: matrix(places.head.as_ref().unwrap_or(&places.embedding)),
                    final_norm: vector(&places.final_norm),
                    layers: places
                        .layers
                        .iter()
                        .map(|layer| Layer {
                            linears: Projection::ALL.map(|projection| {
                                let index = projection.index();
                                let (outputs, inputs) = config.projection_shape(projection);
                                Linear {
                                    outputs,
                                    inputs,
                                    weight: matrix(&layer.weights[index]),
                                    bias: layer.biases[index].as_ref().map(vector),
                                    delta: None,
                                }
                            }),
                            input_norm: vector(&layer.input_norm),
                            post_norm: vector(&layer.post_norm),
                            head_norms: layer
                                .head_norms
                                .as_ref()
                                .map(|norms| norms.each_ref().map(vector)),
                        })
                        .collect(),
                }
            }
        }
    }
}

impl BaseModel {
    /// The frozen model with the deltas that `delta` gives for a layer and the index of a linear layer.
    fn decoder<'a>(&'a self, delta: impl Fn(usize, usize) -> Option<Delta<'a>>) -> Decoder<'a> {
        let layer = |(number, layer): (usize, &'a LayerWeights)| Layer {
            linears: Projection::ALL.map(|projection| {
                let index = projection.index();
                let (outputs, inputs) = self.config.projection_shape(projection);
                Linear {
                    outputs,
                    inputs,
                    weight: Trained::frozen(layer.linears[index].weight()),
                    bias: layer.biases[index].as_deref().map(Trained::frozen),
                    delta: delta(number, index),
                }
            }),
            input_norm: Trained::frozen(&layer.input_norm[..]),
            post_norm: Trained::frozen(&layer.post_norm[..]),
            head_norms: layer
                .head_norms
                .as_ref()
                .map(|norms| norms.each_ref().map(|norm| Trained::frozen(&norm[..]))),
        };
        Decoder {
            config: &self.config,
            rope: &self.rope,
            embedding: Trained::frozen(self.embedding.weight()),
            head: Trained::frozen(self.head_weight()),
            final_norm: Trained::frozen(&self.final_norm),
            layers: self.layers.iter().enumerate().map(layer).collect(),
        }
    }
}

/// Trained parameters as the tensors of a base model.
struct ParameterSource<'a> {
    values: &'a [f32],
    places: HashMap<&'a str, Range<usize>>,
}

impl ParameterSource<'_> {
    fn rounded(&self, name: &str) -> Result<Vec<bf16>, ModelError> {
        let missing = || ModelError::MissingTensor {
            name: name.to_owned(),
        };
        let range = self.places.get(name).cloned().ok_or_else(missing)?;
        Ok(self.values[range]
            .iter()
            .map(|value| bf16::from_f32(*value))
            .collect())
    }
}

impl TensorSource for ParameterSource<'_> {
    fn matrix(&mut self, name: &str, _: &[usize]) -> Result<Tensor, ModelError> {
        Ok(Tensor::Bf16(Arc::new(self.rounded(name)?)))
    }

    fn vector(&mut self, name: &str, _: usize) -> Result<Vec<f32>, ModelError> {
        Ok(self.rounded(name)?.into_iter().map(bf16::to_f32).collect())
    }
}
