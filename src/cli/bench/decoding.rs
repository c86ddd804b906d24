//! What a layer launches in a step of decoding: bound by reading the weights, of few rows by the launch itself.

use super::device::Timer;
use crate::Result;
use crate::tensor::cuda::Buffer;
use crate::tensor::ops::attention::Heads;
use crate::tensor::ops::attention::cuda::DeviceKv;
use crate::tensor::ops::matmul::cuda::{self as matmul, Layer};
use crate::tensor::ops::rope::{Angles, cuda::DeviceAngles};

/// The shapes of a layer of Qwen2.5-0.5B.
pub(super) fn run(timer: &mut Timer<'_>) -> Result<()> {
    let gpu = timer.gpu.clone();
    let heads = Heads { num_heads: 14, num_kv_heads: 2, head_dim: 64 };
    let (width, inner, narrow) = (timer.size(896), timer.size(4864), heads.num_kv_heads * heads.head_dim);
    let widths = [heads.num_heads * heads.head_dim, narrow, narrow];
    let [q, k, v] = widths.map(|n| timer.bf16(n * width));
    let (q, k, v, gate, up) = (q?, k?, v?, timer.bf16(inner * width)?, timer.bf16(inner * width)?);
    let layer = |w, n| Layer { w, bias: None, adapter: None, n };
    let layers = [layer(&q, widths[0]), layer(&k, widths[1]), layer(&v, widths[2])];
    for m in [1, 16, 64, 256] {
        let x = timer.bf16(m * width)?;
        let outputs: usize = widths.iter().sum();
        let bytes = |weights: usize, outputs: usize| (2 * (weights + m * (width + outputs))) as f64;
        timer.run(&format!("decoding q, k and v {m}x{width}x{outputs}"), "GB/s", bytes(outputs * width, outputs), &mut || {
            matmul::forward_many(&gpu, &x, &layers, m, width).map(drop)
        })?;
        let (gate, up) = (layer(&gate, inner), layer(&up, inner));
        timer.run(&format!("decoding swiglu {m}x{width}x{inner}"), "GB/s", bytes(2 * inner * width, inner), &mut || {
            matmul::forward_swiglu(&gpu, &x, &gate, &up, m, width).map(drop)
        })?;
        between(timer, heads, m)?;
    }
    Ok(())
}

/// The turns of q and k, and keys and values to their pages.
fn between(timer: &mut Timer<'_>, heads: Heads, tokens: usize) -> Result<()> {
    let gpu = timer.gpu.clone();
    let Heads { num_heads, num_kv_heads, head_dim } = heads;
    let of = |heads: usize| timer.bf16(tokens * heads * head_dim);
    let (mut q, k, v) = (of(num_heads)?, of(num_kv_heads)?, of(num_kv_heads)?);
    let inv_freq: Vec<f32> = (0..head_dim / 2).map(|i| 10_000f32.powf(-(i as f32) / (head_dim / 2) as f32)).collect();
    let angles = DeviceAngles::new(&gpu, &Angles::new(&(0..tokens as u32).collect::<Vec<_>>(), &inv_freq))?;
    let slots = Buffer::from_u32(&gpu, &(0..tokens as u32).flat_map(|t| [t, 0]).collect::<Vec<_>>())?;
    let mut kv = DeviceKv::new(&gpu, heads, tokens)?;
    let bytes = (4 * tokens * (num_heads + 2 * num_kv_heads + 1) * head_dim) as f64;
    timer
        .run(&format!("decoding turns and pages {tokens}"), "GB/s", bytes, &mut || kv.turn_and_write(&mut q, &k, &v, None, &angles, &slots))
}
