//! The configuration of a training run: TOML, `--set key=value`, defaults, `[[stage]]` overrides.
//!
//! [`keys::KEYS`] is the one table of settings. [`Config::load`] turns a file and flags into typed settings and the complete text of the
//! run's `config.toml`, which [`Config::resume`] reads back to the same settings.

pub mod keys;
mod load;
mod stage;

use crate::data::metrics::ScoreKind;
use crate::data::subtask::evidence::{Evidence, Lexical};
use crate::data::subtask::file::{Order, Universe};
use crate::data::subtask::recipe::Recipe;
use crate::error::{Error, Result};
use crate::model::lora::LoraConfig;
use crate::model::optimizer::AdamWConfig;
use crate::rl::advantage::{Scale, Whitening};
use crate::rl::objective::{Aggregation, Clip, KlEstimator, Ratio};
use crate::rl::schedule::Schedule;
use keys::KEYS;
pub use load::{Given, Value, Values};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// What is trained in a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// Supervised fine-tuning.
    Sft,
    /// A policy gradient without a critic: group relative policy optimisation and its kin.
    Grpo,
    /// Proximal policy optimisation with a critic.
    Ppo,
}

impl Algorithm {
    /// Its name in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::Sft => "sft",
            Algorithm::Grpo => "grpo",
            Algorithm::Ppo => "ppo",
        }
    }

    /// Whether it samples answers and learns from their rewards.
    pub fn samples(self) -> bool {
        self != Algorithm::Sft
    }
}

/// How rewards become advantages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdvantageKind {
    /// Normalised in the group.
    Grpo,
    /// Less the group's mean.
    DrGrpo,
    /// Less the mean of the group's others.
    Rloo,
    /// Returns, whitened over the batch.
    ReinforcePlusPlus,
    /// The same of rewards less the group's mean.
    ReinforcePlusPlusBaseline,
    /// Generalised advantage estimation with a critic.
    Gae,
}

/// What a critic is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CriticKind {
    /// A value head on the policy's trunk.
    Trunk,
    /// A model that shares the frozen base, with its own adapter.
    Lora,
    /// A full model.
    Full,
}

/// A critic's settings.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)] // documented, one by one, in `keys::KEYS`
pub struct CriticSettings {
    pub kind: CriticKind,
    pub schedule: Schedule,
    pub warmup: u64,
    pub clip: Option<f64>,
    pub coef: f64,
}

/// What the KL is measured against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reference {
    /// The policy at the start of the stage.
    Start,
    /// The model as it was loaded; with LoRA, the adapter off.
    Base,
}

/// The reward's rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Score {
    /// F-beta.
    Fbeta,
    /// F1.
    F1,
    /// 1 if the answer is exactly the gold set.
    Exact,
    /// 1 if any gold element is named.
    Hit,
}

impl From<Score> for ScoreKind {
    fn from(score: Score) -> Self {
        match score {
            Score::Fbeta => Self::Fbeta,
            Score::F1 => Self::F1,
            Score::Exact => Self::Exact,
            Score::Hit => Self::Hit,
        }
    }
}

/// Settings that may differ from stage to stage.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)] // documented, one by one, in `keys::KEYS`
pub struct Stage {
    pub algorithm: Algorithm,
    pub steps: u64,
    pub train: Vec<PathBuf>,
    pub shuffle: bool,
    pub batch_prompts: usize,
    pub group_size: usize,
    pub max_prompt_tokens: usize,
    pub max_new_tokens: usize,
    pub temperature: f32,
    pub microbatch_tokens: usize,
    /// Passes over a batch.
    pub epochs: u64,
    /// Updates in each pass.
    pub minibatches: usize,
    pub activation_checkpointing: bool,
    pub score: Score,
    /// Of a mixture: each subtask's weight.
    pub subtask_weights: BTreeMap<&'static str, f64>,
    pub optim: AdamWConfig,
    pub schedule: Schedule,
    pub kl_coef: f64,
    pub kl_estimator: KlEstimator,
    pub kl_in_reward: bool,
    pub kl_target: f64,
    pub kl_horizon: f64,
    pub kl_measure: bool,
    pub kl_reference: Reference,
    pub clip: Clip,
    pub dual_clip: Option<f64>,
    pub ratio: Ratio,
    pub aggregation: Aggregation,
    pub entropy_coef: f64,
    pub advantage: AdvantageKind,
    pub whitening: Whitening,
    pub gamma: f64,
    pub lambda: f64,
    pub advantage_scale: Scale,
    pub advantage_eps: f64,
    pub sampling_rounds: usize,
    pub overlong_buffer: usize,
    pub overlong_penalty: f64,
    pub critic: CriticSettings,
    pub max_skipped: u64,
}

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
}

/// The subtasks, as `subtask` names them.
pub const SUBTASKS: &[&str] = &["file", "function", "line", "edit", "repair"];

/// A training run's settings, complete and checked.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)] // documented, one by one, in `keys::KEYS`
pub struct Config {
    pub model: String,
    pub adapter: Option<PathBuf>,
    pub seed: u64,
    pub heldout: Vec<PathBuf>,
    /// At least one; several are a mixture.
    pub subtasks: Vec<&'static str>,
    pub prompt: PromptSettings,
    pub reward_beta: f64,
    pub rollout_batch: usize,
    pub lora: Option<LoraConfig>,
    pub eval_every: u64,
    pub eval_at_start: bool,
    pub eval_tasks: usize,
    pub eval_max_prompt_tokens: usize,
    pub eval_max_new_tokens: usize,
    pub checkpoint_every: u64,
    pub checkpoint_keep: usize,
    pub save_bf16: bool,
    /// At least one.
    pub stages: Vec<Stage>,
    /// The complete text of `config.toml`.
    pub resolved: String,
}

impl Config {
    /// How the run's prompts are made, for whoever asks its model later. Prompts are as long as evaluations' are.
    ///
    /// # Errors
    /// A template that cannot be read.
    pub fn recipe(&self) -> Result<Recipe> {
        let PromptSettings { chat, universe, order, evidence, min_issue_tokens, answers, close, .. } = self.prompt;
        let template = |name: &&'static str| Ok(self.prompt.template(name)?.map(|text| ((*name).to_owned(), text)));
        Ok(Recipe {
            subtasks: self.subtasks.iter().map(|name| (*name).to_owned()).collect(),
            chat,
            universe,
            order,
            evidence,
            answers,
            close,
            min_issue_tokens,
            max_prompt_tokens: self.eval_max_prompt_tokens,
            templates: self.subtasks.iter().filter_map(|name| template(name).transpose()).collect::<Result<_>>()?,
        })
    }

    /// Reads a configuration file (or none) and applies `--set` flags. Relative paths are relative to the file's folder, or to the current
    /// one where there is no file.
    pub fn load(file: Option<&Path>, sets: &[String]) -> Result<Self> {
        let (mut given, place) = match file {
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
                (load::parse_file(&text, path)?, path.display().to_string())
            }
            None => (Given::default(), "--set".to_owned()),
        };
        let base = file.and_then(Path::parent).unwrap_or(Path::new(""));
        for set in sets {
            load::apply_set(&mut given, set, base)?;
        }
        Self::from_given(given).map_err(|e| e.at(place))
    }

    /// Reads a configuration from its text; `path` serves errors and relative paths.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        Self::from_given(load::parse_file(text, path)?).map_err(|e| e.at_file(path))
    }

    /// Reads the `config.toml` of a run folder.
    pub fn resume(out: &Path) -> Result<Self> {
        let path = out.join("config.toml");
        let text = std::fs::read_to_string(&path).map_err(|e| {
            Error::io("read", &path, e).hint("--resume goes on with a run that this program began: give its folder with --out")
        })?;
        if text.starts_with(HEADER) && !text.ends_with(END) {
            let message = format!("the file is cut off: its last line is not `{}`", END.trim());
            return Err(Error::input(message).at_file(&path).hint("put back the whole file: the settings it lacks would be others now"));
        }
        Self::parse(&text, &path)
    }

    /// Steps of all stages together.
    pub fn total_steps(&self) -> u64 {
        self.stages.iter().map(|s| s.steps).sum()
    }

    fn from_given(given: Given) -> Result<Self> {
        let given = with_ppo_defaults(given);
        let mut top = defaults();
        top.extend(given.top.iter().map(|(k, v)| (*k, v.clone())));
        let overrides = if given.stages.is_empty() { vec![Values::new()] } else { given.stages.clone() };
        let stages = overrides.iter().enumerate().map(|(i, o)| {
            let mut values = top.clone();
            values.extend(o.iter().map(|(k, v)| (*k, v.clone())));
            let stage = Stage::read(&Reader(&values));
            if given.stages.is_empty() { stage } else { stage.map_err(|e| e.at(format_args!("stage {}", i + 1))) }
        });
        let stages = stages.collect::<Result<Vec<_>>>()?;
        let r = Reader(&top);
        let optional = |name: &str| Some(r.text(name)).filter(|t: &String| !t.is_empty());
        let (rank, adapter) = (r.size("lora.rank"), optional("adapter").map(PathBuf::from));
        if rank > 0 && adapter.is_some() {
            return Err(Error::input("an adapter to go on from brings its own rank")
                .at("lora.rank")
                .hint("leave out `lora.rank` or `adapter`"));
        }
        check_subtasks(&r)?;
        check_critics(&stages, rank > 0 || adapter.is_some())?;
        Ok(Self {
            model: optional("model").ok_or_else(|| missing("model", "model = \"path/to/model\""))?,
            adapter,
            seed: r.size("seed") as u64,
            heldout: r.paths("data.heldout"),
            subtasks: r.subtasks(),
            prompt: PromptSettings {
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
                templates: SUBTASKS
                    .iter()
                    .filter_map(|name| Some((*name, optional(&format!("prompt.templates.{name}"))?.into())))
                    .collect(),
            },
            reward_beta: r.number("reward.beta"),
            rollout_batch: r.size("rollout_batch"),
            lora: (rank > 0).then(|| LoraConfig { rank, alpha: r.number("lora.alpha") as f32, targets: r.texts("lora.targets") }),
            eval_every: r.size("eval.every") as u64,
            eval_at_start: r.bool("eval.at_start"),
            eval_tasks: r.size("eval.tasks"),
            eval_max_prompt_tokens: r.size("max_prompt_tokens"),
            eval_max_new_tokens: r.size("max_new_tokens"),
            checkpoint_every: r.size("checkpoint.every") as u64,
            checkpoint_keep: r.size("checkpoint.keep"),
            save_bf16: r.text("save.dtype") == "bf16",
            stages,
            resolved: resolved(&top, &given.stages),
        })
    }
}

/// Refuses a `subtask` that `subtasks` would silently go over. (The default may stand beside them: a resolved configuration has both.)
fn check_subtasks(r: &Reader<'_>) -> Result<()> {
    let (one, several) = (r.text("subtask"), r.texts("subtasks"));
    if several.is_empty() || one == SUBTASKS[0] || several.contains(&one) {
        return Ok(());
    }
    Err(Error::input(format!("`{one}` is not among the subtasks [{}], which alone would be asked", several.join(", ")))
        .at("subtask")
        .hint("leave out `subtask` or `subtasks`"))
}

/// Refuses a critic that does not go with what is trained.
fn check_critics(stages: &[Stage], lora: bool) -> Result<()> {
    for stage in stages.iter().filter(|s| s.algorithm == Algorithm::Ppo) {
        let (message, hint) = match (stage.critic.kind, lora) {
            (CriticKind::Lora, false) => ("a critic with its own adapter shares a frozen base", "set lora.rank, or use \"full\""),
            (CriticKind::Full, true) => ("with an adapter the base is frozen", "use \"lora\" or \"trunk\""),
            _ => continue,
        };
        return Err(Error::input(message).at("critic.kind").hint(hint));
    }
    Ok(())
}

/// The first and the last line of a run's `config.toml`. Without the last, a file that was cut off between two lines would be read as one
/// of other settings.
const HEADER: &str = "# The complete settings of this run, as resolved, to the last line; `train --resume` reads them.\n";
const END: &str = "# end of settings\n";

/// The values of all settings that have a default.
fn defaults() -> Values {
    let text: String = KEYS.iter().filter(|k| !k.default.is_empty()).map(|k| format!("{} = {}\n", k.name, k.default)).collect();
    // A default is our own text: a test checks that each parses and is of its kind.
    load::parse_file(&text, Path::new("defaults")).map(|g| g.top).unwrap_or_default()
}

/// Gives what nobody set the defaults of `algorithm = "ppo"`: in each stage that is one, or at the top where there are no stages.
fn with_ppo_defaults(mut given: Given) -> Given {
    let text: String = KEYS.iter().filter(|k| !k.ppo.is_empty()).map(|k| format!("{} = {}\n", k.name, k.ppo)).collect();
    let defaults = load::parse_file(&text, Path::new("defaults")).map(|g| g.top).unwrap_or_default();
    let is_ppo = |values: &Values| values.get("algorithm").map(|a| *a == Value::Text("ppo".into()));
    let top_is_ppo = is_ppo(&given.top) == Some(true);
    let Given { top, stages } = &mut given;
    for stage in stages.iter_mut().filter(|s| is_ppo(s).unwrap_or(top_is_ppo)) {
        for (name, value) in defaults.iter().filter(|(name, _)| !top.contains_key(*name)) {
            stage.entry(*name).or_insert_with(|| value.clone());
        }
    }
    if stages.is_empty() && top_is_ppo {
        for (name, value) in defaults {
            top.entry(name).or_insert(value);
        }
    }
    given
}

/// The complete configuration as TOML: every setting at the top, then the stages' own.
fn resolved(top: &Values, stages: &[Values]) -> String {
    let mut out = HEADER.to_owned();
    for key in KEYS {
        if let Some(value) = top.get(key.name) {
            let _ = writeln!(out, "{} = {}", key.name, value.to_toml());
        }
    }
    for stage in stages {
        out.push_str("\n[[stage]]\n");
        for key in KEYS {
            if let Some(value) = stage.get(key.name) {
                let _ = writeln!(out, "{} = {}", key.name, value.to_toml());
            }
        }
    }
    out + END
}

fn missing(name: &str, example: &str) -> Error {
    Error::input("this setting has no default and must be given").at(name).hint(format!("write {example}, or pass --set {name}=..."))
}

/// Typed reading of checked values. The kinds in [`KEYS`] guarantee the types; what has no default reads as empty.
struct Reader<'a>(&'a Values);

impl Reader<'_> {
    fn text(&self, name: &str) -> String {
        match self.0.get(name) {
            Some(Value::Text(s)) => s.clone(),
            _ => String::new(),
        }
    }

    fn texts(&self, name: &str) -> Vec<String> {
        match self.0.get(name) {
            Some(Value::Texts(all)) => all.clone(),
            _ => Vec::new(),
        }
    }

    /// The subtasks that are asked, in the order given.
    fn subtasks(&self) -> Vec<&'static str> {
        let mut named = self.texts("subtasks");
        if named.is_empty() {
            named.push(self.text("subtask"));
        }
        named.iter().filter_map(|name| SUBTASKS.iter().find(|known| *known == name)).copied().collect()
    }

    fn paths(&self, name: &str) -> Vec<PathBuf> {
        self.texts(name).into_iter().map(PathBuf::from).collect()
    }

    fn bool(&self, name: &str) -> bool {
        matches!(self.0.get(name), Some(Value::Bool(true)))
    }

    fn size(&self, name: &str) -> usize {
        match self.0.get(name) {
            Some(Value::Integer(i)) => usize::try_from(*i).unwrap_or(0),
            _ => 0,
        }
    }

    fn number(&self, name: &str) -> f64 {
        match self.0.get(name) {
            Some(Value::Number(x)) => *x,
            _ => 0.0,
        }
    }

    fn pair(&self, name: &str) -> (f64, f64) {
        match self.0.get(name) {
            Some(Value::Pair(a, b)) => (*a, *b),
            _ => (0.0, 0.0),
        }
    }
}

#[cfg(test)]
mod tests;
