//! Answers to the file subtask: the gold one, reading and scoring others, and what they may name.

use std::collections::BTreeSet;

use crate::Result;
use crate::data::Task;
use crate::data::metrics::SetScore;
use crate::data::patch::Patch;
use crate::data::subtask::answer_text;
use crate::data::subtask::tree::{CLOSE_MARK, forms, shown_paths};

/// The gold answer: the gold paths that are `listed`, one a line, the most changed file first, equally changed ones in alphabetical
/// order.
pub fn gold_answer(task: &Task, listed: &[String]) -> Result<String> {
    let changed = Patch::parse(&task.patch)?;
    let lines = |path: &str| -> usize {
        let of_path = changed.files.iter().filter(|f| f.base_path() == Some(path));
        of_path.flat_map(|f| &f.hunks).map(|h| h.changed_lines()).sum()
    };
    let mut paths: Vec<String> = task.gold()?.into_iter().filter(|g| listed.contains(g)).collect();
    paths.sort_by_key(|p| std::cmp::Reverse(lines(p)));
    Ok(paths.join("\n"))
}

/// The paths that an answer names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileAnswer {
    /// Every different path, in the order of the answer.
    pub paths: Vec<String>,
    /// The first of them that is not in the universe.
    pub outside: Option<String>,
}

/// Reads an answer: one path a line, trimmed, without leading `./`, list bullets, numbers and backticks; blank lines are skipped and
/// equal paths count once. A line that is in the `universe` as it stands is taken as it stands. An empty universe holds every path.
pub fn parse_answer(completion: &str, universe: &BTreeSet<String>) -> FileAnswer {
    let mut answer = FileAnswer::default();
    let mut seen = BTreeSet::new();
    for line in answer_text(completion).lines().filter(|line| line.trim() != CLOSE_MARK) {
        let forms = forms(line);
        let known = forms.iter().find(|f| universe.contains(**f));
        let Some(path) = known.or(forms.last()).filter(|p| !p.is_empty()) else { continue };
        if known.is_none() && !universe.is_empty() {
            answer.outside.get_or_insert_with(|| (*path).to_owned());
        }
        if seen.insert(*path) {
            answer.paths.push((*path).to_owned());
        }
    }
    answer
}

/// Reads and scores an answer: the score, and why it is not valid if it is not (no path, or one outside the universe).
pub fn score(completion: &str, universe: &BTreeSet<String>, gold: &BTreeSet<String>) -> (SetScore, Option<String>) {
    let answer = parse_answer(completion, universe);
    let reason = match (&answer.outside, answer.paths.is_empty()) {
        (Some(path), _) => Some(format!("`{path}` is not among the paths of the prompt")),
        (None, true) => Some("the answer names no path".to_owned()),
        (None, false) => None,
    };
    (SetScore::new(&answer.paths, gold, reason.is_none()), reason)
}

/// The paths that an answer may name: those that `prompt` shows if it is given and shows any, else [`Task::known_paths`].
pub fn universe(task: &Task, prompt: Option<&str>) -> BTreeSet<String> {
    let mut known: BTreeSet<String> = task.known_paths().into_iter().collect();
    if let Some(prompt) = prompt {
        let mut all = known.clone();
        all.extend(task.files.keys().cloned());
        let shown = shown_paths(prompt, &all);
        if !shown.is_empty() {
            known = shown;
        }
    }
    known
}
