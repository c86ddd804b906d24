//! A linear layer on a device: bias and adapter are terms of the product's own launch.

use super::batch::{BackwardBatch, Pass};
use crate::Result;
use crate::model::gradients::Gradients;
use crate::model::linear::{Adapter, Linear, LoraLayer};
use crate::model::params::{ParamId, Params};
use crate::tensor::cuda::Buffer;
use crate::tensor::ops::matmul::cuda::{self as matmul, Layer, LowRank, Shape};
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
        let [y] = Self::forward_many_on(pass, [self], x)?;
        Ok(y)
    }

    /// The same of several layers of one input, of few tokens in few launches.
    pub(super) fn forward_many_on<const N: usize>(pass: &Pass<'_>, layers: [&Self; N], x: &Buffer) -> Result<[Buffer; N]> {
        let lows = Self::low_ranks_on(pass, layers, x)?;
        let operands: Vec<Layer<'_>> = layers.iter().zip(&lows).map(|(l, low)| l.operands(pass, low.as_ref())).collect();
        let Shape { m, k, .. } = layers.first().map(|l| shape(pass.params, l.weight, pass.batch.tokens)).expect("a layer");
        let outputs = matmul::forward_many(pass.gpu, x, &operands, m, k)?;
        Ok(outputs.try_into().expect("an output for each layer"))
    }

    /// silu(gate) * up of one input, of few tokens in few launches.
    pub(super) fn swiglu_on(pass: &Pass<'_>, gate: &Self, up: &Self, x: &Buffer) -> Result<Buffer> {
        let [low_gate, low_up] = Self::low_ranks_on(pass, [gate, up], x)?;
        let Shape { m, k, .. } = shape(pass.params, gate.weight, pass.batch.tokens);
        matmul::forward_swiglu(pass.gpu, x, &gate.operands(pass, low_gate.as_ref()), &up.operands(pass, low_up.as_ref()), m, k)
    }

    /// x A' of each layer that has an adapter, if it is on.
    fn low_ranks_on<const N: usize>(pass: &Pass<'_>, layers: [&Self; N], x: &Buffer) -> Result<[Option<Buffer>; N]> {
        let adapters = layers.map(|l| l.lora.filter(|_| pass.adapter == Adapter::On));
        let shapes = adapters.map(|lora| lora.map(|l| shape(pass.params, l.a, pass.batch.tokens)));
        let Some(Shape { m, k, .. }) = shapes.into_iter().flatten().next() else { return Ok([const { None }; N]) };
        let of = |lora: LoraLayer| Layer { w: pass.params.bf16(lora.a), bias: None, adapter: None, n: lora.rank(pass.params) };
        let operands: Vec<Layer<'_>> = adapters.into_iter().flatten().map(of).collect();
        let mut outputs = matmul::forward_many(pass.gpu, x, &operands, m, k)?.into_iter();
        Ok(adapters.map(|lora| lora.and_then(|_| outputs.next())))
    }

    /// What a product reads of the layer; `low` is x A', where the adapter is on.
    fn operands<'a>(&self, pass: &'a Pass<'_>, low: Option<&'a Buffer>) -> Layer<'a> {
        let params = pass.params;
        let adapter = self.lora.zip(low).map(|(l, low)| l.term(params, low, l.b));
        let n = shape(params, self.weight, pass.batch.tokens).n;
        Layer { w: params.bf16(self.weight), bias: self.bias.map(|b| params.bf16(b)), adapter, n }
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
