//! An encoder's weights: mapped, shared by everything that trains on it or classifies with it.

use crate::batch::check_token_range;
use crate::classifier_config::{ClassifierConfig, ENCODER_LINEARS};
use crate::encoder::{self, Encoder, EncoderLayer, LayerNorm, Texts, Workspace, head_linear};
use crate::error::ModelError;
use crate::linear::{Linear, Trained};
use crate::lora::{HeadWeights, LoraAdapter, Projection};
use crate::weights::{Tensor, WeightFiles};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use zerog_kernels::matmul::{Precision, Weight};
use zerog_kernels::noise::NoiseKey;

/// Standard deviation of a new head's weights, as `initializer_range` of the family.
const INITIAL_DEVIATION: f32 = 0.02;

/// An encoder in memory. Matrices stay in the mapped files; vectors are small and widened to f32.
#[derive(Debug)]
pub struct ClassifierBase {
    pub(crate) config: ClassifierConfig,
    pub(crate) words: Tensor,
    pub(crate) positions: Tensor,
    pub(crate) embedding_norm: NormWeights,
    pub(crate) layers: Vec<LayerWeights>,
    /// The head of a folder that holds one, in the order of [`HEAD`].
    head: [Option<(Vec<f32>, Vec<f32>)>; 2],
    files: WeightFiles,
    sha256: OnceLock<[u8; 32]>,
}

#[derive(Debug)]
pub(crate) struct NormWeights {
    pub(crate) weight: Vec<f32>,
    pub(crate) bias: Vec<f32>,
}

#[derive(Debug)]
pub(crate) struct LayerWeights {
    /// Weight and bias by the index of the projection; the gate is absent.
    pub(crate) linears: [Option<(Tensor, Vec<f32>)>; 7],
    pub(crate) attention_norm: NormWeights,
    pub(crate) output_norm: NormWeights,
}

/// Modules of the head.
pub(crate) const HEAD: [&str; 2] = ["pre_classifier", "classifier"];

impl ClassifierBase {
    /// Maps the model in `directory`: `config.json` and `model.safetensors`, or shards with their index. A head is
    /// read if there is one.
    ///
    /// # Errors
    /// The configuration's (see [`ClassifierConfig::load`]), [`ModelError::MissingWeights`],
    /// [`ModelError::Safetensors`], [`ModelError::MissingTensor`], [`ModelError::TensorShape`] or
    /// [`ModelError::TensorType`].
    pub fn load(directory: &Path) -> Result<Arc<Self>, ModelError> {
        let config = ClassifierConfig::load(directory)?;
        let files = WeightFiles::open(directory)?;
        // A bare encoder's files have no prefix.
        let prefix = if files.contains("embeddings.word_embeddings.weight") {
            ""
        } else {
            "distilbert."
        };
        let hidden = config.hidden_size;
        let matrix = |name: &str, shape: &[usize]| files.tensor(&format!("{prefix}{name}"), shape);
        let vector =
            |name: &str, length: usize| Ok::<_, ModelError>(matrix(name, &[length])?.to_f32());
        let norm = |name: &str| {
            Ok::<_, ModelError>(NormWeights {
                weight: vector(&format!("{name}.weight"), hidden)?,
                bias: vector(&format!("{name}.bias"), hidden)?,
            })
        };
        let layout = config.layout();
        let mut layers = Vec::with_capacity(config.layers);
        for layer in 0..config.layers {
            let path = format!("transformer.layer.{layer}");
            let mut linears = <[Option<(Tensor, Vec<f32>)>; 7]>::default();
            for module in &layout.modules {
                let name = format!("{path}.{}", module.path);
                let weight = matrix(&format!("{name}.weight"), &[module.outputs, module.inputs])?;
                let bias = vector(&format!("{name}.bias"), module.outputs)?;
                linears[module.projection.index()] = Some((weight, bias));
            }
            layers.push(LayerWeights {
                linears,
                attention_norm: norm(&format!("{path}.sa_layer_norm"))?,
                output_norm: norm(&format!("{path}.output_layer_norm"))?,
            });
        }
        let mut head = [None, None];
        for ((name, outputs), place) in HEAD
            .into_iter()
            .zip([hidden, config.labels.len()])
            .zip(&mut head)
        {
            let weight = format!("{name}.weight");
            if files.contains(&weight) {
                let weight = files.tensor(&weight, &[outputs, hidden])?.to_f32();
                let bias = files.tensor(&format!("{name}.bias"), &[outputs])?;
                *place = Some((weight, bias.to_f32()));
            }
        }
        Ok(Arc::new(Self {
            words: matrix(
                "embeddings.word_embeddings.weight",
                &[config.vocabulary_size, hidden],
            )?,
            positions: matrix(
                "embeddings.position_embeddings.weight",
                &[config.maximum_positions, hidden],
            )?,
            embedding_norm: norm("embeddings.LayerNorm")?,
            layers,
            head,
            config,
            files,
            sha256: OnceLock::new(),
        }))
    }

    /// Its configuration.
    pub fn config(&self) -> &ClassifierConfig {
        &self.config
    }

    /// SHA-256 of the weight file in lower-case hexadecimal; for shards, of their bytes one after the other in order
    /// of their names. Computed at the first call, which reads all weights.
    pub fn sha256_hex(&self) -> String {
        hex::encode(self.sha256.get_or_init(|| self.files.sha256()))
    }

    /// Logits of the classes of `tokens`, one text with its special tokens, under `adapter`, which brings the head.
    ///
    /// # Errors
    /// [`ModelError::EmptyBatch`], [`ModelError::TokenOutOfRange`], [`ModelError::SequenceTooLong`],
    /// [`ModelError::AdapterMismatch`].
    pub fn classify(&self, adapter: &LoraAdapter, tokens: &[u32]) -> Result<Vec<f32>, ModelError> {
        self.check_text(tokens)?;
        let shape = |projection| self.config.projection_shape(projection);
        let Some(classes) = adapter.classes() else {
            return Err(ModelError::AdapterMismatch);
        };
        if !adapter.has_shapes(self.config.layers, shape) {
            return Err(ModelError::AdapterMismatch);
        }
        let mut head = self.initial_head(classes, adapter.settings.seed);
        for own in &mut head {
            if let Some(trained) = adapter.head.iter().find(|module| module.name == own.name) {
                *own = trained.clone();
            } else if own.name == HEAD[0] && self.head[0].is_none() {
                // A random layer would give a random answer.
                return Err(ModelError::AdapterMismatch);
            }
        }
        let merged = self.merged(adapter);
        let encoder = self.encoder(
            |layer, projection| match &merged[layer][projection.index()] {
                Some(weight) => Weight::F32(weight),
                None => self.weight(layer, projection),
            },
            head.each_ref(),
        );
        let texts = Texts {
            tokens,
            lengths: &[tokens.len()],
        };
        let mut space = Workspace::default();
        Ok(encoder::classify(
            &encoder,
            texts,
            &mut space,
            Precision::F32,
        ))
    }

    /// For each layer the adapted weights: an encoder is read once for each text, so nothing is gained by keeping
    /// base and delta apart.
    fn merged(&self, adapter: &LoraAdapter) -> Vec<[Option<Vec<f32>>; 7]> {
        (0..self.config.layers)
            .map(|layer| {
                Projection::ALL.map(|projection| {
                    let pair = adapter.pair(layer, projection)?;
                    let weight = self.weight(layer, projection);
                    let mut merged = vec![0.0; weight.len()];
                    let columns = pair.inputs();
                    for (index, row) in merged.chunks_exact_mut(columns).enumerate() {
                        weight.copy_row(index, columns, row);
                    }
                    pair.merge_into(weight, &mut merged);
                    Some(merged)
                })
            })
            .collect()
    }

    /// The head that training starts from: the folder's own where it has one for so many classes, random numbers
    /// from `seed` otherwise.
    pub(crate) fn initial_head(&self, classes: usize, seed: u64) -> [HeadWeights; 2] {
        let hidden = self.config.hidden_size;
        let mut number = 0;
        [(HEAD[0], hidden), (HEAD[1], classes)].map(|(name, outputs)| {
            let key = NoiseKey::new(seed).child(0x4ead).child(number);
            let own = self.head[number as usize]
                .as_ref()
                .filter(|(_, bias)| bias.len() == outputs);
            number += 1;
            match own {
                Some((weight, bias)) => HeadWeights {
                    name,
                    weight: weight.clone(),
                    bias: bias.clone(),
                },
                None => HeadWeights {
                    name,
                    weight: (0..(outputs * hidden) as u64)
                        .map(|index| key.normal(index) * INITIAL_DEVIATION)
                        .collect(),
                    bias: vec![0.0; outputs],
                },
            }
        })
    }

    pub(crate) fn weight(&self, layer: usize, projection: Projection) -> Weight<'_> {
        self.linear_weights(layer, projection).0.weight()
    }

    pub(crate) fn linear_weights(
        &self,
        layer: usize,
        projection: Projection,
    ) -> &(Tensor, Vec<f32>) {
        self.layers[layer].linears[projection.index()]
            .as_ref()
            .expect("an encoder layer has every linear layer but the gate")
    }

    /// The encoder with a frozen head and the weights that `weight` gives.
    pub(crate) fn encoder<'a>(
        &'a self,
        weight: impl Fn(usize, Projection) -> Weight<'a>,
        head: [&'a HeadWeights; 2],
    ) -> Encoder<'a> {
        let linear = |layer, projection| {
            let (outputs, inputs) = self.config.projection_shape(projection);
            Linear {
                outputs,
                inputs,
                weight: Trained::frozen(weight(layer, projection)),
                bias: Some(Trained::frozen(&self.linear_weights(layer, projection).1)),
                delta: None,
            }
        };
        let hidden = self.config.hidden_size;
        let [pre_classifier, classifier] = head.map(|module| {
            head_linear(
                module.bias.len(),
                hidden,
                Trained::frozen(&module.weight),
                Trained::frozen(&module.bias),
            )
        });
        self.with_layers(linear, pre_classifier, classifier)
    }

    /// The encoder with the linear layers that `linear` gives.
    pub(crate) fn with_layers<'a>(
        &'a self,
        linear: impl Fn(usize, Projection) -> Linear<'a>,
        pre_classifier: Linear<'a>,
        classifier: Linear<'a>,
    ) -> Encoder<'a> {
        let layers = self
            .layers
            .iter()
            .enumerate()
            .map(|(index, layer)| EncoderLayer {
                linears: Projection::ALL.map(|projection| {
                    ENCODER_LINEARS
                        .contains(&projection)
                        .then(|| linear(index, projection))
                }),
                attention_norm: layer.attention_norm.borrow(),
                output_norm: layer.output_norm.borrow(),
            })
            .collect();
        Encoder {
            config: &self.config,
            words: self.words.weight(),
            positions: self.positions.weight(),
            embedding_norm: self.embedding_norm.borrow(),
            layers,
            pre_classifier,
            classifier,
        }
    }

    pub(crate) fn check_text(&self, tokens: &[u32]) -> Result<(), ModelError> {
        if tokens.is_empty() {
            return Err(ModelError::EmptyBatch);
        }
        if tokens.len() > self.config.maximum_positions {
            return Err(ModelError::SequenceTooLong {
                tokens: tokens.len(),
                limit: self.config.maximum_positions,
            });
        }
        check_token_range(tokens, self.config.vocabulary_size)
    }
}

impl NormWeights {
    fn borrow(&self) -> LayerNorm<'_> {
        LayerNorm {
            weight: &self.weight,
            bias: &self.bias,
        }
    }
}
