//! The rotation against its floor, the bytes of its rows read and written; and the forming of the angles, once a pass.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sorft_native::tensor::Tensor;
use sorft_native::tensor::ops::rope::{self, Angles};
use std::time::Duration;

fn turns(c: &mut Criterion) {
    let (t, heads, d) = (2048usize, 9usize, 64usize);
    let frequencies: Vec<f32> = (0..d / 2).map(|i| 1.0 / 10_000f32.powf((2 * i) as f32 / d as f32)).collect();
    let positions: Vec<u32> = (0..t as u32).collect();
    let mut x = Tensor::from_vec(&[t, heads * d], (0..t * heads * d).map(|i| (i % 97) as f32 * 0.01).collect());
    let mut group = c.benchmark_group(format!("rope/{t}x{heads}x{d}"));
    group.bench_function("angles", |b| b.iter(|| Angles::new(&positions, &frequencies)));
    let angles = Angles::new(&positions, &frequencies);
    group.throughput(Throughput::Bytes((2 * 4 * t * heads * d) as u64));
    group.bench_function("forward", |b| b.iter(|| rope::forward(&mut x, &angles)));
    group.bench_function("backward", |b| b.iter(|| rope::backward(&mut x, &angles)));
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_secs(1));
    targets = turns
}
criterion_main!(benches);
