//! What `docs/exactness.md` promises, bit by bit.

mod critic;
mod gradients;
mod sampling;
mod shared_prefix;

#[path = "../support/tiny.rs"]
mod tiny;
