//! The fused head on a CUDA device: launches of `kernels/head.cu`, which has the equations and the order of every sum, and of
//! `kernels/head_hopper.cu` on Hopper.
//!
//! Per row and chunk of [`VOCAB_CHUNK`] columns the device forms the largest logit and the two sums of exponentials, and of a row's chunks, in f64,
//! what [`Softmax::of`] is on the processor; the host takes the logarithm. Training and sampling launch the same kernel and sum the same way, so a
//! sampled token's log-probability is that of training, bit for bit. Logits are f32 and never rounded; they are stored for sampling alone.

mod hopper;

use super::{ChunkSums, Softmax};
use crate::tensor::cuda::{Buffer, DType, Gpu, Kernel, Launch, Source};
use crate::tensor::ops::matmul;
use crate::tensor::ops::matmul::cuda::TokenChunks;
use crate::tensor::plan::VOCAB_CHUNK;
use crate::{Error, Result};
use std::ops::Range;
use std::sync::Arc;

/// Rows and columns of a block's logits (`SIDE` of the kernel).
const SIDE: usize = 128;
/// Three stages of two tiles of 128 x 64 bf16.
const STAGES: usize = 3 * 2 * SIDE * 64 * 2;
/// Behind them: three sums for two halves of the columns and each row.
const SUMS: usize = 2 * SIDE * 3 * 4;

/// A head's operands: hidden states h `[rows, width]` and the head's matrix w `[vocab, width]`, both bf16.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    /// `[rows, width]`.
    pub h: &'a Buffer,
    /// `[vocab, width]`.
    pub w: &'a Buffer,
    /// Predictions.
    pub rows: usize,
    /// Tokens that there are; a multiple of 8.
    pub vocab: usize,
    /// Of the model; a multiple of 8.
    pub width: usize,
}

/// What [`backward`] needs of [`forward`].
#[derive(Debug)]
pub struct Saved {
    softmax: Vec<Softmax>,
    targets: Buffer,
    temperature: f32,
    temperatures: Buffer,
}

/// Logits `[rows, vocab]` f32 and each row's chunk sums `[rows, chunks, 3]` at the row's temperature, on the device; nothing is waited for.
#[derive(Debug)]
pub struct Logits {
    logits: Buffer,
    sums: Buffer,
    vocab: usize,
}

impl Logits {
    /// Of these logits, with sums that the head has formed.
    ///
    /// # Panics
    /// If there are not as many sums as rows and chunks.
    pub fn of(logits: Buffer, sums: Buffer, vocab: usize) -> Self {
        assert_eq!(logits.len() / vocab * vocab.div_ceil(VOCAB_CHUNK) * 3, sums.len(), "the sums of each row's chunks");
        Self { logits, sums, vocab }
    }

    /// How many rows there are.
    pub fn rows(&self) -> usize {
        self.logits.len() / self.vocab
    }

    /// Tokens that there are.
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// `[rows, vocab]`.
    pub fn logits(&self) -> &Buffer {
        &self.logits
    }

    /// `[rows, chunks, 3]`: what [`ChunkSums`] holds.
    pub fn sums(&self) -> &Buffer {
        &self.sums
    }

    /// The first rows.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn first(&self, rows: usize) -> Self {
        let numbers = rows * self.vocab.div_ceil(VOCAB_CHUNK) * 3;
        Self { logits: self.logits.part(DType::F32, 0, rows * self.vocab), sums: self.sums.part(DType::F32, 0, numbers), vocab: self.vocab }
    }

    /// A row's logits and the sums of its chunks, in order.
    ///
    /// # Errors
    /// If the device failed.
    pub fn row(&self, row: usize) -> Result<(Vec<f32>, Vec<ChunkSums>)> {
        let numbers = self.vocab.div_ceil(VOCAB_CHUNK) * 3;
        let sums = self.sums.part_to_f32(row * numbers..(row + 1) * numbers)?;
        let of_chunk = |s: &[f32]| ChunkSums { max: s[0], sum: s[1], weighted: s[2] };
        let logits = self.logits.part_to_f32(row * self.vocab..(row + 1) * self.vocab)?;
        Ok((logits, sums.chunks(3).map(of_chunk).collect()))
    }
}

impl Head<'_> {
    fn check(&self) -> Result<()> {
        if self.vocab.is_multiple_of(8) && self.width.is_multiple_of(8) {
            return Ok(());
        }
        let message = format!("a head of {} inputs and {} tokens: the kernels take multiples of 8", self.width, self.vocab);
        Err(Error::device(message).hint("use --device cpu"))
    }

    fn chunks(&self) -> usize {
        self.vocab.div_ceil(VOCAB_CHUNK)
    }

    /// The chunk sums of every row, `[rows, chunks, 3]` f32 on the device, and what else the launch is asked for: targets' z, logits.
    fn launch(
        &self,
        gpu: &Arc<Gpu>,
        temperatures: &Buffer,
        target: Option<(&Buffer, &mut Buffer)>,
        logits: Option<&mut Buffer>,
    ) -> Result<Buffer> {
        self.check()?;
        let &Head { h, w, rows, vocab, width } = self;
        let mut sums = Buffer::uninit(gpu, DType::F32, rows * self.chunks() * 3)?;
        if rows == 0 {
            return Ok(sums);
        }
        let (targets, target_z) = target.unzip();
        let (tiles, chunks) = (vocab.div_ceil(SIDE), self.chunks());
        let mut parts = Buffer::uninit(gpu, DType::F32, rows * tiles * 3)?;
        let kernel = |name| Kernel { source: Source::HEAD, name };
        let launch = if gpu.is_hopper() {
            hopper::forward(gpu, rows, vocab)
        } else {
            Launch::new(gpu, kernel("head_fwd_bf16"), [rows.div_ceil(SIDE), tiles, 1], [256, 1, 1], STAGES + SUMS)
        };
        let launch = launch
            .output("parts", &mut parts, DType::F32, rows * tiles * 3)
            .optional_output("target_z", target_z, DType::F32, rows)
            .optional_output("logits", logits, DType::F32, rows * vocab);
        hopper::operands(launch, gpu, h, w, rows, vocab, width)
            .input("temperature", temperatures, DType::F32, rows)
            .optional_input("targets", targets, DType::U32, rows)
            .dim("rows", rows)
            .dim("vocab", vocab)
            .dim("k", width)
            .run()?;
        Launch::new(gpu, kernel("head_chunk_sums_f32"), [(rows * chunks).div_ceil(128), 1, 1], [128, 1, 1], 0)
            .waits()
            .output("sums", &mut sums, DType::F32, rows * chunks * 3)
            .input("parts", &parts, DType::F32, rows * tiles * 3)
            .dim("rows", rows)
            .dim("chunks", chunks)
            .dim("tiles", tiles)
            .run()?;
        Ok(sums)
    }
}

/// The softmax of each row, from its chunk sums.
fn softmax(gpu: &Arc<Gpu>, sums: &Buffer, rows: usize, chunks: usize) -> Result<Vec<Softmax>> {
    if rows == 0 {
        return Ok(Vec::new());
    }
    let mut softmax = Buffer::uninit(gpu, DType::F64, rows * 3)?;
    Launch::new(gpu, Kernel { source: Source::HEAD, name: "head_softmax_f64" }, [rows.div_ceil(128), 1, 1], [128, 1, 1], 0)
        .output("softmax", &mut softmax, DType::F64, rows * 3)
        .input("sums", sums, DType::F32, rows * chunks * 3)
        .dim("rows", rows)
        .dim("chunks", chunks)
        .run()?;
    Ok(softmax.to_f64()?.chunks(3).map(|s| Softmax { max: s[0], sum: s[1], weighted: s[2] }).collect())
}

/// Per row: logprob, entropy, and what [`backward`] needs.
///
/// # Errors
/// If a width is not a multiple of 8, a buffer does not fit, or the device failed.
///
/// # Panics
/// If a target is not in the vocabulary, or there is not one a row.
pub fn forward(gpu: &Arc<Gpu>, head: Head<'_>, targets: &[u32], temperature: f32) -> Result<(Vec<f32>, Vec<f32>, Saved)> {
    assert_eq!(head.rows, targets.len(), "one target a row");
    assert!(targets.iter().all(|t| (*t as usize) < head.vocab), "targets of a vocabulary of {}", head.vocab);
    let temperatures = Buffer::from_f32(gpu, DType::F32, &vec![temperature; head.rows])?;
    let targets = Buffer::from_u32(gpu, targets)?;
    let mut target_z = Buffer::uninit(gpu, DType::F32, head.rows)?;
    let sums = head.launch(gpu, &temperatures, Some((&targets, &mut target_z)), None)?;
    let softmax = softmax(gpu, &sums, head.rows, head.chunks())?;
    let logprob = softmax.iter().zip(target_z.to_f32()?).map(|(s, z)| s.logprob(z)).collect();
    let entropy = softmax.iter().map(Softmax::entropy).collect();
    Ok((logprob, entropy, Saved { softmax, targets, temperature, temperatures }))
}

/// Logits and chunk sums for sampling, each row at its own temperature (1 where it is greedy).
///
/// # Errors
/// As [`forward`].
pub fn logits(gpu: &Arc<Gpu>, head: Head<'_>, temperatures: &[f32]) -> Result<Logits> {
    assert_eq!(head.rows, temperatures.len(), "one temperature a row");
    queue(gpu, head, &Buffer::from_f32(gpu, DType::F32, temperatures)?)
}

/// The launches of [`logits`], with the temperatures on the device.
///
/// # Errors
/// As [`forward`].
pub fn queue(gpu: &Arc<Gpu>, head: Head<'_>, temperatures: &Buffer) -> Result<Logits> {
    let mut logits = Buffer::uninit(gpu, DType::F32, head.rows * head.vocab)?;
    let sums = head.launch(gpu, temperatures, None, Some(&mut logits))?;
    Ok(Logits { logits, sums, vocab: head.vocab })
}

/// dh `[rows, width]` f32; adds to dW `[vocab, width]` f32, rows summed over `chunks`. Chunks of the vocabulary come one after another: their
/// logits are computed again, their gradient is rounded to bf16.
///
/// # Errors
/// As [`forward`].
pub fn backward(
    gpu: &Arc<Gpu>,
    head: Head<'_>,
    saved: &Saved,
    d_logprob: &[f32],
    d_entropy: Option<&[f32]>,
    mut dw: Option<(&mut Buffer, &TokenChunks)>,
) -> Result<Buffer> {
    head.check()?;
    let Head { h, rows, vocab, width, .. } = head;
    let mut dh = Buffer::zeros(gpu, DType::F32, rows * width)?;
    if rows == 0 {
        return Ok(dh);
    }
    let seeds = Buffer::from_f32(gpu, DType::F32, &seeds(saved, d_logprob, d_entropy))?;
    let mut dz = Buffer::uninit(gpu, DType::Bf16, rows * VOCAB_CHUNK.min(vocab))?;
    for first in (0..vocab).step_by(VOCAB_CHUNK) {
        let columns = VOCAB_CHUNK.min(vocab - first);
        if gpu.is_hopper() {
            hopper::dz(gpu, &mut dz, &head, saved, &seeds, first..first + columns)?;
            hopper::add_dh(gpu, &mut dh, &dz, &head, first..first + columns)?;
        } else {
            tiled_dz(gpu, &mut dz, &head, saved, &seeds, first..first + columns)?;
            tiled_dh(gpu, &mut dh, &dz, &head, first..first + columns)?;
        }
        if let Some((dw, chunks)) = &mut dw {
            matmul::cuda::backward_weight_rows(dw, first, &dz, h, chunks, columns, width, 1.0)?;
        }
    }
    Ok(dh)
}

/// dz `[rows, chunk]` of a chunk of the vocabulary, by head.cu.
fn tiled_dz(gpu: &Gpu, dz: &mut Buffer, head: &Head<'_>, saved: &Saved, seeds: &Buffer, chunk: Range<usize>) -> Result<()> {
    let &Head { h, w, rows, vocab, width } = head;
    let grid = [rows.div_ceil(SIDE), chunk.len().div_ceil(SIDE), 1];
    Launch::new(gpu, Kernel { source: Source::HEAD, name: "head_dz_bf16" }, grid, [256, 1, 1], STAGES)
        .output("dz", dz, DType::Bf16, rows * chunk.len())
        .input("h", h, DType::Bf16, rows * width)
        .input("w", w, DType::Bf16, vocab * width)
        .input("temperature", &saved.temperatures, DType::F32, rows)
        .input("targets", &saved.targets, DType::U32, rows)
        .input("seeds", seeds, DType::F32, rows * SEEDS)
        .dim("rows", rows)
        .dim("vocab", vocab)
        .dim("k", width)
        .dim("first", chunk.start)
        .dim("width", chunk.len())
        .run()
}

/// dh += dz times the chunk's rows of w, by head.cu.
fn tiled_dh(gpu: &Gpu, dh: &mut Buffer, dz: &Buffer, head: &Head<'_>, chunk: Range<usize>) -> Result<()> {
    let &Head { w, rows, width, .. } = head;
    let grid = [rows.div_ceil(SIDE), width.div_ceil(SIDE), 1];
    Launch::new(gpu, Kernel { source: Source::HEAD, name: "head_dh_f32" }, grid, [256, 1, 1], STAGES)
        .output("dh", dh, DType::F32, rows * width)
        .input("dz", dz, DType::Bf16, rows * chunk.len())
        .input_from("w", w, DType::Bf16, chunk.start * width, chunk.len() * width)
        .dim("rows", rows)
        .dim("width", chunk.len())
        .dim("k", width)
        .run()
}

/// Numbers of a row that turn its logits into the loss's gradient.
const SEEDS: usize = 6;

fn seeds(saved: &Saved, d_logprob: &[f32], d_entropy: Option<&[f32]>) -> Vec<f32> {
    let row = |(r, s): (usize, &Softmax)| {
        let (a, b) = (d_logprob[r] / saved.temperature, d_entropy.map_or(0.0, |d| d[r]) / saved.temperature);
        [a, b, s.max as f32, s.sum.ln() as f32, (1.0 / s.sum) as f32, s.entropy()]
    };
    saved.softmax.iter().enumerate().flat_map(row).collect()
}
