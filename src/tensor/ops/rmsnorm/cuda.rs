//! RMSNorm on a CUDA device: launches of `kernels/rmsnorm.cu`, which has the equations and the order of every sum.
//!
//! Shapes: x, residual, h, y, dy, dx `[rows, cols]` bf16; w `[cols]` bf16; rstd `[rows]` f32; dw `[cols]` f32.
//!
//! Rounding points: h = bf16(x + residual), y = bf16(h * rstd * w), dx = bf16(...), and dx = bf16(dx + d_residual) where there is one.
//! Nothing else is rounded to bf16, so the fused variants give the bits of the separate ops. A row's bits depend on the row and its width
//! alone. dw adds the sums of row chunks one after another; chunks never cross a tree, so cutting a batch between trees changes no bit.

use crate::Result;
use crate::tensor::cuda::{Buffer, DType, Gpu, Kernel, Launch, Source};
use std::ops::Range;
use std::sync::Arc;

/// Widths up to this get a warp a row, wider ones a block a row. A property of the width alone, as the bits of a row must be.
const WARP_COLS: usize = 512;
/// Rows of a block in the warp variant (`WARP_ROWS` of the kernel).
const WARP_ROWS: usize = 4;
/// Columns of a block that sums a chunk for dw, and the row sums it forms side by side (`COLUMNS` and `PARTS` of the kernel).
const DW_COLUMNS: usize = 64;
const DW_PARTS: usize = 8;

/// What [`forward_add`] returns.
#[derive(Debug)]
pub struct ForwardAdd {
    /// The normed rows `[rows, cols]` bf16.
    pub y: Buffer,
    /// x + residual `[rows, cols]` bf16: the next residual, and what [`backward`] takes as x.
    pub h: Buffer,
    /// 1 / rms(h) `[rows]` f32.
    pub rstd: Buffer,
}

/// The chunks of rows over which dw is summed, on the device. Made once a batch, from the plan's `grad_chunks`.
#[derive(Debug)]
pub struct RowChunks {
    bounds: Buffer,
    count: usize,
    rows: usize,
}

impl RowChunks {
    /// Uploads the chunks' bounds. `chunks` are in order and without gaps, from token 0; a token has `rows_per_token` rows (1, or the number
    /// of heads of a per-head norm).
    ///
    /// # Errors
    /// If the device is out of memory or failed.
    ///
    /// # Panics
    /// If there is a gap, or more rows than 32 bits count.
    pub fn new(gpu: &Arc<Gpu>, chunks: &[Range<usize>], rows_per_token: usize) -> Result<Self> {
        let mut bounds = vec![0];
        let mut end = 0;
        for chunk in chunks {
            assert_eq!(chunk.start, end, "chunks follow each other without gaps");
            end = chunk.end;
            bounds.push(u32::try_from(end * rows_per_token).expect("rows are counted in 32 bits"));
        }
        Ok(Self { bounds: Buffer::from_u32(gpu, &bounds)?, count: chunks.len(), rows: end * rows_per_token })
    }

    /// The first row of each chunk, and one past the last row of all: `[count + 1]`.
    pub fn bounds(&self) -> &Buffer {
        &self.bounds
    }

    /// How many chunks there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Rows in all chunks together.
    pub fn rows(&self) -> usize {
        self.rows
    }
}

/// Returns y `[rows, cols]` and rstd = 1 / rms(x) `[rows]`.
///
/// # Errors
/// If a buffer does not fit the shapes, or the device failed.
pub fn forward(gpu: &Arc<Gpu>, x: &Buffer, w: &Buffer, rows: usize, cols: usize, eps: f32) -> Result<(Buffer, Buffer)> {
    launch_forward(gpu, x, None, w, rows, cols, eps)
}

/// The same of h = x + residual, which is returned too.
///
/// # Errors
/// If a buffer does not fit the shapes, or the device failed.
pub fn forward_add(gpu: &Arc<Gpu>, x: &Buffer, residual: &Buffer, w: &Buffer, rows: usize, cols: usize, eps: f32) -> Result<ForwardAdd> {
    let mut h = Buffer::uninit(gpu, DType::Bf16, rows * cols)?;
    let (y, rstd) = launch_forward(gpu, x, Some((residual, &mut h)), w, rows, cols, eps)?;
    Ok(ForwardAdd { y, h, rstd })
}

fn launch_forward(
    gpu: &Arc<Gpu>,
    x: &Buffer,
    add: Option<(&Buffer, &mut Buffer)>,
    w: &Buffer,
    rows: usize,
    cols: usize,
    eps: f32,
) -> Result<(Buffer, Buffer)> {
    let mut y = Buffer::uninit(gpu, DType::Bf16, rows * cols)?;
    let mut rstd = Buffer::uninit(gpu, DType::F32, rows)?;
    if rows * cols == 0 {
        return Ok((y, rstd));
    }
    let (residual, h) = add.unzip();
    row_launch(gpu, "rmsnorm_fwd_bf16_warp", "rmsnorm_fwd_bf16_block", rows, cols)
        .waits()
        .output("y", &mut y, DType::Bf16, rows * cols)
        .output("rstd", &mut rstd, DType::F32, rows)
        .optional_output("h", h, DType::Bf16, rows * cols)
        .input("x", x, DType::Bf16, rows * cols)
        .optional_input("residual", residual, DType::Bf16, rows * cols)
        .input("w", w, DType::Bf16, cols)
        .dim("rows", rows)
        .dim("cols", cols)
        .f32(eps)
        .run()?;
    Ok((y, rstd))
}

/// Returns dx `[rows, cols]`, the gradient of x (of both x and residual, where `forward_add` ran: then `x` here is its h), plus
/// `d_residual` `[rows, cols]`, the gradient that reaches h by the residual path. Adds to dw `[cols]`, chunk by chunk.
///
/// # Errors
/// If a buffer does not fit the shapes, or the device failed.
///
/// # Panics
/// If the chunks are not of `rows` rows.
#[allow(clippy::too_many_arguments)] // what the equation has
pub fn backward(
    gpu: &Arc<Gpu>,
    dy: &Buffer,
    x: &Buffer,
    w: &Buffer,
    rstd: &Buffer,
    rows: usize,
    cols: usize,
    d_residual: Option<&Buffer>,
    dw: Option<(&mut Buffer, &RowChunks)>,
) -> Result<Buffer> {
    let mut dx = Buffer::uninit(gpu, DType::Bf16, rows * cols)?;
    if rows * cols == 0 {
        return Ok(dx);
    }
    row_launch(gpu, "rmsnorm_bwd_dx_bf16_warp", "rmsnorm_bwd_dx_bf16_block", rows, cols)
        .output("dx", &mut dx, DType::Bf16, rows * cols)
        .input("dy", dy, DType::Bf16, rows * cols)
        .input("x", x, DType::Bf16, rows * cols)
        .input("w", w, DType::Bf16, cols)
        .input("rstd", rstd, DType::F32, rows)
        .optional_input("d_residual", d_residual, DType::Bf16, rows * cols)
        .dim("rows", rows)
        .dim("cols", cols)
        .run()?;
    if let Some((dw, chunks)) = dw {
        weight_gradient(gpu, dy, x, rstd, rows, cols, dw, chunks)?;
    }
    Ok(dx)
}

#[allow(clippy::too_many_arguments)] // what the equation has
fn weight_gradient(
    gpu: &Arc<Gpu>,
    dy: &Buffer,
    x: &Buffer,
    rstd: &Buffer,
    rows: usize,
    cols: usize,
    dw: &mut Buffer,
    chunks: &RowChunks,
) -> Result<()> {
    assert_eq!(chunks.rows, rows, "the chunks cover the rows");
    let kernel = |name| Kernel { source: Source::RMSNORM, name };
    let mut partial = Buffer::uninit(gpu, DType::F32, chunks.count * cols)?;
    let grid = [cols.div_ceil(DW_COLUMNS), chunks.count, 1];
    let shared = DW_PARTS * DW_COLUMNS * size_of::<f32>();
    Launch::new(gpu, kernel("rmsnorm_bwd_dw_partial_bf16"), grid, [64, 1, 1], shared)
        .output("partial", &mut partial, DType::F32, chunks.count * cols)
        .input("dy", dy, DType::Bf16, rows * cols)
        .input("x", x, DType::Bf16, rows * cols)
        .input("rstd", rstd, DType::F32, rows)
        .input("bounds", &chunks.bounds, DType::U32, chunks.count + 1)
        .dim("cols", cols)
        .run()?;
    Launch::new(gpu, kernel("rmsnorm_bwd_dw_sum"), [cols.div_ceil(128), 1, 1], [128, 1, 1], 0)
        .output("dw", dw, DType::F32, cols)
        .input("partial", &partial, DType::F32, chunks.count * cols)
        .dim("chunks", chunks.count)
        .dim("cols", cols)
        .run()
}

/// The kernel and geometry of one pass over the rows.
fn row_launch<'a>(gpu: &'a Gpu, warp: &'static str, block: &'static str, rows: usize, cols: usize) -> Launch<'a> {
    let kernel = |name| Kernel { source: Source::RMSNORM, name };
    if cols <= WARP_COLS {
        Launch::new(gpu, kernel(warp), [rows.div_ceil(WARP_ROWS), 1, 1], [32 * WARP_ROWS, 1, 1], 0)
    } else {
        Launch::new(gpu, kernel(block), [rows, 1, 1], [256, 1, 1], 0)
    }
}
