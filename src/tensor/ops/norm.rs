//! The 2-norm of gradients, and the search for numbers that are not finite.

use crate::tensor::cpu::parallel::ELEMENTS;
use rayon::prelude::*;

/// Sum of squares in f64: element by element inside fixed blocks, block sums added in order.
pub fn sum_of_squares(x: &[f32]) -> f64 {
    let blocks: Vec<f64> = x.par_chunks(ELEMENTS).map(|b| b.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>()).collect();
    blocks.iter().sum()
}

/// Whether every number is finite.
pub fn all_finite(x: &[f32]) -> bool {
    x.par_chunks(ELEMENTS).all(|b| b.iter().fold(0u32, |bad, x| bad | u32::from(x.to_bits() & 0x7f80_0000 == 0x7f80_0000)) == 0)
}
