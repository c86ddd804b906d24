//! The best evaluation's model is kept, and stages end that get no better: in a run that is stopped and resumed as in an unbroken one.

use crate::support::{Recorder, config, files, items, model, train, weights};
use crate::tiny;
use serde_json::Value;
use sorft_native::Result;
use sorft_native::model::Transformer;
use sorft_native::rl::config::Config;
use sorft_native::rl::dataset::{Dataset, Sequence};
use sorft_native::rl::verify::{Run, check_records, replay};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// Supervised steps on what the evaluation looks at, which get better and better, then GRPO on something else at a rate that spoils it.
const STAGES: &str = "data.heldout = \"h\"\neval.every = 2\neval.best = \"sum\"\neval.patience = 2\ncheckpoint.every = 2\ncheckpoint.keep = 0\n\
     optim.lr = 3e-3\n[[stage]]\nsteps = 6\nbatch_prompts = 1\n\
     [[stage]]\nalgorithm = \"grpo\"\nsteps = 20\nbatch_prompts = 3\ngroup_size = 4\nmax_new_tokens = 8\noptim.lr = 2e-2\nkl.measure = false\n\
     [[stage]]\nsteps = 2\nbatch_prompts = 1\noptim.lr = 1e-4\n";

fn data() -> [Arc<Dataset>; 3] {
    let ids = tiny::ids(40, 9);
    let seen = || Arc::new(Dataset::Sequences(vec![Sequence { ids: ids.clone(), targets: vec![true; 40] }]));
    [seen(), items(3), seen()]
}

fn run(config: &Config, out: &Path, resume: bool, hooks: &mut Recorder) -> Result<Transformer> {
    train(config, &data(), model(), out, resume, hooks)
}

/// Evaluations by their steps, as the log has them.
fn evaluations(out: &Path) -> BTreeMap<u64, f64> {
    let text = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    let lines = text.lines().map(|l| serde_json::from_str::<Value>(l).unwrap());
    lines.filter(|l| l.get("eval").is_some()).map(|l| (l["step"].as_u64().unwrap(), l["eval"]["sum"].as_f64().unwrap())).collect()
}

#[test]
fn the_best_model_is_kept_and_a_stage_that_gets_no_better_ends() {
    let (config, dir) = (config(STAGES), tempfile::tempdir().unwrap());
    let mut hooks = Recorder::default();
    run(&config, dir.path(), false, &mut hooks).unwrap();
    let all = evaluations(dir.path());
    // What the settings say, worked out from the log: which were the best, and when the second stage had gone two evaluations without one.
    let (mut best, mut better) = (all[&0], Vec::new());
    for (step, value) in all.iter().skip(1) {
        if *value > best {
            best = *value;
            better.push(*step);
        }
    }
    assert!(better.starts_with(&[2, 4, 6]), "the first stage gets better: {all:?}");
    let kept: Vec<u64> = hooks.kept.iter().map(|(step, _)| *step).collect();
    assert_eq!(kept, better);
    let stage_of: Vec<u64> = hooks.lines.iter().map(|l| l["stage"].as_u64().unwrap()).collect();
    let in_second = stage_of.iter().filter(|s| **s == 2).count() as u64;
    assert!((4..20).contains(&in_second), "it ends early, {in_second} steps: {all:?}");
    let end = 6 + in_second;
    assert!(all[&end].max(all[&(end - 2)]) <= all.range(..end - 3).map(|(_, v)| *v).fold(f64::MIN, f64::max), "{all:?}");
    assert_eq!(stage_of.len() as u64, end + 2, "the third stage is done");
    let told: Vec<&String> = hooks.notes.iter().filter(|n| n.contains(" ends after ")).collect();
    assert_eq!(told.len(), 1, "{:?}", hooks.notes);
    assert!(
        told[0].starts_with(&format!("stage 2 of 3 ends after step {end}: 2 evaluations in a row were not better than sum ")),
        "{told:?}"
    );

    // The records of such a run are understood: what is computed anew is what they say, also behind the end.
    let data = data();
    let found = Run::open(dir.path(), &config, &data, None).unwrap();
    assert_eq!(check_records(&found).unwrap().difference, None);
    for step in [3, end, end + 2] {
        let scratch = tempfile::tempdir().unwrap();
        let replayed = replay(&found, model(), step, scratch.path(), &|| false).unwrap();
        assert_eq!(replayed.difference, None, "step {step}");
    }
}

#[test]
fn resumed_runs_keep_and_end_as_unbroken_ones() {
    let config = config(STAGES);
    let (whole, broken) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut hooks = Recorder::default();
    let trained = run(&config, whole.path(), false, &mut hooks).unwrap();
    let best = hooks.kept.pop().unwrap();
    let (mut last, mut kept) = (None, Vec::new());
    for stop in 1..=40 {
        let mut hooks = Recorder { stop_after_step: Some(stop), stop_in_evaluation: stop == 4, ..Recorder::default() };
        last = run(&config, broken.path(), true, &mut hooks).ok();
        kept.append(&mut hooks.kept);
        if last.is_some() {
            break;
        }
    }
    assert!(weights(&last.expect("the run ends")) == weights(&trained));
    assert!(files(whole.path()) == files(broken.path()));
    assert!(kept.pop().unwrap() == best);
}

#[test]
fn settings_without_a_meaning_are_refused() {
    let refused = |text: &str| {
        let error = Config::parse(&format!("model = \"m\"\ndata.train = \"x\"\n{text}"), Path::new("a.toml")).unwrap_err();
        (error.to_string(), error.kind())
    };
    let patience = refused("data.heldout = \"h\"\neval.patience = 1\n").0;
    assert!(patience.contains("eval.patience") && patience.contains("set eval.best"), "{patience}");
    assert!(refused("eval.best = \"fbeta\"\n").0.contains("nothing to evaluate on"));
    let (mut hooks, dir) = (Recorder::default(), tempfile::tempdir().unwrap());
    let config = config(&STAGES.replace("\"sum\"", "\"fbeta\""));
    let error = run(&config, dir.path(), false, &mut hooks).err().unwrap().to_string();
    assert!(error.contains("eval.best: an evaluation has no number `fbeta`; it has sum"), "{error}");
}
