//! Hugging Face folders that are good.

use crate::make;
use sorft_native::model::chat::Message;
use std::fs;

#[test]
fn one_file_in_every_dtype() {
    for dtype in ["F32", "F16", "BF16"] {
        let dir = tempfile::tempdir().unwrap();
        make::folder(dir.path(), "qwen2", dtype);
        let files = make::open(dir.path());
        make::assert_weights(&files, &make::tensors("qwen2"));
        assert_eq!(files.weights.is_bf16("model.norm.weight"), dtype == "BF16");
        assert!(!files.weights.is_bf16("no such tensor"));
    }
}

#[test]
fn shards_of_every_family() {
    for family in ["llama", "qwen2", "qwen3"] {
        let dir = tempfile::tempdir().unwrap();
        make::sharded_folder(dir.path(), family);
        make::assert_weights(&make::open(dir.path()), &make::tensors(family));
    }
}

/// The crate that others write with, as a peer.
#[test]
fn files_of_the_safetensors_crate_are_read() {
    let dir = tempfile::tempdir().unwrap();
    make::folder_without_weights(dir.path(), "llama");
    let tensors = make::tensors("llama");
    let bytes: Vec<_> = tensors.iter().map(|(name, (shape, data))| (name, shape, make::encode("F16", data))).collect();
    let views = bytes
        .iter()
        .map(|(name, shape, data)| (*name, safetensors::tensor::TensorView::new(safetensors::Dtype::F16, shape.to_vec(), data).unwrap()));
    let file = safetensors::serialize(views, None).unwrap();
    fs::write(dir.path().join("model.safetensors"), file).unwrap();
    make::assert_weights(&make::open(dir.path()), &tensors);
}

#[test]
fn everything_beside_the_weights_is_read() {
    let dir = tempfile::tempdir().unwrap();
    make::folder(dir.path(), "llama", "F32");
    let files = make::open(dir.path());
    assert_eq!((files.config.eos_token_ids.as_slice(), files.config.bos_token_id), (&[263, 10][..], Some(262)));
    let tokenizer = files.tokenizer.as_ref().unwrap();
    assert_eq!(tokenizer.encode("the<s>", true).unwrap().len(), 3);
    let message = |content: &str| Message { role: "user".into(), content: content.into() };
    let rendered = files.chat_template.as_ref().unwrap().render(&[message("a"), message("é")], true).unwrap();
    assert_eq!(rendered, "<s>user: a\n<s>user: é\nassistant:");

    fs::write(dir.path().join("chat_template.jinja"), "{{ eos_token }}").unwrap();
    assert_eq!(make::open(dir.path()).chat_template.unwrap().render(&[], true).unwrap(), "</s>", "the file of its own goes first");

    for file in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"] {
        fs::remove_file(dir.path().join(file)).unwrap();
    }
    let bare = make::open(dir.path());
    assert!(bare.tokenizer.is_none() && bare.chat_template.is_none());
    assert_eq!(bare.config.eos_token_ids, [263]);
}

#[test]
fn special_tokens_of_older_repositories_reach_the_template() {
    let dir = tempfile::tempdir().unwrap();
    make::folder(dir.path(), "llama", "F32");
    make::write_json(&dir.path().join("tokenizer_config.json"), &serde_json::json!({"chat_template": "{{ bos_token }}|{{ pad_token }}"}));
    make::write_json(
        &dir.path().join("special_tokens_map.json"),
        &serde_json::json!({"bos_token": {"content": "<s>"}, "pad_token": "</s>"}),
    );
    assert_eq!(make::open(dir.path()).chat_template.unwrap().render(&[], false).unwrap(), "<s>|</s>");
}
