//! Gradients: the same bits for any micro-batch, thread count and checkpointing; right to finite differences; shared against repeated.

use crate::tiny;
use sorft_native::model::config::Family;
use sorft_native::model::lora::LoraConfig;
use sorft_native::model::transformer::{Adapter, Gradients, Transformer};
use sorft_native::tensor::cpu::Compute;
use sorft_native::tensor::plan::{Plan, Tree};

fn trees() -> Vec<Tree> {
    let group = |n: usize, answers: &[usize], seed: u64| {
        let answers: Vec<_> = answers.iter().enumerate().map(|(i, &len)| tiny::ids(len, seed * 100 + i as u64)).collect();
        Tree::prompt_with_answers(&tiny::ids(n, seed), &answers)
    };
    vec![group(70, &[5, 1, 80], 1), group(64, &[3, 9], 2), group(3, &[20], 3), group(130, &[17, 0, 64], 4)]
}

/// d loss / d logprob and d loss / d entropy of prediction `i` of a tree: arbitrary, but the same wherever the tree stands.
fn seeds(n: usize) -> (Vec<f32>, Vec<f32>) {
    ((0..n).map(|i| ((i * 7 % 11) as f32 - 5.0) * 0.1).collect(), (0..n).map(|i| ((i * 5 % 13) as f32 - 6.0) * 0.02).collect())
}

fn gradients(model: &Transformer, micro_batches: &[&[Tree]], checkpointing: bool) -> Gradients {
    let mut grads = model.gradients().unwrap();
    for trees in micro_batches {
        let plan = Plan::for_trees(trees);
        let (mut d_logprob, mut d_entropy) = (Vec::new(), Vec::new());
        for tree in &plan.trees {
            let (a, b) = seeds(tree.predictions.len());
            d_logprob.extend(a);
            d_entropy.extend(b);
        }
        let (stats, saved) = model.forward(&plan, 0.8, checkpointing).unwrap();
        assert_eq!(stats, model.evaluate(&plan, 0.8, Adapter::On).unwrap());
        model.backward(&plan, saved, &d_logprob, Some(&d_entropy), &mut grads).unwrap();
    }
    grads.finish().unwrap();
    grads
}

fn bits(model: &Transformer, grads: &mut Gradients) -> Vec<Vec<u32>> {
    model.trainable().iter().map(|p| grads.export(&p.name).unwrap().unwrap().iter().map(|x| x.to_bits()).collect()).collect()
}

fn models() -> Vec<Transformer> {
    models_in(Compute::F32)
}

fn models_in(compute: Compute) -> Vec<Transformer> {
    let model = |family, seed| tiny::model_in(compute, tiny::config(family), seed);
    let mut models: Vec<_> = [Family::Llama, Family::Qwen2, Family::Qwen3].into_iter().map(|f| model(f, 5)).collect();
    let mut lora = model(Family::Qwen2, 6);
    let targets = ["q_proj", "v_proj", "down_proj"].map(str::to_owned).to_vec();
    lora.add_lora(&LoraConfig { rank: 3, alpha: 6.0, targets }, 1).unwrap();
    for p in lora.trainable().iter().filter(|p| p.name.contains("lora_B")) {
        let b: Vec<f32> = (0..p.shape[0] * p.shape[1]).map(|i| (i % 7) as f32 * 0.02 - 0.05).collect();
        lora.import(&p.name, &b).unwrap();
    }
    models.push(lora);
    models
}

#[test]
fn the_same_bits_for_any_micro_batch_thread_count_and_checkpointing() {
    let trees = trees();
    for model in models().into_iter().chain(models_in(Compute::Bf16)) {
        let want = bits(&model, &mut gradients(&model, &[&trees], false));
        let one_by_one: Vec<&[Tree]> = trees.chunks(1).collect();
        let pairs: Vec<&[Tree]> = trees.chunks(2).collect();
        assert!(want == bits(&model, &mut gradients(&model, &one_by_one, false)), "one tree at a time");
        assert!(want == bits(&model, &mut gradients(&model, &pairs, true)), "two trees at a time, checkpointing");
        for threads in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let got = pool.install(|| bits(&model, &mut gradients(&model, &[&trees], false)));
            assert!(want == got, "{threads} threads");
        }
    }
}

/// What the test above compares would show a sum in another order: the same trees, the last one first.
#[test]
fn a_reordered_sum_is_seen() {
    for model in models() {
        let (trees, reversed): (Vec<_>, Vec<_>) = (trees(), trees().into_iter().rev().collect());
        let (mut grads, mut other) = (gradients(&model, &[&trees], false), gradients(&model, &[&reversed], false));
        let (want, got) = (bits(&model, &mut grads), bits(&model, &mut other));
        for ((p, want), got) in model.trainable().iter().zip(&want).zip(&got) {
            let number = |bits: &u32| f64::from(f32::from_bits(*bits));
            let norm = want.iter().map(|x| number(x).powi(2)).sum::<f64>().sqrt();
            let apart = want.iter().zip(got).map(|(a, b)| (number(a) - number(b)).powi(2)).sum::<f64>().sqrt() / norm;
            assert!(apart < 1e-5, "{}: the same sum but for rounding, off by {apart:e}", p.name);
            assert!(want != got, "{}: a sum in another order has other bits", p.name);
        }
    }
}

#[test]
fn finite_differences_agree() {
    let trees = trees();
    let plan = Plan::for_trees(&trees);
    for mut model in models() {
        let mut grads = gradients(&model, &[&trees], false);
        let loss = |model: &Transformer| -> f64 {
            let stats = model.evaluate(&plan, 0.8, Adapter::On).unwrap();
            let mut sum = 0.0;
            for tree in &plan.trees {
                let (a, b) = seeds(tree.predictions.len());
                for (i, t) in tree.predictions.clone().enumerate() {
                    sum += f64::from(a[i]) * f64::from(stats.logprob[t]) + f64::from(b[i]) * f64::from(stats.entropy[t]);
                }
            }
            sum
        };
        for p in model.trainable() {
            // Along the gradient itself the derivative is its norm.
            let g = grads.export(&p.name).unwrap().unwrap();
            let norm = g.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
            let weights = model.export(&p.name).unwrap();
            let size = weights.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
            let step = 3e-4 * size.max(0.1) / norm;
            let at = |sign: f64, model: &mut Transformer| {
                let moved: Vec<f32> = weights.iter().zip(&g).map(|(w, g)| (f64::from(*w) + sign * step * f64::from(*g)) as f32).collect();
                model.import(&p.name, &moved).unwrap();
                loss(model)
            };
            let slope = (at(1.0, &mut model) - at(-1.0, &mut model)) / (2.0 * step);
            model.import(&p.name, &weights).unwrap();
            let error = (slope - norm * norm).abs() / (norm * norm);
            assert!(error < 2e-2, "{}: {slope} against {}, off by {error:e}", p.name, norm * norm);
        }
    }
}

#[test]
fn a_shared_prompt_gives_the_gradients_of_a_repeated_one() {
    for model in models() {
        let shared = trees();
        let mut repeated = Vec::new();
        let mut seeds_of = Vec::new();
        for tree in &shared {
            let mut from = 0;
            let total: usize = tree.segments[1..].iter().map(|s| s.ids.len()).sum();
            for answer in &tree.segments[1..] {
                repeated.push(Tree::prompt_with_answers(&tree.segments[0].ids, std::slice::from_ref(&answer.ids)));
                seeds_of.push((total, from, answer.ids.len()));
                from += answer.ids.len();
            }
        }
        let mut want = gradients(&model, &[&shared], false);
        let plan = Plan::for_trees(&repeated);
        let (mut d_logprob, mut d_entropy) = (Vec::new(), Vec::new());
        for (total, from, len) in seeds_of {
            let (a, b) = seeds(total);
            d_logprob.extend(&a[from..from + len]);
            d_entropy.extend(&b[from..from + len]);
        }
        let (stats, saved) = model.forward(&plan, 0.8, false).unwrap();
        let once = model.evaluate(&Plan::for_trees(&shared), 0.8, Adapter::On).unwrap();
        assert_eq!(stats, once, "log-probabilities are the same bits, shared or repeated");
        let mut got = model.gradients().unwrap();
        model.backward(&plan, saved, &d_logprob, Some(&d_entropy), &mut got).unwrap();
        for p in model.trainable() {
            let (a, b) = (want.export(&p.name).unwrap().unwrap(), got.export(&p.name).unwrap().unwrap());
            let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
            let scale = norm(&mut a.iter().map(|x| f64::from(*x)));
            let error = norm(&mut a.iter().zip(&b).map(|(a, b)| f64::from(a - b))) / scale;
            assert!(error < 1e-5, "{}: {error:e}", p.name);
        }
    }
}

/// Gradients with products in bf16 are those of f32 but for rounding to 8 bits, in each of a pass's products, by weights that make much of it.
#[test]
fn gradients_in_bf16_are_close_to_those_in_f32() {
    let trees = trees();
    for (wide, narrow) in models().iter().zip(&models_in(Compute::Bf16)) {
        let (mut want, mut got) = (gradients(wide, &[&trees], false), gradients(narrow, &[&trees], false));
        for p in wide.trainable() {
            let (a, b) = (want.export(&p.name).unwrap().unwrap(), got.export(&p.name).unwrap().unwrap());
            let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
            let off = norm(&mut a.iter().zip(&b).map(|(a, b)| f64::from(a - b))) / norm(&mut a.iter().map(|x| f64::from(*x)));
            assert!(off > 0.0 && off < 0.1, "{}: off by {off:e}", p.name);
        }
    }
}
