//! Launches of `kernels/head_hopper.cu`: the head on Hopper, by TMA and wgmma.

use super::{Head, SEEDS, Saved};
use crate::Result;
use crate::tensor::cuda::{Buffer, DType, Gpu, Launch, Source};
use crate::tensor::ops::matmul::cuda::hopper::{OUT_ROWS, ROWS, Tiled};
use crate::tensor::plan::K_CHUNK;
use std::ops::Range;

const fn tiled(names: [&'static str; 2], rounds: bool) -> Tiled {
    Tiled { source: Source::HEAD_HOPPER, names, rounds }
}

const FORWARD: Tiled = tiled(["head_fwd_hopper", "head_fwd_hopper_pair"], false);
const LOGITS: Tiled = tiled(["head_dz_hopper", "head_dz_hopper_pair"], true);
const INPUT: Tiled = tiled(["head_dh_hopper", "head_dh_hopper_pair"], false);

/// The forward product's launch, before its arguments.
pub(super) fn forward(gpu: &Gpu, rows: usize, vocab: usize) -> Launch<'_> {
    FORWARD.launch(gpu, rows, vocab)
}

/// h and w of the forward product as the kernel of this device takes them: maps for TMA, or pointers.
pub(super) fn operands<'a>(launch: Launch<'a>, gpu: &Gpu, h: &Buffer, w: &Buffer, rows: usize, vocab: usize, width: usize) -> Launch<'a> {
    if gpu.is_hopper() {
        return launch.matrix("h", Some(h), rows, width, ROWS).matrix("w", Some(w), vocab, width, ROWS);
    }
    launch.input("h", h, DType::Bf16, rows * width).input("w", w, DType::Bf16, vocab * width)
}

/// dz `[rows, chunk]` of a chunk of the vocabulary.
pub(super) fn dz(gpu: &Gpu, dz: &mut Buffer, head: &Head<'_>, saved: &Saved, seeds: &Buffer, chunk: Range<usize>) -> Result<()> {
    let &Head { h, w, rows, vocab, width } = head;
    let launch = LOGITS.launch(gpu, rows, chunk.len()).output_matrix("dz", dz, rows, chunk.len(), OUT_ROWS);
    operands(launch, gpu, h, w, rows, vocab, width)
        .input("temperature", &saved.temperatures, DType::F32, rows)
        .input("targets", &saved.targets, DType::U32, rows)
        .input("seeds", seeds, DType::F32, rows * SEEDS)
        .dim("rows", rows)
        .dim("k", width)
        .dim("first", chunk.start)
        .dim("width", chunk.len())
        .run()
}

/// dh += dz times the chunk's rows of w.
pub(super) fn add_dh(gpu: &Gpu, dh: &mut Buffer, dz: &Buffer, head: &Head<'_>, chunk: Range<usize>) -> Result<()> {
    let &Head { w, rows, width, .. } = head;
    INPUT
        .launch(gpu, rows, width)
        .output("dh", dh, DType::F32, rows * width)
        .matrix("dz", Some(dz), rows, chunk.len(), ROWS)
        .matrix_from("w", w, chunk.start, chunk.len(), width, K_CHUNK)
        .dim("rows", rows)
        .dim("width", chunk.len())
        .dim("k", width)
        .run()
}
