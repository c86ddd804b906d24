//! RMSNorm's kernels against a reference in f64 on the same bf16 inputs: on the emulator under every schedule, and on a GPU where there is one.

use crate::cuda_checker::modes;
use crate::emulator::{self, KernelText};
use half::bf16;
use sorft_native::tensor::Tensor;
use sorft_native::tensor::cuda::{Buffer, DType, Emulation, Gpu, Source, probe};
use sorft_native::tensor::ops::rmsnorm::{
    self,
    cuda::{self as rmsnorm_cuda, RowChunks},
};
use sorft_native::tensor::philox::Philox;
use sorft_native::tensor::plan::{Plan, Tree};
use std::io::Write as _;
use std::ops::Range;
use std::sync::Arc;

const EPS: f32 = 1e-5;

/// Normal numbers, rounded to bf16 as they will be on the device.
fn random(stream: u64, n: usize, scale: f64) -> Vec<f32> {
    let random = Philox::new(7, stream);
    (0..n).map(|i| round((random.normal(i as u64, 0) * scale) as f32)).collect()
}

fn round(x: f32) -> f32 {
    bf16::from_f32(x).to_f32()
}

fn upload(gpu: &Arc<Gpu>, data: &[f32]) -> Buffer {
    Buffer::from_f32(gpu, DType::Bf16, data).expect("uploaded")
}

fn download(buffer: &Buffer) -> Vec<f32> {
    buffer.to_f32().expect("downloaded")
}

/// One case: inputs, and where dw's chunks end.
pub struct Case {
    pub rows: usize,
    pub cols: usize,
    x: Vec<f32>,
    w: Vec<f32>,
    dy: Vec<f32>,
    chunks: Vec<Range<usize>>,
}

impl Case {
    pub fn new(rows: usize, cols: usize, chunks: Vec<Range<usize>>) -> Self {
        let n = rows * cols;
        Self { rows, cols, x: random(1, n, 2.0), w: random(2, cols, 1.0), dy: random(3, n, 0.5), chunks }
    }

    /// A part of the rows, as a batch of its own.
    fn part(&self, rows: Range<usize>, chunks: Vec<Range<usize>>) -> Self {
        let span = rows.start * self.cols..rows.end * self.cols;
        Self { rows: rows.len(), cols: self.cols, x: self.x[span.clone()].to_vec(), w: self.w.clone(), dy: self.dy[span].to_vec(), chunks }
    }
}

#[derive(Debug, PartialEq)]
pub struct Outcome {
    y: Vec<f32>,
    rstd: Vec<f32>,
    dx: Vec<f32>,
}

/// Forward and backward through the op itself, which finds the device by its tensors; adds to `dw`.
pub fn run(gpu: &Arc<Gpu>, case: &Case, dw: &mut Tensor) -> Outcome {
    let tensor = |shape: &[usize], data: &[f32]| Tensor::from_device(shape, upload(gpu, data));
    let shape = [case.rows, case.cols];
    let (x, w, dy) = (tensor(&shape, &case.x), tensor(&[case.cols], &case.w), tensor(&shape, &case.dy));
    let (y, rstd) = rmsnorm::forward(&x, &w, EPS).expect("forward");
    let dx = rmsnorm::backward(&dy, &x, &w, &rstd, &case.chunks, Some(dw)).expect("backward");
    Outcome { y: download(y.buffer()), rstd: download(rstd.buffer()), dx: download(dx.buffer()) }
}

/// dw of f32 on the device, all of it `value`.
pub fn constant(gpu: &Arc<Gpu>, cols: usize, value: f32) -> Tensor {
    Tensor::from_device(&[cols], Buffer::from_f32(gpu, DType::F32, &vec![value; cols]).expect("uploaded"))
}

/// One row in f64: y, rstd, dx, and this row's share of dw.
fn reference(x: &[f64], w: &[f64], dy: &[f64]) -> (Vec<f64>, f64, Vec<f64>, Vec<f64>) {
    let n = x.len() as f64;
    let rstd = 1.0 / (x.iter().map(|x| x * x).sum::<f64>() / n + f64::from(EPS)).sqrt();
    let mean = (0..x.len()).map(|i| dy[i] * w[i] * x[i]).sum::<f64>() / n;
    let y = (0..x.len()).map(|i| x[i] * rstd * w[i]).collect();
    let dx = (0..x.len()).map(|i| rstd * (dy[i] * w[i] - x[i] * rstd * rstd * mean)).collect();
    let dw = (0..x.len()).map(|i| dy[i] * x[i] * rstd).collect();
    (y, rstd, dx, dw)
}

fn wide(row: &[f32]) -> Vec<f64> {
    row.iter().map(|&x| f64::from(x)).collect()
}

/// Half a unit in bf16's last place, and the f32 arithmetic before it, whose terms are of size `terms`.
fn assert_bf16(got: f32, expected: f64, terms: f64, what: &str) {
    let allowed = expected.abs() / 256.0 * 1.0001 + 2e-6 * terms;
    assert!((f64::from(got) - expected).abs() <= allowed, "{what}: {got} against {expected}");
}

fn compare(case: &Case, got: &Outcome, dw: &[f32], dw_before: f32) {
    let (mut dw_expected, mut dw_terms) = (vec![f64::from(dw_before); case.cols], vec![f64::from(dw_before.abs()); case.cols]);
    let w = wide(&case.w);
    for row in 0..case.rows {
        let span = row * case.cols..(row + 1) * case.cols;
        let (x, dy) = (wide(&case.x[span.clone()]), wide(&case.dy[span.clone()]));
        let (y, rstd, dx, dw_row) = reference(&x, &w, &dy);
        assert!((f64::from(got.rstd[row]) / rstd - 1.0).abs() < 1e-6, "rstd of row {row}");
        for c in 0..case.cols {
            let what = format!("{} x {}, row {row}, column {c}", case.rows, case.cols);
            assert_bf16(got.y[span.start + c], y[c], y[c].abs(), &format!("y of {what}"));
            let terms = rstd * ((dy[c] * w[c]).abs() + x[c].abs() * rstd * 4.0);
            assert_bf16(got.dx[span.start + c], dx[c], terms, &format!("dx of {what}"));
            dw_expected[c] += dw_row[c];
            dw_terms[c] += dw_row[c].abs();
        }
    }
    for c in 0..case.cols {
        let error = (f64::from(dw[c]) - dw_expected[c]).abs();
        assert!(error <= 1e-6 * dw_terms[c] + 1e-12, "dw of column {c}: {} against {}", dw[c], dw_expected[c]);
    }
}

#[test]
fn the_reference_s_gradient_is_the_derivative() {
    let (x, w, dy) = (wide(&random(1, 6, 1.0)), wide(&random(2, 6, 1.0)), wide(&random(3, 6, 1.0)));
    let loss = |x: &[f64], w: &[f64]| reference(x, w, &dy).0.iter().zip(&dy).map(|(y, dy)| y * dy).sum::<f64>();
    let (_, _, dx, dw) = reference(&x, &w, &dy);
    let step = 1e-6;
    for i in 0..6 {
        let moved = |v: &[f64], by: f64| v.iter().enumerate().map(|(j, v)| if j == i { v + by } else { *v }).collect::<Vec<_>>();
        let by_x = (loss(&moved(&x, step), &w) - loss(&moved(&x, -step), &w)) / (2.0 * step);
        let by_w = (loss(&x, &moved(&w, step)) - loss(&x, &moved(&w, -step))) / (2.0 * step);
        assert!((by_x - dx[i]).abs() < 1e-8 && (by_w - dw[i]).abs() < 1e-8, "{i}: {by_x} {} {by_w} {}", dx[i], dw[i]);
    }
}

/// Odd and even widths on both sides of every boundary (a vector, a warp's pass, the step to a block a row), odd numbers of rows.
#[test]
fn forward_and_backward_match_f64_under_every_schedule() {
    for (rows, cols) in [(1, 1), (3, 7), (5, 8), (17, 64), (9, 129), (4, 256), (2, 512), (3, 513), (2, 576), (2, 2056)] {
        let case = Case::new(rows, cols, vec![0..rows.div_ceil(2), rows.div_ceil(2)..rows]);
        let mut first: Option<(Outcome, Vec<f32>)> = None;
        for mode in modes() {
            let gpu = emulator::gpu(mode);
            let mut dw = constant(&gpu, cols, 0.25);
            let got = run(&gpu, &case, &mut dw);
            let dw = download(dw.buffer());
            match &first {
                None => {
                    compare(&case, &got, &dw, 0.25);
                    first = Some((got, dw));
                }
                Some(first) => assert_eq!(*first, (got, dw), "{rows} x {cols} under {mode:?}"),
            }
        }
    }
}

/// The device of this machine; none, with a word about it, where there is none and none is required.
pub fn real_gpu() -> Option<Arc<Gpu>> {
    let probe = probe();
    if let Some(ordinal) = probe.first_usable() {
        return Some(Gpu::open(ordinal).expect("a usable device opens"));
    }
    assert!(std::env::var_os("SORFT_REQUIRE_GPU").is_none(), "SORFT_REQUIRE_GPU is set, but: {probe:?}");
    // Not eprintln!, which the test harness would keep to itself.
    let _ =
        writeln!(std::io::stderr(), "SKIPPED: kernels did not run on a GPU, there is none (with SORFT_REQUIRE_GPU set, this is a failure)");
    None
}

#[test]
fn forward_and_backward_match_f64_on_the_gpu() {
    let Some(gpu) = real_gpu() else { return };
    for (rows, cols) in [(3, 7), (17, 64), (9, 129), (5, 513), (1000, 576), (600, 4096)] {
        let case = Case::new(rows, cols, vec![0..rows.div_ceil(2), rows.div_ceil(2)..rows]);
        let once = || {
            let mut dw = constant(&gpu, cols, 0.25);
            let got = run(&gpu, &case, &mut dw);
            (got, download(dw.buffer()))
        };
        let (got, dw) = once();
        compare(&case, &got, &dw, 0.25);
        assert_eq!((got, dw), once(), "the same bits again");
    }
    cut_between_trees(&gpu);
}

/// exactness.md: cutting a batch between two trees changes no bit of an activation, an input gradient or a weight gradient.
#[test]
fn cutting_the_batch_between_trees_changes_no_bit() {
    cut_between_trees(&emulator::gpu(Emulation::default()));
}

fn cut_between_trees(gpu: &Arc<Gpu>) {
    let lengths = [600, 37, 5];
    let tree = |n: usize| Tree::sequence(&vec![1; n], &vec![true; n]);
    let plan = Plan::for_trees(&lengths.map(tree));
    let case = Case::new(plan.num_tokens(), 24, plan.grad_chunks.clone());

    let mut dw = constant(gpu, case.cols, 0.0);
    let whole = run(gpu, &case, &mut dw);
    let dw = download(dw.buffer());

    for cut in [1, 2] {
        let mut dw_cut = constant(gpu, case.cols, 0.0);
        let mut outcomes = Vec::new();
        for trees in [0..cut, cut..lengths.len()] {
            let rows = plan.trees[trees.start].tokens.start..plan.trees[trees.end - 1].tokens.end;
            let own = Plan::for_trees(&lengths[trees].iter().map(|&n| tree(n)).collect::<Vec<_>>());
            outcomes.push(run(gpu, &case.part(rows, own.grad_chunks), &mut dw_cut));
        }
        let join = |part: fn(&Outcome) -> &Vec<f32>| outcomes.iter().flat_map(|o| part(o).iter().copied()).collect::<Vec<_>>();
        assert_eq!(whole, Outcome { y: join(|o| &o.y), rstd: join(|o| &o.rstd), dx: join(|o| &o.dx) });
        assert_eq!(dw, download(dw_cut.buffer()), "dw cut before tree {cut}");
    }
}

/// The fused variants give the bits of the separate ops: both round at the same points.
#[test]
fn fused_residuals_change_no_bit() {
    modes().into_iter().map(emulator::gpu).for_each(|gpu| fused_on(&gpu));
}

pub fn fused_on(gpu: &Arc<Gpu>) {
    for cols in [20, 64, 520] {
        let rows = 5;
        let case = Case::new(rows, cols, Vec::new());
        let (residual, d_residual) = (random(4, rows * cols, 3.0), random(5, rows * cols, 0.3));
        let (x, w, dy) = (upload(gpu, &case.x), upload(gpu, &case.w), upload(gpu, &case.dy));
        let fused = rmsnorm_cuda::forward_add(gpu, &x, &upload(gpu, &residual), &w, rows, cols, EPS).expect("forward");
        let h: Vec<f32> = case.x.iter().zip(&residual).map(|(x, r)| round(x + r)).collect();
        assert_eq!(download(&fused.h), h);
        let (y, rstd) = rmsnorm_cuda::forward(gpu, &fused.h, &w, rows, cols, EPS).expect("forward");
        assert_eq!(download(&fused.y), download(&y));
        assert_eq!(download(&fused.rstd), download(&rstd));

        let backward = |d: Option<&Buffer>| rmsnorm_cuda::backward(gpu, &dy, &fused.h, &w, &rstd, rows, cols, d, None).expect("backward");
        let dx = download(&backward(None));
        let sum: Vec<f32> = dx.iter().zip(&d_residual).map(|(dx, d)| round(dx + d)).collect();
        assert_eq!(download(&backward(Some(&upload(gpu, &d_residual)))), sum);
    }
}

/// A per-head norm: the chunks of tokens are chunks of tokens times heads.
#[test]
fn chunks_of_tokens_cover_the_heads_of_each() {
    let (tokens, heads, cols) = (6, 3, 16);
    let case = Case::new(tokens * heads, cols, vec![0..4 * heads, 4 * heads..6 * heads]);
    let gpu = emulator::gpu(Emulation::default());
    let mut by_rows = constant(&gpu, cols, 0.0);
    let outcome = run(&gpu, &case, &mut by_rows);
    let mut by_tokens = Buffer::zeros(&gpu, DType::F32, cols).expect("cleared");
    let chunks = RowChunks::new(&gpu, &[0..4, 4..6], heads).expect("uploaded");
    let (x, w, dy) = (upload(&gpu, &case.x), upload(&gpu, &case.w), upload(&gpu, &case.dy));
    let rstd = Buffer::from_f32(&gpu, DType::F32, &outcome.rstd).expect("uploaded");
    rmsnorm_cuda::backward(&gpu, &dy, &x, &w, &rstd, case.rows, cols, None, Some((&mut by_tokens, &chunks))).expect("backward");
    assert_eq!(download(by_rows.buffer()), download(&by_tokens));
}

/// The checker watches these very kernels: without any one of the barriers they need, it objects, whatever the schedule.
#[test]
fn each_barrier_is_needed() {
    let header = include_str!("../../kernels/sorft.cuh");
    let kernel = Source::RMSNORM.text;
    let barrier = "__syncthreads();";
    // block_sum's first barrier, and the one of the dw kernel. (block_sum's second lets its caller use the scratch again: nobody does here.)
    let without_first = |text: &str| text.replacen(barrier, "", 1);
    assert_eq!((header.matches(barrier).count(), kernel.matches(barrier).count()), (2, 1), "this test knows every barrier");
    for (header, kernel) in [(without_first(header), kernel.to_owned()), (header.to_owned(), without_first(kernel))] {
        let kernel = kernel.replacen("#include \"sorft.cuh\"", "", 1);
        let header = header.replacen("#pragma once", "", 1);
        let text = format!("#line 1 \"sorft.cuh\"\n{header}\n#line 1 \"rmsnorm.cu\"\n{kernel}");
        let library = emulator::library(&[KernelText { name: "rmsnorm.cu".to_owned(), defines: Vec::new(), text }]);
        let case = Case::new(3, 520, vec![0..2, 2..3]);
        for mode in modes() {
            let gpu = emulator::open(&library, mode);
            let (x, w, dy) = (upload(&gpu, &case.x), upload(&gpu, &case.w), upload(&gpu, &case.dy));
            let outcome = rmsnorm_cuda::forward(&gpu, &x, &w, 3, 520, EPS).and_then(|(_, rstd)| {
                let mut dw = Buffer::zeros(&gpu, DType::F32, 520)?;
                let chunks = RowChunks::new(&gpu, &case.chunks, 1)?;
                rmsnorm_cuda::backward(&gpu, &dy, &x, &w, &rstd, 3, 520, None, Some((&mut dw, &chunks)))
            });
            let error = outcome.expect_err("a barrier is missing").to_string();
            assert!(error.contains("race, ") || error.contains("never written"), "{error}");
            assert!(error.contains("rmsnorm.cu:"), "{error}");
        }
    }
}
