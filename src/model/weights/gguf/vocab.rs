//! `tokenizer.json` and `tokenizer_config.json` rebuilt from GGUF metadata.
//!
//! Two kinds of vocabulary: byte-level BPE with merges (`gpt2`), whose pre-tokenizer the file only names, and SentencePiece BPE with
//! scores (`llama`), whose merges follow from the scores. What comes out encodes as Hugging Face's own tokenizer of the model does; where
//! that differs from llama.cpp (Qwen2's NFC normalisation), Hugging Face's way is taken, since that is what the models were trained with.

use super::{Gguf, object_without_nulls};
use crate::model::config::ModelConfig;
use crate::{Error, Result};
use serde_json::{Map, Value, json};
use std::collections::HashMap;

/// Kinds of token, as the format numbers them.
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
/// A row of the embedding without a token: no text becomes it, and it has no text.
const UNUSED: i64 = 5;

/// The vocabulary's columns.
struct Vocab<'a> {
    tokens: Vec<&'a str>,
    types: Vec<i64>,
}

/// The bytes of a `tokenizer.json`, or `None` where the file has no vocabulary.
///
/// # Errors
/// If the kind of vocabulary or pre-tokenizer is not supported, or its lists contradict each other.
pub(super) fn rebuild(gguf: &Gguf) -> Result<Option<Vec<u8>>> {
    let Some(tokens) = gguf.strings("tokenizer.ggml.tokens")? else { return Ok(None) };
    let fail = |key: &str, message: String| Error::input(message).at(key).at_file(&gguf.path);
    let types: Vec<i64> = match gguf.numbers("tokenizer.ggml.token_type")? {
        Some(types) => types.into_iter().map(|t| t as i64).collect(),
        None => vec![1; tokens.len()],
    };
    if types.len() != tokens.len() {
        return Err(fail("tokenizer.ggml.token_type", format!("{} types for {} tokens", types.len(), tokens.len())));
    }
    let vocab = Vocab { tokens, types };
    let mut ids = HashMap::new();
    for (id, token) in vocab.used() {
        if let Some(first) = ids.insert(token, id) {
            return Err(fail("tokenizer.ggml.tokens", format!("`{token}` is there twice: {first} and {id}")));
        }
    }
    let json = match gguf.str("tokenizer.ggml.model")? {
        Some("gpt2") => byte_level(gguf, &vocab, &ids)?,
        Some("llama") => sentence_piece(gguf, &vocab, &ids)?,
        other => {
            let message = format!("tokenizers of kind `{}` are not supported", other.unwrap_or("none"));
            return Err(fail("tokenizer.ggml.model", message).hint("use the model's Hugging Face folder, which has its tokenizer.json"));
        }
    };
    serde_json::to_vec(&json).map(Some).map_err(|e| fail("tokenizer.ggml.tokens", e.to_string()))
}

impl Vocab<'_> {
    /// Ids and texts of all tokens that are tokens.
    fn used(&self) -> impl Iterator<Item = (u32, &str)> {
        self.tokens.iter().zip(&self.types).zip(0..).filter(|((_, ty), _)| **ty != UNUSED).map(|((text, _), id)| (id, *text))
    }

    /// The tokens that are recognised as a whole in a text, before anything else is done to it.
    fn added_tokens(&self) -> Vec<Value> {
        let special = |ty| ty == CONTROL || ty == UNKNOWN;
        let added = self.used().filter(|(id, _)| special(self.types[*id as usize]) || self.types[*id as usize] == USER_DEFINED);
        added
            .map(|(id, content)| {
                json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
                       "special": special(self.types[id as usize])})
            })
            .collect()
    }

    /// Text to id, in the order of ids.
    fn json(&self) -> Map<String, Value> {
        self.used().map(|(id, text)| (text.to_owned(), json!(id))).collect()
    }
}

/// Byte-level BPE with the pre-tokenizer that `tokenizer.ggml.pre` names.
fn byte_level(gguf: &Gguf, vocab: &Vocab<'_>, ids: &HashMap<&str, u32>) -> Result<Value> {
    let pre = gguf.str("tokenizer.ggml.pre")?.unwrap_or("default");
    let kind = PreTokenizer::by_name(pre).ok_or_else(|| {
        Error::input(format!("pre-tokenizer `{pre}` is not supported"))
            .at("tokenizer.ggml.pre")
            .at_file(&gguf.path)
            .hint("use the model's Hugging Face folder, which has its tokenizer.json")
    })?;
    let key = "tokenizer.ggml.merges";
    let merges = gguf.strings(key)?.ok_or_else(|| Error::input("the key is missing").at(key).at_file(&gguf.path))?;
    let mut pairs = Vec::with_capacity(merges.len());
    for (i, merge) in merges.iter().enumerate() {
        // A token may itself begin with a blank, so the one that parts them is not the first character.
        let split = merge.char_indices().skip(1).find(|(_, c)| *c == ' ').map(|(at, _)| (&merge[..at], &merge[at + 1..]));
        let pair = split.filter(|(a, b)| ids.contains_key(a) && ids.contains_key(b) && ids.contains_key(format!("{a}{b}").as_str()));
        let (a, b) = pair.ok_or_else(|| {
            let message = format!("merge {i}, `{merge}`: expected two tokens that together are a third");
            Error::input(message).at(key).at_file(&gguf.path)
        })?;
        pairs.push(json!([a, b]));
    }
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": vocab.added_tokens(),
        "normalizer": if kind == PreTokenizer::Qwen2 && pre == "qwen2" { json!({"type": "NFC"}) } else { Value::Null },
        "pre_tokenizer": kind.json(),
        "post_processor": bos_processor(gguf, vocab, kind == PreTokenizer::Llama3)?,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": false, "byte_fallback": false, "ignore_merges": kind == PreTokenizer::Llama3,
            "vocab": vocab.json(), "merges": pairs,
        },
    }))
}

/// How a text is cut into words before BPE.
#[derive(Clone, Copy, PartialEq, Eq)]
enum PreTokenizer {
    /// GPT-2's expression.
    Gpt2,
    /// Each digit alone, then GPT-2's expression (StarCoder, SmolLM).
    Digits,
    /// Qwen2's expression.
    Qwen2,
    /// Llama 3's expression: Qwen2's, but digits in groups of up to three.
    Llama3,
    /// llama.cpp's own for files that name none.
    Default,
}

impl PreTokenizer {
    fn by_name(name: &str) -> Option<Self> {
        Some(match name {
            "default" => Self::Default,
            "gpt-2" | "phi-2" | "jina-es" | "jina-de" | "mpt" | "olmo" | "jais" | "trillion" => Self::Gpt2,
            "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" => Self::Digits,
            "qwen2" | "deepseek-r1-qwen" => Self::Qwen2,
            "llama3" | "llama-v3" | "llama-bpe" => Self::Llama3,
            _ => return None,
        })
    }

    fn json(self) -> Value {
        let split = |pattern: &str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
        let bytes = |trim_offsets: bool, use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": trim_offsets, "use_regex": use_regex});
        let sequence = |parts: Vec<Value>| json!({"type": "Sequence", "pretokenizers": parts});
        let modern = |digits: &str| {
            let contractions = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";
            split(&format!(
                r"{contractions}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            ))
        };
        match self {
            Self::Gpt2 => bytes(true, true),
            Self::Digits => sequence(vec![json!({"type": "Digits", "individual_digits": true}), bytes(true, true)]),
            Self::Qwen2 => sequence(vec![modern(r"\p{N}"), bytes(false, false)]),
            Self::Llama3 => sequence(vec![modern(r"\p{N}{1,3}"), bytes(false, false)]),
            Self::Default => sequence(vec![
                split(r"[\p{P}\$\+<=>\^~\|]+"),
                split(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"),
                split(r"\p{N}+"),
                split("[0-9][0-9][0-9]"),
                bytes(false, false),
            ]),
        }
    }
}

/// The post-processor that puts a BOS before (and an EOS behind) a text, where the file says so; else null.
fn bos_processor(gguf: &Gguf, vocab: &Vocab<'_>, bos_by_default: bool) -> Result<Value> {
    let mut special = Map::new();
    let mut token = |which: &str| -> Result<Value> {
        let key = format!("tokenizer.ggml.{which}_token_id");
        let id = gguf
            .uint(&key)?
            .ok_or_else(|| Error::input(format!("the file adds a {which} token but names none")).at(&key).at_file(&gguf.path))?;
        let text = usize::try_from(id)
            .ok()
            .and_then(|i| vocab.tokens.get(i))
            .ok_or_else(|| Error::input(format!("there is no token {id}")).at(&key).at_file(&gguf.path))?;
        special.insert((*text).to_owned(), json!({"id": text, "ids": [id], "tokens": [text]}));
        Ok(json!(text))
    };
    let bos = gguf.bool("tokenizer.ggml.add_bos_token")?.unwrap_or(bos_by_default).then(|| token("bos")).transpose()?;
    let eos = gguf.bool("tokenizer.ggml.add_eos_token")?.unwrap_or(false).then(|| token("eos")).transpose()?;
    if bos.is_none() && eos.is_none() {
        return Ok(Value::Null);
    }
    let around = |name: &str, ty: u32| {
        let special = |id: &Option<Value>| id.iter().map(|id| json!({"SpecialToken": {"id": id, "type_id": ty}})).collect::<Vec<_>>();
        [special(&bos), vec![json!({"Sequence": {"id": name, "type_id": ty}})], special(&eos)].concat()
    };
    let pair = [around("A", 0), around("B", 1)].concat();
    Ok(json!({"type": "TemplateProcessing", "single": around("A", 0), "pair": pair, "special_tokens": special}))
}

/// SentencePiece BPE: Hugging Face's conversion, with the merges in the order of the scores of what they make.
fn sentence_piece(gguf: &Gguf, vocab: &Vocab<'_>, ids: &HashMap<&str, u32>) -> Result<Value> {
    let key = "tokenizer.ggml.scores";
    let scores = gguf.numbers(key)?.ok_or_else(|| Error::input("the key is missing").at(key).at_file(&gguf.path))?;
    if scores.len() != vocab.tokens.len() {
        let message = format!("{} scores for {} tokens", scores.len(), vocab.tokens.len());
        return Err(Error::input(message).at(key).at_file(&gguf.path));
    }
    let unk = match gguf.uint("tokenizer.ggml.unknown_token_id")? {
        Some(id) => usize::try_from(id).ok().and_then(|i| vocab.tokens.get(i)).copied(),
        None => vocab.types.iter().position(|t| *t == UNKNOWN).map(|i| vocab.tokens[i]),
    };
    let replace = |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
    let prefix = gguf.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let mut normalizers = vec![replace(" ", "▁")];
    let mut decoders = vec![replace("▁", " "), json!({"type": "ByteFallback"}), json!({"type": "Fuse"})];
    if prefix {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": "▁"}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": vocab.added_tokens(),
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": null,
        "post_processor": bos_processor(gguf, vocab, true)?,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": unk, "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocab.json(), "merges": merges_by_score(vocab, ids, &scores),
        },
    }))
}

/// Every pair of tokens that together are a third, best score of the third first; pairs of one third by their ids.
fn merges_by_score(vocab: &Vocab<'_>, ids: &HashMap<&str, u32>, scores: &[f64]) -> Vec<Value> {
    let mut merges = Vec::new();
    for (id, text) in vocab.used().filter(|(id, _)| vocab.types[*id as usize] == 1) {
        let parts = text.char_indices().skip(1).map(|(at, _)| text.split_at(at));
        let mut pairs: Vec<_> = parts.filter_map(|(a, b)| Some((*ids.get(a)?, *ids.get(b)?, a, b))).collect();
        pairs.sort_unstable();
        merges.extend(pairs.into_iter().map(|(_, _, a, b)| (scores[id as usize], a, b)));
    }
    merges.sort_by(|x, y| y.0.total_cmp(&x.0));
    merges.into_iter().map(|(_, a, b)| json!([a, b])).collect()
}

/// `tokenizer_config.json`: the special tokens by role, and the chat template.
pub(super) fn tokenizer_config(gguf: &Gguf, config: &ModelConfig) -> Result<Value> {
    let tokens = gguf.strings("tokenizer.ggml.tokens")?.unwrap_or_default();
    let token = |role: &str| -> Result<Option<&str>> {
        let id = gguf.uint(&format!("tokenizer.ggml.{role}_token_id"))?;
        Ok(id.and_then(|id| usize::try_from(id).ok()).and_then(|id| tokens.get(id)).copied())
    };
    Ok(object_without_nulls(json!({
        "bos_token": token("bos")?,
        "chat_template": gguf.str("tokenizer.chat_template")?,
        "clean_up_tokenization_spaces": false,
        "eos_token": token("eos")?,
        "model_max_length": config.max_position_embeddings,
        "pad_token": token("padding")?,
        // The class that takes tokenizer.json as it is.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": token("unknown")?,
    })))
}
