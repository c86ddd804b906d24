//! Tasks small enough to read, and answers that were written beforehand.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::json;
use sorft_native::agentless::generator::{Answer, Generator, Wanted};
use sorft_native::agentless::pipeline::{LastHop, Pipeline, Product, Settings};
use sorft_native::agentless::records::{Ranked, Tests};
use sorft_native::agentless::run;
use sorft_native::data::Task;
use sorft_native::data::subtask::evidence::Evidence;
use sorft_native::data::subtask::file::{Order, Universe};
use sorft_native::model::generate::FinishReason;
use sorft_native::{Error, Result};

/// Answers by a rule: (prompt, number of the answer) to a text.
pub struct Script<'a> {
    pub rule: &'a dyn Fn(&str, usize) -> String,
    /// After so many answers it is interrupted.
    pub stop_after: Cell<usize>,
    /// How many it gave.
    pub given: Cell<usize>,
    /// The order in which prompts are answered is turned round: it must not matter.
    pub backwards: bool,
}

impl<'a> Script<'a> {
    pub fn new(rule: &'a dyn Fn(&str, usize) -> String) -> Self {
        Self { rule, stop_after: Cell::new(usize::MAX), given: Cell::new(0), backwards: false }
    }
}

impl Generator for Script<'_> {
    fn count_tokens(&self, text: &str) -> usize {
        text.split_whitespace().count()
    }

    fn answer(&self, wanted: &[Wanted], on_answer: &mut dyn FnMut(usize, usize, Answer) -> Result<()>) -> Result<()> {
        let mut all: Vec<(usize, usize)> = wanted.iter().enumerate().flat_map(|(p, w)| (0..w.n).map(move |i| (p, i))).collect();
        if self.backwards {
            all.reverse();
        }
        for (p, i) in all {
            if self.given.get() >= self.stop_after.get() {
                return Err(Error::interrupted());
            }
            self.given.set(self.given.get() + 1);
            let text = (self.rule)(&wanted[p].prompt, i);
            on_answer(p, i, Answer { finish_reason: FinishReason::Eos, prompt_tokens: 1, tokens: text.len(), text })?;
        }
        Ok(())
    }
}

pub const CALC: &str = "import math\n\n\ndef add(a, b):\n    return a - b\n\n\ndef half(a):\n    return a / 2\n";
pub const SHOW: &str = "from calc import add\n\n\ndef show(a, b):\n    print(add(a, b))\n";
pub const GOLD: &str = "diff --git a/calc.py b/calc.py\n--- a/calc.py\n+++ b/calc.py\n@@ -2,7 +2,7 @@ import math\n \n \n def add(a, b):\n-    return a - b\n+    return a + b\n \n \n def half(a):\n";

/// Two tasks about one small repository; the second one's issue names it.
pub fn tasks() -> Vec<Task> {
    let files = json!({"calc.py": CALC, "show.py": SHOW, "pkg/util.py": "X = 1\n"});
    let task = |i: usize, issue: &str| {
        let value = json!({
            "instance_id": format!("o__r{i}-1"), "repo": format!("o/r{i}"), "base_commit": "c0ffee", "problem_statement": issue,
            "patch": GOLD, "test_patch": "secret", "hints_text": "secret", "files": files,
        });
        Task::from_json(value).expect("a task")
    };
    vec![task(1, "add subtracts\n\nadd(1, 2) gives -1"), task(2, "second: show is wrong")]
}

pub fn settings(pipeline: Pipeline, samples: usize) -> Settings {
    Settings {
        pipeline,
        samples,
        localisations: samples.min(3),
        greedy: false,
        max_prompt_tokens: 10_000,
        min_issue_tokens: 16,
        top_files: 2,
        universe: Universe::Files,
        order: Order::Alphabetical,
        evidence: Evidence::default(),
        until: LastHop::Edit,
        answers: 0,
        close: 0.0,
        definitions: 0,
        templates: BTreeMap::new(),
        context_lines: 1,
        fallback: false,
        seed: 7,
    }
}

/// An edit of `calc.py` as an answer in SWE-RL's format.
pub fn swe_rl(search: &str, replace: &str) -> String {
    format!("<think>\nIt is wrong.\n</think>\n<solution>\n{}\n</solution>", block("calc.py", search, replace))
}

pub fn block(path: &str, search: &str, replace: &str) -> String {
    format!("```python\n### {path}\n<<<<<<< SEARCH\n{search}\n=======\n{replace}\n>>>>>>> REPLACE\n```")
}

/// The whole run in a folder.
pub fn run_all(
    dir: &Path,
    tasks: &[Task],
    settings: &Settings,
    script: &Script<'_>,
    may_sample: bool,
) -> Result<(Vec<Product>, Vec<Ranked>)> {
    let products = run::sample(dir, tasks, settings, script, may_sample, &mut |_| ())?;
    let ranked = run::rank(tasks, &products, settings.pipeline, &|_, _| Tests::default())?;
    let records = run::finish(dir, (tasks, tasks), &products, &ranked, &BTreeMap::new())?;
    run::write_numbers(dir, &records, "settings")?;
    Ok((products, ranked))
}

/// All files below a folder, by path.
pub fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut out = BTreeMap::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(dir).expect("below").to_string_lossy().into_owned();
                out.insert(name, fs::read(&path).expect("a file"));
            }
        }
    }
    out
}
