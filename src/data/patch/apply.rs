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
        let mut written = Vec::new();
        for change in &self.files {
            let content = new_content(change, files).map_err(|e| e.at(change.path()))?;
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
fn new_content(change: &FileChange, files: &BTreeMap<String, String>) -> Result<Option<String>> {
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
    let new = apply_hunks(old, &change.hunks)?;
    match change.kind {
        ChangeKind::Deleted if !new.is_empty() => Err(Error::input("the patch deletes this file, but leaves lines of it")),
        ChangeKind::Deleted => Ok(None),
        _ => Ok(Some(new)),
    }
}

/// `old` with the hunks applied.
fn apply_hunks(old: &str, hunks: &[Hunk]) -> Result<String> {
    let lines: Vec<&str> = old.split_inclusive('\n').collect();
    let mut out = String::with_capacity(old.len());
    let (mut at, mut moved) = (0usize, 0isize);
    for hunk in hunks {
        // A hunk without old lines names the line that it stands after.
        let said = if hunk.old_len == 0 { hunk.old_start } else { hunk.old_start.saturating_sub(1) };
        let start = place(&lines, hunk, said.saturating_add_signed(moved), at)?;
        moved = start as isize - said as isize;
        lines[at..start].iter().for_each(|l| out.push_str(l));
        for line in hunk.lines.iter().filter(|l| l.kind != LineKind::Delete) {
            out.push_str(&line.text);
            if line.newline {
                out.push('\n');
            }
        }
        at = start + old_lines(hunk).count();
    }
    lines[at..].iter().for_each(|l| out.push_str(l));
    Ok(out)
}

/// The lines that the hunk expects to find.
fn old_lines(hunk: &Hunk) -> impl Iterator<Item = &Line> {
    hunk.lines.iter().filter(|l| l.kind != LineKind::Insert)
}

/// The place nearest to `guess`, and not before `from`, where all lines that the hunk expects are; the earlier of two equally near.
fn place(lines: &[&str], hunk: &Hunk, guess: usize, from: usize) -> Result<usize> {
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
