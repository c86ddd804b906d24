//! A whole model: the figures that are compared with other programs.

use super::{Bench, kernels};
use crate::Result;
use crate::model::generate::{Completion, Event, SamplingParams, generate};
use crate::model::optimizer::{AdamW, AdamWConfig};
use crate::model::transformer::{Adapter, Transformer};
use crate::model::weights;
use crate::tensor::Device;
use crate::tensor::philox::Philox;
use crate::tensor::plan::{Plan, Tree};
use std::time::Instant;

/// Tokens of a prefill and of a training step.
const LENGTH: usize = 512;
/// Tokens decoded a call, after a prompt of [`PROMPT`].
const DECODED: usize = 64;
/// Tokens of the prompt that decoding goes on from.
const PROMPT: usize = 128;

pub(super) fn run(bench: &mut Bench, spec: &str, device: &Device) -> Result<()> {
    let mut model = Transformer::load(&weights::open(spec)?, device)?;
    let random = Philox::new(1, 1);
    let vocab = model.config().vocab_size as f64;
    let ids: Vec<u32> = (0..LENGTH).map(|i| (random.uniform(i as u64, 0) * vocab) as u32).collect();
    let prompt = ids[..PROMPT].to_vec();
    let mut failure = None;
    for (name, batch) in [("model decode alone", 1), ("model decode at batch 16", 16)] {
        if !bench.wants_group(name) {
            continue;
        }
        let params = SamplingParams { n: batch, max_new_tokens: DECODED + 1, ignore_eos: true, ..Default::default() };
        // Every token reads all weights once: the floor, at the rate that memory has just now.
        let (width, rate) = if device.is_cpu() { (4, kernels::read_rate(0.5)) } else { (2, bench.peaks.1) };
        let bytes: usize = model.base_params().iter().map(|p| width * p.shape.iter().product::<usize>()).sum();
        let floor = batch as f64 * rate * 1e9 / bytes as f64;
        bench.run_timed(name, "tokens/s", (batch * DECODED) as f64, Some(floor), &mut || {
            let (mut first, mut last) = (None, Instant::now());
            let mut watch = |event: Event<'_>| {
                if let Event::Progress(tokens) = event {
                    last = Instant::now();
                    // The prompt and the first token of each sample are not counted.
                    first = first.or((tokens == batch).then_some(last));
                }
                true
            };
            failure = generate(&model, None, std::slice::from_ref(&prompt), &params, batch, &mut watch).err();
            first.map_or(0.0, |first| (last - first).as_secs_f64())
        })?;
    }
    // Only the last token is predicted, as in the prefill of generation.
    let targets: Vec<bool> = (0..LENGTH).map(|i| i + 1 == LENGTH).collect();
    let plan = Plan::for_trees(&[Tree::sequence(&ids, &targets)]);
    bench.run("model prefill 512", "tokens/s", LENGTH as f64, &mut || {
        failure = model.evaluate(&plan, 1.0, Adapter::On).err();
    })?;
    train(bench, &mut model, &ids)?;
    grpo_step(bench, &mut model, &random)?;
    failure.map_or(Ok(()), Err)
}

/// Prompts, answers to each, tokens of a prompt and of an answer in a GRPO step.
const GRPO: (usize, usize, usize, usize) = (2, 8, 256, 64);

/// What `train` does at the defaults of its optimizer.
fn adamw(model: &Transformer) -> Result<AdamW> {
    let config = AdamWConfig { betas: (0.9, 0.999), eps: 1e-8, weight_decay: 0.01, decay_norms_and_biases: false, max_grad_norm: 1.0 };
    AdamW::new(model, config)
}

/// A whole GRPO step: answers of fixed length sampled at temperature 1, a made-up advantage for each, one update of all parameters.
fn grpo_step(bench: &mut Bench, model: &mut Transformer, random: &Philox) -> Result<()> {
    let (prompts, group, prompt_tokens, answer_tokens) = GRPO;
    let name = format!("model GRPO step {prompts}x{group}, {prompt_tokens}+{answer_tokens}");
    if !bench.wants_group(&name) {
        return Ok(());
    }
    let vocab = model.config().vocab_size as f64;
    let id = |i: usize| (random.uniform(i as u64, 1) * vocab) as u32;
    let prompts: Vec<Vec<u32>> = (0..prompts).map(|p| (0..prompt_tokens).map(|i| id(p * prompt_tokens + i)).collect()).collect();
    let mut optimizer = adamw(model)?;
    let mut grads = model.gradients()?;
    let mut step = 0;
    let mut failure = None;
    let answer_total = prompts.len() * group * answer_tokens;
    bench.run(&name, "tokens/s", answer_total as f64, &mut || {
        step += 1;
        let params = SamplingParams { n: group, max_new_tokens: answer_tokens, ignore_eos: true, step, ..Default::default() };
        let update = generate(model, None, &prompts, &params, prompts.len() * group, &mut |_| true).and_then(|completions| {
            let tree = |(p, answers): (&Vec<u32>, &[Completion])| {
                Tree::prompt_with_answers(p, &answers.iter().map(|c| c.ids.clone()).collect::<Vec<_>>())
            };
            let plan = Plan::for_trees(&prompts.iter().zip(completions.chunks(group)).map(tree).collect::<Vec<_>>());
            let seeds: Vec<f32> =
                (0..plan.predictions.len()).map(|i| if i / answer_tokens % 2 == 0 { 1.0 } else { -1.0 } / answer_total as f32).collect();
            grads.zero()?;
            let (_, saved) = model.forward(&plan, 1.0, false)?;
            model.backward(&plan, saved, &seeds, None, &mut grads)?;
            optimizer.step(model, &mut grads, 1e-6, step)
        });
        failure = update.err();
    })?;
    failure.map_or(Ok(()), Err)
}

/// Forward, backward and AdamW over all parameters, every token a target.
fn train(bench: &mut Bench, model: &mut Transformer, ids: &[u32]) -> Result<()> {
    if !bench.wants_group("model training step") {
        return Ok(());
    }
    let plan = Plan::for_trees(&[Tree::sequence(ids, &vec![true; ids.len()])]);
    let seeds = vec![-1.0 / plan.predictions.len() as f32; plan.predictions.len()];
    let mut optimizer = adamw(model)?;
    let mut grads = model.gradients()?;
    let mut step = 0;
    let mut failure = None;
    bench.run("model training step 512", "tokens/s", ids.len() as f64, &mut || {
        step += 1;
        failure = grads
            .zero()
            .and_then(|()| model.forward(&plan, 1.0, false))
            .and_then(|(_, saved)| model.backward(&plan, saved, &seeds, None, &mut grads))
            .and_then(|()| optimizer.step(model, &mut grads, 1e-6, step).map(drop))
            .err();
    })?;
    failure.map_or(Ok(()), Err)
}
