//! Agentless's rule (arXiv 2407.01489), the answer format of code edit generation in SoRFT (arXiv 2502.20127).
//!
//! Each block has a fence of its own, which is not asked for; a path holds until the next one. SEARCH must stand in the file as whole lines, and every place where it does
//! is replaced; later blocks see earlier ones. An empty SEARCH makes a file that is not there. Where a SEARCH is nowhere in the file and its
//! first line is exactly `...`, copied from a prompt that leaves lines out, it is tried without that line, which Agentless tolerates too; a
//! REPLACE that begins with `...` as well then loses it.
//!
//! Line ends: blocks and files are compared without carriage returns, and inserted lines take the line end of what they replace. The end
//! of a file keeps its state (with or without a line feed) unless a side ends with git's line `\ No newline at end of file`.

use std::collections::BTreeMap;

use similar::{Algorithm, DiffTag, capture_diff_slices};

use super::{DIVIDER, REPLACE, SEARCH, size_limit};

/// git's mark of a file that no line feed ends.
const NO_NEWLINE: &str = "\\ No newline at end of file";

/// What stands in prompts for lines that are left out.
const OMISSION: &str = "...";

/// One block.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Block {
    /// The file.
    pub path: String,
    /// The lines to be found.
    pub search: Vec<String>,
    /// The lines to take their place.
    pub replace: Vec<String>,
}

/// Why blocks cannot be read or applied, in words for the model's log.
pub type Reason = String;

/// Reads the blocks of an answer, equal ones once.
pub fn parse_blocks(text: &str) -> Result<Vec<Block>, Reason> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut path = String::new();
    let mut lines = text.lines().map(|l| l.trim_end_matches('\r'));
    while let Some(line) = lines.next() {
        if let Some(name) = line.trim_start().strip_prefix("### ") {
            path = name.trim().trim_matches('`').trim_start_matches("./").to_owned();
            continue;
        }
        if line.trim_end() != SEARCH {
            continue;
        }
        let mut block = Block { path: path.clone(), ..Block::default() };
        let mut part = |end: &str| -> Option<Vec<String>> {
            let mut out = Vec::new();
            for line in lines.by_ref() {
                if line.trim_end() == end {
                    return Some(out);
                }
                out.push(line.to_owned());
            }
            None
        };
        block.search = part(DIVIDER).ok_or("a SEARCH without `=======`")?;
        block.replace = part(REPLACE).ok_or("a block without `>>>>>>> REPLACE`")?;
        if block.path.is_empty() {
            return Err("a block without a line `### path` before it".to_owned());
        }
        if !blocks.contains(&block) {
            blocks.push(block);
        }
    }
    Ok(blocks)
}

/// A line of a file that is being edited.
#[derive(Clone)]
struct Line {
    text: String,
    end: &'static str,
    shown: bool,
}

impl Line {
    fn len(&self) -> usize {
        self.text.len() + self.end.len()
    }
}

/// The files after the blocks, those that a block names: path to (old, new). `shown` says which lines of a file may be found, none for
/// all of it. `exists` says whether a path that `files` lacks is there all the same, so that it cannot be made anew. No file may grow
/// beyond [`size_limit`].
pub fn apply_blocks(
    blocks: &[Block],
    files: &BTreeMap<String, String>,
    shown: &dyn Fn(&str, usize) -> bool,
    exists: &dyn Fn(&str) -> bool,
) -> Result<BTreeMap<String, (String, String)>, Reason> {
    let mut edited: BTreeMap<&str, Vec<Line>> = BTreeMap::new();
    for block in blocks {
        let path = block.path.as_str();
        let lines = edited.entry(path).or_insert_with(|| split(files.get(path).map_or("", |t| t), &|n| shown(path, n)));
        if search_is_empty(block) {
            if !lines.is_empty() || files.get(path).is_some_and(|t| !t.is_empty()) || (!files.contains_key(path) && exists(path)) {
                return Err(format!("an empty SEARCH is for a new file, and `{path}` is there"));
            }
        } else if !files.contains_key(path) && lines.is_empty() {
            return Err(format!("`{path}` is not among the files of the prompt"));
        }
        let limit = size_limit(files.get(path).map_or(0, String::len));
        let found = replace(lines, block, limit)? || without_omission(block).map_or(Ok(false), |b| replace(lines, &b, limit))?;
        if !found {
            return Err(format!("a SEARCH is not in the code shown of `{path}`"));
        }
    }
    let joined = |lines: &[Line]| lines.iter().flat_map(|l| [l.text.as_str(), l.end]).collect::<String>();
    Ok(edited.into_iter().map(|(path, lines)| (path.to_owned(), (files.get(path).cloned().unwrap_or_default(), joined(&lines)))).collect())
}

/// The block without the first line `...` of its SEARCH, and of its REPLACE if it is there too; none where the SEARCH does not begin so.
fn without_omission(block: &Block) -> Option<Block> {
    let cut = |side: &[String]| side.strip_prefix([OMISSION.to_owned()].as_slice()).map(<[String]>::to_vec);
    let replace = cut(&block.replace).unwrap_or_else(|| block.replace.clone());
    let shorter = Block { path: block.path.clone(), search: cut(&block.search)?, replace };
    (!search_is_empty(&shorter)).then_some(shorter)
}

/// An empty side is no line, or one blank line, as some write it.
fn search_is_empty(block: &Block) -> bool {
    block.search.iter().all(|l| l.is_empty()) && block.search.len() <= 1
}

fn split(text: &str, shown: &dyn Fn(usize) -> bool) -> Vec<Line> {
    let line = |(i, l): (usize, &str)| {
        let (text, end) = match l.strip_suffix('\n') {
            Some(l) => l.strip_suffix('\r').map_or((l, "\n"), |l| (l, "\r\n")),
            None => (l, ""),
        };
        Line { text: text.to_owned(), end, shown: shown(i + 1) }
    };
    text.split_inclusive('\n').enumerate().map(line).collect()
}

fn unmarked(side: &[String]) -> (&[String], bool) {
    match side.split_last() {
        Some((last, rest)) if last == NO_NEWLINE => (rest, true),
        _ => (side, false),
    }
}

/// Replaces every place; false where there is none.
fn replace(lines: &mut Vec<Line>, block: &Block, limit: usize) -> Result<bool, Reason> {
    let ((search, open), (new, new_open)) = (unmarked(&block.search), unmarked(&block.replace));
    let usual = lines.first().map(|l| l.end).filter(|e| !e.is_empty()).unwrap_or("\n");
    if lines.is_empty() && search.iter().all(|l| l.is_empty()) {
        *lines = new.iter().map(|l| Line { text: l.clone(), end: "\n", shown: true }).collect();
        if let Some(last) = lines.last_mut().filter(|_| new_open) {
            last.end = "";
        }
        return Ok(true);
    }
    if search.is_empty() {
        return Ok(false);
    }
    let mut size: usize = lines.iter().map(Line::len).sum();
    let (mut out, mut at, mut found) = (Vec::with_capacity(lines.len()), 0, false);
    while at < lines.len() {
        let here = lines.get(at..at + search.len()).filter(|l| l.iter().zip(search).all(|(l, s)| l.shown && l.text == *s));
        let Some(here) = here.filter(|l| !open || l.last().is_some_and(|l| l.end.is_empty())) else {
            out.push(lines[at].clone());
            at += 1;
            continue;
        };
        let last = here.last().map_or(usual, |l| l.end);
        let end = here.first().map(|l| l.end).filter(|e| !e.is_empty()).unwrap_or(usual);
        size += new.iter().map(|text| text.len() + end.len()).sum::<usize>();
        size -= here.iter().map(Line::len).sum::<usize>();
        if size > limit {
            return Err(format!("the edits make `{}` larger than {limit} bytes", block.path));
        }
        out.extend(new.iter().map(|text| Line { text: text.clone(), end, shown: true }));
        at += search.len();
        found = true;
        let keeps_open = last.is_empty() && (!open || new_open);
        if at == lines.len()
            && (keeps_open || new_open)
            && let Some(line) = out.last_mut()
        {
            line.end = "";
        }
    }
    *lines = out;
    Ok(found)
}

/// The blocks that turn `old` into `new`: a block a changed place, with as many lines around it as make its SEARCH stand in `old` once.
/// Where what one block inserts would be found by another, one block covers all. None where blocks cannot say it (a change of line ends).
pub fn gold_blocks(path: &str, old: &str, new: &str) -> Option<Vec<Block>> {
    let key = |text: &str| split(text, &|_| true).into_iter().map(|l| (l.text, l.end.is_empty())).collect::<Vec<_>>();
    let (a, b) = (key(old), key(new));
    let ops = capture_diff_slices(Algorithm::Myers, &a, &b).into_iter().filter(|op| op.tag() != DiffTag::Equal);
    let changes: Vec<Place> = ops.map(|op| Place { old: op.old_range(), new: op.new_range() }).collect();
    let all = changes.iter().cloned().reduce(Place::join);
    let side = |lines: &[(String, bool)]| -> Vec<String> {
        lines.iter().flat_map(|(text, open)| [Some(text.clone()), open.then(|| NO_NEWLINE.to_owned())]).flatten().collect()
    };
    let files = BTreeMap::from([(path.to_owned(), old.to_owned())]);
    [changes, all.into_iter().collect()].into_iter().find_map(|changes| {
        let places = unique_places(&a, b.len(), changes);
        let block = |p: Place| Block { path: path.to_owned(), search: side(&a[p.old]), replace: side(&b[p.new]) };
        let blocks: Vec<Block> = places.into_iter().map(block).collect();
        let read = parse_blocks(&write_blocks(&blocks)).ok()?;
        let after = apply_blocks(&read, &files, &|_, _| true, &|_| true).ok()?.remove(path);
        (after.map_or(old == new, |(_, after)| after == new)).then_some(blocks)
    })
}

/// The lines (1-based) of `text` where a block's SEARCH stands; none where it is empty.
pub fn search_places(block: &Block, text: &str) -> Vec<std::ops::Range<usize>> {
    let (search, _) = unmarked(&block.search);
    let lines: Vec<&str> = text.lines().collect();
    if search.is_empty() || search_is_empty(block) {
        return Vec::new();
    }
    lines.windows(search.len()).enumerate().filter(|(_, w)| *w == search).map(|(i, w)| i + 1..i + 1 + w.len()).collect()
}

/// A changed place: ranges of lines of the old and of the new file.
#[derive(Clone, Debug)]
struct Place {
    old: std::ops::Range<usize>,
    new: std::ops::Range<usize>,
}

impl Place {
    /// Both places and what is between them.
    fn join(self, next: Place) -> Place {
        Place { old: self.old.start..next.old.end, new: self.new.start..next.new.end }
    }
}

/// The places with as many of the equal lines around them as make their old lines stand in the file once; places that meet become one.
fn unique_places(lines: &[(String, bool)], new_len: usize, changes: Vec<Place>) -> Vec<Place> {
    let mut out: Vec<Place> = Vec::new();
    let mut changes = changes.into_iter().peekable();
    while let Some(mut place) = changes.next() {
        while !is_unique(lines, &place.old) {
            // Before a place there are equal lines up to the place before it, which it then joins; likewise behind it.
            if out.last().is_some_and(|p| p.old.end >= place.old.start) {
                place = out.pop().map_or(place.clone(), |p| p.join(place));
            } else if place.old.start > 0 && place.new.start > 0 {
                (place.old.start, place.new.start) = (place.old.start - 1, place.new.start - 1);
            }
            if changes.peek().is_some_and(|p| p.old.start <= place.old.end) {
                place = changes.next().map_or(place.clone(), |p| place.join(p));
            } else if place.old.end < lines.len() && place.new.end < new_len {
                (place.old.end, place.new.end) = (place.old.end + 1, place.new.end + 1);
            }
        }
        out.push(place);
    }
    out
}

fn is_unique(lines: &[(String, bool)], range: &std::ops::Range<usize>) -> bool {
    let wanted = &lines[range.clone()];
    wanted.len() == lines.len()
        || (!wanted.iter().all(|(text, _)| text.is_empty()) && lines.windows(wanted.len()).filter(|w| w == &wanted).count() == 1)
}

/// The blocks as an answer has them, a fence each.
pub fn write_blocks(blocks: &[Block]) -> String {
    let mut out = Vec::new();
    for block in blocks {
        let mut lines = vec!["```".to_owned(), format!("### {}", block.path), SEARCH.to_owned()];
        lines.extend(block.search.iter().cloned());
        lines.push(DIVIDER.to_owned());
        lines.extend(block.replace.iter().cloned());
        lines.extend([REPLACE.to_owned(), "```".to_owned()]);
        out.push(lines.join("\n"));
    }
    out.join("\n")
}

#[cfg(test)]
#[path = "agentless_tests.rs"]
mod tests;
