//! What `docs/exactness.md` promises, bit by bit.

mod gradients;

#[path = "../support/tiny.rs"]
mod tiny;
