//! How prompts are made: the settings `prompt.*`.

use super::{Config, Reader, SUBTASKS};
use crate::data::subtask::evidence::{Evidence, Lexical};
use crate::data::subtask::file::{Order, Universe};
use crate::data::subtask::prompt_recipe::PromptRecipe;
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// How prompts are made.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)] // documented, one by one, in `keys::KEYS`
pub struct PromptSettings {
    pub chat: bool,
    pub universe: Universe,
    pub order: Order,
    pub evidence: Evidence,
    pub min_issue_tokens: usize,
    /// How many files an answer is to name; 0 leaves it to the model.
    pub answers: usize,
    /// Above 0, `answers` is the most: gold answers go on with candidates that score at least this part of the best one.
    pub close: f64,
    /// How many definitions function prompts list; 0: none.
    pub definitions: usize,
    /// By subtask; those without have the built-in one.
    pub templates: BTreeMap<&'static str, PathBuf>,
}

impl PromptSettings {
    /// The text of a subtask's template, if it is not the built-in one.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn template(&self, subtask: &str) -> Result<Option<String>> {
        self.templates.get(subtask).map(|path| std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))).transpose()
    }

    pub(super) fn read(r: &Reader<'_>) -> Self {
        Self {
            chat: r.bool("prompt.chat"),
            universe: if r.text("prompt.universe") == "tree" { Universe::Tree } else { Universe::Files },
            order: r.text("prompt.order").parse().expect("one of the choices"),
            evidence: Evidence {
                names: r.bool("prompt.names"),
                lexical: match r.text("prompt.lexical").as_str() {
                    "score" => Lexical::Score,
                    "rank" => Lexical::Rank,
                    "words" => Lexical::Words,
                    _ => Lexical::None,
                },
            },
            min_issue_tokens: r.size("prompt.min_issue_tokens"),
            answers: r.size("prompt.answers"),
            close: r.number("prompt.close"),
            definitions: r.size("prompt.definitions"),
            templates: SUBTASKS
                .iter()
                .filter_map(|name| Some((*name, Some(r.text(&format!("prompt.templates.{name}"))).filter(|path| !path.is_empty())?.into())))
                .collect(),
        }
    }
}

impl Config {
    /// How the run's prompts are made, for whoever asks its model later. Prompts are as long as evaluations' are.
    ///
    /// # Errors
    /// A template that cannot be read.
    pub fn recipe(&self) -> Result<PromptRecipe> {
        let PromptSettings { chat, universe, order, evidence, min_issue_tokens, answers, close, definitions, .. } = self.prompt;
        let template = |name: &&'static str| Ok(self.prompt.template(name)?.map(|text| ((*name).to_owned(), text)));
        Ok(PromptRecipe {
            subtasks: self.subtasks.iter().map(|name| (*name).to_owned()).collect(),
            chat,
            universe,
            order,
            evidence,
            answers,
            close,
            definitions,
            min_issue_tokens,
            max_prompt_tokens: self.eval_max_prompt_tokens,
            templates: self.subtasks.iter().filter_map(|name| template(name).transpose()).collect::<Result<_>>()?,
        })
    }
}
