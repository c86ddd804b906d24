//! The critic's gradients: the same bits for any micro-batch and thread count, and right to finite differences, on each kind of critic.

use crate::tiny;
use sorft_native::model::config::Family;
use sorft_native::model::optimizer::{AdamWConfig, Moment, TensorState};
use sorft_native::model::transformer::Adapter;
use sorft_native::model::{Gradients, Transformer, ValueHead};
use sorft_native::tensor::plan::{Plan, Tree};

fn trees() -> Vec<Tree> {
    let group = |n: usize, answers: &[usize], seed: u64| {
        let answers: Vec<_> = answers.iter().enumerate().map(|(i, &len)| tiny::ids(len, seed * 100 + i as u64)).collect();
        Tree::prompt_with_answers(&tiny::ids(n, seed), &answers)
    };
    vec![group(70, &[5, 1, 80], 1), group(64, &[3, 9], 2), group(3, &[20], 3)]
}

/// A tensor of the head's with moments of zero.
fn state(weight: Vec<f32>) -> TensorState {
    let zeros = || Moment::F32(vec![0.0; weight.len()]);
    TensorState { first: zeros(), second: zeros(), weight }
}

fn head(model: &Transformer) -> ValueHead {
    let config = AdamWConfig::default();
    let (mut head, width) = (ValueHead::new(model.config().hidden_size, config).unwrap(), model.config().hidden_size);
    let weight = (0..width).map(|i| (i * 7 % 11) as f32 * 0.05 - 0.2).collect();
    head.import("value_head.weight", &state(weight)).unwrap();
    head
}

/// d loss / d value of prediction `i` of a tree, the same wherever the tree stands.
fn slope(i: usize) -> f32 {
    ((i * 7 % 11) as f32 - 5.0) * 0.1
}

fn gradients(model: &Transformer, head: &mut ValueHead, micro_batches: &[&[Tree]], checkpointing: bool) -> Gradients {
    let mut grads = model.gradients().unwrap();
    head.zero_gradients().unwrap();
    for trees in micro_batches {
        let plan = Plan::for_trees(trees);
        let d_value: Vec<f32> = plan.trees.iter().flat_map(|t| (0..t.predictions.len()).map(slope)).collect();
        let saved = model.forward_trunk(&plan, checkpointing).unwrap();
        assert_eq!(saved.predicting().unwrap().data(), model.predicting(&plan, Adapter::On).unwrap().data());
        let d_hidden = head.backward(&saved.predicting().unwrap(), &d_value, &plan.head_chunks);
        model.backward_trunk(&plan, saved, &d_hidden, &mut grads).unwrap();
    }
    grads.finish().unwrap();
    grads
}

fn bits(model: &Transformer, head: &mut ValueHead, mut grads: Gradients) -> Vec<Vec<u32>> {
    let own = model.trainable().into_iter().map(|p| grads.export(&p.name).unwrap().unwrap());
    let of_head = head.trainable().into_iter().map(|p| head.gradient(&p.name).unwrap().unwrap());
    own.chain(of_head).map(|g| g.iter().map(|x| x.to_bits()).collect()).collect()
}

#[test]
fn the_same_bits_for_any_micro_batch_thread_count_and_checkpointing() {
    let trees = trees();
    let model = tiny::model(tiny::config(Family::Qwen3), 5);
    let mut head = head(&model);
    let mut run = |cut: usize, checkpointing: bool| {
        let micro: Vec<&[Tree]> = trees.chunks(cut).collect();
        let grads = gradients(&model, &mut head, &micro, checkpointing);
        bits(&model, &mut head, grads)
    };
    let want = run(3, false);
    assert!(want == run(1, false) && want == run(2, true));
    for threads in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        assert!(want == pool.install(|| run(3, false)), "{threads} threads");
    }
}

#[test]
fn finite_differences_agree() {
    let trees = trees();
    let plan = Plan::for_trees(&trees);
    let mut model = tiny::model(tiny::config(Family::Llama), 5);
    let mut head = head(&model);
    let mut grads = gradients(&model, &mut head, &[&trees], false);
    let loss = |model: &Transformer, head: &ValueHead| -> f64 {
        let values = head.forward(&model.predicting(&plan, Adapter::On).unwrap());
        plan.trees.iter().flat_map(|t| t.predictions.clone().enumerate()).map(|(i, at)| f64::from(slope(i)) * f64::from(values[at])).sum()
    };
    let moved = |weights: &[f32], g: &[f32], by: f64| -> Vec<f32> {
        weights.iter().zip(g).map(|(w, g)| (f64::from(*w) + by * f64::from(*g)) as f32).collect()
    };
    let norm = |x: &[f32]| x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    for p in model.trainable() {
        // Along the gradient itself the derivative is its norm.
        let (g, weights) = (grads.export(&p.name).unwrap().unwrap(), model.export(&p.name).unwrap());
        let (size, step) = (norm(&g), 3e-4 * norm(&weights).max(0.1) / norm(&g));
        let mut at = |by: f64| {
            model.import(&p.name, &moved(&weights, &g, by)).unwrap();
            loss(&model, &head)
        };
        let slope = (at(step) - at(-step)) / (2.0 * step);
        model.import(&p.name, &weights).unwrap();
        let error = (slope - size * size).abs() / (size * size);
        assert!(error < 2e-2, "{}: {slope} against {}, off by {error:e}", p.name, size * size);
    }
    for p in head.trainable() {
        let (g, weights) = (head.gradient(&p.name).unwrap().unwrap(), head.export(&p.name).unwrap().weight);
        let (size, step) = (norm(&g), 1e-2 / norm(&g));
        let mut at = |by: f64| {
            head.import(&p.name, &state(moved(&weights, &g, by))).unwrap();
            loss(&model, &head)
        };
        let slope = (at(step) - at(-step)) / (2.0 * step);
        head.import(&p.name, &state(weights.clone())).unwrap();
        assert!((slope - size * size).abs() < 1e-2 * size * size, "{}: {slope} against {}", p.name, size * size);
    }
}
