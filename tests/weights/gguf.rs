//! GGUF files that are good: weights, configuration, tokenizer and template.

use crate::make::{self, Meta};
use sorft_native::model::config::RopeScaling;
use sorft_native::model::weights::gguf::{GgmlType, Gguf};
use std::fs;
use std::path::PathBuf;

fn write(dir: &tempfile::TempDir, file: &make::GgufFile) -> PathBuf {
    let path = dir.path().join("model.gguf");
    fs::write(&path, file.bytes()).unwrap();
    path
}

/// The same model in both formats is the same model.
#[test]
fn every_family_is_what_it_is_in_a_hugging_face_folder() {
    for family in ["llama", "qwen2", "qwen3"] {
        for version in [2, 3] {
            let dir = tempfile::tempdir().unwrap();
            make::folder(dir.path(), family, "F32");
            let folder = make::open(dir.path());
            let mut file = make::gguf(family);
            file.version = version;
            if family == "qwen3" {
                file.set("qwen3.attention.key_length", Meta::U32(16));
                file.set("qwen3.attention.value_length", Meta::U32(16));
            }
            let gguf = make::open(&write(&dir, &file));
            make::assert_weights(&gguf, &make::tensors(family));
            let mut expected = folder.config.clone();
            expected.eos_token_ids = vec![263];
            assert_eq!(gguf.config, expected, "{family}");
            let text = "the thing <s>the é 12 \n</s>";
            let (a, b) = (folder.tokenizer.unwrap(), gguf.tokenizer.unwrap());
            assert_eq!(a.encode(text, true).unwrap(), b.encode(text, true).unwrap());
            assert_eq!(b.decode(&b.encode(text, true).unwrap(), true).unwrap(), "the thing the é 12 \n");
            let rendered = gguf.chat_template.unwrap().render_json(&serde_json::json!([{"content": "x"}]), &serde_json::Value::Null, true);
            assert_eq!(rendered.unwrap(), "<s>x");
        }
    }
}

#[test]
fn an_output_tensor_is_an_untied_head() {
    let dir = tempfile::tempdir().unwrap();
    let mut file = make::gguf("qwen2");
    let head = make::numbers("lm_head.weight", make::VOCAB * 64);
    file.tensors.push(("output.weight".into(), vec![64, make::VOCAB as u64], 30, make::encode("BF16", &head)));
    let files = make::open(&write(&dir, &file));
    assert!(!files.config.tie_word_embeddings && files.weights.is_bf16("lm_head.weight"));
    assert_eq!(files.weights.read("lm_head.weight", &[make::VOCAB, 64]).unwrap(), head);
}

/// Blocks of every type against what the Python package `gguf` makes of them (`check_gguf.py --blocks`).
#[test]
fn blocks_expand_as_in_python() {
    let fixtures: serde_json::Value = serde_json::from_str(include_str!("blocks.json")).unwrap();
    let bytes = |v: &serde_json::Value| -> Vec<u8> {
        let hex = v.as_str().unwrap();
        (0..hex.len() / 2).map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap()).collect()
    };
    let types = [
        ("F16", 1),
        ("Q4_0", 2),
        ("Q4_1", 3),
        ("Q5_0", 6),
        ("Q5_1", 7),
        ("Q8_0", 8),
        ("Q4_K", 12),
        ("Q5_K", 13),
        ("Q6_K", 14),
        ("BF16", 30),
    ];
    assert_eq!(fixtures.as_object().unwrap().len(), types.len());
    for (name, code) in types {
        let ty = GgmlType::from_code(code).unwrap();
        let (raw, expected) = (bytes(&fixtures[name]["bytes"]), bytes(&fixtures[name]["f32_bits"]));
        let blocks = raw.len() / ty.block_bytes();
        assert!(blocks >= 2 && raw.len() % ty.block_bytes() == 0, "{name}");
        let mut out = vec![0.0; blocks * ty.block_len()];
        ty.expand(&raw, &mut out);
        let found: Vec<u8> = out.iter().flat_map(|x| x.to_bits().to_le_bytes()).collect();
        assert!(found == expected, "{name}");
    }
}

/// Quantised rows come out in the order of Hugging Face's rows too.
#[test]
fn rows_of_quantised_q_and_k_are_put_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut file = make::gguf("llama");
    let name = "model.layers.1.self_attn.q_proj.weight";
    let original = make::tensors("llama")[name].1.clone();
    // Q8_0 with scale 1/64: the makers' numbers are multiples of it.
    let tensor = file.tensor("blk.1.attn_q.weight");
    let stored: Vec<f32> = tensor.3.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    let block =
        |x: &[f32]| [half::f16::from_f32(1.0 / 64.0).to_le_bytes().to_vec(), x.iter().map(|v| (v * 64.0) as i8 as u8).collect()].concat();
    tensor.2 = 8;
    tensor.3 = stored.chunks(32).flat_map(block).collect();
    let files = make::open(&write(&dir, &file));
    assert_eq!(files.weights.read(name, &[64, 64]).unwrap(), original);
}

/// Biases of q and k are in the file's row order too; Llama's `attention_bias` means all four projections.
#[test]
fn biases_of_a_llama() {
    let dir = tempfile::tempdir().unwrap();
    let mut file = make::gguf("llama");
    let mut expected = make::tensors("llama");
    for layer in 0..2 {
        for (own, hf, rows, heads) in
            [("attn_q", "q_proj", 64, 4), ("attn_k", "k_proj", 32, 2), ("attn_v", "v_proj", 32, 0), ("attn_output", "o_proj", 64, 0)]
        {
            let name = format!("model.layers.{layer}.self_attn.{hf}.bias");
            let data = make::numbers(&name, rows);
            let stored = if heads > 0 { make::permuted(&data, rows, heads) } else { data.clone() };
            file.tensors.push((format!("blk.{layer}.{own}.bias"), vec![rows as u64], 0, make::encode("F32", &stored)));
            expected.insert(name, (vec![rows], data));
        }
    }
    let files = make::open(&write(&dir, &file));
    assert!(files.config.qkv_bias && files.config.o_bias && !files.config.mlp_bias);
    make::assert_weights(&files, &expected);
    file.tensors.retain(|t| !t.0.contains("attn_output.bias"));
    assert!(make::refusal(&write(&dir, &file)).contains("there is no tensor `model.layers.0.self_attn.o_proj.bias`"));
}

fn llama3_freqs(factor: f32) -> Vec<f32> {
    (0..8)
        .map(|i| {
            let turns = 8192.0 / (2.0 * std::f32::consts::PI * 500_000f32.powf(i as f32 / 8.0));
            let smooth = ((turns - 1.0) / 3.0).clamp(0.0, 1.0);
            1.0 / ((1.0 - smooth) / factor + smooth)
        })
        .collect()
}

#[test]
fn llama3_scaling_is_read_off_its_tensor() {
    let dir = tempfile::tempdir().unwrap();
    let mut file = make::gguf("llama");
    file.set("llama.rope.freq_base", Meta::F32(500_000.0));
    file.tensors.push(("rope_freqs.weight".into(), vec![8], 0, make::encode("F32", &llama3_freqs(32.0))));
    let expected =
        RopeScaling::Llama3 { factor: 32.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_position_embeddings: 8192 };
    let files = make::open(&write(&dir, &file));
    assert_eq!(files.config.rope_scaling, expected);
    assert!(!files.weights.names().iter().any(|n| n.contains("rope")));

    let mut other = llama3_freqs(32.0);
    other[3] *= 1.01;
    file.tensor("rope_freqs.weight").3 = make::encode("F32", &other);
    let e = make::refusal(&write(&dir, &file));
    assert!(e.contains("tensor `rope_freqs.weight`: the rotary scaling in this tensor is none that this program knows"), "{e}");
}

#[test]
fn linear_scaling_is_kept_and_others_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut file = make::gguf("qwen2");
    file.set("qwen2.rope.scaling.type", Meta::Str("linear".into()));
    file.set("qwen2.rope.scaling.factor", Meta::F32(2.0));
    assert_eq!(make::open(&write(&dir, &file)).config.rope_scaling, RopeScaling::Linear { factor: 2.0 });
    file.set("qwen2.rope.scaling.type", Meta::Str("yarn".into()));
    assert!(make::refusal(&write(&dir, &file)).contains("qwen2.rope.scaling.type: rotary scaling `yarn` is not supported"));
}

#[test]
fn pre_tokenizers_cut_as_their_models_do() {
    for (pre, text, words) in [
        ("gpt-2", "ab12 cd", vec!["ab", "12", " cd"]),
        ("smollm", "ab12 cd", vec!["ab", "1", "2", " cd"]),
        ("qwen2", "a1234,\n\nb", vec!["a", "1", "2", "3", "4", ",\n\n", "b"]),
        ("llama-bpe", "a1234,\n\nb", vec!["a", "123", "4", ",\n\n", "b"]),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let mut file = make::gguf("qwen2");
        file.set("tokenizer.ggml.pre", Meta::Str(pre.into()));
        file.set("tokenizer.ggml.add_bos_token", Meta::Bool(false));
        let tokenizer = make::open(&write(&dir, &file)).tokenizer.unwrap();
        let json: serde_json::Value = serde_json::from_slice(tokenizer.to_json()).unwrap();
        let cut: tokenizers::PreTokenizerWrapper = serde_json::from_value(json["pre_tokenizer"].clone()).unwrap();
        let mut pretokenized = tokenizers::PreTokenizedString::from(text);
        tokenizers::PreTokenizer::pre_tokenize(&cut, &mut pretokenized).unwrap();
        let splits = pretokenized.get_splits(tokenizers::OffsetReferential::Original, tokenizers::OffsetType::Byte);
        let found: Vec<&str> = splits.iter().map(|(_, (a, b), _)| &text[*a..*b]).collect();
        assert_eq!(found, words, "{pre}");
    }
}

#[test]
fn a_bos_is_added_where_the_file_says_so_or_the_kind_does() {
    let dir = tempfile::tempdir().unwrap();
    let mut file = make::gguf("llama");
    assert!(!make::open(&write(&dir, &file)).tokenizer.unwrap().adds_bos());
    file.set("tokenizer.ggml.add_bos_token", Meta::Bool(true));
    let tokenizer = make::open(&write(&dir, &file)).tokenizer.unwrap();
    assert!(tokenizer.adds_bos());
    assert_eq!(tokenizer.encode("he", true).unwrap(), [262, 257]);
    file.remove("tokenizer.ggml.add_bos_token");
    file.set("tokenizer.ggml.pre", Meta::Str("llama-bpe".into()));
    assert!(make::open(&write(&dir, &file)).tokenizer.unwrap().adds_bos());
}

/// A vocabulary with scores: merges in the order of the scores, bytes for what has no token, a blank before the text.
#[test]
fn sentence_piece_vocabularies() {
    let dir = tempfile::tempdir().unwrap();
    let mut file = make::gguf("llama");
    let mut tokens: Vec<(String, f32, i32)> = vec![("<unk>".into(), 0.0, 2), ("<s>".into(), 0.0, 3), ("</s>".into(), 0.0, 3)];
    tokens.extend((0..=255).map(|b| (format!("<0x{b:02X}>"), 0.0, 6)));
    // `▁ab` can be made as `▁a` + `b` only; `ab` has the better score, so `▁ab` in a text becomes `▁` `ab`.
    for (i, t) in ["▁", "a", "b", "ab"].iter().enumerate() {
        tokens.push(((*t).into(), -(i as f32) - 10.0, 1));
    }
    tokens.push(("▁a".into(), -20.0, 1));
    file.set("tokenizer.ggml.model", Meta::Str("llama".into()));
    file.set("tokenizer.ggml.tokens", Meta::Strs(tokens.iter().map(|t| t.0.clone()).collect()));
    file.set("tokenizer.ggml.scores", Meta::F32s(tokens.iter().map(|t| t.1).collect()));
    file.set("tokenizer.ggml.token_type", Meta::I32s(tokens.iter().map(|t| t.2).collect()));
    file.set("tokenizer.ggml.bos_token_id", Meta::U32(1));
    file.set("tokenizer.ggml.eos_token_id", Meta::U32(2));
    let tokenizer = make::open(&write(&dir, &file)).tokenizer.unwrap();
    assert_eq!(tokenizer.encode("ab a", true).unwrap(), [1, 259, 262, 263]);
    let ids = tokenizer.encode("aé</s>", true).unwrap();
    assert_eq!(ids, [1, 263, 3 + 0xC3, 3 + 0xA9, 2]);
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "aé");
}

#[test]
fn metadata_is_read_by_kind() {
    let dir = tempfile::tempdir().unwrap();
    let gguf = Gguf::open(&write(&dir, &make::gguf("llama"))).unwrap();
    assert_eq!(gguf.uint("llama.block_count").unwrap(), Some(2));
    assert_eq!(gguf.real("llama.attention.layer_norm_rms_epsilon").unwrap(), Some(1e-5), "the shortest digits");
    assert_eq!(gguf.uint("no.such.key").unwrap(), None);
    let e = gguf.uint("general.architecture").unwrap_err().to_string();
    assert!(e.contains("general.architecture: expected a whole number, found Str(\"llama\")"), "{e}");
    assert_eq!(gguf.tensor_type("output_norm.weight"), Some(GgmlType::F32));
}
