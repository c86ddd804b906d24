//! The engine of generation: requests come in, a step gives every sample under way one more token, requests can be cancelled.

use super::logits::Row;
use super::text::AnswerText;
use super::{Choice, Completion, Event, FinishReason, SamplingParams};
use crate::model::device::Decoder;
use crate::model::kv_cache::KvCache;
use crate::model::tokenizer::Tokenizer;
use crate::model::transformer::{Adapter, Transformer};
use crate::tensor::ops::sample::Draw;
use crate::tensor::philox::Philox;
use crate::tensor::plan::{Plan, Segment, TILE};
use crate::{Error, Result};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// Prompt tokens prefilled in one pass.
const PREFILL_TOKENS: usize = 2048;

/// A prompt and how its answers are to be sampled.
#[derive(Clone, Debug)]
pub struct Request {
    /// The prompt's ids.
    pub prompt: Arc<[u32]>,
    /// How its `n` answers are sampled.
    pub params: Arc<SamplingParams>,
    /// How many of the likeliest tokens each [`Event::Token`] lists.
    pub top_logprobs: usize,
}

/// A request that was taken in and has not ended.
struct Job {
    request: Request,
    /// Samples that have not ended.
    unfinished: usize,
    /// Pages set aside for it, from prefill on.
    reserved: usize,
}

/// A prefilled prompt with samples still to start.
struct Prompt {
    name: usize,
    pages: Vec<u32>,
    /// Of what follows it; none before prefill.
    logits: Option<Row>,
    next_sample: usize,
}

/// A sample under way. `pages` holds the keys and values of all tokens but the last one of `ids`.
struct Sequence<'a> {
    request: Request,
    /// How many tokens it may have.
    room: usize,
    pages: Vec<u32>,
    random: Philox,
    completion: Completion,
    text: AnswerText<'a>,
    /// The newest token's likeliest alternatives.
    top: Vec<Choice>,
    finished: bool,
}

/// Samples answers to requests, which may come while others are under way. An answer is a function of (its request, its index): whatever
/// else is in the batch, its bits are the same.
pub struct Engine<'a> {
    model: &'a Transformer,
    tokenizer: Option<&'a Tokenizer>,
    max_batch: usize,
    cache: KvCache,
    decoder: Decoder,
    max_pages: usize,
    reserved: usize,
    jobs: BTreeMap<usize, Job>,
    waiting: VecDeque<usize>,
    ready: VecDeque<Prompt>,
    active: Vec<Sequence<'a>>,
    tokens: usize,
}

impl<'a> Engine<'a> {
    /// An engine without requests. `max_batch`: how many answers are decoded together, at least 1.
    pub fn new(model: &'a Transformer, tokenizer: Option<&'a Tokenizer>, max_batch: usize) -> Self {
        Self {
            model,
            tokenizer,
            max_batch: max_batch.max(1),
            cache: KvCache::new(model.params.gpu(), model.heads(), model.config().num_layers),
            decoder: Decoder::default(),
            max_pages: usize::MAX,
            reserved: 0,
            jobs: BTreeMap::new(),
            waiting: VecDeque::new(),
            ready: VecDeque::new(),
            active: Vec::new(),
            tokens: 0,
        }
    }

    /// Bounds the cache: a request begins only when what it may come to need is free, and one that needs more than all of it is refused.
    pub fn with_cache_tokens(mut self, tokens: usize) -> Self {
        self.max_pages = (tokens / TILE).max(1);
        self.cache.limit(self.max_pages);
        self
    }

    /// Takes in a request under a name that no unfinished one has; its events carry the name as the prompt index. It waits until there are
    /// places in the batch, behind those that came before. A request for no samples has ended at once.
    ///
    /// # Errors
    /// Settings without a meaning; a prompt that is empty, longer than the context, or holds an unknown id; more than the cache holds.
    pub fn add(&mut self, name: usize, request: Request) -> Result<()> {
        request.params.check()?;
        if !request.params.stop.is_empty() && self.tokenizer.is_none() {
            return Err(Error::input("stop strings need a tokenizer").at("stop"));
        }
        let (len, c) = (request.prompt.len(), self.model.config());
        if len == 0 {
            return Err(Error::input("the prompt has no tokens"));
        }
        if len > c.max_position_embeddings {
            let message = format!("the prompt has {len} tokens, the model's context {}", c.max_position_embeddings);
            return Err(Error::input(message).hint("shorten the prompt"));
        }
        if let Some(id) = request.prompt.iter().find(|id| **id as usize >= c.vocab_size) {
            return Err(Error::input(format!("token id {id} is outside the model's vocabulary of {}", c.vocab_size)));
        }
        let pages = self.pages_of(&request);
        if pages > self.max_pages {
            let (needed, all) = (pages * TILE, self.max_pages * TILE);
            return Err(Error::input(format!("prompt and answers may need {needed} tokens of the cache, which holds {all}"))
                .hint("shorten the prompt, or ask for fewer or shorter answers"));
        }
        if request.params.n > 0 {
            self.waiting.push_back(name);
            self.jobs.insert(name, Job { unfinished: request.params.n, request, reserved: 0 });
        }
        Ok(())
    }

    /// Drops a request, wherever it is; what it held is free for others. Nothing happens where there is none of that name.
    pub fn cancel(&mut self, name: usize) {
        let Some(job) = self.jobs.remove(&name) else { return };
        self.reserved -= job.reserved;
        self.waiting.retain(|n| *n != name);
        self.ready.iter().filter(|p| p.name == name).for_each(|p| self.cache.release(&p.pages));
        self.ready.retain(|p| p.name != name);
        self.active.iter().filter(|s| s.completion.prompt_index == name).for_each(|s| self.cache.release(&s.pages));
        self.active.retain(|s| s.completion.prompt_index != name);
    }

    /// Requests that have not ended.
    pub fn len(&self) -> usize {
        self.jobs.len()
    }

    /// Whether every request has ended.
    pub fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    /// Tokens of the cache that are in use, in whole pages.
    pub fn cached_tokens(&self) -> usize {
        self.cache.used() * TILE
    }

    /// Fills free places, decodes one token of every active sample, takes out the finished ones. False when there is nothing left to do, or
    /// `on_event` said to stop.
    pub fn step(&mut self, on_event: &mut dyn FnMut(Event<'_>) -> bool) -> Result<bool> {
        while self.active.len() < self.max_batch {
            if self.ready.is_empty() && !self.prefill(self.max_batch - self.active.len())? {
                break;
            }
            self.start()?;
            if !self.retire(on_event)? {
                return Ok(false);
            }
        }
        if self.active.is_empty() {
            return Ok(false);
        }
        self.decode()?;
        let warning = self.model.params.gpu().and_then(|gpu| gpu.graph_warning());
        let goes_on = warning.is_none_or(|text| on_event(Event::Warning(&text)));
        Ok(self.retire(on_event)? && goes_on)
    }

    /// Prefills as many waiting prompts as their samples have places for, at least one, within [`PREFILL_TOKENS`] a pass.
    fn prefill(&mut self, places: usize) -> Result<bool> {
        let (mut total, mut samples) = (0, 0);
        let mut batch: Vec<(Prompt, Arc<[u32]>)> = Vec::new();
        while let Some(&name) = self.waiting.front() {
            let request = &self.jobs[&name].request;
            let (ids, pages) = (request.prompt.clone(), self.pages_of(request));
            let full = samples >= places || total + ids.len() > PREFILL_TOKENS;
            if (!batch.is_empty() && full) || pages > self.max_pages - self.reserved {
                break;
            }
            total += ids.len();
            samples += request.params.n;
            self.waiting.pop_front();
            self.reserved += pages;
            self.jobs.get_mut(&name).expect("it was just looked at").reserved = pages;
            batch.push((Prompt { name, pages: Vec::new(), logits: None, next_sample: 0 }, ids));
        }
        if batch.is_empty() {
            return Ok(false);
        }
        // A prompt longer than a pass goes through alone, piece by piece.
        let longest = batch.iter().map(|(_, ids)| ids.len()).max().unwrap_or(0);
        let mut hidden = None;
        for from in (0..longest).step_by(PREFILL_TOKENS) {
            let mut plan = Plan::default();
            let mut last = Vec::new();
            for (prompt, ids) in &mut batch {
                let to = (from + PREFILL_TOKENS).min(ids.len());
                self.cache.extend(&mut prompt.pages, to)?;
                plan.push_span(&ids[from..to], from, &prompt.pages);
                last.push(plan.num_tokens() as u32 - 1);
            }
            hidden = Some(self.model.hidden(&plan, &mut self.cache.layers, &last, Adapter::On)?);
        }
        // Of the draws only the temperature counts here.
        let draws: Vec<Draw> = batch.iter().map(|(p, _)| self.jobs[&p.name].request.params.draw(0.0)).collect();
        let logits = self.model.logits(&hidden.expect("a prompt has tokens"), &draws)?;
        for (i, (mut prompt, _)) in batch.into_iter().enumerate() {
            prompt.logits = Some(logits.row(i)?);
            self.ready.push_back(prompt);
        }
        Ok(true)
    }

    /// Starts samples of prefilled prompts while there are places.
    fn start(&mut self) -> Result<()> {
        while self.active.len() < self.max_batch {
            let Some(prompt) = self.ready.front_mut() else { break };
            let request = self.jobs[&prompt.name].request.clone();
            let room = room(self.model, &request);
            let mut sequence = Sequence {
                room,
                pages: self.cache.fork(&prompt.pages, request.prompt.len())?,
                random: randomness(&request.params, &request.prompt),
                completion: Completion {
                    prompt_index: prompt.name,
                    index: prompt.next_sample,
                    ids: Vec::new(),
                    logprobs: Vec::new(),
                    text: String::new(),
                    finish_reason: FinishReason::Length,
                },
                text: AnswerText::new(self.tokenizer, request.params.clone()),
                top: Vec::new(),
                finished: room == 0,
                request,
            };
            prompt.next_sample += 1;
            if let (false, Some(row)) = (sequence.finished, &prompt.logits) {
                let draw = sequence.draw();
                sequence.take(row.choose(&draw), Some(row));
            }
            if prompt.next_sample == sequence.request.params.n {
                let prompt = self.ready.pop_front().expect("its front was just used");
                self.cache.copy_forked()?;
                self.cache.release(&prompt.pages);
            }
            self.active.push(sequence);
        }
        self.cache.copy_forked()
    }

    /// The pages that a request may come to need: its prompt's, and for each of its samples that can be under way at once, those behind the
    /// prompt's last whole page.
    fn pages_of(&self, request: &Request) -> usize {
        let len = request.prompt.len();
        let own = (len + room(self.model, request)).div_ceil(TILE) - len / TILE;
        len.div_ceil(TILE).saturating_add(own.saturating_mul(request.params.n.min(self.max_batch)))
    }

    /// One more token for every active sample.
    fn decode(&mut self) -> Result<()> {
        let mut plan = Plan::default();
        for s in &mut self.active {
            let position = s.request.prompt.len() + s.completion.ids.len() - 1;
            self.cache.extend(&mut s.pages, position + 1)?;
            let last = *s.completion.ids.last().expect("an active sample has a token");
            plan.push_span(&[last], position, &s.pages);
        }
        let draws: Vec<Draw> = self.active.iter().map(Sequence::draw).collect();
        let (choices, logits) = self.model.decode(&plan, &mut self.cache.layers, &mut self.decoder, &draws)?;
        for (i, (s, choice)) in self.active.iter_mut().zip(choices).enumerate() {
            let row = (s.request.top_logprobs > 0).then(|| logits.row(i)).transpose()?;
            s.take(choice, row.as_ref());
        }
        Ok(())
    }

    /// Looks at the newest token of every active sample, reports, and takes out the finished ones.
    fn retire(&mut self, on_event: &mut dyn FnMut(Event<'_>) -> bool) -> Result<bool> {
        let mut goes_on = true;
        for s in &mut self.active {
            if s.finished || !std::mem::take(&mut s.text.fresh) {
                continue;
            }
            self.tokens += 1;
            goes_on &= s.look(self.model, on_event)?;
        }
        let (finished, active) = std::mem::take(&mut self.active).into_iter().partition(|s| s.finished);
        self.active = active;
        for mut s in finished {
            self.cache.release(&s.pages);
            let (name, rest) = (s.completion.prompt_index, s.text.finish()?);
            if !rest.is_empty() {
                goes_on &= on_event(Event::Text(name, s.completion.index, &rest));
            }
            s.completion.text = s.text.into_text();
            self.sample_ended(name);
            goes_on &= on_event(Event::Done(&s.completion));
        }
        goes_on &= on_event(Event::Progress(self.tokens));
        Ok(goes_on)
    }

    fn sample_ended(&mut self, name: usize) {
        let job = self.jobs.get_mut(&name).expect("a sample's request is known");
        job.unfinished -= 1;
        if job.unfinished == 0 {
            self.reserved -= job.reserved;
            self.jobs.remove(&name);
        }
    }
}

impl Sequence<'_> {
    /// How the next token is drawn.
    fn draw(&self) -> Draw {
        self.request.params.draw(self.random.uniform(self.completion.index as u64, self.completion.ids.len() as u64))
    }

    /// Takes the next token; `row` tells its alternatives, where the request asks for them.
    fn take(&mut self, choice: Choice, row: Option<&Row>) {
        self.completion.ids.push(choice.id);
        self.completion.logprobs.push(choice.logprob);
        self.text.fresh = true;
        let temperature = self.request.params.temperature;
        self.top = row.map_or_else(Vec::new, |row| row.likeliest(temperature, self.request.top_logprobs));
    }

    /// Looks at the newest token: is it the last, and what may be shown.
    fn look(&mut self, model: &Transformer, on_event: &mut dyn FnMut(Event<'_>) -> bool) -> Result<bool> {
        let (name, index) = (self.completion.prompt_index, self.completion.index);
        let (ids, logprobs) = (&self.completion.ids, &self.completion.logprobs);
        let choice = Choice { id: ids[ids.len() - 1], logprob: logprobs[ids.len() - 1] };
        let ends = !self.request.params.ignore_eos && model.config().eos_token_ids.contains(&choice.id);
        // The end is no text, also where the tokenizer does not call its token special.
        let (piece, stopped) = if ends { (String::new(), false) } else { self.text.push(choice.id)? };
        if ends {
            (self.finished, self.completion.finish_reason) = (true, FinishReason::Eos);
        } else if stopped {
            (self.finished, self.completion.finish_reason) = (true, FinishReason::Stop);
        } else if ids.len() >= self.room {
            self.finished = true;
        }
        let mut goes_on = on_event(Event::Token(name, index, choice, &self.top));
        if !piece.is_empty() {
            goes_on &= on_event(Event::Text(name, index, &piece));
        }
        Ok(goes_on)
    }
}

/// How many tokens an answer may have.
fn room(model: &Transformer, request: &Request) -> usize {
    request.params.max_new_tokens.min(model.config().max_position_embeddings - request.prompt.len())
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
