//! Sample answers before and after: those of the first evaluation beside those of the last.

use crate::page::chart::{escape, short};
use serde_json::Value;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

/// How many tasks are shown.
const SHOWN: usize = 8;
/// Longer answers are cut.
const MOST_CHARS: usize = 1500;

/// The section of sample answers; empty where there are not two evaluations (or rollouts of two steps) to show.
pub fn before_and_after(dir: &Path, evaluations: &[(u64, Value)]) -> String {
    let of_evaluations = match (evaluations.first(), evaluations.last()) {
        (Some((a, _)), Some((b, _))) if a != b => pairs(dir, "evals", *a, *b),
        _ => Vec::new(),
    };
    let (found, what) = match of_evaluations.is_empty() {
        false => (of_evaluations, "Held-out tasks, answered greedily. Those that gained most, lost most, and changed least."),
        true => match rollout_steps(dir) {
            Some((a, b)) => (pairs(dir, "rollouts", a, b), "Training tasks, answers as sampled."),
            None => return String::new(),
        },
    };
    if found.is_empty() {
        return String::new();
    }
    let mut out = format!("<h2>Answers before and after</h2><p class=\"lead\">{what}</p>");
    for (before, after) in choose(found) {
        show(&before, &after, &mut out);
    }
    out
}

/// The first and the last step with rollouts.
fn rollout_steps(dir: &Path) -> Option<(u64, u64)> {
    let names = fs::read_dir(dir.join("rollouts")).ok()?.filter_map(|e| e.ok()?.path().file_stem()?.to_str()?.parse().ok());
    let (first, last) = names.fold((u64::MAX, 0), |(a, b), n: u64| (a.min(n), b.max(n)));
    (first < last).then_some((first, last))
}

/// Records of the same task in two files.
fn pairs(dir: &Path, folder: &str, a: u64, b: u64) -> Vec<(Value, Value)> {
    let read = |step: u64| -> Vec<Value> {
        let text = fs::read_to_string(dir.join(folder).join(format!("{step}.jsonl"))).unwrap_or_default();
        text.lines().filter_map(|l| serde_json::from_str(l).ok()).collect()
    };
    let after = read(b);
    let pair = |before: Value| after.iter().find(|r| same(r, &before)).map(|r| (before, r.clone()));
    let mut found: Vec<(Value, Value)> = read(a).into_iter().filter_map(pair).collect();
    // One answer a task: a group of rollouts has several.
    found.dedup_by(|x, y| same(&x.0, &y.0));
    found
}

/// Whether two records are of the same question.
fn same(a: &Value, b: &Value) -> bool {
    a["id"] == b["id"] && a["subtask"] == b["subtask"]
}

/// Half of the room for the largest gains, a quarter for the largest losses, the rest for what changed least.
fn choose(mut found: Vec<(Value, Value)>) -> Vec<(Value, Value)> {
    let gain = |p: &(Value, Value)| p.1["reward"].as_f64().unwrap_or(0.0) - p.0["reward"].as_f64().unwrap_or(0.0);
    found.sort_by(|x, y| gain(y).total_cmp(&gain(x)));
    let mut out: Vec<_> = found.drain(..found.len().min(SHOWN / 2)).collect();
    let losses = found.iter().rev().take(SHOWN / 4).filter(|p| gain(p) < 0.0).count();
    let worst = found.split_off(found.len() - losses);
    found.sort_by(|x, y| gain(x).abs().total_cmp(&gain(y).abs()));
    found.truncate(SHOWN - out.len() - losses);
    out.extend(worst);
    out.extend(found);
    out
}

fn show(before: &Value, after: &Value, out: &mut String) {
    let reward = |v: &Value| v["reward"].as_f64().unwrap_or(0.0);
    let (a, b) = (reward(before), reward(after));
    let class = if b > a {
        "up"
    } else if b < a {
        "down"
    } else {
        ""
    };
    let _ = write!(
        out,
        "<div class=\"sample\"><h3>{} <span class=\"{class}\">{} &rarr; {}</span></h3>",
        escape(&[before["id"].as_str().unwrap_or("?"), before["subtask"].as_str().unwrap_or("")].join(" ").trim_end()),
        short(a),
        short(b)
    );
    if let Some(gold) = before["gold"].as_str() {
        let _ = write!(out, "<div class=\"gold\">gold: <code>{}</code></div>", escape(&gold.replace('\n', ", ")));
    }
    out.push_str("<div class=\"pair\">");
    for (title, record) in [("before", before), ("after", after)] {
        let why = record["error"].as_str().map_or(String::new(), |e| format!(" &middot; {}", escape(e)));
        let text: String = record["text"].as_str().unwrap_or("").chars().take(MOST_CHARS).collect();
        let text = if text.trim().is_empty() { "(nothing)".to_owned() } else { text };
        let _ = write!(out, "<div><h4>{title}{why}</h4><pre>{}</pre></div>", escape(text.trim()));
    }
    out.push_str("</div></div>");
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn shows_gains_losses_and_what_stayed() {
        let record = |id: usize, reward: f64, text: &str| json!({"id": format!("t{id}"), "reward": reward, "text": text, "gold": "a.py"});
        let found = (0..20).map(|i| (record(i, 0.5, "x"), record(i, i as f64 / 19.0, "y"))).collect();
        let chosen = choose(found);
        let ids: Vec<&str> = chosen.iter().map(|p| p.0["id"].as_str().unwrap()).collect();
        assert_eq!(ids.len(), SHOWN);
        assert_eq!(ids[..6], ["t19", "t18", "t17", "t16", "t1", "t0"]);
        assert!(choose(vec![]).is_empty());
    }

    #[test]
    fn answers_are_escaped_and_an_invalid_one_says_why() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("evals")).unwrap();
        let line =
            |text: &str, error: Value| json!({"id": "t", "reward": 0, "text": text, "error": error, "gold": "a.py"}).to_string() + "\n";
        fs::write(dir.path().join("evals/0.jsonl"), line("<b>", json!("no path"))).unwrap();
        fs::write(dir.path().join("evals/9.jsonl"), line("", Value::Null)).unwrap();
        let html = before_and_after(dir.path(), &[(0, json!({})), (9, json!({}))]);
        assert!(html.contains("before &middot; no path") && html.contains("<pre>&lt;b&gt;</pre>") && html.contains("(nothing)"), "{html}");
        assert_eq!(before_and_after(dir.path(), &[(0, json!({}))]), "");
    }
}
