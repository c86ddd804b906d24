//! The products of a linear layer and the fused head, which stand on tensor cores; that a row does not depend on the others is checked first.

use super::{Check, Row, random};
use crate::Result;
use crate::tensor::Tensor;
use crate::tensor::cpu::PanelMatrix;
use crate::tensor::cuda::{Buffer, DType};
use crate::tensor::ops::matmul::cuda::{LowRank, Shape, TokenChunks};
use crate::tensor::ops::sample::{self, Draw, Filters};
use crate::tensor::ops::token_logprob::{self, Keep, cuda as head};
use crate::tensor::ops::{matmul, residual};

/// Of what is rounded to bf16 once.
const ONCE: f64 = 4e-3;
/// Of gradients through bf16 gradients of logits.
const TWICE: f64 = 8e-3;

pub(super) fn run(check: &mut Check) -> Result<()> {
    linear(check)?;
    fused_head(check)?;
    sampling(check)
}

fn linear(check: &mut Check) -> Result<()> {
    let gpu = check.gpu.clone();
    let shape = Shape { m: check.size(400, 20), n: check.size(1152, 72), k: check.size(896, 136) };
    let (Shape { m, n, k }, rank, scale) = (shape, 16, 0.5);
    let (x, dy, w) = (random(m * k, 1), random(m * n, 2), random(n * k, 3));
    let (b, low, bias) = (random(n * rank, 4), random(m * rank, 5), random(n, 6));
    let [x_on, dy_on, w_on, b_on, low_on, bias_on] = [&x, &dy, &w, &b, &low, &bias].map(|x| check.upload(x));
    let (x_on, dy_on, w_on, b_on, low_on, bias_on) = (x_on?, dy_on?, w_on?, b_on?, low_on?, bias_on?);
    let tensor = |rows: usize, x: &[f32]| Tensor::from_vec(&[rows, x.len() / rows], x.to_vec());
    let panels = |x: &[f32], n: usize| PanelMatrix::from_rows(n, x.len() / n, x);

    if gpu.is_hopper() {
        // Not a failure: what decodes and what trains then both take mma.sync.
        let other = (!matmul::cuda::takes_wgmma(&gpu)?).then(|| "other bits: forward passes take mma.sync".to_owned());
        check.row(Row {
            name: "linear: wgmma beside mma.sync".to_owned(),
            ok: true,
            error: None,
            bound: None,
            failure: None,
            note: other,
        })?;
    }
    let plain = matmul::cuda::forward(&gpu, &x_on, &w_on, None, None, shape)?.to_f32()?;
    let alone = matmul::cuda::forward(&gpu, &check.upload(&x[k..2 * k])?, &w_on, None, None, Shape { m: 1, ..shape })?;
    check.same("linear: a row alone", &alone.to_f32()?, &plain[n..2 * n])?;
    // On Hopper three rows of tiles are blocks' by themselves, four are pairs'.
    let part = m / 4 * 3;
    let fewer = matmul::cuda::forward(&gpu, &check.upload(&x[..part * k])?, &w_on, None, None, Shape { m: part, ..shape })?;
    check.same("linear: fewer rows", &fewer.to_f32()?, &plain[..part * n])?;
    check.close("linear forward", &plain, matmul::forward(&tensor(m, &x), &panels(&w, n)).data(), ONCE)?;
    let adapter = LowRank { low: &low_on, matrix: &b_on, rank, scale };
    let y = matmul::cuda::forward(&gpu, &x_on, &w_on, Some(&bias_on), Some(adapter), shape)?;
    let mut want = matmul::forward(&tensor(m, &x), &panels(&w, n));
    let mut scaled = tensor(m, &low);
    matmul::scale(&mut scaled, scale);
    matmul::forward_add(&scaled, &panels(&b, n), &mut want);
    residual::add_bias(&mut want, &Tensor::from_vec(&[n], bias));
    check.close("linear forward with bias and adapter", &y.to_f32()?, want.data(), ONCE)?;
    let dx = matmul::cuda::backward_input(&gpu, &dy_on, &w_on, None, shape)?;
    check.close("linear dx", &dx.to_f32()?, matmul::backward_input(&tensor(m, &dy), &panels(&w, n)).data(), ONCE)?;
    let chunks = [0..m / 3, m / 3..m];
    let mut dw = Buffer::zeros(&gpu, DType::F32, n * k)?;
    matmul::cuda::backward_weight(&mut dw, &dy_on, &x_on, &TokenChunks::new(&gpu, &chunks)?, n, k, 1.0)?;
    let mut want = PanelMatrix::zeros(n, k);
    matmul::backward_weight(&tensor(m, &dy), &tensor(m, &x), &chunks, &mut want);
    check.close("linear dw", &dw.to_f32()?, &want.to_rows(), 1e-5)
}

/// Rows, width and vocabulary of the head's checks, its operands, and targets.
struct Operands {
    rows: usize,
    width: usize,
    vocab: usize,
    h: Vec<f32>,
    w: Vec<f32>,
    targets: Vec<u32>,
}

impl Operands {
    fn new(check: &Check) -> Self {
        let (rows, width, vocab) = (check.size(150, 5), check.size(896, 24), check.size(10_008, 2120));
        let targets = (0..rows).map(|i| (i * 2_654_435_761 % vocab) as u32).collect();
        Self { rows, width, vocab, h: random(rows * width, 7), w: random(vocab * width, 8), targets }
    }
}

fn fused_head(check: &mut Check) -> Result<()> {
    let gpu = check.gpu.clone();
    let o = Operands::new(check);
    let (h_on, w_on) = (check.upload(&o.h)?, check.upload(&o.w)?);
    let on_device = head::Head { h: &h_on, w: &w_on, rows: o.rows, vocab: o.vocab, width: o.width };
    let (h, w) = (Tensor::from_vec(&[o.rows, o.width], o.h.clone()), PanelMatrix::from_rows(o.vocab, o.width, &o.w));
    let (logprob, entropy, saved) = head::forward(&gpu, on_device, &o.targets, 0.8)?;
    let (want, want_entropy, want_saved) = token_logprob::forward(&h, &w, &o.targets, 0.8, Keep::ForBackward);
    check.close("head logprob", &logprob, &want, 1e-5)?;
    check.close("head entropy", &entropy, &want_entropy, 1e-5)?;
    let one = check.upload(&o.h[o.width..2 * o.width])?;
    let (alone, ..) = head::forward(&gpu, head::Head { h: &one, rows: 1, ..on_device }, &o.targets[1..2], 0.8)?;
    check.same("head: a row alone", &alone, &logprob[1..2])?;
    let (a, b) = (random(o.rows, 9), random(o.rows, 10));
    let chunks = [0..o.rows / 2, o.rows / 2..o.rows];
    let mut dw = Buffer::zeros(&gpu, DType::F32, o.vocab * o.width)?;
    let dh = head::backward(&gpu, on_device, &saved, &a, Some(&b), Some((&mut dw, &TokenChunks::new(&gpu, &chunks)?)))?;
    let mut want_dw = PanelMatrix::zeros(o.vocab, o.width);
    let want = token_logprob::backward(&h, &w, &o.targets, 0.8, want_saved, &a, Some(&b), &chunks, Some(&mut want_dw));
    check.close("head dh", &dh.to_f32()?, want.data(), TWICE)?;
    check.close("head dw", &dw.to_f32()?, &want_dw.to_rows(), TWICE)
}

/// Tokens are the processor's for the same logits, and their log-probabilities training's.
fn sampling(check: &mut Check) -> Result<()> {
    let gpu = check.gpu.clone();
    let o = Operands::new(check);
    let (h_on, w_on) = (check.upload(&o.h)?, check.upload(&o.w)?);
    let on_device = head::Head { h: &h_on, w: &w_on, rows: o.rows, vocab: o.vocab, width: o.width };
    let none = Filters { top_k: 0, top_p: 1.0, min_p: 0.0 };
    let ways = [none, Filters { top_k: 40, ..none }, Filters { top_p: 0.9, ..none }];
    let draw = |i: usize| Draw { temperature: 1.0, filters: ways[i % 3], u: (i as f64 * 0.618) % 1.0 };
    let draws: Vec<Draw> = (0..o.rows).map(draw).collect();
    let logits = head::logits(&gpu, on_device, &vec![1.0; o.rows])?;
    let choices = sample::cuda::choose(&logits, &draws)?;
    let mut want = Vec::new();
    for (i, draw) in draws.iter().enumerate() {
        want.push(sample::choose(&logits.row(i)?.0, draw).id as f32);
    }
    let got: Vec<f32> = choices.iter().map(|c| c.id as f32).collect();
    check.same("sampled tokens are the processor's", &got, &want)?;
    let ids: Vec<u32> = choices.iter().map(|c| c.id).collect();
    let (trained, ..) = head::forward(&gpu, on_device, &ids, 1.0)?;
    let recorded: Vec<f32> = choices.iter().map(|c| c.logprob).collect();
    check.same("sampled logprobs are training's", &recorded, &trained)
}
