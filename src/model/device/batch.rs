//! A batch's tables in device memory, made once from its plan, and what all blocks of a pass share.

use crate::Result;
use crate::model::linear::Adapter;
use crate::model::params::Params;
use crate::tensor::cuda::{Buffer, Gpu};
use crate::tensor::ops::attention::Heads;
use crate::tensor::ops::attention::cuda::{BackwardWork, PageCopies, Work};
use crate::tensor::ops::embedding::cuda::DeviceIds;
use crate::tensor::ops::matmul::cuda::TokenChunks;
use crate::tensor::ops::rmsnorm::cuda::RowChunks;
use crate::tensor::ops::rope::{Angles, cuda::DeviceAngles};
use crate::tensor::plan::Plan;
use std::sync::Arc;

/// What all blocks of a pass share.
pub(super) struct Pass<'a> {
    pub gpu: &'a Arc<Gpu>,
    pub params: &'a Params,
    pub heads: Heads,
    pub eps: f32,
    pub adapter: Adapter,
    pub batch: Batch,
}

/// The tables of the forward pass.
pub(super) struct Batch {
    pub tokens: usize,
    pub ids: DeviceIds,
    /// The page and slot of each token's key and value, `[T, 2]`.
    pub slots: Buffer,
    pub copies: PageCopies,
    pub angles: DeviceAngles,
    pub work: Work,
}

impl Batch {
    pub fn new(gpu: &Arc<Gpu>, plan: &Plan, heads: Heads, vocab: usize, inv_freq: &[f32]) -> Result<Self> {
        let slots: Vec<u32> = plan.kv_slots.iter().flat_map(|(page, slot)| [*page, *slot]).collect();
        Ok(Self {
            tokens: plan.num_tokens(),
            ids: DeviceIds::new(gpu, &plan.ids, vocab)?,
            slots: Buffer::from_u32(gpu, &slots)?,
            copies: PageCopies::new(gpu, &plan.copies)?,
            angles: DeviceAngles::new(gpu, &Angles::new(&plan.positions, inv_freq))?,
            work: Work::new(gpu, &plan.segments, heads)?,
        })
    }
}

/// The tables of the backward pass: over which chunks of tokens gradients are summed, in which form each op takes them.
pub(super) struct BackwardBatch {
    pub work: BackwardWork,
    /// For products.
    pub tokens: TokenChunks,
    /// For norms and biases: a row a token.
    pub rows: RowChunks,
    /// For the norms of the heads of q and of k.
    pub q_rows: RowChunks,
    pub k_rows: RowChunks,
}

impl BackwardBatch {
    pub fn new(gpu: &Arc<Gpu>, plan: &Plan, heads: Heads) -> Result<Self> {
        let rows = |per_token| RowChunks::new(gpu, &plan.grad_chunks, per_token);
        Ok(Self {
            work: BackwardWork::new(gpu, plan, heads)?,
            tokens: TokenChunks::new(gpu, &plan.grad_chunks)?,
            rows: rows(1)?,
            q_rows: rows(heads.num_heads)?,
            k_rows: rows(heads.num_kv_heads)?,
        })
    }
}
