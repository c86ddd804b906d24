//! The kernels that work row by row or element by element.

use super::{Check, random, round};
use crate::Result;
use crate::tensor::Tensor;
use crate::tensor::cpu::PanelMatrix;
use crate::tensor::cuda::{Buffer, DType};
use crate::tensor::ops::adamw::codes::{self, Rounding};
use crate::tensor::ops::{adamw, embedding, norm, residual, rmsnorm, rope, swiglu};

/// Of what is rounded to bf16 once.
const ONCE: f64 = 4e-3;

pub(super) fn run(check: &mut Check) -> Result<()> {
    norms(check)?;
    turns(check)?;
    gates(check)?;
    rows_of_ids(check)?;
    sums(check)?;
    step(check)
}

fn norms(check: &mut Check) -> Result<()> {
    let gpu = check.gpu.clone();
    for (rows, cols) in [(check.size(1000, 5), 64), (check.size(777, 3), 896)] {
        let (x, dy, w) = (random(rows * cols, 1), random(rows * cols, 2), random(cols, 3));
        let at = |what: &str| format!("rmsnorm {what} {rows}x{cols}");
        let (y, rstd) = rmsnorm::cuda::forward(&gpu, &check.upload(&x)?, &check.upload(&w)?, rows, cols, 1e-5)?;
        let tensor = |x: &[f32]| Tensor::from_vec(&[rows, cols], x.to_vec());
        let w_cpu = Tensor::from_vec(&[cols], w.clone());
        let (want, want_rstd) = rmsnorm::forward(&tensor(&x), &w_cpu, 1e-5)?;
        check.close(&at("forward"), &y.to_f32()?, want.data(), ONCE)?;
        let added = rmsnorm::cuda::forward_add(&gpu, &check.upload(&x)?, &check.upload(&dy)?, &check.upload(&w)?, rows, cols, 1e-5)?;
        let sum: Vec<f32> = x.iter().zip(&dy).map(|(a, b)| round(a + b)).collect();
        check.close(&at("sum"), &added.h.to_f32()?, &sum, 0.0)?;
        check.close(&at("forward of a sum"), &added.y.to_f32()?, rmsnorm::forward(&tensor(&sum), &w_cpu, 1e-5)?.0.data(), ONCE)?;
        let chunks = [0..rows / 2, rows / 2..rows];
        let mut dw = Buffer::zeros(&gpu, DType::F32, cols)?;
        let on_device = rmsnorm::cuda::RowChunks::new(&gpu, &chunks, 1)?;
        let (dy_on, x_on, w_on) = (check.upload(&dy)?, check.upload(&x)?, check.upload(&w)?);
        let dx = rmsnorm::cuda::backward(&gpu, &dy_on, &x_on, &w_on, &rstd, rows, cols, None, Some((&mut dw, &on_device)))?;
        let mut want_dw = Tensor::zeros(&[cols]);
        let want = rmsnorm::backward(&tensor(&dy), &tensor(&x), &w_cpu, &want_rstd, &chunks, Some(&mut want_dw))?;
        check.close(&at("dx"), &dx.to_f32()?, want.data(), ONCE)?;
        check.close(&at("dw"), &dw.to_f32()?, want_dw.data(), 1e-5)?;
    }
    Ok(())
}

fn turns(check: &mut Check) -> Result<()> {
    let (tokens, heads, half) = (check.size(500, 7), 3, 32);
    let inv_freq: Vec<f32> = (0..half).map(|i| 10_000f32.powf(-(i as f32) / half as f32)).collect();
    let positions: Vec<u32> = (0..tokens as u32).map(|i| i * 61).collect();
    let angles = rope::Angles::new(&positions, &inv_freq);
    let on_device = rope::cuda::DeviceAngles::new(&check.gpu, &angles)?;
    let x = random(tokens * heads * 2 * half, 4);
    let (mut y, mut want) = (check.upload(&x)?, Tensor::from_vec(&[tokens, heads * 2 * half], x));
    rope::cuda::forward(&mut y, heads, &on_device)?;
    rope::forward(&mut want, &angles);
    check.close("rope", &y.to_f32()?, want.data(), ONCE)
}

fn gates(check: &mut Check) -> Result<()> {
    let n = check.size(300_001, 2051);
    let (gate, up, dy) = (random(n, 5), random(n, 6), random(n, 7));
    let tensor = |x: &[f32]| Tensor::from_vec(&[1, n], x.to_vec());
    let (g, u) = (check.upload(&gate)?, check.upload(&up)?);
    let y = swiglu::cuda::forward(&check.gpu, &g, &u)?;
    check.close("swiglu forward", &y.to_f32()?, swiglu::forward(&tensor(&gate), &tensor(&up)).data(), ONCE)?;
    let (d_gate, d_up) = swiglu::cuda::backward(&check.gpu, &check.upload(&dy)?, &g, &u)?;
    let (want_gate, want_up) = swiglu::backward(&tensor(&dy), &tensor(&gate), &tensor(&up));
    check.close("swiglu d gate", &d_gate.to_f32()?, want_gate.data(), ONCE)?;
    check.close("swiglu d up", &d_up.to_f32()?, want_up.data(), ONCE)
}

fn rows_of_ids(check: &mut Check) -> Result<()> {
    let (vocab, cols, tokens) = (check.size(5000, 40), 72, check.size(3000, 60));
    let ids: Vec<u32> = (0..tokens).map(|t| (t * t % vocab) as u32).collect();
    let (w, dx) = (random(vocab * cols, 8), random(tokens * cols, 9));
    let on_device = embedding::cuda::DeviceIds::new(&check.gpu, &ids, vocab)?;
    let x = embedding::cuda::forward(&check.gpu, &check.upload(&w)?, &on_device, cols)?;
    check.close("embedding", &x.to_f32()?, embedding::forward(&PanelMatrix::from_rows(vocab, cols, &w), &ids).data(), 0.0)?;
    let mut d = Buffer::zeros(&check.gpu, DType::F32, vocab * cols)?;
    embedding::cuda::backward(&check.gpu, &mut d, &check.upload(&dx)?, &on_device, cols)?;
    let (mut rows, mut want) = (embedding::SparseRows::default(), PanelMatrix::zeros(vocab, cols));
    rows.add(&ids, &Tensor::from_vec(&[tokens, cols], dx));
    rows.drain_into(&mut want);
    check.close("embedding's gradient", &d.to_f32()?, &want.to_rows(), 1e-6)
}

fn sums(check: &mut Check) -> Result<()> {
    let (rows, cols) = (check.size(3001, 33), 136);
    let (x, y) = (random(rows * cols, 10), random(rows * cols, 11));
    let mut sum = check.upload(&x)?;
    residual::cuda::add_to(&mut sum, &check.upload(&y)?)?;
    let want: Vec<f32> = x.iter().zip(&y).map(|(a, b)| round(a + b)).collect();
    check.close("sum of two", &sum.to_f32()?, &want, 0.0)?;
    let wide: Vec<f32> = x.iter().zip(&y).map(|(a, b)| a * 1.001 + b).collect();
    let rounded = residual::cuda::round(&check.gpu, &check.f32(&wide)?)?;
    check.close("rounding to bf16", &rounded.to_f32()?, &wide.iter().map(|x| round(*x)).collect::<Vec<_>>(), 0.0)?;
    let chunks = [0..rows / 3, rows / 3..rows];
    let mut db = Buffer::zeros(&check.gpu, DType::F32, cols)?;
    residual::cuda::bias_gradient(&mut db, &check.upload(&x)?, &rmsnorm::cuda::RowChunks::new(&check.gpu, &chunks, 1)?)?;
    let mut want = Tensor::zeros(&[cols]);
    residual::bias_gradient(&Tensor::from_vec(&[rows, cols], x.clone()), &chunks, &mut want);
    check.close("gradient of a bias", &db.to_f32()?, want.data(), 1e-4)?;
    let mut total = Buffer::zeros(&check.gpu, DType::F64, 1)?;
    norm::cuda::add_sum_of_squares(&mut total, &check.f32(&x)?)?;
    check.close("sum of squares", &[total.to_f64()?[0] as f32], &[norm::sum_of_squares(&x) as f32], 1e-6)
}

fn step(check: &mut Check) -> Result<()> {
    let n = check.size(100_003, 1025);
    let scalars = adamw::Step {
        decay: 0.9999,
        one_minus_beta1: 0.1,
        beta2: 0.95,
        one_minus_beta2: 0.05,
        eps: 1e-8,
        step_size: 1e-3,
        bias2_sqrt: 0.3,
        grad_scale: 0.7,
    };
    let (mut p, g) = (random(n, 12), random(n, 13));
    let (mut m, mut v) = (vec![0.0; n], vec![0.0; n]);
    let [mut p_on, mut m_on, mut v_on] = [check.f32(&p)?, check.f32(&m)?, check.f32(&v)?];
    let mut w = check.upload(&p)?;
    adamw::cuda::step(adamw::cuda::State { p: &mut p_on, w: &mut w, m: &mut m_on, v: &mut v_on }, &check.f32(&g)?, scalars)?;
    adamw::step(&mut p, &g, &mut m, &mut v, scalars);
    check.close("adamw weight", &p_on.to_f32()?, &p, 1e-6)?;
    check.close("adamw first moment", &m_on.to_f32()?, &m, 1e-6)?;
    check.close("adamw second moment", &v_on.to_f32()?, &v, 1e-6)?;
    check.close("adamw bf16 weight", &w.to_f32()?, &p.iter().map(|x| round(*x)).collect::<Vec<_>>(), 1e-5)?;
    step_8bit(check, scalars)
}

/// Two steps with moments in 8 bits: weights, and moments as their codes stand for.
fn step_8bit(check: &mut Check, scalars: adamw::Step) -> Result<()> {
    let (rows, cols) = (check.size(123, 5), 816);
    let n = rows * cols;
    let mut p_on = check.f32(&random(n, 14))?;
    let mut w = check.upload(&random(n, 14))?;
    let mut p = PanelMatrix::from_rows(rows, cols, &random(n, 14));
    let mut moments_on = adamw::cuda::Moments::zeros(&check.gpu, rows, cols)?;
    let mut moments = adamw::panels::Moments::zeros(rows, cols);
    for step in 1..3 {
        let g = random(n, 14 + u64::from(step));
        let rounding = Rounding { key: [7, 8], step, tensor: 1 };
        adamw::cuda::step_8bit(&mut p_on, &mut w, &mut moments_on, &check.f32(&g)?, scalars, rounding)?;
        adamw::panels::step(&mut p, &PanelMatrix::from_rows(rows, cols, &g), &mut moments, scalars, rounding);
    }
    check.close("adamw weight, 8-bit moments", &p_on.to_f32()?, &p.to_rows(), 1e-6)?;
    let ((m_on, v_on), (m, v)) = (moments_on.export()?, moments.export());
    // Where the last bit of a quotient is another, so is a code now and then.
    check.close("adamw first moment in 8 bits", &m_on.to_f32(cols, codes::first), &m.to_f32(cols, codes::first), 1e-3)?;
    check.close("adamw second moment in 8 bits", &v_on.to_f32(cols, codes::second), &v.to_f32(cols, codes::second), 1e-3)
}
