//! The server on a tiny model, asked over real sockets.

mod answers;
mod client;
mod limits;
mod server;

#[path = "../support/tiny.rs"]
mod tiny;
