//! The whole network on a device: embedding, blocks, final norm, head; and back.

use super::batch::{BackwardBatch, Batch, Pass};
use super::block::{Saved as SavedBlock, Stream};
use crate::Result;
use crate::model::gradients::Gradients;
use crate::model::linear::Adapter;
use crate::model::transformer::{TokenStats, Transformer};
use crate::tensor::Tensor;
use crate::tensor::cuda::{Buffer, DType, Gpu};
use crate::tensor::ops::attention::cuda::DeviceKv;
use crate::tensor::ops::embedding::cuda::{self as embedding, DeviceIds};
use crate::tensor::ops::matmul::cuda::{FEW_ROWS, TokenChunks};
use crate::tensor::ops::residual::cuda as residual;
use crate::tensor::ops::token_logprob::cuda::{self as token_logprob, Head, Logits};
use crate::tensor::plan::Plan;
use std::sync::Arc;

/// Activations that the backward pass below the head needs.
pub(crate) struct SavedTrunk {
    blocks: Vec<SavedLayer>,
    last: Arc<Buffer>,
    rstd: Buffer,
    /// The normed hidden states that predict, `[predictions, D]` bf16.
    pub predicting: Buffer,
    /// D.
    pub width: usize,
}

/// A block's activations, or, with activation checkpointing, its input alone.
enum SavedLayer {
    Full(Box<SavedBlock>),
    Input(Stream),
}

/// Activations that a backward pass needs.
pub(crate) struct Saved {
    pub trunk: SavedTrunk,
    head: token_logprob::Saved,
}

/// The rows that predict, and their targets.
fn predictions(plan: &Plan) -> (Vec<u32>, Vec<u32>) {
    plan.predictions.iter().map(|p| (p.source, p.target)).unzip()
}

impl Transformer {
    fn pass_on<'a>(&'a self, gpu: &'a Arc<Gpu>, plan: &Plan, adapter: Adapter) -> Result<Pass<'a>> {
        Ok(self.pass_of(gpu, Batch::new(gpu, plan, self.heads(), self.config().vocab_size, self.inv_freq())?, adapter))
    }

    pub(super) fn pass_of<'a>(&'a self, gpu: &'a Arc<Gpu>, batch: Batch, adapter: Adapter) -> Pass<'a> {
        Pass { gpu, params: &self.params, heads: self.heads(), eps: self.config().rms_norm_eps as f32, adapter, batch }
    }

    fn embed_on(&self, pass: &Pass<'_>) -> Result<Stream> {
        let w = pass.params.bf16(self.embedding);
        let x = embedding::forward(pass.gpu, w, &pass.batch.ids, self.config().hidden_size)?;
        Ok(Stream { residual: Arc::new(x), branch: None })
    }

    /// Rows of x `[T, D]`.
    fn gather_on(&self, gpu: &Arc<Gpu>, x: &Buffer, tokens: usize, rows: &[u32]) -> Result<Buffer> {
        embedding::forward(gpu, x, &DeviceIds::new(gpu, rows, tokens)?, self.config().hidden_size)
    }

    fn head_on<'a>(&'a self, h: &'a Buffer, rows: usize) -> Head<'a> {
        let c = self.config();
        Head { h, w: self.params.bf16(self.head), rows, vocab: c.vocab_size, width: c.hidden_size }
    }

    /// [`Transformer::hidden`] on the device: `[rows, D]` bf16 there.
    pub(crate) fn hidden_on(&self, gpu: &Arc<Gpu>, plan: &Plan, kv: &mut [DeviceKv], rows: &[u32], adapter: Adapter) -> Result<Tensor> {
        let pass = self.pass_on(gpu, plan, adapter)?;
        let hidden = self.gather_on(gpu, &self.trunk_on(&pass, kv)?, pass.batch.tokens, rows)?;
        Ok(Tensor::from_device(&[rows.len(), self.config().hidden_size], hidden))
    }

    /// Final hidden states (normed) of all rows, nothing saved; keys and values live in `kv`.
    pub(super) fn trunk_on(&self, pass: &Pass<'_>, kv: &mut [DeviceKv]) -> Result<Buffer> {
        let mut x = self.embed_on(pass)?;
        for (block, kv) in self.blocks.iter().zip(kv) {
            x = match pass.batch.tokens {
                ..=FEW_ROWS => block.decode_on(pass, &x, kv)?,
                _ => block.forward_on(pass, &x, kv)?.0,
            };
        }
        Ok(pass.norm_stream(&x, self.final_norm)?.y)
    }

    /// Logits of final hidden states, each row with its chunk sums at its own temperature.
    pub(crate) fn logits_on(&self, gpu: &Arc<Gpu>, hidden: &Tensor, temperatures: &[f32]) -> Result<Logits> {
        token_logprob::logits(gpu, self.head_on(hidden.buffer(), hidden.rows()), temperatures)
    }

    /// The launches of [`Transformer::logits_on`], with the temperatures on the device.
    pub(super) fn queue_logits(&self, gpu: &Arc<Gpu>, hidden: &Buffer, rows: usize, temperatures: &Buffer) -> Result<Logits> {
        token_logprob::queue(gpu, self.head_on(hidden, rows), temperatures)
    }

    /// [`Transformer::predicting`], left on the device.
    pub(crate) fn predicting_on(&self, gpu: &Arc<Gpu>, plan: &Plan, adapter: Adapter) -> Result<Buffer> {
        let pass = self.pass_on(gpu, plan, adapter)?;
        let mut x = self.embed_on(&pass)?;
        for block in &self.blocks {
            x = block.forward_on(&pass, &x, &mut DeviceKv::new(gpu, pass.heads, plan.num_pages)?)?.0;
        }
        let normed = pass.norm_stream(&x, self.final_norm)?;
        self.gather_on(gpu, &normed.y, pass.batch.tokens, &predictions(plan).0)
    }

    /// [`Transformer::evaluate`] on the device.
    pub(crate) fn evaluate_on(&self, gpu: &Arc<Gpu>, plan: &Plan, temperature: f32, adapter: Adapter) -> Result<TokenStats> {
        let h = self.predicting_on(gpu, plan, adapter)?;
        let targets = predictions(plan).1;
        let (logprob, entropy, _) = token_logprob::forward(gpu, self.head_on(&h, targets.len()), &targets, temperature)?;
        Ok(TokenStats { logprob, entropy })
    }

    /// [`Transformer::forward`] on the device.
    pub(crate) fn forward_on(&self, gpu: &Arc<Gpu>, plan: &Plan, temperature: f32, checkpointing: bool) -> Result<(TokenStats, Saved)> {
        let trunk = self.forward_trunk_on(gpu, plan, checkpointing)?;
        let targets = predictions(plan).1;
        let head = self.head_on(&trunk.predicting, targets.len());
        let (logprob, entropy, head) = token_logprob::forward(gpu, head, &targets, temperature)?;
        Ok((TokenStats { logprob, entropy }, Saved { trunk, head }))
    }

    /// [`Transformer::forward_trunk`] on the device.
    pub(crate) fn forward_trunk_on(&self, gpu: &Arc<Gpu>, plan: &Plan, checkpointing: bool) -> Result<SavedTrunk> {
        let pass = self.pass_on(gpu, plan, Adapter::On)?;
        let mut x = self.embed_on(&pass)?;
        let mut blocks = Vec::with_capacity(self.blocks.len());
        for block in &self.blocks {
            let mut kv = DeviceKv::new(gpu, pass.heads, plan.num_pages)?;
            let (out, forward) = block.forward_on(&pass, &x, &mut kv)?;
            let input = std::mem::replace(&mut x, out);
            blocks.push(match checkpointing {
                true => SavedLayer::Input(input),
                false => SavedLayer::Full(Box::new(SavedBlock { kv, forward })),
            });
        }
        let normed = pass.norm_stream(&x, self.final_norm)?;
        let predicting = self.gather_on(gpu, &normed.y, pass.batch.tokens, &predictions(plan).0)?;
        Ok(SavedTrunk { blocks, last: normed.sum, rstd: normed.rstd, predicting, width: self.config().hidden_size })
    }

    /// [`Transformer::backward_with`] on the device. `d_predicting [predictions, D]` is the processor's.
    #[allow(clippy::too_many_arguments)] // what the equation has
    pub(crate) fn backward_on(
        &self,
        gpu: &Arc<Gpu>,
        plan: &Plan,
        saved: Saved,
        d_logprob: &[f32],
        d_entropy: Option<&[f32]>,
        d_predicting: Option<&Tensor>,
        grads: &mut Gradients,
    ) -> Result<()> {
        let head = self.head_on(&saved.trunk.predicting, plan.predictions.len());
        let chunks = TokenChunks::new(gpu, &plan.head_chunks)?;
        let dw = grads.buffer_mut(self.head).map(|dw| (dw, &chunks));
        let dh = token_logprob::backward(gpu, head, &saved.head, d_logprob, d_entropy, dw)?;
        let mut dh = residual::round(gpu, &dh)?;
        if let Some(d) = d_predicting {
            residual::add_to(&mut dh, &Buffer::from_f32(gpu, DType::Bf16, d.data())?)?;
        }
        self.backward_trunk_on(gpu, plan, saved.trunk, &dh, grads)
    }

    /// [`Transformer::backward_trunk`] on the device, for the gradient `[predictions, D]` bf16 there.
    pub(crate) fn backward_trunk_on(
        &self,
        gpu: &Arc<Gpu>,
        plan: &Plan,
        saved: SavedTrunk,
        d_predicting: &Buffer,
        grads: &mut Gradients,
    ) -> Result<()> {
        let pass = self.pass_on(gpu, plan, Adapter::On)?;
        let back = BackwardBatch::new(gpu, plan, pass.heads)?;
        let d_hidden = self.scatter_on(gpu, d_predicting, plan)?;
        let mut dx = pass.norm_backward(&d_hidden, &saved.last, &saved.rstd, self.final_norm, None, &back.rows, grads)?;
        for (block, saved) in self.blocks.iter().zip(saved.blocks).rev() {
            let saved = match saved {
                SavedLayer::Full(saved) => *saved,
                SavedLayer::Input(x) => {
                    let mut kv = DeviceKv::new(gpu, pass.heads, plan.num_pages)?;
                    let (_, forward) = block.forward_on(&pass, &x, &mut kv)?;
                    SavedBlock { kv, forward }
                }
            };
            dx = block.backward_on(&pass, &back, saved, &dx, grads)?;
        }
        if grads.is_trained(self.embedding) {
            grads.add_embedding_on(pass.batch.ids, dx);
        }
        Ok(())
    }

    /// The gradient of gathering the rows that predict: rows `[predictions, D]` are added, in f32 and in order, to where they came from, `[T, D]`.
    fn scatter_on(&self, gpu: &Arc<Gpu>, dy: &Buffer, plan: &Plan) -> Result<Buffer> {
        let (tokens, width) = (plan.num_tokens(), self.config().hidden_size);
        let mut sum = Buffer::zeros(gpu, DType::F32, tokens * width)?;
        embedding::backward(gpu, &mut sum, dy, &DeviceIds::new(gpu, &predictions(plan).0, tokens)?, width)?;
        residual::round(gpu, &sum)
    }
}
