//! `train`: from a configuration to a trained model, with progress, Ctrl-C, checkpoints and a report.

use crate::cli::common::DeviceArgs;
use crate::cli::interrupt;
use crate::cli::output::{plural, say, to_stdout};
use crate::data::subtask::prompt_recipe::{self, PromptRecipe};
use crate::error::Kind;
use crate::model::Transformer;
use crate::model::lora::LoraConfig;
use crate::model::weights::{self, AdapterTensor, ModelFiles, TensorSpec};
use crate::rl::config::{Config, SUBTASKS, Stage};
use crate::rl::dataset::{Dataset, Item};
use crate::rl::evaluate::{Evaluation, evaluate};
use crate::rl::memory::{self, MemoryPlan, Place, Planned, Size};
use crate::rl::trainer::{Event, Examples, Hooks, Inputs, Trainer};
use crate::rl::{report, run_log};
use crate::tensor::Device;
use crate::{Error, Result};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

/// Trains a model as a configuration says: supervised (sft) or on rewards (grpo, ppo), in one stage or several. The run folder holds the resolved
/// configuration, metrics, answers, checkpoints, a report, and the result in model/ or adapter/.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The configuration [default: all settings from --set]
    #[arg(value_name = "CONFIG.toml", conflicts_with = "resume")]
    config: Option<PathBuf>,
    /// Override a setting (repeatable); stage.N.key=value for the N-th stage
    #[arg(long, value_name = "KEY=VALUE", conflicts_with = "resume")]
    set: Vec<String>,
    /// The run folder [default: runs/NAME for NAME.toml]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Go on with the run in --out from its last checkpoint
    #[arg(long, requires = "out")]
    resume: bool,
    /// Print how much memory the run takes, and stop; =SIZE (24GiB): on a GPU with so much, and by which settings it would fit there
    #[arg(long, value_name = "SIZE", num_args = 0..=1, require_equals = true, value_parser = size)]
    plan: Option<Option<u64>>,
    #[command(flatten)]
    pub(super) device: DeviceArgs,
}

impl Args {
    fn out(&self) -> PathBuf {
        let name = self.config.as_deref().and_then(Path::file_stem).map_or_else(|| "train".into(), |s| s.to_owned());
        self.out.clone().unwrap_or_else(|| Path::new("runs").join(name))
    }

    fn load_config(&self, out: &Path) -> Result<Config> {
        if self.resume {
            return Config::resume(out);
        }
        if self.config.is_none() && self.set.is_empty() {
            return Err(Error::usage("expected a configuration").hint("give CONFIG.toml, or --set key=value, or --resume --out DIR"));
        }
        if out.exists() && self.plan.is_none() {
            let hint = match out.join("config.toml").exists() {
                true => "go on with the run in it by --resume --out, or choose another folder",
                false => "choose a folder that is not there yet: a run makes its own",
            };
            return Err(Error::usage("this folder exists").at_file(out).at("--out").hint(hint));
        }
        Config::load(self.config.as_deref(), &self.set)
    }
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<()> {
    let out = args.out();
    let config = args.load_config(&out)?;
    let device = args.device.open()?;
    interrupt::listen()?;
    let files = weights::open(&config.model).map_err(|e| e.at("model"))?;
    let mut console = Console::new(config.total_steps());
    let examples = Examples::load(&config, &files, &mut |event| console.show(event))?;
    let adapter = config.adapter.as_deref().map(weights::load_peft).transpose()?;
    let lora = adapter.as_ref().map(|(lora, _)| lora).or(config.lora.as_ref());
    let run = Planned { place: place(&device, &files), config: &config, model: &files.config, lora, examples: &examples };
    let free = match &device {
        Device::Cpu => memory::available(),
        Device::Cuda(gpu) => gpu.free_bytes()?,
    };
    if let Some(size) = args.plan {
        console.bar.finish_and_clear();
        return match size {
            Some(size) => show_plan(&Planned { place: Place::Gpu { exact: all_bf16(&files) }, ..run }, Some(size)),
            None => show_plan(&run, free),
        };
    }
    free.map_or(Ok(()), |free| run.check(free))?;
    // Before anything is trained: its templates are files. Conversations bring prompts of their own.
    let asks = !examples.heldout.is_empty() || examples.stages.iter().any(|set| matches!(**set, Dataset::Items(_)));
    let recipe = asks.then(|| config.recipe()).transpose()?;
    if let Some(recipe) = &recipe {
        warn_of_other_prompts(recipe, &config, &files, &mut console)?;
    }
    let model = load_model(&config, &files, adapter, &device)?;
    if !args.resume {
        // Only now: a run that could not begin leaves no folder behind.
        run_log::begin(&out, &config.resolved)?;
    }
    let mut hooks = RunHooks { console, config: &config, files: &files, heldout: &examples.heldout, out: &out, recipe: recipe.as_ref() };
    let inputs = Inputs {
        config: &config,
        datasets: &examples.stages,
        tokenizer: files.tokenizer.as_ref(),
        out: &out,
        stop: &interrupt::pressed,
        hooks: &mut hooks,
    };
    let trained = Trainer::new(inputs, model, args.resume)?.run();
    hooks.console.bar.finish_and_clear();
    let trained = trained.map_err(|e| interrupted(e, &out))?;
    let result = out.join(if trained.lora().is_some() { "adapter" } else { "model" });
    hooks.save(&trained, &result)?;
    let report = report::write(&out)?;
    say!("{}\n{}", result.display(), report.display());
    Ok(())
}

/// A model that goes on with other prompts than it was trained with begins anew, mostly by mistake.
fn warn_of_other_prompts(recipe: &PromptRecipe, config: &Config, files: &ModelFiles, console: &mut Console) -> Result<()> {
    let dir = config.adapter.as_deref().unwrap_or(&files.path);
    let differences = PromptRecipe::read(dir)?.map(|before| before.differences(recipe)).unwrap_or_default();
    if !differences.is_empty() {
        let (file, said) = (dir.join(prompt_recipe::FILE), differences.join("; "));
        console.show(Event::Warning(format!("the model was trained with other prompts ({}): {said}", file.display())));
    }
    Ok(())
}

/// Where a run's numbers lie.
fn place(device: &Device, files: &ModelFiles) -> Place {
    match device {
        Device::Cpu => Place::Cpu { exact: all_bf16(files) },
        Device::Cuda(_) => Place::Gpu { exact: all_bf16(files) },
    }
}

/// Whether bf16 holds all weights as they are stored.
fn all_bf16(files: &ModelFiles) -> bool {
    files.weights.names().iter().all(|name| files.weights.is_bf16(name))
}

/// The table, and whether the run fits into what is there.
fn show_plan(run: &Planned<'_>, available: Option<u64>) -> Result<()> {
    let plan = MemoryPlan::new(run);
    let fits = available.map(|available| match plan.total <= available {
        true => format!("it fits into {}", Size(available)),
        false => format!("it does not fit into {}; {}", Size(available), run.advice(available)),
    });
    to_stdout(|out| {
        write!(out, "{plan}")?;
        fits.iter().try_for_each(|line| writeln!(out, "{line}"))
    })
}

/// Bytes of `24GiB`, `24G`, `24GB`, `900MiB` or `24` (GiB).
fn size(text: &str) -> std::result::Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit: f64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "g" | "gib" => f64::from(1 << 30),
        "gb" => 1e9,
        "m" | "mib" => f64::from(1 << 20),
        "mb" => 1e6,
        _ => return Err("expected a size like 24GiB, 24GB or 900MiB".into()),
    };
    match number.parse::<f64>() {
        Ok(number) if number > 0.0 => Ok((number * unit) as u64),
        _ => Err("expected a size like 24GiB, 24GB or 900MiB".into()),
    }
}

pub(super) fn load_model(
    config: &Config,
    files: &ModelFiles,
    adapter: Option<(LoraConfig, Vec<AdapterTensor>)>,
    device: &Device,
) -> Result<Transformer> {
    let mut model = Transformer::load(files, device, config.compute)?;
    if let (Some((lora, tensors)), Some(dir)) = (adapter, &config.adapter) {
        model.add_saved_lora(&lora, &tensors).map_err(|e| e.at_file(dir))?;
    } else if let Some(lora) = &config.lora {
        model.add_lora(lora, config.seed)?;
    }
    Ok(model)
}

/// The report of a run that was stopped, and how to go on; also after a full disk.
fn interrupted(error: Error, out: &Path) -> Error {
    if error.kind() == Kind::Io && out.join("checkpoints").is_dir() {
        return error.hint(format!("the last checkpoint stands; when this is mended: sorft-native train --resume --out {}", out.display()));
    }
    if error.kind() != Kind::Interrupted {
        return error;
    }
    if let Err(e) = report::write(out) {
        say!("warning: {e}");
    }
    error.hint(format!("go on with: sorft-native train --resume --out {}", out.display()))
}

/// What the trainer asks of the command line.
struct RunHooks<'a> {
    console: Console,
    config: &'a Config,
    files: &'a ModelFiles,
    heldout: &'a [Item],
    out: &'a Path,
    recipe: Option<&'a PromptRecipe>,
}

impl RunHooks<'_> {
    /// Writes a model, a PEFT folder if an adapter is trained, else a Hugging Face one, and how its prompts were made.
    fn save(&self, model: &Transformer, dir: &Path) -> Result<()> {
        run_log::sweep(dir);
        if let Some(lora) = model.lora() {
            let tensors: Vec<TensorSpec> = model.adapter_params().into_iter().map(|p| TensorSpec::new(p.name, &p.shape)).collect();
            weights::save_peft(dir, lora, &self.config.model, &tensors, &mut |name| model.export(name))?;
        } else {
            let dtype = if self.config.save_bf16 { weights::SaveDtype::Bf16 } else { weights::SaveDtype::F32 };
            weights::save_hf(dir, self.files, &weights::model_tensors(&self.files.config), dtype, &mut |name| model.export(name))?;
        }
        self.recipe.map_or(Ok(()), |recipe| run_log::replace(&dir.join(prompt_recipe::FILE), &recipe.to_json()))
    }
}

impl Hooks for RunHooks<'_> {
    fn event(&mut self, event: Event<'_>) {
        self.console.show(event);
    }

    fn evaluate(&mut self, model: &Transformer, _step: u64) -> Result<Option<Evaluation>> {
        let Some(tokenizer) = self.files.tokenizer.as_ref().filter(|_| !self.heldout.is_empty()) else {
            return Ok(None);
        };
        let (console, total) = (&self.console, self.heldout.len());
        let mut keep_going = |done: usize| {
            console.bar.set_prefix(format!("evaluating {done}/{total}"));
            !interrupt::pressed()
        };
        let (tokens, batch) = (self.config.eval_max_new_tokens, self.config.rollout_batch);
        evaluate(model, tokenizer, self.heldout, tokens, batch, &mut keep_going).map(Some)
    }

    /// In `best/`, which never holds a part of a model; the one before it gives way once the new one is whole.
    fn keep(&mut self, model: &Transformer, _step: u64) -> Result<()> {
        let [new, old, best] = [".best", ".best-before", "best"].map(|name| self.out.join(name));
        let rename = |from: &Path, to: &Path| std::fs::rename(from, to).map_err(|e| Error::io("rename to", to, e));
        let remove = |dir: &Path| match std::fs::remove_dir_all(dir) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", dir, e)),
            _ => Ok(()),
        };
        remove(&new)?;
        self.save(model, &new)?;
        if best.exists() {
            remove(&old)?;
            rename(&best, &old)?;
        }
        rename(&new, &best)?;
        remove(&old)
    }
}

/// Progress on stderr: a bar and the last step's numbers on a terminal, a line a step elsewhere.
struct Console {
    bar: ProgressBar,
    terminal: bool,
    /// Whether a step of this process has been shown: a resumed run's bar begins where the run was.
    begun: bool,
}

impl Console {
    fn new(steps: u64) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let bar = if terminal { ProgressBar::new(steps) } else { ProgressBar::hidden() };
        if let Ok(style) = ProgressStyle::with_template("{bar:20} {pos}/{len} {elapsed} (left {eta})  {prefix}\n{wide_msg}") {
            bar.set_style(style);
        }
        Self { bar, terminal, begun: false }
    }

    fn line(&self, text: &str) {
        self.bar.suspend(|| say!("{text}"));
    }

    fn show(&mut self, event: Event<'_>) {
        match event {
            Event::Note(text) => self.line(&text),
            Event::Warning(text) => self.line(&format!("warning: {text}")),
            Event::Stage(number, count, stage) => self.line(&stage_line(number, count, stage)),
            Event::Sampling(done, total) => self.bar.set_prefix(format!("sampling {done}/{total}")),
            Event::Step(step, total, line) => {
                if !std::mem::replace(&mut self.begun, true) {
                    self.bar.set_position(step.saturating_sub(1));
                    self.bar.reset_eta();
                }
                self.bar.set_position(step);
                self.bar.set_prefix("");
                let text = step_line(line);
                self.bar.set_message(text.clone());
                if !self.terminal {
                    say!("step {step}/{total}  {text}");
                }
            }
            Event::Evaluation(step, numbers) => self.line(&format!("evaluation after step {step}: {}", numbers_line(numbers))),
            Event::Checkpoint(path) => {
                if !self.terminal {
                    say!("checkpoint {}", path.display());
                }
            }
        }
    }
}

fn stage_line(number: usize, count: usize, stage: &Stage) -> String {
    let of = if count > 1 { format!("stage {number} of {count}: ") } else { String::new() };
    let (steps, prompts) = (plural(stage.steps, "step"), plural(stage.batch_prompts as u64, "prompt"));
    format!("{of}{}, {steps} of {prompts}", stage.algorithm.name())
}

/// A step's numbers for people.
fn step_line(line: &Map<String, Value>) -> String {
    let mut out = Vec::new();
    for (key, name) in [
        ("loss", "loss"),
        ("reward_mean", "reward"),
        ("valid", "valid"),
        ("answer_tokens_mean", "tokens"),
        ("kl", "kl"),
        ("value_loss", "value"),
        ("grad_norm", "|g|"),
        ("lr", "lr"),
    ] {
        if let Some(value) = line.get(key).and_then(Value::as_f64) {
            out.push(if key == "lr" { format!("{name} {value:.1e}") } else { format!("{name} {value:.4}") });
        }
    }
    if line.get("skipped") == Some(&Value::Bool(true)) {
        out.push("skipped".into());
    }
    out.join("  ")
}

fn numbers_line(numbers: &Map<String, Value>) -> String {
    let shown = ["tasks", "valid", "hit", "top1", "f1", "fbeta", "answers"];
    // Of a mixture each task is asked about several times.
    let mixed = SUBTASKS.iter().any(|name| numbers.contains_key(*name));
    let label = |key: &'static str| if mixed && key == "tasks" { "questions" } else { key };
    let text =
        |key: &&'static str| numbers.get(*key).and_then(Value::as_f64).map(|v| format!("{} {}", label(key), (v * 1e3).round() / 1e3));
    let all = shown.iter().filter_map(text).collect::<Vec<_>>().join("  ");
    let subtasks = SUBTASKS.iter().filter_map(|name| Some(format!("\n  {name}: {}", numbers_line(numbers.get(*name)?.as_object()?))));
    subtasks.fold(all, |line, subtask| line + &subtask)
}
