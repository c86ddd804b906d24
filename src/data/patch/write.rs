//! Writing a change in the form that `git apply` takes.

use std::fmt::Write as _;

use similar::{Algorithm, DiffOp, DiffTag, capture_diff_slices, group_diff_ops};

use super::header::quote;

/// A file before or after a change.
#[derive(Clone, Copy, Debug)]
pub struct Side<'a> {
    /// The path, relative to the root of the repository, with `/` between its parts.
    pub path: &'a str,
    /// git's mode: 0o100644, or 0o100755 for an executable.
    pub mode: u32,
    /// The blob's hash in hexadecimal, for the `index` line; it may be shortened. An empty one leaves the line out.
    pub id: &'a str,
    /// The content.
    pub text: &'a str,
}

/// Lines of context around a change, as git has by default.
const CONTEXT: usize = 3;

/// The diff of one file in git's form, from Myers' algorithm, with three lines of context: an added file has no `old`, a deleted one no
/// `new`, and different paths make a rename. Two equal sides give an empty text.
pub fn write_change(old: Option<Side<'_>>, new: Option<Side<'_>>) -> String {
    let (Some(first), Some(second)) = (old.or(new), new.or(old)) else { return String::new() };
    let mut out = String::new();
    let name = |prefix: &str, path: &str| quote(&format!("{prefix}{path}"));
    let _ = writeln!(out, "diff --git {} {}", name("a/", first.path), name("b/", second.path));
    let same_text = old.is_some() && new.is_some() && first.text == second.text;
    match (old, new) {
        (None, _) => drop(writeln!(out, "new file mode {:o}", second.mode)),
        (_, None) => drop(writeln!(out, "deleted file mode {:o}", first.mode)),
        _ => {
            if first.mode != second.mode {
                let _ = writeln!(out, "old mode {:o}\nnew mode {:o}", first.mode, second.mode);
            }
            if first.path != second.path {
                let _ = writeln!(out, "similarity index {}%", similarity(first.text, second.text));
                let _ = writeln!(out, "rename from {}\nrename to {}", quote(first.path), quote(second.path));
            } else if same_text && first.mode == second.mode {
                return String::new();
            }
        }
    }
    if same_text {
        return out;
    }
    if !first.id.is_empty() && !second.id.is_empty() {
        let zeros = "0".repeat(first.id.len());
        let _ = write!(out, "index {}..{}", old.map_or(zeros.as_str(), |s| s.id), new.map_or(zeros.as_str(), |s| s.id));
        out.push_str(&if old.is_some() && new.is_some() && first.mode == second.mode {
            format!(" {:o}\n", first.mode)
        } else {
            "\n".into()
        });
    }
    let body = hunks(old.map_or("", |s| s.text), new.map_or("", |s| s.text));
    if !body.is_empty() {
        // git ends a name that holds blanks with a tab, so that `patch` does not take what follows for a time stamp.
        let marker = |side: Option<Side<'_>>, prefix: &str| match side {
            None => "/dev/null".to_owned(),
            Some(s) if s.path.contains(' ') && !name(prefix, s.path).starts_with('"') => format!("{prefix}{}\t", s.path),
            Some(s) => name(prefix, s.path),
        };
        let _ = write!(out, "--- {}\n+++ {}\n{body}", marker(old, "a/"), marker(new, "b/"));
    }
    out
}

/// How many percent of the larger text's bytes stand in lines that both texts have: what git calls similarity, roughly, and what
/// decides whether a deleted and an added file are one that moved.
pub fn similarity(old: &str, new: &str) -> usize {
    if old == new {
        return 100;
    }
    let mut counts = std::collections::HashMap::new();
    old.split_inclusive('\n').for_each(|l| *counts.entry(l).or_insert(0usize) += 1);
    let mut common = 0;
    for line in new.split_inclusive('\n') {
        if let Some(n) = counts.get_mut(line).filter(|n| **n > 0) {
            *n -= 1;
            common += line.len();
        }
    }
    common * 100 / old.len().max(new.len()).max(1)
}

/// The hunks of the difference, headers included.
fn hunks(old: &str, new: &str) -> String {
    let old: Vec<&str> = old.split_inclusive('\n').collect();
    let new: Vec<&str> = new.split_inclusive('\n').collect();
    let mut out = String::new();
    for group in group_diff_ops(capture_diff_slices(Algorithm::Myers, &old, &new), CONTEXT) {
        let (Some(first), Some(last)) = (group.first(), group.last()) else { continue };
        let old_range = first.old_range().start..last.old_range().end;
        let new_range = first.new_range().start..last.new_range().end;
        if group.iter().all(|op| op.tag() == DiffTag::Equal) {
            continue;
        }
        let section = section(&old[..old_range.start]);
        let _ = writeln!(out, "@@ -{} +{} @@{section}", range(&old_range), range(&new_range));
        group.iter().for_each(|op| write_lines(&mut out, op, &old, &new));
    }
    out
}

fn write_lines(out: &mut String, op: &DiffOp, old: &[&str], new: &[&str]) {
    let mut lines = |sign: char, lines: &[&str]| {
        for line in lines {
            out.push(sign);
            out.push_str(line);
            if !line.ends_with('\n') {
                out.push_str("\n\\ No newline at end of file\n");
            }
        }
    };
    if op.tag() == DiffTag::Equal {
        return lines(' ', &old[op.old_range()]);
    }
    lines('-', &old[op.old_range()]);
    lines('+', &new[op.new_range()]);
}

/// A range in a hunk header: `start`, `start,len`, or for an empty range the line before it.
fn range(r: &std::ops::Range<usize>) -> String {
    match r.len() {
        0 => format!("{},0", r.start),
        1 => (r.start + 1).to_string(),
        len => format!("{},{len}", r.start + 1),
    }
}

/// The last line before the hunk that begins with a letter, `_` or `$`: git's guess of the definition around it, cut to 80 bytes.
fn section(before: &[&str]) -> String {
    let begins = |l: &&&str| l.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_' || b == b'$');
    let Some(line) = before.iter().rev().find(begins) else { return String::new() };
    let line = line.trim_end_matches('\n');
    let end = (0..=line.len().min(80)).rev().find(|&i| line.is_char_boundary(i)).unwrap_or(0);
    format!(" {}", line[..end].trim_ascii_end())
}
