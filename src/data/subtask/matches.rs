//! The list of definitions that match an issue best, which function prompts may carry: what a search would answer, in the form in which the
//! model is to answer, so that choosing from it is copying.

use std::collections::BTreeSet;

use super::answer::{answer_line, listing};
use super::code_view::{Source, Unit};
use super::tree::CLOSE_MARK;
use crate::data::Task;
use crate::data::ground_truth::Functions;
use crate::data::lexical::Ranking;
use crate::data::lexical::definitions::{Named, ranked};

/// What is listed, and how gold answers go on with it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct MatchOptions {
    /// How many definitions are listed; 0: no list.
    pub listed: usize,
    /// With `close` above 0: gold answers that name fewer go on with close ones, up to so many.
    pub answers: usize,
    /// Above 0: a line `--` stands behind the first ones, those that score at least this part of the best (at most `answers`), and at the end
    /// of gold answers, which are in the list's order.
    pub close: f64,
}

/// A definition that may be listed.
#[derive(Debug)]
struct Match {
    named: Named,
    /// Its line of an answer.
    line: String,
    /// The unit of the skeleton that shows it; none for the code outside of all definitions, which needs none.
    unit: Option<usize>,
    score: f64,
}

/// The definitions of a prompt's files, the best first.
#[derive(Debug, Default)]
pub(super) struct Matches {
    options: MatchOptions,
    all: Vec<Match>,
}

impl Matches {
    /// Ranks the definitions of `sources`, whose heads are `units`, among all of the task's ([`Ranking::Fused`]).
    pub fn new(options: MatchOptions, task: &Task, issue: &str, sources: &[Source<'_>], units: &[Unit]) -> Self {
        if options.listed == 0 {
            return Self::default();
        }
        let mut all = Vec::new();
        for (named, score) in ranked(issue, &task.files, Ranking::Fused) {
            let Some(file) = sources.iter().position(|s| s.path == named.0) else { continue };
            let at = sources[file].definitions.iter().position(|d| d.name == named.1);
            let unit = at.and_then(|at| (0..units.len()).filter(|&u| units[u].file == file).nth(at));
            let line = answer_line(&named.1, at.map(|at| sources[file].definitions[at].kind));
            all.push(Match { named, line, unit, score });
        }
        Self { options, all }
    }

    /// Orders units so that those come first that are listed if they are shown, the best first; the others keep their order.
    pub fn first(&self, units: &mut [usize]) {
        let place = |unit: &usize| self.all.iter().take(self.options.listed).position(|m| m.unit == Some(*unit)).unwrap_or(usize::MAX);
        units.sort_by_key(place);
    }

    /// What is listed where these units are shown: the best ones that an answer may name, and how many of them are close.
    fn listed(&self, shown: &BTreeSet<usize>) -> (Vec<&Match>, usize) {
        let may = |m: &&Match| m.unit.is_none_or(|unit| shown.contains(&unit));
        let listed: Vec<&Match> = self.all.iter().filter(may).take(self.options.listed).collect();
        let best = listed.first().map_or(0.0, |m| m.score);
        let close = listed.iter().filter(|m| m.score >= self.options.close * best).count();
        let close = if self.marks_close() { close.min(self.options.answers).max(1) } else { 0 };
        (listed, close)
    }

    /// Whether answers end with a line `--`.
    pub fn marks_close(&self) -> bool {
        self.options.listed > 0 && self.options.answers > 0 && self.options.close > 0.0
    }

    /// The list as the prompt has it; empty where there is none.
    pub fn text(&self, shown: &BTreeSet<usize>) -> String {
        let (listed, close) = self.listed(shown);
        let (mut out, mut path) = (Vec::new(), "");
        for (i, m) in listed.iter().enumerate() {
            if m.named.0 != path {
                path = &m.named.0;
                out.push(path);
            }
            out.push(&m.line);
            if i + 1 == close {
                out.push(CLOSE_MARK);
            }
        }
        out.join("\n")
    }

    /// The longest text that a list may have.
    pub fn longest(&self) -> String {
        self.text(&self.all.iter().filter_map(|m| m.unit).collect())
    }

    /// The gold answer where ends are marked: the gold definitions and the close ones, in the list's order, then gold ones that are not
    /// listed; a line `--` ends it. None: ends are not marked.
    pub fn answer(&self, gold: &Functions, shown: &BTreeSet<usize>) -> Option<String> {
        if !self.marks_close() {
            return None;
        }
        let (listed, close) = self.listed(shown);
        let others = listed[..close].iter().filter(|m| !gold.contains(&m.named)).take(self.options.answers.saturating_sub(gold.len()));
        let wanted: BTreeSet<&Named> = gold.iter().chain(others.map(|m| &m.named)).collect();
        let in_list = listed.iter().filter(|m| wanted.contains(&m.named));
        let beyond = self.all.iter().filter(|m| gold.contains(&m.named) && !listed.iter().any(|l| l.named == m.named));
        let lines = in_list.copied().chain(beyond).map(|m| (m.named.0.as_str(), m.line.clone()));
        Some(listing(lines, Some(CLOSE_MARK)))
    }
}
