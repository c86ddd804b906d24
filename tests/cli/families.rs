//! `data import` of every family: files with its published fields, made by `fixtures/make_families.py`.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{program, stderr, stdout};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli/fixtures").join(name)
}

fn import(name: &str, format: &str) -> Vec<Value> {
    let path = fixture(name);
    let out = stdout(program().arg("data").arg("import").arg(path).args(["--format", format]), 0);
    out.lines().map(|l| serde_json::from_str(l).expect("a line of JSON")).collect()
}

const FIXED: &str = "-    return len(items) + 1\n+    return len(items)\n";

#[test]
fn every_family_gives_the_same_fix() {
    let mut files = vec![("swe_bench.jsonl.gz", "swe-bench", 3), ("multi_swe_bench.jsonl", "multi-swe-bench", 1)];
    if cfg!(feature = "parquet") {
        files.extend([
            ("swe_bench.parquet", "swe-bench", 3),
            ("swe_gym.parquet", "swe-gym", 2),
            ("swe_rebench.parquet", "swe-rebench", 2),
            ("swe_smith.parquet", "swe-smith", 1),
        ]);
    }
    for (name, format, n) in files {
        let tasks = import(name, format);
        assert_eq!(tasks.len(), n, "{name}");
        for task in tasks {
            assert!(task["patch"].as_str().is_some_and(|p| p.ends_with(FIXED)), "{name}: {}", task["patch"]);
            assert_eq!(task["gold_files"], serde_json::json!(["pkg/count.py"]), "{name}");
            assert_eq!(task["FAIL_TO_PASS"], serde_json::json!(["tests/test_count.py::test_empty"]), "{name}");
            assert_eq!(task["PASS_TO_PASS"].as_array().map(Vec::len), Some(2), "{name}");
        }
    }
}

#[cfg(feature = "parquet")]
#[test]
fn parquet_and_json_lines_say_the_same() {
    assert_eq!(import("swe_bench.parquet", "swe-bench"), import("swe_bench.jsonl.gz", "swe-bench"));
    let rebench = import("swe_rebench.parquet", "swe-rebench");
    assert_eq!(rebench[0]["meta"]["failed_lite_validators"], serde_json::json!(["has_short_problem_statement"]));
    assert_eq!((&rebench[0]["meta"]["is_lite"], &rebench[0]["meta"]["num_modified_files"]), (&Value::from(false), &Value::from(1)));
}

#[cfg(feature = "parquet")]
#[test]
fn rows_without_an_issue_are_counted() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let out = dir.path().join("t.jsonl");
    let mut command = program();
    command.args(["data", "import"]).arg(fixture("swe_smith.parquet")).args(["--format", "swe-smith", "--out"]).arg(&out);
    let table = stderr(&mut command, 0);
    let dropped = table.lines().find(|l| l.contains("has no issue's text")).expect("a row of the funnel");
    assert!(dropped.ends_with(" -2"), "{table}");
    let stats = stdout(program().args(["data", "stats", "--json"]).arg(&out), 0);
    let stats: Value = serde_json::from_str(&stats).expect("JSON");
    let funnel = &stats["funnels"][0];
    assert_eq!((&funnel["seen"], &funnel["kept"], &funnel["dropped"][0]["count"]), (&Value::from(3), &Value::from(1), &Value::from(2)));
}

#[cfg(feature = "parquet")]
#[test]
fn damaged_and_foreign_parquet_files_are_errors() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("t.parquet");
    let whole = std::fs::read(fixture("swe_bench.parquet")).expect("the fixture is there");
    for keep in [4, 100, whole.len() / 2, whole.len() - 9] {
        std::fs::write(&path, &whole[..keep]).expect("the file can be written");
        let error = stderr(program().args(["data", "import"]).arg(&path), 1);
        assert!(error.contains("t.parquet: cannot read it as parquet"), "{error}");
    }
    let mut scrambled = whole;
    scrambled[30..400].fill(0xA5);
    std::fs::write(&path, &scrambled).expect("the file can be written");
    assert!(stderr(program().args(["data", "import"]).arg(&path), 1).contains("t.parquet"));
    let error = stderr(program().args(["data", "import", "--format", "swe-rebench"]).arg(fixture("swe_gym.parquet")), 1);
    assert!(error.contains("swe_gym.parquet, row 1: field `meta`: expected an object, found nothing"), "{error}");
}

#[test]
fn wrong_fields_are_named_by_family() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("t.jsonl");
    let good = r#"{"instance_id":"a-1","repo":"o/r","base_commit":"c","patch":"--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\n+b\n","test_patch":"","problem_statement":"p","FAIL_TO_PASS":[],"PASS_TO_PASS":[]}"#;
    let cases = [
        (
            good.replace("\"FAIL_TO_PASS\":[]", "\"FAIL_TO_PASS\":7").replace("a-1", "a-2"),
            "swe-gym",
            ":2: field `FAIL_TO_PASS`: expected a list of test names, found `7`",
        ),
        (good.replace("\"repo\"", "\"repository\"").replace("a-1", "a-2"), "swe-gym", ":2: field `repo`: expected a text, found nothing"),
        (good.replace("a-1", "a-2"), "swe-smith", ":1: field `image_name`: expected a text, found nothing"),
        (good.replace("a-1", "a-2"), "multi-swe-bench", ":1: expected the fields `org`, `repo` and `number`"),
    ];
    for (second, format, expected) in cases {
        std::fs::write(&path, format!("{good}\n{second}\n")).expect("the file can be written");
        let error = stderr(program().args(["data", "import", "--format", format]).arg(&path), 1);
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_list_of_repositories_is_left_out() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let list = dir.path().join("list.txt");
    std::fs::write(&list, "# held out\nfork/UP\n").expect("the file can be written");
    let file = fixture("swe_bench.jsonl.gz");
    let with = |list: &str| {
        let mut command = program();
        command.args(["data", "import"]).arg(&file).args(["--decontaminate", list]);
        command
    };
    assert!(stderr(&mut with(list.to_str().expect("UTF-8")), 1).contains("every task is from a repository of the list"));
    assert_eq!(stdout(&mut with("swe-bench"), 0).lines().count(), 3);
    assert!(stderr(&mut with("no/such/file"), 1).contains("cannot read"));
}

#[test]
fn repeated_changes_are_left_out_where_that_is_asked_for() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let out = dir.path().join("t.jsonl");
    let import = |more: &[&str]| {
        let mut command = program();
        command.args(["data", "import", "--force"]).arg(fixture("swe_bench.jsonl.gz")).args(more).arg("--out").arg(&out);
        command
    };
    assert!(stderr(&mut import(&[]), 0).contains("3 tasks"), "the three rows make the same change");
    let table = stderr(&mut import(&["--near-duplicates", "0.8"]), 0);
    assert!(table.contains("makes the change of an earlier row again") && table.contains("1 task"), "{table}");
    let stats = stdout(program().args(["data", "stats", "--json"]).arg(&out), 0);
    let stats: Value = serde_json::from_str(&stats).expect("JSON");
    let dropped = &stats["funnels"][0]["dropped"][0];
    assert_eq!((&dropped["filter"], &dropped["count"]), (&Value::from("duplicate"), &Value::from(2)));
    let json: Value = serde_json::from_str(&stdout(&mut import(&["--near-duplicates", "0.8", "--json"]), 0)).expect("JSON");
    assert_eq!((&json["tasks"], &json["dropped"]["duplicate"]), (&Value::from(1), &Value::from(2)));
    let mut to_stdout = program();
    to_stdout.args(["data", "import", "--near-duplicates", "0.8"]).arg(fixture("swe_bench.jsonl.gz"));
    assert!(stderr(&mut to_stdout, 0).contains("makes the change of an earlier row again"), "a pipe is told as well");
    assert!(stderr(&mut import(&["--near-duplicates", "0"]), 2).contains("a number above 0 and at most 1"));
}
