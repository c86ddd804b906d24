//! Rotary position embedding on a CUDA device: launches of `kernels/rope.cu`, which has the equations.

use super::Angles;
use crate::Result;
use crate::tensor::cuda::{Buffer, DType, Gpu, Kernel, Launch, Source};
use std::sync::Arc;

/// The angles of a batch's tokens in device memory, `[T, 2, d/2]` f32.
#[derive(Debug)]
pub struct DeviceAngles {
    table: Buffer,
    half: usize,
    tokens: usize,
}

impl DeviceAngles {
    /// Uploads the table: the processor forms it, so both sides turn by the same numbers.
    ///
    /// # Errors
    /// If the device is out of memory or failed.
    pub fn new(gpu: &Arc<Gpu>, angles: &Angles) -> Result<Self> {
        let tokens = angles.table.len() / (2 * angles.half);
        Ok(Self { table: Buffer::from_f32(gpu, DType::F32, &angles.table)?, half: angles.half, tokens })
    }

    /// The angles of as many tokens as `table` has room for, `[T, 2, d/2]` f32 for halves of `half`.
    pub fn of(table: Buffer, half: usize) -> Self {
        Self { tokens: table.len() / (2 * half), table, half }
    }

    /// The table, for kernels that turn on the way.
    pub fn table(&self) -> &Buffer {
        &self.table
    }
}

/// Turns every head of x `[T, heads * d]` bf16 in place.
///
/// # Errors
/// If the buffer does not fit the angles, or the device failed.
pub fn forward(x: &mut Buffer, heads: usize, angles: &DeviceAngles) -> Result<()> {
    turn(x, heads, angles, 1.0)
}

/// The gradient's turn: the inverse of [`forward`], in place.
///
/// # Errors
/// As [`forward`].
pub fn backward(dx: &mut Buffer, heads: usize, angles: &DeviceAngles) -> Result<()> {
    turn(dx, heads, angles, -1.0)
}

fn turn(x: &mut Buffer, heads: usize, angles: &DeviceAngles, sign: f32) -> Result<()> {
    let gpu = x.gpu().clone();
    let &DeviceAngles { ref table, half, tokens } = angles;
    let vectors = tokens * heads * half.div_ceil(8);
    if vectors == 0 {
        return Ok(());
    }
    let kernel = Kernel { source: Source::ROPE, name: "rope_bf16" };
    Launch::new(&gpu, kernel, [vectors.div_ceil(256), 1, 1], [256, 1, 1], 0)
        .output("x", x, DType::Bf16, tokens * heads * 2 * half)
        .input("angles", table, DType::F32, tokens * 2 * half)
        .dim("tokens", tokens)
        .dim("heads", heads)
        .dim("half", half)
        .f32(sign)
        .run()
}
