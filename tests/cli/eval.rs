//! `eval` of given predictions, and the comparison of two evaluations.

use std::fs;

use super::{assert_golden, golden, program, stderr, stdout};

#[test]
fn predictions_give_the_golden_numbers() {
    let dir = tempfile::tempdir().expect("a folder");
    let tasks = golden("tasks_with_files.jsonl");
    for what in ["gold", "empty", "eval.preds.jsonl"] {
        let given = if what.ends_with(".jsonl") { golden(what).display().to_string() } else { what.to_owned() };
        let args = ["eval", "--predictions", &given, "--tasks"];
        let name = what.trim_end_matches(".jsonl").trim_start_matches("eval.");
        let table = stdout(program().args(args).arg(&tasks).arg("--out").arg(dir.path().join(name)), 0);
        assert_golden(&format!("eval_{name}.out.txt"), &table);
        assert_golden(&format!("eval_{name}.out.json"), &stdout(program().args(args).arg(&tasks).arg("--json"), 0));
        let written = fs::read_to_string(dir.path().join(name).join("tasks.jsonl")).expect("tasks.jsonl");
        assert_golden(&format!("eval_{name}.tasks.jsonl"), &written);
    }
    let compare = |more: &[&str]| stdout(program().current_dir(dir.path()).args(["eval", "--compare", "empty", "preds"]).args(more), 0);
    assert_golden("eval_compare.out.txt", &compare(&[]));
    assert_golden("eval_compare.out.json", &compare(&["--json"]));
    let page = fs::read_to_string(dir.path().join("preds/eval.html")).expect("eval.html");
    assert!(!["http", "<script", "src="].iter().any(|f| page.contains(f)), "nothing comes from elsewhere");
}

#[test]
fn what_means_nothing_is_refused() {
    let tasks = golden("tasks_with_files.jsonl");
    let refused = |args: &[&str], status: i32| stderr(program().arg("eval").args(args).arg("--tasks").arg(&tasks), status);
    assert!(refused(&["--predictions", "gold", "--model", "m"], 2).contains("cannot be used with"));
    assert!(refused(&[], 2).contains("--model"));
    for more in [["--device", "cpu"], ["--samples", "3"], ["--adapter", "a"]] {
        assert!(refused(&[&["--predictions", "gold"], &more[..]].concat(), 2).contains("cannot be used with"), "{more:?}");
    }
    assert!(refused(&["--predictions", "no/such/file"], 1).contains("no/such/file: cannot read"));
    assert!(refused(&["--model", "m", "--samples", "0"], 2).contains("--samples takes a number of at least 1"));
    assert!(refused(&["--model", "nowhere"], 1).contains("nowhere"));
    let dir = tempfile::tempdir().expect("a folder");
    let nothing = dir.path().display().to_string();
    let error = stderr(program().args(["eval", "--compare", &nothing, &nothing]), 1);
    assert!(error.contains("there is no tasks.jsonl"), "{error}");
}

#[cfg(target_os = "linux")]
#[test]
fn what_tests_need_is_looked_for_first() {
    let dir = tempfile::tempdir().expect("a folder");
    let error = |command: &[&str], repos: &str, environment: &str| {
        fs::write(dir.path().join("environments.toml"), format!("[default]\n{environment}\n")).expect("written");
        let mut program = program();
        program.current_dir(dir.path()).args(command).args([
            "--predictions",
            "gold",
            "--repos",
            repos,
            "--environments",
            "environments.toml",
        ]);
        stderr(program.arg("--tasks").arg(golden("tasks_with_files.jsonl")), 1)
    };
    for command in [&["run-tests"][..], &["eval", "--run-tests"]] {
        let said = error(command, "nowhere", "");
        assert!(said.contains("nowhere: there is no such folder") && said.lines().count() < 5, "{said}");
    }
    for (environment, expected) in [
        ("python = 'no/python'", "no/python"),
        ("python = 'nopython'", "there is no interpreter nopython on the path"),
        ("python = 'sh'\nread_only = ['gone']", "gone, which is not there"),
    ] {
        let said = error(&["run-tests"], ".", environment);
        assert!(said.contains(expected) && said.contains("environment of o/one: "), "{said}");
        assert!(said.lines().count() < 5, "once, not task by task: {said}");
    }
}
