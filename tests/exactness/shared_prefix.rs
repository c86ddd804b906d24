//! What a shared prompt saves, counted.

use crate::tiny;
use sorft_native::model::config::{Family, ModelConfig};
use sorft_native::model::flops::TrainingFlops;
use sorft_native::model::transformer::ParamInfo;
use sorft_native::tensor::plan::{Plan, Tree};

/// SmolLM2-135M's shape, without its weights.
fn smollm2() -> (ModelConfig, Vec<ParamInfo>) {
    let config = ModelConfig {
        vocab_size: 49152,
        hidden_size: 576,
        intermediate_size: 1536,
        num_layers: 30,
        num_heads: 9,
        num_kv_heads: 3,
        head_dim: 64,
        ..tiny::config(Family::Llama)
    };
    let shapes =
        [("q_proj", 576), ("k_proj", 192), ("v_proj", 192), ("o_proj", 576), ("gate_proj", 1536), ("up_proj", 1536), ("down_proj", 1536)];
    let info = |layer: usize, (name, n): (&str, usize)| ParamInfo {
        name: format!("model.layers.{layer}.{name}"),
        shape: vec![n, 576],
        decay: true,
    };
    (config, (0..30).flat_map(|layer| shapes.map(|s| info(layer, s))).collect())
}

#[test]
fn eight_answers_of_128_tokens_to_a_prompt_of_1024() {
    let (config, params) = smollm2();
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
    assert!(repeated.total() / shared.total() > 3.7);
}
