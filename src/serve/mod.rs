//! A server that answers as OpenAI's API does: models, chat completions and completions, whole or streamed.
//!
//! Two threads share the work. The network's (`http`) reads requests, turns them into token ids (`fields`, `request`) and writes answers
//! (`answer`, `stream`); the worker's (`worker`) runs one [`Engine`](crate::model::generate::Engine) for all requests and knows nothing of
//! HTTP. A client that hangs up drops the receiving end of its channel, by which the worker sees that nobody waits any more. An answer is a
//! function of (prompt, settings, seed, index): `sample` gives the same bits.

mod answer;
mod error;
mod fields;
mod http;
mod request;
mod stream;
mod worker;

use crate::model::chat::ChatTemplate;
use crate::model::tokenizer::Tokenizer;
use crate::model::transformer::Transformer;
use crate::{Error, Result};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::Duration;

/// What is served.
pub struct Model {
    /// The name that requests call it by.
    pub name: String,
    /// The network.
    pub transformer: Transformer,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Its chat template, without which there are no chat completions.
    pub template: Option<ChatTemplate>,
}

/// How it is served, and the limits.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What a client must send as `Authorization: Bearer ...`; `None`: nothing.
    pub api_key: Option<String>,
    /// Answers decoded together.
    pub max_batch: usize,
    /// Tokens that the cache of keys and values holds.
    pub cache_tokens: usize,
    /// Requests under way and waiting; one more is told to come again.
    pub max_requests: usize,
    /// Answers that one request may ask for, over all its prompts.
    pub max_choices: usize,
    /// Longest answer that may be asked for, in tokens.
    pub max_answer_tokens: usize,
    /// Longest body of a request, in bytes.
    pub max_body_bytes: usize,
    /// How long answers under way may take after the server was told to stop.
    pub grace: Duration,
    /// From which the seeds of requests without one follow.
    pub seed: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            api_key: None,
            max_batch: 32,
            cache_tokens: 65_536,
            max_requests: 256,
            max_choices: 128,
            max_answer_tokens: 4096,
            max_body_bytes: 4 << 20,
            grace: Duration::from_secs(30),
            seed: 0,
        }
    }
}

/// A server that has its port.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    model: Arc<Model>,
    settings: Settings,
}

impl Server {
    /// Takes the port (any free one for port 0).
    ///
    /// # Errors
    /// If the address does not exist or is taken.
    pub fn bind(address: (&str, u16), model: Model, settings: Settings) -> Result<Self> {
        let place = format!("{}:{}", address.0, address.1);
        let fail = |e| Error::io("listen", Path::new(&place), e).hint("choose another --host or --port");
        let listener = TcpListener::bind(address).map_err(fail)?;
        listener.set_nonblocking(true).map_err(fail)?;
        let address = listener.local_addr().map_err(fail)?;
        Ok(Self { listener, address, model: Arc::new(model), settings })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop` is ready; then takes no more connections, gives answers under way [`Settings::grace`] to end, and returns. The
    /// model runs on the calling thread. `log` is told of what went wrong on the server's side.
    ///
    /// # Errors
    /// If the network's thread cannot be started or fails.
    pub fn run(self, stop: impl Future<Output = ()> + Send, log: &(dyn Fn(&str) + Sync)) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(2).build();
        let runtime = runtime.map_err(|e| Error::device(format!("cannot start the network's thread: {e}")))?;
        let (sender, receiver) = mpsc::channel();
        let load = Arc::new(worker::Load::default());
        let state = http::State::new(self.model.clone(), self.settings.clone(), sender, load.clone());
        // Ends the network's thread too where the worker's panics: nobody would answer.
        let (alive, dead) = tokio::sync::oneshot::channel::<()>();
        std::thread::scope(|scope| {
            let network = scope.spawn(move || {
                let result = runtime.block_on(async {
                    let stop = async {
                        tokio::select! { () = stop => {}, _ = dead => {} }
                    };
                    http::serve(self.listener, state, stop, log).await
                });
                // Does not wait for a prompt that is being tokenised.
                runtime.shutdown_background();
                result
            });
            let alive = alive;
            worker::run(&self.model, &self.settings, &receiver, &load, log);
            drop(alive);
            network.join().unwrap_or_else(|_| Err(Error::device("the network's thread failed")))
        })
    }
}
