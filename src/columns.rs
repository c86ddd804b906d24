//! Tables as text, for a terminal of a given width or for none.

use std::fmt::Write as _;

/// Rows in columns, two blanks between them: the first column to the left, the others to the right. With a `width`, no line is longer:
/// where the table is wider, the first column's cells are wrapped at blanks to what is left beside the widest other column, and columns
/// that do not fit stand in further blocks below, each beginning with the first column again. (A word or a number longer than the width
/// stays whole.)
pub(crate) fn columns(rows: &[Vec<String>], width: Option<usize>) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let mut widths: Vec<usize> = (0..count).map(|c| rows.iter().filter_map(|r| r.get(c)).map(|s| chars(s)).max().unwrap_or(0)).collect();
    let whole = widths.iter().map(|w| w + GAP).sum::<usize>().saturating_sub(GAP);
    let Some(width) = width.filter(|&width| whole > width) else { return block(rows, &widths, 0..count) };
    let widest = widths.iter().skip(1).max().map_or(0, |w| w + GAP);
    widths[0] = widths[0].min(width.saturating_sub(widest).max(LEAST));
    let mut out = Vec::new();
    let mut next = 1;
    while next < count || out.is_empty() {
        let (begin, mut used) = (next, widths[0]);
        while next < count && (next == begin || used + GAP + widths[next] <= width) {
            used += GAP + widths[next];
            next += 1;
        }
        out.push(block(rows, &widths, begin..next));
    }
    out.join("\n")
}

/// Blanks between two columns.
const GAP: usize = 2;

/// The narrowest that a first column is made.
const LEAST: usize = 12;

fn chars(text: &str) -> usize {
    text.chars().count()
}

/// The first column beside the others of `range`.
fn block(rows: &[Vec<String>], widths: &[usize], range: std::ops::Range<usize>) -> String {
    let first = widths.first().copied().unwrap_or(0);
    let mut out = String::new();
    for row in rows {
        let mut others = String::new();
        for (cell, w) in range.clone().filter(|&c| c > 0).filter_map(|c| Some((row.get(c)?, widths[c]))) {
            let _ = write!(others, "{:GAP$}{cell:>w$}", "");
        }
        let lines = wrap(row.first().map_or("", String::as_str), first);
        for (i, line) in lines.iter().enumerate() {
            // Numbers stand beside the end of what they belong to.
            let others = if i + 1 == lines.len() { others.as_str() } else { "" };
            let _ = writeln!(out, "{}", format!("{line:<first$}{others}").trim_end());
        }
    }
    out
}

/// A text in lines of at most `width` characters, broken at blanks, and before a point where a word is longer than a line; lines after
/// the first are indented by two blanks more.
pub(crate) fn wrap(text: &str, width: usize) -> Vec<String> {
    if chars(text) <= width {
        return vec![text.to_owned()];
    }
    let indent = text.len() - text.trim_start().len();
    let mut lines = Vec::new();
    let mut line = " ".repeat(indent);
    let mut empty = true;
    for word in text.split_whitespace() {
        let pieces = if indent + chars(word) > width { at_points(word) } else { vec![word] };
        for (i, piece) in pieces.into_iter().enumerate() {
            let gap = usize::from(i == 0);
            if !empty && chars(&line) + gap + chars(piece) > width {
                lines.push(std::mem::replace(&mut line, " ".repeat(indent + 2)));
                empty = true;
            }
            if !empty && gap == 1 {
                line.push(' ');
            }
            line.push_str(piece);
            empty = false;
        }
    }
    lines.push(line);
    lines
}

/// `a.b.c` as `a`, `.b`, `.c`.
fn at_points(word: &str) -> Vec<&str> {
    let cuts: Vec<usize> = std::iter::once(0).chain(word.match_indices('.').map(|(i, _)| i).filter(|&i| i > 0)).collect();
    let ends = cuts[1..].iter().copied().chain([word.len()]);
    cuts.iter().zip(ends).map(|(&begin, end)| &word[begin..end]).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rows(cells: &[&[&str]]) -> Vec<Vec<String>> {
        cells.iter().map(|r| r.iter().map(|s| (*s).to_owned()).collect()).collect()
    }

    #[test]
    fn columns_are_aligned() {
        let rows = rows(&[&["a", "10"], &["bcd", "5"]]);
        assert_eq!(columns(&rows, None), "a    10\nbcd   5\n");
        assert_eq!(columns(&rows, Some(80)), columns(&rows, None));
        assert_eq!(columns(&[], Some(5)), "");
    }

    #[test]
    fn what_is_too_wide_goes_below() {
        let wide = rows(&[&["localised", "any", "all"], &["  files, BM25", "33.3 [0.0, 50.0]", "66.6 [0.0, 90.0]"]]);
        let expected = "localised                   any\n  files, BM25  33.3 [0.0, 50.0]\n\n\
                        localised                   all\n  files, BM25  66.6 [0.0, 90.0]\n";
        assert_eq!(columns(&wide, Some(34)), expected);
        let long = rows(&[&["commits", "100"], &["  - changes hundreds of files", "-1"]]);
        assert_eq!(columns(&long, Some(26)), "commits                100\n  - changes hundreds\n    of files            -1\n");
    }

    #[test]
    fn words_longer_than_a_line_are_cut_at_points() {
        assert_eq!(wrap("patch.function.answers", 16), ["patch.function", "  .answers"]);
        assert_eq!(wrap("of patch.function.answers", 18), ["of patch.function", "  .answers"]);
        assert_eq!(wrap("a.b", 2), ["a", "  .b"]);
    }

    proptest! {
        #[test]
        fn no_line_is_longer_than_the_terminal(
            cells in proptest::collection::vec(proptest::collection::vec("[a-z]{1,6}( [a-z]{1,8}){0,6}", 1..2), 1..5),
            numbers in proptest::collection::vec("[0-9]{1,12}", 0..8),
            width in 30usize..90,
        ) {
            let rows: Vec<Vec<String>> = cells.into_iter().map(|first| [first, numbers.clone()].concat()).collect();
            let text = columns(&rows, Some(width));
            prop_assert!(text.lines().all(|l| chars(l) <= width), "{}", text);
            let found = |word: &str| text.split_whitespace().filter(|w| *w == word).count();
            for number in &numbers {
                prop_assert!(found(number) >= rows.len());
            }
        }
    }
}
