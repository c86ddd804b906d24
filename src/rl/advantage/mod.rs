//! Advantages: how much better an answer, or a token of it, was than expected. One small function each, f64 throughout.
//!
//! Over the rewards of one prompt's answers: [`group_normalised`] (GRPO, Dr. GRPO), [`leave_one_out`] (RLOO), [`group_baseline`]
//! (REINFORCE++ with a baseline). Over the token rewards of one answer: [`to_go`] (the return), [`gae()`] (with a critic's values). Over all
//! tokens of a batch: [`whiten()`]. There is no padding, so there are no masks: what the frameworks mask out is not there.

mod gae;
mod group;
mod reinforce;
mod rloo;
mod token_rewards;
mod whiten;

pub use gae::{Gae, gae};
pub use group::{Scale, group_normalised};
pub use reinforce::{group_baseline, to_go};
pub use rloo::leave_one_out;
pub use token_rewards::token_rewards;
pub use whiten::{Whitening, whiten, whiten_within};

/// Mean and population standard deviation, for the log; 0 for nothing.
pub fn mean_and_std(values: &[f64]) -> (f64, f64) {
    if values.is_empty() {
        return (0.0, 0.0);
    }
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
    (mean, variance.sqrt())
}
