//! The linear layer: y = x W' + b, with an optional low-rank term s (x A') B' (LoRA).
//!
//! Shapes: x `[T, K]`, y `[T, N]`, W `[N, K]` in panels, b `[N]`, A `[r, K]`, B `[N, r]`. Contractions are summed in chunks of
//! [`K_CHUNK`](crate::tensor::plan::K_CHUNK); weight gradients over the plan's token chunks.

use crate::tensor::Tensor;
use crate::tensor::cpu::{PanelMatrix, gemm};
use std::ops::Range;

/// y = x W'.
pub fn forward(x: &Tensor, w: &PanelMatrix) -> Tensor {
    let mut y = Tensor::zeros(&[x.rows(), w.n()]);
    gemm::nt(x.data(), w.view(), y.data_mut(), false);
    y
}

/// y += x W'.
pub fn forward_add(x: &Tensor, w: &PanelMatrix, y: &mut Tensor) {
    gemm::nt(x.data(), w.view(), y.data_mut(), true);
}

/// dx = dy W.
pub fn backward_input(dy: &Tensor, w: &PanelMatrix) -> Tensor {
    let mut dx = Tensor::zeros(&[dy.rows(), w.k()]);
    gemm::nn(dy.data(), w.view(), dx.data_mut(), false);
    dx
}

/// dx += dy W.
pub fn backward_input_add(dy: &Tensor, w: &PanelMatrix, dx: &mut Tensor) {
    gemm::nn(dy.data(), w.view(), dx.data_mut(), true);
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
