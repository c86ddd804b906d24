//! The linear layer: y = x W' + b, with an optional low-rank term s (x A') B' (LoRA).
//!
//! Shapes: x `[T, K]`, y `[T, N]`, W `[N, K]` in panels, b `[N]`, A `[r, K]`, B `[N, r]`. Contractions are summed in chunks of
//! [`K_CHUNK`](crate::tensor::plan::K_CHUNK); weight gradients over the plan's token chunks. Where W is in bf16, x, W and dy are rounded to it
//! and the chunks are shorter ([`bf16`](crate::tensor::cpu::bf16)); y, dx and dW are f32 all the same, and the bias is added in f32.

pub mod cuda;

use crate::tensor::Tensor;
use crate::tensor::cpu::{Compute, PanelMatrix, Weight};
use std::ops::Range;

/// y = x W'.
pub fn forward<'a>(x: &Tensor, w: impl Into<Weight<'a>>) -> Tensor {
    let [y] = forward_many(x, [w]);
    y
}

/// Several products of the same x, in one go; the same bits as [`forward`] one by one.
pub fn forward_many<'a, const N: usize>(x: &Tensor, weights: [impl Into<Weight<'a>>; N]) -> [Tensor; N] {
    let weights = weights.map(Into::into);
    let mut out = Weight::nt_many(x.data(), weights);
    std::array::from_fn(|i| Tensor::from_vec(&[x.rows(), weights[i].n()], std::mem::take(&mut out[i])))
}

/// y += x W'.
pub fn forward_add<'a>(x: &Tensor, w: impl Into<Weight<'a>>, y: &mut Tensor) {
    w.into().nt(x.data(), y.data_mut(), true);
}

/// dx = dy W.
pub fn backward_input<'a>(dy: &Tensor, w: impl Into<Weight<'a>>) -> Tensor {
    let w = w.into();
    Tensor::from_vec(&[dy.rows(), w.k()], w.nn(dy.data()))
}

/// dx += dy W.
pub fn backward_input_add<'a>(dy: &Tensor, w: impl Into<Weight<'a>>, dx: &mut Tensor) {
    w.into().nn_add(dy.data(), dx.data_mut());
}

/// dW += dy' x, summed over `chunks` of tokens.
pub fn backward_weight(dy: &Tensor, x: &Tensor, chunks: &[Range<usize>], dw: &mut PanelMatrix) {
    backward_weight_in(Compute::F32, dy, x, chunks, dw);
}

/// The same in the arithmetic of the weight.
pub fn backward_weight_in(compute: Compute, dy: &Tensor, x: &Tensor, chunks: &[Range<usize>], dw: &mut PanelMatrix) {
    let shape = (dw.n(), dw.k());
    compute.tn(dy.data(), x.data(), shape, chunks, dw.data_mut());
}

/// u *= s, element by element: the scale of the low-rank term, applied to u = x A' (and to its gradient).
pub fn scale(u: &mut Tensor, s: f32) {
    for x in u.data_mut() {
        *x *= s;
    }
}
