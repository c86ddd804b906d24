//! The linear layer: y = x W' + b, with an optional low-rank term s (x A') B' (LoRA).
//!
//! Shapes: x `[T, K]`, y `[T, N]`, W `[N, K]` in panels, b `[N]`, A `[r, K]`, B `[N, r]`. Contractions are summed in chunks of
//! [`K_CHUNK`](crate::tensor::plan::K_CHUNK); weight gradients over the plan's token chunks.

pub mod cuda;

use crate::tensor::Tensor;
use crate::tensor::cpu::{PanelMatrix, gemm};
use std::ops::Range;

/// y = x W'.
pub fn forward(x: &Tensor, w: &PanelMatrix) -> Tensor {
    let [y] = forward_many(x, [w]);
    y
}

/// Several products of the same x, in one go; the same bits as [`forward`] one by one.
pub fn forward_many<const N: usize>(x: &Tensor, weights: [&PanelMatrix; N]) -> [Tensor; N] {
    let mut out = gemm::nt_many(x.data(), weights.map(|w| w.view()));
    std::array::from_fn(|i| Tensor::from_vec(&[x.rows(), weights[i].n()], std::mem::take(&mut out[i])))
}

/// y += x W'.
pub fn forward_add(x: &Tensor, w: &PanelMatrix, y: &mut Tensor) {
    gemm::nt(x.data(), w.view(), y.data_mut(), true);
}

/// dx = dy W.
pub fn backward_input(dy: &Tensor, w: &PanelMatrix) -> Tensor {
    Tensor::from_vec(&[dy.rows(), w.k()], gemm::nn(dy.data(), w.view()))
}

/// dx += dy W.
pub fn backward_input_add(dy: &Tensor, w: &PanelMatrix, dx: &mut Tensor) {
    gemm::nn_add(dy.data(), w.view(), dx.data_mut());
}

/// dW += dy' x, summed over `chunks` of tokens.
pub fn backward_weight(dy: &Tensor, x: &Tensor, chunks: &[Range<usize>], dw: &mut PanelMatrix) {
    gemm::tn_into(dy.data(), x.data(), chunks, dw);
}

/// u *= s, element by element: the scale of the low-rank term, applied to u = x A' (and to its gradient).
pub fn scale(u: &mut Tensor, s: f32) {
    for x in u.data_mut() {
        *x *= s;
    }
}
