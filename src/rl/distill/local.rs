//! A model on this machine as a teacher.

use super::{Missing, Said, Sampling, Teacher};
use crate::error::{Error, Result};
use crate::model::dialogue::Dialogue;
use crate::model::generate::{Engine, Event, FinishReason, Request, SamplingParams};
use crate::model::tokenizer::Tokenizer;
use crate::model::transformer::Transformer;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A loaded model.
pub struct Local<'a> {
    /// Which model it is, in words.
    pub name: String,
    /// The network.
    pub model: &'a Transformer,
    /// How it is spoken to.
    pub dialogue: Dialogue<'a>,
    /// How it answers.
    pub sampling: Sampling,
    /// All randomness follows from it and the prompt.
    pub seed: u64,
    /// Answers decoded together.
    pub max_batch: usize,
    /// Whether to stop.
    pub stop: &'a (dyn Fn() -> bool + Sync),
}

impl Teacher for Local<'_> {
    fn name(&self) -> String {
        format!("{} {} seed={}", self.name, self.sampling.describe(), self.seed)
    }

    /// A question of which any answer is missing is answered whole, since an answer belongs to its number; what is there already is not stored
    /// again.
    fn answer(&self, missing: &[Missing<'_>], store: &(dyn Fn(Missing<'_>, Said) -> Result<()> + Sync)) -> Result<()> {
        let mut questions: Vec<Missing<'_>> = Vec::new();
        let mut wanted = BTreeMap::new();
        for m in missing {
            if questions.last().is_none_or(|last| !std::ptr::eq(last.item, m.item)) {
                questions.push(*m);
            }
            wanted.insert((questions.len() - 1, m.index), *m);
        }
        let tokenizer: &Tokenizer = self.dialogue.tokenizer();
        let mut engine = Engine::new(self.model, Some(tokenizer), self.max_batch);
        let params = Arc::new(SamplingParams {
            n: self.sampling.n,
            max_new_tokens: self.sampling.max_new_tokens,
            temperature: self.sampling.temperature,
            seed: self.seed,
            ..SamplingParams::default()
        });
        let (mut lengths, mut refused) = (Vec::new(), Vec::new());
        for (i, question) in questions.iter().enumerate() {
            let prompt: Arc<[u32]> = self.dialogue.conversation_ids(&self.sampling.conversation(question.item))?.into();
            lengths.push(prompt.len() as u64);
            let request = Request { prompt, params: params.clone(), top_logprobs: 0 };
            // A prompt that is too long for this model: the others are not.
            refused.extend(engine.add(i, request).err().map(|e| e.at(&question.item.id)));
        }
        let failure = RefCell::new(None);
        let mut on_event = |event: Event<'_>| {
            if let Event::Done(c) = event
                && let Some(m) = wanted.get(&(c.prompt_index, c.index))
            {
                let said = Said {
                    text: c.text.clone(),
                    cut_off: c.finish_reason == FinishReason::Length,
                    prompt_tokens: lengths[c.prompt_index],
                    completion_tokens: c.ids.len() as u64,
                };
                if let Err(e) = store(*m, said) {
                    *failure.borrow_mut() = Some(e);
                }
            }
            failure.borrow().is_none() && !(self.stop)()
        };
        while engine.step(&mut on_event)? {}
        match failure.into_inner() {
            Some(e) => Err(e),
            None if (self.stop)() => Err(Error::interrupted()),
            None => match refused.len() {
                0 => Ok(()),
                n => Err(refused.swap_remove(0).at(format_args!("{n} of {} questions cannot be asked; the first", questions.len()))),
            },
        }
    }
}
