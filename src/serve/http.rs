//! Connections, routes, and the way from a request's body to its answer.

use super::answer::{Header, Token};
use super::error::ApiError;
use super::request::{self, Asked, Endpoint, Prompt};
use super::stream::{ChoiceState, Events};
use super::worker::{Job, Load, Place, Reply, Work};
use super::{Model, Settings};
use crate::model::generate::{Completion, Request, SamplingParams};
use crate::{Error, Result};
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Path, State as Extract};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router, body::Bytes};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::hash::{BuildHasher, Hasher};
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, SystemTime};
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

/// How long a client may take to send a request's head, and its body.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// Connections beyond those that requests can use: for a health check while all places are taken.
const SPARE_CONNECTIONS: usize = 64;
/// How long connections may take to send their last words.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What the handlers share.
pub(super) struct State {
    model: Arc<Model>,
    settings: Settings,
    work: mpsc::Sender<Work>,
    load: Arc<Load>,
    created: u64,
    /// Differs from start to start, so that ids of answers do.
    start: u64,
    requests: AtomicU64,
    stopping: AtomicBool,
}

impl State {
    pub fn new(model: Arc<Model>, settings: Settings, work: mpsc::Sender<Work>, load: Arc<Load>) -> Arc<Self> {
        let start = std::hash::RandomState::new().build_hasher().finish();
        let (requests, stopping) = (AtomicU64::new(0), AtomicBool::new(false));
        Arc::new(Self { model, settings, work, load, created: now(), start, requests, stopping })
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// Serves connections until `stop`, then lets the open ones end.
pub(super) async fn serve(
    listener: TcpListener,
    state: Arc<State>,
    stop: impl Future<Output = ()>,
    log: &(dyn Fn(&str) + Sync),
) -> Result<()> {
    let failed = |e| Error::io("listen", std::path::Path::new("the server's port"), e);
    let listener = tokio::net::TcpListener::from_std(listener).map_err(failed)?;
    let graceful = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(state.settings.max_requests + SPARE_CONNECTIONS));
    let service = TowerToHyperService::new(router(state.clone()));
    let mut stop = std::pin::pin!(stop);
    loop {
        let accepted = async {
            let place = places.clone().acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, stream) = tokio::select! {
            accepted = accepted => accepted,
            () = &mut stop => break,
        };
        let stream = match stream {
            Ok((stream, _)) => stream,
            Err(e) => {
                // Out of file descriptors, say: connections that end free some.
                log(&format!("cannot take a connection: {e}"));
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        // Small chunks should not wait for company.
        let _ = stream.set_nodelay(true);
        let mut http = hyper::server::conn::http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(READ_TIMEOUT);
        let connection = graceful.watch(http.serve_connection(TokioIo::new(stream), service.clone()));
        tokio::spawn(async move {
            // A client that breaks off is no error of ours.
            let _ = connection.await;
            drop(place);
        });
    }
    drop(listener);
    state.stopping.store(true, Ordering::SeqCst);
    let mut ended = std::pin::pin!(graceful.shutdown());
    if tokio::time::timeout(state.settings.grace, &mut ended).await.is_err() {
        log("the time for answers under way is over");
        let _ = state.work.send(Work::Stop);
        let _ = tokio::time::timeout(LAST_WORDS, &mut ended).await;
    }
    Ok(())
}

fn router(state: Arc<State>) -> Router {
    let health = async |Extract(state): Extract<Arc<State>>| {
        Json(json!({"status": "ok", "requests": state.load.requests(), "cached_tokens": state.load.cached_tokens()}))
    };
    Router::new()
        .route("/health", get(health))
        .route("/v1/models", get(models))
        .route("/v1/models/{*name}", get(one_model))
        .route("/v1/chat/completions", post(async |s: Extract<Arc<State>>, h: HeaderMap, b| answer(Endpoint::Chat, s.0, h, b).await))
        .route("/v1/completions", post(async |s: Extract<Arc<State>>, h: HeaderMap, b| answer(Endpoint::Completions, s.0, h, b).await))
        .fallback(async |uri: Uri| {
            let known = "/v1/models, /v1/chat/completions, /v1/completions and /health";
            ApiError::new(StatusCode::NOT_FOUND, format!("there is nothing at {}; this server has {known}", uri.path())).code("not_found")
        })
        .method_not_allowed_fallback(async |method: Method, uri: Uri| {
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, format!("{} does not take {method}", uri.path()))
        })
        .layer(DefaultBodyLimit::max(state.settings.max_body_bytes))
        .layer(middleware::from_fn_with_state(state.clone(), authorize))
        .with_state(state)
}

/// Lets requests with the key pass. Digests are compared, so that the time it takes tells nothing of the key.
async fn authorize(Extract(state): Extract<Arc<State>>, request: axum::extract::Request, next: Next) -> Response {
    if let Some(key) = &state.settings.api_key {
        let given = request.headers().get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()).and_then(|v| v.strip_prefix("Bearer "));
        if given.is_none_or(|given| Sha256::digest(given.trim()) != Sha256::digest(key)) {
            let message = "expected the header Authorization: Bearer KEY with this server's key";
            return ApiError::new(StatusCode::UNAUTHORIZED, message).code("invalid_api_key").into_response();
        }
    }
    next.run(request).await
}

fn describe(state: &State) -> Value {
    json!({"id": state.model.name, "object": "model", "created": state.created, "owned_by": "sorft-native",
        "max_model_len": state.model.transformer.config().max_position_embeddings})
}

async fn models(Extract(state): Extract<Arc<State>>) -> Json<Value> {
    Json(json!({"object": "list", "data": [describe(&state)]}))
}

async fn one_model(Extract(state): Extract<Arc<State>>, Path(name): Path<String>) -> std::result::Result<Json<Value>, ApiError> {
    if name == state.model.name { Ok(Json(describe(&state))) } else { Err(request::unknown_model(&name, &state.model.name)) }
}

/// Answers a request for completions.
async fn answer(
    endpoint: Endpoint,
    state: Arc<State>,
    headers: HeaderMap,
    body: std::result::Result<Bytes, BytesRejection>,
) -> std::result::Result<Response, ApiError> {
    if state.stopping.load(Ordering::SeqCst) {
        return Err(ApiError::stopping());
    }
    let is_json = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).is_some_and(|v| v.trim().starts_with("application/json"));
    if !is_json {
        // Also keeps out pages of other sites: a browser lets them send other types without asking.
        let message = "expected the header Content-Type: application/json";
        return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
    }
    let body = body.map_err(|e| match e.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            let message = format!("the body is larger than {} bytes, this server's limit", state.settings.max_body_bytes);
            ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message).code("body_too_large")
        }
        status => ApiError::new(status, format!("the body cannot be read: {}", e.body_text())),
    })?;
    let place = Place::take(&state.load, state.settings.max_requests).ok_or_else(|| ApiError::full(state.settings.max_requests))?;
    let number = state.requests.fetch_add(1, Ordering::SeqCst);
    let (asked, prompts) = {
        let state = state.clone();
        // A long prompt takes a while to tokenise; other connections go on meanwhile.
        let read = tokio::task::spawn_blocking(move || {
            let mut asked = request::read(endpoint, &body, &state.model.name, &state.settings)?;
            if !asked.seeded {
                asked.params.seed = crate::tensor::philox::Philox::new(state.settings.seed, SEED_STREAM).bits(number, 0);
            }
            let prompts =
                asked.prompts.iter().enumerate().map(|(i, p)| encode(&asked, i, p, &state.model)).collect::<std::result::Result<_, _>>();
            prompts.map(|prompts: Vec<Arc<[u32]>>| (asked, prompts))
        });
        read.await.map_err(|_| ApiError::internal("reading the request failed"))??
    };
    let header = Header {
        endpoint,
        id: format!("{}-{:016x}{number:08x}", if endpoint == Endpoint::Chat { "chatcmpl" } else { "cmpl" }, state.start),
        created: now(),
        model: state.model.name.clone(),
        seed: asked.params.seed,
        prompt_tokens: prompts.iter().map(|p| p.len()).sum(),
    };
    let replies = submit(&state, &asked, prompts, place).await?;
    respond(&state, &asked, header, replies).await
}

/// The stream of random numbers that gives requests without a seed theirs.
const SEED_STREAM: u64 = 0x7365_7276;

/// The ids of a prompt, as `sample` makes them.
fn encode(asked: &Asked, index: usize, prompt: &Prompt, model: &Model) -> std::result::Result<Arc<[u32]>, ApiError> {
    let several = asked.prompts.len() > 1;
    let field = match asked.endpoint {
        Endpoint::Chat => "messages".to_owned(),
        Endpoint::Completions if several => format!("prompt[{index}]"),
        Endpoint::Completions => "prompt".to_owned(),
    };
    let wrong = |e: Error| ApiError::field(&field, format!("{field}: {}", e.to_string().replace("\n  ", "; ")));
    let ids = match prompt {
        Prompt::Ids(ids) => ids.clone(),
        Prompt::Text(text) => model.tokenizer.encode(text, true).map_err(wrong)?,
        Prompt::Messages(messages) => {
            let template = model.template.as_ref();
            let template = template.ok_or_else(|| wrong(Error::input("the model has no chat template").hint("use /v1/completions")))?;
            model.tokenizer.encode(&template.render(messages, true).map_err(wrong)?, false).map_err(wrong)?
        }
    };
    let config = model.transformer.config();
    let (len, context) = (ids.len(), config.max_position_embeddings);
    if len == 0 {
        return Err(wrong(Error::input("expected at least one token, found none")));
    }
    if len >= context {
        let message = format!("{len} tokens; with at least one of an answer the model's context of {context} cannot hold them");
        return Err(wrong(Error::input(message)).code("context_length_exceeded"));
    }
    if let Some(id) = ids.iter().find(|id| **id as usize >= config.vocab_size) {
        return Err(wrong(Error::input(format!("token id {id} is outside the model's vocabulary of {}", config.vocab_size))));
    }
    Ok(ids.into())
}

/// Hands a request to the worker and waits until it was taken in.
async fn submit(
    state: &State,
    asked: &Asked,
    prompts: Vec<Arc<[u32]>>,
    place: Place,
) -> std::result::Result<UnboundedReceiver<Reply>, ApiError> {
    let params: Arc<SamplingParams> = Arc::new(asked.params.clone());
    let top_logprobs = asked.logprobs.unwrap_or(0);
    let requests = prompts.into_iter().map(|prompt| Request { prompt, params: params.clone(), top_logprobs }).collect();
    let (reply, mut replies) = unbounded_channel();
    let job = Job { requests, pieces: asked.stream, tokens: asked.logprobs.is_some(), reply, _place: place };
    state.work.send(Work::Add(job)).map_err(|_| ApiError::stopping())?;
    match replies.recv().await {
        Some(Reply::Taken) => Ok(replies),
        Some(Reply::Failed(error)) => Err(error),
        _ => Err(ApiError::internal("the request was lost")),
    }
}

/// The answer, streamed or whole.
async fn respond(
    state: &State,
    asked: &Asked,
    header: Header,
    mut replies: UnboundedReceiver<Reply>,
) -> std::result::Result<Response, ApiError> {
    let count = asked.prompts.len() * asked.params.n;
    if asked.stream {
        let choices = (0..count).map(|_| ChoiceState::default()).collect();
        let (logprobs, include_usage) = (asked.logprobs.is_some(), asked.include_usage);
        let events = Events { header, model: state.model.clone(), logprobs, include_usage, choices, tokens: 0 };
        return Ok(events.respond(replies));
    }
    let mut choices: Vec<(Option<Completion>, Vec<Token>)> = (0..count).map(|_| (None, Vec::new())).collect();
    while choices.iter().any(|(done, _)| done.is_none()) {
        match replies.recv().await {
            Some(Reply::Token(index, choice, top)) => choices[index].1.push(Token { choice, top }),
            Some(Reply::Done(index, completion)) => choices[index].0 = Some(completion),
            Some(Reply::Taken | Reply::Text(..)) => {}
            Some(Reply::Failed(error)) => return Err(error),
            None => return Err(ApiError::internal("generation ended early")),
        }
    }
    let choices: Vec<_> = choices.into_iter().filter_map(|(done, tokens)| Some((done?, tokens))).collect();
    Ok(Json(header.whole(&choices, asked.logprobs.is_some(), &state.model.tokenizer)).into_response())
}
