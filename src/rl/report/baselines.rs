//! What a retriever does on the tasks of an evaluation, judged as the model's answers are.

use std::collections::BTreeMap;

use super::Run;
use super::table::{Record, Records, mean};
use crate::data::Task;
use crate::data::lexical::{self, Field, Ranking};
use crate::data::metrics::{BETA, SetScore};
use crate::error::Result;
use crate::rl::dataset::read_tasks;
use crate::rl::reward::set_parts;

/// The most files that a baseline names.
const MOST: usize = 4;

/// By what files are ranked, and what that is called.
const RANKINGS: [(&str, Ranking); 3] =
    [("paths", Ranking::Bm25(Field::Path)), ("contents", Ranking::Bm25(Field::Content)), ("fused", Ranking::Fused)];

/// A baseline's name and its records.
pub(super) type Named = (String, Records);

/// A ranking's baselines.
pub(super) struct Baseline {
    /// Lists of one length: the first file alone, and as many as are best by F-beta where that is not one.
    pub counted: Vec<Named>,
    /// As many as are close, if the runs' gold answers depended on how close candidates score (`prompt.close`).
    pub close: Option<Named>,
}

impl Baseline {
    /// All of them.
    pub(super) fn all(&self) -> impl Iterator<Item = &Named> {
        self.counted.iter().chain(&self.close)
    }
}

/// The baselines of each ranking on the tasks of `records`. None where the tasks cannot be read any more: a table without a baseline is
/// better than none.
pub(super) fn of_files(runs: &[&Run], records: &Records) -> Result<Vec<Baseline>> {
    let mut tasks: BTreeMap<(usize, String), Task> = BTreeMap::new();
    for (i, run) in runs.iter().enumerate() {
        let Ok(heldout) = read_tasks(&run.paths("data.heldout")) else { return Ok(Vec::new()) };
        tasks.extend(heldout.into_iter().map(|task| ((i, task.instance_id.clone()), task)));
    }
    // From the very lists that the prompts showed: a prompt that had to leave paths out made the choice easier.
    let shown = records.values().all(|record| !record.candidates.is_empty());
    let close = runs.first().map_or(0.0, |run| number(run, "prompt.close"));
    let most = runs.first().map_or(0.0, |run| number(run, "prompt.answers")) as usize;
    let mut out = Vec::new();
    for (name, ranking) in RANKINGS {
        let mut by_count: Vec<Named> = (1..=MOST).map(|k| (format!("BM25 {name} {k}"), Records::new())).collect();
        let mut as_close = (format!("BM25 {name} close"), Records::new());
        for (key, record) in records {
            let Some(task) = tasks.get(key) else { continue };
            let gold = task.gold()?;
            let ranked = match shown {
                true => lexical::ranked(task, &record.candidates, ranking),
                false => lexical::ranked(task, &task.file_paths(), ranking),
            };
            let named = |n: usize| {
                let paths: Vec<String> = ranked.iter().take(n).map(|(path, _)| path.clone()).collect();
                let score = SetScore::new(&paths, &gold, !paths.is_empty());
                let parts = set_parts(&score, BETA).into_iter().map(|(name, x)| (name.to_owned(), x));
                let top1 = ("top1".to_owned(), f64::from(u8::from(score.first)));
                Record { cluster: record.cluster.clone(), parts: parts.chain([top1]).collect(), candidates: Vec::new() }
            };
            by_count.iter_mut().enumerate().for_each(|(k, (_, made))| drop(made.insert(key.clone(), named(k + 1))));
            as_close.1.insert(key.clone(), named(lexical::close(&ranked, close, most)));
        }
        let best = (0..MOST).max_by(|&a, &b| mean(&by_count[a].1, "fbeta").total_cmp(&mean(&by_count[b].1, "fbeta"))).unwrap_or(0);
        let chosen = by_count.into_iter().enumerate().filter(|(k, _)| *k == 0 || *k == best).map(|(_, made)| made);
        out.push(Baseline { counted: chosen.collect(), close: (close > 0.0).then_some(as_close) });
    }
    Ok(out)
}

fn number(run: &Run, setting: &str) -> f64 {
    run.setting(setting).and_then(|value| value.as_f64()).unwrap_or(0.0)
}
