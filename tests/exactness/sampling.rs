//! Log-probabilities recorded while sampling are those of the training forward, whatever else is in the batch.

use crate::tiny;
use sorft_native::model::config::Family;
use sorft_native::model::generate::{Completion, Engine, Event, Request, SamplingParams, generate};
use sorft_native::model::transformer::{Adapter, Transformer};
use sorft_native::tensor::cpu::Compute;
use sorft_native::tensor::plan::{Plan, Tree};
use std::sync::Arc;

fn sample(model: &Transformer, prompts: &[Vec<u32>], params: &SamplingParams, max_batch: usize) -> Vec<Completion> {
    generate(model, None, prompts, params, max_batch, &mut |_| true).unwrap()
}

fn prompts() -> Vec<Vec<u32>> {
    [70, 1, 64, 130, 63].iter().enumerate().map(|(i, &n)| tiny::ids(n, 40 + i as u64)).collect()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn sampled_logprobs_are_those_of_training() {
    let families = [Family::Llama, Family::Qwen2, Family::Qwen3];
    for (family, compute) in families.into_iter().flat_map(|family| [(family, Compute::F32), (family, Compute::Bf16)]) {
        let model = tiny::model_in(compute, tiny::config(family), 9);
        for temperature in [1.0, 0.7] {
            let params = SamplingParams { n: 4, max_new_tokens: 90, temperature, seed: 3, ..Default::default() };
            let prompts = prompts();
            let answers = sample(&model, &prompts, &params, 7);
            assert_eq!(answers.len(), prompts.len() * 4);
            assert!(answers.iter().any(|a| a.ids.len() > 70), "answers long enough to cross a page");
            let trees: Vec<Tree> = (0..prompts.len())
                .map(|i| {
                    Tree::prompt_with_answers(&prompts[i], &answers[i * 4..i * 4 + 4].iter().map(|a| a.ids.clone()).collect::<Vec<_>>())
                })
                .collect();
            let recorded: Vec<f32> = answers.iter().flat_map(|a| a.logprobs.clone()).collect();
            let (trained, _) = model.forward(&Plan::for_trees(&trees), temperature, false).unwrap();
            assert_eq!(bits(&recorded), bits(&trained.logprob), "shared prompts, one batch");
            for answer in &answers {
                let alone = Tree::prompt_with_answers(&prompts[answer.prompt_index], std::slice::from_ref(&answer.ids));
                let stats = model.evaluate(&Plan::for_trees(&[alone]), temperature, Adapter::On).unwrap();
                assert_eq!(bits(&answer.logprobs), bits(&stats.logprob), "each alone");
                let mut whole = prompts[answer.prompt_index].clone();
                whole.extend(&answer.ids);
                let sequence = Tree::sequence(&whole, &vec![true; whole.len()]);
                let stats = model.evaluate(&Plan::for_trees(&[sequence]), temperature, Adapter::On).unwrap();
                assert_eq!(bits(&answer.logprobs), bits(&stats.logprob[stats.logprob.len() - answer.ids.len()..]), "one sequence");
            }
        }
    }
}

#[test]
fn answers_do_not_depend_on_batch_neighbours_or_threads() {
    for compute in [Compute::F32, Compute::Bf16] {
        answers_are_their_own(&tiny::model_in(compute, tiny::config(Family::Qwen2), 9));
    }
}

fn answers_are_their_own(model: &Transformer) {
    let params = SamplingParams { n: 3, max_new_tokens: 40, seed: 5, top_p: 0.9, ..Default::default() };
    let prompts = prompts();
    let want = sample(model, &prompts, &params, 100);
    for max_batch in [1, 2, 5] {
        assert_eq!(want, sample(model, &prompts, &params, max_batch));
    }
    for threads in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        assert_eq!(want, pool.install(|| sample(model, &prompts, &params, 4)));
    }
    let last = sample(model, &prompts[4..], &SamplingParams { n: 1, ..params.clone() }, 1);
    assert_eq!((&last[0].ids, &last[0].logprobs), (&want[12].ids, &want[12].logprobs));
    assert_ne!(want, sample(model, &prompts, &SamplingParams { seed: 6, ..params.clone() }, 5));
    assert_ne!(want, sample(model, &prompts, &SamplingParams { step: 1, ..params }, 5));
}

#[test]
fn greedy_takes_the_likeliest_token() {
    let model = tiny::model(tiny::config(Family::Llama), 2);
    let prompts = prompts()[..2].to_vec();
    let params = SamplingParams { max_new_tokens: 4, temperature: 0.0, ..Default::default() };
    for a in sample(&model, &prompts, &params, 3) {
        for (i, id) in a.ids.iter().enumerate() {
            let mut history = prompts[a.prompt_index].clone();
            history.extend(&a.ids[..i]);
            let best = |next: u32| {
                let tree = Tree::prompt_with_answers(&history, &[vec![next]]);
                model.evaluate(&Plan::for_trees(&[tree]), 1.0, Adapter::On).unwrap().logprob[0]
            };
            let top = (0..301).map(best).fold(f32::NEG_INFINITY, f32::max);
            assert_eq!(best(*id).to_bits(), top.to_bits());
        }
    }
}

#[test]
fn limits_are_kept() {
    let model = tiny::model(tiny::config(Family::Llama), 2);
    let params = SamplingParams { max_new_tokens: 0, n: 2, ..Default::default() };
    let none = sample(&model, &[vec![5, 6]], &params, 3);
    assert!(none.len() == 2 && none.iter().all(|c| c.ids.is_empty()));
    let nearly_full = tiny::ids(510, 1);
    let params = SamplingParams { max_new_tokens: 50, n: 2, ..Default::default() };
    assert!(sample(&model, &[nearly_full], &params, 3).iter().all(|c| c.ids.len() <= 2));
    let error = generate(&model, None, &[tiny::ids(513, 1)], &params, 1, &mut |_| true).unwrap_err();
    assert!(error.to_string().contains("513 tokens"), "{error}");
    assert!(generate(&model, None, &[vec![]], &params, 1, &mut |_| true).is_err());
    assert!(generate(&model, None, &[vec![301]], &params, 1, &mut |_| true).is_err());
}

/// Steps until all requests have ended, or `steps` were taken; adds finished answers to `done`.
fn run(engine: &mut Engine<'_>, steps: usize, done: &mut Vec<Completion>) {
    let mut on_event = |event: Event<'_>| {
        if let Event::Done(c) = event {
            done.push(c.clone());
        }
        true
    };
    for _ in 0..steps {
        if !engine.step(&mut on_event).unwrap() {
            break;
        }
    }
}

#[test]
fn requests_that_come_and_go_change_no_answer_and_leave_nothing() {
    let model = tiny::model(tiny::config(Family::Qwen2), 9);
    let prompts = prompts();
    let params = |i: usize| SamplingParams {
        n: 1 + i % 3,
        max_new_tokens: 20 + 9 * i,
        temperature: [1.0, 0.0, 0.7][i % 3],
        seed: i as u64,
        ..Default::default()
    };
    let request = |i: usize| Request { prompt: prompts[i].as_slice().into(), params: Arc::new(params(i)), top_logprobs: i % 2 };
    // The small cache has room for one request at a time.
    for (max_batch, cache) in [(4, 100_000), (2, 400), (3, 512)] {
        let mut engine = Engine::new(&model, None, max_batch).with_cache_tokens(cache);
        let mut done = Vec::new();
        for i in 0..prompts.len() {
            engine.add(i, request(i)).unwrap();
            // One that is not waited for, cancelled while it waits, is prefilled or is decoded.
            engine.add(100 + i, request((i + 1) % 5)).unwrap();
            run(&mut engine, 4, &mut done);
            engine.cancel(100 + i);
            assert!(engine.cached_tokens() <= cache);
        }
        run(&mut engine, usize::MAX, &mut done);
        done.retain(|c| c.prompt_index < 100);
        done.sort_by_key(|c| (c.prompt_index, c.index));
        let alone = |i: usize| {
            let answers = sample(&model, &prompts[i..=i], &params(i), 100);
            answers.into_iter().map(move |c| Completion { prompt_index: i, ..c })
        };
        assert_eq!(done, (0..prompts.len()).flat_map(alone).collect::<Vec<_>>());
        assert!(engine.is_empty() && engine.cached_tokens() == 0);
    }
    let error = Engine::new(&model, None, 4).with_cache_tokens(128).add(0, request(3)).unwrap_err();
    assert!(error.to_string().contains("of the cache, which holds 128"), "{error}");
}
