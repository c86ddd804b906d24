//! What a run takes on the processor, where every number is f32, but for matrices with `compute = "bf16"`.

use super::{Largest, Numbers, Row, largest, positions, row, sampled_together, widths};
use crate::model::ModelConfig;
use crate::rl::config::{Config, Reference, Stage};
use crate::rl::dataset::Dataset;
use crate::tensor::cpu::Compute;
use crate::tensor::ops::token_logprob::KEPT_LOGITS;
use crate::tensor::plan::{TILE, VOCAB_CHUNK};

/// Bytes of a number.
const F32: u64 = 4;

/// What stands from the first step to the last.
pub fn kept(config: &Config, n: &Numbers, exact: bool) -> Vec<Row> {
    let &Numbers { base, trained, .. } = n;
    let weights = Weights { n, compute: config.compute, exact };
    let (moments, how) = n.moments(config.stages.iter());
    let mut rows = vec![
        row("weights", weights.policy(), format!("{base} numbers, {}", weights.how()), "model"),
        row("gradients", F32 * trained, format!("{trained} trained numbers"), "lora.rank"),
        row("AdamW's moments", moments, format!("two for each trained number, {how}"), "optim.moments"),
    ];
    for (i, &stage) in n.references(config).iter().enumerate() {
        let bytes = weights.reference(stage == 0 || config.stages[stage].kl_reference == Reference::Base);
        rows.push(match i {
            0 => row("reference policy", bytes, "a frozen copy of all weights, for the KL".into(), "kl.measure"),
            _ => row(
                "reference policy of another stage",
                bytes,
                "kl.reference = \"base\" in one, \"start\" in another".into(),
                "kl.reference",
            ),
        });
    }
    if let Some((moments, how)) = n.critic_moments(config) {
        let because = format!("{trained} numbers of its own, their gradients and moments ({how})");
        rows.push(row("critic", weights.trained() + F32 * trained + moments, because, "critic.kind"));
    }
    rows
}

/// Weights, as products read them and as the optimizer changes them.
struct Weights<'a> {
    n: &'a Numbers,
    compute: Compute,
    /// Whether bf16 holds the model's weights as they are read.
    exact: bool,
}

impl Weights<'_> {
    /// Bytes of the policy's: all that is trained, and with an adapter the frozen model.
    fn policy(&self) -> u64 {
        self.trained() + if self.n.lora { self.frozen() } else { 0 }
    }

    /// Bytes of what is trained.
    fn trained(&self) -> u64 {
        let [base, adapter] = self.n.bf16;
        let beside = if self.n.lora { adapter } else { base };
        F32 * self.n.trained + if self.compute == Compute::Bf16 { beside } else { 0 }
    }

    /// Bytes of the model as it was read, never trained.
    fn frozen(&self) -> u64 {
        match (self.compute, self.exact) {
            (Compute::F32, _) => F32 * self.n.base,
            (Compute::Bf16, true) => self.n.bf16[0],
            (Compute::Bf16, false) => F32 * self.n.base + self.n.bf16[0],
        }
    }

    /// Bytes of a frozen copy of all weights, as they were at first or later.
    fn reference(&self, initial: bool) -> u64 {
        if initial { self.frozen() } else { self.trained() }
    }

    fn how(&self) -> &'static str {
        match (self.compute, self.n.lora && self.exact) {
            (Compute::F32, _) => "f32",
            (Compute::Bf16, true) => "bf16",
            (Compute::Bf16, false) => "f32, and bf16 for products",
        }
    }
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
