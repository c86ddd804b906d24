//! Device memory with a dtype.

use crate::tensor::cuda::Gpu;
use crate::{Error, Result};
use half::bf16;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// What a device buffer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DType {
    /// bfloat16: activations and weights.
    Bf16,
    /// float32: statistics, gradients of weights, master weights.
    F32,
    /// float64: sums of squares, a row's softmax, what was chosen.
    F64,
    /// 32-bit unsigned integers: token ids, offsets.
    U32,
    /// Bytes: codes of moments.
    U8,
}

impl DType {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            DType::U8 => 1,
            DType::Bf16 => 2,
            DType::F32 | DType::U32 => 4,
            DType::F64 => 8,
        }
    }

    /// The element's letter in a kernel's signature (`kernels/emulator/device.hpp`).
    pub(super) fn letter(self) -> char {
        match self {
            DType::Bf16 => 'b',
            DType::F32 => 'f',
            DType::F64 => 'd',
            DType::U32 => 'u',
            DType::U8 => 'h',
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DType::Bf16 => "bf16",
            DType::F32 => "f32",
            DType::F64 => "f64",
            DType::U32 => "u32",
            DType::U8 => "u8",
        })
    }
}

/// A piece of a device's memory, given back when the last buffer on it is dropped.
pub(super) struct Memory {
    pub gpu: Arc<Gpu>,
    pub address: u64,
    pub bytes: usize,
    /// What it is a part of, and lives as long as: then there is nothing to give back.
    pub of: Option<Arc<Memory>>,
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.of.is_none() {
            self.gpu.free(self.address, self.bytes);
        }
    }
}

/// Memory of a [`Gpu`]: `len` elements of one dtype, freed when dropped.
pub struct Buffer {
    memory: Arc<Memory>,
    address: u64,
    len: usize,
    dtype: DType,
}

impl Buffer {
    /// Memory with undefined contents. The emulator reports a kernel that reads them.
    ///
    /// # Errors
    /// If the device is out of memory.
    pub fn uninit(gpu: &Arc<Gpu>, dtype: DType, len: usize) -> Result<Self> {
        let bytes = len.checked_mul(dtype.size()).ok_or_else(|| Error::device(format!("a buffer of {len} {dtype} cannot be addressed")))?;
        let memory = gpu.memory(bytes.max(1), dtype.size())?;
        Ok(Self { address: memory.address, memory, len, dtype })
    }

    /// `len` elements of its memory from the element `first` on, as elements of `dtype`. They stay when the buffer is dropped.
    ///
    /// # Panics
    /// If the buffer ends before, or its elements are of another size.
    pub fn part(&self, dtype: DType, first: usize, len: usize) -> Self {
        assert!(first + len <= self.len && dtype.size() == self.dtype.size(), "{len} {dtype} from {first} on of {self:?}");
        Self { memory: self.memory.clone(), address: self.address + (first * dtype.size()) as u64, len, dtype }
    }

    /// Memory filled with zeros.
    ///
    /// # Errors
    /// If the device is out of memory or failed.
    pub fn zeros(gpu: &Arc<Gpu>, dtype: DType, len: usize) -> Result<Self> {
        let buffer = Self::uninit(gpu, dtype, len)?;
        gpu.zero(buffer.address, buffer.bytes())?;
        Ok(buffer)
    }

    /// Uploads numbers as bf16 (rounded to nearest, ties to even) or f32.
    ///
    /// # Errors
    /// If the device is out of memory or failed.
    ///
    /// # Panics
    /// If `dtype` is neither bf16 nor f32.
    pub fn from_f32(gpu: &Arc<Gpu>, dtype: DType, data: &[f32]) -> Result<Self> {
        let mut buffer = Self::uninit(gpu, dtype, data.len())?;
        buffer.upload_f32(data)?;
        Ok(buffer)
    }

    /// Uploads unsigned integers.
    ///
    /// # Errors
    /// If the device is out of memory or failed.
    pub fn from_u32(gpu: &Arc<Gpu>, data: &[u32]) -> Result<Self> {
        let mut buffer = Self::uninit(gpu, DType::U32, data.len())?;
        buffer.upload_u32(data)?;
        Ok(buffer)
    }

    /// Replaces the first elements of a buffer of unsigned integers.
    ///
    /// # Errors
    /// If the device failed.
    ///
    /// # Panics
    /// If the buffer holds anything else, or fewer.
    pub fn upload_u32(&mut self, data: &[u32]) -> Result<()> {
        assert!(self.dtype == DType::U32 && data.len() <= self.len, "{} u32 for {self:?}", data.len());
        self.gpu().upload(self.address, bytemuck::cast_slice(data))
    }

    /// Sets all bytes to zero.
    ///
    /// # Errors
    /// If the device failed.
    pub fn zero(&mut self) -> Result<()> {
        self.gpu().zero(self.address, self.bytes())
    }

    /// A copy with memory of its own.
    ///
    /// # Errors
    /// If the device is out of memory or failed.
    pub fn try_clone(&self) -> Result<Self> {
        let mut copy = Self::uninit(self.gpu(), self.dtype, self.len)?;
        copy.copy_from(self)?;
        Ok(copy)
    }

    /// Replaces the first elements by all of `from`'s.
    ///
    /// # Errors
    /// If the device failed.
    ///
    /// # Panics
    /// If `from` is longer, holds something else or lies on another device.
    pub fn copy_from(&mut self, from: &Buffer) -> Result<()> {
        assert!(from.len <= self.len && from.dtype == self.dtype && Arc::ptr_eq(from.gpu(), self.gpu()), "room for the same numbers");
        self.gpu().copy(self.address, from.address, from.bytes())
    }

    /// Replaces the contents, converting as [`Buffer::from_f32`] does.
    ///
    /// # Errors
    /// If the device failed.
    ///
    /// # Panics
    /// If the length differs or the buffer holds neither bf16 nor f32.
    pub fn upload_f32(&mut self, data: &[f32]) -> Result<()> {
        assert_eq!(data.len(), self.len, "as many numbers as the buffer holds");
        match self.dtype {
            DType::F32 => self.gpu().upload(self.address, bytemuck::cast_slice(data)),
            DType::Bf16 => {
                let rounded: Vec<bf16> = data.iter().map(|&x| bf16::from_f32(x)).collect();
                self.gpu().upload(self.address, bytemuck::cast_slice(&rounded))
            }
            DType::F64 | DType::U32 | DType::U8 => panic!("f32 numbers for a buffer of {}", self.dtype),
        }
    }

    /// Waits for the device and downloads the contents; bf16 is widened, exactly.
    ///
    /// # Errors
    /// If the device failed, also in an earlier launch.
    ///
    /// # Panics
    /// If the buffer holds neither bf16 nor f32.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        match self.dtype {
            DType::F32 => {
                let mut data = vec![0f32; self.len];
                self.gpu().download(bytemuck::cast_slice_mut(&mut data), self.address)?;
                Ok(data)
            }
            DType::Bf16 => {
                let mut data = vec![bf16::ZERO; self.len];
                self.gpu().download(bytemuck::cast_slice_mut(&mut data), self.address)?;
                Ok(data.into_iter().map(bf16::to_f32).collect())
            }
            DType::F64 | DType::U32 | DType::U8 => panic!("f32 numbers of a buffer of {}", self.dtype),
        }
    }

    /// The same for some elements of a buffer of f32.
    ///
    /// # Errors
    /// If the device failed, also in an earlier launch.
    ///
    /// # Panics
    /// If the buffer holds anything else, or ends before.
    pub fn part_to_f32(&self, part: Range<usize>) -> Result<Vec<f32>> {
        assert_eq!(self.dtype, DType::F32, "a buffer of f32");
        assert!(part.end <= self.len, "elements {part:?} of {}", self.len);
        let mut data = vec![0f32; part.len()];
        self.gpu().download(bytemuck::cast_slice_mut(&mut data), self.address + (part.start * 4) as u64)?;
        Ok(data)
    }

    /// Waits for the device and downloads a buffer of unsigned integers.
    ///
    /// # Errors
    /// If the device failed, also in an earlier launch.
    ///
    /// # Panics
    /// If the buffer holds anything else.
    pub fn to_u32(&self) -> Result<Vec<u32>> {
        assert_eq!(self.dtype, DType::U32, "a buffer of u32");
        let mut data = vec![0u32; self.len];
        self.gpu().download(bytemuck::cast_slice_mut(&mut data), self.address)?;
        Ok(data)
    }

    /// Replaces the contents of a buffer of bytes.
    ///
    /// # Errors
    /// If the device failed.
    ///
    /// # Panics
    /// If the length differs or the buffer holds anything else.
    pub fn upload_u8(&mut self, data: &[u8]) -> Result<()> {
        assert!(self.dtype == DType::U8 && data.len() == self.len, "as many bytes as the buffer holds");
        self.gpu().upload(self.address, data)
    }

    /// Waits for the device and downloads a buffer of bytes.
    ///
    /// # Errors
    /// If the device failed, also in an earlier launch.
    ///
    /// # Panics
    /// If the buffer holds anything else.
    pub fn to_u8(&self) -> Result<Vec<u8>> {
        assert_eq!(self.dtype, DType::U8, "a buffer of bytes");
        let mut data = vec![0u8; self.len];
        self.gpu().download(&mut data, self.address)?;
        Ok(data)
    }

    /// Waits for the device and downloads a buffer of f64.
    ///
    /// # Errors
    /// If the device failed, also in an earlier launch.
    ///
    /// # Panics
    /// If the buffer holds anything else.
    pub fn to_f64(&self) -> Result<Vec<f64>> {
        assert_eq!(self.dtype, DType::F64, "a buffer of f64");
        let mut data = vec![0f64; self.len];
        self.gpu().download(bytemuck::cast_slice_mut(&mut data), self.address)?;
        Ok(data)
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of bytes.
    pub fn bytes(&self) -> usize {
        self.len * self.dtype.size()
    }

    /// What it holds.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Whose memory it is.
    pub fn gpu(&self) -> &Arc<Gpu> {
        &self.memory.gpu
    }

    pub(super) fn address(&self) -> u64 {
        self.address
    }

    pub(super) fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} {} on {})", self.len, self.dtype, self.gpu().info().name)
    }
}
