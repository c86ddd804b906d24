//! The text of an answer as it grows: decoding, stop strings, and what may already be shown.

use super::SamplingParams;
use crate::Result;
use crate::model::tokenizer::{StreamDecoder, Tokenizer};
use std::sync::Arc;

/// Decodes an answer token by token and looks for stop strings.
pub(super) struct AnswerText<'a> {
    decoder: Option<StreamDecoder<'a>>,
    /// Of which the stop strings.
    params: Arc<SamplingParams>,
    /// All certain text; after a stop string was found, the text before it.
    text: String,
    /// Bytes of `text` already handed out.
    shown: usize,
    stopped: bool,
    /// A token was added that has not been looked at.
    pub fresh: bool,
}

impl<'a> AnswerText<'a> {
    pub fn new(tokenizer: Option<&'a Tokenizer>, params: Arc<SamplingParams>) -> Self {
        Self { decoder: tokenizer.map(StreamDecoder::new), params, text: String::new(), shown: 0, stopped: false, fresh: false }
    }

    /// Takes one more token: the text that can be shown now, and whether a stop string was found.
    pub fn push(&mut self, id: u32) -> Result<(String, bool)> {
        let Some(decoder) = &mut self.decoder else { return Ok((String::new(), false)) };
        // A special token has no text to be found in: it ends the answer where its name is a stop string.
        let tokenizer = decoder.tokenizer();
        if tokenizer.is_special(id) && tokenizer.id_to_token(id).is_some_and(|token| self.params.stop.contains(&token)) {
            let rest = self.finish()?;
            self.stopped = true;
            return Ok((rest, true));
        }
        let piece = decoder.push(id)?;
        self.append(&piece);
        Ok((self.take(true), self.stopped))
    }

    /// What was held back, now that no token follows.
    pub fn finish(&mut self) -> Result<String> {
        if let Some(decoder) = self.decoder.take()
            && !self.stopped
        {
            let rest = decoder.finish()?;
            self.append(&rest);
        }
        Ok(self.take(false))
    }

    pub fn into_text(self) -> String {
        self.text
    }

    fn append(&mut self, piece: &str) {
        if self.stopped || piece.is_empty() {
            return;
        }
        let stop = &self.params.stop;
        let longest = stop.iter().map(String::len).max().unwrap_or(0);
        let mut from = self.text.len().saturating_sub(longest);
        while !self.text.is_char_boundary(from) {
            from -= 1;
        }
        self.text.push_str(piece);
        if let Some(at) = stop.iter().filter_map(|s| self.text[from..].find(s.as_str())).min() {
            self.text.truncate(from + at);
            self.stopped = true;
        }
    }

    /// The text not yet shown; `hold`: without a tail that could be the beginning of a stop string.
    fn take(&mut self, hold: bool) -> String {
        let held = if hold && !self.stopped { self.held() } else { 0 };
        let to = self.text.len() - held;
        let out = self.text[self.shown.min(to)..to].to_owned();
        self.shown = self.shown.max(to);
        out
    }

    /// Length of the longest tail that is a proper beginning of a stop string.
    fn held(&self) -> usize {
        let starts = |s: &String| (1..s.len()).rev().find(|n| s.is_char_boundary(*n) && self.text.ends_with(&s[..*n])).unwrap_or(0);
        self.params.stop.iter().map(starts).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stops(stop: &[&str]) -> Arc<SamplingParams> {
        Arc::new(SamplingParams { stop: stop.iter().map(|s| (*s).to_owned()).collect(), ..Default::default() })
    }

    #[test]
    fn stop_strings_are_held_back_and_cut() {
        let mut t = AnswerText::new(None, stops(&["END", "\n\n"]));
        t.append("abcE");
        assert_eq!(t.take(true), "abc");
        t.append("Nx\n");
        assert_eq!(t.take(true), "ENx");
        t.append("\nrest");
        assert!(t.stopped);
        assert_eq!(t.take(true), "");
        assert_eq!(t.into_text(), "abcENx");
    }

    #[test]
    fn what_was_held_is_shown_at_the_end() {
        let mut t = AnswerText::new(None, stops(&["END"]));
        t.append("aEN");
        assert_eq!(t.take(true), "a");
        assert_eq!(t.finish().unwrap(), "EN");
        assert_eq!(t.into_text(), "aEN");
    }
}
