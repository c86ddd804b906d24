//! A tensor's numbers in device memory.

use crate::Result;
use crate::tensor::cuda::{Buffer, DType, Gpu};
use crate::tensor::ops::adamw::codes::Rounding;
use crate::tensor::ops::{adamw, norm};
use half::bf16;
use std::sync::Arc;

/// A tensor's numbers, row-major. A weight has the bf16 that kernels read; its f32 are there if it is trained, or if bf16 does not hold what
/// was read. Gradients and moments have f32 alone.
#[derive(Debug)]
pub(crate) struct DeviceNumbers {
    gpu: Arc<Gpu>,
    len: usize,
    bf16: Option<Buffer>,
    f32: Option<Buffer>,
}

impl DeviceNumbers {
    /// A weight.
    pub fn weight(gpu: &Arc<Gpu>, rows: &[f32]) -> Result<Self> {
        let exact = rows.iter().all(|x| bf16::from_f32(*x).to_f32().to_bits() == x.to_bits());
        let wide = if exact { None } else { Some(Buffer::from_f32(gpu, DType::F32, rows)?) };
        Ok(Self { gpu: gpu.clone(), len: rows.len(), bf16: Some(Buffer::from_f32(gpu, DType::Bf16, rows)?), f32: wide })
    }

    /// Zeros in f32, as many as `self` has: a gradient or a moment.
    pub fn zeros_like(&self) -> Result<Self> {
        Ok(Self { gpu: self.gpu.clone(), len: self.len, bf16: None, f32: Some(Buffer::zeros(&self.gpu, DType::F32, self.len)?) })
    }

    /// A copy with memory of its own.
    pub fn try_clone(&self) -> Result<Self> {
        let copy = |b: &Option<Buffer>| b.as_ref().map(Buffer::try_clone).transpose();
        Ok(Self { gpu: self.gpu.clone(), len: self.len, bf16: copy(&self.bf16)?, f32: copy(&self.f32)? })
    }

    /// What kernels read of a weight.
    ///
    /// # Panics
    /// If these are a gradient's or a moment's numbers.
    pub fn bf16(&self) -> &Buffer {
        self.bf16.as_ref().expect("a weight has its bf16 numbers")
    }

    /// The numbers of a gradient or a moment.
    ///
    /// # Panics
    /// If these are a weight's numbers without a master.
    pub fn f32_mut(&mut self) -> &mut Buffer {
        self.f32.as_mut().expect("gradients and moments are f32")
    }

    fn f32(&self) -> &Buffer {
        self.f32.as_ref().expect("gradients and moments are f32")
    }

    /// All numbers, at the best precision there is.
    pub fn to_rows(&self) -> Result<Vec<f32>> {
        self.f32.as_ref().unwrap_or_else(|| self.bf16()).to_f32()
    }

    /// Replaces the numbers, as many as there are.
    pub fn set_rows(&mut self, rows: &[f32]) -> Result<()> {
        for buffer in [&mut self.bf16, &mut self.f32].into_iter().flatten() {
            buffer.upload_f32(rows)?;
        }
        Ok(())
    }

    /// Sets a gradient to zero.
    pub fn zero(&mut self) -> Result<()> {
        self.f32_mut().zero()
    }

    /// total += the sum of squares.
    pub fn add_sum_of_squares(&self, total: &mut Buffer) -> Result<()> {
        norm::cuda::add_sum_of_squares(total, self.f32())
    }

    /// Whether every number is finite.
    pub fn all_finite(&self) -> Result<bool> {
        let mut total = Buffer::zeros(&self.gpu, DType::F64, 1)?;
        self.add_sum_of_squares(&mut total)?;
        Ok(total.to_f64()?[0].is_finite())
    }

    /// A step of AdamW on a weight, whose master is made at the first.
    pub fn adamw(&mut self, gradient: &Self, moments: (&mut Self, &mut Self), step: adamw::Step) -> Result<()> {
        let (p, w) = self.master()?;
        let state = adamw::cuda::State { p, w, m: moments.0.f32_mut(), v: moments.1.f32_mut() };
        adamw::cuda::step(state, gradient.f32(), step)
    }

    /// The same with moments in 8-bit codes.
    pub fn adamw_8bit(&mut self, gradient: &Self, moments: &mut adamw::cuda::Moments, step: adamw::Step, rounding: Rounding) -> Result<()> {
        let (p, w) = self.master()?;
        adamw::cuda::step_8bit(p, w, moments, gradient.f32(), step, rounding)
    }

    /// A weight's master, made where it has none yet, and its bf16 numbers.
    fn master(&mut self) -> Result<(&mut Buffer, &mut Buffer)> {
        if self.f32.is_none() {
            self.f32 = Some(Buffer::from_f32(&self.gpu, DType::F32, &self.bf16().to_f32()?)?);
        }
        let (Some(p), Some(w)) = (&mut self.f32, &mut self.bf16) else { unreachable!("a weight with a master") };
        Ok((p, w))
    }

    /// Whose memory it is.
    pub fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }

    /// How many numbers there are.
    pub fn len(&self) -> usize {
        self.len
    }
}
