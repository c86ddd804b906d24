//! Launches of `kernels/linear_few.cu`: products of few rows, several of one input in one launch.

use super::{Layer, NARROW};
use crate::Result;
use crate::tensor::cuda::{Buffer, DType, Gpu, Kernel, Launch, Source};
use crate::tensor::plan::K_CHUNK;
use std::sync::Arc;

/// Rows up to which every product is one of few rows.
pub const ROWS: usize = 256;
/// Products of a launch (`PART` of the kernel).
const PARTS: usize = 3;
/// Blocks that the largest tile must have, or there are more of a smaller one: about as many as a large chip has multiprocessors.
const BLOCKS: usize = 128;

/// A tile of the kernel: rows of x by rows of w.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    forward: &'static str,
    swiglu: &'static str,
    rows: usize,
    columns: usize,
    /// Chunks of 64 terms of both sides (`STAGES_OF` of the kernel).
    stages: usize,
}

const SMALL: Tile = Tile { forward: "linear_few_16x16", swiglu: "linear_few_swiglu_16x16", rows: 16, columns: 16, stages: 8 };
const MIDDLE: Tile = Tile { forward: "linear_few_64x32", swiglu: "linear_few_swiglu_64x32", rows: 64, columns: 32, stages: 8 };
const LARGE: Tile = Tile { forward: "linear_few_128x64", swiglu: "linear_few_swiglu_128x64", rows: 128, columns: 64, stages: 4 };

impl Tile {
    /// The tile for products with m rows, of at most `widest` outputs and `outputs` together; none where larger ones have work for all of the chip. Not tuned on
    /// one yet.
    pub fn of(m: usize, widest: usize, outputs: usize) -> Option<Self> {
        match m {
            0..=16 => Some(SMALL),
            _ if m > ROWS && widest > NARROW => None,
            _ if m > MIDDLE.rows && m.div_ceil(LARGE.rows) * outputs.div_ceil(LARGE.columns) >= BLOCKS => Some(LARGE),
            _ => Some(MIDDLE),
        }
    }

    /// A launch with `blocks` for each row of tiles.
    fn launch<'a>(self, gpu: &'a Gpu, name: &'static str, blocks: usize, m: usize) -> Launch<'a> {
        let shared = self.stages * (self.rows + self.columns) * K_CHUNK * 2;
        let kernel = Kernel { source: Source::LINEAR_FEW, name };
        Launch::new(gpu, kernel, [blocks, m.div_ceil(self.rows), 1], [2 * self.columns, 1, 1], shared).waits()
    }
}

/// The outputs of layers of x `[m, k]`.
pub(super) fn forward(gpu: &Arc<Gpu>, tile: Tile, x: &Buffer, layers: &[Layer<'_>], m: usize, k: usize) -> Result<Vec<Buffer>> {
    let mut outputs = layers.iter().map(|l| Buffer::uninit(gpu, DType::Bf16, m * l.n)).collect::<Result<Vec<_>>>()?;
    for (layers, outputs) in layers.chunks(PARTS).zip(outputs.chunks_mut(PARTS)) {
        let blocks: usize = layers.iter().map(|l| l.n.div_ceil(tile.columns)).sum();
        if m * blocks == 0 {
            continue;
        }
        let mut launch = tile.launch(gpu, tile.forward, blocks, m).input("x", x, DType::Bf16, m * k).dim("m", m).dim("k", k);
        let mut outputs = outputs.iter_mut();
        for part in 0..PARTS {
            let own = layers.get(part);
            let n = own.map_or(0, |l| l.n);
            launch = layer(launch.optional_output("y", outputs.next(), DType::Bf16, m * n).dim("n", n), own, m, k);
        }
        launch.run()?;
    }
    Ok(outputs)
}

/// silu(gate) * up, for those layers of x `[m, k]`.
pub(super) fn swiglu(gpu: &Arc<Gpu>, tile: Tile, x: &Buffer, [gate, up]: [&Layer<'_>; 2], m: usize, k: usize) -> Result<Buffer> {
    let n = gate.n;
    let mut y = Buffer::uninit(gpu, DType::Bf16, m * n)?;
    if m * n == 0 {
        return Ok(y);
    }
    let launch = tile
        .launch(gpu, tile.swiglu, (2 * n).div_ceil(tile.columns), m)
        .output("y", &mut y, DType::Bf16, m * n)
        .input("x", x, DType::Bf16, m * k)
        .dim("m", m)
        .dim("n", n)
        .dim("k", k);
    layer(layer(launch, Some(gate), m, k), Some(up), m, k).run()?;
    Ok(y)
}

/// A layer's own operands (`LAYER` of the kernel); of none, null pointers.
fn layer<'a>(launch: Launch<'a>, layer: Option<&Layer<'_>>, m: usize, k: usize) -> Launch<'a> {
    let (n, adapter) = (layer.map_or(0, |l| l.n), layer.and_then(|l| l.adapter));
    let rank = adapter.map_or(0, |a| a.rank);
    launch
        .optional_input("w", layer.map(|l| l.w), DType::Bf16, n * k)
        .optional_input("bias", layer.and_then(|l| l.bias), DType::Bf16, n)
        .optional_input("low", adapter.map(|a| a.low), DType::Bf16, m * rank)
        .optional_input("matrix", adapter.map(|a| a.matrix), DType::Bf16, n * rank)
        .dim("rank", rank)
        .f32(adapter.map_or(0.0, |a| a.scale))
}
