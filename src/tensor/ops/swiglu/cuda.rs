//! SwiGLU on a CUDA device: launches of `kernels/swiglu.cu`, which has the equations. All `[n]` bf16.

use crate::Result;
use crate::tensor::cuda::{Buffer, DType, Gpu, Kernel, Launch, Source};
use std::sync::Arc;

/// Numbers that a block of 256 threads works on.
const BLOCK: usize = 256 * 8;

/// y = silu(gate) * up.
///
/// # Errors
/// If a buffer does not fit, or the device failed.
pub fn forward(gpu: &Arc<Gpu>, gate: &Buffer, up: &Buffer) -> Result<Buffer> {
    let n = gate.len();
    let mut y = Buffer::uninit(gpu, DType::Bf16, n)?;
    if n > 0 {
        launch(gpu, "swiglu_fwd_bf16", n)
            .output("y", &mut y, DType::Bf16, n)
            .input("gate", gate, DType::Bf16, n)
            .input("up", up, DType::Bf16, n)
            .count(n)
            .run()?;
    }
    Ok(y)
}

/// Returns (d gate, d up).
///
/// # Errors
/// If a buffer does not fit, or the device failed.
pub fn backward(gpu: &Arc<Gpu>, dy: &Buffer, gate: &Buffer, up: &Buffer) -> Result<(Buffer, Buffer)> {
    let n = gate.len();
    let (mut d_gate, mut d_up) = (Buffer::uninit(gpu, DType::Bf16, n)?, Buffer::uninit(gpu, DType::Bf16, n)?);
    if n > 0 {
        launch(gpu, "swiglu_bwd_bf16", n)
            .output("d_gate", &mut d_gate, DType::Bf16, n)
            .output("d_up", &mut d_up, DType::Bf16, n)
            .input("dy", dy, DType::Bf16, n)
            .input("gate", gate, DType::Bf16, n)
            .input("up", up, DType::Bf16, n)
            .count(n)
            .run()?;
    }
    Ok((d_gate, d_up))
}

fn launch<'a>(gpu: &'a Gpu, name: &'static str, n: usize) -> Launch<'a> {
    Launch::new(gpu, Kernel { source: Source::SWIGLU, name }, [n.div_ceil(BLOCK), 1, 1], [256, 1, 1], 0)
}
