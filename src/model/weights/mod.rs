//! Models on disk: weights from safetensors and GGUF files under Hugging Face's names, with their configuration, tokenizer and chat
//! template; and saving them.
//!
//! Files are mapped into memory and read tensor by tensor. Every count, length and offset of a header is checked against the size of the
//! file before anything is allocated by it, and [`open`] checks that every tensor the configuration asks for is there with its shape, so
//! that a broken file is reported at once and not in the middle of a run.

pub(in crate::model) mod atomic;
mod fill;
mod folder;
pub mod gguf;
pub mod peft;
pub mod safetensors;
mod save;

pub use folder::open_folder;
pub use peft::{AdapterTensor, load_peft, save_peft};
pub use save::{SaveDtype, save_hf, save_hf_sharded};

use crate::model::chat::ChatTemplate;
use crate::model::config::ModelConfig;
use crate::model::hub;
use crate::model::tokenizer::Tokenizer;
use crate::{Error, Result};
use std::path::{Path, PathBuf};

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
    /// What was read of the files need not stay in memory: it is read again where it is wanted again.
    fn release(&self);
}

/// A tensor's name (Hugging Face's, or PEFT's for an adapter's) and shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// The name.
    pub name: String,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    /// A tensor of this name and shape.
    pub fn new(name: impl Into<String>, shape: &[usize]) -> Self {
        Self { name: name.into(), shape: shape.to_vec() }
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// An opened model: everything that `--model` names.
pub struct ModelFiles {
    /// The folder or file.
    pub path: PathBuf,
    /// Its configuration.
    pub config: ModelConfig,
    /// `config.json` as it was read (or as rebuilt from GGUF metadata): what a save writes back.
    pub config_json: serde_json::Value,
    /// `generation_config.json` likewise, where there is one.
    pub generation_json: Option<serde_json::Value>,
    /// `tokenizer_config.json` likewise, where there is one.
    pub tokenizer_config: Option<serde_json::Value>,
    /// Its weights, not yet read.
    pub weights: Box<dyn WeightSource>,
    /// Its tokenizer, where the files have one.
    pub tokenizer: Option<Tokenizer>,
    /// Its chat template, where the files have one.
    pub chat_template: Option<ChatTemplate>,
}

impl ModelFiles {
    /// The tokenizer.
    ///
    /// # Errors
    ///
    /// There is none; a tokenizer in another format is named.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        self.tokenizer.as_ref().ok_or_else(|| {
            let other = ["tokenizer.model", "vocab.json", "tiktoken.model"].into_iter().find(|name| self.path.join(name).is_file());
            match other {
                Some(name) => Error::input(format!("the model has no tokenizer.json, and its {name} is not read"))
                    .at_file(&self.path)
                    .hint("transformers writes one: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"),
                None => Error::input("the model has no tokenizer")
                    .at_file(&self.path)
                    .hint("give \"ids\" instead of text, or add tokenizer.json"),
            }
        })
    }

    /// That every tensor of the configuration is there with its shape, and that the tokenizer gives no id beyond the vocabulary.
    fn check(self) -> Result<Self> {
        for spec in model_tensors(&self.config) {
            check_shape(&spec.name, self.weights.shape(&spec.name), &spec.shape).map_err(|e| e.at_file(&self.path))?;
        }
        if let Some(tokenizer) = &self.tokenizer {
            tokenizer.check_fits(self.config.vocab_size).map_err(|e| e.at_file(&self.path))?;
        }
        Ok(self)
    }
}

/// All tensors of a model, in canonical order: the embedding, block by block, the last norm, and the head where it is not the embedding.
pub fn model_tensors(c: &ModelConfig) -> Vec<TensorSpec> {
    let (d, ffn) = (c.hidden_size, c.intermediate_size);
    let mut out = vec![TensorSpec::new("model.embed_tokens.weight", &[c.vocab_size, d])];
    for layer in 0..c.num_layers {
        let mut add = |name: &str, shape: &[usize]| out.push(TensorSpec::new(format!("model.layers.{layer}.{name}"), shape));
        add("input_layernorm.weight", &[d]);
        for (name, rows) in [("q_proj", c.q_dim()), ("k_proj", c.kv_dim()), ("v_proj", c.kv_dim())] {
            add(&format!("self_attn.{name}.weight"), &[rows, d]);
            if c.qkv_bias {
                add(&format!("self_attn.{name}.bias"), &[rows]);
            }
        }
        if c.qk_norm {
            add("self_attn.q_norm.weight", &[c.head_dim]);
            add("self_attn.k_norm.weight", &[c.head_dim]);
        }
        add("self_attn.o_proj.weight", &[d, c.q_dim()]);
        if c.o_bias {
            add("self_attn.o_proj.bias", &[d]);
        }
        add("post_attention_layernorm.weight", &[d]);
        for (name, rows, cols) in [("gate_proj", ffn, d), ("up_proj", ffn, d), ("down_proj", d, ffn)] {
            add(&format!("mlp.{name}.weight"), &[rows, cols]);
            if c.mlp_bias {
                add(&format!("mlp.{name}.bias"), &[rows]);
            }
        }
    }
    out.push(TensorSpec::new("model.norm.weight", &[d]));
    if !c.tie_word_embeddings {
        out.push(TensorSpec::new("lm_head.weight", &[c.vocab_size, d]));
    }
    out
}

/// Opens `--model`'s value: a Hugging Face folder, a `.gguf` file, or a hub id `owner/name`.
///
/// # Errors
/// Says which file, and what about it, makes the model unusable; see the module's description for what is checked.
pub fn open(spec: &str) -> Result<ModelFiles> {
    open_with(spec, &mut |_| {})
}

/// [`open`], with reports about a download where the model has to be fetched from the hub.
///
/// # Errors
/// As [`open`].
pub fn open_with(spec: &str, progress: &mut dyn FnMut(hub::Progress<'_>)) -> Result<ModelFiles> {
    let path = Path::new(spec);
    if path.is_dir() {
        return open_folder(path);
    }
    if path.is_file() {
        return match path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase).as_deref() {
            Some("gguf") => gguf::open_model(path),
            Some("safetensors" | "json") => Err(Error::input("expected a model's folder or a .gguf file")
                .at_file(path)
                .hint("give the folder that holds config.json and the weights")),
            _ => Err(Error::input("expected a model: a Hugging Face folder, a .gguf file, or a hub id `owner/name`").at_file(path)),
        };
    }
    if hub::is_model_id(spec) {
        return open_folder(&hub::fetch(spec, progress)?);
    }
    Err(Error::input("no such file or folder").at(spec).hint("a model is a Hugging Face folder, a .gguf file, or a hub id `owner/name`"))
}

/// That a tensor is there and has the expected shape.
fn check_shape(name: &str, found: Option<Vec<usize>>, expected: &[usize]) -> Result<()> {
    match found {
        Some(found) if found == expected => Ok(()),
        Some(found) => Err(Error::input(format!("tensor `{name}` has shape {found:?}, expected {expected:?}"))
            .hint("the weights do not belong to this config.json, or the file is damaged")),
        None => Err(Error::input(format!("there is no tensor `{name}` (expected with shape {expected:?})"))
            .hint("the weights do not belong to this config.json, or a file of them is missing")),
    }
}

/// A tensor's number that is no number.
fn non_finite(name: &str, index: usize, value: f32) -> Error {
    Error::input(format!("tensor `{name}` holds {value} at index {index}: expected finite numbers only"))
        .hint("the file is damaged, or training diverged before it was written")
}

/// Maps a file into memory.
fn map_file(path: &Path) -> Result<memmap2::Mmap> {
    let file = std::fs::File::open(path).map_err(|e| Error::io("open", path, e))?;
    let len = file.metadata().map_err(|e| Error::io("read", path, e))?.len();
    if len == 0 {
        return Err(Error::input("the file is empty").at_file(path).hint("download or convert it again"));
    }
    // SAFETY: the mapping is read-only and private to this process; the slices made of it are plain bytes, for which every value is valid.
    // Another process that truncates the file while it is mapped ends this one by a signal (as with any reader that maps its model); the
    // program itself replaces model files only by renaming, which leaves the mapped file as it was.
    let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|e| Error::io("map", path, e))?;
    Ok(map)
}

/// Lets go of a mapped file's pages.
fn release_pages(map: &memmap2::Mmap) {
    // SAFETY: the mapping is of a file and read-only, so its pages come back with the same bytes. It is only a wish.
    #[cfg(target_os = "linux")]
    let _ = unsafe { map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
    #[cfg(not(target_os = "linux"))]
    let _ = map;
}

/// Reads and parses a JSON file; a syntax error names its line.
fn read_json(path: &Path) -> Result<serde_json::Value> {
    let bytes = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
    serde_json::from_slice(&bytes).map_err(|e| {
        let message = format!("expected JSON: {}", crate::error::json_message(&e));
        Error::input(message).at_line(path, e.line().max(1)).hint("the file is damaged, or its download is not complete")
    })
}

/// [`read_json`] of a file that need not be there.
fn read_json_if_there(path: &Path) -> Result<Option<serde_json::Value>> {
    if path.is_file() { read_json(path).map(Some) } else { Ok(None) }
}
