//! The gold sets of SoRFT's subtasks (arXiv 2502.20127, section 3.1), from a task's base files and its gold patch.
//!
//! * files: those that the patch modifies, deletes or renames, by their base paths; an added file is not there to be found;
//! * functions: (path, qualified name) of the innermost definition around each changed line, classes included, [`MODULE`] outside all;
//! * lines: (path, line) in the base file's numbering: deleted lines, and for a pure insertion the line before it (line 1 at the top);
//! * edits: [`edit_elements`] of the files before and after the patch.
//!
//! Lines are where the hunks stand in the task's files, which need not be where their headers say ([`Patch::placed`]).
//!
//! Of a changed file whose content the task does not hold nothing can be shown or named: [`unknown_files`]. Its edits are left out here, its
//! lines and functions from what answers are judged by ([`super::subtask::answer::Gold`]).
//!
//! A binary change, a rename or a change of mode without hunks has no lines, functions or edits. A deleted file has all its lines. Lines
//! end with a line feed, so a carriage return changes nothing here; text that is not UTF-8 is refused where tasks and patches are read.

use std::collections::{BTreeMap, BTreeSet};

use super::Task;
use super::edited_lines::{Element, edit_elements};
use super::patch::{ChangeKind, FileChange, Hunk, LineKind, Patch};
use super::symbols::{self, MODULE};
use crate::{Error, Result};

/// Elements of function localisation: paths with qualified names.
pub type Functions = BTreeSet<(String, String)>;
/// Elements of line localisation: paths with line numbers.
pub type Lines = BTreeSet<(String, usize)>;

/// The lines that a task's patch changes.
///
/// # Errors
///
/// A patch that does not parse, or whose hunks do not fit the files.
pub fn lines(task: &Task) -> Result<Lines> {
    if task.patch.trim().is_empty() {
        let fields = task.gold_lines.iter().flatten();
        return Ok(fields.flat_map(|(path, lines)| lines.iter().map(move |&l| (path.clone(), l))).collect());
    }
    let mut out = Lines::new();
    for change in &parsed(task)?.placed(&task.files).map_err(|e| e.at("field `patch`"))?.files {
        if let Some(path) = change.base_path() {
            out.extend(change_lines(change).into_iter().map(|l| (path.to_owned(), l)));
        }
    }
    Ok(out)
}

/// The definitions that a task's patch changes. A file without a grammar is all module level; where a changed file's content is not
/// known, `gold_functions` stands for it.
///
/// # Errors
///
/// As [`lines`].
pub fn functions(task: &Task) -> Result<Functions> {
    let mut by_path: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    lines(task)?.into_iter().for_each(|(path, line)| by_path.entry(path).or_default().push(line));
    if task.patch.trim().is_empty() {
        for path in task.gold_functions.iter().flat_map(|f| f.keys()) {
            by_path.entry(path.clone()).or_default();
        }
    }
    let mut out = Functions::new();
    for (path, lines) in by_path {
        match task.files.get(&path).filter(|_| !lines.is_empty()) {
            Some(text) => {
                let definitions = symbols::definitions(&path, text).unwrap_or_default();
                out.extend(lines.iter().map(|&l| (path.clone(), symbols::target_of_line(&definitions, l).to_owned())));
            }
            None => {
                let named = task.gold_functions.as_ref().and_then(|f| f.get(&path)).cloned().unwrap_or_default();
                let named = if named.is_empty() { vec![MODULE.to_owned()] } else { named };
                out.extend(named.into_iter().map(|name| (path.clone(), name)));
            }
        }
    }
    Ok(out)
}

/// The text files that the patch changes and whose contents the task does not hold, by base path.
///
/// # Errors
///
/// A patch that does not parse.
pub fn unknown_files(task: &Task) -> Result<BTreeSet<String>> {
    if task.patch.trim().is_empty() {
        let named = task.gold_lines.iter().flat_map(|m| m.keys()).chain(task.gold_functions.iter().flat_map(|m| m.keys()));
        return Ok(named.filter(|path| !task.files.contains_key(*path)).cloned().collect());
    }
    let unknown = parsed(task)?.files.into_iter().filter(|f| !f.binary && !is_known(f, task));
    Ok(unknown.filter_map(|f| f.old_path).collect())
}

/// Whether the task holds what the change starts from.
fn is_known(change: &FileChange, task: &Task) -> bool {
    change.kind == ChangeKind::Added || change.old_path.as_ref().is_some_and(|path| task.files.contains_key(path))
}

/// The contents of the changed files before and after the patch, by base path: an added file has none before, a deleted one none after,
/// and a renamed one keeps its base path. Binary files and [`unknown_files`] are left out.
///
/// # Errors
///
/// A patch that does not parse or does not fit the task's files.
pub fn contents(task: &Task) -> Result<BTreeMap<String, (String, String)>> {
    let mut patch = parsed(task)?;
    patch.files.retain(|f| !f.binary && is_known(f, task));
    let after = patch.apply(&task.files)?;
    let text = |files: &BTreeMap<String, String>, path: Option<&String>| path.and_then(|p| files.get(p)).cloned().unwrap_or_default();
    let of = |f: &FileChange| {
        let path = f.base_path().unwrap_or(f.path()).to_owned();
        let old = if f.base_path().is_some() { text(&task.files, f.old_path.as_ref()) } else { String::new() };
        (path, (old, text(&after, f.new_path.as_ref())))
    };
    Ok(patch.files.iter().map(of).collect())
}

/// What a task's patch deletes and inserts.
///
/// # Errors
///
/// As [`contents`].
pub fn edits(task: &Task) -> Result<BTreeSet<Element>> {
    Ok(contents(task)?.iter().flat_map(|(path, (old, new))| edit_elements(path, old, new)).collect())
}

fn parsed(task: &Task) -> Result<Patch> {
    if task.patch.trim().is_empty() {
        return Err(Error::input("expected a git diff, found nothing").at("field `patch`"));
    }
    Patch::parse(&task.patch).map_err(|e| e.at("field `patch`"))
}

fn change_lines(change: &FileChange) -> BTreeSet<usize> {
    change.hunks.iter().flat_map(hunk_lines).collect()
}

/// A hunk's changed lines: the deleted ones of each run of changes, or where it only inserts the line before it.
fn hunk_lines(hunk: &Hunk) -> Vec<usize> {
    let mut out = Vec::new();
    // A hunk without old lines names the line that it stands after.
    let mut next = hunk.old_start + usize::from(hunk.old_len == 0);
    let (mut deleted, mut inserted) = (false, false);
    for line in &hunk.lines {
        match line.kind {
            LineKind::Delete => {
                out.push(next);
                (deleted, next) = (true, next + 1);
            }
            LineKind::Insert => inserted = true,
            LineKind::Context => {
                if inserted && !deleted {
                    out.push(next.saturating_sub(1).max(1));
                }
                (deleted, inserted, next) = (false, false, next + 1);
            }
        }
    }
    if inserted && !deleted {
        out.push(next.saturating_sub(1).max(1));
    }
    out
}

#[cfg(test)]
#[path = "ground_truth_tests.rs"]
mod tests;
