//! Applying a patch to files in memory as `git apply` does: every line must fit (no fuzz), but a hunk may stand at other lines than its
//! header says, as in some patches of SWE-bench.

use std::collections::BTreeMap;

use super::{ChangeKind, FileChange, Hunk, Line, LineKind, Patch};
use crate::{Error, Result};

impl Patch {
    /// Applies the patch to `files` (path to content) and gives the files after it. A hunk goes where its header says, or else to the
    /// nearest place behind the hunk before it where all its context and deleted lines are. All reads are of the files as they were
    /// before the patch.
    ///
    /// # Errors
    ///
    /// A file that is missing (or, for an added one, there already), a line that differs, a binary change: with file and line.
    pub fn apply(&self, files: &BTreeMap<String, String>) -> Result<BTreeMap<String, String>> {
        self.apply_with_fuzz(files, 0)
    }

    /// As [`Patch::apply`], but a hunk that fits nowhere is tried again without its outermost 1, 2, ... up to `fuzz` lines of context, as
    /// `patch --fuzz` does: the longer of the two ends loses lines first.
    pub fn apply_with_fuzz(&self, files: &BTreeMap<String, String>, fuzz: usize) -> Result<BTreeMap<String, String>> {
        let mut written = Vec::new();
        for change in &self.files {
            let content = new_content(change, files, fuzz).map_err(|e| e.at(change.path()))?;
            written.push((change, content));
        }
        let mut out = files.clone();
        for (change, _) in &written {
            if let Some(old) = change.base_path() {
                out.remove(old);
            }
        }
        for (change, content) in written {
            if let (Some(path), Some(content)) = (&change.new_path, content) {
                out.insert(path.clone(), content);
            }
        }
        Ok(out)
    }
}

/// What the file holds after the change; none where it is deleted.
fn new_content(change: &FileChange, files: &BTreeMap<String, String>, fuzz: usize) -> Result<Option<String>> {
    if change.binary {
        return Err(Error::input("a binary change cannot be applied to text"));
    }
    let old = match (&change.old_path, change.kind) {
        (_, ChangeKind::Added) | (None, _) => {
            if files.contains_key(change.path()) {
                return Err(Error::input("the patch adds this file, but it is there already"));
            }
            ""
        }
        (Some(path), _) => files.get(path).ok_or_else(|| Error::input("the patch changes this file, but it is not there"))?,
    };
    let new = apply_hunks(old, &change.hunks, fuzz)?;
    match change.kind {
        ChangeKind::Deleted if !new.is_empty() => Err(Error::input("the patch deletes this file, but leaves lines of it")),
        ChangeKind::Deleted => Ok(None),
        _ => Ok(Some(new)),
    }
}

/// `old` with the hunks applied.
fn apply_hunks(old: &str, hunks: &[Hunk], fuzz: usize) -> Result<String> {
    let lines: Vec<&str> = old.split_inclusive('\n').collect();
    let mut out = String::with_capacity(old.len());
    let (mut at, mut moved) = (0usize, 0isize);
    for hunk in hunks {
        // A hunk without old lines names the line that it stands after.
        let said = if hunk.old_len == 0 { hunk.old_start } else { hunk.old_start.saturating_sub(1) };
        let guess = said.saturating_add_signed(moved);
        let (front, kept, start) = fuzzy_place(&lines, hunk, guess, at, fuzz)?;
        moved = start as isize - (said + front) as isize;
        lines[at..start].iter().for_each(|l| out.push_str(l));
        for line in kept.iter().filter(|l| l.kind != LineKind::Delete) {
            out.push_str(&line.text);
            if line.newline {
                out.push('\n');
            }
        }
        at = start + old_lines(kept).count();
    }
    lines[at..].iter().for_each(|l| out.push_str(l));
    Ok(out)
}

/// How many leading lines of the hunk are given up, the lines that are left of it, and where they go ([`place`]).
fn fuzzy_place<'a>(lines: &[&str], hunk: &'a Hunk, guess: usize, from: usize, fuzz: usize) -> Result<(usize, &'a [Line], usize)> {
    let context = |l: &&Line| l.kind == LineKind::Context;
    let prefix = hunk.lines.iter().take_while(context).count();
    let suffix = hunk.lines.iter().rev().take_while(context).count();
    let longest = prefix.max(suffix);
    let exact = place(lines, &hunk.lines, guess, from).map(|start| (0, &hunk.lines[..], start));
    exact.or_else(|error| {
        let given_up = (1..=fuzz.min(longest)).map(|f| ((f + prefix).saturating_sub(longest), (f + suffix).saturating_sub(longest)));
        let tried = given_up.filter(|(front, back)| front + back <= hunk.lines.len()).find_map(|(front, back)| {
            let kept = &hunk.lines[front..hunk.lines.len() - back];
            Some((front, kept, place(lines, kept, guess + front, from).ok()?))
        });
        tried.ok_or(error)
    })
}

/// The lines that are expected to be found.
fn old_lines(lines: &[Line]) -> impl Iterator<Item = &Line> {
    lines.iter().filter(|l| l.kind != LineKind::Insert)
}

/// The place nearest to `guess`, and not before `from`, where all old lines of a hunk are; the earlier of two equally near.
fn place(lines: &[&str], hunk: &[Line], guess: usize, from: usize) -> Result<usize> {
    let same = |line: &Line, found: &str| match found.strip_suffix('\n') {
        Some(text) => line.newline && line.text == text,
        None => !line.newline && line.text == found,
    };
    let expected: Vec<&Line> = old_lines(hunk).collect();
    let fits = |at: &usize| lines.get(*at..*at + expected.len()).is_some_and(|found| expected.iter().zip(found).all(|(l, f)| same(l, f)));
    // Nothing says where lines without any context would have moved to.
    let reach = if expected.is_empty() { 0 } else { lines.len() };
    let near =
        (0..=reach).flat_map(|d| [guess.checked_sub(d), guess.checked_add(d)]).flatten().filter(|&at| at >= from && at <= lines.len());
    near.into_iter().find(fits).ok_or_else(|| {
        let wrong = expected.iter().enumerate().find(|(i, l)| !lines.get(guess + i).is_some_and(|f| same(l, f)));
        let (i, text) = wrong.map_or((0, ""), |(i, l)| (i, l.text.as_str()));
        Error::input(format!("line {} is not what the patch expects: `{text}`", guess + i + 1))
    })
}
