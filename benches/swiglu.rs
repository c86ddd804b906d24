//! SwiGLU against its floor, the bytes it touches: forward reads 2 tensors and writes 1, backward reads 3 and writes 2.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sorft_native::tensor::Tensor;
use sorft_native::tensor::ops::swiglu;
use std::time::Duration;

fn fill(shape: &[usize], salt: usize) -> Tensor {
    Tensor::from_vec(shape, (0..shape.iter().product()).map(|i| ((i * 2_654_435_761 + salt) % 1000) as f32 * 1e-2 - 5.0).collect())
}

fn elements(c: &mut Criterion) {
    for (t, d) in [(2048usize, 1536usize), (16, 1536)] {
        let (gate, up, dy) = (fill(&[t, d], 1), fill(&[t, d], 2), fill(&[t, d], 3));
        let mut group = c.benchmark_group(format!("swiglu/{t}x{d}"));
        group.throughput(Throughput::Bytes((3 * 4 * t * d) as u64));
        group.bench_function("forward", |b| b.iter(|| swiglu::forward(&gate, &up)));
        group.throughput(Throughput::Bytes((5 * 4 * t * d) as u64));
        group.bench_function("backward", |b| b.iter(|| swiglu::backward(&dy, &gate, &up)));
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_secs(1));
    targets = elements
}
criterion_main!(benches);
