//! The 2-norm of gradients, and the search for numbers that are not finite.

pub mod cuda;

use crate::tensor::cpu::parallel::ELEMENTS;
use crate::tensor::cpu::vectorized;
use rayon::prelude::*;

/// Sum of squares in f64: sixteen lanes and a fixed tree inside fixed blocks, block sums added in order.
pub fn sum_of_squares(x: &[f32]) -> f64 {
    let blocks: Vec<f64> = x.par_chunks(ELEMENTS).map(block_sum).collect();
    blocks.iter().sum()
}

vectorized! {
    fn block_sum(x: &[f32]) -> f64 {
        let mut lanes = [0.0f64; 16];
        for part in x.chunks(16) {
            for (lane, &x) in lanes.iter_mut().zip(part) {
                *lane += f64::from(x) * f64::from(x);
            }
        }
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                lanes[i] += lanes[i + half];
            }
        }
        lanes[0]
    }
}

/// Whether every number is finite.
pub fn all_finite(x: &[f32]) -> bool {
    x.par_chunks(ELEMENTS).all(|b| b.iter().fold(0u32, |bad, x| bad | u32::from(x.to_bits() & 0x7f80_0000 == 0x7f80_0000)) == 0)
}
