//! What the tests of a repository need: an interpreter, a command, variables, files, limits. Read from a TOML file:
//!
//! ```toml
//! [default]                                  # for all
//! seconds = 300
//! [repo."pallets/click"]                     # over that, for a repository's tasks
//! python = "envs/click/bin/python"           # paths are relative to the file's folder
//! env = { PYTHONPATH = "src" }
//! [task."pallets__click-1234"]               # over both, for one task
//! command = ["{python}", "-m", "pytest", "-rA", "{tests}"]
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::agentless::sandbox::PATH;
use crate::data::Task;
use crate::{Error, Result};

/// The environments of a file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Environments {
    default: Entry,
    repo: BTreeMap<String, Entry>,
    task: BTreeMap<String, Entry>,
    #[serde(skip)]
    folder: PathBuf,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Entry {
    python: Option<PathBuf>,
    command: Option<Vec<String>>,
    tests: Option<Vec<String>>,
    env: BTreeMap<String, String>,
    files: BTreeMap<String, String>,
    read_only: Vec<PathBuf>,
    seconds: Option<u64>,
    memory_mib: Option<u64>,
}

/// What the tests of one task need.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Environment {
    /// The interpreter that `{python}` stands for.
    pub python: PathBuf,
    /// The command, in which the word `{tests}` stands for the files of tests.
    pub command: Vec<String>,
    /// What `{tests}` stands for where no test patch says: the regression tests. None means that the command finds them itself.
    pub tests: Vec<String>,
    /// Variables of the environment.
    pub env: BTreeMap<String, String>,
    /// Files written into the tree, which a build would have made.
    pub files: BTreeMap<String, String>,
    /// Folders that the command sees besides the system's.
    pub read_only: Vec<PathBuf>,
    /// The most seconds that it may take.
    pub time: Duration,
    /// The most bytes of memory.
    pub memory: u64,
}

/// pytest with a line for every test, and without files of its own.
const COMMAND: [&str; 8] = ["{python}", "-m", "pytest", "-rA", "--no-header", "-p", "no:cacheprovider", "{tests}"];

/// Results must not depend on the hash's seed; compiled files are of no use in a tree that is thrown away.
const VARIABLES: [(&str, &str); 3] = [("PYTHONHASHSEED", "0"), ("PYTHONDONTWRITEBYTECODE", "1"), ("COLUMNS", "120")];

impl Environments {
    /// Reads a file, or `environments.toml` of a folder.
    ///
    /// # Errors
    ///
    /// A file that cannot be read, is not TOML, or has a field that is not known.
    pub fn read(path: &Path) -> Result<Self> {
        let path = if path.is_dir() { path.join("environments.toml") } else { path.to_owned() };
        let text = std::fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))?;
        let mut out: Self = toml::from_str(&text).map_err(|e| Error::input(e.to_string().trim()).at_file(&path))?;
        let folder = path.parent().filter(|f| !f.as_os_str().is_empty()).unwrap_or(Path::new("."));
        out.folder = folder.canonicalize().map_err(|e| Error::io("read", folder, e))?;
        Ok(out)
    }

    /// The environment of a task: its own entry over its repository's over the default.
    pub fn of(&self, task: &Task) -> Environment {
        let mut entries = vec![&self.default];
        entries.extend(self.repo.get(&task.repo));
        entries.extend(self.task.get(&task.instance_id));
        let last = |f: fn(&Entry) -> Option<&PathBuf>| entries.iter().rev().find_map(|e| f(e));
        let python = last(|e| e.python.as_ref()).map_or_else(|| PathBuf::from("python3"), |p| self.program(p));
        let mut env: BTreeMap<String, String> = VARIABLES.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        env.extend(entries.iter().flat_map(|e| e.env.clone()));
        let mut read_only: Vec<PathBuf> = entries.iter().flat_map(|e| &e.read_only).map(|p| self.folder.join(p)).collect();
        read_only.extend(folders_of(&python));
        read_only.sort();
        read_only.dedup();
        let command = entries.iter().rev().find_map(|e| e.command.clone());
        Environment {
            python,
            command: command.unwrap_or_else(|| COMMAND.map(str::to_owned).to_vec()),
            tests: entries.iter().rev().find_map(|e| e.tests.clone()).unwrap_or_default(),
            env,
            files: entries.iter().flat_map(|e| e.files.clone()).collect(),
            read_only,
            time: Duration::from_secs(entries.iter().rev().find_map(|e| e.seconds).unwrap_or(300)),
            memory: entries.iter().rev().find_map(|e| e.memory_mib).unwrap_or(4096) << 20,
        }
    }

    /// Refuses what is not there for any of the tasks: an interpreter, a folder to be seen. Else every run of tests would fail by it.
    ///
    /// # Errors
    ///
    /// The first thing that is missing, with its repository.
    pub fn check(&self, tasks: &[Task]) -> Result<()> {
        for task in tasks {
            let Environment { python, read_only, .. } = self.of(task);
            let at = |e: Error| e.at(format_args!("environment of {}", task.repo_name()));
            let hint = "make it (a virtual environment with pytest), or name another in the file of environments: docs/run-tests.md";
            // A bare name is looked for inside, on a path that may have other folders than the one out here.
            let bare = python.components().count() == 1;
            let found = |folder: &str| Path::new(folder).join(&python).is_file();
            if !(if bare { PATH.split(':').any(found) } else { python.is_file() }) {
                let place = if bare { format!(" on the path {PATH}") } else { String::new() };
                return Err(at(Error::input(format!("there is no interpreter {}{place}", python.display())).hint(hint)));
            }
            if let Some(missing) = read_only.iter().find(|folder| !folder.exists()) {
                return Err(at(Error::input(format!("`read_only` names {}, which is not there", missing.display())).hint(hint)));
            }
        }
        Ok(())
    }

    /// A program's path; a bare name is looked for on the sandbox's `PATH`.
    fn program(&self, path: &Path) -> PathBuf {
        if path.components().count() == 1 { path.to_owned() } else { self.folder.join(path) }
    }
}

impl Environment {
    /// The command for these files of tests.
    pub fn command(&self, tests: &[String]) -> Vec<String> {
        let word = |word: &String| match word.as_str() {
            "{tests}" => tests.to_vec(),
            _ => vec![word.replace("{python}", &self.python.to_string_lossy())],
        };
        self.command.iter().flat_map(word).collect()
    }
}

/// The folders of an interpreter outside of the system's: its virtual environment, and the installation that this was made from.
fn folders_of(python: &Path) -> Vec<PathBuf> {
    let real = python.canonicalize().unwrap_or_else(|_| python.to_owned());
    let prefix = |p: &Path| p.parent().and_then(Path::parent).map(Path::to_owned);
    let ours = |p: &PathBuf| p.is_absolute() && p != Path::new("/") && !["/usr", "/bin", "/lib"].iter().any(|s| p.starts_with(s));
    [prefix(python), prefix(&real)].into_iter().flatten().filter(ours).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_goes_over_its_repository_and_that_over_the_default() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("environments.toml");
        let text = "[default]\nseconds = 9\nenv = { A = '1', B = '1' }\n[repo.'o/n']\npython = 'envs/n/bin/python'\nenv = { B = '2' }\n\
                    [task.x]\ncommand = ['{python}', '-c', 'pass', '{tests}', '{python}.x']\nmemory_mib = 5\n";
        std::fs::write(&path, text).unwrap();
        let environments = Environments::read(dir.path()).unwrap();
        let task = |id: &str, repo: &str| Task { instance_id: id.to_owned(), repo: repo.to_owned(), ..Task::default() };
        let x = environments.of(&task("x", "o/n"));
        let folder = dir.path().canonicalize().unwrap();
        let python = folder.join("envs/n/bin/python");
        assert_eq!((x.time.as_secs(), x.memory, x.env["A"].as_str(), x.env["B"].as_str()), (9, 5 << 20, "1", "2"));
        assert_eq!(x.read_only, [folder.join("envs/n")]);
        let python = python.to_str().unwrap().to_owned();
        let tests = ["a.py".to_owned(), "b.py".to_owned()];
        assert_eq!(x.command(&tests), [&python, "-c", "pass", "a.py", "b.py", &format!("{python}.x")]);
        let y = environments.of(&task("y", "o/m"));
        assert_eq!((y.python.to_str().unwrap(), y.memory >> 20), ("python3", 4096));
        assert!(y.read_only.is_empty() && y.command(&tests).ends_with(&tests));
        let error = environments.check(&[task("y", "o/m"), task("x", "o/n")]).unwrap_err().to_string();
        let there = std::path::Path::new("/usr/bin/python3").exists() || std::path::Path::new("/usr/local/bin/python3").exists();
        let expected = if there { format!("environment of o/n: there is no interpreter {python}") } else { "environment of o/m".into() };
        assert!(error.starts_with(&expected), "{error}");
        std::fs::create_dir_all(folder.join("envs/n/bin")).unwrap();
        std::fs::write(&python, "").unwrap();
        assert!(environments.check(&[task("x", "o/n")]).is_ok());
        std::fs::write(&path, "[repo.x]\npyhton = 'p'\n").unwrap();
        assert!(Environments::read(&path).unwrap_err().to_string().contains("pyhton"));
    }
}
