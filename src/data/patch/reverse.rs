//! Turning a patch around.

/// The patch that undoes `patch`: old and new change places in every header, hunk range and line. Within a run of changed lines the
/// deleted ones stand first again, as diffs have it. Git's binary blocks are left out: they cannot be turned around from the text.
///
/// Used for data whose patch makes the bug (SWE-smith): the fix is its reverse. `Patch::parse` should have accepted the patch before;
/// lines that belong to no diff are kept.
pub fn reverse(patch: &str) -> String {
    let mut out = String::with_capacity(patch.len());
    let mut lines = patch.split_inclusive('\n').peekable();
    while let Some(line) = lines.next() {
        let (text, _) = without_feed(line);
        if let Some((old, new, rest)) = hunk_ranges(text) {
            out.push_str(&format!("@@ -{new} +{old} @@{rest}\n"));
            let (mut old_left, mut new_left) = (length(old), length(new));
            let mut body = Body::default();
            while (old_left > 0 || new_left > 0 || lines.peek().is_some_and(|l| l.starts_with('\\')))
                && let Some(line) = lines.next()
            {
                match line.as_bytes().first() {
                    Some(b'-') => old_left = old_left.saturating_sub(1),
                    Some(b'+') => new_left = new_left.saturating_sub(1),
                    Some(b'\\') => {}
                    _ => (old_left, new_left) = (old_left.saturating_sub(1), new_left.saturating_sub(1)),
                }
                body.add(line, &mut out);
            }
            body.flush(&mut out);
        } else if let (Some(old), Some(new)) = (text.strip_prefix("--- "), lines.peek().and_then(|l| l.strip_prefix("+++ "))) {
            let new = without_feed(new).0.to_owned();
            lines.next();
            out.push_str(&format!("--- {}\n+++ {}\n", other_side(&new), other_side(old)));
        } else {
            header(line, &mut out);
        }
    }
    in_order(&out)
}

/// The changed lines of a run, collected until a context line ends it.
#[derive(Default)]
struct Body {
    deleted: String,
    inserted: String,
    /// What the line before was: a note about a missing line feed belongs to it.
    last: u8,
}

impl Body {
    fn add(&mut self, line: &str, out: &mut String) {
        let first = line.bytes().next().unwrap_or(b' ');
        match first {
            b'-' => push(&mut self.inserted, '+', &line[1..]),
            b'+' => push(&mut self.deleted, '-', &line[1..]),
            b'\\' => {
                let to = match self.last {
                    b'-' => &mut self.inserted,
                    b'+' => &mut self.deleted,
                    _ => out,
                };
                to.push_str(without_feed(line).0);
                to.push('\n');
            }
            _ => {
                self.flush(out);
                out.push_str(line);
                if !line.ends_with('\n') {
                    out.push('\n');
                }
            }
        }
        if first != b'\\' {
            self.last = first;
        }
    }

    fn flush(&mut self, out: &mut String) {
        out.push_str(&std::mem::take(&mut self.deleted));
        out.push_str(&std::mem::take(&mut self.inserted));
    }
}

fn push(to: &mut String, sign: char, rest: &str) {
    to.push(sign);
    to.push_str(rest);
    if !rest.ends_with('\n') {
        to.push('\n');
    }
}

fn without_feed(line: &str) -> (&str, bool) {
    line.strip_suffix('\n').map_or((line, false), |l| (l, true))
}

/// `@@ -OLD +NEW @@REST`.
fn hunk_ranges(line: &str) -> Option<(&str, &str, &str)> {
    let (ranges, rest) = line.strip_prefix("@@ -")?.split_once(" @@")?;
    let (old, new) = ranges.split_once(" +")?;
    Some((old, new, rest))
}

fn length(range: &str) -> usize {
    range.split_once(',').map_or(1, |(_, len)| len.parse().unwrap_or(0))
}

/// A name of `---` or `+++` as the other of the two has it.
fn other_side(name: &str) -> String {
    let (quote, bare) = name.strip_prefix('"').map_or(("", name), |n| ("\"", n));
    match (bare.strip_prefix("a/"), bare.strip_prefix("b/")) {
        (Some(rest), _) => format!("{quote}b/{rest}"),
        (_, Some(rest)) => format!("{quote}a/{rest}"),
        _ => name.to_owned(),
    }
}

/// Turns one of git's header lines around.
fn header(line: &str, out: &mut String) {
    const PAIRS: [(&str, &str); 6] = [
        ("new file mode ", "deleted file mode "),
        ("deleted file mode ", "new file mode "),
        ("old mode ", "new mode "),
        ("new mode ", "old mode "),
        ("rename from ", "rename to "),
        ("rename to ", "rename from "),
    ];
    let (text, feed) = without_feed(line);
    let end = if feed { "\n" } else { "" };
    if let Some((old, new)) = PAIRS.iter().find(|(old, _)| text.starts_with(old)) {
        out.push_str(&format!("{new}{}{end}", &text[old.len()..]));
    } else if let Some((ids, rest)) = text.strip_prefix("index ").map(|t| t.split_once(' ').unwrap_or((t, "")))
        && let Some((old, new)) = ids.split_once("..")
    {
        let space = if rest.is_empty() { "" } else { " " };
        out.push_str(&format!("index {new}..{old}{space}{rest}{end}"));
    } else if let Some((old, new)) = text.strip_prefix("diff --git ").and_then(two_names) {
        out.push_str(&format!("diff --git {} {}{end}", swap_prefix(new, "b/", "a/"), swap_prefix(old, "a/", "b/")));
    } else {
        out.push_str(line);
    }
}

/// The two names of a `diff --git` line where they begin with `a/` and `b/`, quoted or not.
fn two_names(rest: &str) -> Option<(&str, &str)> {
    let at = rest.rfind(" b/").or_else(|| rest.rfind(" \"b/"))?;
    let half = (rest.len() - 1) / 2;
    // Equal names with blanks: the middle is where they part.
    let at = if rest.is_char_boundary(half) && rest.as_bytes().get(half) == Some(&b' ') && rest.get(2..half) == rest.get(half + 3..) {
        half
    } else {
        at
    };
    Some((&rest[..at], &rest[at + 1..]))
}

fn swap_prefix(name: &str, from: &str, to: &str) -> String {
    let (quote, bare) = name.strip_prefix('"').map_or(("", name), |n| ("\"", n));
    bare.strip_prefix(from).map_or_else(|| name.to_owned(), |rest| format!("{quote}{to}{rest}"))
}

/// Brings `new mode` before `old mode`, and `rename to` before `rename from`, back into git's order.
fn in_order(patch: &str) -> String {
    let mut lines: Vec<&str> = patch.split_inclusive('\n').collect();
    let mut in_header = false;
    for i in 1..lines.len() {
        in_header = (in_header || lines[i - 1].starts_with("diff --git ")) && !lines[i - 1].starts_with("@@ ");
        let swapped = [("new mode ", "old mode "), ("rename to ", "rename from ")];
        if in_header && swapped.iter().any(|(a, b)| lines[i - 1].starts_with(a) && lines[i].starts_with(b)) {
            lines.swap(i - 1, i);
        }
    }
    lines.concat()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::super::{Patch, Side, write_change};
    use super::reverse;

    fn side<'a>(path: &'a str, text: &'a str, id: &'a str, mode: u32) -> Side<'a> {
        Side { path, mode, id, text }
    }

    #[test]
    fn every_kind_of_change_is_undone() {
        let a = side("x y.py", "a\nb\nc", "1111111111", 0o100644);
        let b = side("x y.py", "a\nB\nc\nd\n", "2222222222", 0o100755);
        let moved = side("z.py", "a\nb\nC", "3333333333", 0o100644);
        for (old, new) in [(Some(a), Some(b)), (Some(a), Some(moved)), (None, Some(a)), (Some(b), None)] {
            assert_eq!(reverse(&write_change(old, new)), write_change(new, old));
        }
        let plain = "--- a.c\n+++ a.c\n@@ -1,2 +1 @@\n x\n--- y\n";
        assert_eq!(reverse(plain), "--- a.c\n+++ a.c\n@@ -1 +1,2 @@\n x\n+-- y\n");
    }

    proptest! {
        #[test]
        fn the_reverse_leads_back(old in "([abc]\n){0,12}[abc]?", new in "([abc]\n){0,12}[abc]?") {
            prop_assume!(old != new);
            let patch = write_change(Some(side("f", &old, "", 0o100644)), Some(side("f", &new, "", 0o100644)));
            let back = Patch::parse(&reverse(&patch)).unwrap().apply(&BTreeMap::from([("f".to_owned(), new)])).unwrap();
            prop_assert_eq!(&back["f"], &old);
        }

        #[test]
        fn no_text_makes_it_panic(text in "(diff --git |--- |\\+\\+\\+ |@@ -1,2 \\+0,0 @@|[-+ a\\\\]|\n|ä| b/){0,40}") {
            reverse(&text);
        }
    }
}
