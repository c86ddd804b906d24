//! The fused head against its floor, operations at the FMA rate: 2 R V D forward, 4 R V D backward with the head frozen (logits again, and
//! dh), 6 R V D with dW.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sorft_native::tensor::Tensor;
use sorft_native::tensor::cpu::PanelMatrix;
use sorft_native::tensor::ops::token_logprob::{self as head, Keep};
use std::time::Duration;

fn fill(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 2_654_435_761) % 1000) as f32 * 1e-3 - 0.5).collect()
}

fn predictions(c: &mut Criterion) {
    let (r, d, v) = (256usize, 576usize, 49_152usize);
    let (h, w) = (Tensor::from_vec(&[r, d], fill(r * d)), PanelMatrix::from_rows(v, d, &fill(v * d)));
    let targets: Vec<u32> = (0..r).map(|i| (i * 191 % v) as u32).collect();
    let mut dw = PanelMatrix::zeros(v, d);
    let (_, _, saved) = head::forward(&h, &w, &targets, 1.0, Keep::Nothing);
    let (seeds, chunk) = (vec![1e-3; r], 0..r);
    let chunks = std::slice::from_ref(&chunk);
    let mut group = c.benchmark_group(format!("token_logprob/{r}x{d}x{v}"));
    group.throughput(Throughput::Elements((2 * r * d * v) as u64));
    group.bench_function("forward", |b| b.iter(|| head::forward(&h, &w, &targets, 1.0, Keep::Nothing)));
    group.throughput(Throughput::Elements((4 * r * d * v) as u64));
    group.bench_function("dh", |b| b.iter(|| head::backward(&h, &w, &targets, 1.0, saved.clone(), &seeds, None, chunks, None)));
    group.throughput(Throughput::Elements((6 * r * d * v) as u64));
    group.bench_function("dh and dW", |b| {
        b.iter(|| head::backward(&h, &w, &targets, 1.0, saved.clone(), &seeds, Some(&seeds), chunks, Some(&mut dw)))
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_secs(1));
    targets = predictions
}
criterion_main!(benches);
