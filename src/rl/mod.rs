//! Rollouts, rewards, advantages, objectives, the training loop and its checkpoints.

pub mod advantage;
pub mod checkpoint;
pub mod config;
pub mod objective;
pub mod order;
pub mod run_log;
pub mod schedule;
