//! An answer as server-sent events: a chunk for each piece of text, the end of each choice, and `[DONE]`.

use super::answer::{Header, Piece, Token, token_text};
use super::worker::Reply;
use super::{Model, error::ApiError};
use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde_json::{Map, Value};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::UnboundedReceiver;

/// After how long without a word the stream says that it lives; proxies close silent connections.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Turns replies into events.
pub(super) struct Events {
    pub header: Header,
    pub model: Arc<Model>,
    /// Whether log-probabilities were asked for.
    pub logprobs: bool,
    pub include_usage: bool,
    /// By choice.
    pub choices: Vec<ChoiceState>,
    pub tokens: usize,
}

/// How far a choice's stream has come.
#[derive(Default)]
pub(super) struct ChoiceState {
    begun: bool,
    /// Tokens of which no chunk has told.
    pending: Vec<Token>,
    /// Characters of those of which one has.
    offset: usize,
    ended: bool,
}

impl Events {
    /// The response that streams what comes.
    pub fn respond(self, replies: UnboundedReceiver<Reply>) -> Response {
        let state = Some((self, replies));
        let body = stream::unfold(state, async |state| {
            let (mut events, mut replies) = state?;
            let (text, goes_on) = match tokio::time::timeout(KEEP_ALIVE, replies.recv()).await {
                Err(_) => (": keep-alive\n\n".to_owned(), true),
                Ok(None) => (event(&ApiError::internal("generation ended early").to_json()), false),
                Ok(Some(reply)) => events.take(reply),
            };
            Some((Ok::<_, Infallible>(text), goes_on.then_some((events, replies))))
        });
        let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")];
        (headers, Body::from_stream(body)).into_response()
    }

    /// The events of a reply (maybe none, as an empty text), and whether more follow.
    fn take(&mut self, reply: Reply) -> (String, bool) {
        match reply {
            Reply::Taken => (String::new(), true),
            Reply::Token(index, choice, top) => {
                self.choices[index].pending.push(Token { choice, top });
                (String::new(), true)
            }
            Reply::Text(index, text) => (self.piece(index, &text), true),
            Reply::Failed(error) => (event(&error.to_json()), false),
            Reply::Done(index, completion) => {
                self.tokens += completion.ids.len();
                let mut out = String::new();
                // An answer without any text, or with tokens behind its last text.
                if !self.choices[index].begun || !self.choices[index].pending.is_empty() {
                    out += &self.piece(index, "");
                }
                let end = Piece { finish: Some(completion.finish_reason), ..Piece::default() };
                out += &self.chunk(self.header.chunk(index, end, &self.model.tokenizer));
                self.choices[index].ended = true;
                let all = self.choices.iter().all(|c| c.ended);
                if all {
                    if self.include_usage {
                        out += &event(&Value::Object(self.header.usage_chunk(self.tokens)));
                    }
                    out += "data: [DONE]\n\n";
                }
                (out, !all)
            }
        }
    }

    fn piece(&mut self, index: usize, text: &str) -> String {
        let tokenizer = &self.model.tokenizer;
        let state = &mut self.choices[index];
        let tokens = std::mem::take(&mut state.pending);
        let first = !std::mem::replace(&mut state.begun, true);
        let piece = Piece { first, text, tokens: self.logprobs.then_some(&tokens[..]), offset: state.offset, finish: None };
        let chunk = self.header.chunk(index, piece, tokenizer);
        state.offset += tokens.iter().map(|t| token_text(t.choice.id, tokenizer).chars().count()).sum::<usize>();
        self.chunk(chunk)
    }

    fn chunk(&self, mut chunk: Map<String, Value>) -> String {
        if self.include_usage {
            chunk.insert("usage".into(), Value::Null);
        }
        event(&Value::Object(chunk))
    }
}

fn event(data: &Value) -> String {
    format!("data: {data}\n\n")
}
