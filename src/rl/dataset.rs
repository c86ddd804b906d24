//! What a stage trains on: questions about tasks, or lines of token ids.

use crate::data::Task;
use crate::data::lines;
use crate::data::source::swe_bench;
use crate::error::{Error, Result};
use crate::model::chat::Message;
use crate::model::dialogue::Dialogue;
use crate::rl::config::Stage;
use crate::rl::order::Order;
use crate::rl::reward::{Question, Subtask};
use rayon::prelude::*;
use serde::Deserialize;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// A question with its tokens.
pub struct Item {
    /// The task's name.
    pub id: String,
    /// In a mixture the subtask's name; empty where all questions are of one subtask.
    pub subtask: &'static str,
    /// What the task is drawn with: its repository.
    pub cluster: String,
    /// The question, which judges answers.
    pub question: Box<dyn Question>,
    /// The prompt's ids.
    pub prompt: Vec<u32>,
    /// The gold answer's ids, with the token that ends it.
    pub gold: Vec<u32>,
}

/// A line of token ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// The ids.
    pub ids: Vec<u32>,
    /// Which of them are targets. The first, which nothing predicts, never is.
    pub targets: Vec<bool>,
}

impl Sequence {
    /// Number of targets.
    pub fn num_targets(&self) -> usize {
        self.targets.iter().filter(|&&t| t).count()
    }
}

/// The examples of a stage.
pub enum Dataset {
    /// Questions about tasks; those of a subtask stand together.
    Items(Vec<Item>),
    /// Lines of token ids.
    Sequences(Vec<Sequence>),
}

impl Dataset {
    /// Number of examples.
    pub fn len(&self) -> usize {
        match self {
            Dataset::Items(items) => items.len(),
            Dataset::Sequences(lines) => lines.len(),
        }
    }

    /// The order of its examples in a stage: a mixture of subtasks by the stage's weights.
    pub fn order(&self, stage: &Stage, index: usize, seed: u64) -> Order {
        let Dataset::Items(items) = self else { return Order::new(self.len(), seed, index, stage.shuffle) };
        let mut parts: Vec<(Range<usize>, f64)> = Vec::new();
        for (i, item) in items.iter().enumerate() {
            match parts.last_mut() {
                Some((range, _)) if items[range.start].subtask == item.subtask => range.end = i + 1,
                _ => parts.push((i..i + 1, stage.subtask_weights.get(item.subtask).copied().unwrap_or(1.0))),
            }
        }
        Order::mixed(&parts, seed, index, stage.shuffle)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Whether a file holds lines of token ids: its first line is an object with `ids`. (Any other file is read as tasks, which names what is
/// wrong with it.)
pub fn holds_sequences(path: &Path) -> Result<bool> {
    first_line_has(path, "ids")
}

/// Whether a file holds answered conversations: its first line is an object with `messages`.
pub fn holds_dialogues(path: &Path) -> Result<bool> {
    first_line_has(path, "messages")
}

fn first_line_has(path: &Path, field: &str) -> Result<bool> {
    let file = File::open(path).map_err(|e| Error::io("read", path, e))?;
    let mut lines = BufReader::new(file).split(b'\n');
    let first = lines.find_map(|line| match line {
        Ok(line) if line.trim_ascii().is_empty() => None,
        other => Some(other),
    });
    let line = match first {
        Some(line) => line.map_err(|e| Error::io("read", path, e))?,
        None => return Ok(false),
    };
    Ok(serde_json::from_slice::<serde_json::Value>(lines::trim(&line)).is_ok_and(|v| v.get(field).is_some()))
}

#[derive(Deserialize)]
struct Line {
    ids: Vec<u32>,
    loss_mask: Option<Vec<u8>>,
}

/// Reads lines `{"ids": [...], "loss_mask": [0/1...]}`; `loss_mask[i]` belongs to `ids[i]` as a target, `loss_mask[0]` is ignored, no mask
/// means all. `vocab` and `context` are the model's.
pub fn read_sequences(path: &Path, vocab: usize, context: usize) -> Result<Vec<Sequence>> {
    let file = File::open(path).map_err(|e| Error::io("read", path, e))?;
    let mut out = Vec::new();
    for (i, line) in BufReader::new(file).split(b'\n').enumerate() {
        let line = line.map_err(|e| Error::io("read", path, e))?;
        if line.trim_ascii().is_empty() {
            continue;
        }
        out.push(read_sequence(&line, vocab, context).map_err(|e| e.at_line(path, i + 1))?);
    }
    if out.is_empty() {
        return Err(Error::input("expected lines of {\"ids\": [...]}, found none").at_file(path));
    }
    if out.iter().all(|line| line.num_targets() == 0) {
        let hint = "loss_mask must be 1 for some id but the first, which nothing predicts";
        return Err(Error::input("no line has a target to learn").at_file(path).hint(hint));
    }
    Ok(out)
}

fn read_sequence(line: &[u8], vocab: usize, context: usize) -> Result<Sequence> {
    let Line { ids, loss_mask } = lines::object(line).map_err(|e| e.hint("a line is {\"ids\": [...], \"loss_mask\": [...]}"))?;
    if ids.is_empty() {
        return Err(Error::input("expected at least one id, found none").at("ids"));
    }
    if ids.len() > context {
        return Err(Error::input(format!("{} ids are more than the model's context of {context}", ids.len())).at("ids"));
    }
    if let Some(id) = ids.iter().find(|id| **id as usize >= vocab) {
        return Err(Error::input(format!("token id {id} is outside the model's vocabulary of {vocab}")).at("ids"));
    }
    let mask = loss_mask.unwrap_or_else(|| vec![1; ids.len()]);
    if mask.len() != ids.len() {
        return Err(Error::input(format!("{} numbers for {} ids", mask.len(), ids.len())).at("loss_mask"));
    }
    if let Some(bad) = mask.iter().find(|m| **m > 1) {
        return Err(Error::input(format!("expected 0 or 1, found {bad}")).at("loss_mask"));
    }
    let targets = mask.iter().enumerate().map(|(i, &m)| i > 0 && m == 1).collect();
    Ok(Sequence { ids, targets })
}

#[derive(Deserialize)]
struct Answered {
    messages: Vec<Message>,
    answer: String,
    #[serde(default)]
    id: Option<serde_json::Value>,
}

/// The answered conversations of a file.
#[derive(Default)]
pub struct Dialogues {
    /// Those that fit into the model's context.
    pub lines: Vec<Sequence>,
    /// The `id`s that lines have: of the tasks that the questions are about.
    pub ids: Vec<String>,
    /// How many were longer.
    pub left_out: usize,
}

/// Reads lines `{"messages": [{"role", "content"}...], "answer": "..."}` and perhaps an `id`: the answer's tokens are the
/// targets. `context` is the model's; a conversation that is longer with its answer is left out and counted.
pub fn read_dialogues(path: &Path, dialogue: &Dialogue<'_>, context: usize) -> Result<Dialogues> {
    let text = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
    let lines: Vec<_> = text.split(|b| *b == b'\n').enumerate().filter(|(_, line)| !line.trim_ascii().is_empty()).collect();
    let read = lines.par_iter().map(|(i, line)| read_dialogue(line, dialogue).map_err(|e| e.at_line(path, i + 1)));
    let read = read.collect::<Result<Vec<_>>>()?;
    let all = read.len();
    let mut found = Dialogues::default();
    for (sequence, id) in read {
        found.ids.extend(id);
        match sequence.ids.len() <= context {
            true => found.lines.push(sequence),
            false => found.left_out += 1,
        }
    }
    if found.lines.is_empty() {
        let message = format!("none of the {all} conversations fits into the model's context of {context} tokens");
        return Err(Error::input(message).at_file(path));
    }
    Ok(found)
}

fn read_dialogue(line: &[u8], dialogue: &Dialogue<'_>) -> Result<(Sequence, Option<String>)> {
    let hint = "a line is {\"messages\": [{\"role\", \"content\"}...], \"answer\": \"...\"}";
    let Answered { messages, answer, id } = lines::object(line).map_err(|e| e.hint(hint))?;
    let mut ids = dialogue.conversation_ids(&messages)?;
    let prompt = ids.len();
    ids.extend(dialogue.reply_ids(&messages, &answer)?);
    let targets = (0..ids.len()).map(|i| i > 0 && i >= prompt).collect();
    let id = id.and_then(|id| id.as_str().map(str::to_owned));
    Ok((Sequence { ids, targets }, id))
}

/// Tasks turned into items, and those that could not be.
#[derive(Default)]
pub struct Items {
    /// In the order of the tasks.
    pub items: Vec<Item>,
    /// Tasks left out, with the reason.
    pub left_out: Vec<(String, String)>,
    /// Items of which something did not fit into the prompt.
    pub cut: usize,
}

/// Reads task files, one after another. The same task in two files is an error: it could be trained on in one and held out in another.
pub fn read_tasks(paths: &[PathBuf]) -> Result<Vec<Task>> {
    let mut tasks: Vec<Task> = Vec::new();
    let mut names = std::collections::HashMap::new();
    for path in paths {
        for task in swe_bench::read(path)? {
            if let Some(other) = names.insert(task.instance_id.clone(), path) {
                let message = format!("the task {} is in {} as well", task.instance_id, other.display());
                return Err(Error::input(message).at_file(path));
            }
            tasks.push(task);
        }
    }
    Ok(tasks)
}

/// Makes the items of tasks, in their order. A task that cannot be asked about, or whose prompt and gold answer with `max_prompt` and
/// `context` tokens do not fit, is left out and named.
pub fn make_items(tasks: &[Task], subtask: &dyn Subtask, dialogue: &Dialogue<'_>, max_prompt: usize, context: usize) -> Result<Items> {
    let made: Vec<Result<Item>> = tasks.par_iter().map(|task| make_item(task, subtask, dialogue, max_prompt, context)).collect();
    let mut out = Items::default();
    for (task, item) in tasks.iter().zip(made) {
        match item {
            Ok(item) => {
                out.cut += usize::from(item.question.cut().is_some());
                out.items.push(item);
            }
            Err(e) => out.left_out.push((task.instance_id.clone(), e.to_string())),
        }
    }
    if out.items.is_empty() {
        let reason = out.left_out.first().map_or(String::new(), |(_, why)| format!("; the first: {why}"));
        return Err(Error::input(format!("none of the {} tasks can be asked about{reason}", tasks.len())));
    }
    Ok(out)
}

fn make_item(task: &Task, subtask: &dyn Subtask, dialogue: &Dialogue<'_>, max_prompt: usize, context: usize) -> Result<Item> {
    // A tokenizer that fails on a text fails on the whole prompt below, where the error is reported.
    let count = |text: &str| dialogue.count(text).unwrap_or(usize::MAX);
    let question = subtask.question(task, &count)?;
    let messages = question.messages();
    let prompt = dialogue.conversation_ids(&messages)?;
    let gold = dialogue.reply_ids(&messages, question.gold_answer())?;
    if prompt.len() > max_prompt {
        return Err(Error::input(format!("a prompt of {} tokens; max_prompt_tokens is {max_prompt}", prompt.len())).at(&task.instance_id));
    }
    if prompt.len() + gold.len() > context {
        let message = format!("{} tokens of prompt and gold answer; the model's context is {context}", prompt.len() + gold.len());
        return Err(Error::input(message).at(&task.instance_id));
    }
    Ok(Item { id: task.instance_id.clone(), subtask: "", cluster: task.repo_name().to_owned(), question, prompt, gold })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lines.jsonl");
        std::fs::write(&path, text).unwrap();
        (dir, path)
    }

    #[test]
    fn masks_belong_to_targets() {
        let (_dir, path) = file("\n{\"ids\": [5, 6, 7], \"loss_mask\": [1, 0, 1]}\n\n{\"ids\": [9, 8]}\n");
        assert!(holds_sequences(&path).unwrap());
        let lines = read_sequences(&path, 10, 3).unwrap();
        assert_eq!(lines[0], Sequence { ids: vec![5, 6, 7], targets: vec![false, false, true] });
        assert_eq!(lines[1].targets, [false, true]);
        assert_eq!(lines[0].num_targets(), 1);
    }

    #[test]
    fn errors_name_the_line_and_the_field() {
        for (text, expected) in [
            ("{\"ids\": [1]}\n{\"ids\": []}\n", "lines.jsonl:2: ids: expected at least one id, found none"),
            ("{\"ids\": [1, 10]}", "lines.jsonl:1: ids: token id 10 is outside the model's vocabulary of 10"),
            ("{\"ids\": [1, 1, 1, 1]}", "lines.jsonl:1: ids: 4 ids are more than the model's context of 3"),
            ("{\"ids\": [1, 1], \"loss_mask\": [1]}", "lines.jsonl:1: loss_mask: 1 numbers for 2 ids"),
            ("{\"ids\": [1, 1], \"loss_mask\": [1, 2]}", "lines.jsonl:1: loss_mask: expected 0 or 1, found 2"),
            ("{\"ids\": [1", "lines.jsonl:1: expected a JSON object: EOF while parsing a list"),
            ("{\"ids\": [-1]}", "lines.jsonl:1: expected a JSON object: invalid value"),
            ("[[1], null]", "lines.jsonl:1: expected a JSON object, found a list"),
            ("\n", "lines.jsonl: expected lines of {\"ids\": [...]}, found none"),
        ] {
            let (_dir, path) = file(text);
            let e = read_sequences(&path, 10, 3).unwrap_err().to_string();
            assert!(e.contains(expected), "{e}");
        }
        let (_dir, path) = file("{\"instance_id\": \"a\"}\n");
        assert!(!holds_sequences(&path).unwrap());
    }
}
