//! How much memory a run will take, from its settings and the longest example, before the first step.

use crate::error::{Error, Result};
use crate::model::ModelConfig;
use crate::model::lora::LoraConfig;
use crate::rl::config::{Algorithm, Config, CriticKind, Reference, Stage};
use crate::rl::dataset::Dataset;
use crate::rl::trainer::Examples;
use crate::tensor::ops::token_logprob::KEPT_LOGITS;
use crate::tensor::plan::{TILE, VOCAB_CHUNK};
use std::fmt;

/// Bytes of a number.
const F32: u64 = 4;

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// What takes the memory.
    pub what: &'static str,
    /// How much.
    pub bytes: u64,
    /// How that comes about.
    pub because: String,
    /// The setting that makes it smaller, where there is one.
    pub setting: &'static str,
}

/// The memory that a run takes at its fullest moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryPlan {
    /// The parts. Activations and the KV cache never stand at the same time; both are listed, the larger one counts.
    pub rows: Vec<Row>,
    /// The sum.
    pub total: u64,
}

/// The largest micro-batch of a stage.
struct Largest {
    tokens: usize,
    segments: usize,
    targets: usize,
}

impl MemoryPlan {
    /// The plan of a run. `lora` is the adapter that is trained, fresh or loaded.
    pub fn new(config: &Config, model: &ModelConfig, lora: Option<&LoraConfig>, examples: &Examples) -> Self {
        let base = base_numbers(model);
        let trained = lora.map_or(base, |l| adapter_numbers(model, l));
        let mut rows = vec![
            row("weights", base + lora.map_or(0, |_| trained), format!("{base} numbers, f32"), "model"),
            row("gradients", trained, format!("{trained} trained numbers"), "lora.rank"),
            row("AdamW's moments", 2 * trained, "two for each trained number".into(), "lora.rank"),
        ];
        if lora.is_none() && config.stages.iter().any(|s| s.algorithm.samples() && (s.kl_measure || s.kl_coef > 0.0)) {
            let because = "a frozen copy of all weights, for the KL".to_owned();
            rows.push(row("reference policy", base, because, "kl.measure"));
            if config.stages.iter().filter(|s| s.kl_reference == Reference::Base).count() > 0 && config.stages.len() > 1 {
                rows.push(row(
                    "reference policy of another stage",
                    base,
                    "kl.reference = \"base\" in one, \"start\" in another".into(),
                    "kl.reference",
                ));
            }
        }
        if config.stages.iter().any(|s| s.algorithm == Algorithm::Ppo && s.critic.kind != CriticKind::Trunk) {
            let because = format!("{trained} numbers of its own, their gradients and moments");
            rows.push(row("critic", 4 * trained, because, "critic.kind"));
        }
        let fixed: u64 = rows.iter().map(|r| r.bytes).sum();
        let activations = config.stages.iter().zip(&examples.stages).map(|(s, d)| activations(model, s, d)).max_by_key(|r| r.bytes);
        let cache = config.stages.iter().zip(&examples.stages).filter_map(|(s, d)| kv_cache(model, config, s, d)).max_by_key(|r| r.bytes);
        let working = activations.iter().chain(&cache).map(|r| r.bytes).max().unwrap_or(0);
        rows.extend(activations);
        rows.extend(cache);
        Self { rows, total: fixed + working }
    }

    /// An error if the run cannot fit into `available` bytes, saying what to change.
    pub fn check(&self, available: u64) -> Result<()> {
        if self.total <= available {
            return Ok(());
        }
        let largest = self.rows.iter().filter(|r| r.setting != "model").max_by_key(|r| r.bytes);
        let advice = largest.map_or(String::new(), |r| format!("; {} take {}: change {}", r.what, Size(r.bytes), r.setting));
        Err(Error::input(format!("the run needs {} of memory and {} are free", Size(self.total), Size(available)))
            .hint(format!("`train --plan` prints the table{advice}")))
    }
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.rows.iter().map(|r| r.what.len()).max().unwrap_or(0).max(6);
        for r in &self.rows {
            writeln!(f, "{:width$}  {:>10}  {}", r.what, Size(r.bytes).to_string(), r.because)?;
        }
        writeln!(
            f,
            "{:width$}  {:>10}  activations and KV cache never stand together: the larger counts",
            "total",
            Size(self.total).to_string()
        )
    }
}

/// Bytes for people.
struct Size(u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = self.0 as f64 / (1 << 20) as f64;
        if mib < 1024.0 { write!(f, "{mib:.1} MiB") } else { write!(f, "{:.2} GiB", mib / 1024.0) }
    }
}

fn row(what: &'static str, numbers: u64, because: String, setting: &'static str) -> Row {
    Row { what, bytes: numbers * F32, because, setting }
}

/// Numbers of the base model.
fn base_numbers(c: &ModelConfig) -> u64 {
    let (d, ffn, q, kv) = widths(c);
    let biases = if c.qkv_bias { q + 2 * kv } else { 0 } + if c.o_bias { d } else { 0 } + if c.mlp_bias { 2 * ffn + d } else { 0 };
    let qk_norm = if c.qk_norm { 2 * c.head_dim } else { 0 };
    let block = 2 * d * q + 2 * d * kv + 3 * d * ffn + 2 * d + biases + qk_norm;
    let embeddings = c.vocab_size * d * if c.tie_word_embeddings { 1 } else { 2 };
    (embeddings + d + c.num_layers * block) as u64
}

/// Numbers of an adapter.
fn adapter_numbers(c: &ModelConfig, lora: &LoraConfig) -> u64 {
    let (d, ffn, q, kv) = widths(c);
    let of = |target: &String| match target.as_str() {
        "q_proj" | "o_proj" => d + q,
        "k_proj" | "v_proj" => d + kv,
        _ => d + ffn,
    };
    (c.num_layers * lora.rank * lora.targets.iter().map(of).sum::<usize>()) as u64
}

fn widths(c: &ModelConfig) -> (usize, usize, usize, usize) {
    (c.hidden_size, c.intermediate_size, c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim)
}

/// The longest prompt and the longest tree of a dataset, as a stage uses it.
fn largest(stage: &Stage, dataset: &Dataset) -> Largest {
    let group = if stage.algorithm.samples() { stage.group_size } else { 1 };
    let tree = match dataset {
        Dataset::Sequences(lines) => {
            lines.iter().map(|l| Largest { tokens: l.ids.len(), segments: 1, targets: l.num_targets() }).max_by_key(|t| t.tokens)
        }
        Dataset::Items(items) => items
            .iter()
            .map(|i| {
                let targets = if stage.algorithm.samples() { group * stage.max_new_tokens } else { i.gold.len() };
                Largest { tokens: i.prompt.len() + targets, segments: 1 + group, targets }
            })
            .max_by_key(|t| t.tokens),
    };
    let tree = tree.unwrap_or(Largest { tokens: 0, segments: 0, targets: 0 });
    // As many whole trees as a micro-batch holds, at least one.
    let trees = (stage.microbatch_tokens / tree.tokens.max(1)).clamp(1, stage.batch_prompts);
    Largest { tokens: trees * tree.tokens, segments: trees * tree.segments, targets: trees * tree.targets }
}

/// Activations that a backward pass keeps: what `model::block` saves of a block, and what one block's backward pass works on.
fn activations(c: &ModelConfig, stage: &Stage, dataset: &Dataset) -> Row {
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
        numbers as u64,
        format!("{tokens} tokens in the largest micro-batch, {} blocks{how}", c.num_layers),
        "microbatch_tokens or activation_checkpointing",
    )
}

/// Keys and values of the answers that are sampled together, their prompts shared.
fn kv_cache(c: &ModelConfig, config: &Config, stage: &Stage, dataset: &Dataset) -> Option<Row> {
    let Dataset::Items(items) = dataset else { return None };
    if !stage.algorithm.samples() {
        return None;
    }
    let (_, _, _, kv) = widths(c);
    let answers = config.rollout_batch.min(stage.batch_prompts * stage.group_size);
    let prompts = answers.div_ceil(stage.group_size).min(stage.batch_prompts) + 1;
    let longest = items.iter().map(|i| i.prompt.len()).max().unwrap_or(0);
    let positions = prompts * longest.next_multiple_of(TILE) + answers * (stage.max_new_tokens + 2 * TILE);
    let because = format!("{answers} answers of {} tokens on {prompts} prompts of {longest}", stage.max_new_tokens);
    Some(row("KV cache", (positions * 2 * kv * c.num_layers) as u64, because, "rollout_batch"))
}

/// Bytes of memory that are free on this machine and allowed to this process, where the system says so.
pub fn available() -> Option<u64> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    let free = line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? * 1024;
    let read = |name: &str| std::fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok()?.trim().parse::<u64>().ok();
    match (read("memory.max"), read("memory.current")) {
        (Some(max), Some(current)) => Some(free.min(max.saturating_sub(current))),
        _ => Some(free),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::config::{Family, RopeScaling};
    use crate::rl::dataset::Sequence;
    use std::path::Path;
    use std::sync::Arc;

    fn smollm2() -> ModelConfig {
        ModelConfig {
            family: Family::Llama,
            vocab_size: 49152,
            hidden_size: 576,
            intermediate_size: 1536,
            num_layers: 30,
            num_heads: 9,
            num_kv_heads: 3,
            head_dim: 64,
            rope_theta: 1e5,
            rope_scaling: RopeScaling::None,
            rms_norm_eps: 1e-5,
            max_position_embeddings: 8192,
            tie_word_embeddings: true,
            qkv_bias: false,
            o_bias: false,
            mlp_bias: false,
            qk_norm: false,
            eos_token_ids: vec![2],
            bos_token_id: None,
        }
    }

    #[test]
    fn counts_the_parameters_of_a_known_model() {
        assert_eq!(base_numbers(&smollm2()), 134_515_008);
        let lora = LoraConfig { rank: 8, alpha: 16.0, targets: vec!["q_proj".into(), "v_proj".into()] };
        assert_eq!(adapter_numbers(&smollm2(), &lora), 30 * 8 * (576 + 576 + 576 + 192));
    }

    #[test]
    fn says_what_does_not_fit() {
        let text = "model = \"a/b\"\ndata.train = \"x\"\nbatch_prompts = 4\nmicrobatch_tokens = 200\n";
        let config = Config::parse(text, Path::new("a.toml")).unwrap();
        let lines = vec![Sequence { ids: vec![1; 100], targets: vec![true; 100] }];
        let examples = Examples { stages: vec![Arc::new(Dataset::Sequences(lines))], heldout: Vec::new() };
        let plan = MemoryPlan::new(&config, &smollm2(), None, &examples);
        assert!(plan.to_string().contains("200 tokens in the largest micro-batch"), "{plan}");
        let weights = 134_515_008 * 16;
        assert!(plan.total > weights && plan.total < weights + (400 << 20), "{plan}");
        let e = plan.check(1 << 30).unwrap_err().to_string();
        assert!(e.starts_with("the run needs 2.") && e.contains("AdamW's moments take 1.00 GiB: change lora.rank"), "{e}");
        assert!(plan.check(plan.total).is_ok());
    }
}
