//! A run's records, recomputed.
//!
//! [`check_records`] needs no model: each recorded answer is judged anew, advantages are normalised anew, and the loss follows from the
//! recorded log-probabilities wherever a step makes one update and its loss looks at answers alone (the first ratio is exactly 1, because
//! sampling and training compute the same bits). [`replay`] runs steps again, from the checkpoint before them, and compares all that they
//! leave: answers, log-probabilities, loss, gradient norm and checksum. Everything is compared exactly.

use crate::error::{Error, Result};
use crate::model::Transformer;
use crate::model::generate::{Completion, FinishReason};
use crate::model::tokenizer::Tokenizer;
use crate::rl::checkpoint::{self, Checkpoint};
use crate::rl::config::{Algorithm, Config, Stage};
use crate::rl::dataset::{Dataset, Item};
use crate::rl::evaluate::Evaluation;
use crate::rl::experience::Rule;
use crate::rl::objective::{BatchStats, Metrics, Sample};
use crate::rl::rollout::{self, Job, Rollout};
use crate::rl::run_log::read_lines;
use crate::rl::trainer::{self, Event, Hooks, Inputs, Trainer};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::path::Path;
use std::sync::Arc;

/// The first place where a record is not what is computed.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Difference {
    /// The step.
    pub step: u64,
    /// The file, with the line where it has several of a step.
    pub place: String,
    /// The task and the answer, where it is about one.
    pub answer: Option<String>,
    /// The field.
    pub field: String,
    /// What the record says.
    pub recorded: Value,
    /// What is computed.
    pub computed: Value,
}

/// What was compared, up to the first difference.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Found {
    /// Steps in `metrics.jsonl`.
    pub steps: u64,
    /// Steps whose answers were judged anew.
    pub rollout_steps: u64,
    /// Answers in them.
    pub answers: usize,
    /// Those steps whose loss was recomputed from the record. The others' needs a replay.
    pub losses: u64,
    /// The first difference.
    pub difference: Option<Difference>,
}

/// A run's records and what they were made from.
pub struct Run<'a> {
    /// The run folder.
    pub dir: &'a Path,
    /// Its settings.
    pub config: &'a Config,
    /// The examples of each stage.
    pub datasets: &'a [Arc<Dataset>],
    /// The model's tokenizer.
    pub tokenizer: Option<&'a Tokenizer>,
    /// The lines of `metrics.jsonl`, evaluations left out.
    pub metrics: Vec<Map<String, Value>>,
}

impl<'a> Run<'a> {
    /// Reads the metrics of a run.
    pub fn open(dir: &'a Path, config: &'a Config, datasets: &'a [Arc<Dataset>], tokenizer: Option<&'a Tokenizer>) -> Result<Self> {
        let path = dir.join("metrics.jsonl");
        let mut metrics = read_lines(&path)?;
        metrics.retain(|line| !line.contains_key("eval"));
        for (i, line) in metrics.iter().enumerate() {
            if line.get("step").and_then(Value::as_u64) != Some(i as u64 + 1) {
                return Err(Error::input(format!("the {}. step has no line of its own", i + 1)).at_file(&path));
            }
        }
        Ok(Self { dir, config, datasets, tokenizer, metrics })
    }

    /// The stage of a step (from 1), its index, and the step's number within it (from 1). The records say it: a stage may have ended before
    /// its last step.
    fn stage(&self, step: u64) -> Option<(usize, &'a Stage, u64)> {
        let of = |line: &Map<String, Value>| line.get("stage").and_then(Value::as_u64);
        let number = of(self.line(step)?)?;
        let index = usize::try_from(number).ok()?.checked_sub(1)?;
        let stage = self.config.stages.get(index)?;
        let before = self.metrics.iter().take_while(|line| of(line) != Some(number)).count() as u64;
        step.checked_sub(before).filter(|within| (1..=stage.steps).contains(within)).map(|within| (index, stage, within))
    }

    fn line(&self, step: u64) -> Option<&Map<String, Value>> {
        self.metrics.get(usize::try_from(step.checked_sub(1)?).ok()?)
    }
}

/// A line of `rollouts/STEP.jsonl`, as far as an answer is concerned.
#[derive(Deserialize)]
struct Recorded {
    id: String,
    prompt_index: usize,
    index: usize,
    finish_reason: FinishReason,
    text: String,
    ids: Vec<u32>,
    logprobs: Vec<f32>,
}

/// Recomputes rewards, advantages and what follows from them, step by step.
///
/// # Errors
/// Records that are missing or cannot be read. A difference is a finding, not an error.
pub fn check_records(run: &Run<'_>) -> Result<Found> {
    let mut found = Found { steps: run.metrics.len() as u64, ..Found::default() };
    for step in 1..=found.steps {
        let Some((index, stage, within)) = run.stage(step) else {
            return Err(Error::input(format!("step {step} is in no stage of config.toml")).at_file(&run.dir.join("metrics.jsonl")));
        };
        if stage.algorithm == Algorithm::Grpo
            && answers_tell_all(stage)
            && let Dataset::Items(items) = &*run.datasets[index]
        {
            found.difference = check_step(run, step, within, index, stage, items, &mut found)?;
        }
        if found.difference.is_some() {
            break;
        }
    }
    Ok(found)
}

/// The first difference of one step's records.
fn check_step(
    run: &Run<'_>,
    step: u64,
    within: u64,
    index: usize,
    stage: &Stage,
    items: &[Item],
    found: &mut Found,
) -> Result<Option<Difference>> {
    let name = format!("rollouts/{step}.jsonl");
    let recorded = read_lines(&run.dir.join(&name))?;
    let mut order = run.datasets[index].order(stage, index, run.config.seed);
    let asked: Vec<&Item> =
        (0..stage.batch_prompts as u64).map(|i| &items[order.at((within - 1) * stage.batch_prompts as u64 + i)]).collect();
    let mut completions = Vec::new();
    for (i, line) in recorded.iter().enumerate() {
        let line = Value::Object(line.clone());
        let answer: Recorded =
            serde_json::from_value(line).map_err(|e| Error::input(e.to_string()).at_line(&run.dir.join(&name), i + 1))?;
        let place = [("prompt_index", answer.prompt_index, i / stage.group_size), ("index", answer.index, i % stage.group_size)];
        let place = place.map(|(field, found, expected)| (field, json!(found), json!(expected)));
        let id = asked.get(i / stage.group_size).map_or("", |item| &item.id);
        let fields = [&place[..], &[("id", json!(answer.id), json!(id))]].concat();
        if let Some((field, recorded, computed)) = fields.into_iter().find(|(_, a, b)| a != b) {
            let place = format!("{name}:{}", i + 1);
            return Ok(Some(Difference { step, place, answer: None, field: field.into(), recorded, computed }));
        }
        let Recorded { prompt_index, index, ids, logprobs, text, finish_reason, .. } = answer;
        completions.push(Completion { prompt_index, index, ids, logprobs, text, finish_reason });
    }
    let groups = rollout::judge(&asked, completions, stage.group_size, &Rule::new(stage, stage.kl_coef), run.tokenizer)
        .map_err(|e| e.at_file(&run.dir.join(&name)))?;
    for (i, (computed, recorded)) in rollout::lines(&asked, &groups).iter().zip(&recorded).enumerate() {
        let computed = computed.as_object().cloned().unwrap_or_default();
        if let Some(d) = first_difference(step, format!("{name}:{}", i + 1), recorded, &computed) {
            return Ok(Some(d));
        }
    }
    found.rollout_steps += 1;
    found.answers += recorded.len();
    let Some(line) = run.line(step) else { return Ok(None) };
    let mut computed = rollout::summary(&asked, &groups);
    if line.get("skipped") != Some(&Value::Bool(true)) && follows_from_the_record(stage) {
        computed.extend(loss(stage, &asked, &groups));
        found.losses += 1;
    }
    let recorded: Map<String, Value> =
        line.iter().filter(|(k, _)| computed.contains_key(*k)).map(|(k, v)| (k.clone(), v.clone())).collect();
    Ok(first_difference(step, "metrics.jsonl".into(), &recorded, &computed))
}

/// Whether a step's advantages are a function of its recorded answers alone, and its questions of its number.
fn answers_tell_all(stage: &Stage) -> bool {
    stage.sampling_rounds == 1 && !Rule::new(stage, stage.kl_coef).by_token()
}

/// Whether a step's loss is a function of its recorded answers alone.
fn follows_from_the_record(stage: &Stage) -> bool {
    stage.epochs == 1 && stage.minibatches == 1 && stage.kl_coef == 0.0 && stage.entropy_coef == 0.0
}

/// A step's loss and ratios from its answers: the new log-probabilities of its only update are the recorded ones, to the bit.
fn loss(stage: &Stage, items: &[&Item], groups: &[Vec<Rollout>]) -> Map<String, Value> {
    let mut objective = trainer::objective(stage, stage.kl_coef);
    let jobs: Vec<Job> = items.iter().zip(groups).map(|(item, group)| Job::group(item, group)).collect();
    objective.prepare(BatchStats::count(jobs.iter().flat_map(|j| &j.targets).map(|t| t.tokens)));
    let mut sum = Metrics::default();
    for job in &jobs {
        let entropy: Vec<Vec<f32>> = job.targets.iter().map(|t| vec![0.0; t.tokens]).collect();
        let samples = job.targets.iter().zip(&entropy).zip(job.advantages());
        let samples: Vec<Sample<'_>> = samples
            .map(|((t, entropy), advantage)| Sample {
                logprob: &t.old_logprob,
                old_logprob: &t.old_logprob,
                ref_logprob: None,
                entropy,
                advantage,
            })
            .collect();
        sum.add(&objective.evaluate(&samples).metrics);
    }
    let numbers = json!({"loss": sum.loss, "targets": sum.tokens, "ratio_max": sum.ratio_max, "clip_fraction": sum.clip_fraction()});
    numbers.as_object().cloned().unwrap_or_default()
}

/// The first field in which a record is not what is computed; fields of the one alone count.
fn first_difference(step: u64, place: String, recorded: &Map<String, Value>, computed: &Map<String, Value>) -> Option<Difference> {
    let text = |key: &str| recorded.get(key).and_then(Value::as_str);
    let answer = text("id").map(|id| format!("task {id}, answer {}", recorded.get("index").unwrap_or(&Value::Null)));
    let keys = computed.keys().chain(recorded.keys().filter(|k| !computed.contains_key(*k)));
    keys.into_iter().find(|k| recorded.get(*k) != computed.get(*k)).map(|key| {
        let value = |map: &Map<String, Value>| map.get(key).cloned().unwrap_or(Value::Null);
        Difference { step, place, answer, field: key.clone(), recorded: value(recorded), computed: value(computed) }
    })
}

/// What a replay did.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Replayed {
    /// The step of the checkpoint it went on from; 0 for the start.
    pub from: u64,
    /// The step that was asked for.
    pub step: u64,
    /// Its gradient's checksum, as computed.
    pub grad_sum: Value,
    /// The first difference.
    pub difference: Option<Difference>,
}

/// Runs a step again, with those between it and the checkpoint before it (or the start), and compares what they leave. `model` is as
/// loaded for the run; `scratch` is an empty folder, in which the steps leave their files.
///
/// # Errors
/// A step that the run does not have; whatever training reports.
pub fn replay(run: &Run<'_>, model: Transformer, step: u64, scratch: &Path, stop: &dyn Fn() -> bool) -> Result<Replayed> {
    let Some((index, _, within)) = run.stage(step).filter(|_| run.line(step).is_some()) else {
        let message = format!("there is no step {step}: the run has {}", run.metrics.len());
        return Err(Error::usage(message).at_file(run.dir).at("--step"));
    };
    let from = lay_out(run.dir, scratch, step)?;
    let mut config = run.config.clone();
    config.stages.truncate(index + 1);
    config.stages[index].steps = within;
    config.checkpoint_every = 0;
    config.eval_at_start = false;
    let mut quiet = Quiet;
    let inputs = Inputs { config: &config, datasets: run.datasets, tokenizer: run.tokenizer, out: scratch, stop, hooks: &mut quiet };
    Trainer::new(inputs, model, true)?.run()?;
    let computed = read_lines(&scratch.join("metrics.jsonl"))?;
    let grad_sum = computed.last().and_then(|line| line.get("grad_sum")).cloned().unwrap_or(Value::Null);
    let mut difference = None;
    for (line, at) in computed.iter().zip(from + 1..) {
        difference = compare_step(run, scratch, at, line)?;
        if difference.is_some() {
            break;
        }
    }
    Ok(Replayed { from, step, grad_sum, difference })
}

/// Puts the newest whole checkpoint before `step` into the scratch folder, with the references; returns its step, 0 if there is none.
fn lay_out(run: &Path, scratch: &Path, step: u64) -> Result<u64> {
    copy_folder(&run.join("reference"), &scratch.join("reference"))?;
    for (at, path) in checkpoint::list(&run.join("checkpoints"))?.into_iter().rev().filter(|(at, _)| *at < step) {
        if Checkpoint::open(&path).is_ok() {
            copy_folder(&path, &scratch.join("checkpoints").join(at.to_string()))?;
            return Ok(at);
        }
    }
    Ok(0)
}

/// Copies a folder's files; none if it is not there.
fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    let Ok(entries) = std::fs::read_dir(from) else { return Ok(()) };
    std::fs::create_dir_all(to).map_err(|e| Error::io("create", to, e))?;
    for entry in entries {
        let path = entry.map_err(|e| Error::io("read", from, e))?.path();
        if let Some(name) = path.file_name() {
            std::fs::copy(&path, to.join(name)).map_err(|e| Error::io("copy", &path, e))?;
        }
    }
    Ok(())
}

/// The first difference between a step's records and its replay's: the answers, then the line of metrics.
fn compare_step(run: &Run<'_>, scratch: &Path, step: u64, line: &Map<String, Value>) -> Result<Option<Difference>> {
    let name = format!("rollouts/{step}.jsonl");
    if scratch.join(&name).exists() {
        let (recorded, computed) = (read_lines(&run.dir.join(&name))?, read_lines(&scratch.join(&name))?);
        for (i, computed) in computed.iter().enumerate() {
            let nothing = Map::new();
            let place = format!("{name}:{}", i + 1);
            let difference = first_difference(step, place, recorded.get(i).unwrap_or(&nothing), computed);
            if difference.is_some() {
                return Ok(difference);
            }
        }
    }
    let nothing = Map::new();
    Ok(first_difference(step, "metrics.jsonl".into(), run.line(step).unwrap_or(&nothing), line))
}

/// A replay tells nothing and evaluates nothing.
struct Quiet;

impl Hooks for Quiet {
    fn event(&mut self, _: Event<'_>) {}

    fn evaluate(&mut self, _: &Transformer, _: u64) -> Result<Option<Evaluation>> {
        Ok(None)
    }

    fn keep(&mut self, _: &Transformer, _: u64) -> Result<()> {
        Ok(())
    }
}
