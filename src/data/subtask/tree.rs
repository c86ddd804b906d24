//! The paths that a prompt shows: the universe that an answer may choose from.

use std::collections::BTreeSet;

use crate::data::paths::language;

/// What stands between a path and its evidence in a prompt's list.
pub const NOTE_MARK: &str = " | ";
/// The line before a prompt's list of paths.
pub const LIST_TITLE: &str = "Files:";

/// The paths that a prompt shows. A list of this project's form is read as it is (a line `Files:`, paths, a blank line; the last such
/// list counts). In another prompt every line counts that is one of the `known` paths or looks like the path of a source file, once
/// bullets, numbers and backticks are taken off, and so do the files of a tree drawn by indentation, as Agentless shows it.
/// Empty where the prompt shows no path.
pub fn shown_paths(prompt: &str, known: &BTreeSet<String>) -> BTreeSet<String> {
    let listed = listed_paths(prompt);
    if !listed.is_empty() {
        return listed;
    }
    let tree = tree_paths(prompt, known);
    let mut out = BTreeSet::new();
    for line in prompt.lines() {
        let forms: Vec<&str> = forms(line).into_iter().flat_map(|f| [Some(f), f.split_once(NOTE_MARK).map(|(p, _)| p)]).flatten().collect();
        if let Some(path) = forms.iter().find(|f| known.contains(**f)) {
            out.insert((*path).to_owned());
        } else if tree.is_empty()
            && let Some(path) = forms.iter().find(|f| looks_like_path(f))
        {
            out.insert((*path).to_owned());
        }
    }
    out.extend(tree);
    out
}

fn listed_paths(prompt: &str) -> BTreeSet<String> {
    let lines: Vec<&str> = prompt.lines().map(|l| l.trim_end_matches('\r')).collect();
    let Some(title) = lines.iter().rposition(|l| *l == LIST_TITLE) else { return BTreeSet::new() };
    let list = lines[title + 1..].iter().take_while(|l| !l.trim().is_empty());
    list.map(|l| l.split_once(NOTE_MARK).map_or(*l, |(path, _)| path).to_owned()).collect()
}

/// A line with more and more taken off from its start (bullets, numbers, backticks, `./`), the line itself first. A path that really
/// begins with `1. ` is among the forms too, so whoever knows the paths takes the first form that is one.
pub fn forms(line: &str) -> Vec<&str> {
    let mut forms = vec![line.trim()];
    while let Some(shorter) = forms.last().and_then(|last| strip_once(last)) {
        forms.push(shorter);
    }
    forms
}

fn strip_once(text: &str) -> Option<&str> {
    if text.starts_with('`') {
        return Some(text.trim_matches('`').trim());
    }
    if let Some(rest) = text.strip_prefix("./") {
        return Some(rest.trim_start());
    }
    if let Some(rest) = text.strip_prefix(['-', '*', '+', '\u{2022}'])
        && (rest.starts_with(char::is_whitespace) || rest.starts_with('`') || text.starts_with('\u{2022}'))
    {
        return Some(rest.trim_start());
    }
    let inner = text.strip_prefix('(').unwrap_or(text);
    let after = inner.trim_start_matches(|c: char| c.is_ascii_digit());
    if after.len() < inner.len()
        && let Some(rest) = after.strip_prefix(['.', ')', ':'])
        && (rest.starts_with(char::is_whitespace) || rest.starts_with('`'))
    {
        return Some(rest.trim_start());
    }
    text.ends_with('`').then(|| text.trim_end_matches('`').trim_end())
}

/// A path of a source file, with nothing around it.
pub(super) fn looks_like_path(text: &str) -> bool {
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '/' | '.' | '_' | '-' | '+' | '@' | '$' | '[' | ']');
    !text.is_empty() && text.chars().all(plain) && language(text).is_some() && !text.starts_with('/') && !text.starts_with("./")
}

/// The files of trees drawn by indentation: a directory's line ends in `/`, what it holds is indented deeper. The outermost directory
/// is often the repository itself, so a path counts with and without it, if it is known; where nothing is known, as it is drawn.
fn tree_paths(prompt: &str, known: &BTreeSet<String>) -> BTreeSet<String> {
    let mut out = BTreeSet::new();
    let mut dirs: Vec<(usize, &str)> = Vec::new();
    for line in prompt.lines() {
        let name = line.trim();
        let indent = line.len() - line.trim_start().len();
        if name.is_empty() {
            dirs.clear();
            continue;
        }
        while dirs.last().is_some_and(|&(depth, _)| depth >= indent) {
            dirs.pop();
        }
        if let Some(dir) = name.strip_suffix('/') {
            if !dir.is_empty() && !dir.contains(char::is_whitespace) {
                dirs.push((indent, dir));
            }
            continue;
        }
        if dirs.is_empty() {
            continue;
        }
        let whole = dirs.iter().map(|&(_, d)| d).chain([name]).collect::<Vec<_>>().join("/");
        let inner = whole.split_once('/').map_or(whole.as_str(), |(_, rest)| rest).to_owned();
        if known.contains(&whole) {
            out.insert(whole);
        } else if known.contains(&inner) {
            out.insert(inner);
        } else if known.is_empty() && looks_like_path(&whole) {
            out.insert(whole);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(prompt: &str, known: &[&str]) -> Vec<String> {
        shown_paths(prompt, &known.iter().map(|&p| p.to_owned()).collect()).into_iter().collect()
    }

    #[test]
    fn the_list_of_the_template_counts_alone() {
        let prompt = "Issue:\nbroken in\nother.py\n\nFiles:\na b.py | 9 Foo\nsrc/c.py\nMakefile\n\nWhich of\nthese.py\n";
        assert_eq!(shown(prompt, &["other.py"]), ["Makefile", "a b.py", "src/c.py"]);
    }

    #[test]
    fn lines_that_are_paths_count_in_other_prompts() {
        let prompt = "Fix it. Files are\n- src/a.py\n2. `lib/b.rs`\n./c.go\nsome text.py here\nREADME\nhttp://x.y/z\n";
        assert_eq!(shown(prompt, &[]), ["c.go", "lib/b.rs", "src/a.py"]);
        assert_eq!(shown(prompt, &["README"]), ["README", "c.go", "lib/b.rs", "src/a.py"]);
        assert!(shown("nothing here", &["a.py"]).is_empty());
    }

    #[test]
    fn drawn_trees_are_read() {
        let tree = "click/\n    setup.py\n    src/\n        click/\n            core.py\n    docs/\n        conf.py\n";
        assert_eq!(shown(tree, &["setup.py", "src/click/core.py", "gone.py"]), ["setup.py", "src/click/core.py"]);
        assert_eq!(shown("src/\n  a.py\n  b/\n    c.py\n", &[]), ["src/a.py", "src/b/c.py"]);
    }

    #[test]
    fn forms_lose_one_thing_at_a_time() {
        assert_eq!(forms(" 1. `./a.py` "), ["1. `./a.py`", "`./a.py`", "./a.py", "a.py"]);
        assert_eq!(forms("- 12) a.py").last(), Some(&"a.py"));
        assert_eq!(forms("1.py"), ["1.py"]);
        assert_eq!(forms("-x.py"), ["-x.py"]);
        assert_eq!(forms("``` a"), ["``` a", "a"]);
    }

    proptest! {
        #[test]
        fn never_panics(text in "(Files:|- |1\\. |`|\\./|/|a\\.py|\u{2022}|é|    |\n){0,30}") {
            shown(&text, &["a.py"]);
            text.lines().for_each(|l| drop(forms(l)));
        }
    }
}
