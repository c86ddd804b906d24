//! Where a tensor lives and where an op runs.

use crate::tensor::cuda::Gpu;
use std::sync::Arc;

/// The plain CPU, or a GPU (a real one, or the emulator that runs the same kernels in tests).
#[derive(Clone, Debug)]
pub enum Device {
    /// This machine's processor: f32, but for the operands of products where that is asked for.
    Cpu,
    /// A CUDA device, or its emulation; bf16 storage, f32 accumulation.
    Cuda(Arc<Gpu>),
}

impl Device {
    /// Whether this is the plain CPU.
    pub fn is_cpu(&self) -> bool {
        matches!(self, Device::Cpu)
    }
}
