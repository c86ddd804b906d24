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
/// Rows of a box of outputs.
pub const OUT_ROWS: usize = 64;
/// Threads of a block, and its four stages of 64 terms of both sides.
const THREADS: usize = 384;
const STAGES: usize = 4 * (ROWS + COLUMNS) * K_CHUNK * 2;
/// What outputs in bf16 take beside them: two boxes of 64 columns of each warpgroup that multiplies.
const OUT: usize = 2 * 2 * OUT_ROWS * 64 * 2;

/// A kernel of `kernels/linear_hopper.cuh`, by blocks alone and by clusters of two.
#[derive(Clone, Copy)]
pub struct Tiled {
    /// Where both are.
    pub source: Source,
    /// Their names, that of blocks alone first.
    pub names: [&'static str; 2],
    /// Whether outputs are bf16, which leave by way of shared memory.
    pub rounds: bool,
}

impl Tiled {
    const fn linear(names: [&'static str; 2], rounds: bool) -> Self {
        Self { source: Source::LINEAR_HOPPER, names, rounds }
    }

    /// Its launch for outputs `[rows, columns]`: blocks that stay, one on each multiprocessor.
    pub fn launch<'a>(self, gpu: &'a Gpu, rows: usize, columns: usize) -> Launch<'a> {
        let (of_cluster, blocks) = grid(gpu.info().multiprocessors, rows, columns);
        let kernel = Kernel { source: self.source, name: self.names[of_cluster - 1] };
        Launch::new(gpu, kernel, [blocks, 1, 1], [THREADS, 1, 1], STAGES + if self.rounds { OUT } else { 0 })
    }
}

const FORWARD: Tiled = Tiled::linear(["linear_fwd_hopper", "linear_fwd_hopper_pair"], true);
const INPUT: Tiled = Tiled::linear(["linear_dx_hopper", "linear_dx_hopper_pair"], true);
const WEIGHT: Tiled = Tiled::linear(["linear_dw_hopper", "linear_dw_hopper_pair"], false);

/// Blocks of a cluster, and blocks. Two tiles one below the other are two blocks' that load their columns together, where all of them have a partner, or so
/// many that the one without costs an eighth at the most. An odd multiprocessor is left alone then.
fn grid(multiprocessors: usize, rows: usize, columns: usize) -> (usize, usize) {
    let (down, across) = (rows.div_ceil(ROWS), columns.div_ceil(COLUMNS));
    if down.is_multiple_of(2) || down > 8 {
        return (2, 2 * (down.div_ceil(2) * across).min((multiprocessors / 2).max(1)));
    }
    (1, (down * across).min(multiprocessors))
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
    let launch = FORWARD
        .launch(gpu, m, n)
        .output_matrix("y", y, m, n, OUT_ROWS)
        .matrix("x", Some(x), m, k, ROWS)
        .matrix("w", Some(w), n, k, ROWS)
        .optional_input("bias", bias, DType::Bf16, n);
    let rank = adapter.map_or(0, |a| a.rank);
    finish(launch, adapter, shape, [n, rank, ROWS])
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
    let launch = INPUT.launch(gpu, m, k).output_matrix("dx", dx, m, k, OUT_ROWS).matrix("dy", Some(dy), m, n, ROWS).matrix(
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
    WEIGHT
        .launch(gpu, n, k)
        .output_from("dw", dw, DType::F32, first * k, n * k)
        .matrix("dy", Some(dy), chunks.tokens, n, K_CHUNK)
        .matrix("x", Some(x), chunks.tokens, k, K_CHUNK)
        .input("chunks", &chunks.table, DType::U32, 2 * chunks.count)
        .dim("count", chunks.count)
        .dim("n", n)
        .dim("k", k)
}

#[cfg(test)]
mod tests {
    use super::grid;

    #[test]
    fn pairs_are_taken_where_few_are_without_a_partner() {
        let cases = [(1, 1, 1), (128, 256, 1), (129, 256, 2), (384, 256, 1), (512, 1000, 2), (7 * 128, 256, 1), (9 * 128, 256, 2)];
        for (rows, columns, of_cluster) in cases {
            assert_eq!(grid(132, rows, columns).0, of_cluster, "{rows} rows");
        }
    }

    #[test]
    fn a_grid_is_whole_clusters_and_no_more_than_there_is_work_or_room_for() {
        assert_eq!(grid(132, 8192, 4096), (2, 132));
        assert_eq!(grid(133, 8192, 4096), (2, 132), "an odd multiprocessor");
        assert_eq!(grid(1, 256, 256), (2, 2), "an emulator");
        assert_eq!(grid(132, 256, 512), (2, 4));
        assert_eq!(grid(132, 9 * 128, 256), (2, 10), "one without a partner");
        assert_eq!(grid(132, 128, 70_000), (1, 132));
        assert_eq!(grid(132, 128, 300), (1, 2));
    }
}
