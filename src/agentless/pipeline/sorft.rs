//! SoRFT's four hops (arXiv 2502.20127, section 3.1), put together as Agentless does (arXiv 2407.01489, section 3.1): files by the number of
//! answers that name them; functions of all answers together; each answer's own lines followed up, the sets of lines taking turns until
//! there are as many candidates as asked for; edits of the code around them.
//!
//! A hop whose answers name nothing passes on what it was shown: all definitions of the files, or the definitions as a whole. A task
//! without a file ends there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::merge::{distinct, union};
use super::{Candidate, Hop, LastHop, Named, Product, Settings, Trace, merge_files, read_files};
use crate::Result;
use crate::agentless::generator::Answer;
use crate::agentless::session::{Ask, Session};
use crate::data::Task;
use crate::data::subtask::Location;
use crate::data::subtask::answer::{Answered, Universe, parse_functions, parse_lines};
use crate::data::subtask::edit::EditSubtask;
use crate::data::subtask::file::{FileOptions, FileSubtask};
use crate::data::subtask::function::FunctionSubtask;
use crate::data::subtask::line::{LineSubtask, places};
use crate::data::subtask::matches::MatchOptions;
use crate::data::subtask::view::{Asked, ViewOptions};
use crate::data::symbols::{MODULE, definitions};

/// A definition: its path and its qualified name.
type Function = (String, String);
/// A line: its path and its number.
type Line = (String, usize);

pub(super) fn run(tasks: &[Task], settings: &Settings, session: &mut Session<'_>) -> Result<Vec<Product>> {
    let mut products = files(tasks, settings, session)?;
    if settings.until >= LastHop::Function {
        functions(tasks, &mut products, settings, session)?;
    }
    if settings.until >= LastHop::Line {
        lines(tasks, &mut products, settings, session)?;
    }
    if settings.until >= LastHop::Edit {
        edit(tasks, &mut products, settings, session)?;
    }
    Ok(products)
}

/// The function hop.
fn functions(tasks: &[Task], products: &mut [Product], settings: &Settings, session: &mut Session<'_>) -> Result<()> {
    let subtask = FunctionSubtask::new(view(settings, "function"))?;
    let asked: Vec<Option<Asked>> = each(tasks, products, |task, product| {
        let paths = &product.files.merged;
        (!paths.is_empty()).then(|| subtask.ask(task, paths, &|text| session.count(text)))
    });
    let samples = localise("function", tasks, &asked, settings, session, &|text, universe| parse_functions(text, universe))?;
    for ((task, product), samples) in tasks.iter().zip(products).zip(samples) {
        let samples: Vec<Named<Function>> = samples.into_iter().map(|s| keep(s, |f| is_there(task, f))).collect();
        let merged = union(&elements(&samples));
        product.functions = Some(Hop { samples, merged });
    }
    Ok(())
}

/// The line hop.
fn lines(tasks: &[Task], products: &mut [Product], settings: &Settings, session: &mut Session<'_>) -> Result<()> {
    let subtask = LineSubtask::new(view(settings, "line"))?;
    let asked: Vec<Option<Asked>> = each(tasks, products, |task, product| {
        let wanted = functions_or_all(task, product);
        let ask = || subtask.ask(task, &wanted, settings.context_lines, &|text| session.count(text));
        (!wanted.is_empty()).then(ask)
    });
    let samples = localise("line", tasks, &asked, settings, session, &|text, universe| parse_lines(text, universe))?;
    for ((task, product), samples) in tasks.iter().zip(products).zip(samples) {
        let count = |path: &str| task.files.get(path).map_or(0, |text| text.lines().count());
        let samples: Vec<Named<Line>> = samples.into_iter().map(|s| keep(s, |(path, n)| (1..=count(path)).contains(n))).collect();
        let merged = union(&elements(&samples));
        product.lines = Some(Hop { samples, merged });
    }
    Ok(())
}

fn view(settings: &Settings, subtask: &str) -> ViewOptions {
    ViewOptions {
        max_tokens: settings.max_prompt_tokens,
        min_issue_tokens: settings.min_issue_tokens,
        seed: settings.seed,
        template: settings.templates.get(subtask).cloned(),
        matches: MatchOptions { listed: settings.definitions, answers: settings.answers, close: settings.close },
    }
}

/// The file hop. All samples share one prompt.
fn files(tasks: &[Task], settings: &Settings, session: &mut Session<'_>) -> Result<Vec<Product>> {
    let subtask = FileSubtask::new(FileOptions {
        universe: settings.universe,
        order: settings.order,
        evidence: settings.evidence,
        max_tokens: settings.max_prompt_tokens,
        min_issue_tokens: settings.min_issue_tokens,
        answers: settings.answers,
        close: settings.close,
        seed: settings.seed,
        template: settings.templates.get("file").cloned(),
    })?;
    let (mut asks, mut shown) = (Vec::new(), Vec::new());
    for task in tasks {
        let prompt = subtask.ask(task, &|text| session.count(text))?;
        let (text, candidates): (Arc<str>, BTreeSet<String>) = (prompt.text.into(), prompt.candidates.into_iter().collect());
        for _ in 0..settings.localisations {
            asks.push(Ask { instance: &task.instance_id, system: None, prompt: text.clone() });
            shown.push(candidates.clone());
        }
    }
    let answers = session.ask("file", &asks)?;
    let mut named = read_files(answers, &asks, &shown).into_iter();
    let product = |task: &Task| {
        let universe = super::universe(task, settings)?;
        let samples = named.by_ref().take(settings.localisations).collect();
        let (files, fell_back) = merge_files(task, &universe, samples, settings);
        Ok(Product { universe, files, fell_back, functions: None, lines: None, candidates: Vec::new() })
    };
    tasks.iter().map(product).collect()
}

/// A question for each task that has one; what cannot be asked (nothing known to show, no room for it) is not.
fn each(tasks: &[Task], products: &[Product], ask: impl Fn(&Task, &Product) -> Option<Result<Asked>>) -> Vec<Option<Asked>> {
    tasks.iter().zip(products).map(|(task, product)| ask(task, product).and_then(Result::ok)).collect()
}

/// Asks a localisation hop and reads its answers, task by task.
fn localise<T: Clone>(
    hop: &str,
    tasks: &[Task],
    asked: &[Option<Asked>],
    settings: &Settings,
    session: &mut Session<'_>,
    read: &dyn Fn(&str, &Universe) -> Answered<T>,
) -> Result<Vec<Vec<Named<T>>>> {
    let mut asks = Vec::new();
    for (task, asked) in tasks.iter().zip(asked) {
        if let Some(asked) = asked {
            let ask = Ask { instance: &task.instance_id, system: None, prompt: asked.text.as_str().into() };
            asks.extend(std::iter::repeat_n(ask, settings.localisations));
        }
    }
    let mut answers = session.ask(hop, &asks)?.into_iter().zip(&asks);
    let named = |asked: &Asked, (answer, ask): (Answer, &Ask<'_>)| {
        let (elements, error) = read(&answer.text, &asked.universe);
        Named { elements, error, trace: Trace::new(ask, answer) }
    };
    let of_task = |asked: &Option<Asked>| match asked {
        Some(asked) => answers.by_ref().take(settings.localisations).map(|a| named(asked, a)).collect(),
        None => Vec::new(),
    };
    Ok(asked.iter().map(of_task).collect())
}

fn keep<T>(mut named: Named<T>, is_there: impl Fn(&T) -> bool) -> Named<T> {
    named.elements.retain(is_there);
    named
}

fn elements<T: Clone>(samples: &[Named<T>]) -> Vec<Vec<T>> {
    samples.iter().map(|s| s.elements.clone()).collect()
}

fn is_there(task: &Task, (path, name): &Function) -> bool {
    let Some(text) = task.files.get(path) else { return false };
    name == MODULE || definitions(path, text).is_some_and(|all| all.iter().any(|d| d.name == *name))
}

/// The functions localised, or all definitions of the files where there are none.
fn functions_or_all(task: &Task, product: &Product) -> Vec<Function> {
    let named = product.functions.iter().flat_map(|hop| &hop.merged).cloned().collect::<Vec<_>>();
    if !named.is_empty() {
        return named;
    }
    let all = |path: &String| {
        let text = task.files.get(path).map_or("", String::as_str);
        let outer = definitions(path, text).unwrap_or_default().into_iter().filter(|d| d.depth == 0).map(|d| d.name);
        outer.chain([MODULE.to_owned()]).map(|name| (path.clone(), name)).collect::<Vec<_>>()
    };
    product.files.merged.iter().flat_map(all).collect()
}

/// Runs of lines as locations.
fn locations(lines: &[Line]) -> Vec<Location> {
    let mut by_path: BTreeMap<&String, BTreeSet<usize>> = BTreeMap::new();
    for (path, n) in lines {
        by_path.entry(path).or_default().insert(*n);
    }
    let mut out: Vec<Location> = Vec::new();
    for (path, numbers) in by_path {
        for n in numbers {
            match out.last_mut() {
                Some((last, _, end)) if last == path && *end + 1 == n => *end = n,
                _ => out.push((path.clone(), n, n)),
            }
        }
    }
    out
}

/// The edit hop: fills the candidates.
fn edit(tasks: &[Task], products: &mut [Product], settings: &Settings, session: &mut Session<'_>) -> Result<()> {
    let subtask = EditSubtask::new(view(settings, "edit"))?;
    let (mut asks, mut owners) = (Vec::new(), Vec::new());
    let mut questions: Vec<Vec<Option<Asked>>> = Vec::new();
    for (t, (task, product)) in tasks.iter().zip(products.iter_mut()).enumerate() {
        let sets =
            distinct(&product.lines.iter().flat_map(|hop| elements(&hop.samples)).map(|lines| locations(&lines)).collect::<Vec<_>>());
        let sets = match sets.is_empty() {
            true => distinct(&[places(&task.files, &functions_or_all(task, product))]),
            false => sets,
        };
        let ask = |set: &Vec<Location>| subtask.ask(task, set, settings.context_lines, &|text| session.count(text)).ok();
        questions.push(sets.iter().take(settings.samples).map(ask).collect());
        for i in 0..settings.samples {
            let mut candidate = Candidate { found_files: product.files.merged.clone(), ..Candidate::default() };
            match questions[t].get(i % sets.len().max(1)) {
                None => candidate.error = Some("no file was localised".to_owned()),
                Some(None) => candidate.error = Some("none of the code localised is known and fits into the prompt".to_owned()),
                Some(Some(asked)) => {
                    asks.push(Ask { instance: &task.instance_id, system: None, prompt: asked.text.as_str().into() });
                    owners.push((t, i, i % sets.len()));
                }
            }
            product.candidates.push(candidate);
        }
    }
    let answers = session.ask("edit", &asks)?;
    for ((answer, ask), (t, i, q)) in answers.into_iter().zip(&asks).zip(owners) {
        let candidate = &mut products[t].candidates[i];
        let asked = questions[t][q].as_ref();
        match asked.map_or_else(|| Err("nothing was asked".to_owned()), |a| a.universe.apply(&answer.text)) {
            Ok(new) => {
                let old = |path: &String| tasks[t].files.get(path).cloned().unwrap_or_default();
                candidate.changed = new.into_iter().map(|(path, new)| (path.clone(), (old(&path), new))).collect();
                candidate.changed.retain(|_, (old, new)| old != new);
                candidate.error = candidate.changed.is_empty().then(|| "the edits change nothing".to_owned());
            }
            Err(reason) => candidate.error = Some(reason),
        }
        candidate.trace = Some(Trace::new(ask, answer));
    }
    Ok(())
}
