//! The kernels on a device. Traffic is held against a copy of device memory and products against the chip's bf16 tensor cores, the one measured
//! in the same run, the other by the chip's clock and number of multiprocessors.

use super::{Bench, decoding};
use crate::Result;
use crate::tensor::cuda::{Buffer, DType, Gpu};
use crate::tensor::ops::attention::Heads;
use crate::tensor::ops::attention::cuda::{self as attention, BackwardWork, DeviceKv, PageCopies, Passes, Work};
use crate::tensor::ops::matmul::cuda::{self as matmul, LowRank, Shape, TokenChunks};
use crate::tensor::ops::sample::{self, Draw, Filters};
use crate::tensor::ops::token_logprob::cuda::{self as head, Head};
use crate::tensor::ops::{adamw, embedding, norm, residual, rmsnorm, rope, swiglu};
use crate::tensor::philox::Philox;
use crate::tensor::plan::{Plan, Tree};
use std::sync::Arc;
use std::time::Instant;

/// Launches between two looks at the clock: enough that starting them is not what is timed.
const ROUNDS: usize = 20;

/// Multiply-adds in bf16 that a multiprocessor's tensor cores begin each cycle, by compute capability: from NVIDIA's architecture papers.
fn tensor_rate((major, minor): (u32, u32)) -> f64 {
    match (major, minor) {
        (8, 0) => 1024.0,
        (8, _) => 512.0,
        (9, _) => 2048.0,
        (10, _) => 4096.0,
        _ => 512.0,
    }
}

/// A device with its rates.
pub(super) struct Timer<'a> {
    bench: &'a mut Bench,
    pub gpu: Arc<Gpu>,
    /// Sizes are divided by it: 1, or more on the emulator.
    shrink: usize,
}

impl Timer<'_> {
    fn random(&self, dtype: DType, n: usize) -> Result<Buffer> {
        // Never zeros; a short sequence again and again is random enough for tensor cores and caches alike.
        let random = Philox::new(n as u64, 1);
        let part: Vec<f32> = (0..n.min(1 << 16)).map(|i| random.uniform(i as u64, 0) as f32 - 0.5).collect();
        let all: Vec<f32> = part.iter().copied().cycle().take(n).collect();
        Buffer::from_f32(&self.gpu, dtype, &all)
    }

    pub fn bf16(&self, n: usize) -> Result<Buffer> {
        self.random(DType::Bf16, n)
    }

    pub fn size(&self, n: usize) -> usize {
        (n / self.shrink).next_multiple_of(8)
    }

    /// Times a launch of `amount` bytes or operations.
    pub fn run(&mut self, name: &str, unit: &'static str, amount: f64, launch: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        let (gpu, rounds) = (self.gpu.clone(), if self.shrink == 1 { ROUNDS } else { 1 });
        let mut failure = None;
        let mut work = || {
            let start = Instant::now();
            let done = (0..rounds).try_for_each(|_| launch()).and_then(|()| gpu.synchronize());
            failure = failure.take().or(done.err());
            start.elapsed().as_secs_f64() / rounds as f64
        };
        let floor = if unit == "GFLOP/s" { self.bench.peaks.0 } else { self.bench.peaks.1 };
        self.bench.run_timed(name, unit, amount, Some(floor), &mut work)?;
        failure.map_or(Ok(()), Err)
    }
}

/// Times every kernel on a device; `emulated`: on small shapes, for the sake of running at all.
pub(super) fn run(bench: &mut Bench, gpu: &Arc<Gpu>, emulated: bool) -> Result<()> {
    let info = gpu.info().clone();
    let tensor = 2.0 * tensor_rate(info.compute_capability) * info.multiprocessors as f64 * info.clock_khz as f64 / 1e6;
    bench.peaks = (tensor, 1.0);
    let mut timer = Timer { bench, gpu: gpu.clone(), shrink: if emulated { 64 } else { 1 } };
    let copied = copy_rate(&timer)?;
    timer.bench.peaks.1 = copied;
    if !timer.bench.json {
        timer.bench.out.text(&format!("{}: {tensor:.0} GFLOP/s of bf16 by its clock, {copied:.0} GB/s copied\n", info.name))?;
    }
    rows(&mut timer)?;
    elements(&mut timer)?;
    products(&mut timer)?;
    decoding::run(&mut timer)?;
    attend(&mut timer)?;
    fused_head(&mut timer)
}

/// GB/s read and written by copying device memory.
fn copy_rate(timer: &Timer<'_>) -> Result<f64> {
    let n = timer.size(128 << 20);
    let (from, mut to) = (timer.random(DType::F32, n)?, Buffer::zeros(&timer.gpu, DType::F32, n)?);
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        timer.gpu.synchronize()?;
        let start = Instant::now();
        for _ in 0..4 {
            to.copy_from(&from)?;
        }
        timer.gpu.synchronize()?;
        best = best.min(start.elapsed().as_secs_f64() / 4.0);
    }
    Ok((2 * n * 4) as f64 / best / 1e9)
}

fn rows(timer: &mut Timer<'_>) -> Result<()> {
    let (t, d, gpu) = (timer.size(16384), timer.size(2048), timer.gpu.clone());
    let (x, dy, w) = (timer.bf16(t * d)?, timer.bf16(t * d)?, timer.bf16(d)?);
    let bytes = (t * d * 2) as f64;
    let name = |what: &str| format!("rmsnorm {what} {t}x{d}");
    timer.run(&name("forward"), "GB/s", 2.0 * bytes, &mut || rmsnorm::cuda::forward(&gpu, &x, &w, t, d, 1e-5).map(drop))?;
    timer
        .run(&name("forward of a sum"), "GB/s", 4.0 * bytes, &mut || rmsnorm::cuda::forward_add(&gpu, &x, &dy, &w, t, d, 1e-5).map(drop))?;
    let (_, rstd) = rmsnorm::cuda::forward(&gpu, &x, &w, t, d, 1e-5)?;
    let chunks: Vec<_> = (0..t).step_by(512).map(|a| a..(a + 512).min(t)).collect();
    let (chunks, mut dw) = (rmsnorm::cuda::RowChunks::new(&gpu, &chunks, 1)?, Buffer::zeros(&gpu, DType::F32, d)?);
    timer.run(&name("backward"), "GB/s", 5.0 * bytes, &mut || {
        rmsnorm::cuda::backward(&gpu, &dy, &x, &w, &rstd, t, d, None, Some((&mut dw, &chunks))).map(drop)
    })?;
    timer.run(&format!("gradient of a bias {t}x{d}"), "GB/s", bytes, &mut || residual::cuda::bias_gradient(&mut dw, &dy, &chunks))?;
    let ids: Vec<u32> = (0..t).map(|i| (i * 7919 % 4000) as u32).collect();
    let ids = embedding::cuda::DeviceIds::new(&gpu, &ids, 4000)?;
    let (table, mut d_table) = (timer.bf16(4000 * d)?, Buffer::zeros(&gpu, DType::F32, 4000 * d)?);
    timer.run("embedding forward", "GB/s", 2.0 * bytes, &mut || embedding::cuda::forward(&gpu, &table, &ids, d).map(drop))?;
    timer.run("embedding backward", "GB/s", bytes + (8 * 4000.min(t) * d) as f64, &mut || {
        embedding::cuda::backward(&gpu, &mut d_table, &dy, &ids, d)
    })
}

fn elements(timer: &mut Timer<'_>) -> Result<()> {
    let gpu = timer.gpu.clone();
    let n = timer.size(16384) * timer.size(4864);
    let (gate, up, dy) = (timer.bf16(n)?, timer.bf16(n)?, timer.bf16(n)?);
    let bytes = (2 * n) as f64;
    timer.run("swiglu forward", "GB/s", 3.0 * bytes, &mut || swiglu::cuda::forward(&gpu, &gate, &up).map(drop))?;
    timer.run("swiglu backward", "GB/s", 5.0 * bytes, &mut || swiglu::cuda::backward(&gpu, &dy, &gate, &up).map(drop))?;
    let mut sum = timer.bf16(n)?;
    timer.run("sum of two", "GB/s", 3.0 * bytes, &mut || residual::cuda::add_to(&mut sum, &dy))?;
    let (t, heads, half) = (timer.size(16384), 14, 32);
    let inv_freq: Vec<f32> = (0..half).map(|i| 10_000f32.powf(-(i as f32) / half as f32)).collect();
    let angles = rope::cuda::DeviceAngles::new(&gpu, &rope::Angles::new(&(0..t as u32).collect::<Vec<_>>(), &inv_freq))?;
    let mut x = timer.bf16(t * heads * 2 * half)?;
    timer.run("rope", "GB/s", (4 * t * heads * 2 * half) as f64, &mut || rope::cuda::forward(&mut x, heads, &angles))?;
    let n = timer.size(64 << 20);
    let f32s = || timer.random(DType::F32, n);
    let (mut p, mut m, mut v, g) = (f32s()?, f32s()?, f32s()?, f32s()?);
    let mut w = timer.bf16(n)?;
    let step = adamw::Step {
        decay: 0.999,
        one_minus_beta1: 0.1,
        beta2: 0.999,
        one_minus_beta2: 0.001,
        eps: 1e-8,
        step_size: 1e-6,
        bias2_sqrt: 0.5,
        grad_scale: 1.0,
    };
    timer.run("adamw 64M", "GB/s", (30 * n) as f64, &mut || {
        adamw::cuda::step(adamw::cuda::State { p: &mut p, w: &mut w, m: &mut m, v: &mut v }, &g, step)
    })?;
    let cols = n.min(2048);
    let mut moments = adamw::cuda::Moments::zeros(&gpu, n / cols, cols)?;
    let rounding = adamw::codes::Rounding { key: [1, 2], step: 1, tensor: 0 };
    timer.run("adamw 64M, 8-bit moments", "GB/s", (18 * n) as f64, &mut || {
        adamw::cuda::step_8bit(&mut p, &mut w, &mut moments, &g, step, rounding)
    })?;
    let mut total = Buffer::zeros(&gpu, DType::F64, 1)?;
    timer.run("sum of squares 64M", "GB/s", (4 * n) as f64, &mut || norm::cuda::add_sum_of_squares(&mut total, &g))
}

fn products(timer: &mut Timer<'_>) -> Result<()> {
    let gpu = timer.gpu.clone();
    for (m, n, k) in [(8192, 8192, 8192), (16384, 4864, 896), (64, 4864, 896)] {
        let shape = Shape { m: timer.size(m), n: timer.size(n), k: timer.size(k) };
        let Shape { m, n, k } = shape;
        let flops = 2.0 * (m * n) as f64 * k as f64;
        let (x, dy, w) = (timer.bf16(m * k)?, timer.bf16(m * n)?, timer.bf16(n * k)?);
        let name = |what: &str| format!("linear {what} {m}x{k}x{n}");
        timer.run(&name("forward"), "GFLOP/s", flops, &mut || matmul::forward(&gpu, &x, &w, None, None, shape).map(drop))?;
        if m < 1024 && timer.shrink == 1 {
            continue;
        }
        let (b, low) = (timer.bf16(n * 16)?, timer.bf16(m * 16)?);
        let adapter = LowRank { low: &low, matrix: &b, rank: 16, scale: 0.5 };
        timer.run(&name("with rank 16"), "GFLOP/s", flops, &mut || matmul::forward(&gpu, &x, &w, None, Some(adapter), shape).map(drop))?;
        timer.run(&name("dx"), "GFLOP/s", flops, &mut || matmul::backward_input(&gpu, &dy, &w, None, shape).map(drop))?;
        let chunks: Vec<_> = (0..m).step_by(512).map(|a| a..(a + 512).min(m)).collect();
        let (chunks, mut dw) = (TokenChunks::new(&gpu, &chunks)?, Buffer::zeros(&gpu, DType::F32, n * k)?);
        timer.run(&name("dw"), "GFLOP/s", flops, &mut || matmul::backward_weight(&mut dw, &dy, &x, &chunks, n, k, 1.0))?;
    }
    Ok(())
}

fn attend(timer: &mut Timer<'_>) -> Result<()> {
    let gpu = timer.gpu.clone();
    for (head_dim, num_heads, num_kv_heads) in [(64, 14, 2), (128, 16, 4)] {
        let heads = Heads { num_heads, num_kv_heads, head_dim };
        for length in [2048, 16384] {
            let t = timer.size(length);
            let plan = Plan::for_trees(&[Tree::sequence(&vec![1; t], &vec![true; t])]);
            let slots: Vec<u32> = plan.kv_slots.iter().flat_map(|(page, slot)| [*page, *slot]).collect();
            let mut kv = DeviceKv::new(&gpu, heads, plan.num_pages)?;
            let (k, v) = (timer.bf16(t * num_kv_heads * head_dim)?, timer.bf16(t * num_kv_heads * head_dim)?);
            kv.write(&Buffer::from_u32(&gpu, &slots)?, &k, &v)?;
            let (q, d_o) = (timer.bf16(t * num_heads * head_dim)?, timer.bf16(t * num_heads * head_dim)?);
            let (work, scale) = (Work::new(&gpu, &plan.segments, heads)?, (head_dim as f32).powf(-0.5));
            let flops = 2.0 * (t * t) as f64 * (num_heads * head_dim) as f64;
            let name = |what: &str| format!("attention {what} d{head_dim} {t}");
            timer.run(&name("forward"), "GFLOP/s", flops, &mut || attention::forward(&gpu, &q, &kv, &work, scale).map(drop))?;
            let (o, lse) = attention::forward(&gpu, &q, &kv, &work, scale)?;
            let mut backward = |name: &str, back: &BackwardWork| {
                timer.run(name, "GFLOP/s", 2.5 * flops, &mut || attention::backward(&gpu, &d_o, &q, &o, &lse, &kv, back, scale).map(drop))
            };
            backward(&name("backward"), &BackwardWork::new(&gpu, &plan, heads)?)?;
            if gpu.is_hopper() {
                backward(&name("backward in two passes"), &BackwardWork::in_passes(&gpu, &plan, heads, Passes::Two)?)?;
            }
        }
    }
    decode(timer)
}

/// Sixteen answers, a token each, on a prompt that they share: its keys and values are read once.
fn decode(timer: &mut Timer<'_>) -> Result<()> {
    let (gpu, heads, samples) = (timer.gpu.clone(), Heads { num_heads: 14, num_kv_heads: 2, head_dim: 64 }, 16);
    let prompt = timer.size(4096);
    let tree = Tree::prompt_with_answers(&vec![1; prompt], &vec![vec![1]; samples]);
    let mut plan = Plan::for_trees(&[tree]);
    let t = plan.num_tokens();
    let slots: Vec<u32> = plan.kv_slots.iter().flat_map(|(page, slot)| [*page, *slot]).collect();
    let mut kv = DeviceKv::new(&gpu, heads, plan.num_pages)?;
    kv.write(&Buffer::from_u32(&gpu, &slots)?, &timer.bf16(t * 128)?, &timer.bf16(t * 128)?)?;
    kv.copy(&PageCopies::new(&gpu, &plan.copies)?)?;
    plan.segments.remove(0);
    for (i, segment) in plan.segments.iter_mut().enumerate() {
        (segment.parent, segment.tokens) = (None, i..i + 1);
    }
    let work = Work::new(&gpu, &plan.segments, heads)?;
    let q = timer.bf16(samples * 896)?;
    let bytes = (prompt * 2 * 128 * 2) as f64;
    timer.run(&format!("attention decode 16 on {prompt}"), "GB/s", bytes, &mut || attention::forward(&gpu, &q, &kv, &work, 0.125).map(drop))
}

fn fused_head(timer: &mut Timer<'_>) -> Result<()> {
    let gpu = timer.gpu.clone();
    let (rows, vocab, width) = (timer.size(8192), timer.size(151_936), timer.size(896));
    let (h, w) = (timer.bf16(rows * width)?, timer.bf16(vocab * width)?);
    let on_device = Head { h: &h, w: &w, rows, vocab, width };
    let targets: Vec<u32> = (0..rows).map(|i| (i * 7919 % vocab) as u32).collect();
    let flops = 2.0 * (rows * width) as f64 * vocab as f64;
    let name = |what: &str| format!("head {what} {rows}x{width}x{vocab}");
    timer.run(&name("forward"), "GFLOP/s", flops, &mut || head::forward(&gpu, on_device, &targets, 1.0).map(drop))?;
    let (_, _, saved) = head::forward(&gpu, on_device, &targets, 1.0)?;
    let (seeds, chunks) = (vec![0.01; rows], TokenChunks::new(&gpu, &[0..rows])?);
    let mut dw = Buffer::zeros(&gpu, DType::F32, vocab * width)?;
    timer.run(&name("backward"), "GFLOP/s", 4.0 * flops, &mut || {
        head::backward(&gpu, on_device, &saved, &seeds, None, Some((&mut dw, &chunks))).map(drop)
    })?;
    let few = Head { rows: 8, ..on_device };
    timer.run(&format!("head logits 8x{width}x{vocab}"), "GB/s", (2 * vocab * width) as f64, &mut || {
        head::logits(&gpu, few, &[1.0; 8]).map(drop)
    })?;
    sampling(timer, Head { rows: timer.size(256), ..on_device })
}

/// A token a row: of the whole distribution, and under filters.
fn sampling(timer: &mut Timer<'_>, head: Head<'_>) -> Result<()> {
    let gpu = timer.gpu.clone();
    let (rows, vocab) = (head.rows, head.vocab);
    let logits = head::logits(&gpu, head, &vec![1.0; rows])?;
    let none = Filters { top_k: 0, top_p: 1.0, min_p: 0.0 };
    let chunk = (rows * (2048.min(vocab) + 3 * vocab.div_ceil(2048)) * 4) as f64;
    let twice = (2 * rows * vocab * 4) as f64;
    let ways =
        [("", none, chunk), (" top-k 50", Filters { top_k: 50, ..none }, twice), (" top-p 0.95", Filters { top_p: 0.95, ..none }, twice)];
    for (name, filters, bytes) in ways {
        let draw = |i: usize| Draw { temperature: 1.0, filters, u: (i as f64 * 0.618) % 1.0 };
        let draws: Vec<Draw> = (0..rows).map(draw).collect();
        let table = Buffer::from_u32(&gpu, &sample::cuda::words(&draws))?;
        timer.run(&format!("sample{name} {rows}x{vocab}"), "GB/s", bytes, &mut || {
            sample::cuda::queue(&logits, &table, sample::cuda::any_filtered(&draws)).map(drop)
        })?;
    }
    Ok(())
}
