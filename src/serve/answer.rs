//! Answers in OpenAI's words: `chat.completion`, `text_completion`, and the chunks of their streams.

use super::request::Endpoint;
use crate::model::generate::{Choice, Completion, FinishReason};
use crate::model::tokenizer::Tokenizer;
use serde_json::{Map, Value, json};

/// What all parts of one answer share.
pub(super) struct Header {
    pub endpoint: Endpoint,
    pub id: String,
    /// Seconds since 1970.
    pub created: u64,
    pub model: String,
    /// The seed that was used: with it, the same answer can be asked for again.
    pub seed: u64,
    pub prompt_tokens: usize,
}

/// A token with the likeliest ones in its place.
pub(super) struct Token {
    pub choice: Choice,
    pub top: Vec<Choice>,
}

/// What stands in every answer as `system_fingerprint`: other versions may give other bits.
const FINGERPRINT: &str = concat!("sorft-native-", env!("CARGO_PKG_VERSION"));

impl Header {
    /// The whole answer: its choices with their tokens (empty where no log-probabilities were asked for), in order.
    pub fn whole(&self, choices: &[(Completion, Vec<Token>)], logprobs: bool, tokenizer: &Tokenizer) -> Value {
        let choice = |(index, (c, tokens)): (usize, &(Completion, Vec<Token>))| {
            let logprobs = if logprobs { self.logprobs(tokens, 0, tokenizer) } else { Value::Null };
            let mut choice = Map::from_iter([("index".to_owned(), json!(index))]);
            match self.endpoint {
                Endpoint::Chat => choice.insert("message".into(), json!({"role": "assistant", "content": c.text, "refusal": null})),
                Endpoint::Completions => choice.insert("text".into(), json!(c.text)),
            };
            choice.insert("logprobs".into(), logprobs);
            choice.insert("finish_reason".into(), json!(reason(c.finish_reason)));
            Value::Object(choice)
        };
        let object = if self.endpoint == Endpoint::Chat { "chat.completion" } else { "text_completion" };
        let mut answer = self.common(object);
        answer.insert("choices".into(), choices.iter().enumerate().map(choice).collect());
        answer.insert("usage".into(), self.usage(choices.iter().map(|(c, _)| c.ids.len()).sum()));
        answer.insert("seed".into(), json!(self.seed));
        Value::Object(answer)
    }

    /// A chunk of a stream with a piece of a choice. `offset`: characters of the choice before it.
    pub fn chunk(&self, index: usize, piece: Piece<'_>, tokenizer: &Tokenizer) -> Map<String, Value> {
        let logprobs = piece.tokens.map_or(Value::Null, |tokens| self.logprobs(tokens, piece.offset, tokenizer));
        let mut choice = Map::from_iter([("index".to_owned(), json!(index))]);
        match self.endpoint {
            Endpoint::Chat => {
                let mut delta = Map::new();
                if piece.first {
                    delta.insert("role".into(), json!("assistant"));
                }
                if piece.first || !piece.text.is_empty() {
                    delta.insert("content".into(), json!(piece.text));
                }
                choice.insert("delta".into(), Value::Object(delta));
            }
            Endpoint::Completions => drop(choice.insert("text".into(), json!(piece.text))),
        }
        choice.insert("logprobs".into(), logprobs);
        choice.insert("finish_reason".into(), json!(piece.finish.map(reason)));
        let mut chunk = self.chunk_header();
        chunk.insert("choices".into(), json!([choice]));
        chunk
    }

    /// The last chunk of a stream that was asked for the number of tokens.
    pub fn usage_chunk(&self, tokens: usize) -> Map<String, Value> {
        let mut chunk = self.chunk_header();
        chunk.insert("choices".into(), json!([]));
        chunk.insert("usage".into(), self.usage(tokens));
        chunk
    }

    fn chunk_header(&self) -> Map<String, Value> {
        let object = if self.endpoint == Endpoint::Chat { "chat.completion.chunk" } else { "text_completion" };
        let mut chunk = self.common(object);
        chunk.insert("seed".into(), json!(self.seed));
        chunk
    }

    fn common(&self, object: &str) -> Map<String, Value> {
        let fields = json!({
            "id": self.id, "object": object, "created": self.created, "model": self.model, "system_fingerprint": FINGERPRINT,
        });
        match fields {
            Value::Object(fields) => fields,
            _ => Map::new(),
        }
    }

    fn usage(&self, tokens: usize) -> Value {
        json!({"prompt_tokens": self.prompt_tokens, "completion_tokens": tokens, "total_tokens": self.prompt_tokens + tokens})
    }

    fn logprobs(&self, tokens: &[Token], offset: usize, tokenizer: &Tokenizer) -> Value {
        match self.endpoint {
            Endpoint::Chat => json!({"content": tokens.iter().map(|t| chat_token(t, tokenizer)).collect::<Vec<_>>(), "refusal": null}),
            Endpoint::Completions => completion_tokens(tokens, offset, tokenizer),
        }
    }
}

/// What a chunk brings of a choice.
#[derive(Default)]
pub(super) struct Piece<'a> {
    /// The choice's first chunk.
    pub first: bool,
    pub text: &'a str,
    /// Since the last chunk; `None` where no log-probabilities were asked for.
    pub tokens: Option<&'a [Token]>,
    /// Characters of the choice's tokens before it.
    pub offset: usize,
    /// The choice's end.
    pub finish: Option<FinishReason>,
}

fn reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Eos | FinishReason::Stop => "stop",
        FinishReason::Length => "length",
    }
}

/// A token's text by itself; bytes that are no characters of their own become U+FFFD.
pub(super) fn token_text(id: u32, tokenizer: &Tokenizer) -> String {
    tokenizer.decode(&[id], false).unwrap_or_default()
}

fn chat_token(token: &Token, tokenizer: &Tokenizer) -> Value {
    let one = |c: &Choice| {
        let text = token_text(c.id, tokenizer);
        // Which bytes a part of a character stands for, its text does not tell.
        let bytes = (!text.contains('\u{FFFD}')).then(|| text.as_bytes().to_vec());
        json!({"token": text, "logprob": short(c.logprob), "bytes": bytes})
    };
    let mut value = one(&token.choice);
    value["top_logprobs"] = token.top.iter().map(one).collect();
    value
}

fn completion_tokens(tokens: &[Token], mut offset: usize, tokenizer: &Tokenizer) -> Value {
    let texts: Vec<String> = tokens.iter().map(|t| token_text(t.choice.id, tokenizer)).collect();
    let offset_of = |text: &String| {
        let at = offset;
        offset += text.chars().count();
        at
    };
    let offsets: Vec<usize> = texts.iter().map(offset_of).collect();
    let top = |t: &Token| t.top.iter().map(|c| (token_text(c.id, tokenizer), json!(short(c.logprob)))).collect::<Map<_, _>>();
    json!({
        "tokens": texts,
        "token_logprobs": tokens.iter().map(|t| short(t.choice.logprob)).collect::<Vec<_>>(),
        "top_logprobs": tokens.iter().map(top).collect::<Vec<_>>(),
        "text_offset": offsets,
    })
}

/// The number whose shortest digits are those of the f32: JSON values hold f64. OpenAI writes -9999 for what cannot be.
fn short(x: f32) -> f64 {
    if x.is_finite() { x.to_string().parse().unwrap_or(f64::from(x)) } else { -9999.0 }
}
