//! Applying a patch to files in memory, exactly: no fuzz, no moved hunks.

use std::collections::BTreeMap;

use super::{ChangeKind, FileChange, Hunk, LineKind, Patch};
use crate::{Error, Result};

impl Patch {
    /// Applies the patch to `files` (path to content) and gives the files after it. Every context and deleted line must be where the
    /// hunk says. All reads are of the files as they were before the patch.
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
    let mut at = 0;
    for hunk in hunks {
        // A hunk without old lines names the line that it stands after.
        let start = if hunk.old_len == 0 { hunk.old_start } else { hunk.old_start.saturating_sub(1) };
        let between = lines.get(at..start).ok_or_else(|| Error::input(format!("the hunk at line {} is out of order", hunk.old_start)))?;
        between.iter().for_each(|l| out.push_str(l));
        at = start;
        for line in &hunk.lines {
            let text = (line.text.as_str(), line.newline);
            if line.kind != LineKind::Insert {
                let found = lines.get(at).map(|l| l.strip_suffix('\n').map_or((*l, false), |l| (l, true)));
                if found != Some(text) {
                    return Err(Error::input(format!("line {} is not what the patch expects: `{}`", at + 1, line.text)));
                }
                at += 1;
            }
            if line.kind != LineKind::Delete {
                out.push_str(text.0);
                if text.1 {
                    out.push('\n');
                }
            }
        }
    }
    lines[at..].iter().for_each(|l| out.push_str(l));
    Ok(out)
}
