//! The launches that decoding makes one of, against those that training makes one by one: the same bits.

use super::{Check, random};
use crate::Result;
use crate::tensor::cuda::{Arena, Buffer, Graph};
use crate::tensor::ops::attention::Heads;
use crate::tensor::ops::attention::cuda::{DeviceKv, HeadNorms, NOWHERE};
use crate::tensor::ops::matmul::cuda::{self as matmul, Layer, LowRank, Shape};
use crate::tensor::ops::rope::{self, Angles, cuda::DeviceAngles};
use crate::tensor::ops::{rmsnorm, swiglu};

const EPS: f32 = 1e-6;

pub(super) fn run(check: &mut Check) -> Result<()> {
    for rows in [1, check.size(64, 18)] {
        products(check, rows)?;
        between(check, rows)?;
    }
    recorded(check)
}

/// Launches of a graph, which may begin before those before them have ended, against the same one after another: of other numbers each time, as what is read
/// too early is what the last time has left.
fn recorded(check: &mut Check) -> Result<()> {
    let gpu = check.gpu.clone();
    let (m, k, rounds) = (4, check.size(896, 72), check.size(200, 3) as u64);
    let (mut x, w, norm) = (check.upload(&random(m * k, 1))?, check.upload(&random(k * k, 2))?, check.upload(&random(k, 3))?);
    let layer = Layer { w: &w, bias: None, adapter: None, n: k };
    let launches = |x: &Buffer| -> Result<Buffer> {
        let mut h = rmsnorm::cuda::forward(&gpu, x, &norm, m, k, EPS)?.0;
        for _ in 0..4 {
            let y = matmul::forward_swiglu(&gpu, &h, &layer, &layer, m, k)?;
            h = rmsnorm::cuda::forward_add(&gpu, &y, &h, &norm, m, k, EPS)?.y;
        }
        Ok(h)
    };
    let (mut graph, recorded) = Graph::record(&gpu, &mut Arena::default(), || launches(&x))?;
    let (mut got, mut want) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        x.upload_f32(&random(m * k, 4 + round))?;
        graph.launch()?;
        got.extend(recorded.to_f32()?);
        want.extend(launches(&x)?.to_f32()?);
    }
    check.same("decoding: launches that begin early", &got, &want)
}

/// q, k and v, and a SwiGLU's two products, with biases and adapters.
fn products(check: &mut Check, m: usize) -> Result<()> {
    let gpu = check.gpu.clone();
    let (k, rank) = (check.size(896, 136), 16);
    let widths = [check.size(896, 72), check.size(128, 24), check.size(896, 72)];
    let x = check.upload(&random(m * k, 1))?;
    let on = |i: usize| -> Result<[Buffer; 4]> {
        let (n, stream) = (widths[i], 10 * (i as u64 + 1));
        let sizes = [n * k, n, m * rank, n * rank];
        let [w, bias, low, b] = [0, 1, 2, 3].map(|j| check.upload(&random(sizes[j], stream + j as u64)));
        Ok([w?, bias?, low?, b?])
    };
    let on = [on(0)?, on(1)?, on(2)?];
    let layer = |i: usize| {
        let [w, bias, low, matrix] = &on[i];
        Layer { w, bias: Some(bias), adapter: Some(LowRank { low, matrix, rank, scale: 0.5 }), n: widths[i] }
    };
    let layers = [layer(0), layer(1), layer(2)];
    let alone = |l: &Layer<'_>| matmul::forward(&gpu, &x, l.w, l.bias, l.adapter, Shape { m, n: l.n, k });
    let one_by_one = [alone(&layers[0])?, alone(&layers[1])?, alone(&layers[2])?];
    let together = matmul::forward_many(&gpu, &x, &layers, m, k)?;
    for (i, (got, want)) in together.iter().zip(&one_by_one).enumerate() {
        check.same(&format!("decoding {m}: product {i} of three"), &got.to_f32()?, &want.to_f32()?)?;
    }
    let got = matmul::forward_swiglu(&gpu, &x, &layers[0], &layers[2], m, k)?;
    let want = swiglu::cuda::forward(&gpu, &one_by_one[0], &one_by_one[2])?;
    check.same(&format!("decoding {m}: swiglu with its products"), &got.to_f32()?, &want.to_f32()?)
}

/// Norms of heads, turns, and keys and values to their pages; the last of several rows only fills the batch.
fn between(check: &mut Check, tokens: usize) -> Result<()> {
    let gpu = check.gpu.clone();
    let heads = Heads { num_heads: 14, num_kv_heads: 2, head_dim: 64 };
    let Heads { num_heads, num_kv_heads, head_dim } = heads;
    let (wide, narrow) = (tokens * num_heads * head_dim, tokens * num_kv_heads * head_dim);
    let (mut q, k, v) = (check.upload(&random(wide, 1))?, check.upload(&random(narrow, 2))?, check.upload(&random(narrow, 3))?);
    let (norm_q, norm_k) = (check.upload(&random(head_dim, 4))?, check.upload(&random(head_dim, 5))?);
    let inv_freq: Vec<f32> = (0..head_dim / 2).map(|i| 10_000f32.powf(-(i as f32) / (head_dim / 2) as f32)).collect();
    let positions: Vec<u32> = (0..tokens as u32).map(|i| i * 61).collect();
    let angles = DeviceAngles::new(&gpu, &Angles::new(&positions, &inv_freq))?;
    let page = |t: usize| if t > 0 && t + 1 == tokens { [NOWHERE, 0] } else { [0, t as u32] };
    let slots = Buffer::from_u32(&gpu, &(0..tokens).flat_map(page).collect::<Vec<_>>())?;
    let pages = || -> Result<DeviceKv> {
        let zeros = check.upload(&vec![0.0; 64 * num_kv_heads * head_dim])?;
        let mut kv = DeviceKv::new(&gpu, heads, 1)?;
        kv.write(&Buffer::from_u32(&gpu, &(0..64).flat_map(|slot| [0, slot]).collect::<Vec<_>>())?, &zeros, &zeros)?;
        Ok(kv)
    };
    let (mut together, mut one_by_one) = (pages()?, pages()?);
    let mut want_q = rmsnorm::cuda::forward(&gpu, &q, &norm_q, tokens * num_heads, head_dim, EPS)?.0;
    let mut want_k = rmsnorm::cuda::forward(&gpu, &k, &norm_k, tokens * num_kv_heads, head_dim, EPS)?.0;
    rope::cuda::forward(&mut want_q, num_heads, &angles)?;
    rope::cuda::forward(&mut want_k, num_kv_heads, &angles)?;
    one_by_one.write(&slots, &want_k, &v)?;
    together.turn_and_write(&mut q, &k, &v, Some(HeadNorms { q: &norm_q, k: &norm_k, eps: EPS }), &angles, &slots)?;
    check.same(&format!("decoding {tokens}: queries normed and turned"), &q.to_f32()?, &want_q.to_f32()?)?;
    let ([keys, values], [want_keys, want_values]) = (together.numbers()?, one_by_one.numbers()?);
    check.same(&format!("decoding {tokens}: keys in their pages"), &keys, &want_keys)?;
    check.same(&format!("decoding {tokens}: values in their pages"), &values, &want_values)
}
