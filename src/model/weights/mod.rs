//! Weights from safetensors and GGUF files, under Hugging Face's names; and saving them.

use crate::Result;
use crate::model::chat::ChatTemplate;
use crate::model::config::ModelConfig;
use crate::model::tokenizer::Tokenizer;
use std::path::PathBuf;

/// A store of named tensors. Names are Hugging Face's (`model.layers.0.self_attn.q_proj.weight`), whatever the file calls them.
pub trait WeightSource: Send + Sync {
    /// All names, sorted.
    fn names(&self) -> Vec<String>;
    /// The tensor's shape (outermost dimension first, `[out, in]` for a linear layer), if there is such a tensor.
    fn shape(&self, name: &str) -> Option<Vec<usize>>;
    /// The numbers as f32, row-major; checks that the tensor has `shape` and that every number is finite.
    fn read(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>>;
    /// Whether every number of the tensor is exactly a bf16 (stored as bf16).
    fn is_bf16(&self, name: &str) -> bool;
}

/// An opened model: everything that `--model` names.
pub struct ModelFiles {
    /// The folder or file.
    pub path: PathBuf,
    /// Its configuration.
    pub config: ModelConfig,
    /// `config.json` as it was read (or as rebuilt from GGUF metadata): what a save writes back.
    pub config_json: serde_json::Value,
    /// Its weights, not yet read.
    pub weights: Box<dyn WeightSource>,
    /// Its tokenizer, where the files have one.
    pub tokenizer: Option<Tokenizer>,
    /// Its chat template, where the files have one.
    pub chat_template: Option<ChatTemplate>,
}

/// Opens `--model`'s value: a Hugging Face folder, a `.gguf` file, or a hub id `owner/name`.
pub fn open(_spec: &str) -> Result<ModelFiles> {
    todo!()
}

/// Reads a PEFT adapter folder: its settings and its tensors (name, shape, numbers).
pub fn load_peft(_dir: &std::path::Path) -> Result<(crate::model::lora::LoraConfig, Vec<(String, Vec<usize>, Vec<f32>)>)> {
    todo!()
}
