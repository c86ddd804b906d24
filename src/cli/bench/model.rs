//! A whole model: the figures that are compared with other programs.

use super::{Bench, kernels};
use crate::Result;
use crate::model::flops::TrainingFlops;
use crate::model::generate::{Completion, Event, SamplingParams, generate};
use crate::model::lora::{LoraConfig, TARGETS};
use crate::model::optimizer::{AdamW, AdamWConfig};
use crate::model::transformer::{Adapter, Transformer};
use crate::model::weights;
use crate::tensor::Device;
use crate::tensor::cpu::Compute;
use crate::tensor::philox::Philox;
use crate::tensor::plan::{Plan, Tree};
use std::time::Instant;

/// How much work a call of each row is.
struct Sizes {
    /// Tokens decoded for each sample, after its first.
    decoded: usize,
    /// What is decoded together.
    decode: &'static [Decode],
    /// Sequences of a prefill and of a training step, and the tokens of each.
    sequences: (usize, usize),
    grpo: Grpo,
}

/// Samples that are decoded together.
struct Decode {
    name: &'static str,
    prompts: usize,
    /// Samples of each prompt.
    samples: usize,
    /// Tokens of each prompt.
    length: usize,
}

/// A GRPO step.
struct Grpo {
    prompts: usize,
    /// Answers to each.
    group: usize,
    /// Tokens of a prompt.
    prompt: usize,
    /// Tokens of an answer.
    answer: usize,
    /// Prompts, with their answers, that are trained on at one time.
    at_once: usize,
}

const CPU: Sizes = Sizes {
    decoded: 64,
    decode: &[
        Decode { name: "model decode alone", prompts: 1, samples: 1, length: 128 },
        Decode { name: "model decode at batch 16", prompts: 1, samples: 16, length: 128 },
    ],
    sequences: (1, 512),
    grpo: Grpo { prompts: 2, group: 8, prompt: 256, answer: 64, at_once: 2 },
};

const GPU: Sizes = Sizes {
    decoded: 64,
    decode: &[
        Decode { name: "model decode alone", prompts: 1, samples: 1, length: 1024 },
        Decode { name: "model decode at batch 64", prompts: 64, samples: 1, length: 1024 },
        Decode { name: "model decode at batch 256", prompts: 256, samples: 1, length: 1024 },
        Decode { name: "model decode, a group of 16 on 4096", prompts: 1, samples: 16, length: 4096 },
        Decode { name: "model decode, 16 prompts of 4096", prompts: 16, samples: 1, length: 4096 },
    ],
    sequences: (16, 1024),
    grpo: Grpo { prompts: 32, group: 16, prompt: 1024, answer: 512, at_once: 1 },
};

/// For the sake of running at all.
const EMULATOR: Sizes = Sizes {
    decoded: 2,
    decode: &[
        Decode { name: "model decode alone", prompts: 1, samples: 1, length: 4 },
        Decode { name: "model decode at batch 2", prompts: 2, samples: 1, length: 4 },
    ],
    sequences: (2, 8),
    grpo: Grpo { prompts: 2, group: 2, prompt: 4, answer: 3, at_once: 1 },
};

/// Rank and alpha of the adapter that is trained.
const LORA: (usize, f32) = (16, 32.0);

pub(super) fn run(bench: &mut Bench, spec: &str, (device, compute): (&Device, Compute), emulated: bool) -> Result<()> {
    let sizes = match device {
        Device::Cpu => &CPU,
        Device::Cuda(_) if emulated => &EMULATOR,
        Device::Cuda(_) => &GPU,
    };
    let mut model = Transformer::load(&weights::open(spec)?, device, compute)?;
    let tokens = Tokens { random: Philox::new(1, 1), vocab: model.config().vocab_size as f64 };
    for row in sizes.decode {
        decode(bench, &model, device, (row, sizes.decoded), &tokens)?;
    }
    let (n, length) = sizes.sequences;
    let sequences: Vec<Vec<u32>> = (0..n).map(|i| tokens.sequence(i, length)).collect();
    let size = if n == 1 { length.to_string() } else { format!("{n}x{length}") };
    prefill(bench, &model, &format!("model prefill {size}"), &sequences)?;
    train(bench, &mut model, &format!("model training step {size}"), &sequences)?;
    grpo_step(bench, &mut model, &sizes.grpo, &tokens)?;
    let name = format!("model LoRA training step {size}");
    if bench.wants_group(&name) {
        let (rank, alpha) = LORA;
        model.add_lora(&LoraConfig { rank, alpha, targets: TARGETS.map(str::to_owned).into() }, 1)?;
        train(bench, &mut model, &name, &sequences)?;
    }
    Ok(())
}

/// Random tokens.
struct Tokens {
    random: Philox,
    vocab: f64,
}

impl Tokens {
    fn sequence(&self, number: usize, length: usize) -> Vec<u32> {
        (0..length).map(|i| (self.random.uniform(i as u64, number as u64) * self.vocab) as u32).collect()
    }
}

/// Bytes of a key and a value of a position, in all layers.
fn kv_bytes(model: &Transformer, width: usize) -> usize {
    let c = model.config();
    2 * width * c.num_layers * c.num_kv_heads * c.head_dim
}

/// Tokens after the prompt and the first token of each sample.
fn decode(bench: &mut Bench, model: &Transformer, device: &Device, (row, decoded): (&Decode, usize), tokens: &Tokens) -> Result<()> {
    let &Decode { name, prompts, samples, length } = row;
    if length + decoded + 1 > model.config().max_position_embeddings || !bench.wants_group(name) {
        return Ok(());
    }
    let batch = prompts * samples;
    let params = SamplingParams { n: samples, max_new_tokens: decoded + 1, ignore_eos: true, ..Default::default() };
    let prompts: Vec<Vec<u32>> = (0..prompts).map(|i| tokens.sequence(i, length)).collect();
    // Every token reads all weights once, each prompt's keys and values once, and each sample's own: the floor, at the rate that memory has
    // just now.
    let (width, rate) = if device.is_cpu() { (4, kernels::read_rate(0.5)) } else { (2, bench.peaks.1) };
    let weight = if model.compute() == Compute::Bf16 { 2 } else { width };
    let weights: usize = model.base_params().iter().map(|p| weight * p.shape.iter().product::<usize>()).sum();
    let history = prompts.len() * length + batch * decoded.div_ceil(2);
    let floor = batch as f64 * rate * 1e9 / (weights + history * kv_bytes(model, width)) as f64;
    let mut failure = None;
    bench.run_timed(name, "tokens/s", (batch * decoded) as f64, Some(floor), &mut || {
        let (mut first, mut last) = (None, (0, Instant::now()));
        let mut watch = |event: Event<'_>| {
            if let Event::Progress(tokens) = event {
                last = (tokens, Instant::now());
                first = first.or((tokens >= batch).then_some(last));
            }
            true
        };
        failure = generate(model, None, &prompts, &params, batch, &mut watch).err();
        // Seconds of all tokens after the first of each sample, by those that were watched.
        first.map_or(0.0, |first| (last.1 - first.1).as_secs_f64() * (batch * decoded) as f64 / (last.0 - first.0).max(1) as f64)
    })?;
    failure.map_or(Ok(()), Err)
}

/// Only the last token of each sequence is predicted, as in the prefill of generation.
fn prefill(bench: &mut Bench, model: &Transformer, name: &str, sequences: &[Vec<u32>]) -> Result<()> {
    let tree = |ids: &Vec<u32>| Tree::sequence(ids, &(0..ids.len()).map(|i| i + 1 == ids.len()).collect::<Vec<_>>());
    let plan = Plan::for_trees(&sequences.iter().map(tree).collect::<Vec<_>>());
    let mut failure = None;
    bench.run(name, "tokens/s", plan.num_tokens() as f64, &mut || failure = model.evaluate(&plan, 1.0, Adapter::On).err())?;
    failure.map_or(Ok(()), Err)
}

/// What `train` does at the defaults of its optimizer.
fn adamw(model: &Transformer) -> Result<AdamW> {
    let config = AdamWConfig { weight_decay: 0.01, ..AdamWConfig::default() };
    AdamW::new(model, config)
}

/// Forward, backward and AdamW over all that is trained, every token a target. The floor of a full step is its operations at the rate of
/// products; the gradients that an adapter's training does without are not counted apart, so it has none.
fn train(bench: &mut Bench, model: &mut Transformer, name: &str, sequences: &[Vec<u32>]) -> Result<()> {
    if !bench.wants_group(name) {
        return Ok(());
    }
    let plan = Plan::for_trees(&sequences.iter().map(|ids| Tree::sequence(ids, &vec![true; ids.len()])).collect::<Vec<_>>());
    let seeds = vec![-1.0 / plan.predictions.len() as f32; plan.predictions.len()];
    let flops = TrainingFlops::of(model.config(), &model.base_params(), &plan).total();
    let tokens = plan.num_tokens() as f64;
    let floor = model.lora().is_none().then(|| tokens * bench.peaks.0 * 1e9 / flops);
    let mut optimizer = adamw(model)?;
    let mut grads = model.gradients()?;
    let mut step = 0;
    let mut failure = None;
    bench.run_timed(name, "tokens/s", tokens, floor, &mut || {
        step += 1;
        let start = Instant::now();
        failure = grads
            .zero()
            .and_then(|()| model.forward(&plan, 1.0, false))
            .and_then(|(_, saved)| model.backward(&plan, saved, &seeds, None, &mut grads))
            .and_then(|()| optimizer.step(model, &mut grads, 1e-6, step).map(drop))
            .err();
        start.elapsed().as_secs_f64()
    })?;
    failure.map_or(Ok(()), Err)
}

/// A whole GRPO step: answers of fixed length sampled at temperature 1, a made-up advantage for each, one update of all parameters.
fn grpo_step(bench: &mut Bench, model: &mut Transformer, size: &Grpo, tokens: &Tokens) -> Result<()> {
    let name = format!("model GRPO step {}x{}, {}+{}", size.prompts, size.group, size.prompt, size.answer);
    if size.prompt + size.answer > model.config().max_position_embeddings || !bench.wants_group(&name) {
        return Ok(());
    }
    let prompts: Vec<Vec<u32>> = (0..size.prompts).map(|p| tokens.sequence(p, size.prompt)).collect();
    let mut optimizer = adamw(model)?;
    let mut grads = model.gradients()?;
    let mut step = 0;
    let mut failure = None;
    let total = size.prompts * size.group * size.answer;
    bench.run(&name, "tokens/s", total as f64, &mut || {
        step += 1;
        let params = SamplingParams { n: size.group, max_new_tokens: size.answer, ignore_eos: true, step, ..Default::default() };
        let sampled = generate(model, None, &prompts, &params, size.prompts * size.group, &mut |_| true);
        let mut update = |completions: Vec<Completion>| {
            grads.zero()?;
            for (prompts, completions) in prompts.chunks(size.at_once).zip(completions.chunks(size.at_once * size.group)) {
                let tree = |(p, answers): (&Vec<u32>, &[Completion])| {
                    Tree::prompt_with_answers(p, &answers.iter().map(|c| c.ids.clone()).collect::<Vec<_>>())
                };
                let plan = Plan::for_trees(&prompts.iter().zip(completions.chunks(size.group)).map(tree).collect::<Vec<_>>());
                let seed = |i: usize| if (i / size.answer).is_multiple_of(2) { 1.0 } else { -1.0 } / total as f32;
                let seeds: Vec<f32> = (0..plan.predictions.len()).map(seed).collect();
                let (_, saved) = model.forward(&plan, 1.0, false)?;
                model.backward(&plan, saved, &seeds, None, &mut grads)?;
            }
            optimizer.step(model, &mut grads, 1e-6, step)
        };
        failure = sampled.and_then(&mut update).err();
    })?;
    failure.map_or(Ok(()), Err)
}
