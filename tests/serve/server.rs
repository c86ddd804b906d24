//! A server on a thread of its own, with a tiny model.

use crate::{bytes, client, tiny};
use serde_json::Value;
use sorft_native::model::chat::ChatTemplate;
use sorft_native::model::config::Family;
use sorft_native::model::tokenizer::Tokenizer;
use sorft_native::model::transformer::Transformer;
use sorft_native::serve::{Model, Server, Settings};
use std::net::SocketAddr;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub fn tokenizer() -> Tokenizer {
    Tokenizer::from_json(bytes::tokenizer_json().to_string().into_bytes()).unwrap()
}

pub fn template() -> ChatTemplate {
    let source =
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";
    ChatTemplate::new(source, &Value::Null).unwrap()
}

pub fn transformer() -> Transformer {
    let mut config = tiny::config(Family::Qwen2);
    config.eos_token_ids = vec![256];
    tiny::model(config, 9)
}

/// A server under way.
pub struct Running {
    pub address: SocketAddr,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    pub fn start(settings: Settings) -> Self {
        let model = Model { name: "tiny".into(), transformer: transformer(), tokenizer: tokenizer(), template: Some(template()) };
        let server = Server::bind(("127.0.0.1", 0), model, settings).unwrap();
        let address = server.address();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let stopped = async { drop(stopped.await) };
        let thread = std::thread::spawn(move || server.run(stopped, &|line| println!("server: {line}")).unwrap());
        Self { address, stop: Some(stop), thread: Some(thread) }
    }

    /// Tells the server to stop, and does not wait.
    pub fn stop(&mut self) {
        drop(self.stop.take());
    }

    /// Waits for a stopped server's end.
    pub fn join(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }

    /// Waits until `good` holds of what /health says.
    pub fn wait_for(&self, good: impl Fn(&Value) -> bool) {
        let start = Instant::now();
        loop {
            let health = client::get(self.address, "/health").json();
            if good(&health) {
                return;
            }
            assert!(start.elapsed() < Duration::from_secs(20), "still {health}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until nothing is under way, and checks that nothing is held.
    pub fn wait_until_idle(&self) {
        self.wait_for(|health| health["requests"] == 0 && health["cached_tokens"] == 0);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.join();
        }
    }
}
