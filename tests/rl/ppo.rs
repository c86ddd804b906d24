//! PPO on tiny models: the critic in its three forms, exact resuming, and the settings around it.

use crate::support::{Recorder, config, files, items, model, train, weights};
use serde_json::{Map, Value};
use sorft_native::error::Kind;
use sorft_native::model::Transformer;
use sorft_native::model::lora::LoraConfig;

const PPO: &str = "algorithm = \"ppo\"\nbatch_prompts = 3\ngroup_size = 4\nmax_new_tokens = 10\noptim.lr = 3e-3\noptim.warmup = 0\n\
                   critic.lr = 3e-3\noptim.schedule = \"constant\"\n";
const KINDS: [&str; 3] = ["trunk", "lora", "full"];

fn numbers(lines: &[Map<String, Value>], key: &str) -> Vec<f64> {
    lines.iter().map(|l| l[key].as_f64().unwrap_or_else(|| panic!("{key} in {l:?}"))).collect()
}

fn mean(part: &[f64]) -> f64 {
    part.iter().sum::<f64>() / part.len() as f64
}

/// A policy that goes with a kind of critic, and its settings.
fn policy(kind: &str) -> (Transformer, String) {
    let mut policy = model();
    let mut text = format!("{PPO}critic.kind = \"{kind}\"\n");
    if kind == "lora" {
        let targets = ["q_proj", "v_proj", "down_proj"].map(str::to_owned).to_vec();
        policy.add_lora(&LoraConfig { rank: 4, alpha: 8.0, targets }, 1).unwrap();
        // A small adapter moves the model as far at a higher rate.
        text = text.replace("optim.lr = 3e-3", "optim.lr = 3e-2") + "lora.rank = 4\n";
    }
    (policy, text)
}

fn run(kind: &str, extra: &str, out: &std::path::Path) -> (Transformer, Vec<Map<String, Value>>) {
    let (policy, text) = policy(kind);
    let mut hooks = Recorder::default();
    let trained = train(&config(&format!("{text}{extra}")), &[items(3)], policy, out, false, &mut hooks).unwrap();
    // The watch says, truly, that this toy's answers are cut off and its policy moves far; nothing else may be wrong.
    let other = |w: &&String| !w.contains(": truncated is ") && !w.contains(": kl is ");
    assert_eq!(hooks.warnings.iter().find(other), None);
    (trained, hooks.lines)
}

#[test]
fn the_reward_rises_the_values_learn_and_the_first_ratio_is_exactly_one() {
    for kind in KINDS {
        let dir = tempfile::tempdir().unwrap();
        let (_, lines) = run(kind, "steps = 20\n", dir.path());
        assert!(numbers(&lines, "ratio_max").iter().all(|r| *r == 1.0), "{kind}");
        assert!(numbers(&lines, "value_clip_fraction").iter().all(|c| *c == 0.0), "{kind}: the first values are the sampled ones");
        let (reward, value_loss) = (numbers(&lines, "reward_mean"), numbers(&lines, "value_loss"));
        assert!(mean(&reward[15..]) > mean(&reward[..5]) + 0.1, "{kind}: {reward:?}");
        assert!(mean(&value_loss[15..]) < 0.5 * value_loss[0], "{kind}: {value_loss:?}");
        assert_eq!(lines[0]["value_mean"], 0.0, "a fresh critic expects nothing");
        assert_eq!(lines[0]["kl"], 0.0);
        assert_eq!(lines[3]["kl_coef"], 0.01);
        let rollouts = std::fs::read_to_string(dir.path().join("rollouts/7.jsonl")).unwrap();
        assert_eq!(rollouts.lines().count(), 12);
    }
}

#[test]
fn while_the_critic_warms_up_the_policy_stays() {
    for kind in KINDS {
        let (before, dir) = (weights(&policy(kind).0), tempfile::tempdir().unwrap());
        let (trained, lines) = run(kind, "steps = 2\ncritic.warmup = 2\n", dir.path());
        assert!(weights(&trained) == before, "{kind}");
        assert!(lines[1]["value_mean"] != 0.0, "{kind}");
        let (moved, _) = run(kind, "steps = 3\ncritic.warmup = 2\n", tempfile::tempdir().unwrap().path());
        assert!(weights(&moved) != before, "{kind}");
    }
}

#[test]
fn micro_batches_and_threads_change_no_bit() {
    for kind in KINDS {
        let run = |micro: usize, threads: usize| {
            let extra = format!("steps = 3\nmicrobatch_tokens = {micro}\nppo.epochs = 2\nppo.minibatches = 2\n");
            let (dir, pool) = (tempfile::tempdir().unwrap(), rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap());
            let (trained, lines) = pool.install(|| {
                let (trained, lines) = run(kind, &extra, dir.path());
                (weights(&trained), lines)
            });
            assert!(numbers(&lines, "ratio_max").iter().all(|r| *r > 1.0));
            (trained, files(dir.path()))
        };
        let expected = run(1, 1);
        assert!(run(300, 3) == expected && run(100_000, 2) == expected, "{kind}");
    }
}

/// SFT, then PPO with everything that has state: critic, adaptive KL, mini-batches, a warm-up, a reference of the stage's start.
#[test]
fn a_resumed_run_has_the_bytes_of_an_unbroken_one() {
    for kind in KINDS {
        let (_, text) = policy(kind);
        let text = format!(
            "{text}eval.every = 2\ncheckpoint.every = 2\nseed = 11\n[[stage]]\nalgorithm = \"sft\"\nsteps = 2\nbatch_prompts = 2\n\
             [[stage]]\nsteps = 4\nppo.epochs = 2\nppo.minibatches = 2\nkl.target = 0.01\nkl.horizon = 50\ncritic.warmup = 1\n"
        );
        let (config, data) = (config(&text), [items(4), items(4)]);
        let (whole, broken) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut hooks = Recorder::default();
        let trained = train(&config, &data, policy(kind).0, whole.path(), false, &mut hooks).unwrap();
        let coefs = numbers(&hooks.lines[2..], "kl_coef");
        assert!(coefs[0] == 0.01 && coefs[3] != coefs[1], "{coefs:?}");
        let mut last = None;
        for stop in 1..=7 {
            let mut hooks = Recorder { stop_after_step: Some(stop), ..Recorder::default() };
            if stop == 5 {
                hooks = Recorder { stop_after_answers: Some((5, 3)), ..Recorder::default() };
            }
            match train(&config, &data, policy(kind).0, broken.path(), true, &mut hooks) {
                Ok(model) => last = Some(model),
                Err(e) => assert_eq!(e.kind(), Kind::Interrupted, "{e}"),
            }
        }
        assert!(weights(&last.expect("the run ends")) == weights(&trained), "{kind}");
        assert!(files(whole.path()) == files(broken.path()), "{kind}");
    }
}

#[test]
fn a_run_stopped_again_before_its_stage_begins_keeps_its_moments() {
    let (start, text) = policy("full");
    let config = config(&format!("{text}eval.every = 2\nsteps = 4\n"));
    let (whole, broken) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let run = |out: &std::path::Path, mut hooks: Recorder| train(&config, &[items(3)], start.clone(), out, true, &mut hooks).err();
    assert!(run(whole.path(), Recorder::default()).is_none());
    // Stopped in the evaluation after step 2, and twice more when it is made up for.
    assert!(run(broken.path(), Recorder { stop_after_step: Some(2), ..Recorder::default() }).is_some());
    for _ in 0..2 {
        let e = run(broken.path(), Recorder { stop_when_resumed: true, ..Recorder::default() }).expect("it is stopped");
        assert_eq!(e.kind(), Kind::Interrupted);
    }
    assert!(run(broken.path(), Recorder::default()).is_none());
    assert!(files(whole.path()) == files(broken.path()));
}

#[test]
fn the_kinds_without_a_critic_train_and_pay_the_kl_in_the_reward() {
    for kind in ["dr_grpo", "rloo", "reinforce++", "reinforce++_baseline"] {
        let text = format!(
            "algorithm = \"grpo\"\nadvantage.kind = \"{kind}\"\nbatch_prompts = 3\ngroup_size = 4\nmax_new_tokens = 10\noptim.lr = 5e-3\n\
             kl.in = \"reward\"\nkl.estimator = \"k1\"\nkl.coef = 0.01\nloss.aggregation = \"constant\"\ndual_clip = 3\n\
             optim.schedule = \"constant\"\nsteps = 15\n"
        );
        let (dir, mut hooks) = (tempfile::tempdir().unwrap(), Recorder::default());
        train(&config(&text), &[items(3)], model(), dir.path(), false, &mut hooks).unwrap();
        let reward = numbers(&hooks.lines, "reward_mean");
        assert!(mean(&reward[10..]) > mean(&reward[..3]), "{kind}: {reward:?}");
        assert!(numbers(&hooks.lines, "ratio_max").iter().all(|r| *r == 1.0));
    }
}

#[test]
fn gspo_clips_the_sequences_ratio() {
    let text = "algorithm = \"grpo\"\nloss.ratio = \"sequence\"\nloss.aggregation = \"sequence\"\nclip = [3e-4, 4e-4]\nbatch_prompts = 3\n\
                group_size = 4\nmax_new_tokens = 10\noptim.lr = 5e-3\nupdates_per_batch = 3\nsteps = 3\n";
    let (dir, mut hooks) = (tempfile::tempdir().unwrap(), Recorder::default());
    train(&config(text), &[items(3)], model(), dir.path(), false, &mut hooks).unwrap();
    assert!(numbers(&hooks.lines, "clip_fraction").iter().any(|c| *c > 0.1));
}

#[test]
fn dynamic_sampling_drops_flat_groups_and_asks_others() {
    // One token an answer: even or odd, so that many groups of two are flat.
    let text = "algorithm = \"grpo\"\nbatch_prompts = 3\ngroup_size = 2\nmax_new_tokens = 1\noptim.lr = 1e-3\nsteps = 4\n\
                dapo.sampling_rounds = 4\ndapo.overlong_buffer = 1\ndapo.overlong_penalty = 0.5\n";
    let run = || {
        let (dir, mut hooks) = (tempfile::tempdir().unwrap(), Recorder::default());
        train(&config(text), &[items(8)], model(), dir.path(), false, &mut hooks).unwrap();
        (hooks.lines, files(dir.path()))
    };
    let (lines, found) = run();
    assert!(numbers(&lines, "kept_groups").iter().any(|k| *k < 1.0), "some are dropped");
    for step in 1..=4 {
        let answers: Vec<Value> = std::str::from_utf8(&found[&format!("rollouts/{step}.jsonl")])
            .unwrap()
            .lines()
            .map(|l| serde_json::from_str(l).unwrap())
            .collect();
        for pair in answers.chunks(2) {
            assert_eq!(pair[0]["prompt_index"], pair[1]["prompt_index"]);
            let differ = pair[0]["reward"] != pair[1]["reward"];
            assert_eq!(pair[0]["kept"], differ, "{pair:?}");
        }
        assert!(answers.iter().filter(|a| a["kept"] == true).count() <= 6);
    }
    assert!(run().1 == found);
}
