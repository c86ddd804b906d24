//! Mining repositories that the tests make with the `git` program, and checking with it that the patches apply.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use super::*;
use crate::data::patch::Patch;

/// A repository in a temporary folder, made by the `git` program with nothing of the user's configuration.
struct Fixture {
    dir: tempfile::TempDir,
    time: u32,
}

impl Fixture {
    /// None, with a word about it, where there is no `git` program.
    fn new() -> Option<Self> {
        if Command::new("git").arg("--version").stdout(Stdio::null()).status().is_err() {
            eprintln!("skipped: this test needs the git program");
            return None;
        }
        let fixture = Self { dir: tempfile::tempdir().unwrap(), time: 1_700_000_000 };
        fixture.git(&["init", "-q", "-b", "main", "."]);
        Some(fixture)
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("git");
        command.current_dir(self.path()).args(args).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_CONFIG_GLOBAL", "/dev/null").env("HOME", self.path());
        let date = format!("{} +0200", self.time);
        for who in ["AUTHOR", "COMMITTER"] {
            command.env(format!("GIT_{who}_DATE"), &date).env(format!("GIT_{who}_EMAIL"), "ann@example.com");
            command.env(format!("GIT_{who}_NAME"), "Ann");
        }
        command
    }

    fn git(&self, args: &[&str]) -> String {
        let out = self.command(args).output().unwrap();
        assert!(out.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    }

    fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    fn commit(&mut self, message: &str, files: &[(&str, &str)]) {
        files.iter().for_each(|(path, content)| self.write(path, content));
        self.time += 3600;
        self.git(&["add", "-A"]);
        self.git(&["commit", "-q", "--allow-empty", "--cleanup=verbatim", "-m", message]);
    }

    fn mine(&self) -> (Vec<Task>, MineReport) {
        mine(self.path(), &MineOptions { name: Some("o/r".to_owned()), ..MineOptions::default() }, &mut |_, _| {}).unwrap()
    }

    /// Checks with `git apply` that the task's patches make, from its base, what the fix commit has at the paths that they touch.
    fn check_applies(&self, task: &Task) {
        let index = self.path().join(".git/check-index");
        let run = |args: &[&str], input: &str| {
            let mut child = self.command(args).env("GIT_INDEX_FILE", &index).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
            child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
            let out = child.wait_with_output().unwrap();
            assert!(out.status.success(), "git {args:?} of {}:\n{input}", task.problem_statement);
            String::from_utf8(out.stdout).unwrap()
        };
        run(&["read-tree", &task.base_commit], "");
        run(&["apply", "--cached", "-"], &format!("{}{}", task.patch, task.test_patch));
        let touched = run(&["diff", "--cached", "--name-only", "--no-renames", "-z", &task.base_commit], "");
        let mut args = vec!["diff", "--cached", "--name-only", task.fix_commit.as_deref().unwrap(), "--"];
        args.extend(touched.split('\0').filter(|p| !p.is_empty()));
        assert_eq!(run(&args, ""), "", "the fix commit differs from the applied patch");
    }
}

/// Source files to choose from.
const SOURCES: &[(&str, &str)] = &[
    ("src/a.py", "def a():\n    return 1\n\n\ndef b():\n    return 2\n"),
    ("src/b.py", "x = 1\ny = 2\n"),
    ("src/deep/c.rs", "fn c() {}\n"),
    ("lib/d.go", "package d\r\nvar a = 1\r\n"),
];

#[test]
fn a_commit_becomes_a_task() {
    let Some(mut f) = Fixture::new() else { return };
    f.commit("The very first commit of all", SOURCES);
    let fixed = SOURCES[0].1.replace("return 2", "return 3");
    f.commit(
        "Fix what b returns\n\nIt should be three.\n\nSigned-off-by: Ann <ann@example.com>\n",
        &[("src/a.py", &fixed), ("tests/test_a.py", "assert b() == 3\n"), ("CHANGES.md", "fixed\n"), ("new one.py", "z")],
    );
    let (tasks, report) = f.mine();
    assert_eq!((tasks.len(), report.commits, report.taken, report.shallow), (1, 2, 1, false));
    let task = &tasks[0];
    assert_eq!(task.problem_statement, "Fix what b returns\n\nIt should be three.");
    assert_eq!(task.instance_id, format!("o__r-{}", &report.head[..10]));
    assert_eq!(task.fix_commit.as_deref(), Some(report.head.as_str()));
    assert_eq!(task.created_at.as_deref(), Some("2023-11-15T02:13:20+02:00"));
    assert_eq!(task.gold_files, Some(vec!["src/a.py".to_owned()]));
    assert_eq!(task.gold().unwrap().into_iter().collect::<Vec<_>>(), ["src/a.py"]);
    assert_eq!(task.files.keys().collect::<Vec<_>>(), ["lib/d.go", "src/a.py", "src/b.py", "src/deep/c.rs"]);
    assert_eq!(task.all_paths, ["lib/d.go", "src/a.py", "src/b.py", "src/deep/c.rs"]);
    assert!(task.patch.contains("@@ -3,4 +3,4 @@ def a():\n") && task.patch.contains("+++ b/new one.py\t\n"), "{}", task.patch);
    assert!(!task.patch.contains("CHANGES") && task.test_patch.contains("+assert b() == 3"));
    f.check_applies(task);
    assert_eq!(f.mine().0, tasks, "the same history gives the same tasks");
}

#[test]
fn every_kind_of_change_applies() {
    let Some(mut f) = Fixture::new() else { return };
    let long: String = (0..20).map(|i| format!("line {i}\n")).collect();
    f.commit("The very first commit of all", SOURCES);
    f.commit("Add a long file that moves later", &[("src/long.py", &long), ("src/b.py", "x = 2\ny = 2\n")]);
    std::fs::remove_file(f.path().join("src/long.py")).unwrap();
    f.commit("Move the long file and change it a bit", &[("src/moved file.py", &long.replace("line 7\n", "line seven\n"))]);
    std::fs::remove_file(f.path().join("src/deep/c.rs")).unwrap();
    f.commit("Delete c and change the end of b", &[("src/b.py", "x = 2\ny = 3")]);
    f.commit("Carriage returns stay what they are", &[("lib/d.go", "package d\r\nvar a = 2\r\n")]);
    f.commit("Names beyond ASCII, first made here", &[("src/ä\"ö.py", "1\n"), ("src/b.py", "x = 4\ny = 3")]);
    f.commit("Names beyond ASCII, then changed here", &[("src/ä\"ö.py", "2\n")]);
    f.commit("Line ends of d become those of unix", &[("lib/d.go", "package d\nvar a = 2\n")]);
    f.commit("A name that no list of names can hold", &[("src/two\nlines.py", "1\n"), ("src/b.py", "x = 5\ny = 3")]);
    f.commit("A name that no list can hold, changed", &[("src/two\nlines.py", "2\n")]);
    f.git(&["update-index", "--chmod=+x", "src/a.py"]);
    f.time += 1;
    f.git(&["commit", "-q", "-m", "Make a file executable, and no more"]);
    let (tasks, report) = f.mine();
    tasks.iter().for_each(|t| f.check_applies(t));
    let gold: Vec<_> = tasks.iter().map(|t| t.gold_files.clone().unwrap().join(" ")).collect();
    assert_eq!(gold, ["src/b.py", "src/long.py", "src/b.py src/deep/c.rs", "lib/d.go", "src/b.py", "src/ä\"ö.py", "src/b.py"]);
    assert!(tasks.iter().flat_map(|t| &t.all_paths).all(|p| !p.contains('\n')));
    assert!(tasks[1].patch.contains("rename from src/long.py\nrename to src/moved file.py\n"));
    assert_eq!(report.skipped, BTreeMap::from([(Skip::Root, 1), (Skip::NoSource, 1), (Skip::NoLines, 2)]));
    for task in &tasks {
        let applied = Patch::parse(&task.patch).unwrap().apply(&task.files).unwrap();
        assert_ne!(applied, task.files);
    }
}

#[test]
fn what_is_no_fix_is_skipped_and_counted() {
    let Some(mut f) = Fixture::new() else { return };
    f.commit("The very first commit of all", SOURCES);
    let many: Vec<(String, String)> = (0..6).map(|i| (format!("src/m{i}.py"), "a\n".repeat(i + 2))).collect();
    f.commit("Add files only, many of them at once", &many.iter().map(|(p, c)| (p.as_str(), c.as_str())).collect::<Vec<_>>());
    f.commit("wip", &[("src/a.py", "1\n")]);
    f.commit("Nothing changes in this commit at all", &[]);
    f.commit("Only the lock file changes in this one", &[("Cargo.lock", "1")]);
    f.commit("Only documentation changes in this one", &[("docs/x.md", "1"), ("README", "2")]);
    f.commit("Only the tests change in this commit", &[("tests/x.py", "1")]);
    f.commit("Only settings change in this commit", &[("settings.toml", "1")]);
    f.commit("Revert \"Only settings change\"\n\nThis reverts commit 123.", &[("src/a.py", "2\n")]);
    f.commit("Release version 1.2.3 to the world", &[("src/a.py", "3\n")]);
    let changed: Vec<(String, String)> = many.iter().map(|(p, c)| (p.clone(), format!("{c}more\n"))).collect();
    f.commit("Change many source files at once here", &changed.iter().map(|(p, c)| (p.as_str(), c.as_str())).collect::<Vec<_>>());
    f.commit("Change very many lines of one file", &[("src/a.py", &"line\n".repeat(500))]);
    f.commit("A file gets much larger than allowed", &[("src/b.py", &"line of text\n".repeat(20_000))]);
    f.write("src/latin.py", b"# caf\xe9\n");
    f.commit("A source that is not UTF-8 joins others", &[("src/deep/c.rs", "fn d() {}\n")]);
    f.write("src/binary.py", b"a\0b");
    f.commit("A source that is binary joins the others", &[("src/deep/c.rs", "fn e() {}\n")]);
    f.time += 1;
    f.git(&["-c", "user.name=x", "commit", "-q", "--allow-empty", "--author", "dependabot[bot] <x@y>", "-m", "Bump something by a bot"]);
    let (tasks, report) = f.mine();
    assert_eq!(tasks.len(), 0, "{:?}", tasks.iter().map(|t| &t.problem_statement).collect::<Vec<_>>());
    let mut expected: BTreeMap<Skip, usize> = Skip::ALL
        .into_iter()
        .filter(|s| !matches!(s, Skip::Merge | Skip::Shallow | Skip::MessageEncoding | Skip::Huge | Skip::NotAFix | Skip::NoIssue))
        .map(|s| (s, 1))
        .collect();
    for other in [Skip::LeftOut, Skip::NoLines, Skip::NoChoice, Skip::Duplicate, Skip::NearDuplicate] {
        expected.remove(&other);
    }
    assert_eq!(report.skipped, expected);
    assert_eq!(report.commits, expected.len());
    let keep = MineOptions { keep_reverts: true, keep_releases: true, keep_docs: true, min_message: 3, ..MineOptions::default() };
    let (tasks, report) = mine(f.path(), &keep, &mut |_, _| {}).unwrap();
    assert_eq!(tasks.len(), 3, "{:?}", report.skipped);
}

#[test]
fn merged_branches_are_walked_on_demand() {
    let Some(mut f) = Fixture::new() else { return };
    f.commit("The very first commit of all", SOURCES);
    f.git(&["checkout", "-q", "-b", "topic"]);
    f.commit("A fix on a branch of its own", &[("src/b.py", "x = 7\ny = 2\n")]);
    f.git(&["checkout", "-q", "main"]);
    f.commit("A fix on the main branch here", &[("src/a.py", "def a():\n    return 9\n")]);
    f.time += 5;
    f.git(&["merge", "-q", "--no-ff", "-m", "Merge the branch of the other fix", "topic"]);
    f.commit("A fix on top of the merge here", &[("src/deep/c.rs", "fn c2() {}\n")]);
    f.git(&["checkout", "-q", "-b", "other", "main~1"]);
    f.commit("The same fix by another commit", &[("src/deep/c.rs", "fn c2() {}\n")]);
    f.git(&["checkout", "-q", "main"]);
    f.time += 5;
    f.git(&["merge", "-q", "-m", "Merge the branch of the same fix", "other"]);
    let (tasks, report) = f.mine();
    assert_eq!((tasks.len(), report.skipped[&Skip::Merge]), (2, 2));
    let all = MineOptions { all_parents: true, ..MineOptions::default() };
    let (tasks, report) = mine(f.path(), &all, &mut |_, _| {}).unwrap();
    let subjects: Vec<_> = tasks.iter().map(|t| t.problem_statement.as_str()).collect();
    assert_eq!(subjects, ["A fix on a branch of its own", "A fix on the main branch here", "The same fix by another commit"]);
    assert_eq!(report.skipped[&Skip::Duplicate], 1);
    let newest = MineOptions { max_tasks: 1, ..all };
    assert_eq!(mine(f.path(), &newest, &mut |_, _| {}).unwrap().0[0].problem_statement, subjects[2]);
}

#[test]
fn shallow_bare_empty_and_other_folders() {
    let Some(mut f) = Fixture::new() else { return };
    let error = |path: &Path| mine(path, &MineOptions::default(), &mut |_, _| {}).unwrap_err().to_string();
    assert!(error(f.path()).contains("has no commit yet"));
    f.commit("The very first commit of all", SOURCES);
    f.commit("The first fix of a, which is right", &[("src/a.py", "1\n")]);
    f.commit("The second fix of a, which is right", &[("src/a.py", "2\n")]);
    let clone = |name: &str, args: &[&str]| -> PathBuf {
        let target = f.path().join(name);
        let url = format!("file://{}", f.path().display());
        f.git(&[&["clone", "-q"], args, &[&url, target.to_str().unwrap()]].concat());
        target
    };
    let (tasks, report) = mine(&clone("bare.git", &["--bare"]), &MineOptions::default(), &mut |_, _| {}).unwrap();
    assert_eq!((tasks.len(), report.repo.as_str()), (2, "bare"));
    let (tasks, report) = mine(&clone("shallow", &["--depth", "2"]), &MineOptions::default(), &mut |_, _| {}).unwrap();
    assert_eq!((tasks.len(), report.shallow, report.commits), (1, true, 2));
    assert_eq!(report.skipped, BTreeMap::from([(Skip::Shallow, 1)]));
    let plain = tempfile::tempdir().unwrap();
    assert!(error(plain.path()).contains("open it as a git repository"), "{}", error(plain.path()));
    assert!(error(&plain.path().join("none")).contains("cannot open"));
}

#[test]
fn the_choice_of_files_is_keyed_and_sorted() {
    let Some(mut f) = Fixture::new() else { return };
    let files: Vec<(String, String)> = (0..60).map(|i| (format!("d{}/e{}/f{i:02}.py", i % 3, i % 5), format!("x = {i}\n"))).collect();
    f.commit("The very first commit of all", &files.iter().map(|(p, c)| (p.as_str(), c.as_str())).collect::<Vec<_>>());
    f.commit("Fix the file number thirty one", &[("d1/e1/f31.py", "y = 31\n")]);
    let with = |seed, max_paths| {
        let options = MineOptions { seed, max_paths, distractors: 10, ..MineOptions::default() };
        mine(f.path(), &options, &mut |_, _| {}).unwrap().0.remove(0)
    };
    let (a, b, c) = (with(1, 600), with(1, 600), with(2, 20));
    assert_eq!(a, b);
    assert_ne!(a.files, c.files);
    assert_eq!((a.files.len(), a.all_paths.len(), c.all_paths.len()), (11, 60, 20));
    assert!(a.all_paths.is_sorted() && c.all_paths.is_sorted() && c.files.keys().all(|p| c.all_paths.contains(p)));
    assert!(a.files.keys().filter(|p| p.starts_with("d1/e1/")).count() >= 4, "near ones are among them: {:?}", a.files.keys());
    assert!(a.files.keys().filter(|p| !p.starts_with("d1/e1/")).count() >= 3, "and far ones: {:?}", a.files.keys());
}

#[test]
fn issues_replace_messages_and_can_be_required() {
    let Some(mut f) = Fixture::new() else { return };
    f.commit("The very first commit of all", SOURCES);
    f.commit("Return three from b (#4)", &[("src/a.py", &SOURCES[0].1.replace("return 2", "return 3"))]);
    f.commit("Set x to two; fixes #5", &[("src/b.py", "x = 2\ny = 2\n")]);
    f.commit("Add a function that was missing here", &[("src/deep/c.rs", "fn c() {}\nfn d() {}\n")]);
    f.commit("Avoid a crash of the other part", &[("lib/d.go", "package d\r\nvar a = 3\r\n")]);
    let export = tempfile::NamedTempFile::new().unwrap();
    let lines = concat!(
        "{\"number\": 3, \"title\": \"b is wrong\", \"body\": \"It gives two.\"}\n",
        "{\"number\": 4, \"title\": \"Mend b\", \"body\": \"Closes #3\", \"pull_request\": {}}\n",
    );
    std::fs::write(export.path(), lines).unwrap();
    let issues = Issues::read(export.path()).unwrap();
    let with = |require_fix, require_issue| {
        let options = MineOptions { require_fix, require_issue, issues: issues.clone(), ..MineOptions::default() };
        mine(f.path(), &options, &mut |_, _| {}).unwrap()
    };
    let (tasks, _) = with(false, false);
    let statements: Vec<_> = tasks.iter().map(|t| t.problem_statement.as_str()).collect();
    assert_eq!(
        statements,
        [
            "b is wrong\n\nIt gives two.",
            "Set x to two; fixes #5",
            "Add a function that was missing here",
            "Avoid a crash of the other part"
        ]
    );
    assert_eq!((&tasks[0].extra["problem_source"], &tasks[0].extra["issue_numbers"]), (&Value::from("issue"), &serde_json::json!([3])));
    let (tasks, report) = with(true, false);
    assert_eq!((tasks.len(), report.skipped[&Skip::NotAFix]), (3, 1), "the new function");
    let (tasks, report) = with(true, true);
    assert_eq!((tasks.len(), report.skipped[&Skip::NoIssue]), (1, 2));
}

#[test]
fn merges_are_changes_on_demand() {
    let Some(mut f) = Fixture::new() else { return };
    f.commit("The very first commit of all", SOURCES);
    f.git(&["checkout", "-q", "-b", "topic"]);
    f.commit("half of it", &[("src/b.py", "x = 7\ny = 2\n")]);
    f.commit("the rest", &[("src/b.py", "x = 7\ny = 8\n")]);
    f.git(&["checkout", "-q", "main"]);
    f.time += 5;
    f.git(&["merge", "-q", "--no-ff", "-m", "Merge pull request #9 from ann/topic\n\nSet x and y to what they must be", "topic"]);
    let options = MineOptions { keep_merges: true, ..MineOptions::default() };
    let (tasks, report) = mine(f.path(), &options, &mut |_, _| {}).unwrap();
    assert_eq!((tasks.len(), report.commits), (1, 2));
    assert_eq!(tasks[0].problem_statement, "Set x and y to what they must be");
    assert!(tasks[0].patch.contains("-x = 1\n-y = 2\n+x = 7\n+y = 8\n"));
    f.check_applies(&tasks[0]);
}

#[test]
fn related_files_are_shown() {
    let Some(mut f) = Fixture::new() else { return };
    let many: Vec<(String, String)> = (0..80).map(|i| (format!("m{}/f{i:02}.py", i % 8), format!("x = {i}\n"))).collect();
    f.commit("The very first commit of all", &many.iter().map(|(p, c)| (p.as_str(), c.as_str())).collect::<Vec<_>>());
    f.commit("Change two files that belong together", &[("m0/f00.py", "import m5.f13\nx = 1\n"), ("m3/f11.py", "x = 1\n")]);
    f.commit("Fix the one file that is wrong here", &[("m0/f00.py", "import m5.f13\nx = 2\n")]);
    f.commit("A later commit says nothing about it", &[("m0/f00.py", "import m5.f13\nx = 3\n"), ("m6/f14.py", "y = 3\n")]);
    let options = |seed| MineOptions { distractors: 8, seed, ..MineOptions::default() };
    let mut later = 0;
    for seed in 0..6 {
        let (tasks, _) = mine(f.path(), &options(seed), &mut |_, _| {}).unwrap();
        let files = &tasks[1].files;
        assert_eq!(files.len(), 9);
        assert!(files.contains_key("m3/f11.py"), "changed with it before: {:?}", files.keys());
        assert!(files.contains_key("m5/f13.py"), "imported by it: {:?}", files.keys());
        later += usize::from(files.contains_key("m6/f14.py"));
    }
    assert!(later < 3, "what changes with it later is drawn by chance alone");
}

#[test]
fn changes_that_are_nearly_made_again_are_counted() {
    let Some(mut f) = Fixture::new() else { return };
    let long = |changed: usize| (0..50).map(|i| format!("name{i} = f(x{})\n", if i == changed { 99 } else { i })).collect::<String>();
    f.commit("The very first commit of all", SOURCES);
    f.commit("Make b what it has to be in the end", &[("src/b.py", &long(50))]);
    f.commit("Another folder has a b as well, before", &[("lib/b.py", SOURCES[1].1)]);
    f.commit("Make the other b nearly the same thing", &[("lib/b.py", &long(20))]);
    let (tasks, report) = f.mine();
    assert_eq!((tasks.len(), report.skipped[&Skip::NearDuplicate]), (1, 1));
    assert!(tasks[0].patch.contains("+++ b/lib/b.py"), "the newest one is kept");
    let options = MineOptions { near_duplicates: 1.0, ..MineOptions::default() };
    let (tasks, report) = mine(f.path(), &options, &mut |_, _| {}).unwrap();
    assert_eq!((tasks.len(), report.skipped.get(&Skip::NearDuplicate)), (2, None));
    let options = MineOptions { near_duplicates: 0.0, ..MineOptions::default() };
    assert!(mine(f.path(), &options, &mut |_, _| {}).unwrap_err().to_string().contains("above 0 and at most 1"));
}

#[test]
fn a_partial_clone_gives_the_tasks_whose_files_it_has() {
    let Some(mut f) = Fixture::new() else { return };
    f.commit("The very first commit of all", SOURCES);
    f.commit("Set x to what it has to be here", &[("src/b.py", "x = 5\ny = 2\n")]);
    f.commit("Change the tests and nothing else", &[("tests/test_b.py", "import b\n")]);
    f.commit("Make c return what it has to return", &[("src/deep/c.rs", "fn c() -> u8 { 1 }\n")]);
    let (whole, report) = f.mine();
    assert_eq!((whole.len(), report.skipped.get(&Skip::LeftOut)), (2, None));
    f.git(&["config", "uploadpack.allowFilter", "true"]);
    let url = format!("file://{}", f.path().display());
    let mine_clone = |path: &Path| mine(path, &MineOptions { name: Some("o/r".to_owned()), ..MineOptions::default() }, &mut |_, _| {});
    for (filter, more) in [("blob:none", "--bare"), ("tree:0", "--bare"), ("blob:none", "--no-checkout"), ("blob:none", "--single-branch")]
    {
        let dir = tempfile::tempdir().unwrap();
        let clone = dir.path().join("clone");
        f.git(&["clone", "-q", "--filter", filter, more, &url, clone.to_str().unwrap()]);
        let (tasks, report) = mine_clone(&clone).unwrap();
        let left_out = report.skipped[&Skip::LeftOut];
        assert!(tasks.is_empty() && (2..=3).contains(&left_out), "{filter} {more}: {left_out}");
        assert!(report.funnel(false).adds_up());
        f.git(&["-C", clone.to_str().unwrap(), "fetch", "-q", "--refetch", "--no-filter"]);
        let (tasks, report) = mine_clone(&clone).unwrap();
        assert_eq!((tasks, report.skipped.get(&Skip::LeftOut)), (whole.clone(), None), "{filter} {more}: as the warning says");
    }
    let dir = tempfile::tempdir().unwrap();
    let clone = dir.path().join("clone");
    f.git(&["clone", "-q", "--filter", "blob:limit=15", "--bare", &url, clone.to_str().unwrap()]);
    let (tasks, report) = mine_clone(&clone).unwrap();
    assert!(tasks.is_empty() && report.skipped[&Skip::LeftOut] == 2, "a file to choose from is left out");
}

#[test]
fn held_out_repositories_are_refused() {
    let Some(mut f) = Fixture::new() else { return };
    f.commit("The very first commit of all", SOURCES);
    let decontamination = Decontamination::swe_bench().unwrap();
    let options = MineOptions { name: Some("fork/Django".to_owned()), decontamination, ..MineOptions::default() };
    let error = mine(f.path(), &options, &mut |_, _| {}).unwrap_err().to_string();
    assert!(error.contains("fork/Django is, or is named as") && error.contains("--decontaminate none"), "{error}");
}

/// A history of `n` commits, made at once.
fn long_history(f: &Fixture, n: usize) {
    let mut text = String::new();
    for i in 0..n {
        let who = format!("Ann <ann@example.com> {} +0000\n", 1_700_000_000 + i * 60);
        let message = format!("Fix the number of part {i} as it must be");
        text.push_str(&format!("commit refs/heads/main\nauthor {who}committer {who}data {}\n{message}\n", message.len()));
        let content = format!("x = {i}\ny = {}\n", i * i);
        let path = format!("src/d{}/f{}.py", i % 3, i % 7);
        // Now and then a long file is added, and then made nearly what the one before was made.
        let long: String = (0..50).map(|k| format!("name{k} = f(x{k}, {})\n", if k == 7 { i } else { k })).collect();
        let (path, content) = match i % 40 {
            19 => (format!("src/g{}/long.py", i / 40), content),
            39 => (format!("src/g{}/long.py", i / 40), long),
            _ => (path, content),
        };
        text.push_str(&format!("M 100644 inline {path}\ndata {}\n{content}\n", content.len()));
    }
    let mut child = f.command(&["fast-import", "--quiet"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
}

#[test]
fn what_was_interrupted_goes_on_and_ends_with_the_same_bytes() {
    let Some(f) = Fixture::new() else { return };
    long_history(&f, 700);
    let options = MineOptions { name: Some("o/r".to_owned()), distractors: 4, ..MineOptions::default() };
    let (whole, cut) = (f.path().join("whole.jsonl"), f.path().join("cut.jsonl"));
    let report = mine_to_file(f.path(), &options, &whole, false, &mut |_, _| Ok(())).unwrap();
    assert!(report.taken > 500 && report.commits == 700, "{report:?}");
    assert_eq!(report.skipped[&Skip::NearDuplicate], 16, "of 17");
    let funnel = report.funnel(false);
    assert!(funnel.adds_up() && funnel.seen == 700 && funnel.kept == report.taken);
    for stop in [100, 300, 600] {
        let stopped =
            mine_to_file(f.path(), &options, &cut, false, &mut |seen, _| if seen >= stop { Err(Error::interrupted()) } else { Ok(()) });
        assert_eq!(stopped.unwrap_err().exit_code(), 130);
        assert!(!cut.exists() && f.path().join("cut.jsonl.state.json").exists());
    }
    // A kill may leave half a line behind what the state speaks of.
    let mut partial = std::fs::OpenOptions::new().append(true).open(f.path().join("cut.jsonl.partial")).unwrap();
    partial.write_all(b"{\"half").unwrap();
    let other = MineOptions { max_lines: 3, ..options.clone() };
    let error = mine_to_file(f.path(), &other, &cut, false, &mut |_, _| Ok(())).unwrap_err().to_string();
    assert!(error.contains("an interrupted mining had other options"), "{error}");
    let mut first = None;
    let resumed = mine_to_file(f.path(), &options, &cut, false, &mut |seen, _| {
        first.get_or_insert(seen);
        Ok(())
    });
    let resumed = resumed.unwrap();
    assert!(first.unwrap() > 600, "it did not begin anew");
    assert_eq!((resumed.taken, &resumed.skipped), (report.taken, &report.skipped));
    assert!(std::fs::read(&cut).unwrap() == std::fs::read(&whole).unwrap());
    assert!(!f.path().join("cut.jsonl.partial").exists() && !f.path().join("cut.jsonl.state.json").exists());
    let in_memory = mine(f.path(), &options, &mut |_, _| {}).unwrap().0;
    assert_eq!(crate::data::source::swe_bench::read(&whole).unwrap(), in_memory);
}
