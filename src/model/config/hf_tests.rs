//! Configurations of Hugging Face, as published and damaged.

use super::*;
use serde_json::json;

fn llama() -> Value {
    json!({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 100, "hidden_size": 64,
           "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4})
}

fn with(mut base: Value, more: Value) -> Value {
    for (k, v) in more.as_object().unwrap() {
        base[k] = v.clone();
    }
    base
}

fn refused(config: Value) -> String {
    ModelConfig::from_hf(&config).unwrap_err().to_string()
}

#[test]
fn missing_keys_have_transformers_defaults() {
    let c = ModelConfig::from_hf(&llama()).unwrap();
    assert_eq!((c.num_kv_heads, c.head_dim, c.max_position_embeddings), (4, 16, 2048));
    assert_eq!((c.rope_theta, c.rms_norm_eps, c.tie_word_embeddings), (10_000.0, 1e-6, false));
    assert_eq!((c.eos_token_ids, c.bos_token_id, c.qkv_bias, c.qk_norm), (vec![2], Some(1), false, false));
    let q = ModelConfig::from_hf(&with(llama(), json!({"architectures": null, "model_type": "qwen2", "num_key_value_heads": 2}))).unwrap();
    assert_eq!((q.family, q.qkv_bias, q.o_bias, q.head_dim, q.max_position_embeddings), (Family::Qwen2, true, false, 16, 32768));
    assert_eq!((q.eos_token_ids, q.bos_token_id), (vec![], None));
    let q = ModelConfig::from_hf(&json!({"model_type": "qwen3"})).unwrap();
    assert_eq!((q.head_dim, q.num_kv_heads, q.qk_norm, q.qkv_bias, q.intermediate_size), (128, 32, true, false, 22016));
}

#[test]
fn both_rope_layouts_mean_the_same() {
    let l3 = json!({"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 8192});
    let v4 = ModelConfig::from_hf(&with(llama(), json!({"rope_theta": 500000.0, "rope_scaling": l3}))).unwrap();
    let v5 = with(l3, json!({"rope_theta": 500000.0}));
    let v5 = ModelConfig::from_hf(&with(llama(), json!({"rope_parameters": v5}))).unwrap();
    let added = json!({"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"rope_type": "linear", "factor": 4.0}});
    let added = ModelConfig::from_hf(&with(llama(), added)).unwrap();
    assert_eq!(added.rope_scaling, RopeScaling::Linear { factor: 4.0 }, "the older key, where it is added to the newer");
    assert_eq!(v4, v5);
    let beside = json!({"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 500000.0});
    let beside = json!({"rope_parameters": beside, "original_max_position_embeddings": 8192});
    assert_eq!(ModelConfig::from_hf(&with(llama(), beside)).unwrap(), v5, "the context of pre-training beside the settings");
    assert_eq!(v4.rope_theta, 500_000.0);
    assert!(matches!(v4.rope_scaling, RopeScaling::Llama3 { factor: 32.0, original_max_position_embeddings: 8192, .. }));
    let linear = ModelConfig::from_hf(&with(llama(), json!({"rope_scaling": {"type": "linear", "factor": 2}}))).unwrap();
    assert_eq!(linear.rope_scaling, RopeScaling::Linear { factor: 2.0 });
    let plain = ModelConfig::from_hf(&with(llama(), json!({"rope_parameters": {"rope_type": "default", "rope_theta": 1e5}}))).unwrap();
    assert_eq!((plain.rope_theta, plain.rope_scaling), (1e5, RopeScaling::None));
}

#[test]
fn what_would_change_results_is_refused_by_name() {
    for (more, text) in [
        (json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}), "rope_scaling.rope_type: rotary scaling `yarn` is not supported"),
        (json!({"rope_scaling": {"type": "llama3", "factor": 8.0}}), "rope_scaling: rope_type `llama3` needs `low_freq_factor`"),
        (
            json!({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                   "original_max_position_embeddings": 64}, "original_max_position_embeddings": 300}),
            "original_max_position_embeddings: 300 contradicts the 64 of rope_scaling",
        ),
        (json!({"hidden_act": "gelu"}), "hidden_act: activation `gelu` is not supported"),
        (json!({"model_type": "mistral"}), "model_type: model type `mistral` is not supported"),
        (json!({"architectures": ["LlamaForSequenceClassification"]}), "architecture `LlamaForSequenceClassification` is not supported"),
        (json!({"model_type": "qwen2"}), "model_type `qwen2` contradicts architecture `LlamaForCausalLM`"),
        (json!({"num_local_experts": 8}), "num_local_experts: mixture-of-experts models are not supported"),
        (json!({"quantization_config": {"bits": 4}}), "quantization_config: quantised Hugging Face weights"),
        (json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor: a partly rotated head"),
        (json!({"num_key_value_heads": 3}), "num_key_value_heads: 3 key/value heads do not divide 4 query heads"),
        (json!({"num_attention_heads": 5}), "5 heads do not divide hidden_size 64"),
        (json!({"hidden_size": 0}), "hidden_size: expected a whole number from 1"),
        (json!({"hidden_size": 1e30}), "hidden_size: expected a whole number from 1"),
        (json!({"num_hidden_layers": 20_000_000}), "num_hidden_layers: expected at most"),
        (json!({"rms_norm_eps": -1}), "rms_norm_eps: expected a positive number, found -1"),
        (json!({"tie_word_embeddings": "yes"}), "tie_word_embeddings: expected true or false"),
        (json!({"eos_token_id": "</s>"}), "eos_token_id: expected a token id"),
        (json!({"head_dim": 15}), "head_dim: rotary embedding needs an even head size"),
    ] {
        let e = refused(with(llama(), more));
        assert!(e.contains(text), "{e}");
    }
    assert!(refused(json!([])).contains("expected a JSON object"));
    assert!(refused(json!({})).contains("expected `model_type` or `architectures`"));
}

#[test]
fn a_sliding_window_is_refused_only_where_it_is_felt() {
    let base = || {
        with(
            llama(),
            json!({"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "num_key_value_heads": 4,
                    "max_position_embeddings": 1000, "sliding_window": 100, "use_sliding_window": true, "max_window_layers": 1}),
        )
    };
    assert!(refused(base()).contains("use_sliding_window: sliding-window attention (window 100)"));
    for more in [
        json!({"use_sliding_window": false}),
        json!({"max_window_layers": 2}),
        json!({"sliding_window": 1000}),
        json!({"sliding_window": null}),
        json!({"layer_types": ["full_attention", "full_attention"]}),
    ] {
        ModelConfig::from_hf(&with(base(), more)).unwrap();
    }
    assert!(
        refused(with(base(), json!({"max_window_layers": 2, "layer_types": ["full_attention", "sliding_attention"]}))).contains("window")
    );
}

#[test]
fn eos_tokens_of_both_files_are_joined() {
    let mut c = ModelConfig::from_hf(&with(llama(), json!({"eos_token_id": 7}))).unwrap();
    c.add_generation_config(&json!({"eos_token_id": [7, 9, 9]}), &json!({"eos_token_id": 7})).unwrap();
    assert_eq!(c.eos_token_ids, [7, 9]);
    assert!(c.add_generation_config(&json!({"eos_token_id": -1}), &json!({})).is_err());
    let mut without = llama();
    without.as_object_mut().unwrap().remove("eos_token_id");
    let mut c = ModelConfig::from_hf(&without).unwrap();
    assert_eq!(c.eos_token_ids, [2], "the class's own");
    c.add_generation_config(&json!({"eos_token_id": 83}), &without).unwrap();
    assert_eq!(c.eos_token_ids, [83]);
}
