//! SwiGLU (Shazeer 2020): y = silu(gate) * up with silu(g) = g / (1 + e^-g), element by element. All `[T, F]`.

pub mod cuda;

use crate::tensor::Tensor;
use crate::tensor::cpu::parallel::{ELEMENTS, SharedMut, over_rows, over_units};
use crate::tensor::cpu::{vector, vectorized};

/// y = silu(gate) * up.
pub fn forward(gate: &Tensor, up: &Tensor) -> Tensor {
    assert_eq!(gate.shape(), up.shape());
    let mut y = Tensor::zeros(gate.shape());
    over_rows(y.data_mut(), 1, |first, block| {
        let n = block.len();
        forward_slice(&gate.data()[first..first + n], &up.data()[first..first + n], block);
    });
    y
}

vectorized! {
    fn forward_slice(gate: &[f32], up: &[f32], y: &mut [f32]) {
        for ((y, &g), u) in y.iter_mut().zip(gate).zip(up) {
            *y = g * vector::sigmoid(g) * u;
        }
    }
}

/// Returns (d gate, d up): d gate = dy up s (1 + g (1 - s)), d up = dy g s, with s = sigmoid(gate).
pub fn backward(dy: &Tensor, gate: &Tensor, up: &Tensor) -> (Tensor, Tensor) {
    let mut dgate = Tensor::zeros(gate.shape());
    let mut dup = Tensor::zeros(gate.shape());
    let total = gate.data().len();
    let (out_gate, out_up) = (SharedMut::new(dgate.data_mut()), SharedMut::new(dup.data_mut()));
    over_units(total.div_ceil(ELEMENTS), |unit| {
        let from = unit * ELEMENTS;
        let n = ELEMENTS.min(total - from);
        // SAFETY: each unit has its own elements.
        let (dgate, dup) = unsafe { (out_gate.slice(from, n), out_up.slice(from, n)) };
        let span = from..from + n;
        backward_slice(&dy.data()[span.clone()], &gate.data()[span.clone()], &up.data()[span], dgate, dup);
    });
    (dgate, dup)
}

vectorized! {
    fn backward_slice(dy: &[f32], gate: &[f32], up: &[f32], dgate: &mut [f32], dup: &mut [f32]) {
        for ((((dgate, dup), &dy), &g), &u) in dgate.iter_mut().zip(dup).zip(dy).zip(gate).zip(up) {
            let s = vector::sigmoid(g);
            *dup = dy * (g * s);
            *dgate = dy * u * (s * (1.0 + g * (1.0 - s)));
        }
    }
}
