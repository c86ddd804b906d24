//! A task's tree at its base commit, and patches on it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::agentless::clones;
use crate::agentless::sandbox::Workspace;
use crate::data::Task;
use crate::data::patch::Patch;
use crate::{Error, Result};

/// The lines of context that a hunk may lose, as in the harness's `patch --fuzz=5`.
const FUZZ: usize = 5;

/// The mode of an executable file in a diff.
const EXECUTABLE: u32 = 0o100_755;

/// The tree of a task's base commit: from a clone below `repos`, else from the task's own files where they are all that there is.
pub(super) fn at_base(task: &Task, repos: &Path) -> Result<Workspace> {
    let workspace = Workspace::empty()?;
    if let Some(clone) = clones::find(&task.repo, repos) {
        check_out(&clone, &task.base_commit, &workspace)?;
        return Ok(workspace);
    }
    let paths = [&task.patch, &task.test_patch].into_iter().map(|text| Patch::parse(text)).collect::<Result<Vec<_>>>()?;
    let needed = paths.iter().flat_map(Patch::base_paths).chain(task.all_paths.iter().map(String::as_str));
    if let Some(missing) = needed.into_iter().find(|path| !task.files.contains_key(*path)) {
        let message = format!("there is no clone of {} and the task does not hold {missing}", task.repo);
        return Err(Error::input(message).hint(clones::command(&task.repo, repos)));
    }
    for (path, content) in &task.files {
        workspace.write(path, content)?;
    }
    Ok(workspace)
}

#[cfg(feature = "git")]
fn check_out(clone: &Path, commit: &str, workspace: &Workspace) -> Result<()> {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;

    use crate::data::source::git::{Entry, snapshot};
    snapshot(clone, commit, &|_| true, &mut |path, entry| match entry {
        Entry::File(bytes, executable) => {
            workspace.write(path, bytes)?;
            if executable { workspace.make_executable(path) } else { Ok(()) }
        }
        Entry::Link(target) => workspace.link(path, Path::new(OsStr::from_bytes(target))),
    })
}

#[cfg(not(feature = "git"))]
fn check_out(clone: &Path, _commit: &str, _workspace: &Workspace) -> Result<()> {
    Err(Error::input("this program was built without git").at_file(clone).hint("build it with the feature `git`"))
}

/// Applies a patch to the tree: as `git apply` does, else as `patch --fuzz=5` does. The harness's attempts in between change nothing that
/// counts: `--reject` fails where a hunk is refused, and `--3way` merges versions that a patch of this base has not.
///
/// # Errors
///
/// It does not fit (then the tree is as it was), or a path of it leads out of the tree.
pub(super) fn apply(text: &str, workspace: &Workspace) -> Result<()> {
    let patch = Patch::parse(text)?;
    if patch.files.is_empty() {
        return Err(Error::input("there is no diff in it"));
    }
    let mut files = BTreeMap::new();
    for path in paths(&patch) {
        if let Some(content) = workspace.read(&path)? {
            files.insert(path, content);
        }
    }
    let after = patch.apply(&files).or_else(|exact| patch.apply_with_fuzz(&files, FUZZ).map_err(|_| exact))?;
    for path in files.keys().filter(|path| !after.contains_key(*path)) {
        workspace.remove(path)?;
    }
    for (path, content) in after.iter().filter(|(path, content)| files.get(*path) != Some(*content)) {
        workspace.write(path, content)?;
    }
    for change in patch.files.iter().filter(|c| c.new_mode == Some(EXECUTABLE)) {
        workspace.make_executable(change.path())?;
    }
    Ok(())
}

/// All paths that a patch names.
fn paths(patch: &Patch) -> BTreeSet<String> {
    patch.files.iter().flat_map(|c| [&c.old_path, &c.new_path]).flatten().cloned().collect()
}

/// Applies a model's patch and a task's tests: files of the tests are those of the task, whatever the patch made of them.
///
/// # Errors
///
/// The model's patch does not fit: the inner one, with which nothing ran. The tests' patch does not fit: the outer one.
pub(super) fn apply_both(model_patch: &str, test_patch: &str, workspace: &Workspace) -> Result<Result<()>> {
    let tests = Patch::parse(test_patch).map_err(|e| e.at("field `test_patch`"))?;
    let mut kept = Vec::new();
    for path in paths(&tests) {
        kept.push((workspace.read(&path)?, path));
    }
    if !model_patch.trim().is_empty()
        && let Err(e) = apply(model_patch, workspace)
    {
        return Ok(Err(e));
    }
    for (content, path) in kept {
        match content {
            Some(content) => workspace.write(&path, content)?,
            None => workspace.remove(&path)?,
        }
    }
    if !test_patch.trim().is_empty() {
        apply(test_patch, workspace).map_err(|e| e.at("field `test_patch`"))?;
    }
    Ok(Ok(()))
}

/// The Python files that a test patch leaves changed or added: what is run.
pub(super) fn test_files(test_patch: &str) -> Result<Vec<String>> {
    let patch = Patch::parse(test_patch)?;
    let is_test = |path: &&String| path.ends_with(".py") && !path.ends_with("conftest.py") && !path.ends_with("__init__.py");
    Ok(patch.files.iter().filter_map(|c| c.new_path.as_ref()).filter(is_test).cloned().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODEL: &str = "diff --git a/s.py b/s.py\n--- a/s.py\n+++ b/s.py\n@@ -1 +1 @@\n-one\n+two\n\
        diff --git a/t/test_s.py b/t/test_s.py\n--- a/t/test_s.py\n+++ b/t/test_s.py\n@@ -1 +1 @@\n-old\n+cheated\n";
    const TESTS: &str = "diff --git a/t/test_s.py b/t/test_s.py\n--- a/t/test_s.py\n+++ b/t/test_s.py\n@@ -1 +1 @@\n-old\n+new\n\
        diff --git a/t/data.txt b/t/data.txt\nnew file mode 100644\n--- /dev/null\n+++ b/t/data.txt\n@@ -0,0 +1 @@\n+x\n";

    #[test]
    fn the_tests_are_the_tasks_own() {
        let workspace = Workspace::empty().unwrap();
        workspace.write("s.py", "one\n").unwrap();
        workspace.write("t/test_s.py", "old\n").unwrap();
        assert!(apply_both(MODEL, TESTS, &workspace).unwrap().is_ok());
        let read = |path: &str| workspace.read(path).unwrap();
        assert_eq!((read("s.py").unwrap().as_str(), read("t/test_s.py").unwrap().as_str()), ("two\n", "new\n"));
        assert_eq!(test_files(TESTS).unwrap(), ["t/test_s.py"]);
        assert!(apply_both(MODEL, "", &workspace).unwrap().is_err(), "it is applied already");
        assert!(apply_both("", TESTS, &workspace).is_err());
    }

    #[test]
    fn a_patch_cannot_write_outside() {
        let workspace = Workspace::empty().unwrap();
        std::os::unix::fs::symlink("/tmp", workspace.tree().join("out")).unwrap();
        for path in ["../x", "/tmp/x", "out/x", ".git/../../x"] {
            let text = format!("diff --git a/{path} b/{path}\nnew file mode 100644\n--- /dev/null\n+++ b/{path}\n@@ -0,0 +1 @@\n+x\n");
            assert!(apply(&text, &workspace).is_err(), "{path}");
        }
    }
}
