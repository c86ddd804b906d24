//! The lines of files that a prompt shows, read from its text.
//!
//! Code stands under a line `### path` with a path of the task, up to the next such line. It is either numbered (`12|code`), if most of the
//! lines that look so agree with the file, or as it is: then every run of lines counts that stands in the file together, wherever it does.
//! Lines `...`, fences and titles of files that are not known mark where code is left out or ends, unless the file itself has them there.

use std::collections::{BTreeMap, BTreeSet};

use super::tree::looks_like_path;

/// The lines (1-based) that a prompt shows of each of the `files`; `paths` are all that may stand in a title. Empty where it shows none.
pub(super) fn shown_lines(prompt: &str, paths: &BTreeSet<String>, files: &BTreeMap<String, String>) -> BTreeMap<String, BTreeSet<usize>> {
    let mut out: BTreeMap<String, BTreeSet<usize>> = BTreeMap::new();
    for (path, lines) in sections(prompt, paths) {
        let Some(text) = files.get(path) else { continue };
        let all: Vec<&str> = text.lines().collect();
        let shown = numbered(&lines, &all).unwrap_or_else(|| plain(&lines, &all));
        out.entry(path.to_owned()).or_default().extend(shown);
    }
    if out.values().all(BTreeSet::is_empty) {
        out.clear();
    }
    out
}

/// The parts of a prompt that stand under the title of a file.
fn sections<'p>(prompt: &'p str, paths: &BTreeSet<String>) -> Vec<(&'p str, Vec<&'p str>)> {
    let mut out: Vec<(&str, Vec<&str>)> = Vec::new();
    for line in prompt.lines() {
        match title(line).filter(|path| paths.contains(*path)) {
            Some(path) => out.push((path, Vec::new())),
            None => out.last_mut().into_iter().for_each(|(_, lines)| lines.push(line)),
        }
    }
    out
}

/// What a line `### title` says.
fn title(line: &str) -> Option<&str> {
    line.strip_prefix("### ").map(|title| title.trim().trim_matches('`'))
}

/// The lines that stand with their numbers before them; none where the numbers are not those of the file.
fn numbered(lines: &[&str], all: &[&str]) -> Option<BTreeSet<usize>> {
    let stated = lines.iter().filter_map(|line| {
        let (number, code) = line.split_once('|')?;
        Some((number.trim().parse::<usize>().ok().filter(|n| *n > 0)?, code))
    });
    // An empty file has one line, which can be named.
    let of_file = |n: usize| all.get(n - 1).copied().or((n == 1).then_some(""));
    let (agree, differ): (Vec<_>, Vec<_>) =
        stated.partition(|&(n, code)| of_file(n).is_some_and(|line| line.trim_end() == code.trim_end()));
    (agree.len() > differ.len()).then(|| agree.into_iter().map(|(n, _)| n).collect())
}

fn is_blank(line: &str) -> bool {
    line.trim().is_empty()
}

/// A line with which prompts mark that code is left out, or ends.
fn is_mark(line: &str) -> bool {
    line.trim_end() == "..." || line.starts_with("```") || ends_code(line)
}

/// The title of a file that the task does not know.
fn ends_code(line: &str) -> bool {
    title(line).is_some_and(looks_like_path)
}

/// The lines of code shown as it is. Where what stands between two marks is not one run of the file's lines (a skeleton, say), each line
/// of it counts wherever the file has it.
fn plain(lines: &[&str], all: &[&str]) -> BTreeSet<usize> {
    let mut out = BTreeSet::new();
    let (mut at, mut blanks) = (0, 0);
    let (mut begin, mut runs) = (0, 0);
    while at < lines.len() {
        let line = lines[at];
        if is_blank(line) {
            (at, blanks) = (at + 1, blanks + 1);
            continue;
        }
        let (places, len) = longest_run(&lines[at..], all);
        // A mark alone is not code; one that goes on as the file does is.
        let is_code = len > 0 && (!is_mark(line) || (len > 1 && !is_blank(lines[at + 1])));
        if is_code {
            for place in places {
                out.extend(place + 1..=place + len);
                // Blank lines before a run may be the prompt's own; they count where the file has some too.
                out.extend((0..place).rev().take(blanks).take_while(|&i| is_blank(all[i])).map(|i| i + 1));
            }
            (at, runs) = (at + len, runs + 1);
        } else {
            if is_mark(line) {
                single_lines(&lines[begin..at], runs, all, &mut out);
                (begin, runs) = (at + 1, 0);
            }
            if ends_code(line) {
                return out;
            }
            at += 1;
        }
        blanks = 0;
    }
    single_lines(&lines[begin..], runs, all, &mut out);
    out
}

/// Adds every line of the file that is one of `lines`, if these are several runs.
fn single_lines(lines: &[&str], runs: usize, all: &[&str], out: &mut BTreeSet<usize>) {
    if runs > 1 {
        let wanted: BTreeSet<&str> = lines.iter().copied().filter(|l| !is_blank(l)).collect();
        out.extend((0..all.len()).filter(|&i| wanted.contains(all[i])).map(|i| i + 1));
    }
}

/// Where in `all` the most of the first `lines` stand together, and how many these are.
fn longest_run(lines: &[&str], all: &[&str]) -> (Vec<usize>, usize) {
    let same = |a: &str, b: &str| a == b || (is_blank(a) && is_blank(b));
    let mut places: Vec<usize> = (0..all.len()).filter(|&i| same(all[i], lines[0])).collect();
    let mut len = usize::from(!places.is_empty());
    while len > 0 && len < lines.len() {
        let longer: Vec<usize> = places.iter().copied().filter(|&i| all.get(i + len).is_some_and(|l| same(l, lines[len]))).collect();
        if longer.is_empty() {
            break;
        }
        (places, len) = (longer, len + 1);
    }
    (places, len)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(prompt: &str, file: &str) -> Vec<usize> {
        let files = BTreeMap::from([("a.py".to_owned(), file.to_owned())]);
        let paths = BTreeSet::from(["a.py".to_owned(), "b.py".to_owned()]);
        shown_lines(prompt, &paths, &files).remove("a.py").unwrap_or_default().into_iter().collect()
    }

    #[test]
    fn a_comment_that_looks_like_a_title_is_code() {
        let file = "x = 1\n\n### Helpers\n\ndef f():\n    return 1\n";
        assert_eq!(shown(&format!("Fix.\n\n### a.py\n{file}"), file), [1, 2, 3, 4, 5, 6]);
        assert_eq!(shown(&format!("```\n### a.py\n{file}### b.py\nx = 1\n```\n\nWhich?"), file), [1, 2, 3, 4, 5, 6]);
        assert_eq!(shown("### a.py\ndef f():\n### lib/unknown.py\nx = 1\n", file), [5]);
    }

    #[test]
    fn three_dots_are_code_where_the_file_has_them() {
        let file = "class P:\n    def f(self):\n        ...\n\n    def g(self):\n        return 0\n...\nx\n";
        assert_eq!(shown(&format!("### a.py\n{file}"), file).len(), 8);
        assert_eq!(shown("### a.py\n```\n...\n        ...\n\n    def g(self):\n...\nx\n```\n", file), [3, 4, 5, 7, 8]);
        assert_eq!(shown("### a.py\n```\nclass P:\n...\n        return 0\n```\n", file), [1, 6]);
    }

    #[test]
    fn numbers_count_where_they_are_the_files() {
        let file = "x = '''\n7|abc\n'''\ndef f():\n    return 1\n\n\ny = 2\n";
        assert_eq!(shown(&format!("### a.py\n```\n{file}```\n"), file), [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(shown("### a.py\n 2|7|abc\n 3|'''\n...\n 7|\n 8|y = 3\n", file), [2, 3, 7]);
        assert_eq!(shown("### a.py\n1|", ""), [1]);
        assert_eq!(shown("### a.py\n0|x\n2|x\n", "x\n"), [] as [usize; 0]);
    }

    #[test]
    fn prose_behind_code_costs_no_blank_lines() {
        let file = "import x\n\n\ndef f():\n    return 1\n\ndef g():\n    return 1\n";
        assert_eq!(shown("### a.py\n\nimport x\n\n\ndef f():\n    return 1\n\nWhich lines?\n", file), [1, 2, 3, 4, 5, 6]);
        assert_eq!(shown("### a.py\ndef f():\ndef g():\n", file), [4, 7], "a skeleton");
        assert_eq!(shown("no code", file), [] as [usize; 0]);
    }

    proptest! {
        #[test]
        fn never_panics_and_stays_in_the_file(prompt in "(### a\\.py|### b\\.py|### c/d\\.py|\\.\\.\\.|```|x|    y|[0-9]\\||é|\n){0,40}", file in "(\\.\\.\\.|```|x|    y|\n){0,12}") {
            let last = file.lines().count().max(1);
            prop_assert!(shown(&prompt, &file).into_iter().all(|n| (1..=last).contains(&n)));
        }
    }
}
