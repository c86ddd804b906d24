//! A linear layer with its optional bias and low-rank adapter: y = x W' + b + s (x A') B'.

use crate::model::gradients::Gradients;
use crate::model::params::{ParamId, Params};
use crate::tensor::Tensor;
use crate::tensor::ops::{matmul, residual};
use std::ops::Range;

/// Which policy a forward pass computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Adapter {
    /// With the LoRA adapter, where there is one.
    On,
    /// The base model alone: with LoRA, the reference policy.
    Off,
}

/// A linear layer's tensors.
#[derive(Clone, Debug)]
pub(crate) struct Linear {
    /// `[out, in]`.
    pub weight: ParamId,
    /// `[out]`.
    pub bias: Option<ParamId>,
    pub lora: Option<LoraLayer>,
}

/// A layer's adapter: A `[r, in]`, B `[out, r]`, s = alpha / r.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LoraLayer {
    pub a: ParamId,
    pub b: ParamId,
    pub scale: f32,
}

impl Linear {
    /// y `[T, out]` for x `[T, in]`.
    pub fn forward(&self, params: &Params, x: &Tensor, adapter: Adapter) -> Tensor {
        let [y] = Self::forward_many(params, [self], x, adapter);
        y
    }

    /// Several layers of the same input, in one go; the same bits as one by one.
    pub fn forward_many<const N: usize>(params: &Params, layers: [&Linear; N], x: &Tensor, adapter: Adapter) -> [Tensor; N] {
        let mut outputs = matmul::forward_many(x, layers.map(|l| params.weight(l.weight)));
        for (layer, y) in layers.iter().zip(&mut outputs) {
            if let Some(bias) = layer.bias {
                residual::add_bias(y, params.vector(bias));
            }
            if let (Some(lora), Adapter::On) = (layer.lora, adapter) {
                let u = lora.low_rank(params, x);
                matmul::forward_add(&u, params.weight(lora.b), y);
            }
        }
        outputs
    }

    /// dx for dy `[T, out]`, adding to the trained gradients. `x` is the forward's input.
    pub fn backward(&self, params: &Params, x: &Tensor, dy: &Tensor, chunks: &[Range<usize>], grads: &mut Gradients) -> Tensor {
        if let Some(dw) = grads.matrix_mut(self.weight) {
            matmul::backward_weight_in(params.compute(), dy, x, chunks, dw);
        }
        if let Some(db) = self.bias.and_then(|b| grads.vector_mut(b)) {
            residual::bias_gradient(dy, chunks, db);
        }
        let mut dx = matmul::backward_input(dy, params.weight(self.weight));
        if let Some(lora) = self.lora {
            lora.backward(params, x, dy, chunks, grads, &mut dx);
        }
        dx
    }
}

impl LoraLayer {
    /// u = s x A'.
    fn low_rank(&self, params: &Params, x: &Tensor) -> Tensor {
        let mut u = matmul::forward(x, params.weight(self.a));
        matmul::scale(&mut u, self.scale);
        u
    }

    fn backward(&self, params: &Params, x: &Tensor, dy: &Tensor, chunks: &[Range<usize>], grads: &mut Gradients, dx: &mut Tensor) {
        if let Some(db) = grads.matrix_mut(self.b) {
            matmul::backward_weight_in(params.compute(), dy, &self.low_rank(params, x), chunks, db);
        }
        let mut du = matmul::backward_input(dy, params.weight(self.b));
        matmul::scale(&mut du, self.scale);
        if let Some(da) = grads.matrix_mut(self.a) {
            matmul::backward_weight_in(params.compute(), &du, x, chunks, da);
        }
        matmul::backward_input_add(&du, params.weight(self.a), dx);
    }
}
