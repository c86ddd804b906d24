//! RMSNorm against its floor, the bytes of its rows: forward reads x and writes y, backward reads dy and x (twice with dw) and writes dx.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sorft_native::tensor::Tensor;
use sorft_native::tensor::ops::rmsnorm;
use std::time::Duration;

fn fill(shape: &[usize]) -> Tensor {
    Tensor::from_vec(shape, (0..shape.iter().product()).map(|i| ((i * 2_654_435_761) % 1000) as f32 * 1e-3 - 0.5).collect())
}

fn rows(c: &mut Criterion) {
    // The residual stream of a training batch and of decode; per-head norms.
    for (t, d) in [(2048usize, 576usize), (16, 576), (2048 * 16, 128)] {
        let (x, dy, w) = (fill(&[t, d]), fill(&[t, d]), fill(&[d]));
        let (_, rstd) = rmsnorm::forward(&x, &w, 1e-5).expect("nothing fails on the CPU");
        let mut dw = Tensor::zeros(&[d]);
        let chunks: Vec<_> = (0..t).step_by(512).map(|a| a..(a + 512).min(t)).collect();
        let mut group = c.benchmark_group(format!("rmsnorm/{t}x{d}"));
        group.throughput(Throughput::Bytes((2 * 4 * t * d) as u64));
        group.bench_function("forward", |b| b.iter(|| rmsnorm::forward(&x, &w, 1e-5)));
        group.throughput(Throughput::Bytes((3 * 4 * t * d) as u64));
        group.bench_function("dx", |b| b.iter(|| rmsnorm::backward(&dy, &x, &w, &rstd, &chunks, None)));
        group.throughput(Throughput::Bytes((5 * 4 * t * d) as u64));
        group.bench_function("dx and dw", |b| b.iter(|| rmsnorm::backward(&dy, &x, &w, &rstd, &chunks, Some(&mut dw))));
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_secs(1));
    targets = rows
}
criterion_main!(benches);
