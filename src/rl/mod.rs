//! Rollouts, rewards, advantages, objectives, the training loop and its checkpoints.
