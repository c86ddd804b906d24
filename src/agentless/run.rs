//! A run of the pipeline in a folder, from tasks to numbers. The three parts are apart because whoever runs tests comes between them: what
//! tests say ranks candidates, and whether the ranking's first resolves the task is one of the numbers.
//!
//! The folder: `samples.jsonl` ([`super::journal`]), of which everything else is a function: the files of [`super::records`],
//! `tasks.jsonl` ([`Record`]), `evaluation.json` ([`Summary`]) and `eval.html`.

use std::collections::BTreeMap;
use std::path::Path;

use rayon::prelude::*;

use super::evaluate::{Record, Summary, page, run_records};
use super::files;
use super::generator::Generator;
use super::journal::Journal;
use super::pipeline::{self, Pipeline, Product, Settings};
use super::records::{self, Ranked, Tests};
use super::session::{Progress, Session};
use super::{reproduction, rerank};
use crate::data::Task;
use crate::{Error, Result};

/// Runs the pipeline. Answers that the folder has are not sampled again; without `may_sample` all must be there.
///
/// # Errors
///
/// What the pipeline reports; [`Error::interrupted`], after which the same call goes on.
pub fn sample(
    dir: &Path,
    tasks: &[Task],
    settings: &Settings,
    generator: &dyn Generator,
    may_sample: bool,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Vec<Product>> {
    let journal = Journal::open(&dir.join("samples.jsonl"))?;
    let mut session = Session { generator, journal, may_sample, progress };
    let products = pipeline::run(tasks, settings, &mut session)?;
    session.journal.sort()?;
    Ok(products)
}

/// Asks for `n` reproduction tests of each of the tasks; answers come from the folder, or go there, as those of [`sample`].
///
/// # Errors
///
/// As [`sample`].
pub fn reproductions(
    dir: &Path,
    tasks: &[&Task],
    n: usize,
    settings: &Settings,
    generator: &dyn Generator,
    may_sample: bool,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Vec<Vec<Option<String>>>> {
    let journal = Journal::open(&dir.join("samples.jsonl"))?;
    let mut session = Session { generator, journal, may_sample, progress };
    let scripts = reproduction::ask(tasks, n, settings, &mut session)?;
    session.journal.sort()?;
    Ok(scripts)
}

/// Builds and ranks every task's candidates, as the pipeline's model does ([`rerank::orders`]); `tests` says what is known of a candidate,
/// by the task's name and the sample's number.
///
/// # Errors
///
/// The parsers cannot be set up.
pub fn rank(
    tasks: &[Task],
    products: &[Product],
    pipeline: Pipeline,
    tests: &(dyn Fn(&str, usize) -> Tests + Sync),
) -> Result<Vec<Ranked>> {
    let pairs: Vec<(&Task, &Product)> = tasks.iter().zip(products).collect();
    let one = |(task, product): &(&Task, &Product)| {
        Ranked::new(task, &product.candidates, rerank::orders(pipeline), &|i| tests(&task.instance_id, i))
    };
    pairs.par_iter().map(one).collect()
}

/// Judges the run and writes its files. `tasks` and `asked` as in [`run_records`]; `resolved` says of tasks whose tests were run whether the patch handed in makes them pass.
///
/// # Errors
///
/// A task whose gold patch does not fit its files; the system's.
pub fn finish(
    dir: &Path,
    (tasks, asked): (&[Task], &[Task]),
    products: &[Product],
    ranked: &[Ranked],
    resolved: &BTreeMap<String, bool>,
) -> Result<Vec<Record>> {
    let found = run_records((tasks, asked), products, ranked, resolved)?;
    records::write(dir, tasks, products, ranked)?;
    Ok(found)
}

/// Writes `tasks.jsonl`, `evaluation.json` and `eval.html`; `settings` are what the run was made with, as text.
///
/// # Errors
///
/// The system's.
pub fn write_numbers(dir: &Path, found: &[Record], settings: &str) -> Result<Summary> {
    let summary = Summary::new(found);
    files::write(&dir.join("tasks.jsonl"), found)?;
    files::write(&dir.join("evaluation.json"), std::slice::from_ref(&summary))?;
    let name = std::fs::canonicalize(dir).ok().and_then(|d| Some(d.file_name()?.to_string_lossy().into_owned()));
    let path = dir.join("eval.html");
    let html = page::render(&name.unwrap_or_else(|| "evaluation".to_owned()), &summary, settings);
    files::replace(&path, html.as_bytes())?;
    Ok(summary)
}

/// The records that a folder holds.
///
/// # Errors
///
/// A folder without them; a line that cannot be read.
pub fn read_records(dir: &Path) -> Result<Vec<Record>> {
    let path = dir.join("tasks.jsonl");
    if !path.is_file() {
        return Err(Error::input("there is no tasks.jsonl").at_file(dir).hint("give a folder that `eval --out` wrote to its end"));
    }
    files::read(&path)
}
