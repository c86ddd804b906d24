//! The options of the pipeline, which `eval` and `fix` share.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use crate::agentless::generator::Sampling;
use crate::agentless::pipeline::{LastHop, Pipeline, Settings};
use crate::cli::output::say;
use crate::data::subtask::file::{Order, Universe};
use crate::data::subtask::prompt_recipe::{self, PromptRecipe};
use crate::model::dialogue::Dialogue;
use crate::model::weights::ModelFiles;
use crate::{Error, Result};

/// How the pipeline works and samples. What is not given is what a run that goes on was begun with, else what the model was trained with
/// (its folder's `prompts.json`), else the default.
#[derive(Clone, clap::Args)]
pub(crate) struct PipelineArgs {
    /// sorft: files, functions, lines, edits. mini: files, then edits of whole files (Agentless Mini) [default: sorft]
    #[arg(long, value_enum, help_heading = "Pipeline")]
    pipeline: Option<PipelineName>,
    /// Candidate patches a task [default: 4]
    #[arg(long, value_name = "N", help_heading = "Pipeline")]
    samples: Option<usize>,
    /// Answers a task in each localisation hop [default: as --samples, at most 4]
    #[arg(long, value_name = "N", help_heading = "Pipeline")]
    localisations: Option<usize>,
    /// 0 is greedy: one answer a hop, nothing shuffled [default: 0.8]
    #[arg(long, value_name = "T", help_heading = "Pipeline")]
    temperature: Option<f32>,
    /// All randomness follows from it [default: 0]
    #[arg(long, value_name = "S", help_heading = "Pipeline")]
    seed: Option<u64>,
    /// The longest prompt [default: the longest trained with, else what the model's context leaves, at most 16384]
    #[arg(long, value_name = "N", help_heading = "Pipeline")]
    max_prompt_tokens: Option<usize>,
    /// The longest answer [default: 1024]
    #[arg(long, value_name = "N", help_heading = "Pipeline")]
    max_new_tokens: Option<usize>,
    /// Tokens of the issue that are kept before anything else is cut [default: 256]
    #[arg(long, value_name = "N", help_heading = "Pipeline")]
    min_issue_tokens: Option<usize>,
    /// How many files the merged localisation has [default: 3]
    #[arg(long, value_name = "N", help_heading = "Pipeline")]
    top_files: Option<usize>,
    /// Paths to choose from: files (whose contents the task has) or tree (all_paths) [default: files]
    #[arg(long, value_enum, value_name = "WHICH", help_heading = "Pipeline")]
    universe: Option<UniverseName>,
    /// sorft: the order of paths in file prompts: alphabetical, shuffled, lexical, lexical_paths or fused [default: alphabetical]
    #[arg(long, value_name = "ORDER", help_heading = "Pipeline")]
    order: Option<String>,
    /// sorft: what file prompts say of each path: paths (nothing), or some of names, score, rank, words [default: paths]
    #[arg(long, value_name = "LIST", help_heading = "Pipeline")]
    evidence: Option<String>,
    /// sorft: how many files (from a list: definitions) a prompt asks for; 0 leaves it to the model [default: 0]
    #[arg(long, value_name = "N", help_heading = "Pipeline")]
    answers: Option<usize>,
    /// sorft: above 0, --answers is the most, and a line `--` stands behind what scores this part of the best [default: 0]
    #[arg(long, value_name = "PART", help_heading = "Pipeline")]
    close: Option<f64>,
    /// sorft: how many definitions function prompts list as the best matches; 0: no list [default: 0]
    #[arg(long, value_name = "N", help_heading = "Pipeline")]
    definitions: Option<usize>,
    /// sorft: lines shown around what localisation names [default: 10]
    #[arg(long, value_name = "N", help_heading = "Pipeline")]
    context_lines: Option<usize>,
    /// Where no answer names a file, go on with the best matches by BM25
    #[arg(long, help_heading = "Pipeline")]
    bm25_fallback: bool,
    /// Ask in plain text, even where the model has a chat template
    #[arg(long, help_heading = "Pipeline")]
    no_chat: bool,
    /// Answers decoded together; changes no answer
    #[arg(long, default_value_t = 16, value_name = "N", help_heading = "Pipeline")]
    max_batch: usize,
    /// Templates that the model was trained with.
    #[arg(skip)]
    templates: BTreeMap<String, String>,
    /// The longest prompt that it was trained with, chat template included.
    #[arg(skip)]
    trained_prompt_tokens: Option<usize>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum PipelineName {
    Sorft,
    Mini,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum UniverseName {
    Files,
    Tree,
}

impl UniverseName {
    fn of(universe: Universe) -> Self {
        match universe {
            Universe::Files => Self::Files,
            Universe::Tree => Self::Tree,
        }
    }
}

/// How a run samples, as `settings.json` has it.
#[derive(Clone, Debug, serde::Deserialize)]
pub(crate) struct Recorded {
    chat: bool,
    temperature: f32,
    max_new_tokens: usize,
}

/// An order as options and settings name it.
fn name_of(order: Order) -> String {
    serde_json::to_value(order).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

/// Prompts longer than this cost more than they tell, unless they are asked for.
const USUAL_PROMPT: usize = 16_384;

impl PipelineArgs {
    /// Refuses what means nothing.
    pub(crate) fn check(&self) -> Result<()> {
        let counts = [
            ("--samples", self.samples),
            ("--localisations", self.localisations),
            ("--max-prompt-tokens", self.max_prompt_tokens),
            ("--max-new-tokens", self.max_new_tokens),
            ("--top-files", self.top_files),
            ("--max-batch", Some(self.max_batch)),
        ];
        if let Some((flag, _)) = counts.iter().find(|(_, value)| *value == Some(0)) {
            return Err(Error::usage(format!("{flag} takes a number of at least 1")));
        }
        if !(self.temperature() >= 0.0 && self.temperature().is_finite()) {
            return Err(Error::usage("--temperature takes a number of at least 0"));
        }
        if self.close.is_some_and(|close| !(0.0..=1.0).contains(&close)) {
            return Err(Error::usage("--close takes a number from 0 to 1"));
        }
        Ok(())
    }

    /// Whether the model's chat template is used.
    pub(crate) fn chat(&self) -> bool {
        !self.no_chat
    }

    /// Whether localisation chooses from all paths of a tree.
    pub(crate) fn whole_tree(&self) -> bool {
        self.universe == Some(UniverseName::Tree)
    }

    /// The paths to choose from.
    pub(crate) fn universe(&self) -> Universe {
        if self.whole_tree() { Universe::Tree } else { Universe::Files }
    }

    /// Takes what a run that goes on was begun with, where nothing else is given.
    pub(crate) fn fill_universe(&mut self, universe: Universe) {
        self.universe = self.universe.or(Some(UniverseName::of(universe)));
    }

    /// Takes what the adapter, or else the model, was trained with, where nothing else is given.
    ///
    /// # Errors
    ///
    /// A `prompts.json` that cannot be read.
    pub(crate) fn learn(&mut self, files: &ModelFiles, adapter: Option<&Path>) -> Result<()> {
        for dir in adapter.into_iter().chain([files.path.as_path()]) {
            if let Some(recipe) = PromptRecipe::read(dir)? {
                say!("prompts are made as {} says, where no option says otherwise", dir.join(prompt_recipe::FILE).display());
                self.fill_recipe(recipe);
                break;
            }
        }
        Ok(())
    }

    /// Takes what a model was trained with, where nothing else is given.
    fn fill_recipe(&mut self, recipe: PromptRecipe) {
        self.universe = self.universe.or(Some(UniverseName::of(recipe.universe)));
        self.order = self.order.take().or_else(|| Some(name_of(recipe.order)));
        self.evidence = self.evidence.take().or_else(|| Some(recipe.evidence.to_string()));
        self.answers = self.answers.or(Some(recipe.answers));
        self.close = self.close.or(Some(recipe.close));
        self.definitions = self.definitions.or(Some(recipe.definitions));
        self.min_issue_tokens = self.min_issue_tokens.or(Some(recipe.min_issue_tokens));
        self.no_chat |= !recipe.chat;
        self.templates = recipe.templates;
        self.trained_prompt_tokens = self.max_prompt_tokens.is_none().then_some(recipe.max_prompt_tokens);
    }

    fn temperature(&self) -> f32 {
        self.temperature.unwrap_or(0.8)
    }

    fn max_new_tokens(&self) -> usize {
        self.max_new_tokens.unwrap_or(1024)
    }

    /// The options, with those of a run that was begun with `settings` and `sampling` where none are given.
    pub(crate) fn over(&self, settings: &Settings, sampling: &Recorded) -> Self {
        let pipeline = match settings.pipeline {
            Pipeline::Sorft => PipelineName::Sorft,
            Pipeline::Mini => PipelineName::Mini,
        };
        let universe = UniverseName::of(settings.universe);
        Self {
            pipeline: self.pipeline.or(Some(pipeline)),
            samples: self.samples.or(Some(settings.samples)),
            localisations: self.localisations.or(Some(settings.localisations)),
            temperature: self.temperature.or(Some(sampling.temperature)),
            seed: self.seed.or(Some(settings.seed)),
            max_prompt_tokens: self.max_prompt_tokens.or(Some(settings.max_prompt_tokens)),
            max_new_tokens: self.max_new_tokens.or(Some(sampling.max_new_tokens)),
            min_issue_tokens: self.min_issue_tokens.or(Some(settings.min_issue_tokens)),
            top_files: self.top_files.or(Some(settings.top_files)),
            universe: self.universe.or(Some(universe)),
            order: self.order.clone().or_else(|| Some(name_of(settings.order))),
            evidence: self.evidence.clone().or_else(|| Some(settings.evidence.to_string())),
            answers: self.answers.or(Some(settings.answers)),
            close: self.close.or(Some(settings.close)),
            definitions: self.definitions.or(Some(settings.definitions)),
            context_lines: self.context_lines.or(Some(settings.context_lines)),
            bm25_fallback: self.bm25_fallback || settings.fallback,
            no_chat: self.no_chat || !sampling.chat,
            max_batch: self.max_batch,
            templates: settings.templates.clone(),
            trained_prompt_tokens: None,
        }
    }

    /// How answers are sampled.
    pub(crate) fn sampling(&self) -> Sampling {
        let seed = self.seed.unwrap_or(0);
        Sampling { temperature: self.temperature(), max_new_tokens: self.max_new_tokens(), seed, max_batch: self.max_batch }
    }

    /// What answers are a function of beside the pipeline's settings.
    pub(crate) fn describe(&self) -> Value {
        // As it was typed: the shortest digits of an f32 are not those of the f64 next to it.
        let temperature: f64 = self.temperature().to_string().parse().unwrap_or_default();
        json!({"chat": self.chat(), "temperature": temperature, "max_new_tokens": self.max_new_tokens()})
    }

    /// The pipeline's settings, with a model's limits in them. Greedy answers are all the same: there is one a hop.
    pub(crate) fn resolve(&self, files: &ModelFiles, dialogue: &Dialogue<'_>) -> Result<Settings> {
        let (greedy, samples) = (self.temperature() == 0.0, self.samples.unwrap_or(4));
        let context = files.config.max_position_embeddings;
        let around = dialogue.overhead(true)? + self.max_new_tokens();
        let room = context.checked_sub(around).filter(|&room| room > 0).ok_or_else(|| {
            let message =
                format!("--max-new-tokens {} leaves no room for a prompt in the model's context of {context}", self.max_new_tokens());
            Error::usage(message)
        })?;
        if self.max_prompt_tokens.is_some_and(|wanted| wanted > room) {
            let message = format!("--max-prompt-tokens: the model's context of {context} tokens leaves {room} beside the answer");
            return Err(Error::usage(message));
        }
        let trained = match self.trained_prompt_tokens {
            Some(most) => dialogue.room(most, false)?,
            None => None,
        };
        Ok(Settings {
            until: LastHop::default(),
            pipeline: match self.pipeline {
                None | Some(PipelineName::Sorft) => Pipeline::Sorft,
                Some(PipelineName::Mini) => Pipeline::Mini,
            },
            samples: if greedy { 1 } else { samples },
            localisations: if greedy { 1 } else { self.localisations.unwrap_or(samples.min(4)) },
            greedy,
            max_prompt_tokens: self.max_prompt_tokens.unwrap_or(room.min(trained.unwrap_or(USUAL_PROMPT))),
            min_issue_tokens: self.min_issue_tokens.unwrap_or(256),
            top_files: self.top_files.unwrap_or(3),
            universe: self.universe(),
            order: self.order.as_deref().unwrap_or("alphabetical").parse()?,
            evidence: self.evidence.as_deref().unwrap_or("paths").parse()?,
            answers: self.answers.unwrap_or(0),
            close: self.close.unwrap_or(0.0),
            definitions: self.definitions.unwrap_or(0),
            templates: self.templates.clone(),
            context_lines: self.context_lines.unwrap_or(10),
            fallback: self.bm25_fallback,
            seed: self.seed.unwrap_or(0),
        })
    }
}
