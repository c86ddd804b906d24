//! Answers that name places in files: those of function, line and edit subtasks, and what they may name.

use std::collections::{BTreeMap, BTreeSet};

use super::answer_text;
use super::shown::shown_lines;
use super::tree::{forms, looks_like_path};
use crate::data::edit_blocks::agentless::{apply_blocks, parse_blocks};
use crate::data::edited_lines::{Element, edit_elements};
use crate::data::ground_truth::{Functions, Lines};
use crate::data::metrics::SetScore;
use crate::data::symbols::{Definition, Kind, MODULE, definitions};
use crate::data::{Task, ground_truth};
use crate::{Error, Result};

/// What an answer may name, and the files it is about.
pub struct Universe {
    /// Files whose contents are known; others can be named, but nothing in them.
    files: BTreeMap<String, String>,
    /// All paths at the base commit.
    paths: BTreeSet<String>,
    /// The lines that a prompt shows, by path; none without a prompt, which shows all of every file.
    shown: Option<BTreeMap<String, BTreeSet<usize>>>,
}

impl Universe {
    /// The universe of a task: what `prompt` shows, or without one (or with one that shows no code) all files whose contents it holds.
    /// A prompt shows code under a line `### path`: numbered (`12|code`), or as it is, with lines `...` where something is left out
    /// (`shown.rs`).
    pub fn new(task: &Task, prompt: Option<&str>) -> Self {
        let paths = task.base_paths();
        let shown = prompt.map(|p| shown_lines(p, &paths, &task.files)).filter(|s| !s.is_empty());
        Self { files: task.files.clone(), paths, shown }
    }

    /// The universe of a prompt that shows these `lines` of these `files`, by path; `paths` are all that are known, shown or not. A path
    /// without lines is shown by its name alone.
    pub fn of_lines(files: BTreeMap<String, String>, paths: BTreeSet<String>, lines: BTreeMap<String, BTreeSet<usize>>) -> Self {
        Self { files, paths, shown: Some(lines) }
    }

    /// The files that an answer's edits change, after them.
    ///
    /// # Errors
    ///
    /// Why the answer has no edits, or none that can be made.
    pub fn apply(&self, completion: &str) -> std::result::Result<BTreeMap<String, String>, String> {
        Ok(self.edited(completion)?.into_iter().map(|(path, (_, new))| (path, new)).collect())
    }

    fn edited(&self, completion: &str) -> std::result::Result<BTreeMap<String, (String, String)>, String> {
        let text = completion.rfind("</think>").map_or(completion, |at| &completion[at..]);
        let blocks = parse_blocks(text)?;
        if blocks.is_empty() {
            return Err("the answer has no SEARCH/REPLACE block".to_owned());
        }
        apply_blocks(&blocks, &self.files, &|path, line| self.shows(path, line), &|p| self.paths.contains(p))
    }

    fn shows(&self, path: &str, line: usize) -> bool {
        self.shown.as_ref().is_none_or(|s| s.get(path).is_some_and(|l| l.contains(&line)))
    }

    fn shows_path(&self, path: &str) -> bool {
        self.files.contains_key(path) && self.shown.as_ref().is_none_or(|s| s.contains_key(path))
    }

    /// The definitions of a shown file, of which any line of the head is shown.
    fn definitions(&self, path: &str) -> Vec<Definition> {
        let Some(text) = self.files.get(path).filter(|_| self.shows_path(path)) else { return Vec::new() };
        let mut all = definitions(path, text).unwrap_or_default();
        all.retain(|d| (d.first..=d.head_last).any(|l| self.shows(path, l)));
        all
    }

    fn line_count(&self, path: &str) -> usize {
        self.files.get(path).filter(|_| self.shows_path(path)).map_or(0, |t| t.lines().count().max(1))
    }

    /// The path that a line ends in, or that it looks like.
    fn path_in<'a>(&'a self, line: &'a str) -> Option<&'a str> {
        let bare = line.trim().trim_end_matches(['`', '*', ':', ' ']);
        let ends = |p: &&String| {
            let rest = bare.strip_suffix(p.as_str());
            rest.is_some_and(|r| {
                r.chars().next_back().is_none_or(|c| c.is_whitespace() || matches!(c, '`' | '*' | '(' | '"' | '\'')) || r.ends_with("./")
            })
        };
        let known = self.paths.iter().filter(ends).max_by_key(|p| p.len()).map(String::as_str);
        known.or_else(|| {
            forms(bare).into_iter().map(|f| f.trim_start_matches("# ").trim_start_matches('#').trim()).find(|f| looks_like_path(f))
        })
    }
}

/// The lines of an answer that name something, with the file that each is in: (path, keyword, the rest). Lines before any file, and
/// lines of other kinds, are skipped, as Agentless does.
fn targets<'a>(universe: &'a Universe, text: &'a str) -> Vec<(&'a str, String, &'a str)> {
    const KEYWORDS: [&str; 7] = ["function", "method", "class", "module", "variable", "line", "lines"];
    let (mut out, mut path) = (Vec::new(), None);
    for line in text.lines() {
        let stated = forms(line).into_iter().find_map(|f| {
            let (keyword, rest) = f.split_once(':')?;
            let keyword = keyword.trim().trim_matches(['*', '`']).to_ascii_lowercase();
            KEYWORDS.contains(&keyword.as_str()).then(|| (keyword, rest.trim().trim_matches(['*', '`']).trim()))
        });
        match stated {
            Some((keyword, rest)) => out.extend(path.map(|p| (p, keyword, rest))),
            None => path = universe.path_in(line).or(path),
        }
    }
    out
}

/// An answered set with the reason why it earns nothing, if there is one.
pub type Answered<T> = (Vec<T>, Option<String>);

/// Reads an answer to function localisation: after a line that ends in a path, `function: name`, `function: Class.method`, `class: Name`
/// or `module:`, one a line. A name is the qualified one, else a method of the class named last, else the only definition that ends in
/// it, as in Agentless; where several do, none is meant. `variable:` and `line:` say nothing here.
pub fn parse_functions(completion: &str, universe: &Universe) -> Answered<(String, String)> {
    let (mut out, mut reason) = (Vec::new(), None);
    let mut class = (String::new(), String::new());
    let mut known: BTreeMap<&str, Vec<Definition>> = BTreeMap::new();
    for (path, keyword, rest) in targets(universe, answer_text(completion)) {
        let name = bare_name(rest);
        if keyword.starts_with("line") || keyword == "variable" || (name.is_empty() && keyword != "module") {
            continue;
        }
        let all = known.entry(path).or_insert_with(|| universe.definitions(path));
        let found = match (keyword.as_str(), name.as_str()) {
            ("module", _) | (_, MODULE) if universe.shows_path(path) => Ok(MODULE.to_owned()),
            ("module", _) | (_, MODULE) => Err(Vec::new()),
            _ => resolve(all, &name, Some(class.1.as_str()).filter(|_| class.0 == path)),
        };
        if keyword == "class" {
            class = (path.to_owned(), found.clone().unwrap_or_default());
        }
        if let Err(meant) = &found {
            let said = if name.is_empty() { MODULE } else { &name };
            reason.get_or_insert_with(|| match meant.as_slice() {
                [] => format!("`{said}` in `{path}` is not in the prompt"),
                several => format!("`{said}` in `{path}` is ambiguous: {}", several.join(" or ")),
            });
        }
        let element = (path.to_owned(), found.unwrap_or(name));
        if !out.contains(&element) {
            out.push(element);
        }
    }
    if out.is_empty() {
        reason = Some("the answer names no function".to_owned());
    }
    (out, reason)
}

/// A name without what stands around it where it is copied from code: `async def run(self):` is `run`.
fn bare_name(text: &str) -> String {
    let rest = ["async ", "def ", "class "].iter().fold(text, |rest, word| rest.strip_prefix(word).map_or(rest, str::trim_start));
    rest.split(['(', ' ', '\t']).next().unwrap_or_default().trim_matches(['`', '*', ':']).replace("::", ".")
}

/// The definition that a name means; else those that it could mean, if there are several.
fn resolve(all: &[Definition], name: &str, class: Option<&str>) -> std::result::Result<String, Vec<String>> {
    let exact = |name: &str| all.iter().find(|d| d.name == name).map(|d| d.name.clone());
    if let Some(found) = exact(name).or_else(|| class.and_then(|c| exact(&format!("{c}.{name}")))) {
        return Ok(found);
    }
    let ending = format!(".{name}");
    let ends: BTreeSet<&String> = all.iter().map(|d| &d.name).filter(|n| n.ends_with(&ending)).collect();
    match ends.first() {
        Some(only) if ends.len() == 1 => Ok((*only).clone()),
        _ => Err(ends.into_iter().cloned().collect()),
    }
}

/// Reads an answer to line localisation: after a line that ends in a path, `line: N` or `line: N-M`, one a line. Names of functions and
/// classes between them say nothing here.
pub fn parse_lines(completion: &str, universe: &Universe) -> Answered<(String, usize)> {
    let (mut out, mut reason) = (BTreeSet::new(), None);
    let mut order = Vec::new();
    for (path, keyword, rest) in targets(universe, answer_text(completion)) {
        if !keyword.starts_with("line") {
            continue;
        }
        for part in rest.split(',') {
            let mut ends = part.split(['-', '\u{2013}']).map(|n| n.trim().parse::<usize>().ok());
            let (Some(Some(first)), last) = (ends.next(), ends.next()) else { continue };
            let last = last.unwrap_or(Some(first)).unwrap_or(first);
            let fits = first >= 1 && last <= universe.line_count(path) && (first..=last).all(|l| universe.shows(path, l));
            if !fits || last < first {
                reason.get_or_insert_with(|| format!("line {} of `{path}` is not in the prompt", part.trim()));
                // One element for what is not there, however long it says it is.
                order.extend(out.insert((path.to_owned(), first)).then(|| (path.to_owned(), first)));
                continue;
            }
            order.extend((first..=last).map(|l| (path.to_owned(), l)).filter(|e| out.insert(e.clone())));
        }
    }
    if order.is_empty() {
        reason = Some("the answer names no line".to_owned());
    }
    (order, reason)
}

/// Reads an answer to code edit generation: all blocks after the last `</think>`, applied to the files; what they delete and insert.
pub fn parse_edits(completion: &str, universe: &Universe) -> Answered<Element> {
    match universe.edited(completion) {
        Ok(files) => {
            let elements: Vec<Element> = files.iter().flat_map(|(path, (old, new))| edit_elements(path, old, new)).collect();
            let reason = elements.is_empty().then(|| "the edits change nothing".to_owned());
            (elements, reason)
        }
        Err(reason) => (Vec::new(), Some(reason)),
    }
}

/// Which of the three subtasks an answer is to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Function localisation.
    Function,
    /// Line localisation.
    Line,
    /// Code edit generation.
    Edit,
}

/// A gold set of a subtask.
pub enum Gold {
    /// Of function localisation.
    Functions(Functions),
    /// Of line localisation.
    Lines(Lines),
    /// Of code edit generation.
    Edits(BTreeSet<Element>),
}

impl Gold {
    /// The gold set of a task: what the patch changes in the files whose contents the task holds. What is in others
    /// ([`ground_truth::unknown_files`]) no answer could name.
    ///
    /// # Errors
    ///
    /// A patch that does not fit the task's files; an empty set, which leaves nothing to ask.
    pub fn new(task: &Task, place: Place) -> Result<Self> {
        let known = |path: &String| task.files.contains_key(path);
        let gold = match place {
            Place::Function => Self::Functions(ground_truth::functions(task)?.into_iter().filter(|(path, _)| known(path)).collect()),
            Place::Line => Self::Lines(ground_truth::lines(task)?.into_iter().filter(|(path, _)| known(path)).collect()),
            Place::Edit => Self::Edits(ground_truth::edits(task)?),
        };
        let empty = match &gold {
            Self::Functions(gold) => gold.is_empty(),
            Self::Lines(gold) => gold.is_empty(),
            Self::Edits(gold) => gold.is_empty(),
        };
        if !empty {
            return Ok(gold);
        }
        Err(match ground_truth::unknown_files(task)?.first() {
            Some(path) => Error::input("the patch changes this file, and its content is not known").at(path),
            None => Error::input("the task has nothing to be found: its patch changes no line of a text that is there at the base"),
        })
    }

    /// Reads and scores an answer: the score, and why it earns nothing if it does not.
    pub fn score(&self, completion: &str, universe: &Universe) -> (SetScore, Option<String>) {
        fn of<T: Ord>((answered, reason): Answered<T>, gold: &BTreeSet<T>) -> (SetScore, Option<String>) {
            (SetScore::new(&answered, gold, reason.is_none()), reason)
        }
        match self {
            Self::Functions(gold) => of(parse_functions(completion, universe), gold),
            Self::Lines(gold) => of(parse_lines(completion, universe), gold),
            Self::Edits(gold) => of(parse_edits(completion, universe), gold),
        }
    }

    /// The gold answer in the answer's format; none for edits that blocks cannot say (a change of line ends alone).
    ///
    /// # Errors
    ///
    /// As [`Gold::new`].
    pub fn answer(&self, task: &Task) -> Result<Option<String>> {
        Ok(match self {
            Self::Functions(gold) => {
                let kinds = |path: &str| task.files.get(path).and_then(|t| definitions(path, t)).unwrap_or_default();
                let line = |path: &str, name: &str| answer_line(name, kinds(path).iter().find(|d| d.name == name).map(|d| d.kind));
                Some(listing(gold.iter().map(|(path, name)| (path.as_str(), line(path, name))), None))
            }
            Self::Lines(gold) => Some(listing(runs(gold).into_iter(), None)),
            Self::Edits(_) => {
                let mut out = Vec::new();
                for (path, (old, new)) in ground_truth::contents(task)? {
                    match crate::data::edit_blocks::agentless::gold_blocks(&path, &old, &new) {
                        Some(blocks) => out.extend(blocks),
                        None => return Ok(None),
                    }
                }
                Some(crate::data::edit_blocks::agentless::write_blocks(&out))
            }
        })
    }
}

/// The line that names a definition in an answer.
pub(super) fn answer_line(name: &str, kind: Option<Kind>) -> String {
    match kind {
        _ if name == MODULE => "module:".to_owned(),
        Some(Kind::Class) => format!("class: {name}"),
        _ => format!("function: {name}"),
    }
}

/// Lines of an answer under their paths, in a fence, with a last line of its own where one is given.
pub(super) fn listing<'a>(lines: impl Iterator<Item = (&'a str, String)>, last: Option<&str>) -> String {
    let (mut out, mut current) = (vec!["```".to_owned()], "");
    for (path, line) in lines {
        if path != current {
            out.push(path.to_owned());
            current = path;
        }
        out.push(line);
    }
    out.extend(last.map(str::to_owned));
    out.push("```".to_owned());
    out.join("\n")
}

/// Lines that follow each other, as `line: N-M`.
fn runs(gold: &Lines) -> Vec<(&str, String)> {
    let mut runs: Vec<(&str, usize, usize)> = Vec::new();
    for (path, line) in gold {
        match runs.last_mut().filter(|(p, _, last)| p == path && last + 1 == *line) {
            Some((_, _, last)) => *last = *line,
            None => runs.push((path, *line, *line)),
        }
    }
    runs.into_iter().map(|(p, a, b)| (p, if a == b { format!("line: {a}") } else { format!("line: {a}-{b}") })).collect()
}

#[cfg(test)]
#[path = "answer_tests.rs"]
mod tests;
