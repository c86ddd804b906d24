//! LoRA adapters in PEFT's form.

use crate::make;
use serde_json::json;
use sorft_native::model::lora::LoraConfig;
use sorft_native::model::weights::TensorSpec;
use sorft_native::model::weights::peft::{load_peft, save_peft, tensor_name};
use std::fs;
use std::path::Path;

fn lora() -> LoraConfig {
    LoraConfig { rank: 4, alpha: 8.0, targets: vec!["q_proj".into(), "down_proj".into()] }
}

fn specs() -> Vec<TensorSpec> {
    let mut out = Vec::new();
    for layer in 0..2 {
        for (module, rows, cols) in [("q_proj", 64, 64), ("down_proj", 64, 96)] {
            out.push(TensorSpec::new(tensor_name(layer, module, 'A'), &[4, cols]));
            out.push(TensorSpec::new(tensor_name(layer, module, 'B'), &[rows, 4]));
        }
    }
    out
}

fn save(dir: &Path, specs: &[TensorSpec]) {
    let read = &mut |name: &str| Ok(make::numbers(name, specs.iter().find(|s| s.name == name).unwrap().len()));
    save_peft(dir, &lora(), "owner/base", specs, read).unwrap();
}

#[test]
fn an_adapter_survives_the_round_trip() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("adapter");
    save(&out, &specs());
    let (config, tensors) = load_peft(&out).unwrap();
    assert_eq!(config, lora());
    assert_eq!(tensors.len(), specs().len());
    for spec in specs() {
        let t = tensors.iter().find(|t| t.name == spec.name).unwrap();
        assert_eq!((&t.shape, &t.data), (&spec.shape, &make::numbers(&spec.name, spec.len())));
    }
    assert_eq!(specs()[0].name, "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight");
    assert_eq!(specs()[3].name, "base_model.model.model.layers.0.mlp.down_proj.lora_B.weight");
    let config: serde_json::Value = serde_json::from_slice(&fs::read(out.join("adapter_config.json")).unwrap()).unwrap();
    assert_eq!((&config["lora_alpha"], &config["r"], &config["base_model_name_or_path"]), (&json!(8), &json!(4), &json!("owner/base")));
}

#[test]
fn adapters_that_mean_something_else_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let refusal = || load_peft(dir.path()).unwrap_err().to_string();
    assert!(refusal().contains("there is no adapter_config.json"));
    save(dir.path(), &specs());
    let path = dir.path().join("adapter_config.json");
    let good: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    for (field, value, text) in [
        ("peft_type", json!("IA3"), "peft_type: expected `LORA`"),
        ("use_dora", json!(true), "use_dora: this setting is not supported"),
        ("use_rslora", json!(true), "use_rslora: this setting is not supported"),
        ("rank_pattern", json!({"q_proj": 2}), "rank_pattern: this setting is not supported"),
        ("modules_to_save", json!(["lm_head"]), "modules_to_save: this setting is not supported"),
        ("alora_invocation_tokens", json!([1]), "alora_invocation_tokens: this setting is not supported"),
        ("init_lora_weights", json!("pissa"), "init_lora_weights: \"pissa\" changes the base weights"),
        ("bias", json!("all"), "bias: trained biases are not supported"),
        ("r", json!(0), "r: expected a whole number from 1"),
        ("r", json!(8), "expected rank 8"),
        ("lora_alpha", json!("x"), "lora_alpha: expected a number"),
    ] {
        let mut changed = good.clone();
        changed[field] = value;
        make::write_json(&path, &changed);
        let e = refusal();
        assert!(e.contains(text), "{e}");
    }
    let mut regex = good.clone();
    regex["target_modules"] = json!("all-linear");
    make::write_json(&path, &regex);
    assert_eq!(load_peft(dir.path()).unwrap().0, lora(), "the tensors say which modules");

    save(dir.path(), &specs()[1..]);
    assert!(refusal().contains("there is no tensor `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`"));
    let mut more = specs();
    more.push(TensorSpec::new("base_model.model.lm_head.lora_A.weight", &[4, 64]));
    save(dir.path(), &more);
    let said = refusal();
    assert!(said.contains("adapter_model.safetensors: tensor `base_model.model.lm_head.lora_A.weight` is not a LoRA matrix"), "{said}");
    fs::remove_file(dir.path().join("adapter_model.safetensors")).unwrap();
    assert!(refusal().contains("there is no adapter_model.safetensors"));
}
