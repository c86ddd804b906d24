//! What a forward pass keeps for the backward pass.

use crate::Result;
use crate::model::block::Saved as SavedBlock;
use crate::model::device;
use crate::tensor::Tensor;
use crate::tensor::cuda::Buffer;
use crate::tensor::ops::token_logprob;
use std::borrow::Cow;

/// Activations that a backward pass needs.
pub struct Saved(pub(super) SavedOn<SavedHead, device::Saved>);

/// Activations that the backward pass below the head needs.
pub struct SavedTrunk(pub(super) SavedOn<Trunk, device::SavedTrunk>);

/// Where activations are.
pub(super) enum SavedOn<C, D> {
    Cpu(C),
    Device(D),
}

/// On the processor.
pub(super) struct SavedHead {
    pub trunk: Trunk,
    pub head: token_logprob::Saved,
    pub temperature: f32,
}

/// On the processor, below the head.
pub(super) struct Trunk {
    pub blocks: Vec<SavedLayer>,
    pub last: Tensor,
    pub rstd: Tensor,
    pub predicting: Tensor,
}

impl Saved {
    /// The hidden states that predict, as [`Transformer::predicting`](super::Transformer::predicting) gives them.
    ///
    /// # Errors
    /// If the device failed.
    pub fn predicting(&self) -> Result<Cow<'_, Tensor>> {
        match &self.0 {
            SavedOn::Cpu(saved) => Ok(Cow::Borrowed(&saved.trunk.predicting)),
            SavedOn::Device(saved) => download(&saved.trunk.predicting, saved.trunk.width).map(Cow::Owned),
        }
    }
}

impl SavedTrunk {
    /// The hidden states that predict, as [`Transformer::predicting`](super::Transformer::predicting) gives them.
    ///
    /// # Errors
    /// If the device failed.
    pub fn predicting(&self) -> Result<Cow<'_, Tensor>> {
        match &self.0 {
            SavedOn::Cpu(saved) => Ok(Cow::Borrowed(&saved.predicting)),
            SavedOn::Device(saved) => download(&saved.predicting, saved.width).map(Cow::Owned),
        }
    }
}

/// Rows of `width` from a device.
pub(super) fn download(rows: &Buffer, width: usize) -> Result<Tensor> {
    Ok(Tensor::from_vec(&[rows.len() / width, width], rows.to_f32()?))
}

/// A block's activations, or, with activation checkpointing, its input alone.
pub(super) enum SavedLayer {
    Full(Box<SavedBlock>),
    Input(Tensor),
}
