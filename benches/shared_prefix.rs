//! A training step (forward and backward) of 8 answers of 128 tokens to one prompt of 1024, the prompt shared by them and repeated, on a
//! model of SmolLM2's block shapes with fewer layers.

use criterion::{Criterion, criterion_group, criterion_main};
use sorft_native::model::config::Family;
use sorft_native::model::transformer::Transformer;
use sorft_native::tensor::plan::{Plan, Tree};
use std::time::Duration;

#[path = "../tests/support/tiny.rs"]
mod tiny;

fn model() -> Transformer {
    let mut config = tiny::config(Family::Llama);
    (config.hidden_size, config.intermediate_size, config.num_layers) = (576, 1536, 4);
    (config.num_heads, config.num_kv_heads, config.head_dim) = (9, 3, 64);
    (config.vocab_size, config.max_position_embeddings) = (6144, 2048);
    tiny::model(config, 1)
}

fn step(c: &mut Criterion) {
    let model = model();
    let prompt = tiny::ids(1024, 1);
    let answers: Vec<_> = (0..8).map(|i| tiny::ids(128, 2 + i)).collect();
    let one = |a: &Vec<u32>| Tree::prompt_with_answers(&prompt, std::slice::from_ref(a));
    let shared = Plan::for_trees(&[Tree::prompt_with_answers(&prompt, &answers)]);
    let repeated = Plan::for_trees(&answers.iter().map(one).collect::<Vec<_>>());
    let mut grads = model.gradients().expect("gradients");
    let mut group = c.benchmark_group("shared_prefix");
    for (name, plan) in [("shared", &shared), ("repeated", &repeated)] {
        let seeds = vec![-1e-3; plan.predictions.len()];
        group.bench_function(name, |b| {
            b.iter(|| {
                let (_, saved) = model.forward(plan, 1.0, false).expect("forward");
                model.backward(plan, saved, &seeds, None, &mut grads).expect("backward");
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(5));
    targets = step
}
criterion_main!(benches);
