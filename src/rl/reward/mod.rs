//! Rewards by rule. A [`Subtask`] turns a task into a [`Question`], which knows its gold answer and how to judge an answer; the training
//! loop and the evaluation know nothing else of it, so each of SoRFT's subtasks is one implementation.

pub mod file;
pub mod overlong;
pub mod place;
pub mod repair;

use crate::data::Task;
use crate::data::metrics::{ScoreKind, SetScore};
use crate::data::subtask::answer::Place;
use crate::data::subtask::matches::MatchOptions;
use crate::data::subtask::view::ViewOptions;
use crate::error::{Kind, Result};
use crate::model::chat::{Message, conversation};
use crate::model::generate::Completion;
use crate::rl::config::PromptSettings;

/// What an answer earns.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reward {
    /// The number that is trained on.
    pub value: f64,
    /// What it is made of, and what else is worth a curve or a table column (`valid`, `recall`, ...), in a fixed order.
    pub parts: Vec<(&'static str, f64)>,
    /// Why the answer is not valid, if it is not.
    pub error: Option<String>,
}

impl Reward {
    /// A part by its name.
    pub fn part(&self, name: &str) -> Option<f64> {
        self.parts.iter().find(|(n, _)| *n == name).map(|(_, v)| *v)
    }
}

/// One question to the model.
pub trait Question: Send + Sync {
    /// The prompt's text, without a chat template.
    fn text(&self) -> &str;

    /// What the system says before it, if anything.
    fn system(&self) -> Option<&str> {
        None
    }

    /// Both as a conversation that the answer is to follow.
    fn messages(&self) -> Vec<Message> {
        conversation(self.system(), self.text())
    }

    /// The gold answer, as supervised training has it.
    fn gold_answer(&self) -> &str;

    /// Judges an answer. A malformed answer is a result (with [`Reward::error`]), never a failure.
    fn judge(&self, completion: &Completion) -> Reward;

    /// What of the task did not fit into the prompt, in words; `None` if nothing.
    fn cut(&self) -> Option<String>;

    /// What an answer may choose from, where the prompt lists it: a baseline is to choose from the same.
    fn candidates(&self) -> &[String] {
        &[]
    }
}

/// A kind of question that can be asked about a task.
pub trait Subtask: Send + Sync {
    /// Its name, as `reward --kind` has it.
    fn name(&self) -> &'static str;

    /// The question for a task, its text having at most as many tokens as the subtask was made for, as `count_tokens` counts them.
    ///
    /// # Errors
    /// A task that cannot be asked about: nothing to be found, or a budget that not even the smallest prompt fits into.
    fn question(&self, task: &Task, count_tokens: &dyn Fn(&str) -> usize) -> Result<Box<dyn Question>>;
}

/// The subtask of this name (one of [`crate::rl::config::SUBTASKS`]); its prompts have at most `max_tokens` tokens, without the chat
/// template.
///
/// # Errors
/// A template that cannot be read or is not Jinja.
pub fn subtask(name: &str, prompt: &PromptSettings, max_tokens: usize, seed: u64, score: ScoreKind, beta: f64) -> Result<Box<dyn Subtask>> {
    let place = |place| -> Result<Box<dyn Subtask>> {
        let (min_issue_tokens, template) = (prompt.min_issue_tokens, prompt.template(name)?);
        let matches = MatchOptions { listed: prompt.definitions, answers: prompt.answers, close: prompt.close };
        let options = ViewOptions { max_tokens, min_issue_tokens, seed, template, matches };
        Ok(Box::new(place::PlaceSubtask::new(place, options, score, beta)?))
    };
    let made = match name {
        "function" => place(Place::Function),
        "line" => place(Place::Line),
        "edit" => place(Place::Edit),
        "repair" => repair::Repair::new(prompt, max_tokens, seed, score).map(|s| Box::new(s) as Box<dyn Subtask>),
        _ => file::FileLocalisation::new(prompt, max_tokens, seed, score, beta).map(|s| Box::new(s) as Box<dyn Subtask>),
    };
    made.map_err(|e| match prompt.templates.get(name) {
        // A file that cannot be read is named already.
        Some(path) if e.kind() != Kind::Io => e.at_file(path),
        _ => e,
    })
}

/// Whether the prompts of the subtask of this name begin with a message of the system's.
pub fn has_system(name: &str) -> bool {
    name == "repair"
}

/// The parts of a reward that compares sets. Those of an answer that is not valid are 0, but for the counts.
pub(crate) fn set_parts(score: &SetScore, beta: f64) -> Vec<(&'static str, f64)> {
    let if_valid = |value: f64| if score.valid { value } else { 0.0 };
    vec![
        ("valid", f64::from(u8::from(score.valid))),
        ("hit", score.reward(ScoreKind::Hit, beta)),
        ("precision", if_valid(score.precision())),
        ("recall", if_valid(score.recall())),
        ("f1", score.fbeta(1.0)),
        ("fbeta", score.fbeta(beta)),
        ("answers", score.answers as f64),
        ("gold", score.gold as f64),
    ]
}
