//! One transformer block on a device: norm, attention; norm, SwiGLU feed-forward. A branch joins the residual stream inside the norm that comes
//! next. Forward, and the backward pass of what it saved.

use super::batch::{BackwardBatch, Pass};
use crate::Result;
use crate::model::block::Block;
use crate::model::gradients::Gradients;
use crate::model::linear::Linear;
use crate::model::params::ParamId;
use crate::tensor::cuda::Buffer;
use crate::tensor::ops::attention::cuda::{self as attention, DeviceKv, HeadNorms};
use crate::tensor::ops::residual::cuda as residual;
use crate::tensor::ops::rmsnorm::cuda::{self as rmsnorm, RowChunks};
use crate::tensor::ops::rope::cuda as rope;
use crate::tensor::ops::swiglu::cuda as swiglu;
use std::sync::Arc;

/// What flows between blocks: residual + branch, `[T, D]` each.
#[derive(Clone)]
pub(super) struct Stream {
    pub residual: Arc<Buffer>,
    /// What the last block's feed-forward adds; nothing before the first block.
    pub branch: Option<Arc<Buffer>>,
}

/// A normed stream.
pub(super) struct NormedStream {
    pub y: Buffer,
    /// residual + branch.
    pub sum: Arc<Buffer>,
    pub rstd: Buffer,
}

/// Activations that the backward pass needs. Normed inputs and the feed-forward's product are computed again: cheap, and large.
pub(super) struct Saved {
    pub kv: DeviceKv,
    pub forward: Forward,
}

/// What [`Block::forward_on`] computed on the way.
pub(super) struct Forward {
    input: Arc<Buffer>,
    input_rstd: Buffer,
    q: Normed,
    k: Normed,
    rotated_q: Buffer,
    attended: Buffer,
    lse: Buffer,
    middle: Arc<Buffer>,
    post_rstd: Buffer,
    gate: Buffer,
    up: Buffer,
}

/// A projection's rows before their QK-norm, with its rstd; nothing where there is no such norm.
type Normed = Option<(Buffer, Buffer)>;

impl Pass<'_> {
    fn scale(&self) -> f32 {
        (self.heads.head_dim as f32).powf(-0.5)
    }

    fn width(&self, norm: ParamId) -> usize {
        self.params.all()[norm].info.shape[0]
    }

    /// residual + branch, and its norm.
    pub(super) fn norm_stream(&self, x: &Stream, weight: ParamId) -> Result<NormedStream> {
        let (rows, cols, w) = (self.batch.tokens, self.width(weight), self.params.bf16(weight));
        match &x.branch {
            None => {
                let (y, rstd) = rmsnorm::forward(self.gpu, &x.residual, w, rows, cols, self.eps)?;
                Ok(NormedStream { y, sum: x.residual.clone(), rstd })
            }
            Some(branch) => {
                let out = rmsnorm::forward_add(self.gpu, branch, &x.residual, w, rows, cols, self.eps)?;
                Ok(NormedStream { y: out.y, sum: Arc::new(out.h), rstd: out.rstd })
            }
        }
    }

    /// The norm of x `[T, D]` again, as the forward pass had it.
    fn norm_again(&self, x: &Buffer, weight: ParamId) -> Result<Buffer> {
        Ok(rmsnorm::forward(self.gpu, x, self.params.bf16(weight), self.batch.tokens, self.width(weight), self.eps)?.0)
    }

    /// The gradient of a norm's input, plus what reaches it past the norm.
    #[allow(clippy::too_many_arguments)] // what the equation has
    pub(super) fn norm_backward(
        &self,
        dy: &Buffer,
        x: &Buffer,
        rstd: &Buffer,
        weight: ParamId,
        past: Option<&Buffer>,
        chunks: &RowChunks,
        grads: &mut Gradients,
    ) -> Result<Buffer> {
        let dw = grads.buffer_mut(weight).map(|dw| (dw, chunks));
        rmsnorm::backward(self.gpu, dy, x, self.params.bf16(weight), rstd, chunks.rows(), self.width(weight), past, dw)
    }

    /// Per-head norm (where the model has one) and rotation of a projection.
    fn project(&self, raw: Buffer, heads: usize, norm: Option<ParamId>) -> Result<(Buffer, Normed)> {
        let (mut y, saved) = match norm {
            None => (raw, None),
            Some(weight) => {
                let (rows, cols) = (self.batch.tokens * heads, self.heads.head_dim);
                let (y, rstd) = rmsnorm::forward(self.gpu, &raw, self.params.bf16(weight), rows, cols, self.eps)?;
                (y, Some((raw, rstd)))
            }
        };
        rope::forward(&mut y, heads, &self.batch.angles)?;
        Ok((y, saved))
    }
}

impl Block {
    /// The stream behind the block; keys and values go to `kv`, which attention reads.
    pub(super) fn forward_on(&self, pass: &Pass<'_>, x: &Stream, kv: &mut DeviceKv) -> Result<(Stream, Forward)> {
        let normed = pass.norm_stream(x, self.input_norm)?;
        let (rotated_q, q) = pass.project(self.q.forward_on(pass, &normed.y)?, pass.heads.num_heads, self.qk_norm.map(|n| n.0))?;
        let (rotated_k, k) = pass.project(self.k.forward_on(pass, &normed.y)?, pass.heads.num_kv_heads, self.qk_norm.map(|n| n.1))?;
        kv.write(&pass.batch.slots, &rotated_k, &self.v.forward_on(pass, &normed.y)?)?;
        kv.copy(&pass.batch.copies)?;
        let (attended, lse) = attention::forward(pass.gpu, &rotated_q, kv, &pass.batch.work, pass.scale())?;
        let branch = Arc::new(self.o.forward_on(pass, &attended)?);
        let middle = pass.norm_stream(&Stream { residual: normed.sum.clone(), branch: Some(branch) }, self.post_norm)?;
        let (gate, up) = (self.gate.forward_on(pass, &middle.y)?, self.up.forward_on(pass, &middle.y)?);
        let out = self.down.forward_on(pass, &swiglu::forward(pass.gpu, &gate, &up)?)?;
        let stream = Stream { residual: middle.sum.clone(), branch: Some(Arc::new(out)) };
        let (input, input_rstd, middle, post_rstd) = (normed.sum, normed.rstd, middle.sum, middle.rstd);
        Ok((stream, Forward { input, input_rstd, q, k, rotated_q, attended, lse, middle, post_rstd, gate, up }))
    }

    /// [`Block::forward_on`] of few tokens, as decoding has them, with nothing saved: the same bits in fewer launches.
    pub(super) fn decode_on(&self, pass: &Pass<'_>, x: &Stream, kv: &mut DeviceKv) -> Result<Stream> {
        let normed = pass.norm_stream(x, self.input_norm)?;
        let [mut q, k, v] = Linear::forward_many_on(pass, [&self.q, &self.k, &self.v], &normed.y)?;
        let norms = self.qk_norm.map(|(q, k)| HeadNorms { q: pass.params.bf16(q), k: pass.params.bf16(k), eps: pass.eps });
        kv.turn_and_write(&mut q, &k, &v, norms, &pass.batch.angles, &pass.batch.slots)?;
        kv.copy(&pass.batch.copies)?;
        let (attended, _) = attention::forward(pass.gpu, &q, kv, &pass.batch.work, pass.scale())?;
        let branch = Arc::new(self.o.forward_on(pass, &attended)?);
        let middle = pass.norm_stream(&Stream { residual: normed.sum, branch: Some(branch) }, self.post_norm)?;
        let out = self.down.forward_on(pass, &Linear::swiglu_on(pass, &self.gate, &self.up, &middle.y)?)?;
        Ok(Stream { residual: middle.sum, branch: Some(Arc::new(out)) })
    }

    /// The gradient of the stream before the block for the one behind it, adding to the trained gradients.
    pub(super) fn backward_on(
        &self,
        pass: &Pass<'_>,
        back: &BackwardBatch,
        saved: Saved,
        d_out: &Buffer,
        grads: &mut Gradients,
    ) -> Result<Buffer> {
        let Saved { kv, forward: saved } = saved;
        let d_middle = self.feed_forward_backward_on(pass, back, &saved, d_out, grads)?;
        let d_attended = self.o.backward_on(pass, back, &saved.attended, &d_middle, grads)?;
        let Forward { rotated_q, attended, lse, .. } = &saved;
        let (mut dq, mut dk, dv) = attention::backward(pass.gpu, &d_attended, rotated_q, attended, lse, &kv, &back.work, pass.scale())?;
        rope::backward(&mut dq, pass.heads.num_heads, &pass.batch.angles)?;
        rope::backward(&mut dk, pass.heads.num_kv_heads, &pass.batch.angles)?;
        let dq = head_norm_backward(pass, dq, &saved.q, self.qk_norm.map(|n| n.0), &back.q_rows, grads)?;
        let dk = head_norm_backward(pass, dk, &saved.k, self.qk_norm.map(|n| n.1), &back.k_rows, grads)?;
        let normed = pass.norm_again(&saved.input, self.input_norm)?;
        let mut d_normed = self.q.backward_on(pass, back, &normed, &dq, grads)?;
        residual::add_to(&mut d_normed, &self.k.backward_on(pass, back, &normed, &dk, grads)?)?;
        residual::add_to(&mut d_normed, &self.v.backward_on(pass, back, &normed, &dv, grads)?)?;
        pass.norm_backward(&d_normed, &saved.input, &saved.input_rstd, self.input_norm, Some(&d_middle), &back.rows, grads)
    }

    /// The gradient of the residual stream between attention and feed-forward.
    fn feed_forward_backward_on(
        &self,
        pass: &Pass<'_>,
        back: &BackwardBatch,
        saved: &Forward,
        d_out: &Buffer,
        grads: &mut Gradients,
    ) -> Result<Buffer> {
        let product = swiglu::forward(pass.gpu, &saved.gate, &saved.up)?;
        let d_product = self.down.backward_on(pass, back, &product, d_out, grads)?;
        let (d_gate, d_up) = swiglu::backward(pass.gpu, &d_product, &saved.gate, &saved.up)?;
        let normed = pass.norm_again(&saved.middle, self.post_norm)?;
        let mut d_normed = self.gate.backward_on(pass, back, &normed, &d_gate, grads)?;
        residual::add_to(&mut d_normed, &self.up.backward_on(pass, back, &normed, &d_up, grads)?)?;
        pass.norm_backward(&d_normed, &saved.middle, &saved.post_rstd, self.post_norm, Some(d_out), &back.rows, grads)
    }
}

/// Through a per-head norm, where there is one.
fn head_norm_backward(
    pass: &Pass<'_>,
    dy: Buffer,
    saved: &Normed,
    weight: Option<ParamId>,
    chunks: &RowChunks,
    grads: &mut Gradients,
) -> Result<Buffer> {
    let (Some((raw, rstd)), Some(weight)) = (saved, weight) else { return Ok(dy) };
    pass.norm_backward(&dy, raw, rstd, weight, None, chunks, grads)
}
