//! Sums of activations, element by element: the residual stream and the gradients that meet in it.

pub mod cuda;

use crate::tensor::Tensor;
use crate::tensor::cpu::parallel::over_rows;
use std::ops::Range;

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

/// db `[D]` += sum over tokens of dy `[T, D]`: the tokens of each chunk one after another in f64, the chunks' sums in order.
pub fn bias_gradient(dy: &Tensor, chunks: &[Range<usize>], db: &mut Tensor) {
    let mut sums = vec![0.0f64; dy.cols()];
    for chunk in chunks {
        sums.fill(0.0);
        for t in chunk.clone() {
            sums.iter_mut().zip(dy.row(t)).for_each(|(sum, dy)| *sum += f64::from(*dy));
        }
        db.data_mut().iter_mut().zip(&sums).for_each(|(db, sum)| *db += *sum as f32);
    }
}
