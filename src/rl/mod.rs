//! Rollouts, rewards, advantages, objectives, the training loop and its checkpoints.
//!
//! * [`config`]: a run's settings; [`dataset`]: what it trains on, as tokens; [`order`]: in which order.
//! * [`reward`]: subtasks' questions and how answers are judged; [`rollout`]: groups of answers; [`advantage`], [`objective`]: pure maths.
//! * [`critic`]: PPO's values; [`experience`]: a batch's advantages and returns; [`kl_control`]: the adaptive weight of the KL penalty.
//! * [`trainer`]: the loop over stages and steps; [`schedule`]: the learning rate; [`evaluate`]: held-out questions.
//! * [`guard`], [`watch`]: what goes wrong in a run, named; [`verify`]: a run's records recomputed.
//! * [`memory`]: what a run takes; [`checkpoint`], [`run_log`], [`report`]: what it leaves behind.

pub mod advantage;
pub mod checkpoint;
pub mod config;
pub mod critic;
pub mod dataset;
#[cfg(feature = "distill")]
pub mod distill;
pub mod evaluate;
pub mod experience;
pub mod guard;
pub mod kl_control;
pub mod memory;
pub mod objective;
pub mod order;
pub mod report;
pub mod reward;
pub mod rollout;
pub mod run_log;
pub mod schedule;
pub mod trainer;
pub mod verify;
pub mod watch;
