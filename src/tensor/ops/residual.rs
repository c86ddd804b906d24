//! Sums of activations, element by element: the residual stream and the gradients that meet in it.

use crate::tensor::Tensor;
use crate::tensor::cpu::parallel::over_rows;

/// x += y; both `[T, D]`.
pub fn add_to(x: &mut Tensor, y: &Tensor) {
    assert_eq!(x.shape(), y.shape());
    let width = x.cols();
    over_rows(x.data_mut(), width, |first, block| {
        for (x, y) in block.iter_mut().zip(&y.data()[first * width..]) {
            *x += y;
        }
    });
}

/// Each row of x `[T, D]` += b `[D]`.
pub fn add_bias(x: &mut Tensor, b: &Tensor) {
    let width = x.cols();
    assert_eq!(b.shape(), [width]);
    over_rows(x.data_mut(), width, |_, block| {
        for row in block.chunks_exact_mut(width) {
            for (x, b) in row.iter_mut().zip(b.data()) {
                *x += b;
            }
        }
    });
}

/// db `[D]` += sum over tokens of dy `[T, D]`, the tokens one after another.
pub fn bias_gradient(dy: &Tensor, db: &mut [f32]) {
    for row in dy.data().chunks_exact(dy.cols()) {
        for (db, dy) in db.iter_mut().zip(row) {
            *db += dy;
        }
    }
}
