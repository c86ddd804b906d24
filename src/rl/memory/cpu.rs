//! What a run takes on the processor, where every number is f32.

use super::{Largest, Numbers, Row, largest, positions, row, sampled_together, widths};
use crate::model::ModelConfig;
use crate::rl::config::{Config, Stage};
use crate::rl::dataset::Dataset;
use crate::tensor::ops::token_logprob::KEPT_LOGITS;
use crate::tensor::plan::{TILE, VOCAB_CHUNK};

/// Bytes of a number.
const F32: u64 = 4;

/// What stands from the first step to the last.
pub fn kept(config: &Config, n: &Numbers) -> Vec<Row> {
    let &Numbers { base, trained, lora, .. } = n;
    let (moments, how) = n.moments(config.stages.iter());
    let mut rows = vec![
        row("weights", F32 * (base + if lora { trained } else { 0 }), format!("{base} numbers, f32"), "model"),
        row("gradients", F32 * trained, format!("{trained} trained numbers"), "lora.rank"),
        row("AdamW's moments", moments, format!("two for each trained number, {how}"), "optim.moments"),
    ];
    for (i, _) in n.references(config).iter().enumerate() {
        rows.push(match i {
            0 => row("reference policy", F32 * base, "a frozen copy of all weights, for the KL".into(), "kl.measure"),
            _ => row(
                "reference policy of another stage",
                F32 * base,
                "kl.reference = \"base\" in one, \"start\" in another".into(),
                "kl.reference",
            ),
        });
    }
    if let Some((moments, how)) = n.critic_moments(config) {
        let because = format!("{trained} numbers of its own, their gradients and moments ({how})");
        rows.push(row("critic", F32 * 2 * trained + moments, because, "critic.kind"));
    }
    rows
}

/// Activations that a backward pass keeps: what `model::block` saves of a block, and what one block's backward pass works on.
pub fn activations(c: &ModelConfig, stage: &Stage, dataset: &Dataset) -> Row {
    let (d, ffn, q, kv) = widths(c);
    let Largest { tokens, segments, targets } = largest(stage, dataset);
    let raw = if c.qk_norm { q + kv } else { 0 };
    // The block's input, the middle of the residual stream, q, attention's output, gate, up, softmax states; keys and values in pages.
    let pages = (tokens + segments * TILE) * 2 * kv;
    let block = tokens * (2 * d + 2 * q + 2 * ffn + raw + 2 * c.num_heads + 2) + pages;
    let working = tokens * (3 * ffn + 4 * d + 2 * q);
    let kept = if stage.activation_checkpointing { c.num_layers * tokens * d + block } else { c.num_layers * block };
    // The head keeps few logits, and works on one chunk of the vocabulary where there are many.
    let logits = if targets * c.vocab_size <= KEPT_LOGITS { targets * c.vocab_size } else { targets * VOCAB_CHUNK.min(c.vocab_size) };
    let numbers = kept + working + logits + targets * 2 * d;
    let how = if stage.activation_checkpointing { ", recomputed block by block" } else { "" };
    row(
        "activations",
        numbers as u64 * F32,
        format!("{tokens} tokens in the largest micro-batch, {} blocks{how}", c.num_layers),
        "microbatch_tokens or activation_checkpointing",
    )
}

/// Keys and values of the answers that are sampled together, their prompts shared.
pub fn kv_cache(c: &ModelConfig, config: &Config, stage: &Stage, dataset: &Dataset) -> Option<Row> {
    let (_, _, _, kv) = widths(c);
    let together = sampled_together(config, stage, dataset)?;
    let (answers, prompts, longest) = together;
    let because = format!("{answers} answers of {} tokens on {prompts} prompts of {longest}", stage.max_new_tokens);
    Some(row("KV cache", F32 * (positions(stage, together) * 2 * kv * c.num_layers) as u64, because, "rollout_batch"))
}
