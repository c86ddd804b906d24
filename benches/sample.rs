//! Choosing a token from a row of 49152 logits: to stay small beside the head's product for the same row (2 V D operations).

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sorft_native::tensor::ops::sample::{Filters, draw, greedy};
use sorft_native::tensor::philox::Philox;
use std::time::Duration;

fn draws(c: &mut Criterion) {
    let (v, random) = (49_152usize, Philox::new(1, 1));
    let logits: Vec<f32> = (0..v).map(|i| random.normal(i as u64, 0) as f32 * 3.0).collect();
    let none = Filters { top_k: 0, top_p: 1.0, min_p: 0.0 };
    let mut group = c.benchmark_group(format!("sample/{v}"));
    group.throughput(Throughput::Elements(v as u64));
    group.bench_function("greedy", |b| b.iter(|| greedy(&logits)));
    for (name, filters) in [
        ("all", none),
        ("top-k 50", Filters { top_k: 50, ..none }),
        ("top-p 0.95", Filters { top_p: 0.95, ..none }),
        ("min-p 0.05", Filters { min_p: 0.05, ..none }),
    ] {
        let mut i = 0;
        group.bench_function(name, |b| {
            b.iter(|| {
                i += 1;
                draw(&logits, 0.8, filters, random.uniform(i, 1))
            })
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_secs(1));
    targets = draws
}
criterion_main!(benches);
