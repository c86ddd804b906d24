//! How a patch compares with a task's gold patch.

use std::collections::{BTreeMap, BTreeSet};

use crate::agentless::patch::build;
use crate::data::difflib::Scratch;
use crate::data::ground_truth::{self, Functions, Lines};
use crate::data::metrics::SetScore;
use crate::data::patch_similarity::{Files, Oracle, Patches, Rule, normalised_patches};
use crate::data::{Task, patch::Patch};
use crate::{Error, Result};

/// A task's gold patch, read once for all patches that are compared with it.
pub struct Judge<'a> {
    task: &'a Task,
    /// The files that it changes.
    pub files: BTreeSet<String>,
    /// The definitions that it changes.
    pub functions: Functions,
    /// The lines that it changes.
    pub lines: Lines,
    oracle: Oracle,
    normalized: String,
}

/// A patch compared with the gold patch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PatchScore {
    /// True if it is there and fits the task's files.
    pub applied: bool,
    /// Why not, if not.
    pub reason: Option<String>,
    /// SWE-RL's similarity of patches, from 0 to 1; 0 for one that does not apply.
    pub similarity: f64,
    /// True if both are the same once comments, blank lines and layout are taken out.
    pub exact: bool,
    /// The files that it changes, against the gold patch's.
    pub files: SetScore,
    /// The same for definitions.
    pub functions: SetScore,
    /// The same for lines of the base files.
    pub lines: SetScore,
}

/// Contents before and after, by base path.
type Contents = BTreeMap<String, (String, String)>;

impl<'a> Judge<'a> {
    /// Reads the gold patch.
    ///
    /// # Errors
    ///
    /// A patch that does not parse or does not fit the task's files, named with the task.
    pub fn new(task: &'a Task) -> Result<Self> {
        let at = |e: Error| e.at(&task.instance_id);
        let contents = if task.patch.trim().is_empty() { Contents::new() } else { contents_of_all(task).map_err(at)? };
        Ok(Self {
            task,
            files: task.gold().map_err(at)?,
            functions: ground_truth::functions(task).map_err(at)?,
            lines: ground_truth::lines(task).map_err(at)?,
            oracle: Oracle::new(patches(&contents)),
            normalized: build(&contents, &|p| !task.files.contains_key(p))?.normalized,
        })
    }

    /// Compares a patch; an empty one is none.
    pub fn patch(&self, text: &str) -> PatchScore {
        let none = |reason: String| PatchScore {
            reason: Some(reason),
            files: SetScore::new(&[], &self.files, false),
            functions: SetScore::new(&[], &self.functions, false),
            lines: SetScore::new(&[], &self.lines, false),
            ..PatchScore::default()
        };
        if text.trim().is_empty() {
            return none("there is no patch".to_owned());
        }
        self.compare(text).unwrap_or_else(|e| none(e.to_string()))
    }

    fn compare(&self, text: &str) -> Result<PatchScore> {
        let patched = Task { patch: text.to_owned(), ..self.task.without_answer() };
        if Patch::parse(text)?.files.is_empty() {
            return Err(Error::input("the text holds no patch"));
        }
        let contents = contents_of_all(&patched)?;
        let normalized = build(&contents, &|p| !self.task.files.contains_key(p))?.normalized;
        fn list<T: Clone>(set: &BTreeSet<T>) -> Vec<T> {
            set.iter().cloned().collect()
        }
        Ok(PatchScore {
            applied: true,
            reason: None,
            similarity: self.oracle.compare(patches(&contents), Rule::Continuous, &mut Scratch::default()).reward,
            exact: !normalized.is_empty() && normalized == self.normalized,
            files: SetScore::new(&list(&patched.gold()?), &self.files, true),
            functions: SetScore::new(&list(&ground_truth::functions(&patched)?), &self.functions, true),
            lines: SetScore::new(&list(&ground_truth::lines(&patched)?), &self.lines, true),
        })
    }
}

/// The contents of every file that the task's patch changes: a patch is judged as a whole.
fn contents_of_all(task: &Task) -> Result<Contents> {
    match ground_truth::unknown_files(task)?.first() {
        Some(path) => Err(Error::input("the patch changes this file, but it is not there").at(path)),
        None => ground_truth::contents(task),
    }
}

fn patches(contents: &Contents) -> Patches {
    let side = |new: bool| -> Files {
        contents.iter().map(|(path, (old, after))| (path.as_str().into(), if new { after.as_str() } else { old.as_str() }.into())).collect()
    };
    normalised_patches(&side(false), &side(true))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const GOLD: &str = "diff --git a/m.py b/m.py\n--- a/m.py\n+++ b/m.py\n@@ -4,2 +4,2 @@\n def g(x):\n-    return x\n+    return x + 1\n";

    fn task() -> Task {
        let files = json!({"m.py": "def f(x):\n    return x\n\ndef g(x):\n    return x\n", "n.py": "y = 1\n"});
        Task::from_json(json!({"instance_id": "o__r-1", "problem_statement": "g", "patch": GOLD, "files": files})).unwrap()
    }

    #[test]
    fn gold_is_all_and_nothing_is_nothing() {
        let task = task();
        let judge = Judge::new(&task).unwrap();
        let gold = judge.patch(GOLD);
        assert!(gold.applied && gold.exact && gold.similarity == 1.0);
        assert_eq!((gold.files.common, gold.functions.common, gold.lines.common), (1, 1, 1));
        let none = judge.patch("");
        assert_eq!((none.applied, none.similarity, none.exact, none.files.gold), (false, 0.0, false, 1));
        let unfit = judge.patch(&GOLD.replace("-    return x\n", "-    return y\n"));
        assert!(!unfit.applied && unfit.reason.unwrap().contains("not what the patch expects"));
        assert!(!judge.patch("words").applied);
        let elsewhere = judge.patch("--- a/m.py\n+++ b/m.py\n@@ -1,2 +1,2 @@\n def f(x):\n-    return x\n+    return x + 1\n");
        assert!(elsewhere.applied && !elsewhere.exact && elsewhere.similarity > 0.0 && elsewhere.similarity < 1.0);
        assert_eq!((elsewhere.files.common, elsewhere.functions.common, elsewhere.lines.common), (1, 0, 0));
    }
}
