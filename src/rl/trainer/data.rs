//! The examples of a run's stages and of its evaluations.

use super::Event;
use crate::data::Task;
use crate::data::metrics::ScoreKind;
use crate::error::{Error, Result};
use crate::model::dialogue::Dialogue;
use crate::model::weights::ModelFiles;
use crate::rl::config::{AdvantageKind, Algorithm, Config, Stage};
use crate::rl::dataset::{Dataset, Item, holds_dialogues, holds_sequences, make_items, read_dialogues, read_sequences, read_tasks};
use crate::rl::reward;
use std::collections::HashSet;
use std::sync::Arc;

/// Everything that a run reads: the stages' examples, in order, and the held-out questions.
pub struct Examples {
    /// One a stage; stages that train on the same share it.
    pub stages: Vec<Arc<Dataset>>,
    /// Questions that are never trained on; empty without `data.heldout`.
    pub heldout: Vec<Item>,
}

impl Examples {
    /// Reads all files and makes all prompts, so that whatever is wrong with them is said before the first step.
    pub fn load(config: &Config, files: &ModelFiles, on_event: &mut dyn FnMut(Event<'_>)) -> Result<Self> {
        let mut stages: Vec<Arc<Dataset>> = Vec::new();
        let mut trained = HashSet::new();
        for (i, stage) in config.stages.iter().enumerate() {
            let same = config.stages[..i].iter().position(|other| shares_examples(stage, other));
            let dataset = match same {
                Some(j) => stages[j].clone(),
                None => Arc::new(load_stage(config, stage, files, &mut trained, on_event)?),
            };
            if stage.algorithm.samples() && matches!(*dataset, Dataset::Sequences(_)) {
                let message = format!("{} samples and judges answers, so it needs tasks, not lines of ids", stage.algorithm.name());
                return Err(Error::input(message).at_file(&stage.train[0]).at("data.train"));
            }
            if stage.algorithm.samples() && dataset.len() < stage.batch_prompts {
                on_event(Event::Warning(format!(
                    "batch_prompts is {} but there are {} tasks: some are asked twice in a batch, and answered the same",
                    stage.batch_prompts,
                    dataset.len()
                )));
            }
            let compares = stage.algorithm == Algorithm::Grpo && matches!(stage.advantage, AdvantageKind::Grpo | AdvantageKind::DrGrpo);
            if compares && stage.group_size == 1 && stage.kl_coef == 0.0 && stage.entropy_coef == 0.0 {
                let message = "grpo compares the answers of a group: with group_size = 1 every advantage is 0, and nothing is learned";
                return Err(Error::input(message).at("group_size").hint("8 is a usual size"));
            }
            stages.push(dataset);
        }
        let heldout = load_heldout(config, files, on_event)?;
        if let Some(item) = heldout.iter().find(|item| trained.contains(&item.id)) {
            let message = format!("the held-out task {} is also trained on", item.id);
            return Err(Error::input(message).at("data.heldout").hint("`data split` makes files that share no task"));
        }
        Ok(Self { stages, heldout })
    }
}

/// Whether two stages' examples are the same, prompts and rewards included.
fn shares_examples(a: &Stage, b: &Stage) -> bool {
    (&a.train, a.max_prompt_tokens, a.score) == (&b.train, b.max_prompt_tokens, b.score)
}

/// Reads a stage's examples; the names of the tasks that they are about go to `trained`.
fn load_stage(
    config: &Config,
    stage: &Stage,
    files: &ModelFiles,
    trained: &mut HashSet<String>,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<Dataset> {
    let dialogues = stage.train.iter().map(|p| holds_dialogues(p)).collect::<Result<Vec<_>>>()?;
    if dialogues.iter().all(|d| *d) {
        return load_dialogues(config, stage, files, trained, on_event);
    }
    if let Some(odd) = dialogues.iter().position(|d| *d) {
        return Err(Error::input("conversations and other files cannot be mixed in a stage").at_file(&stage.train[odd]).at("data.train"));
    }
    let sequences = stage.train.iter().map(|p| holds_sequences(p)).collect::<Result<Vec<_>>>()?;
    if let Some(odd) = sequences.iter().position(|s| *s != sequences[0]) {
        return Err(Error::input("tasks and lines of ids cannot be mixed in a stage").at_file(&stage.train[odd]).at("data.train"));
    }
    if !sequences[0] {
        let tasks = read_tasks(&stage.train)?;
        let items = questions(config, files, &tasks, stage.max_prompt_tokens, stage.score, "data.train", on_event)?;
        trained.extend(items.iter().map(|i| i.id.clone()));
        return Ok(Dataset::Items(items));
    }
    let (vocab, context) = (files.config.vocab_size, files.config.max_position_embeddings);
    let lines = stage.train.iter().map(|p| read_sequences(p, vocab, context)).collect::<Result<Vec<_>>>()?;
    Ok(Dataset::Sequences(lines.concat()))
}

/// Conversations with their answers, as `distill` writes them.
fn load_dialogues(
    config: &Config,
    stage: &Stage,
    files: &ModelFiles,
    trained: &mut HashSet<String>,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<Dataset> {
    let dialogue = Dialogue::new(files, config.prompt.chat)?;
    let (mut lines, mut left_out) = (Vec::new(), 0);
    for path in &stage.train {
        let found = read_dialogues(path, &dialogue, files.config.max_position_embeddings)?;
        lines.extend(found.lines);
        trained.extend(found.ids);
        left_out += found.left_out;
    }
    if left_out > 0 {
        let all = left_out + lines.len();
        on_event(Event::Warning(format!(
            "data.train: {left_out} of {all} conversations are longer than the model's context, and left out"
        )));
    }
    Ok(Dataset::Sequences(lines))
}

fn load_heldout(config: &Config, files: &ModelFiles, on_event: &mut dyn FnMut(Event<'_>)) -> Result<Vec<Item>> {
    if config.heldout.is_empty() {
        return Ok(Vec::new());
    }
    let mut tasks = read_tasks(&config.heldout)?;
    if config.eval_tasks > 0 {
        tasks.truncate(config.eval_tasks);
    }
    questions(config, files, &tasks, config.eval_max_prompt_tokens, ScoreKind::Fbeta, "data.heldout", on_event)
}

/// The questions of tasks; those left out and those cut are counted aloud.
fn questions(
    config: &Config,
    files: &ModelFiles,
    tasks: &[Task],
    max_prompt: usize,
    score: ScoreKind,
    place: &str,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<Vec<Item>> {
    let dialogue = Dialogue::new(files, config.prompt.chat)?;
    let context = files.config.max_position_embeddings;
    let mixed = config.subtasks.len() > 1;
    let (mut items, mut cut, mut left_out) = (Vec::new(), Tally::default(), Tally::default());
    let mut first = None;
    for &name in &config.subtasks {
        let room = prompt_room(&dialogue, max_prompt, reward::has_system(name))?;
        let subtask = reward::subtask(name, &config.prompt, room, config.seed, score, config.reward_beta)?;
        let of = |e: Error| if mixed { e.at(format_args!("{place}, {name}")) } else { e.at(place) };
        let mut made = make_items(tasks, &*subtask, &dialogue, max_prompt, context).map_err(of)?;
        cut.add(name, made.cut);
        left_out.add(name, made.left_out.len());
        first = first.or(made.left_out.into_iter().next().map(|(id, why)| (name, id, why)));
        if mixed {
            made.items.iter_mut().for_each(|item| item.subtask = name);
        }
        items.extend(made.items);
    }
    let by_subtask = |tally: &Tally| if mixed { format!(" ({tally})") } else { String::new() };
    if cut.sum() > 0 {
        let (n, all, by) = (cut.sum(), items.len(), by_subtask(&cut));
        on_event(Event::Note(format!("{place}: {n} of {all} prompts were cut to the {max_prompt} tokens of max_prompt_tokens{by}")));
    }
    if let Some((name, id, why)) = first {
        let (n, by) = (left_out.sum(), by_subtask(&left_out));
        let (all, what, of) = match mixed {
            true => (items.len() + n, "questions", format!(", {name}")),
            false => (tasks.len(), "tasks", String::new()),
        };
        on_event(Event::Warning(format!("{place}: {n} of {all} {what} are left out{by}; the first, {id}{of}: {why}")));
    }
    Ok(items)
}

/// Counts by subtask, in the order in which they came.
#[derive(Default)]
struct Tally(Vec<(&'static str, usize)>);

impl Tally {
    fn add(&mut self, name: &'static str, n: usize) {
        if n > 0 {
            self.0.push((name, n));
        }
    }

    fn sum(&self) -> usize {
        self.0.iter().map(|(_, n)| n).sum()
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts: Vec<String> = self.0.iter().map(|(name, n)| format!("{name} {n}")).collect();
        f.write_str(&parts.join(", "))
    }
}

/// The tokens that the chat template leaves of a prompt's.
fn prompt_room(dialogue: &Dialogue<'_>, max_prompt: usize, system: bool) -> Result<usize> {
    if let Some(room) = dialogue.room(max_prompt, system)? {
        return Ok(room);
    }
    let message = format!("the chat template alone takes {} tokens of {max_prompt}", dialogue.overhead(system)?);
    Err(Error::input(message).at("max_prompt_tokens"))
}
