//! The whole model on a device: the launches of a GPU, run by the emulator, against the processor's model.

#[path = "../support/emulator.rs"]
mod emulator;
#[allow(dead_code)]
#[path = "../rl/support.rs"]
mod support;
#[path = "../support/tiny.rs"]
mod tiny;

mod block;
mod commands;
mod decode;
mod memory;

mod step;

use half::bf16;
use sorft_native::model::config::{Family, ModelConfig};
use sorft_native::model::transformer::Transformer;
use sorft_native::tensor::Device;
use sorft_native::tensor::cuda::Gpu;
use std::sync::Arc;

/// A small model of a family that the kernels take: heads of 64, widths in multiples of 8.
pub fn config(family: Family) -> ModelConfig {
    ModelConfig {
        vocab_size: 304,
        hidden_size: 128,
        intermediate_size: 136,
        num_heads: 2,
        num_kv_heads: 1,
        head_dim: 64,
        ..tiny::config(family)
    }
}

/// The smallest model that they take.
pub fn smallest() -> ModelConfig {
    ModelConfig { hidden_size: 64, intermediate_size: 72, num_layers: 1, num_heads: 1, ..config(Family::Llama) }
}

/// The same weights, which bf16 holds, on the processor and on a device. Matrices keep the size of what they multiply: the harsher ones of `tiny`
/// double it, and with it every rounding before them.
pub fn twins(gpu: &Arc<Gpu>, config: &ModelConfig, seed: u64) -> (Transformer, Transformer) {
    let random = tiny::model(config.clone(), seed);
    let read = |name: &str| {
        let gain = if name.contains("norm") || name.contains("bias") { 1.0 } else { 0.5 };
        Ok(random.export(name)?.into_iter().map(|x| bf16::from_f32(gain * x).to_f32()).collect())
    };
    let cpu = Transformer::build(config.clone(), &mut |info| read(&info.name)).expect("a model");
    let device = Transformer::build_on(&Device::Cuda(gpu.clone()), config.clone(), &mut |info| read(&info.name)).expect("on the device");
    (cpu, device)
}

/// ||got - want|| / ||want||.
pub fn error(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let off = norm(&mut got.iter().zip(want).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    if off == 0.0 { 0.0 } else { off / norm(&mut want.iter().map(|x| f64::from(*x))) }
}

pub fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}
