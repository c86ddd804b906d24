//! One AdamW step against its floor, 28 bytes a weight: p, g, m and v read, p, m and v written; with moments in 8 bits 16. The gradient norm
//! reads 4.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sorft_native::tensor::cpu::PanelMatrix;
use sorft_native::tensor::ops::{adamw, norm};
use std::time::Duration;

fn steps(c: &mut Criterion) {
    let n = 16 << 20;
    let g: Vec<f32> = (0..n).map(|i| ((i * 2_654_435_761usize) % 1000) as f32 * 1e-3 - 0.5).collect();
    let (mut p, mut m, mut v) = (g.clone(), vec![0.0; n], vec![0.0; n]);
    let step = adamw::Step {
        decay: 0.999_99,
        one_minus_beta1: 0.1,
        beta2: 0.999,
        one_minus_beta2: 0.001,
        eps: 1e-8,
        step_size: 1e-4,
        bias2_sqrt: 0.5,
        grad_scale: 0.7,
    };
    let mut group = c.benchmark_group(format!("adamw/{n}"));
    group.throughput(Throughput::Bytes(28 * n as u64));
    group.bench_function("step", |b| b.iter(|| adamw::step(&mut p, &g, &mut m, &mut v, step)));
    let (rows, cols) = (n >> 11, 1 << 11);
    let (mut p8, g8) = (PanelMatrix::from_rows(rows, cols, &g), PanelMatrix::from_rows(rows, cols, &g));
    let mut moments = adamw::panels::Moments::zeros(rows, cols);
    let rounding = adamw::codes::Rounding { key: [1, 2], step: 1, tensor: 0 };
    group.throughput(Throughput::Bytes(16 * n as u64));
    group.bench_function("step, 8-bit moments", |b| b.iter(|| adamw::panels::step(&mut p8, &g8, &mut moments, step, rounding)));
    group.throughput(Throughput::Bytes(4 * n as u64));
    group.bench_function("norm", |b| b.iter(|| norm::sum_of_squares(&g)));
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_secs(1));
    targets = steps
}
criterion_main!(benches);
