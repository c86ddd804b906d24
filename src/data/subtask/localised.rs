//! Localised code: the views that line localisation and code edit generation share.

use std::collections::BTreeSet;

use super::budget::clean_issue;
use super::code_view::{Source, Unit};
use super::view::{Asked, Choice, Material, View};
use crate::data::ground_truth::unknown_files;
use crate::data::lexical::Bm25;
use crate::data::{Task, random::Keyed};
use crate::{Error, Result};

/// How long a piece of code may be, in lines, from coarse to fine: the first that suits is used.
const PIECES: [usize; 6] = [usize::MAX, 80, 40, 20, 10, 5];
/// At least so many files are shown, if there are so many, ...
const LEAST_FILES: usize = 3;
/// ... and so many that are not gold.
const LEAST_OTHERS: usize = 1;

/// A place in a file: its path, its first and its last line (1-based).
pub type Location = (String, usize, usize);

/// The changed files and others beside them, by a keyed random choice among the task's files, in alphabetical order: neither place nor
/// number tells which are which.
pub(super) fn training_files<'t>(task: &'t Task, gold: &BTreeSet<&String>, seed: u64) -> Vec<Source<'t>> {
    let mut others: Vec<&String> = task.files.keys().filter(|p| !gold.contains(p)).collect();
    Keyed::new(seed, &["files beside", &task.instance_id]).shuffle(&mut others);
    others.truncate(LEAST_FILES.saturating_sub(gold.len()).max(LEAST_OTHERS));
    let shown = task.files.iter().filter(|(path, _)| gold.contains(path) || others.contains(path));
    shown.map(|(path, text)| Source::new(path, text)).collect()
}

/// The units, those first that match the issue best (BM25 over their words); equal ones in their order.
pub(super) fn by_match(issue: &str, sources: &[Source<'_>], units: &[Unit]) -> Vec<usize> {
    let lines = |u: &Unit| sources[u.file].lines[u.first - 1..u.last.min(sources[u.file].lines.len())].iter().copied();
    let scores = Bm25::new(units.iter().map(|u| lines(u).collect::<Vec<_>>())).scores(issue);
    let mut order: Vec<usize> = (0..units.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    order
}

impl View {
    /// The training view of localised code: the pieces that hold the `gold` places, and beside them others of the same and of other files.
    ///
    /// # Errors
    ///
    /// A budget that the gold pieces do not fit into; a template that fails.
    pub(super) fn localised_training(&self, task: &Task, gold: &[Location], count_tokens: &dyn Fn(&str) -> usize) -> Result<Asked> {
        let paths: BTreeSet<&String> = gold.iter().map(|(path, ..)| path).collect();
        let seed = self.options.seed;
        let material =
            Material { issue: clean_issue(&task.problem_statement), sources: training_files(task, &paths, seed), paths: task.base_paths() };
        let choice = |most: usize| {
            let mut choice = Choice { most_lines: most_lines(most), ..Choice::default() };
            for (file, source) in material.sources.iter().enumerate() {
                let before = choice.units.len();
                choice.units.extend(source.pieces(file, most));
                let holds_gold =
                    |u: &Unit| gold.iter().any(|(path, first, last)| path == source.path && u.first <= *last && *first <= u.last);
                let (must, mut others): (Vec<usize>, Vec<usize>) =
                    (before..choice.units.len()).partition(|&i| holds_gold(&choice.units[i]));
                Keyed::new(seed, &["pieces beside", &task.instance_id, source.path]).shuffle(&mut others);
                choice.must.extend(must);
                choice.queues.push(others);
            }
            choice
        };
        let mut asked = self.fit(&material, PIECES.into_iter().map(choice), count_tokens)?;
        asked.cut.unknown_files = unknown_files(task)?.len();
        Ok(asked)
    }

    /// The view of places that are already localised, whole if they fit. Where they do not, they are cut into pieces, and those stay that
    /// share the most words with the issue.
    ///
    /// # Errors
    ///
    /// None of the places in the task's files; a budget that not even a part fits into; a template that fails.
    pub(super) fn localised(&self, task: &Task, places: &[Location], count_tokens: &dyn Fn(&str) -> usize) -> Result<Asked> {
        let mut seen = BTreeSet::new();
        let known = places.iter().filter(|(path, ..)| seen.insert(path)).filter_map(|(path, ..)| task.files.get_key_value(path));
        let material = Material {
            issue: clean_issue(&task.problem_statement),
            sources: known.map(|(path, text)| Source::new(path, text)).collect(),
            paths: task.base_paths(),
        };
        let choice = |most: usize| {
            let mut units = Vec::new();
            for (file, source) in material.sources.iter().enumerate() {
                let runs = merged(places.iter().filter(|(path, ..)| path == source.path).map(|&(_, a, b)| (a, b)), source.line_count());
                for unit in source.pieces(file, most) {
                    let inside = runs.iter().map(|&(a, b)| (a.max(unit.first), b.min(unit.last))).filter(|(a, b)| a <= b);
                    units.extend(inside.map(|(first, last)| Unit { first, last, ..unit.clone() }));
                }
            }
            let queues = vec![by_match(&material.issue, &material.sources, &units)];
            Choice { units, queues, most_lines: most_lines(most), ..Choice::default() }
        };
        if choice(usize::MAX).units.is_empty() {
            return Err(Error::input("none of the places to be shown is in a known file"));
        }
        self.fit(&material, PIECES.into_iter().map(choice), count_tokens)
    }
}

/// The length of pieces as [`Choice`] has it.
fn most_lines(most: usize) -> Option<usize> {
    (most < usize::MAX).then_some(most)
}

/// Runs of lines in order, those joined that meet, none beyond the file's `len` lines.
fn merged(runs: impl Iterator<Item = (usize, usize)>, len: usize) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = runs.map(|(a, b)| (a.max(1), b.min(len))).filter(|(a, b)| a <= b).collect();
    runs.sort_unstable();
    let mut out: Vec<(usize, usize)> = Vec::new();
    for (first, last) in runs {
        match out.last_mut() {
            Some(before) if first <= before.1 + 1 => before.1 = before.1.max(last),
            _ => out.push((first, last)),
        }
    }
    out
}

/// Places with `context` lines before and behind each.
pub(super) fn widened(places: impl IntoIterator<Item = Location>, context: usize) -> Vec<Location> {
    places.into_iter().map(|(path, first, last)| (path, first.saturating_sub(context).max(1), last.saturating_add(context))).collect()
}
