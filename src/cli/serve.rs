//! `serve`: the model behind OpenAI's protocol.

use crate::cli::common::ModelArgs;
use crate::cli::output::say;
use crate::serve::{Model, Server, Settings};
use crate::{Error, Result};
use std::hash::{BuildHasher, Hasher};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Serve a model to any client that speaks OpenAI's protocol.
///
/// GET /v1/models, POST /v1/chat/completions and POST /v1/completions, whole or streamed, with log-probabilities; GET /health. Given a seed,
/// an answer is the one that `sample` gives, whatever else the server is doing.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(super) model: ModelArgs,
    /// The address to listen at; anything but a loopback address can be reached from other machines
    #[arg(long, default_value = "127.0.0.1", value_name = "ADDRESS")]
    host: String,
    /// The port; 0 takes any free one
    #[arg(long, default_value_t = 8000)]
    port: u16,
    /// The name that requests call the model by [default: the model's file or folder]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// An environment variable with the key that clients must send [default: SORFT_API_KEY, if it is set]
    #[arg(long, value_name = "VARIABLE")]
    api_key_env: Option<String>,
    /// Answers decoded together (changes speed and memory, never the answers)
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = at_least_one)]
    max_batch: usize,
    /// Requests under way and waiting; more are told to come again
    #[arg(long, default_value_t = 256, value_name = "N", value_parser = at_least_one)]
    max_requests: usize,
    /// Answers that one request may ask for
    #[arg(long, default_value_t = 128, value_name = "N", value_parser = at_least_one)]
    max_choices: usize,
    /// Longest answer that may be asked for, in tokens
    #[arg(long, default_value_t = 4096, value_name = "N", value_parser = at_least_one)]
    max_answer_tokens: usize,
    /// Longest body of a request, in MiB
    #[arg(long, default_value_t = 4, value_name = "MIB", value_parser = at_least_one)]
    max_body: usize,
    /// Memory for keys and values, in MiB
    #[arg(long, default_value_t = 4096, value_name = "MIB", value_parser = at_least_one)]
    cache: usize,
    /// Seconds that answers under way may take after Ctrl-C or SIGTERM
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    grace: u64,
    /// Where the seeds of requests without one come from [default: different at each start]
    #[arg(long)]
    seed: Option<u64>,
}

fn at_least_one(text: &str) -> std::result::Result<usize, String> {
    text.parse().ok().filter(|n| *n > 0).ok_or_else(|| "expected a number of at least 1".to_owned())
}

/// The key that clients must send.
fn api_key(variable: Option<&str>) -> Result<Option<String>> {
    let value = |name: &str| std::env::var(name).ok().filter(|key| !key.is_empty());
    match variable {
        None => Ok(value("SORFT_API_KEY")),
        Some(name) => match value(name) {
            Some(key) => Ok(Some(key)),
            None => Err(Error::usage(format!("--api-key-env {name}: the environment variable is not set, or empty"))),
        },
    }
}

pub(crate) fn run(args: Args) -> Result<()> {
    let api_key = api_key(args.api_key_env.as_deref())?;
    let (transformer, files) = args.model.load()?;
    files.tokenizer()?;
    let tokenizer = files.tokenizer.ok_or_else(|| Error::input("the model has no tokenizer").at_file(&files.path))?;
    let config = transformer.config();
    // A key and a value of 4 bytes a number.
    let token_bytes = 8 * config.num_layers * config.num_kv_heads * config.head_dim;
    let settings = Settings {
        api_key,
        max_batch: args.max_batch,
        cache_tokens: (args.cache << 20) / token_bytes,
        max_requests: args.max_requests,
        max_choices: args.max_choices,
        max_answer_tokens: args.max_answer_tokens,
        max_body_bytes: args.max_body << 20,
        grace: Duration::from_secs(args.grace),
        seed: args.seed.unwrap_or_else(|| std::hash::RandomState::new().build_hasher().finish()),
    };
    let name = args.name.unwrap_or_else(|| file_name(&args.model.model));
    let (cache_tokens, open) = (settings.cache_tokens, settings.api_key.is_none());
    let template = files.chat_template;
    if template.is_none() {
        say!("warning: the model has no chat template; /v1/chat/completions will refuse");
    }
    let model = Model { name: name.clone(), transformer, tokenizer, template };
    let server = Server::bind((&args.host, args.port), model, settings)?;
    let address = server.address();
    if open && !address.ip().is_loopback() {
        say!("warning: other machines can reach {address}, and no key is asked for; set SORFT_API_KEY");
    }
    say!("serving {name} at http://{address}/v1; the cache holds {cache_tokens} tokens");
    let pressed = AtomicBool::new(false);
    server.run(stop(&pressed), &|line| say!("{line}"))?;
    if pressed.load(Ordering::SeqCst) { Err(Error::interrupted()) } else { Ok(()) }
}

/// `Qwen2.5-Coder` of `models/Qwen2.5-Coder/`, `model` of `model.gguf`; a hub id stays whole.
fn file_name(model: &str) -> String {
    let path = Path::new(model);
    if !path.exists() {
        return model.to_owned();
    }
    let name = path.canonicalize().ok().and_then(|p| p.file_name().map(|n| n.to_string_lossy().into_owned()));
    let name = name.unwrap_or_else(|| model.to_owned());
    name.strip_suffix(".gguf").unwrap_or(&name).to_owned()
}

/// Ready at Ctrl-C or, where there is one, SIGTERM; a second one ends the program at once. `pressed`: whether it was Ctrl-C.
async fn stop(pressed: &AtomicBool) {
    let signal = async || {
        let pressed = tokio::signal::ctrl_c();
        tokio::select! {
            Ok(()) = pressed => true,
            () = terminated() => false,
        }
    };
    pressed.store(signal().await, Ordering::SeqCst);
    say!("\nstopping: answers under way may end; once more to end at once");
    tokio::spawn(async {
        let signal = tokio::signal::ctrl_c();
        tokio::select! {
            _ = signal => {}
            () = terminated() => {}
        }
        std::process::exit(130);
    });
}

#[cfg(unix)]
async fn terminated() {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => drop(terminate.recv().await),
        Err(_) => std::future::pending().await,
    }
}

#[cfg(not(unix))]
async fn terminated() {
    std::future::pending().await
}
