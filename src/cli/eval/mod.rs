//! `eval`: the pipeline on tasks whose fix is known, and how good its localisation and its patches are.

mod folder;
mod progress;
mod settings;
mod tasks;
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

pub(crate) use self::folder::Folder;
pub(crate) use self::progress::Reporter;
use super::common::{PlaceArgs, load};
use super::interrupt;
use super::output::{json_line, plural, say, to_stdout, width};
use crate::agentless::evaluate::{Record, check_gold, compare, patch_records, table};
use crate::agentless::generator::Local;
use crate::agentless::pipeline::{LastHop, Pipeline, Settings};
use crate::agentless::records::{MODEL_NAME, Tests};
use crate::agentless::{files, reproduction, run};
use crate::data::Task;
use crate::data::subtask::file::Universe;
use crate::model::dialogue::Dialogue;
use crate::model::weights::{self, ModelFiles};
use crate::{Error, Result};

pub(crate) use settings::PipelineArgs;
use tasks::{TaskArgs, Tasks};
use tests::TestArgs;

/// Localise and repair tasks whose fix is known, and measure hits, patches and coverage beside BM25
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A Hugging Face folder, a .gguf file, or a hub id owner/name
    #[arg(long, value_name = "MODEL", required_unless_present_any = ["predictions", "compare", "resume", "rerank_only"])]
    model: Option<String>,
    /// A PEFT LoRA folder
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    #[command(flatten)]
    pub place: PlaceArgs,
    #[command(flatten)]
    tasks: TaskArgs,
    /// Where everything sampled, predictions, numbers and eval.html go [default: nothing is kept]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Go on with what --out holds, with the options that it was begun with
    #[arg(long, requires = "out")]
    resume: bool,
    /// Rank and measure what --out holds again, without sampling, with the options that it was begun with
    #[arg(long, requires = "out", conflicts_with = "resume")]
    rerank_only: bool,
    #[command(flatten)]
    pipeline: PipelineArgs,
    /// The last hop, where localisation alone is wanted: file, function, line or edit [default: edit]
    #[arg(long, value_name = "HOP", value_parser = str::parse::<LastHop>, help_heading = "Pipeline")]
    until: Option<LastHop>,
    #[command(flatten)]
    tests: TestArgs,
    /// Measure these predictions in place of a model's: a file for SWE-bench's harness, or the words `gold`, `empty`
    #[arg(long, value_name = "FILE", conflicts_with_all = ["model", "adapter", "device", "compute", "rerank_only", "pipeline", "samples",
        "localisations", "temperature", "seed", "max_prompt_tokens", "max_new_tokens", "min_issue_tokens", "top_files", "order", "evidence",
        "answers", "close", "definitions", "until", "context_lines", "bm25_fallback", "no_chat", "max_batch", "reproduction_tests", "top_tests"])]
    predictions: Option<String>,
    /// The paired difference between two evaluations of the same tasks
    #[arg(long, num_args = 2, value_names = ["DIR_A", "DIR_B"], conflicts_with_all = ["model", "tasks", "out", "predictions"])]
    compare: Option<Vec<PathBuf>>,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) fn run(mut args: Args) -> Result<()> {
    if let Some(dirs) = &args.compare {
        return show_comparison(&args, &dirs[0], &dirs[1]);
    }
    if let Some(dir) = args.out.clone().filter(|_| args.resume || args.rerank_only) {
        args.fill(&dir)?;
    }
    args.pipeline.check()?;
    args.tests.check(args.tasks.repos.as_deref(), args.until.unwrap_or_default() == LastHop::Edit)?;
    match &args.predictions {
        Some(what) => measure(&args, what),
        None => {
            let files = weights::open(args.model.as_deref().ok_or_else(|| Error::usage("expected --model"))?)?;
            args.pipeline.learn(&files, args.adapter.as_deref())?;
            evaluate(&args, &files, &args.tasks.read(args.pipeline.whole_tree(), &|_| Ok(BTreeMap::new()))?)
        }
    }
}

/// The pipeline with a model.
fn evaluate(args: &Args, files: &ModelFiles, all: &Tasks) -> Result<()> {
    let tasks = &all.judged;
    if let Some(dir) = args.out.as_deref().filter(|dir| args.rerank_only && !dir.join("samples.jsonl").is_file()) {
        return Err(Error::usage("there is nothing to rank again: no samples.jsonl").at_file(dir));
    }
    check_gold(tasks)?;
    let dialogue = Dialogue::new(files, args.pipeline.chat())?;
    let settings = Settings { until: args.until.unwrap_or_default(), ..args.pipeline.resolve(files, &dialogue)? };
    if settings.pipeline == Pipeline::Mini && !matches!(settings.until, LastHop::File | LastHop::Edit) {
        return Err(Error::usage("--until: --pipeline mini has the hops file and edit"));
    }
    let described = args.describe(&settings, all);
    // Before the folder: a run that could not begin leaves none behind.
    let runs = args.tests.open(tasks, args.tasks.repos.as_deref(), args.out.as_deref())?;
    let folder = Folder::open(args.out.as_deref(), args.resume || args.rerank_only, &described, &[TESTS])?;
    interrupt::listen()?;
    let model =
        if args.rerank_only { None } else { Some(load(files, args.adapter.as_deref(), &args.place.device.open()?, args.place.compute)?) };
    let sampling = args.pipeline.sampling();
    let mut reporter = Reporter::new(tasks.len());
    let local = Local { model: model.as_ref(), dialogue, sampling, stop: &interrupt::pressed };
    let goes_on = |e: Error| match args.out.is_some() && e.exit_code() == 130 {
        true => e.hint("what was sampled is stored; the same command with --resume goes on"),
        false => e,
    };
    let (dir, may_sample) = (folder.path(), !args.rerank_only);
    let products = run::sample(dir, all.asked(), &settings, &local, may_sample, &mut |p| reporter.tell(p)).map_err(goes_on)?;
    let mut ranked = run::rank(tasks, &products, settings.pipeline, &|_, _| Tests::default())?;
    let (asked, most) = args.tests.reproductions(&settings);
    let mut scripts = BTreeMap::new();
    if asked > 0 {
        // One patch alone needs no tests to be chosen.
        let open: Vec<&Task> = all.asked().iter().zip(&ranked).filter(|(_, r)| r.order.len() > 1).map(|(t, _)| t).collect();
        let found = run::reproductions(dir, &open, asked, &settings, &local, may_sample, &mut |p| reporter.tell(p)).map_err(goes_on)?;
        scripts.extend(open.iter().map(|t| t.instance_id.clone()).zip(found));
    }
    let evidence = runs.evidence(tasks, &ranked, &scripts, most)?;
    write_reproductions(dir, (asked > 0).then_some(&evidence.reproductions))?;
    if !evidence.tests.is_empty() {
        let of = |id: &str, i: usize| evidence.tests.get(&(id.to_owned(), i)).cloned().unwrap_or_default();
        ranked = run::rank(tasks, &products, settings.pipeline, &of)?;
    }
    let handed_in = tasks.iter().zip(&ranked).map(|(task, ranked)| (task.instance_id.as_str(), ranked.best()));
    let (resolved, failed) = runs.resolved(tasks, &handed_in.collect())?;
    let records = run::finish(dir, (tasks, all.asked()), &products, &ranked, &resolved)?;
    reporter.write(dir)?;
    show(args, &folder, &records, &described)?;
    tests::all_ran(failed)
}

/// Writes the record of reproduction tests; where none were asked for, there is none of an earlier ranking either.
fn write_reproductions(dir: &Path, records: Option<&Vec<reproduction::Record>>) -> Result<()> {
    let path = dir.join("reproductions.jsonl");
    match records {
        Some(records) => files::write(&path, records),
        None if path.exists() => std::fs::remove_file(&path).map_err(|e| Error::io("remove", &path, e)),
        None => Ok(()),
    }
}

/// Given predictions.
fn measure(args: &Args, what: &str) -> Result<()> {
    let read = |tasks: &[Task]| -> Result<BTreeMap<String, String>> {
        Ok(match what {
            "gold" => tasks.iter().map(|t| (t.instance_id.clone(), t.patch.clone())).collect(),
            "empty" => BTreeMap::new(),
            file => files::read_predictions(Path::new(file))?.into_iter().map(|p| (p.instance_id, p.model_patch)).collect(),
        })
    };
    let all = args.tasks.read(args.pipeline.whole_tree(), &read)?;
    let (tasks, patches) = (&all.judged, read(&all.judged)?);
    check_gold(tasks)?;
    let there = tasks.iter().filter(|t| patches.contains_key(&t.instance_id)).count();
    if what != "empty" && there < tasks.len() {
        say!("warning: {what} has no prediction for {} of {}", tasks.len() - there, plural(tasks.len() as u64, "task"));
    }
    if patches.len() > there {
        say!("warning: {} of {what} are about none of the tasks", plural((patches.len() - there) as u64, "prediction"));
    }
    let mut described = json!({"predictions": what, "universe": args.pipeline.universe()});
    merge(&mut described, args.tasks.describe(&all));
    described[TESTS] = args.tests.describe(args.tasks.repos.as_deref());
    let runs = args.tests.open(tasks, args.tasks.repos.as_deref(), args.out.as_deref())?;
    let folder = Folder::open(args.out.as_deref(), args.resume || args.rerank_only, &described, &[TESTS])?;
    interrupt::listen()?;
    let handed_in = patches.iter().map(|(id, patch)| (id.as_str(), patch.as_str()));
    let (resolved, failed) = runs.resolved(tasks, &handed_in.collect())?;
    let records = patch_records((tasks, all.asked()), &patches, &resolved)?;
    let line = |t: &Task| files::Prediction {
        model_name_or_path: MODEL_NAME.to_owned(),
        instance_id: t.instance_id.clone(),
        model_patch: patches.get(&t.instance_id).cloned().unwrap_or_default(),
    };
    files::write(&folder.path().join("all_preds.jsonl"), &tasks.iter().map(line).collect::<Vec<_>>())?;
    show(args, &folder, &records, &described)?;
    tests::all_ran(failed)
}

fn show(args: &Args, folder: &Folder, records: &[Record], described: &Value) -> Result<()> {
    let text = serde_json::to_string_pretty(described).unwrap_or_default();
    let summary = run::write_numbers(folder.path(), records, &text)?;
    if args.out.is_some() {
        say!("{}", folder.path().join("eval.html").display());
    }
    match args.json {
        true => json_line(&serde_json::to_value(&summary).map_err(|e| Error::input(format!("cannot write JSON: {e}")))?),
        false => to_stdout(|out| write!(out, "{}", table::render(&summary, width()))),
    }
}

fn show_comparison(args: &Args, a: &Path, b: &Path) -> Result<()> {
    let comparison = compare(&run::read_records(a)?, &run::read_records(b)?)?;
    match args.json {
        true => json_line(&serde_json::to_value(&comparison).map_err(|e| Error::input(format!("cannot write JSON: {e}")))?),
        false => to_stdout(|out| write!(out, "A {}\nB {}\n{}", a.display(), b.display(), table::render_comparison(&comparison, width()))),
    }
}

/// The field of `settings.json` that says what tests are run: the one that may differ when a run goes on.
const TESTS: &str = "tests";

/// What `settings.json` of a run says.
#[derive(serde::Deserialize)]
struct Recorded {
    predictions: Option<String>,
    universe: Option<Universe>,
    model: Option<String>,
    adapter: Option<PathBuf>,
    #[serde(flatten)]
    asked: tasks::Recorded,
    tests: Option<tests::Recorded>,
    sampling: Option<settings::Recorded>,
    settings: Option<Settings>,
}

impl Args {
    /// Fills in what the folder's run was begun with, where nothing else is given; what is given and differs is refused later.
    fn fill(&mut self, dir: &Path) -> Result<()> {
        let Some(recorded) = folder::recorded::<Recorded>(dir)? else {
            let begins = self.tasks.given() && (self.model.is_some() || self.predictions.is_some());
            let hint = "give the folder that --out named, or all options to begin a run";
            return if begins { Ok(()) } else { Err(Error::usage("no run was begun there: no settings.json").at_file(dir).hint(hint)) };
        };
        if self.model.is_none() {
            self.predictions = self.predictions.take().or(recorded.predictions);
        }
        self.model = self.model.take().or(recorded.model);
        self.adapter = self.adapter.take().or(recorded.adapter);
        self.tasks.fill(recorded.asked);
        if let Some(tests) = recorded.tests {
            self.tests.fill(tests, &mut self.tasks.repos);
        }
        if let Some(universe) = recorded.universe {
            self.pipeline.fill_universe(universe);
        }
        if let (Some(settings), Some(sampling)) = (recorded.settings, recorded.sampling) {
            self.pipeline = self.pipeline.over(&settings, &sampling);
            self.until = self.until.or(Some(settings.until));
        }
        Ok(())
    }

    /// Everything that the samples are a function of, as `settings.json` has it, and what tests are run.
    fn describe(&self, settings: &Settings, tasks: &Tasks) -> Value {
        let mut out = json!({"model": self.model, "adapter": self.adapter.as_deref().map(Path::to_string_lossy)});
        merge(&mut out, self.tasks.describe(tasks));
        merge(&mut out, json!({"sampling": self.pipeline.describe(), "settings": settings}));
        out[TESTS] = self.tests.describe(self.tasks.repos.as_deref());
        out
    }
}

/// Adds the fields of an object to another's.
fn merge(to: &mut Value, from: Value) {
    if let (Value::Object(to), Value::Object(from)) = (to, from) {
        to.extend(from);
    }
}
