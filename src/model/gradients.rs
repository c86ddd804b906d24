//! Gradients of the model's tensors, in a list like theirs.

use crate::Result;
use crate::model::params::{ParamData, ParamId, Params};
use crate::tensor::Tensor;
use crate::tensor::cpu::PanelMatrix;
use crate::tensor::cuda::{Buffer, DType};
use crate::tensor::ops::embedding::SparseRows;
use crate::tensor::ops::embedding::cuda::{self as embedding_cuda, DeviceIds};
use crate::tensor::ops::norm;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

/// Gradients of everything that is trained. A backward pass adds to them; see [`Gradients::finish`].
#[derive(Debug)]
pub struct Gradients {
    slots: Vec<Option<ParamData>>,
    names: Vec<String>,
    /// The embedding's rows, kept apart until all backward passes of the batch are done.
    embedding: Option<(ParamId, SparseRows)>,
    /// The same on a device: each backward pass's tokens with their rows, in order.
    pending: Vec<(DeviceIds, Buffer)>,
}

impl Gradients {
    pub(crate) fn new(params: &Params, embedding: Option<ParamId>) -> Result<Self> {
        let list = params.all();
        Ok(Self {
            slots: list.iter().map(|p| p.trainable.then(|| p.data.zeros_like()).transpose()).collect::<Result<_>>()?,
            names: list.iter().map(|p| p.info.name.clone()).collect(),
            embedding: embedding.filter(|&id| list[id].trainable).map(|id| (id, SparseRows::default())),
            pending: Vec::new(),
        })
    }

    /// Sets every gradient to zero.
    ///
    /// # Errors
    /// If the device failed.
    pub fn zero(&mut self) -> Result<()> {
        self.pending.clear();
        if let Some((_, rows)) = &mut self.embedding {
            rows.clear();
        }
        self.slots.iter_mut().flatten().try_for_each(ParamData::zero)
    }

    /// Ends a batch: the embedding's sparse rows join its dense gradient (which a tied head has added to). Called once after the last
    /// backward pass of an optimizer batch, so that its bits do not depend on how the batch was cut; a second call changes nothing.
    ///
    /// # Errors
    /// If the device failed.
    pub fn finish(&mut self) -> Result<()> {
        let Some((id, rows)) = &mut self.embedding else { return Ok(()) };
        match &mut self.slots[*id] {
            Some(ParamData::Matrix(dense)) => rows.drain_into(dense),
            Some(ParamData::Device(dense)) => {
                for (ids, dx) in std::mem::take(&mut self.pending) {
                    let gpu = dx.gpu().clone();
                    let width = dx.len() / ids.tokens().max(1);
                    embedding_cuda::backward(&gpu, dense.f32_mut(), &dx, &ids, width)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The 2-norm over all gradients, summed in f64 in canonical order.
    ///
    /// # Errors
    /// If the device failed.
    pub fn norm(&mut self) -> Result<f64> {
        self.finish()?;
        let (mut sum, mut on_device) = (0.0, None);
        for slot in self.slots.iter().flatten() {
            match slot {
                ParamData::Device(d) => {
                    if on_device.is_none() {
                        on_device = Some(Buffer::zeros(d.gpu(), DType::F64, 1)?);
                    }
                    d.add_sum_of_squares(on_device.as_mut().expect("it was just made"))?;
                }
                _ => sum += norm::sum_of_squares(slot.flat()),
            }
        }
        if let Some(total) = on_device {
            sum += total.to_f64()?[0];
        }
        Ok(f64::sqrt(sum))
    }

    /// Name of the first tensor with a non-finite gradient.
    ///
    /// # Errors
    /// If the device failed.
    pub fn first_non_finite(&mut self) -> Result<Option<String>> {
        self.finish()?;
        for (slot, name) in self.slots.iter().zip(&self.names) {
            if let Some(slot) = slot
                && !slot.all_finite()?
            {
                return Ok(Some(name.clone()));
            }
        }
        Ok(None)
    }

    /// A checksum of all gradients in canonical order: the first 16 hexadecimal digits of SHA-256 over each tensor's name and the CRC-32 of
    /// its numbers (of f32's bytes, every zero taken as +0: the sign of a zero is no part of what is exact). One pass over the memory.
    ///
    /// # Errors
    /// If the device failed.
    pub fn checksum(&mut self) -> Result<String> {
        self.finish()?;
        let sums: Vec<u32> = self.slots.par_iter().map(|s| s.as_ref().map_or(Ok(0), ParamData::crc)).collect::<Result<_>>()?;
        let mut all = Sha256::new();
        for (name, sum) in self.names.iter().zip(sums).zip(&self.slots).filter_map(|(named, slot)| slot.as_ref().map(|_| named)) {
            all.update(name.as_bytes());
            all.update(sum.to_le_bytes());
        }
        Ok(all.finalize()[..8].iter().map(|b| format!("{b:02x}")).collect())
    }

    /// A tensor's gradient, row-major; `None` if it is not trained or there is no such tensor.
    ///
    /// # Errors
    /// If the device failed.
    pub fn export(&mut self, name: &str) -> Result<Option<Vec<f32>>> {
        self.finish()?;
        let Some(id) = self.names.iter().position(|n| n == name) else { return Ok(None) };
        self.slots[id].as_ref().map(ParamData::to_rows).transpose()
    }

    pub(crate) fn slot(&self, id: ParamId) -> Option<&ParamData> {
        self.slots[id].as_ref()
    }

    pub(crate) fn is_trained(&self, id: ParamId) -> bool {
        self.slots[id].is_some()
    }

    pub(crate) fn matrix_mut(&mut self, id: ParamId) -> Option<&mut PanelMatrix> {
        match &mut self.slots[id] {
            Some(ParamData::Matrix(m)) => Some(m),
            _ => None,
        }
    }

    pub(crate) fn vector_mut(&mut self, id: ParamId) -> Option<&mut Tensor> {
        match &mut self.slots[id] {
            Some(ParamData::Vector(v)) => Some(v),
            _ => None,
        }
    }

    pub(crate) fn add_embedding(&mut self, ids: &[u32], dx: &Tensor) {
        if let Some((_, rows)) = &mut self.embedding {
            rows.add(ids, dx);
        }
    }

    /// A gradient on a device.
    pub(crate) fn buffer_mut(&mut self, id: ParamId) -> Option<&mut Buffer> {
        match &mut self.slots[id] {
            Some(ParamData::Device(d)) => Some(d.f32_mut()),
            _ => None,
        }
    }

    /// [`Gradients::add_embedding`] on a device.
    pub(crate) fn add_embedding_on(&mut self, ids: DeviceIds, dx: Buffer) {
        self.pending.push((ids, dx));
    }
}
