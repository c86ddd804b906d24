//! Agentless Mini (SWE-RL, arXiv 2502.18449): each sample of localisation sees the tree in an order of its own; each different list of files
//! is followed up, whole files in the prompt; the lists take turns until there are as many candidates as asked for.
//!
//! One thing differs from the paper's code: the order of the files is drawn once for a list and not once for a sample, so that the samples
//! of a list share their prompt, which is then read once.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::merge::distinct;
use super::{Candidate, LastHop, Named, Product, Settings, Trace, merge_files, read_files, repair, universe};
use crate::Result;
use crate::agentless::session::{Ask, Session};
use crate::data::Task;
use crate::data::subtask::mini::{self, View};
use crate::data::subtask::repair::{RepairOptions, RepairSubtask};

pub(super) fn run(tasks: &[Task], settings: &Settings, session: &mut Session<'_>) -> Result<Vec<Product>> {
    let universes = tasks.iter().map(|task| universe(task, settings)).collect::<Result<Vec<_>>>()?;
    let files = localise(tasks, &universes, settings, session)?;
    let mut products = Vec::with_capacity(tasks.len());
    for ((task, universe), samples) in tasks.iter().zip(universes).zip(files) {
        let (files, fell_back) = merge_files(task, &universe, samples, settings);
        products.push(Product { universe, files, fell_back, functions: None, lines: None, candidates: Vec::new() });
    }
    if settings.until >= LastHop::Edit {
        edit(tasks, &mut products, settings, session)?;
    }
    Ok(products)
}

/// The file hop: every task's samples.
fn localise(tasks: &[Task], universes: &[Vec<String>], settings: &Settings, session: &mut Session<'_>) -> Result<Vec<Vec<Named<String>>>> {
    let (mut asks, mut shown) = (Vec::new(), Vec::new());
    for (task, paths) in tasks.iter().zip(universes) {
        for i in 0..settings.localisations {
            let view = if settings.greedy { View::GREEDY } else { View::sample(settings.seed, &task.instance_id, i) };
            let budget = (settings.max_prompt_tokens, settings.min_issue_tokens);
            let prompt = mini::prompt(task, paths, view, budget, &|text| session.count(text))?;
            asks.push(Ask { instance: &task.instance_id, system: None, prompt: prompt.text.into() });
            shown.push(prompt.candidates.into_iter().collect::<BTreeSet<String>>());
        }
    }
    let answers = session.ask("file", &asks)?;
    let mut named = read_files(answers, &asks, &shown).into_iter();
    Ok(tasks.iter().map(|_| named.by_ref().take(settings.localisations).collect()).collect())
}

/// The repair hop: fills the candidates of the products.
fn edit(tasks: &[Task], products: &mut [Product], settings: &Settings, session: &mut Session<'_>) -> Result<()> {
    let options = RepairOptions {
        max_tokens: settings.max_prompt_tokens,
        min_issue_tokens: settings.min_issue_tokens,
        seed: settings.seed,
        template: settings.templates.get("repair").cloned(),
    };
    let subtask = RepairSubtask::new(options)?;
    let system: Option<Arc<str>> = subtask.system().map(Arc::from);
    let mut asks = Vec::new();
    // Which candidate an answer is for, and which files it was shown.
    let mut owners: Vec<(usize, usize, Vec<String>)> = Vec::new();
    for (t, (task, product)) in tasks.iter().zip(products.iter_mut()).enumerate() {
        let lists: Vec<Vec<String>> = match product.fell_back {
            true => vec![product.files.merged.clone()],
            false => distinct(&product.files.samples.iter().map(|s| s.elements.clone()).collect::<Vec<_>>()),
        };
        let mut prompts = Vec::with_capacity(lists.len());
        for list in lists.iter().take(settings.samples) {
            prompts.push(subtask.ask(task, list, &list.join("\n"), &|text| session.count(text))?.map(|q| (Arc::from(q.text), q.shown)));
        }
        for i in 0..settings.samples {
            let mut candidate = Candidate::default();
            match prompts.get(i % prompts.len().max(1)) {
                None => candidate.error = Some("no file was localised".to_owned()),
                Some(prompt) => {
                    candidate.found_files = lists[i % prompts.len()].clone();
                    match prompt {
                        None => candidate.error = Some("none of the files localised is known and fits into the prompt".to_owned()),
                        Some((text, shown)) => {
                            asks.push(Ask { instance: &task.instance_id, system: system.clone(), prompt: Arc::clone(text) });
                            owners.push((t, i, shown.clone()));
                        }
                    }
                }
            }
            product.candidates.push(candidate);
        }
    }
    let answers = session.ask("repair", &asks)?;
    for ((answer, ask), (t, i, shown)) in answers.into_iter().zip(&asks).zip(owners) {
        let files = shown.iter().map(|p| (p.clone(), tasks[t].files[p].clone())).collect();
        let (changed, error) = repair::apply(&answer.text, &files);
        let candidate = &mut products[t].candidates[i];
        (candidate.changed, candidate.error) = (changed, error);
        candidate.trace = Some(Trace::new(ask, answer));
    }
    Ok(())
}
