//! Whether a task's ground truth holds together: the extraction agrees with the task's own `gold_*` fields, each gold answer reads back
//! and scores 1, and the gold edit gives the gold files byte for byte.

use std::collections::BTreeSet;

use super::Task;
use super::edit_blocks::agentless::{apply_blocks, parse_blocks};
use super::ground_truth::{contents, functions, lines, unknown_files};
use super::metrics::{BETA, ScoreKind};
use super::subtask::answer::{Gold, Place, Universe};
use super::subtask::file;
use super::symbols::MODULE;
use crate::Result;

/// What is wrong: which check, and how.
pub type Finding = (&'static str, String);

/// Everything that does not hold for a task.
///
/// # Errors
///
/// A patch that does not parse or does not fit the files.
pub fn check(task: &Task) -> Result<Vec<Finding>> {
    let mut out = Vec::new();
    let mut differ = |what, ours: BTreeSet<String>, theirs: BTreeSet<String>| {
        if ours != theirs {
            let list = |a: &BTreeSet<String>, b: &BTreeSet<String>| a.difference(b).cloned().collect::<Vec<_>>().join(", ");
            out.push((what, format!("extracted only: [{}]; given only: [{}]", list(&ours, &theirs), list(&theirs, &ours))));
        }
    };
    if let Some(given) = &task.gold_files {
        differ("gold_files", task.gold()?, given.iter().cloned().collect());
    }
    if let Some(given) = &task.gold_functions {
        let given = given.iter().flat_map(|(path, names)| names.iter().map(move |n| format!("{path} {n}"))).collect();
        let ours = functions(task)?.into_iter().filter(|(_, name)| name != MODULE).map(|(path, name)| format!("{path} {name}"));
        differ("gold_functions", ours.collect(), given);
    }
    if let Some(given) = &task.gold_lines {
        let given = given.iter().flat_map(|(path, lines)| lines.iter().map(move |n| format!("{path}:{n}"))).collect();
        differ("gold_lines", lines(task)?.into_iter().map(|(path, line)| format!("{path}:{line}")).collect(), given);
    }
    let paths = task.known_paths();
    let (score, reason) = file::score(&file::gold_answer(task, &paths)?, &paths.into_iter().collect(), &task.gold()?);
    if score.reward(ScoreKind::Fbeta, BETA) != 1.0 {
        out.push(("file answer", reason.unwrap_or_default()));
    }
    let unknown = unknown_files(task)?;
    if !unknown.is_empty() {
        let list = unknown.into_iter().collect::<Vec<_>>().join(", ");
        out.push(("unknown files", format!("changed, but not in `files`, so that no answer can name what is in them: {list}")));
    }
    let universe = Universe::new(task, None);
    for (what, place) in [("function answer", Place::Function), ("line answer", Place::Line), ("edit answer", Place::Edit)] {
        let gold = Gold::new(task, place)?;
        let Some(answer) = gold.answer(task)? else {
            out.push((what, "cannot be written in the answer format".to_owned()));
            continue;
        };
        let (score, reason) = gold.score(&answer, &universe);
        if score.reward(ScoreKind::Fbeta, BETA) != 1.0 {
            out.push((what, format!("{} {score:?}", reason.unwrap_or_default())));
        }
        if place == Place::Edit && !gives_gold_files(task, &answer)? {
            out.push(("edit", "applying the gold edit does not give the gold files".to_owned()));
        }
    }
    Ok(out)
}

fn gives_gold_files(task: &Task, answer: &str) -> Result<bool> {
    let there = task.base_paths();
    let applied = parse_blocks(answer).and_then(|blocks| apply_blocks(&blocks, &task.files, &|_, _| true, &|path| there.contains(path)));
    let Ok(applied) = applied else { return Ok(false) };
    Ok(contents(task)?.iter().all(|(path, (old, new))| applied.get(path).map_or(old, |(_, new)| new) == new))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_file_added_beside_a_change_is_no_finding() {
        let patch = "diff --git a/a.py b/a.py\n--- a/a.py\n+++ b/a.py\n@@ -1 +1 @@\n-x = 1\n+x = 2\n\
            diff --git a/b.py b/b.py\nnew file mode 100644\n--- /dev/null\n+++ b/b.py\n@@ -0,0 +1 @@\n+y = 1\n";
        let task = json!({ "instance_id": "o__r-1", "problem_statement": "p", "patch": patch, "files": { "a.py": "x = 1\n" } });
        assert_eq!(check(&Task::from_json(task.clone()).unwrap()).unwrap(), []);
        let mut there = Task::from_json(task).unwrap();
        there.all_paths = vec!["a.py".to_owned(), "b.py".to_owned()];
        assert!(!check(&there).unwrap().is_empty(), "a file that is there is not made anew");
    }
}
