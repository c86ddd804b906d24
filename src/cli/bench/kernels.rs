//! The ops on the shapes of a small model.

use super::{Bench, median_seconds, seconds_of};
use crate::Result;
use crate::tensor::Tensor;
use crate::tensor::cpu::kernel::{Tile, kernel, max_rows};
use crate::tensor::cpu::{Bf16Matrix, PanelMatrix, bf16, gemm, vectorized};
use crate::tensor::ops::attention::{self, Heads, KvLayer};
use crate::tensor::ops::token_logprob::Keep;
use crate::tensor::ops::{adamw, rmsnorm, swiglu, token_logprob};
use crate::tensor::philox::Philox;
use crate::tensor::plan::{Plan, Tree};
use rayon::prelude::*;

/// Random numbers: never time on zeros.
fn random(shape: &[usize]) -> Tensor {
    let n = shape.iter().product();
    let r = Philox::new(n as u64, 0);
    Tensor::from_vec(shape, (0..n).into_par_iter().map(|i| r.uniform(i as u64, 0) as f32 - 0.5).collect())
}

/// GFLOP/s of the product's micro-kernel on operands that stay in the first cache, over all threads: what the arithmetic units give.
pub(super) fn peak_gflops(budget: f64) -> f64 {
    const ROUNDS: usize = 50;
    // Long, so that writing the tile does not count: every step reads the same operands.
    const K: usize = 4096;
    let (threads, rows) = (rayon::current_num_threads(), max_rows());
    let (a, b) = (random(&[rows]), random(&[32]));
    let round = || {
        (0..threads).into_par_iter().for_each(|_| {
            let mut c = vec![0.0; rows * 32];
            let tile = Tile {
                k: K,
                a: a.data().as_ptr(),
                lda: 0,
                b: b.data().as_ptr(),
                ldb: 0,
                c: c.as_mut_ptr(),
                ldc: 32,
                lanes: 32,
                add: false,
            };
            for _ in 0..ROUNDS {
                // SAFETY: a, b and c have the tile's extents: a and b those of every step.
                unsafe { kernel(rows)(std::hint::black_box(&tile)) };
            }
        });
    };
    let seconds = median_seconds(budget, &mut || seconds_of(round));
    (threads * ROUNDS * 2 * K * rows * 32) as f64 / seconds / 1e9
}

/// GB/s of reading 512 MiB, over all threads.
pub(super) fn read_rate(budget: f64) -> f64 {
    let data = vec![1.0f32; 128 << 20];
    let read = || {
        std::hint::black_box(data.par_chunks(1 << 16).map(sum).sum::<f32>());
    };
    let seconds = median_seconds(budget, &mut || seconds_of(read));
    (data.len() * 4) as f64 / seconds / 1e9
}

vectorized! {
    fn sum(x: &[f32]) -> f32 {
        let mut acc = [[0.0f32; 16]; 4];
        for block in x.chunks_exact(64) {
            for (a, b) in acc.iter_mut().zip(block.chunks_exact(16)) {
                for (a, b) in a.iter_mut().zip(b) {
                    *a += b;
                }
            }
        }
        acc.iter().flatten().sum()
    }
}

pub(super) fn run(bench: &mut Bench) -> Result<()> {
    matmul(bench)?;
    matmul_in_bf16(bench)?;
    elementwise(bench)?;
    attend(bench)?;
    head(bench)
}

fn matmul(bench: &mut Bench) -> Result<()> {
    for (t, k, n) in [(1024, 576, 1536), (2048, 2048, 2048), (16, 576, 49152)] {
        let name = |pass: &str| format!("matmul {pass} {t}x{k}x{n}");
        if !bench.wants_group("matmul") {
            continue;
        }
        let flops = (2 * t * k * n) as f64;
        let (x, dy) = (random(&[t, k]), random(&[t, n]));
        let mut w = PanelMatrix::from_rows(n, k, random(&[n, k]).data());
        let mut y = vec![0.0; t * n];
        bench.run(&name("forward"), "GFLOP/s", flops, &mut || gemm::nt(x.data(), w.view(), &mut y, false))?;
        if t > 16 {
            bench.run(&name("dx"), "GFLOP/s", flops, &mut || drop(gemm::nn(dy.data(), w.view())))?;
            let chunks: Vec<_> = (0..t).step_by(512).map(|a| a..(a + 512).min(t)).collect();
            bench.run(&name("dw"), "GFLOP/s", flops, &mut || gemm::tn_into(dy.data(), x.data(), &chunks, &mut w))?;
        }
    }
    if bench.wants_group("matmul") {
        // Larger than any cache, so that every call reads it from memory.
        let (k, n) = (2048, 65536);
        let x = random(&[1, k]);
        let w = PanelMatrix::from_rows(n, k, random(&[n, k]).data());
        let mut y = vec![0.0; n];
        bench.run("matmul forward 1x2048x65536", "GB/s", (k * n * 4) as f64, &mut || gemm::nt(x.data(), w.view(), &mut y, false))?;
    }
    Ok(())
}

/// The products of `compute = "bf16"`. With AMX the rate of f32 is no floor.
fn matmul_in_bf16(bench: &mut Bench) -> Result<()> {
    if !bench.wants_group("matmul") {
        return Ok(());
    }
    let floor = (!bf16::has_amx()).then_some(bench.peaks.0);
    for (t, k, n) in [(1024, 576, 1536), (2048, 2048, 2048), (16, 576, 49152)] {
        let name = |pass: &str| format!("matmul bf16 {pass} {t}x{k}x{n}");
        let flops = (2 * t * k * n) as f64;
        let (x, dy) = (random(&[t, k]), random(&[t, n]));
        let mut wide = PanelMatrix::from_rows(n, k, random(&[n, k]).data());
        let w = Bf16Matrix::rounded(&wide);
        let mut y = vec![0.0; t * n];
        let mut run =
            |pass: &str, work: &mut dyn FnMut()| bench.run_timed(&name(pass), "GFLOP/s", flops, floor, &mut || seconds_of(&mut *work));
        run("forward", &mut || bf16::nt(x.data(), w.view(), &mut y, false))?;
        if t > 16 {
            run("dx", &mut || drop(bf16::nn(dy.data(), w.view())))?;
            let chunks: Vec<_> = (0..t).step_by(512).map(|a| a..(a + 512).min(t)).collect();
            run("dw", &mut || bf16::tn(dy.data(), x.data(), n, k, &chunks, wide.data_mut()))?;
        }
    }
    let (k, n) = (2048, 65536);
    let x = random(&[1, k]);
    let w = Bf16Matrix::rounded(&PanelMatrix::from_rows(n, k, random(&[n, k]).data()));
    let mut y = vec![0.0; n];
    let read = (k * n * 2) as f64;
    bench.run("matmul bf16 forward 1x2048x65536", "GB/s", read, &mut || bf16::nt(x.data(), w.view(), &mut y, false))
}

fn elementwise(bench: &mut Bench) -> Result<()> {
    let (t, d, f) = (8192, 576, 1536);
    if bench.wants_group("rmsnorm") {
        let (x, dy, w) = (random(&[t, d]), random(&[t, d]), random(&[d]));
        let bytes = (t * d * 4) as f64;
        bench.run("rmsnorm forward 8192x576", "GB/s", 2.0 * bytes, &mut || drop(rmsnorm::forward(&x, &w, 1e-5)))?;
        let (_, rstd) = rmsnorm::forward(&x, &w, 1e-5)?;
        let mut dw = Tensor::zeros(&[d]);
        bench.run("rmsnorm backward 8192x576", "GB/s", 5.0 * bytes, &mut || {
            drop(rmsnorm::backward(&dy, &x, &w, &rstd, std::slice::from_ref(&(0..t)), Some(&mut dw)));
        })?;
    }
    if bench.wants_group("swiglu") {
        let (gate, up, dy) = (random(&[t, f]), random(&[t, f]), random(&[t, f]));
        let bytes = (t * f * 4) as f64;
        bench.run("swiglu forward 8192x1536", "GB/s", 3.0 * bytes, &mut || drop(swiglu::forward(&gate, &up)))?;
        bench.run("swiglu backward 8192x1536", "GB/s", 5.0 * bytes, &mut || drop(swiglu::backward(&dy, &gate, &up)))?;
    }
    if bench.wants_group("adamw") {
        let n = 16 << 20;
        let g = random(&[n]).into_vec();
        let (mut p, mut m, mut v) = (g.clone(), vec![0.0; n], vec![0.0; n]);
        let step = adamw::Step {
            decay: 0.999,
            one_minus_beta1: 0.1,
            beta2: 0.999,
            one_minus_beta2: 0.001,
            eps: 1e-8,
            step_size: 1e-4,
            bias2_sqrt: 0.5,
            grad_scale: 1.0,
        };
        bench.run("adamw 16M", "GB/s", (7 * n * 4) as f64, &mut || adamw::step(&mut p, &g, &mut m, &mut v, step))?;
        let (rows, cols) = (n >> 11, 1 << 11);
        let (mut p, g) = (PanelMatrix::from_rows(rows, cols, &p), PanelMatrix::from_rows(rows, cols, &g));
        let mut moments = adamw::panels::Moments::zeros(rows, cols);
        let rounding = adamw::codes::Rounding { key: [1, 2], step: 1, tensor: 0 };
        bench.run("adamw 16M, 8-bit moments", "GB/s", (16 * n) as f64, &mut || {
            adamw::panels::step(&mut p, &g, &mut moments, step, rounding);
        })?;
    }
    Ok(())
}

fn attend(bench: &mut Bench) -> Result<()> {
    if !bench.wants_group("attention") {
        return Ok(());
    }
    let (t, heads) = (1024, Heads { num_heads: 9, num_kv_heads: 3, head_dim: 64 });
    let plan = Plan::for_trees(&[Tree::sequence(&vec![1; t], &vec![true; t])]);
    let (q, d_o) = (random(&[t, 576]), random(&[t, 576]));
    let mut kv = KvLayer::new(heads, plan.num_pages);
    kv.write(&plan.kv_slots, &random(&[t, 192]), &random(&[t, 192]));
    let flops = (2 * t * t * 576) as f64;
    bench.run("attention forward 1024 (9/3 heads)", "GFLOP/s", flops, &mut || drop(attention::forward(&q, &kv, &plan.segments, 0.125)))?;
    let (o, saved) = attention::forward(&q, &kv, &plan.segments, 0.125);
    bench.run("attention backward 1024", "GFLOP/s", 3.5 * flops, &mut || {
        attention::backward(&d_o, &q, &o, &saved, &kv, &plan, 0.125);
    })
}

fn head(bench: &mut Bench) -> Result<()> {
    if !bench.wants_group("token_logprob") {
        return Ok(());
    }
    let (r, d, v) = (512, 576, 49152);
    let h = random(&[r, d]);
    let mut w = PanelMatrix::from_rows(v, d, random(&[v, d]).data());
    let targets: Vec<u32> = (0..r as u32).map(|i| i * 90).collect();
    let flops = (2 * r * d * v) as f64;
    let forward = |keep| token_logprob::forward(&h, &w, &targets, 1.0, keep);
    bench.run("token_logprob forward 512x49152", "GFLOP/s", flops, &mut || drop(forward(Keep::Nothing)))?;
    let mut dw = PanelMatrix::zeros(v, d);
    let seeds = vec![0.01; r];
    bench.run("token_logprob forward, backward", "GFLOP/s", 3.0 * flops, &mut || {
        let (_, _, saved) = forward(Keep::ForBackward);
        token_logprob::backward(&h, &w, &targets, 1.0, saved, &seeds, None, std::slice::from_ref(&(0..r)), Some(&mut dw));
    })?;
    w.data_mut()[0] = 0.0;
    Ok(())
}
