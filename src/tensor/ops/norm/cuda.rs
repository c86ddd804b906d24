//! The sum of squares on a CUDA device: launches of `kernels/norm.cu`, which has the order of the sum.

use crate::Result;
use crate::tensor::cuda::{Buffer, DType, Kernel, Launch, Source};

/// Numbers that a block sums (`BLOCK` of the kernel).
const BLOCK: usize = 16384;

/// total `[1]` f64 += the sum of squares of x `[n]` f32. It stays finite exactly if every number is.
///
/// # Errors
/// If a buffer does not fit, or the device failed.
pub fn add_sum_of_squares(total: &mut Buffer, x: &Buffer) -> Result<()> {
    if x.is_empty() {
        return Ok(());
    }
    let gpu = x.gpu().clone();
    let blocks = x.len().div_ceil(BLOCK);
    let mut partial = Buffer::uninit(&gpu, DType::F64, blocks)?;
    let kernel = |name| Kernel { source: Source::NORM, name };
    Launch::new(&gpu, kernel("norm_partial_f32"), [blocks, 1, 1], [256, 1, 1], 0)
        .output("partial", &mut partial, DType::F64, blocks)
        .input("x", x, DType::F32, x.len())
        .count(x.len())
        .run()?;
    Launch::new(&gpu, kernel("norm_add"), [1, 1, 1], [256, 1, 1], 0)
        .output("total", total, DType::F64, 1)
        .input("partial", &partial, DType::F64, blocks)
        .dim("count", blocks)
        .run()
}
