//! The paths that a prompt shows: the universe that an answer may choose from.

use std::collections::BTreeSet;

use crate::data::paths::language;

/// What stands between a path and its evidence in a prompt's list.
pub const NOTE_MARK: &str = " | ";
/// The line before a prompt's list of paths.
pub const LIST_TITLE: &str = "Files:";
/// The line behind those of a ranked list that score close to the best.
pub const CLOSE_MARK: &str = "--";

/// The paths that a prompt shows. A list of this project's form is read as it is (a line `Files:`, paths, a blank line; the last such
/// list counts). In another prompt each block between blank lines is looked at:
///
/// * A **tree** draws paths by indentation, a name a line, as Agentless does, folders with or without `/` behind them, with or without the
///   repository itself as the outermost. A block is one if it draws a `known` path that way over two lines or more.
/// * A **list** has two paths or more, one a line, bullets, numbers, backticks and notes taken off, at least one of them known. A path
///   alone in the prose of an issue is no list.
///
/// Trees count, all of them together, or where there is none lists. Of a block that counts, a path counts that is known, or, as a prompt may
/// show more than the task knows, that looks like the path of a source file. Where nothing is known, only looks count. Empty where the
/// prompt shows no path.
pub fn shown_paths(prompt: &str, known: &BTreeSet<String>) -> BTreeSet<String> {
    let listed = listed_paths(prompt);
    if listed.iter().any(|path| known.contains(path)) || (known.is_empty() && !listed.is_empty()) {
        return listed;
    }
    let lines: Vec<&str> = prompt.lines().collect();
    let blocks: Vec<Block> = lines.split(|l| l.trim().is_empty()).map(|lines| Block::read(lines, known)).collect();
    let of = |which: fn(&Block) -> bool| blocks.iter().filter(|b| which(b)).flat_map(|b| b.paths.iter().cloned()).collect::<BTreeSet<_>>();
    let trees = of(|b| b.is_tree);
    if trees.is_empty() { of(|b| b.is_list) } else { trees }
}

fn listed_paths(prompt: &str) -> BTreeSet<String> {
    let lines: Vec<&str> = prompt.lines().map(|l| l.trim_end_matches('\r')).collect();
    let Some(title) = lines.iter().rposition(|l| *l == LIST_TITLE) else { return BTreeSet::new() };
    let list = lines[title + 1..].iter().take_while(|l| !l.trim().is_empty()).filter(|l| **l != CLOSE_MARK);
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

/// The paths in a run of lines without a blank one.
struct Block {
    paths: BTreeSet<String>,
    is_tree: bool,
    is_list: bool,
}

/// A line of a block that may be a file.
struct Entry<'a> {
    /// The names around it by indentation, outermost first.
    folders: Vec<&'a str>,
    /// The line, with more and more taken off from it.
    forms: Vec<&'a str>,
    /// Which of the block's outermost lines it is under.
    top: usize,
    /// True if nothing is indented deeper behind it.
    is_leaf: bool,
}

impl Block {
    fn read(lines: &[&str], known: &BTreeSet<String>) -> Self {
        let entries = entries(lines);
        let mut block = Self { paths: BTreeSet::new(), is_tree: false, is_list: false };
        let mut any_known = known.is_empty();
        for of_top in entries.chunk_by(|a, b| a.top == b.top) {
            // The outermost folder is often the repository itself, which paths do not name.
            let hits = |skip: usize| of_top.iter().filter(|e| e.drawn(skip).is_some_and(|p| known.contains(&p))).count();
            let skip = usize::from(hits(1) > hits(0));
            for entry in of_top {
                let Some((path, drawn)) = entry.path(skip, known) else { continue };
                any_known |= known.contains(&path);
                block.is_tree |= drawn && (known.contains(&path) || known.is_empty());
                block.paths.insert(path);
            }
        }
        block.is_list = any_known && block.paths.len() > 1;
        block
    }
}

impl Entry<'_> {
    /// The path that the indentation draws, without its `skip` outermost folders.
    fn drawn(&self, skip: usize) -> Option<String> {
        let folders = self.folders.get(skip..)?;
        let name = self.forms.last().filter(|name| is_name(name))?;
        Some(folders.iter().copied().chain([*name]).collect::<Vec<_>>().join("/"))
    }

    /// The path that the line means, and whether it is drawn over several lines; none if it means none.
    fn path(&self, skip: usize, known: &BTreeSet<String>) -> Option<(String, bool)> {
        let drawn = self.drawn(skip);
        let is_drawn = self.folders.len() > skip;
        if let Some(path) = drawn.as_ref().filter(|path| known.contains(*path)) {
            return Some((path.clone(), is_drawn));
        }
        let bare = self.forms.iter().flat_map(|f| [Some(*f), f.split_once(NOTE_MARK).map(|(path, _)| path)]).flatten();
        // In a folder a bare name means the file there, not one at the top of the repository.
        if let Some(path) = bare.clone().find(|f| known.contains(*f) && (self.folders.is_empty() || f.contains('/'))) {
            return Some((path.to_owned(), false));
        }
        let path = if is_drawn { drawn? } else { bare.into_iter().find(|f| looks_like_path(f))?.to_owned() };
        (self.is_leaf && looks_like_path(&path)).then_some((path, is_drawn))
    }
}

/// The lines of a block with the folders that they are in.
fn entries<'a>(lines: &[&'a str]) -> Vec<Entry<'a>> {
    let mut out: Vec<Entry<'a>> = Vec::new();
    let mut folders: Vec<(usize, &str)> = Vec::new();
    let mut top = 0;
    for (i, line) in lines.iter().enumerate() {
        let (depth, name) = indented(line);
        while folders.last().is_some_and(|&(around, _)| around >= depth) {
            folders.pop();
        }
        top += usize::from(folders.is_empty());
        let is_leaf = lines.get(i + 1).is_none_or(|next| indented(next).0 <= depth) && !name.ends_with('/');
        let forms = forms(name);
        let folder = forms.last().map(|f| f.trim_end_matches('/')).filter(|f| !is_leaf && is_name(f));
        out.push(Entry { folders: folders.iter().map(|&(_, name)| name).collect(), forms, top, is_leaf });
        folders.extend(folder.map(|f| (depth, f)));
    }
    out
}

/// How far a line is indented, branches of a drawn tree included, and what stands there.
fn indented(line: &str) -> (usize, &str) {
    let branch = |c: char| c.is_whitespace() || matches!(c, '\u{2502}' | '\u{251c}' | '\u{2514}' | '\u{2500}' | '|');
    let rest = line.trim_start_matches(branch);
    let name = ["`-- ", "-- "].iter().find_map(|b| rest.strip_prefix(b)).unwrap_or(rest);
    (line.chars().count() - name.chars().count(), name.trim_end())
}

/// The name of a file or folder, or a path, with nothing around it.
fn is_name(text: &str) -> bool {
    !text.is_empty() && !text.contains(char::is_whitespace)
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
        assert_eq!(shown(prompt, &["other.py", "src/c.py"]), ["Makefile", "a b.py", "src/c.py"]);
    }

    #[test]
    fn lines_that_are_paths_count_in_other_prompts() {
        let prompt = "Fix it. Files are\n- src/a.py\n2. `lib/b.rs`\n./c.go\nsome text.py here\nREADME\nhttp://x.y/z\n";
        assert_eq!(shown(prompt, &[]), ["c.go", "lib/b.rs", "src/a.py"]);
        assert_eq!(shown(prompt, &["README"]), ["README", "c.go", "lib/b.rs", "src/a.py"]);
        assert!(shown("nothing here", &["a.py"]).is_empty());
    }

    #[test]
    fn a_path_in_prose_is_no_list() {
        let known = ["setup.py", "src/a.py", "src/b.py"];
        for prose in ["It fails in\nsetup.py\nwhen", "Example:\n    setup.py\n", "setup.py", "see\n\n- `setup.py`\n\nand\n\nsrc/a.py"] {
            assert!(shown(prose, &known).is_empty(), "{prose}");
        }
        let tree = "It fails in\nsetup.py\nsrc/b.py\n\nsrc\n  a.py\n";
        assert_eq!(shown(tree, &known), ["src/a.py"], "a tree counts before lists");
        assert_eq!(
            shown("src/a.py\nsrc/more.py\nnotes.txt\n", &known),
            ["src/a.py", "src/more.py"],
            "a prompt may show what no task knows"
        );
        assert!(shown("x/a.py\nx/b.py\n", &known).is_empty(), "none of it is of this task");
    }

    #[test]
    fn drawn_trees_are_read() {
        let tree = "click/\n    setup.py\n    src/\n        click/\n            core.py\n    docs/\n        conf.py\n";
        let known = ["setup.py", "src/click/core.py", "gone.py"];
        assert_eq!(shown(tree, &known), ["docs/conf.py", "setup.py", "src/click/core.py"]);
        assert_eq!(shown(&tree.replace("/\n", "\n"), &known), shown(tree, &known), "as Agentless Mini draws it");
        assert_eq!(shown("src/\n  a.py\n  b/\n    c.py\n", &[]), ["src/a.py", "src/b/c.py"]);
        let mini = "Issue\n\n--- BEGIN REPOSITORY ---\na\n  b\n    one.py\n  two.py\nc.py\n--- END REPOSITORY ---\n\nWhich?";
        assert_eq!(shown(mini, &["a/b/one.py", "a/two.py", "c.py", "d.py"]), ["a/b/one.py", "a/two.py", "c.py"]);
        let branches = ".\n\u{251c}\u{2500}\u{2500} src\n\u{2502}   \u{251c}\u{2500}\u{2500} a.py\n\u{2502}   \u{2514}\u{2500}\u{2500} b.py\n|-- setup.py\n";
        assert_eq!(shown(branches, &["src/a.py", "src/b.py", "setup.py"]), ["setup.py", "src/a.py", "src/b.py"]);
        assert_eq!(shown("docs\n    setup.py\n    x.py\n", &["setup.py", "docs/x.py"]), ["docs/setup.py", "docs/x.py"]);
        assert_eq!(shown("repo\n    a.py\n    b.py\n", &["a.py", "b.py"]), ["a.py", "b.py"]);
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
        fn never_panics(text in "(Files:|- |1\\. |`|\\./|/|a\\.py|\u{2022}|\u{2514}|é|    |\n){0,30}") {
            shown(&text, &["a.py"]);
            text.lines().for_each(|l| drop(forms(l)));
        }
    }
}
