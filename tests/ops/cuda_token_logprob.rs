//! The fused head's kernels against the processor's op on the same bf16 inputs.

use crate::cuda_attention::{Mutant, mutant, rounded, upload};
use crate::cuda_checker::modes;
use crate::cuda_matmul::broken;
use crate::cuda_rmsnorm::real_gpu;
use crate::emulator;
use crate::support::{bits, close, error, normal, rows, tensor, wide};
use sorft_native::Result;
use sorft_native::tensor::Tensor;
use sorft_native::tensor::cpu::PanelMatrix;
use sorft_native::tensor::cuda::{Buffer, DType, Emulation, Gpu, Source};
use sorft_native::tensor::ops::matmul::cuda::TokenChunks;
use sorft_native::tensor::ops::token_logprob::cuda::{self, Head};
use sorft_native::tensor::ops::token_logprob::{self as head, Keep};
use std::ops::Range;
use std::sync::Arc;

/// Of what is a sum in f32.
const F32_BOUND: f64 = 2e-6;
/// Of gradients that pass through dz in bf16.
const BF16_BOUND: f64 = 6e-3;

pub struct Case {
    h: Tensor,
    w: Tensor,
    targets: Vec<u32>,
    d_logprob: Vec<f32>,
    d_entropy: Vec<f32>,
    chunks: Vec<Range<usize>>,
    temperature: f32,
}

impl Case {
    pub fn new(t: usize, d: usize, v: usize, temperature: f32) -> Self {
        let w: Vec<f32> = normal(v * d, 2).iter().map(|x| x * 2.0 / (d as f32).sqrt()).collect();
        Self {
            h: rounded(&tensor(&[t, d], 1)),
            w: rounded(&Tensor::from_vec(&[v, d], w)),
            // The first and the last token are among them.
            targets: (0..t).map(|i| if i == 0 { v as u32 - 1 } else { (i * 2_654_435_761 % v) as u32 / (i % 2 * v + 1) as u32 }).collect(),
            d_logprob: normal(t, 3),
            d_entropy: normal(t, 4),
            chunks: [0..t / 2, t / 2..t].into_iter().filter(|c| !c.is_empty()).collect(),
            temperature,
        }
    }

    fn rows(&self, range: Range<usize>) -> Self {
        Self {
            h: rows(&self.h, range.clone()),
            w: rows(&self.w, 0..self.w.rows()),
            targets: self.targets[range.clone()].to_vec(),
            d_logprob: self.d_logprob[range.clone()].to_vec(),
            d_entropy: self.d_entropy[range.clone()].to_vec(),
            chunks: vec![0..range.len()],
            temperature: self.temperature,
        }
    }

    pub fn on_device<T>(&self, gpu: &Arc<Gpu>, f: impl FnOnce(Head<'_>) -> Result<T>) -> Result<T> {
        let (h, w) = (upload(gpu, &self.h)?, upload(gpu, &self.w)?);
        f(Head { h: &h, w: &w, rows: self.h.rows(), vocab: self.w.rows(), width: self.h.cols() })
    }
}

/// logprob, entropy, dh and dw (which begins as `dw`).
pub fn run(gpu: &Arc<Gpu>, case: &Case, dw: &mut Buffer) -> Result<[Vec<f32>; 3]> {
    case.on_device(gpu, |h| {
        let (logprob, entropy, saved) = cuda::forward(gpu, h, &case.targets, case.temperature)?;
        let chunks = TokenChunks::new(gpu, &case.chunks)?;
        let dh = cuda::backward(gpu, h, &saved, &case.d_logprob, Some(&case.d_entropy), Some((dw, &chunks)))?;
        Ok([logprob, entropy, dh.to_f32()?])
    })
}

pub fn zeros(gpu: &Arc<Gpu>, case: &Case) -> Buffer {
    Buffer::zeros(gpu, DType::F32, case.w.data().len()).expect("cleared")
}

fn processor(case: &Case) -> [Vec<f64>; 4] {
    let w = PanelMatrix::from_rows(case.w.rows(), case.w.cols(), case.w.data());
    let mut dw = PanelMatrix::from_rows(w.n(), w.k(), &vec![0.0; w.n() * w.k()]);
    let (logprob, entropy, saved) = head::forward(&case.h, &w, &case.targets, case.temperature, Keep::ForBackward);
    let t = case.temperature;
    let dh = head::backward(&case.h, &w, &case.targets, t, saved, &case.d_logprob, Some(&case.d_entropy), &case.chunks, Some(&mut dw));
    [wide(&logprob), wide(&entropy), wide(dh.data()), wide(&dw.to_rows())]
}

/// One row, a vocabulary below a strip, strips and chunks that are not full, several chunks, more rows than a block has.
#[test]
fn the_head_equals_the_processor_s() {
    for (i, gpu) in modes().into_iter().map(emulator::gpu).chain(real_gpu()).enumerate() {
        for (t, d, v, temperature) in [(1, 8, 8, 1.0), (7, 72, 304, 0.7), (131, 8, 72, 1.0)] {
            let case = Case::new(t, d, v, temperature);
            let name = |what: &str| format!("{what} of [{t}, {d}], vocabulary {v}, device {i}");
            let want = processor(&case);
            let mut dw = zeros(&gpu, &case);
            let got = run(&gpu, &case, &mut dw).unwrap_or_else(|e| panic!("{}: {e}", name("a run")));
            close(&name("logprob"), &got[0], &want[0], F32_BOUND);
            close(&name("entropy"), &got[1], &want[1], F32_BOUND);
            close(&name("dh"), &got[2], &want[2], BF16_BOUND);
            close(&name("dw"), &dw.to_f32().expect("downloaded"), &want[3], BF16_BOUND);
        }
    }
}

/// More than a chunk of the vocabulary, with a ragged end.
#[test]
fn several_chunks_equal_the_processor_s() {
    for gpu in [emulator::gpu(Emulation::default())].into_iter().chain(real_gpu()) {
        let case = Case::new(13, 24, 2120, 1.3);
        let want = processor(&case);
        let mut dw = zeros(&gpu, &case);
        let got = run(&gpu, &case, &mut dw).expect("runs");
        got[..2].iter().zip(&want).for_each(|(got, want)| close("logprob or entropy", got, want, F32_BOUND));
        close("dh", &got[2], &want[2], BF16_BOUND);
        close("dw", &dw.to_f32().expect("downloaded"), &want[3], BF16_BOUND);
    }
}

/// By TMA and wgmma: the bits that mma.sync gives.
#[test]
fn hopper_s_head_equals_the_other() {
    // Tiles by pairs of blocks and alone.
    for case in [Case::new(131, 24, 2120, 0.9), Case::new(9, 24, 2120, 0.9)] {
        let [ampere, hopper] = [(8, 0), (9, 0)].map(|compute_capability| {
            let gpu = emulator::gpu(Emulation { check: compute_capability == (9, 0), compute_capability, ..Emulation::default() });
            let mut dw = zeros(&gpu, &case);
            let got = run(&gpu, &case, &mut dw).expect("runs");
            [bits(&got[0]), bits(&got[1]), bits(&got[2]), bits(&dw.to_f32().expect("downloaded"))]
        });
        assert!(ampere == hopper);
    }
}

/// A row's bits do not depend on the other rows; a batch cut between trees gives dw's bits.
#[test]
fn a_row_does_not_depend_on_its_batch() {
    let gpu = emulator::gpu(Emulation::default());
    let case = Case { chunks: vec![0..2, 2..5], ..Case::new(5, 16, 2064, 0.9) };
    let mut dw = zeros(&gpu, &case);
    let whole = run(&gpu, &case, &mut dw).expect("runs");
    let mut cut = zeros(&gpu, &case);
    for range in [0..2, 2..5] {
        let part = run(&gpu, &case.rows(range.clone()), &mut cut).expect("runs");
        for (part, whole, width) in [(&part[0], &whole[0], 1), (&part[1], &whole[1], 1), (&part[2], &whole[2], 16)] {
            assert_eq!(bits(part), bits(&whole[range.start * width..range.end * width]));
        }
    }
    assert!(bits(&cut.to_f32().expect("downloaded")) == bits(&dw.to_f32().expect("downloaded")));
}

#[test]
fn a_vocabulary_that_the_kernels_do_not_take_is_an_error() {
    let gpu = emulator::gpu(Emulation::default());
    let case = Case::new(1, 8, 12, 1.0);
    let error = case.on_device(&gpu, |h| cuda::forward(&gpu, h, &case.targets, 1.0)).expect_err("12 tokens").to_string();
    assert!(error.contains("multiples of 8"), "{error}");
}

#[test]
fn every_mistake_is_found() {
    let mutants: [Mutant; 16] = [
        mutant("no barrier before the strips meet", "__syncthreads();  // both strips' sums are there", ""),
        mutant(
            "the strips are not told apart",
            "strips[threadIdx.x / 32 % 2 * head::SIDE + r.in_block] = part",
            "strips[r.in_block] = part",
        ),
        mutant("every lane keeps the sums", "if (threadIdx.x % 4 == 0) strips", "strips"),
        mutant(
            "a tree over two lanes",
            "for (int mask = 1; mask <= 2; mask <<= 1) {\n    p.sum",
            "for (int mask = 1; mask < 2; mask <<= 1) {\n    p.sum",
        ),
        mutant(
            "columns beyond the last",
            "column + e < vocab ? total[r.half][j][2 * r.pair + e] / t : head::nothing()",
            "total[r.half][j][2 * r.pair + e] / t",
        ),
        mutant("no temperature", "2 * r.pair + e] / t : head", "2 * r.pair + e] : head"),
        mutant(
            "the last tile is lost",
            "end = min(first + head::CHUNK / head::SIDE, tiles)",
            "end = min(first + head::CHUNK / head::SIDE, tiles - 1)",
        ),
        mutant("the tiles of the first chunk", "const int first = (int)(at % chunks) *", "const int first = 0 *"),
        mutant("no shift", "ea * (a.weighted + a.sum * da)", "ea * a.weighted"),
        mutant("the target's own part", "return column == target ? g + a : g;", "return g;"),
        mutant("no entropy", "(a + b * (d + shift))", "a"),
        mutant("the weight's first rows", "head::column_of(at.column, j);\n      if", "head::column_of(0, j);\n      if"),
        mutant("rows beyond the last", "if (r.row >= rows) continue;", ""),
        mutant("the last chunk is lost", "c < chunks; c++) {\n    const double shift", "c < chunks - 1; c++) {\n    const double shift"),
        mutant("a chunk's shift is not weighed", "(double)own[3 * c + 1] * shift)", "(double)own[3 * c + 1])"),
        mutant("the first row's chunks", "const float *own = sums + 3 * row * chunks;", "const float *own = sums;"),
    ];
    each_is_found(Source::HEAD, "struct Row {", &mutants, (8, 0));
}

/// What is left of mistakes where tiles and products are linear_hopper.cu's.
#[test]
fn every_mistake_on_hopper_is_found() {
    let mutants = [
        mutant("columns beyond the last", "at < vocab ? z / t : head::nothing()", "z / t"),
        mutant("no temperature", "at < vocab ? z / t", "at < vocab ? z"),
        mutant("the second strip is the first", "front_strip<8>(sum", "front_strip<0>(sum"),
        mutant("the halves stay", "swap(sum[j][0], sum[j + 16][0]), swap", "swap"),
        mutant("the second row is the first", "sum[j][0] = sum[j][2], sum", "sum"),
        mutant("parts of the first half", "column / 128 + half", "column / 128"),
        mutant("rows beyond the last", "if (own >= rows) continue;", ""),
        mutant("the weight's first rows", "product.load(stages, row, first + column)", "product.load(stages, row, column)"),
        mutant("the target of another chunk", "gradient.at(z, first + column", "gradient.at(z, column"),
        mutant("dh begins afresh", "product.add(sum, stages, group, true)", "product.add(sum, stages, group, false)"),
    ];
    each_is_found(Source::HEAD_HOPPER, "struct Product {", &mutants, (9, 0));
}

fn each_is_found(source: Source, unbroken: &'static str, mutants: &[Mutant], compute_capability: (u32, u32)) {
    let case = Case::new(13, 16, 2120, 0.8);
    let want = processor(&case);
    let open = |library: &std::path::Path, mode| emulator::open(library, Emulation { compute_capability, ..mode });
    let right = |gpu: &Arc<Gpu>| -> Result<bool> {
        let mut dw = zeros(gpu, &case);
        let got = run(gpu, &case, &mut dw)?;
        let dw = dw.to_f32()?;
        let close = |i: usize, got: &[f32], bound| error(got, &want[i]) <= bound;
        Ok(close(0, &got[0], F32_BOUND) && close(1, &got[1], F32_BOUND) && close(2, &got[2], BF16_BOUND) && close(3, &dw, BF16_BOUND))
    };
    let unbroken = broken(source, &mutant("nothing", unbroken, unbroken));
    assert!(right(&open(&unbroken, modes()[3])).expect("no alarm"), "and its numbers are right");
    // One schedule each, in turn: the kernel is the slowest to emulate.
    for (mutant, mode) in mutants.iter().zip([modes()[4], modes()[0]].into_iter().cycle()) {
        let library = broken(source, mutant);
        assert!(!right(&open(&library, mode)).unwrap_or(false), "{} under {mode:?}", mutant.name);
    }
}
