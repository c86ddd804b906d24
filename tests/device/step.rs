//! Sampling with the cache, and whole steps of reinforcement learning, on the device.

use crate::emulator::{self, modes};
use crate::support::{Recorder, config as settings, files, items, sequences, train};
use crate::{bits, error, smallest, tiny, twins};
use sorft_native::model::config::{Family, ModelConfig};
use sorft_native::model::generate::{Completion, SamplingParams, generate};
use sorft_native::model::lora::LoraConfig;
use sorft_native::model::transformer::Transformer;
use sorft_native::tensor::cuda::Emulation;
use sorft_native::tensor::plan::{Plan, Tree};

/// Prompts that end inside, before and behind a page of 64.
fn prompts() -> Vec<Vec<u32>> {
    [3, 62, 64].iter().map(|n| tiny::ids(*n, *n as u64)).collect()
}

fn sample(model: &Transformer, params: &SamplingParams, max_batch: usize) -> Vec<Completion> {
    generate(model, None, &prompts(), params, max_batch, &mut |_| true).expect("answers")
}

/// The log-probabilities that training computes for sampled answers, prompts shared by their groups.
fn trained(model: &Transformer, answers: &[Completion], n: usize, temperature: f32) -> Vec<f32> {
    let ids = |group: &[Completion]| group.iter().map(|c| c.ids.clone()).collect::<Vec<_>>();
    let trees: Vec<Tree> = prompts().iter().zip(answers.chunks(n)).map(|(p, group)| Tree::prompt_with_answers(p, &ids(group))).collect();
    model.forward(&Plan::for_trees(&trees), temperature, false).expect("a forward pass").0.logprob
}

/// What is recorded while sampling is what training computes, bit for bit; and close to what the processor computes.
#[test]
fn sampled_logprobs_are_those_of_the_training_forward() {
    let params = SamplingParams { n: 2, max_new_tokens: 5, ignore_eos: true, temperature: 0.9, seed: 4, ..Default::default() };
    let mut first = None;
    for (i, mode) in modes().into_iter().enumerate() {
        let shape = ModelConfig { num_layers: 1 + i % 2, ..smallest() };
        let (cpu, device) = twins(&emulator::gpu(mode), &shape, 5);
        let answers = sample(&device, &params, 6);
        let recorded: Vec<f32> = answers.iter().flat_map(|c| c.logprobs.clone()).collect();
        assert_eq!(bits(&recorded), bits(&trained(&device, &answers, 2, 0.9)), "{mode:?}");
        assert!(error(&recorded, &trained(&cpu, &answers, 2, 0.9)) < 1e-2, "{mode:?}");
        if i % 2 == 0 {
            let got: Vec<_> = answers.into_iter().map(|c| (c.ids, bits(&c.logprobs))).collect();
            assert!(*first.get_or_insert(got.clone()) == got, "{mode:?}: other answers");
        }
    }
}

/// Answers do not depend on how many are decoded together, filters or not.
#[test]
fn answers_do_not_depend_on_the_batch() {
    let gpu = emulator::gpu(Emulation { check: false, ..Emulation::default() });
    let (_, device) = twins(&gpu, &smallest(), 5);
    let plain = SamplingParams { n: 2, max_new_tokens: 4, ignore_eos: true, ..Default::default() };
    for params in [plain.clone(), SamplingParams { temperature: 0.0, ..plain.clone() }, SamplingParams { top_k: 20, top_p: 0.9, ..plain }] {
        let want = sample(&device, &params, 6);
        for max_batch in [1, 4] {
            assert_eq!(want, sample(&device, &params, max_batch), "{max_batch} together");
        }
        let temperature = if params.temperature == 0.0 { 1.0 } else { params.temperature };
        let recorded: Vec<f32> = want.iter().flat_map(|c| c.logprobs.clone()).collect();
        assert_eq!(bits(&recorded), bits(&trained(&device, &want, 2, temperature)));
    }
}

const GRPO: &str = "algorithm = \"grpo\"\ngroup_size = 3\nmax_new_tokens = 3\noptim.lr = 5e-3\noptim.schedule = \"constant\"\n";

/// A whole step by the trainer: sampling, rewards, advantages, loss, backward, clipping, AdamW. The first ratio is exactly one; every schedule
/// leaves the same files, and so does a chip without the kernels that are for Hopper.
#[test]
fn a_whole_grpo_step_is_the_same_under_every_schedule() {
    let shape = smallest();
    let mut first = None;
    for mode in modes().into_iter().chain([Emulation { compute_capability: (8, 0), ..Emulation::default() }]) {
        let config = settings(&format!("{GRPO}batch_prompts = 1\nsteps = 1\n"));
        let (dir, mut hooks) = (tempfile::tempdir().expect("a folder"), Recorder::default());
        let (_, device) = twins(&emulator::gpu(mode), &shape, 5);
        let before = device.export("model.norm.weight").expect("read");
        let trained = train(&config, &[items(1)], device, dir.path(), false, &mut hooks).expect("a step");
        assert!(trained.export("model.norm.weight").expect("read") != before, "weights move");
        for line in &hooks.lines {
            assert_eq!(line["ratio_max"].as_f64(), Some(1.0), "{mode:?}");
            assert!(line["grad_norm"].as_f64().is_some_and(|g| g.is_finite() && g > 0.0), "{line:?}");
        }
        let got = files(dir.path());
        assert!(*first.get_or_insert(got.clone()) == got, "{mode:?}: other files");
    }
}

/// Steps after the first sample from weights that the device has updated: with two layers, in micro-batches to the same files, with an adapter.
#[test]
fn later_steps_still_begin_with_a_ratio_of_one() {
    let gpu = emulator::gpu(Emulation { check: false, ..Emulation::default() });
    let lora = LoraConfig { rank: 8, alpha: 16.0, targets: vec!["q_proj".into(), "down_proj".into()] };
    let mut first = None;
    for (lora, extra) in [(None, ""), (None, "microbatch_tokens = 60\n"), (Some(lora), "")] {
        let config = settings(&format!("{GRPO}batch_prompts = 2\nsteps = 2\n{extra}"));
        let (dir, mut hooks) = (tempfile::tempdir().expect("a folder"), Recorder::default());
        let (_, mut device) = twins(&gpu, &ModelConfig { num_layers: 2, ..smallest() }, 5);
        if let Some(lora) = &lora {
            device.add_lora(lora, 3).expect("an adapter");
        }
        train(&config, &[items(2)], device, dir.path(), false, &mut hooks).expect("two steps");
        assert_eq!(hooks.lines.len(), 2);
        assert!(hooks.lines.iter().all(|line| line["ratio_max"].as_f64() == Some(1.0)), "{:?}", hooks.lines);
        let got = files(dir.path());
        assert!(lora.is_some() || *first.get_or_insert(got.clone()) == got, "micro-batches: other files");
    }
}

/// A step of the device's model and of the processor's on the same sequences: the same loss and norm, nearly the same weights.
#[test]
fn a_supervised_step_is_the_processor_s() {
    let config = settings("batch_prompts = 2\nsteps = 2\noptim.lr = 1e-3\noptim.schedule = \"constant\"\n");
    let gpu = emulator::gpu(Emulation { check: false, ..Emulation::default() });
    let (cpu, device) = twins(&gpu, &crate::config(Family::Qwen2), 7);
    let run = |model: Transformer| {
        let (dir, mut hooks) = (tempfile::tempdir().expect("a folder"), Recorder::default());
        let start = model.export("model.layers.0.mlp.up_proj.weight").expect("read");
        let model = train(&config, &[sequences(2)], model, dir.path(), false, &mut hooks).expect("a step");
        let end = model.export("model.layers.0.mlp.up_proj.weight").expect("read");
        let moved: Vec<f32> = end.iter().zip(start).map(|(a, b)| a - b).collect();
        (hooks.lines, moved)
    };
    let ((cpu, want), (device, got)) = (run(cpu), run(device));
    for (a, b) in device.iter().zip(&cpu) {
        for key in ["loss", "grad_norm", "entropy"] {
            let (a, b) = (a[key].as_f64().expect(key), b[key].as_f64().expect(key));
            assert!((a / b - 1.0).abs() < 2e-2, "{key}: {a} against {b}");
        }
    }
    // AdamW's first steps follow the signs of gradients, small ones among them.
    assert!(error(&got, &want) < 0.2, "{}", error(&got, &want));
}

/// PPO's critic reads hidden states of a device and sends its gradient back, from the policy's trunk or a model of its own.
#[test]
fn ppo_runs_with_a_critic_on_the_device() {
    let gpu = emulator::gpu(Emulation { check: false, ..Emulation::default() });
    for kind in ["trunk", "full"] {
        let ppo = "algorithm = \"ppo\"\nbatch_prompts = 2\ngroup_size = 2\nmax_new_tokens = 3\noptim.lr = 1e-3\noptim.warmup = 0\n";
        let config = settings(&format!("{ppo}critic.kind = \"{kind}\"\nsteps = 2\n"));
        let (dir, mut hooks) = (tempfile::tempdir().expect("a folder"), Recorder::default());
        let (_, device) = twins(&gpu, &smallest(), 5);
        train(&config, &[items(2)], device, dir.path(), false, &mut hooks).expect("two steps");
        assert!(hooks.lines.iter().all(|line| line["ratio_max"].as_f64() == Some(1.0)), "{kind}: {:?}", hooks.lines);
        assert!(hooks.lines.iter().all(|line| line["value_loss"].as_f64().is_some_and(f64::is_finite)), "{kind}");
    }
}
