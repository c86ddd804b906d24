//! What a shared prompt saves, counted.

use crate::tiny;
use sorft_native::model::config::{Family, ModelConfig};
use sorft_native::model::flops::TrainingFlops;
use sorft_native::model::transformer::ParamInfo;
use sorft_native::tensor::plan::{Plan, Tree};

/// A model's shape without its weights.
fn shape(config: ModelConfig) -> (ModelConfig, Vec<ParamInfo>) {
    let (d, ffn) = (config.hidden_size, config.intermediate_size);
    let (q, kv) = (config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim);
    let matrices = [("q_proj", q), ("k_proj", kv), ("v_proj", kv), ("o_proj", q), ("gate_proj", ffn), ("up_proj", ffn), ("down_proj", ffn)];
    let info =
        |layer: usize, (name, n): (&str, usize)| ParamInfo { name: format!("model.layers.{layer}.{name}"), shape: vec![n, d], decay: true };
    let params = (0..config.num_layers).flat_map(|layer| matrices.map(|m| info(layer, m))).collect();
    (config, params)
}

fn smollm2_135m() -> ModelConfig {
    ModelConfig {
        vocab_size: 49152,
        hidden_size: 576,
        intermediate_size: 1536,
        num_layers: 30,
        num_heads: 9,
        num_kv_heads: 3,
        head_dim: 64,
        ..tiny::config(Family::Llama)
    }
}

fn qwen_7b() -> ModelConfig {
    ModelConfig {
        vocab_size: 152_064,
        hidden_size: 3584,
        intermediate_size: 18944,
        num_layers: 28,
        num_heads: 28,
        num_kv_heads: 4,
        head_dim: 128,
        ..tiny::config(Family::Qwen2)
    }
}

fn qwen_32b() -> ModelConfig {
    ModelConfig { hidden_size: 5120, intermediate_size: 27648, num_layers: 64, num_heads: 40, num_kv_heads: 8, ..qwen_7b() }
}

/// By how much 8 answers of 128 tokens to a prompt of 1024 are cheaper with the prompt shared than repeated.
fn saving(config: ModelConfig) -> f64 {
    let (config, params) = shape(config);
    let answers = vec![vec![1; 128]; 8];
    let shared = Plan::for_trees(&[Tree::prompt_with_answers(&[1; 1024], &answers)]);
    let repeated: Vec<Tree> = answers.iter().map(|a| Tree::prompt_with_answers(&[1; 1024], std::slice::from_ref(a))).collect();
    let (shared, repeated) =
        (TrainingFlops::of(&config, &params, &shared), TrainingFlops::of(&config, &params, &Plan::for_trees(&repeated)));
    println!("shared {shared:?}\nrepeated {repeated:?}\nratio {:.2}", repeated.total() / shared.total());
    assert_eq!(repeated.linear / shared.linear, 4.5);
    // The head works on the answers' tokens alone in both, and so saves nothing.
    assert_eq!(repeated.head, shared.head);
    // A query sees its whole history either way, so attention saves less than the products with weights do.
    assert!(repeated.attention / shared.attention > 3.2);
    repeated.total() / shared.total()
}

#[test]
fn eight_answers_of_128_tokens_to_a_prompt_of_1024() {
    // Where the head and attention are a large part of the model, less is saved.
    assert!(saving(smollm2_135m()) > 3.85);
    assert!(saving(qwen_7b()) > 4.25);
    assert!(saving(qwen_32b()) > 4.3);
}
