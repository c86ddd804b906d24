//! One transformer block: norm, attention, residual; norm, SwiGLU feed-forward, residual. Forward, and the backward pass of what it saved.

use crate::Result;
use crate::model::gradients::Gradients;
use crate::model::linear::{Adapter, Linear};
use crate::model::params::{ParamId, Params};
use crate::tensor::Tensor;
use crate::tensor::ops::attention::{self, Heads, KvLayer};
use crate::tensor::ops::{residual, rmsnorm, rope, swiglu};
use crate::tensor::plan::Plan;

/// A block's tensors.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    pub input_norm: ParamId,
    pub q: Linear,
    pub k: Linear,
    pub v: Linear,
    pub o: Linear,
    /// Qwen3's norm of each head's q and k.
    pub qk_norm: Option<(ParamId, ParamId)>,
    pub post_norm: ParamId,
    pub gate: Linear,
    pub up: Linear,
    pub down: Linear,
}

/// What all blocks of a pass share.
pub(crate) struct Pass<'a> {
    pub params: &'a Params,
    pub plan: &'a Plan,
    pub angles: rope::Angles,
    pub heads: Heads,
    pub eps: f32,
    pub adapter: Adapter,
}

impl Pass<'_> {
    fn scale(&self) -> f32 {
        (self.heads.head_dim as f32).powf(-0.5)
    }

    fn norm(&self, x: &Tensor, weight: ParamId) -> Result<(Tensor, Tensor)> {
        rmsnorm::forward(x, self.params.vector(weight), self.eps)
    }
}

/// Activations that the backward pass needs. Normed inputs and the feed-forward's product are computed again: cheap, and large.
pub(crate) struct Saved {
    pub x: Tensor,
    pub kv: KvLayer,
    pub forward: Forward,
}

/// What [`Block::forward`] computed on the way.
pub(crate) struct Forward {
    input_rstd: Tensor,
    q: Normed,
    k: Normed,
    rotated_q: Tensor,
    attended: Tensor,
    softmax: attention::Saved,
    middle: Tensor,
    post_rstd: Tensor,
    gate: Tensor,
    up: Tensor,
}

/// A projection's rows before their QK-norm, with its rstd; nothing where there is no such norm.
type Normed = Option<(Tensor, Tensor)>;

impl Block {
    /// The block's output `[T, D]` for its input `x`; keys and values go to `kv`, which attention reads.
    pub fn forward(&self, pass: &Pass<'_>, x: &Tensor, kv: &mut KvLayer) -> Result<(Tensor, Forward)> {
        let params = pass.params;
        let (normed, input_rstd) = pass.norm(x, self.input_norm)?;
        let [q, k, v] = Linear::forward_many(params, [&self.q, &self.k, &self.v], &normed, pass.adapter);
        let (rotated_q, q) = self.project(pass, q, self.qk_norm.map(|n| n.0))?;
        let (rotated_k, k) = self.project(pass, k, self.qk_norm.map(|n| n.1))?;
        kv.write(&pass.plan.kv_slots, &rotated_k, &v);
        kv.copy(&pass.plan.copies);
        let (attended, softmax) = attention::forward(&rotated_q, kv, &pass.plan.segments, pass.scale());
        let mut middle = self.o.forward(params, &attended, pass.adapter);
        residual::add_to(&mut middle, x);
        let (normed, post_rstd) = pass.norm(&middle, self.post_norm)?;
        let [gate, up] = Linear::forward_many(params, [&self.gate, &self.up], &normed, pass.adapter);
        let mut out = self.down.forward(params, &swiglu::forward(&gate, &up), pass.adapter);
        residual::add_to(&mut out, &middle);
        Ok((out, Forward { input_rstd, q, k, rotated_q, attended, softmax, middle, post_rstd, gate, up }))
    }

    /// Per-head norm (where the model has one) and rotation of a projection.
    fn project(&self, pass: &Pass<'_>, raw: Tensor, norm: Option<ParamId>) -> Result<(Tensor, Normed)> {
        let (mut y, saved) = match norm {
            None => (raw, None),
            Some(weight) => {
                let shape = raw.shape().to_vec();
                let raw = Tensor::from_vec(&[shape[0] * shape[1] / pass.heads.head_dim, pass.heads.head_dim], raw.into_vec());
                let (y, rstd) = pass.norm(&raw, weight)?;
                (Tensor::from_vec(&shape, y.into_vec()), Some((raw, rstd)))
            }
        };
        rope::forward(&mut y, &pass.angles);
        Ok((y, saved))
    }

    /// The input's gradient for the output's, adding to the trained gradients.
    pub fn backward(&self, pass: &Pass<'_>, saved: Saved, d_out: Tensor, grads: &mut Gradients) -> Result<Tensor> {
        let (params, chunks) = (pass.params, &pass.plan.grad_chunks);
        let Saved { x, kv, forward: saved } = saved;
        let d_middle = self.feed_forward_backward(pass, &saved, d_out, grads)?;
        let d_attended = self.o.backward(params, &saved.attended, &d_middle, chunks, grads);
        let (mut dq, mut dk, dv) =
            attention::backward(&d_attended, &saved.rotated_q, &saved.attended, &saved.softmax, &kv, pass.plan, pass.scale());
        rope::backward(&mut dq, &pass.angles);
        rope::backward(&mut dk, &pass.angles);
        let dq = norm_backward(pass, dq, &saved.q, self.qk_norm.map(|n| n.0), grads)?;
        let dk = norm_backward(pass, dk, &saved.k, self.qk_norm.map(|n| n.1), grads)?;
        let (normed, _) = pass.norm(&x, self.input_norm)?;
        let mut d_normed = self.q.backward(params, &normed, &dq, chunks, grads);
        residual::add_to(&mut d_normed, &self.k.backward(params, &normed, &dk, chunks, grads));
        residual::add_to(&mut d_normed, &self.v.backward(params, &normed, &dv, chunks, grads));
        let w = params.vector(self.input_norm);
        let mut dx = rmsnorm::backward(&d_normed, &x, w, &saved.input_rstd, chunks, grads.vector_mut(self.input_norm))?;
        residual::add_to(&mut dx, &d_middle);
        Ok(dx)
    }

    /// The gradient of the residual stream between attention and feed-forward.
    fn feed_forward_backward(&self, pass: &Pass<'_>, saved: &Forward, d_out: Tensor, grads: &mut Gradients) -> Result<Tensor> {
        let (params, chunks) = (pass.params, &pass.plan.grad_chunks);
        let d_product = self.down.backward(params, &swiglu::forward(&saved.gate, &saved.up), &d_out, chunks, grads);
        let (d_gate, d_up) = swiglu::backward(&d_product, &saved.gate, &saved.up);
        let (normed, _) = pass.norm(&saved.middle, self.post_norm)?;
        let mut d_normed = self.gate.backward(params, &normed, &d_gate, chunks, grads);
        residual::add_to(&mut d_normed, &self.up.backward(params, &normed, &d_up, chunks, grads));
        let w = params.vector(self.post_norm);
        let mut d_middle = rmsnorm::backward(&d_normed, &saved.middle, w, &saved.post_rstd, chunks, grads.vector_mut(self.post_norm))?;
        residual::add_to(&mut d_middle, &d_out);
        Ok(d_middle)
    }
}

/// Through a per-head norm, where there is one.
fn norm_backward(pass: &Pass<'_>, dy: Tensor, saved: &Normed, weight: Option<ParamId>, grads: &mut Gradients) -> Result<Tensor> {
    let (Some((raw, rstd)), Some(weight)) = (saved, weight) else { return Ok(dy) };
    let shape = dy.shape().to_vec();
    let heads = shape[1] / raw.cols();
    let chunks: Vec<_> = pass.plan.grad_chunks.iter().map(|c| c.start * heads..c.end * heads).collect();
    let dy = Tensor::from_vec(raw.shape(), dy.into_vec());
    let dx = rmsnorm::backward(&dy, raw, pass.params.vector(weight), rstd, &chunks, grads.vector_mut(weight))?;
    Ok(Tensor::from_vec(&shape, dx.into_vec()))
}
