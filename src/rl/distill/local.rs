//! A model on this machine as a teacher.

use super::form::Form;
use super::{Missing, Said, Sampling, Teacher};
use crate::error::{Error, Result};
use crate::model::dialogue::Dialogue;
use crate::model::generate::{Completion, Engine, Event, FinishReason, Request, SamplingParams};
use crate::model::tokenizer::Tokenizer;
use crate::model::transformer::Transformer;
use std::collections::BTreeMap;

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
        let (mut prompts, mut refused) = (Vec::new(), BTreeMap::new());
        for (i, question) in questions.iter().enumerate() {
            let ids = self.dialogue.conversation_ids(&self.sampling.conversation(question.item))?;
            prompts.push(Prompt { question: i, index: 0, said: 0, ids });
        }
        let lengths: Vec<u64> = prompts.iter().map(|p| p.ids.len() as u64).collect();
        let done = |place: &(usize, usize), text: String, cut_off: bool, tokens: usize| match wanted.get(place) {
            Some(m) => store(*m, Said { text, cut_off, prompt_tokens: lengths[place.0], completion_tokens: tokens as u64 }),
            None => Ok(()),
        };
        let mut refuse = |question: usize, e: Error| {
            refused.entry(question).or_insert(e);
        };
        match &self.sampling.form {
            None => self.sample(&prompts, self.sampling.n, &[], &mut refuse, &mut |i, c| {
                done(&(prompts[i].question, c.index), c.text.clone(), c.finish_reason == FinishReason::Length, c.ids.len())
            })?,
            Some(form) => self.fill(form, prompts, &mut refuse, &done)?,
        }
        let n = refused.len();
        refused.pop_first().map_or(Ok(()), |(first, e)| {
            let e = e.at(&questions[first].item.id);
            Err(e.at(format_args!("{n} of {} questions cannot be asked; the first", questions.len())))
        })
    }
}

/// What a teacher goes on from.
struct Prompt {
    /// Number of its question.
    question: usize,
    /// Which of the question's answers it is about, once they differ.
    index: usize,
    /// Tokens of the answer so far.
    said: usize,
    ids: Vec<u32>,
}

/// Takes an answer that is done: its place, text, whether it was cut off, its tokens.
type Done<'a> = &'a dyn Fn(&(usize, usize), String, bool, usize) -> Result<()>;

impl Local<'_> {
    /// `n` continuations of each prompt, each given to `on_done` with its prompt's number as soon as it is there; prompts that are too long for the model go to `refuse`.
    fn sample(
        &self,
        prompts: &[Prompt],
        n: usize,
        stop: &[String],
        refuse: &mut dyn FnMut(usize, Error),
        on_done: &mut dyn FnMut(usize, &Completion) -> Result<()>,
    ) -> Result<()> {
        let tokenizer: &Tokenizer = self.dialogue.tokenizer();
        let mut engine = Engine::new(self.model, Some(tokenizer), self.max_batch);
        for (i, prompt) in prompts.iter().enumerate() {
            let params = SamplingParams {
                n,
                max_new_tokens: self.sampling.max_new_tokens - prompt.said,
                temperature: self.sampling.temperature,
                stop: stop.to_vec(),
                seed: self.seed,
                // Answers that have begun alike need not go on alike.
                step: prompt.index as u64,
                ..SamplingParams::default()
            };
            let request = Request { prompt: prompt.ids.as_slice().into(), params: params.into(), top_logprobs: 0 };
            // A prompt that is too long for this model: the others are not.
            if let Err(e) = engine.add(i, request) {
                refuse(prompt.question, e);
            }
        }
        let mut failure = None;
        let mut on_event = |event: Event<'_>| {
            if let Event::Done(c) = event {
                failure = failure.take().or(on_done(c.prompt_index, c).err());
            }
            failure.is_none() && !(self.stop)()
        };
        while engine.step(&mut on_event)? {}
        match failure {
            Some(e) => Err(e),
            None if (self.stop)() => Err(Error::interrupted()),
            None => Ok(()),
        }
    }

    /// Answers of a form, hole by hole: as many questions at a time as are decoded together, so that few answers are under way if this is
    /// stopped.
    fn fill(&self, form: &Form, prompts: Vec<Prompt>, refuse: &mut dyn FnMut(usize, Error), done: Done<'_>) -> Result<()> {
        let tokenizer = self.dialogue.tokenizer();
        let opening = tokenizer.encode(&form.opening, false)?;
        let most = self.sampling.max_new_tokens;
        if opening.len() >= most {
            return Err(Error::input(format!("the form's opening has {} tokens, and an answer at most {most}", opening.len())));
        }
        let at_once = (self.max_batch / self.sampling.n).max(1);
        let mut prompts = prompts.into_iter().peekable();
        while prompts.peek().is_some() {
            let begin = |p: Prompt| (Prompt { said: opening.len(), ids: [p.ids, opening.clone()].concat(), ..p }, form.opening.clone());
            let mut drafts: Vec<(Prompt, String)> = prompts.by_ref().take(at_once).map(begin).collect();
            for (number, hole) in form.holes.iter().enumerate() {
                let (n, last) = (if number == 0 { self.sampling.n } else { 1 }, number + 1 == form.holes.len());
                let after = tokenizer.encode(&hole.after, false)?;
                let (asked, texts): (Vec<Prompt>, Vec<String>) = std::mem::take(&mut drafts).into_iter().unzip();
                self.sample(&asked, n, &hole.stop, refuse, &mut |i, c| {
                    let (p, index) = (&asked[i], if number == 0 { c.index } else { asked[i].index });
                    let text = format!("{}{}{}", texts[i], c.text.trim_end(), hole.after);
                    // Anew: what ended the hole, and blanks before it, are no part of it.
                    let written = tokenizer.encode(c.text.trim_end(), false)?;
                    let said = p.said + c.ids.len() + after.len();
                    let cut_off = c.finish_reason == FinishReason::Length || (!last && said >= most);
                    if last || cut_off {
                        return done(&(p.question, index), text, cut_off, said);
                    }
                    let ids = [&p.ids[..], &written, &after].concat();
                    drafts.push((Prompt { question: p.question, index, said, ids }, text));
                    Ok(())
                })?;
                drafts.sort_by_key(|(p, _)| (p.question, p.index));
            }
        }
        Ok(())
    }
}
