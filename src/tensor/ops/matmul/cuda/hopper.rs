//! Launches of `kernels/linear_hopper.cu`: the products on Hopper, by TMA and wgmma.

use super::{LowRank, Shape, TokenChunks, tiled_dw};
use crate::Result;
use crate::tensor::cuda::{Buffer, DType, Gpu, Kernel, Launch, Source};
use crate::tensor::philox::Philox;
use crate::tensor::plan::K_CHUNK;
use std::sync::Arc;

/// Rows of a tile of outputs of `kernels/linear_hopper.cuh`.
pub const ROWS: usize = 128;
/// Its columns.
pub const COLUMNS: usize = 256;
/// Threads of a block, and its four stages of 64 terms of both sides.
const THREADS: usize = 384;
const SHARED: usize = 4 * (ROWS + COLUMNS) * K_CHUNK * 2;

/// A launch of a kernel of `kernels/linear_hopper.cuh` for outputs `[rows, columns]`: blocks that stay, one on each multiprocessor.
pub fn tiles<'a>(gpu: &'a Gpu, kernel: Kernel, rows: usize, columns: usize) -> Launch<'a> {
    let tiles = rows.div_ceil(ROWS) * columns.div_ceil(COLUMNS);
    let grid = [tiles.min(gpu.info().multiprocessors), 1, 1];
    Launch::new(gpu, kernel, grid, [THREADS, 1, 1], SHARED)
}

fn launch<'a>(gpu: &'a Gpu, name: &'static str, rows: usize, columns: usize) -> Launch<'a> {
    tiles(gpu, Kernel { source: Source::LINEAR_HOPPER, name }, rows, columns)
}

/// Whether wgmma gives the bits of mma.sync on this chip, which nobody promises: sums of 1024 terms of very different size, by both, in f32. The
/// emulator's twins of the two round alike.
pub(super) fn wgmma_agrees(gpu: &Arc<Gpu>) -> Result<bool> {
    if gpu.is_emulated() {
        return Ok(true);
    }
    let (terms, n, k) = (1024, 256, 512);
    let random = Philox::new(17, 0);
    let number = |i: usize| random.normal(i as u64, 0) as f32 * 2f32.powi((random.uniform(i as u64, 2) * 16.0) as i32 - 8);
    let numbers: Vec<f32> = (0..terms * (n + k)).map(number).collect();
    let (dy, x) = numbers.split_at(terms * n);
    let [dy, x] = [dy, x].map(|side| Buffer::from_f32(gpu, DType::Bf16, side));
    let (dy, x, chunks) = (dy?, x?, TokenChunks::new(gpu, std::slice::from_ref(&(0..terms)))?);
    let mut sums = [Buffer::zeros(gpu, DType::F32, n * k)?, Buffer::zeros(gpu, DType::F32, n * k)?];
    backward_weight(gpu, &mut sums[0], 0, &dy, &x, &chunks, n, k).run()?;
    tiled_dw(gpu, "linear_dw_f32", &mut sums[1], 0, &dy, &x, &chunks, n, k).run()?;
    let [a, b] = [sums[0].to_f32()?, sums[1].to_f32()?];
    Ok(a.iter().zip(&b).all(|(a, b)| a.to_bits() == b.to_bits()))
}

/// y = bf16(x w' + scale low b' + bias).
pub(super) fn forward<'a>(
    gpu: &'a Gpu,
    y: &mut Buffer,
    x: &Buffer,
    w: &Buffer,
    bias: Option<&Buffer>,
    adapter: Option<LowRank<'_>>,
    shape: Shape,
) -> Launch<'a> {
    let Shape { m, n, k } = shape;
    let launch = launch(gpu, "linear_fwd_hopper", m, n)
        .output("y", y, DType::Bf16, m * n)
        .matrix("x", Some(x), m, k, ROWS)
        .matrix("w", Some(w), n, k, COLUMNS)
        .optional_input("bias", bias, DType::Bf16, n);
    let rank = adapter.map_or(0, |a| a.rank);
    finish(launch, adapter, shape, [n, rank, COLUMNS])
}

/// dx = bf16(dy w + scale low a).
pub(super) fn backward_input<'a>(
    gpu: &'a Gpu,
    dx: &mut Buffer,
    dy: &Buffer,
    w: &Buffer,
    adapter: Option<LowRank<'_>>,
    shape: Shape,
) -> Launch<'a> {
    let Shape { m, n, k } = shape;
    let launch = launch(gpu, "linear_dx_hopper", m, k).output("dx", dx, DType::Bf16, m * k).matrix("dy", Some(dy), m, n, ROWS).matrix(
        "w",
        Some(w),
        n,
        k,
        K_CHUNK,
    );
    let rank = adapter.map_or(0, |a| a.rank);
    finish(launch, adapter, shape, [rank, k, K_CHUNK])
}

/// The arguments after a product's own operands; `matrix`: rows, columns and rows of a box of the adapter's.
fn finish<'a>(launch: Launch<'a>, adapter: Option<LowRank<'_>>, shape: Shape, matrix: [usize; 3]) -> Launch<'a> {
    let (rank, [rows, columns, box_rows]) = (adapter.map_or(0, |a| a.rank), matrix);
    launch
        .matrix("low", adapter.map(|a| a.low), shape.m, rank, ROWS)
        .matrix("matrix", adapter.map(|a| a.matrix), rows, columns, box_rows)
        .dim("m", shape.m)
        .dim("n", shape.n)
        .dim("k", shape.k)
        .dim("rank", rank)
        .f32(adapter.map_or(0.0, |a| a.scale))
}

/// dw += dy' x, over the chunks.
#[allow(clippy::too_many_arguments)] // what the equation has
pub(super) fn backward_weight<'a>(
    gpu: &'a Gpu,
    dw: &mut Buffer,
    first: usize,
    dy: &Buffer,
    x: &Buffer,
    chunks: &TokenChunks,
    n: usize,
    k: usize,
) -> Launch<'a> {
    launch(gpu, "linear_dw_hopper", n, k)
        .output_from("dw", dw, DType::F32, first * k, n * k)
        .matrix("dy", Some(dy), chunks.tokens, n, K_CHUNK)
        .matrix("x", Some(x), chunks.tokens, k, K_CHUNK)
        .input("chunks", &chunks.table, DType::U32, 2 * chunks.count)
        .dim("count", chunks.count)
        .dim("n", n)
        .dim("k", k)
}
