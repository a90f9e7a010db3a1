//! The frozen weights in the memory of a device.

use crate::base_model::BaseModel;
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

impl DeviceWeights {
    /// Opens GPU number `ordinal` and copies the weights there.
    pub(crate) fn upload(base: &Arc<BaseModel>, ordinal: u32) -> Result<Self, DeviceError> {
        Self::of(base, Cuda::open(ordinal, &Libraries::System)?)
    }

    pub(crate) fn of(base: &Arc<BaseModel>, cuda: Cuda) -> Result<Self, DeviceError> {
        let layers = base.layers.iter().map(|layer| {
            let mut linears = Vec::with_capacity(7);
            for (tensor, bias) in layer.linears.iter().zip(&layer.biases) {
                linears.push(LinearOnDevice {
                    weight: Matrix::upload(&cuda, tensor.weight())?,
                    bias: bias.as_ref().map(|bias| cuda.upload(bias)).transpose()?,
                });
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
