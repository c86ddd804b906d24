//! SWE-RL's rule (arXiv 2502.18449).
//!
//! Texts are bytes, as [`PyText`] holds them.

use std::fmt::Write as _;
use std::sync::LazyLock;

use memchr::memmem;
use regex::bytes::Regex;

use super::{DIVIDER, REPLACE, SEARCH, size_limit};
use crate::data::difflib::{LineMatcher, PyText, Tag, opcodes};

/// One block: in the file `path`, `search` becomes `replace`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edit {
    /// The file, as the block's header names it.
    pub path: PyText,
    /// The lines to be found.
    pub search: PyText,
    /// The lines in their place.
    pub replace: PyText,
}

/// The blocks of an answer, in its order. A block is a fence with nothing else in it, and between its markers stands at least one line,
/// which may be empty.
pub fn parse_blocks(answer: &[u8]) -> Vec<Edit> {
    static BLOCK: LazyLock<Regex> = LazyLock::new(|| {
        let pattern = r"(?-u)```[^\n]*?\n### ([^\n]*)\n<<<<<<< SEARCH\n((?s:.*?))\n=======\n((?s:.*?))\n>>>>>>> REPLACE\n```";
        Regex::new(pattern).expect("a constant pattern, which the tests compile")
    });
    BLOCK.captures_iter(answer).map(|c| Edit { path: c[1].into(), search: c[2].into(), replace: c[3].into() }).collect()
}

/// The edits of one file applied to its content (empty for a new file), one after another: `search` must stand at the beginning of a line,
/// may end within one, and is replaced wherever it stands.
///
/// # Errors
///
/// Why an edit cannot be applied, in words.
pub fn apply<'a>(content: &[u8], edits: impl IntoIterator<Item = &'a Edit>) -> Result<Vec<u8>, String> {
    let limit = size_limit(content.len());
    // With a line feed before it, every line begins behind one.
    let mut text = [b"\n", content].concat();
    for edit in edits {
        if edit.search == edit.replace {
            return Err(format!("{}: SEARCH and REPLACE are equal", edit.path));
        }
        let search = [b"\n", edit.search.as_bytes()].concat();
        let replace = [b"\n", edit.replace.as_bytes()].concat();
        let places: Vec<usize> = memmem::find_iter(&text, &search).collect();
        if places.is_empty() {
            return Err(format!("{}: SEARCH is not in the file: {}", edit.path, first_line(edit.search.as_bytes())));
        }
        if text.len() + places.len() * replace.len() > limit + places.len() * search.len() {
            return Err(format!("{}: the edits make the file larger than {limit} bytes", edit.path));
        }
        let mut new = Vec::with_capacity(text.len());
        let mut at = 0;
        for place in places {
            new.extend_from_slice(&text[at..place]);
            new.extend_from_slice(&replace);
            at = place + search.len();
        }
        new.extend_from_slice(&text[at..]);
        text = new;
    }
    text.remove(0);
    Ok(text)
}

fn first_line(text: &[u8]) -> String {
    let line = text.split(|&b| b == b'\n').find(|l| !l.trim_ascii().is_empty()).unwrap_or_default();
    format!("`{}`", String::from_utf8_lossy(line.trim_ascii()))
}

/// Blocks that turn `old` into `new`, with as few lines around each change as make its SEARCH text unique. None where no blocks can say
/// it: a path or contents that hold the blocks' own markers.
pub fn make_blocks(path: &str, old: &str, new: &str) -> Option<Vec<Edit>> {
    let (before, after): (Vec<&str>, Vec<&str>) = (old.split('\n').collect(), new.split('\n').collect());
    let codes = opcodes(&LineMatcher::new(&before, &after, true).matching_blocks(), before.len(), after.len());
    let mut changes: Vec<Change> = codes.iter().filter(|c| c.tag != Tag::Equal).map(|c| Change { old: c.a, new: c.b }).collect();
    let edits = loop {
        match place_all(path, &before, &after, &changes) {
            Ok(edits) => break edits,
            // A change whose SEARCH cannot be told from others by the lines around it becomes one with its neighbour.
            Err(k) if changes.len() > 1 => {
                let k = k.min(changes.len() - 2);
                let next = changes.remove(k + 1);
                (changes[k].old.1, changes[k].new.1) = (next.old.1, next.new.1);
            }
            Err(_) => return None,
        }
    };
    let read = parse_blocks(edits.iter().map(|e| render(e) + "\n").collect::<String>().as_bytes());
    (read == edits && apply(old.as_bytes(), &edits).is_ok_and(|text| text == new.as_bytes())).then_some(edits)
}

/// Lines `old` of the file before become lines `new` of the file after.
#[derive(Clone, Copy)]
struct Change {
    old: (usize, usize),
    new: (usize, usize),
}

/// An edit for each change, or the first change for which there is none.
fn place_all(path: &str, before: &[&str], after: &[&str], changes: &[Change]) -> Result<Vec<Edit>, usize> {
    let mut edits = Vec::with_capacity(changes.len());
    // Where the edit before ended, in the old lines.
    let mut from = 0;
    for (k, change) in changes.iter().enumerate() {
        let to = changes.get(k + 1).map_or(before.len(), |next| next.old.0);
        // The text that the edit meets: new up to here, old from here on.
        let text = format!("\n{}", [&after[..change.new.0], &before[change.old.0..]].concat().join("\n"));
        let (above, below) = (change.old.0 - from, to - change.old.1);
        let widths = (0..=above.max(below)).flat_map(|n| [(n.min(above), n.saturating_sub(1).min(below)), (n.min(above), n.min(below))]);
        let found = widths.into_iter().find_map(|(up, down)| {
            let search = &before[change.old.0 - up..change.old.1 + down];
            let replace = &after[change.new.0 - up..change.new.1 + down];
            // An empty range of lines cannot be told from one empty line.
            let whole = !search.is_empty() && !replace.is_empty();
            let search = search.join("\n");
            (whole && is_unique(&text, &format!("\n{search}"))).then(|| (down, search, replace.join("\n")))
        });
        let (down, search, replace) = found.ok_or(k)?;
        edits.push(Edit { path: path.into(), search: search.as_str().into(), replace: replace.as_str().into() });
        from = change.old.1 + down;
    }
    Ok(edits)
}

fn is_unique(text: &str, part: &str) -> bool {
    text.find(part).is_some_and(|at| !text[at + 1..].contains(part))
}

/// A block as an answer has it, without a line feed at its end.
pub fn render(edit: &Edit) -> String {
    let language = if edit.path.as_bytes().ends_with(b".py") { "python" } else { "" };
    let mut out = String::new();
    let Edit { path, search, replace } = edit;
    let _ = write!(out, "```{language}\n### {path}\n{SEARCH}\n{search}\n{DIVIDER}\n{replace}\n{REPLACE}\n```");
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn edit(search: &str, replace: &str) -> Edit {
        Edit { path: "a.py".into(), search: search.into(), replace: replace.into() }
    }

    fn applied(content: &str, edits: &[Edit]) -> Result<String, String> {
        apply(content.as_bytes(), edits).map(|t| String::from_utf8(t).unwrap())
    }

    #[test]
    fn blocks_are_read_as_they_stand() {
        let one = "```python\n### a.py \n<<<<<<< SEARCH\nx\n\ny\n=======\n\n>>>>>>> REPLACE\n```";
        let edits = parse_blocks(format!("text\n{one}\n{}", one.replace("a.py ", "b.py").replace("python", "")).as_bytes());
        assert_eq!(edits[0], Edit { path: "a.py ".into(), search: "x\n\ny".into(), replace: "".into() });
        assert_eq!((edits.len(), edits[1].path.clone()), (2, "b.py".into()));
        for broken in [
            one.replace("=======\n\n", "=======\n"),
            one.replace("###", "##"),
            one.replace(">>>>>>> REPLACE\n```", ">>>>>>> REPLACE"),
            one.replace("<<<<<<<", "<<<<<<"),
        ] {
            assert_eq!(parse_blocks(broken.as_bytes()), [], "{broken}");
        }
        // Two edits in one fence: the second is part of what replaces the first.
        let two = one.replace("\n```", "\n### a.py\n<<<<<<< SEARCH\nz\n=======\nw\n>>>>>>> REPLACE\n```");
        assert_eq!(parse_blocks(two.as_bytes())[0].replace.to_text(), "\n>>>>>>> REPLACE\n### a.py\n<<<<<<< SEARCH\nz\n=======\nw");
    }

    #[test]
    fn edits_are_applied_as_swe_rl_applies_them() {
        let content = "x = 1\ny = 2\nx = 1\nz = 3";
        assert_eq!(applied(content, &[edit("x = 1", "x = 5")]).unwrap(), "x = 5\ny = 2\nx = 5\nz = 3");
        assert_eq!(applied(content, &[edit("y", "w")]).unwrap(), "x = 1\nw = 2\nx = 1\nz = 3");
        assert_eq!(applied(content, &[edit("y = 2", "a\nb"), edit("b", "c")]).unwrap(), "x = 1\na\nc\nx = 1\nz = 3");
        assert_eq!(applied("a\nb", &[edit("", "i")]).unwrap(), "ia\nib");
        assert_eq!(applied("", &[edit("", "new")]).unwrap(), "new");
        assert!(applied(content, &[edit("= 1", "= 2")]).unwrap_err().contains("SEARCH is not in the file: `= 1`"));
        assert!(applied(content, &[edit("x", "x")]).unwrap_err().contains("are equal"));
        let doubling = vec![edit("", "\n\n"); 40];
        assert!(applied("a", &doubling).unwrap_err().contains("larger than"));
    }

    #[test]
    fn made_blocks_are_short_and_unique() {
        let old = "a\nb\nc\n\nd\ne\nb\nc\n";
        let edits = make_blocks("a.py", old, "a\nb\nc\n\nd\ne\nB\nc\n").unwrap();
        assert_eq!(edits, [edit("e\nb", "e\nB")]);
        assert_eq!(make_blocks("a.py", "", "x\ny\n").unwrap(), [edit("", "x\ny\n")]);
        assert_eq!(make_blocks("a.py", "a\nb\n", "a\n").unwrap(), [edit("a\nb", "a")]);
        assert_eq!(make_blocks("a.py", "a\n", "a\n").unwrap(), []);
        assert_eq!(make_blocks("a.py", "a\n", "a\n=======\nb\n").map(|e| e.len()), Some(1), "a marker in REPLACE alone is harmless");
        assert!(make_blocks("a.py", "a\n=======\nc\n", "a\n=======\nd\n").is_none_or(|e| !e[0].search.to_text().contains("\n=======\n")));
        assert_eq!(make_blocks("a\n.py", "a\n", "b\n"), None);
    }

    proptest! {
        #[test]
        fn made_blocks_say_the_change(old in "(a|b|c|\n|    x\n|\r|é){0,40}", new in "(a|b|d|\n|    x\n|\r|é){0,40}") {
            let edits = make_blocks("p/a.py", &old, &new).unwrap();
            prop_assert_eq!(applied(&old, &edits).unwrap(), new);
        }

        #[test]
        fn reading_never_panics(text in "(```|\n|### a|<<<<<<< SEARCH|=======|>>>>>>> REPLACE|x|é){0,40}") {
            let edits = parse_blocks(text.as_bytes());
            let _ = apply(b"x\nx", &edits);
        }
    }
}
