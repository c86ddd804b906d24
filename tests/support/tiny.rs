//! Small random models, made without any file.

use sorft_native::model::config::{Family, ModelConfig, RopeScaling};
use sorft_native::model::transformer::Transformer;
use sorft_native::tensor::Device;
use sorft_native::tensor::cpu::Compute;
use sorft_native::tensor::philox::Philox;

/// A small model of a family: odd widths, grouped heads, more than one 512-chunk in the feed-forward.
pub fn config(family: Family) -> ModelConfig {
    ModelConfig {
        family,
        vocab_size: 301,
        hidden_size: 40,
        intermediate_size: 600,
        num_layers: 2,
        num_heads: 4,
        num_kv_heads: 2,
        head_dim: if family == Family::Qwen3 { 16 } else { 10 },
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
        rms_norm_eps: 1e-5,
        max_position_embeddings: 512,
        tie_word_embeddings: family != Family::Qwen3,
        qkv_bias: family == Family::Qwen2,
        o_bias: false,
        mlp_bias: false,
        qk_norm: family == Family::Qwen3,
        eos_token_ids: vec![0],
        bos_token_id: None,
    }
}

/// Random weights: norms around 1, the rest of a size that keeps activations of order 1.
pub fn model(config: ModelConfig, seed: u64) -> Transformer {
    model_in(Compute::F32, config, seed)
}

/// The same, whose products compute in `compute`.
pub fn model_in(compute: Compute, config: ModelConfig, seed: u64) -> Transformer {
    let mut stream = 0;
    Transformer::build_in(&Device::Cpu, compute, config, &mut |info| {
        stream += 1;
        let random = Philox::new(seed, stream);
        let scale = if info.shape.len() == 2 { 2.0 / (info.shape[1] as f64).sqrt() } else { 0.3 };
        let shift = if info.name.contains("norm") { 1.0 } else { 0.0 };
        Ok((0..info.shape.iter().product::<usize>()).map(|i| (shift + scale * random.normal(i as u64, 0)) as f32).collect())
    })
    .expect("a tiny model")
}

/// `n` random token ids.
pub fn ids(n: usize, seed: u64) -> Vec<u32> {
    let random = Philox::new(seed, 77);
    (0..n).map(|i| (random.uniform(i as u64, 0) * 300.0) as u32 + 1).collect()
}
