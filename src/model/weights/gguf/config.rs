//! `config.json` and `generation_config.json` rebuilt from GGUF metadata.

use super::{Gguf, ROPE_FREQS, object_without_nulls};
use crate::model::config::Family;
use crate::{Error, Result};
use serde_json::{Value, json};

/// The two files, as transformers would have them.
///
/// # Errors
/// If the architecture is not supported, a key is missing or of the wrong kind, or a setting that changes results has no counterpart.
pub(super) fn rebuild(gguf: &Gguf) -> Result<(Value, Value)> {
    let name = gguf.str("general.architecture")?.unwrap_or("unknown");
    let family = Family::ALL.into_iter().find(|f| f.model_type() == name).ok_or_else(|| {
        let known: Vec<_> = Family::ALL.iter().map(|f| f.model_type()).collect();
        Error::input(format!("architecture `{name}` is not supported"))
            .at("general.architecture")
            .at_file(&gguf.path)
            .hint(format!("the supported architectures are {}", known.join(", ")))
    })?;
    let keys = Keys { gguf, arch: name };
    refuse_unsupported(&keys)?;
    let config = model_config(&keys, family)?;
    let mut eos = Vec::new();
    for key in ["eos", "eot", "eom"] {
        eos.extend(gguf.uint(&format!("tokenizer.ggml.{key}_token_id"))?.filter(|id| !eos.contains(id)));
    }
    for id in end_tokens_by_name(gguf)? {
        if !eos.contains(&id) {
            eos.push(id);
        }
    }
    let generation = object_without_nulls(json!({
        "bos_token_id": gguf.uint("tokenizer.ggml.bos_token_id")?,
        "eos_token_id": if eos.is_empty() { Value::Null } else { json!(eos) },
        "pad_token_id": gguf.uint("tokenizer.ggml.padding_token_id")?,
    }));
    Ok((config, generation))
}

/// Metadata under the architecture's prefix.
struct Keys<'a> {
    gguf: &'a Gguf,
    arch: &'a str,
}

impl Keys<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.arch)
    }

    fn uint(&self, name: &str) -> Result<Option<u64>> {
        self.gguf.uint(&self.key(name))
    }

    fn real(&self, name: &str) -> Result<Option<f64>> {
        self.gguf.real(&self.key(name))
    }

    fn needed(&self, name: &str) -> Result<u64> {
        self.uint(name)?.ok_or_else(|| Error::input("the key is missing").at(self.key(name)).at_file(&self.gguf.path))
    }

    fn refuse(&self, name: &str, message: impl Into<String>) -> Error {
        Error::input(message).at(self.key(name)).at_file(&self.gguf.path)
    }
}

fn refuse_unsupported(keys: &Keys<'_>) -> Result<()> {
    if keys.uint("expert_count")?.is_some_and(|n| n > 0) {
        return Err(keys.refuse("expert_count", "mixture-of-experts models are not supported"));
    }
    let context = keys.needed("context_length")?;
    if keys.uint("attention.sliding_window")?.is_some_and(|w| w > 0 && w < context) {
        return Err(keys.refuse("attention.sliding_window", "sliding-window attention is not supported"));
    }
    Ok(())
}

fn model_config(keys: &Keys<'_>, family: Family) -> Result<Value> {
    let gguf = keys.gguf;
    let (hidden, heads) = (keys.needed("embedding_length")?, keys.needed("attention.head_count")?);
    let head_dim = match keys.uint("attention.key_length")? {
        Some(n) => n,
        None if heads > 0 && hidden.is_multiple_of(heads) => hidden / heads,
        None => return Err(keys.refuse("attention.head_count", format!("{heads} heads do not divide embedding_length {hidden}"))),
    };
    for name in ["attention.value_length", "rope.dimension_count"] {
        if let Some(n) = keys.uint(name)?.filter(|n| *n != head_dim) {
            return Err(keys.refuse(name, format!("expected the head size {head_dim}, found {n}")));
        }
    }
    let vocab = gguf.header.tensors.get("token_embd.weight").and_then(|t| t.shape.first()).ok_or_else(|| {
        Error::input("there is no tensor `token_embd.weight`")
            .at_file(&gguf.path)
            .hint("the file holds no language model, or only a part of one")
    })?;
    let has = |name: &str| gguf.header.tensors.contains_key(name);
    Ok(object_without_nulls(json!({
        "architectures": [family.architecture()],
        "model_type": family.model_type(),
        // Llama's `attention_bias` means q, k, v and o; a file with only some of them is told by the check of all tensors.
        "attention_bias": if family == Family::Qwen2 { Value::Null } else { json!(has("blk.0.attn_q.bias") || has("blk.0.attn_output.bias")) },
        "attention_dropout": 0.0,
        "bos_token_id": gguf.uint("tokenizer.ggml.bos_token_id")?,
        "eos_token_id": gguf.uint("tokenizer.ggml.eos_token_id")?,
        "pad_token_id": gguf.uint("tokenizer.ggml.padding_token_id")?,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": keys.needed("feed_forward_length")?,
        "max_position_embeddings": keys.needed("context_length")?,
        "mlp_bias": if family == Family::Llama { json!(has("blk.0.ffn_gate.bias")) } else { Value::Null },
        "num_attention_heads": heads,
        "num_hidden_layers": keys.needed("block_count")?,
        "num_key_value_heads": keys.uint("attention.head_count_kv")?.unwrap_or(heads),
        "rms_norm_eps": keys.real("attention.layer_norm_rms_epsilon")?
            .ok_or_else(|| keys.refuse("attention.layer_norm_rms_epsilon", "the key is missing"))?,
        "rope_theta": keys.real("rope.freq_base")?.unwrap_or(10_000.0),
        "rope_scaling": rope_scaling(keys, head_dim)?,
        "tie_word_embeddings": !has("output.weight"),
        "use_cache": true,
        "use_sliding_window": if family == Family::Llama { Value::Null } else { json!(false) },
        "vocab_size": vocab,
    })))
}

/// Rotary scaling: by metadata (`linear`), or by the tensor into which converters bake llama3's.
fn rope_scaling(keys: &Keys<'_>, head_dim: u64) -> Result<Value> {
    let kind = keys.gguf.str(&keys.key("rope.scaling.type"))?.unwrap_or("none");
    let factor = match keys.real("rope.scaling.factor")? {
        Some(f) => f,
        None => keys.real("rope.scale_linear")?.unwrap_or(1.0),
    };
    let linear = match kind {
        "none" => false,
        "linear" => true,
        other => return Err(keys.refuse("rope.scaling.type", format!("rotary scaling `{other}` is not supported"))),
    };
    if !keys.gguf.header.tensors.contains_key(ROPE_FREQS) {
        return Ok(if linear && factor != 1.0 { json!({"rope_type": "linear", "factor": factor}) } else { Value::Null });
    }
    if linear && factor != 1.0 {
        return Err(keys.refuse("rope.scaling.type", format!("linear scaling together with tensor `{ROPE_FREQS}` is not supported")));
    }
    llama3_scaling(keys, head_dim)
}

/// llama3's scaling from its tensor: the divisor of each frequency. Its parameters are not in the file, only what they make: the tensor
/// must be what the published models' parameters give.
fn llama3_scaling(keys: &Keys<'_>, head_dim: u64) -> Result<Value> {
    let gguf = keys.gguf;
    let at = |e: Error| e.at_file(&gguf.path);
    let theta = keys.real("rope.freq_base")?.unwrap_or(10_000.0);
    let Some(info) = gguf.header.tensors.get(ROPE_FREQS) else { return Ok(Value::Null) };
    let stored = gguf.read_tensor(ROPE_FREQS, info, |row| row).map_err(at)?;
    let factor = stored.iter().copied().fold(1.0, f32::max);
    if stored.iter().all(|x| *x == 1.0) {
        return Ok(Value::Null);
    }
    let (low, high, original) = (1.0, 4.0, 8192.0);
    let divisor = |i: usize| {
        let wavelength = 2.0 * std::f64::consts::PI * theta.powf(2.0 * i as f64 / head_dim as f64);
        let turns = original / wavelength;
        if turns > high {
            1.0
        } else if turns < low {
            f64::from(factor)
        } else {
            let smooth = (turns - low) / (high - low);
            1.0 / ((1.0 - smooth) / f64::from(factor) + smooth)
        }
    };
    let same = |(i, x): (usize, &f32)| (f64::from(*x) / divisor(i) - 1.0).abs() < 1e-4;
    if stored.len() as u64 != head_dim / 2 || !stored.iter().enumerate().all(same) {
        return Err(at(Error::input("the rotary scaling in this tensor is none that this program knows")
            .at(format_args!("tensor `{ROPE_FREQS}`"))
            .hint("use the model's Hugging Face folder, whose config.json names the scaling's parameters")));
    }
    Ok(json!({"rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
              "original_max_position_embeddings": original as u64}))
}

/// Control tokens that end a generation by their very text, as llama.cpp takes them: the metadata has room for one EOS only, while Qwen's
/// models, say, end a chat with one token and a text with another.
fn end_tokens_by_name(gguf: &Gguf) -> Result<Vec<u64>> {
    const NAMES: [&str; 6] = ["<|eot_id|>", "<|im_end|>", "<|end|>", "<|end_of_text|>", "<|endoftext|>", "<｜end▁of▁sentence｜>"];
    const CONTROL: f64 = 3.0;
    let tokens = gguf.strings("tokenizer.ggml.tokens")?.unwrap_or_default();
    let types = gguf.numbers("tokenizer.ggml.token_type")?.unwrap_or_default();
    let ends = tokens.iter().zip(types).zip(0..).filter(|((text, ty), _)| *ty == CONTROL && NAMES.contains(text));
    Ok(ends.map(|(_, id)| id).collect())
}
