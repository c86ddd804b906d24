//! AdamW (Loshchilov and Hutter 2019), with global-norm clipping.

use crate::Result;
use crate::model::transformer::{Gradients, Transformer};

/// Settings of AdamW.
#[derive(Clone, Debug, PartialEq)]
pub struct AdamWConfig {
    /// Decay rates of the first and second moment.
    pub betas: (f64, f64),
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay, on matrices.
    pub weight_decay: f64,
    /// Also on norms and biases.
    pub decay_norms_and_biases: bool,
    /// Gradients are scaled down to this 2-norm; 0 for no clipping.
    pub max_grad_norm: f64,
}

/// The optimizer with its moments.
pub struct AdamW {
    _config: AdamWConfig,
}

impl AdamW {
    /// Moments of zero for everything the model trains.
    pub fn new(_model: &Transformer, config: AdamWConfig) -> Self {
        Self { _config: config }
    }
    /// One step with learning rate `lr`; `step` counts from 1. Returns the gradient's norm before clipping.
    pub fn step(&mut self, _model: &mut Transformer, _grads: &Gradients, _lr: f64, _step: u64) -> Result<f64> {
        todo!()
    }
    /// First and second moment of a trained tensor, row-major.
    pub fn export(&self, _name: &str) -> Result<(Vec<f32>, Vec<f32>)> {
        todo!()
    }
    /// Replaces the moments of a trained tensor.
    pub fn import(&mut self, _name: &str, _first: &[f32], _second: &[f32]) -> Result<()> {
        todo!()
    }
}
