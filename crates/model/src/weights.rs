//! Weights in safetensors files: one file or shards with an index, mapped and used in place.

use crate::error::ModelError;
use half::{bf16, f16};
use safetensors::tensor::{Dtype, Metadata, SafeTensors, TensorView};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use zerog_kernels::map::MappedFile;
use zerog_kernels::matmul::{Int8Weight, Weight, int8};

/// Name of an unsharded weight file.
pub(crate) const WEIGHTS_FILE: &str = "model.safetensors";
/// Name of the index of sharded weights.
pub(crate) const INDEX_FILE: &str = "model.safetensors.index.json";

/// A matrix or vector, mapped or in memory.
#[derive(Clone, Debug)]
pub(crate) enum Tensor {
    /// Little-endian bf16 in a mapped file, aligned.
    MappedBf16 {
        file: Arc<MappedFile>,
        start: usize,
        end: usize,
    },
    /// Little-endian f32 in a mapped file, aligned.
    MappedF32 {
        file: Arc<MappedFile>,
        start: usize,
        end: usize,
    },
    /// bf16 in memory.
    Bf16(Arc<Vec<bf16>>),
    /// f32 in memory; also where f16 files go, which fit into f32 exactly.
    F32(Arc<Vec<f32>>),
    /// Rounded to 8 bits in memory, for serving; `inputs` columns.
    Int8 {
        values: Arc<Vec<i8>>,
        scales: Arc<Vec<bf16>>,
        inputs: usize,
    },
}

impl Tensor {
    pub(crate) fn weight(&self) -> Weight<'_> {
        match self {
            Self::MappedBf16 { file, start, end } => {
                Weight::Bf16(bytemuck::cast_slice(&file[*start..*end]))
            }
            Self::MappedF32 { file, start, end } => {
                Weight::F32(bytemuck::cast_slice(&file[*start..*end]))
            }
            Self::Bf16(values) => Weight::Bf16(values),
            Self::F32(values) => Weight::F32(values),
            Self::Int8 {
                values,
                scales,
                inputs,
            } => Weight::Int8(Int8Weight::new(values, scales, *inputs)),
        }
    }

    /// All elements as f32.
    pub(crate) fn to_f32(&self) -> Vec<f32> {
        let weight = self.weight();
        let mut values = vec![0.0; weight.len()];
        let columns = match self {
            Self::Int8 { inputs, .. } => *inputs,
            _ => values.len(),
        };
        for (index, row) in values.chunks_exact_mut(columns.max(1)).enumerate() {
            weight.copy_row(index, columns, row);
        }
        values
    }

    /// Bytes that it takes.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::MappedBf16 { start, end, .. } | Self::MappedF32 { start, end, .. } => end - start,
            Self::Bf16(values) => values.len() * 2,
            Self::F32(values) => values.len() * 4,
            Self::Int8 { values, scales, .. } => values.len() + scales.len() * 2,
        }
    }

    /// The same matrix with `inputs` columns, rounded to 8 bits.
    pub(crate) fn quantized(&self, inputs: usize) -> Self {
        let (values, scales) = int8::quantize(self.weight(), inputs);
        Self::Int8 {
            values: Arc::new(values),
            scales: Arc::new(scales),
            inputs,
        }
    }
}

/// The weight files of a model's folder.
#[derive(Debug)]
pub(crate) struct WeightFiles {
    files: Vec<OpenFile>,
    /// Tensor name to index of its file.
    names: HashMap<String, usize>,
}

#[derive(Debug)]
struct OpenFile {
    map: Arc<MappedFile>,
    data_start: usize,
    metadata: Metadata,
}

#[derive(serde::Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl WeightFiles {
    /// Opens the weights of `directory` and reads their headers.
    pub(crate) fn open(directory: &Path) -> Result<Self, ModelError> {
        let single = directory.join(WEIGHTS_FILE);
        let index = directory.join(INDEX_FILE);
        let paths: Vec<PathBuf> = if single.is_file() {
            vec![single]
        } else if index.is_file() {
            let bytes = std::fs::read(&index).map_err(ModelError::io(&index))?;
            let parsed: Index =
                serde_json::from_slice(&bytes).map_err(|source| ModelError::Json {
                    path: index.clone(),
                    source,
                })?;
            let names: BTreeSet<String> = parsed.weight_map.into_values().collect();
            // A shard is a plain file name: the index may not point outside the folder.
            for name in &names {
                if Path::new(name)
                    .file_name()
                    .is_none_or(|plain| plain != name.as_str())
                {
                    return Err(ModelError::UnsupportedSetting {
                        setting: "weight_map",
                        value: name.clone(),
                    });
                }
            }
            names.into_iter().map(|name| directory.join(name)).collect()
        } else {
            return Err(ModelError::MissingWeights {
                directory: directory.to_owned(),
            });
        };
        let mut files = Vec::new();
        let mut names = HashMap::new();
        for path in paths {
            let map = Arc::new(MappedFile::open(&path).map_err(ModelError::io(&path))?);
            let (header, metadata) = SafeTensors::read_metadata(&map)
                .map_err(|source| ModelError::Safetensors { path, source })?;
            for name in metadata.offset_keys() {
                names.insert(name, files.len());
            }
            files.push(OpenFile {
                map,
                data_start: header + 8,
                metadata,
            });
        }
        Ok(Self { files, names })
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        self.names.contains_key(name)
    }

    /// The tensor `name`, which must have `shape`.
    pub(crate) fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, ModelError> {
        let missing = || ModelError::MissingTensor {
            name: name.to_owned(),
        };
        let file = &self.files[*self.names.get(name).ok_or_else(missing)?];
        let info = file.metadata.info(name).ok_or_else(missing)?;
        if info.shape != shape {
            return Err(ModelError::TensorShape {
                name: name.to_owned(),
                expected: shape.to_vec(),
                found: info.shape.clone(),
            });
        }
        let (start, end) = (
            file.data_start + info.data_offsets.0,
            file.data_start + info.data_offsets.1,
        );
        let bytes = &file.map[start..end];
        let map = file.map.clone();
        // A file whose header has an odd length puts its data at odd addresses; it is copied.
        let tensor = match info.dtype {
            Dtype::BF16 if bytemuck::try_cast_slice::<u8, bf16>(bytes).is_ok() => {
                Tensor::MappedBf16 {
                    file: map,
                    start,
                    end,
                }
            }
            Dtype::F32 if bytemuck::try_cast_slice::<u8, f32>(bytes).is_ok() => Tensor::MappedF32 {
                file: map,
                start,
                end,
            },
            dtype => Tensor::F32(Arc::new(decode(name, dtype, bytes)?)),
        };
        Ok(tensor)
    }

    /// SHA-256 of the bytes of the weight file; of all shards one after the other in order of their names.
    pub(crate) fn sha256(&self) -> [u8; 32] {
        let mut hasher = Sha256::new();
        for file in &self.files {
            hasher.update(&file.map[..]);
        }
        hasher.finalize().into()
    }
}

/// The elements of little-endian `bytes` as f32.
pub(crate) fn decode(name: &str, dtype: Dtype, bytes: &[u8]) -> Result<Vec<f32>, ModelError> {
    let pairs = || bytes.as_chunks::<2>().0.iter();
    match dtype {
        Dtype::F32 => Ok(bytes
            .as_chunks::<4>()
            .0
            .iter()
            .map(|value| f32::from_le_bytes(*value))
            .collect()),
        Dtype::BF16 => Ok(pairs()
            .map(|value| bf16::from_le_bytes(*value).to_f32())
            .collect()),
        Dtype::F16 => Ok(pairs()
            .map(|value| f16::from_le_bytes(*value).to_f32())
            .collect()),
        other => Err(ModelError::TensorType {
            name: name.to_owned(),
            found: format!("{other:?}"),
        }),
    }
}

/// A tensor to be written.
pub(crate) struct NamedTensor {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) dtype: Dtype,
    pub(crate) bytes: Vec<u8>,
}

impl NamedTensor {
    pub(crate) fn bf16(name: String, shape: Vec<usize>, values: Weight<'_>) -> Self {
        let bytes = match values {
            Weight::Int8(_) => {
                let columns = shape.last().copied().unwrap_or(1).max(1);
                let mut row = vec![0.0; columns];
                (0..values.len() / columns)
                    .flat_map(|index| {
                        values.copy_row(index, columns, &mut row);
                        row.iter()
                            .flat_map(|value| bf16::from_f32(*value).to_le_bytes())
                            .collect::<Vec<u8>>()
                    })
                    .collect()
            }
            Weight::F32(values) => values
                .iter()
                .flat_map(|value| bf16::from_f32(*value).to_le_bytes())
                .collect(),
            Weight::Bf16(values) => values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect(),
        };
        Self {
            name,
            shape,
            dtype: Dtype::BF16,
            bytes,
        }
    }

    pub(crate) fn f32(name: String, shape: Vec<usize>, values: &[f32]) -> Self {
        let bytes = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        Self {
            name,
            shape,
            dtype: Dtype::F32,
            bytes,
        }
    }
}

/// The bytes of a safetensors file; the same tensors always give the same bytes.
pub(crate) fn serialize(tensors: &[NamedTensor]) -> Result<Vec<u8>, safetensors::SafeTensorError> {
    let views: Vec<(&str, TensorView<'_>)> = tensors
        .iter()
        .map(|tensor| {
            Ok((
                tensor.name.as_str(),
                TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes)?,
            ))
        })
        .collect::<Result<_, safetensors::SafeTensorError>>()?;
    // `transformers` refuses files that do not name their framework.
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize(views, Some(metadata))
}

/// Writes a file under a temporary name, flushes it and renames it into place.
pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> Result<(), ModelError> {
    use std::io::Write as _;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    let partial = path.with_file_name(name);
    let write = || -> std::io::Result<()> {
        let mut file = std::fs::File::create(&partial)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&partial, path)
    };
    write().map_err(|source| {
        // The rename did not happen, so only the partial file can be left.
        let _ = std::fs::remove_file(&partial);
        ModelError::Io {
            path: path.to_owned(),
            source,
        }
    })
}
