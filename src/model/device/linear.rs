//! A linear layer on a device: bias and adapter are terms of the product's own launch.

use super::batch::{BackwardBatch, Pass};
use crate::Result;
use crate::model::gradients::Gradients;
use crate::model::linear::{Adapter, Linear, LoraLayer};
use crate::model::params::{ParamId, Params};
use crate::tensor::cuda::Buffer;
use crate::tensor::ops::matmul::cuda::{self as matmul, LowRank, Shape};
use crate::tensor::ops::residual;

/// Rows and columns of a matrix.
fn shape(params: &Params, id: ParamId, tokens: usize) -> Shape {
    match params.all()[id].info.shape[..] {
        [n, k] => Shape { m: tokens, n, k },
        _ => panic!("{} is not a matrix", params.all()[id].info.name),
    }
}

impl Linear {
    /// y `[T, out]` for x `[T, in]`.
    pub(super) fn forward_on(&self, pass: &Pass<'_>, x: &Buffer) -> Result<Buffer> {
        let (params, shape) = (pass.params, shape(pass.params, self.weight, pass.batch.tokens));
        let lora = self.lora.filter(|_| pass.adapter == Adapter::On);
        let low = lora.map(|l| l.low_rank_on(pass, x)).transpose()?;
        let adapter = lora.zip(low.as_ref()).map(|(l, low)| l.term(params, low, l.b));
        matmul::forward(pass.gpu, x, params.bf16(self.weight), self.bias.map(|b| params.bf16(b)), adapter, shape)
    }

    /// dx for dy `[T, out]`, adding to the trained gradients. `x` is the forward's input.
    pub(super) fn backward_on(
        &self,
        pass: &Pass<'_>,
        back: &BackwardBatch,
        x: &Buffer,
        dy: &Buffer,
        grads: &mut Gradients,
    ) -> Result<Buffer> {
        let (params, shape) = (pass.params, shape(pass.params, self.weight, pass.batch.tokens));
        let Shape { n, k, .. } = shape;
        if let Some(dw) = grads.buffer_mut(self.weight) {
            matmul::backward_weight(dw, dy, x, &back.tokens, n, k, 1.0)?;
        }
        if let Some(db) = self.bias.and_then(|b| grads.buffer_mut(b)) {
            residual::cuda::bias_gradient(db, dy, &back.rows)?;
        }
        let Some(lora) = self.lora else {
            return matmul::backward_input(pass.gpu, dy, params.bf16(self.weight), None, shape);
        };
        let rank = lora.rank(params);
        let low = matmul::backward_input(pass.gpu, dy, params.bf16(lora.b), None, Shape { k: rank, ..shape })?;
        if let Some(db) = grads.buffer_mut(lora.b) {
            matmul::backward_weight(db, dy, &lora.low_rank_on(pass, x)?, &back.tokens, n, rank, lora.scale)?;
        }
        if let Some(da) = grads.buffer_mut(lora.a) {
            matmul::backward_weight(da, &low, x, &back.tokens, rank, k, lora.scale)?;
        }
        matmul::backward_input(pass.gpu, dy, params.bf16(self.weight), Some(lora.term(params, &low, lora.a)), shape)
    }
}

impl LoraLayer {
    fn rank(&self, params: &Params) -> usize {
        params.all()[self.a].info.shape[0]
    }

    /// x A'.
    fn low_rank_on(&self, pass: &Pass<'_>, x: &Buffer) -> Result<Buffer> {
        matmul::forward(pass.gpu, x, pass.params.bf16(self.a), None, None, shape(pass.params, self.a, pass.batch.tokens))
    }

    fn term<'a>(&self, params: &'a Params, low: &'a Buffer, matrix: ParamId) -> LowRank<'a> {
        LowRank { low, matrix: params.bf16(matrix), rank: self.rank(params), scale: self.scale }
    }
}
