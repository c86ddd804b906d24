//! The worker: one engine for all requests. It takes in requests between steps, hands out what they gave, and drops those nobody waits for.

use super::error::ApiError;
use super::{Model, Settings};
use crate::model::generate::{Choice, Completion, Engine, Event, Request};
use crate::tensor::cpu::allocator::give_back;
use axum::http::StatusCode;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvError, RecvTimeoutError, TryRecvError};
use std::time::Duration;
use tokio::sync::mpsc::UnboundedSender;

/// Without work for so long, the server gives back what it does not need.
const IDLE: Duration = Duration::from_secs(2);

/// What the network's thread asks for.
pub(super) enum Work {
    /// Answers to a request.
    Add(Job),
    /// Ends every request now, with an error.
    Stop,
}

/// A request as the worker sees it.
pub(super) struct Job {
    /// One a prompt.
    pub requests: Vec<Request>,
    /// Whether pieces of text are wanted as they come.
    pub pieces: bool,
    /// Whether tokens are.
    pub tokens: bool,
    /// Where answers go. The job is dropped once the other end is.
    pub reply: UnboundedSender<Reply>,
    /// Its place among the requests that the server takes: held until the job is dropped.
    pub _place: Place,
}

/// What a request is told. Choices are numbered over all prompts: prompt * n + sample.
pub(super) enum Reply {
    /// The request was taken in.
    Taken,
    /// A sampled token of a choice and the likeliest ones in its place.
    Token(usize, Choice, Vec<Choice>),
    /// A piece of a choice's text.
    Text(usize, String),
    /// A choice has ended.
    Done(usize, Completion),
    /// The request has ended without its answers.
    Failed(ApiError),
}

/// How busy the server is.
#[derive(Default)]
pub(super) struct Load {
    requests: AtomicUsize,
    cached_tokens: AtomicUsize,
}

impl Load {
    /// Requests that hold a place.
    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    /// Tokens of the cache in use after the last step.
    pub fn cached_tokens(&self) -> usize {
        self.cached_tokens.load(Ordering::SeqCst)
    }
}

/// One of the places for requests; free again when it is dropped.
pub(super) struct Place(Arc<Load>);

impl Place {
    /// Takes a place, if fewer than `limit` are taken.
    pub fn take(load: &Arc<Load>, limit: usize) -> Option<Self> {
        let more = |n: usize| (n < limit).then_some(n + 1);
        load.requests.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more).ok()?;
        Some(Self(load.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.requests.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A job under way.
struct Client {
    job: Job,
    /// Choices that have not ended.
    open: usize,
}

/// The clients and the engine's names of their prompts.
#[derive(Default)]
struct Clients {
    by_name: BTreeMap<usize, Client>,
    /// The engine's name of a prompt: its client and the number of its first choice.
    prompts: BTreeMap<usize, (usize, usize)>,
    next: usize,
}

/// Runs until the network's thread has gone.
pub(super) fn run(model: &Model, settings: &Settings, work: &Receiver<Work>, load: &Load, log: &(dyn Fn(&str) + Sync)) {
    let new = || Engine::new(&model.transformer, Some(&model.tokenizer), settings.max_batch).with_cache_tokens(settings.cache_tokens);
    let (mut engine, mut clients) = (new(), Clients::default());
    loop {
        if !clients.take_in(work, &mut engine) {
            return;
        }
        clients.drop_gone(&mut engine);
        let stepped = engine.step(&mut |event| {
            if let Event::Warning(text) = event {
                log(&format!("warning: {text}"));
            }
            clients.hand_out(event);
            true
        });
        if let Err(e) = stepped {
            log(&format!("generation failed: {e}"));
            clients.fail_all(&ApiError::internal(format!("generation failed: {e}")));
            engine = new();
        }
        load.cached_tokens.store(engine.cached_tokens(), Ordering::SeqCst);
    }
}

/// Waits for something to do; where nothing comes for a while, what the last answers have left of memory goes back to the system.
fn next_when_idle(work: &Receiver<Work>) -> Result<Work, RecvError> {
    match work.recv_timeout(IDLE) {
        Ok(work) => Ok(work),
        Err(RecvTimeoutError::Disconnected) => Err(RecvError),
        Err(RecvTimeoutError::Timeout) => {
            give_back();
            work.recv()
        }
    }
}

impl Clients {
    /// Takes in what has come; waits for something where there is nothing to do. False when nothing can come any more.
    fn take_in(&mut self, work: &Receiver<Work>, engine: &mut Engine<'_>) -> bool {
        if engine.is_empty() {
            match next_when_idle(work) {
                Ok(work) => self.accept(work, engine),
                Err(_) => return false,
            }
        }
        loop {
            match work.try_recv() {
                Ok(work) => self.accept(work, engine),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return !engine.is_empty(),
            }
        }
    }

    fn accept(&mut self, work: Work, engine: &mut Engine<'_>) {
        let mut job = match work {
            Work::Add(job) => job,
            Work::Stop => {
                self.prompts.keys().for_each(|name| engine.cancel(*name));
                return self.fail_all(&ApiError::stopping());
            }
        };
        let (client, mut open) = (self.next, 0);
        let mut names = Vec::new();
        for request in std::mem::take(&mut job.requests) {
            let (name, n) = (self.next, request.params.n);
            self.next += 1;
            if let Err(e) = engine.add(name, request) {
                names.into_iter().for_each(|name| engine.cancel(name));
                let message = e.to_string().replace("\n  ", "; ");
                return send(&job, Reply::Failed(ApiError::new(StatusCode::BAD_REQUEST, message)));
            }
            names.push(name);
            self.prompts.insert(name, (client, open));
            open += n;
        }
        send(&job, Reply::Taken);
        self.by_name.insert(client, Client { job, open });
    }

    /// Drops the jobs whose client has hung up.
    fn drop_gone(&mut self, engine: &mut Engine<'_>) {
        let gone = |client: &Client| client.job.reply.is_closed();
        if !self.by_name.values().any(gone) {
            return;
        }
        let by_name = &self.by_name;
        self.prompts.retain(|name, (client, _)| {
            let keep = by_name.get(client).is_some_and(|c| !gone(c));
            if !keep {
                engine.cancel(*name);
            }
            keep
        });
        self.by_name.retain(|_, client| !gone(client));
    }

    fn fail_all(&mut self, error: &ApiError) {
        self.prompts.clear();
        std::mem::take(&mut self.by_name).into_values().for_each(|c| send(&c.job, Reply::Failed(error.clone())));
    }

    /// Tells a client what the engine has for it.
    fn hand_out(&mut self, event: Event<'_>) {
        let name = match &event {
            Event::Token(name, ..) | Event::Text(name, ..) => *name,
            Event::Done(completion) => completion.prompt_index,
            Event::Progress(_) | Event::Warning(_) => return,
        };
        let Some(&(client_name, first)) = self.prompts.get(&name) else { return };
        let Some(client) = self.by_name.get_mut(&client_name) else { return };
        match event {
            Event::Token(_, index, choice, top) if client.job.tokens => {
                send(&client.job, Reply::Token(first + index, choice, top.to_vec()))
            }
            Event::Text(_, index, piece) if client.job.pieces => send(&client.job, Reply::Text(first + index, piece.to_owned())),
            Event::Done(completion) => {
                send(&client.job, Reply::Done(first + completion.index, completion.clone()));
                client.open -= 1;
                if client.open == 0 {
                    self.by_name.remove(&client_name);
                    self.prompts.retain(|_, (client, _)| *client != client_name);
                }
            }
            _ => {}
        }
    }
}

/// A client that has hung up is noticed by [`Clients::drop_gone`].
fn send(job: &Job, reply: Reply) {
    let _ = job.reply.send(reply);
}
