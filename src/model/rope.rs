//! Rotary frequencies of a model, formed in f32 as transformers forms them.

use crate::model::config::{ModelConfig, RopeScaling};

/// inv_freq `[head_dim / 2]`: theta^(-2i/d), changed by the model's scaling.
pub fn inverse_frequencies(config: &ModelConfig) -> Vec<f32> {
    let d = config.head_dim;
    let plain = (0..d / 2).map(|i| 1.0 / (config.rope_theta as f32).powf((2 * i) as f32 / d as f32));
    match config.rope_scaling {
        RopeScaling::None => plain.collect(),
        RopeScaling::Linear { factor } => plain.map(|f| f / factor as f32).collect(),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
            let (factor, low, high) = (factor as f32, low_freq_factor as f32, high_freq_factor as f32);
            let context = original_max_position_embeddings as f32;
            plain.map(|f| llama3(f, factor, low, high, context)).collect()
        }
    }
}

/// Llama 3.1's scaling of one frequency: long wavelengths divided by `factor`, short ones kept, those between mixed linearly in the number
/// of turns over the original context.
fn llama3(f: f32, factor: f32, low: f32, high: f32, context: f32) -> f32 {
    let wavelength = 2.0 * std::f32::consts::PI / f;
    if wavelength > context / low {
        f / factor
    } else if wavelength < context / high {
        f
    } else {
        let smooth = (context / wavelength - low) / (high - low);
        (1.0 - smooth) * f / factor + smooth * f
    }
}
