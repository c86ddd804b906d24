//! The AdamW step on a CUDA device: the launch of `kernels/adamw.cu`, which has the equations.

use super::Step;
use super::codes::{BLOCK as CODED, Coded, Rounding};
use crate::Result;
use crate::tensor::cuda::{Buffer, DType, Gpu, Kernel, Launch, Source};
use std::sync::Arc;

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

/// Blocks of codes that a block of threads updates.
const WARPS: usize = 8;

/// Both moments of a matrix `[rows, cols]` in codes, row-major.
#[derive(Debug)]
pub struct Moments {
    rows: usize,
    cols: usize,
    m: Buffer,
    v: Buffer,
    m_scale: Buffer,
    v_scale: Buffer,
}

impl Moments {
    /// Moments of zero for a matrix.
    ///
    /// # Errors
    /// If the device is out of memory or failed.
    pub fn zeros(gpu: &Arc<Gpu>, rows: usize, cols: usize) -> Result<Self> {
        let codes = || Buffer::zeros(gpu, DType::U8, rows * cols);
        let scales = || Buffer::zeros(gpu, DType::F32, rows * cols.div_ceil(CODED));
        Ok(Self { rows, cols, m: codes()?, v: codes()?, m_scale: scales()?, v_scale: scales()? })
    }

    /// First and second moment, as they are saved.
    ///
    /// # Errors
    /// If the device failed.
    pub fn export(&self) -> Result<(Coded, Coded)> {
        let coded = |codes: &Buffer, scales: &Buffer| Ok(Coded { codes: codes.to_u8()?, scales: scales.to_f32()? });
        Ok((coded(&self.m, &self.m_scale)?, coded(&self.v, &self.v_scale)?))
    }

    /// Replaces both.
    ///
    /// # Errors
    /// If the device failed.
    ///
    /// # Panics
    /// If there are not as many codes and scales as the matrix has.
    pub fn import(&mut self, first: &Coded, second: &Coded) -> Result<()> {
        for (codes, scales, from) in [(&mut self.m, &mut self.m_scale, first), (&mut self.v, &mut self.v_scale, second)] {
            codes.upload_u8(&from.codes)?;
            scales.upload_f32(&from.scales)?;
        }
        Ok(())
    }
}

/// Updates a matrix in place by its gradient `[rows, cols]` f32: the master weight `p` f32, the weight `w` bf16, and moments in codes.
///
/// # Errors
/// If a buffer does not fit, or the device failed.
pub fn step_8bit(p: &mut Buffer, w: &mut Buffer, moments: &mut Moments, g: &Buffer, s: Step, rounding: Rounding) -> Result<()> {
    let (rows, cols) = (moments.rows, moments.cols);
    let (n, scales) = (rows * cols, rows * cols.div_ceil(CODED));
    if n == 0 {
        return Ok(());
    }
    let gpu = g.gpu().clone();
    let kernel = Kernel { source: Source::ADAMW, name: "adamw_8bit" };
    let mut launch = Launch::new(&gpu, kernel, [scales.div_ceil(WARPS), 1, 1], [32 * WARPS, 1, 1], 0)
        .output("p", p, DType::F32, n)
        .output("w", w, DType::Bf16, n)
        .output("m", &mut moments.m, DType::U8, n)
        .output("v", &mut moments.v, DType::U8, n)
        .output("m_scale", &mut moments.m_scale, DType::F32, scales)
        .output("v_scale", &mut moments.v_scale, DType::F32, scales)
        .input("g", g, DType::F32, n)
        .dim("rows", rows)
        .dim("cols", cols);
    for scalar in [s.decay, s.one_minus_beta1, s.beta2, s.one_minus_beta2, s.eps, s.step_size, s.bias2_sqrt, s.grad_scale] {
        launch = launch.f32(scalar);
    }
    [rounding.key[0], rounding.key[1], rounding.step, rounding.tensor].into_iter().fold(launch, Launch::u32).run()
}
