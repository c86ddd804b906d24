//! The options of the pipeline, which `eval` and `fix` share.

use serde_json::{Value, json};

use crate::agentless::generator::Sampling;
use crate::agentless::pipeline::{Pipeline, Settings};
use crate::data::subtask::evidence::Evidence;
use crate::data::subtask::file::Universe;
use crate::model::dialogue::Dialogue;
use crate::model::weights::ModelFiles;
use crate::{Error, Result};

/// How the pipeline works and samples.
#[derive(clap::Args)]
pub(crate) struct PipelineArgs {
    /// sorft: files, functions, lines, edits. mini: files, then edits of whole files (Agentless Mini)
    #[arg(long, value_enum, default_value = "sorft", help_heading = "Pipeline")]
    pipeline: PipelineName,
    /// Candidate patches a task
    #[arg(long, default_value_t = 4, value_name = "N", help_heading = "Pipeline")]
    samples: usize,
    /// Answers a task in each localisation hop [default: as --samples, at most 4]
    #[arg(long, value_name = "N", help_heading = "Pipeline")]
    localisations: Option<usize>,
    /// 0 is greedy: one answer a hop, nothing shuffled
    #[arg(long, default_value_t = 0.8, value_name = "T", help_heading = "Pipeline")]
    temperature: f32,
    /// All randomness follows from it
    #[arg(long, default_value_t = 0, value_name = "S", help_heading = "Pipeline")]
    seed: u64,
    /// The longest prompt [default: what the model's context leaves, at most 16384]
    #[arg(long, value_name = "N", help_heading = "Pipeline")]
    max_prompt_tokens: Option<usize>,
    /// The longest answer
    #[arg(long, default_value_t = 1024, value_name = "N", help_heading = "Pipeline")]
    max_new_tokens: usize,
    /// Tokens of the issue that are kept before anything else is cut
    #[arg(long, default_value_t = 256, value_name = "N", help_heading = "Pipeline")]
    min_issue_tokens: usize,
    /// How many files the merged localisation has
    #[arg(long, default_value_t = 3, value_name = "N", help_heading = "Pipeline")]
    top_files: usize,
    /// Paths to choose from: files (whose contents the task has) or tree (all_paths)
    #[arg(long, value_enum, default_value = "files", value_name = "WHICH", help_heading = "Pipeline")]
    universe: UniverseName,
    /// sorft: the order of paths in file prompts: alphabetical, shuffled, lexical, lexical_paths or fused
    #[arg(long, default_value = "alphabetical", value_name = "ORDER", help_heading = "Pipeline")]
    order: String,
    /// sorft: what file prompts say of each path: paths (nothing), or some of names, score, rank, words
    #[arg(long, default_value = "paths", value_name = "LIST", help_heading = "Pipeline")]
    evidence: String,
    /// sorft: lines shown around what localisation names
    #[arg(long, default_value_t = 10, value_name = "N", help_heading = "Pipeline")]
    context_lines: usize,
    /// Where no answer names a file, go on with the best matches by BM25
    #[arg(long, help_heading = "Pipeline")]
    bm25_fallback: bool,
    /// Ask in plain text, even where the model has a chat template
    #[arg(long, help_heading = "Pipeline")]
    no_chat: bool,
    /// Answers decoded together; changes no answer
    #[arg(long, default_value_t = 16, value_name = "N", help_heading = "Pipeline")]
    max_batch: usize,
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

/// Prompts longer than this cost more than they tell, unless they are asked for.
const USUAL_PROMPT: usize = 16_384;

impl PipelineArgs {
    /// Refuses what means nothing.
    pub(crate) fn check(&self) -> Result<()> {
        let counts = [
            ("--samples", Some(self.samples)),
            ("--localisations", self.localisations),
            ("--max-prompt-tokens", self.max_prompt_tokens),
            ("--max-new-tokens", Some(self.max_new_tokens)),
            ("--top-files", Some(self.top_files)),
            ("--max-batch", Some(self.max_batch)),
        ];
        if let Some((flag, _)) = counts.iter().find(|(_, value)| *value == Some(0)) {
            return Err(Error::usage(format!("{flag} takes a number of at least 1")));
        }
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return Err(Error::usage("--temperature takes a number of at least 0"));
        }
        Ok(())
    }

    /// Whether the model's chat template is used.
    pub(crate) fn chat(&self) -> bool {
        !self.no_chat
    }

    /// Whether localisation chooses from all paths of a tree.
    pub(crate) fn whole_tree(&self) -> bool {
        self.universe == UniverseName::Tree
    }

    /// How answers are sampled.
    pub(crate) fn sampling(&self) -> Sampling {
        Sampling { temperature: self.temperature, max_new_tokens: self.max_new_tokens, seed: self.seed, max_batch: self.max_batch }
    }

    /// What answers are a function of beside the pipeline's settings.
    pub(crate) fn describe(&self) -> Value {
        // As it was typed: the shortest digits of an f32 are not those of the f64 next to it.
        let temperature: f64 = self.temperature.to_string().parse().unwrap_or_default();
        json!({"chat": self.chat(), "temperature": temperature, "max_new_tokens": self.max_new_tokens})
    }

    /// The pipeline's settings, with a model's limits in them. Greedy answers are all the same: there is one a hop.
    pub(crate) fn resolve(&self, files: &ModelFiles, dialogue: &Dialogue<'_>) -> Result<Settings> {
        let greedy = self.temperature == 0.0;
        let context = files.config.max_position_embeddings;
        let around = dialogue.overhead(true)? + self.max_new_tokens;
        let room = context.checked_sub(around).filter(|&room| room > 0).ok_or_else(|| {
            let message =
                format!("--max-new-tokens {} leaves no room for a prompt in the model's context of {context}", self.max_new_tokens);
            Error::usage(message)
        })?;
        if self.max_prompt_tokens.is_some_and(|wanted| wanted > room) {
            let message = format!("--max-prompt-tokens: the model's context of {context} tokens leaves {room} beside the answer");
            return Err(Error::usage(message));
        }
        Ok(Settings {
            pipeline: match self.pipeline {
                PipelineName::Sorft => Pipeline::Sorft,
                PipelineName::Mini => Pipeline::Mini,
            },
            samples: if greedy { 1 } else { self.samples },
            localisations: if greedy { 1 } else { self.localisations.unwrap_or(self.samples.min(4)) },
            greedy,
            max_prompt_tokens: self.max_prompt_tokens.unwrap_or(room.min(USUAL_PROMPT)),
            min_issue_tokens: self.min_issue_tokens,
            top_files: self.top_files,
            universe: match self.universe {
                UniverseName::Files => Universe::Files,
                UniverseName::Tree => Universe::Tree,
            },
            order: self.order.parse()?,
            evidence: self.evidence.parse::<Evidence>()?.to_string(),
            context_lines: self.context_lines,
            fallback: self.bm25_fallback,
            seed: self.seed,
        })
    }
}
