//! Token ids to text as they come, for answers that are shown while they are sampled.

use super::Tokenizer;
use crate::Result;
use tokenizers::DecoderWrapper;

/// Decodes a growing sequence piece by piece, holding back what further tokens could still change. The pieces together are exactly
/// [`Tokenizer::decode`] of the whole sequence, without special tokens.
pub struct StreamDecoder<'a> {
    tokenizer: &'a Tokenizer,
    pub(super) state: State,
}

pub(super) enum State {
    /// Byte-level vocabularies: bytes that are not yet whole characters.
    Bytes(Vec<u8>),
    /// Vocabularies with byte tokens (SentencePiece): byte tokens are held back until another token ends their run. `anchor` is the last
    /// token given out: decoded before the held back ones it takes upon itself what decoders do to the start of a text.
    Runs { anchor: Option<u32>, held: Vec<u32> },
    /// Others: everything is decoded again at each token, and what goes beyond the text given out so far is new.
    Again { ids: Vec<u32>, given: String },
}

impl<'a> StreamDecoder<'a> {
    /// A decoder of nothing yet.
    pub fn new(tokenizer: &'a Tokenizer) -> Self {
        let state = match tokenizer.inner.get_decoder() {
            Some(DecoderWrapper::ByteLevel(_)) => State::Bytes(Vec::new()),
            Some(decoder) if decodes_runs(decoder) => State::Runs { anchor: None, held: Vec::new() },
            _ => State::Again { ids: Vec::new(), given: String::new() },
        };
        Self { tokenizer, state }
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &'a Tokenizer {
        self.tokenizer
    }

    /// Takes one more token; returns the text that has become certain (maybe empty).
    ///
    /// # Errors
    /// If the tokenizer's decoder fails.
    pub fn push(&mut self, id: u32) -> Result<String> {
        let Some(token) = self.tokenizer.id_to_token(id) else { return Ok(String::new()) };
        if self.tokenizer.inner.get_added_vocabulary().is_special_token(&token) {
            return Ok(String::new());
        }
        match &mut self.state {
            State::Bytes(pending) => {
                push_bytes(&token, pending);
                Ok(take_characters(pending))
            }
            State::Runs { anchor, held } => {
                held.push(id);
                if is_byte_token(&token) {
                    return Ok(String::new());
                }
                let text = decode_after(self.tokenizer, *anchor, held)?;
                held.clear();
                *anchor = Some(id);
                Ok(text)
            }
            State::Again { ids, given } => {
                ids.push(id);
                if is_byte_token(&token) {
                    return Ok(String::new());
                }
                let whole = self.tokenizer.decode(ids, true)?;
                if whole.ends_with('\u{FFFD}') {
                    return Ok(String::new());
                }
                Ok(take_new(&whole, given))
            }
        }
    }

    /// What was held back.
    ///
    /// # Errors
    /// If the tokenizer's decoder fails.
    pub fn finish(self) -> Result<String> {
        match self.state {
            State::Bytes(pending) => Ok(String::from_utf8_lossy(&pending).into_owned()),
            State::Runs { anchor, held } => decode_after(self.tokenizer, anchor, &held),
            State::Again { ids, mut given } => Ok(take_new(&self.tokenizer.decode(&ids, true)?, &mut given)),
        }
    }
}

/// A token that becomes text together with its neighbours only: `<0xE2>`.
fn is_byte_token(token: &str) -> bool {
    token.len() == 6 && token.starts_with("<0x") && token.ends_with('>')
}

/// The text of `ids` behind the token `anchor`.
fn decode_after(tokenizer: &Tokenizer, anchor: Option<u32>, ids: &[u32]) -> Result<String> {
    let Some(anchor) = anchor else { return tokenizer.decode(ids, true) };
    let all: Vec<u32> = [&[anchor], ids].concat();
    Ok(take_new(&tokenizer.decode(&all, true)?, &mut tokenizer.decode(&[anchor], true)?))
}

/// Whether a decoder turns each token, or run of byte tokens, into text by itself, but for at most one character that it takes from the
/// start of the whole.
fn decodes_runs(decoder: &DecoderWrapper) -> bool {
    use serde_json::Value;
    let Ok(json) = serde_json::to_value(decoder) else { return false };
    let parts = match json["type"].as_str() {
        Some("Sequence") => json["decoders"].as_array().cloned().unwrap_or_default(),
        _ => vec![json],
    };
    let at_most = |part: &Value, field: &str, n: u64| part[field].as_u64().is_some_and(|x| x <= n);
    !parts.is_empty()
        && parts.iter().all(|part| match part["type"].as_str() {
            Some("ByteFallback" | "Fuse" | "Metaspace") => true,
            Some("Replace") => part["pattern"]["String"].is_string(),
            Some("Strip") => at_most(part, "start", 1) && at_most(part, "stop", 0),
            _ => false,
        })
}

/// What `whole` has beyond `given`, which is brought up to it.
fn take_new(whole: &str, given: &mut String) -> String {
    let new = whole.strip_prefix(given.as_str()).unwrap_or_default().to_owned();
    given.push_str(&new);
    new
}

/// A byte-level token's bytes: each of its characters stands for one. A token with any other character is its own text.
fn push_bytes(token: &str, out: &mut Vec<u8>) {
    let start = out.len();
    for c in token.chars() {
        match byte_of(c) {
            Some(b) => out.push(b),
            None => {
                out.truncate(start);
                out.extend_from_slice(token.as_bytes());
                return;
            }
        }
    }
}

/// The byte that a character of GPT-2's alphabet stands for: printable Latin-1 stands for itself, the other 68 bytes are, in order, the
/// characters from U+0100 on.
pub(super) fn byte_of(c: char) -> Option<u8> {
    let code = u32::from(c);
    match code {
        0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => Some(code as u8),
        0x100..=0x120 => Some((code - 0x100) as u8),
        0x121..=0x142 => Some((code - 0x121 + 0x7F) as u8),
        0x143 => Some(0xAD),
        _ => None,
    }
}

/// The longest part of `pending` whose decoding no further byte can change, taken out of it. Bytes that can no longer become a character
/// are U+FFFD, in the grouping of `String::from_utf8_lossy`.
fn take_characters(pending: &mut Vec<u8>) -> String {
    let mut text = String::new();
    let mut done = 0;
    while done < pending.len() {
        match std::str::from_utf8(&pending[done..]) {
            Ok(rest) => {
                text.push_str(rest);
                done = pending.len();
            }
            Err(e) => {
                let valid = &pending[done..done + e.valid_up_to()];
                text.push_str(&String::from_utf8_lossy(valid));
                done += e.valid_up_to();
                let Some(bad) = e.error_len() else { break };
                text.push('\u{FFFD}');
                done += bad;
            }
        }
    }
    pending.drain(..done);
    text
}
