//! Fitting an issue and parts of files into a prompt: what the prompts of function, line and edit subtasks have in common.
//!
//! About a third of the tokens is the issue's (at least [`ViewOptions::min_issue_tokens`]); the rest is code: first what must be shown, then
//! others in the order of their queues, a file with fewer units before one with more. What is left over goes to the issue again.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use minijinja::{Environment, UndefinedBehavior, context};

use super::answer::{Gold, Universe};
use super::budget::{fill_issue, longest_beginning};
use super::code_view::{Source, Style, Unit};
use super::matches::{MatchOptions, Matches};
use crate::data::metrics::SetScore;
use crate::{Error, Result};

/// How many units in a row may be too long for the room that is left before no more are tried.
const MISSES: usize = 12;
/// Hardly any token stands for more bytes of code than this: what is far too long for the room needs no count.
const BYTES_A_TOKEN: usize = 16;

/// How prompts are made.
#[derive(Clone, Debug)]
pub struct ViewOptions {
    /// The most tokens that a prompt may have, as `count_tokens` counts them.
    pub max_tokens: usize,
    /// How many tokens of the issue are kept, whatever else there is.
    pub min_issue_tokens: usize,
    /// The key of which files and units stand beside the gold ones.
    pub seed: u64,
    /// A template in place of the subtask's own.
    pub template: Option<String>,
    /// The list of definitions of function prompts.
    pub matches: MatchOptions,
}

impl Default for ViewOptions {
    /// No limit, no list; 32 tokens of the issue are kept.
    fn default() -> Self {
        Self { max_tokens: usize::MAX, min_issue_tokens: 32, seed: 0, template: None, matches: MatchOptions::default() }
    }
}

/// What did not fit into a prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cut {
    /// How many bytes of the issue are shown, of how many.
    pub issue_bytes: (usize, usize),
    /// How many units (definitions of a skeleton, pieces of code) of the shown files or places were left out, of how many. Units that hold
    /// a gold target are never among them.
    pub units: (usize, usize),
    /// The most lines of a piece of code where definitions had to be cut; none where they are whole.
    pub piece_lines: Option<usize>,
    /// How many files the gold patch changes whose contents the task does not hold: their places are not asked for.
    pub unknown_files: usize,
}

/// A prompt, and what it shows.
pub struct Asked {
    /// The text, without a chat template.
    pub text: String,
    /// What an answer may name, and the files it is about.
    pub universe: Universe,
    /// How many tokens the text has.
    pub tokens: usize,
    /// What did not fit.
    pub cut: Cut,
    /// Which units are shown.
    pub(super) shown: BTreeSet<usize>,
}

/// A prompt about a task, with what its answers are judged by.
pub struct PlacePrompt {
    /// The prompt.
    pub asked: Asked,
    /// The gold set, all of it in the prompt.
    pub gold: Gold,
    /// The gold answer, as supervised training has it.
    pub answer: String,
}

impl PlacePrompt {
    /// Reads and scores an answer: the score, and why it earns nothing if it does not.
    pub fn score(&self, completion: &str) -> (SetScore, Option<String>) {
        self.gold.score(completion, &self.asked.universe)
    }
}

/// What a prompt is about.
pub(super) struct Material<'a> {
    /// The issue, cleaned.
    pub issue: String,
    /// The files, in the order in which they are shown.
    pub sources: Vec<Source<'a>>,
    /// All paths that are known, shown or not.
    pub paths: BTreeSet<String>,
}

/// The units that a view may be made of.
#[derive(Default)]
pub(super) struct Choice {
    /// All of them, by file and line.
    pub units: Vec<Unit>,
    /// Those that must be shown.
    pub must: Vec<usize>,
    /// The others in the order in which they are taken; each time from the queue of which fewest are shown.
    pub queues: Vec<Vec<usize>>,
    /// The most lines of a unit, where longer definitions are cut.
    pub most_lines: Option<usize>,
    /// The definitions that are listed behind a skeleton.
    pub matches: Rc<Matches>,
}

/// A template with the rules of fitting.
pub(super) struct View {
    name: &'static str,
    style: Style,
    pub options: ViewOptions,
    env: Environment<'static>,
}

/// A prompt under way: what is shown, and what it costs.
struct Fitting<'f> {
    view: &'f View,
    material: &'f Material<'f>,
    choice: &'f Choice,
    count: &'f dyn Fn(&str) -> usize,
    shown: BTreeSet<usize>,
    /// Units of each file shown.
    per_file: Vec<usize>,
    cost: usize,
}

impl View {
    pub fn new(name: &'static str, style: Style, template: &str, options: ViewOptions) -> Result<Self> {
        let mut env = Environment::new();
        env.set_undefined_behavior(UndefinedBehavior::Strict);
        let source = options.template.clone().unwrap_or_else(|| template.to_owned());
        let view = |env| Self { name, style, options, env };
        match env.add_template_owned(name, source) {
            Ok(()) => Ok(view(env)),
            Err(e) => Err(view(env).template_error(e)),
        }
    }

    /// The prompt made from the first choice that suits (the choices come from coarse to fine), else from the last.
    ///
    /// A choice with units that must be shown suits if they take at most half the code's room, so that others stand beside them; one
    /// without suits if all its units fit.
    pub fn fit(&self, material: &Material<'_>, choices: impl Iterator<Item = Choice>, count: &dyn Fn(&str) -> usize) -> Result<Asked> {
        let max = self.options.max_tokens;
        let base = count(&self.render(material, &Choice::default(), &BTreeSet::new(), "", true)?);
        let least = self.options.min_issue_tokens;
        let issue_tokens = |most: usize| count(longest_beginning(&material.issue, most, count));
        let (goal, least) = (issue_tokens(least.max(max / 3)), issue_tokens(least));
        let all_room = max.saturating_sub(base).saturating_sub(goal);
        let mut choices = choices.peekable();
        while let Some(choice) = choices.next() {
            let last = choices.peek().is_none();
            let room = all_room.saturating_sub(count(&choice.matches.longest()));
            let mut fitting = Fitting::new(self, material, &choice, count);
            for &unit in &choice.must {
                fitting.add(unit, usize::MAX);
            }
            let suits = if choice.must.is_empty() { fitting.all_fit(room) } else { fitting.cost <= room / 2 };
            if suits || last {
                let extra = fitting.fill(room);
                return self.finish(fitting, extra, (goal, least));
            }
        }
        Err(Error::input("there is no code to show"))
    }

    /// Counts the prompt as a whole, takes back what is too much, and gives the issue what is left.
    fn finish(&self, mut fitting: Fitting<'_>, mut extra: Vec<Vec<usize>>, (goal, least): (usize, usize)) -> Result<Asked> {
        let (material, choice, count, max) = (fitting.material, fitting.choice, fitting.count, self.options.max_tokens);
        let left = loop {
            let text = self.render(material, choice, &fitting.shown, "", true)?;
            let left = if max == usize::MAX { max } else { max.saturating_sub(count(&text)) };
            if left >= goal || extra.is_empty() {
                break left;
            }
            let last = extra.pop().unwrap_or_default();
            fitting.shown.retain(|unit| !last.contains(unit));
        };
        let nothing = fitting.shown.is_empty() && !choice.units.is_empty() && choice.must.is_empty();
        if left < least || nothing {
            let what = if nothing { "any of the code" } else { "the code that must be shown" };
            let message = format!("{max} tokens do not hold {what} and {least} tokens of the issue");
            return Err(Error::input(message).hint("allow a prompt more tokens: max_prompt_tokens"));
        }
        let render = |issue: &str, cut: bool| self.render(material, choice, &fitting.shown, issue, cut);
        let (text, issue_len) = fill_issue(&material.issue, max, left, &render, count)?;
        Ok(Asked {
            tokens: count(&text),
            text,
            universe: self.universe(material, &choice.units, &fitting.shown),
            cut: Cut {
                issue_bytes: (issue_len, material.issue.len()),
                units: (choice.units.len() - fitting.shown.len(), choice.units.len()),
                piece_lines: choice.most_lines,
                unknown_files: 0,
            },
            shown: fitting.shown,
        })
    }

    fn universe(&self, material: &Material<'_>, units: &[Unit], shown: &BTreeSet<usize>) -> Universe {
        let mut lines: BTreeMap<String, BTreeSet<usize>> = BTreeMap::new();
        if self.style == Style::Skeleton {
            lines.extend(material.sources.iter().map(|s| (s.path.to_owned(), BTreeSet::new())));
        }
        for unit in shown.iter().map(|&i| &units[i]) {
            lines.entry(material.sources[unit.file].path.to_owned()).or_default().extend(unit.first..=unit.last);
        }
        let files = material.sources.iter().filter(|s| lines.contains_key(s.path)).map(|s| (s.path.to_owned(), s.text.to_owned()));
        Universe::of_lines(files.collect(), material.paths.clone(), lines)
    }

    /// The text; files of which nothing is shown are left out, but for a skeleton, where a name is much.
    fn render(&self, material: &Material<'_>, choice: &Choice, shown: &BTreeSet<usize>, issue: &str, issue_cut: bool) -> Result<String> {
        let units = &choice.units;
        let mut files = Vec::new();
        for (i, source) in material.sources.iter().enumerate() {
            let of_file: Vec<(usize, &Unit)> = shown.iter().map(|&u| (u, &units[u])).filter(|(_, u)| u.file == i).collect();
            if !of_file.is_empty() || self.style == Style::Skeleton {
                files.push(context! { path => source.path, code => source.write(&of_file, self.style) });
            }
        }
        let (matches, mark) = (choice.matches.text(shown), choice.matches.marks_close());
        let values = context! { issue, issue_cut, files, matches, mark };
        self.env.get_template(self.name).and_then(|t| t.render(values)).map_err(|e| self.template_error(e))
    }

    fn template_error(&self, e: minijinja::Error) -> Error {
        let line = e.line().map_or(String::new(), |l| format!("line {l}: "));
        Error::input(format!("{line}{e}")).at(format_args!("the template of the {} subtask", self.name))
    }
}

impl<'f> Fitting<'f> {
    fn new(view: &'f View, material: &'f Material<'f>, choice: &'f Choice, count: &'f dyn Fn(&str) -> usize) -> Self {
        let per_file = vec![0; material.sources.len()];
        Self { view, material, choice, count, shown: BTreeSet::new(), per_file, cost: 0 }
    }

    /// Shows a unit and those around it, if they take at most `room` tokens more. Gives the units that were not shown before.
    fn add(&mut self, unit: usize, room: usize) -> Option<Vec<usize>> {
        let mut added = Vec::new();
        let mut next = Some(unit);
        while let Some(unit) = next.filter(|u| !self.shown.contains(u)) {
            added.push(unit);
            next = self.choice.units[unit].around;
        }
        let mut cost = 0usize;
        for &unit in &added {
            cost = cost.saturating_add(self.cost_of(unit, room.saturating_sub(cost))?);
        }
        if cost > room {
            return None;
        }
        self.cost = self.cost.saturating_add(cost);
        for &unit in &added {
            self.per_file[self.choice.units[unit].file] += 1;
        }
        self.shown.extend(&added);
        Some(added)
    }

    /// About how many tokens a unit takes, with what stands before it; none if that is more than `room`.
    fn cost_of(&self, unit: usize, room: usize) -> Option<usize> {
        const SEPARATOR: usize = 3;
        let of = &self.choice.units[unit];
        let source = &self.material.sources[of.file];
        let mut text = source.write(&[(unit, of)], self.view.style);
        if text.len() / BYTES_A_TOKEN > room {
            return None;
        }
        text.push('\n');
        if self.per_file[of.file] == 0 && self.view.style != Style::Skeleton {
            text.push_str(&format!("### {}\n\n", source.path));
        }
        Some((self.count)(&text) + SEPARATOR)
    }

    /// Whether all units of all queues fit together. Nothing is shown afterwards.
    fn all_fit(&mut self, room: usize) -> bool {
        let all = self.choice.queues.iter().flatten().all(|&unit| self.add(unit, room.saturating_sub(self.cost)).is_some());
        self.shown.clear();
        self.per_file.fill(0);
        self.cost = 0;
        all
    }

    /// Takes units from the queues, as many as there is room for; what was shown with each, in order.
    fn fill(&mut self, room: usize) -> Vec<Vec<usize>> {
        let mut queues: Vec<std::slice::Iter<'_, usize>> = self.choice.queues.iter().map(|q| q.iter()).collect();
        let (mut extra, mut misses) = (Vec::new(), 0);
        let mut taken = vec![0; queues.len()];
        for (queue, units) in self.choice.queues.iter().enumerate() {
            let file = units.first().map(|&u| self.choice.units[u].file);
            taken[queue] = file.map_or(0, |f| self.choice.must.iter().filter(|&&u| self.choice.units[u].file == f).count());
        }
        while misses < MISSES && !queues.is_empty() {
            let fewest = (0..queues.len()).filter(|&q| queues[q].len() > 0).min_by_key(|&q| taken[q]);
            let Some((queue, &unit)) = fewest.and_then(|q| queues[q].next().map(|u| (q, u))) else { break };
            if self.shown.contains(&unit) {
                continue;
            }
            match self.add(unit, room.saturating_sub(self.cost)) {
                Some(added) => {
                    taken[queue] += 1;
                    extra.push(added);
                }
                None => misses += 1,
            }
        }
        extra
    }
}
