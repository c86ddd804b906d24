//! Evaluations as text, without colour or control characters; as wide as they are, or no wider than a terminal.

use std::fmt::Write as _;

use super::{Comparison, Interval, Summary};
use crate::columns::{columns, wrap};

/// A unit of localisation: what it is called, its name among the numbers, and the baselines' (label, name).
struct Place {
    label: &'static str,
    unit: &'static str,
    baselines: &'static [(&'static str, &'static str)],
}

const PLACES: [Place; 3] = [
    Place { label: "files", unit: "file", baselines: &[("BM25", "bm25.file"), ("four BM25 fused", "fused.file")] },
    Place { label: "functions", unit: "function", baselines: &[("BM25", "bm25.function"), ("four BM25 fused", "fused.function")] },
    Place { label: "lines", unit: "line", baselines: &[] },
];

/// Rows of patches: name and meaning.
pub(super) const PATCHES: [(&str, &str); 9] = [
    ("resolved", "resolved"),
    ("patch.applied", "applied"),
    ("patch.similarity", "similarity to gold"),
    ("patch.exact", "the same as gold"),
    ("file.valid", "file answers of the format"),
    ("function.valid", "function answers of the format"),
    ("line.valid", "line answers of the format"),
    ("patch.valid", "edit answers of the format"),
    ("patch.candidates", "edit answers that are patches"),
];

/// `65.2 [60.1, 70.3]`, in percent.
pub(super) fn percent(i: &Interval) -> String {
    format!("{:.1} [{:.1}, {:.1}]", 100.0 * i.mean, 100.0 * i.low, 100.0 * i.high)
}

/// `+3.1 [-0.4, +6.0]`, in points.
fn points(i: &Interval) -> String {
    format!("{:+.1} [{:+.1}, {:+.1}]", 100.0 * i.mean, 100.0 * i.low, 100.0 * i.high)
}

/// The rows of localisation that there are: label, any, all, mean number of elements named. Below a baseline stands how far the model leads
/// it, paired by task.
pub(super) fn place_rows(summary: &Summary) -> Vec<[String; 4]> {
    let get = |name: &str, what: &str| summary.numbers.get(&format!("{name}.{what}"));
    let row = |label: String, name: &str, show: &dyn Fn(&Interval) -> String| {
        let (any, all) = (get(name, "any")?, get(name, "all")?);
        let named = get(name, "answers").map_or(String::new(), |m| format!("{:.1}", m.interval.mean));
        Some([label, show(&any.interval), show(&all.interval), named])
    };
    let mut rows = Vec::new();
    for Place { label, unit, baselines } in PLACES {
        rows.extend(row(label.to_owned(), unit, &percent));
        for (what, name) in baselines {
            rows.extend(row(format!("  {label}, {what}"), name, &percent));
            rows.extend(row("    ahead of it, points".to_owned(), &format!("{name}.lead"), &points));
        }
        rows.extend(row(format!("  {label}, in the patch"), &format!("patch.{unit}"), &percent));
    }
    rows
}

/// The whole evaluation, for a terminal of that `width`, if it is one.
pub fn render(summary: &Summary, width: Option<usize>) -> String {
    let count = |n: usize, one: &str, many: &str| format!("{n} {}", if n == 1 { one } else { many });
    let head = format!(
        "{} of {}; percent, with 95 % intervals clustered by repository",
        count(summary.tasks, "task", "tasks"),
        count(summary.repositories.len(), "repository", "repositories"),
    );
    let mut out = wrap(&head, width.unwrap_or(usize::MAX)).join("\n") + "\n\n";
    let mut rows = vec![["localised", "any", "all", "named"].map(str::to_owned)];
    rows.extend(place_rows(summary));
    out += &columns(&rows.iter().map(|r| r.to_vec()).collect::<Vec<_>>(), width);
    let patches = PATCHES.iter().filter_map(|(name, label)| Some((summary.numbers.get(*name)?, label)));
    let rows: Vec<Vec<String>> = patches.map(|(mean, label)| vec![(*label).to_owned(), percent(&mean.interval)]).collect();
    if !rows.is_empty() {
        let title = if summary.numbers.contains_key("patch.applied") { "patches" } else { "answers" };
        out += "\n";
        out += &columns(&[vec![vec![title.to_owned(), String::new()]], rows].concat(), width);
    }
    if let Some(coverage) = coverage(summary, width) {
        out += &format!("\n{coverage}");
    }
    if !summary.no_patch.is_empty() {
        out += "\ntasks without a patch\n";
        let mut reasons: Vec<(&String, &usize)> = summary.no_patch.iter().collect();
        reasons.sort_by_key(|(_, n)| std::cmp::Reverse(**n));
        for (reason, n) in reasons.iter().take(6) {
            let _ = writeln!(
                out,
                "{n:>6}  {}",
                cut(reason.lines().next().unwrap_or_default(), width.map_or(68, |w| w.saturating_sub(8).clamp(20, 68)))
            );
        }
    }
    out += &format!("\n{}", repositories(summary, width));
    out
}

/// The curves at 1, 2, 4, ... samples, and at all.
fn coverage(summary: &Summary, width: Option<usize>) -> Option<String> {
    let longest = summary.coverage.values().map(Vec::len).max().filter(|&n| n > 1)?;
    let mut ks: Vec<usize> = std::iter::successors(Some(1), |k| Some(k * 2)).take_while(|&k| k < longest).collect();
    ks.push(longest);
    let ks = &ks[ks.len().saturating_sub(6)..];
    let head = std::iter::once("best of k samples".to_owned()).chain(ks.iter().map(|k| format!("k={k}"))).collect();
    let mut rows: Vec<Vec<String>> = vec![head];
    for (name, curve) in &summary.coverage {
        let cell = |k: &usize| curve.get(k - 1).map_or(String::new(), |i| format!("{:.1}", 100.0 * i.mean));
        rows.push(std::iter::once(name.clone()).chain(ks.iter().map(cell)).collect());
    }
    Some(columns(&rows, width))
}

/// The columns of the breakdown: number and heading.
pub(super) const BREAKDOWN: [(&str, &str); 6] = [
    ("file.all", "files"),
    ("bm25.file.all", "BM25"),
    ("patch.function.all", "functions"),
    ("patch.applied", "applied"),
    ("patch.similarity", "similar"),
    ("resolved", "resolved"),
];

fn repositories(summary: &Summary, width: Option<usize>) -> String {
    let shown: Vec<_> = BREAKDOWN.iter().filter(|(name, _)| summary.numbers.contains_key(*name)).collect();
    let head = ["by repository".to_owned(), "tasks".to_owned()].into_iter().chain(shown.iter().map(|(_, label)| (*label).to_owned()));
    let mut rows = vec![head.collect::<Vec<_>>()];
    for (repo, of) in &summary.repositories {
        let cells = shown.iter().map(|(name, _)| of.numbers.get(*name).map_or("-".to_owned(), |v| format!("{:.1}", 100.0 * v)));
        rows.push([cut(repo, 24), of.tasks.to_string()].into_iter().chain(cells).collect());
    }
    columns(&rows, width)
}

fn cut(text: &str, most: usize) -> String {
    if text.chars().count() <= most { text.to_owned() } else { text.chars().take(most - 3).chain("...".chars()).collect() }
}

/// Two evaluations compared, as [`render`] has it.
pub fn render_comparison(c: &Comparison, width: Option<usize>) -> String {
    let mut rows = vec![["number", "A", "B", "B - A", "larger", "smaller"].map(str::to_owned).to_vec()];
    for (name, p) in &c.numbers {
        // Numbers of elements are counts, all others shares.
        let share = !name.ends_with(".answers") && name != "patch.distinct";
        let scale = if share { 100.0 } else { 1.0 };
        let number = |v: f64| format!("{:.1}", scale * v);
        let d = p.difference;
        let difference = format!("{:+.1} [{:+.1}, {:+.1}]", scale * d.mean, scale * d.low, scale * d.high);
        rows.push(vec![cut(name, 22), number(p.a), number(p.b), difference, p.larger.to_string(), p.smaller.to_string()]);
    }
    let unpaired = if c.unpaired > 0 { format!(" ({} only in one of them)", c.unpaired) } else { String::new() };
    let head = format!("{} tasks in both{unpaired}; shares in percent, 95 % intervals clustered by repository", c.tasks);
    format!("{}\n\n{}", wrap(&head, width.unwrap_or(usize::MAX)).join("\n"), columns(&rows, width))
}
