//! Rotary position embedding (Su et al. 2021), in the half-split form of Hugging Face: dimension i turns with dimension i + d/2.
//!
//! For a head x `[d]` at position p, with angle a_i = p * f_i (formed in f32, as transformers forms it):
//! y_i = x_i cos a_i - x_{i+d/2} sin a_i and y_{i+d/2} = x_{i+d/2} cos a_i + x_i sin a_i. The backward pass turns the other way.

pub mod cuda;

use crate::tensor::Tensor;
use crate::tensor::cpu::parallel::over_rows;
use crate::tensor::cpu::vectorized;

/// Cosines and sines of a set of tokens.
#[derive(Debug)]
pub struct Angles {
    half: usize,
    /// `[T, 2, d/2]`: a row's cosines, then its sines.
    table: Vec<f32>,
}

impl Angles {
    /// The angles of tokens at `positions` for frequencies `inv_freq` `[d/2]`: the product is rounded to f32, its cosine and sine are formed
    /// in f64 and rounded.
    pub fn new(positions: &[u32], inv_freq: &[f32]) -> Self {
        let half = inv_freq.len();
        let mut table = vec![0.0; positions.len() * 2 * half];
        over_rows(&mut table, 2 * half, |first, block| {
            for (row, &p) in block.chunks_exact_mut(2 * half).zip(&positions[first..]) {
                let (cos, sin) = row.split_at_mut(half);
                for ((c, s), f) in cos.iter_mut().zip(sin).zip(inv_freq) {
                    let (sine, cosine) = f64::from(p as f32 * f).sin_cos();
                    (*c, *s) = (cosine as f32, sine as f32);
                }
            }
        });
        Self { half, table }
    }

    /// The numbers of token `i`: cosines, then sines, `[2, d/2]`.
    pub fn row(&self, i: usize) -> &[f32] {
        &self.table[i * 2 * self.half..][..2 * self.half]
    }

    /// How many tokens there are.
    pub fn tokens(&self) -> usize {
        self.table.len() / (2 * self.half).max(1)
    }

    /// Adds the angles of tokens behind the others.
    pub fn extend(&mut self, positions: &[u32], inv_freq: &[f32]) {
        self.table.extend(Self::new(positions, inv_freq).table);
    }
}

/// Turns every head of x `[T, H * d]` in place.
pub fn forward(x: &mut Tensor, angles: &Angles) {
    turn(x, angles, 1.0);
}

/// The gradient's turn: the inverse of [`forward`], in place.
pub fn backward(dx: &mut Tensor, angles: &Angles) {
    turn(dx, angles, -1.0);
}

fn turn(x: &mut Tensor, angles: &Angles, sign: f32) {
    let (width, half) = (x.cols(), angles.half);
    assert_eq!(x.rows() * 2 * half, angles.table.len(), "one row of angles a token");
    assert!(width.is_multiple_of(2 * half), "whole heads of {} in rows of {width}", 2 * half);
    over_rows(x.data_mut(), width, |first, block| {
        turn_rows(block, width, half, &angles.table[first * 2 * half..], sign);
    });
}

vectorized! {
    fn turn_rows(x: &mut [f32], width: usize, half: usize, angles: &[f32], sign: f32) {
        for (row, angles) in x.chunks_exact_mut(width).zip(angles.chunks_exact(2 * half)) {
            let (cos, sin) = angles.split_at(half);
            for head in row.chunks_exact_mut(2 * half) {
                let (a, b) = head.split_at_mut(half);
                for (((a, b), c), s) in a.iter_mut().zip(b).zip(cos).zip(sin) {
                    let (x, y) = (*a, *b);
                    let s = s * sign;
                    *a = x * c - y * s;
                    *b = y * c + x * s;
                }
            }
        }
    }
}
