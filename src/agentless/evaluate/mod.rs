//! How good a run's localisation and patches are: numbers of every task ([`Record`]), their means with intervals beside BM25's
//! ([`Summary`]), as text ([`table`]), as a page ([`page`]), and two runs compared ([`compare()`]).
//!
//! A set that was answered *hits any* where it holds any gold element, and *hits all* where it holds every one. The first is what a reward
//! of hits pays for; the second is the "correct location" of Agentless (arXiv 2407.01489, section 4), which asks a patch to edit a superset of
//! what the gold patch edits. SoRFT's paper (arXiv 2502.20127) does not say which of the two its hit rates are, so both are given.

mod baseline;
mod compare;
mod judge;
pub mod page;
mod summary;
pub mod table;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

pub use compare::{Comparison, compare};
pub use judge::{Judge, PatchScore};
pub use summary::{Interval, Summary};

use super::pipeline::{Hop, Product};
use super::records::Ranked;
use crate::Result;
use crate::data::Task;
use crate::data::coverage::expected_best;
use crate::data::metrics::SetScore;

/// The numbers of a task, a line of `tasks.jsonl`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The task.
    pub instance_id: String,
    /// Its repository: what intervals cluster by.
    pub repo: String,
    /// What was measured, by name (`docs/evaluation.md` lists them); a number that a task cannot have is not there.
    pub numbers: BTreeMap<String, f64>,
    /// What `k` samples reach together, for `k` of 1, 2, ...: [`expected_best`] over the samples.
    pub coverage: BTreeMap<String, Vec<f64>>,
    /// Why there is no patch, if there is none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub no_patch: Option<String>,
}

/// Whether a set hits anything, and everything.
fn hits(score: &SetScore) -> (f64, f64) {
    let flag = |b: bool| f64::from(u8::from(b));
    (flag(score.common > 0), flag(score.gold > 0 && score.common == score.gold))
}

impl Record {
    fn new(task: &Task) -> Self {
        Self { instance_id: task.instance_id.clone(), repo: task.repo_name().to_owned(), ..Self::default() }
    }

    fn put(&mut self, name: &str, value: f64) {
        self.numbers.insert(name.to_owned(), value);
    }

    fn put_set(&mut self, name: &str, score: &SetScore) {
        if score.gold > 0 {
            let (any, all) = hits(score);
            self.put(&format!("{name}.any"), any);
            self.put(&format!("{name}.all"), all);
            self.put(&format!("{name}.answers"), score.answers as f64);
        }
    }

    /// The numbers of a localisation hop: what its answers name together, and what `k` of them hit.
    fn put_hop<T: Ord>(&mut self, name: &str, hop: &Hop<T>, gold: &BTreeSet<T>) {
        if gold.is_empty() {
            return;
        }
        self.put_set(name, &SetScore::new(&hop.merged, gold, true));
        let valid = hop.samples.iter().filter(|s| s.error.is_none()).count();
        self.put(&format!("{name}.valid"), valid as f64 / hop.samples.len().max(1) as f64);
        let of_samples: Vec<(f64, f64)> = hop.samples.iter().map(|s| hits(&SetScore::new(&s.elements, gold, true))).collect();
        self.cover(&format!("{name}.any"), of_samples.iter().map(|h| h.0));
        self.cover(&format!("{name}.all"), of_samples.iter().map(|h| h.1));
    }

    /// The numbers of the candidates and of the one that is handed in.
    fn put_candidates(&mut self, judge: &Judge<'_>, product: &Product, ranked: &Ranked) {
        let candidates = &product.candidates;
        let share = |n: usize| n as f64 / candidates.len() as f64;
        self.put("patch.valid", share(candidates.iter().filter(|c| c.error.is_none()).count()));
        self.put("patch.candidates", share(ranked.built.iter().filter(|b| !b.patch.is_empty()).count()));
        self.put("patch.distinct", ranked.order.len() as f64);
        let mut scores: HashMap<&str, PatchScore> = HashMap::new();
        for patch in ranked.built.iter().map(|b| b.patch.as_str()).chain([ranked.best()]) {
            scores.entry(patch).or_insert_with(|| judge.patch(patch));
        }
        let of = |i: usize| &scores[ranked.built[i].patch.as_str()];
        let flag = |b: bool| f64::from(u8::from(b));
        self.cover("patch.applied", (0..candidates.len()).map(|i| flag(of(i).applied)));
        self.cover("patch.similarity", (0..candidates.len()).map(|i| of(i).similarity));
        self.cover("patch.exact", (0..candidates.len()).map(|i| flag(of(i).exact)));
        self.cover("patch.function.all", (0..candidates.len()).map(|i| hits(&of(i).functions).1));
        self.cover("patch.line.any", (0..candidates.len()).map(|i| hits(&of(i).lines).0));
        self.put_patch(&scores[ranked.best()]);
    }

    /// The numbers of the patch that is handed in.
    fn put_patch(&mut self, score: &PatchScore) {
        let flag = |b: bool| f64::from(u8::from(b));
        self.put("patch.applied", flag(score.applied));
        self.put("patch.similarity", score.similarity);
        self.put("patch.exact", flag(score.exact));
        for (unit, set) in [("file", &score.files), ("function", &score.functions), ("line", &score.lines)] {
            self.put_set(&format!("patch.{unit}"), set);
        }
        self.no_patch.clone_from(&score.reason);
    }

    /// BM25's hits where it names as many files and functions as the model did (at least one), and how far the model leads it. `task` is as a
    /// model is asked: the files that only a patch brought in are not among those to choose from. None: functions were not asked for.
    fn put_baselines(&mut self, task: &Task, judge: &Judge<'_>, universe: &[String], (files, functions): (usize, Option<usize>)) {
        self.put_set("bm25.file", &baseline::files(task, judge, universe, files.max(1), false));
        // Definitions and contents of some files alone would rank these for being known.
        if universe.iter().all(|path| task.files.contains_key(path)) {
            self.put_set("fused.file", &baseline::files(task, judge, universe, files.max(1), true));
        }
        if let Some(functions) = functions.filter(|_| !judge.functions.is_empty()) {
            self.put_set("bm25.function", &baseline::functions(task, judge, functions.max(1), false));
            self.put_set("fused.function", &baseline::functions(task, judge, functions.max(1), true));
        }
        for (unit, baseline) in
            [("file", "bm25.file"), ("file", "fused.file"), ("function", "bm25.function"), ("function", "fused.function")]
        {
            for what in ["any", "all"] {
                let of = |name: &str| self.numbers.get(&format!("{name}.{what}")).copied();
                if let (Some(model), Some(baseline_has)) = (of(unit), of(baseline)) {
                    self.put(&format!("{baseline}.lead.{what}"), model - baseline_has);
                }
            }
        }
    }

    fn cover(&mut self, name: &str, values: impl Iterator<Item = f64>) {
        let values: Vec<f64> = values.collect();
        if !values.is_empty() {
            self.coverage.insert(name.to_owned(), expected_best(&values));
        }
    }
}

/// That every task can be judged, before anything is sampled for it.
///
/// # Errors
///
/// A task whose gold patch does not parse or does not fit its files.
pub fn check_gold(tasks: &[Task]) -> Result<()> {
    tasks.par_iter().try_for_each(|task| Judge::new(task).map(drop))
}

/// The records of a pipeline's run: `asked` are the tasks as the model was asked, `tasks` as answers are judged (with all files that patches
/// change). `resolved` says of a task whether the patch that is handed in makes its tests pass, where that is known.
///
/// # Errors
///
/// A task whose gold patch does not parse or does not fit its files.
pub fn run_records(
    (tasks, asked): (&[Task], &[Task]),
    products: &[Product],
    ranked: &[Ranked],
    resolved: &BTreeMap<String, bool>,
) -> Result<Vec<Record>> {
    let all: Vec<_> = tasks.iter().zip(asked).zip(products.iter().zip(ranked)).collect();
    let one = |((task, asked), (product, ranked)): &((&Task, &Task), (&Product, &Ranked))| {
        run_record((task, asked), product, ranked, resolved.get(&task.instance_id).copied())
    };
    all.par_iter().map(one).collect()
}

fn run_record((task, asked): (&Task, &Task), product: &Product, ranked: &Ranked, resolved: Option<bool>) -> Result<Record> {
    let judge = Judge::new(task)?;
    let mut record = Record::new(task);
    // What a model found counts, not what was put in its place.
    let merged: &[String] = if product.fell_back { &[] } else { &product.files.merged };
    record.put_hop("file", &Hop { samples: product.files.samples.clone(), merged: merged.to_vec() }, &judge.files);

    if let Some(hop) = &product.functions {
        record.put_hop("function", hop, &judge.functions);
    }
    if let Some(hop) = &product.lines {
        record.put_hop("line", hop, &judge.lines);
    }

    if !product.candidates.is_empty() {
        record.put_candidates(&judge, product, ranked);
        record.no_patch = record.no_patch.take().filter(|_| ranked.best().is_empty()).map(|_| why_none(product, ranked));
    }
    if let Some(resolved) = resolved {
        record.put("resolved", f64::from(u8::from(resolved)));
    }
    let functions = match &product.functions {
        Some(hop) => Some(hop.merged.len()),
        None => record.numbers.get("patch.function.answers").map(|&n| n as usize),
    };
    record.put_baselines(asked, &judge, &product.universe, (merged.len(), functions));
    Ok(record)
}

/// The commonest reason why a task's candidates are none.
pub fn why_none(product: &Product, ranked: &Ranked) -> String {
    let reasons = product.candidates.iter().zip(&ranked.built).filter_map(|(c, b)| c.error.clone().or_else(|| b.blank.clone()));
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    reasons.for_each(|r| *counts.entry(r).or_default() += 1);
    counts.into_iter().max_by_key(|(_, n)| *n).map_or_else(|| "no candidate".to_owned(), |(reason, _)| reason)
}

/// The records of given patches, by task (an empty text for none); `asked` as in [`run_records`].
///
/// # Errors
///
/// As [`run_records`].
pub fn patch_records(
    (tasks, asked): (&[Task], &[Task]),
    patches: &BTreeMap<String, String>,
    resolved: &BTreeMap<String, bool>,
) -> Result<Vec<Record>> {
    let record = |(task, asked): (&Task, &Task)| -> Result<Record> {
        let judge = Judge::new(task)?;
        let mut record = Record::new(task);
        let score = judge.patch(patches.get(&task.instance_id).map_or("", String::as_str));
        record.put_patch(&score);
        if let Some(resolved) = resolved.get(&task.instance_id) {
            record.put("resolved", f64::from(u8::from(*resolved)));
        }
        record.put_baselines(asked, &judge, &asked.file_paths(), (score.files.answers, Some(score.functions.answers)));
        Ok(record)
    };
    tasks.par_iter().zip(asked).map(record).collect()
}
