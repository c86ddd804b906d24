//! The real binary: `fix` and `eval` with a tiny model. Where an answer is to be of use it was put into the folder's `samples.jsonl` before.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use sorft_native::agentless::fix::task;
use sorft_native::agentless::pipeline::{Pipeline, Settings};
use sorft_native::agentless::repository::Repository;
use sorft_native::agentless::run;

use crate::make;
use crate::script::{CALC, SHOW, Script, contents, settings, swe_rl, tasks};

pub fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_sorft-native"))
}

pub fn output(command: &mut Command, status: i32) -> (String, String) {
    let Output { stdout, stderr, status: found } = command.output().expect("the program runs");
    let (stdout, stderr) = (String::from_utf8_lossy(&stdout).into_owned(), String::from_utf8_lossy(&stderr).into_owned());
    assert_eq!(found.code(), Some(status), "stderr: {stderr}");
    (stdout, stderr)
}

/// A folder with a model `m` of 4096 positions, and the repository `r` with one commit.
pub fn place() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    let model = dir.path().join("m");
    fs::create_dir(&model).expect("made");
    make::folder(&model, "llama", "F32");
    let mut config = make::config("llama");
    config["max_position_embeddings"] = 8192.into();
    make::write_json(&model.join("config.json"), &config);
    let repository = dir.path().join("r");
    fs::create_dir_all(repository.join("tests")).expect("made");
    for (name, text) in [("calc.py", CALC), ("show.py", SHOW), ("tests/test_calc.py", "assert True\n"), ("README.md", "# r\n")] {
        fs::write(repository.join(name), text).expect("written");
    }
    git(&repository, &["init", "-q", "-b", "main"]);
    git(&repository, &["add", "."]);
    git(&repository, &["-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-qm", "first"]);
    fs::write(dir.path().join("issue.md"), "add subtracts\n\nadd(1, 2) gives -1\n").expect("written");
    dir
}

fn git(folder: &Path, args: &[&str]) -> String {
    let out = Command::new("git").arg("-C").arg(folder).args(args).output().expect("git");
    assert!(out.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// The settings that the options of [`fix`] mean.
fn fix_settings() -> Settings {
    Settings {
        localisations: 2,
        max_prompt_tokens: 7000,
        top_files: 3,
        context_lines: 10,
        fallback: true,
        seed: 0,
        min_issue_tokens: 64,
        ..settings(Pipeline::Mini, 2)
    }
}

fn fix(dir: &Path, more: &[&str]) -> Command {
    let mut command = program();
    command.current_dir(dir).args(["fix", "--repo", "r", "--issue", "issue.md", "--model", "m", "--pipeline", "mini", "--samples", "2"]);
    command.args(["--max-new-tokens", "4", "--max-prompt-tokens", "7000", "--min-issue-tokens", "64"]).args(more);
    command
}

/// Puts answers that fix the issue where `fix --out run --resume` finds them.
fn answer_beforehand(dir: &Path) {
    let run = dir.join("run");
    fs::create_dir(&run).expect("made");
    let repository = Repository::open(&dir.join("r")).expect("a repository");
    let issue = fs::read_to_string(dir.join("issue.md")).expect("the issue");
    let task = task(&repository.name(), &issue, repository.sources().expect("sources"), 100);
    assert_eq!(task.files.keys().collect::<Vec<_>>(), ["calc.py", "show.py"], "tests are no candidates");
    let rule = |prompt: &str, _: usize| match prompt.contains("BEGIN REPOSITORY") {
        true => "calc.py".to_owned(),
        false => swe_rl("    return a - b", "    return a + b"),
    };
    run::sample(&run, &[task], &fix_settings(), &Script::new(&rule), true, &mut |_| ()).expect("sampled");
}

#[test]
fn an_issue_becomes_a_patch_on_a_branch() {
    let place = place();
    let (dir, repository) = (place.path(), place.path().join("r"));
    answer_beforehand(dir);
    let args = ["--out", "run", "--resume"];
    let (patch, said) = output(&mut fix(dir, &args), 0);
    assert!(said.contains("files      calc.py (2 of 2 answers)") && said.contains("patch 1 of 1: 2 of 2 answers"), "{said}");
    fs::write(dir.join("p.patch"), &patch).unwrap();
    git(&repository, &["apply", "--check", "../p.patch"]);
    assert_eq!(git(&repository, &["status", "--porcelain"]), "", "nothing was written");

    let (json, _) = output(fix(dir, &args).args(["--top", "3", "--json"]), 0);
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!((json["patches"][0]["patch"].as_str(), json["patches"][0]["votes"].as_u64()), (Some(patch.as_str()), Some(2)));
    assert_eq!((json["patch"].as_str(), json["error"].is_null()), (Some(patch.as_str()), true));

    fs::write(repository.join("notes.txt"), "mine\n").unwrap();
    let (_, said) = output(fix(dir, &args).arg("--apply"), 0);
    assert!(said.contains("applied on the new branch sorft-native/fix-"), "{said}");
    assert!(git(&repository, &["branch", "--show-current"]).starts_with("sorft-native/fix-"));
    assert_eq!(git(&repository, &["status", "--porcelain"]), " M calc.py\n?? notes.txt\n");
    assert_eq!(fs::read_to_string(repository.join("calc.py")).unwrap(), CALC.replace("a - b", "a + b"));
    // The work tree now has uncommitted changes.
    let (_, said) = output(fix(dir, &args).arg("--apply"), 1);
    assert!(said.contains("1 uncommitted change: M calc.py"), "{said}");
}

#[test]
fn without_a_patch_it_says_why() {
    let place = place();
    let (out, said) = output(&mut fix(place.path(), &[]), 1);
    assert_eq!(out, "");
    let (json, _) = output(&mut fix(place.path(), &["--json"]), 1);
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert!(json["patch"].is_null() && json["patches"] == serde_json::json!([]) && json["error"].is_string(), "{json}");
    assert_eq!(json["files"], serde_json::json!(["calc.py", "show.py"]));
    assert!(said.contains("error: no patch was found in 2 answers: ") && said.contains("what was localised:\n    files"), "{said}");
    let refused = |args: &[&str], status: i32| output(program().current_dir(place.path()).arg("fix").args(args), status).1;
    fs::write(place.path().join("empty.md"), " \n").unwrap();
    assert!(refused(&["--repo", "r", "--issue", "empty.md", "--model", "m"], 1).contains("empty.md: the issue is empty"));
    assert!(refused(&["--repo", "m", "--issue", "issue.md", "--model", "m"], 1).contains("not a git repository"));
    assert!(refused(&["--repo", "r", "--issue", "issue.md"], 2).contains("--model"));
    assert!(refused(&["--repo", "r", "--issue", "issue.md", "--model", "m", "--top", "0"], 2).contains("--top takes a number"));
}

/// `eval` with the tiny model, in `dir`, on the script's tasks.
fn eval(dir: &Path, more: &[&str]) -> Command {
    let lines: Vec<String> = tasks().iter().map(|t| t.to_json().to_string()).collect();
    fs::write(dir.join("tasks.jsonl"), lines.join("\n")).expect("written");
    let mut command = program();
    command.current_dir(dir).args(["eval", "--model", "m", "--tasks", "tasks.jsonl", "--bm25-fallback", "--samples", "6"]);
    command.args(["--max-new-tokens", "24", "--max-batch", "3"]).args(more);
    command
}

#[test]
fn killed_and_resumed_it_ends_with_the_same_bytes() {
    let place = place();
    let dir = place.path();
    let (table, _) = output(&mut eval(dir, &["--out", "whole"]), 0);
    let answers = |name: &str| fs::read_to_string(dir.join(name).join("samples.jsonl")).map_or(0, |text| text.lines().count());
    let (all, mut kills) = (answers("whole"), 0);
    for i in 0..6 {
        let mut child = eval(dir, &["--out", "killed", "--resume"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it runs");
        let until = Instant::now() + Duration::from_secs(60);
        let running = |child: &mut Child| child.try_wait().expect("its state").is_none();
        while answers("killed") < all * i / 6 && running(&mut child) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
        kills += usize::from(running(&mut child));
        child.kill().ok();
        child.wait().expect("it ended");
    }
    let (again, _) = output(&mut eval(dir, &["--out", "killed", "--resume"]), 0);
    assert_eq!(table, again);
    let clean = |name: &str| {
        let mut files = contents(&dir.join(name));
        files.retain(|name, _| !["timing.jsonl", "eval.html"].contains(&name.as_str()));
        files
    };
    assert!(kills > 0 && clean("whole") == clean("killed"));
    let (reranked, _) = output(&mut eval(dir, &["--out", "whole", "--rerank-only"]), 0);
    assert_eq!(table, reranked);
    // The options that it was begun with are known; others are refused.
    let with_nothing = |more: &[&str]| {
        let mut command = program();
        command.current_dir(dir).args(["eval", "--out", "whole", "--rerank-only"]).args(more);
        command
    };
    assert_eq!(table, output(&mut with_nothing(&[]), 0).0);
    assert_eq!(table, output(&mut with_nothing(&["--samples", "6", "--model", "m"]), 0).0);
    let said = output(&mut with_nothing(&["--samples", "5"]), 2).1;
    assert!(said.contains("settings.samples is 5, and the folder was made with 6"), "{said}");
    let said = output(&mut with_nothing(&["--temperature", "1"]), 2).1;
    assert!(said.contains("sampling.temperature is 1.0, and the folder was made with 0.8"), "{said}");
    // What is there is not written over, and other settings do not go on with it.
    assert!(output(&mut eval(dir, &["--out", "whole"]), 2).1.contains("the folder is there already"));
    let said = output(&mut eval(dir, &["--out", "whole", "--resume", "--seed", "3"]), 2).1;
    assert!(said.contains("settings.seed is 3, and the folder was made with 0"), "{said}");
}

#[test]
fn a_model_is_asked_as_it_was_trained() {
    let place = place();
    let dir = place.path();
    let recipe = serde_json::json!({"subtasks": ["file"], "chat": true, "universe": "files", "order": "fused", "evidence": "names",
        "answers": 3, "close": 0.5, "min_issue_tokens": 5, "max_prompt_tokens": 3000, "templates": {"function": "Which functions?"}});
    fs::write(dir.join("m/prompts.json"), recipe.to_string()).expect("written");
    let settings = |run: &str| -> serde_json::Value {
        let text = fs::read_to_string(dir.join(run).join("settings.json")).expect("settings");
        serde_json::from_str::<serde_json::Value>(&text).expect("JSON")["settings"].clone()
    };
    let (table, said) = output(&mut eval(dir, &["--out", "run"]), 0);
    assert!(said.contains("m/prompts.json"), "{said}");
    let of_run = settings("run");
    for name in ["order", "evidence", "answers", "close", "min_issue_tokens", "templates"] {
        assert_eq!(of_run[name], recipe[name], "{name}");
    }
    let most = of_run["max_prompt_tokens"].as_u64().expect("a number");
    assert!((2900..3000).contains(&most), "{most}: the chat template's own tokens are taken off");
    let prompts = fs::read_to_string(dir.join("run/loc.jsonl")).expect("how it was asked");
    assert!(prompts.contains("and then a line --") && prompts.contains("Which functions?"), "{prompts}");
    // An option says otherwise; what a run was begun with says more than its model's folder.
    output(&mut eval(dir, &["--out", "other", "--order", "shuffled", "--close", "0", "--max-prompt-tokens", "700"]), 0);
    let other = settings("other");
    assert_eq!((other["order"].as_str(), other["max_prompt_tokens"].as_u64(), other.get("close")), (Some("shuffled"), Some(700), None));
    fs::remove_file(dir.join("m/prompts.json")).expect("removed");
    assert_eq!(table, output(program().current_dir(dir).args(["eval", "--out", "run", "--rerank-only"]), 0).0);
    fs::write(dir.join("m/prompts.json"), "{\"order\": \"odd\"}").expect("written");
    let said = output(&mut eval(dir, &["--out", "third"]), 1).1;
    assert!(said.contains("m/prompts.json") && said.contains("odd"), "{said}");
    fs::remove_file(dir.join("m/prompts.json")).expect("removed");
    let said = output(&mut eval(dir, &["--pipeline", "mini", "--until", "line"]), 2).1;
    assert!(said.contains("--pipeline mini has the hops file and edit"), "{said}");
    assert!(output(&mut eval(dir, &["--close", "2"]), 2).1.contains("--close takes a number from 0 to 1"));
}

#[test]
fn tasks_without_files_are_read_from_clones() {
    let place = place();
    let dir = place.path();
    let head = git(&dir.join("r"), &["rev-parse", "HEAD"]).trim().to_owned();
    // The work tree and later commits say nothing.
    fs::write(dir.join("r/calc.py"), "later\n").unwrap();
    git(&dir.join("r"), &["-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-qam", "second"]);
    let mut task = tasks().remove(0);
    (task.repo, task.base_commit) = ("o/r".into(), head);
    task.files.clear();
    fs::write(dir.join("bare.jsonl"), task.to_json().to_string()).unwrap();
    let eval = |more: &[&str]| {
        let mut command = program();
        command.current_dir(dir).arg("eval").args(more);
        command
    };
    let gold = ["--predictions", "gold", "--tasks", "bare.jsonl"];
    let said = output(&mut eval(&gold), 1).1;
    assert!(said.contains("o__r1-1: the task has no `files`") && said.contains("--repos DIR"), "{said}");
    let said = output(eval(&gold).args(["--repos", "nowhere"]), 1).1;
    assert!(said.contains("nowhere: there is no such folder"), "{said}");
    let (json, said) = output(eval(&gold).args(["--repos", ".", "--candidates", "1", "--json"]), 0);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["numbers"]["patch.applied"]["mean"], 1.0, "{json}");
    assert!(said.contains("reading 1 task from the clones in ."), "{said}");

    let model = ["--model", "m", "--samples", "2", "--max-new-tokens", "4", "--bm25-fallback", "--out", "run"];
    let (table, _) = output(eval(&model).args(["--tasks", "bare.jsonl", "--repos", ".", "--top-files", "1"]), 0);
    assert!(table.contains("files, BM25"), "{table}");
    let location = fs::read_to_string(dir.join("run/loc.jsonl")).unwrap();
    assert!(location.contains("calc.py") && !location.contains("test_calc.py"), "{location}");
    assert_eq!(table, output(&mut eval(&["--out", "run", "--rerank-only"]), 0).0, "the clones are known as well");
    let said = output(&mut eval(&["--out", "run", "--rerank-only", "--candidates", "1"]), 2).1;
    assert!(said.contains("clones.candidates is 1, and the folder was made with 100"), "{said}");
    let said = output(&mut eval(&["--out", "other", "--resume"]), 2).1;
    assert!(said.contains("other: no run was begun there: no settings.json"), "{said}");
}

#[test]
fn a_task_that_cannot_be_judged_is_said_before_anything_is_sampled() {
    let place = place();
    let dir = place.path();
    let mut task = tasks().remove(0);
    task.patch = task.patch.replace("\n-    ", "\n-    another ");
    fs::write(dir.join("unfit.jsonl"), task.to_json().to_string()).unwrap();
    for more in [&["--model", "m", "--out", "run"][..], &["--predictions", "empty", "--out", "run"]] {
        let said = output(program().current_dir(dir).args(["eval", "--tasks", "unfit.jsonl"]).args(more), 1).1;
        assert!(said.contains(&task.instance_id) && said.contains("not what the patch expects"), "{said}");
        assert!(!dir.join("run/samples.jsonl").exists());
    }
}
