//! Reproduction tests written by a model: a script in its place wrote the answers beforehand, the real binary runs them and ranks.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use sorft_native::agentless::pipeline::{Pipeline, Settings};
use sorft_native::agentless::reproduction::Record;
use sorft_native::agentless::run;
use sorft_native::agentless::sandbox::{Limits, Sandbox};
use sorft_native::data::Task;

use crate::command::{output, place, program};
use crate::script::{Script, settings, swe_rl, tasks};

/// Prints a result for every line `NAME WORDS` of the files of tests: it passes where `calc.py` has the words.
const PROGRAM: &str = "for file in \"$@\"; do while read -r name words; do if grep -qF \"$words\" calc.py; then echo \"PASSED $file::$name\"; \
                       else echo \"FAILED $file::$name - no $words\"; fi; done < $file; done\n";

/// A test in shell that says the issue is resolved where `calc.py` has the words.
fn test(words: &str) -> String {
    format!("```python\nif grep -qF '{words}' calc.py; then echo 'Issue resolved'; else echo 'Issue reproduced'; fi\n```")
}

/// The settings that the options of [`eval`] mean.
fn mini() -> Settings {
    Settings { max_prompt_tokens: 7000, seed: 0, ..settings(Pipeline::Mini, 5) }
}

/// A task with tests, and its environment, in which a shell stands for Python.
fn set_up(dir: &Path) -> Task {
    let mut task = tasks().remove(0);
    task.test_patch = "diff --git a/t/test_new.py b/t/test_new.py\nnew file mode 100644\n--- /dev/null\n+++ b/t/test_new.py\n\
                       @@ -0,0 +1,2 @@\n+fixed a + b\n+kept import math\n"
        .into();
    task.fail_to_pass = Some(vec!["t/test_new.py::fixed".into()]);
    task.pass_to_pass = Some(vec!["t/test_new.py::kept".into()]);
    fs::write(dir.join("tests.jsonl"), task.to_json().to_string()).unwrap();
    let environment = format!(
        "[default]\npython = 'sh'\nseconds = 20\ncommand = ['sh', 'run.sh', '{{tests}}']\n[default.files]\n'run.sh' = '''\n{PROGRAM}'''\n"
    );
    fs::write(dir.join("environments.toml"), environment).unwrap();
    task
}

/// Puts answers where `eval --out run --resume` finds them: three patches that are wrong alike, two that are right, four tests.
fn answer_beforehand(dir: &Path, task: Task) {
    let run = dir.join("run");
    fs::create_dir(&run).unwrap();
    let rule = |prompt: &str, i: usize| match () {
        () if prompt.contains("BEGIN REPOSITORY") => "calc.py".to_owned(),
        () if prompt.contains("Issue reproduced") => match i {
            0 => test("a * b"),
            2 => test("a - b"),
            _ => test("a + b"),
        },
        () => swe_rl("    return a - b", if i < 3 { "    return a * b" } else { "    return a + b" }),
    };
    let script = Script::new(&rule);
    run::sample(&run, std::slice::from_ref(&task), &mini(), &script, true, &mut |_| ()).unwrap();
    let scripts = run::reproductions(&run, &[&task], 4, &mini(), &script, true, &mut |_| ()).unwrap();
    assert!(scripts[0].iter().all(Option::is_some));
}

fn eval(dir: &Path, more: &[&str]) -> (Value, Value) {
    let mut command = program();
    command.current_dir(dir).args(["eval", "--model", "m", "--tasks", "tests.jsonl", "--pipeline", "mini", "--samples", "5"]);
    command.args(["--localisations", "3", "--max-prompt-tokens", "7000", "--min-issue-tokens", "16", "--top-files", "2"]);
    command.args(["--context-lines", "1", "--max-new-tokens", "4", "--out", "run", "--resume", "--json"]).args(more);
    let (json, _) = output(&mut command, 0);
    let read = |name: &str| fs::read_to_string(dir.join("run").join(name)).unwrap();
    (serde_json::from_str(&json).unwrap(), serde_json::from_str(&read("all_preds.jsonl")).unwrap())
}

#[test]
fn tests_that_the_model_wrote_decide() {
    if let Err(e) = Sandbox::with_helper(Limits::default(), Vec::new(), Path::new(env!("CARGO_BIN_EXE_sorft-native"))) {
        assert!(std::env::var_os("SORFT_STRICT").is_none(), "{e}");
        eprintln!("SKIPPED: {e}");
        return;
    }
    let place = place();
    let dir = place.path();
    let task = set_up(dir);
    answer_beforehand(dir, task);
    let run_tests = ["--run-tests", "--repos", ".", "--environments", "environments.toml"];
    let resolved = |json: &Value| json["numbers"]["resolved"]["mean"].clone();
    let (json, handed_in) = eval(dir, &run_tests);
    assert!(handed_in["model_patch"].as_str().unwrap().contains("+    return a * b"), "the majority decides: {handed_in}");
    assert_eq!(resolved(&json), 0.0);

    let (json, handed_in) = eval(dir, &[&run_tests[..], &["--reproduction-tests", "4", "--top-tests", "1"]].concat());
    assert!(handed_in["model_patch"].as_str().unwrap().contains("+    return a + b"), "the test that most wrote decides: {handed_in}");
    assert_eq!(resolved(&json), 1.0);
    let record: Record = serde_json::from_str(&fs::read_to_string(dir.join("run/reproductions.jsonl")).unwrap()).unwrap();
    let before: Vec<Value> = record.answers.iter().map(|a| json!(a.as_ref().unwrap().1)).collect();
    assert_eq!(before, [json!("reproduced"), json!("reproduced"), json!("resolved"), json!("reproduced")]);
    assert_eq!((record.chosen.len(), record.chosen[0].answer, record.chosen[0].votes), (1, 1, 2));
    assert_eq!(record.chosen[0].passes, [3, 4], "every sample of the patch");

    // As Agentless Mini: all that reproduce the issue count, and 3 patches with one test go over 2 with one. Scripts are asked for as before.
    let (json, handed_in) = eval(dir, &[&run_tests[..], &["--top-tests", "30"]].concat());
    assert!(handed_in["model_patch"].as_str().unwrap().contains("+    return a * b"), "{handed_in}");
    assert_eq!(resolved(&json), 0.0);
    let record: Record = serde_json::from_str(&fs::read_to_string(dir.join("run/reproductions.jsonl")).unwrap()).unwrap();
    assert_eq!(record.chosen.iter().map(|c| (c.votes, c.passes.len())).collect::<Vec<_>>(), [(2, 2), (1, 3)]);

    // The folder knows the tests as well; fewer of them may be asked for.
    let again = |more: &[&str]| {
        let (json, _) = output(program().current_dir(dir).args(["eval", "--out", "run", "--json"]).args(more), 0);
        serde_json::from_str::<Value>(&json).unwrap()
    };
    assert_eq!(again(&["--resume"]), json);
    assert_eq!(again(&["--rerank-only"]), json);
    assert_eq!(resolved(&again(&["--rerank-only", "--top-tests", "1"])), 1.0);
    assert_eq!(resolved(&again(&["--resume"])), 1.0, "as it was ranked last");
    again(&["--rerank-only", "--reproduction-tests", "0"]);
    assert!(!dir.join("run/reproductions.jsonl").exists(), "no record of what did not rank");
}

#[test]
fn tests_of_given_patches_go_on_where_they_were_stopped() {
    if Sandbox::with_helper(Limits::default(), Vec::new(), Path::new(env!("CARGO_BIN_EXE_sorft-native"))).is_err() {
        return;
    }
    let place = place();
    let dir = place.path();
    set_up(dir);
    let eval = |more: &[&str], status: i32| output(program().current_dir(dir).arg("eval").args(more), status);
    let gold = ["--predictions", "gold", "--tasks", "tests.jsonl", "--run-tests", "--repos", ".", "--out", "gold"];
    // Tests that cannot be run at all leave no folder.
    let said = eval(&[&gold[..], &["--environments", "nowhere"]].concat(), 1).1;
    assert!(said.contains("nowhere") && !dir.join("gold").exists(), "{said}");
    let gold = [&gold[..], &["--environments", "environments.toml"]].concat();
    let (table, _) = eval(&gold, 0);
    assert!(eval(&gold, 2).1.contains("go on with it by --resume"));
    assert_eq!(eval(&["--out", "gold", "--resume"], 0).0, table);
    assert_eq!(eval(&[&gold[..], &["--resume"]].concat(), 0).0, table);
    assert!(eval(&["--out", "gold", "--resume", "--model", "m"], 2).1.contains("predictions"));

    for (more, needs) in [
        (&["--run-tests"][..], "--repos DIR"),
        (&["--environments", "environments.toml"], "--run-tests"),
        (&["--workers", "2"], "--run-tests"),
        (&["--candidates", "5"], "--repos DIR"),
        (&["--top-files", "5"], "cannot be used with"),
        (&["--run-tests", "--repos", ".", "--workers", "0"], "at least 1"),
    ] {
        let said = eval(&[&["--predictions", "gold", "--tasks", "tests.jsonl"], more].concat(), 2).1;
        assert!(said.contains(needs), "{more:?}: {said}");
    }
}
