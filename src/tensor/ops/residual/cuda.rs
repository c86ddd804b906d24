//! Sums and roundings of activations on a CUDA device: launches of `kernels/residual.cu`, which has the equations and the order of every sum.

use crate::Result;
use crate::tensor::cuda::{Buffer, DType, Gpu, Kernel, Launch, Source};
use crate::tensor::ops::rmsnorm::cuda::RowChunks;
use std::sync::Arc;

/// Numbers that a block of 256 threads works on.
const BLOCK: usize = 256 * 8;

/// x = bf16(x + y); both `[n]` bf16.
///
/// # Errors
/// If a buffer does not fit, or the device failed.
pub fn add_to(x: &mut Buffer, y: &Buffer) -> Result<()> {
    let (gpu, n) = (y.gpu().clone(), x.len());
    if n == 0 {
        return Ok(());
    }
    launch(&gpu, "add_bf16", n).output("x", x, DType::Bf16, n).input("y", y, DType::Bf16, n).count(n).run()
}

/// x `[n]` f32, rounded to bf16.
///
/// # Errors
/// If a buffer does not fit, or the device failed.
pub fn round(gpu: &Arc<Gpu>, x: &Buffer) -> Result<Buffer> {
    let n = x.len();
    let mut y = Buffer::uninit(gpu, DType::Bf16, n)?;
    if n > 0 {
        launch(gpu, "round_bf16", n).output("y", &mut y, DType::Bf16, n).input("x", x, DType::F32, n).count(n).run()?;
    }
    Ok(y)
}

/// db `[cols]` f32 += sum over tokens of dy `[T, cols]` bf16, chunk by chunk (one row a token).
///
/// # Errors
/// If a buffer does not fit, or the device failed.
pub fn bias_gradient(db: &mut Buffer, dy: &Buffer, chunks: &RowChunks) -> Result<()> {
    let (gpu, cols) = (dy.gpu().clone(), db.len());
    if cols == 0 {
        return Ok(());
    }
    let kernel = Kernel { source: Source::RESIDUAL, name: "bias_bwd_f32" };
    Launch::new(&gpu, kernel, [cols.div_ceil(64), 1, 1], [64, 1, 1], 0)
        .output("db", db, DType::F32, cols)
        .input("dy", dy, DType::Bf16, chunks.rows() * cols)
        .input("bounds", chunks.bounds(), DType::U32, chunks.count() + 1)
        .dim("chunks", chunks.count())
        .dim("cols", cols)
        .run()
}

fn launch<'a>(gpu: &'a Gpu, name: &'static str, n: usize) -> Launch<'a> {
    Launch::new(gpu, Kernel { source: Source::RESIDUAL, name }, [n.div_ceil(BLOCK), 1, 1], [256, 1, 1], 0)
}
