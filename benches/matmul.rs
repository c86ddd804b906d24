//! The matrix product, against its floor: floating-point operations at the FMA rate, or bytes of weights at the memory rate.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sorft_native::tensor::cpu::{PanelMatrix, gemm};

fn products(c: &mut Criterion) {
    for (t, k, n) in [
        (1024usize, 576usize, 1536usize),
        (2048, 2048, 2048),
        (1024, 1536, 576),
        (1024, 576, 8),
        (1024, 8, 576),
        (16, 576, 49152),
        (1, 576, 49152),
    ] {
        let mut group = c.benchmark_group(format!("matmul/{t}x{k}x{n}"));
        group.sample_size(10);
        group.throughput(Throughput::Elements((2 * t * k * n) as u64));
        let fill = |len: usize| (0..len).map(|i| ((i * 2654435761) % 1000) as f32 * 1e-3 - 0.5).collect::<Vec<_>>();
        let (x, dy) = (fill(t * k), fill(t * n));
        let mut w = PanelMatrix::from_rows(n, k, &fill(n * k));
        let mut y = vec![0.0; t * n];
        group.bench_function("forward", |b| b.iter(|| gemm::nt(&x, w.view(), &mut y, false)));
        if t > 16 {
            group.bench_function("dx", |b| b.iter(|| gemm::nn(&dy, w.view())));
            let chunks: Vec<_> = (0..t).step_by(512).map(|a| a..(a + 512).min(t)).collect();
            group.bench_function("dw", |b| b.iter(|| gemm::tn_into(&dy, &x, &chunks, &mut w)));
        }
        group.finish();
    }
}

criterion_group!(benches, products);
criterion_main!(benches);
