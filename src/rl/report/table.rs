//! The table that sums up a run: its evaluations beside BM25, each number with its 95 % interval, and the paired differences between stages.

use super::Run;
use crate::data::bootstrap::{Bootstrap, Interval};
use crate::data::lexical::{Field, Ranking};
use crate::data::metrics::{BETA, Table, bm25_scores};
use crate::error::Result;
use crate::rl::config::SUBTASKS;
use crate::rl::dataset::read_tasks;
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

/// One line of the table.
struct Row {
    name: String,
    values: Vec<Interval>,
}

/// One answer's record.
struct Record {
    cluster: String,
    parts: BTreeMap<String, f64>,
    candidates: Vec<String>,
}

/// One evaluation's records, by run and task id.
type Records = BTreeMap<(usize, String), Record>;

/// A table for each subtask as text, at most 80 columns wide where intervals allow; empty if there are no evaluations. Several runs (folds,
/// seeds) are taken together, stage by stage.
pub(super) fn render(runs: &[(Run, &Path)]) -> Result<String> {
    let tables = SUBTASKS.iter().map(|subtask| render_subtask(runs, subtask)).collect::<Result<Vec<_>>>()?;
    Ok(tables.into_iter().filter(|t| !t.is_empty()).collect::<Vec<_>>().join("\n\n"))
}

fn render_subtask(runs: &[(Run, &Path)], subtask: &str) -> Result<String> {
    let (title, columns) = layout(subtask);
    let evaluations = together(runs, subtask);
    // The widest set: an evaluation that some runs did not make has fewer tasks.
    let Some((_, first)) = evaluations.iter().rev().max_by_key(|(_, records)| records.len()) else { return Ok(String::new()) };
    let mut rows: Vec<Row> = evaluations
        .iter()
        .map(|(name, records)| Row { name: named(name, records, runs.len()), values: means(records, &columns) })
        .collect();
    let measured = rows.len();
    if subtask == "file" {
        rows.extend(baselines(runs, first)?);
    }
    let (tasks, repositories) = (first.len(), clusters(first));
    let ending = if repositories == 1 { "y" } else { "ies" };
    let of = if runs.len() == 1 { String::new() } else { format!(", {} runs together", runs.len()) };
    let mut out = format!("held-out {title}, {tasks} tasks of {repositories} repositor{ending}{of} [95 % interval]\n\n");
    let header = columns.iter().fold(format!("{:<16}", ""), |line, (_, title)| line + &format!("{title:>14}"));
    writeln!(out, "{}", header.trim_end()).ok();
    for (i, row) in rows.iter().enumerate() {
        if i == measured {
            out.push('\n');
        }
        let cells = row.values.iter().zip(&columns).map(|(v, (key, _))| cell(v, key));
        writeln!(out, "{:<16}{}", row.name, cells.collect::<String>()).ok();
    }
    for pair in evaluations.windows(2) {
        out.push_str(&difference(&pair[0], &pair[1], &columns));
    }
    Ok(out)
}

/// A mean with its interval: per cent, but for counts.
fn cell(v: &Interval, key: &str) -> String {
    let text = match key {
        "answers" => format!("{:.1}", v.mean),
        _ => format!("{:.0} [{:.0},{:.0}]", 100.0 * v.mean, 100.0 * v.low, 100.0 * v.high),
    };
    format!("{text:>14}")
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
            None => ends.push((step, format!("after {name}"))),
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

fn means(records: &Records, columns: &[Column]) -> Vec<Interval> {
    let clusters: Vec<&str> = records.values().map(|r| r.cluster.as_str()).collect();
    columns.iter().map(|(key, _)| Bootstrap::default().mean(&column(records, key), Some(&clusters))).collect()
}

fn column(records: &Records, key: &str) -> Vec<f64> {
    records.values().map(|r| r.parts.get(key).copied().unwrap_or(0.0)).collect()
}

fn clusters(records: &Records) -> usize {
    records.values().map(|r| &r.cluster).collect::<std::collections::BTreeSet<_>>().len()
}

/// The name of a stage's evaluation, with how many runs made it where not all did.
fn named(name: &str, records: &Records, runs: usize) -> String {
    let made = records.keys().map(|(run, _)| run).collect::<std::collections::BTreeSet<_>>().len();
    if made == runs { name.to_owned() } else { format!("{name} ({made}/{runs})") }
}

/// What a stage changed in F-beta and hit (of repair: in similarity), task by task, where both were measured.
fn difference(before: &(String, Records), after: &(String, Records), columns: &[Column]) -> String {
    let pairs: Vec<(&Record, &Record)> = after.1.iter().filter_map(|(key, a)| Some((before.1.get(key)?, a))).collect();
    if pairs.is_empty() {
        return String::new();
    }
    let clusters: Vec<&str> = pairs.iter().map(|(_, r)| r.cluster.as_str()).collect();
    let part = |r: &Record, key: &str| r.parts.get(key).copied().unwrap_or(0.0);
    let change = |key| {
        let (b, a): (Vec<f64>, Vec<f64>) = pairs.iter().map(|(b, a)| (part(b, key), part(a, key))).unzip();
        let i = Bootstrap::default().paired(&b, &a, Some(&clusters));
        format!("{:+.1} [{:+.1}, {:+.1}]", 100.0 * i.mean, 100.0 * i.low, 100.0 * i.high)
    };
    let changes = [("fbeta", "F-beta"), ("hit", "hit"), ("similarity", "similarity")];
    let changes = changes.iter().filter(|(key, _)| columns.iter().any(|(c, _)| c == key));
    let said: Vec<String> = changes.map(|(key, name)| format!("{name} {}", change(key))).collect();
    format!("\n{} against {}, paired: {}", after.0, before.0, said.join(", "))
}

/// BM25 on the same tasks: the best one, and as many as gave it its best F-beta.
fn baselines(runs: &[(Run, &Path)], records: &Records) -> Result<Vec<Row>> {
    let (mut tasks, mut shown) = (Vec::new(), Vec::new());
    for (i, (run, _)) in runs.iter().enumerate() {
        // The files may have moved since: a table without a baseline is better than none.
        let Ok(heldout) = read_tasks(&run.paths("data.heldout")) else { return Ok(Vec::new()) };
        for task in heldout {
            if let Some(record) = records.get(&(i, task.instance_id.clone())) {
                shown.push(record.candidates.clone());
                tasks.push(task);
            }
        }
    }
    // From the very lists that the prompts showed: a prompt that had to leave paths out made the choice easier.
    let shown = shown.iter().all(|c| !c.is_empty()).then_some(shown.as_slice());
    let repositories: Vec<&str> = tasks.iter().map(|t| t.repo.as_str()).collect();
    let mut rows = Vec::new();
    for (ranking, name) in [(Ranking::Bm25(Field::Path), "paths"), (Ranking::Bm25(Field::Content), "contents"), (Ranking::Fused, "fused")] {
        let scores = bm25_scores(&tasks, shown, ranking, 4)?;
        let tables: Vec<Table> = scores.iter().map(|s| Table::new(s, BETA, Some(&repositories), &Bootstrap::default())).collect();
        let best = (0..tables.len()).max_by(|a, b| tables[*a].fbeta.mean.total_cmp(&tables[*b].fbeta.mean)).unwrap_or(0);
        for k in [0].into_iter().chain((best > 0).then_some(best)) {
            let t = &tables[k];
            rows.push(Row { name: format!("BM25 {name} {}", k + 1), values: vec![t.valid, t.hit, t.top1, t.f1, t.fbeta, t.answers] });
        }
    }
    Ok(rows)
}
