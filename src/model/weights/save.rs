//! Saving a model as a Hugging Face folder.

use super::{ModelFiles, TensorSpec, atomic, safetensors};
use crate::{Error, Result};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

/// transformers' own size of a shard.
const MAX_SHARD_BYTES: usize = 5_000_000_000;

/// The dtype that weights are saved in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SaveDtype {
    /// The numbers as they are.
    F32,
    /// Rounded to nearest, ties to even.
    Bf16,
}

impl SaveDtype {
    /// Bytes of one number.
    pub(super) fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }

    /// safetensors' name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::Bf16 => "BF16",
        }
    }

    /// PyTorch's name.
    fn torch_name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::Bf16 => "bfloat16",
        }
    }

    /// Replaces `out` by the bytes of `data`; the index of the first number that is not finite as written (a large f32 may round to an
    /// infinite bf16), if there is one.
    pub(super) fn encode(self, data: &[f32], out: &mut Vec<u8>) -> Option<usize> {
        out.clear();
        match self {
            Self::F32 => {
                data.iter().for_each(|x| out.extend_from_slice(&x.to_le_bytes()));
                super::fill::first_non_finite(data)
            }
            Self::Bf16 => {
                let mut finite = true;
                for x in data {
                    let rounded = half::bf16::from_f32(*x);
                    finite &= rounded.is_finite();
                    out.extend_from_slice(&rounded.to_le_bytes());
                }
                if finite { None } else { data.iter().position(|x| !half::bf16::from_f32(*x).is_finite()) }
            }
        }
    }
}

/// Writes a folder that transformers loads: `config.json`, `generation_config.json`, `tokenizer.json`, `tokenizer_config.json` (with the
/// chat template), and `model.safetensors`, in shards with an index above 5 GB.
///
/// `files` gives everything but the numbers; these come from `read`, called once for each of `tensors` in order, one in memory at a time.
/// Weight files that an earlier, differently sharded save left in the folder are removed at the end. The bytes written depend on the
/// arguments alone. Each file is written to a temporary name, fsynced and renamed.
///
/// # Errors
/// If a file cannot be written, `read` fails or gives a number of elements that is not the tensor's, or a number is not finite.
pub fn save_hf(
    dir: &Path,
    files: &ModelFiles,
    tensors: &[TensorSpec],
    dtype: SaveDtype,
    read: &mut dyn FnMut(&str) -> Result<Vec<f32>>,
) -> Result<()> {
    save_sharded(dir, files, tensors, dtype, read, MAX_SHARD_BYTES)
}

/// [`save_hf`] with its own size of a shard (tests cannot write 5 GB).
fn save_sharded(
    dir: &Path,
    files: &ModelFiles,
    tensors: &[TensorSpec],
    dtype: SaveDtype,
    read: &mut dyn FnMut(&str) -> Result<Vec<f32>>,
    max_shard_bytes: usize,
) -> Result<()> {
    fs::create_dir_all(dir).map_err(|e| Error::io("create", dir, e))?;
    let shards = shard(tensors, dtype, max_shard_bytes);
    let mut written = Vec::new();
    for (i, part) in shards.iter().enumerate() {
        let name = match shards.len() {
            1 => "model.safetensors".to_owned(),
            n => format!("model-{:05}-of-{n:05}.safetensors", i + 1),
        };
        safetensors::write(&dir.join(&name), part, dtype, read)?;
        written.push(name);
    }
    if shards.len() > 1 {
        let name = "model.safetensors.index.json";
        atomic::write_json(&dir.join(name), &index(&shards, &written, dtype))?;
        written.push(name.to_owned());
    }
    remove_stale_weights(dir, &written)?;
    save_sidecars(dir, files, dtype)
}

/// Cuts the tensors, in order, into parts of at most `max_bytes` (or of one tensor that is larger).
fn shard(tensors: &[TensorSpec], dtype: SaveDtype, max_bytes: usize) -> Vec<&[TensorSpec]> {
    let mut shards = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (i, spec) in tensors.iter().enumerate() {
        let size = spec.len() * dtype.size();
        if i > start && bytes + size > max_bytes {
            shards.push(&tensors[start..i]);
            (start, bytes) = (i, 0);
        }
        bytes += size;
    }
    shards.push(&tensors[start..]);
    shards
}

/// `model.safetensors.index.json`: which shard holds which tensor, names sorted.
fn index(shards: &[&[TensorSpec]], names: &[String], dtype: SaveDtype) -> Value {
    let mut places: Vec<(&str, &str)> =
        shards.iter().zip(names).flat_map(|(part, file)| part.iter().map(|t| (t.name.as_str(), file.as_str()))).collect();
    places.sort_unstable();
    let total: usize = shards.iter().flat_map(|s| s.iter()).map(|t| t.len() * dtype.size()).sum();
    let map: serde_json::Map<String, Value> = places.into_iter().map(|(name, file)| (name.to_owned(), json!(file))).collect();
    json!({"metadata": {"total_size": total}, "weight_map": map})
}

/// A loader prefers `model.safetensors` to an index, so the files of an earlier save with other shards must not stay.
fn remove_stale_weights(dir: &Path, written: &[String]) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(|e| Error::io("read", dir, e))? {
        let entry = entry.map_err(|e| Error::io("read", dir, e))?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let weights = name == "model.safetensors"
            || name == "model.safetensors.index.json"
            || (name.starts_with("model-") && name.contains("-of-") && name.ends_with(".safetensors"));
        if weights && !written.iter().any(|w| w == name) {
            fs::remove_file(entry.path()).map_err(|e| Error::io("remove", &entry.path(), e))?;
        }
    }
    Ok(())
}

/// Everything beside the weights.
fn save_sidecars(dir: &Path, files: &ModelFiles, dtype: SaveDtype) -> Result<()> {
    let mut config = files.config_json.clone();
    if let Some(map) = config.as_object_mut() {
        // transformers 5 calls it `dtype`, transformers 4 `torch_dtype`; the second is read by both.
        let key = if map.contains_key("dtype") { "dtype" } else { "torch_dtype" };
        map.insert(key.to_owned(), json!(dtype.torch_name()));
    }
    atomic::write_json(&dir.join("config.json"), &config)?;
    if let Some(generation) = &files.generation_json {
        atomic::write_json(&dir.join("generation_config.json"), generation)?;
    }
    if let Some(tokenizer) = &files.tokenizer {
        atomic::write_bytes(&dir.join("tokenizer.json"), tokenizer.to_json())?;
    }
    let mut tokenizer_config = files.tokenizer_config.clone();
    if let Some(template) = &files.chat_template
        && let Some(map) = tokenizer_config.get_or_insert_with(|| json!({})).as_object_mut()
    {
        if map.get("chat_template").is_some_and(Value::is_array) {
            // Several named templates: they stay, and the one in use goes where transformers looks first.
            atomic::write_bytes(&dir.join("chat_template.jinja"), template.source().as_bytes())?;
        } else {
            map.insert("chat_template".to_owned(), json!(template.source()));
        }
    }
    if let Some(tokenizer_config) = &tokenizer_config {
        atomic::write_json(&dir.join("tokenizer_config.json"), tokenizer_config)?;
    }
    Ok(())
}
