//! What stands for the device in a program without code for one: nothing that can exist.

use crate::base_model::BaseModel;
use crate::batch::PackedBatch;
use crate::classifier_base::ClassifierBase;
use crate::decoder::{Decoder, PreferenceLoss};
use crate::encoder::{Encoder, Texts};
use crate::error::ModelError;
use crate::inference::Row;
use crate::kv_cache::KvPool;
use crate::noise::Noise;
use crate::serving::ServingSizes;
use std::ops::Range;
use std::sync::Arc;
use zerog_kernels::cross_entropy::HeadLoss;
use zerog_kernels::device::{Device, DeviceError};
use zerog_kernels::matmul::Precision;

#[derive(Debug)]
pub(crate) enum DeviceWeights {}

impl DeviceWeights {
    pub(crate) fn upload(_: &Arc<BaseModel>, ordinal: u32) -> Result<Self, DeviceError> {
        let device = Device::Cuda(ordinal);
        Err(DeviceError::NotBuilt { device })
    }

    pub(crate) fn is_of(&self, _: &Arc<BaseModel>) -> bool {
        match *self {}
    }

    pub(crate) fn free_bytes(&self) -> Result<usize, DeviceError> {
        match *self {}
    }
}

#[derive(Debug)]
pub(crate) enum EncoderWeights {}

impl EncoderWeights {
    pub(crate) fn upload(_: &Arc<ClassifierBase>, ordinal: u32) -> Result<Self, DeviceError> {
        let device = Device::Cuda(ordinal);
        Err(DeviceError::NotBuilt { device })
    }

    pub(crate) fn is_of(&self, _: &Arc<ClassifierBase>) -> bool {
        match *self {}
    }

    pub(crate) fn free_bytes(&self) -> Result<usize, DeviceError> {
        match *self {}
    }
}

/// Blocks of keys and values.
#[derive(Debug)]
pub(crate) enum DeviceCache {}

impl DeviceCache {
    pub(crate) fn blocks(&self) -> usize {
        match *self {}
    }

    pub(crate) fn take(&self) -> Option<u32> {
        match *self {}
    }

    pub(crate) fn give_back(&self, _: u32) {
        match *self {}
    }

    pub(crate) fn copy(&self, _: u32, _: u32) -> Result<(), DeviceError> {
        match *self {}
    }
}

#[derive(Debug)]
pub(crate) enum DeviceServing {}

impl DeviceServing {
    pub(crate) fn new(
        weights: Arc<DeviceWeights>,
        _: &ServingSizes,
    ) -> Result<(Self, DeviceCache), ModelError> {
        match *weights {}
    }

    pub(crate) fn forward(
        &mut self,
        _: &Arc<KvPool>,
        _: &mut [Row<'_>],
    ) -> Result<Vec<Range<usize>>, ModelError> {
        match *self {}
    }

    pub(crate) fn fitting_blocks(&self) -> usize {
        match *self {}
    }

    pub(crate) fn is_rounded(&self) -> bool {
        match *self {}
    }

    pub(crate) fn logits(&self, _: Range<usize>) -> &[f32] {
        match *self {}
    }
}

#[derive(Debug)]
pub(crate) enum DeviceTraining {}

impl DeviceTraining {
    pub(crate) fn new(weights: Arc<DeviceWeights>, _: &Decoder<'_>) -> Result<Self, DeviceError> {
        match *weights {}
    }

    pub(crate) fn evaluate(
        &mut self,
        _: &Decoder<'_>,
        _: &[f32],
        _: &PackedBatch,
        _: Precision,
    ) -> Result<HeadLoss, DeviceError> {
        match *self {}
    }

    pub(crate) fn forward_backward(
        &mut self,
        _: &Decoder<'_>,
        _: &[f32],
        _: &PackedBatch,
        _: &Noise,
        _: &mut [f32],
        _: Precision,
    ) -> Result<HeadLoss, DeviceError> {
        match *self {}
    }

    pub(crate) fn preference_loss(
        &mut self,
        _: (&Decoder<'_>, &Decoder<'_>),
        _: &[f32],
        _: &PackedBatch,
        _: f64,
        _: Option<(&Noise, &mut [f32])>,
        _: Precision,
    ) -> Result<PreferenceLoss, DeviceError> {
        match *self {}
    }
}

#[derive(Debug)]
pub(crate) enum DeviceClassifier {}

impl DeviceClassifier {
    pub(crate) fn new(weights: Arc<EncoderWeights>, _: &Encoder<'_>) -> Result<Self, DeviceError> {
        match *weights {}
    }

    pub(crate) fn classify(
        &mut self,
        _: &Encoder<'_>,
        _: &[f32],
        _: Texts<'_>,
        _: Precision,
    ) -> Result<Vec<f32>, DeviceError> {
        match *self {}
    }

    pub(crate) fn forward_backward(
        &mut self,
        _: &Encoder<'_>,
        _: &[f32],
        _: (Texts<'_>, &[u32]),
        _: &Noise,
        _: &mut [f32],
        _: Precision,
    ) -> Result<f64, DeviceError> {
        match *self {}
    }
}
