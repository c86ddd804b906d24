//! Fixing an issue of a repository at hand: what the pipeline is asked, and what it found, in words.

use std::collections::BTreeMap;

use super::pipeline::Product;
use super::records::Ranked;
use crate::data::Task;
use crate::data::lexical::{self, Ranking};

/// A patch that is proposed.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Proposal {
    /// The unified diff.
    pub patch: String,
    /// How many of the candidates are this patch, but for comments and layout.
    pub votes: usize,
}

/// The task that an issue makes: the `most` files that match it best by four rankings at once ([`lexical::fused_scores`]), or all where there
/// are fewer.
pub fn task(name: &str, issue: &str, sources: BTreeMap<String, String>, most: usize) -> Task {
    let mut task = Task {
        instance_id: format!("{name}-fix"),
        repo: name.to_owned(),
        problem_statement: issue.to_owned(),
        files: sources,
        ..Task::default()
    };
    if task.files.len() > most {
        let paths: Vec<String> = task.files.keys().cloned().collect();
        let mut kept = lexical::rank(&task, &paths, Ranking::Fused);
        kept.truncate(most);
        task.files.retain(|path, _| kept.contains(path));
    }
    task
}

/// The patches, the best first, at most `most`.
pub fn proposals(ranked: &Ranked, most: usize) -> Vec<Proposal> {
    let votes = |i: usize| ranked.built.iter().filter(|b| b.normalized == ranked.built[i].normalized).count();
    ranked.order.iter().take(most).map(|&i| Proposal { patch: ranked.built[i].patch.clone(), votes: votes(i) }).collect()
}

/// What was localised, a line a hop.
pub fn localisation(product: &Product) -> String {
    let samples = &product.files.samples;
    let files = product.files.merged.iter().map(|path| {
        let n = samples.iter().filter(|s| s.elements.contains(path)).count();
        if product.fell_back { format!("{path} (by its words)") } else { format!("{path} ({n} of {} answers)", samples.len()) }
    });
    let mut out = vec![line("files", files.collect())];
    if let Some(hop) = &product.functions {
        out.push(line("functions", hop.merged.iter().map(|(path, name)| format!("{path}: {name}")).collect()));
    }
    if let Some(hop) = &product.lines {
        let mut by_path: BTreeMap<&String, Vec<usize>> = BTreeMap::new();
        hop.merged.iter().for_each(|(path, n)| by_path.entry(path).or_default().push(*n));
        let runs = |(path, mut numbers): (&String, Vec<usize>)| {
            numbers.sort_unstable();
            let runs = numbers.chunk_by(|a, b| a + 1 == *b).map(|run| match run {
                [one] => one.to_string(),
                run => format!("{}-{}", run[0], run[run.len() - 1]),
            });
            format!("{path}: {}", runs.collect::<Vec<_>>().join(", "))
        };
        out.push(line("lines", by_path.into_iter().map(runs).collect()));
    }
    out.join("\n")
}

fn line(what: &str, found: Vec<String>) -> String {
    let found = if found.is_empty() { vec!["none".to_owned()] } else { found };
    format!("{what:<10} {}", found.join("\n           "))
}
