//! The model's tensors in one list, in canonical order. Layers hold indices into it; gradients and moments are lists of the same length.

use crate::tensor::Tensor;
use crate::tensor::cpu::PanelMatrix;
use crate::tensor::cpu::parallel::ELEMENTS;
use crate::tensor::ops::embedding::SparseRows;
use crate::tensor::ops::norm;
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// Index of a tensor in the model's list.
pub(crate) type ParamId = usize;

/// A tensor of the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParamInfo {
    /// Hugging Face's name, or PEFT's for an adapter's.
    pub name: String,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    /// Whether weight decay applies by default (matrices: yes; norms and biases: no).
    pub decay: bool,
}

/// A tensor's numbers.
#[derive(Debug)]
pub(crate) enum ParamData {
    /// `[out, in]`, in panels.
    Matrix(PanelMatrix),
    /// `[n]`.
    Vector(Tensor),
}

impl Clone for ParamData {
    fn clone(&self) -> Self {
        match self {
            Self::Matrix(m) => Self::Matrix(m.clone()),
            Self::Vector(v) => Self::Vector(Tensor::from_vec(v.shape(), v.data().to_vec())),
        }
    }
}

impl ParamData {
    /// Zeros of the shape (one or two dimensions).
    pub fn zeros(shape: &[usize]) -> Self {
        match *shape {
            [n, k] => Self::Matrix(PanelMatrix::zeros(n, k)),
            _ => Self::Vector(Tensor::zeros(shape)),
        }
    }

    /// From row-major numbers.
    pub fn from_rows(shape: &[usize], rows: &[f32]) -> Self {
        match *shape {
            [n, k] => Self::Matrix(PanelMatrix::from_rows(n, k, rows)),
            _ => Self::Vector(Tensor::from_vec(shape, rows.to_vec())),
        }
    }

    /// Row-major numbers.
    pub fn to_rows(&self) -> Vec<f32> {
        match self {
            Self::Matrix(m) => m.to_rows(),
            Self::Vector(v) => v.data().to_vec(),
        }
    }

    /// All numbers in storage order, a matrix's zero padding included.
    pub fn flat(&self) -> &[f32] {
        match self {
            Self::Matrix(m) => m.data(),
            Self::Vector(v) => v.data(),
        }
    }

    /// The same, to be changed.
    pub fn flat_mut(&mut self) -> &mut [f32] {
        match self {
            Self::Matrix(m) => m.data_mut(),
            Self::Vector(v) => v.data_mut(),
        }
    }
}

/// A named tensor of the model. Clones share its numbers until one of them writes, so that a critic with an adapter of its own, or a frozen
/// reference, holds a second copy of what differs alone.
#[derive(Clone, Debug)]
pub(crate) struct Param {
    pub info: ParamInfo,
    pub data: Arc<ParamData>,
    pub trainable: bool,
}

impl Param {
    /// The numbers, to be changed; copied first where a clone shares them.
    pub fn data_mut(&mut self) -> &mut ParamData {
        Arc::make_mut(&mut self.data)
    }
}

/// All tensors: the base's, then the adapter's.
#[derive(Clone, Debug, Default)]
pub(crate) struct Params {
    list: Vec<Param>,
}

impl Params {
    pub fn push(&mut self, param: Param) -> ParamId {
        self.list.push(param);
        self.list.len() - 1
    }

    pub fn all(&self) -> &[Param] {
        &self.list
    }

    pub fn all_mut(&mut self) -> &mut [Param] {
        &mut self.list
    }

    pub fn find(&self, name: &str) -> Option<ParamId> {
        self.list.iter().position(|p| p.info.name == name)
    }

    /// A matrix.
    ///
    /// # Panics
    /// If the tensor is a vector: layers know what they hold.
    pub fn matrix(&self, id: ParamId) -> &PanelMatrix {
        match &*self.list[id].data {
            ParamData::Matrix(m) => m,
            ParamData::Vector(_) => panic!("{} is not a matrix", self.list[id].info.name),
        }
    }

    /// A vector `[n]`.
    ///
    /// # Panics
    /// If the tensor is a matrix.
    pub fn vector(&self, id: ParamId) -> &Tensor {
        match &*self.list[id].data {
            ParamData::Vector(v) => v,
            ParamData::Matrix(_) => panic!("{} is not a vector", self.list[id].info.name),
        }
    }
}

/// CRC-32 of numbers, -0 taken as +0.
fn crc(numbers: &[f32]) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    let mut buffer = [0f32; 2048];
    for part in numbers.chunks(buffer.len()) {
        buffer.iter_mut().zip(part).for_each(|(b, x)| *b = x + 0.0);
        sum.update(bytemuck::cast_slice(&buffer[..part.len()]));
    }
    sum.finalize()
}

/// Gradients of everything that is trained. A backward pass adds to them; see [`Gradients::finish`].
#[derive(Clone, Debug)]
pub struct Gradients {
    slots: Vec<Option<ParamData>>,
    names: Vec<String>,
    /// The embedding's rows, kept apart until all backward passes of the batch are done.
    embedding: Option<(ParamId, SparseRows)>,
}

impl Gradients {
    pub(crate) fn new(params: &Params, embedding: Option<ParamId>) -> Self {
        let list = params.all();
        Self {
            slots: list.iter().map(|p| p.trainable.then(|| ParamData::zeros(&p.info.shape))).collect(),
            names: list.iter().map(|p| p.info.name.clone()).collect(),
            embedding: embedding.filter(|&id| list[id].trainable).map(|id| (id, SparseRows::default())),
        }
    }

    /// Sets every gradient to zero.
    pub fn zero(&mut self) {
        for slot in self.slots.iter_mut().flatten() {
            slot.flat_mut().par_chunks_mut(ELEMENTS).for_each(|part| part.fill(0.0));
        }
        if let Some((_, rows)) = &mut self.embedding {
            rows.clear();
        }
    }

    /// Ends a batch: the embedding's sparse rows join its dense gradient (which a tied head has added to). Called once after the last
    /// backward pass of an optimizer batch, so that its bits do not depend on how the batch was cut; a second call changes nothing.
    pub fn finish(&mut self) {
        if let Some((id, rows)) = &mut self.embedding
            && let Some(ParamData::Matrix(dense)) = &mut self.slots[*id]
        {
            rows.drain_into(dense);
        }
    }

    /// The 2-norm over all gradients, summed in f64 in canonical order.
    pub fn norm(&mut self) -> f64 {
        self.finish();
        self.slots.iter().flatten().map(|s| norm::sum_of_squares(s.flat())).sum::<f64>().sqrt()
    }

    /// Name of the first tensor with a non-finite gradient.
    pub fn first_non_finite(&mut self) -> Option<String> {
        self.finish();
        let bad = self.slots.iter().position(|s| s.as_ref().is_some_and(|s| !norm::all_finite(s.flat())));
        bad.map(|i| self.names[i].clone())
    }

    /// A checksum of all gradients in canonical order: the first 16 hexadecimal digits of SHA-256 over each tensor's name and the CRC-32 of
    /// its numbers (of f32's bytes, every zero taken as +0: the sign of a zero is no part of what is exact). One pass over the memory.
    pub fn checksum(&mut self) -> String {
        self.finish();
        let sums: Vec<u32> = self.slots.par_iter().map(|s| s.as_ref().map_or(0, |s| crc(s.flat()))).collect();
        let mut all = Sha256::new();
        for (name, sum) in self.names.iter().zip(sums).zip(&self.slots).filter_map(|(named, slot)| slot.as_ref().map(|_| named)) {
            all.update(name.as_bytes());
            all.update(sum.to_le_bytes());
        }
        all.finalize()[..8].iter().map(|b| format!("{b:02x}")).collect()
    }

    /// A tensor's gradient, row-major; `None` if it is not trained or there is no such tensor.
    pub fn export(&mut self, name: &str) -> Option<Vec<f32>> {
        self.finish();
        let id = self.names.iter().position(|n| n == name)?;
        self.slots[id].as_ref().map(ParamData::to_rows)
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
}
