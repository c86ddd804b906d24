//! Clones of the tasks' repositories, and the sources that a task without `files` is asked about: those of its base commit.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::data::Task;
use crate::data::lexical::{self, Ranking};
use crate::data::patch::{FileChange, Patch};
use crate::data::paths::{Role, role};
use crate::{Error, Result};

/// Files larger than this are data or generated, whatever they are called.
pub(super) const LARGEST: usize = 1 << 20;

/// Refuses a folder of clones that is not there: else every task would say so.
///
/// # Errors
///
/// No such folder.
pub fn require(repos: &Path) -> Result<()> {
    if repos.is_dir() {
        return Ok(());
    }
    let what = if repos.exists() { "it is no folder" } else { "there is no such folder" };
    let hint = "--repos takes the folder that holds a clone of each repository, named owner__name, owner/name or name";
    Err(Error::input(what).at_file(repos).hint(hint))
}

/// Where a repository's clone is: `owner__name`, `owner/name` or `name`, with or without `.git`.
pub fn find(repo: &str, repos: &Path) -> Option<PathBuf> {
    let name = repo.rsplit('/').next().unwrap_or(repo);
    let names = [repo.replace('/', "__"), repo.to_owned(), name.to_owned()];
    let mut places = names.iter().flat_map(|n| [repos.join(n), repos.join(format!("{n}.git"))]);
    places.find(|place| !repo.is_empty() && place.is_dir())
}

/// The command that makes a clone where [`find`] would find it.
pub(super) fn command(repo: &str, repos: &Path) -> String {
    format!("git clone --bare https://github.com/{repo} {}", repos.join(repo.replace('/', "__")).display())
}

/// A task with the sources of its repository at its base commit.
#[derive(Clone, Debug)]
pub struct AtCommit {
    /// What a model is asked about: `all_paths` are all sources, `files` those that match the issue best. The gold patch has no say in it.
    pub asked: Task,
    /// The same with the files that the gold patch, or a patch to be judged, changes: what patches are judged by.
    pub judged: Task,
}

/// Reads a task's sources from its clone below `repos`: files of known languages that are no tests, not generated, not above 1 MiB, and
/// text. `files` are the `most` of them that match the issue best by four rankings at once ([`lexical::fused_scores`]), or all of them
/// where none is given. `patch` is one that is to be judged, beside the gold patch.
///
/// # Errors
///
/// There is no clone; it lacks the commit or objects of it; a gold patch that does not parse, or that changes as text what is none; no
/// source there.
pub fn at_commit(task: &Task, repos: &Path, most: Option<usize>, patch: &str) -> Result<AtCommit> {
    let at = |e: Error| e.at(&task.instance_id);
    let Some(clone) = find(&task.repo, repos) else {
        let message = format!("there is no clone of `{}` in {}", task.repo, repos.display());
        return Err(at(Error::input(message).hint(command(&task.repo, repos))));
    };
    let mut needed: BTreeSet<String> = BTreeSet::new();
    // A patch to be judged may be any text: one that is no patch needs no files.
    let given = Patch::parse(patch).unwrap_or_default();
    let gold = Patch::parse(&task.patch).map_err(at)?;
    let changes = || gold.files.iter().chain(&given.files);
    // What a patch adds is looked for as well: one that adds a file that is there does not apply.
    needed.extend(changes().flat_map(|change| [&change.old_path, &change.new_path]).flatten().cloned());
    let (mut texts, no_text) = read(&clone, &task.base_commit, &needed).map_err(at)?;
    let unfit = |change: &&FileChange| !change.binary && change.old_path.as_ref().is_some_and(|path| no_text.contains_key(path));
    if let Some(path) = gold.files.iter().find(unfit).and_then(|change| change.old_path.as_ref()) {
        let message = format!("{path} is {} at the base commit: no answer can be judged by it", no_text[path]);
        return Err(at(Error::input(message)).at_file(&clone).hint("leave the task out"));
    }
    let sources = texts.iter().filter(|(path, text)| role(path) == Role::Source && text.len() <= LARGEST);
    let sources: Vec<String> = sources.map(|(path, _)| path.clone()).collect();
    if sources.is_empty() {
        return Err(at(Error::input(format!("commit {} has no source file of a known language", task.base_commit)).at_file(&clone)));
    }
    let mut judged = Task { all_paths: sources.clone(), files: BTreeMap::new(), ..task.clone() };
    let kept: BTreeSet<String> = match most.filter(|&most| most < sources.len()) {
        None => sources.into_iter().collect(),
        Some(most) => {
            judged.files = std::mem::take(&mut texts);
            let mut ranked = lexical::rank(&judged.without_answer(), &sources, Ranking::Fused);
            texts = std::mem::take(&mut judged.files);
            ranked.truncate(most);
            ranked.into_iter().collect()
        }
    };
    texts.retain(|path, _| kept.contains(path) || needed.contains(path));
    let mut asked = judged.clone();
    asked.files = texts.iter().filter(|(path, _)| kept.contains(*path)).map(|(p, t)| (p.clone(), t.clone())).collect();
    judged.files = texts;
    Ok(AtCommit { asked, judged })
}

/// The texts of a commit's sources and of what else is `needed`; and what those needed are that are no text.
type Texts = (BTreeMap<String, String>, BTreeMap<String, &'static str>);

#[cfg(feature = "git")]
fn read(clone: &Path, commit: &str, needed: &BTreeSet<String>) -> Result<Texts> {
    use crate::data::source::git::{Entry, snapshot};
    let (mut texts, mut no_text) = (BTreeMap::new(), BTreeMap::new());
    let wanted = |path: &str| role(path) == Role::Source || needed.contains(path);
    snapshot(clone, commit, &wanted, &mut |path, entry| {
        let text = match entry {
            Entry::File(bytes, _) if bytes.len() > LARGEST && !needed.contains(path) => Err("too large"),
            Entry::File(bytes, _) => std::str::from_utf8(bytes).ok().filter(|text| !text.contains('\0')).ok_or("no UTF-8 text"),
            Entry::Link(_) => Err("a symbolic link"),
        };
        match text {
            Ok(text) => drop(texts.insert(path.to_owned(), text.to_owned())),
            Err(why) => drop(no_text.insert(path.to_owned(), why)),
        }
        Ok(())
    })?;
    Ok((texts, no_text))
}

#[cfg(not(feature = "git"))]
fn read(clone: &Path, _commit: &str, _needed: &BTreeSet<String>) -> Result<Texts> {
    Err(Error::input("this program was built without git").at_file(clone).hint("build it with the feature `git`"))
}

#[cfg(all(test, feature = "git"))]
mod tests {
    use std::process::Command;

    use super::*;

    const GOLD: &str = "diff --git a/zoo.py b/zoo.py\n--- a/zoo.py\n+++ b/zoo.py\n@@ -1 +1 @@\n-x = 1\n+x = 2\n\
        diff --git a/setup.cfg b/setup.cfg\n--- a/setup.cfg\n+++ b/setup.cfg\n@@ -1 +1 @@\n-a\n+b\n";

    /// A folder of clones with one of `o/r`, and a task at its first of two commits. None where there is no `git` program.
    fn place() -> Option<(tempfile::TempDir, Task)> {
        let dir = tempfile::tempdir().unwrap();
        let clone = dir.path().join("o__r");
        std::fs::create_dir_all(clone.join("tests")).unwrap();
        let git = |args: &[&str]| {
            let out = Command::new("git").arg("-C").arg(&clone).args(["-c", "user.name=a", "-c", "user.email=a@b.c"]).args(args).output();
            out.ok().filter(|out| out.status.success()).map(|out| String::from_utf8(out.stdout).unwrap())
        };
        git(&["init", "-q"])?;
        for (name, text) in [("parser.py", "def parse(): pass\n"), ("zoo.py", "x = 1\n"), ("other.py", "y\n"), ("bin.py", "\0")] {
            std::fs::write(clone.join(name), text).unwrap();
        }
        std::fs::write(clone.join("setup.cfg"), "a\n").unwrap();
        std::fs::write(clone.join("tests/test_parser.py"), "parse()\n").unwrap();
        git(&["add", "."])?;
        git(&["commit", "-qm", "first"])?;
        let commit = git(&["rev-parse", "HEAD"])?.trim().to_owned();
        std::fs::write(clone.join("parser.py"), "later\n").unwrap();
        git(&["commit", "-qam", "second"])?;
        let task = Task {
            instance_id: "o__r-1".into(),
            repo: "o/r".into(),
            base_commit: commit,
            problem_statement: "parse in parser.py fails".into(),
            patch: GOLD.into(),
            ..Task::default()
        };
        Some((dir, task))
    }

    #[test]
    fn a_repository_is_read_at_the_commit() {
        let Some((dir, task)) = place() else { return };
        let keys = |task: &Task| task.files.keys().cloned().collect::<Vec<_>>().join(" ");
        let all = at_commit(&task, dir.path(), None, "").unwrap();
        assert_eq!((keys(&all.asked), all.asked.files["parser.py"].as_str()), ("other.py parser.py zoo.py".into(), "def parse(): pass\n"));
        assert_eq!(all.asked.all_paths, ["other.py", "parser.py", "zoo.py"]);
        assert_eq!(keys(&all.judged), "other.py parser.py setup.cfg zoo.py", "what is no source is judged as well");
        let best = at_commit(&task, dir.path(), Some(1), &GOLD.replace("zoo", "other")).unwrap();
        assert_eq!((keys(&best.asked), keys(&best.judged)), ("parser.py".into(), "other.py parser.py setup.cfg zoo.py".into()));
        assert_eq!(best.asked.all_paths, all.asked.all_paths);
        // A patch that adds what is there, and one that copies.
        let adding = "--- /dev/null\n+++ b/other.py\n@@ -0,0 +1 @@\n+y\n";
        assert!(at_commit(&task, dir.path(), Some(1), adding).unwrap().judged.files.contains_key("other.py"));
        let copying = "diff --git a/other.py b/new.py\nsimilarity index 100%\ncopy from other.py\ncopy to new.py\n";
        assert!(at_commit(&task, dir.path(), Some(1), copying).unwrap().judged.files.contains_key("other.py"));
        let other = Task { patch: GOLD.replace("zoo", "other"), ..task.clone() };
        assert_eq!(at_commit(&other, dir.path(), Some(1), "no patch").unwrap().asked.files, best.asked.files, "gold says nothing");
    }

    #[test]
    fn gold_says_nothing_of_what_is_asked() {
        let Some((dir, task)) = place() else { return };
        let clone = dir.path().join("o__r");
        let long = format!("x = 1\n{}", "# filler\n".repeat(LARGEST / 9 + 1));
        std::fs::write(clone.join("zoo.py"), &long).unwrap();
        let git = |args: &[&str]| {
            let out = Command::new("git").arg("-C").arg(&clone).args(["-c", "user.name=a", "-c", "user.email=a@b.c"]).args(args).output();
            String::from_utf8(out.unwrap().stdout).unwrap()
        };
        git(&["commit", "-qam", "third"]);
        let task = Task { base_commit: git(&["rev-parse", "HEAD"]).trim().to_owned(), ..task };
        let at = at_commit(&task, dir.path(), None, "").unwrap();
        assert_eq!(at.asked.all_paths, ["other.py", "parser.py"], "a file that is too large is, gold or not");
        assert!(!at.asked.files.contains_key("zoo.py") && at.judged.files["zoo.py"] == long);
        let task = Task { patch: GOLD.replace("zoo", "bin"), ..task };
        let said = at_commit(&task, dir.path(), None, "").unwrap_err().to_string();
        assert!(said.contains("bin.py is no UTF-8 text at the base commit") && said.contains("leave the task out"), "{said}");
        let given = GOLD.replace("zoo", "bin");
        let task = Task { patch: GOLD.replace("zoo", "other"), ..task };
        assert!(at_commit(&task, dir.path(), None, &given).is_ok(), "a patch that is judged may name anything");
    }

    #[test]
    fn what_is_not_there_is_named() {
        let Some((dir, task)) = place() else { return };
        let error = |task: &Task, dir: &Path| at_commit(task, dir, None, "").unwrap_err().to_string();
        let said = error(&Task { repo: "o/s".into(), ..task.clone() }, dir.path());
        assert!(
            said.starts_with("o__r-1: there is no clone of `o/s` in") && said.contains("git clone --bare https://github.com/o/s"),
            "{said}"
        );
        let said = error(&Task { base_commit: "0".repeat(40), ..task }, dir.path());
        assert!(said.contains("o__r-1") && said.contains("read commit 0000"), "{said}");
        assert!(require(&dir.path().join("no")).unwrap_err().to_string().contains("there is no such folder"));
        assert!(require(&dir.path().join("o__r/zoo.py")).unwrap_err().to_string().contains("it is no folder"));
    }
}
