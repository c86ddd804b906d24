//! What became of everything that was looked at, on the way to a task file: kept in a small file beside it.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The steps from what was looked at to the tasks that were kept. It adds up: `seen = sum of dropped + kept`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Funnel {
    /// Where the tasks are from: a repository's name, or a file's.
    pub from: String,
    /// What was looked at: `commits` or `rows`.
    pub unit: String,
    /// How many were looked at.
    pub seen: usize,
    /// The filters that dropped any, in the order in which they are asked.
    pub dropped: Vec<Dropped>,
    /// How many tasks were kept.
    pub kept: usize,
}

/// What one filter dropped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dropped {
    /// The filter's name.
    pub filter: String,
    /// What it says of what it dropped, in words: `is a merge`.
    pub what: String,
    /// How many it dropped.
    pub count: usize,
}

impl Funnel {
    /// Adds a filter, if it dropped any.
    pub fn drop(&mut self, filter: &str, what: &str, count: usize) {
        if count > 0 {
            self.dropped.push(Dropped { filter: filter.to_owned(), what: what.to_owned(), count });
        }
    }

    /// True if what was dropped and what was kept is what was seen.
    pub fn adds_up(&self) -> bool {
        self.dropped.iter().map(|d| d.count).sum::<usize>() + self.kept == self.seen
    }

    /// The name of the file beside the task file at `path`.
    pub fn path(path: &Path) -> PathBuf {
        beside(path, "funnel.json")
    }

    /// Writes the funnel beside the task file at `path`.
    pub fn write(&self, path: &Path) -> Result<()> {
        let path = Self::path(path);
        let text = serde_json::to_string(self).map_err(|e| Error::input(format!("cannot write the funnel: {e}")))?;
        std::fs::write(&path, text + "\n").map_err(|e| Error::io("write", &path, e))
    }

    /// Reads the funnel beside the task file at `path`; none where there is no such file.
    ///
    /// # Errors
    ///
    /// A file that is no funnel, one that does not add up, or one that speaks of another number of tasks than `tasks`.
    pub fn read(path: &Path, tasks: usize) -> Result<Option<Self>> {
        let path = Self::path(path);
        let text = match std::fs::read_to_string(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            text => text.map_err(|e| Error::io("read", &path, e))?,
        };
        let funnel: Self = serde_json::from_str(&text).map_err(|e| Error::input(format!("not a funnel: {e}")).at_file(&path))?;
        let hint = "it is not of this task file: remove it";
        if !funnel.adds_up() {
            return Err(Error::input("what was dropped and kept is not what was seen").at_file(&path).hint(hint));
        }
        if funnel.kept != tasks {
            let message = format!("it speaks of {} tasks, the task file holds {tasks}", funnel.kept);
            return Err(Error::input(message).at_file(&path).hint(hint));
        }
        Ok(Some(funnel))
    }

    /// The rows of its table: what was seen, what each filter dropped, what is left.
    pub fn rows(&self) -> Vec<Vec<String>> {
        let mut rows = vec![vec![format!("{} of {}", self.unit, self.from), self.seen.to_string()]];
        rows.extend(self.dropped.iter().map(|d| vec![format!("  - {}", d.what), format!("-{}", d.count)]));
        rows.push(vec!["tasks".to_owned(), self.kept.to_string()]);
        rows
    }
}

/// `dir/name.ext` with `ending`: `dir/name.ext.ending`.
pub fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(ending);
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_funnel_comes_back_and_must_add_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.jsonl");
        assert_eq!(Funnel::read(&path, 3).unwrap(), None);
        let mut funnel = Funnel { from: "o/r".into(), unit: "commits".into(), seen: 9, kept: 3, ..Funnel::default() };
        funnel.drop("merge", "is a merge", 5);
        funnel.drop("bot", "was written by a bot", 0);
        funnel.write(&path).unwrap();
        assert!(Funnel::read(&path, 3).unwrap_err().to_string().contains("is not what was seen"));
        funnel.drop("bot", "was written by a bot", 1);
        funnel.write(&path).unwrap();
        assert_eq!(Funnel::read(&path, 3).unwrap(), Some(funnel));
        assert!(Funnel::read(&path, 4).unwrap_err().to_string().contains("3 tasks, the task file holds 4"));
    }
}
