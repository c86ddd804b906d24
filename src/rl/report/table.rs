//! The table that sums up a run: its evaluations beside BM25, each number with its 95 % interval, and the paired differences between stages.

use super::Run;
use super::baselines::{self, Baseline};
use crate::data::bootstrap::{Bootstrap, Interval};
use crate::error::Result;
use crate::rl::config::SUBTASKS;
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

/// A column: a part's name in the records, and its title.
type Column = (&'static str, &'static str);

/// What is tabled of a subtask: its title, and its columns.
fn layout(subtask: &str) -> (&'static str, Vec<Column>) {
    let (valid, hit) = (("valid", "valid %"), ("hit", "hit %"));
    let (f1, fbeta, answers) = (("f1", "F1 %"), ("fbeta", "F-beta %"), ("answers", "answers"));
    match subtask {
        "function" => ("function localisation", vec![valid, hit, f1, fbeta, answers]),
        "line" => ("line localisation", vec![valid, hit, f1, fbeta, answers]),
        "edit" => ("code edits", vec![("applied", "applied %"), hit, f1, fbeta, answers]),
        "repair" => ("repair", vec![valid, ("similarity", "similarity %"), ("exact", "exact %")]),
        _ => ("file localisation", vec![valid, hit, ("top1", "top-1 %"), f1, fbeta, answers]),
    }
}

/// One line of a table.
#[derive(Serialize)]
struct Row {
    name: String,
    /// By the columns' keys.
    #[serde(flatten)]
    values: BTreeMap<&'static str, Interval>,
}

/// How what one row names compares with another, task by task: the means of the differences by the columns' keys.
#[derive(Serialize)]
struct Difference {
    of: String,
    against: String,
    #[serde(flatten)]
    values: BTreeMap<&'static str, Interval>,
}

/// The numbers of a subtask over all runs.
#[derive(Serialize)]
pub(super) struct Summary {
    subtask: &'static str,
    tasks: usize,
    repositories: usize,
    runs: usize,
    evaluations: Vec<Row>,
    baselines: Vec<Row>,
    differences: Vec<Difference>,
}

/// One answer's record.
pub(super) struct Record {
    /// The repository.
    pub cluster: String,
    /// What it scored.
    pub parts: BTreeMap<String, f64>,
    /// What it could choose from.
    pub candidates: Vec<String>,
}

/// One evaluation's records, by run and task id.
pub(super) type Records = BTreeMap<(usize, String), Record>;

/// The numbers of each subtask that the runs evaluated. Several runs (folds, seeds) are taken together, stage by stage.
pub(super) fn summaries(runs: &[(Run, &Path)]) -> Result<Vec<Summary>> {
    let summaries = SUBTASKS.iter().map(|subtask| Summary::new(runs, subtask)).collect::<Result<Vec<_>>>()?;
    Ok(summaries.into_iter().flatten().collect())
}

/// A table for each, as text, at most 86 columns wide where intervals allow; empty if there are none.
pub(super) fn render(summaries: &[Summary]) -> String {
    summaries.iter().map(Summary::render).collect::<Vec<_>>().join("\n\n")
}

impl Summary {
    fn new(runs: &[(Run, &Path)], subtask: &'static str) -> Result<Option<Self>> {
        let columns = layout(subtask).1;
        let evaluations = together(runs, subtask);
        // The widest set: an evaluation that some runs did not make has fewer tasks.
        let Some((_, widest)) = evaluations.iter().rev().max_by_key(|(_, records)| records.len()) else { return Ok(None) };
        let baselines = match subtask {
            "file" => baselines::of_files(&runs.iter().map(|(run, _)| run).collect::<Vec<_>>(), widest)?,
            _ => Vec::new(),
        };
        let mut differences: Vec<Difference> = evaluations.windows(2).filter_map(|pair| difference(&pair[0], &pair[1], &columns)).collect();
        // The last stage against each ranking's best list of one length, and against its lists of as many as are close.
        for baseline in &baselines {
            let best = baseline.counted.iter().max_by(|a, b| mean(&a.1, "fbeta").total_cmp(&mean(&b.1, "fbeta")));
            for list in best.into_iter().chain(&baseline.close) {
                differences.extend(evaluations.last().and_then(|last| difference(list, last, &columns)));
            }
        }
        let row = |name: String, records: &Records| Row { name, values: means(records, &columns) };
        Ok(Some(Self {
            subtask,
            tasks: widest.len(),
            repositories: clusters(widest),
            runs: runs.len(),
            evaluations: evaluations.iter().map(|(name, records)| row(named(name, records, runs.len()), records)).collect(),
            baselines: baselines.iter().flat_map(Baseline::all).map(|(name, records)| row(name.clone(), records)).collect(),
            differences,
        }))
    }

    fn render(&self) -> String {
        let (title, columns) = layout(self.subtask);
        let Self { tasks, repositories, runs, .. } = self;
        let ending = if *repositories == 1 { "y" } else { "ies" };
        let of = if *runs == 1 { String::new() } else { format!(", {runs} runs together") };
        let mut out = format!("held-out {title}, {tasks} tasks of {repositories} repositor{ending}{of} [95 % interval]\n\n");
        let rows = self.evaluations.iter().chain(&self.baselines);
        let cells: Vec<Vec<String>> =
            rows.clone().map(|row| columns.iter().map(|(key, _)| cell(&row.values[key], key)).collect()).collect();
        let widest = cells.iter().flatten().map(String::len).chain(columns.iter().map(|(_, title)| title.len())).max().unwrap_or(0);
        let line = |name: &str, cells: &mut dyn Iterator<Item = &str>| {
            let cells: String = cells.map(|c| format!("{c:>0$}", 13.max(widest + 2))).collect();
            format!("{name:<21}{cells}\n")
        };
        out += &line("", &mut columns.iter().map(|(_, title)| *title));
        for (i, (row, cells)) in rows.zip(&cells).enumerate() {
            if i == self.evaluations.len() {
                out.push('\n');
            }
            out += &line(&row.name, &mut cells.iter().map(String::as_str));
        }
        for difference in &self.differences {
            let changes = [("fbeta", "F-beta"), ("hit", "hit"), ("similarity", "similarity")];
            let said = changes.iter().filter_map(|(key, name)| {
                let i = difference.values.get(key)?;
                Some(format!("{name} {:+.1} [{:+.1}, {:+.1}]", 100.0 * i.mean, 100.0 * i.low, 100.0 * i.high))
            });
            let said = said.collect::<Vec<_>>().join(", ");
            write!(out, "\n{} against {}, paired: {said}", difference.of, difference.against).ok();
        }
        out
    }
}

/// A mean with its interval: per cent, but for counts.
fn cell(v: &Interval, key: &str) -> String {
    match key {
        "answers" => format!("{:.1}", v.mean),
        _ => format!("{:.0} [{:.0},{:.0}]", 100.0 * v.mean, 100.0 * v.low, 100.0 * v.high),
    }
}

/// The evaluations of all runs, in the order of their stages.
fn together(runs: &[(Run, &Path)], subtask: &str) -> Vec<(String, Records)> {
    let mut all: Vec<(String, Records)> = Vec::new();
    for (i, (run, dir)) in runs.iter().enumerate() {
        for (name, records) in stages(run, dir, subtask) {
            let place = all.iter().position(|(n, _)| *n == name).unwrap_or_else(|| {
                all.push((name, Records::new()));
                all.len() - 1
            });
            all[place].1.extend(records.into_iter().map(|(id, record)| ((i, id), record)));
        }
    }
    all
}

/// The evaluations of a run before training and at the end of each stage, by name.
fn stages(run: &Run, dir: &Path, subtask: &str) -> Vec<(String, BTreeMap<String, Record>)> {
    let mut ends: Vec<(u64, String)> = vec![(0, "before".to_owned())];
    for line in &run.steps {
        let (Some(step), Some(stage)) = (line["step"].as_u64(), line["stage"].as_u64()) else { continue };
        let name = if line.get("reward_mean").is_some() { "RL" } else { "SFT" };
        match ends.get_mut(stage as usize) {
            Some(end) => end.0 = step,
            // Stages are told apart where a run has several of a kind.
            None => match format!("after {name}") {
                taken if ends.iter().any(|(_, n)| *n == taken) => ends.push((step, format!("{taken} (stage {stage})"))),
                name => ends.push((step, name)),
            },
        }
    }
    // Records of a run with one subtask do not name it.
    let only = run.setting("subtask").and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_else(|| "file".to_owned());
    let read = |step: u64| read(&dir.join("evals").join(format!("{step}.jsonl")), &|named| named.unwrap_or(&only) == subtask);
    let found = ends.into_iter().filter_map(|(step, name)| Some((name, read(step)?)));
    found.filter(|(_, records)| !records.is_empty()).collect()
}

/// The records of one evaluation, if it was made, of the subtasks that are `wanted`.
fn read(path: &Path, wanted: &dyn Fn(Option<&str>) -> bool) -> Option<BTreeMap<String, Record>> {
    let text = std::fs::read_to_string(path).ok()?;
    let record = |line: &str| -> Option<(String, Record)> {
        let v: Value = serde_json::from_str::<Value>(line).ok().filter(|v| wanted(v["subtask"].as_str()))?;
        let parts = v["parts"].as_object()?.iter().filter_map(|(k, x)| Some((k.clone(), x.as_f64()?))).collect();
        let candidates = v["candidates"].as_array().into_iter().flatten().filter_map(|c| Some(c.as_str()?.to_owned())).collect();
        Some((v["id"].as_str()?.to_owned(), Record { cluster: v["cluster"].as_str()?.to_owned(), parts, candidates }))
    };
    Some(text.lines().filter_map(record).collect())
}

fn means(records: &Records, columns: &[Column]) -> BTreeMap<&'static str, Interval> {
    let clusters: Vec<&str> = records.values().map(|r| r.cluster.as_str()).collect();
    columns.iter().map(|(key, _)| (*key, Bootstrap::default().mean(&column(records, key), Some(&clusters)))).collect()
}

fn column(records: &Records, key: &str) -> Vec<f64> {
    records.values().map(|r| r.parts.get(key).copied().unwrap_or(0.0)).collect()
}

pub(super) fn mean(records: &Records, key: &str) -> f64 {
    let values = column(records, key);
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

fn clusters(records: &Records) -> usize {
    records.values().map(|r| &r.cluster).collect::<std::collections::BTreeSet<_>>().len()
}

/// The name of a stage's evaluation, with how many runs made it where not all did.
fn named(name: &str, records: &Records, runs: usize) -> String {
    let made = records.keys().map(|(run, _)| run).collect::<std::collections::BTreeSet<_>>().len();
    if made == runs { name.to_owned() } else { format!("{name} ({made}/{runs})") }
}

/// What `after` has more than `before`, task by task, where both were measured; None where nothing was.
fn difference(before: &(String, Records), after: &(String, Records), columns: &[Column]) -> Option<Difference> {
    let pairs: Vec<(&Record, &Record)> = after.1.iter().filter_map(|(key, a)| Some((before.1.get(key)?, a))).collect();
    if pairs.is_empty() {
        return None;
    }
    let clusters: Vec<&str> = pairs.iter().map(|(_, r)| r.cluster.as_str()).collect();
    let part = |r: &Record, key: &str| r.parts.get(key).copied().unwrap_or(0.0);
    let change = |key: &'static str| {
        let (b, a): (Vec<f64>, Vec<f64>) = pairs.iter().map(|(b, a)| (part(b, key), part(a, key))).unzip();
        (key, Bootstrap::default().paired(&b, &a, Some(&clusters)))
    };
    Some(Difference { of: after.0.clone(), against: before.0.clone(), values: columns.iter().map(|(key, _)| change(key)).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn columns_stay_apart_and_stages_of_a_kind_have_rows_of_their_own() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("evals")).unwrap();
        let mut run = Run::default();
        for (step, hit) in [(0, 0.0), (1, 1.0), (2, 0.0), (3, 1.0)] {
            let parts = json!({"valid": 1.0, "hit": hit, "top1": hit, "f1": hit, "fbeta": hit, "answers": 1.0});
            let record = json!({"id": "t", "cluster": "r", "parts": parts});
            std::fs::write(dir.path().join(format!("evals/{step}.jsonl")), format!("{record}\n")).unwrap();
            match step {
                0 => {}
                1 => run.steps.push(json!({"step": 1, "stage": 1})),
                _ => run.steps.push(json!({"step": step, "stage": step, "reward_mean": 0.5})),
            }
        }
        let text = render(&summaries(&[(run, dir.path())]).unwrap());
        let rows: Vec<Vec<&str>> =
            text.lines().skip(2).take(5).map(|l| l.split("  ").map(str::trim).filter(|c| !c.is_empty()).collect()).collect();
        let all = "100 [100,100]";
        assert_eq!(rows[2], ["after SFT", all, all, all, all, all, "1.0"], "{text}");
        assert_eq!((rows[3][0], rows[3][2], rows[4][0], rows[4][2]), ("after RL", "0 [0,0]", "after RL (stage 3)", all), "{text}");
        assert!(
            text.lines().skip(3).take(4).all(|l| l.len() == text.lines().nth(2).unwrap().len()),
            "the header ends where its columns do"
        );
    }
}
