//! The transformer and all that surrounds it: configuration, weights, tokenizer, chat template, KV cache, generation, LoRA, optimizer.

mod block;
mod build;
pub mod chat;
pub mod config;
mod device;
pub mod dialogue;
pub mod flops;
pub mod generate;
mod gradients;
pub mod hub;
mod kv_cache;
mod linear;
pub mod lora;
mod mixed;
pub mod optimizer;
mod params;
mod rope;
mod saved;
pub mod tokenizer;
pub mod transformer;
pub mod value_head;
pub mod weights;

pub use config::ModelConfig;
pub(crate) use device::RECORDED_ROWS;
pub use transformer::{Gradients, TokenStats, Transformer};
pub use value_head::ValueHead;
