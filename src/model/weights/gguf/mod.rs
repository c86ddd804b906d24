//! GGUF files (llama.cpp's format): weights expanded to f32 under Hugging Face's names, with the configuration, the tokenizer and the
//! chat template rebuilt from the metadata, so that such a file can be trained and saved like any Hugging Face folder.

mod config;
mod dequant;
mod reader;
mod vocab;

pub use dequant::GgmlType;

use super::fill::decode_rows;
use super::{ModelFiles, WeightSource, check_shape, map_file, non_finite, release_pages};
use crate::model::chat::ChatTemplate;
use crate::model::config::{Family, ModelConfig};
use crate::model::tokenizer::Tokenizer;
use crate::{Error, Result};
use memmap2::Mmap;
use reader::{Header, MetaValue, Reader, TensorInfo};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// An opened GGUF file: its metadata and the places of its tensors.
pub struct Gguf {
    path: PathBuf,
    map: Mmap,
    header: Header,
}

impl Gguf {
    /// Opens a file and checks its header.
    ///
    /// # Errors
    /// If the header does not describe the file, or a tensor's type is not supported.
    pub fn open(path: &Path) -> Result<Self> {
        let map = map_file(path)?;
        let header = reader::parse(&map).map_err(|e| e.at_file(path))?;
        Ok(Self { path: path.to_owned(), map, header })
    }

    /// All tensors' names, sorted, as the file has them.
    pub fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.header.tensors.keys().map(String::as_str)
    }

    /// The type of a tensor.
    pub fn tensor_type(&self, name: &str) -> Option<GgmlType> {
        self.header.tensors.get(name).map(|t| t.ty)
    }

    /// A whole number of the metadata, where the key is there.
    ///
    /// # Errors
    /// If the value is of another kind, or negative.
    pub fn uint(&self, key: &str) -> Result<Option<u64>> {
        match self.header.metadata.get(key) {
            None => Ok(None),
            Some(MetaValue::Int(n)) if u64::try_from(*n).is_ok() => Ok(Some(*n as u64)),
            Some(other) => Err(self.wrong(key, "a whole number", other)),
        }
    }

    /// A real number of the metadata; an f32 is given with its shortest digits (1e-6, not 9.99999997e-7), as the model's makers wrote it.
    ///
    /// # Errors
    /// If the value is of another kind.
    pub fn real(&self, key: &str) -> Result<Option<f64>> {
        match self.header.metadata.get(key) {
            None => Ok(None),
            Some(MetaValue::F32(x)) => Ok(Some(x.to_string().parse().unwrap_or(f64::from(*x)))),
            Some(MetaValue::F64(x)) => Ok(Some(*x)),
            Some(MetaValue::Int(n)) => Ok(Some(*n as f64)),
            Some(other) => Err(self.wrong(key, "a number", other)),
        }
    }

    /// A truth value of the metadata.
    ///
    /// # Errors
    /// If the value is of another kind.
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        match self.header.metadata.get(key) {
            None => Ok(None),
            Some(MetaValue::Bool(b)) => Ok(Some(*b)),
            Some(other) => Err(self.wrong(key, "a truth value", other)),
        }
    }

    /// A text of the metadata.
    ///
    /// # Errors
    /// If the value is of another kind.
    pub fn str(&self, key: &str) -> Result<Option<&str>> {
        match self.header.metadata.get(key) {
            None => Ok(None),
            Some(MetaValue::Str(s)) => Ok(Some(s)),
            Some(other) => Err(self.wrong(key, "a text", other)),
        }
    }

    /// A list of texts of the metadata.
    ///
    /// # Errors
    /// If the value is of another kind, or a text is not UTF-8.
    pub fn strings(&self, key: &str) -> Result<Option<Vec<&str>>> {
        let Some(value) = self.header.metadata.get(key) else { return Ok(None) };
        let MetaValue::Array(8, n, bytes) = value else { return Err(self.wrong(key, "a list of texts", value)) };
        let mut r = Reader { file: &self.map[..bytes.end], at: bytes.start };
        (0..*n).map(|_| r.string()).collect::<Result<Vec<_>>>().map(Some).map_err(|e| e.at(key).at_file(&self.path))
    }

    /// A list of numbers of the metadata.
    ///
    /// # Errors
    /// If the value is of another kind.
    pub fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>> {
        let Some(value) = self.header.metadata.get(key) else { return Ok(None) };
        let MetaValue::Array(ty @ (0..=6 | 10..=12), n, bytes) = value else { return Err(self.wrong(key, "a list of numbers", value)) };
        let mut r = Reader { file: &self.map[..bytes.end], at: bytes.start };
        let number = |v| match v {
            MetaValue::Int(n) => n as f64,
            MetaValue::F32(x) => f64::from(x),
            MetaValue::F64(x) => x,
            _ => f64::NAN,
        };
        (0..*n).map(|_| r.scalar(*ty).map(number)).collect::<Result<Vec<_>>>().map(Some).map_err(|e| e.at(key).at_file(&self.path))
    }

    fn wrong(&self, key: &str, expected: &str, found: &MetaValue) -> Error {
        let found = match found {
            MetaValue::Array(ty, n, _) => format!("a list of {n} values of type {ty}"),
            other => format!("{other:?}"),
        };
        Error::input(format!("expected {expected}, found {found}")).at(key).at_file(&self.path)
    }

    /// The numbers of a tensor under the file's own name. `source_row` says which of its rows comes in a place.
    fn read_tensor(&self, name: &str, info: &TensorInfo, source_row: impl Fn(usize) -> usize + Sync) -> Result<Vec<f32>> {
        let cols = info.shape.last().copied().unwrap_or(1);
        let row_bytes = cols / info.ty.block_len() * info.ty.block_bytes();
        let bytes = &self.map[info.bytes.clone()];
        decode_rows(info.shape.iter().product(), cols, |row, out| info.ty.expand(&bytes[source_row(row) * row_bytes..][..row_bytes], out))
            .map_err(|(index, value)| non_finite(name, index, value))
    }
}

/// Opens a `.gguf` file as a model.
pub(super) fn open_model(path: &Path) -> Result<ModelFiles> {
    let gguf = Gguf::open(path)?;
    if gguf.uint("split.count")?.is_some_and(|n| n > 1) {
        return Err(Error::input("the model is split over several GGUF files, which is not supported")
            .at_file(path)
            .hint("merge them with llama.cpp's `llama-gguf-split --merge`"));
    }
    let at = |e: Error| e.at_file(path);
    let (config_json, generation_json) = config::rebuild(&gguf)?;
    let mut config = ModelConfig::from_hf(&config_json).map_err(at)?;
    config.add_generation_config(&generation_json, &config_json).map_err(at)?;
    let tokenizer = vocab::rebuild(&gguf)?.map(Tokenizer::from_json).transpose().map_err(at)?;
    let tokenizer_config = tokenizer.is_some().then(|| vocab::tokenizer_config(&gguf, &config)).transpose()?;
    let chat_template = match (gguf.str("tokenizer.chat_template")?, &tokenizer_config) {
        (Some(source), Some(settings)) => Some(ChatTemplate::new(source, settings).map_err(|e| at(e.at("tokenizer.chat_template")))?),
        _ => None,
    };
    let weights = Box::new(GgufWeights::new(gguf, &config)?);
    ModelFiles {
        path: path.to_owned(),
        config,
        config_json,
        generation_json: Some(generation_json),
        tokenizer_config,
        weights,
        tokenizer,
        chat_template,
    }
    .check()
}

/// Which rows of a tensor were exchanged by the converter.
#[derive(Clone, Copy)]
enum RowOrder {
    AsIs,
    /// For architecture `llama`, the rows of q and k are interleaved inside each of so many heads (llama.cpp rotates pairs of neighbours,
    /// Hugging Face pairs of halves).
    Interleaved {
        heads: usize,
    },
}

/// A model's weights in a GGUF file, under Hugging Face's names.
struct GgufWeights {
    gguf: Gguf,
    /// From Hugging Face's name to the file's, and what was done to the rows.
    names: BTreeMap<String, (String, RowOrder)>,
}

impl GgufWeights {
    /// # Errors
    /// If the file holds a tensor that the architecture does not have: to leave it out would change the results.
    fn new(gguf: Gguf, config: &ModelConfig) -> Result<Self> {
        let mut names = BTreeMap::new();
        for name in gguf.tensor_names().filter(|n| *n != ROPE_FREQS) {
            let hf = hf_name(name).ok_or_else(|| {
                Error::input(format!("tensor `{name}` is not part of a {} model as this program knows it", config.family.model_type()))
                    .at_file(&gguf.path)
            })?;
            let order = match name.rsplit('.').nth(1) {
                Some("attn_q") if config.family == Family::Llama => RowOrder::Interleaved { heads: config.num_heads },
                Some("attn_k") if config.family == Family::Llama => RowOrder::Interleaved { heads: config.num_kv_heads },
                _ => RowOrder::AsIs,
            };
            names.insert(hf, (name.to_owned(), order));
        }
        Ok(Self { gguf, names })
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.names.get(name).and_then(|(own, _)| self.gguf.header.tensors.get(own))
    }
}

impl WeightSource for GgufWeights {
    fn names(&self) -> Vec<String> {
        self.names.keys().cloned().collect()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.info(name).map(|t| t.shape.clone())
    }

    fn read(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let read = || {
            let info = self.info(name);
            check_shape(name, info.map(|t| t.shape.clone()), shape)?;
            let (Some(info), Some((_, order))) = (info, self.names.get(name)) else { return Ok(Vec::new()) };
            match *order {
                RowOrder::AsIs => self.gguf.read_tensor(name, info, |row| row),
                RowOrder::Interleaved { heads } => {
                    let rows = shape.first().copied().unwrap_or(1);
                    if rows % (2 * heads) != 0 {
                        return Err(Error::input(format!("tensor `{name}`: {rows} rows cannot be cut into {heads} heads")));
                    }
                    if shape.len() == 1 {
                        let stored = self.gguf.read_tensor(name, info, |row| row)?;
                        return Ok((0..rows).map(|r| stored[interleaved_row(r, rows / heads)]).collect());
                    }
                    self.gguf.read_tensor(name, info, |r| interleaved_row(r, rows / heads))
                }
            }
        };
        read().map_err(|e| e.at_file(&self.gguf.path))
    }

    fn is_bf16(&self, name: &str) -> bool {
        self.info(name).is_some_and(|t| t.ty == GgmlType::Bf16)
    }

    fn release(&self) {
        release_pages(&self.gguf.map);
    }
}

/// Where row `row` of Hugging Face's order lies when the halves of each head are interleaved.
fn interleaved_row(row: usize, head_dim: usize) -> usize {
    let (head, i) = (row / head_dim, row % head_dim);
    let half = head_dim / 2;
    head * head_dim + (i % half) * 2 + i / half
}

/// The tensor that holds llama3's rotary scaling: a divisor for each frequency.
const ROPE_FREQS: &str = "rope_freqs.weight";

/// Hugging Face's name of a tensor.
fn hf_name(name: &str) -> Option<String> {
    match name {
        "token_embd.weight" => return Some("model.embed_tokens.weight".into()),
        "output_norm.weight" => return Some("model.norm.weight".into()),
        "output.weight" => return Some("lm_head.weight".into()),
        _ => {}
    }
    let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    let (part, kind) = rest.split_once('.')?;
    // The number as we would write it: `blk.007.` must not stand for layer 7 beside `blk.7.`.
    if layer.parse::<usize>().ok()?.to_string() != layer || !matches!(kind, "weight" | "bias") {
        return None;
    }
    let part = match part {
        "attn_norm" => "input_layernorm",
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "attn_q_norm" => "self_attn.q_norm",
        "attn_k_norm" => "self_attn.k_norm",
        "ffn_norm" => "post_attention_layernorm",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        _ => return None,
    };
    Some(format!("model.layers.{layer}.{part}.{kind}"))
}

/// A JSON object without the entries that are null.
fn object_without_nulls(mut value: Value) -> Value {
    if let Some(map) = value.as_object_mut() {
        map.retain(|_, v| !v.is_null());
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The converter's own permutation, written down as it is there (reshape to heads x 2 x half, swap the last two), then undone.
    #[test]
    fn the_converters_row_order_is_undone() {
        let (heads, head_dim) = (3, 8);
        let half = head_dim / 2;
        let mut stored = vec![usize::MAX; heads * head_dim];
        for h in 0..heads {
            for which in 0..2 {
                for j in 0..half {
                    stored[h * head_dim + j * 2 + which] = h * head_dim + which * half + j;
                }
            }
        }
        let undone: Vec<_> = (0..heads * head_dim).map(|r| stored[interleaved_row(r, head_dim)]).collect();
        assert_eq!(undone, (0..heads * head_dim).collect::<Vec<_>>());
    }

    #[test]
    fn names_are_hugging_faces() {
        assert_eq!(hf_name("blk.12.attn_q.bias").as_deref(), Some("model.layers.12.self_attn.q_proj.bias"));
        assert_eq!(hf_name("blk.0.ffn_norm.weight").as_deref(), Some("model.layers.0.post_attention_layernorm.weight"));
        for other in ["blk.0.attn_sinks.weight", "blk.01.attn_q.weight", "blk.x.attn_q.weight", "rope_freqs.weight", "blk.0.attn_q.scale"] {
            assert_eq!(hf_name(other), None, "{other}");
        }
    }
}
