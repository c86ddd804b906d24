//! A training step as a fuzz target: no parser, but all the code that is `unsafe` for speed, on batches of any shape, under AddressSanitizer.

use sorft_native::model::config::Family;
use sorft_native::model::generate::{SamplingParams, generate};
use sorft_native::model::optimizer::{AdamW, AdamWConfig, MomentFormat};
use sorft_native::model::transformer::{Gradients, Transformer};
use sorft_native::tensor::plan::{Plan, Tree};

#[path = "../tests/support/tiny.rs"]
mod tiny;

/// Samples answers and trains on them, sizes by the bytes: what sampling recorded is what training computes, and the gradients are the
/// same for all trees at once as for one after another.
pub fn step(data: &[u8]) {
    let size = |i: usize, most: u8| 1 + usize::from(data.get(i).copied().unwrap_or(0) % most);
    let family = [Family::Llama, Family::Qwen2, Family::Qwen3][size(0, 3) - 1];
    let mut model = tiny::model(tiny::config(family), 9);
    let prompts: Vec<_> = (1..=size(1, 3)).map(|i| tiny::ids(size(i + 1, 140), i as u64)).collect();
    let params = SamplingParams { n: size(5, 3), max_new_tokens: size(6, 70), temperature: 0.8, seed: 3, ..Default::default() };
    let answers = generate(&model, None, &prompts, &params, size(7, 9), &mut |_| true).expect("answers");
    let trees: Vec<Tree> = (0..prompts.len())
        .map(|i| {
            let own = answers.iter().filter(|a| a.prompt_index == i).map(|a| a.ids.clone()).collect::<Vec<_>>();
            Tree::prompt_with_answers(&prompts[i], &own)
        })
        .collect();
    let recorded: Vec<u32> = answers.iter().flat_map(|a| &a.logprobs).map(|x| x.to_bits()).collect();
    let (mut grads, whole, trained) = gradients(&model, &[&trees]);
    assert_eq!(recorded, trained);
    let (_, parts, _) = gradients(&model, &trees.chunks(1).collect::<Vec<_>>());
    assert!(whole == parts, "gradients depend on the micro-batch");
    for moments in [MomentFormat::F32, MomentFormat::EightBit] {
        let mut optimizer = AdamW::new(&model, AdamWConfig { moments, ..AdamWConfig::default() }).expect("moments");
        let norm = optimizer.step(&mut model, &mut grads, 1e-3, 1).expect("a step");
        assert!(norm.is_finite(), "{moments:?}");
    }
}

/// All gradients of the sum of log-probabilities, their bits, and those of the log-probabilities.
fn gradients(model: &Transformer, micro_batches: &[&[Tree]]) -> (Gradients, Vec<u32>, Vec<u32>) {
    let mut grads: Gradients = model.gradients().expect("gradients");
    let mut logprobs = Vec::new();
    for trees in micro_batches {
        let plan = Plan::for_trees(trees);
        let (stats, saved) = model.forward(&plan, 0.8, trees.len() == 1).expect("a forward pass");
        model.backward(&plan, saved, &vec![1.0; stats.logprob.len()], None, &mut grads).expect("a backward pass");
        logprobs.extend(stats.logprob.iter().map(|x| x.to_bits()));
    }
    grads.finish().expect("gradients");
    let mut of = |name: &str| grads.export(name).expect("on the processor").expect("trained");
    let bits = model.trainable().iter().flat_map(|p| of(&p.name)).map(|x| x.to_bits()).collect();
    (grads, bits, logprobs)
}
