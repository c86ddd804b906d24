//! Generation: continuous batching over a paged KV cache, the prompt shared by its samples.
//!
//! A prompt is prefilled once; each of its samples forks the prompt's pages and is decoded beside all the others, one token a step. When a
//! sample ends, the next one takes its place. Prefill and decode are the training forward on a smaller plan, and the log-probability of a
//! sampled token is computed by the head's own function: the recorded log-probabilities are those that training computes, bit for bit.

use crate::model::kv_cache::KvCache;
use crate::model::tokenizer::Tokenizer;
use crate::model::transformer::{Adapter, Transformer};
use crate::tensor::Tensor;
use crate::tensor::ops::sample::{self, Choice, Filters};
use crate::tensor::philox::Philox;
use crate::tensor::plan::{Plan, Segment, TILE};
use crate::{Error, Result};
use rayon::prelude::*;
use std::collections::VecDeque;

mod text;
use text::AnswerText;

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

impl SamplingParams {
    /// Refuses settings without a meaning.
    pub fn check(&self) -> Result<()> {
        let bad = |field: &str, expected: &str| Err(Error::input(format!("expected {expected}")).at(field));
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return bad("temperature", "a number of at least 0");
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

    fn choose(&self, logits: &[f32], u: f64) -> Choice {
        let filters = Filters { top_k: self.top_k, top_p: self.top_p, min_p: self.min_p };
        match self.temperature == 0.0 {
            true => sample::greedy(logits),
            false => sample::draw(logits, self.temperature, filters, u),
        }
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
    /// A piece of text of the sample (prompt index, sample index).
    Text(usize, usize, &'a str),
    /// A finished answer (in order of completion).
    Done(&'a Completion),
    /// Tokens generated so far, over all samples.
    Progress(usize),
}

/// Prompt tokens prefilled in one pass.
const PREFILL_TOKENS: usize = 2048;

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
    params.check()?;
    if params.stop.iter().any(|s| !s.is_empty()) && tokenizer.is_none() {
        return Err(Error::input("stop strings need a tokenizer").at("stop"));
    }
    let context = model.config().max_position_embeddings;
    for (i, prompt) in prompts.iter().enumerate() {
        if prompt.is_empty() {
            return Err(Error::input("the prompt has no tokens").at(format_args!("prompt {i}")));
        }
        if prompt.len() > context {
            return Err(Error::input(format!("the prompt has {} tokens, the model's context {context}", prompt.len()))
                .at(format_args!("prompt {i}"))
                .hint("shorten the prompt"));
        }
    }
    let mut engine = Engine {
        model,
        tokenizer,
        prompts,
        params,
        cache: KvCache::new(model.heads(), model.config().num_layers),
        waiting: (0..prompts.len()).filter(|_| params.n > 0).collect(),
        ready: VecDeque::new(),
        active: Vec::new(),
        done: Vec::new(),
        tokens: 0,
    };
    while engine.advance(max_batch.max(1), on_event)? {}
    let mut done = engine.done;
    done.sort_by_key(|c| (c.prompt_index, c.index));
    Ok(done)
}

/// A prefilled prompt with samples still to start.
struct Prompt {
    index: usize,
    pages: Vec<u32>,
    logits: Vec<f32>,
    next_sample: usize,
}

/// A sample under way. `pages` holds the keys and values of all tokens but the last one of `ids`.
struct Sequence<'a> {
    pages: Vec<u32>,
    random: Philox,
    completion: Completion,
    text: AnswerText<'a>,
    finished: bool,
}

struct Engine<'a> {
    model: &'a Transformer,
    tokenizer: Option<&'a Tokenizer>,
    prompts: &'a [Vec<u32>],
    params: &'a SamplingParams,
    cache: KvCache,
    waiting: VecDeque<usize>,
    ready: VecDeque<Prompt>,
    active: Vec<Sequence<'a>>,
    done: Vec<Completion>,
    tokens: usize,
}

impl Engine<'_> {
    /// Fills free places, decodes one token of every active sample, takes out the finished ones. False when there is nothing left to do.
    fn advance(&mut self, max_batch: usize, on_event: &mut dyn FnMut(Event<'_>) -> bool) -> Result<bool> {
        while self.active.len() < max_batch {
            if self.ready.is_empty() && !self.prefill(max_batch - self.active.len())? {
                break;
            }
            self.start(max_batch);
            if !self.retire(on_event)? {
                return Ok(false);
            }
        }
        if self.active.is_empty() {
            return Ok(false);
        }
        self.decode()?;
        self.retire(on_event)
    }

    /// Prefills as many waiting prompts as their samples have places for, at least one, within [`PREFILL_TOKENS`] a pass.
    fn prefill(&mut self, places: usize) -> Result<bool> {
        let wanted = places.div_ceil(self.params.n.max(1)).max(1);
        let mut total = 0;
        let mut batch: Vec<Prompt> = Vec::new();
        while let Some(&index) = self.waiting.front() {
            let len = self.prompts[index].len();
            if batch.len() == wanted || (!batch.is_empty() && total + len > PREFILL_TOKENS) {
                break;
            }
            total += len;
            self.waiting.pop_front();
            batch.push(Prompt { index, pages: Vec::new(), logits: Vec::new(), next_sample: 0 });
        }
        if batch.is_empty() {
            return Ok(false);
        }
        // A prompt longer than a pass goes through alone, piece by piece.
        let longest = batch.iter().map(|p| self.prompts[p.index].len()).max().unwrap_or(0);
        let mut hidden = None;
        for from in (0..longest).step_by(PREFILL_TOKENS) {
            let mut plan = Plan::default();
            let mut last = Vec::new();
            for prompt in &mut batch {
                let ids = &self.prompts[prompt.index];
                let to = (from + PREFILL_TOKENS).min(ids.len());
                self.cache.extend(&mut prompt.pages, to);
                plan.push_span(&ids[from..to], from, &prompt.pages);
                last.push(plan.num_tokens() as u32 - 1);
            }
            hidden = Some(self.model.hidden(&plan, &mut self.cache.layers, &last, Adapter::On)?);
        }
        let logits = self.model.logits(&hidden.expect("a prompt has tokens"));
        for (i, prompt) in batch.iter_mut().enumerate() {
            prompt.logits = logits.row(i).to_vec();
        }
        self.ready.extend(batch);
        Ok(true)
    }

    /// Starts samples of prefilled prompts while there are places.
    fn start(&mut self, max_batch: usize) {
        while self.active.len() < max_batch {
            let Some(room) = self.ready.front().map(|p| self.room(p.index)) else { return };
            let Some(prompt) = self.ready.front_mut() else { return };
            let ids = &self.prompts[prompt.index];
            let sample = prompt.next_sample;
            prompt.next_sample += 1;
            let mut sequence = Sequence {
                pages: self.cache.fork(&prompt.pages, ids.len()),
                random: randomness(self.params, ids),
                completion: Completion {
                    prompt_index: prompt.index,
                    index: sample,
                    ids: Vec::new(),
                    logprobs: Vec::new(),
                    text: String::new(),
                    finish_reason: FinishReason::Length,
                },
                text: AnswerText::new(self.tokenizer, &self.params.stop),
                finished: room == 0,
            };
            if !sequence.finished {
                let choice = self.params.choose(&prompt.logits, sequence.random.uniform(sample as u64, 0));
                sequence.push(choice);
            }
            if prompt.next_sample == self.params.n {
                let prompt = self.ready.pop_front().expect("its front was just used");
                self.cache.release(&prompt.pages);
            }
            self.active.push(sequence);
        }
    }

    /// How many tokens an answer to a prompt may have.
    fn room(&self, prompt: usize) -> usize {
        self.params.max_new_tokens.min(self.model.config().max_position_embeddings - self.prompts[prompt].len())
    }

    /// One more token for every active sample.
    fn decode(&mut self) -> Result<()> {
        let mut plan = Plan::default();
        for s in &mut self.active {
            let position = self.prompts[s.completion.prompt_index].len() + s.completion.ids.len() - 1;
            self.cache.extend(&mut s.pages, position + 1);
            let last = *s.completion.ids.last().expect("an active sample has a token");
            plan.push_span(&[last], position, &s.pages);
        }
        let rows: Vec<u32> = (0..self.active.len() as u32).collect();
        let hidden = self.model.hidden(&plan, &mut self.cache.layers, &rows, Adapter::On)?;
        let logits: Tensor = self.model.logits(&hidden);
        let params = self.params;
        self.active.par_iter_mut().enumerate().for_each(|(i, s)| {
            let u = s.random.uniform(s.completion.index as u64, s.completion.ids.len() as u64);
            s.push(params.choose(logits.row(i), u));
        });
        Ok(())
    }

    /// Looks at the newest token of every active sample, reports, and takes out the finished ones.
    fn retire(&mut self, on_event: &mut dyn FnMut(Event<'_>) -> bool) -> Result<bool> {
        let mut goes_on = true;
        for i in 0..self.active.len() {
            let room = self.room(self.active[i].completion.prompt_index);
            let s = &mut self.active[i];
            if s.finished || !std::mem::take(&mut s.text.fresh) {
                continue;
            }
            self.tokens += 1;
            let (prompt, index) = (s.completion.prompt_index, s.completion.index);
            let id = *s.completion.ids.last().expect("a fresh token");
            let (piece, stopped) = s.text.push(id)?;
            if !self.params.ignore_eos && self.model.config().eos_token_ids.contains(&id) {
                (s.finished, s.completion.finish_reason) = (true, FinishReason::Eos);
            } else if stopped {
                (s.finished, s.completion.finish_reason) = (true, FinishReason::Stop);
            } else if s.completion.ids.len() >= room {
                s.finished = true;
            }
            if !piece.is_empty() {
                goes_on &= on_event(Event::Text(prompt, index, &piece));
            }
        }
        let (finished, active) = std::mem::take(&mut self.active).into_iter().partition(|s| s.finished);
        self.active = active;
        for mut s in finished {
            self.cache.release(&s.pages);
            let rest = s.text.finish()?;
            if !rest.is_empty() {
                goes_on &= on_event(Event::Text(s.completion.prompt_index, s.completion.index, &rest));
            }
            s.completion.text = s.text.into_text();
            goes_on &= on_event(Event::Done(&s.completion));
            self.done.push(s.completion);
        }
        goes_on &= on_event(Event::Progress(self.tokens));
        Ok(goes_on)
    }
}

impl Sequence<'_> {
    fn push(&mut self, choice: Choice) {
        self.completion.ids.push(choice.id);
        self.completion.logprobs.push(choice.logprob);
        self.text.fresh = true;
    }
}

/// The random numbers of a prompt's samples: keyed by seed, step and the prompt's ids, so that they do not depend on its line or neighbours.
fn randomness(params: &SamplingParams, prompt: &[u32]) -> Philox {
    // FNV-1a over the ids' bytes.
    let bytes = prompt.iter().flat_map(|id| id.to_le_bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3));
    Philox::new(params.seed ^ params.step.wrapping_mul(0x9E37_79B9_7F4A_7C15), hash)
}

impl Plan {
    /// Adds a run of tokens of one sequence, from position `start`, whose pages (earlier positions included) belong to a cache.
    fn push_span(&mut self, ids: &[u32], start: usize, pages: &[u32]) {
        let row = self.num_tokens();
        self.ids.extend_from_slice(ids);
        for position in start..start + ids.len() {
            self.positions.push(position as u32);
            self.kv_slots.push((pages[position / TILE], (position % TILE) as u32));
        }
        self.segments.push(Segment { parent: None, tokens: row..row + ids.len(), start, pages: pages.to_vec() });
    }
}
