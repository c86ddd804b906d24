//! Applying a patch to files in memory as `git apply` does: every line must fit (no fuzz), but a hunk may stand at other lines than its
//! header says, as in some patches of SWE-bench.
//!
//! The search is git's (`apply.c`): hunks one after another, each first at its header's new line in the file as the hunks before left it,
//! then ever farther to both sides, below before above; never over lines that another hunk has. A hunk of old line 0 or 1 must stand at
//! the file's beginning, one that ends without context at its end. Taken more gently than by git: one that fits just where its header
//! says, and one without any context at all (`git diff -U0`), which nothing tells apart from others.

use std::collections::BTreeMap;

use super::{ChangeKind, FileChange, Hunk, Line, LineKind, Patch};
use crate::{Error, Result};

impl Patch {
    /// Applies the patch to `files` (path to content) and gives the files after it. A hunk goes where its header says, or else to the
    /// nearest place where all its context and deleted lines are. All reads are of the files as they were before the patch.
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

    /// The patch with every hunk's `old_start` where the hunk stands in `files`, so that its lines have the files' numbers. Files that
    /// are not among them keep what their headers say.
    ///
    /// # Errors
    ///
    /// A hunk that fits nowhere, with file and line.
    pub fn placed(&self, files: &BTreeMap<String, String>) -> Result<Self> {
        let mut out = self.clone();
        for change in &mut out.files {
            let Some(text) = change.base_path().and_then(|path| files.get(path)) else { continue };
            let (_, places) = apply_hunks(text, &change.hunks, 0).map_err(|e| e.at(change.path()))?;
            change.hunks.iter_mut().zip(places).for_each(|(hunk, place)| hunk.old_start = place);
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
    let (new, _) = apply_hunks(old, &change.hunks, fuzz)?;
    match change.kind {
        ChangeKind::Deleted if !new.is_empty() => Err(Error::input("the patch deletes this file, but leaves lines of it")),
        ChangeKind::Deleted => Ok(None),
        _ => Ok(Some(new)),
    }
}

/// A line of a file that hunks are applied to.
#[derive(Clone, Copy)]
struct Spot<'a> {
    text: &'a str,
    newline: bool,
    /// Its number in the old file, 1-based; of an inserted line that of the old line before it.
    old: usize,
    /// True for the lines of a hunk that stands here, context included: no other hunk may.
    taken: bool,
}

/// `old` with the hunks applied, and each hunk's first line in `old`, 1-based (of a hunk without old lines the line before it).
fn apply_hunks(old: &str, hunks: &[Hunk], fuzz: usize) -> Result<(String, Vec<usize>)> {
    let spot = |(i, line)| {
        let (text, newline) = str::strip_suffix(line, '\n').map_or((line, false), |text| (text, true));
        Spot { text, newline, old: i + 1, taken: false }
    };
    let mut lines: Vec<Spot<'_>> = old.split_inclusive('\n').enumerate().map(spot).collect();
    let mut places = Vec::with_capacity(hunks.len());
    for hunk in hunks {
        let (front, kept, start) = fuzzy_place(&lines, hunk, fuzz)?;
        let end = start + old_lines(kept).count();
        let before = start.checked_sub(1).map_or(0, |i| lines[i].old);
        places.push(lines[start..end].first().map_or(before, |first| first.old.saturating_sub(front).max(1)));
        let (mut number, mut next) = (before, start);
        let mut new = Vec::with_capacity(kept.len());
        for line in kept {
            if line.kind != LineKind::Insert {
                (number, next) = (lines[next].old, next + 1);
            }
            if line.kind != LineKind::Delete {
                new.push(Spot { text: &line.text, newline: line.newline, old: number, taken: true });
            }
        }
        lines.splice(start..end, new);
    }
    let text = lines.iter().flat_map(|l| [l.text, if l.newline { "\n" } else { "" }]).collect();
    Ok((text, places))
}

/// How many leading lines of the hunk are given up, the lines that are left of it, and where they go.
fn fuzzy_place<'h>(lines: &[Spot<'_>], hunk: &'h Hunk, fuzz: usize) -> Result<(usize, &'h [Line], usize)> {
    let context = |l: &&Line| l.kind == LineKind::Context;
    let prefix = hunk.lines.iter().take_while(context).count();
    let suffix = hunk.lines.iter().rev().take_while(context).count();
    if let Some(start) = place(lines, hunk, suffix) {
        return Ok((0, &hunk.lines, start));
    }
    let longest = prefix.max(suffix);
    let given_up = (0..=fuzz.min(longest)).map(|f| ((f + prefix).saturating_sub(longest), (f + suffix).saturating_sub(longest)));
    let tried = given_up.filter(|(front, back)| fuzz > 0 && front + back <= hunk.lines.len()).find_map(|(front, back)| {
        let kept = &hunk.lines[front..hunk.lines.len() - back];
        Some((front, kept, nearest(lines, &old_lines(kept).collect::<Vec<_>>(), new_index(hunk) + front)?))
    });
    tried.ok_or_else(|| misfit(lines, hunk))
}

/// The lines that are expected to be found.
fn old_lines(lines: &[Line]) -> impl Iterator<Item = &Line> {
    lines.iter().filter(|l| l.kind != LineKind::Insert)
}

/// Where the header says that the hunk begins in the new file, from 0. A range without lines names the line before it.
fn new_index(hunk: &Hunk) -> usize {
    if hunk.new_len == 0 { hunk.new_start } else { hunk.new_start.saturating_sub(1) }
}

/// The place of a whole hunk, as git finds it; `trailing` lines of context end it.
fn place(lines: &[Spot<'_>], hunk: &Hunk, trailing: usize) -> Option<usize> {
    let expected: Vec<&Line> = old_lines(&hunk.lines).collect();
    let said = lines.partition_point(|l| l.old + usize::from(!expected.is_empty()) <= hunk.old_start);
    if expected.is_empty() {
        // Nothing but the header says where lines without any context go.
        let there = lines.is_empty() || hunk.old_start <= lines.last().map_or(0, |l| l.old);
        return there.then_some(said);
    }
    let has_context = expected.iter().any(|l| l.kind == LineKind::Context);
    let (at_start, at_end) = (has_context && hunk.old_start <= 1, has_context && trailing == 0);
    if !at_start && !at_end {
        return nearest(lines, &expected, new_index(hunk));
    }
    let start = if at_start { Some(0) } else { lines.len().checked_sub(expected.len()) };
    let whole = |at: &usize| !at_end || at + expected.len() == lines.len();
    start.filter(whole).filter(|&at| fits(lines, &expected, at)).or_else(|| fits(lines, &expected, said).then_some(said))
}

/// The place nearest to `guess` where all `expected` lines are; the later of two equally near.
fn nearest(lines: &[Spot<'_>], expected: &[&Line], guess: usize) -> Option<usize> {
    if expected.is_empty() {
        return (guess <= lines.len()).then_some(guess);
    }
    let guess = guess.min(lines.len());
    let around = (0..=lines.len()).flat_map(|d| [Some(guess + d), guess.checked_sub(d)]);
    around.flatten().find(|&at| fits(lines, expected, at))
}

fn fits(lines: &[Spot<'_>], expected: &[&Line], at: usize) -> bool {
    let found = lines.get(at..at + expected.len());
    found.is_some_and(|found| expected.iter().zip(found).all(|(l, f)| !f.taken && l.text == f.text && l.newline == f.newline))
}

/// Why the hunk fits nowhere, by what stands where its header says.
fn misfit(lines: &[Spot<'_>], hunk: &Hunk) -> Error {
    let found = |number: usize| lines.iter().find(|l| !l.taken && l.old == number);
    let same = |l: &Line, f: &Spot<'_>| l.text == f.text && l.newline == f.newline;
    let wrong = (hunk.old_start..).zip(old_lines(&hunk.lines)).find(|(n, l)| !found(*n).is_some_and(|f| same(l, f)));
    match wrong {
        Some((number, line)) => Error::input(format!("line {number} is not what the patch expects: `{}`", line.text)),
        None => Error::input(format!("the hunk at line {} fits nowhere", hunk.old_start)),
    }
}
