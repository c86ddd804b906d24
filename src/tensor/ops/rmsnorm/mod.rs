//! RMSNorm (Zhang and Sennrich 2019): y = x / rms(x) * w with rms(x) = sqrt(mean(x^2) + eps), over the last dimension.
//!
//! Shapes: x, y, dx, dy `[T, D]`; w, dw `[D]`; rstd `[T]`. A per-head norm (Qwen3's QK-norm) is the same op on `[T * H, head_dim]`.
//! The sum of squares runs over 16 lanes and a fixed tree. dw sums the rows of each chunk one after another in f64, and adds the chunks' sums
//! in order.

pub mod cuda;

use crate::Result;
use crate::tensor::cpu::parallel::{SharedMut, over_rows, over_units};
use crate::tensor::cpu::{vector, vectorized};
use crate::tensor::{Storage, Tensor};
use std::ops::Range;

/// Returns y `[T, D]` and rstd = 1 / rms(x) `[T]`, where x is.
///
/// # Errors
/// If the device is out of memory or failed.
///
/// # Panics
/// If the shapes do not fit, or x and w are not in one place.
pub fn forward(x: &Tensor, w: &Tensor, eps: f32) -> Result<(Tensor, Tensor)> {
    let (rows, width) = (x.rows(), x.cols());
    assert_eq!(w.shape(), [width], "the weight has the width of the rows");
    if let Storage::Cuda(buffer) = x.storage() {
        let (y, rstd) = cuda::forward(buffer.gpu(), buffer, w.buffer(), rows, width, eps)?;
        return Ok((Tensor::from_device(x.shape(), y), Tensor::from_device(&[rows], rstd)));
    }
    let mut y = Tensor::zeros(x.shape());
    let mut rstd = Tensor::zeros(&[rows]);
    let stds = SharedMut::new(rstd.data_mut());
    over_rows(y.data_mut(), width, |first, block| {
        let count = block.len() / width;
        // SAFETY: each block has its own rows.
        let stds = unsafe { stds.slice(first, count) };
        forward_rows(&x.data()[first * width..(first + count) * width], w.data(), eps, block, stds);
    });
    Ok((y, rstd))
}

vectorized! {
    fn forward_rows(x: &[f32], w: &[f32], eps: f32, y: &mut [f32], rstd: &mut [f32]) {
        let width = w.len();
        for ((x, y), rstd) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)).zip(rstd) {
            let r = 1.0 / (vector::dot(x, x) / width as f32 + eps).sqrt();
            *rstd = r;
            for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
                *y = x * r * w;
            }
        }
    }
}

/// Returns dx and adds to dw:
/// dx = rstd * (dy w - x rstd^2 mean(dy w x)), dw += sum over tokens of dy x rstd, over `chunks` of rows.
///
/// # Errors
/// If the device is out of memory or failed.
///
/// # Panics
/// If the shapes do not fit, or the tensors are not in one place.
pub fn backward(dy: &Tensor, x: &Tensor, w: &Tensor, rstd: &Tensor, chunks: &[Range<usize>], dw: Option<&mut Tensor>) -> Result<Tensor> {
    let (rows, width) = (x.rows(), x.cols());
    assert!(dy.shape() == x.shape() && w.shape() == [width] && rstd.shape() == [rows], "dy and x are alike");
    if let Storage::Cuda(buffer) = x.storage() {
        let gpu = buffer.gpu();
        let chunks = dw.is_some().then(|| cuda::RowChunks::new(gpu, chunks, 1)).transpose()?;
        let dw = dw.map(Tensor::buffer_mut).zip(chunks.as_ref());
        let dx = cuda::backward(gpu, dy.buffer(), buffer, w.buffer(), rstd.buffer(), rows, width, None, dw)?;
        return Ok(Tensor::from_device(x.shape(), dx));
    }
    let mut dx = Tensor::zeros(x.shape());
    over_rows(dx.data_mut(), width, |first, block| {
        let count = block.len() / width;
        let span = first * width..(first + count) * width;
        backward_rows(&dy.data()[span.clone()], &x.data()[span], w.data(), &rstd.data()[first..first + count], block);
    });
    if let Some(dw) = dw {
        weight_gradient(dy, x, rstd, chunks, dw.data_mut());
    }
    Ok(dx)
}

vectorized! {
    fn backward_rows(dy: &[f32], x: &[f32], w: &[f32], rstd: &[f32], dx: &mut [f32]) {
        let width = w.len();
        for (((dy, x), dx), &r) in dy.chunks_exact(width).zip(x.chunks_exact(width)).zip(dx.chunks_exact_mut(width)).zip(rstd) {
            let mean = vector::dot3(dy, w, x) / width as f32;
            let k = r * r * mean;
            for (((dx, dy), x), w) in dx.iter_mut().zip(dy).zip(x).zip(w) {
                *dx = r * (dy * w - x * k);
            }
        }
    }
}

/// Columns that one unit sums over all tokens.
const COLUMNS: usize = 64;

fn weight_gradient(dy: &Tensor, x: &Tensor, rstd: &Tensor, chunks: &[Range<usize>], dw: &mut [f32]) {
    let width = x.cols();
    let out = SharedMut::new(dw);
    over_units(width.div_ceil(COLUMNS), |unit| {
        let from = unit * COLUMNS;
        // SAFETY: each unit has its own columns.
        let dw = unsafe { out.slice(from, COLUMNS.min(width - from)) };
        for chunk in chunks {
            weight_columns(dy.data(), x.data(), rstd.data(), chunk.clone(), from, dw);
        }
    });
}

vectorized! {
    fn weight_columns(dy: &[f32], x: &[f32], rstd: &[f32], chunk: Range<usize>, from: usize, dw: &mut [f32]) {
        let (n, width) = (dw.len(), x.len() / rstd.len());
        let mut sums = [0.0f64; COLUMNS];
        for t in chunk {
            let (dy, x) = (&dy[t * width + from..][..n], &x[t * width + from..][..n]);
            for ((sum, dy), x) in sums.iter_mut().zip(dy).zip(x) {
                *sum += f64::from(*dy) * f64::from(*x * rstd[t]);
            }
        }
        for (dw, sum) in dw.iter_mut().zip(sums) {
            *dw += sum as f32;
        }
    }
}
