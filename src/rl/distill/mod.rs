//! Rejection-sampled data for supervised fine-tuning (SoRFT, arXiv 2502.20127, stage 1): a teacher answers each question several times, and
//! the answers that hit the gold set are kept.
//!
//! A folder holds three files. `samples.jsonl` is what the teacher said, each line on the disk before anything else is done with it; nothing
//! in it is asked for again. `sft.jsonl` (what `train` reads) and `rejected.jsonl` (the rest, with reasons) follow from it and the questions
//! alone, and are written anew each time.

pub mod endpoint;
pub mod form;
mod keep;
pub mod local;
mod samples;

pub use keep::{Verdict, judge};
pub use samples::{Sample, Samples};

use crate::error::{Error, Result};
use crate::model::chat::Message;
use crate::rl::dataset::Item;
use crate::rl::distill::form::Form;
use crate::rl::run_log;
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashSet};
use std::path::Path;

/// What is asked of a teacher, beside the questions.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Answers to each question.
    pub n: usize,
    /// Longest answer, in the teacher's tokens.
    pub max_new_tokens: usize,
    /// 0 is greedy.
    pub temperature: f32,
    /// What the teacher is told after each question; empty: nothing. The student's data does not have it.
    pub instruction: String,
    /// The form that its answers are given; none: it writes all by itself. A model on this machine alone can be given one.
    pub form: Option<Form>,
}

/// Asks for reasoning in a form that every subtask's parser passes over.
pub const REASON_FIRST: &str =
    "First reason step by step, between <think> and </think>. After </think> write only the answer, in the form asked for above.";

impl Sampling {
    /// What the teacher is asked: the question, and after it the instruction.
    fn conversation(&self, item: &Item) -> Vec<Message> {
        let mut messages = item.question.messages();
        if let Some(last) = messages.last_mut().filter(|_| !self.instruction.is_empty()) {
            last.content = format!("{}\n\n{}", last.content, self.instruction);
        }
        messages
    }

    /// The settings that answers depend on, in words.
    fn describe(&self) -> String {
        let instruction = match self.instruction.as_str() {
            "" => "none".to_owned(),
            text => short_hash(text),
        };
        let form = self.form.as_ref().map_or(String::new(), |form| format!(" form={}", short_hash(&form.text)));
        format!("temperature={} max_tokens={} instruction={instruction}{form}", self.temperature, self.max_new_tokens)
    }
}

/// An answer that is not there yet.
#[derive(Clone, Copy)]
pub struct Missing<'a> {
    /// Its question.
    pub item: &'a Item,
    /// Which of the question's answers.
    pub index: usize,
}

/// Answers questions.
pub trait Teacher {
    /// Its name and all settings that its answers depend on: samples of another are not taken for its own.
    fn name(&self) -> String;

    /// Answers what is missing, in any order, giving each answer to `store` as soon as it is there. Answers that cannot be had now are left
    /// out: they stay missing.
    ///
    /// # Errors
    /// What would befall every other question too, or an error of `store`.
    fn answer(&self, missing: &[Missing<'_>], store: &(dyn Fn(Missing<'_>, Said) -> Result<()> + Sync)) -> Result<()>;
}

/// What a teacher said.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Said {
    /// The answer's text, the reasoning included.
    pub text: String,
    /// Whether it was cut off at the longest length.
    pub cut_off: bool,
    /// Tokens of the prompt, as the teacher counts them.
    pub prompt_tokens: u64,
    /// Tokens of the answer.
    pub completion_tokens: u64,
}

/// What became of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Answers that were asked for.
    pub wanted: usize,
    /// Of these, those that are there.
    pub sampled: usize,
    /// Kept for training.
    pub kept: usize,
    /// Reasons of rejection, and how often each.
    pub rejected: BTreeMap<&'static str, usize>,
    /// Questions with at least one kept answer.
    pub questions: usize,
}

/// A line of `sft.jsonl`.
#[derive(Serialize)]
struct Line<'a> {
    id: &'a str,
    /// Of a mixture.
    #[serde(skip_serializing_if = "str::is_empty")]
    subtask: &'a str,
    index: usize,
    messages: Vec<Message>,
    answer: &'a str,
}

/// A line of `rejected.jsonl`.
#[derive(Serialize)]
struct Rejected<'a> {
    id: &'a str,
    /// Of a mixture.
    #[serde(skip_serializing_if = "str::is_empty")]
    subtask: &'a str,
    index: usize,
    reason: &'a str,
    detail: Option<String>,
    answer: &'a str,
}

/// What a sample answers: the question's text, in short.
pub fn prompt_hash(item: &Item) -> String {
    match item.question.system() {
        Some(system) => short_hash(&format!("{system}\n\n{}", item.question.text())),
        None => short_hash(item.question.text()),
    }
}

fn short_hash(text: &str) -> String {
    Sha256::digest(text).iter().take(16).map(|b| format!("{b:02x}")).collect()
}

/// Asks the teacher for what `samples.jsonl` in `dir` does not hold yet, and writes the other two files.
///
/// # Errors
/// The teacher's, after the files were written from the answers that are there; files that cannot be read or written.
pub fn distill(
    items: &[&Item],
    sampling: &Sampling,
    teacher: &dyn Teacher,
    dir: &Path,
    on_sample: &(dyn Fn(&Said) + Sync),
) -> Result<Summary> {
    std::fs::create_dir_all(dir).map_err(|e| Error::io("create", dir, e))?;
    let samples = Samples::open(&dir.join("samples.jsonl"))?;
    let name = teacher.name();
    let hashes: Vec<String> = items.iter().map(|item| prompt_hash(item)).collect();
    let there: HashSet<(String, String, usize)> = samples.all().into_iter().filter(|s| s.teacher == name).map(Sample::key).collect();
    let places = || items.iter().zip(&hashes).flat_map(|(item, hash)| (0..sampling.n).map(move |index| (Missing { item, index }, hash)));
    let missing: Vec<Missing<'_>> =
        places().filter(|(m, hash)| !there.contains(&(m.item.id.clone(), (*hash).clone(), m.index))).map(|(m, _)| m).collect();
    let store = |m: Missing<'_>, said: Said| {
        on_sample(&said);
        samples.append(Sample::new(&m, &name, said))
    };
    let answered = if missing.is_empty() { Ok(()) } else { teacher.answer(&missing, &store) };
    let summary = write_files(items, &hashes, sampling.n, &name, samples.all(), dir)?;
    answered.map(|()| summary)
}

/// The data of the gold answers, which need no teacher.
pub fn gold(items: &[&Item], dir: &Path) -> Result<Summary> {
    std::fs::create_dir_all(dir).map_err(|e| Error::io("create", dir, e))?;
    let mut kept = Vec::new();
    for item in items {
        push_line(&mut kept, &line(item, 0, item.question.gold_answer()))?;
    }
    run_log::replace(&dir.join("sft.jsonl"), &kept)?;
    Ok(Summary { wanted: items.len(), sampled: items.len(), kept: items.len(), questions: items.len(), ..Summary::default() })
}

fn write_files(items: &[&Item], hashes: &[String], n: usize, teacher: &str, samples: Vec<Sample>, dir: &Path) -> Result<Summary> {
    let mut by_key: BTreeMap<_, Sample> = BTreeMap::new();
    for sample in samples.into_iter().filter(|s| s.teacher == teacher) {
        by_key.entry(sample.clone().key()).or_insert(sample);
    }
    let mut summary = Summary { wanted: items.len() * n, ..Summary::default() };
    let (mut kept, mut rejected) = (Vec::new(), Vec::new());
    for (item, hash) in items.iter().zip(hashes) {
        let before = summary.kept;
        for index in 0..n {
            let Some(sample) = by_key.get(&(item.id.clone(), hash.clone(), index)) else { continue };
            summary.sampled += 1;
            match judge(&*item.question, sample) {
                Verdict::Kept => {
                    summary.kept += 1;
                    push_line(&mut kept, &line(item, index, &sample.text))?;
                }
                Verdict::Rejected { reason, detail } => {
                    *summary.rejected.entry(reason).or_default() += 1;
                    push_line(
                        &mut rejected,
                        &Rejected { id: &item.id, subtask: item.subtask, index, reason, detail, answer: &sample.text },
                    )?;
                }
            }
        }
        summary.questions += usize::from(summary.kept > before);
    }
    run_log::replace(&dir.join("sft.jsonl"), &kept)?;
    run_log::replace(&dir.join("rejected.jsonl"), &rejected)?;
    Ok(summary)
}

fn line<'a>(item: &'a Item, index: usize, answer: &'a str) -> Line<'a> {
    Line { id: &item.id, subtask: item.subtask, index, messages: item.question.messages(), answer }
}

fn push_line(out: &mut Vec<u8>, value: &impl Serialize) -> Result<()> {
    serde_json::to_writer(&mut *out, value).map_err(|e| Error::input(format!("cannot write JSON: {e}")))?;
    out.push(b'\n');
    Ok(())
}
