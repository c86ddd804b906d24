//! Runs that are cut off anywhere end with the bytes of a run that was not.

use std::cell::Cell;
use std::fs;

use sorft_native::agentless::pipeline::Pipeline;

use crate::script::{Script, contents, run_all, settings, swe_rl, tasks};

fn rule(prompt: &str, index: usize) -> String {
    let at = prompt.len() + index;
    if prompt.contains("BEGIN REPOSITORY") || prompt.contains("\nFiles:\n") {
        return ["calc.py", "calc.py\nshow.py", "show.py"][at % 3].into();
    }
    if prompt.contains("SEARCH") {
        return swe_rl("    return a - b", &format!("    return a + b + {}", at % 2));
    }
    if at.is_multiple_of(2) { "calc.py\nfunction: add\nline: 5".into() } else { "calc.py\nfunction: half\nline: 9".into() }
}

#[test]
fn a_run_cut_off_after_any_answer_ends_with_the_same_bytes() {
    for pipeline in [Pipeline::Mini, Pipeline::Sorft] {
        let settings = settings(pipeline, 4);
        let whole = tempfile::tempdir().unwrap();
        let script = Script::new(&rule);
        run_all(whole.path(), &tasks(), &settings, &script, true).unwrap();
        let expected = contents(whole.path());
        let total = script.given.get();
        for stop in 0..total {
            let dir = tempfile::tempdir().unwrap();
            let first = Script { stop_after: Cell::new(stop), backwards: stop % 2 == 0, ..Script::new(&rule) };
            assert_eq!(run_all(dir.path(), &tasks(), &settings, &first, true).unwrap_err().exit_code(), 130);
            let journal = dir.path().join("samples.jsonl");
            let text = fs::read(&journal).unwrap();
            // Killed within a line.
            fs::write(&journal, &text[..text.len().saturating_sub(stop % 5)]).unwrap();
            run_all(dir.path(), &tasks(), &settings, &Script::new(&rule), true).unwrap();
            let files = contents(dir.path());
            assert_eq!(files.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
            let different: Vec<&String> = files.keys().filter(|f| *f != "eval.html" && files[*f] != expected[*f]).collect();
            assert!(different.is_empty(), "{pipeline:?}, cut off after {stop}: {different:?}");
        }
    }
}

#[test]
fn ranking_again_samples_nothing_and_misses_what_is_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(Pipeline::Mini, 4);
    run_all(dir.path(), &tasks(), &settings, &Script::new(&rule), true).unwrap();
    let before = contents(dir.path());
    let never = |_: &str, _: usize| -> String { panic!("nothing is to be sampled") };
    run_all(dir.path(), &tasks(), &settings, &Script::new(&never), false).unwrap();
    assert_eq!(before, contents(dir.path()));
    let mut more = settings.clone();
    more.samples = 5;
    let error = run_all(dir.path(), &tasks(), &more, &Script::new(&never), false).unwrap_err().to_string();
    assert!(error.contains("answers of the hop `repair` were never sampled"), "{error}");
}
