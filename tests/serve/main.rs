//! The server on a tiny model, asked over real sockets.

mod answers;
mod client;
mod limits;
mod server;

#[path = "../support/bytes.rs"]
mod bytes;
#[path = "../support/tiny.rs"]
#[allow(dead_code)] // prompts here are made of texts
mod tiny;
