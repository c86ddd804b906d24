//! What a run takes on a GPU: what `model/device/` allocates, array by array. Weights, activations and their gradients are bf16; masters,
//! gradients of weights, moments and logits are f32.

use super::{Largest, Numbers, Row, largest, positions, row, sampled_together, widths};
use crate::model::ModelConfig;
use crate::model::RECORDED_ROWS;
use crate::rl::config::{Config, Stage};
use crate::rl::dataset::Dataset;
use crate::tensor::ops::attention::Heads;
use crate::tensor::ops::attention::cuda::most_sums;
use crate::tensor::ops::attention::cuda::work::SPLIT;
use crate::tensor::ops::matmul::cuda::FEW_ROWS;
use crate::tensor::plan::{TILE, VOCAB_CHUNK};

/// Bytes of numbers.
const BF16: usize = 2;
const F32: usize = 4;

/// Columns of the vocabulary that a block of the head's kernel sums (`SIDE` of `kernels/head.cu`), three f32 a row for each.
const HEAD_TILE: usize = 128;

/// Prompt tokens prefilled in one pass, at most (`model::generate`).
const PREFILL: usize = 2048;

/// What stands from the first step to the last.
pub fn kept(config: &Config, n: &Numbers, exact: bool) -> Vec<Row> {
    let &Numbers { base, trained, lora, .. } = n;
    let (moments, kept_in) = n.moments(config.stages.iter());
    // A trained number has its bf16 and its master; a frozen one its bf16, and its f32 where bf16 does not hold it.
    let (trained_bytes, frozen_bytes) = (6, if exact { 2 } else { 6 });
    let weights = if lora { frozen_bytes * base + trained_bytes * trained } else { trained_bytes * base };
    let how = match (lora, exact) {
        (true, true) => "bf16",
        (true, false) => "bf16, and f32 since bf16 does not hold what was read",
        (false, _) => "bf16 with an f32 master",
    };
    let mut rows = vec![
        row("weights", weights, format!("{base} numbers, {how}"), "model"),
        row("gradients", 4 * trained, format!("{trained} trained numbers, f32"), "lora.rank"),
        row("AdamW's moments", moments, format!("two for each trained number, {kept_in}"), "optim.moments"),
    ];
    for stage in n.references(config) {
        // Before the first step of the first stage the weights have no masters yet.
        let bytes = if stage == 0 { frozen_bytes } else { trained_bytes };
        rows.push(row("reference policy", bytes * base, "a frozen copy of all weights, for the KL".into(), "kl.measure"));
    }
    if let Some((moments, kept_in)) = n.critic_moments(config) {
        let because = format!("{trained} numbers of its own, their gradients and moments ({kept_in})");
        rows.push(row("critic", (trained_bytes + 4) * trained + moments, because, "critic.kind"));
    }
    rows
}

/// Activations that a backward pass keeps, and what it works on where that is most: in the head, or in a block.
pub fn activations(c: &ModelConfig, stage: &Stage, dataset: &Dataset, embeddings_trained: bool) -> Row {
    let (d, ffn, q, kv) = widths(c);
    let Largest { tokens, segments, targets } = largest(stage, dataset);
    let pages = (tokens + segments * TILE) * 2 * kv;
    let heads = c.num_heads + if c.qk_norm { c.num_heads + c.num_kv_heads } else { 0 };
    let raw = if c.qk_norm { q + kv } else { 0 };
    // A block's input, the middle of the residual stream, rotated q, attention's output, gate and up; softmax states and norms' statistics.
    let block = BF16 * (tokens * (2 * d + 2 * q + 2 * ffn + raw) + pages) + F32 * tokens * (heads + 2);
    let blocks = if stage.activation_checkpointing { c.num_layers * tokens * 2 * d * BF16 + block } else { c.num_layers * block };
    // The last block's sum and the gradient of the final norm's input stand through all blocks; ids, positions, rotations and tables of work.
    let through = tokens * (BF16 * 2 * d + F32 * (c.head_dim + 16)) + targets * (BF16 * d + F32 * 16);
    let feed_forward = BF16 * tokens * (4 * ffn + 4 * d);
    let attention = Heads { num_heads: c.num_heads, num_kv_heads: c.num_kv_heads, head_dim: c.head_dim };
    let sums = most_sums(attention, tokens, segments);
    let attention = BF16 * tokens * (2 * q + 2 * kv + 2 * d) + F32 * (pages + tokens * c.num_heads + sums);
    let head = targets * (BF16 * (VOCAB_CHUNK.min(c.vocab_size) + d) + F32 * d);
    let head_forward = targets * 3 * F32 * c.vocab_size.div_ceil(HEAD_TILE);
    let working = feed_forward.max(attention).max(head).max(head_forward);
    // The gradient of the embedding waits for the step's last micro-batch.
    let longest = largest(&Stage { batch_prompts: 1, ..stage.clone() }, dataset).tokens;
    let step = tokens.max(longest * stage.batch_prompts.div_ceil(stage.minibatches.max(1)));
    let pending = if embeddings_trained { step * (BF16 * d + F32 * 4) } else { 0 };
    let how = if stage.activation_checkpointing { ", recomputed block by block" } else { "" };
    row(
        "activations",
        (blocks + through + working + pending) as u64,
        format!("{tokens} tokens in the largest micro-batch, {} blocks{how}", c.num_layers),
        "microbatch_tokens or activation_checkpointing",
    )
}

/// Keys and values of the answers that are sampled together, their logits, and the pass over their prompts.
pub fn sampling(c: &ModelConfig, config: &Config, stage: &Stage, dataset: &Dataset) -> Option<Row> {
    let (d, ffn, q, kv) = widths(c);
    let together = sampled_together(config, stage, dataset)?;
    let (answers, prompts, longest) = together;
    let cache = BF16 * positions(stage, together) * 2 * kv * c.num_layers;
    // A recorded step of decoding has rows for a power of two, and keeps its memory: logits, a block's activations, the splits' states.
    let rows = if answers > RECORDED_ROWS { answers } else { answers.next_power_of_two() };
    let splits = (rows * (longest + stage.max_new_tokens).div_ceil(SPLIT)).next_power_of_two();
    // Behind the logits: the sums of their tiles, and of a row what it is drawn by, its place, its rotation and what was chosen.
    let logits = F32 * rows * (c.vocab_size + 3 * c.vocab_size.div_ceil(HEAD_TILE) + c.head_dim + 19);
    // Few rows have no gate and no up of their own.
    let wide = if rows <= FEW_ROWS { ffn } else { 3 * ffn };
    let block = BF16 * rows * (6 * d + 2 * q + 2 * kv + wide) + F32 * splits * c.num_heads * (c.head_dim + 2);
    let prefill = BF16 * (PREFILL.min(prompts * longest)).max(longest) * (4 * d + 2 * q + 2 * kv + 3 * ffn);
    // Prompts are prefilled before anything is decoded, unless they wait for places.
    let waits = stage.batch_prompts * stage.group_size > answers;
    let working = if waits { logits + block + prefill } else { (logits + block).max(prefill) };
    let because = format!("KV cache of {answers} answers of {} tokens on {prompts} prompts of {longest}, logits", stage.max_new_tokens);
    Some(row("sampling", (cache + working) as u64, because, "rollout_batch"))
}
