//! Files that are broken, lie, or do not belong together: each is refused in words that name the place.

use crate::make::{self, Meta};
use serde_json::json;
use std::fs;
use std::path::PathBuf;

#[track_caller]
fn assert_says(error: &str, parts: &[&str]) {
    for part in parts {
        assert!(error.contains(part), "expected `{part}` in: {error}");
    }
}

/// A folder whose weight file is `bytes`.
fn folder_with(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    make::folder_without_weights(dir.path(), "llama");
    fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
    let path = dir.path().to_owned();
    (dir, path)
}

#[test]
fn safetensors_headers_that_lie() {
    let good = make::safetensors_file(&make::tensors("llama"), "F32");
    let info = |shape: &[u64], offsets: [u64; 2]| json!({"x": {"dtype": "F32", "shape": shape, "data_offsets": offsets}});
    let one = |header: serde_json::Value| make::safetensors_bytes(&header, &[0; 16]);
    for (bytes, text) in [
        (vec![], "the file is empty"),
        (good[..5].to_vec(), "expected a safetensors file, found only 5 bytes"),
        (good[..good.len() - 1].to_vec(), "tensor `model.norm.weight` claims bytes"),
        (good[..200].to_vec(), "bytes long, the file has only 192 more"),
        ([&good[..], &[0]].concat(), "the header describes"),
        (u64::MAX.to_le_bytes().to_vec(), "the header claims to be 18446744073709551615 bytes long: expected at most 100000000"),
        ([&8u64.to_le_bytes()[..], b"not json"].concat(), "expected a JSON object as the header"),
        (one(info(&[4], [0, 17])), "tensor `x` claims bytes 0 to 17 of 16"),
        (one(info(&[4], [12, 8])), "tensor `x` claims bytes 12 to 8 of 16"),
        (one(info(&[5], [0, 16])), "tensor `x`: 16 bytes do not hold [5] numbers of F32"),
        (one(info(&[u64::MAX, u64::MAX], [0, 16])), "16 bytes do not hold"),
        (one(info(&[4], [0, u64::MAX])), "tensor `x` claims bytes 0 to 18446744073709551615"),
        (one(info(&[3], [4, 16])), "tensor `x` does not begin where the one before it ends"),
        (one(info(&[3], [0, 12])), "the header describes 12 bytes of tensors, the file has 16"),
        (one(json!({"x": {"dtype": "F33", "shape": [4], "data_offsets": [0, 16]}})), "cannot read the header of tensor `x`"),
        (one(json!({"x": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}})), "cannot read the header of tensor `x`"),
        (one(json!({"x": 3})), "cannot read the header of tensor `x`"),
        (one(info(&[4], [0, 16])), "there is no tensor `model.embed_tokens.weight` (expected with shape [264, 64])"),
    ] {
        let (_dir, path) = folder_with(&bytes);
        let e = make::refusal(&path);
        assert_says(&e, &[text, path.to_str().unwrap()]);
    }
}

#[test]
fn weights_of_another_dtype_or_shape_or_with_nan() {
    let mut tensors = make::tensors("llama");
    tensors.get_mut("model.norm.weight").unwrap().1[7] = f32::NAN;
    let (_dir, path) = folder_with(&make::safetensors_file(&tensors, "F32"));
    let e = make::open(&path).weights.read("model.norm.weight", &[64]).unwrap_err().to_string();
    assert_says(&e, &["model.safetensors: tensor `model.norm.weight` holds NaN at index 7: expected finite numbers only"]);
    let e = make::open(&path).weights.read("model.embed_tokens.weight", &[64, 264]).unwrap_err().to_string();
    assert_says(&e, &["tensor `model.embed_tokens.weight` has shape [264, 64], expected [64, 264]"]);

    let (_dir, path) = folder_with(&make::safetensors_file(&make::tensors("llama"), "I32"));
    let e = make::open(&path).weights.read("model.norm.weight", &[64]).unwrap_err().to_string();
    assert_says(&e, &["tensor `model.norm.weight` has dtype I32: expected F32, F16 or BF16"]);

    let mut tensors = make::tensors("llama");
    let name = "model.layers.1.mlp.up_proj.weight";
    tensors.get_mut(name).unwrap().0 = vec![64, 96];
    let (_dir, path) = folder_with(&make::safetensors_file(&tensors, "F32"));
    assert_says(&make::refusal(&path), &["tensor `model.layers.1.mlp.up_proj.weight` has shape [64, 96], expected [96, 64]"]);
}

#[test]
fn shards_that_are_missing_or_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    make::sharded_folder(dir.path(), "llama");
    let index = dir.path().join("model.safetensors.index.json");
    let good: serde_json::Value = serde_json::from_slice(&fs::read(&index).unwrap()).unwrap();
    for (name, file, text) in [
        ("model.norm.weight", json!("../x.safetensors"), "weight_map.model.norm.weight: expected the name of a file beside the index"),
        ("model.norm.weight", json!(3), "expected the name of a file beside the index, found 3"),
        ("other.weight", json!("part-0.safetensors"), "there is no tensor `other.weight`, which the index places in this file"),
    ] {
        let mut changed = good.clone();
        changed["weight_map"][name] = file;
        make::write_json(&index, &changed);
        assert_says(&make::refusal(dir.path()), &[text]);
    }
    make::write_json(&index, &json!({}));
    assert_says(&make::refusal(dir.path()), &["model.safetensors.index.json: weight_map: expected an object"]);
    make::write_json(&index, &good);
    fs::remove_file(dir.path().join("part-1.safetensors")).unwrap();
    assert_says(&make::refusal(dir.path()), &["1 of 2 shards are missing: part-1.safetensors"]);
    fs::remove_file(&index).unwrap();
    assert_says(&make::refusal(dir.path()), &["there is neither model.safetensors nor", "the index of the shards"]);
}

#[test]
fn folders_and_files_that_are_no_models() {
    let dir = tempfile::tempdir().unwrap();
    assert_says(&make::refusal(dir.path()), &["there is no config.json in this folder"]);
    fs::write(dir.path().join("m.gguf"), "x").unwrap();
    assert_says(&make::refusal(dir.path()), &["for a GGUF model give the file itself", "m.gguf"]);
    assert_says(&make::refusal(&dir.path().join("m.gguf")), &["m.gguf: expected a GGUF file: it does not begin with `GGUF`"]);
    assert_says(&make::refusal(&dir.path().join("none")), &["none: no such file or folder", "a hub id `owner/name`"]);
    make::folder_without_weights(dir.path(), "llama");
    assert_says(&make::refusal(dir.path()), &["there is neither model.safetensors nor", "download model.safetensors"]);
    assert_says(&make::refusal(&dir.path().join("config.json")), &["expected a model's folder or a .gguf file"]);
    fs::write(dir.path().join("pytorch_model.bin"), "x").unwrap();
    assert_says(&make::refusal(dir.path()), &["convert them to safetensors"]);
    fs::write(dir.path().join("config.json"), "{\n  \"a\": 1,\n}").unwrap();
    assert_says(&make::refusal(dir.path()), &["config.json:3: expected JSON"]);
    make::write_json(&dir.path().join("config.json"), &json!({"model_type": "gpt2"}));
    assert_says(&make::refusal(dir.path()), &["config.json: model_type: model type `gpt2` is not supported", "LlamaForCausalLM (llama)"]);
}

#[test]
fn a_tokenizer_that_does_not_fit() {
    let dir = tempfile::tempdir().unwrap();
    make::folder(dir.path(), "llama", "F32");
    let mut tokenizer = make::tokenizer_json();
    tokenizer["added_tokens"].as_array_mut().unwrap().push(json!({"id": 264, "content": "<more>", "single_word": false,
        "lstrip": false, "rstrip": false, "normalized": false, "special": true}));
    make::write_json(&dir.path().join("tokenizer.json"), &tokenizer);
    let expected = "a tokenizer that does not fit the model: token `<more>` has id 264, the model has 264 tokens";
    assert_says(&make::refusal(dir.path()), &[expected]);
    fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
    assert_says(&make::refusal(dir.path()), &["tokenizer.json: cannot read the tokenizer"]);
    make::write_json(&dir.path().join("tokenizer.json"), &make::tokenizer_json());
    make::write_json(&dir.path().join("tokenizer_config.json"), &json!({"chat_template": "{% for %}"}));
    assert_says(&make::refusal(dir.path()), &["tokenizer_config.json: chat_template: cannot compile the chat template"]);

    let mut file = make::gguf("llama");
    let mut tokens = make::tokens();
    tokens.push("<more>".into());
    file.set("tokenizer.ggml.tokens", Meta::Strs(tokens));
    file.remove("tokenizer.ggml.token_type");
    assert_says(&gguf_refusal(&file.bytes()), &[expected]);
}

fn gguf_refusal(bytes: &[u8]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    fs::write(&path, bytes).unwrap();
    make::refusal(&path)
}

/// Places of the numbers in the header's preamble.
const VERSION: usize = 4;
const TENSORS: usize = 8;
const KEYS: usize = 16;

#[test]
fn gguf_headers_that_lie() {
    let good = make::gguf("llama").bytes();
    let with = |at: usize, bytes: &[u8]| {
        let mut b = good.clone();
        b[at..at + bytes.len()].copy_from_slice(bytes);
        b
    };
    let key_len = 24;
    for (bytes, text) in [
        (vec![], "the file is empty"),
        (good[..3].to_vec(), "expected a GGUF file"),
        (good[..20].to_vec(), "the file ends at byte 20, in the middle of its header"),
        (good[..1000].to_vec(), "the file ends at byte 1000, in the middle of its header"),
        (good[..good.len() - 100].to_vec(), "go beyond the file's end"),
        (with(VERSION, &1u32.to_le_bytes()), "expected GGUF version 2 or 3, found 1"),
        (with(VERSION, &3u32.to_be_bytes()), "big-endian GGUF files are not supported"),
        (with(TENSORS, &u64::MAX.to_le_bytes()), "the header claims 18446744073709551615 tensors"),
        (with(KEYS, &(1u64 << 40).to_le_bytes()), "1099511627776 metadata keys"),
        (with(key_len, &u64::MAX.to_le_bytes()), "metadata key 0 of 17: the file ends at byte"),
        (with(key_len + 8, &[0xFF]), "metadata key 0 of 17: expected UTF-8"),
        (with(key_len + 8 + 20, &77u32.to_le_bytes()), "general.architecture: value type 77 is unknown"),
    ] {
        assert_says(&gguf_refusal(&bytes), &[text, "m.gguf: "]);
    }
}

#[test]
fn gguf_tensors_that_lie() {
    let refused = |change: &dyn Fn(&mut make::GgufFile)| {
        let mut file = make::gguf("llama");
        change(&mut file);
        gguf_refusal(&file.bytes())
    };
    let dims = |dims: &'static [u64]| move |f: &mut make::GgufFile| f.tensor("output_norm.weight").1 = dims.to_vec();
    let ty = |code: u32| move |f: &mut make::GgufFile| f.tensor("output_norm.weight").2 = code;
    assert_says(&refused(&dims(&[1 << 62, 1 << 62])), &["tensor `output_norm.weight`", "go beyond the file's end"]);
    assert_says(
        &refused(&dims(&[1 << 40])),
        &["tensor `output_norm.weight`: [1099511627776] numbers of type F32", "go beyond the file's end"],
    );
    assert_says(&refused(&dims(&[])), &["expected 1 to 4 dimensions, found 0"]);
    assert_says(&refused(&dims(&[0])), &["expected no empty dimension"]);
    assert_says(&refused(&dims(&[63])), &["tensor `model.norm.weight` has shape [63], expected [64]"]);
    assert_says(&refused(&ty(20)), &["tensor `output_norm.weight`: its type is IQ4_NL, which is not supported"]);
    assert_says(&refused(&ty(12)), &["rows of 64 numbers cannot be cut into blocks of 256"]);
    assert_says(&refused(&|f| f.tensors.push(f.tensors[0].clone())), &["there are two tensors of this name"]);
    assert_says(&refused(&|f| f.meta.push(f.meta[0].clone())), &["general.architecture: the key occurs twice"]);
    assert_says(
        &refused(&|f| f.tensor("output_norm.weight").0 = "blk.0.ssm_a.weight".into()),
        &["`blk.0.ssm_a.weight` is not part of a llama model"],
    );
    assert_says(
        &refused(&|f| f.tensors.retain(|t| t.0 != "blk.1.ffn_up.weight")),
        &["there is no tensor `model.layers.1.mlp.up_proj.weight`"],
    );
    assert_says(&refused(&|f| f.set("general.alignment", Meta::U32(0))), &["general.alignment: expected a number of bytes"]);

    let mut file = make::gguf("llama");
    file.tensor("output_norm.weight").3[4 * 9..4 * 10].copy_from_slice(&f32::INFINITY.to_le_bytes());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    fs::write(&path, file.bytes()).unwrap();
    let e = make::open(&path).weights.read("model.norm.weight", &[64]).unwrap_err().to_string();
    assert_says(&e, &["m.gguf: tensor `model.norm.weight` holds inf at index 9"]);
}

#[test]
fn gguf_metadata_that_cannot_be_used() {
    let refused = |key: &str, value: Option<Meta>| {
        let mut file = make::gguf("llama");
        match value {
            Some(value) => file.set(key, value),
            None => file.remove(key),
        }
        gguf_refusal(&file.bytes())
    };
    for (key, value, text) in [
        ("general.architecture", Some(Meta::Str("gemma".into())), "architecture `gemma` is not supported"),
        ("llama.block_count", None, "llama.block_count: the key is missing"),
        ("llama.block_count", Some(Meta::U32(0)), "num_hidden_layers: expected a whole number from 1"),
        ("llama.block_count", Some(Meta::U32(u32::MAX)), "num_hidden_layers: expected a whole number from 1"),
        ("llama.attention.head_count", Some(Meta::I32s(vec![4, 4])), "expected a whole number, found a list of 2 values"),
        ("llama.attention.head_count", Some(Meta::U32(0)), "0 heads do not divide embedding_length 64"),
        ("llama.expert_count", Some(Meta::U32(8)), "llama.expert_count: mixture-of-experts models are not supported"),
        ("llama.attention.sliding_window", Some(Meta::U32(64)), "sliding-window attention is not supported"),
        ("llama.rope.dimension_count", Some(Meta::U32(8)), "llama.rope.dimension_count: expected the head size 16, found 8"),
        ("split.count", Some(Meta::U32(2)), "the model is split over several GGUF files"),
        ("tokenizer.ggml.pre", Some(Meta::Str("tekken".into())), "tokenizer.ggml.pre: pre-tokenizer `tekken` is not supported"),
        ("tokenizer.ggml.model", Some(Meta::Str("t5".into())), "tokenizers of kind `t5` are not supported"),
        ("tokenizer.ggml.merges", Some(Meta::Strs(vec!["h e".into(), "x".into()])), "merge 1, `x`: expected two tokens"),
        ("tokenizer.ggml.merges", None, "tokenizer.ggml.merges: the key is missing"),
        ("tokenizer.ggml.token_type", Some(Meta::I32s(vec![1])), "1 types for 264 tokens"),
        ("tokenizer.ggml.tokens", Some(Meta::Strs(vec!["a".into(); 264])), "`a` is there twice: 0 and 1"),
        ("tokenizer.chat_template", Some(Meta::Str("{{".into())), "tokenizer.chat_template: cannot compile the chat template"),
    ] {
        assert_says(&refused(key, value), &[text, "m.gguf: "]);
    }
    let mut file = make::gguf("llama");
    file.set("tokenizer.ggml.add_bos_token", Meta::Bool(true));
    file.set("tokenizer.ggml.bos_token_id", Meta::U32(9999));
    assert_says(&gguf_refusal(&file.bytes()), &["tokenizer.ggml.bos_token_id: there is no token 9999"]);
}
