//! Files as prompts show them: cut into units that are shown or left out as a whole, and written with or without line numbers.
//!
//! The cut is a function of the file alone, so where a unit begins and ends says nothing of what is to be found in it.

use crate::data::symbols::{Definition, definitions};

/// The most lines of a definition's head that a skeleton shows; of a longer head it shows the line with the name.
const HEAD_LINES: usize = 3;

/// A run of a file's lines that is shown or left out as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// Which of the prompt's files it is in.
    pub file: usize,
    /// Its first line, 1-based.
    pub first: usize,
    /// Its last line.
    pub last: usize,
    /// The unit around it, which is shown wherever it is: the class of a method.
    pub around: Option<usize>,
}

/// How code is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// The heads of definitions as they stand in the file; `...` where some are left out.
    Skeleton,
    /// `12|code`, each line with its number; `...` where lines are left out.
    Numbered,
    /// Lines as they are; `...` where some are left out.
    Plain,
}

/// A file that units are cut from.
#[derive(Clone, Debug)]
pub struct Source<'a> {
    /// Its path.
    pub path: &'a str,
    /// Its text.
    pub text: &'a str,
    /// Its lines, without line ends.
    pub lines: Vec<&'a str>,
    /// What it defines.
    pub definitions: Vec<Definition>,
}

impl<'a> Source<'a> {
    /// Reads a file.
    pub fn new(path: &'a str, text: &'a str) -> Self {
        Self { path, text, lines: text.lines().collect(), definitions: definitions(path, text).unwrap_or_default() }
    }

    /// How many lines it has; an empty file has one, which can be named.
    pub fn line_count(&self) -> usize {
        self.lines.len().max(1)
    }

    /// The heads of its definitions as units, one for each definition in its order; `before` units of other files come first.
    pub fn heads(&self, file: usize, before: usize) -> Vec<Unit> {
        let mut open: Vec<usize> = Vec::new();
        let mut out = Vec::with_capacity(self.definitions.len());
        for (i, d) in self.definitions.iter().enumerate() {
            open.truncate(d.depth);
            let around = open.last().map(|&i| before + i);
            open.push(i);
            let (first, last) = self.head_lines(d);
            out.push(Unit { file, first, last, around });
        }
        out
    }

    fn head_lines(&self, d: &Definition) -> (usize, usize) {
        if d.head_last - d.first < HEAD_LINES {
            return (d.first, d.head_last);
        }
        let own = d.name.rsplit('.').next().unwrap_or(&d.name);
        let named = |line: &str| !line.trim_start().starts_with(['@', '#']) && has_word(line, own);
        let at = (d.first..=d.head_last).find(|&n| self.lines.get(n - 1).is_some_and(|l| named(l))).unwrap_or(d.first);
        (at, at)
    }

    /// All its lines, cut into units: outermost definitions and what lies between them. What is longer than `most` lines is cut further,
    /// first into the definitions in it, then into equal parts. Blank lines belong to the unit before them.
    pub fn pieces(&self, file: usize, most: usize) -> Vec<Unit> {
        let mut cutter = Cutter { source: self, most: most.max(1), next: 1, out: Vec::new() };
        let mut at = 0;
        while at < self.definitions.len() {
            at = cutter.definition(at);
        }
        cutter.gap(self.line_count());
        let unit = |(first, last)| Unit { file, first, last, around: None };
        self.join_blank(cutter.out).into_iter().map(unit).collect()
    }

    /// Joins pieces without text to the piece before them (at the top of the file: behind them).
    fn join_blank(&self, pieces: Vec<(usize, usize)>) -> Vec<(usize, usize)> {
        let blank = |n: usize| self.lines.get(n - 1).is_none_or(|l| l.trim().is_empty());
        let mut out: Vec<(usize, usize)> = Vec::with_capacity(pieces.len());
        for (first, last) in pieces {
            let text = (first..=last).find(|&n| !blank(n)).unwrap_or(last + 1);
            match out.last_mut() {
                Some(before) => before.1 = text - 1,
                None if text > last => {
                    out.push((first, last));
                    continue;
                }
                None => {}
            }
            if text <= last {
                let from = if out.is_empty() { first } else { text };
                out.push((from, last));
            }
        }
        // A file that begins with blank lines alone as its first piece.
        if out.len() > 1 && (out[0].0..=out[0].1).all(blank) {
            let (first, _) = out.remove(0);
            out[0].0 = first;
        }
        out
    }

    /// Writes units of this file, in their order. `units` are (place in the list of all units, unit).
    pub fn write(&self, units: &[(usize, &Unit)], style: Style) -> String {
        let mut out: Vec<String> = Vec::new();
        let (mut written, mut before) = (0, None);
        for &(i, unit) in units {
            let gap = match (style, before) {
                (_, None) => false,
                (Style::Skeleton, Some(before)) => i != before + 1,
                _ => unit.first > written + 1,
            };
            if gap {
                out.push("...".to_owned());
            }
            for n in unit.first.max(written + 1)..=unit.last {
                let line = self.lines.get(n - 1).copied().unwrap_or_default();
                out.push(if style == Style::Numbered { format!("{n}|{line}") } else { line.to_owned() });
            }
            (written, before) = (written.max(unit.last), Some(i));
        }
        out.join("\n")
    }
}

/// Whether a line has `word` with nothing of a name before or behind it.
fn has_word(line: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word)
        .any(|(at, _)| !line[..at].chars().next_back().is_some_and(part) && !line[at + word.len()..].chars().next().is_some_and(part))
}

/// Cuts a file from its first line to its last.
struct Cutter<'s, 'a> {
    source: &'s Source<'a>,
    most: usize,
    /// The first line that is in no piece yet.
    next: usize,
    out: Vec<(usize, usize)>,
}

impl Cutter<'_, '_> {
    /// Cuts the definition at this place of the list, and gives the place behind it and all in it.
    fn definition(&mut self, at: usize) -> usize {
        let d = &self.source.definitions[at];
        let end = (at + 1..self.source.definitions.len()).find(|&i| self.source.definitions[i].depth <= d.depth);
        let end = end.unwrap_or(self.source.definitions.len());
        self.gap(d.first - 1);
        if d.last < self.next {
            return end;
        }
        if d.last - self.next < self.most {
            self.out.push((self.next, d.last));
            self.next = d.last + 1;
        } else {
            let mut inner = at + 1;
            while inner < end {
                inner = self.definition(inner);
            }
            self.gap(d.last);
        }
        end
    }

    /// The lines up to `last` that are in no piece yet, in equal parts.
    fn gap(&mut self, last: usize) {
        let last = last.min(self.source.line_count());
        if last < self.next {
            return;
        }
        let (len, first) = (last + 1 - self.next, self.next);
        let parts = len.div_ceil(self.most);
        self.out.extend((0..parts).map(|p| (first + p * len / parts, first + (p + 1) * len / parts - 1)));
        self.next = last + 1;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEXT: &str = "\nimport x\n\nclass A:\n    b = 1\n\n    @d\n    def f(self):\n        return 1\n\n    def g(self):\n        return 2\n\n\ndef h(\n    a,\n    b,\n    c,\n):\n    pass\n";

    fn runs(most: usize) -> Vec<(usize, usize)> {
        Source::new("a.py", TEXT).pieces(0, most).into_iter().map(|u| (u.first, u.last)).collect()
    }

    #[test]
    fn units_are_outermost_definitions_unless_they_are_long() {
        assert_eq!(runs(usize::MAX), [(1, 3), (4, 14), (15, 20)]);
        assert_eq!(runs(6), [(1, 3), (4, 6), (7, 10), (11, 14), (15, 20)]);
        assert_eq!(runs(3), [(1, 3), (4, 6), (7, 10), (11, 14), (15, 17), (18, 20)]);
        assert_eq!(Source::new("a.py", "").pieces(0, 9).len(), 1);
        assert_eq!(Source::new("a.txt", "a\nb\nc\n").pieces(0, 2).len(), 2);
    }

    #[test]
    fn heads_know_what_is_around_them() {
        let source = Source::new("a.py", TEXT);
        let heads = source.heads(0, 10);
        let found: Vec<_> = heads.iter().map(|u| (u.first, u.last, u.around)).collect();
        assert_eq!(found, [(4, 4, None), (7, 8, Some(10)), (11, 11, Some(10)), (15, 15, None)]);
        let all: Vec<_> = heads.iter().enumerate().collect();
        assert_eq!(source.write(&all, Style::Skeleton), "class A:\n    @d\n    def f(self):\n    def g(self):\ndef h(");
        assert_eq!(source.write(&[all[0], all[2]], Style::Skeleton), "class A:\n...\n    def g(self):");
    }

    #[test]
    fn code_is_written_with_and_without_numbers() {
        let source = Source::new("a.py", TEXT);
        let units = source.pieces(0, 6);
        let some: Vec<_> = units.iter().enumerate().filter(|(i, _)| [0, 1, 3].contains(i)).collect();
        let plain = "\nimport x\n\nclass A:\n    b = 1\n\n...\n    def g(self):\n        return 2\n\n";
        assert_eq!(source.write(&some, Style::Plain), plain);
        assert!(source.write(&some, Style::Numbered).ends_with("6|\n...\n11|    def g(self):\n12|        return 2\n13|\n14|"));
    }

    proptest! {
        #[test]
        fn pieces_hold_every_line_once(
            text in "(\n|class A:\n|    def f\\(\\):\n|        pass\n|def g\\(\\): pass\n|    x = 1\n|é\n){0,40}",
            most in 1usize..12,
        ) {
            let source = Source::new("a.py", &text);
            let mut next = 1;
            for unit in source.pieces(0, most) {
                prop_assert_eq!(unit.first, next);
                prop_assert!(unit.last >= unit.first);
                next = unit.last + 1;
            }
            prop_assert_eq!(next, source.line_count() + 1);
        }
    }
}
