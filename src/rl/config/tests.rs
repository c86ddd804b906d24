use super::*;
use crate::rl::objective::{Clip, KlEstimator};

const MINIMAL: &str = "model = \"owner/name\"\ndata.train = \"tasks.jsonl\"\n";

fn parse(text: &str) -> Result<Config> {
    Config::parse(text, Path::new("/runs/a.toml"))
}

fn refused(text: &str) -> String {
    match parse(text) {
        Ok(_) => panic!("accepted:\n{text}"),
        Err(e) => e.to_string(),
    }
}

#[test]
fn every_default_parses_and_is_of_its_kind() {
    let values = defaults();
    for key in KEYS {
        assert_eq!(values.contains_key(key.name), !key.default.is_empty(), "{}", key.name);
    }
}

#[test]
fn paths_are_relative_to_the_file_and_hub_ids_are_kept() {
    let c = parse(&format!("{MINIMAL}data.heldout = [\"x.jsonl\", \"/abs/y.jsonl\"]\n")).unwrap();
    assert_eq!(c.model, "owner/name");
    assert_eq!(c.stages[0].train, [PathBuf::from("/runs/tasks.jsonl")]);
    assert_eq!(c.heldout, [PathBuf::from("/runs/x.jsonl"), PathBuf::from("/abs/y.jsonl")]);
    assert_eq!(parse("model = \"./m\"\ndata.train = \"t\"").unwrap().model, "/runs/m".to_owned());
}

#[test]
fn the_recipe_says_how_prompts_are_made() {
    let dir = tempfile::tempdir().unwrap();
    let template = dir.path().join("f.jinja");
    std::fs::write(&template, "{{ issue }}").unwrap();
    let more = "subtasks = [\"file\", \"line\"]\nmax_prompt_tokens = 300\n[prompt]\norder = \"fused\"\nnames = true\nlexical = \"score\"\nclose = 0.5\nanswers = 2";
    let recipe = parse(&format!("{MINIMAL}{more}\ntemplates.line = \"{}\"\n", template.display())).unwrap().recipe().unwrap();
    let written = String::from_utf8(recipe.to_json()).unwrap();
    for said in ["\"file\"", "\"fused\"", "\"names,score\"", "\"close\": 0.5", "\"answers\": 2", "300", "\"line\": \"{{ issue }}\""] {
        assert!(written.contains(said), "{said}: {written}");
    }
    std::fs::remove_file(&template).unwrap();
    let missing = parse(&format!("{MINIMAL}{more}\ntemplates.line = \"{}\"\n", template.display())).unwrap().recipe();
    assert!(missing.unwrap_err().to_string().contains("f.jinja"));
}

#[test]
fn stages_override_the_top() {
    let text = format!(
        "{MINIMAL}batch_prompts = 4\n[optim]\nlr = 5e-5\nbetas = [0.9, 0.95]\n[[stage]]\nsteps = 30\n[[stage]]\nalgorithm = \"grpo\"\nclip = [0.2, 0.28]\noptim.lr = 1\nsteps = 70\n"
    );
    let c = parse(&text).unwrap();
    assert_eq!(c.total_steps(), 100);
    assert_eq!((c.stages[0].algorithm, c.stages[0].schedule.peak), (Algorithm::Sft, 5e-5));
    assert_eq!((c.stages[1].algorithm, c.stages[1].schedule.peak), (Algorithm::Grpo, 1.0));
    assert_eq!(c.stages[1].clip, Clip { low: 0.2, high: 0.28 });
    assert_eq!(c.stages[1].optim.betas, (0.9, 0.95));
    assert!(c.stages.iter().all(|s| s.batch_prompts == 4));
}

#[test]
fn the_resolved_text_is_complete_and_reads_back_to_itself() {
    let text = format!("{MINIMAL}lora.rank = 8\nadvantage.eps = 1e-6\n[[stage]]\nsteps = 3\n[[stage]]\ntemperature = 2\n");
    let c = parse(&text).unwrap();
    assert!(KEYS.iter().all(|k| c.resolved.contains(&format!("\n{} = ", k.name))), "{}", c.resolved);
    let again = Config::parse(&c.resolved, Path::new("/elsewhere/config.toml")).unwrap();
    assert_eq!(again, c);
}

#[test]
fn set_overrides_and_forgives_missing_quotes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run.toml");
    std::fs::write(&path, format!("{MINIMAL}[[stage]]\nsteps = 3\n")).unwrap();
    let sets = ["algorithm=grpo", "optim.lr=2e-4", "lora.targets=q_proj,v_proj", "lora.rank=2", "stage.1.steps=7", "data.heldout=h.jsonl"];
    let c = Config::load(Some(&path), &sets.map(String::from)).unwrap();
    assert_eq!((c.stages[0].algorithm, c.stages[0].schedule.peak, c.stages[0].steps), (Algorithm::Grpo, 2e-4, 7));
    assert_eq!(c.lora.unwrap().targets, ["q_proj", "v_proj"]);
    assert_eq!(c.heldout, [dir.path().join("h.jsonl")]);
    for list in ["[h.jsonl, g.jsonl]", "[\"h.jsonl\", \"g.jsonl\"]", "h.jsonl,g.jsonl"] {
        let c = Config::load(Some(&path), &[format!("data.heldout={list}")]).unwrap();
        assert_eq!(c.heldout, ["h.jsonl", "g.jsonl"].map(|name| dir.path().join(name)), "{list}");
    }
    for (set, expected) in [
        ("steps=x", "--set: steps: expected a whole number of at least 1, found `x`"),
        ("step=3", "--set: unknown setting `step`\n  the nearest known one is `steps`; docs/configuration.md has them all"),
        ("steps", "--set: expected key=value, found `steps`"),
        (
            "stage.2.steps=1",
            "--set: there is no stage 2: the configuration has 1\n  the stages are the [[stage]] tables, from 1; a setting of the whole run has no `stage.N.` before it",
        ),
        ("stage.1.seed=1", "--set: `seed` holds for the whole run, not for a stage\n  move it above the first [[stage]]"),
    ] {
        let e = Config::load(Some(&path), &[set.to_owned()]).unwrap_err();
        assert_eq!((e.to_string().as_str(), e.exit_code()), (expected, 2));
    }
}

#[test]
fn errors_name_file_line_and_field() {
    assert_eq!(
        refused("model = \"a/b\"\n\nbatch_prompt = 3\n"),
        "/runs/a.toml:3: unknown setting `batch_prompt`\n  the nearest known one is `batch_prompts`; docs/configuration.md has them all"
    );
    assert_eq!(refused("[optim]\nlr = \"fast\"\n"), "/runs/a.toml:2: optim.lr: expected a number of at least 0, found the text \"fast\"");
    assert_eq!(refused("steps = 0\n"), "/runs/a.toml:1: steps: expected a whole number of at least 1, found 0");
    assert_eq!(refused("seed = 1.5\n"), "/runs/a.toml:1: seed: expected a whole number of at least 0, found 1.5");
    assert!(refused("optim.lr = nan\n").starts_with("/runs/a.toml:1: optim.lr: expected a number"));
    assert!(refused("algorithm = \"gpro\"\n").starts_with("/runs/a.toml:1: algorithm: expected one of \"sft\", \"grpo\", \"ppo\", found"));
    assert!(refused(&format!("{MINIMAL}algorithm = \"ppo\"\nadvantage.kind = \"rloo\"\n")).contains("advantage.kind: ppo learns a critic"));
    assert!(refused(&format!("{MINIMAL}algorithm = \"grpo\"\nadvantage.kind = \"gae\"\n")).contains("\"gae\" needs a critic's values"));
    assert!(refused(&format!("{MINIMAL}algorithm = \"ppo\"\nlora.rank = 2\n")).contains("critic.kind: with an adapter the base is frozen"));
    assert!(refused(&format!("{MINIMAL}algorithm = \"ppo\"\ncritic.kind = \"lora\"\n")).contains("critic.kind: a critic with its own"));
    for (targets, what) in
        [("\"qproj\"", "unknown module qproj"), ("\"q_proj\", \"q_proj\"", "q_proj is named twice"), ("", "an adapter needs")]
    {
        assert!(refused(&format!("{MINIMAL}lora.rank = 2\nlora.targets = [{targets}]\n")).contains(&format!("lora.targets: {what}")));
    }
    assert!(refused(&format!("{MINIMAL}dual_clip = 0.5\n")).contains("dual_clip: 0.5 is neither 0 nor above 1"));
    assert!(refused(&format!("{MINIMAL}kl.target = 6\n")).contains("kl.target: an adaptive weight that begins at 0"));
    assert!(refused("steps = \n").starts_with("/runs/a.toml:1: not TOML: "));
    assert!(refused("data.train = \"x\"\n").starts_with("/runs/a.toml: model: this setting has no default"));
    assert!(refused("model = \"a/b\"\n").starts_with("/runs/a.toml: data.train: this setting has no default"));
    assert!(refused("[stage]\nsteps = 1\n").starts_with("/runs/a.toml:1: stage: write each stage as a table of its own"));
    assert!(refused(&format!("{MINIMAL}optim.warmup = 1.5\n")).contains("optim.warmup: 1.5 is neither"));
    assert!(refused(&format!("{MINIMAL}clip = [0.1]\n")).contains("clip: expected a number from 0 to 1, or two"));
}

#[test]
fn ppo_has_defaults_of_its_own_which_are_written_out() {
    let text = format!("{MINIMAL}kl.coef = 0.05\n[[stage]]\nsteps = 2\n[[stage]]\nalgorithm = \"ppo\"\nsteps = 3\nbatch_prompts = 16\n");
    let c = parse(&text).unwrap();
    let ppo = &c.stages[1];
    assert_eq!((ppo.schedule.peak, ppo.critic.schedule.peak, ppo.batch_prompts), (5e-7, 9e-6, 16));
    assert_eq!((ppo.kl_coef, ppo.kl_estimator, ppo.kl_in_reward), (0.05, KlEstimator::K1, true));
    assert_eq!((ppo.advantage, ppo.group_size, ppo.optim.betas), (AdvantageKind::Gae, 1, (0.9, 0.95)));
    assert_eq!((c.stages[0].schedule.peak, c.stages[0].optim.betas), (1e-5, (0.9, 0.999)), "the other stage keeps its own");
    let again = Config::parse(&c.resolved, Path::new("/elsewhere/config.toml")).unwrap();
    assert_eq!(again, c);
    let single = parse(&format!("{MINIMAL}algorithm = \"ppo\"\n")).unwrap();
    assert_eq!((single.stages[0].schedule.peak, single.stages[0].batch_prompts), (5e-7, 64));
    assert_eq!(Config::parse(&single.resolved, Path::new("/elsewhere/config.toml")).unwrap(), single);
}

#[test]
fn a_subtask_that_a_mixture_goes_over_is_refused() {
    let mixed = |one: &str| format!("{MINIMAL}subtasks = [\"line\", \"edit\"]\nsubtask = \"{one}\"\n");
    assert!(refused(&mixed("function")).contains("`function` is not among the subtasks [line, edit]"));
    for allowed in ["line", "file"] {
        assert_eq!(parse(&mixed(allowed)).unwrap().subtasks, ["line", "edit"], "{allowed}: as a resolved configuration has it");
    }
}
