//! A base model: configuration and weights, shared by everything that runs it.

use crate::config::{CONFIG_FILE, ModelConfig};
use crate::error::ModelError;
use crate::lora::Projection;
use crate::weights::{NamedTensor, Tensor, WEIGHTS_FILE, WeightFiles, serialize, write_file};
use half::bf16;
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use zerog_kernels::matmul::Weight;
use zerog_kernels::noise::NoiseKey;
use zerog_kernels::rope::RopeTable;

/// Standard deviation of random weights, as `initializer_range` of the family.
const INITIAL_DEVIATION: f32 = 0.02;

/// A base model in memory. Matrices stay in the mapped files; vectors are small and widened to f32.
#[derive(Debug)]
pub struct BaseModel {
    pub(crate) config: ModelConfig,
    pub(crate) embedding: Tensor,
    /// Absent if the embedding is also the head.
    pub(crate) head: Option<Tensor>,
    pub(crate) layers: Vec<LayerWeights>,
    pub(crate) final_norm: Vec<f32>,
    pub(crate) rope: RopeTable,
    files: Option<WeightFiles>,
    sha256: OnceLock<[u8; 32]>,
}

#[derive(Debug)]
pub(crate) struct LayerWeights {
    pub(crate) linears: [Tensor; 7],
    pub(crate) biases: [Option<Vec<f32>>; 7],
    pub(crate) input_norm: Vec<f32>,
    pub(crate) post_norm: Vec<f32>,
    /// Norms of the heads of queries and keys, where the family has them.
    pub(crate) head_norms: Option<[Vec<f32>; 2]>,
}

/// Where a model's tensors come from: files, random numbers or trained parameters.
pub(crate) trait TensorSource {
    fn matrix(&mut self, name: &str, shape: &[usize]) -> Result<Tensor, ModelError>;
    fn vector(&mut self, name: &str, length: usize) -> Result<Vec<f32>, ModelError>;
}

pub(crate) const EMBEDDING: &str = "model.embed_tokens.weight";
pub(crate) const HEAD: &str = "lm_head.weight";
pub(crate) const FINAL_NORM: &str = "model.norm.weight";

pub(crate) fn linear_name(layer: usize, projection: Projection) -> String {
    format!("model.layers.{layer}.{}", projection.path())
}

pub(crate) fn input_norm_name(layer: usize) -> String {
    format!("model.layers.{layer}.input_layernorm.weight")
}

pub(crate) fn post_norm_name(layer: usize) -> String {
    format!("model.layers.{layer}.post_attention_layernorm.weight")
}

/// The norms of the heads of queries and keys.
pub(crate) fn head_norm_names(layer: usize) -> [String; 2] {
    ["q_norm", "k_norm"].map(|norm| format!("model.layers.{layer}.self_attn.{norm}.weight"))
}

impl BaseModel {
    /// Maps the model in `directory`: `config.json` and `model.safetensors`, or shards with their index.
    ///
    /// # Errors
    /// The configuration's (see [`ModelConfig::load`]), [`ModelError::MissingWeights`],
    /// [`ModelError::Safetensors`], [`ModelError::MissingTensor`], [`ModelError::TensorShape`] or
    /// [`ModelError::TensorType`].
    pub fn load(directory: &Path) -> Result<Arc<Self>, ModelError> {
        let config = ModelConfig::load(directory)?;
        let mut files = WeightFiles::open(directory)?;
        let mut model = Self::build(config, &mut files)?;
        model.files = Some(files);
        Ok(Arc::new(model))
    }

    /// A model with random weights from `seed`, rounded to bf16: normal matrices, unit norms, zero biases.
    ///
    /// # Errors
    /// [`ModelError::InvalidSetting`].
    pub fn init_random(config: ModelConfig, seed: u64) -> Result<Arc<Self>, ModelError> {
        let key = NoiseKey::new(seed).child(0xba5e);
        Ok(Arc::new(Self::build(
            config,
            &mut RandomSource { key, next: 0 },
        )?))
    }

    pub(crate) fn build(
        config: ModelConfig,
        source: &mut dyn TensorSource,
    ) -> Result<Self, ModelError> {
        config.check()?;
        let hidden = config.hidden_size;
        let table = [config.vocabulary_size, hidden];
        let embedding = source.matrix(EMBEDDING, &table)?;
        let head = if config.tied_embeddings {
            None
        } else {
            Some(source.matrix(HEAD, &table)?)
        };
        let mut layers = Vec::with_capacity(config.layers);
        for layer in 0..config.layers {
            let mut linears = Vec::with_capacity(7);
            let mut biases = <[Option<Vec<f32>>; 7]>::default();
            for projection in Projection::ALL {
                let (outputs, inputs) = config.projection_shape(projection);
                let name = linear_name(layer, projection);
                linears.push(source.matrix(&format!("{name}.weight"), &[outputs, inputs])?);
                if config.has_bias(projection) {
                    biases[projection.index()] =
                        Some(source.vector(&format!("{name}.bias"), outputs)?);
                }
            }
            let Ok(linears) = <[Tensor; 7]>::try_from(linears) else {
                unreachable!("one tensor for each of seven")
            };
            let input_norm = source.vector(&input_norm_name(layer), hidden)?;
            let post_norm = source.vector(&post_norm_name(layer), hidden)?;
            let head_norms = match config.head_norms {
                true => {
                    let [queries, keys] = head_norm_names(layer);
                    Some([
                        source.vector(&queries, config.head_size)?,
                        source.vector(&keys, config.head_size)?,
                    ])
                }
                false => None,
            };
            layers.push(LayerWeights {
                linears,
                biases,
                input_norm,
                post_norm,
                head_norms,
            });
        }
        let final_norm = source.vector(FINAL_NORM, hidden)?;
        let rope = config
            .rope
            .table(config.head_size, config.maximum_positions);
        Ok(Self {
            config,
            embedding,
            head,
            layers,
            final_norm,
            rope,
            files: None,
            sha256: OnceLock::new(),
        })
    }

    /// Its configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The same model with its matrices rounded to 8 bits, one scale for 32 numbers: about half the memory of bf16 and
    /// less to read for each token. Its hash stays that of the weights that it was made from.
    pub fn quantized(&self) -> Arc<Self> {
        let hidden = self.config.hidden_size;
        let layers = self
            .layers
            .par_iter()
            .map(|layer| LayerWeights {
                linears: std::array::from_fn(|index| {
                    let (_, inputs) = self.config.projection_shape(Projection::ALL[index]);
                    layer.linears[index].quantized(inputs)
                }),
                biases: layer.biases.clone(),
                input_norm: layer.input_norm.clone(),
                post_norm: layer.post_norm.clone(),
                head_norms: layer.head_norms.clone(),
            })
            .collect();
        Arc::new(Self {
            config: self.config.clone(),
            embedding: self.embedding.quantized(hidden),
            head: self.head.as_ref().map(|head| head.quantized(hidden)),
            layers,
            final_norm: self.final_norm.clone(),
            rope: self.rope.clone(),
            files: None,
            sha256: OnceLock::from(self.sha256()),
        })
    }

    /// Whether its matrices are rounded, so that its logits are near those of its weights and not equal to them.
    pub fn is_quantized(&self) -> bool {
        matches!(self.embedding, Tensor::Int8 { .. })
    }

    /// Bytes of the matrices, in memory or mapped.
    pub fn matrix_bytes(&self) -> usize {
        let layers = self.layers.iter().flat_map(|layer| &layer.linears);
        layers
            .chain([&self.embedding])
            .chain(&self.head)
            .map(Tensor::bytes)
            .sum()
    }

    /// SHA-256 of the weight file; for shards, of their bytes one after the other in order of their names.
    ///
    /// A model that was not loaded has the hash that its file would have after [`BaseModel::save`]. Computed at
    /// the first call, which reads all weights.
    pub fn sha256(&self) -> [u8; 32] {
        *self.sha256.get_or_init(|| match &self.files {
            Some(files) => files.sha256(),
            None => Sha256::digest(
                self.to_safetensors()
                    .expect("the model's own tensors serialise"),
            )
            .into(),
        })
    }

    /// [`BaseModel::sha256`] in lower-case hexadecimal.
    pub fn sha256_hex(&self) -> String {
        hex::encode(self.sha256())
    }

    /// Writes `config.json` and `model.safetensors` (bf16) into `directory`, each in one step.
    ///
    /// # Errors
    /// [`ModelError::Io`].
    pub fn save(&self, directory: &Path) -> Result<(), ModelError> {
        std::fs::create_dir_all(directory).map_err(ModelError::io(directory))?;
        let path: PathBuf = directory.join(WEIGHTS_FILE);
        let bytes = self
            .to_safetensors()
            .map_err(|source| ModelError::Safetensors {
                path: path.clone(),
                source,
            })?;
        write_file(&path, &bytes)?;
        write_file(
            &directory.join(CONFIG_FILE),
            self.config.to_json().as_bytes(),
        )
    }

    fn to_safetensors(&self) -> Result<Vec<u8>, safetensors::SafeTensorError> {
        let config = &self.config;
        let mut tensors = Vec::new();
        let mut add = |name: String, shape: Vec<usize>, values: Weight<'_>| {
            tensors.push(NamedTensor::bf16(name, shape, values));
        };
        let table = vec![config.vocabulary_size, config.hidden_size];
        add(EMBEDDING.to_owned(), table.clone(), self.embedding.weight());
        if let Some(head) = &self.head {
            add(HEAD.to_owned(), table, head.weight());
        }
        for (layer, weights) in self.layers.iter().enumerate() {
            for projection in Projection::ALL {
                let (outputs, inputs) = config.projection_shape(projection);
                let name = linear_name(layer, projection);
                let weight = weights.linears[projection.index()].weight();
                add(format!("{name}.weight"), vec![outputs, inputs], weight);
                if let Some(bias) = &weights.biases[projection.index()] {
                    add(format!("{name}.bias"), vec![outputs], Weight::F32(bias));
                }
            }
            add(
                input_norm_name(layer),
                vec![config.hidden_size],
                Weight::F32(&weights.input_norm),
            );
            add(
                post_norm_name(layer),
                vec![config.hidden_size],
                Weight::F32(&weights.post_norm),
            );
            for (name, norm) in head_norm_names(layer)
                .into_iter()
                .zip(weights.head_norms.iter().flatten())
            {
                add(name, vec![config.head_size], Weight::F32(norm));
            }
        }
        add(
            FINAL_NORM.to_owned(),
            vec![config.hidden_size],
            Weight::F32(&self.final_norm),
        );
        serialize(&tensors)
    }

    /// The head `(V, H)`.
    pub(crate) fn head_weight(&self) -> Weight<'_> {
        self.head.as_ref().unwrap_or(&self.embedding).weight()
    }
}

impl TensorSource for WeightFiles {
    fn matrix(&mut self, name: &str, shape: &[usize]) -> Result<Tensor, ModelError> {
        // Some published files repeat a tied head under its own name only.
        let name = if name == EMBEDDING && !self.contains(name) && self.contains(HEAD) {
            HEAD
        } else {
            name
        };
        self.tensor(name, shape)
    }

    fn vector(&mut self, name: &str, length: usize) -> Result<Vec<f32>, ModelError> {
        Ok(self.tensor(name, &[length])?.to_f32())
    }
}

struct RandomSource {
    key: NoiseKey,
    next: u64,
}

impl TensorSource for RandomSource {
    fn matrix(&mut self, _: &str, shape: &[usize]) -> Result<Tensor, ModelError> {
        let key = self.key.child(self.next);
        self.next += 1;
        let count: usize = shape.iter().product();
        let values = (0..count as u64)
            .map(|index| bf16::from_f32(key.normal(index) * INITIAL_DEVIATION))
            .collect();
        Ok(Tensor::Bf16(Arc::new(values)))
    }

    fn vector(&mut self, name: &str, length: usize) -> Result<Vec<f32>, ModelError> {
        Ok(vec![
            if name.ends_with(".bias") { 0.0 } else { 1.0 };
            length
        ])
    }
}
