//! `report.html`: one file that shows a run, without scripts or anything from elsewhere.
//!
//! Everything comes from the run folder's own files, so a report can be made of a run at any time, also of one that is still running or
//! was killed: what is missing or torn is left out.

mod baselines;
mod samples;
mod table;

use crate::error::{Error, Result};
use crate::page::chart::{Chart, Series, escape, short};
use crate::page::page;
use crate::rl::config::SUBTASKS;
use crate::rl::run_log::replace;
use serde_json::Value;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// What a run folder holds of a run's course.
#[derive(Debug, Default)]
struct Run {
    name: String,
    /// Lines of steps.
    steps: Vec<Value>,
    /// Evaluations: the step, and its numbers.
    evaluations: Vec<(u64, Value)>,
    config: String,
}

/// Writes `report.html` into the run folder and returns its path.
pub fn write(dir: &Path) -> Result<PathBuf> {
    let run = read(dir)?;
    let path = dir.join("report.html");
    replace(&path, render(&run, &samples::before_and_after(dir, &run.evaluations)).as_bytes())?;
    Ok(path)
}

/// What sums up runs of the same stages on one or several held-out sets: their evaluations, a table for each subtask, those of file
/// localisation beside BM25, with intervals.
pub struct Summary(Vec<table::Summary>);

impl Summary {
    /// Sums up the runs in these folders.
    ///
    /// # Errors
    ///
    /// A folder without `metrics.jsonl`.
    pub fn new(dirs: &[&Path]) -> Result<Self> {
        let runs = dirs.iter().map(|dir| Ok((read(dir)?, *dir))).collect::<Result<Vec<_>>>()?;
        table::summaries(&runs).map(Self)
    }

    /// As text; empty if there are no evaluations.
    pub fn text(&self) -> String {
        table::render(&self.0)
    }

    /// As JSON: a list of subtasks, each with its `evaluations`, `baselines` and paired `differences`.
    ///
    /// # Errors
    ///
    /// None that can happen.
    pub fn json(&self) -> Result<Value> {
        serde_json::to_value(&self.0).map_err(|e| Error::input(format!("cannot write JSON: {e}")))
    }
}

fn read(dir: &Path) -> Result<Run> {
    let path = dir.join("metrics.jsonl");
    let text =
        fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e).hint("a report is made of a folder that `train` wrote"))?;
    let mut run = Run { name: name_of(dir), config: fs::read_to_string(dir.join("config.toml")).unwrap_or_default(), ..Run::default() };
    for line in text.lines() {
        // A run that is being written may end in half a line.
        let Ok(line) = serde_json::from_str::<Value>(line) else { continue };
        match (line["step"].as_u64(), line.get("eval")) {
            (Some(step), Some(eval)) => run.evaluations.push((step, eval.clone())),
            (Some(_), None) => run.steps.push(line),
            (None, _) => {}
        }
    }
    Ok(run)
}

fn name_of(dir: &Path) -> String {
    let full = fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned());
    full.file_name().map_or_else(|| "run".into(), |n| n.to_string_lossy().into_owned())
}

impl Run {
    /// A number of every step that has it; `path` is `key` or `key/inner`.
    fn curve(&self, path: &str) -> Vec<(f64, f64)> {
        let pointer = format!("/{path}");
        let point = |line: &Value| Some((line["step"].as_f64()?, line.pointer(&pointer)?.as_f64()?));
        self.steps.iter().filter_map(point).collect()
    }

    /// The subtasks of a mixture, in the order in which they are named everywhere; none of a run with one.
    fn subtasks(&self) -> Vec<&'static str> {
        let named = |name: &&str| self.evaluations.iter().any(|(_, e)| e[*name].is_object()) || self.has_subtask(name);
        SUBTASKS.iter().copied().filter(named).collect()
    }

    fn has_subtask(&self, name: &str) -> bool {
        self.steps.iter().any(|line| line["subtasks"][name].is_object())
    }

    fn boundaries(&self) -> Vec<f64> {
        let pairs = self.steps.windows(2).filter(|w| w[0]["stage"] != w[1]["stage"]);
        pairs.filter_map(|w| Some((w[0]["step"].as_f64()? + w[1]["step"].as_f64()?) / 2.0)).collect()
    }

    /// The value of a setting in the resolved configuration.
    fn setting(&self, name: &str) -> Option<Value> {
        let table: toml::Table = self.config.parse().ok()?;
        let found = name.split('.').try_fold(&toml::Value::Table(table), |v, key| v.get(key)).cloned()?;
        serde_json::to_value(found).ok()
    }

    /// The best evaluation by `eval.best`, the first of equal ones: its step, the number's name, and the number.
    fn best(&self) -> Option<(u64, String, f64)> {
        let name = self.setting("eval.best")?.as_str().filter(|name| !name.is_empty())?.to_owned();
        let mut best: Option<(u64, f64)> = None;
        for (step, evaluation) in &self.evaluations {
            let value = evaluation.pointer(&format!("/{name}")).and_then(Value::as_f64);
            best = value.filter(|v| best.is_none_or(|(_, b)| *v > b)).map(|v| (*step, v)).or(best);
        }
        best.map(|(step, value)| (step, name, value))
    }

    /// A setting that names files.
    fn paths(&self, name: &str) -> Vec<PathBuf> {
        match self.setting(name) {
            Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).map(PathBuf::from).collect(),
            Some(Value::String(path)) => vec![PathBuf::from(path)],
            _ => Vec::new(),
        }
    }

    /// A number of every evaluation; of a mixture, that of a `subtask`, or where it is empty of all together.
    fn evaluation_series(&self, subtask: &str, key: &str, name: &str) -> Series {
        fn of<'e>(e: &'e Value, subtask: &str) -> &'e Value {
            if subtask.is_empty() { e } else { &e[subtask] }
        }
        let points = self.evaluations.iter().filter_map(|(step, e)| Some((*step as f64, of(e, subtask)[key].as_f64()?))).collect();
        let band = |(step, e): &(u64, Value)| {
            let interval = &of(e, subtask)["interval"][key];
            Some((*step as f64, interval[0].as_f64()?, interval[1].as_f64()?))
        };
        Series { name: name.into(), points, band: self.evaluations.iter().filter_map(band).collect(), marked: true, plain: false }
    }
}

/// A chart of one curve.
fn single(run: &Run, title: &str, caption: &str, path: &str, within: Option<(f64, f64)>) -> Chart {
    let series = vec![Series { points: run.curve(path), ..Series::default() }];
    Chart { title: title.into(), caption: caption.into(), series, boundaries: run.boundaries(), within }
}

/// A chart of one number of each subtask's answers.
fn by_subtask(run: &Run, title: &str, caption: &str, key: &str, within: Option<(f64, f64)>) -> Chart {
    let curve = |name: &&str| Series { name: (*name).into(), points: run.curve(&format!("subtasks/{name}/{key}")), ..Series::default() };
    let series = run.subtasks().iter().map(curve).collect();
    Chart { title: title.into(), caption: caption.into(), series, boundaries: run.boundaries(), within }
}

/// The charts of a mixture.
fn mixture_charts(run: &Run) -> Vec<Chart> {
    let unit = Some((0.0, 1.0));
    let heldout = |name: &&str| {
        let keys = [("fbeta", "F-beta"), ("hit", "hit"), ("valid", "valid")];
        Chart {
            title: format!("Held-out: {name}"),
            caption: "greedy answers, 95 % intervals".into(),
            series: keys.iter().map(|(key, title)| run.evaluation_series(name, key, title)).collect(),
            boundaries: run.boundaries(),
            within: unit,
        }
    };
    let mut all: Vec<Chart> = run.subtasks().iter().map(heldout).collect();
    all.push(by_subtask(run, "Reward by subtask", "mean of the sampled answers", "reward_mean", unit));
    all.push(by_subtask(run, "Valid answers by subtask", "share of the sampled answers", "valid", unit));
    all.push(by_subtask(run, "Answer length by subtask", "tokens", "answer_tokens_mean", Some((0.0, f64::INFINITY))));
    all
}

/// The lengths of sampled answers, and of their thoughts if there ever is one.
fn lengths(run: &Run) -> Chart {
    let mut chart = single(run, "Answer length", "tokens, mean of the sampled answers", "answer_tokens_mean", Some((0.0, f64::INFINITY)));
    let thoughts = run.curve("thought_tokens_mean");
    if thoughts.iter().any(|p| p.1 > 0.0) {
        chart.series[0].name = "whole answer".into();
        chart.series.push(Series { name: "its thought".into(), points: thoughts, ..Series::default() });
    }
    chart
}

fn charts(run: &Run) -> Vec<Chart> {
    let unit = Some((0.0, 1.0));
    let positive = Some((0.0, f64::INFINITY));
    let mut reward = single(run, "Reward", "mean of the sampled answers, and one deviation", "reward_mean", unit);
    let deviation = run.curve("reward_std");
    reward.series[0].band = reward.series[0]
        .points
        .iter()
        .zip(&deviation)
        .filter(|(mean, std)| mean.0 == std.0)
        .map(|(mean, std)| (mean.0, (mean.1 - std.1).max(0.0), mean.1 + std.1))
        .collect();
    // Other rewards than file localisation's may be negative or above 1.
    if reward.series[0].points.iter().any(|p| !(0.0..=1.0).contains(&p.1)) {
        reward.within = None;
    }
    let mut kl = single(run, "KL to the reference", "nats a token, estimated", "kl", positive);
    // The k1 estimate may be negative.
    if kl.series[0].points.iter().any(|p| p.1 < 0.0) {
        kl.within = None;
    }
    let heldout = |title: &str, caption: &str, keys: &[(&str, &str)]| Chart {
        title: title.into(),
        caption: caption.into(),
        series: keys.iter().map(|(key, name)| run.evaluation_series("", key, name)).collect(),
        boundaries: run.boundaries(),
        within: unit,
    };
    let mut all = vec![
        heldout("Held-out quality", "greedy answers, 95 % intervals", &[("fbeta", "F-beta"), ("top1", "top-1")]),
        heldout("Held-out format and hit", "greedy answers, 95 % intervals", &[("valid", "valid"), ("hit", "hit")]),
        reward,
        single(run, "Valid answers", "share of the sampled answers", "valid", unit),
        single(run, "Loss", "as optimised", "loss", None),
        lengths(run),
        single(run, "Elements named", "mean of the sampled answers", "parts/answers", positive),
        kl,
        single(run, "Value loss", "the critic's", "value_loss", positive),
        single(run, "Explained variance", "of the returns, by the critic's values", "explained_variance", None),
        single(run, "Entropy", "nats a token", "entropy", positive),
        single(run, "Gradient norm", "before clipping", "grad_norm", positive),
        Chart {
            series: vec![Series { points: run.curve("lr"), plain: true, ..Series::default() }],
            ..single(run, "Learning rate", "", "lr", positive)
        },
        single(run, "Groups without a signal", "share of groups whose rewards are all equal", "flat_groups", unit),
    ];
    all.extend(mixture_charts(run));
    all.retain(|c| !c.is_empty());
    all
}

/// From `first` to `last` of a curve: the means of its first and last tenth.
fn course(points: &[(f64, f64)]) -> Option<(f64, f64)> {
    let n = (points.len() / 10).max(1);
    let mean = |part: &[(f64, f64)]| part.iter().map(|p| p.1).sum::<f64>() / part.len() as f64;
    (!points.is_empty()).then(|| (mean(&points[..n]), mean(&points[points.len() - n..])))
}

/// A number of three decimals, or as [`short`] has it where those would hide it.
fn three(v: f64) -> String {
    if v != 0.0 && v.abs() < 1e-2 { short(v) } else { short((v * 1e3).round() / 1e3) }
}

fn tile(out: &mut String, label: &str, value: &str, note: &str) {
    let _ = write!(out, "<div class=\"tile\"><small>{}</small><b>{value}</b><small>{}</small></div>", escape(label), escape(note));
}

fn tiles(run: &Run) -> String {
    let mut out = String::from("<div class=\"tiles\">");
    let skipped = run.steps.iter().filter(|s| s["skipped"] == Value::Bool(true)).count();
    let note = if skipped > 0 { format!("{skipped} skipped") } else { String::new() };
    tile(&mut out, "Steps", &run.steps.len().to_string(), &note);
    let arrow = |a: f64, b: f64| format!("{} <i>&rarr;</i> {}", three(a), three(b));
    if let (Some((_, first)), Some((_, last))) = (run.evaluations.first(), run.evaluations.last()) {
        for (key, label) in [("fbeta", "Held-out F-beta"), ("valid", "Held-out valid"), ("answers", "Held-out elements named")] {
            if let (Some(a), Some(b)) = (first[key].as_f64(), last[key].as_f64()) {
                tile(&mut out, label, &arrow(a, b), &first["tasks"].as_u64().map_or(String::new(), |n| format!("of {n} tasks")));
            }
        }
    }
    if let Some((step, name, value)) = run.best() {
        tile(&mut out, &format!("Best held-out {name}"), &three(value), &format!("after step {step}"));
    }
    // The losses of two stages are different numbers.
    let one_loss = run.boundaries().is_empty();
    for (path, label) in [("reward_mean", "Reward"), ("loss", "Loss"), ("answer_tokens_mean", "Answer length")] {
        if let Some((a, b)) = course(&run.curve(path)).filter(|_| path != "loss" || one_loss) {
            tile(&mut out, label, &arrow(a, b), "first and last tenth");
        }
    }
    out + "</div>"
}

fn evaluations(run: &Run) -> String {
    const COLUMNS: [(&str, &str); 9] = [
        ("valid", "valid"),
        ("applied", "applied"),
        ("hit", "hit"),
        ("top1", "top-1"),
        ("precision", "precision"),
        ("recall", "recall"),
        ("f1", "F1"),
        ("fbeta", "F-beta"),
        ("answers", "elements named"),
    ];
    if run.evaluations.is_empty() {
        return String::new();
    }
    // All together, and each subtask of a mixture.
    let mut lines: Vec<(u64, &str, &Value)> = Vec::new();
    for (step, e) in &run.evaluations {
        lines.push((*step, "", e));
        lines.extend(run.subtasks().into_iter().map(|name| (*step, name, &e[name])).filter(|(.., e)| e.is_object()));
    }
    let present: Vec<_> = COLUMNS.iter().filter(|(key, _)| lines.iter().any(|(.., e)| e[*key].is_number())).collect();
    let mut out = String::from("<h2>Evaluations on held-out tasks</h2><div class=\"scroll\"><table><tr><th>after step</th><th>tasks</th>");
    present.iter().for_each(|(_, name)| out += &format!("<th>{name}</th>"));
    out += "</tr>";
    for (step, subtask, e) in lines {
        let _ = write!(out, "<tr><td>{step} {subtask}</td><td>{}</td>", e["tasks"]);
        for (key, _) in &present {
            let interval = &e["interval"][*key];
            let cell = e[*key].as_f64().map_or("&ndash;".into(), |v| format!("{v:.3}"));
            let range = match (interval[0].as_f64(), interval[1].as_f64()) {
                (Some(low), Some(high)) => format!("<small>{low:.3} to {high:.3}</small>"),
                _ => String::new(),
            };
            let _ = write!(out, "<td>{cell}{range}</td>");
        }
        out += "</tr>";
    }
    out + "</table></div><p class=\"note\">Small figures: 95 % bootstrap intervals, clustered by repository.</p>"
}

fn render(run: &Run, samples: &str) -> String {
    let text = |name| run.setting(name).and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default();
    let stages: Vec<String> = match run.setting("stage") {
        Some(Value::Array(stages)) => {
            stages.iter().map(|s| s["algorithm"].as_str().map_or_else(|| text("algorithm"), str::to_owned)).collect()
        }
        _ => vec![text("algorithm")],
    };
    let mut lead = vec![
        format!("<code>{}</code>", escape(&text("model"))),
        escape(&stages.iter().map(|s| s.to_uppercase()).collect::<Vec<_>>().join(", then ")),
    ];
    lead.extend(run.setting("seed").map(|s| format!("seed {s}")));
    let charts: String = charts(run).iter().map(Chart::render).collect();
    let boundary = if run.boundaries().is_empty() { "" } else { " A dashed line is the end of a stage." };
    let body = format!(
        "<p class=\"lead\">{lead}</p>\n{tiles}\n\
         <h2>Curves</h2><p class=\"lead\">By step; faint: every step, strong: a moving average.{boundary}</p><div class=\"charts\">{charts}</div>\n\
         {evaluations}\n{samples}\n<h2>Configuration</h2><details><summary>All settings, as resolved</summary><pre>{config}</pre></details>",
        lead = lead.join(" &middot; "),
        tiles = tiles(run),
        evaluations = evaluations(run),
        config = escape(&run.config),
    );
    page(&run.name, &body, "metrics.jsonl, evals/ and config.toml of the run folder")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_of_nothing_and_a_torn_run_still_have_a_report() {
        let dir = tempfile::tempdir().unwrap();
        assert!(write(dir.path()).unwrap_err().to_string().contains("metrics.jsonl: cannot read"));
        fs::write(dir.path().join("metrics.jsonl"), "").unwrap();
        write(dir.path()).unwrap();
        let lines = "{\"step\":1,\"stage\":1,\"loss\":null,\"kl\":null}\n{\"step\":2,\"stage\":1,\"loss\":0.5}\n{\"step\":3,\"lo";
        fs::write(dir.path().join("metrics.jsonl"), lines).unwrap();
        fs::write(dir.path().join("config.toml"), "model = \"a/<b>\"\nalgorithm = \"sft\"\nseed = 3\n").unwrap();
        let html = fs::read_to_string(write(dir.path()).unwrap()).unwrap();
        assert!(html.contains("<code>a/&lt;b&gt;</code> &middot; SFT &middot; seed 3"));
        assert!(html.contains("<b>Loss</b>") && !html.contains("<b>KL") && !html.contains("NaN"));
    }

    #[test]
    fn nothing_comes_from_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let steps: String = (1..=30)
            .map(|i| {
                format!("{{\"step\":{i},\"stage\":{},\"loss\":{},\"reward_mean\":0.5,\"reward_std\":0.2}}\n", i / 20, 1.0 / f64::from(i))
            })
            .collect();
        fs::write(
            dir.path().join("metrics.jsonl"),
            steps + "{\"step\":30,\"eval\":{\"tasks\":2,\"fbeta\":0.5,\"interval\":{\"fbeta\":[0.25,0.75]}}}\n",
        )
        .unwrap();
        let html = fs::read_to_string(write(dir.path()).unwrap()).unwrap();
        for forbidden in ["http", "<script", "url(", "@import", "src="] {
            assert!(!html.contains(forbidden), "{forbidden}");
        }
        assert!(html.contains("0.250 to 0.750") && html.contains("class=\"stage\""));
    }
}
