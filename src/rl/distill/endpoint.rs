//! A teacher behind OpenAI's protocol: several requests at a time, at most so many a minute, again after failures that may pass.

use super::{Missing, Said, Sampling, Teacher};
use crate::error::{Error, Result};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Where the teacher is and how it may be asked.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Up to and with `/v1`.
    pub url: String,
    /// The model's name there.
    pub model: String,
    /// Sent as `Authorization: Bearer ...`.
    pub key: Option<String>,
    /// How it answers.
    pub sampling: Sampling,
    /// Requests at a time.
    pub parallel: usize,
    /// Requests a minute, over all; 0: as many as come.
    pub per_minute: usize,
    /// How long an answer may take.
    pub timeout: Duration,
    /// How often a request is sent again.
    pub retries: u32,
    /// Pause before the first time again; each further one is twice as long.
    pub first_pause: Duration,
    /// Stop once the answers of this call have cost so much.
    pub budget: Option<Budget>,
}

/// What tokens cost, and how much may be spent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Budget {
    /// For a million tokens of prompts.
    pub prompt_price: f64,
    /// For a million tokens of answers.
    pub completion_price: f64,
    /// No request is sent once the answers have cost so much.
    pub limit: f64,
}

impl Budget {
    /// What an answer cost.
    pub fn cost(&self, prompt_tokens: u64, completion_tokens: u64) -> f64 {
        (prompt_tokens as f64 * self.prompt_price + completion_tokens as f64 * self.completion_price) / 1e6
    }
}

/// An [`Endpoint`] at work.
pub struct Remote<'a> {
    /// Its settings.
    pub endpoint: Endpoint,
    /// Whether to stop.
    pub stop: &'a (dyn Fn() -> bool + Sync),
    /// Is told of requests that are sent again or given up.
    pub log: &'a (dyn Fn(&str) + Sync),
}

/// The longest pause of our own choice between two tries; a server may ask for longer ones.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// The longest pause that a server may ask for.
const LONGEST_ASKED: Duration = Duration::from_secs(3600);
/// The largest body of an answer.
const MAX_BODY: u64 = 64 << 20;

/// What the threads share.
struct Shared<'a> {
    queue: VecDeque<Missing<'a>>,
    /// No request goes out before.
    next: Instant,
    cost: f64,
    given_up: usize,
    error: Option<Error>,
}

/// Why a request gave no answer.
enum Failure {
    /// Trying again may help, at best after a pause that the server named.
    Passing(String, Option<Duration>),
    /// This question will not be answered.
    Refused(String),
    /// No question will be.
    Fatal(Error),
}

impl Teacher for Remote<'_> {
    fn name(&self) -> String {
        let e = &self.endpoint;
        format!("{} model={} {}", e.url, e.model, e.sampling.describe())
    }

    fn answer(&self, missing: &[Missing<'_>], store: &(dyn Fn(Missing<'_>, Said) -> Result<()> + Sync)) -> Result<()> {
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(self.endpoint.timeout))
            .http_status_as_error(false)
            .user_agent(concat!("sorft-native/", env!("CARGO_PKG_VERSION")));
        let agent = ureq::Agent::new_with_config(config.build());
        let queue = missing.iter().copied().collect();
        let shared = Mutex::new(Shared { queue, next: Instant::now(), cost: 0.0, given_up: 0, error: None });
        std::thread::scope(|scope| {
            for _ in 0..self.endpoint.parallel.clamp(1, missing.len().max(1)) {
                scope.spawn(|| self.work(&agent, &shared, store));
            }
        });
        let shared = shared.into_inner().unwrap_or_else(PoisonError::into_inner);
        match shared.error {
            Some(e) => Err(e),
            None if (self.stop)() => Err(Error::interrupted()),
            None if shared.given_up > 0 => Err(Error::input(format!("{} answers could not be had", shared.given_up))
                .at(&self.endpoint.url)
                .hint("the others are stored; the same command asks again for what is missing")),
            None => Ok(()),
        }
    }
}

fn lock<'a, 'b>(shared: &'a Mutex<Shared<'b>>) -> MutexGuard<'a, Shared<'b>> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Remote<'_> {
    /// One thread's loop: takes questions until there are none, or none is to be asked any more.
    fn work(&self, agent: &ureq::Agent, shared: &Mutex<Shared<'_>>, store: &(dyn Fn(Missing<'_>, Said) -> Result<()> + Sync)) {
        loop {
            let mut state = lock(shared);
            if let Some(budget) = self.endpoint.budget
                && state.cost >= budget.limit
                && !state.queue.is_empty()
                && state.error.is_none()
            {
                let message = format!("the answers cost {:.2}, the limit is {:.2}", state.cost, budget.limit);
                state.error = Some(Error::input(message).hint("they are stored; the same command goes on"));
            }
            if state.error.is_some() || (self.stop)() {
                return;
            }
            let Some(missing) = state.queue.pop_front() else { return };
            drop(state);
            match self.ask_until_answered(agent, missing, shared) {
                Ok(Some(said)) => {
                    let budget = self.endpoint.budget;
                    let uncounted = budget.is_some_and(|b| b.limit.is_finite()) && said.prompt_tokens + said.completion_tokens == 0;
                    let cost = budget.map_or(0.0, |b| b.cost(said.prompt_tokens, said.completion_tokens));
                    // Stored before anything else: it is paid for.
                    let stored = store(missing, said);
                    let mut state = lock(shared);
                    state.cost += cost;
                    state.error = state.error.take().or(stored.err());
                    if uncounted {
                        let message = "the server does not say how many tokens an answer took (`usage`), so its cost cannot be limited";
                        let hint = "leave out --max-cost, and bound the questions by --limit or the answers by --n";
                        state.error.get_or_insert_with(|| Error::input(message).at(&self.endpoint.url).hint(hint));
                    }
                }
                Ok(None) => lock(shared).given_up += 1,
                Err(e) => {
                    let mut state = lock(shared);
                    state.error = state.error.take().or(Some(e));
                }
            }
        }
    }

    /// `None`: given up, or stopped.
    fn ask_until_answered(&self, agent: &ureq::Agent, missing: Missing<'_>, shared: &Mutex<Shared<'_>>) -> Result<Option<Said>> {
        let (id, index) = (&missing.item.id, missing.index);
        for attempt in 0..=self.endpoint.retries {
            if !self.wait_for_turn(shared) {
                return Ok(None);
            }
            let (message, asked) = match self.ask(agent, missing) {
                Ok(said) => return Ok(Some(said)),
                Err(Failure::Fatal(e)) => return Err(e),
                Err(Failure::Refused(message)) => {
                    (self.log)(&format!("{id} ({index}): refused: {message}"));
                    return Ok(None);
                }
                Err(Failure::Passing(message, asked)) => (message, asked),
            };
            if attempt == self.endpoint.retries {
                (self.log)(&format!("{id} ({index}): given up: {message}"));
                return Ok(None);
            }
            let ours = self.endpoint.first_pause.saturating_mul(1 << attempt.min(16)).min(LONGEST_PAUSE);
            let pause = asked.map_or(ours, |asked| asked.max(ours).min(LONGEST_ASKED));
            (self.log)(&format!("{id} ({index}): again in {:.1} s: {message}", pause.as_secs_f64()));
            if asked.is_some() {
                // The server means all of us.
                let mut state = lock(shared);
                state.next = state.next.max(Instant::now() + pause);
            } else if !self.sleep_until(Instant::now() + pause, shared) {
                return Ok(None);
            }
        }
        Ok(None)
    }

    /// Waits until the rate limit and the server let a request go out. False: it is not to.
    fn wait_for_turn(&self, shared: &Mutex<Shared<'_>>) -> bool {
        let gap = match self.endpoint.per_minute {
            0 => Duration::ZERO,
            n => Duration::from_secs(60) / n as u32,
        };
        loop {
            let mut state = lock(shared);
            let now = Instant::now();
            if state.next <= now {
                state.next = now + gap;
                return state.error.is_none() && !(self.stop)();
            }
            let next = state.next;
            drop(state);
            if !self.sleep_until(next, shared) {
                return false;
            }
        }
    }

    /// Sleeps; false as soon as all is to end.
    fn sleep_until(&self, then: Instant, shared: &Mutex<Shared<'_>>) -> bool {
        loop {
            let left = then.saturating_duration_since(Instant::now());
            if lock(shared).error.is_some() || (self.stop)() {
                return false;
            }
            if left.is_zero() {
                return true;
            }
            std::thread::sleep(left.min(Duration::from_millis(50)));
        }
    }

    fn ask(&self, agent: &ureq::Agent, missing: Missing<'_>) -> Result<Said, Failure> {
        let passing = |message: String| Failure::Passing(message, None);
        let s = &self.endpoint.sampling;
        let messages = s.conversation(missing.item);
        // The shortest digits of the f32, not the f64's.
        let temperature: f64 = s.temperature.to_string().parse().unwrap_or(1.0);
        let body = json!({"model": self.endpoint.model, "messages": messages, "max_tokens": s.max_new_tokens, "temperature": temperature});
        let mut request = agent.post(format!("{}/chat/completions", self.endpoint.url)).header("content-type", "application/json");
        if let Some(key) = &self.endpoint.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let mut response = request.send(body.to_string()).map_err(|e| passing(e.to_string()))?;
        let (status, asked) = (response.status().as_u16(), retry_after(response.headers()));
        let bytes = response.body_mut().with_config().limit(MAX_BODY).read_to_vec().map_err(|e| Failure::Passing(e.to_string(), asked))?;
        if !(200..300).contains(&status) {
            return Err(self.refusal(status, asked, &bytes));
        }
        read_answer(&bytes).ok_or_else(|| passing(format!("no chat completion: {}", excerpt(&bytes))))
    }

    fn refusal(&self, status: u16, asked: Option<Duration>, body: &[u8]) -> Failure {
        let said = serde_json::from_slice::<Value>(body).ok();
        let said = said.and_then(|v| v.pointer("/error/message").and_then(Value::as_str).map(str::to_owned));
        let message = format!("status {status}: {}", said.unwrap_or_else(|| excerpt(body)));
        match status {
            408 | 409 | 425 | 429 | 500..=599 => Failure::Passing(message, asked),
            401 | 403 => Failure::Fatal(Error::input(message).at(&self.endpoint.url).hint("give the key by --api-key-env")),
            404 | 405 => Failure::Fatal(
                Error::input(message)
                    .at(&self.endpoint.url)
                    .hint("the URL ends with /v1, as a rule; --teacher-model names the model there"),
            ),
            _ => Failure::Refused(message),
        }
    }
}

/// The first choice of a chat completion; `None` if it is none, or one without an end.
fn read_answer(body: &[u8]) -> Option<Said> {
    let answer: Value = serde_json::from_slice(body).ok()?;
    let choice = answer.pointer("/choices/0")?;
    let tokens = |name: &str| answer.pointer(&format!("/usage/{name}")).and_then(Value::as_u64).unwrap_or(0);
    Some(Said {
        text: choice.pointer("/message/content")?.as_str()?.to_owned(),
        cut_off: choice.get("finish_reason")?.as_str()? == "length",
        prompt_tokens: tokens("prompt_tokens"),
        completion_tokens: tokens("completion_tokens"),
    })
}

/// The server's `Retry-After`, in seconds. (A date, which servers seldom send, is not read: our own pauses serve.)
fn retry_after(headers: &ureq::http::HeaderMap) -> Option<Duration> {
    let seconds: f64 = headers.get("retry-after")?.to_str().ok()?.trim().parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

fn excerpt(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(200)]);
    format!("{:?}{}", text.trim(), if body.len() > 200 { "..." } else { "" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_chat_completions_are_answers() {
        let good = json!({"choices": [{"message": {"content": "a"}, "finish_reason": "length"}], "usage": {"prompt_tokens": 3}});
        let said = Said { text: "a".into(), cut_off: true, prompt_tokens: 3, completion_tokens: 0 };
        assert_eq!(read_answer(good.to_string().as_bytes()), Some(said));
        for bad in
            ["", "{}", "null", "{\"choices\": []}", "{\"choices\": [{\"message\": {\"content\": null}, \"finish_reason\": \"stop\"}]}"]
        {
            assert_eq!(read_answer(bad.as_bytes()), None);
        }
    }
}
