//! A git work tree, through the `git` program: the sources to be fixed, and a patch written to a branch of its own.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use super::clones::LARGEST;
use crate::data::paths::{Role, role};
use crate::{Error, Result};

/// A work tree.
#[derive(Clone, Debug)]
pub struct Repository {
    root: PathBuf,
}

impl Repository {
    /// The work tree that holds `path`.
    ///
    /// # Errors
    ///
    /// No such folder; a folder in no git work tree; no program `git`.
    pub fn open(path: &Path) -> Result<Self> {
        if !path.is_dir() {
            return Err(Error::input("there is no such folder").at_file(path));
        }
        let out = run(path, &["rev-parse", "--show-toplevel"], None)?;
        if !out.status.success() {
            return Err(Error::input("not a git repository with a work tree")
                .at_file(path)
                .hint(format!("git says: {}", String::from_utf8_lossy(&out.stderr).trim())));
        }
        let text = String::from_utf8_lossy(&out.stdout);
        Ok(Self { root: PathBuf::from(text.trim_end_matches(['\n', '\r'])) })
    }

    /// The folder at its top.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The name of that folder.
    pub fn name(&self) -> String {
        self.root.file_name().map_or_else(|| "repository".to_owned(), |n| n.to_string_lossy().into_owned())
    }

    /// The sources that git tracks, as they are in the work tree, by path: files of known languages that are no tests, not generated, not
    /// huge, and text. What has gone from the work tree is left out, and so are links.
    ///
    /// # Errors
    ///
    /// git's.
    pub fn sources(&self) -> Result<BTreeMap<String, String>> {
        let out = self.git(&["ls-files", "-z", "--cached"], None)?;
        let mut files = BTreeMap::new();
        for path in out.split(|&b| b == 0).filter_map(|p| std::str::from_utf8(p).ok()).filter(|p| role(p) == Role::Source) {
            let place = self.root.join(path);
            let plain = place.symlink_metadata().is_ok_and(|m| m.is_file() && m.len() <= LARGEST as u64);
            if let Some(text) = plain.then(|| fs::read(&place).ok()).flatten().and_then(|b| String::from_utf8(b).ok())
                && !text.contains('\0')
            {
                files.insert(path.to_owned(), text);
            }
        }
        Ok(files)
    }

    /// Refuses a work tree or index with uncommitted changes, and a repository without a commit. Files that git does not track do not count.
    ///
    /// # Errors
    ///
    /// Such changes, the first of them named.
    pub fn require_clean(&self) -> Result<()> {
        self.git(&["rev-parse", "--verify", "--quiet", "HEAD"], None)
            .map_err(|_| Error::input("the repository has no commit to branch from").at_file(&self.root))?;
        let out = self.git(&["status", "--porcelain=v1", "--untracked-files=no"], None)?;
        let text = String::from_utf8_lossy(&out);
        match text.lines().next() {
            None => Ok(()),
            Some(first) => {
                let n = text.lines().count();
                Err(Error::input(format!("{n} uncommitted change{}: {}", if n == 1 { "" } else { "s" }, first.trim()))
                    .at_file(&self.root)
                    .hint("commit or stash them first: a patch is never written over them"))
            }
        }
    }

    /// Makes a branch at HEAD, changes to it, and applies the patch to the work tree, uncommitted. Gives the branch's name: `name`, with a
    /// number behind it where that is taken. Nothing changes where the patch does not apply.
    ///
    /// # Errors
    ///
    /// Uncommitted changes; a patch that does not apply; git's.
    pub fn apply_on_branch(&self, patch: &str, name: &str) -> Result<String> {
        self.require_clean()?;
        self.git(&["apply", "--check", "-"], Some(patch))?;
        let is_free = |branch: &str| run(&self.root, &["show-ref", "--verify", "--quiet", &format!("refs/heads/{branch}")], None);
        let mut branch = name.to_owned();
        for number in 2.. {
            if !is_free(&branch)?.status.success() {
                break;
            }
            branch = format!("{name}-{number}");
        }
        self.git(&["switch", "--quiet", "--create", &branch], None)?;
        let applied = self.git(&["apply", "-"], Some(patch));
        if let Err(e) = applied {
            self.git(&["switch", "--quiet", "-"], None)?;
            self.git(&["branch", "--quiet", "-D", &branch], None)?;
            return Err(e);
        }
        Ok(branch)
    }

    /// Stdout of a git command that must succeed.
    fn git(&self, args: &[&str], input: Option<&str>) -> Result<Vec<u8>> {
        let out = run(&self.root, args, input)?;
        if out.status.success() {
            return Ok(out.stdout);
        }
        let said = String::from_utf8_lossy(&out.stderr);
        Err(Error::input(format!("git {} failed: {}", args[0], said.trim())).at_file(&self.root))
    }
}

fn run(folder: &Path, args: &[&str], input: Option<&str>) -> Result<Output> {
    let failed = |e| Error::io("run", Path::new("git"), e).hint("this command needs the program git on the PATH");
    let mut command = Command::new("git");
    command.arg("-C").arg(folder).args(["-c", "core.quotePath=false"]).args(args);
    command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() }).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(failed)?;
    if let (Some(input), Some(mut stdin)) = (input, child.stdin.take()) {
        // A git that ends before it has read everything says why on stderr.
        let _ = stdin.write_all(input.as_bytes());
    }
    child.wait_with_output().map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repository(files: &[(&str, &str)]) -> (tempfile::TempDir, Repository) {
        let dir = tempfile::tempdir().unwrap();
        let git = |args: &[&str]| assert!(run(dir.path(), args, None).unwrap().status.success(), "{args:?}");
        git(&["init", "-q", "-b", "main"]);
        for (path, text) in files {
            let place = dir.path().join(path);
            fs::create_dir_all(place.parent().unwrap()).unwrap();
            fs::write(place, text).unwrap();
        }
        git(&["add", "."]);
        git(&["-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-qm", "first"]);
        let repository = Repository::open(dir.path()).unwrap();
        (dir, repository)
    }

    const PATCH: &str = "diff --git a/m.py b/m.py\n--- a/m.py\n+++ b/m.py\n@@ -1 +1 @@\n-x = 1\n+x = 2\n";

    #[test]
    fn sources_are_tracked_texts_that_are_no_tests() {
        let files = [("m.py", "x = 1\n"), ("a b/n.rs", "fn n() {}\n"), ("tests/t.py", "y\n"), ("README.md", "z\n"), ("bin.py", "\0")];
        let (dir, repository) = repository(&files);
        fs::write(dir.path().join("untracked.py"), "u\n").unwrap();
        assert_eq!(repository.sources().unwrap().keys().collect::<Vec<_>>(), ["a b/n.rs", "m.py"]);
        assert_eq!(Repository::open(&dir.path().join("a b")).unwrap().root(), repository.root());
    }

    #[test]
    fn a_patch_goes_to_a_branch_of_its_own() {
        let (dir, repository) = repository(&[("m.py", "x = 1\n")]);
        let text = || fs::read_to_string(dir.path().join("m.py")).unwrap();
        let error = repository.apply_on_branch(&PATCH.replace("-x = 1", "-x = 7"), "fix").unwrap_err().to_string();
        assert!(error.contains("git apply failed") && text() == "x = 1\n", "{error}");
        assert_eq!(repository.apply_on_branch(PATCH, "fix/a").unwrap(), "fix/a");
        assert_eq!(text(), "x = 2\n");
        let error = repository.apply_on_branch(PATCH, "fix/a").unwrap_err().to_string();
        assert!(error.contains("1 uncommitted change: M m.py"), "{error}");
        repository.git(&["checkout", "-q", "m.py"], None).unwrap();
        assert_eq!(repository.apply_on_branch(PATCH, "fix/a").unwrap(), "fix/a-2");
    }

    #[test]
    fn folders_without_git_are_named() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Repository::open(&dir.path().join("no")).unwrap_err().to_string().contains("there is no such folder"));
        assert!(Repository::open(dir.path()).unwrap_err().to_string().contains("not a git repository"));
    }
}
