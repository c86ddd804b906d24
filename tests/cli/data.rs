//! `data`.

use std::path::Path;
#[cfg(feature = "git")]
use std::process::Command as Process;

use super::{assert_golden, golden, program, stderr, stdout};

/// A path as an argument.
fn arg(path: &Path) -> &str {
    path.to_str().expect("the path is UTF-8")
}

#[test]
fn import_writes_tasks_in_one_form() {
    let tasks = golden("tasks.jsonl");
    assert_golden("import.out.jsonl", &stdout(program().args(["data", "import", arg(&tasks)]), 0));
    let dir = tempfile::tempdir().expect("a temporary folder");
    let out = dir.path().join("out.jsonl.gz");
    let import = ["data", "import", arg(&tasks), "--out", arg(&out), "--json"];
    assert_eq!(stdout(program().args(import), 0), "{\"tasks\":5,\"with_files\":5,\"only_adding\":0,\"dropped\":{}}\n");
    assert!(stderr(program().args(import), 2).contains("is there already"));
    stdout(program().args(import).arg("--force"), 0);
    assert_golden("import.out.jsonl", &stdout(program().args(["data", "import", arg(&out)]), 0));
}

#[test]
fn bad_files_are_named_by_line() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("bad.jsonl");
    let good = std::fs::read_to_string(golden("tasks.jsonl")).expect("the golden tasks are there");
    let cases = [
        (format!("{good}{{\"oops\": \n"), "bad.jsonl:6: not JSON"),
        (format!("{good}{}", good.lines().next().unwrap_or_default()), "bad.jsonl:6: instance_id `o__one-1` is already that of line 1"),
        (good.replacen("\"patch\": \"", "\"patch\": 5, \"x\": \"", 1), "bad.jsonl:1: field `patch`: expected a string, found a number"),
        (String::new(), "the file holds no task"),
    ];
    for (text, expected) in cases {
        std::fs::write(&path, text).expect("the file can be written");
        let error = stderr(program().args(["data", "import", arg(&path)]), 1);
        assert!(error.starts_with("error: ") && error.contains(expected), "{error}");
    }
}

#[test]
fn stats_and_the_bm25_table() {
    let tasks = golden("tasks.jsonl");
    assert_golden("stats.out.txt", &stdout(program().args(["data", "stats", "--bm25", arg(&tasks)]), 0));
    assert_golden("stats.out.json", &stdout(program().args(["data", "stats", "--json", "--bm25", arg(&tasks)]), 0));
}

/// Also on the task files of the folder that `SORFT_DATA` names, where it is set: the gold answers of real tasks score 1 too.
#[test]
fn the_ground_truth_holds_together() {
    assert_golden("check.out.txt", &stdout(program().args(["data", "check", arg(&golden("check.in.jsonl"))]), 0));
    let Some(folder) = std::env::var_os("SORFT_DATA") else {
        return eprintln!("skipped on real tasks: SORFT_DATA names no folder of .jsonl files");
    };
    for entry in std::fs::read_dir(folder).expect("SORFT_DATA is a folder") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|e| e == "jsonl") {
            let out = stdout(program().args(["data", "check", arg(&path)]), 0);
            eprintln!("{}: {}", path.display(), out.lines().last().unwrap_or_default());
        }
    }
}

#[test]
fn show_a_task_and_its_prompt() {
    let tasks = golden("tasks.jsonl");
    let show = ["data", "show", arg(&tasks), "o__two-3"];
    assert_golden("show.out.txt", &stdout(program().args(show), 0));
    assert_golden("show.out.json", &stdout(program().args(show).arg("--json"), 0));
    assert_golden("show_prompt.out.txt", &stdout(program().args(show).args(["--prompt", "--evidence", "names,score"]), 0));
    let cut = ["--prompt", "--json", "--evidence", "words", "--max-tokens", "55"];
    assert_golden("show_prompt.out.json", &stdout(program().args(show).args(cut), 0));
    assert!(stderr(program().args(["data", "show", arg(&tasks), "o__two-33"]), 1).contains("the nearest is `o__two-3`"));
}

#[test]
fn split_by_repository_and_by_time() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let tasks = dir.path().join("tasks.jsonl");
    std::fs::copy(golden("tasks.jsonl"), &tasks).expect("the tasks can be copied");
    let ids = |name: &str| -> Vec<String> {
        let text = std::fs::read_to_string(dir.path().join(name)).expect("the split has written it");
        let id = |l: &str| serde_json::from_str::<serde_json::Value>(l).ok()?["instance_id"].as_str().map(str::to_owned);
        text.lines().filter_map(id).collect()
    };
    stdout(program().args(["data", "split", arg(&tasks)]), 0);
    assert_eq!(ids("tasks.heldout.jsonl"), ["o__one-1"], "three repositories are too few for five folds: the newest fifth");
    assert_eq!(ids("tasks.train.jsonl").len(), 4);
    assert!(stderr(program().args(["data", "split", arg(&tasks)]), 2).contains("tasks.train.jsonl: the file is there already"));
    let out = stdout(program().args(["data", "split", arg(&tasks), "--force", "--by", "repository", "--fraction", "0.34", "--json"]), 0);
    let json: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    let (train, held) = (ids("tasks.train.jsonl"), ids("tasks.heldout.jsonl"));
    assert_eq!((json["by"].as_str(), json["train"]["tasks"].as_u64()), (Some("repository"), Some(train.len() as u64)));
    let repo = |id: &String| id.rsplit_once('-').map(|(r, _)| r.to_owned());
    assert!(train.iter().all(|t| held.iter().all(|h| repo(t) != repo(h))) && train.len() + held.len() == 5);
    assert!(stderr(program().args(["data", "split", arg(&tasks), "--force", "--by", "repository"]), 1).contains("3 repositories"));
}

/// Makes a repository with fixed times, names and so hashes; false, with a word about it, where there is no `git` program.
#[cfg(feature = "git")]
fn repository(dir: &Path) -> bool {
    let git = |time: u32, args: &[&str]| {
        let mut command = Process::new("git");
        command.current_dir(dir).args(args).env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_CONFIG_GLOBAL", "/dev/null");
        for who in ["AUTHOR", "COMMITTER"] {
            command.env(format!("GIT_{who}_DATE"), format!("{} +0000", 1_700_000_000 + time)).env(format!("GIT_{who}_NAME"), "Ann");
            command.env(format!("GIT_{who}_EMAIL"), "ann@example.com");
        }
        command.status().is_ok_and(|s| s.success())
    };
    if !git(0, &["init", "-q", "-b", "main", "."]) {
        eprintln!("skipped: this test needs the git program");
        return false;
    }
    let commits: [(&str, &[(&str, &str)]); 4] = [
        ("The first commit", &[("src/a.py", "def a():\n    return 1\n"), ("src/b.py", "b = 1\n"), ("README.md", "x\n")]),
        ("Return two from a, as the name says", &[("src/a.py", "def a():\n    return 2\n"), ("tests/test_a.py", "assert a() == 2\n")]),
        ("Say more in the README of the project", &[("README.md", "y\n")]),
        ("b has the wrong value\n\nIt must be two.\n\nCo-authored-by: Bob <bob@example.com>\n", &[("src/b.py", "b = 2\n")]),
    ];
    for (i, (message, files)) in commits.iter().enumerate() {
        for (path, content) in *files {
            let path = dir.join(path);
            std::fs::create_dir_all(path.parent().unwrap_or(dir)).expect("the folder can be made");
            std::fs::write(path, content).expect("the file can be written");
        }
        let time = 3600 * (i as u32 + 1);
        assert!(git(time, &["add", "-A"]) && git(time, &["commit", "-q", "-m", message]));
    }
    true
}

#[cfg(feature = "git")]
#[test]
fn mine_gives_the_golden_tasks() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    if !repository(dir.path()) {
        return;
    }
    let mine = ["data", "mine", "--repo", arg(dir.path()), "--name", "o/r"];
    let out = program().args(mine).output().expect("the program runs");
    assert_golden("mine.out.jsonl", &String::from_utf8_lossy(&out.stdout));
    assert_golden("mine.err.txt", &String::from_utf8_lossy(&out.stderr));
    let file = dir.path().join("tasks.jsonl");
    let to_file = [&mine[..], &["--out", arg(&file)]].concat();
    assert_golden("mine.out.json", &stdout(program().args(&to_file).arg("--json"), 0));
    assert_golden("mine.out.jsonl", &std::fs::read_to_string(&file).expect("the tasks are written"));
    assert!(stderr(program().args(&to_file), 2).contains("tasks.jsonl: the file is there already"));
    let nothing = stderr(program().args(mine).args(["--max-lines", "1"]), 1);
    assert!(nothing.contains("changes too many lines (--max-lines)") && nothing.contains("no commit gives a task"), "{nothing}");
    let empty = tempfile::tempdir().expect("a temporary folder");
    let error = stderr(program().args(["data", "mine", "--repo", arg(empty.path())]), 1);
    assert!(error.contains("open it as a git repository") && error.contains("git clone"), "{error}");
}

#[cfg(feature = "git")]
#[test]
fn a_shallow_clone_is_mined_with_a_warning() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    if !repository(dir.path()) {
        return;
    }
    let clone = dir.path().join("clone");
    let url = format!("file://{}", dir.path().display());
    let done = Process::new("git").args(["clone", "-q", "--depth", "2", &url, arg(&clone)]).status();
    assert!(done.is_ok_and(|s| s.success()));
    let warning = stderr(program().args(["data", "mine", "--repo", arg(&clone)]), 0);
    assert!(warning.contains("is a shallow clone") && warning.contains("fetch --unshallow"), "{warning}");
}

#[cfg(feature = "git")]
#[test]
fn a_partial_clone_is_mined_with_a_warning_that_tells_what_to_do() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    if !repository(dir.path()) {
        return;
    }
    let clone = dir.path().join("clone");
    let url = format!("file://{}", dir.path().display());
    let git = |args: &[&str]| assert!(Process::new("git").args(args).status().is_ok_and(|s| s.success()), "git {args:?}");
    git(&["-C", arg(dir.path()), "config", "uploadpack.allowFilter", "true"]);
    git(&["clone", "-q", "--filter=blob:none", &url, arg(&clone)]);
    let mine = |status| stderr(program().args(["data", "mine", "--repo", arg(&clone)]), status);
    let warning = mine(1);
    assert!(warning.contains("is a partial clone, without the files of ") && warning.contains("needs files that the"), "{warning}");
    let line = warning.lines().find(|l| l.contains("to have all of them: ")).expect("what to do");
    let command: Vec<&str> = line.split_whitespace().skip_while(|w| *w != "git").skip(1).collect();
    git(&[&command[..], &["-q"]].concat());
    let after = mine(0);
    assert!(!after.contains("warning"), "{after}");
}

/// What would be lost is refused before anything is done.
#[test]
fn split_does_not_touch_its_input_and_looks_at_its_folders_first() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let tasks = dir.path().join("tasks.jsonl");
    std::fs::copy(golden("tasks.jsonl"), &tasks).expect("the tasks can be copied");
    let before = std::fs::read(&tasks).expect("the tasks");
    let (other, nowhere) = (dir.path().join("h.jsonl"), dir.path().join("nodir").join("h.jsonl"));
    let split = |train: &Path, heldout: &Path| {
        stderr(program().args(["data", "split", arg(&tasks), "--force", "--train", arg(train), "--heldout", arg(heldout)]), 2)
    };
    assert!(split(&tasks, &other).contains("which it would overwrite"));
    assert!(split(&other, &dir.path().join(".").join("tasks.jsonl")).contains("which it would overwrite"));
    assert!(split(&other, &nowhere).contains("there is no folder"));
    assert!(std::fs::read(&tasks).expect("the tasks") == before && !other.exists());
}

/// A program whose messages nobody reads any more does its work.
#[cfg(target_os = "linux")]
#[test]
fn a_closed_stderr_ends_nothing() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let out = dir.path().join("out.jsonl");
    // Every write to it fails.
    let full = std::fs::File::options().write(true).open("/dev/full").expect("/dev/full");
    let status = std::process::Command::new(env!("CARGO_BIN_EXE_sorft-native"))
        .args(["data", "import", arg(&golden("tasks.jsonl")), "--out", arg(&out)])
        .stderr(full)
        .status()
        .expect("the program runs");
    assert!(status.success() && out.exists(), "{status}");
}
