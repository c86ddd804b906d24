//! What every hop asks, and how answers are merged.

use std::fs;
use std::path::Path;
use std::process::Command;

use sorft_native::agentless::evaluate::{Summary, table};
use sorft_native::agentless::files::{self, Found, Location, Prediction, Processed, Repair};
use sorft_native::agentless::pipeline::{LastHop, Pipeline, Settings};
use sorft_native::agentless::run;

use crate::script::{CALC, SHOW, Script, block, run_all, settings, swe_rl, tasks};

/// Localisation by the sample's number; of repairs most add, one does so with a comment, one multiplies.
fn mini(prompt: &str, index: usize) -> String {
    assert!(!prompt.contains("secret"), "nothing of the answer is in a prompt");
    if prompt.contains("BEGIN REPOSITORY") {
        return if prompt.contains("second:") { "nothing".into() } else { "Here:\n```\ncalc.py\nshow.py\n```".into() };
    }
    assert!(prompt.contains(CALC) && prompt.contains(SHOW), "whole files are shown: {prompt}");
    match index {
        0 => swe_rl("    return a - b", "    return a * b"),
        1 => swe_rl("    return a - b", "    # a sum\n    return a + b"),
        2 => "no idea".into(),
        _ => swe_rl("    return a - b", "    return a + b"),
    }
}

#[test]
fn mini_merges_and_votes() {
    let dir = tempfile::tempdir().unwrap();
    let script = Script::new(&mini);
    let (products, ranked) = run_all(dir.path(), &tasks(), &settings(Pipeline::Mini, 4), &script, true).unwrap();
    // 3 + 3 localisations, 4 repairs of the first task alone.
    assert_eq!(script.given.get(), 10);
    assert_eq!(products[0].files.merged, ["calc.py", "show.py"]);
    assert!(products[1].files.merged.is_empty() && products[1].candidates.iter().all(|c| c.trace.is_none()));
    assert_eq!(products[1].candidates[0].error.as_deref(), Some("no file was localised"));
    // The two sums are one patch but for a comment, and outvote the product; the first of them is handed in.
    assert_eq!(ranked[0].order, [1, 0]);
    assert!(ranked[0].best().contains("+    # a sum\n+    return a + b\n"));
    assert_eq!(ranked[1].best(), "");

    let predictions: Vec<Prediction> = files::read(&dir.path().join("all_preds.jsonl")).unwrap();
    assert_eq!(predictions.iter().map(|p| p.model_patch.as_str()).collect::<Vec<_>>(), [ranked[0].best(), ""]);
    let located: Vec<Location> = files::read(&dir.path().join("loc.jsonl")).unwrap();
    assert_eq!(located[0].found_files, Found::Samples(vec![vec!["calc.py".into(), "show.py".into()]; 3]));
    let repairs: Vec<Repair> = files::read(&dir.path().join("repair/output.jsonl")).unwrap();
    assert_eq!((repairs[0].raw_output.len(), repairs[0].file_names[0][0][0].as_str()), (4, Some("calc.py")));
    assert_eq!(repairs[0].extra["traj"][1]["prompt_of_sample"], 0);
    assert_eq!(repairs[0].extra["errors"][2], "the answer has 0 <think> tags; it must have one");
    let processed: Vec<Processed> = files::read(&dir.path().join("repair/output_3_normalized.jsonl")).unwrap();
    assert!(processed[0].normalized_patch.as_ref().is_some_and(|p| p.contains("return a + b")));
    assert!(fs::read_to_string(dir.path().join("eval.html")).unwrap().contains("<b>Patches</b>"));
}

#[test]
fn the_patch_is_one_that_git_applies() {
    let dir = tempfile::tempdir().unwrap();
    let (_, ranked) = run_all(dir.path(), &tasks(), &settings(Pipeline::Mini, 4), &Script::new(&mini), true).unwrap();
    let tree = tempfile::tempdir().unwrap();
    fs::write(tree.path().join("calc.py"), CALC).unwrap();
    fs::write(tree.path().join("p.patch"), ranked[0].best()).unwrap();
    let git = |args: &[&str]| Command::new("git").args(args).current_dir(tree.path()).status().expect("git").success();
    assert!(git(&["init", "-q"]) && git(&["apply", "--check", "p.patch"]) && git(&["apply", "p.patch"]));
    assert_eq!(fs::read_to_string(tree.path().join("calc.py")).unwrap(), CALC.replace("return a - b", "# a sum\n    return a + b"));
}

#[test]
fn every_list_of_files_is_followed_up_in_turn() {
    let rule = |prompt: &str, _: usize| {
        if prompt.contains("BEGIN REPOSITORY") {
            return if prompt.contains("at most 2") { "show.py" } else { "calc.py" }.to_owned();
        }
        swe_rl("    return a - b", "    return a + b")
    };
    let dir = tempfile::tempdir().unwrap();
    let mut settings = settings(Pipeline::Mini, 6);
    settings.localisations = 12;
    let (products, _) = run_all(dir.path(), &tasks()[..1], &settings, &Script::new(&rule), true).unwrap();
    let shown: Vec<&str> = products[0].candidates.iter().map(|c| c.found_files[0].as_str()).collect();
    assert!(shown == ["calc.py", "show.py"].repeat(3) || shown == ["show.py", "calc.py"].repeat(3), "{shown:?}");
    // An edit of a file that was not shown is dropped.
    let of = |name: &str| products[0].candidates.iter().find(|c| c.found_files[0] == name).unwrap();
    assert!(of("show.py").changed.is_empty() && of("show.py").error.as_ref().unwrap().contains("this file was not shown"));
    assert!(of("calc.py").changed.contains_key("calc.py"));
}

#[test]
fn without_a_file_the_fallback_goes_on_with_bm25() {
    let rule = |prompt: &str, _: usize| {
        if prompt.contains("BEGIN REPOSITORY") { "nothing".to_owned() } else { swe_rl("    return a - b", "    return a + b") }
    };
    let dir = tempfile::tempdir().unwrap();
    let mut settings = settings(Pipeline::Mini, 2);
    settings.fallback = true;
    let (products, ranked) = run_all(dir.path(), &tasks()[..1], &settings, &Script::new(&rule), true).unwrap();
    assert!(products[0].fell_back && products[0].files.merged.contains(&"calc.py".to_owned()));
    assert!(!ranked[0].best().is_empty());
    let numbers = fs::read_to_string(dir.path().join("tasks.jsonl")).unwrap();
    assert!(numbers.contains("\"file.any\":0.0"), "what BM25 found is not the model's: {numbers}");
}

/// Answers of the four hops, told apart by what their prompts show.
fn sorft(prompt: &str, index: usize) -> String {
    assert!(!prompt.contains("secret"));
    if prompt.contains("\nFiles:\n") {
        return ["calc.py", "show.py\ncalc.py", "gone.py"][index].into();
    }
    if prompt.contains("SEARCH/REPLACE") || prompt.contains("<<<<<<< SEARCH") {
        return match index {
            0 => block("calc.py", "    return a - b", "    return a + b"),
            _ => block("calc.py", "    return a / 7", "    return a"),
        };
    }
    if prompt.contains("5|") {
        return ["```\ncalc.py\nline: 5\n```", "```\ncalc.py\nline: 4-5\n```", "calc.py\nline: 999"][index].into();
    }
    ["calc.py\nfunction: add", "calc.py\nfunction: half\nfunction: add", "calc.py\nfunction: nothing"][index].into()
}

#[test]
fn four_hops_lead_to_an_edit() {
    let dir = tempfile::tempdir().unwrap();
    let (products, ranked) = run_all(dir.path(), &tasks()[..1], &settings(Pipeline::Sorft, 4), &Script::new(&sorft), true).unwrap();
    let p = &products[0];
    assert_eq!(p.files.merged, ["calc.py", "show.py"], "two answers name calc.py, one show.py");
    let functions = p.functions.as_ref().unwrap();
    let named: Vec<&str> = functions.merged.iter().map(|(_, name)| name.as_str()).collect();
    assert_eq!(named, ["add", "half"], "what is not there is not kept");
    assert!(functions.samples[2].error.is_some());
    let lines = p.lines.as_ref().unwrap();
    assert_eq!(lines.merged.iter().map(|(_, n)| *n).collect::<Vec<_>>(), [5, 4]);
    assert_eq!(p.candidates.iter().filter(|c| !c.changed.is_empty()).count(), 2, "two sets of lines, each with its own answer 0");
    assert!(ranked[0].best().contains("+    return a + b\n"));
    let located = fs::read_to_string(dir.path().join("loc.jsonl")).unwrap();
    assert!(located.contains(r#""found_related_locs":{"calc.py":["function: add\nfunction: half"]}"#), "{located}");
    assert!(located.contains(r#""found_edit_locs":[{"calc.py":["line: 5"]},{"calc.py":["line: 4\nline: 5"]},{}]"#), "{located}");
    let numbers = fs::read_to_string(dir.path().join("tasks.jsonl")).unwrap();
    for expected in [r#""file.all":1.0"#, r#""function.all":1.0"#, r#""line.all":1.0"#, r#""patch.exact":1.0"#, r#""patch.similarity":1.0"#]
    {
        assert!(numbers.contains(expected), "{expected}: {numbers}");
    }
}

#[test]
fn localisation_alone_says_nothing_of_patches() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, short) = (dir.path().join("whole"), dir.path().join("short"));
    for dir in [&whole, &short] {
        fs::create_dir(dir).unwrap();
    }
    let all = settings(Pipeline::Sorft, 4);
    run_all(&whole, &tasks()[..1], &all, &Script::new(&sorft), true).unwrap();
    let settings = Settings { until: LastHop::Function, ..all };
    let (products, _) = run_all(&short, &tasks()[..1], &settings, &Script::new(&sorft), true).unwrap();
    assert!(products[0].functions.is_some() && products[0].lines.is_none() && products[0].candidates.is_empty());
    let record = |dir: &Path| run::read_records(dir).unwrap().remove(0);
    let (whole, short) = (record(&whole), record(&short));
    assert!(!short.numbers.is_empty() && short.no_patch.is_none());
    assert!(short.numbers.iter().all(|(name, value)| whole.numbers[name] == *value), "the same as far as it goes");
    assert!(!short.numbers.keys().any(|name| name.starts_with("patch.") || name.starts_with("line.")), "{short:?}");
    for (unit, baseline) in [("file", "bm25.file"), ("file", "fused.file"), ("function", "bm25.function")] {
        let of = |name: &str| short.numbers[&format!("{name}.all")];
        assert_eq!(short.numbers[&format!("{baseline}.lead.all")], of(unit) - of(baseline), "{baseline}");
    }
    let text = table::render(&Summary::new(&[short]), Some(80));
    assert!(text.contains("ahead of it, points") && !text.contains("in the patch"), "{text}");
}
