//! Attention over the shapes of SmolLM2-135M (9 query heads, 3 kv heads of 64), against its floor: 2 T L H d operations forward (both
//! products, half the square) and 7 T L H d backward (scores again in both passes) at the FMA rate; in decode, the bytes of the pages.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sorft_native::tensor::Tensor;
use sorft_native::tensor::ops::attention::{self, Heads, KvLayer};
use sorft_native::tensor::plan::{Plan, Segment, Tree};
use std::time::Duration;

const HEADS: Heads = Heads { num_heads: 9, num_kv_heads: 3, head_dim: 64 };
const SCALE: f32 = 0.125;

fn fill(rows: usize, width: usize, salt: usize) -> Tensor {
    Tensor::from_vec(&[rows, width], (0..rows * width).map(|i| ((i * 2_654_435_761 + salt) % 1000) as f32 * 1e-3 - 0.5).collect())
}

/// (query, key) pairs that a plan's tokens see.
fn pairs(plan: &Plan) -> usize {
    plan.positions.iter().map(|p| *p as usize + 1).sum()
}

fn training(c: &mut Criterion) {
    let trees = [
        ("1 x 1024", Tree::sequence(&[1; 1024], &[true; 1024])),
        ("1024 + 8 x 128", Tree::prompt_with_answers(&[1; 1024], &vec![vec![1; 128]; 8])),
    ];
    for (name, tree) in trees {
        let plan = Plan::for_trees(&[tree]);
        let (t, d) = (plan.num_tokens(), HEADS.head_dim);
        let (q, d_o) = (fill(t, HEADS.num_heads * d, 1), fill(t, HEADS.num_heads * d, 2));
        let (k, v) = (fill(t, HEADS.num_kv_heads * d, 3), fill(t, HEADS.num_kv_heads * d, 4));
        let mut kv = KvLayer::new(HEADS, plan.num_pages);
        let mut group = c.benchmark_group(format!("attention/{name}"));
        group.bench_function("write", |b| {
            b.iter(|| {
                kv.write(&plan.kv_slots, &k, &v);
                kv.copy(&plan.copies);
            })
        });
        let operations = (pairs(&plan) * HEADS.num_heads * d) as u64;
        group.throughput(Throughput::Elements(4 * operations));
        group.bench_function("forward", |b| b.iter(|| attention::forward(&q, &kv, &plan.segments, SCALE)));
        let (o, saved) = attention::forward(&q, &kv, &plan.segments, SCALE);
        group.throughput(Throughput::Elements(14 * operations));
        group.bench_function("backward", |b| b.iter(|| attention::backward(&d_o, &q, &o, &saved, &kv, &plan, SCALE)));
        group.finish();
    }
}

/// 16 sequences of 1000 tokens each take one more.
fn decode(c: &mut Criterion) {
    let (count, length, d) = (16, 1000, HEADS.head_dim);
    let trees: Vec<Tree> = (0..count).map(|_| Tree::sequence(&vec![1; length], &vec![true; length])).collect();
    let plan = Plan::for_trees(&trees);
    let mut kv = KvLayer::new(HEADS, plan.num_pages);
    let t = plan.num_tokens();
    kv.write(&plan.kv_slots, &fill(t, HEADS.num_kv_heads * d, 1), &fill(t, HEADS.num_kv_heads * d, 2));
    let last = |(i, s): (usize, &Segment)| Segment { parent: None, tokens: i..i + 1, start: length - 1, pages: s.pages.clone() };
    let segments: Vec<Segment> = plan.segments.iter().enumerate().map(last).collect();
    let q = fill(count, HEADS.num_heads * d, 3);
    let mut group = c.benchmark_group("attention/decode 16 x 1000");
    group.throughput(Throughput::Bytes(KvLayer::bytes(HEADS, plan.num_pages) as u64));
    group.bench_function("forward", |b| b.iter(|| attention::forward(&q, &kv, &segments, SCALE)));
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_secs(1));
    targets = training, decode
}
criterion_main!(benches);
