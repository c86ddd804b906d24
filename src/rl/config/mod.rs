//! The configuration of a training run: TOML, `--set key=value`, defaults, `[[stage]]` overrides.
//!
//! [`keys::KEYS`] is the one table of settings. [`Config::load`] turns a file and flags into typed settings and the complete text of the
//! run's `config.toml`, which [`Config::resume`] reads back to the same settings.

pub mod keys;
mod load;
mod prompt;
mod stage;

use crate::error::{Error, Result};
use crate::model::lora::LoraConfig;
use crate::tensor::cpu::Compute;
use keys::KEYS;
pub use load::{Given, Value, Values};
pub use prompt::PromptSettings;
pub use stage::{AdvantageKind, Algorithm, CriticKind, CriticSettings, Reference, Stage};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// The subtasks, as `subtask` names them.
pub const SUBTASKS: &[&str] = &["file", "function", "line", "edit", "repair"];

/// A training run's settings, complete and checked.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)] // documented, one by one, in `keys::KEYS`
pub struct Config {
    pub model: String,
    pub adapter: Option<PathBuf>,
    pub seed: u64,
    pub compute: Compute,
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
    pub eval_best: Option<String>,
    pub eval_patience: u64,
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
        let lora = (rank > 0).then(|| LoraConfig { rank, alpha: r.number("lora.alpha") as f32, targets: r.texts("lora.targets") });
        lora.iter().try_for_each(LoraConfig::check)?;
        check_subtasks(&r)?;
        check_best(&r)?;
        check_critics(&stages, rank > 0 || adapter.is_some())?;
        Ok(Self {
            model: optional("model").ok_or_else(|| missing("model", "model = \"path/to/model\""))?,
            adapter,
            seed: r.size("seed") as u64,
            compute: if r.text("compute") == "bf16" { Compute::Bf16 } else { Compute::F32 },
            heldout: r.paths("data.heldout"),
            subtasks: r.subtasks(),
            prompt: PromptSettings::read(&r),
            reward_beta: r.number("reward.beta"),
            rollout_batch: r.size("rollout_batch"),
            lora,
            eval_every: r.size("eval.every") as u64,
            eval_at_start: r.bool("eval.at_start"),
            eval_tasks: r.size("eval.tasks"),
            eval_best: optional("eval.best"),
            eval_patience: r.size("eval.patience") as u64,
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

/// Refuses a best evaluation where there is none, and patience without anything that could be better.
fn check_best(r: &Reader<'_>) -> Result<()> {
    let (best, patience) = (!r.text("eval.best").is_empty(), r.size("eval.patience") > 0);
    if patience && !best {
        return Err(Error::input("nothing says which evaluation is better").at("eval.patience").hint("set eval.best, such as \"fbeta\""));
    }
    if best && r.paths("data.heldout").is_empty() {
        return Err(Error::input("there is nothing to evaluate on").at("eval.best").hint("set data.heldout, or leave out eval.best"));
    }
    Ok(())
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
