//! `sorft-native`: a training stack, from scratch, that makes a code model better at resolving issues from the history of real
//! repositories. It implements SoRFT (subtask-oriented reinforced fine-tuning) and SWE-RL's GRPO on a transformer of its own.
//!
//! The rooms, from the ground up (each imports only from those before it; `docs/architecture.md` draws the house):
//!
//! * [`error`]: the one error type.
//! * [`ceiling`]: a limit on the memory of one call.
//! * [`page`]: pages of HTML with charts.
//! * [`tensor`]: numbers and devices: tensors, the execution plan of a batch, and the ops, forward and backward.
//! * [`data`]: tasks, patches, prompts, answers and how well they hit. Knows nothing of tensors.
//! * [`model`]: the transformer, its weights and tokenizer, the KV cache, generation, LoRA and the optimizer.
//! * [`rl`]: rollouts, rewards, advantages, objectives, the training loop and its checkpoints.
//! * `serve`: an HTTP server that answers as OpenAI's does (feature `serve`).
//! * [`agentless`]: ranking candidate patches, confined commands, the files of Agentless and SWE-bench's harness.
//! * [`cli`]: one file a subcommand.
#![warn(missing_docs)]
#![deny(unsafe_op_in_unsafe_fn)]

pub mod agentless;
pub mod ceiling;
pub mod cli;
mod columns;
pub mod data;
pub mod error;
pub mod model;
pub mod page;
pub mod rl;
#[cfg(feature = "serve")]
pub mod serve;
pub mod tensor;

pub use error::{Error, Result};
