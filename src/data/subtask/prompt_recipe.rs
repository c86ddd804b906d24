//! How the prompts of a training run were made, kept beside the weights that it learned: a model knows the prompts that it was trained on and
//! little else, so whoever asks it later is to ask the same way.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::evidence::Evidence;
use super::file::{Order, Universe};
use crate::{Error, Result};

/// The file's name in the folder of a model or of an adapter.
pub const FILE: &str = "prompts.json";

/// The settings that prompts were made with, named as the options of `eval` and, but for `evidence`, as the configuration's `prompt.*`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PromptRecipe {
    /// The subtasks that were trained on.
    pub subtasks: Vec<String>,
    /// Whether prompts went through the model's chat template, where it has one.
    pub chat: bool,
    /// Which paths file prompts listed.
    pub universe: Universe,
    /// In which order.
    pub order: Order,
    /// What was said of each path.
    pub evidence: Evidence,
    /// How many files an answer was to name; 0 left it to the model.
    pub answers: usize,
    /// Above 0, `answers` was the most.
    pub close: f64,
    /// How many definitions function prompts listed.
    #[serde(default)]
    pub definitions: usize,
    /// Tokens of the issue that were kept before anything else was cut.
    pub min_issue_tokens: usize,
    /// The longest prompt, chat template included.
    pub max_prompt_tokens: usize,
    /// The text of templates in place of the built-in ones, by subtask.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub templates: BTreeMap<String, String>,
}

impl PromptRecipe {
    /// The recipe of a folder; none where it has none, or is no folder.
    ///
    /// # Errors
    ///
    /// A file that cannot be read, or says what this program does not know.
    pub fn read(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(FILE);
        let text = match std::fs::read(&path) {
            Err(_) if !path.exists() => return Ok(None),
            text => text.map_err(|e| Error::io("read", &path, e))?,
        };
        let hint = "delete it to give all options of prompts by hand";
        serde_json::from_slice(&text)
            .map(Some)
            .map_err(|e| Error::input(format!("not how prompts are made: {e}")).at_file(&path).hint(hint))
    }

    /// What of the prompts themselves is another in `other`, in words (`order: "fused", here "alphabetical"`): how long they are, and which
    /// subtasks they ask, is left aside.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let fields = |recipe: &Self| serde_json::to_value(recipe).ok().and_then(|v| v.as_object().cloned()).unwrap_or_default();
        let (mine, theirs) = (fields(self), fields(other));
        let asked = |name: &&String| !["subtasks", "min_issue_tokens", "max_prompt_tokens", "templates"].contains(&name.as_str());
        let mut out: Vec<String> = mine
            .iter()
            .filter(|(name, _)| asked(name))
            .filter_map(|(name, value)| theirs.get(name).filter(|v| *v != value).map(|v| format!("{name}: {value}, here {v}")))
            .collect();
        if self.templates.iter().any(|(name, text)| other.subtasks.contains(name) && other.templates.get(name) != Some(text)) {
            out.push("templates".to_owned());
        }
        out
    }

    /// The file's bytes.
    pub fn to_json(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).expect("names and numbers");
        bytes.push(b'\n');
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_what_is_unknown_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(PromptRecipe::read(dir.path()).unwrap(), None);
        let recipe = PromptRecipe {
            subtasks: vec!["file".into()],
            chat: false,
            universe: Universe::Tree,
            order: Order::Fused,
            evidence: "names,score".parse().unwrap(),
            answers: 3,
            close: 0.7,
            definitions: 6,
            min_issue_tokens: 48,
            max_prompt_tokens: 448,
            templates: BTreeMap::from([("file".to_owned(), "{{ issue }}".to_owned())]),
        };
        std::fs::write(dir.path().join(FILE), recipe.to_json()).unwrap();
        assert_eq!(PromptRecipe::read(dir.path()).unwrap(), Some(recipe.clone()));
        assert_eq!(PromptRecipe::read(&dir.path().join(FILE)).unwrap(), None);
        let here = PromptRecipe { order: Order::Alphabetical, max_prompt_tokens: 9, templates: BTreeMap::new(), ..recipe.clone() };
        assert_eq!(recipe.differences(&here), ["order: \"fused\", here \"alphabetical\"", "templates"]);
        assert!(recipe.differences(&recipe).is_empty());
        let unknown = String::from_utf8(recipe.to_json()).unwrap().replace("\"close\"", "\"far\"");
        std::fs::write(dir.path().join(FILE), unknown).unwrap();
        let error = PromptRecipe::read(dir.path()).unwrap_err().to_string();
        assert!(error.contains("prompts.json") && error.contains("far"), "{error}");
    }
}
