//! Keeping apart what is learnt from and what is measured on: a list of repositories that no training task may come from.

use std::collections::BTreeSet;
use std::path::Path;

use crate::data::task::{Task, repository_key};
use crate::{Error, Result};

/// Repositories whose tasks are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decontamination {
    names: BTreeSet<String>,
}

impl Decontamination {
    /// The repositories of SWE-bench's test split.
    ///
    /// # Errors
    ///
    /// None for the list that comes with the program.
    pub fn swe_bench() -> Result<Self> {
        Self::parse(include_str!("swe_bench_repositories.txt"))
    }

    /// The list of a file: one `owner/name` a line; blank lines and what follows a `#` do not count.
    ///
    /// # Errors
    ///
    /// A file that cannot be read, a line that is no `owner/name` (named).
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
        Self::parse(&text).map_err(|e| e.at_file(path))
    }

    fn parse(text: &str) -> Result<Self> {
        let mut names = BTreeSet::new();
        for (i, line) in text.lines().enumerate() {
            let name = line.split('#').next().unwrap_or_default().trim();
            if name.is_empty() {
                continue;
            }
            if name.split('/').count() != 2 || name.split('/').any(|part| part.is_empty() || part.contains(char::is_whitespace)) {
                return Err(Error::input(format!("expected owner/name, found `{name}`")).at(format_args!("line {}", i + 1)));
            }
            names.insert(repository_key(name));
        }
        Ok(Self { names })
    }

    /// True for a repository of the list, whatever the case of its letters, and for any repository with the name of one: a fork has
    /// another owner and the same history.
    pub fn meets(&self, repository: &str) -> bool {
        self.names.contains(&repository_key(repository))
    }

    /// Leaves out the tasks of the list's repositories: how many.
    pub fn apply(&self, tasks: &mut Vec<Task>) -> usize {
        let before = tasks.len();
        tasks.retain(|t| !self.names.contains(&t.repo_key()));
        before - tasks.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forks_mirrors_and_cases_are_met() {
        let list = Decontamination::swe_bench().unwrap();
        for name in ["django/django", "Django/Django", "someone/django", "django", "swesmith/pallets__flask.bc098406", "psf/requests.git"] {
            assert!(list.meets(name), "{name}");
        }
        for name in ["django/channels", "o/djangoo", "", "swesmith/o__r.bc098406"] {
            assert!(!list.meets(name), "{name}");
        }
        assert!(!Decontamination::default().meets("django/django"));
    }

    #[test]
    fn lists_are_files() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "# mine\n\no/r # held out\n").unwrap();
        let list = Decontamination::read(file.path()).unwrap();
        let task = |repo: &str| Task { repo: repo.to_owned(), ..Task::default() };
        let mut tasks = vec![task("O/R"), task("o/s")];
        assert_eq!((list.apply(&mut tasks), tasks.len()), (1, 1));
        std::fs::write(file.path(), "o/r\nnames alone\n").unwrap();
        assert!(Decontamination::read(file.path()).unwrap_err().to_string().contains("line 2: expected owner/name, found `names alone`"));
    }
}
