//! The linear layer's kernels and the gradient norm against the processor's ops on the same numbers.

use crate::cuda_attention::{Mutant, mutant, rounded, upload};
use crate::cuda_checker::modes;
use crate::cuda_rmsnorm::real_gpu;
use crate::emulator::{self, KernelText};
use crate::support::{bits, close, error, normal, rows, tensor, wide};
use sorft_native::Result;
use sorft_native::tensor::Tensor;
use sorft_native::tensor::cpu::PanelMatrix;
use sorft_native::tensor::cuda::{Buffer, DType, Emulation, Gpu, Source};
use sorft_native::tensor::ops::matmul::cuda::{LowRank, Shape, TokenChunks};
use sorft_native::tensor::ops::{matmul, norm};
use std::ops::Range;
use std::sync::Arc;

/// Of what is rounded to bf16 once.
const BF16_BOUND: f64 = 3e-3;
/// Of sums in f32.
const F32_BOUND: f64 = 1e-6;

const SCALE: f32 = 0.5;

/// A layer with an adapter, and a batch. low and up stand for x a' and dy b, as rounded.
pub struct Case {
    shape: Shape,
    rank: usize,
    x: Tensor,
    dy: Tensor,
    w: Tensor,
    a: Tensor,
    b: Tensor,
    bias: Tensor,
    chunks: Vec<Range<usize>>,
}

impl Case {
    pub fn new(m: usize, n: usize, k: usize, rank: usize, chunks: Vec<Range<usize>>) -> Self {
        let random = |shape: [usize; 2], stream| rounded(&tensor(&shape, stream));
        let (x, dy, w) = (random([m, k], 1), random([m, n], 2), random([n, k], 3));
        let (a, b, bias) = (random([rank, k], 4), random([n, rank], 5), random([1, n], 6));
        Self { shape: Shape { m, n, k }, rank, x, dy, w, a, b, bias, chunks }
    }

    fn part(&self, tokens: Range<usize>, chunks: Vec<Range<usize>>) -> Self {
        let clone = |t: &Tensor| rows(t, 0..t.rows());
        Self {
            shape: Shape { m: tokens.len(), ..self.shape },
            rank: self.rank,
            x: rows(&self.x, tokens.clone()),
            dy: rows(&self.dy, tokens),
            w: clone(&self.w),
            a: clone(&self.a),
            b: clone(&self.b),
            bias: clone(&self.bias),
            chunks,
        }
    }
}

/// y, dx, and dw after `dw_before`.
pub fn run(gpu: &Arc<Gpu>, case: &Case, dw: &mut Buffer) -> Result<[Vec<f32>; 2]> {
    let Case { shape, rank, .. } = *case;
    let [x, dy, w, a, b, bias] = [&case.x, &case.dy, &case.w, &case.a, &case.b, &case.bias].map(|t| upload(gpu, t));
    let (x, dy, w, a, b, bias) = (x?, dy?, w?, a?, b?, bias?);
    let low = matmul::cuda::forward(gpu, &x, &a, None, None, Shape { n: rank, ..shape })?;
    let adapter = LowRank { low: &low, matrix: &b, rank, scale: SCALE };
    let y = matmul::cuda::forward(gpu, &x, &w, Some(&bias), Some(adapter), shape)?;
    let low = matmul::cuda::backward_input(gpu, &dy, &b, None, Shape { k: rank, ..shape })?;
    let adapter = LowRank { low: &low, matrix: &a, rank, scale: SCALE };
    let dx = matmul::cuda::backward_input(gpu, &dy, &w, Some(adapter), shape)?;
    let chunks = TokenChunks::new(gpu, &case.chunks)?;
    matmul::cuda::backward_weight(dw, &dy, &x, &chunks, shape.n, shape.k, 1.0)?;
    Ok([y.to_f32()?, dx.to_f32()?])
}

pub fn zeros(gpu: &Arc<Gpu>, case: &Case) -> Buffer {
    Buffer::zeros(gpu, DType::F32, case.shape.n * case.shape.k).expect("cleared")
}

/// dw += scale dy' x.
pub fn add_scaled(gpu: &Arc<Gpu>, case: &Case, dw: &mut Buffer, scale: f32) -> Result<()> {
    let chunks = TokenChunks::new(gpu, &case.chunks)?;
    let [dy, x] = [&case.dy, &case.x].map(|t| upload(gpu, t));
    matmul::cuda::backward_weight(dw, &dy?, &x?, &chunks, case.shape.n, case.shape.k, scale)
}

/// y, dx and dw by the processor.
pub fn processor(case: &Case) -> [Vec<f64>; 3] {
    let Shape { m, n, k } = case.shape;
    let panels = |t: &Tensor| PanelMatrix::from_rows(t.rows(), t.cols(), t.data());
    let (w, a, b) = (panels(&case.w), panels(&case.a), panels(&case.b));
    let mut low = rounded(&matmul::forward(&case.x, &a));
    matmul::scale(&mut low, SCALE);
    let mut y = matmul::forward(&case.x, &w);
    matmul::forward_add(&low, &b, &mut y);
    for row in y.data_mut().chunks_exact_mut(n) {
        row.iter_mut().zip(case.bias.data()).for_each(|(y, b)| *y += b);
    }
    let mut low = rounded(&matmul::backward_input(&case.dy, &b));
    matmul::scale(&mut low, SCALE);
    let mut dx = matmul::backward_input(&case.dy, &w);
    matmul::backward_input_add(&low, &a, &mut dx);
    let mut dw = PanelMatrix::zeros(n, k);
    matmul::backward_weight(&case.dy, &case.x, &case.chunks, &mut dw);
    assert_eq!(y.rows(), m);
    [wide(y.data()), wide(dx.data()), wide(&dw.to_rows())]
}

pub fn compare(case: &Case, [y, dx]: &[Vec<f32>; 2], dw: &[f32], want: &[Vec<f64>; 3]) {
    let name = |what: &str| format!("{what}, {:?}, rank {}", case.shape, case.rank);
    close(&name("y"), y, &want[0], BF16_BOUND);
    close(&name("dx"), dx, &want[1], BF16_BOUND);
    close(&name("dw"), dw, &want[2], F32_BOUND);
}

/// The same, without the kernels that are for Hopper.
pub fn on_ampere(mode: Emulation) -> Emulation {
    Emulation { compute_capability: (8, 0), ..mode }
}

#[test]
fn products_equal_the_processor_s_under_every_schedule() {
    let case = Case::new(37, 72, 136, 16, vec![0..20, 20..37]);
    let want = processor(&case);
    let mut first = None;
    for mode in modes().into_iter().map(on_ampere) {
        let gpu = emulator::gpu(mode);
        let mut dw = zeros(&gpu, &case);
        let got = run(&gpu, &case, &mut dw).unwrap_or_else(|e| panic!("{mode:?}: {e}"));
        let dw = dw.to_f32().expect("downloaded");
        compare(&case, &got, &dw, &want);
        let got = [bits(&got[0]), bits(&got[1]), bits(&dw)];
        assert!(*first.get_or_insert(got.clone()) == got, "{mode:?}: other bits");
    }
}

/// More than a block each way; one token; an adapter wider than a chunk.
#[test]
fn shapes_equal_the_processor() {
    for compute_capability in [(8, 0), (9, 0)] {
        let gpu = emulator::gpu(Emulation { check: false, compute_capability, ..Emulation::default() });
        for (m, n, k, rank) in [(1, 8, 8, 8), (131, 136, 72, 8), (7, 8, 264, 72), (67, 264, 8, 8), (17, 40, 1032, 8), (259, 392, 72, 8)] {
            let case = Case::new(m, n, k, rank, vec![0..m / 2, m / 2..m]);
            let mut dw = zeros(&gpu, &case);
            let got = run(&gpu, &case, &mut dw).expect("runs");
            compare(&case, &got, &dw.to_f32().expect("downloaded"), &processor(&case));
        }
    }
}

#[test]
fn products_equal_the_processor_s_on_the_gpu() {
    let Some(gpu) = real_gpu() else { return };
    for (m, n, k, rank) in [(1, 896, 896, 16), (300, 1152, 896, 16), (777, 128, 4864, 64)] {
        let case = Case::new(m, n, k, rank, vec![0..m / 2, m / 2..m]);
        let mut dw = zeros(&gpu, &case);
        let got = run(&gpu, &case, &mut dw).expect("runs");
        compare(&case, &got, &dw.to_f32().expect("downloaded"), &processor(&case));
    }
}

/// A row has its bits whatever the others are; a batch may be cut between trees.
#[test]
fn cutting_the_batch_changes_no_bit() {
    let gpu = emulator::gpu(Emulation { check: false, ..Emulation::default() });
    let case = Case::new(150, 24, 80, 8, vec![0..70, 70..150]);
    let mut dw = zeros(&gpu, &case);
    let [y, dx] = run(&gpu, &case, &mut dw).expect("runs");
    let mut dw_cut = zeros(&gpu, &case);
    let mut cut = [Vec::new(), Vec::new()];
    for tokens in [0..70, 70..150] {
        let own = 0..tokens.len();
        let part = run(&gpu, &case.part(tokens, vec![own]), &mut dw_cut).expect("runs");
        cut.iter_mut().zip(part).for_each(|(all, part)| all.extend(part));
    }
    assert!(bits(&y) == bits(&cut[0]) && bits(&dx) == bits(&cut[1]));
    assert!(bits(&dw.to_f32().expect("downloaded")) == bits(&dw_cut.to_f32().expect("downloaded")));
    let [alone, _] = run(&gpu, &case.part(5..6, vec![0..1]), &mut dw_cut).expect("runs");
    assert!(bits(&alone) == bits(&y[5 * 24..6 * 24]));
}

#[test]
fn widths_that_are_no_multiples_of_8_are_refused() {
    let gpu = emulator::gpu(Emulation::default());
    let case = Case::new(2, 12, 8, 8, vec![0..2]);
    let error = run(&gpu, &case, &mut zeros(&gpu, &case)).expect_err("12 outputs").to_string();
    assert!(error.contains("multiples of 8"), "{error}");
}

/// The headers that these sources share.
const HEADERS: [(&str, &str); 6] = [
    ("linear.cuh", include_str!("../../kernels/linear.cuh")),
    ("linear_hopper.cuh", include_str!("../../kernels/linear_hopper.cuh")),
    ("head.cuh", include_str!("../../kernels/head.cuh")),
    ("kv_pages.cuh", include_str!("../../kernels/kv_pages.cuh")),
    ("rmsnorm.cuh", include_str!("../../kernels/rmsnorm.cuh")),
    ("rope.cuh", include_str!("../../kernels/rope.cuh")),
];

/// The library of a source with one mistake, which may stand in a header; the other kernels that its launches need are as they are.
pub fn broken(source: Source, mutant: &Mutant) -> std::path::PathBuf {
    let header = HEADERS.iter().find(|(_, text)| !source.text.contains(mutant.from) && text.contains(mutant.from));
    let text = match header {
        Some((name, text)) => source.text.replace(&format!("#include \"{name}\""), &text.replace("#pragma once", "")),
        None => source.text.to_owned(),
    };
    assert_eq!(text.matches(mutant.from).count(), 1, "{}: the place is unique", mutant.name);
    let text = text.replacen(mutant.from, mutant.to, 1);
    let mut kernels = vec![KernelText { name: source.file.to_owned(), defines: Vec::new(), text }];
    let of_head = [Source::HEAD, Source::HEAD_HOPPER];
    let others = [Source::LINEAR, Source::LINEAR_FEW, Source::LINEAR_HOPPER, Source::KV_PAGES].into_iter();
    for other in others.chain(of_head.into_iter().filter(|_| of_head.contains(&source))).filter(|s| *s != source) {
        kernels.push(KernelText { name: other.file.to_owned(), defines: Vec::new(), text: other.text.to_owned() });
    }
    emulator::library(&kernels)
}

#[test]
fn every_mistake_is_found() {
    let mutants = [
        mutant("no barrier", "__syncthreads();  // chunk c", "// chunk c"),
        mutant("no barrier between products", "__syncthreads();  // an earlier", "// an earlier"),
        mutant("waits for too few", "cp_async_wait<STAGES - 2>()", "cp_async_wait<STAGES - 1>()"),
        mutant("a stage too few", "copy(c + STAGES - 1);", "copy(c + STAGES);"),
        mutant("rows beyond the last", "valid = term < chunk.count && outer < o.outer", "valid = term < chunk.count"),
        mutant("terms beyond the last", "valid = term < chunk.count && outer < o.outer", "valid = outer < o.outer"),
        mutant("the last chunk is lost", "(terms + CHUNK - 1) / CHUNK", "terms / CHUNK"),
        mutant("a row too many is written", "if (row < m && column < n)", "if (row <= m && column < n)"),
        mutant(
            "the second half takes the first half's rows",
            "load_a<CHUNK>(x[half], a, row + 16 * half, k)",
            "load_a<CHUNK>(x[half], a, row, k)",
        ),
        mutant("no scale", "total[half][j][e] += factor * sum[half][j][e]", "total[half][j][e] += sum[half][j][e]"),
        mutant("the adapter is not scaled", "sum[half][j][e] *= factor", "sum[half][j][e] *= 1.0f"),
        mutant("a chunk twice", "    linear::clear(sum);\n    linear::multiply", "    linear::multiply"),
        mutant("dw begins at zero", "load_sums(sum, at, dw, n, k);\n  linear::add", "linear::add"),
    ];
    each_is_found(Source::LINEAR, "struct Operand {", &mutants, &Case::new(20, 264, 40, 8, vec![0..7, 7..20]), (8, 0));
}

#[test]
fn every_mistake_with_few_rows_is_found() {
    let mutants = [
        mutant("no barrier", "__syncthreads();  // chunk c", "// chunk c"),
        mutant("no barrier between products", "__syncthreads();  // an earlier", "// an earlier"),
        mutant("waits for too few", "cp_async_wait<STAGES - 2>()", "cp_async_wait<STAGES - 1>()"),
        mutant("a stage too few", "copy_left(c + STAGES - 1);", "copy_left(c + STAGES);"),
        mutant("rows beyond the last", "there = first + row < o.outer", "there = true"),
        mutant("terms beyond the last", "valid = term + 8 * chunk < terms && own.there", "valid = own.there"),
        mutant("a row too many is written", "if (at_row < m) put", "if (at_row <= m) put"),
        mutant("no scale", "[e % 4] *= l.scale", "[e % 4] *= 1.0f"),
        mutant("no bias", "if (bias) lo +=", "if (!bias) lo +="),
    ];
    for rows in [5, 20] {
        // 20 rows of 64: two warps.
        each_is_found(Source::LINEAR_FEW, "struct Layer {", &mutants, &Case::new(rows, 40, 584, 8, vec![0..rows]), (8, 0));
    }
}

pub fn each_is_found(source: Source, unbroken: &'static str, mutants: &[Mutant], case: &Case, compute_capability: (u32, u32)) {
    let want = processor(case);
    let right = |gpu: &Arc<Gpu>| -> Result<bool> {
        let mut dw = zeros(gpu, case);
        let got = run(gpu, case, &mut dw)?;
        let right = [&got[0], &got[1]].iter().zip(&want).all(|(got, want)| error(got, want) <= BF16_BOUND);
        // The same again, times a half and whole.
        add_scaled(gpu, case, &mut dw, SCALE)?;
        add_scaled(gpu, case, &mut dw, 1.0)?;
        let want: Vec<f64> = want[2].iter().map(|w| (2.0 + f64::from(SCALE)) * w).collect();
        Ok(right && error(&dw.to_f32()?, &want) <= F32_BOUND)
    };
    let unbroken = broken(source, &mutant("nothing", unbroken, unbroken));
    assert!(
        right(&emulator::open(&unbroken, Emulation { compute_capability, ..modes()[3] })).expect("the kernel itself raises no alarm"),
        "and its numbers are right"
    );
    // One schedule each, in turn.
    for (mutant, mode) in mutants.iter().zip([modes()[4], modes()[0]].into_iter().cycle()) {
        let gpu = emulator::open(&broken(source, mutant), Emulation { compute_capability, ..mode });
        assert!(!right(&gpu).unwrap_or(false), "{} under {mode:?}", mutant.name);
    }
}

/// A row has the same bits in a tile of 16, 64 or 128 rows, by mma.sync or wgmma.
#[test]
fn few_rows_have_the_bits_of_many() {
    let gpu = emulator::gpu(Emulation { check: false, ..Emulation::default() });
    let n = 72;
    let case = Case::new(260, n, 584, 16, vec![0..260]);
    let forward = |case: &Case| {
        let mut dw = zeros(&gpu, case);
        let [y, _] = run(&gpu, case, &mut dw).expect("runs");
        bits(&y)
    };
    let many = forward(&case);
    for tokens in [0..1, 7..24, 30..33, 100..200] {
        let few = forward(&case.part(tokens.clone(), vec![0..tokens.len()]));
        assert!(few == many[tokens.start * n..tokens.end * n], "rows {tokens:?}");
    }
}

/// The sum of squares of gradients of several tensors, in f64.
#[test]
fn sums_of_squares_equal_the_processor_s() {
    for gpu in modes().into_iter().map(emulator::gpu).chain(real_gpu()) {
        squares_on(&gpu);
        for bad in [f32::NAN, f32::INFINITY] {
            let mut total = Buffer::zeros(&gpu, DType::F64, 1).expect("cleared");
            let x = Buffer::from_f32(&gpu, DType::F32, &[1.0, bad, f32::MAX]).expect("uploaded");
            norm::cuda::add_sum_of_squares(&mut total, &x).expect("runs");
            assert!(!total.to_f64().expect("downloaded")[0].is_finite());
        }
    }
}

pub fn squares_on(gpu: &Arc<Gpu>) {
    let mut total = Buffer::zeros(gpu, DType::F64, 1).expect("cleared");
    let mut want = 0.0;
    for (n, stream) in [(0, 1), (1, 2), (1023, 3), (16384, 4), (16387, 5)] {
        let x = normal(n, stream);
        want += norm::sum_of_squares(&x);
        norm::cuda::add_sum_of_squares(&mut total, &Buffer::from_f32(gpu, DType::F32, &x).expect("uploaded")).expect("runs");
    }
    let got = total.to_f64().expect("downloaded")[0];
    assert!((got / want - 1.0).abs() < 1e-14, "{got} against {want}");
}

#[test]
fn each_barrier_of_the_sum_is_needed() {
    let library = broken(Source::NORM, &mutant("no barrier", "__syncthreads();", ""));
    for mode in modes() {
        let gpu = emulator::open(&library, mode);
        let mut total = Buffer::zeros(&gpu, DType::F64, 1).expect("cleared");
        let x = Buffer::from_f32(&gpu, DType::F32, &normal(300, 1)).expect("uploaded");
        let error = norm::cuda::add_sum_of_squares(&mut total, &x).expect_err("a barrier is missing").to_string();
        assert!(error.contains("race, ") || error.contains("never written"), "{error}");
    }
}
