//! The seam between the pipeline and what answers it: a model on this machine ([`Local`]), or a script in tests.

use std::cell::RefCell;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::model::chat::conversation;
use crate::model::dialogue::Dialogue;
use crate::model::generate::{Engine, Event, FinishReason, Request, SamplingParams};
use crate::model::transformer::Transformer;
use crate::{Error, Result};

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Its text.
    pub text: String,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// The prompt's tokens.
    pub prompt_tokens: usize,
    /// The answer's tokens.
    pub tokens: usize,
}

/// A prompt that wants answers.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// What the system says before it, if anything.
    pub system: Option<Arc<str>>,
    /// Its text, without a chat template.
    pub prompt: Arc<str>,
    /// How many answers; answer `i` is a function of the prompt and of `i`.
    pub n: usize,
}

/// What answers prompts.
pub trait Generator {
    /// How many tokens a text has in the middle of a prompt.
    fn count_tokens(&self, text: &str) -> usize;

    /// Answers all prompts, in any order, and hands each answer over as it comes: (place of the prompt, number of the answer, answer).
    ///
    /// # Errors
    ///
    /// What `on_answer` says; a prompt that cannot be answered; [`Error::interrupted`].
    fn answer(&self, wanted: &[Wanted], on_answer: &mut dyn FnMut(usize, usize, Answer) -> Result<()>) -> Result<()>;
}

/// How [`Local`] samples.
#[derive(Clone, Copy, Debug)]
pub struct Sampling {
    /// 0 is greedy.
    pub temperature: f32,
    /// The most tokens of an answer.
    pub max_new_tokens: usize,
    /// All randomness follows from it, the prompt's ids and the answer's number.
    pub seed: u64,
    /// Answers decoded together; changes no answer.
    pub max_batch: usize,
}

/// A model on this machine.
pub struct Local<'a> {
    /// The network; none where nothing may be sampled, and only tokens are counted.
    pub model: Option<&'a Transformer>,
    /// How it is spoken to.
    pub dialogue: Dialogue<'a>,
    /// How it answers.
    pub sampling: Sampling,
    /// Whether to stop.
    pub stop: &'a dyn Fn() -> bool,
}

impl Generator for Local<'_> {
    fn count_tokens(&self, text: &str) -> usize {
        self.dialogue.count(text).unwrap_or(usize::MAX)
    }

    fn answer(&self, wanted: &[Wanted], on_answer: &mut dyn FnMut(usize, usize, Answer) -> Result<()>) -> Result<()> {
        let Some(model) = self.model else { return Err(Error::input("no model is loaded to sample from")) };
        let mut engine = Engine::new(model, Some(self.dialogue.tokenizer()), self.sampling.max_batch);
        let mut lengths = Vec::with_capacity(wanted.len());
        for (i, w) in wanted.iter().enumerate() {
            let prompt: Arc<[u32]> = self.dialogue.conversation_ids(&conversation(w.system.as_deref(), &w.prompt))?.into();
            lengths.push(prompt.len());
            let params = SamplingParams {
                n: w.n,
                max_new_tokens: self.sampling.max_new_tokens,
                temperature: self.sampling.temperature,
                seed: self.sampling.seed,
                ..SamplingParams::default()
            };
            engine.add(i, Request { prompt, params: Arc::new(params), top_logprobs: 0 })?;
        }
        let failure = RefCell::new(None);
        let mut on_event = |event: Event<'_>| {
            if let Event::Done(c) = event {
                let answer = Answer {
                    text: c.text.clone(),
                    finish_reason: c.finish_reason,
                    prompt_tokens: lengths[c.prompt_index],
                    tokens: c.ids.len(),
                };
                if let Err(e) = on_answer(c.prompt_index, c.index, answer) {
                    *failure.borrow_mut() = Some(e);
                }
            }
            failure.borrow().is_none() && !(self.stop)()
        };
        while engine.step(&mut on_event)? {}
        match failure.into_inner() {
            Some(e) => Err(e),
            None if (self.stop)() => Err(Error::interrupted()),
            None => Ok(()),
        }
    }
}
