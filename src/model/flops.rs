//! How many floating-point operations a plan costs: the numbers behind "a prompt is paid for once".

use crate::model::config::ModelConfig;
use crate::model::transformer::ParamInfo;
use crate::tensor::ops::token_logprob::KEPT_LOGITS;
use crate::tensor::plan::Plan;

/// Operations of the parts of a training step (a multiply and an add are two).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TrainingFlops {
    /// Products with the blocks' weights: forward, the input's gradient, the weight's gradient.
    pub linear: f64,
    /// Attention: forward 2 products, backward 7 (scores and their gradients are formed in both of its passes).
    pub attention: f64,
    /// The head on the predictions: forward, two gradients, and the logits again where there were too many to keep.
    pub head: f64,
}

impl TrainingFlops {
    /// Of a full-parameter training step over `plan`, without activation checkpointing.
    pub fn of(config: &ModelConfig, params: &[ParamInfo], plan: &Plan) -> Self {
        let blocks = params.iter().filter(|p| p.name.starts_with("model.layers.") && p.shape.len() == 2);
        let weights: usize = blocks.map(|p| p.shape.iter().product::<usize>()).sum();
        let keys: usize = plan.segments.iter().map(|s| (s.start + 1..=s.end()).sum::<usize>()).sum();
        let product = 2.0 * keys as f64 * (config.num_heads * config.head_dim * config.num_layers) as f64;
        let logits = config.vocab_size * plan.predictions.len();
        let head_products = if logits <= KEPT_LOGITS { 3.0 } else { 4.0 };
        Self {
            linear: 6.0 * weights as f64 * plan.num_tokens() as f64,
            attention: 9.0 * product,
            head: 2.0 * head_products * config.hidden_size as f64 * logits as f64,
        }
    }

    /// All together.
    pub fn total(&self) -> f64 {
        self.linear + self.attention + self.head
    }
}
