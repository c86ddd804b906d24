//! Function localisation: which functions and classes must be changed to resolve an issue (SoRFT, arXiv 2502.20127, section 3.1). The
//! prompt shows the skeletons of files, the answer names definitions in them.

use std::collections::BTreeSet;
use std::rc::Rc;

use super::answer::{Gold, Place};
use super::budget::clean_issue;
use super::code_view::{Source, Style, Unit};
use super::localised::{by_match, training_files};
use super::matches::Matches;
use super::view::{Asked, Choice, Material, PlacePrompt, View, ViewOptions};
use crate::data::{Task, ground_truth::unknown_files, random::Keyed};
use crate::{Error, Result};

/// The prompt's template, in Jinja; [`ViewOptions::template`] replaces it.
pub const TEMPLATE: &str = include_str!("templates/function.jinja");

/// The subtask, ready to make prompts.
pub struct FunctionSubtask {
    view: View,
}

impl FunctionSubtask {
    /// Prepares the template.
    ///
    /// # Errors
    ///
    /// A template that is not Jinja, with the line.
    pub fn new(options: ViewOptions) -> Result<Self> {
        Ok(Self { view: View::new("function", Style::Skeleton, TEMPLATE, options)? })
    }

    /// The training prompt of a task: the skeletons of the changed files and of others beside them, drawn by a keyed random choice. Where
    /// they do not fit, definitions are left out at random, those last that would be listed ([`ViewOptions::matches`]); the gold ones and the
    /// classes around them never are.
    ///
    /// # Errors
    ///
    /// A task with nothing to be found, or none of whose changed files it holds; a budget that the gold definitions do not fit into; a
    /// template that fails.
    pub fn prompt(&self, task: &Task, count_tokens: &dyn Fn(&str) -> usize) -> Result<PlacePrompt> {
        let gold = Gold::new(task, Place::Function)?;
        let Gold::Functions(targets) = &gold else { return Err(Error::input("not a set of functions")) };
        let paths: BTreeSet<&String> = targets.iter().map(|(path, _)| path).collect();
        let material = Material {
            issue: clean_issue(&task.problem_statement),
            sources: training_files(task, &paths, self.view.options.seed),
            paths: task.base_paths(),
        };
        let (units, matches) = self.units(task, &material);
        let mut choice = Choice { units, matches: matches.clone(), ..Choice::default() };
        let mut before = 0;
        for source in &material.sources {
            let end = before + source.definitions.len();
            let is_gold = |i: usize| targets.contains(&(source.path.to_owned(), source.definitions[i - before].name.clone()));
            let (must, mut others): (Vec<usize>, Vec<usize>) = (before..end).partition(|&i| is_gold(i));
            Keyed::new(self.view.options.seed, &["function units", &task.instance_id, source.path]).shuffle(&mut others);
            matches.first(&mut others);
            choice.must.extend(must);
            choice.queues.push(others);
            before = end;
        }
        let mut asked = self.view.fit(&material, std::iter::once(choice), count_tokens)?;
        asked.cut.unknown_files = unknown_files(task)?.len();
        let answer = match matches.answer(targets, &asked.shown) {
            Some(answer) => answer,
            None => gold.answer(task)?.ok_or_else(|| Error::input("the gold set has no answer"))?,
        };
        Ok(PlacePrompt { asked, gold, answer })
    }

    /// The prompt for a task's issue and files that are already localised: the skeletons of `paths`, in this order; those that the task's
    /// files do not have are left out. Where they do not fit, the definitions stay that share the most words with the issue.
    ///
    /// # Errors
    ///
    /// None of the paths in the files; a budget that not even a part fits into; a template that fails.
    pub fn ask(&self, task: &Task, paths: &[String], count_tokens: &dyn Fn(&str) -> usize) -> Result<Asked> {
        let mut seen = BTreeSet::new();
        let known = paths.iter().filter(|p| seen.insert(*p)).filter_map(|p| task.files.get_key_value(p));
        let sources: Vec<Source<'_>> = known.map(|(path, text)| Source::new(path, text)).collect();
        if sources.is_empty() {
            return Err(Error::input("none of the files to be shown is known"));
        }
        let material = Material { issue: clean_issue(&task.problem_statement), sources, paths: task.base_paths() };
        let (units, matches) = self.units(task, &material);
        let mut queue = by_match(&material.issue, &material.sources, &units);
        matches.first(&mut queue);
        self.view.fit(&material, std::iter::once(Choice { units, queues: vec![queue], matches, ..Choice::default() }), count_tokens)
    }

    /// The heads of all definitions, a file's after those of the file before it, and the list of the best of them.
    fn units(&self, task: &Task, material: &Material<'_>) -> (Vec<Unit>, Rc<Matches>) {
        let mut units = Vec::new();
        for (file, source) in material.sources.iter().enumerate() {
            units.extend(source.heads(file, units.len()));
        }
        let matches = Matches::new(self.view.options.matches, task, &material.issue, &material.sources, &units);
        (units, Rc::new(matches))
    }
}
