//! Line localisation: which lines must be changed to resolve an issue (SoRFT, arXiv 2502.20127, section 3.1). The prompt shows numbered
//! code, the answer names lines of it.

use std::collections::BTreeMap;

use super::answer::{Gold, Place};
use super::code_view::{Source, Style};
use super::localised::{Location, widened};
use super::view::{Asked, PlacePrompt, View, ViewOptions};
use crate::data::Task;
use crate::data::symbols::MODULE;
use crate::{Error, Result};

/// The prompt's template, in Jinja; [`ViewOptions::template`] replaces it.
pub const TEMPLATE: &str = include_str!("templates/line.jinja");

/// The subtask, ready to make prompts.
pub struct LineSubtask {
    view: View,
}

impl LineSubtask {
    /// Prepares the template.
    ///
    /// # Errors
    ///
    /// A template that is not Jinja, with the line.
    pub fn new(options: ViewOptions) -> Result<Self> {
        Ok(Self { view: View::new("line", Style::Numbered, TEMPLATE, options)? })
    }

    /// The training prompt of a task: numbered code around the changed lines, and other code beside it. The code is cut into outermost
    /// definitions and what lies between them, further where that is too long; which pieces stand beside the gold ones is a keyed random
    /// choice.
    ///
    /// # Errors
    ///
    /// A task with nothing to be found, or none of whose changed files it holds; a budget that the gold pieces do not fit into; a template
    /// that fails.
    pub fn prompt(&self, task: &Task, count_tokens: &dyn Fn(&str) -> usize) -> Result<PlacePrompt> {
        let gold = Gold::new(task, Place::Line)?;
        let Gold::Lines(lines) = &gold else { return Err(Error::input("not a set of lines")) };
        let places: Vec<Location> = lines.iter().map(|(path, n)| (path.clone(), *n, *n)).collect();
        let asked = self.view.localised_training(task, &places, count_tokens)?;
        let answer = gold.answer(task)?.ok_or_else(|| Error::input("the gold set has no answer"))?;
        Ok(PlacePrompt { asked, gold, answer })
    }

    /// The prompt for a task's issue and definitions that are already localised: the numbered code of `elements`, (path, qualified name or
    /// [`MODULE`]), with `context` lines around each; those that the task's files do not have are left out. Code that does not fit is cut
    /// by how well it matches the issue.
    ///
    /// # Errors
    ///
    /// None of the elements in the files; a budget that not even a part fits into; a template that fails.
    pub fn ask(&self, task: &Task, elements: &[(String, String)], context: usize, count_tokens: &dyn Fn(&str) -> usize) -> Result<Asked> {
        self.view.localised(task, &widened(places(&task.files, elements), context), count_tokens)
    }
}

/// Where elements of function localisation, (path, qualified name or [`MODULE`]), stand: every definition of the name, or the lines that
/// are in no definition. Elements that `files` does not have are left out.
pub fn places(files: &BTreeMap<String, String>, elements: &[(String, String)]) -> Vec<Location> {
    let mut out = Vec::new();
    for (path, name) in elements {
        let Some(text) = files.get(path) else { continue };
        let source = Source::new(path, text);
        if name == MODULE {
            let outer: Vec<_> = source.definitions.iter().filter(|d| d.depth == 0).collect();
            let outside = (1..=source.line_count()).filter(|n| !outer.iter().any(|d| (d.first..=d.last).contains(n)));
            out.extend(outside.map(|n| (path.clone(), n, n)));
        } else {
            out.extend(source.definitions.iter().filter(|d| d.name == *name).map(|d| (path.clone(), d.first, d.last)));
        }
    }
    out
}
