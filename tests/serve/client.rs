//! A small HTTP client: one request a connection.

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

/// A response.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }

    /// The data of server-sent events.
    pub fn events(&self) -> Vec<&str> {
        self.body.split("\n\n").filter_map(|e| e.strip_prefix("data: ")).collect()
    }
}

/// Sends a request and leaves the connection open for its answer.
pub fn send(address: SocketAddr, method: &str, path: &str, headers: &str, body: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    let head = format!("{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n", body.len());
    stream.write_all(head.as_bytes()).unwrap();
    // The server may have answered, and closed, before it read all of a body that is too large.
    let _ = stream.write_all(body);
    stream
}

/// Reads what is answered.
pub fn receive(stream: TcpStream) -> Response {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    let status = line.split(' ').nth(1).unwrap_or_else(|| panic!("no status: {line:?}")).parse().unwrap();
    let mut headers = Vec::new();
    loop {
        line.clear();
        reader.read_line(&mut line).unwrap();
        match line.trim_end().split_once(": ") {
            Some((name, value)) => headers.push((name.to_ascii_lowercase(), value.to_owned())),
            None => break,
        }
    }
    let mut body = Vec::new();
    if headers.iter().any(|(n, v)| n == "transfer-encoding" && v == "chunked") {
        loop {
            line.clear();
            reader.read_line(&mut line).unwrap();
            let size = usize::from_str_radix(line.trim_end(), 16).unwrap();
            let mut chunk = vec![0; size + 2];
            reader.read_exact(&mut chunk).unwrap();
            if size == 0 {
                break;
            }
            body.extend_from_slice(&chunk[..size]);
        }
    } else {
        reader.read_to_end(&mut body).unwrap();
    }
    Response { status, headers, body: String::from_utf8(body).unwrap() }
}

pub fn get(address: SocketAddr, path: &str) -> Response {
    receive(send(address, "GET", path, "", b""))
}

pub const JSON: &str = "Content-Type: application/json\r\n";

pub fn post(address: SocketAddr, path: &str, body: &Value) -> Response {
    receive(send(address, "POST", path, JSON, body.to_string().as_bytes()))
}

/// A body of a chat completion with more fields.
pub fn chat(text: &str, more: Value) -> Value {
    let mut body = json!({"model": "tiny", "messages": [{"role": "user", "content": text}]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}
