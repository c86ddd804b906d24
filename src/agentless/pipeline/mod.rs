//! From issues to candidate patches, hop by hop over all tasks: every hop asks its questions at once, merges each task's answers, and makes
//! the next hop's questions of them. What a task is answered from never holds its gold patch ([`Task::without_answer`]).
//!
//! * [`Pipeline::Sorft`]: files, functions, lines, edits (arXiv 2502.20127).
//! * [`Pipeline::Mini`]: files, then edits of whole files in SWE-RL's format (arXiv 2502.18449).

pub mod merge;
mod mini;
mod repair;
mod sorft;

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::generator::Answer;
use super::session::{Ask, Session};
use crate::data::Task;
use crate::data::lexical::{self, Ranking};
use crate::data::subtask::evidence::Evidence;
use crate::data::subtask::file::{Order, Universe, parse_answer};
use crate::{Error, Result};

/// Which hops there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pipeline {
    /// SoRFT: files, functions, lines, edits.
    Sorft,
    /// Agentless Mini: files, edits.
    Mini,
}

/// A hop of the pipelines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LastHop {
    /// Files.
    File,
    /// Functions of them ([`Pipeline::Sorft`] alone).
    Function,
    /// Lines of these (the same).
    Line,
    /// Edits.
    #[default]
    Edit,
}

impl FromStr for LastHop {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "file" => Ok(Self::File),
            "function" => Ok(Self::Function),
            "line" => Ok(Self::Line),
            "edit" => Ok(Self::Edit),
            other => Err(Error::usage(format!("there is no hop `{other}`")).hint("expected file, function, line or edit")),
        }
    }
}

/// How the pipeline works.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Its hops.
    pub pipeline: Pipeline,
    /// Where it ends: a model that was trained to localise is not asked for edits.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub until: LastHop,
    /// Candidate patches a task.
    pub samples: usize,
    /// Answers a task in each localisation hop.
    pub localisations: usize,
    /// True if answers are greedy: there is one a hop, and nothing is shuffled.
    pub greedy: bool,
    /// The most tokens of a prompt, without the chat template.
    pub max_prompt_tokens: usize,
    /// Tokens of the issue that are kept before anything else is cut.
    pub min_issue_tokens: usize,
    /// How many files the merged localisation has.
    pub top_files: usize,
    /// Which paths localisation chooses from.
    pub universe: Universe,
    /// In which order SoRFT's file prompts list paths.
    pub order: Order,
    /// What SoRFT's file prompts say of each path.
    pub evidence: Evidence,
    /// How many files SoRFT's file prompts ask for; 0 leaves it to the model.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub answers: usize,
    /// Above 0, `answers` is the most, and a line `--` stands behind the candidates that score at least this part of the best one.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub close: f64,
    /// How many definitions SoRFT's function prompts list as the best matches, with `answers` and `close` as of files; 0: no list.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub definitions: usize,
    /// The text of templates in place of the built-in prompts, by subtask.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub templates: BTreeMap<String, String>,
    /// Lines shown around what SoRFT's localisation names.
    pub context_lines: usize,
    /// Where no answer names a file: go on with the best lexical matches.
    pub fallback: bool,
    /// The key of all shuffles.
    pub seed: u64,
}

/// Whether a setting is at its default, which is not written: folders of runs without it go on.
fn is_zero<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A prompt and its answer.
#[derive(Clone, Debug)]
pub struct Trace {
    /// What the system said before the prompt, if anything.
    pub system: Option<Arc<str>>,
    /// The prompt.
    pub prompt: Arc<str>,
    /// The answer.
    pub answer: Answer,
}

impl Trace {
    fn new(ask: &Ask<'_>, answer: Answer) -> Self {
        Self { system: ask.system.clone(), prompt: ask.prompt.clone(), answer }
    }
}

/// What an answer of a localisation hop names.
#[derive(Clone, Debug)]
pub struct Named<T> {
    /// The elements that are there to be named, in the answer's order.
    pub elements: Vec<T>,
    /// Why the answer is not of the format, or names what is not there.
    pub error: Option<String>,
    /// How it was asked.
    pub trace: Trace,
}

/// A localisation hop of a task.
#[derive(Clone, Debug)]
pub struct Hop<T> {
    /// Its answers.
    pub samples: Vec<Named<T>>,
    /// What they name together.
    pub merged: Vec<T>,
}

/// A candidate patch.
#[derive(Clone, Debug, Default)]
pub struct Candidate {
    /// The files that its prompt was to show.
    pub found_files: Vec<String>,
    /// Changed files: (before, after) by path.
    pub changed: BTreeMap<String, (String, String)>,
    /// Why the answer is not of the format, or an edit of it cannot be applied.
    pub error: Option<String>,
    /// How it was asked; none where there was nothing to ask.
    pub trace: Option<Trace>,
}

/// What the pipeline made of a task.
#[derive(Clone, Debug)]
pub struct Product {
    /// What file localisation chose from.
    pub universe: Vec<String>,
    /// File localisation.
    pub files: Hop<String>,
    /// True if the files are the best lexical matches, because no answer named any.
    pub fell_back: bool,
    /// Function localisation, where the pipeline has it: (path, qualified name).
    pub functions: Option<Hop<(String, String)>>,
    /// Line localisation, where the pipeline has it: (path, line).
    pub lines: Option<Hop<(String, usize)>>,
    /// The candidate patches, [`Settings::samples`] of them; none where the pipeline ended before them.
    pub candidates: Vec<Candidate>,
}

/// Runs all hops over all tasks.
///
/// # Errors
///
/// What the session reports; a task without files to choose from; a prompt that does not fit.
pub fn run(tasks: &[Task], settings: &Settings, session: &mut Session<'_>) -> Result<Vec<Product>> {
    let blind: Vec<Task> = tasks.iter().map(Task::without_answer).collect();
    match settings.pipeline {
        Pipeline::Sorft => sorft::run(&blind, settings, session),
        Pipeline::Mini => mini::run(&blind, settings, session),
    }
}

/// The paths that localisation chooses from, in alphabetical order.
fn universe(task: &Task, settings: &Settings) -> Result<Vec<String>> {
    let paths = match settings.universe {
        Universe::Files => task.file_paths(),
        Universe::Tree => task.known_paths(),
    };
    if paths.is_empty() {
        return Err(Error::input("there are no files to choose from").at(&task.instance_id).hint("tasks need `files` or `all_paths`"));
    }
    Ok(paths)
}

/// Reads the answers of a file hop: `asks[i]` is of task `owners[i].0` and chose from `owners[i].1`.
fn read_files(answers: Vec<Answer>, asks: &[Ask<'_>], universes: &[BTreeSet<String>]) -> Vec<Named<String>> {
    let read = |((answer, ask), universe): ((Answer, &Ask<'_>), &BTreeSet<String>)| {
        let said = parse_answer(&answer.text, universe);
        let error = match (&said.outside, said.paths.is_empty()) {
            (Some(path), _) => Some(format!("`{path}` is not among the paths of the prompt")),
            (None, true) => Some("the answer names no path".to_owned()),
            (None, false) => None,
        };
        let elements = said.paths.into_iter().filter(|p| universe.contains(p)).collect();
        Named { elements, error, trace: Trace::new(ask, answer) }
    };
    answers.into_iter().zip(asks).zip(universes).map(read).collect()
}

/// The merged file hop of a task, with its fallback.
fn merge_files(task: &Task, universe: &[String], samples: Vec<Named<String>>, settings: &Settings) -> (Hop<String>, bool) {
    let lists: Vec<Vec<String>> = samples.iter().map(|s| s.elements.clone()).collect();
    let merged = merge::by_count(&lists, settings.top_files);
    if !merged.is_empty() || !settings.fallback {
        return (Hop { samples, merged }, false);
    }
    let mut ranked = lexical::rank(task, universe, Ranking::Fused);
    ranked.truncate(settings.top_files);
    (Hop { samples, merged: ranked }, true)
}
