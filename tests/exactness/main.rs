//! What `docs/exactness.md` promises, bit by bit.

mod gradients;
mod sampling;

#[path = "../support/tiny.rs"]
mod tiny;
