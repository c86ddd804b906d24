//! The training loop on tiny models.

use crate::support::{Recorder, config, files, items, mixture, model, model_for, sequences, train, weights};
use serde_json::{Map, Value, json};
use sorft_native::error::Kind;
use sorft_native::model::lora::LoraConfig;
use sorft_native::model::transformer::Adapter;
use sorft_native::rl::dataset::Dataset;
use sorft_native::tensor::plan::{Plan, Tree};
use std::sync::Arc;

const GRPO: &str = "algorithm = \"grpo\"\nbatch_prompts = 3\ngroup_size = 4\nmax_new_tokens = 10\noptim.lr = 5e-3\nclip = [0.2, 0.28]\n";

fn numbers(lines: &[Map<String, Value>], key: &str) -> Vec<f64> {
    lines.iter().map(|l| l[key].as_f64().unwrap_or_else(|| panic!("{key} in {l:?}"))).collect()
}

#[test]
fn supervised_step_t_trains_on_line_t() {
    let data = sequences(3);
    let config = config("batch_prompts = 1\ndata.shuffle = false\nsteps = 4\noptim.lr = 1e-30\n");
    let (dir, mut hooks) = (tempfile::tempdir().unwrap(), Recorder::default());
    train(&config, std::slice::from_ref(&data), model(), dir.path(), false, &mut hooks).unwrap();
    let Dataset::Sequences(lines) = &*data else { unreachable!() };
    for (t, line) in hooks.lines.iter().enumerate() {
        let sequence = &lines[t % 3];
        let plan = Plan::for_trees(&[Tree::sequence(&sequence.ids, &sequence.targets)]);
        let stats = model().evaluate(&plan, 1.0, Adapter::On).unwrap();
        let mean = -stats.logprob.iter().map(|x| f64::from(*x)).sum::<f64>() / stats.logprob.len() as f64;
        assert!((line["loss"].as_f64().unwrap() - mean).abs() < 1e-9, "step {t}");
        assert_eq!((&line["step"], &line["tokens"], &line["skipped"]), (&json!(t + 1), &json!(sequence.ids.len()), &json!(false)));
    }
}

#[test]
fn supervised_training_lowers_the_loss() {
    let config = config("batch_prompts = 4\nsteps = 30\noptim.lr = 3e-3\noptim.warmup = 3\n");
    let (dir, mut hooks) = (tempfile::tempdir().unwrap(), Recorder::default());
    train(&config, &[items(4)], model(), dir.path(), false, &mut hooks).unwrap();
    let loss = numbers(&hooks.lines, "loss");
    assert!(loss[29] < 0.2 * loss[0], "{loss:?}");
}

/// The means of ten steps' losses of a run with this setting.
fn ten_steps(setting: &str) -> Vec<f64> {
    let config = config(&format!("steps = 80\nbatch_prompts = 2\noptim.lr = 3e-3\n{setting}\n"));
    let (dir, mut hooks) = (tempfile::tempdir().unwrap(), Recorder::default());
    train(&config, &[sequences(6)], model_for(&config), dir.path(), false, &mut hooks).unwrap();
    numbers(&hooks.lines, "loss").chunks(10).map(|ten| ten.iter().sum::<f64>() / 10.0).collect()
}

/// The loss falls as with products in f32.
#[test]
fn products_in_bf16_learn_as_those_in_f32() {
    let (wide, narrow) = (ten_steps("compute = \"f32\""), ten_steps("compute = \"bf16\""));
    println!("f32 {wide:.3?}, bf16 {narrow:.3?}");
    assert!(wide[7] < 0.5 * wide[0], "{wide:?}");
    let off = wide.iter().zip(&narrow).map(|(a, b)| (a - b).abs() / wide[0]).fold(0.0, f64::max);
    assert!(off > 0.0 && off < 0.05, "{wide:?} and {narrow:?}");
}

/// The loss falls as with moments in f32: the means of ten steps are within a twentieth of the first ones' mean.
#[test]
fn moments_in_8_bits_learn_as_f32_ones() {
    let (wide, coded) = (ten_steps("optim.moments = \"f32\""), ten_steps("optim.moments = \"8bit\""));
    println!("f32 {wide:.3?}, 8 bits {coded:.3?}");
    assert!(wide[7] < 0.5 * wide[0], "{wide:?}");
    let off = wide.iter().zip(&coded).map(|(a, b)| (a - b).abs() / wide[0]).fold(0.0, f64::max);
    assert!(off > 0.0 && off < 0.05, "{wide:?} and {coded:?}");
}

#[test]
fn grpo_raises_the_reward_and_its_first_ratio_is_exactly_one() {
    let config = config(&format!("{GRPO}steps = 25\noptim.schedule = \"constant\"\n"));
    let (dir, mut hooks) = (tempfile::tempdir().unwrap(), Recorder::default());
    train(&config, &[items(3)], model(), dir.path(), false, &mut hooks).unwrap();
    assert!(numbers(&hooks.lines, "ratio_max").iter().all(|r| *r == 1.0));
    assert!(numbers(&hooks.lines, "clip_fraction").iter().all(|r| *r == 0.0));
    let kl = numbers(&hooks.lines, "kl");
    assert!(kl[0] == 0.0 && kl[24] > 1e-3, "{kl:?}");
    let reward = numbers(&hooks.lines, "reward_mean");
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
    assert!(mean(&reward[20..]) > mean(&reward[..5]) + 0.2, "{reward:?}");
    let rollouts = std::fs::read_to_string(dir.path().join("rollouts/7.jsonl")).unwrap();
    assert_eq!(rollouts.lines().count(), 12);
    // The watch is right about both: ten tokens are few, and the rate is high.
    assert!(hooks.warnings.iter().all(|w| w.contains(": truncated is ") || w.contains(": kl is ")), "{:?}", hooks.warnings);
}

#[test]
fn several_updates_on_a_batch_move_the_ratio() {
    let config = config(&format!("{GRPO}steps = 2\nupdates_per_batch = 3\nloss.aggregation = \"sequence\"\nentropy.coef = 0.01\n"));
    let (dir, mut hooks) = (tempfile::tempdir().unwrap(), Recorder::default());
    train(&config, &[items(3)], model(), dir.path(), false, &mut hooks).unwrap();
    assert!(numbers(&hooks.lines, "ratio_max").iter().all(|r| *r > 1.0));
}

#[test]
fn micro_batches_and_threads_change_no_bit() {
    let run = |setting: &str, micro: usize, threads: usize| {
        let settings = format!("microbatch_tokens = {micro}\nrollout_batch = {}\n{setting}\n", threads * 3);
        let text = format!("{GRPO}steps = 3\nkl.coef = 0.1\n{settings}");
        let (dir, config) = (tempfile::tempdir().unwrap(), config(&text));
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let model = model_for(&config);
        let trained = pool.install(|| train(&config, &[items(3)], model, dir.path(), false, &mut Recorder::default()).map(|m| weights(&m)));
        (trained.unwrap(), files(dir.path()))
    };
    let [expected, coded, narrow] = ["seed = 0", "optim.moments = \"8bit\"", "compute = \"bf16\""].map(|setting| {
        let expected = run(setting, 1, 1);
        assert!(run(setting, 300, 3) == expected && run(setting, 100_000, 2) == expected, "{setting}");
        expected
    });
    assert!(expected.0 != coded.0, "moments in 8 bits are no others: this test is empty");
    assert!(expected.0 != narrow.0, "products in bf16 are no others: this test is empty");
}

#[test]
fn activation_checkpointing_changes_no_bit() {
    let run = |on: bool| {
        let config = config(&format!("{GRPO}steps = 2\nactivation_checkpointing = {on}\n"));
        let dir = tempfile::tempdir().unwrap();
        let trained = train(&config, &[items(2)], model(), dir.path(), false, &mut Recorder::default()).unwrap();
        (weights(&trained), files(dir.path()))
    };
    assert!(run(true) == run(false));
}

/// Two stages, evaluations, a KL to the start of the second stage, checkpoints that are pruned.
fn two_stages(extra: &str) -> String {
    format!(
        "{GRPO}{extra}kl.coef = 0.05\neval.every = 2\ncheckpoint.every = 2\nseed = 11\n\
         [[stage]]\nalgorithm = \"sft\"\nsteps = 3\nbatch_prompts = 2\n[[stage]]\nsteps = 4\nupdates_per_batch = 2\n"
    )
}

fn resumed_equals_unbroken(text: &str, lora: bool, data: &dyn Fn() -> Arc<Dataset>) {
    let config = config(text);
    let fresh = || {
        let mut m = model_for(&config);
        if lora {
            let settings = LoraConfig { rank: 2, alpha: 4.0, targets: vec!["q_proj".into(), "down_proj".into()] };
            m.add_lora(&settings, 1).unwrap();
        }
        m
    };
    let data = [data(), data()];
    let whole = tempfile::tempdir().unwrap();
    let trained = train(&config, &data, fresh(), whole.path(), false, &mut Recorder::default()).unwrap();
    // Stopped after every step in turn, and in the middle of sampling; each time resumed from what the run folder holds.
    let broken = tempfile::tempdir().unwrap();
    let mut last = None;
    for stop in 1..=9 {
        let mut hooks = Recorder { stop_after_step: Some(stop), ..Recorder::default() };
        if stop == 5 {
            hooks = Recorder { stop_after_answers: Some((5, 3)), ..Recorder::default() };
        }
        match train(&config, &data, fresh(), broken.path(), true, &mut hooks) {
            Ok(model) => last = Some(model),
            Err(e) => assert_eq!(e.kind(), Kind::Interrupted, "{e}"),
        }
    }
    let last = last.expect("the run ends");
    assert!(weights(&last) == weights(&trained));
    assert!(files(whole.path()) == files(broken.path()), "{:?}", files(broken.path()).keys());
    // Killed: the newest checkpoint is lost, lines beyond it are there.
    let checkpoints = sorft_native::rl::checkpoint::list(&broken.path().join("checkpoints")).unwrap();
    std::fs::remove_dir_all(&checkpoints.last().unwrap().1).unwrap();
    let again = train(&config, &data, fresh(), broken.path(), true, &mut Recorder::default()).unwrap();
    assert!(weights(&again) == weights(&trained) && files(whole.path()) == files(broken.path()));
}

#[test]
fn a_resumed_run_has_the_bytes_of_an_unbroken_one() {
    resumed_equals_unbroken(&two_stages(""), false, &|| items(4));
}

#[test]
fn a_resumed_run_with_moments_in_8_bits_has_the_bytes_of_an_unbroken_one() {
    resumed_equals_unbroken(&two_stages("optim.moments = \"8bit\"\n"), false, &|| items(3));
}

#[test]
fn a_resumed_run_with_products_in_bf16_has_the_bytes_of_an_unbroken_one() {
    resumed_equals_unbroken(&two_stages("compute = \"bf16\"\n"), false, &|| items(3));
}

#[test]
fn a_resumed_lora_run_has_the_bytes_of_an_unbroken_one() {
    resumed_equals_unbroken(&two_stages("lora.rank = 2\n"), true, &|| items(4));
}

const MIXED: &str = "subtasks = [\"file\", \"line\"]\nsubtask_weights.line = 3\n";

#[test]
fn a_resumed_mixture_has_the_bytes_of_an_unbroken_one() {
    resumed_equals_unbroken(&two_stages(MIXED), false, &|| mixture(&[("file", 5), ("line", 3)]));
}

#[test]
fn a_mixture_keeps_its_weights_and_tells_its_subtasks_apart() {
    // An epoch of eight: two of "file", six of "line".
    let grpo = GRPO.replace("batch_prompts = 3", "batch_prompts = 4");
    let config = config(&format!("{grpo}{MIXED}steps = 8\n"));
    let (dir, mut hooks) = (tempfile::tempdir().unwrap(), Recorder::default());
    train(&config, &[mixture(&[("file", 5), ("line", 3)])], model(), dir.path(), false, &mut hooks).unwrap();
    let mut asked = Vec::new();
    for (step, line) in (1..).zip(&hooks.lines) {
        let text = std::fs::read_to_string(dir.path().join(format!("rollouts/{step}.jsonl"))).unwrap();
        let records: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        for subtask in ["file", "line"] {
            let of: Vec<&Value> = records.iter().filter(|r| r["subtask"] == subtask).collect();
            let numbers = &line["subtasks"][subtask];
            assert_eq!(numbers.is_object(), !of.is_empty());
            let mean = of.iter().map(|r| r["reward"].as_f64().unwrap()).sum::<f64>() / of.len() as f64;
            assert!(of.is_empty() || (numbers["reward_mean"].as_f64().unwrap() - mean).abs() < 1e-12, "{numbers}");
            assert!(of.is_empty() || numbers["answer_tokens_mean"].is_number() && numbers["parts"]["answers"].is_number());
        }
        asked.extend(records.iter().filter(|r| r["index"] == 0).map(|r| (r["subtask"].as_str().unwrap().to_owned(), r["id"].to_string())));
    }
    for epoch in asked.chunks(8) {
        assert_eq!(epoch.iter().filter(|(subtask, _)| subtask == "line").count(), 6);
    }
    // Four epochs ask five files eight times: each at least once.
    let files: std::collections::BTreeSet<_> = asked.iter().filter(|(subtask, _)| subtask == "file").collect();
    assert_eq!(files.len(), 5);
}

#[test]
fn evaluations_that_are_interrupted_again_and_again_lose_nothing() {
    let config = config(&two_stages(""));
    let (data, whole, broken) = ([items(4), items(4)], tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let trained = train(&config, &data, model(), whole.path(), false, &mut Recorder::default()).unwrap();
    // Ctrl-C after step 4 stops the evaluation that is due; two more stop it when the run goes on, before anything is trained.
    let stop = || Recorder { stop_after_step: Some(4), ..Recorder::default() };
    let again = || Recorder { stop_in_evaluation: true, ..Recorder::default() };
    for mut hooks in [stop(), again(), again()] {
        let e = train(&config, &data, model(), broken.path(), true, &mut hooks).err().expect("interrupted");
        assert_eq!(e.kind(), Kind::Interrupted, "{e}");
    }
    let last = train(&config, &data, model(), broken.path(), true, &mut Recorder::default()).unwrap();
    assert!(weights(&last) == weights(&trained));
    assert!(files(whole.path()) == files(broken.path()));
}

#[test]
fn a_damaged_checkpoint_is_named_and_the_one_before_it_used() {
    let config = config(&two_stages("checkpoint.keep = 3\n"));
    let (data, dir) = ([items(4), items(4)], tempfile::tempdir().unwrap());
    let trained = train(&config, &data, model(), dir.path(), false, &mut Recorder::default()).unwrap();
    let expected = files(dir.path());
    let path = dir.path().join("checkpoints/7/tensors.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    let mut hooks = Recorder::default();
    let again = train(&config, &data, model(), dir.path(), true, &mut hooks).unwrap();
    assert!(hooks.warnings[0].starts_with("checkpoint 7 cannot be used"), "{:?}", hooks.warnings);
    assert!(weights(&again) == weights(&trained) && files(dir.path()) == expected);
}

#[test]
fn lora_measures_the_kl_with_its_adapter_off_and_leaves_the_base_alone() {
    let config = config(&format!("{GRPO}steps = 4\nlora.rank = 2\n"));
    let mut m = model();
    m.add_lora(&LoraConfig { rank: 2, alpha: 4.0, targets: vec!["v_proj".into()] }, 1).unwrap();
    let base: Vec<Vec<f32>> = m.base_params().iter().map(|p| m.export(&p.name).unwrap()).collect();
    let (dir, mut hooks) = (tempfile::tempdir().unwrap(), Recorder::default());
    let trained = train(&config, &[items(3)], m, dir.path(), false, &mut hooks).unwrap();
    let kl = numbers(&hooks.lines, "kl");
    assert!(kl[0] == 0.0 && kl[3] > 0.0, "{kl:?}");
    assert!(trained.base_params().iter().zip(base).all(|(p, before)| trained.export(&p.name).unwrap() == before));
}

#[test]
fn steps_that_are_not_finite_are_skipped_and_then_stop_the_run() {
    let mut bad = model();
    let norm = "model.layers.1.input_layernorm.weight";
    let mut numbers = bad.export(norm).unwrap();
    numbers[3] = f32::MAX;
    bad.import(norm, &numbers).unwrap();
    let config = config("steps = 9\nmax_skipped = 3\nbatch_prompts = 2\n");
    let (dir, mut hooks) = (tempfile::tempdir().unwrap(), Recorder::default());
    let before = weights(&bad);
    let e = train(&config, &[sequences(2)], bad.clone(), dir.path(), false, &mut hooks).err().expect("the run stops");
    assert!(e.to_string().contains("3 steps in a row had a loss or a gradient that is not finite"), "{e}");
    assert_eq!(hooks.lines.len(), 3);
    assert!(hooks.lines.iter().all(|l| l["skipped"] == json!(true) && l["loss"].is_null()), "{:?}", hooks.lines);
    assert!(hooks.warnings[0].contains("step 1: the loss of tree 0 of the batch (example "), "{:?}", hooks.warnings);
    let record = std::fs::read_to_string(dir.path().join("not_finite/1.jsonl")).unwrap();
    assert!(record.contains("\"segments\":[["), "{record}");
    let kept = sorft_native::rl::checkpoint::Checkpoint::open(&dir.path().join("checkpoints/3")).unwrap();
    assert_eq!((kept.state.skipped, kept.state.updates), (3, 0));
    for (p, (_, expected)) in bad.trainable().iter().zip(&before) {
        let found = kept.read_weight(p).unwrap();
        assert!(found.iter().zip(expected).all(|(a, b)| a.to_bits() == b.to_bits()));
    }
}

#[test]
fn groups_of_equal_rewards_are_measured_but_not_trained_on() {
    // One answer a group: every advantage is zero.
    let config = config(&format!("{GRPO}group_size = 1\nsteps = 2\n").replacen("group_size = 4\n", "", 1));
    let (dir, mut hooks) = (tempfile::tempdir().unwrap(), Recorder::default());
    let trained = train(&config, &[items(3)], model(), dir.path(), false, &mut hooks).unwrap();
    assert!(weights(&trained) == weights(&model()));
    for line in &hooks.lines {
        assert_eq!((&line["grad_norm"], &line["flat_groups"], &line["ratio_max"]), (&json!(0.0), &json!(1.0), &json!(1.0)));
        assert!(line["entropy"].as_f64().unwrap() > 0.0);
    }
}
