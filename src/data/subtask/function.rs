//! Function localisation: which functions and classes must be changed to resolve an issue (SoRFT, arXiv 2502.20127, section 3.1). The
//! prompt shows the skeletons of files, the answer names definitions in them.

use std::collections::BTreeSet;

use super::answer::{Gold, Place};
use super::budget::clean_issue;
use super::code_view::{Source, Style};
use super::localised::{by_match, training_files};
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
    /// they do not fit, definitions are left out at random; the gold ones and the classes around them never are.
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
        let mut choice = Choice { units: Vec::new(), must: Vec::new(), queues: Vec::new(), most_lines: None };
        for (file, source) in material.sources.iter().enumerate() {
            let before = choice.units.len();
            choice.units.extend(source.heads(file, before));
            let is_gold = |i: usize| targets.contains(&(source.path.to_owned(), source.definitions[i - before].name.clone()));
            let (must, mut others): (Vec<usize>, Vec<usize>) = (before..choice.units.len()).partition(|&i| is_gold(i));
            Keyed::new(self.view.options.seed, &["function units", &task.instance_id, source.path]).shuffle(&mut others);
            choice.must.extend(must);
            choice.queues.push(others);
        }
        let mut asked = self.view.fit(&material, std::iter::once(choice), count_tokens)?;
        asked.cut.unknown_files = unknown_files(task)?.len();
        let answer = gold.answer(task)?.ok_or_else(|| Error::input("the gold set has no answer"))?;
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
        let mut units = Vec::new();
        for (file, source) in material.sources.iter().enumerate() {
            units.extend(source.heads(file, units.len()));
        }
        let queues = vec![by_match(&material.issue, &material.sources, &units)];
        self.view.fit(&material, std::iter::once(Choice { units, must: Vec::new(), queues, most_lines: None }), count_tokens)
    }
}
