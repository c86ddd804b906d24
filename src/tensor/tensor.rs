//! A contiguous, row-major tensor.

use crate::tensor::cuda::Buffer;

/// A contiguous, row-major tensor of f32 on the CPU, or of any dtype in a device buffer.
#[derive(Debug)]
pub struct Tensor {
    shape: Vec<usize>,
    storage: Storage,
}

/// Where a tensor's numbers are.
#[derive(Debug)]
pub enum Storage {
    /// Host memory, f32.
    Cpu(Vec<f32>),
    /// Device memory.
    Cuda(Buffer),
}

/// A copy of a CPU tensor.
///
/// # Panics
/// If the tensor is in device memory, where a copy can fail: see [`Buffer::try_clone`].
impl Clone for Tensor {
    fn clone(&self) -> Self {
        Self::from_vec(&self.shape, self.data().to_vec())
    }
}

impl Tensor {
    /// A CPU tensor of zeros.
    pub fn zeros(shape: &[usize]) -> Self {
        Self::from_vec(shape, vec![0.0; shape.iter().product()])
    }

    /// A CPU tensor that owns `data`.
    ///
    /// # Panics
    /// If `data` does not have the shape's number of elements.
    pub fn from_vec(shape: &[usize], data: Vec<f32>) -> Self {
        assert_eq!(shape.iter().product::<usize>(), data.len(), "shape {shape:?} against {} numbers", data.len());
        Self { shape: shape.to_vec(), storage: Storage::Cpu(data) }
    }

    /// A tensor in device memory.
    pub fn from_device(shape: &[usize], buffer: Buffer) -> Self {
        Self { shape: shape.to_vec(), storage: Storage::Cuda(buffer) }
    }

    /// The dimensions, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The product of all dimensions but the last: the number of tokens of an activation.
    pub fn rows(&self) -> usize {
        self.shape[..self.shape.len().saturating_sub(1)].iter().product()
    }

    /// The last dimension: the width of an activation.
    pub fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Where the numbers are.
    pub fn storage(&self) -> &Storage {
        &self.storage
    }

    /// The numbers of a CPU tensor.
    ///
    /// # Panics
    /// If the tensor is in device memory: an op dispatches on [`Tensor::storage`] before it comes here.
    pub fn data(&self) -> &[f32] {
        match &self.storage {
            Storage::Cpu(data) => data,
            Storage::Cuda(_) => panic!("a device tensor where a CPU tensor was expected"),
        }
    }

    /// The numbers of a CPU tensor, to be changed.
    ///
    /// # Panics
    /// If the tensor is in device memory.
    pub fn data_mut(&mut self) -> &mut [f32] {
        match &mut self.storage {
            Storage::Cpu(data) => data,
            Storage::Cuda(_) => panic!("a device tensor where a CPU tensor was expected"),
        }
    }

    /// The numbers of a CPU tensor, without the tensor.
    ///
    /// # Panics
    /// If the tensor is in device memory.
    pub fn into_vec(self) -> Vec<f32> {
        match self.storage {
            Storage::Cpu(data) => data,
            Storage::Cuda(_) => panic!("a device tensor where a CPU tensor was expected"),
        }
    }

    /// The memory of a device tensor.
    ///
    /// # Panics
    /// If the tensor is on the CPU.
    pub fn buffer(&self) -> &Buffer {
        match &self.storage {
            Storage::Cuda(buffer) => buffer,
            Storage::Cpu(_) => panic!("a CPU tensor where a device tensor was expected"),
        }
    }

    /// The memory of a device tensor, to be changed.
    ///
    /// # Panics
    /// If the tensor is on the CPU.
    pub fn buffer_mut(&mut self) -> &mut Buffer {
        match &mut self.storage {
            Storage::Cuda(buffer) => buffer,
            Storage::Cpu(_) => panic!("a CPU tensor where a device tensor was expected"),
        }
    }

    /// Row `i` of a CPU tensor.
    pub fn row(&self, i: usize) -> &[f32] {
        let w = self.cols();
        &self.data()[i * w..(i + 1) * w]
    }
}
