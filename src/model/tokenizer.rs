//! The tokenizer: text to ids and back, from a Hugging Face `tokenizer.json` or rebuilt from GGUF metadata.

use crate::Result;

/// Text to token ids and back.
pub struct Tokenizer {}

impl Tokenizer {
    /// The ids of `text`. Special tokens in the text are recognised; a BOS is added only where the tokenizer's post-processor adds one and
    /// `add_special` is set.
    pub fn encode(&self, _text: &str, _add_special: bool) -> Result<Vec<u32>> {
        todo!()
    }
    /// The text of `ids`.
    pub fn decode(&self, _ids: &[u32], _skip_special: bool) -> Result<String> {
        todo!()
    }
    /// One more than the largest id.
    pub fn vocab_size(&self) -> usize {
        todo!()
    }
    /// The id of a token given by its exact text (`<|im_end|>`).
    pub fn token_to_id(&self, _token: &str) -> Option<u32> {
        todo!()
    }
}

/// Decodes a growing sequence piece by piece, holding back bytes that are not yet whole characters.
pub struct StreamDecoder<'a> {
    _tokenizer: &'a Tokenizer,
}

impl<'a> StreamDecoder<'a> {
    /// A decoder of nothing yet.
    pub fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { _tokenizer: tokenizer }
    }
    /// Takes one more token; returns the text that has become certain (maybe empty).
    pub fn push(&mut self, _id: u32) -> Result<String> {
        todo!()
    }
    /// What was held back.
    pub fn finish(self) -> Result<String> {
        todo!()
    }
}
