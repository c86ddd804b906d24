//! Learning: objectives against reference numbers, the training loop on tiny models, resuming, configuration.

mod best;
mod command;
mod configuration;
mod objectives;
mod ppo;
mod prompts;
mod reference;
mod support;
mod training;

#[path = "../support/tiny.rs"]
mod tiny;
