//! Asking: answers come from the journal where they are there, and from the generator, into the journal, where they are not.

use std::collections::HashMap;
use std::sync::Arc;

use super::generator::{Answer, Generator, Wanted};
use super::journal::{Journal, digest};
use crate::{Error, Result};

/// A prompt about an instance, which wants one answer. Equal prompts about an instance get different answers.
#[derive(Clone, Debug)]
pub struct Ask<'a> {
    /// The instance.
    pub instance: &'a str,
    /// What the system says before the prompt, if anything.
    pub system: Option<Arc<str>>,
    /// The prompt.
    pub prompt: Arc<str>,
}

impl Ask<'_> {
    /// What the journal knows the prompt by.
    fn digest(&self) -> String {
        match &self.system {
            Some(system) => digest(&format!("{system}\n\n{}", self.prompt)),
            None => digest(&self.prompt),
        }
    }
}

/// How far a hop is.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// The hop.
    pub hop: &'a str,
    /// Answers that are there.
    pub done: usize,
    /// Answers in all.
    pub total: usize,
    /// Tokens of the answer that came last, and of its prompt; none at the beginning of a hop.
    pub newest: Option<(usize, usize)>,
}

/// A generator with its journal.
pub struct Session<'a> {
    /// What answers.
    pub generator: &'a dyn Generator,
    /// What was answered.
    pub journal: Journal,
    /// False if all answers must be there: ranking again.
    pub may_sample: bool,
    /// Told of every answer.
    pub progress: &'a mut dyn FnMut(Progress<'_>),
}

impl Session<'_> {
    /// How many tokens a text has.
    pub fn count(&self, text: &str) -> usize {
        self.generator.count_tokens(text)
    }

    /// An answer to each, in their order. The k-th of equal ones gets answer number k of the prompt, so an answer is a function of the
    /// prompt and of k, whatever else is asked.
    ///
    /// # Errors
    ///
    /// What the generator and the journal report; answers that are missing and may not be sampled.
    pub fn ask(&mut self, hop: &str, asks: &[Ask<'_>]) -> Result<Vec<Answer>> {
        let mut groups: Vec<(&Ask<'_>, String, usize)> = Vec::new();
        let mut places: HashMap<(&str, Option<&str>, &str), usize> = HashMap::new();
        let mut numbers = Vec::with_capacity(asks.len());
        for ask in asks {
            let group = *places.entry((ask.instance, ask.system.as_deref(), &ask.prompt)).or_insert_with(|| {
                groups.push((ask, ask.digest(), 0));
                groups.len() - 1
            });
            numbers.push((group, groups[group].2));
            groups[group].2 += 1;
        }
        let there = |journal: &Journal, group: usize| {
            let (ask, digest, n) = &groups[group];
            (0..*n).filter(|&i| journal.get(ask.instance, hop, digest, i).is_some()).count()
        };
        // A prompt that lacks any answer is answered whole: what is there already is not stored again.
        let missing: Vec<usize> = (0..groups.len()).filter(|&g| there(&self.journal, g) < groups[g].2).collect();
        let mut done: usize = (0..groups.len()).map(|g| there(&self.journal, g)).sum();
        let total = asks.len();
        (self.progress)(Progress { hop, done, total, newest: None });
        if !missing.is_empty() && !self.may_sample {
            let message = format!("{} of {total} answers of the hop `{hop}` were never sampled", total - done);
            let hint = "the tasks, the settings or the prompts are not those of the run; --resume samples what is missing";
            return Err(Error::input(message).hint(hint));
        }
        let wanted = missing.iter().map(|&g| {
            let (ask, _, n) = &groups[g];
            Wanted { system: ask.system.clone(), prompt: ask.prompt.clone(), n: *n }
        });
        let wanted: Vec<Wanted> = wanted.collect();
        if !wanted.is_empty() {
            let (journal, progress) = (&mut self.journal, &mut self.progress);
            self.generator.answer(&wanted, &mut |place, index, answer| {
                let (ask, digest, _) = &groups[missing[place]];
                let newest = Some((answer.tokens, answer.prompt_tokens));
                if journal.get(ask.instance, hop, digest, index).is_none() {
                    journal.add(ask.instance, hop, digest, index, answer)?;
                    done += 1;
                }
                progress(Progress { hop, done, total, newest });
                Ok(())
            })?;
        }
        let answer = |&(group, index): &(usize, usize)| {
            let (ask, digest, _) = &groups[group];
            let found = self.journal.get(ask.instance, hop, digest, index).cloned();
            found.ok_or_else(|| Error::input(format!("an answer of the hop `{hop}` is missing")).at(ask.instance))
        };
        numbers.iter().map(answer).collect()
    }
}
