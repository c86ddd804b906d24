//! Code edit generation: the change itself, as SEARCH/REPLACE blocks (SoRFT, arXiv 2502.20127, section 3.1). The prompt shows localised
//! code as it stands, so that a SEARCH can be copied from it.

use super::answer::{Gold, Place};
use super::code_view::Style;
use super::localised::{Location, widened};
use super::view::{Asked, PlacePrompt, View, ViewOptions};
use crate::data::edit_blocks::agentless::{gold_blocks, search_places, write_blocks};
use crate::data::{Task, ground_truth};
use crate::{Error, Result};

/// The prompt's template, in Jinja; [`ViewOptions::template`] replaces it.
pub const TEMPLATE: &str = include_str!("templates/edit.jinja");

/// The subtask, ready to make prompts.
pub struct EditSubtask {
    view: View,
}

impl EditSubtask {
    /// Prepares the template.
    ///
    /// # Errors
    ///
    /// A template that is not Jinja, with the line.
    pub fn new(options: ViewOptions) -> Result<Self> {
        Ok(Self { view: View::new("edit", Style::Plain, TEMPLATE, options)? })
    }

    /// The training prompt of a task: the code that the gold edits search for, and other code beside it, in the pieces of
    /// [`super::line::LineSubtask::prompt`].
    ///
    /// # Errors
    ///
    /// A task whose change no blocks can say, or none of whose changed files it holds; a budget that the gold pieces do not fit into; a
    /// template that fails.
    pub fn prompt(&self, task: &Task, count_tokens: &dyn Fn(&str) -> usize) -> Result<PlacePrompt> {
        let gold = Gold::new(task, Place::Edit)?;
        let (mut blocks, mut places) = (Vec::new(), Vec::new());
        for (path, (old, new)) in ground_truth::contents(task)? {
            let of_file =
                gold_blocks(&path, &old, &new).ok_or_else(|| Error::input("SEARCH/REPLACE blocks cannot say this change").at(&path))?;
            let found = of_file.iter().flat_map(|block| search_places(block, &old));
            places.extend(found.map(|lines| (path.clone(), lines.start, lines.end - 1)));
            blocks.extend(of_file);
        }
        if places.is_empty() {
            return Err(Error::input("the patch only adds files: there is no code to be shown"));
        }
        let asked = self.view.localised_training(task, &places, count_tokens)?;
        Ok(PlacePrompt { asked, gold, answer: write_blocks(&blocks) })
    }

    /// The prompt for a task's issue and places that are already localised, (path, first line, last line), with `context` lines around
    /// each; those that the task's files do not have are left out. Code that does not fit is cut by how well it matches the issue.
    ///
    /// # Errors
    ///
    /// None of the places in the files; a budget that not even a part fits into; a template that fails.
    pub fn ask(&self, task: &Task, locations: &[Location], context: usize, count_tokens: &dyn Fn(&str) -> usize) -> Result<Asked> {
        self.view.localised(task, &widened(locations.iter().cloned(), context), count_tokens)
    }
}
