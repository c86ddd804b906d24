//! Generation: continuous batching over a paged KV cache, the prompt shared by its samples.
//!
//! A prompt is prefilled once; each of its samples forks the prompt's pages and is decoded beside all the others, one token a step. When a
//! sample ends, the next one takes its place. Prefill and decode are the training forward on a smaller plan, and the log-probability of a
//! sampled token is computed by the head's own function: the recorded log-probabilities are those that training computes, bit for bit.
//!
//! [`Engine`] takes requests while others are under way; [`generate`] hands it all of them at once and waits for the end.

use crate::model::tokenizer::Tokenizer;
use crate::model::transformer::Transformer;
use crate::tensor::ops::sample::{Draw, Filters};
use crate::{Error, Result};
use std::sync::Arc;

mod engine;
mod logits;
mod text;

pub use crate::tensor::ops::sample::Choice;
pub use engine::{Engine, Request};

/// How answers are sampled.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Samples per prompt.
    pub n: usize,
    /// Longest answer, in tokens.
    pub max_new_tokens: usize,
    /// Logits are divided by it; 0 means greedy.
    pub temperature: f32,
    /// Only the k most likely tokens; 0 means all.
    pub top_k: usize,
    /// Only the most likely tokens that together have this probability; 1 means all.
    pub top_p: f32,
    /// Only tokens with at least this fraction of the most likely one's probability; 0 means all.
    pub min_p: f32,
    /// Texts that end an answer.
    pub stop: Vec<String>,
    /// Go on after an end-of-sequence token: answers of one length, for measurements.
    pub ignore_eos: bool,
    /// All randomness follows from (seed, step, the prompt's ids, sample index, position).
    pub seed: u64,
    /// The training step, or 0.
    pub step: u64,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            n: 1,
            max_new_tokens: 256,
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            stop: Vec::new(),
            ignore_eos: false,
            seed: 0,
            step: 0,
        }
    }
}

/// The least temperature but 0: logits divided by less would leave the range of f32.
pub const MIN_TEMPERATURE: f32 = 1e-6;

impl SamplingParams {
    /// Refuses settings without a meaning.
    pub fn check(&self) -> Result<()> {
        let bad = |field: &str, expected: &str| Err(Error::input(format!("expected {expected}")).at(field));
        if self.temperature != 0.0 && !(MIN_TEMPERATURE..=f32::MAX).contains(&self.temperature) {
            return bad("temperature", "0 for the likeliest token, or a number of at least 0.000001");
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return bad("top_p", "a number above 0 and up to 1");
        }
        if !(0.0..=1.0).contains(&self.min_p) {
            return bad("min_p", "a number from 0 to 1");
        }
        if self.stop.iter().any(String::is_empty) {
            return bad("stop", "a text that is not empty");
        }
        Ok(())
    }

    fn draw(&self, u: f64) -> Draw {
        Draw { temperature: self.temperature, filters: Filters { top_k: self.top_k, top_p: self.top_p, min_p: self.min_p }, u }
    }
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FinishReason {
    /// An end-of-sequence token, which is the answer's last.
    Eos,
    /// A stop string.
    Stop,
    /// `max_new_tokens`, or the end of the context.
    Length,
}

/// One sampled answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// Index of its prompt.
    pub prompt_index: usize,
    /// Index among the prompt's samples.
    pub index: usize,
    /// The generated tokens, the ending EOS included.
    pub ids: Vec<u32>,
    /// log softmax(logits / T) of each, before any filter: the old log-probabilities of training, bit for bit.
    pub logprobs: Vec<f32>,
    /// Without special tokens and without the stop string; empty when there is no tokenizer.
    pub text: String,
    /// Why it ended.
    pub finish_reason: FinishReason,
}

/// What generation reports while it runs.
pub enum Event<'a> {
    /// A sampled token of the sample (prompt index, sample index), and the likeliest tokens that the request asked for.
    Token(usize, usize, Choice, &'a [Choice]),
    /// A piece of text of the sample (prompt index, sample index).
    Text(usize, usize, &'a str),
    /// A finished answer (in order of completion).
    Done(&'a Completion),
    /// Tokens generated so far, over all samples.
    Progress(usize),
    /// Something that people should know; the answers are what they would be without it.
    Warning(&'a str),
}

/// Samples `params.n` answers for each prompt; the result is ordered by (prompt_index, index). `max_batch`: how many answers are decoded
/// together (results do not depend on it). `on_event` returns false to stop early (the unfinished answers are dropped).
pub fn generate(
    model: &Transformer,
    tokenizer: Option<&Tokenizer>,
    prompts: &[Vec<u32>],
    params: &SamplingParams,
    max_batch: usize,
    on_event: &mut dyn FnMut(Event<'_>) -> bool,
) -> Result<Vec<Completion>> {
    let mut engine = Engine::new(model, tokenizer, max_batch);
    let params = Arc::new(params.clone());
    params.check()?;
    for (i, prompt) in prompts.iter().enumerate() {
        let request = Request { prompt: prompt.as_slice().into(), params: params.clone(), top_logprobs: 0 };
        engine.add(i, request).map_err(|e| e.at(format_args!("prompt {i}")))?;
    }
    let mut done = Vec::new();
    let mut watch = |event: Event<'_>| {
        if let Event::Done(completion) = event {
            done.push(completion.clone());
        }
        on_event(event)
    };
    while engine.step(&mut watch)? {}
    done.sort_by_key(|c| (c.prompt_index, c.index));
    Ok(done)
}
