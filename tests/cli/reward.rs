//! `reward`.

use super::{assert_golden, golden, program, stderr, stdout};

#[test]
fn file_answers_give_the_golden_rewards() {
    for score in ["fbeta", "f1", "exact", "hit"] {
        let args = ["reward", "--kind", "file", "--score", score, "--beta", "3", "--input"];
        let from_file = stdout(program().args(args).arg(golden("reward_file.in.jsonl")), 1);
        assert_golden(&format!("reward_file.{score}.out.jsonl"), &from_file);
        let input = std::fs::read(golden("reward_file.in.jsonl")).expect("the golden input is there");
        let from_stdin = stdout(program().args(&args[..7]).write_stdin(input), 1);
        assert_eq!(from_file, from_stdin);
    }
}

#[test]
fn answers_that_name_places_give_the_golden_rewards() {
    for kind in ["function", "line", "edit"] {
        let out = stdout(program().args(["reward", "--kind", kind, "--input"]).arg(golden(&format!("reward_{kind}.in.jsonl"))), 1);
        assert_golden(&format!("reward_{kind}.out.jsonl"), &out);
    }
}

#[test]
fn f_beta_is_the_default() {
    let default = stdout(program().args(["reward", "--kind", "file", "--input"]).arg(golden("reward_file.in.jsonl")), 1);
    assert_golden("reward_file.fbeta.out.jsonl", &default);
}

#[test]
fn good_input_ends_with_status_0_and_bad_lines_are_counted() {
    let line = r#"{"task": {"gold_files": ["a.py"], "files": {"a.py": "", "b.py": ""}}, "completion": "a.py"}"#;
    let out = stdout(program().args(["reward", "--kind", "file"]).write_stdin(format!("{line}\n\n{line}")), 0);
    assert_eq!(out.lines().count(), 2);
    let error = stderr(program().args(["reward", "--kind", "file"]).write_stdin("{\n".to_owned() + line), 1);
    assert!(error.contains("error: stdin: 1 line could not be read, the first of them line 1"), "{error}");
    assert_eq!(stdout(program().args(["reward", "--kind", "file"]).write_stdin(""), 0), "");
}

#[test]
fn patches_give_the_golden_rewards() {
    for (name, kind, more) in
        [("similarity", "similarity", None), ("discrete", "similarity", Some("--discrete")), ("unidiff", "unidiff", None)]
    {
        let input = golden(&format!("reward_{kind}.in.jsonl"));
        let args = ["reward", "--kind", kind].into_iter().chain(more);
        let from_file = stdout(program().args(args.clone()).arg("--input").arg(&input), 1);
        assert_golden(&format!("reward_{name}.out.jsonl"), &from_file);
        assert_eq!(from_file, stdout(program().args(args).write_stdin(std::fs::read(input).expect("the golden input is there")), 1));
    }
}

#[test]
fn wrong_usage_ends_with_status_2() {
    assert!(stderr(program().args(["reward", "--kind", "file", "--discrete"]), 2).contains("--discrete goes with --kind similarity"));
    for args in [vec!["reward"], vec!["reward", "--kind", "files"], vec!["reward", "--kind", "file", "--beta", "-1"], vec!["nonsense"]] {
        stderr(program().args(args), 2);
    }
    let missing = stderr(program().args(["reward", "--kind", "file", "--input", "no/such/file"]), 1);
    assert!(missing.contains("error: no/such/file: cannot read"), "{missing}");
}
