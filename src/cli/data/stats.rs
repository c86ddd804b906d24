//! `data stats`: what a task file holds.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::split::read_all;
use crate::Result;
use crate::cli::output::{json_line, table, to_stdout};
use crate::data::Task;
use crate::data::bootstrap::Bootstrap;
use crate::data::lexical::{Field, Ranking};
use crate::data::metrics::{BETA, SetScore, Table, bm25_definition_scores, bm25_scores};
use crate::data::source::funnel::Funnel;
use crate::data::split::instant;

/// Count what task files hold, and say how far matching words alone gets (--bm25).
///
/// Where `data mine` or `data import` left a funnel beside a file (FILE.funnel.json), it is printed: what was looked at, what each filter
/// dropped, and what was kept.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The files to count, as one
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Add what naming the first K files, or definitions, by BM25 scores: words of the issue against words of paths, and of paths and contents
    #[arg(long)]
    bm25: bool,
    /// Say it as JSON
    #[arg(long)]
    json: bool,
}

/// For how many of the best candidates the BM25 table goes.
const MOST: usize = 5;

/// Runs the command.
pub(super) fn run(args: Args) -> Result<()> {
    let (tasks, funnels) = read_all_with_funnels(&args.files)?;
    let facts = facts(&tasks)?;
    let baseline = if args.bm25 { Some(baseline(&tasks)?) } else { None };
    if args.json {
        let mut value = facts;
        if let (Some(baseline), Value::Object(map)) = (baseline, &mut value) {
            let rows = |rows: &[Row]| rows.iter().map(|(field, k, t)| json!({ "field": field, "k": k, "table": t })).collect::<Value>();
            map.insert("bm25".to_owned(), rows(&baseline.files));
            map.insert("bm25_definitions".to_owned(), rows(&baseline.definitions));
        }
        if let (false, Value::Object(map)) = (funnels.is_empty(), &mut value) {
            map.insert("funnels".to_owned(), json!(funnels));
        }
        return json_line(&value);
    }
    let mut rows = Vec::new();
    if let Value::Object(map) = &facts {
        for (name, value) in map {
            rows.push(vec![name.replace('_', " "), plain(value)]);
        }
    }
    to_stdout(|out| {
        out.write_all(table(&rows).as_bytes())?;
        for funnel in &funnels {
            write!(out, "\n{}", table(&funnel.rows()))?;
        }
        if let Some(baseline) = &baseline {
            write!(out, "\n{}", baseline_table("files by BM25 on", &baseline.files))?;
            if !baseline.definitions.is_empty() {
                write!(out, "\n{}", baseline_table("definitions by BM25 on", &baseline.definitions))?;
            }
        }
        Ok(())
    })
}

/// The tasks of all files, and the funnels that lie beside them.
fn read_all_with_funnels(files: &[PathBuf]) -> Result<(Vec<Task>, Vec<Funnel>)> {
    let mut counts = Vec::new();
    let tasks = read_all(files, &mut |tasks| counts.push(tasks))?;
    let funnels = files.iter().zip(counts).map(|(file, n)| Funnel::read(file, n)).collect::<Result<Vec<_>>>()?;
    Ok((tasks, funnels.into_iter().flatten().collect()))
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(s) => s.clone(),
        Value::Null => "-".to_owned(),
        Value::Object(map) => map.iter().map(|(k, v)| format!("{k} {}", plain(v))).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

fn facts(tasks: &[Task]) -> Result<Value> {
    let mut repos: BTreeMap<&str, usize> = BTreeMap::new();
    tasks.iter().for_each(|t| *repos.entry(t.repo_name()).or_default() += 1);
    let mut gold = Vec::new();
    for task in tasks {
        gold.push(task.gold().map_err(|e| e.at(&task.instance_id))?.len());
    }
    let dated: Vec<(i64, &str)> = tasks.iter().filter_map(|t| t.created_at.as_deref()).filter_map(|t| Some((instant(t)?, t))).collect();
    let end = |pick: Option<&(i64, &str)>| pick.map_or(Value::Null, |&(_, text)| Value::from(text));
    let with = |holds: &dyn Fn(&Task) -> bool| tasks.iter().filter(|t| holds(t)).count();
    Ok(json!({
        "tasks": tasks.len(),
        "repositories": repos.len(),
        "oldest": end(dated.iter().min()),
        "newest": end(dated.iter().max()),
        "without_a_time": tasks.len() - dated.len(),
        "with_contents": with(&|t| !t.files.is_empty()),
        "with_test_patch": with(&|t| !t.test_patch.trim().is_empty()),
        "with_failing_tests": with(&|t| t.fail_to_pass.as_ref().is_some_and(|f| !f.is_empty())),
        "only_adding_files": gold.iter().filter(|&&n| n == 0).count(),
        "gold_files": spread(gold),
        "files": spread(tasks.iter().map(|t| t.files.len()).collect()),
        "all_paths": spread(tasks.iter().map(|t| t.all_paths.len()).collect()),
        "issue_characters": spread(tasks.iter().map(|t| t.problem_statement.chars().count()).collect()),
    }))
}

/// The least, the middle and the most of some counts.
fn spread(mut counts: Vec<usize>) -> Value {
    counts.sort_unstable();
    json!({ "min": counts.first(), "median": counts.get(counts.len() / 2), "max": counts.last() })
}

/// What is matched, how many are named, and the metrics with intervals clustered by repository.
type Row = (&'static str, usize, Table);

/// What matching words alone gets.
struct Baseline {
    files: Vec<Row>,
    /// Of the tasks that have contents.
    definitions: Vec<Row>,
}

fn baseline(tasks: &[Task]) -> Result<Baseline> {
    let rankings =
        [("path", Ranking::Bm25(Field::Path)), ("path and content", Ranking::Bm25(Field::Content)), ("four, fused", Ranking::Fused)];
    let all: Vec<&Task> = tasks.iter().collect();
    let known: Vec<&Task> = tasks.iter().filter(|t| !t.files.is_empty()).collect();
    let mut found = Baseline { files: Vec::new(), definitions: Vec::new() };
    for (name, ranking) in rankings {
        found.files.extend(rows(name, &all, &bm25_scores(tasks, None, ranking, MOST)?));
        if !known.is_empty() {
            found.definitions.extend(rows(name, &known, &bm25_definition_scores(&known, ranking, MOST)?));
        }
    }
    Ok(found)
}

fn rows(name: &'static str, tasks: &[&Task], scores: &[Vec<SetScore>]) -> Vec<Row> {
    let repos: Vec<&str> = tasks.iter().map(|t| t.repo_name()).collect();
    let table = |scores: &[SetScore]| Table::new(scores, BETA, Some(&repos), &Bootstrap::default());
    scores.iter().enumerate().map(|(i, scores)| (name, i + 1, table(scores))).collect()
}

fn baseline_table(title: &str, baseline: &[Row]) -> String {
    let head = [title, "k", "hit", "top-1", "F1", "F-beta", "95 %"].map(str::to_owned).to_vec();
    let mut rows = vec![head];
    for (field, k, t) in baseline {
        rows.push(vec![
            (*field).to_owned(),
            k.to_string(),
            format!("{:.3}", t.hit.mean),
            format!("{:.3}", t.top1.mean),
            format!("{:.3}", t.f1.mean),
            format!("{:.3}", t.fbeta.mean),
            format!("{:.3} to {:.3}", t.fbeta.low, t.fbeta.high),
        ]);
    }
    table(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::metrics::ScoreKind;

    #[test]
    fn the_table_agrees_with_the_reward() {
        let score = SetScore { answers: 1, gold: 2, common: 1, first: true, valid: true };
        let table = Table::new(&[score], BETA, None, &Bootstrap::default());
        assert_eq!(table.hit.mean, score.reward(ScoreKind::Hit, BETA));
        assert_eq!(spread(vec![3, 1, 2]), json!({"min": 1, "median": 2, "max": 3}));
    }
}
