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

    // As Agentless Mini: all that reproduce the issue count, and 3 patches with one test go over 2 with one.
    let (json, handed_in) = eval(dir, &[&run_tests[..], &["--reproduction-tests", "4"]].concat());
    assert!(handed_in["model_patch"].as_str().unwrap().contains("+    return a * b"), "{handed_in}");
    assert_eq!(resolved(&json), 0.0);
    let record: Record = serde_json::from_str(&fs::read_to_string(dir.join("run/reproductions.jsonl")).unwrap()).unwrap();
    assert_eq!(record.chosen.iter().map(|c| (c.votes, c.passes.len())).collect::<Vec<_>>(), [(2, 2), (1, 3)]);
}
