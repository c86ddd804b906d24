//! The model's tensors in one list, in canonical order. Layers hold indices into it; gradients and moments are lists of the same length.

use crate::Result;
use crate::model::device::DeviceNumbers;
use crate::model::mixed::MixedMatrix;
use crate::tensor::cpu::parallel::ELEMENTS;
use crate::tensor::cpu::{Compute, PanelMatrix, Weight};
use crate::tensor::cuda::{Buffer, Gpu};
use crate::tensor::ops::norm;
use crate::tensor::{Device, Tensor};
use rayon::prelude::*;
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
    /// `[out, in]`, in panels of bf16 that products read, with its master.
    Mixed(MixedMatrix),
    /// `[n]`.
    Vector(Tensor),
    /// Of any shape, row-major, on a device.
    Device(DeviceNumbers),
}

impl ParamData {
    /// Zeros of the shape (one or two dimensions) on the processor.
    pub fn zeros(shape: &[usize]) -> Self {
        match *shape {
            [n, k] => Self::Matrix(PanelMatrix::zeros(n, k)),
            _ => Self::Vector(Tensor::zeros(shape)),
        }
    }

    /// A weight's row-major numbers, on the processor.
    pub fn from_rows(compute: Compute, shape: &[usize], rows: &[f32]) -> Self {
        match (compute, shape) {
            (Compute::F32, &[n, k]) => Self::Matrix(PanelMatrix::from_rows(n, k, rows)),
            (Compute::Bf16, &[n, k]) => Self::Mixed(MixedMatrix::new(PanelMatrix::from_rows(n, k, rows))),
            _ => Self::Vector(Tensor::from_vec(shape, rows.to_vec())),
        }
    }

    /// Zeros of the same shape in the same place: a gradient or a moment.
    pub fn zeros_like(&self) -> Result<Self> {
        Ok(match self {
            Self::Matrix(m) => Self::Matrix(PanelMatrix::zeros(m.n(), m.k())),
            Self::Mixed(m) => Self::Matrix(PanelMatrix::zeros(m.bf16().n(), m.bf16().k())),
            Self::Vector(v) => Self::Vector(Tensor::zeros(v.shape())),
            Self::Device(d) => Self::Device(d.zeros_like()?),
        })
    }

    /// A copy with memory of its own.
    pub fn try_clone(&self) -> Result<Self> {
        Ok(match self {
            Self::Matrix(m) => Self::Matrix(m.clone()),
            Self::Mixed(m) => Self::Mixed(m.clone()),
            Self::Vector(v) => Self::Vector(Tensor::from_vec(v.shape(), v.data().to_vec())),
            Self::Device(d) => Self::Device(d.try_clone()?),
        })
    }

    /// Row-major numbers.
    pub fn to_rows(&self) -> Result<Vec<f32>> {
        match self {
            Self::Matrix(m) => Ok(m.to_rows()),
            Self::Mixed(m) => Ok(m.to_rows()),
            Self::Vector(v) => Ok(v.data().to_vec()),
            Self::Device(d) => d.to_rows(),
        }
    }

    /// Replaces the numbers by row-major ones, as many as there are.
    pub fn set_rows(&mut self, rows: &[f32]) -> Result<()> {
        match self {
            Self::Matrix(m) => m.set_rows(rows),
            Self::Mixed(m) => m.set_rows(rows),
            Self::Vector(v) => v.data_mut().copy_from_slice(rows),
            Self::Device(d) => d.set_rows(rows)?,
        }
        Ok(())
    }

    /// How many numbers there are, padding not counted.
    pub fn len(&self) -> usize {
        match self {
            Self::Matrix(m) => m.n() * m.k(),
            Self::Mixed(m) => m.bf16().n() * m.bf16().k(),
            Self::Vector(v) => v.data().len(),
            Self::Device(d) => d.len(),
        }
    }

    /// Sets every number to zero.
    pub fn zero(&mut self) -> Result<()> {
        if let Self::Device(d) = self {
            return d.zero();
        }
        self.flat_mut().par_chunks_mut(ELEMENTS).for_each(|part| part.fill(0.0));
        Ok(())
    }

    /// Whether every number is finite.
    pub fn all_finite(&self) -> Result<bool> {
        match self {
            Self::Device(d) => d.all_finite(),
            _ => Ok(norm::all_finite(self.flat())),
        }
    }

    /// CRC-32 of the numbers in storage order.
    pub fn crc(&self) -> Result<u32> {
        match self {
            Self::Device(d) => Ok(crc(&d.to_rows()?)),
            _ => Ok(crc(self.flat())),
        }
    }

    /// All numbers in storage order, a matrix's zero padding included.
    ///
    /// # Panics
    /// If they are on a device, or a weight's in two widths: gradients and moments are not.
    pub fn flat(&self) -> &[f32] {
        match self {
            Self::Matrix(m) => m.data(),
            Self::Vector(v) => v.data(),
            Self::Mixed(_) => panic!("a weight in two widths where one in f32 was expected"),
            Self::Device(_) => panic!("a device tensor where the processor's was expected"),
        }
    }

    /// The same, to be changed.
    ///
    /// # Panics
    /// As [`ParamData::flat`].
    pub fn flat_mut(&mut self) -> &mut [f32] {
        match self {
            Self::Matrix(m) => m.data_mut(),
            Self::Vector(v) => v.data_mut(),
            Self::Mixed(_) => panic!("a weight in two widths where one in f32 was expected"),
            Self::Device(_) => panic!("a device tensor where the processor's was expected"),
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
    pub fn data_mut(&mut self) -> Result<&mut ParamData> {
        if Arc::get_mut(&mut self.data).is_none() {
            self.data = Arc::new(self.data.try_clone()?);
        }
        Ok(Arc::get_mut(&mut self.data).expect("nobody shares it"))
    }
}

/// All tensors: the base's, then the adapter's.
#[derive(Clone, Debug, Default)]
pub(crate) struct Params {
    list: Vec<Param>,
    /// Where the tensors are, if not on the processor.
    gpu: Option<Arc<Gpu>>,
    /// What products on the processor compute in.
    compute: Compute,
}

impl Params {
    /// No tensors yet, on a device, or on the processor, whose products compute in `compute`.
    pub fn on(device: &Device, compute: Compute) -> Self {
        let gpu = match device {
            Device::Cpu => None,
            Device::Cuda(gpu) => Some(gpu.clone()),
        };
        Self { list: Vec::new(), gpu, compute }
    }

    /// The device, if it is not the processor.
    pub fn gpu(&self) -> Option<&Arc<Gpu>> {
        self.gpu.as_ref()
    }

    /// What products on the processor compute in.
    pub fn compute(&self) -> Compute {
        self.compute
    }

    /// A weight's numbers, row-major, where the others are.
    pub fn numbers(&self, shape: &[usize], rows: &[f32]) -> Result<Arc<ParamData>> {
        let data = match &self.gpu {
            None => ParamData::from_rows(self.compute, shape, rows),
            Some(gpu) => ParamData::Device(DeviceNumbers::weight(gpu, rows)?),
        };
        Ok(Arc::new(data))
    }

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

    /// A matrix as products read it.
    ///
    /// # Panics
    /// If the tensor is a vector: layers know what they hold.
    pub fn weight(&self, id: ParamId) -> Weight<'_> {
        match &*self.list[id].data {
            ParamData::Matrix(m) => m.into(),
            ParamData::Mixed(m) => m.bf16().into(),
            _ => panic!("{} is not a matrix of the processor's", self.list[id].info.name),
        }
    }

    /// A vector `[n]`.
    ///
    /// # Panics
    /// If the tensor is a matrix.
    pub fn vector(&self, id: ParamId) -> &Tensor {
        match &*self.list[id].data {
            ParamData::Vector(v) => v,
            _ => panic!("{} is not a vector of the processor's", self.list[id].info.name),
        }
    }

    /// What kernels read of a tensor.
    ///
    /// # Panics
    /// If the tensors are the processor's.
    pub fn bf16(&self, id: ParamId) -> &Buffer {
        match &*self.list[id].data {
            ParamData::Device(d) => d.bf16(),
            _ => panic!("{} is the processor's", self.list[id].info.name),
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
