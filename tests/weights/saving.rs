//! Saved folders: read back the same, the same bytes each time, and nothing stale beside them.

use crate::make;
use sorft_native::model::weights::{ModelFiles, SaveDtype, TensorSpec, model_tensors, save_hf, save_hf_sharded};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

fn save(files: &ModelFiles, dir: &Path, dtype: SaveDtype, max_shard: usize) {
    let specs = model_tensors(&files.config);
    let shapes: BTreeMap<_, _> = specs.iter().map(|s| (s.name.clone(), s.shape.clone())).collect();
    save_hf_sharded(dir, files, &specs, dtype, &mut |name| files.weights.read(name, &shapes[name]), max_shard).unwrap();
}

fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    entries.map(|p| (p.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(&p).unwrap())).collect()
}

#[test]
fn a_gguf_file_becomes_a_folder_that_is_the_same_model() {
    for family in ["llama", "qwen2", "qwen3"] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.gguf");
        fs::write(&path, make::gguf(family).bytes()).unwrap();
        let files = make::open(&path);
        let out = dir.path().join("out");
        save(&files, &out, SaveDtype::F32, usize::MAX);
        let back = make::open(&out);
        assert_eq!(back.config, files.config);
        make::assert_weights(&back, &make::tensors(family));
        assert_eq!(back.tokenizer.as_ref().unwrap().to_json(), files.tokenizer.as_ref().unwrap().to_json());
        assert_eq!(back.chat_template.as_ref().unwrap().source(), files.chat_template.as_ref().unwrap().source());
        assert_eq!(back.config_json["torch_dtype"], "float32");
        let again = dir.path().join("again");
        save(&make::open(&path), &again, SaveDtype::F32, usize::MAX);
        assert!(contents(&out) == contents(&again), "the same bytes each time");
    }
}

#[test]
fn what_a_folder_had_is_written_back() {
    let dir = tempfile::tempdir().unwrap();
    make::folder(dir.path(), "llama", "F32");
    let mut config = make::config("llama");
    config["dtype"] = "float16".into();
    config["unknown_key"] = serde_json::json!({"z": 1, "a": [1.5, null]});
    make::write_json(&dir.path().join("config.json"), &config);
    let out = tempfile::tempdir().unwrap();
    save(&make::open(dir.path()), out.path(), SaveDtype::Bf16, usize::MAX);
    let back = make::open(out.path());
    config["dtype"] = "bfloat16".into();
    assert_eq!(back.config_json, config);
    assert_eq!(contents(out.path())["tokenizer.json"], contents(dir.path())["tokenizer.json"], "byte for byte");
    assert_eq!(back.generation_json, make::open(dir.path()).generation_json);
    assert!(back.weights.is_bf16("model.norm.weight"));
    make::assert_weights(&back, &make::tensors("llama"));
}

#[test]
fn named_templates_and_a_template_file_survive() {
    let dir = tempfile::tempdir().unwrap();
    make::folder(dir.path(), "llama", "F32");
    fs::write(dir.path().join("chat_template.jinja"), "in use").unwrap();
    let out = tempfile::tempdir().unwrap();
    save(&make::open(dir.path()), out.path(), SaveDtype::F32, usize::MAX);
    assert_eq!(make::open(out.path()).chat_template.unwrap().source(), "in use");
    let named = serde_json::json!({"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]});
    make::write_json(&dir.path().join("tokenizer_config.json"), &named);
    let out = tempfile::tempdir().unwrap();
    save(&make::open(dir.path()), out.path(), SaveDtype::F32, usize::MAX);
    let back = make::open(out.path());
    assert_eq!((back.chat_template.unwrap().source(), back.tokenizer_config), ("in use", Some(named)));
}

#[test]
fn shards_come_and_go_without_a_trace() {
    let dir = tempfile::tempdir().unwrap();
    make::folder(dir.path(), "qwen2", "F32");
    let files = make::open(dir.path());
    let out = tempfile::tempdir().unwrap();
    save(&files, out.path(), SaveDtype::F32, 40_000);
    let names: Vec<_> = contents(out.path()).into_keys().collect();
    let shards = names.iter().filter(|n| n.starts_with("model-0")).count();
    assert!(shards > 2 && names.iter().any(|n| *n == format!("model-00001-of-{shards:05}.safetensors")), "{names:?}");
    let index: serde_json::Value = serde_json::from_slice(&contents(out.path())["model.safetensors.index.json"]).unwrap();
    let total: usize = make::tensors("qwen2").values().map(|(_, data)| data.len() * 4).sum();
    assert_eq!(index["metadata"]["total_size"], total);
    make::assert_weights(&make::open(out.path()), &make::tensors("qwen2"));

    fs::write(out.path().join("model-notes.txt"), "mine").unwrap();
    save(&files, out.path(), SaveDtype::F32, usize::MAX);
    let names: Vec<_> = contents(out.path()).into_keys().collect();
    assert!(!names.iter().any(|n| n.starts_with("model-0") || n.ends_with("index.json")), "{names:?}");
    assert!(names.contains(&"model-notes.txt".to_owned()));
    save(&files, out.path(), SaveDtype::F32, 40_000);
    assert!(!out.path().join("model.safetensors").exists());
    make::assert_weights(&make::open(out.path()), &make::tensors("qwen2"));
}

/// The crate that others read with, as a peer; bf16 is rounded to nearest, ties to even.
#[test]
fn files_are_what_the_safetensors_crate_reads() {
    let dir = tempfile::tempdir().unwrap();
    make::folder(dir.path(), "llama", "F32");
    let files = make::open(dir.path());
    let out = tempfile::tempdir().unwrap();
    let specs = [TensorSpec::new("a", &[2, 2]), TensorSpec::new("b", &[1])];
    let data = BTreeMap::from([("a", vec![1.0, 1.001_953_1, 1.005_859_4, -3.1]), ("b", vec![f32::MIN_POSITIVE])]);
    save_hf(out.path(), &files, &specs, SaveDtype::Bf16, &mut |name| Ok(data[name].clone())).unwrap();
    let bytes = fs::read(out.path().join("model.safetensors")).unwrap();
    let read = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(read.tensor("a").unwrap().shape(), [2, 2]);
    assert_eq!(read.tensor("a").unwrap().data(), make::encode("BF16", &[1.0, 1.0, 1.0078125, -3.1]));
    let (n, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
    assert_eq!((8 + n) % 8, 0, "tensors are aligned");
}

#[test]
fn a_bad_number_or_length_leaves_the_old_file() {
    let dir = tempfile::tempdir().unwrap();
    make::folder(dir.path(), "llama", "F32");
    let files = make::open(dir.path());
    let before = contents(dir.path());
    let specs = [TensorSpec::new("a", &[3])];
    let attempt = |data: Vec<f32>, dtype| save_hf(dir.path(), &files, &specs, dtype, &mut |_| Ok(data.clone())).unwrap_err().to_string();
    assert!(attempt(vec![0.0, f32::NAN, 0.0], SaveDtype::F32).contains("model.safetensors: tensor `a` holds NaN at index 1"));
    assert!(attempt(vec![0.0, 0.0, f32::MAX], SaveDtype::Bf16).contains("at index 2"), "infinite once rounded");
    assert!(attempt(vec![0.0], SaveDtype::F32).contains("tensor `a` has 1 numbers, expected shape [3]"));
    assert!(contents(dir.path()) == before);
}
