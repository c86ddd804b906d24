//! Numbers from elsewhere: the same tiny models in PyTorch (transformers, peft) and here.
//!
//! `make_fixtures.py` made the fixtures, `README.md` says with which versions and how; `cargo test --test parity -- --nocapture` prints how
//! close each number came. `SORFT_PARITY_FIXTURES=FOLDER` runs the same tests on other models and sequences that the script wrote there.

mod compare;
mod fixture;
mod objectives;

use compare::{Report, max_error, max_relative, relative_error, sketch};
use fixture::{Fixture, Line, Steps};
use sorft_native::model::generate::{SamplingParams, generate};
use sorft_native::model::optimizer::{AdamW, AdamWConfig};
use sorft_native::model::transformer::Adapter;
use sorft_native::model::weights;
use sorft_native::model::{Gradients, Transformer};
use sorft_native::tensor::Device;
use sorft_native::tensor::plan::{Plan, Tree};
use std::path::Path;

/// Log-probabilities: absolute.
const LOGPROB_LIMIT: f64 = 1e-4;

/// Losses and gradient norms over ten optimizer steps: relative.
const STEP_LIMIT: f64 = 1e-4;

/// Log-probabilities after those steps: absolute. Wider, since AdamW's first steps have the size of the learning rate whatever the
/// gradient's: numbers whose gradient is almost zero go up or down by rounding alone.
const AFTER_LIMIT: f64 = 2e-3;

/// A tensor's gradient may be off by this many times the error of PyTorch's own f32 gradient ...
const TORCH_ERRORS: f64 = 2.0;

/// ... or by this much where PyTorch happens to be closer than f32 sums of this length are: the rounding of the stored reference to f32
/// (6e-8 a number) on both sides.
const GRADIENT_FLOOR: f64 = 1.2e-7;

fn load(folder: &Path) -> Transformer {
    let files = weights::open(folder.to_str().expect("a UTF-8 path")).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    Transformer::load(&files, &Device::Cpu, Default::default()).unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
}

/// The fixture's model, with its adapter if it is one.
fn load_adapted(adapter: &Fixture) -> Transformer {
    let mut model = load(adapter.base());
    let (config, tensors) = weights::load_peft(&adapter.path).unwrap_or_else(|e| panic!("{}: {e}", adapter.name));
    model.add_saved_lora(&config, &tensors).unwrap_or_else(|e| panic!("{}: {e}", adapter.name));
    model
}

/// All models, then all adapters on theirs, one at a time.
fn everything() -> impl Iterator<Item = (Fixture, Transformer)> {
    let bases = fixture::models().into_iter().map(|f| {
        let model = load(&f.path);
        (f, model)
    });
    let adapted = fixture::adapters().into_iter().map(|f| {
        let model = load_adapted(&f);
        (f, model)
    });
    bases.chain(adapted)
}

/// Every token is a target.
fn scoring_plan(ids: &[u32]) -> Plan {
    Plan::for_trees(&[Tree::sequence(ids, &vec![true; ids.len()])])
}

fn training_plan(lines: &[Line]) -> Plan {
    let trees: Vec<Tree> = lines.iter().map(|line| Tree::sequence(&line.ids, &line.targets())).collect();
    Plan::for_trees(&trees)
}

/// The mean loss over all targets of the batch; its gradient is added to `grads`.
fn sft(model: &Transformer, lines: &[Line], checkpointing: bool, grads: &mut Gradients) -> f64 {
    let plan = training_plan(lines);
    let (stats, saved) = model.forward(&plan, 1.0, checkpointing).expect("forward");
    let count = stats.logprob.len();
    let d_logprob = vec![(-1.0 / count as f64) as f32; count];
    model.backward(&plan, saved, &d_logprob, None, grads).expect("backward");
    -stats.logprob.iter().map(|&x| f64::from(x)).sum::<f64>() / count as f64
}

#[test]
fn logprobs_are_those_of_transformers() {
    let mut report = Report::default();
    for (f, model) in everything() {
        for (i, line) in f.reference.lines.iter().enumerate() {
            let plan = scoring_plan(&line.ids);
            let got = model.evaluate(&plan, 1.0, Adapter::On).expect("evaluate").logprob;
            for precision in ["f32", "f64"] {
                let want = f.array(&format!("logprobs.{precision}.{i}"));
                let what = format!("{}: log-probabilities of {} tokens, against {precision}", f.name, line.ids.len());
                report.at_most(&what, max_error(&got, &want), LOGPROB_LIMIT);
            }
        }
        let cool = model.evaluate(&scoring_plan(&f.reference.lines[0].ids), 0.7, Adapter::On).expect("evaluate").logprob;
        report.at_most(&format!("{}: at temperature 0.7", f.name), max_error(&cool, &f.array("logprobs.cool")), LOGPROB_LIMIT);
    }
    report.finish();
}

#[test]
fn greedy_continuations_are_those_of_transformers() {
    let mut report = Report::default();
    for f in fixture::models().into_iter().filter(|f| !f.reference.greedy.is_empty()) {
        let model = load(&f.path);
        let greedy = &f.reference.greedy;
        let prompts: Vec<Vec<u32>> = greedy.iter().map(|g| g.prompt.clone()).collect();
        let params = SamplingParams { temperature: 0.0, max_new_tokens: greedy[0].ids.len(), ..SamplingParams::default() };
        let got = generate(&model, None, &prompts, &params, 2, &mut |_| true).expect("generate");
        report.check(got.len() == greedy.len(), || format!("{}: {} answers to {} prompts", f.name, got.len(), greedy.len()));
        for (got, want) in got.iter().zip(greedy) {
            let same = got.ids.iter().zip(&want.ids).take_while(|(a, b)| a == b).count();
            println!("{}: {same} of {} greedy tokens after {} tokens", f.name, want.ids.len(), want.prompt.len());
            report.check(got.ids == want.ids, || format!("{}: greedy {:?} where transformers has {:?}", f.name, got.ids, want.ids));
        }
    }
    report.finish();
}

#[test]
fn gradients_are_at_most_twice_as_far_from_f64_as_pytorchs() {
    let mut report = Report::default();
    for (f, model) in everything() {
        let want = &f.reference.sft;
        let mut grads = model.gradients().expect("gradients");
        let loss = sft(&model, &f.reference.lines, false, &mut grads);
        // 1e-6, or what PyTorch's f32 allows itself on a real model.
        let limit = |f32: f64, f64: f64| (TORCH_ERRORS * (f32 / f64 - 1.0).abs()).max(1e-6);
        report.at_most(&format!("{}: SFT loss", f.name), (loss / want.loss - 1.0).abs(), limit(want.loss_f32, want.loss));
        let norm = grads.norm().expect("a norm");
        let what = format!("{}: gradient norm", f.name);
        report.at_most(&what, (norm / want.grad_norm - 1.0).abs(), limit(want.grad_norm_f32, want.grad_norm));
        let names: Vec<String> = model.trainable().into_iter().map(|p| p.name).collect();
        for name in want.tensors.keys().filter(|n| !names.contains(n)) {
            report.check(false, || format!("{}: {name} is trained by PyTorch and not here", f.name));
        }
        for info in model.trainable() {
            let Some(reference) = want.tensors.get(&info.name) else {
                report.check(false, || format!("{}: {} is trained here and not by PyTorch", f.name, info.name));
                continue;
            };
            report.check(info.shape == reference.shape, || format!("{}: {} has shape {:?}", f.name, info.name, info.shape));
            let got = grads.export(&info.name).expect("read").expect("a trained tensor has a gradient");
            let got = if reference.sketched { sketch(&got) } else { got.into_iter().map(f64::from).collect() };
            let error = relative_error(&got, &f.array(&format!("grad.{}", info.name)));
            let limit = (TORCH_ERRORS * reference.torch_f32_error).max(GRADIENT_FLOOR);
            report.at_most(&format!("{}: gradient of {}", f.name, info.name), error, limit);
        }
    }
    report.finish();
}

#[test]
fn ten_steps_of_adamw_are_those_of_pytorch() {
    let mut report = Report::default();
    for (f, mut model) in everything() {
        // Activation checkpointing computes the same again: use it where the fixture is an adapter, to cover both ways.
        let checkpointing = model.lora().is_some();
        let Some(steps) = &f.reference.steps else { continue };
        let (losses, norms) = train(&mut model, steps, checkpointing);
        report.at_most(&format!("{}: losses of {} steps", f.name, losses.len()), max_relative(&losses, &steps.loss), STEP_LIMIT);
        report.at_most(&format!("{}: gradient norms", f.name), max_relative(&norms, &steps.grad_norm), STEP_LIMIT);
        let after = model.evaluate(&scoring_plan(&steps.lines[0].ids), 1.0, Adapter::On).expect("evaluate").logprob;
        report.at_most(&format!("{}: log-probabilities after them", f.name), max_error(&after, &steps.logprobs_after), AFTER_LIMIT);
    }
    report.finish();
}

/// One AdamW step a line; losses and gradient norms before clipping.
fn train(model: &mut Transformer, steps: &Steps, checkpointing: bool) -> (Vec<f64>, Vec<f64>) {
    let config = AdamWConfig {
        betas: steps.betas,
        eps: steps.eps,
        weight_decay: steps.weight_decay,
        decay_norms_and_biases: false,
        max_grad_norm: steps.max_grad_norm,
        ..AdamWConfig::default()
    };
    let mut optimizer = AdamW::new(model, config).expect("moments");
    let mut grads = model.gradients().expect("gradients");
    let one = |(t, (line, &lr)): (usize, (&Line, &f64))| {
        grads.zero().expect("zeroed");
        let loss = sft(model, std::slice::from_ref(line), checkpointing, &mut grads);
        let norm = optimizer.step(model, &mut grads, lr, t as u64 + 1).expect("step");
        (loss, norm)
    };
    steps.lines.iter().zip(&steps.lr).enumerate().map(one).unzip()
}

#[test]
fn the_base_is_the_reference_policy_of_its_adapter() {
    let mut report = Report::default();
    for f in fixture::adapters() {
        let (base, adapted) = (load(f.base()), load_adapted(&f));
        for line in &f.reference.lines {
            let plan = scoring_plan(&line.ids);
            let want = base.evaluate(&plan, 1.0, Adapter::On).expect("evaluate").logprob;
            let off = adapted.evaluate(&plan, 1.0, Adapter::Off).expect("evaluate").logprob;
            report.check(off == want, || format!("{}: with the adapter off the base's numbers change", f.name));
            let on = adapted.evaluate(&plan, 1.0, Adapter::On).expect("evaluate").logprob;
            report.check(on != want, || format!("{}: the adapter changes nothing", f.name));
        }
    }
    report.finish();
}
