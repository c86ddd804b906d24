//! A pipeline's products as the files of Agentless and Agentless Mini, and which candidate is handed in.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::files::{self, Found, Location, Prediction, Processed, Repair, processed_name};
use super::patch::{Built, build};
use super::pipeline::{Candidate, Named, Product, Trace};
use super::rerank::{self, Ranker, ranked};
use crate::data::Task;
use crate::data::symbols::{Kind, definitions};
use crate::{Error, Result};

/// The name under which predictions are handed in.
pub const MODEL_NAME: &str = "sorft-native";

/// What running tests says of a candidate; nothing where none were run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tests {
    /// How many tests that passed before it fail with it.
    pub failed_regressions: Option<usize>,
    /// For every reproduction test, whether it passes with the patch.
    pub reproductions: Option<Vec<bool>>,
}

/// A task's candidates as patches, and their ranking.
#[derive(Clone, Debug, Default)]
pub struct Ranked {
    /// The patches, in the order of the samples.
    pub built: Vec<Built>,
    /// The places of one candidate for every different patch, the best first ([`ranked`]).
    pub order: Vec<usize>,
}

impl Ranked {
    /// Builds and ranks a task's candidates by the first of `orders` that decides; `tests` says what is known of candidate `i`.
    ///
    /// # Errors
    ///
    /// The parsers cannot be set up.
    pub fn new(task: &Task, candidates: &[Candidate], orders: &[&[Ranker]], tests: &dyn Fn(usize) -> Tests) -> Result<Self> {
        let is_new = |path: &str| !task.files.contains_key(path);
        let built = candidates.iter().map(|c| build(&c.changed, &is_new)).collect::<Result<Vec<_>>>()?;
        let of = |(i, built): (usize, &Built)| {
            let Tests { failed_regressions, reproductions } = tests(i);
            rerank::Candidate { normalized: built.normalized.clone(), failed_regressions, reproductions }
        };
        let order = ranked(&built.iter().enumerate().map(of).collect::<Vec<_>>(), orders);
        Ok(Self { built, order })
    }

    /// The patch that is handed in: that of the first candidate of the ranking; empty where there is none.
    pub fn best(&self) -> &str {
        self.order.first().map_or("", |&i| &self.built[i].patch)
    }
}

/// Writes all files of a run's products into its folder: `loc.jsonl`, `repair/output.jsonl`, `repair/output_{i}_processed.jsonl`,
/// `repair/output_{i}_normalized.jsonl` and `all_preds.jsonl`.
///
/// # Errors
///
/// The system's.
pub fn write(dir: &Path, tasks: &[Task], products: &[Product], ranked: &[Ranked]) -> Result<()> {
    let repair = dir.join("repair");
    std::fs::create_dir_all(&repair).map_err(|e| Error::io("make", &repair, e))?;
    let pairs = || tasks.iter().zip(products);
    files::write(&dir.join("loc.jsonl"), &pairs().map(|(t, p)| location(t, p)).collect::<Vec<_>>())?;
    files::write(&repair.join("output.jsonl"), &pairs().map(|(t, p)| output(t, p)).collect::<Vec<_>>())?;
    for i in 0..products.iter().map(|p| p.candidates.len()).max().unwrap_or(0) {
        let all = || tasks.iter().zip(products).zip(ranked).filter(|((_, p), _)| i < p.candidates.len());
        let lines = |normalized: bool| all().map(|((t, p), r)| processed(t, &p.candidates[i], &r.built[i], normalized)).collect::<Vec<_>>();
        files::write(&repair.join(processed_name(i)), &lines(false))?;
        files::write(&repair.join(format!("output_{i}_normalized.jsonl")), &lines(true))?;
    }
    predictions(dir, tasks, ranked)
}

/// Writes `all_preds.jsonl`.
///
/// # Errors
///
/// The system's.
pub fn predictions(dir: &Path, tasks: &[Task], ranked: &[Ranked]) -> Result<()> {
    let prediction = |(task, ranked): (&Task, &Ranked)| Prediction {
        model_name_or_path: MODEL_NAME.to_owned(),
        instance_id: task.instance_id.clone(),
        model_patch: ranked.best().to_owned(),
    };
    files::write(&dir.join("all_preds.jsonl"), &tasks.iter().zip(ranked).map(prediction).collect::<Vec<_>>())
}

fn location(task: &Task, product: &Product) -> Location {
    let mut extra = Map::new();
    extra.insert("merged_files".into(), json!(product.files.merged));
    extra.insert("fell_back".into(), json!(product.fell_back));
    let errors: Vec<&Option<String>> = product.files.samples.iter().map(|s| &s.error).collect();
    extra.insert("errors".into(), json!(errors));
    extra.insert("file_traj".into(), traces(product.files.samples.iter().map(|s| Some(&s.trace))));
    if let Some(hop) = &product.functions {
        let line = |(path, name): &(String, String)| (path.clone(), function_line(task, path, name));
        extra.insert("found_related_locs".into(), by_file(hop.merged.iter().map(line)));
        extra.insert("related_errors".into(), json!(hop.samples.iter().map(|s| &s.error).collect::<Vec<_>>()));
        extra.insert("related_traj".into(), traces(hop.samples.iter().map(|s| Some(&s.trace))));
    }
    if let Some(hop) = &product.lines {
        let line = |(path, n): &(String, usize)| (path.clone(), format!("line: {n}"));
        let of = |s: &Named<(String, usize)>| by_file(s.elements.iter().map(line));
        extra.insert("found_edit_locs".into(), hop.samples.iter().map(of).collect());
        extra.insert("edit_errors".into(), json!(hop.samples.iter().map(|s| &s.error).collect::<Vec<_>>()));
        extra.insert("edit_traj".into(), traces(hop.samples.iter().map(|s| Some(&s.trace))));
    }
    Location {
        instance_id: task.instance_id.clone(),
        found_files: Found::Samples(product.files.samples.iter().map(|s| s.elements.clone()).collect()),
        extra,
    }
}

/// Lines of localisation as Agentless has them: `{path: ["line\nline"]}`.
fn by_file(lines: impl Iterator<Item = (String, String)>) -> Value {
    let mut out: Map<String, Value> = Map::new();
    for (path, line) in lines {
        match out.get_mut(&path).and_then(|v| v.get_mut(0)) {
            Some(Value::String(text)) => *text += &format!("\n{line}"),
            _ => drop(out.insert(path, json!([line]))),
        }
    }
    Value::Object(out)
}

fn function_line(task: &Task, path: &str, name: &str) -> String {
    let all = task.files.get(path).and_then(|text| definitions(path, text)).unwrap_or_default();
    match all.iter().find(|d| d.name == name) {
        Some(d) if d.kind == Kind::Class => format!("class: {name}"),
        Some(_) => format!("function: {name}"),
        None => "module:".to_owned(),
    }
}

fn output(task: &Task, product: &Product) -> Repair {
    let texts: Vec<String> =
        product.candidates.iter().map(|c| c.trace.as_ref().map(|t| t.answer.text.clone()).unwrap_or_default()).collect();
    let of_changed = |each: &dyn Fn(&Candidate) -> Value| Value::from(product.candidates.iter().map(each).collect::<Vec<_>>());
    let mut extra = Map::new();
    extra.insert("traj".into(), traces(product.candidates.iter().map(|c| c.trace.as_ref())));
    extra.insert("errors".into(), of_changed(&|c| json!(c.error)));
    extra.insert("all_indices".into(), json!((0..texts.len()).collect::<Vec<_>>()));
    extra.insert("all_found_files".into(), of_changed(&|c| json!(c.found_files)));
    Repair {
        instance_id: task.instance_id.clone(),
        all_generations: vec![texts.clone()],
        raw_output: texts,
        prev_content: json!([of_changed(&|c| c.changed.values().map(|(old, _)| old.as_str()).collect())]),
        file_names: json!([of_changed(&|c| c.changed.keys().map(String::as_str).collect())]),
        extra,
    }
}

/// How each sample was asked. A prompt stands with the first sample that has it; the others name that sample.
fn traces<'a>(all: impl Iterator<Item = Option<&'a Trace>>) -> Value {
    let mut prompts: Vec<(usize, &str)> = Vec::new();
    let mut out = Vec::new();
    for (i, trace) in all.enumerate() {
        let Some(Trace { system, prompt, answer }) = trace else {
            out.push(Value::Null);
            continue;
        };
        let first = prompts.iter().find(|(_, p)| *p == &**prompt).map(|(i, _)| *i);
        let (key, said) = match first {
            Some(first) => ("prompt_of_sample", json!(first)),
            None => ("prompt", json!(&**prompt)),
        };
        prompts.extend(first.is_none().then_some((i, &**prompt)));
        let mut line = Map::new();
        if let Some(system) = system.as_ref().filter(|_| first.is_none()) {
            line.insert("system".into(), json!(&**system));
        }
        let rest = json!({
            key: said, "response": answer.text, "finish_reason": answer.finish_reason,
            "usage": {"prompt_tokens": answer.prompt_tokens, "completion_tokens": answer.tokens},
        });
        line.extend(rest.as_object().cloned().unwrap_or_default());
        out.push(Value::Object(line));
    }
    Value::from(out)
}

fn processed(task: &Task, candidate: &Candidate, built: &Built, normalized: bool) -> Processed {
    let side = |new: bool| candidate.changed.values().map(|(old, after)| if new { after.as_str() } else { old.as_str() }).collect();
    let mut extra = Map::new();
    extra.insert("blank".into(), json!(built.blank));
    Processed {
        model_name_or_path: MODEL_NAME.to_owned(),
        instance_id: task.instance_id.clone(),
        model_patch: built.patch.clone(),
        raw_model_patch: built.raw.clone(),
        original_file_content: side(false),
        edited_files: candidate.changed.keys().map(String::as_str).collect(),
        new_file_content: side(true),
        normalized_patch: normalized.then(|| built.normalized.clone()),
        extra,
    }
}
