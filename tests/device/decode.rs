//! Steps of decoding that were recorded once: whatever comes and goes, the bits of the training forward, and few calls of the device.

use crate::emulator::{self, modes};
use crate::{bits, config, smallest, tiny, twins};
use sorft_native::model::config::{Family, ModelConfig};
use sorft_native::model::generate::{Completion, Engine, Event, Request, SamplingParams};
use sorft_native::model::lora::LoraConfig;
use sorft_native::model::transformer::Transformer;
use sorft_native::tensor::cuda::{Counts, Emulation};
use sorft_native::tensor::plan::{Plan, Tree};
use std::sync::Arc;

fn request(prompt: &[u32], n: usize, max_new_tokens: usize, temperature: f32) -> Request {
    let params = SamplingParams { n, max_new_tokens, temperature, ignore_eos: true, seed: 6, ..Default::default() };
    Request { prompt: prompt.into(), params: Arc::new(params), top_logprobs: 0 }
}

fn quick() -> Emulation {
    Emulation { check: false, ..Emulation::default() }
}

/// Steps until all requests have ended, with what each step that only decoded asked of the device.
fn run(engine: &mut Engine<'_>, model_counts: impl Fn() -> Counts) -> (Vec<Completion>, Vec<Counts>) {
    let (mut done, mut steps) = (Vec::new(), Vec::new());
    let mut goes_on = true;
    while goes_on {
        let before = model_counts();
        goes_on = engine
            .step(&mut |event| {
                if let Event::Done(c) = event {
                    done.push(c.clone());
                }
                true
            })
            .expect("a step");
        let after = model_counts();
        let of = |field: fn(&Counts) -> u64| field(&after) - field(&before);
        steps.push(Counts {
            launches: of(|c| c.launches),
            recorded: of(|c| c.recorded),
            graphs: of(|c| c.graphs),
            uploads: of(|c| c.uploads),
            downloads: of(|c| c.downloads),
            allocations: of(|c| c.allocations),
        });
    }
    done.sort_by_key(|c| (c.prompt_index, c.index));
    (done, steps)
}

/// What training computes for the answers of a prompt, shared by all.
fn trained(model: &Transformer, prompt: &[u32], answers: &[Completion], temperature: f32) -> Vec<f32> {
    let ids: Vec<Vec<u32>> = answers.iter().map(|c| c.ids.clone()).collect();
    model.forward(&Plan::for_trees(&[Tree::prompt_with_answers(prompt, &ids)]), temperature, false).expect("a forward pass").0.logprob
}

/// Sequences of many lengths and temperatures come, grow over the ends of pages and splits, end and are replaced, so that batches of one to five
/// rows and tables of several sizes are decoded, and the cache grows in between.
#[test]
fn whatever_comes_and_goes_the_bits_are_those_of_training() {
    let gpu = emulator::gpu(quick());
    let (_, model) = twins(&gpu, &ModelConfig { num_layers: 2, max_position_embeddings: 1024, ..smallest() }, 5);
    let requests = [(253, 2, 6), (3, 3, 5), (63, 1, 7), (64, 2, 3), (510, 1, 4), (1, 1, 9)];
    let prompt = |i: usize| tiny::ids(requests[i].0, i as u64);
    let temperature = |i: usize| 0.7 + 0.1 * i as f32;
    let mut engine = Engine::new(&model, None, 5);
    for (i, &(_, n, max)) in requests.iter().enumerate() {
        engine.add(i, request(&prompt(i), n, max, temperature(i))).expect("taken in");
    }
    let (done, steps) = run(&mut engine, || gpu.counts());
    assert!(steps.iter().map(|s| s.graphs).sum::<u64>() >= 9, "{steps:?}");
    for (i, &(_, n, _)) in requests.iter().enumerate() {
        let answers: Vec<Completion> = done.iter().filter(|c| c.prompt_index == i).cloned().collect();
        assert_eq!(answers.len(), n);
        let recorded: Vec<f32> = answers.iter().flat_map(|c| c.logprobs.clone()).collect();
        assert_eq!(bits(&recorded), bits(&trained(&model, &prompt(i), &answers, temperature(i))), "request {i}");
    }
}

/// Biases, norms of heads, groups of heads, adapters of every layer and of some: the launches that decoding makes one of have the bits of those that
/// training makes one by one.
#[test]
fn every_family_decodes_the_bits_of_training() {
    let all = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
    let cases = [
        (Family::Llama, None, modes()[4]),
        (Family::Qwen2, None, modes()[5]),
        (Family::Qwen3, None, modes()[3]),
        (Family::Qwen2, Some(&all[..]), modes()[6]),
        (Family::Qwen3, Some(&["k_proj", "up_proj"][..]), modes()[1]),
    ];
    for (family, targets, mode) in cases {
        let gpu = emulator::gpu(mode);
        let (_, mut model) = twins(&gpu, &config(family), 5);
        if let Some(targets) = targets {
            add_lora(&mut model, targets);
        }
        let mut engine = Engine::new(&model, None, 20);
        for (i, n) in [(0, 2), (1, 3)] {
            engine.add(i, request(&tiny::ids(7 * (i + 1), i as u64), n, 3, 0.9)).expect("taken in");
        }
        let (done, _) = run(&mut engine, || gpu.counts());
        for i in 0..2 {
            let answers: Vec<Completion> = done.iter().filter(|c| c.prompt_index == i).cloned().collect();
            let recorded: Vec<f32> = answers.iter().flat_map(|c| c.logprobs.clone()).collect();
            let trained = trained(&model, &tiny::ids(7 * (i + 1), i as u64), &answers, 0.9);
            assert_eq!(bits(&recorded), bits(&trained), "{family:?}, adapters {targets:?}");
        }
    }
}

/// An adapter of these layers that changes what they compute.
fn add_lora(model: &mut Transformer, targets: &[&str]) {
    let targets = targets.iter().map(|t| (*t).to_owned()).collect();
    model.add_lora(&LoraConfig { rank: 8, alpha: 16.0, targets }, 1).expect("an adapter");
    for p in model.adapter_params() {
        let numbers = model.export(&p.name).expect("read").into_iter().enumerate();
        let numbers: Vec<f32> = numbers.map(|(i, x)| x + ((i * 37 % 19) as f32 - 9.0) * 0.01).collect();
        model.import(&p.name, &numbers).expect("written");
    }
}

/// Launches of a step of decoding with models of one and of three layers: those of a layer, and the others.
#[test]
fn a_layer_takes_few_launches() {
    let gpu = emulator::gpu(quick());
    let all = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
    for (targets, want) in [(None, 9), (Some(&all[..]), 13)] {
        let launches = [1, 3].map(|layers| {
            let (_, mut model) = twins(&gpu, &ModelConfig { num_layers: layers, ..config(Family::Qwen3) }, 5);
            if let Some(targets) = targets {
                add_lora(&mut model, targets);
            }
            let mut engine = Engine::new(&model, None, 4);
            engine.add(0, request(&tiny::ids(5, 1), 4, 3, 1.0)).expect("taken in");
            run(&mut engine, || gpu.counts()).1.iter().map(|s| s.recorded).max().expect("steps")
        });
        assert_eq!(((launches[1] - launches[0]) / 2, (3 * launches[0] - launches[1]) / 2), (want, 5), "adapters {targets:?}");
    }
}

/// A step of decoding asks the device for one upload of all tables, one graph and one download of the tokens, and no memory, however many layers
/// there are.
#[test]
fn a_step_takes_few_calls() {
    let gpu = emulator::gpu(quick());
    let mut steady = Vec::new();
    for layers in [1, 3] {
        let (_, model) = twins(&gpu, &ModelConfig { num_layers: layers, ..smallest() }, 5);
        let mut engine = Engine::new(&model, None, 4);
        engine.add(0, request(&tiny::ids(5, 1), 4, 6, 1.0)).expect("taken in");
        let (_, steps) = run(&mut engine, || gpu.counts());
        println!("{layers} layers: {steps:?}");
        steady.push(steps[2]);
    }
    assert_eq!(steady[0], steady[1]);
    assert_eq!(steady[0], Counts { launches: 0, recorded: 0, graphs: 1, uploads: 1, downloads: 1, allocations: 0 });
}

/// More rows than the launches of few rows take.
#[test]
fn hundreds_of_answers_are_one_step() {
    let gpu = emulator::gpu(quick());
    let (_, model) = twins(&gpu, &ModelConfig { num_layers: 1, ..smallest() }, 5);
    let prompt = tiny::ids(3, 1);
    let mut engine = Engine::new(&model, None, 260);
    engine.add(0, request(&prompt, 257, 2, 0.9)).expect("taken in");
    let (done, steps) = run(&mut engine, || gpu.counts());
    assert_eq!((done.len(), steps.iter().map(|s| s.graphs).sum::<u64>()), (257, 1));
    let recorded: Vec<f32> = done.iter().flat_map(|c| c.logprobs.clone()).collect();
    assert_eq!(bits(&recorded), bits(&trained(&model, &prompt, &done, 0.9)));
}

/// Under filters, beside an answer that has none; nothing but tokens leaves the device.
#[test]
fn filtered_answers_have_the_bits_of_training() {
    let gpu = emulator::gpu(quick());
    let (_, model) = twins(&gpu, &smallest(), 5);
    let prompt = tiny::ids(9, 4);
    let mut engine = Engine::new(&model, None, 8);
    for (i, top_k) in [0, 7, 40].into_iter().enumerate() {
        let plain = request(&prompt, 2, 5, 0.8);
        let params = SamplingParams { top_k, top_p: if top_k == 7 { 0.8 } else { 1.0 }, ..(*plain.params).clone() };
        engine.add(i, Request { params: Arc::new(params), ..plain }).expect("taken in");
    }
    let (done, steps) = run(&mut engine, || gpu.counts());
    let decoding: Vec<_> = steps[1..].iter().filter(|s| s.graphs > 0).map(|s| (s.uploads, s.downloads)).collect();
    assert_eq!(decoding, [(1, 1); 3], "{steps:?}");
    for i in 0..3 {
        let answers: Vec<Completion> = done.iter().filter(|c| c.prompt_index == i).cloned().collect();
        let recorded: Vec<f32> = answers.iter().flat_map(|c| c.logprobs.clone()).collect();
        assert_eq!(bits(&recorded), bits(&trained(&model, &prompt, &answers, 0.8)), "request {i}");
    }
}
