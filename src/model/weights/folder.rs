//! Opening a Hugging Face folder.

use super::safetensors::Safetensors;
use super::{ModelFiles, WeightSource, read_json, read_json_if_there};
use crate::model::chat::ChatTemplate;
use crate::model::config::ModelConfig;
use crate::model::tokenizer::Tokenizer;
use crate::{Error, Result};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

/// Opens a Hugging Face folder: `config.json`, `model.safetensors` or its index and shards, and, where they are there,
/// `generation_config.json`, `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json` and `chat_template.jinja`.
///
/// # Errors
/// If a file is missing or broken, or they do not belong together.
pub fn open_folder(dir: &Path) -> Result<ModelFiles> {
    let config_path = dir.join("config.json");
    if !config_path.is_file() {
        let hint = match files_ending(dir, ".gguf").first() {
            Some(name) => format!("for a GGUF model give the file itself: {}", dir.join(name).display()),
            None => "a model's folder has config.json beside its weights; an adapter's folder is given with --adapter".to_owned(),
        };
        return Err(Error::input("there is no config.json in this folder").at_file(dir).hint(hint));
    }
    let mut config_json = read_json(&config_path)?;
    let mut config = ModelConfig::from_hf(&config_json).map_err(|e| e.at_file(&config_path))?;
    let generation_path = dir.join("generation_config.json");
    let generation_json = read_json_if_there(&generation_path)?;
    if let Some(generation) = &generation_json {
        config.add_generation_config(generation, &config_json).map_err(|e| e.at_file(&generation_path))?;
    }
    let tokenizer_path = dir.join("tokenizer.json");
    let tokenizer = if tokenizer_path.is_file() {
        let bytes = fs::read(&tokenizer_path).map_err(|e| Error::io("read", &tokenizer_path, e))?;
        Some(Tokenizer::from_json(bytes).map_err(|e| e.at_file(&tokenizer_path))?)
    } else {
        None
    };
    let tokenizer_config = tokenizer_config(dir)?;
    let chat_template = chat_template(dir, tokenizer_config.as_ref())?;
    let weights = open_weights(dir)?;
    if config.tie_word_embeddings && has_own_head(&config, &*weights)? {
        config.tie_word_embeddings = false;
        if let Some(map) = config_json.as_object_mut() {
            map.insert("tie_word_embeddings".to_owned(), Value::from(false));
        }
    }
    ModelFiles { path: dir.to_owned(), config, config_json, generation_json, tokenizer_config, weights, tokenizer, chat_template }.check()
}

/// Whether a model that says that its head is its embedding has a head with other numbers: transformers 5 does not tie the two then.
fn has_own_head(config: &ModelConfig, weights: &dyn WeightSource) -> Result<bool> {
    const EMBEDDING: &str = "model.embed_tokens.weight";
    const HEAD: &str = "lm_head.weight";
    let shape = [config.vocab_size, config.hidden_size];
    if weights.shape(HEAD).is_none_or(|found| found != shape) || weights.shape(EMBEDDING).is_none_or(|found| found != shape) {
        return Ok(false);
    }
    Ok(weights.read(HEAD, &shape)? != weights.read(EMBEDDING, &shape)?)
}

/// The weights, in transformers' order of preference: one file before an index.
fn open_weights(dir: &Path) -> Result<Box<dyn WeightSource>> {
    let single = dir.join("model.safetensors");
    if single.is_file() {
        return Ok(Box::new(Safetensors::open(&single)?));
    }
    let index = dir.join("model.safetensors.index.json");
    if index.is_file() {
        return Ok(Box::new(Safetensors::open_index(&index)?));
    }
    let shards = files_ending(dir, ".safetensors");
    let hint = if !shards.is_empty() {
        "the index of the shards, model.safetensors.index.json, is missing: download it into the same folder"
    } else if !files_ending(dir, ".bin").is_empty() {
        "weights in PyTorch's .bin format are not read: convert them to safetensors (save_pretrained of transformers does)"
    } else {
        "download model.safetensors (or model.safetensors.index.json and the shards) into the same folder"
    };
    Err(Error::input("there is neither model.safetensors nor model.safetensors.index.json in this folder").at_file(dir).hint(hint))
}

/// `tokenizer_config.json`, completed by what older repositories keep in `special_tokens_map.json`.
fn tokenizer_config(dir: &Path) -> Result<Option<Value>> {
    let mut settings = read_json_if_there(&dir.join("tokenizer_config.json"))?;
    let Some(tokens) = read_json_if_there(&dir.join("special_tokens_map.json"))? else { return Ok(settings) };
    if let (Some(tokens), Some(map)) = (tokens.as_object(), settings.get_or_insert_with(|| json!({})).as_object_mut()) {
        for (role, token) in tokens {
            if map.get(role).is_none_or(Value::is_null) {
                map.insert(role.clone(), token.clone());
            }
        }
    }
    Ok(settings)
}

/// The template in `chat_template.jinja`, or else the one in `tokenizer_config.json`.
fn chat_template(dir: &Path, settings: Option<&Value>) -> Result<Option<ChatTemplate>> {
    let none = json!({});
    let settings = settings.unwrap_or(&none);
    let path = dir.join("chat_template.jinja");
    if path.is_file() {
        let source = fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))?;
        return ChatTemplate::new(&source, settings).map(Some).map_err(|e| e.at_file(&path));
    }
    let path = dir.join("tokenizer_config.json");
    match ChatTemplate::named_source(settings).map_err(|e| e.at_file(&path))? {
        Some(source) => ChatTemplate::new(source, settings).map(Some).map_err(|e| e.at("chat_template").at_file(&path)),
        None => Ok(None),
    }
}

/// Names of the files in a folder that end so, sorted.
fn files_ending(dir: &Path, end: &str) -> Vec<String> {
    let names = fs::read_dir(dir).into_iter().flatten().flatten().filter_map(|e| e.file_name().into_string().ok());
    let mut names: Vec<_> = names.filter(|n| n.ends_with(end)).collect();
    names.sort_unstable();
    names
}
