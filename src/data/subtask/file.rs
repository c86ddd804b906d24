//! File localisation: which files must be changed to resolve an issue (SoRFT, arXiv 2502.20127, section 3.1; the first step of
//! Agentless, arXiv 2407.01489).

mod answer;
mod order;

use std::collections::BTreeSet;

use minijinja::{Environment, UndefinedBehavior, context};

use super::budget::{clean_issue, fill_issue, longest_beginning};
use super::evidence::{Evidence, Note};
use super::tree::CLOSE_MARK;
use crate::data::Task;
use crate::data::lexical::{self, Field, Ranking};
use crate::data::metrics::SetScore;
use crate::data::random::Keyed;
use crate::{Error, Result};

pub use answer::{FileAnswer, gold_answer, parse_answer, score, universe};
pub use order::{Order, Universe};

/// The prompt's template, in Jinja; [`FileOptions::template`] replaces it.
pub const TEMPLATE: &str = include_str!("templates/file.jinja");

/// How prompts are made.
#[derive(Clone, Debug)]
pub struct FileOptions {
    /// Which paths are listed.
    pub universe: Universe,
    /// In which order.
    pub order: Order,
    /// What is said of each path.
    pub evidence: Evidence,
    /// The most tokens that a prompt may have, as `count_tokens` counts them.
    pub max_tokens: usize,
    /// How many tokens of the issue are kept before anything else is cut.
    pub min_issue_tokens: usize,
    /// How many files an answer is to name; 0 leaves it to the model. The prompt asks for so many, and a gold answer that names fewer
    /// goes on with the best lexical matches, as a retriever's list would.
    pub answers: usize,
    /// Above 0, `answers` is the most: gold answers name, beside the gold files, the candidates that score at least this part of the
    /// best one, in the prompt's order. One file is named where the evidence is clear, more where it is not. In a ranked order a line
    /// `--` stands behind these candidates, and at the end of an answer.
    pub close: f64,
    /// The key of shuffled orders, and of which paths go where a list does not fit.
    pub seed: u64,
    /// A template in place of [`TEMPLATE`].
    pub template: Option<String>,
}

impl Default for FileOptions {
    /// Paths alone, in alphabetical order, without a limit; 32 tokens of the issue are kept first.
    fn default() -> Self {
        Self {
            universe: Universe::default(),
            order: Order::default(),
            evidence: Evidence::default(),
            max_tokens: usize::MAX,
            min_issue_tokens: 32,
            answers: 0,
            close: 0.0,
            seed: 0,
            template: None,
        }
    }
}

/// The subtask, ready to make prompts.
pub struct FileSubtask {
    options: FileOptions,
    env: Environment<'static>,
}

/// What did not fit into a prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cut {
    /// True if only the beginning of the issue is shown.
    pub issue: bool,
    /// How many bytes of the issue are shown, of how many.
    pub issue_bytes: (usize, usize),
    /// How many items and marks of evidence were left out, of how many.
    pub evidence: (usize, usize),
    /// How many paths were left out of the list, of how many. Gold paths are never among them.
    pub paths: (usize, usize),
    /// How many gold paths were not among the task's paths in the first place, so that no answer can name them.
    pub gold_missing: usize,
}

/// A prompt with what its answers are judged by.
#[derive(Clone, Debug)]
pub struct FilePrompt {
    /// The text, without a chat template.
    pub text: String,
    /// The paths listed, in their order: what an answer may name.
    pub candidates: Vec<String>,
    /// The gold set.
    pub gold: BTreeSet<String>,
    /// The gold answer, as supervised training has it: the listed gold paths, the most changed first, filled up to
    /// [`FileOptions::answers`].
    pub answer: String,
    /// How many tokens the text has.
    pub tokens: usize,
    /// What did not fit.
    pub cut: Cut,
}

/// What of everything goes into one rendering.
struct Shown<'a> {
    issue: &'a str,
    cut: bool,
    paths: &'a [usize],
    items: usize,
    marks: bool,
}

/// A task as the renderings need it.
struct Material<'a> {
    repo: &'a str,
    issue: String,
    candidates: Vec<String>,
    notes: Vec<Note>,
    /// The lexical score of each candidate, where gold answers go on by it.
    scores: Vec<f64>,
}

impl FileSubtask {
    /// Prepares the template.
    ///
    /// # Errors
    ///
    /// A template that is not Jinja, with the line.
    pub fn new(options: FileOptions) -> Result<Self> {
        let mut env = Environment::new();
        env.set_undefined_behavior(UndefinedBehavior::Strict);
        let source = options.template.clone().unwrap_or_else(|| TEMPLATE.to_owned());
        env.add_template_owned("file", source).map_err(template_error)?;
        Ok(Self { options, env })
    }

    /// The options.
    pub fn options(&self) -> &FileOptions {
        &self.options
    }

    /// The prompt of a task. Where it has too many tokens, first the issue is cut (down to `min_issue_tokens`), then the evidence
    /// (every path keeps equally many items), then paths are left out, by a keyed random choice among those that are not gold; what
    /// is left over then goes to the issue again.
    ///
    /// What a prompt shows depends on the gold set in one case only: where paths are left out. [`Cut`] counts them.
    ///
    /// # Errors
    ///
    /// A task without a gold file among its paths; a budget that not even the gold paths fit into; a template that fails.
    pub fn prompt(&self, task: &Task, count_tokens: &dyn Fn(&str) -> usize) -> Result<FilePrompt> {
        let gold = task.gold()?;
        let candidates = self.candidates(task);
        let missing = gold.iter().filter(|g| !candidates.contains(g)).count();
        if missing == gold.len() {
            let message = "no file that the patch changes is among the task's paths";
            let hint = "a patch that only adds files has nothing to be found; `files` or `all_paths` must hold what it changes";
            return Err(Error::input(message).at(&task.instance_id).hint(hint));
        }
        let issue = clean_issue(&task.problem_statement);
        self.fit(task, &self.material(task, issue, candidates), gold, missing, count_tokens)
    }

    /// The prompt of an issue whose fix is not known. As [`Self::prompt`], but where paths have to be left out, those stay that match the
    /// issue best lexically. The gold set and the gold answer are empty.
    ///
    /// # Errors
    ///
    /// No candidates; a budget that not even one path fits into; a template that fails.
    pub fn ask(&self, task: &Task, count_tokens: &dyn Fn(&str) -> usize) -> Result<FilePrompt> {
        let task = task.without_answer();
        let candidates = self.candidates(&task);
        if candidates.is_empty() {
            return Err(Error::input("there are no files to choose from").at(&task.instance_id).hint("give `files` or `all_paths`"));
        }
        let issue = clean_issue(&task.problem_statement);
        self.fit(&task, &self.material(&task, issue, candidates), BTreeSet::new(), 0, count_tokens)
    }

    fn material<'a>(&self, task: &'a Task, issue: String, candidates: Vec<String>) -> Material<'a> {
        let notes = self.options.evidence.notes(&issue, &candidates, &task.files, self.ranking());
        let scores = match self.options.answers {
            0 => Vec::new(),
            _ => lexical::scores(&task.problem_statement, &candidates, &task.files, self.ranking()),
        };
        Material { repo: task.repo_name(), issue, candidates, notes, scores }
    }

    /// The paths that the prompt lists, if all fit, in their order.
    fn candidates(&self, task: &Task) -> Vec<String> {
        let mut candidates = match self.options.universe {
            Universe::Files => task.file_paths(),
            Universe::Tree => task.known_paths(),
        };
        match self.options.order {
            Order::Alphabetical => candidates,
            Order::Shuffled => {
                Keyed::new(self.options.seed, &["order", &task.instance_id]).shuffle(&mut candidates);
                candidates
            }
            Order::Lexical | Order::LexicalPaths | Order::Fused => lexical::rank(task, &candidates, self.ranking()),
        }
    }

    fn fit(
        &self,
        task: &Task,
        material: &Material<'_>,
        gold: BTreeSet<String>,
        gold_missing: usize,
        count_tokens: &dyn Fn(&str) -> usize,
    ) -> Result<FilePrompt> {
        let max = self.options.max_tokens;
        let all: Vec<usize> = (0..material.candidates.len()).collect();
        let room = |paths: &[usize], items, marks| -> Result<Option<usize>> {
            let text = self.render(material, &Shown { issue: "", cut: true, paths, items, marks })?;
            Ok(max.checked_sub(count_tokens(&text)))
        };
        let needed = self.options.min_issue_tokens.min(count_tokens(longest_beginning(
            &material.issue,
            self.options.min_issue_tokens,
            count_tokens,
        )));
        let most_items = material.notes.iter().map(|n| n.items.len()).max().unwrap_or(0);
        let mut chosen = (all.clone(), most_items, true);
        let mut left = room(&all, most_items, true)?;
        for (items, marks) in levels(most_items) {
            if left.is_some_and(|left| left >= needed) {
                break;
            }
            chosen = (all.clone(), items, marks);
            left = room(&all, items, marks)?;
        }
        if left.is_none_or(|left| left < needed) {
            let order = self.order_of_leaving(task, &material.candidates, &gold);
            let listed = (gold.len() - gold_missing).max(1);
            let Some((paths, room)) = most_paths(&order, listed, needed, &|paths| room(paths, 0, false))? else {
                let message = format!("{max} tokens do not hold a prompt of its {listed} gold paths and {needed} tokens of the issue");
                return Err(Error::input(message).at(&task.instance_id).hint("allow a prompt more tokens: max_prompt_tokens"));
            };
            chosen = (paths, 0, false);
            left = Some(room);
        }
        let (paths, items, marks) = chosen;
        let render = |issue: &str, cut: bool| self.render(material, &Shown { issue, cut, paths: &paths, items, marks });
        let (text, issue_len) = fill_issue(&material.issue, max, left.unwrap_or(0), &render, count_tokens)?;
        let listed: Vec<String> = paths.iter().map(|&i| material.candidates[i].clone()).collect();
        let count = |n: &Note, items: usize, marks: bool| n.items.len().min(items) + usize::from(marks && !n.mark.is_empty());
        let evidence = material.notes.iter().map(|n| count(n, usize::MAX, true)).sum::<usize>();
        let kept = paths.iter().map(|&i| count(&material.notes[i], items, marks)).sum::<usize>();
        let cut = Cut {
            issue: issue_len < material.issue.len(),
            issue_bytes: (issue_len, material.issue.len()),
            evidence: (evidence - kept, evidence),
            paths: (all.len() - paths.len(), all.len()),
            gold_missing,
        };
        let answer = self.filled_answer(task, material, &paths)?;
        Ok(FilePrompt { tokens: count_tokens(&text), text, candidates: listed, gold, answer, cut })
    }

    /// The candidates in the order in which they keep their place: the gold ones, then the others in a keyed random order. Never by
    /// rank: a gold path that ranks low would then always stand last, and its place would tell.
    fn order_of_leaving(&self, task: &Task, candidates: &[String], gold: &BTreeSet<String>) -> Vec<usize> {
        let mut order: Vec<usize> = (0..candidates.len()).collect();
        if gold.is_empty() {
            let ranked = lexical::rank(task, candidates, Ranking::Fused);
            order.sort_by_cached_key(|&i| ranked.iter().position(|p| *p == candidates[i]));
            return order;
        }
        // Sorted first, so that the choice does not depend on the order of the list.
        order.sort_by(|&a, &b| candidates[a].cmp(&candidates[b]));
        Keyed::new(self.options.seed, &["leave out", &task.instance_id]).shuffle(&mut order);
        order.sort_by_key(|&i| !gold.contains(&candidates[i]));
        order
    }

    /// The ranking that goes with the order: of lexical evidence, and of what a gold answer goes on with.
    fn ranking(&self) -> Ranking {
        match self.options.order {
            Order::LexicalPaths => Ranking::Bm25(Field::Path),
            Order::Fused => Ranking::Fused,
            Order::Lexical | Order::Alphabetical | Order::Shuffled => Ranking::Bm25(Field::Content),
        }
    }

    /// How many of these candidates score close enough to the best of them to be named beside it.
    fn close(&self, material: &Material<'_>, paths: &[usize]) -> usize {
        let best = paths.iter().map(|&i| material.scores[i]).fold(0.0, f64::max);
        let close = paths.iter().filter(|&&i| material.scores[i] >= self.options.close * best).count();
        close.min(self.options.answers).max(1)
    }

    /// Whether a line stands behind the close candidates of a prompt, and so behind those of an answer: to go on or to end is then to copy
    /// the line that comes next.
    fn marks_close(&self) -> bool {
        let ranked = matches!(self.options.order, Order::Lexical | Order::LexicalPaths | Order::Fused);
        ranked && self.options.answers > 0 && self.options.close > 0.0
    }

    /// The gold answer, filled up with the best lexical matches: behind it up to `answers`; or, with `close`, with the close ones
    /// and all in the prompt's order, so that what is asked of a model can be told from the prompt wherever the gold files are close.
    fn filled_answer(&self, task: &Task, material: &Material<'_>, paths: &[usize]) -> Result<String> {
        let path = |i: usize| material.candidates[i].as_str();
        let listed: Vec<String> = paths.iter().map(|&i| path(i).to_owned()).collect();
        let gold = gold_answer(task, &listed)?;
        if self.options.answers == 0 {
            return Ok(gold);
        }
        let mut named: Vec<&str> = gold.lines().collect();
        let mut ranked = paths.to_vec();
        ranked.sort_by(|&a, &b| material.scores[b].total_cmp(&material.scores[a]));
        if self.options.close > 0.0 {
            ranked.truncate(self.close(material, paths));
        }
        let others: Vec<&str> = ranked.into_iter().map(path).filter(|path| !named.contains(path)).collect();
        named.extend(others.into_iter().take(self.options.answers.saturating_sub(gold.lines().count())));
        if self.options.close > 0.0 {
            named = paths.iter().map(|&i| path(i)).filter(|path| named.contains(path)).collect();
        }
        named.extend(self.marks_close().then_some(CLOSE_MARK));
        Ok(named.join("\n"))
    }

    fn render(&self, material: &Material<'_>, shown: &Shown<'_>) -> Result<String> {
        let (answers, at_most) = (self.options.answers, self.options.answers > 0 && self.options.close > 0.0);
        let mark = self.marks_close();
        let close = if mark { self.close(material, shown.paths) } else { 0 };
        let candidates: Vec<minijinja::Value> = (1..)
            .zip(shown.paths)
            .map(|(place, &i)| {
                let note = material.notes.get(i).map(|n| n.show(shown.items, shown.marks)).unwrap_or_default();
                context! { path => material.candidates[i].as_str(), note, last_close => place == close }
            })
            .collect();
        let values = context! {
            repo => material.repo, issue => shown.issue, issue_cut => shown.cut, candidates, answers, answers_at_most => at_most, mark
        };
        self.env.get_template("file").and_then(|t| t.render(values)).map_err(template_error)
    }
}

impl FilePrompt {
    /// Reads and scores an answer to this prompt.
    pub fn score(&self, completion: &str) -> (SetScore, Option<String>) {
        score(completion, &self.candidates.iter().cloned().collect(), &self.gold)
    }
}

/// The most of the first paths of `order`, and at least `least`, that leave room for `needed` tokens, with the room that they leave.
/// None where not even the least do.
fn most_paths(
    order: &[usize],
    least: usize,
    needed: usize,
    room: &dyn Fn(&[usize]) -> Result<Option<usize>>,
) -> Result<Option<(Vec<usize>, usize)>> {
    let (mut best, mut low, mut too_many) = (None, least, order.len());
    while low < too_many {
        let middle = (low + too_many) / 2;
        let mut paths = order[..middle].to_vec();
        paths.sort_unstable();
        match room(&paths)? {
            Some(room) if room >= needed => (best, low) = (Some((paths, room)), middle + 1),
            _ => too_many = middle,
        }
    }
    Ok(best)
}

/// How much evidence to try next when the prompt does not fit: fewer items for every path, then no marks.
fn levels(most_items: usize) -> impl Iterator<Item = (usize, bool)> {
    [16, 12, 8, 6, 4, 3, 2, 1, 0].into_iter().filter(move |&n| n < most_items).map(|n| (n, true)).chain([(0, false)])
}

fn template_error(e: minijinja::Error) -> Error {
    let line = e.line().map_or(String::new(), |l| format!("line {l}: "));
    Error::input(format!("{line}{e}")).at("the template of the file subtask")
}

#[cfg(test)]
mod tests;
