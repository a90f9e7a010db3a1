//! The frozen weights in the memory of a device.

use crate::base_model::BaseModel;
use crate::classifier_base::{ClassifierBase, NormWeights};
use crate::encoder::NORM_EPSILON;
use crate::lora::Projection;
use half::bf16;
use std::sync::Arc;
use zerog_kernels::cuda::{Buffer, Cuda, DeviceRope, Libraries, Table};
use zerog_kernels::device::DeviceError;
use zerog_kernels::matmul::Weight;

/// The weights of a base model on a device, in the element types of its files.
#[derive(Debug)]
pub(crate) struct DeviceWeights {
    pub(super) cuda: Cuda,
    pub(super) base: Arc<BaseModel>,
    pub(super) rope: DeviceRope,
    pub(super) embedding: Matrix,
    head: Option<Matrix>,
    pub(super) layers: Vec<LayerOnDevice>,
    pub(super) final_norm: Buffer<f32>,
}

#[derive(Debug)]
pub(super) struct LayerOnDevice {
    pub(super) linears: [LinearOnDevice; 7],
    pub(super) input_norm: Buffer<f32>,
    pub(super) post_norm: Buffer<f32>,
    pub(super) head_norms: Option<[Buffer<f32>; 2]>,
}

#[derive(Debug)]
pub(super) struct LinearOnDevice {
    pub(super) weight: Matrix,
    pub(super) bias: Option<Buffer<f32>>,
}

#[derive(Debug)]
pub(super) enum Matrix {
    F32(Buffer<f32>),
    Bf16(Buffer<bf16>),
}

impl Matrix {
    fn upload(cuda: &Cuda, weight: Weight<'_>) -> Result<Self, DeviceError> {
        match weight {
            Weight::F32(values) => Ok(Self::F32(cuda.upload(values)?)),
            Weight::Bf16(values) => Ok(Self::Bf16(cuda.upload(values)?)),
            Weight::Int8(_) => Err(DeviceError::Unsupported {
                what: "a model whose weights are rounded to 8 bits".to_owned(),
            }),
        }
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::Bf16(values) => values.len(),
        }
    }

    /// Whether the numbers are bf16.
    pub(super) fn is_narrow(&self) -> bool {
        matches!(self, Self::Bf16(_))
    }

    pub(super) fn table(&self) -> Table<'_> {
        match self {
            Self::F32(values) => Table::F32(values.into()),
            Self::Bf16(values) => Table::Bf16(values.into()),
        }
    }
}

impl LinearOnDevice {
    fn upload(cuda: &Cuda, weight: Weight<'_>, bias: Option<&[f32]>) -> Result<Self, DeviceError> {
        Ok(Self {
            weight: Matrix::upload(cuda, weight)?,
            bias: bias.map(|bias| cuda.upload(bias)).transpose()?,
        })
    }
}

impl DeviceWeights {
    /// Opens GPU number `ordinal` and copies the weights there.
    pub(crate) fn upload(base: &Arc<BaseModel>, ordinal: u32) -> Result<Self, DeviceError> {
        Self::of(base, Cuda::open(ordinal, &Libraries::System)?)
    }

    pub(crate) fn of(base: &Arc<BaseModel>, cuda: Cuda) -> Result<Self, DeviceError> {
        let layers = base.layers.iter().map(|layer| {
            let mut linears = Vec::with_capacity(7);
            for (tensor, bias) in layer.linears.iter().zip(&layer.biases) {
                let (weight, bias) = (tensor.weight(), bias.as_deref());
                linears.push(LinearOnDevice::upload(&cuda, weight, bias)?);
            }
            let Ok(linears) = <[LinearOnDevice; 7]>::try_from(linears) else {
                unreachable!("one for each of seven")
            };
            let head_norms = match &layer.head_norms {
                Some([queries, keys]) => Some([cuda.upload(queries)?, cuda.upload(keys)?]),
                None => None,
            };
            Ok(LayerOnDevice {
                linears,
                input_norm: cuda.upload(&layer.input_norm)?,
                post_norm: cuda.upload(&layer.post_norm)?,
                head_norms,
            })
        });
        let layers = layers.collect::<Result<_, DeviceError>>()?;
        let head = base.head.as_ref();
        Ok(Self {
            rope: cuda.upload_rope(&base.rope)?,
            embedding: Matrix::upload(&cuda, base.embedding.weight())?,
            head: head
                .map(|head| Matrix::upload(&cuda, head.weight()))
                .transpose()?,
            layers,
            final_norm: cuda.upload(&base.final_norm)?,
            base: Arc::clone(base),
            cuda,
        })
    }

    pub(super) fn head(&self) -> &Matrix {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    /// The matrices of all products, the head's last.
    pub(super) fn matrices(&self) -> impl Iterator<Item = &Matrix> {
        let linears = self.layers.iter().flat_map(|layer| &layer.linears);
        linears.map(|linear| &linear.weight).chain([self.head()])
    }

    pub(crate) fn is_of(&self, base: &Arc<BaseModel>) -> bool {
        Arc::ptr_eq(&self.base, base)
    }

    pub(crate) fn free_bytes(&self) -> Result<usize, DeviceError> {
        self.cuda.free_bytes()
    }
}

/// The weights of an encoder on a device, in the element types of its files. The head stays on the host.
#[derive(Debug)]
pub(crate) struct EncoderWeights {
    pub(super) cuda: Cuda,
    base: Arc<ClassifierBase>,
    pub(super) words: Matrix,
    pub(super) positions: Matrix,
    pub(super) embedding_norm: LayerNormOnDevice,
    pub(super) layers: Vec<EncoderLayerOnDevice>,
}

#[derive(Debug)]
pub(super) struct EncoderLayerOnDevice {
    /// By the index of the projection; the gate is absent.
    linears: [Option<LinearOnDevice>; 7],
    pub(super) attention_norm: LayerNormOnDevice,
    pub(super) output_norm: LayerNormOnDevice,
}

/// Weight and bias of a normalisation by mean and variance.
#[derive(Debug)]
pub(super) struct LayerNormOnDevice {
    weight: Buffer<f32>,
    bias: Buffer<f32>,
}

impl EncoderWeights {
    /// Opens GPU number `ordinal` and copies the weights there.
    pub(crate) fn upload(base: &Arc<ClassifierBase>, ordinal: u32) -> Result<Self, DeviceError> {
        Self::of(base, Cuda::open(ordinal, &Libraries::System)?)
    }

    pub(crate) fn of(base: &Arc<ClassifierBase>, cuda: Cuda) -> Result<Self, DeviceError> {
        let norm = |weights: &NormWeights| LayerNormOnDevice::upload(&cuda, weights);
        let layers = base.layers.iter().map(|layer| {
            let mut linears = <[Option<LinearOnDevice>; 7]>::default();
            for (place, linear) in linears.iter_mut().zip(&layer.linears) {
                if let Some((weight, bias)) = linear {
                    let bias = Some(&bias[..]);
                    *place = Some(LinearOnDevice::upload(&cuda, weight.weight(), bias)?);
                }
            }
            Ok(EncoderLayerOnDevice {
                linears,
                attention_norm: norm(&layer.attention_norm)?,
                output_norm: norm(&layer.output_norm)?,
            })
        });
        Ok(Self {
            layers: layers.collect::<Result<_, DeviceError>>()?,
            words: Matrix::upload(&cuda, base.words.weight())?,
            positions: Matrix::upload(&cuda, base.positions.weight())?,
            embedding_norm: norm(&base.embedding_norm)?,
            base: Arc::clone(base),
            cuda,
        })
    }

    pub(crate) fn is_of(&self, base: &Arc<ClassifierBase>) -> bool {
        Arc::ptr_eq(&self.base, base)
    }

    pub(crate) fn free_bytes(&self) -> Result<usize, DeviceError> {
        self.cuda.free_bytes()
    }
}

impl EncoderLayerOnDevice {
    pub(super) fn linear(&self, projection: Projection) -> &LinearOnDevice {
        self.linears[projection.index()]
            .as_ref()
            .expect("an encoder layer has every linear layer but the gate")
    }
}

impl LayerNormOnDevice {
    fn upload(cuda: &Cuda, weights: &NormWeights) -> Result<Self, DeviceError> {
        Ok(Self {
            weight: cuda.upload(&weights.weight)?,
            bias: cuda.upload(&weights.bias)?,
        })
    }

    pub(super) fn forward(
        &self,
        cuda: &Cuda,
        x: &Buffer<f32>,
        y: &mut Buffer<f32>,
    ) -> Result<(), DeviceError> {
        cuda.layer_norm(x, &self.weight, &self.bias, NORM_EPSILON, y)
    }

    /// From the gradient `dy` of the output, that of the input `x`.
    pub(super) fn backward(
        &self,
        cuda: &Cuda,
        x: &Buffer<f32>,
        dy: &Buffer<f32>,
        dx: &mut Buffer<f32>,
    ) -> Result<(), DeviceError> {
        cuda.layer_norm_backward(x, &self.weight, NORM_EPSILON, dy, dx)
    }
}
