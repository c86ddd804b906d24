//! The linear layer on a CUDA device: launches of `kernels/linear.cu`, which has the equations and the order of every sum, and of
//! `kernels/linear_few.cu` for few rows and `kernels/linear_hopper.cu` on Hopper, which have the same bits.
//!
//! Operands are bf16 and rows lie as Hugging Face has them: x `[M, K]`, w `[N, K]`, y `[M, N]`. Outputs are rounded once, after the adapter's
//! term and the bias; gradients of weights are f32 and added to. A row of y or dx has the same bits whatever M is.

mod few;
pub mod hopper;

pub use few::ROWS as FEW_ROWS;

use crate::tensor::cuda::{Buffer, DType, Gpu, Kernel, Launch, Source};
use crate::tensor::ops::swiglu;
use crate::tensor::plan::K_CHUNK;
use crate::{Error, Result};
use std::ops::Range;
use std::sync::Arc;

/// Rows and columns of a block's outputs (`SIDE` of the kernel).
const SIDE: usize = 128;
/// Three stages of two tiles of 128 x 64 bf16.
const SHARED: usize = 3 * 2 * SIDE * K_CHUNK * 2;
/// Outputs of a product that larger tiles would mostly miss, as an adapter's has.
const NARROW: usize = 64;

/// The sizes of a product y `[m, n]` = x `[m, k]` w `[n, k]`'.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Tokens.
    pub m: usize,
    /// Outputs of the layer; a multiple of 8.
    pub n: usize,
    /// Inputs of the layer; a multiple of 8.
    pub k: usize,
}

impl Shape {
    fn check(self, rank: usize) -> Result<()> {
        let Shape { n, k, .. } = self;
        if [n, k, rank].iter().all(|d| d % 8 == 0) {
            return Ok(());
        }
        let message = format!("a layer of {k} inputs and {n} outputs with rank {rank}: the kernels take multiples of 8");
        Err(Error::device(message).hint("use --device cpu"))
    }
}

/// The term of an adapter: scale times low `[M, R]` times a matrix of the adapter. Forward: low = x a' and the matrix is b `[N, R]`; for the gradient of x:
/// low = dy b and the matrix is a `[R, K]`.
#[derive(Clone, Copy, Debug)]
pub struct LowRank<'a> {
    /// `[M, R]`, from a launch of its own.
    pub low: &'a Buffer,
    /// b or a.
    pub matrix: &'a Buffer,
    /// R; a multiple of 8.
    pub rank: usize,
    /// The adapter's scale.
    pub scale: f32,
}

/// A layer y = bf16(x w' + scale low b' + bias).
#[derive(Clone, Copy, Debug)]
pub struct Layer<'a> {
    /// `[N, K]`.
    pub w: &'a Buffer,
    /// `[N]`.
    pub bias: Option<&'a Buffer>,
    /// The adapter's term.
    pub adapter: Option<LowRank<'a>>,
    /// N; a multiple of 8.
    pub n: usize,
}

impl Layer<'_> {
    fn check(&self, m: usize, k: usize) -> Result<()> {
        Shape { m, n: self.n, k }.check(self.adapter.map_or(0, |a| a.rank))
    }
}

/// y = bf16(x w' + scale low b' + bias).
///
/// # Errors
/// If a width is not a multiple of 8, a buffer does not fit, or the device failed.
pub fn forward(
    gpu: &Arc<Gpu>,
    x: &Buffer,
    w: &Buffer,
    bias: Option<&Buffer>,
    adapter: Option<LowRank<'_>>,
    shape: Shape,
) -> Result<Buffer> {
    let mut outputs = forward_many(gpu, x, &[Layer { w, bias, adapter, n: shape.n }], shape.m, shape.k)?;
    Ok(outputs.pop().expect("an output for the layer"))
}

/// The outputs of several layers of the same x `[m, k]`: the bits of [`forward`], and, of few rows, three in one launch.
///
/// # Errors
/// As [`forward`].
pub fn forward_many(gpu: &Arc<Gpu>, x: &Buffer, layers: &[Layer<'_>], m: usize, k: usize) -> Result<Vec<Buffer>> {
    layers.iter().try_for_each(|l| l.check(m, k))?;
    let widest = layers.iter().map(|l| l.n).max().unwrap_or(0);
    match few::Tile::of(m, widest, layers.iter().map(|l| l.n).sum()) {
        Some(tile) => few::forward(gpu, tile, x, layers, m, k),
        None => layers.iter().map(|l| forward_tiled(gpu, x, l, m, k)).collect(),
    }
}

/// silu(gate) * up for two layers of the same x `[m, k]`, each rounded: the bits of [`forward`] and [`swiglu::cuda::forward`], and, of few rows, one
/// launch.
///
/// # Errors
/// As [`forward`].
///
/// # Panics
/// If the layers have other numbers of outputs.
pub fn forward_swiglu(gpu: &Arc<Gpu>, x: &Buffer, gate: &Layer<'_>, up: &Layer<'_>, m: usize, k: usize) -> Result<Buffer> {
    assert_eq!(gate.n, up.n, "a gate for each output");
    [gate, up].iter().try_for_each(|l| l.check(m, k))?;
    match few::Tile::of(m, gate.n, 2 * gate.n) {
        Some(tile) => few::swiglu(gpu, tile, x, [gate, up], m, k),
        None => swiglu::cuda::forward(gpu, &forward_tiled(gpu, x, gate, m, k)?, &forward_tiled(gpu, x, up, m, k)?),
    }
}

/// A layer by tiles for many rows.
fn forward_tiled(gpu: &Arc<Gpu>, x: &Buffer, layer: &Layer<'_>, m: usize, k: usize) -> Result<Buffer> {
    let &Layer { w, bias, adapter, n } = layer;
    let shape = Shape { m, n, k };
    let mut y = Buffer::uninit(gpu, DType::Bf16, m * n)?;
    if m * n == 0 {
        return Ok(y);
    }
    if takes_wgmma(gpu)? {
        hopper::forward(gpu, &mut y, x, w, bias, adapter, shape).run()?;
        return Ok(y);
    }
    let launch = launch(gpu, "linear_fwd_bf16", m, n)
        .output("y", &mut y, DType::Bf16, m * n)
        .input("x", x, DType::Bf16, m * k)
        .input("w", w, DType::Bf16, n * k)
        .optional_input("bias", bias, DType::Bf16, n);
    finish(launch, adapter, shape, n).run()?;
    Ok(y)
}

/// dx = bf16(dy w + scale low a).
///
/// # Errors
/// As [`forward`].
pub fn backward_input(gpu: &Arc<Gpu>, dy: &Buffer, w: &Buffer, adapter: Option<LowRank<'_>>, shape: Shape) -> Result<Buffer> {
    let Shape { m, n, k } = shape;
    shape.check(adapter.map_or(0, |a| a.rank))?;
    let mut dx = Buffer::uninit(gpu, DType::Bf16, m * k)?;
    if m * k == 0 {
        return Ok(dx);
    }
    if gpu.is_hopper() && k > NARROW {
        hopper::backward_input(gpu, &mut dx, dy, w, adapter, shape).run()?;
        return Ok(dx);
    }
    let launch = launch(gpu, "linear_dx_bf16", m, k).output("dx", &mut dx, DType::Bf16, m * k).input("dy", dy, DType::Bf16, m * n).input(
        "w",
        w,
        DType::Bf16,
        n * k,
    );
    finish(launch, adapter, shape, k).run()?;
    Ok(dx)
}

/// Whether forward passes take wgmma, here and in attention: on Hopper, if it rounds there as mma.sync does, which decoding takes.
///
/// # Errors
/// If the device failed at the first call, which finds out.
pub fn takes_wgmma(gpu: &Arc<Gpu>) -> Result<bool> {
    Ok(gpu.is_hopper() && gpu.wgmma_agrees(|| hopper::wgmma_agrees(gpu))?)
}

/// The arguments after a product's own operands; the adapter's matrix has `width` rows or columns.
fn finish<'a>(launch: Launch<'a>, adapter: Option<LowRank<'_>>, shape: Shape, width: usize) -> Launch<'a> {
    let rank = adapter.map_or(0, |a| a.rank);
    launch
        .optional_input("low", adapter.map(|a| a.low), DType::Bf16, shape.m * rank)
        .optional_input("matrix", adapter.map(|a| a.matrix), DType::Bf16, width * rank)
        .dim("m", shape.m)
        .dim("n", shape.n)
        .dim("k", shape.k)
        .dim("rank", rank)
        .f32(adapter.map_or(0.0, |a| a.scale))
}

/// The chunks of tokens over which gradients of weights are summed, on the device. Made once a batch, from the plan's `grad_chunks`.
#[derive(Debug)]
pub struct TokenChunks {
    table: Buffer,
    count: usize,
    tokens: usize,
}

impl TokenChunks {
    /// Cuts the chunks every [`K_CHUNK`] tokens, counted from the start of each, and uploads them.
    ///
    /// # Errors
    /// If the device is out of memory or failed.
    pub fn new(gpu: &Arc<Gpu>, chunks: &[Range<usize>]) -> Result<Self> {
        let parts = chunks.iter().flat_map(|c| c.clone().step_by(K_CHUNK).map(move |from| [from, K_CHUNK.min(c.end - from)]));
        let table: Vec<u32> = parts.flatten().map(|n| u32::try_from(n).expect("tokens are counted in 32 bits")).collect();
        let tokens = chunks.iter().map(|c| c.end).max().unwrap_or(0);
        Ok(Self { count: table.len() / 2, table: Buffer::from_u32(gpu, &table)?, tokens })
    }
}

/// dw `[n, k]` f32 += scale dy' x, over the chunks, one after another (with a scale of 1 in one chain); dy `[T, n]`, x `[T, k]`.
///
/// # Errors
/// As [`forward`].
pub fn backward_weight(dw: &mut Buffer, dy: &Buffer, x: &Buffer, chunks: &TokenChunks, n: usize, k: usize, scale: f32) -> Result<()> {
    backward_weight_rows(dw, 0, dy, x, chunks, n, k, scale)
}

/// The same for rows `first..first + n` of a larger dw.
///
/// # Errors
/// As [`forward`].
#[allow(clippy::too_many_arguments)] // what the equation has
pub fn backward_weight_rows(
    dw: &mut Buffer,
    first: usize,
    dy: &Buffer,
    x: &Buffer,
    chunks: &TokenChunks,
    n: usize,
    k: usize,
    scale: f32,
) -> Result<()> {
    Shape { m: chunks.tokens, n, k }.check(0)?;
    if n * k * chunks.count == 0 {
        return Ok(());
    }
    let gpu = dy.gpu().clone();
    if scale != 1.0 {
        return tiled_dw(&gpu, "linear_dw_scaled_f32", dw, first, dy, x, chunks, n, k).f32(scale).run();
    }
    if gpu.is_hopper() {
        return hopper::backward_weight(&gpu, dw, first, dy, x, chunks, n, k).run();
    }
    tiled_dw(&gpu, "linear_dw_f32", dw, first, dy, x, chunks, n, k).run()
}

/// The launch of dw by linear.cu.
#[allow(clippy::too_many_arguments)] // what the equation has
fn tiled_dw<'a>(
    gpu: &'a Gpu,
    name: &'static str,
    dw: &mut Buffer,
    first: usize,
    dy: &Buffer,
    x: &Buffer,
    chunks: &TokenChunks,
    n: usize,
    k: usize,
) -> Launch<'a> {
    launch(gpu, name, n, k)
        .output_from("dw", dw, DType::F32, first * k, n * k)
        .input("dy", dy, DType::Bf16, chunks.tokens * n)
        .input("x", x, DType::Bf16, chunks.tokens * k)
        .input("chunks", &chunks.table, DType::U32, 2 * chunks.count)
        .dim("count", chunks.count)
        .dim("n", n)
        .dim("k", k)
}

/// A block for each 128 x 128 of the outputs.
fn launch<'a>(gpu: &'a Gpu, name: &'static str, rows: usize, columns: usize) -> Launch<'a> {
    Launch::new(gpu, Kernel { source: Source::LINEAR, name }, [rows.div_ceil(SIDE), columns.div_ceil(SIDE), 1], [256, 1, 1], SHARED)
}
