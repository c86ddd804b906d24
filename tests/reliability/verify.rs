//! `verify` on honest and on changed records.

use crate::place::Place;
use std::fs;

/// A run of supervised and GRPO steps whose loss looks at answers alone.
fn trained() -> Place {
    let place = Place::furnished();
    let alone = ["--set", "stage.2.kl.coef=0", "--set", "stage.2.entropy.coef=0", "--set", "stage.2.updates_per_batch=1"];
    let args = [&["train", "grpo.toml", "--out", "run"][..], &alone].concat();
    let (status, said) = place.run(&args);
    assert_eq!(status, Some(0), "{said}");
    place
}

/// Replaces the value of `key` in a line (from 1) of a file of JSON lines; returns the old one.
fn change(place: &Place, file: &str, line: usize, key: &str, value: &dyn Fn(&serde_json::Value) -> serde_json::Value) {
    let path = place.at("run").join(file);
    let mut lines: Vec<String> = fs::read_to_string(&path).expect("a file").lines().map(str::to_owned).collect();
    let mut object: serde_json::Value = serde_json::from_str(&lines[line - 1]).expect("JSON");
    object[key] = value(&object[key]);
    lines[line - 1] = object.to_string();
    fs::write(&path, lines.join("\n") + "\n").expect("written");
}

#[test]
fn an_honest_run_passes_and_a_changed_one_is_named() {
    let place = trained();
    let verify = |args: &[&str]| {
        let out = place.program(&[&["verify", "run"][..], args].concat()).output().expect("the program runs");
        (out.status.code(), String::from_utf8_lossy(&out.stdout).into_owned(), String::from_utf8_lossy(&out.stderr).into_owned())
    };
    let before = fs::read(place.at("run/metrics.jsonl")).expect("metrics");
    let (status, said, err) = verify(&[]);
    assert_eq!((status, err.as_str()), (Some(0), "every record is as computed\n"), "{said}");
    assert_eq!(
        said,
        "6 steps of 14 with 48 answers: rewards and advantages compared\n6 steps: the loss follows from the record and was compared\n"
    );
    // From the checkpoint after step 12, and from the start.
    for (step, from) in [("14", "the checkpoint after step 12"), ("9", "the start")] {
        let (status, said, err) = verify(&["--step", step]);
        assert_eq!(status, Some(0), "{said}{err}");
        assert!(said.contains(&format!("step {step} run again from {from}: answers, loss and gradient (")), "{said}");
    }
    assert_eq!(fs::read(place.at("run/metrics.jsonl")).expect("metrics"), before);

    let restore = |file: &str| {
        let path = place.at("run").join(file);
        let good = fs::read(&path).expect("a file");
        move || fs::write(&path, &good).expect("written")
    };
    for (file, line, key, value, args, message) in [
        ("rollouts/11.jsonl", 3, "reward", 0.625, &[][..], "run/rollouts/11.jsonl:3: reward: recorded 0.625, computed "),
        ("rollouts/9.jsonl", 8, "advantage", 9.0, &[], "run/rollouts/9.jsonl:8: advantage: recorded 9.0, computed "),
        ("metrics.jsonl", 12, "loss", 0.5, &[], "run/metrics.jsonl: loss: recorded 0.5, computed "),
        ("metrics.jsonl", 3, "loss", 0.5, &["--step", "3"], "run/metrics.jsonl: loss: recorded 0.5, computed "),
        ("metrics.jsonl", 13, "grad_sum", 1.0, &["--step", "14"], "run/metrics.jsonl: grad_sum: recorded 1.0, computed \""),
    ] {
        let undo = restore(file);
        change(&place, file, line, key, &|_| value.into());
        let (status, _, err) = verify(args);
        assert_eq!(status, Some(1), "{file} {key}");
        assert!(err.contains(message), "{err}");
        assert!(err.contains("this is the first difference, in step "), "{err}");
        undo();
    }
    // A log-probability is compared by running the step again.
    change(&place, "rollouts/14.jsonl", 2, "logprobs", &|old| {
        let mut new = old.clone();
        // The next number of f32: the smallest change there is.
        new[0] = f64::from(f32::from_bits((new[0].as_f64().expect("a number") as f32).to_bits() + 1)).into();
        new
    });
    assert_eq!(verify(&[]).0, Some(0));
    let (status, _, err) = verify(&["--step", "14"]);
    assert!(status == Some(1) && err.contains("rollouts/14.jsonl:2: logprobs: recorded"), "{err}");
    let (_, said, _) = verify(&["--step", "14", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!((&json["replay"]["difference"]["step"], &json["replay"]["from"]), (&14.into(), &12.into()));
}

#[test]
fn a_mixture_of_subtasks_is_verified_and_run_again() {
    let place = Place::furnished();
    let places = "{{ issue }}\n{% for f in files %}### {{ f.path }}\n{{ f.code }}\n{% endfor %}";
    fs::write(place.at("places.jinja"), places).expect("written");
    let config = fs::read_to_string(place.at("grpo.toml")).expect("a file");
    let mut mixed = "subtasks = [\"file\", \"function\", \"line\", \"edit\"]\nsubtask_weights.file = 2\n".to_owned();
    ["function", "line", "edit"].iter().for_each(|name| mixed += &format!("prompt.templates.{name} = \"places.jinja\"\n"));
    fs::write(place.at("mixed.toml"), mixed + &config).expect("written");
    let tasks = fs::read_to_string(place.at("tasks.jsonl")).expect("a file").replace("o__r-", "o__s-");
    fs::write(place.at("heldout.jsonl"), tasks).expect("written");
    let settings = ["data.heldout=heldout.jsonl", "stage.1.steps=3", "stage.2.steps=3", "stage.2.kl.coef=0", "stage.2.updates_per_batch=1"];
    let settings = settings.iter().flat_map(|s| ["--set", s]);
    let args: Vec<&str> = ["train", "mixed.toml", "--out", "run"].into_iter().chain(settings).collect();
    let (status, said) = place.run(&args);
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains("\n  edit: tasks 4  valid "), "{said}");
    let metrics = fs::read_to_string(place.at("run/metrics.jsonl")).expect("metrics");
    let last: serde_json::Value = serde_json::from_str(metrics.lines().last().expect("a line")).expect("JSON");
    assert!(last["eval"]["tasks"] == 16 && last["eval"]["function"]["tasks"] == 4, "{last}");
    assert!(last["eval"]["edit"]["applied"].is_number() && last["eval"]["line"]["interval"]["hit"].is_array(), "{last}");
    let html = fs::read_to_string(place.at("run/report.html")).expect("a report");
    assert!(html.contains("<b>Held-out: line</b>") && html.contains("<b>Reward by subtask</b>"));
    for args in [&["verify", "run"][..], &["verify", "run", "--step", "6"]] {
        let (status, said) = place.run(args);
        assert_eq!(status, Some(0), "{said}");
    }
    let record = fs::read_to_string(place.at("run/rollouts/5.jsonl")).expect("rollouts");
    let name = serde_json::from_str::<serde_json::Value>(record.lines().next().expect("a line")).expect("JSON")["subtask"].clone();
    change(&place, "rollouts/5.jsonl", 1, "subtask", &|_| "other".into());
    let (status, said) = place.run(&["verify", "run"]);
    assert!(status == Some(1) && said.contains(&format!("subtask: recorded \"other\", computed {name}")), "{said}");
    let (status, said) = place.run(&["report", "run"]);
    assert_eq!(status, Some(0), "{said}");
}

/// Codes, scales and the random bits of their rounding are all a checkpoint's and the seed's.
#[test]
fn a_step_with_moments_in_8_bits_runs_again_to_the_same_bits() {
    let place = Place::furnished();
    let (status, said) = place.run(&["train", "grpo.toml", "--out", "run", "--set", "optim.moments=8bit"]);
    assert_eq!(status, Some(0), "{said}");
    let saved = fs::read(place.at("run/checkpoints/12/tensors.safetensors")).expect("a checkpoint");
    assert!(saved.windows(13).any(|w| w == b"second_scale/"), "no moment is in 8 bits: this test is empty");
    for (step, from) in [("14", "the checkpoint after step 12"), ("9", "the start")] {
        let (status, said) = place.run(&["verify", "run", "--step", step]);
        assert_eq!(status, Some(0), "step {step}, {from}: {said}");
    }
}
