//! The AdamW step on a CUDA device: the launch of `kernels/adamw.cu`, which has the equations.

use super::Step;
use crate::Result;
use crate::tensor::cuda::{Buffer, DType, Kernel, Launch, Source};

/// Parameters that a block of 256 threads updates.
const BLOCK: usize = 256 * 4;

/// A parameter's memory: the master weight and the two moments `[n]` f32, and the weight that the model computes with, `[n]` bf16.
#[derive(Debug)]
pub struct State<'a> {
    /// The master weight.
    pub p: &'a mut Buffer,
    /// The master weight rounded to bf16.
    pub w: &'a mut Buffer,
    /// First moment.
    pub m: &'a mut Buffer,
    /// Second moment.
    pub v: &'a mut Buffer,
}

/// Updates a parameter in place by its gradient `[n]` f32.
///
/// # Errors
/// If a buffer does not fit, or the device failed.
pub fn step(state: State<'_>, g: &Buffer, s: Step) -> Result<()> {
    let n = g.len();
    if n == 0 {
        return Ok(());
    }
    let gpu = g.gpu().clone();
    let mut launch = Launch::new(&gpu, Kernel { source: Source::ADAMW, name: "adamw_f32" }, [n.div_ceil(BLOCK), 1, 1], [256, 1, 1], 0)
        .output("p", state.p, DType::F32, n)
        .output("w", state.w, DType::Bf16, n)
        .output("m", state.m, DType::F32, n)
        .output("v", state.v, DType::F32, n)
        .input("g", g, DType::F32, n)
        .count(n);
    for scalar in [s.decay, s.one_minus_beta1, s.beta2, s.one_minus_beta2, s.eps, s.step_size, s.bias2_sqrt, s.grad_scale] {
        launch = launch.f32(scalar);
    }
    launch.run()
}
