//! A teacher's endpoint: a real HTTP server that does as a test says.

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What the server does with a request.
pub enum Act {
    /// An answer: its text and its `finish_reason`.
    Answer(String, &'static str),
    /// A status with headers (each ends in CRLF) and a body.
    Status(u16, &'static str, &'static str),
    /// Says nothing for so long, and closes.
    Silence(Duration),
    /// Closes in the middle of an answer.
    Half,
}

/// A request as it came.
#[derive(Clone)]
pub struct Seen {
    pub at: Instant,
    pub authorization: Option<String>,
    /// The last message's text.
    pub question: String,
    pub body: Value,
}

pub struct Teacher {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Teacher {
    /// `act` decides by the request's number and its question.
    pub fn start(act: impl Fn(usize, &str) -> Act + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let (address, seen) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
        let (act, all) = (Arc::new(act), seen.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (act, all) = (act.clone(), all.clone());
                std::thread::spawn(move || serve(stream.unwrap(), &*act, &all));
            }
        });
        Self { address, seen }
    }

    pub fn url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

/// Reads a request; `None` if the client went away.
fn read(stream: &TcpStream) -> Option<Seen> {
    let mut reader = BufReader::new(stream);
    let (mut line, mut length, mut authorization) = (String::new(), 0, None);
    reader.read_line(&mut line).ok()?;
    assert!(line.starts_with("POST /v1/chat/completions "), "{line}");
    loop {
        line.clear();
        reader.read_line(&mut line).ok()?;
        match line.trim_end().split_once(": ") {
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => length = value.parse().unwrap(),
            Some((name, value)) if name.eq_ignore_ascii_case("authorization") => authorization = Some(value.to_owned()),
            Some(_) => {}
            None => break,
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let body: Value = serde_json::from_slice(&body).unwrap();
    let question = body["messages"][0]["content"].as_str().unwrap().to_owned();
    Some(Seen { at: Instant::now(), authorization, question, body })
}

fn serve(mut stream: TcpStream, act: &dyn Fn(usize, &str) -> Act, all: &Mutex<Vec<Seen>>) {
    let Some(seen) = read(&stream) else { return };
    let question = seen.question.clone();
    let number = {
        let mut all = all.lock().unwrap();
        all.push(seen);
        all.len() - 1
    };
    let mut respond = |status: u16, headers: &str, body: &str, length: usize| {
        let head = format!("HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n");
        // The client may be gone.
        let _ = stream.write_all((head + body).as_bytes());
    };
    match act(number, &question) {
        Act::Answer(text, reason) => {
            let usage = json!({"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110});
            let body = json!({"choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reason}], "usage": usage});
            respond(200, "", &body.to_string(), body.to_string().len());
        }
        Act::Status(status, headers, body) => respond(status, headers, body, body.len()),
        Act::Silence(time) => std::thread::sleep(time),
        Act::Half => respond(200, "", "{\"choices\": [{\"message\"", 500),
    }
}
