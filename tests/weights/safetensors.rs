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

/// As transformers 5 has it: what `tie_word_embeddings` says holds where the numbers do not say otherwise.
#[test]
fn a_head_with_numbers_of_its_own_is_not_tied() {
    let dir = tempfile::tempdir().unwrap();
    make::folder_without_weights(dir.path(), "llama");
    let mut tensors = make::tensors("llama");
    let embedding = tensors["model.embed_tokens.weight"].clone();
    tensors.insert("lm_head.weight".into(), embedding.clone());
    let write = |tensors: &make::Tensors| fs::write(dir.path().join("model.safetensors"), make::safetensors_file(tensors, "F32")).unwrap();
    write(&tensors);
    assert!(make::open(dir.path()).config.tie_word_embeddings, "a copy is no head of its own");
    let mut head = embedding;
    head.1[77] += 0.5;
    tensors.insert("lm_head.weight".into(), head);
    write(&tensors);
    let files = make::open(dir.path());
    assert!(!files.config.tie_word_embeddings);
    assert_eq!(files.config_json["tie_word_embeddings"], false, "what a save writes");
    let model =
        sorft_native::model::transformer::Transformer::load(&files, &sorft_native::tensor::Device::Cpu, Default::default()).unwrap();
    assert!(model.export("lm_head.weight").is_ok());
}

#[test]
fn a_special_token_ends_an_answer_where_it_is_a_stop_string_and_an_end_is_no_text() {
    use sorft_native::model::generate::{FinishReason, SamplingParams, generate};
    let dir = tempfile::tempdir().unwrap();
    make::folder(dir.path(), "llama", "F32");
    // The end that the tokenizer takes for an ordinary token.
    let mut tokenizer = make::tokenizer_json();
    tokenizer["added_tokens"][1]["special"] = false.into();
    make::write_json(&dir.path().join("tokenizer.json"), &tokenizer);
    let files = make::open(dir.path());
    let model =
        sorft_native::model::transformer::Transformer::load(&files, &sorft_native::tensor::Device::Cpu, Default::default()).unwrap();
    let params = SamplingParams { n: 24, max_new_tokens: 100, temperature: 8.0, stop: vec!["<s>".to_owned()], ..Default::default() };
    let answers = generate(&model, files.tokenizer.as_ref(), &[vec![5, 6]], &params, 24, &mut |_| true).unwrap();
    let of = |reason| answers.iter().filter(move |a| a.finish_reason == reason).collect::<Vec<_>>();
    let (stopped, ended) = (of(FinishReason::Stop), of(FinishReason::Eos));
    assert!(!stopped.is_empty() && ended.iter().any(|a| a.ids.last() == Some(&263)), "{} {}", stopped.len(), ended.len());
    assert!(stopped.iter().all(|a| a.ids.last() == Some(&262)));
    assert!(answers.iter().all(|a| !a.text.contains("</s>") && a.ids[..a.ids.len() - 1].iter().all(|id| *id != 262)));
}

#[test]
fn a_tokenizer_in_another_format_is_named() {
    let dir = tempfile::tempdir().unwrap();
    make::folder(dir.path(), "llama", "F32");
    fs::rename(dir.path().join("tokenizer.json"), dir.path().join("tokenizer.model")).unwrap();
    let said = make::open(dir.path()).tokenizer().err().unwrap().to_string();
    assert!(said.contains("no tokenizer.json, and its tokenizer.model is not read") && said.contains("save_pretrained"), "{said}");
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
