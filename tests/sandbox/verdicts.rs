//! Tests of made-up tasks: a shell script stands for the test program, so that no Python is needed.

use std::collections::BTreeMap;
use std::path::Path;

use assert_cmd::Command;
use serde_json::{Value, json};
use sorft_native::agentless::reproduction::Says;
use sorft_native::agentless::rerank::{Candidate, ORDERS, select};
use sorft_native::agentless::run_tests::{Environments, Runner, Submission, evidence::gather};
use sorft_native::data::Task;
use sorft_native::data::source::swe_bench;

use super::{program, quick, sandbox_with};

/// Prints a result for every line of the files of tests: `NAME WORD` passes where `source.py` has the word. It comes as an environment's file.
const PROGRAM: &str = "for file in \"$@\"; do while read -r name word; do if grep -q \"$word\" source.py; then echo \"PASSED $file::$name\"; \
                       else echo \"FAILED $file::$name - no $word\"; fi; done < $file; done\n";

fn diff(path: &str, old: &str, new: &str) -> String {
    format!("diff --git a/{path} b/{path}\n--- a/{path}\n+++ b/{path}\n@@ -1 +1 @@\n-{old}\n+{new}\n")
}

/// A task whose issue is that `source.py` has no `two`; `one` is to stay.
fn task(id: &str) -> Value {
    json!({
        "instance_id": id, "repo": "made/up", "base_commit": "0", "problem_statement": "no two",
        "patch": diff("source.py", "one", "one two"),
        "test_patch": "diff --git a/tests/test_new.py b/tests/test_new.py\nnew file mode 100644\n--- /dev/null\n+++ b/tests/test_new.py\n\
                       @@ -0,0 +1,2 @@\n+fixed two\n+kept one\n",
        "files": {"source.py": "one\n", "tests/test_old.py": "old one\n"},
    })
}

/// A folder with tasks, an environment and predictions.
fn set_up(tasks: &[Value], script: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let lines: String = tasks.iter().map(|t| format!("{t}\n")).collect();
    std::fs::write(dir.path().join("tasks.jsonl"), lines).unwrap();
    let environment = format!(
        "[repo.'made/up']\ncommand = ['sh', 'run.sh', '{{tests}}']\ntests = ['tests/test_old.py']\npython = 'sh'\nseconds = 5\n\
         [repo.'made/up'.files]\n'run.sh' = '''\n{script}'''\n"
    );
    std::fs::write(dir.path().join("environments.toml"), environment).unwrap();
    dir
}

fn run_tests(dir: &Path, tasks: &str, rest: &[&str]) -> Command {
    let mut command = Command::new(program());
    command.current_dir(dir).args(["run-tests", "--tasks", tasks, "--repos", ".", "--environments", ".", "--json"]).args(rest);
    command
}

fn answer(command: &mut Command, status: i32) -> Value {
    let out = command.output().unwrap();
    assert_eq!(out.status.code(), Some(status), "{}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap()
}

#[test]
fn gold_resolves_all_and_no_change_nothing() {
    if sandbox_with(quick(), Vec::new()).is_none() {
        return;
    }
    let without_tests = json!({"instance_id": "c", "repo": "made/up", "test_patch": "", "patch": diff("source.py", "one", "x"),
        "problem_statement": "x", "files": {"source.py": "one\n"}});
    let dir = set_up(&[task("a"), task("b"), without_tests], PROGRAM);
    let error = run_tests(dir.path(), "tasks.jsonl", &["--predictions", "gold"]).output().unwrap();
    assert!(error.status.code() == Some(1) && String::from_utf8_lossy(&error.stderr).contains("--establish"));
    let counts = answer(&mut run_tests(dir.path(), "tasks.jsonl", &["--establish", "with.jsonl", "--workers", "2"]), 0);
    assert_eq!((&counts["tasks"], &counts["kept"], &counts["not_run"]), (&json!(3), &json!(2), &json!(1)));
    let tasks = swe_bench::read(&dir.path().join("with.jsonl")).unwrap();
    assert_eq!(tasks[0].fail_to_pass.as_deref().unwrap(), ["tests/test_new.py::fixed"]);
    assert_eq!(tasks[0].pass_to_pass.as_deref().unwrap(), ["tests/test_new.py::kept"]);
    for (predictions, resolved) in [("gold", 2), ("empty", 0)] {
        let found = answer(&mut run_tests(dir.path(), "with.jsonl", &["--predictions", predictions, "--out", "out"]), 0);
        assert_eq!((&found["applied"], &found["resolved"]), (&json!(2), &json!(resolved)), "{predictions}: {found}");
    }
}

#[test]
fn predictions_are_judged_as_the_harness_does_and_once() {
    if sandbox_with(quick(), Vec::new()).is_none() {
        return;
    }
    let ids = ["breaks", "none", "misfit", "fuzzy", "cheats", "absent"];
    let tasks: Vec<Value> = ids
        .iter()
        .map(|id| {
            let mut task = task(id);
            task["FAIL_TO_PASS"] = json!(["tests/test_new.py::fixed"]);
            task["PASS_TO_PASS"] = json!(["tests/test_new.py::kept"]);
            task
        })
        .collect();
    let dir = set_up(&tasks, PROGRAM);
    let fuzzy = "--- a/source.py\n+++ b/source.py\n@@ -1,2 +1,3 @@\n one\n+two\n gone\n";
    let cheats = "diff --git a/tests/test_new.py b/tests/test_new.py\nnew file mode 100644\n--- /dev/null\n+++ b/tests/test_new.py\n@@ -0,0 +1 @@\n+fixed one\n";
    let patches = [diff("source.py", "one", "two"), String::new(), diff("source.py", "three", "two"), fuzzy.to_owned(), cheats.to_owned()];
    let lines =
        ids.iter().zip(&patches).map(|(id, p)| json!({"instance_id": id, "model_name_or_path": "m", "model_patch": p}).to_string() + "\n");
    std::fs::write(dir.path().join("preds.jsonl"), lines.collect::<String>()).unwrap();
    let run = || answer(&mut run_tests(dir.path(), "tasks.jsonl", &["--predictions", "preds.jsonl", "--out", "out"]), 0);
    let found = run();
    let of = |id: &str| found["instances"][id].clone();
    assert_eq!((&found["applied"], &found["resolved"]), (&json!(3), &json!(1)), "{found}");
    assert_eq!(of("breaks")["tests_status"]["PASS_TO_PASS"]["failure"], json!(["tests/test_new.py::kept"]));
    assert_eq!((&of("none")["patch_is_None"], &of("none")["patch_exists"]), (&json!(true), &json!(false)));
    assert!(of("misfit")["note"].as_str().unwrap().contains("line 1 is not what the patch expects"));
    assert_eq!(of("fuzzy")["resolved"], json!(true));
    assert_eq!(of("cheats")["resolved"], json!(false));
    assert_eq!(of("absent"), Value::Null);
    let folder = std::fs::read_dir(dir.path().join("out/fuzzy")).unwrap().next().unwrap().unwrap().path();
    let report: Value = serde_json::from_str(&std::fs::read_to_string(folder.join("report.json")).unwrap()).unwrap();
    assert_eq!(report["fuzzy"], of("fuzzy"));
    assert!(std::fs::read_to_string(folder.join("test_output.txt")).unwrap().contains("PASSED tests/test_new.py::fixed"));
    // What is there is taken as it is: a report that was changed shows that nothing was run again.
    let mut changed = report;
    changed["fuzzy"]["note"] = json!("from before");
    std::fs::write(folder.join("report.json"), changed.to_string()).unwrap();
    assert_eq!(run()["instances"]["fuzzy"]["note"], json!("from before"));
}

#[test]
fn tests_that_do_not_end_resolve_nothing() {
    if sandbox_with(quick(), Vec::new()).is_none() {
        return;
    }
    let mut endless = task("a");
    endless["FAIL_TO_PASS"] = json!(["tests/test_new.py::fixed"]);
    endless["PASS_TO_PASS"] = json!([]);
    let dir = set_up(&[endless], &format!("{PROGRAM}sleep 1000\n"));
    let path = dir.path().join("environments.toml");
    std::fs::write(&path, std::fs::read_to_string(&path).unwrap().replace("seconds = 5", "seconds = 2")).unwrap();
    let found = answer(&mut run_tests(dir.path(), "tasks.jsonl", &["--predictions", "gold"]), 0);
    let report = &found["instances"]["a"];
    assert!(report["resolved"] == json!(false) && report["note"].as_str().unwrap().contains("time"), "{report}");
}

#[test]
fn regression_tests_that_do_not_run_are_an_error_and_those_that_a_patch_stops_have_failed() {
    let Some(sandbox) = sandbox_with(quick(), Vec::new()) else { return };
    let task = Task::from_json(task("a")).unwrap();
    let gathered = |program: &str, seconds: &str| {
        let dir = set_up(&[], program);
        let path = dir.path().join("environments.toml");
        std::fs::write(&path, std::fs::read_to_string(&path).unwrap().replace("seconds = 5", seconds)).unwrap();
        let runner = Runner::new(sandbox.clone(), dir.path(), Environments::read(dir.path()).unwrap(), None);
        let mut candidates = vec![Candidate::default(); 2];
        let patches = [diff("source.py", "one", "one two"), diff("source.py", "one", "one endless")];
        let found = gather(&runner, &task, &patches.each_ref().map(String::as_str), (&[], 1), &mut candidates);
        found.map(|_| candidates.into_iter().map(|c| c.failed_regressions).collect::<Vec<_>>())
    };
    let said = |program: &str| gathered(program, "seconds = 2").unwrap_err().to_string();
    assert!(said("echo nothing\n").contains("no test was run: nothing"));
    assert!(said("sleep 1000\n").contains("on the base commit the tests were stopped: their time was up"));
    let endless = format!("if grep -q endless source.py; then sleep 1000; fi\n{PROGRAM}");
    assert_eq!(gathered(&endless, "seconds = 2").unwrap(), [Some(0), Some(1)]);
}

#[test]
fn evidence_of_tests_decides_between_candidates() {
    let Some(sandbox) = sandbox_with(quick(), Vec::new()) else { return };
    let dir = set_up(&[], PROGRAM);
    let runner = Runner::new(sandbox, dir.path(), Environments::read(dir.path()).unwrap(), None);
    let task = Task::from_json(task("a")).unwrap();
    let says = |word: &str| format!("if grep -q {word} source.py; then echo 'Issue resolved'; else echo 'Issue reproduced'; fi\n");
    let scripts = [says("two"), says("one"), "exit 1\n".to_owned(), says("t.o")];
    let patches = [
        diff("source.py", "one", "two"),
        diff("source.py", "one", "one three"),
        String::new(),
        diff("source.py", "one", "one two"),
        "x".to_owned(),
    ];
    let texts: Vec<&str> = patches.iter().map(String::as_str).collect();
    let mut candidates: Vec<Candidate> = texts.iter().map(|t| Candidate { normalized: (*t).to_owned(), ..Candidate::default() }).collect();
    let found = gather(&runner, &task, &texts, (&scripts.each_ref().map(String::as_str), 9), &mut candidates).unwrap();
    assert_eq!(found.before, [Says::Reproduced, Says::Resolved, Says::Other, Says::Reproduced]);
    assert_eq!(found.chosen.iter().map(|c| c.place).collect::<Vec<_>>(), [0, 3], "the second says that nothing is wrong");
    let failed: Vec<Option<usize>> = candidates.iter().map(|c| c.failed_regressions).collect();
    assert_eq!(failed, [Some(1), Some(0), None, Some(0), None]);
    let passed: BTreeMap<usize, Vec<bool>> =
        candidates.iter().enumerate().filter_map(|(i, c)| Some((i, c.reproductions.clone()?))).collect();
    assert_eq!(passed, BTreeMap::from([(0, vec![true; 2]), (1, vec![false; 2]), (3, vec![true; 2])]));
    assert_eq!(select(&candidates, &ORDERS), Some(3));

    // What a runner with a folder has found it does not find again: with results that were changed there, others come out.
    let out = dir.path().join("verdicts");
    let Some(sandbox) = sandbox_with(quick(), Vec::new()) else { return };
    let kept = Runner::new(sandbox, dir.path(), Environments::read(dir.path()).unwrap(), Some(&out));
    let again = || {
        let mut candidates = vec![Candidate::default(); texts.len()];
        let found = gather(&kept, &task, &texts, (&scripts.each_ref().map(String::as_str), 9), &mut candidates).unwrap();
        (found, candidates.into_iter().map(|c| (c.failed_regressions, c.reproductions)).collect::<Vec<_>>())
    };
    let first = again();
    let expected: Vec<_> = candidates.iter().map(|c| (c.failed_regressions, c.reproductions.clone())).collect();
    assert_eq!(first, (found, expected));
    let mut changed = 0;
    for folder in std::fs::read_dir(out.join("a")).unwrap() {
        let path = folder.unwrap().path().join("regressions.json");
        if let Ok(text) = std::fs::read_to_string(&path) {
            std::fs::write(&path, text.replace("tests/test_old.py::old", "tests/test_old.py::another")).unwrap();
            changed += usize::from(text.contains("::old"));
        }
    }
    assert_eq!((changed, again()), (3, first.clone()), "the same name on all sides");
    std::fs::write(dir.path().join("environments.toml"), "").unwrap();
    assert_eq!(again(), first, "nothing was run");
    // A patch without tests does not touch the base commit's results.
    assert!(runner.report(&task, Submission::Nothing).is_err());
}
