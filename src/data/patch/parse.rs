//! Reading a unified diff.

use super::header::{git_names, marker_name, plain_name, same_file, strip_prefixes};
use super::{ChangeKind, FileChange, Hunk, Line, LineKind, Patch};
use crate::{Error, Result};

impl Patch {
    /// Reads a unified diff, with or without git's extended headers. Text around the diffs (a commit message, a signature) is skipped.
    ///
    /// # Errors
    ///
    /// A hunk that ends early or holds a line of no kind, numbers that do not fit, a file without a name, a combined diff (of a merge
    /// against all its parents): with the line of the patch. A text without any diff gives an empty patch.
    pub fn parse(text: &str) -> Result<Self> {
        let mut reader = Reader { lines: text.split('\n').collect(), at: 0 };
        if reader.lines.last() == Some(&"") {
            reader.lines.pop();
        }
        let mut files = Vec::new();
        while let Some(line) = reader.peek() {
            if line.starts_with("diff --git ") || reader.at_plain_header() {
                files.push(reader.file()?);
            } else if reader.at_combined() {
                let error = reader.error("combined diffs, which compare a merge with all its parents, are not read");
                return Err(error.hint("make it with `git diff` against one parent"));
            } else {
                reader.at += 1;
            }
        }
        Ok(Self { files })
    }
}

/// The lines of a patch and the place in them.
struct Reader<'a> {
    lines: Vec<&'a str>,
    at: usize,
}

/// What the headers of a file say.
#[derive(Default)]
struct Headers {
    git_names: Option<(String, String)>,
    from: Option<String>,
    to: Option<String>,
    markers: Option<(Option<String>, Option<String>)>,
    old_mode: Option<u32>,
    new_mode: Option<u32>,
    added: bool,
    deleted: bool,
    copied: bool,
    binary: bool,
}

impl<'a> Reader<'a> {
    fn peek(&self) -> Option<&'a str> {
        self.lines.get(self.at).copied()
    }

    fn error(&self, message: impl Into<String>) -> Error {
        Error::input(message).at(format_args!("line {} of the patch", self.at + 1)).hint("expected a unified diff, as `git diff` writes it")
    }

    /// True at `--- ` followed by `+++ ` and a hunk: a diff without git's header.
    fn at_plain_header(&self) -> bool {
        self.at_markers_before("@@ -")
    }

    /// True at the header of a combined diff, git's or a plain one.
    fn at_combined(&self) -> bool {
        let named = self.peek().is_some_and(|l| l.starts_with("diff --cc ") || l.starts_with("diff --combined "));
        named || self.at_markers_before("@@@ -")
    }

    fn at_markers_before(&self, hunk: &str) -> bool {
        let starts = |i: usize, prefix: &str| self.lines.get(self.at + i).is_some_and(|l| l.starts_with(prefix));
        starts(0, "--- ") && starts(1, "+++ ") && starts(2, hunk)
    }

    fn file(&mut self) -> Result<FileChange> {
        let first = self.at;
        let headers = self.headers()?;
        let mut hunks = Vec::new();
        while let Some(line) = self.peek()
            && line.starts_with("@@ -")
        {
            hunks.push(self.hunk(line)?);
        }
        headers.into_change(hunks).ok_or_else(|| {
            self.at = first;
            self.error("the file's name cannot be read")
        })
    }

    fn headers(&mut self) -> Result<Headers> {
        let mut h = Headers::default();
        if let Some(rest) = self.peek().and_then(|l| l.strip_prefix("diff --git ")) {
            h.git_names = git_names(rest);
            self.at += 1;
        }
        while let Some(line) = self.peek() {
            if let Some(old) = line.strip_prefix("--- ") {
                let Some(new) = self.lines.get(self.at + 1).and_then(|l| l.strip_prefix("+++ ")) else {
                    self.at += 1;
                    return Err(self.error("expected `+++ ` after `--- `"));
                };
                h.markers = Some((marker_name(old), marker_name(new)));
                self.at += 2;
                return Ok(h);
            }
            if line.starts_with("diff --git ") || line.starts_with("@@ -") || !self.extended(line, &mut h)? {
                return Ok(h);
            }
            self.at += 1;
        }
        Ok(h)
    }

    /// Reads one of git's extended header lines; false for a line that is none.
    fn extended(&mut self, line: &str, h: &mut Headers) -> Result<bool> {
        let mode = |text: &str| {
            u32::from_str_radix(text.trim(), 8).map(Some).map_err(|_| self.error(format!("expected an octal file mode, found `{text}`")))
        };
        if let Some(m) = line.strip_prefix("old mode ") {
            h.old_mode = mode(m)?;
        } else if let Some(m) = line.strip_prefix("new mode ") {
            h.new_mode = mode(m)?;
        } else if let Some(m) = line.strip_prefix("deleted file mode ") {
            (h.deleted, h.old_mode) = (true, mode(m)?);
        } else if let Some(m) = line.strip_prefix("new file mode ") {
            (h.added, h.new_mode) = (true, mode(m)?);
        } else if let Some(name) = line.strip_prefix("rename from ") {
            h.from = Some(plain_name(name));
        } else if let Some(name) = line.strip_prefix("rename to ") {
            h.to = Some(plain_name(name));
        } else if let Some(name) = line.strip_prefix("copy from ") {
            (h.copied, h.from) = (true, Some(plain_name(name)));
        } else if let Some(name) = line.strip_prefix("copy to ") {
            (h.copied, h.to) = (true, Some(plain_name(name)));
        } else if line.starts_with("Binary files ") {
            h.binary = true;
        } else if line.starts_with("GIT binary patch") {
            h.binary = true;
            self.skip_binary();
        } else {
            return Ok(["index ", "similarity index ", "dissimilarity index "].iter().any(|p| line.starts_with(p)));
        }
        Ok(true)
    }

    /// Leaves the place at the last line of a `GIT binary patch`: one or two blocks, each ended by a blank line.
    fn skip_binary(&mut self) {
        while let Some(next) = self.lines.get(self.at + 1) {
            if next.starts_with("diff --git ") {
                return;
            }
            self.at += 1;
        }
    }

    fn hunk(&mut self, header: &str) -> Result<Hunk> {
        let (old, new, section) = hunk_header(header).ok_or_else(|| self.error(format!("`{header}` is not a hunk header")))?;
        self.at += 1;
        let (mut old_left, mut new_left, mut lines) = (old.1, new.1, Vec::new());
        while old_left > 0 || new_left > 0 {
            let Some(line) = self.peek() else {
                return Err(self.error(format!("the patch ends inside a hunk: {old_left} old and {new_left} new lines are missing")));
            };
            let (kind, text) = match line.as_bytes().first() {
                Some(b' ') => (LineKind::Context, &line[1..]),
                Some(b'-') => (LineKind::Delete, &line[1..]),
                Some(b'+') => (LineKind::Insert, &line[1..]),
                Some(b'\\') => {
                    self.no_newline(&mut lines);
                    continue;
                }
                // Mailers and editors strip the blank of an empty context line.
                None | Some(b'\r') if line.trim_end().is_empty() => (LineKind::Context, line),
                _ => return Err(self.error("expected a line of the hunk: ` `, `-`, `+` or `\\` at its start")),
            };
            let fits = (kind == LineKind::Insert || old_left > 0) && (kind == LineKind::Delete || new_left > 0);
            if !fits {
                return Err(self.error(format!("the hunk is longer than its header `{header}` says")));
            }
            old_left -= usize::from(kind != LineKind::Insert);
            new_left -= usize::from(kind != LineKind::Delete);
            lines.push(Line { kind, text: text.to_owned(), newline: true });
            self.at += 1;
        }
        if self.peek().is_some_and(|l| l.starts_with('\\')) {
            self.no_newline(&mut lines);
        }
        Ok(Hunk { old_start: old.0, old_len: old.1, new_start: new.0, new_len: new.1, section, lines })
    }

    /// Takes `\ No newline at end of file`, which speaks of the line before it.
    fn no_newline(&mut self, lines: &mut [Line]) {
        if let Some(last) = lines.last_mut() {
            last.newline = false;
        }
        self.at += 1;
    }
}

impl Headers {
    /// The change that the headers describe; none where they name no file.
    fn into_change(self, hunks: Vec<Hunk>) -> Option<FileChange> {
        let (mut old_path, mut new_path) = match (self.from, self.to, self.markers) {
            (Some(from), Some(to), _) => {
                let kind = if self.copied { ChangeKind::Copied } else { ChangeKind::Renamed };
                return Some(FileChange {
                    kind,
                    old_path: Some(from),
                    new_path: Some(to),
                    old_mode: self.old_mode,
                    new_mode: self.new_mode,
                    binary: self.binary,
                    hunks,
                });
            }
            (_, _, Some(markers)) => named(markers, self.git_names),
            _ => self.git_names.map(|(old, new)| (Some(old), Some(new)))?,
        };
        let kind = match (self.added || old_path.is_none(), self.deleted || new_path.is_none()) {
            (true, true) => return None,
            (true, false) => ChangeKind::Added,
            (false, true) => ChangeKind::Deleted,
            (false, false) if old_path != new_path => ChangeKind::Renamed,
            (false, false) => ChangeKind::Modified,
        };
        match kind {
            ChangeKind::Added => old_path = None,
            ChangeKind::Deleted => new_path = None,
            _ => {}
        }
        Some(FileChange { kind, old_path, new_path, old_mode: self.old_mode, new_mode: self.new_mode, binary: self.binary, hunks })
    }
}

/// The names before and after, from the `---` and `+++` lines and from git's header if there is one.
fn named((old, new): (Option<String>, Option<String>), git_names: Option<(String, String)>) -> (Option<String>, Option<String>) {
    match (strip_prefixes(old, new), git_names) {
        ((Some(old), Some(new)), None) => {
            let (old, new) = same_file(old, new);
            (Some(old), Some(new))
        }
        // One name alone does not tell a prefix from a folder; git's header has two.
        ((None, Some(new)), Some((_, name))) if behind_letter(&new) == Some(&name) => (None, Some(name)),
        ((Some(old), None), Some((name, _))) if behind_letter(&old) == Some(&name) => (Some(name), None),
        (names, _) => names,
    }
}

/// What follows one letter and `/`.
fn behind_letter(name: &str) -> Option<&str> {
    name.get(1..)?.strip_prefix('/')
}

/// A first line and a number of lines.
type Span = (usize, usize);

/// `@@ -start[,len] +start[,len] @@ section`: the old range, the new range, the section.
fn hunk_header(line: &str) -> Option<(Span, Span, String)> {
    let (ranges, section) = line.strip_prefix("@@ -")?.split_once(" @@")?;
    let (old, new) = ranges.split_once(" +")?;
    let range = |text: &str| -> Option<Span> {
        let (start, len) = text.split_once(',').unwrap_or((text, "1"));
        let (start, len) = (start.parse::<u32>().ok()?, len.parse::<u32>().ok()?);
        // Lines count from 1: `0,3` is what git reads as `1,3`. Only an empty range may begin at 0, before the first line.
        Some((start.max(len.min(1)) as usize, len as usize))
    };
    Some((range(old)?, range(new)?, section.trim().to_owned()))
}
